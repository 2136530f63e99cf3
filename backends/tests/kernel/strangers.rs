//! Strangers' things next to ours, as alike as possible: no pass touches them, and ours become as wished all the same.

use backends::kernel::fake::Rng;

use crate::lab::{Lab, ip, type_lines};

/// What a stranger types, and what shows it. What hangs on our device comes after it.
const STRANGERS: &[(&str, &str)] = &[
    ("ip route add 192.0.2.0/24 via 172.16.9.9 dev eth0 proto 67", "route show 192.0.2.0/24"),
    ("ip route add 10.245.2.0/24 via 172.16.9.9 dev eth0 proto 67 scope 34", "route show 10.245.2.0/24"),
    ("ip route add 10.244.0.0/16 via 172.16.9.9 dev eth0 proto static", "route show exact 10.244.0.0/16"),
    ("ip route add 10.244.3.64/26 via 172.16.9.9 dev eth0 proto static", "route show 10.244.3.64/26"),
    ("ip route add 10.244.200.0/24 via 172.16.9.9 dev eth0 proto static", "route show 10.244.200.0/24"),
    (
        "ip route add 10.244.3.0/24 via 172.16.9.9 dev eth0 table 100 proto 67",
        "route show 10.244.3.0/24 table 100",
    ),
    ("ip route add 10.244.3.0/24 tos 0x10 via 172.16.9.9 dev eth0", "route show 10.244.3.0/24 tos 0x10"),
    ("ip route add 10.99.0.0/16 dev flannel.7", "route show 10.99.0.0/16"),
    ("ip route add unreachable 10.244.3.7/32", "route show 10.244.3.7"),
    (
        "ip -6 route add fd00:244:0:3:8000::/65 via fd00:172::9 dev eth0",
        "-6 route show fd00:244:0:3:8000::/65",
    ),
    ("ip -6 route add fd00:244::/48 via fd00:172::9 dev eth0", "-6 route show exact fd00:244::/48"),
    ("ip -6 route add 2001:db8::/64 dev flannel-v6.7 proto 67", "-6 route show 2001:db8::/64"),
    ("ip -6 route add fd00:244:0:3::/64 via fd00:172::9 dev eth0 table 100", "-6 route show table 100"),
    ("ip rule add to 10.244.0.0/16 lookup 100", "rule show to 10.244.0.0/16"),
    ("ip address add 10.77.0.1/32 dev flannel.7", "-o address show dev flannel.7 to 10.77.0.1"),
    (
        "ip -6 address add 2001:db8::1/128 dev flannel-v6.7 nodad",
        "-6 -o address show dev flannel-v6.7 to 2001:db8::1",
    ),
    ("ip neigh add 10.77.0.9 lladdr 02:01:04:00:00:03 dev flannel.7 nud permanent", "neigh show 10.77.0.9"),
    (
        "ip neigh add 10.244.3.0 lladdr 02:01:04:00:00:03 dev eth0 nud permanent",
        "neigh show 10.244.3.0 dev eth0",
    ),
    ("ip neigh add proxy 10.244.3.9 dev flannel.7", "neigh show proxy dev flannel.7"),
    ("ip link add flannel.9 type vxlan id 9 dstport 8472 dev eth0", "link show flannel.9"),
    (
        "ip link add flannel.77 address 02:00:00:00:00:01 type vxlan id 7 dstport 4789 local 172.16.0.1 dev eth0",
        "link show flannel.77",
    ),
    (
        "ip link add flannel.10 type vxlan id 10 dstport 8472 dev eth0; ip link set flannel.10 alias selvage:other up; ip address add 10.244.1.0/32 dev flannel.10; bridge fdb add 02:01:04:00:00:03 dev flannel.10 dst 172.30.0.3 self permanent",
        "-o address show dev flannel.10 to 10.244.1.0",
    ),
    ("ip link add flannel type bridge; ip link set flannel alias selvage:defaults", "link show flannel"),
    ("ip link add flannel.7.1 type veth peer name flannel.7.2", "link show flannel.7.1"),
    ("nft add table ip flannel-ipv5; nft add table inet flannel-ipv4", "-o link show lo"),
];

fn shown(command: &str) -> String {
    ip(&command.split(' ').collect::<Vec<_>>())
}

/// Random ones each time, in random order, some before our first pass and some after.
#[test]
fn no_pass_touches_what_is_strangers() {
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    for seed in seed..seed + 12 {
        println!("SEED={seed}");
        std::thread::scope(|s| s.spawn(|| one(seed)).join().unwrap());
    }
}

fn one(seed: u64) {
    let mut rng = Rng::new(seed);
    let mut lab = Lab::new();
    lab.owner.first_pass = rng.chance(50);
    let want = lab.want(4);
    let (late, early): (Vec<_>, Vec<_>) = STRANGERS
        .iter()
        .filter(|_| rng.chance(60))
        .partition(|(how, _)| how.contains("dev flannel") && !how.contains("link add"));
    early.iter().for_each(|(how, _)| type_lines(how));
    lab.converge(&want);
    late.iter().for_each(|(how, _)| type_lines(how));
    let before: Vec<_> = early.iter().chain(&late).map(|(_, show)| (show, shown(show))).collect();
    assert!(before.iter().all(|(show, text)| !text.is_empty() || panic!("{show}")));
    let plan = lab.plan(&want);
    assert!(plan.is_empty(), "strangers came, and the plan is\n{plan}");
    for disturb in [
        "ip neigh delete 10.244.3.0 dev flannel.7",
        "ip route delete 10.244.3.0/24 dev flannel.7",
        "ip link set flannel-v6.7 name lost",
        "ip link set flannel.7 mtu 1280",
    ] {
        type_lines(disturb);
        lab.converge(&want);
    }
    for (show, text) in before {
        assert_eq!(shown(show), text, "SEED={seed}: {show}");
    }
    let tables = std::process::Command::new("nft").args(["list", "tables"]).output().unwrap();
    let tables = String::from_utf8_lossy(&tables.stdout).into_owned();
    let nft = early.iter().any(|(how, _)| how.starts_with("nft"));
    assert_eq!(tables.contains("flannel-ipv5") && tables.contains("inet flannel-ipv4"), nft, "{tables}");
}
