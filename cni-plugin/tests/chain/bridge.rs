//! A container on its bridge: packets pass when ADD returns, and what others may do to its interface.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::portmap::{mapping, portmap, with};
use crate::host::namespace::Namespace;
use crate::host::{Host, Pod, Whose, complete};

/// A neighbour whose first request was lost answers the second, a second later.
const LATE: Duration = Duration::from_millis(900);
const ROUNDS: usize = 150;

/// Ends the disturbance also when the test panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// How long it takes until a port of the gateway that nobody listens on refuses.
#[allow(clippy::disallowed_methods, reason = "measures how long a packet takes")]
fn refused_after(pod: &Pod, gateway: SocketAddr) -> Duration {
    pod.net.run(|| {
        let began = Instant::now();
        let error = TcpStream::connect(gateway).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
        began.elapsed()
    })
}

/// A bridge whose first port this is gets its carrier, and can send, later than its port.
#[test]
fn the_first_packet_of_the_first_container_is_answered_at_once_while_namespaces_come_and_go() {
    let host = Host::new();
    let bridge = host.bridge("net");
    let end = AtomicBool::new(false);
    let mut late = Vec::new();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !end.load(Ordering::Relaxed) {
                    Namespace::new().tool("ip link set lo up");
                }
            });
        }
        let _stop = Stop(&end);
        for round in 0..ROUNDS {
            let pod = Pod::new(&format!("c{round}"));
            let result = host.add(Whose::Ours, "net", &pod, std::slice::from_ref(&bridge)).ok();
            let gateway = if round % 2 == 0 { "10.88.1.1:9" } else { "[fc00:88:1::1]:9" };
            let waited = refused_after(&pod, gateway.parse().unwrap());
            late.extend((waited > LATE).then_some((round, waited)));
            host.del(Whose::Ours, "net", &pod, std::slice::from_ref(&bridge), &result);
        }
    });
    assert!(late.is_empty(), "{} of {ROUNDS} are late: {late:?}", late.len());
}

#[test]
fn a_bridge_with_spanning_tree_takes_containers_and_check_reports_it() {
    let (host, pod) = (Host::new(), Pod::new("c1"));
    host.net.tool("ip link add cni0 type bridge stp_state 1");
    let bridge = host.bridge("net");
    let result = host.add(Whose::Ours, "net", &pod, std::slice::from_ref(&bridge)).ok();
    let waits = host.check(Whose::Ours, "net", &pod, &bridge, &result);
    assert!(waits.code() == 101 && waits.msg().contains("spanning tree"), "{}", waits.msg());
    let status = host.call(Whose::Ours, "STATUS", ("", "", ""), &newest(&bridge));
    assert!(status.well, "{}", status.document);
}

#[test]
fn a_del_leaves_the_interface_of_another_container_that_has_the_namespaces_path_now() {
    let (host, pod) = (Host::new(), Pod::new("new"));
    let bridge = host.bridge("net");
    let result = host.add(Whose::Ours, "net", &pod, std::slice::from_ref(&bridge)).ok();
    let del = |id: &str| {
        let conf = complete("net", &bridge, &Value::Null);
        assert!(host.call(Whose::Ours, "DEL", (id, &pod.net.path(), "eth0"), &conf).well);
    };
    del("old");
    let check = host.check(Whose::Ours, "net", &pod, &bridge, &result);
    assert!(check.well, "{}", check.document);
    del("new");
    assert!(!pod.net.tool("ip link show").contains("eth0"));
}

#[test]
fn a_container_takes_no_router_from_its_neighbours() {
    let (host, pod) = (Host::new(), Pod::new("c1"));
    host.add(Whose::Ours, "net", &pod, &[host.bridge("net")]).ok();
    assert_eq!(pod.net.sysctl("net/ipv6/conf/eth0/accept_ra"), "0");
}

#[test]
fn a_host_port_that_the_tunnel_receives_on_is_refused() {
    let (host, pod) = (Host::new(), Pod::new("c1"));
    host.net.tool("ip link add flannel.1 type vxlan id 1 local 192.0.2.1 dev up0 dstport 8472 nolearning");
    let chain = |protocol| [host.bridge("net"), portmap(&[mapping(protocol, 8472, 80)])];
    let refused = host.add(Whose::Ours, "net", &pod, &chain("udp"));
    assert!(refused.msg().contains("flannel.1"), "{}", refused.msg());
    let other = Pod::new("c2");
    assert!(host.add(Whose::Ours, "net", &other, &chain("tcp")).well);
}

/// STATUS came with version 1.1.0.
fn newest(conf: &Value) -> Value {
    complete("net", &with(conf, json!({ "cniVersion": "1.1.0" })), &Value::Null)
}
