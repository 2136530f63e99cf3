use proptest::prelude::*;

use std::net::IpAddr;

use super::*;
use crate::attrs::{PeerData, VtepMac, VxlanData};
use crate::model::lease::BackendAttrs;
use crate::model::net::{Family, overlap};

const V4: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
const DUAL: &str =
    r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48","Backend":{"Type":"vxlan"}}"#;
const HOST_GW: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#;
const ALLOC: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"alloc"}}"#;
const OWN: &str = "10.5.1.0-24&fc00:0:0:1::-64";
const OWN_ADDR: &str = "192.168.0.1";

fn key(text: &str) -> Subnets {
    text.parse().unwrap()
}

/// A vxlan lease; the last byte of its hardware address and its epoch are `n`.
fn lease(subnets: &str, public: &[&str], n: u8) -> Lease {
    let data = |family| key(subnets).family(family).map(|_| VxlanData { vni: 1, mac: [2, 0, 0, 0, 0, n] });
    let attrs = BackendAttrs::vxlan(data(Family::V4), data(Family::V6));
    let public = public.iter().map(|addr| addr.parse::<IpAddr>().unwrap()).collect();
    Lease { epoch: n.into(), ..Lease::new(key(subnets), public, attrs) }
}

fn table(network: &str, leases: &[Lease]) -> PeerTable {
    let (network, _) = NetworkConfig::parse(network.as_bytes()).unwrap();
    let own_public = [OWN_ADDR.parse::<IpAddr>().unwrap()].into_iter().collect();
    PeerTable::from_snapshot(&network, Some(&key(OWN)), own_public, leases.to_vec(), vec![])
}

fn admitted(table: &PeerTable) -> Vec<String> {
    table.peers().map(|peer| peer.key().to_string()).collect()
}

/// The reason for refusing this lease alone.
fn refusal(network: &str, lease: Lease) -> String {
    let table = table(network, &[lease]);
    assert_eq!(table.len(), 0);
    let reasons: Vec<String> = table.refused().map(|(_, reason)| reason).collect();
    reasons.join(" | ")
}

#[test]
fn a_sound_lease_is_admitted_and_ours_is_not_a_peer() {
    let table = table(V4, &[lease(OWN, &[OWN_ADDR], 1), lease("10.5.2.0-24", &["192.168.0.2"], 2)]);
    assert_eq!(admitted(&table), ["10.5.2.0-24"]);
    let peer = table.peer(&key("10.5.2.0-24")).unwrap();
    assert_eq!(peer.public(Family::V4).unwrap().to_string(), "192.168.0.2");
    assert_eq!(peer.data(Family::V4), Some(&PeerData::Vxlan(VtepMac([2, 0, 0, 0, 0, 2]))));
    assert_eq!(table.own_lease().unwrap().subnets, key(OWN));
    assert_eq!(table.refused().count(), 0);
}

#[test]
fn a_subnet_that_is_not_a_piece_of_the_network_is_refused() {
    for subnets in ["128.0.0.0-1", "10.5.0.0-16", "10.5.0.0-17", "10.5.2.0-31", "10.6.2.0-24", "10.4.0.0-15"]
    {
        let reason = refusal(V4, lease(subnets, &["192.168.0.2"], 2));
        assert!(
            reason.contains("outside the network") || reason.contains("not one of the network's"),
            "{reason}"
        );
    }
    let earlier_length = table(V4, &[lease("10.5.2.0-25", &["192.168.0.2"], 2)]);
    assert_eq!(earlier_length.len(), 1, "leases of an earlier net-conf live on");
}

#[test]
fn a_subnet_that_overlaps_ours_is_refused() {
    let reason = refusal(V4, lease("10.5.1.128-25", &["192.168.0.2"], 2));
    assert_eq!(reason, "10.5.1.128/25 overlaps this host's own subnet 10.5.1.0/24");
}

