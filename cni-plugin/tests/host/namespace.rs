//! A network namespace without a name, which goes with its last file: what is started in it, and what it has.

use std::fs::{self, File};
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use backends::netlink::address::{AddressView, dump_addresses};
use backends::netlink::link::{IFF_UP, LinkView, dump_links};
use backends::netlink::route::{RouteView, dump_routes};
use backends::netlink::{AF_INET, AF_INET6, RawMessage, Socket};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

/// What takes longer than this on a loaded machine does not happen at all.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// What is not to happen is waited for this long.
pub(crate) const NEVER: Duration = Duration::from_millis(700);

/// A network namespace.
pub(crate) struct Namespace(File);

impl Namespace {
    /// A new one. Needs root: a thread cannot have a user namespace of its own.
    pub(crate) fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root, for network namespaces");
            Self(File::open("/proc/thread-self/ns/net").unwrap())
        };
        thread::scope(|scope| scope.spawn(make).join().unwrap())
    }

    /// By which another process can open it while this one lives.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Runs `work` in it; the processes that it starts are there as well.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join().unwrap())
    }

    /// Runs a program in it, which must end well; its output.
    pub(crate) fn tool(&self, line: &str) -> String {
        let (well, text) = self.try_tool(line, "");
        assert!(well, "{line}: {text}");
        text
    }

    /// Runs a program in it with this input; whether it ended well, and its output.
    pub(crate) fn try_tool(&self, line: &str, input: &str) -> (bool, String) {
        let mut words = line.split_whitespace();
        let mut command = Command::new(words.next().unwrap());
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        command.env("PATH", path);
        let output = self.run(|| {
            let mut child = command.spawn().unwrap_or_else(|error| panic!("{line}: {error}"));
            child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
            child.wait_with_output().unwrap()
        });
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.success(), text)
    }

    pub(crate) fn sysctl(&self, key: &str) -> String {
        self.run(|| fs::read_to_string(format!("/proc/sys/{key}")).unwrap().trim_end().to_owned())
    }

    /// A server of TCP on all addresses of both families.
    pub(crate) fn listen(&self, port: u16) -> TcpListener {
        let listener = self.run(|| TcpListener::bind(("::", port)).unwrap());
        setsockopt(&listener, sockopt::ReceiveTimeout, &TimeVal::seconds(SOON.as_secs().cast_signed()))
            .unwrap();
        listener
    }

    /// A socket of UDP that gives up after a while.
    pub(crate) fn udp(&self, address: &str) -> UdpSocket {
        let socket = self.run(|| UdpSocket::bind(address).unwrap());
        socket.set_read_timeout(Some(NEVER)).unwrap();
        socket
    }

    /// Who the server sees when this namespace connects; none when it does not get there.
    pub(crate) fn reaches(&self, target: &str, server: &TcpListener) -> Option<SocketAddr> {
        // On a machine whose neighbour table is full the kernel refuses for a moment; that table is all namespaces'.
        (0..5).find_map(|_| self.connects(target, server, SOON))
    }

    /// Whether a connection gets nowhere, or somewhere else.
    pub(crate) fn is_kept_from(&self, target: &str, server: &TcpListener) -> bool {
        self.connects(target, server, NEVER).is_none()
    }

    fn connects(&self, target: &str, server: &TcpListener, within: Duration) -> Option<SocketAddr> {
        let target: SocketAddr = target.parse().unwrap();
        let stream = self.run(|| TcpStream::connect_timeout(&target, within));
        let _stream = stream.inspect_err(|error| eprintln!("{target}: {error}")).ok()?;
        Some(server.accept().expect("what connected comes out here").1)
    }

    /// Its links as `name mtu`, in the order of their making, the loopback apart.
    pub(crate) fn links(&self) -> Vec<String> {
        self.run(|| {
            let mut links = Vec::new();
            let mut socket = Socket::route().unwrap();
            let read = |message: RawMessage<'_>| {
                links.extend(LinkView::parse(&message).map(|l| format!("{} {}", l.name, l.mtu)));
            };
            socket.dump(&mut dump_links(None), read).unwrap();
            links.retain(|link| !link.starts_with("lo "));
            links
        })
    }

    /// Whether a link is set up.
    pub(crate) fn is_up(&self, name: &str) -> bool {
        self.run(|| {
            let mut up = false;
            let mut socket = Socket::route().unwrap();
            let read = |message: RawMessage<'_>| {
                up |=
                    LinkView::parse(&message).is_ok_and(|l| l.name.as_str() == name && l.flags & IFF_UP != 0);
            };
            socket.dump(&mut dump_links(None), read).unwrap();
            up
        })
    }

    /// Addresses that are not of the link alone, sorted.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.run(|| {
            let mut found = Vec::new();
            let mut socket = Socket::route().unwrap();
            socket
                .dump(&mut dump_addresses(0), |message| {
                    let view =
                        AddressView::parse(&message).ok().filter(|a| !a.net.to_string().starts_with("fe80"));
                    found.extend(view.map(|a| a.net.to_string()));
                })
                .unwrap();
            found.sort();
            found
        })
    }

    /// Routes through a gateway as `destination via gateway`, sorted.
    pub(crate) fn routes(&self) -> Vec<String> {
        self.run(|| {
            let mut found = Vec::new();
            let mut socket = Socket::route().unwrap();
            for family in [AF_INET, AF_INET6] {
                let read = |message: RawMessage<'_>| {
                    RouteView::parse(&message, |r| {
                        found.extend(r.gateway.map(|via| format!("{} via {via}", r.dst)))
                    })
                    .unwrap();
                };
                socket.dump(&mut dump_routes(family), read).unwrap();
            }
            found.sort();
            found
        })
    }
}
