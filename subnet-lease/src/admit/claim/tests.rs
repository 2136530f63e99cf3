use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const V4: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
const DUAL: &str =
    r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48","Backend":{"Type":"vxlan"}}"#;
const SMALL: &str = r#"{"Network":"10.5.0.0/28","SubnetMin":"10.5.0.0","Backend":{"Type":"alloc"}}"#;

pub(crate) fn claim(address: &str, network: &str) -> Claim {
    let (network, _) = NetworkConfig::parse(network.as_bytes()).unwrap();
    Claim {
        avoid: Vec::new(),
        public: [address.parse().unwrap()].into_iter().collect(),
        attrs: BackendAttrs::plain(network.backend.record_name()),
        previous: None,
        network: Arc::new(network),
        node: None,
    }
}

fn lease(key: &str, address: &str, node: Option<&str>) -> Lease {
    let public = [address.parse().unwrap()].into_iter().collect();
    Lease { node: node.map(Into::into), ..Lease::new(key.parse().unwrap(), public, BackendAttrs::default()) }
}

fn key(text: &str) -> Subnets {
    text.parse().unwrap()
}

fn choose(claim: &Claim, leases: &[Lease]) -> Choice {
    claim.choose(leases.iter(), &[]).unwrap()
}

#[test]
fn a_host_finds_its_lease_again_by_its_address() {
    let leases = [lease("10.5.7.0-24", "192.168.0.1", None), lease("10.5.8.0-24", "192.168.0.2", None)];
    let choice = choose(&claim("192.168.0.2", V4), &leases);
    assert_eq!(choice, Choice { subnets: key("10.5.8.0-24"), own: Some(key("10.5.8.0-24")) });
}

#[test]
fn two_hosts_behind_one_address_do_not_share_a_subnet_when_they_have_names() {
    let leases = [lease("10.5.7.0-24", "10.0.2.15", Some("a"))];
    let twin = Claim { node: Some("b".into()), ..claim("10.0.2.15", V4) };
    let choice = choose(&twin, &leases);
    assert_eq!(choice.own, None);
    assert_ne!(choice.subnets, key("10.5.7.0-24"));
}

#[test]
fn a_host_whose_address_changed_keeps_its_subnet_when_it_remembers_it() {
    let leases = [lease("10.5.7.0-24", "192.168.0.1", Some("a"))];
    let moved = Claim { node: Some("a".into()), ..claim("192.168.0.99", V4) };
    assert_eq!(choose(&moved, &leases).own, None, "a name alone is no proof");
    let remembers = Claim { previous: Some(key("10.5.7.0-24")), ..moved };
    assert_eq!(choose(&remembers, &leases).own, Some(key("10.5.7.0-24")));
}

#[test]
fn a_returning_host_gets_its_previous_subnet_only_while_it_is_free() {
    let back = Claim { previous: Some(key("10.5.7.0-24")), ..claim("192.168.0.1", V4) };
    assert_eq!(choose(&back, &[]), Choice { subnets: key("10.5.7.0-24"), own: None });
    let taken = [lease("10.5.7.0-24", "192.168.0.2", None)];
    assert_ne!(choose(&back, &taken).subnets, key("10.5.7.0-24"));
    let unreadable = back.choose([].iter(), &[key("10.5.7.0-24")]).unwrap();
    assert_ne!(unreadable.subnets, key("10.5.7.0-24"), "a lease that cannot be read is still somebody's");
}

#[test]
fn a_previous_subnet_outside_the_range_or_of_another_length_is_not_wished_for() {
    for old in ["10.6.7.0-24", "10.5.0.0-24", "10.5.7.0-25"] {
        let back = Claim { previous: Some(key(old)), ..claim("192.168.0.1", V4) };
        assert_ne!(choose(&back, &[]).subnets, key(old));
    }
}

#[test]
fn enabling_ipv6_keeps_each_hosts_ipv4_subnet() {
    let leases = [lease("10.5.7.0-24", "192.168.0.1", None), lease("10.5.8.0-24", "192.168.0.2", None)];
    let choice = choose(&claim("192.168.0.1", DUAL), &leases);
    assert_eq!(choice.own, Some(key("10.5.7.0-24")));
    assert_eq!(choice.subnets.family(Family::V4), key("10.5.7.0-24").family(Family::V4));
    assert!(choice.subnets.family(Family::V6).is_some());
}

#[test]
fn neither_family_of_a_new_lease_overlaps_another() {
    let leases = [
        lease("10.5.7.0-24&fc00:0:0:7::-64", "192.168.0.2", None),
        lease("10.5.128.0-18", "192.168.0.3", None),
    ];
    for host in 0..=255 {
        let choice = choose(&claim(&format!("192.168.1.{host}"), DUAL), &leases);
        assert!(leases.iter().all(|lease| !lease.subnets.overlaps(&choice.subnets)), "{}", choice.subnets);
    }
}

