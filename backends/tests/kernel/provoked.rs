//! What happens only in a crowd, or shows only in packets: laws 11, 12, 16, the first part of 21, and large batches.

use std::io::Write;
use std::net::UdpSocket;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use backends::kernel::real::{EventFilter, Events};
use backends::kernel::{Kernel, KernelError, KernelEvent, OpError};
use backends::netlink::link::LinkView;
use backends::netlink::{Received, Socket};
use backends::{Mac, Neigh, Object, Op};
use nix::errno::Errno;
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, setsockopt, socket,
    sockopt,
};

use crate::lab::{Lab, ip, name, type_lines};

const RTNLGRP_LINK: u32 = 1;
const RTM_DELLINK: u16 = 17;

/// How often something is tried that comes within a few times on a quiet machine.
const TRIES: usize = 5000;

fn batch(tool: &str, lines: &str) {
    let mut child = Command::new(tool).args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn law_11_a_dump_while_the_table_changes_says_so() {
    let mut lab = Lab::new();
    let want = lab.want(200);
    lab.converge(&want);
    let add: String = (0..2000).map(|n| format!("link add d{n} type bridge\n")).collect();
    batch("ip", &add);
    let done = AtomicBool::new(false);
    let seen = std::thread::scope(|s| {
        // A thread is in the namespace that it was born in.
        s.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                type_lines("ip link add churn type bridge\nip link delete churn");
            }
        });
        let seen = (0..TRIES).any(|_| lab.kernel.host().unwrap().interrupted);
        done.store(true, Ordering::Relaxed);
        seen
    });
    assert!(seen, "no dump was interrupted");
    assert!(lab.plan(&want).is_empty());
}

#[test]
fn law_12_a_full_receive_buffer_says_so_once() {
    let mut lab = Lab::new();
    let mut events = Events::route().unwrap();
    let routes: String =
        (0..60_000u32).map(|n| format!("route add 11.{}.{}.0/24 dev eth0\n", n / 256, n % 256)).collect();
    batch("ip", &routes);
    let filter = EventFilter { networks: lab.owner.networks.clone(), ..EventFilter::default() };
    assert_eq!(events.drain(&filter).unwrap().event, Some(KernelEvent::Overrun));
    assert_eq!(events.drain(&filter).unwrap().event, None);
    let want = lab.want(2);
    lab.converge(&want);
    assert!(events.drain(&filter).unwrap().event.is_some(), "and goes on");
}

/// A node's pods come and go: what they bring along wakes nobody, and the underlay's own always does.
#[test]
fn what_comes_with_a_pod_is_notified_once() {
    let _lab = Lab::new();
    let mut events = Events::route().unwrap();
    let filter = EventFilter { external: Some(name("eth0")), ..EventFilter::default() };
    let taken = EventFilter { links: vec![name("host")], ..filter.clone() };
    let unknown = EventFilter::default();
    for (typed, filter, expected) in [
        ("ip link add pods0 type bridge", &filter, Some(KernelEvent::Host)),
        ("ip link set pods0 address 02:00:00:00:00:0b", &filter, Some(KernelEvent::Host)),
        ("ip link add host type veth peer name inner", &filter, None),
        ("ip link set inner up", &filter, None),
        ("sysctl -qw net.ipv4.ip_forward=0 net.ipv4.ip_forward=1", &filter, Some(KernelEvent::Own)),
        ("sysctl -qw net.ipv4.conf.pods0.forwarding=0", &filter, Some(KernelEvent::Own)),
        // Now it leads somewhere, and may be anybody's.
        ("ip link set host up", &filter, Some(KernelEvent::Host)),
        ("ip link set inner mtu 1400", &filter, Some(KernelEvent::Host)),
        ("ip link set inner alias 'cni cbr0 x eth0'", &filter, None),
        // The bridge itself changes with its first port.
        ("ip link set inner master pods0", &filter, Some(KernelEvent::Host)),
        ("ip link set host master pods0", &filter, None),
        ("ip link set host mtu 1410", &taken, Some(KernelEvent::Host)),
        ("ip link set host mtu 1400", &unknown, Some(KernelEvent::Host)),
        ("ip -6 address add fe80::7/64 dev pods0", &filter, None),
        ("ip -6 address add fe80::7/64 dev eth0", &filter, Some(KernelEvent::Host)),
        ("ip -6 address add fd30::7/64 dev pods0", &filter, Some(KernelEvent::Host)),
    ] {
        type_lines(typed);
        assert_eq!(events.drain(filter).unwrap().event, expected, "{typed}");
    }
}

