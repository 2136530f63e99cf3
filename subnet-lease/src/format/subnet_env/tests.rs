use proptest::prelude::*;

use super::*;

fn env(network: &str, leased: &str) -> SubnetEnv {
    let json = format!(r#"{{{network},"Backend":{{"Type":"vxlan"}}}}"#);
    let (network, _) = NetworkConfig::parse(json.as_bytes()).unwrap();
    SubnetEnv::new(&network, &leased.parse().unwrap(), 1450, true)
}

const V4: &str = r#""Network":"10.42.0.0/16""#;
const DUAL: &str = r#""Network":"10.42.0.0/16","EnableIPv6":true,"IPv6Network":"2001:cafe:42::/56""#;
const V6: &str = r#""EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"2001:cafe:42::/56""#;

#[test]
fn the_file_has_flannels_lines_in_flannels_order() {
    let dual = env(DUAL, "10.42.7.0-24&2001:cafe:42:7::-64");
    assert_eq!(
        dual.text(),
        "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.7.1/24\n\
         FLANNEL_IPV6_NETWORK=2001:cafe:42::/56\nFLANNEL_IPV6_SUBNET=2001:cafe:42:7::1/64\n\
         FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    );
    let v4 = env(V4, "10.42.7.0-24");
    assert_eq!(
        v4.text(),
        "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    );
    let v6 = env(V6, "0.0.0.0-0&2001:cafe:42:7::-64");
    assert_eq!(
        v6.text(),
        "FLANNEL_IPV6_NETWORK=2001:cafe:42::/56\nFLANNEL_IPV6_SUBNET=2001:cafe:42:7::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    );
    for env in [dual, v4, v6] {
        assert_eq!(SubnetEnv::parse(&env.text()).unwrap(), env);
    }
}

#[test]
fn the_previous_subnet_is_read_back_without_its_host_bits() {
    assert_eq!(env(V4, "10.42.7.0-24").leased(), "10.42.7.0-24".parse().ok());
}

#[test]
fn a_file_written_by_hand_is_read() {
    let text = "# mine\n\nexport FLANNEL_NETWORK = \"10.42.0.0/16\"\r\nFLANNEL_SUBNET='10.42.7.1/24'\nFLANNEL_X\nOTHER=1\n\
                FLANNEL_IPMASQ=false\nFLANNEL_MTU=1400\nFLANNEL_MTU=1450";
    assert_eq!(SubnetEnv::parse(text).unwrap(), SubnetEnv { ipmasq: false, ..env(V4, "10.42.7.0-24") });
}

#[test]
fn each_wrong_file_gets_a_sentence_that_names_the_key() {
    let good = env(V4, "10.42.7.0-24").text();
    for (from, to, sentence) in [
        (
            "10.42.0.0/16",
            "10.42.0.0/16,10.43.0.0/16",
            "FLANNEL_NETWORK is \"10.42.0.0/16,10.43.0.0/16\": one network",
        ),
        ("10.42.7.1/24", "10.42.7.1", "FLANNEL_SUBNET is \"10.42.7.1\": an IPv4 ADDRESS/LENGTH"),
        ("10.42.7.1/24", "fc00::1/64", "FLANNEL_SUBNET is \"fc00::1/64\": an IPv4 ADDRESS/LENGTH"),
        ("=1450", "=-1", "FLANNEL_MTU is \"-1\": a number of bytes"),
        ("FLANNEL_MTU=1450", "", "FLANNEL_MTU is missing"),
        ("FLANNEL_IPMASQ=true", "", "FLANNEL_IPMASQ is missing"),
        ("FLANNEL_SUBNET", "X", "FLANNEL_SUBNET is missing"),
        ("FLANNEL_NETWORK", "X", "FLANNEL_NETWORK is missing"),
    ] {
        let error = SubnetEnv::parse(&good.replace(from, to)).unwrap_err().to_string();
        assert!(error.starts_with(sentence), "{error}");
    }
    assert!(SubnetEnv::parse("").unwrap_err().to_string().contains("FLANNEL_NETWORK is missing"));
}

#[test]
fn a_file_that_cannot_be_read_or_is_too_large_is_named() {
    let path = std::env::temp_dir().join(format!("subnet-env-test-{}.env", std::process::id()));
    assert!(SubnetEnv::read(&path).unwrap_err().to_string().contains("subnet-env-test"));
    std::fs::write(&path, "#".repeat(20_000)).unwrap();
    let refused = SubnetEnv::read(&path).unwrap_err();
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(refused, SubnetEnvError::Size), "{refused}");
}

proptest! {
    #[test]
    fn any_text_is_a_subnet_env_or_an_error_without_a_panic(text in "((FLANNEL_(NETWORK|SUBNET|MTU|IPMASQ)|\\PC{0,5})=?\\PC{0,12}\n){0,8}") {
        let _ = SubnetEnv::parse(&text);
    }
}
