//! What can be done to hosts, as data.

use super::site::Site;
use crate::topology::Family;

/// One way to disturb a host.
///
/// Each line is a command for the host's own shell, except four that cannot be commands inside the host:
/// `cable cut` and `cable mend` (the wire's far end goes down and up), `cable new` (the whole wire is
/// replaced under the old name), and `restore` (puts back what is not ours and was lost, as the host's
/// network scripts would). Words in braces are those of the [`Site`]. A disturbance fits where all its words
/// have a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disturbance {
    /// Its name, for tables and errors.
    pub name: &'static str,
    /// The only family it exists for; `None` for any.
    pub only: Option<Family>,
    /// The lines to type.
    pub how: &'static [&'static str],
}

impl Disturbance {
    /// The disturbance of that name.
    pub fn named(name: &str) -> Option<&'static Self> {
        LIST.iter().find(|it| it.name == name)
    }

    /// Whether it can be done at this site.
    pub fn fits(&self, site: &Site) -> bool {
        self.only.is_none_or(|only| only == site.family()) && self.words().all(|word| site.knows(word))
    }

    /// Whether it does the same for every family.
    pub fn is_host_wide(&self) -> bool {
        self.only.is_none() && self.words().all(|word| Site::HOST_WIDE.contains(&word))
    }

    /// Whether other hosts have to change something too.
    pub fn spreads(&self) -> bool {
        self.how.iter().any(|line| line.starts_with("renumber"))
    }

    /// The kind of object: the first part of the name.
    pub(super) fn kind(&self) -> &'static str {
        self.name.split('_').next().unwrap_or(self.name)
    }

    /// Whether it is done to subnet.env.
    pub(super) fn is_of_file(&self) -> bool {
        self.kind() == "subnet"
    }

    fn words(&self) -> impl Iterator<Item = &'static str> {
        let words = |line: &'static str| line.split('{').skip(1).filter_map(|rest| rest.split_once('}'));
        self.how.iter().flat_map(move |line| words(line)).map(|(word, _)| word).filter(|word| is_word(word))
    }
}

/// The kind that concerns all other kinds.
pub(super) const UNDERLAY: &str = "uplink";

/// The braces of nft's own syntax hold more than one word.
fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