#[test]
fn the_last_free_subnet_is_found_and_then_the_network_is_full() {
    let mut leases: Vec<Lease> = Vec::new();
    for host in 1..=4 {
        let address = format!("192.168.0.{host}");
        let choice = choose(&claim(&address, SMALL), &leases);
        leases.push(lease(&choice.subnets.to_string(), &address, None));
    }
    let all: BTreeSet<Subnets> = leases.iter().map(|lease| lease.subnets).collect();
    assert_eq!(all.len(), 4);
    let error = claim("192.168.0.9", SMALL).choose(leases.iter(), &[]).unwrap_err();
    assert_eq!(error.to_string().split(';').next(), Some("all 4 subnets of 10.5.0.0/28 are leased"));
}

#[test]
fn hosts_that_boot_together_look_in_different_places() {
    let first_picks: BTreeSet<Subnets> =
        (0..100).map(|host| choose(&claim(&format!("192.168.0.{host}"), V4), &[]).subnets).collect();
    assert!(first_picks.len() > 70, "only {} of 100", first_picks.len());
}

proptest! {
    #[test]
    fn whatever_is_leased_already_a_choice_is_free_and_fits(
        taken in proptest::collection::vec((any::<u16>(), 18u8..=30), 0..40), host: u8
    ) {
        let lease = |(low, len): &(u16, u8)| {
            let net = ipnetwork::Ipv4Network::new((0x0a05_0000 | u32::from(*low)).into(), *len).ok();
            Lease::new(Subnets::new(net, None).unwrap(), PublicAddrs::default(), BackendAttrs::default())
        };
        let leases: Vec<Lease> = taken.iter().map(lease).collect();
        let claim = claim(&format!("192.168.0.{host}"), V4);
        match claim.choose(leases.iter(), &[]) {
            Ok(choice) => {
                prop_assert!(claim.network.leases(&choice.subnets));
                prop_assert!(leases.iter().all(|lease| !lease.subnets.overlaps(&choice.subnets)));
            }
            Err(_) => {
                let pool = claim.network.network(Family::V4).unwrap();
                for index in 0..pool.room() {
                    let subnets = Subnets::of(pool.at(index)).unwrap();
                    prop_assert!(leases.iter().any(|lease| lease.subnets.overlaps(&subnets)));
                }
            }
        }
    }
}

#[test]
fn a_record_that_covers_the_whole_network_takes_no_room() {
    let leases = [lease("10.5.0.0-16", "192.168.0.9", None), lease("0.0.0.0-1", "192.168.0.8", None)];
    let unknown = [key("10.5.0.0-17")];
    let claim = claim("192.168.0.1", V4);
    let mine = claim.choose(leases.iter(), &unknown).unwrap().subnets;
    assert!(leases.iter().all(|lease| !claim.contends(&lease.subnets, &mine)));
    assert!(claim.contends(&mine, &mine));
}

#[test]
fn what_the_host_reaches_without_the_tunnel_is_never_chosen() {
    const SMALL: &str = r#"{"Network":"10.5.0.0/22","SubnetLen":24,"Backend":{"Type":"vxlan"}}"#;
    let net = |text: &str| text.parse::<IpNetwork>().unwrap();
    let host = claim("10.5.1.7", SMALL);
    let avoiding =
        |avoid: &[&str]| Claim { avoid: avoid.iter().map(|text| net(text)).collect(), ..host.clone() };
    // 10.5.1.0/24 to 10.5.3.0/24 can be had.
    for (avoid, free) in [
        (&["10.5.1.0/24", "10.5.2.0/24"][..], "10.5.3.0-24"),
        (&["10.5.0.0/23", "10.5.3.9/32"], "10.5.2.0-24"),
    ] {
        assert_eq!(avoiding(avoid).choose([].iter(), &[]).unwrap().subnets, key(free));
    }
    assert!(avoiding(&["10.5.0.0/16"]).choose([].iter(), &[]).is_err(), "nothing is left");
    let own = Lease::new(key("10.5.1.0-24"), host.public, BackendAttrs::plain("vxlan"));
    let kept = avoiding(&["10.5.0.0/16"]).choose([&own].into_iter(), &[]).unwrap();
    assert_eq!(kept.subnets, own.subnets, "a lease that merely overlaps a connected network stays");
    let moved = avoiding(&["10.5.1.7/32"]).choose([&own].into_iter(), &[]).unwrap();
    assert_ne!(moved.subnets, own.subnets, "one that cuts the host off does not");
}