/// Its first pod gives the pods' bridge carrier and another MTU, and the last one takes them: news of the underlay alone.
#[test]
fn a_link_that_is_known_is_news_only_with_what_is_asked_of_it() {
    let mut lab = Lab::new();
    type_lines("ip link add pods0 up type bridge\nip link add inner type veth peer name host");
    let known = lab.kernel.host().unwrap().links;
    let filter = EventFilter { external: Some(name("eth0")), known, ..EventFilter::default() };
    let first = "ip link set host alias 'cni cbr0 x eth0'
        ip link set inner mtu 1400 master pods0 up
        ip link set host up";
    let mut events = Events::route().unwrap();
    for (typed, expected) in [
        (first, None),
        ("ip link set pods0 mtu 1300", None),
        ("ip link set eth0 mtu 1450", Some(KernelEvent::Host)),
        ("ip link set pods0 down", Some(KernelEvent::Host)),
        ("ip link add pods1 type bridge", Some(KernelEvent::Host)),
        ("ip link delete pods0", Some(KernelEvent::Host)),
    ] {
        type_lines(typed);
        assert_eq!(events.drain(&filter).unwrap().event, expected, "{typed}");
    }
}

#[test]
fn a_sieve_lets_the_removal_of_its_link_pass_and_nothing_else() {
    let _lab = Lab::new();
    type_lines("ip link add one type bridge\nip link add two type bridge");
    let index = if_nametoindex("one").unwrap();
    let mut socket = Socket::subscribe(libc::NETLINK_ROUTE, &[RTNLGRP_LINK]).unwrap();
    socket.hear_only_removal_of(index);
    type_lines("ip link set one up\nip link delete two\nip link set one down\nip link delete one");
    let Received::Messages(mut heard) = socket.receive().unwrap() else { panic!("nothing passed") };
    let message = heard.next().unwrap();
    assert_eq!((message.kind, LinkView::parse(&message).unwrap().index), (RTM_DELLINK, index));
    assert!(matches!(socket.receive().unwrap(), Received::Empty));
}

#[test]
fn law_16_an_accept_ends_only_its_own_chain() {
    let _lab = Lab::new();
    type_lines(
        "nft 'add table ip a; add chain ip a out { type filter hook output priority 0; policy accept; }'",
    );
    type_lines("nft add rule ip a out udp dport 9999 accept");
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.send_to(b"x", "127.0.0.1:9999").unwrap();
    type_lines(
        "nft 'add table ip b; add chain ip b out { type filter hook output priority 10; policy drop; }'",
    );
    let refused = socket.send_to(b"x", "127.0.0.1:9999").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(Errno::EPERM as i32));
}

#[test]
fn law_21_turning_on_forwarding_costs_an_advertised_default_route_unless_accept_ra_is_2() {
    let mut lab = Lab::new();
    type_lines(
        "sysctl -qw net.ipv6.conf.all.forwarding=0
        sysctl -qw net.ipv6.conf.eth0.accept_ra=1
        sysctl -qw net.ipv6.conf.eth0.accept_ra_from_local=1
        ip -6 address add fe80::99/64 dev far nodad",
    );
    let advertised = || !ip(&["-6", "route", "show", "default"]).is_empty();
    let heard = || {
        let came = (0..TRIES).any(|_| {
            advertise("far");
            advertised()
        });
        assert!(came, "no route from the advertisement");
    };
    heard();
    type_lines("sysctl -qw net.ipv6.conf.all.forwarding=1");
    assert!(!advertised(), "the law");
    type_lines("sysctl -qw net.ipv6.conf.all.forwarding=0");
    heard();
    let want = lab.want(2);
    lab.converge(&want);
    assert!(advertised(), "kept, since accept_ra was made 2 before");
}