const fn any(name: &'static str, how: &'static [&'static str]) -> Disturbance {
    Disturbance { name, only: None, how }
}

const fn v4(name: &'static str, how: &'static [&'static str]) -> Disturbance {
    Disturbance { name, only: Some(Family::V4), how }
}

const fn v6(name: &'static str, how: &'static [&'static str]) -> Disturbance {
    Disturbance { name, only: Some(Family::V6), how }
}

/// All of them.
pub const LIST: &[Disturbance] = &[
    // The tunnel device.
    any("link_down", &["ip link set {link} down"]),
    any("link_flapped", &["ip link set {link} down", "ip link set {link} up"]),
    any("link_deleted", &["ip link delete {link}"]),
    any("link_renamed", &["ip link set {link} name elsewhere"]),
    any(
        "link_taken_by_another_vni",
        &[
            "ip link add stray type vxlan id 4077 dstport 8472 nolearning",
            "ip link set {link} name elsewhere",
            "ip link set stray name {link}",
        ],
    ),
    any("link_mac", &["ip link set {link} address 02:00:00:00:be:ef"]),
    any("link_mtu", &["ip link set {link} mtu 1300"]),
    any("link_learning", &["ip link set {link} type vxlan learning"]),
    any("link_checksum", &["ethtool -K {link} tx-checksum-ip-generic on"]),
    any("link_alias", &["ip link set {link} alias mine"]),
    any("address_deleted", &["ip {f} address delete {tunnel} dev {link}"]),
    any("address_added", &["ip {f} address add {stray} dev {link}"]),
    any("address_all_flushed", &["ip {f} address flush dev {link}"]),
    // Routes.
    any("route_deleted", &["ip {f} route delete {subnet}"]),
    any("route_wrong_gateway", &["ip {f} route replace {subnet} via {wrong} dev {uplink} onlink"]),
    any("route_blackholed", &["ip {f} route replace blackhole {subnet}"]),
    any("route_other_protocol", &["ip {f} route replace {subnet} via {via} dev {dev} {onlink} proto static"]),
    any("route_doubled", &["ip {f} route add {subnet} via {via} dev {dev} {onlink} metric 4077"]),
    any(
        "route_doubled_elsewhere",
        &["ip {f} route add {subnet} via {wrong} dev {uplink} onlink proto static metric 4077"],
    ),
    v4("route_shadowed", &["ip route prepend {subnet} via {wrong} dev {uplink} onlink"]),
    v6("route_shadowed", &["ip -6 route add {subnet} via {wrong} dev {uplink} onlink metric 77"]),
    any("route_of_a_departed", &["ip {f} route add {nobody} via {nobody_via} dev {dev} onlink proto 67"]),
    any("route_all_flushed", &["ip {f} route flush proto 67"]),
    any("route_all_of_the_link_flushed", &["ip {f} route flush dev {link}"]),
    // Neighbours.
    any("neighbour_deleted", &["ip {f} neigh delete {gateway} dev {link}"]),
    any(
        "neighbour_wrong_mac",
        &["ip {f} neigh replace {gateway} lladdr 02:00:00:00:be:ef dev {link} nud permanent"],
    ),
    any("neighbour_not_permanent", &["ip {f} neigh replace {gateway} lladdr {mac} dev {link} nud stale"]),
    any(
        "neighbour_of_a_departed",
        &["ip {f} neigh add {nobody_gateway} lladdr 02:00:00:00:fa:ce dev {link} nud permanent"],
    ),
    any("neighbour_all_flushed", &["ip {f} neigh flush dev {link} nud permanent"]),
    // Forwarding entries.
    any("fdb_deleted", &["bridge fdb delete {mac} dev {link} dst {public}"]),
    any("fdb_wrong_destination", &["bridge fdb replace {mac} dev {link} dst {wrong} self permanent"]),
    any("fdb_of_a_departed", &["bridge fdb add 02:00:00:00:fa:ce dev {link} dst {wrong} self permanent"]),
    any("fdb_default", &["bridge fdb append 00:00:00:00:00:00 dev {link} dst {wrong} self permanent"]),
    any("fdb_flushed", &["bridge fdb flush dev {link}"]),
    // Rules.
    any("rule_table_deleted", &["nft delete table {nft} {table}"]),
    any("rule_chain_flushed", &["nft flush chain {nft} {table} postrtg"]),
    any("rule_drop_inserted", &["nft insert rule {nft} {table} forward drop"]),
    any("rule_dormant", &["nft add table {nft} {table} { flags dormant ; }"]),
    any("rule_set_flushed", &["nft flush ruleset ; add table inet mine ; add chain inet mine input"]),
    // The underlay.
    any("uplink_flapped", &["ip link set {uplink} down", "ip link set {uplink} up", "restore"]),
    any("uplink_renumbered", &["renumber {own} {other}", "restore"]),
    any("uplink_replaced", &["cable new", "restore"]),
    any("carrier_lost_and_back", &["cable cut", "cable mend"]),
    // What netlink does not report.
    any("subnet_env_deleted", &["rm /run/flannel/subnet.env"]),
    any("subnet_env_truncated", &["truncate -s 0 /run/flannel/subnet.env"]),
    any("subnet_env_folder_deleted", &["mv /run/flannel /run/elsewhere", "rm -r /run/elsewhere"]),
    v4("forwarding_off", &["sysctl -qw net.ipv4.ip_forward=0"]),
    v6("forwarding_off", &["sysctl -qw net.ipv6.conf.all.forwarding=0"]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_used_once_a_family() {
        for (n, one) in LIST.iter().enumerate() {
            let twin = LIST[n + 1..]
                .iter()
                .find(|other| other.name == one.name && (other.only == one.only || other.only.is_none()));
            assert_eq!(twin, None);
        }
    }

    #[test]
    fn the_braces_of_nft_are_no_words() {
        let words: Vec<_> = Disturbance::named("rule_dormant").unwrap().words().collect();
        assert_eq!(words, ["nft", "table"]);
    }

    #[test]
    fn what_names_no_family_is_done_once_a_host() {
        let wide: Vec<_> = LIST.iter().filter(|it| it.is_host_wide()).map(|it| it.name).collect();
        assert!(wide.contains(&"uplink_flapped") && wide.contains(&"subnet_env_deleted"), "{wide:?}");
        assert!(!wide.contains(&"uplink_renumbered") && !wide.contains(&"link_down"), "{wide:?}");
    }
}
