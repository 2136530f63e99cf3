//! Foreign objects beside ours, as similar as possible: no plan ever names one, and ours become as wished.

use std::time::Duration;

use backends::kernel::KernelEvent;
use backends::kernel::fake::FakeKernel;
use backends::{Object, Op};
use flanneld::core::Input;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use subnet_lease::Lease;
use tests::lines::type_line;
use tests::solo::{Solo, settings};

const NETWORK: &str = r#"{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:244::/48",
    "Backend": {"Type": "vxlan", "DirectRouting": true}}"#;

const PLUGGED: [&str; 9] = [
    "ip link add eth0 address 02:ee:00:00:00:01",
    "ip link set eth0 up",
    "ip address add 172.16.0.1/24 dev eth0",
    "ip -6 address add fd00:172::1/64 dev eth0",
    "ip route add 0.0.0.0/0 via 172.16.0.254 dev eth0",
    "ip -6 route add ::/0 via fd00:172::fe dev eth0",
    "ip link add cni0",
    "ip link set cni0 up",
    "ip address add 10.244.1.1/24 dev cni0",
];

/// On foreign links.
const BESIDE: [&str; 20] = [
    "ip route add 192.0.2.0/24 via 172.16.0.9 dev eth0 proto 67",
    "ip route add 10.245.2.0/24 via 172.16.0.9 dev eth0 proto 67 scope 34",
    "ip route add 10.244.0.0/16 via 172.16.0.9 dev eth0 proto 4",
    "ip route add 10.244.2.64/26 via 172.16.0.9 dev eth0 proto 3",
    "ip route add 10.244.2.128/25 via 172.16.0.9 dev eth0 proto 4",
    "ip route add 10.244.200.0/24 via 172.16.0.9 dev eth0 proto 4",
    "ip route add 10.244.201.0/24 via 172.16.0.9 dev eth0 proto 3 mtu 700",
    "ip route add 10.244.1.0/25 dev cni0 proto 4",
    "ip route add unreachable 10.244.3.7/32 proto 4",
    "ip -6 route add fd00:244:0:3:8000::/65 via fd00:172::9 dev eth0 proto 3",
    "ip -6 route add fd00:244::/48 via fd00:172::9 dev eth0 proto 4",
    "ip -6 route add 2001:db8::/64 via fd00:172::9 dev eth0 proto 67",
    "ip neigh replace 10.244.2.0 lladdr 02:04:00:00:00:02 dev eth0",
    "ip address add 10.244.1.2/32 dev cni0",
    "ip link add flannel.9 address 02:04:00:00:00:01 mtu 1400 type vxlan id 9 local 172.16.0.1 dev if2 dstport 8472 nolearning",
    "ip link add flannel.11 mtu 1400 type vxlan id 1 local 172.16.0.1 dev if2 dstport 4789 nolearning alias selvage:other",
    "ip link add flannel-v6.9 mtu 1400 type vxlan id 9 local fd00:172::1 dev if2 dstport 8472 nolearning alias selvage:defaults",
    "ip link add flannel",
    "ip neigh replace 10.244.2.0 lladdr 02:04:00:00:00:02 dev flannel.9",
    "bridge fdb replace 02:04:00:00:00:02 dev flannel.9 dst 172.16.0.2 self",
];

/// On our links, which must exist.
const UPON: [&str; 6] = [
    "ip route add 10.99.0.0/16 dev flannel.1 proto 3",
    "ip route add 10.98.0.0/16 dev flannel.1 proto 67",
    "ip address add 10.77.0.1/32 dev flannel.1",
    "ip -6 address add 2001:db8::1/128 dev flannel-v6.1",
    "ip neigh replace 10.77.0.9 lladdr 02:04:00:00:00:02 dev flannel.1",
    "ip neigh replace 2001:db8::9 lladdr 02:04:00:00:00:02 dev flannel-v6.1",
];

/// Changes that cost no foreign object: our links stay up.
const DISTURBED: [&str; 5] = [
    "ip route delete 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink proto 67 scope 34",
    "ip link set flannel.1 name lost",
    "ip link set flannel.1 mtu 1300",
    "echo 0 > /proc/sys/net/ipv4/ip_forward",
    "ip route prepend 10.244.3.0/24 via 172.16.0.9 dev eth0 proto 4",
];

fn lease(n: u8) -> Lease {
    let net = if n.is_multiple_of(3) { "172.16" } else { "172.20" };
    let record = format!(
        r#"{{"PublicIP":"{net}.0.{n}","PublicIPv6":"fd00:172::{n:x}","BackendType":"vxlan",
        "BackendData":{{"VNI":1,"VtepMAC":"02:04:00:00:00:{n:02x}"}},
        "BackendV6Data":{{"VNI":1,"VtepMAC":"02:06:00:00:00:{n:02x}"}}}}"#
    );
    Lease::from_record(&format!("10.244.{n}.0-24&fd00:244:0:{n:x}::-64"), record.as_bytes()).unwrap()
}

/// What did not exist before these lines.
fn typed(kernel: &mut FakeKernel, lines: &[&str]) -> Vec<Object> {
    let before = kernel.net.everything();
    for line in lines {
        // The kernel refuses a neighbour on a device that was not drawn.
        let _ = type_line(&mut kernel.net, line);
    }
    // The default settings of a device change with it.
    let lasts = |o: &Object| !matches!(o, Object::Sysctl(..)) && !before.contains(o);
    kernel.net.everything().into_iter().filter(lasts).collect()
}

fn quiet(solo: &mut Solo) {
    solo.notice();
    solo.wait(Duration::from_secs(5));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_plan_touches_what_is_strangers(
        beside in subsequence(BESIDE.to_vec(), 0..=BESIDE.len()),
        upon in subsequence(UPON.to_vec(), 0..=UPON.len()),
        disturbed in prop::collection::vec(select(DISTURBED.to_vec()), 0..3),
    ) {
        let mut kernel = FakeKernel::new(0);
        PLUGGED.iter().for_each(|line| type_line(&mut kernel.net, line).unwrap());
        let mut strangers = typed(&mut kernel, &beside);
        let mut solo = Solo::new(settings(), kernel, lease(1));
        solo.start(NETWORK.as_bytes(), (1..6).map(lease).collect());
        quiet(&mut solo);
        strangers.extend(typed(&mut solo.kernel, &upon));
        quiet(&mut solo);
        for line in disturbed {
            let _ = type_line(&mut solo.kernel.net, line);
            quiet(&mut solo);
        }
        for (plan, failed) in solo.take_plans() {
            prop_assert_eq!(failed, 0, "{}", plan);
            for op in &plan.ops {
                let touched = match op { Op::Put { have: Some(o), .. } | Op::Delete(o) => o, Op::Put { want, .. } => want };
                prop_assert!(!strangers.contains(touched), "{}", op);
            }
        }
        let there = solo.kernel.net.everything();
        for stranger in &strangers {
            prop_assert!(there.contains(stranger), "{:?} is gone", stranger);
        }
        solo.hear(Input::Kernel(KernelEvent::Overrun));
        prop_assert!(solo.take_plans().is_empty(), "{}", solo.kernel);
        prop_assert!(solo.core.readiness().ready, "{:?}", solo.core.readiness());
    }
}