/// Sends a router advertisement out of this link.
fn advertise(link: &str) {
    let index = if_nametoindex(link).unwrap();
    let raw = socket(AddressFamily::Inet6, SockType::Raw, SockFlag::empty(), SockProtocol::IcmpV6).unwrap();
    setsockopt(&raw, sockopt::Ipv6MulticastHops, &255).unwrap();
    // Type, code, checksum (the kernel's), hop limit, flags, life of the router (1800 s), two timers.
    let message = [134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    let to = SockaddrIn6::from(std::net::SocketAddrV6::new("ff02::1".parse().unwrap(), 0, 0, index));
    sendto(std::os::fd::AsRawFd::as_raw_fd(&raw), &message, &to, MsgFlags::empty()).unwrap();
}

#[test]
fn a_refusal_is_filed_under_its_own_step_in_batches_of_any_length() {
    let mut lab = Lab::new();
    let want = lab.want(2);
    lab.converge(&want);
    let refused = [0, 1, 199, 200, 201, 399, 400, 449];
    let step = |n: u16| {
        let [hi, lo] = n.to_be_bytes();
        let neigh = Neigh {
            link: name("flannel.7"),
            address: [10, 244, 100 + hi, lo].into(),
            mac: Mac([2, 9, 9, 9, hi, lo]),
        };
        // Of what is in a plan only a route can be refused at will: its gateway is on no wire.
        let route = want.iter().find_map(|o| if let Object::Route(r) = o { Some(*r) } else { None }).unwrap();
        let route = backends::Route {
            dst: ipnetwork::IpNetwork::new([10, 244, 100 + hi, lo].into(), 32).unwrap(),
            via: Some([198, 51, 100, 1].into()),
            onlink: false,
            scope: 0,
            ..route
        };
        let want = if refused.contains(&n) { Object::Route(route) } else { Object::Neigh(neigh) };
        Op::Put { want, have: None }
    };
    let ops: Vec<_> = (0..450).map(step).collect();
    let results = lab.kernel.apply(&ops);
    for (n, result) in results.iter().enumerate() {
        let is = matches!(result, Err(OpError::Failed(KernelError::Netlink(e))) if e.errno() == Errno::ENETUNREACH);
        let expected = u16::try_from(n).is_ok_and(|n| refused.contains(&n));
        assert!(is == expected && (expected || result.is_ok()), "{n}: {result:?}");
    }
}

#[test]
fn a_link_that_goes_between_dump_and_plan_is_made_anew_by_the_next_one() {
    let mut lab = Lab::new();
    let want = lab.want(200);
    lab.converge(&want);
    type_lines("ip neigh flush dev flannel.7 nud permanent\nip route flush dev flannel-v6.7");
    let plan = lab.plan(&want);
    type_lines("ip link delete flannel.7\nip link delete flannel-v6.7");
    let failed = lab.kernel.apply(&plan.ops).iter().filter(|r| r.is_err()).count();
    assert_eq!(failed, plan.ops.len());
    lab.converge(&want);
}

#[test]
fn where_proc_sys_is_read_only_all_but_the_settings_is_made_and_a_way_out_is_named() {
    let mut lab = Lab::new();
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    type_lines(
        "sysctl -qw net.ipv4.ip_forward=0
        sysctl -qw net.ipv6.conf.all.forwarding=0
        mount --make-rprivate /
        mount --bind /proc/sys /proc/sys
        mount -o remount,bind,ro /proc/sys",
    );
    let want = lab.want(3);
    let failed = lab.pass(&want);
    assert!(
        failed.iter().all(|line| line.starts_with("echo ") && line.contains("set it on the host")),
        "{failed:#?}"
    );
    let left = lab.plan(&want);
    // A device that is new may have by itself what was wished for it, so fewer are left than were refused.
    let refused = |op: &Op| failed.iter().any(|line| line.starts_with(&format!("{op}: ")));
    assert!(!left.is_empty() && left.ops.iter().all(refused), "{left}\n{failed:#?}");
    assert!(left.ops.iter().all(|op| matches!(op.object(), Object::Sysctl(..))), "{left}");
}
