use serde_json::json;

use crate::host::{Host, Pod, Whose};

#[test]
fn the_loopback_is_up_after_an_add_and_its_addresses_are_the_result() {
    let (host, pod) = (Host::new(), Pod::new("c1"));
    let conf = json!({ "type": "loopback" });
    let result = host.add(Whose::Ours, "lo", &pod, std::slice::from_ref(&conf)).ok();
    assert_eq!(result["interfaces"][0]["name"], "lo");
    assert_eq!(result["interfaces"][0]["sandbox"], pod.net.path());
    assert_eq!(
        result["ips"],
        json!([{ "address": "127.0.0.1/8", "interface": 0 }, { "address": "::1/128", "interface": 0 }])
    );
    assert!(host.check(Whose::Ours, "lo", &pod, &conf, &result).well);
    host.del(Whose::Ours, "lo", &pod, std::slice::from_ref(&conf), &result);
    let down = host.check(Whose::Ours, "lo", &pod, &conf, &result);
    assert!(down.code() == 101 && down.msg().contains("down"), "{}", down.msg());
    let gone = host.call(
        Whose::Ours,
        "DEL",
        ("c1", "/run/netns/gone", "eth0"),
        &crate::host::complete("lo", &conf, &result),
    );
    assert!(gone.well, "{}", gone.document);
}

#[test]
fn a_result_before_it_is_handed_on_and_an_address_that_is_none_of_its_own_is_refused() {
    let (host, pod) = (Host::new(), Pod::new("c1"));
    let before = json!({ "cniVersion": "1.0.0", "ips": [{ "address": "10.1.2.3/24" }] });
    let conf = crate::host::complete("lo", &json!({ "type": "loopback" }), &before);
    let call = |verb| host.call(Whose::Ours, verb, ("c1", &pod.net.path(), "eth0"), &conf);
    assert_eq!(call("ADD").ok(), before);
    pod.net.tool("ip address add 10.9.9.9/32 dev lo");
    let refused = call("ADD");
    assert!(refused.msg().contains("10.9.9.9"), "{}", refused.msg());
}