#[test]
fn a_public_address_that_is_no_hosts_or_ours_is_refused() {
    for addr in ["127.0.0.1", "224.0.0.1", "255.255.255.255", "0.1.2.3", "192.168.0.1", "10.5.2.9"] {
        let reason = refusal(V4, lease("10.5.2.0-24", &[addr], 2));
        assert!(reason.starts_with(&format!("its public address {addr} is ")), "{reason}");
    }
    let nowhere = Lease { public: PublicAddrs::default(), ..lease("10.5.2.0-24", &[], 2) };
    assert!(refusal(V4, nowhere).contains("no family in common"));
}

#[test]
fn a_peer_of_another_backend_or_vni_is_refused_with_that_reason() {
    let plain = |kind: &str| Lease {
        attrs: BackendAttrs::plain(kind),
        ttl: Some(std::time::Duration::from_secs(60)),
        ..lease("10.5.2.0-24", &["192.168.0.2"], 2)
    };
    let dual = Lease {
        attrs: BackendAttrs::plain("ipip"),
        ..lease("10.5.2.0-24&fc00:0:0:2::-64", &["192.168.0.2", "fd00::2"], 2)
    };
    assert_eq!(refusal(DUAL, dual), "its backend is \"ipip\", this network's \"vxlan\"");
    assert_eq!(refusal(V4, plain("host-gw")), "its backend is \"host-gw\", this network's \"vxlan\"");
    assert_eq!(refusal(V4, plain("")), "its backend is none (alloc or udp), this network's \"vxlan\"");
    assert_eq!(table(HOST_GW, &[plain("host-gw")]).len(), 1);
    assert_eq!(table(ALLOC, &[plain("")]).len() + table(ALLOC, &[plain("alloc")]).len(), 2);
    let other_vni = BackendAttrs::vxlan(Some(VxlanData { vni: 2, mac: [2; 6] }), None);
    assert_eq!(refusal(V4, Lease { attrs: other_vni, ..plain("") }), "its VNI is 2, this network's 1");
}

#[test]
fn a_record_without_a_vni_is_admitted_and_one_with_another_is_not() {
    let with = |data: &str| {
        let json = crate::RawJson::new(data).unwrap();
        let attrs = BackendAttrs { v4: Some(json), ..BackendAttrs::plain("vxlan") };
        Lease { attrs, ..lease("10.5.2.0-24", &["192.168.0.2"], 2) }
    };
    assert_eq!(table(V4, &[with(r#"{"VtepMAC":"02:00:00:00:00:02"}"#)]).len(), 1, "flannel up to 0.13");
    assert_eq!(table(V4, &[with(r#"{"VNI":null,"VtepMAC":"02:00:00:00:00:02"}"#)]).len(), 1);
    let zero = refusal(V4, with(r#"{"VNI":0,"VtepMAC":"02:00:00:00:00:02"}"#));
    assert_eq!(zero, "its VNI is 0, this network's 1");
}

#[test]
fn a_reservation_that_nobody_claimed_is_no_peer_and_no_refusal() {
    let reserved = Lease { attrs: BackendAttrs::default(), ..lease("10.5.2.0-24", &["192.168.0.2"], 2) };
    let mut table = table(V4, std::slice::from_ref(&reserved));
    assert_eq!((table.len(), table.refused().count()), (0, 0));
    table.upsert(lease("10.5.2.0-24", &["192.168.0.2"], 2));
    assert_eq!((table.len(), table.refused().count()), (1, 0), "its host claimed it");
    table.upsert(Lease { ttl: Some(std::time::Duration::from_secs(60)), ..reserved.clone() });
    assert_eq!(table.refused().count(), 1, "a lease that ends is no reservation");
    table.upsert(Lease { public: PublicAddrs::default(), ..reserved });
    assert_eq!(table.refused().count(), 1, "nor is a record that names no host");
}

#[test]
fn a_subnet_that_has_our_gateway_or_the_store_in_it_is_refused_by_name() {
    let mut table =
        table(V4, &[lease("10.5.2.0-24", &["192.168.0.2"], 2), lease("10.5.3.0-24", &["192.168.0.3"], 3)]);
    let guarded = Guarded { address: "10.5.2.1".parse().unwrap(), what: "this host's gateway".to_owned() };
    table.set_guarded(vec![guarded]);
    assert_eq!(admitted(&table), ["10.5.3.0-24"]);
    let refused: Vec<_> = table.refused().map(|(_, reason)| reason).collect();
    assert_eq!(refused, ["10.5.2.0/24 has 10.5.2.1 in it, this host's gateway"]);
    table.set_guarded(Vec::new());
    assert_eq!(table.len(), 2);
}

#[test]
fn an_unreadable_key_that_is_a_nodes_name_keeps_the_subnets_that_the_node_had() {
    let node = Lease {
        node: Some("n2".to_owned()),
        filed_by: FiledBy::Node,
        ..lease("10.5.2.0-24", &["192.168.0.2"], 2)
    };
    let mut table = table(V4, std::slice::from_ref(&node));
    let unreadable = || vec![("n2".to_owned(), "its annotation is not JSON".to_owned())];
    assert_eq!(table.missing(&[], &unreadable()), []);
    table.replace(vec![], unreadable());
    assert_eq!(admitted(&table), ["10.5.2.0-24"]);
    assert_eq!(table.refused().collect::<Vec<_>>(), unreadable());
    table.upsert(node);
    assert_eq!(table.refused().count(), 0, "readable again");
    table.unreadable("n2".to_owned(), "again".to_owned());
    table.remove(&key("10.5.2.0-24"));
    assert_eq!((table.len(), table.refused().count()), (0, 0));
}

#[test]
fn a_family_that_we_or_the_peer_lack_is_absent_and_the_other_works() {
    let dual = lease("10.5.2.0-24&fc00:0:0:2::-64", &["192.168.0.2", "fd00::2"], 2);
    for (network, lease) in [
        (V4, dual.clone()),
        (DUAL, lease("10.5.2.0-24", &["192.168.0.2"], 2)),
        (DUAL, lease("10.5.2.0-24&fc00:0:0:2::-64", &["192.168.0.2"], 2)),
        (DUAL, Lease { attrs: BackendAttrs { v6: None, ..dual.attrs.clone() }, ..dual.clone() }),
    ] {
        let table = table(network, &[lease]);
        let peer = table.peers().next().unwrap();
        assert_eq!(peer.subnets().map(|net| net.to_string()).collect::<Vec<_>>(), ["10.5.2.0/24"]);
        assert_eq!((peer.public(Family::V6), peer.data(Family::V6)), (None, None));
        assert_eq!(table.refused().count(), 0);
    }
    assert_eq!(table(DUAL, &[dual]).peers().next().unwrap().subnets().count(), 2);
}

#[test]
fn a_fault_in_one_family_leaves_the_other_and_is_told() {
    let mut dual = lease("10.5.2.0-24&fc00:0:0:2::-64", &["192.168.0.2", "fd00::2"], 2);
    dual.attrs.v6 = Some(crate::RawJson::new(r#"{"VNI":1,"VtepMAC":"ff:ff:ff:ff:ff:ff"}"#).unwrap());
    let table = table(DUAL, &[dual]);
    assert_eq!(table.peers().next().unwrap().subnets().count(), 1);
    let refused: Vec<_> = table.refused().collect();
    assert_eq!(refused.len(), 1);
    assert!(refused[0].1.contains("not a unicast hardware address"), "{refused:?}");
}

#[test]
fn of_two_leases_that_overlap_the_earlier_one_counts_until_it_ends() {
    let first = lease("10.5.2.0-25", &["192.168.0.2"], 2);
    let second = lease("10.5.2.0-24", &["192.168.0.3"], 3);
    let mut table = table(V4, &[second, first.clone()]);
    assert_eq!(admitted(&table), ["10.5.2.0-25"]);
    assert_eq!(table.refused().next().unwrap().0, "10.5.2.0-24");
    table.remove(&first.subnets);
    assert_eq!(admitted(&table), ["10.5.2.0-24"], "a removal admits whom the removed one kept out");
    table.upsert(first);
    assert_eq!(admitted(&table), ["10.5.2.0-25"]);
}

#[test]
fn a_hardware_address_belongs_to_who_had_it_first() {
    let honest = lease("10.5.2.0-24", &["192.168.0.2"], 2);
    let thief = Lease { epoch: 9, ..lease("10.5.3.0-24", &["192.168.0.3"], 2) };
    let same_host = Lease { epoch: 9, ..lease("10.5.4.0-24", &["192.168.0.2"], 2) };
    let table = table(V4, &[lease(OWN, &[OWN_ADDR], 1), thief, honest, same_host]);
    assert_eq!(admitted(&table), ["10.5.2.0-24", "10.5.4.0-24"]);
    let reason = table.refused().next().unwrap().1;
    assert_eq!(reason, "its hardware address is that of 10.5.2.0-24 at 192.168.0.2, which was earlier");
}

#[test]
fn a_peer_with_our_own_hardware_address_is_refused() {
    let clone = Lease { epoch: 0, ..lease("10.5.2.0-24", &["192.168.0.2"], 1) };
    let table = table(V4, &[clone, lease(OWN, &[OWN_ADDR], 1)]);
    assert_eq!(table.len(), 0);
    assert_eq!(table.refused().next().unwrap().1, "its hardware address is this host's own");
}

#[test]
fn a_lease_that_cannot_be_read_is_unknown_and_its_peer_stays() {
    let peer = lease("10.5.2.0-24", &["192.168.0.2"], 2);
    let unreadable = || ("10.5.2.0-24".to_string(), "not JSON".to_string());
    let mut table = table(V4, std::slice::from_ref(&peer));
    table.unreadable(unreadable().0, unreadable().1);
    assert_eq!(admitted(&table), ["10.5.2.0-24"]);
    assert_eq!(table.refused().collect::<Vec<_>>(), [unreadable()]);
    table.replace(vec![], vec![unreadable(), ("junk".into(), "no key".into())]);
    assert_eq!(admitted(&table), ["10.5.2.0-24"], "nor does a snapshot make it vanish");
    assert!(table.upsert(peer.clone()), "readable again");
    assert_eq!(table.refused().count(), 1);
    table.remove(&peer.subnets);
    table.replace(vec![], vec![]);
    assert_eq!((table.len(), table.refused().count()), (0, 0));
}

#[test]
fn a_snapshot_is_believed_whole() {
    let (a, b) = (lease("10.5.2.0-24", &["192.168.0.2"], 2), lease("10.5.3.0-24", &["192.168.0.3"], 3));
    let mut table = table(V4, &[a]);
    table.replace(vec![b], vec![]);
    assert_eq!(admitted(&table), ["10.5.3.0-24"]);
}

#[test]
fn learning_which_lease_is_ours_judges_again() {
    let (network, _) = NetworkConfig::parse(V4.as_bytes()).unwrap();
    let peer = lease("10.5.2.0-24", &["192.168.0.2"], 2);
    let mut table =
        PeerTable::from_snapshot(&network, None, PublicAddrs::default(), vec![peer.clone()], vec![]);
    assert_eq!(table.len(), 1);
    table.set_own(Some(key("10.5.2.0-25")), PublicAddrs::default());
    assert_eq!(table.len(), 0);
    table.set_own(Some(peer.subnets), peer.public);
    assert_eq!((table.len(), table.refused().count()), (0, 0));
    table.set_own(None, PublicAddrs::default());
    assert_eq!(table.len(), 1);
}

#[test]
fn our_lease_is_shown_even_if_it_was_seen_before_we_knew_that_it_is_ours() {
    let (network, _) = NetworkConfig::parse(V4.as_bytes()).unwrap();
    let ours = lease("10.5.1.0-24", &[OWN_ADDR], 1);
    let mut table = PeerTable::from_snapshot(&network, None, ours.public, vec![ours.clone()], vec![]);
    assert_eq!((table.len(), table.own_lease()), (0, None));
    table.set_own(Some(ours.subnets), ours.public);
    assert_eq!(table.own_lease(), Some(&ours));
    assert_eq!(table.refused().count(), 0);
    table.remove(&ours.subnets);
    assert_eq!(table.own_lease(), None);
}

#[test]
fn a_grown_network_admits_who_was_outside() {
    let mut table = table(V4, &[lease("10.4.2.0-24", &["192.168.0.2"], 2)]);
    assert_eq!(table.len(), 0);
    let grown = V4.replace("10.5.0.0/16", "10.4.0.0/15");
    table.set_network(&NetworkConfig::parse(grown.as_bytes()).unwrap().0);
    assert_eq!(table.len(), 1);
}

#[test]
fn ten_thousand_peers_are_small() {
    assert!(
        size_of::<Peer>() <= 96 && size_of::<Known>() <= 128,
        "{} {}",
        size_of::<Peer>(),
        size_of::<Known>()
    );
}

fn any_lease() -> impl Strategy<Value = Lease> {
    // Few values, so that overlaps and shared addresses are the rule.
    (1u8..5, 24u8..=26, 0u8..4, 1u8..5, 1u8..4, 0u64..4).prop_map(|(net, len, quarter, host, mac, epoch)| {
        let v4 = ipnetwork::Ipv4Network::new([10, 5, net, quarter * 64].into(), len).ok();
        let v6 = ipnetwork::Ipv6Network::new(format!("fc00:0:0:{quarter}::").parse().unwrap(), 64).ok();
        let data = Some(VxlanData { vni: 1, mac: [2, 0, 0, 0, 0, mac] });
        let public =
            PublicAddrs { v4: Some([192, 168, 0, host].into()), v6: format!("fd00::{host}").parse().ok() };
        let subnets = Subnets::new(v4, v6.filter(|_| mac != 1)).unwrap();
        Lease { epoch, ..Lease::new(subnets, public, BackendAttrs::vxlan(data, data)) }
    })
}

proptest! {
    #[test]
    fn the_verdict_does_not_depend_on_the_order_of_arrival(
        leases in proptest::collection::btree_map(any::<u8>(), any_lease(), 0..12), gone in proptest::collection::vec(any::<bool>(), 12)
    ) {
        // One lease per key, the last of them: a store has no two.
        let by_key: BTreeMap<Subnets, Lease> = leases.into_values().map(|lease| (lease.subnets, lease)).collect();
        let leases: Vec<Lease> = by_key.into_values().collect();
        let stays: Vec<Lease> =
            leases.iter().zip(gone.iter()).filter(|(_, gone)| !**gone).map(|(lease, _)| lease.clone()).collect();
        let at_once = table(DUAL, &stays);
        let mut one_by_one = table(DUAL, &[]);
        for lease in leases.iter().rev() {
            one_by_one.upsert(lease.clone());
            let _ = one_by_one.len();
        }
        for (lease, _) in leases.iter().zip(&gone).filter(|(_, gone)| **gone) {
            one_by_one.remove(&lease.subnets);
        }
        prop_assert_eq!(at_once.peers().collect::<Vec<_>>(), one_by_one.peers().collect::<Vec<_>>());
        prop_assert_eq!(at_once.refused().collect::<Vec<_>>(), one_by_one.refused().collect::<Vec<_>>());
    }

    #[test]
    fn admitted_peers_never_overlap_and_never_share_a_hardware_address(
        leases in proptest::collection::vec(any_lease(), 0..20)
    ) {
        let table = table(DUAL, &leases);
        let peers: Vec<Peer> = table.peers().collect();
        prop_assert_eq!(peers.len(), table.len());
        for family in Family::ALL {
            for (index, a) in peers.iter().enumerate() {
                for b in &peers[index + 1..] {
                    if let (Some(x), Some(y)) = (a.subnet(family), b.subnet(family)) {
                        prop_assert!(!overlap(x, y));
                        prop_assert!(a.data(family) != b.data(family)
                            || a.public(family) == b.public(family));
                    }
                }
            }
        }
    }
}
