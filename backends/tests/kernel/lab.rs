//! A host in a network namespace: an underlay, a bridge with a pod's subnet, and one node's wish.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::sync::Arc;

use backends::kernel::Kernel;
use backends::kernel::real::RealKernel;
use backends::rules::RuleNames;
use backends::{Backends, External, Facts, Identity, IfName, KernelState, LocalNode, Mac, Owner, Plan, diff};
use nix::sched::{CloneFlags, unshare};
use subnet_lease::{
    BackendAttrs, Lease, NetworkConfig, NetworkId, PeerTable, PublicAddrs, Subnets, VxlanData,
};

pub(crate) const VXLAN: &str = r#"{"Type": "vxlan", "VNI": 7}"#;
pub(crate) const DIRECT: &str = r#"{"Type": "vxlan", "VNI": 7, "DirectRouting": true}"#;
pub(crate) const HOST_GW: &str = r#"{"Type": "host-gw"}"#;

const PLUGGED: &str = "
    ip link set lo up
    ip link add eth0 type veth peer name far
    ip link set eth0 up
    ip link set far up
    ip address add 172.16.0.1/16 dev eth0
    ip -6 address add fd00:172::1/64 dev eth0 nodad
    ip link add cni0 address 02:cc:00:00:00:01 type bridge
    ip link set cni0 up
    ip address add 10.244.1.1/24 dev cni0
    ip -6 address add fd00:244:0:1::1/64 dev cni0 nodad";

pub(crate) struct Lab {
    pub(crate) kernel: RealKernel,
    network: Arc<NetworkConfig>,
    pub(crate) node: LocalNode,
    pub(crate) owner: Owner,
    backend: &'static str,
}

impl Lab {
    pub(crate) fn new() -> Self {
        Self::with(VXLAN)
    }

    /// A host whose network has this backend.
    pub(crate) fn with(backend: &'static str) -> Self {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace of our own (needs root)");
        type_lines(PLUGGED);
        let conf = format!(
            r#"{{"EnableIPv4": true, "EnableIPv6": true, "Network": "10.244.0.0/16", "IPv6Network": "fd00:244::/48",
            "Backend": {backend}}}"#
        );
        let network = Arc::new(NetworkConfig::parse(conf.as_bytes()).unwrap().0);
        let owner = Owner {
            network: NetworkId::default(),
            networks: network.pools().map(|p| p.network).collect(),
            names: Backends::of(&network.backend).links(),
            external: Some(name("eth0")),
            pools: network.pools().collect(),
            pods: vec![name("cni0")],
            routers: Vec::new(),
            rules: RuleNames::Flannel,
            first_pass: true,
        };
        let public = PublicAddrs {
            v4: Some(Ipv4Addr::new(172, 16, 0, 1)),
            v6: Some(Ipv6Addr::new(0xfd00, 0x172, 0, 0, 0, 0, 0, 1)),
        };
        let external = External { link: name("eth0"), index: 0, mtu: 1500, local: public, public };
        let identities = vec![Identity::Macs([Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2])])];
        let id = NetworkId::default();
        let node = LocalNode {
            id,
            network: network.clone(),
            external,
            subnets: subnets(1),
            identities,
            tx_checksum: None,
        };
        Self { kernel: RealKernel::open().unwrap(), network, node, owner, backend }
    }

    pub(crate) fn want(&mut self, peers: u16) -> KernelState {
        let leases = (2..2 + peers).map(|n| lease(n, self.backend)).collect();
        let facts = self.facts();
        self.node.external.index = facts.link_named(name("eth0")).unwrap().index;
        let own = Some(&self.node.subnets);
        let peers =
            PeerTable::from_snapshot(&self.network, own, self.node.external.public, leases, Vec::new());
        Backends::of(&self.network.backend).desired(&self.node, &peers, &facts).objects.into_iter().collect()
    }

    pub(crate) fn facts(&mut self) -> Facts {
        self.kernel.host().unwrap()
    }

    pub(crate) fn have(&mut self) -> KernelState {
        let own = self.kernel.own(&self.owner).unwrap();
        assert!(!own.interrupted && own.unreadable == 0);
        own.state
    }

    pub(crate) fn plan(&mut self, want: &KernelState) -> Plan {
        diff(want, &self.have(), &self.owner)
    }

    /// One pass, without a look at its results.
    pub(crate) fn pass(&mut self, want: &KernelState) -> Vec<String> {
        let plan = self.plan(want);
        let results = self.kernel.apply(&plan.ops);
        let failed = plan.ops.iter().zip(results).filter_map(|(op, r)| Some(format!("{op}: {}", r.err()?)));
        failed.collect()
    }

    /// One pass; everything in it must succeed, and the next one must find nothing to do.
    pub(crate) fn converge(&mut self, want: &KernelState) {
        let failed = self.pass(want);
        assert!(failed.is_empty(), "{failed:#?}");
        let again = self.plan(want);
        assert!(again.is_empty(), "the next pass would do\n{again}");
    }
}

pub(crate) fn name(text: &str) -> IfName {
    text.parse().unwrap()
}

fn subnets(n: u16) -> Subnets {
    format!("10.244.{n}.0-24&fd00:244:0:{n:x}::-64").parse().unwrap()
}

/// Peer `n`, on our wire unless all go through the tunnel.
fn lease(n: u16, backend: &str) -> Lease {
    let [hi, lo] = n.to_be_bytes();
    let direct = backend != VXLAN;
    let net = if direct { 16 } else { 30 };
    let public = PublicAddrs {
        v4: Some([172, net, hi, lo].into()),
        v6: Some(Ipv6Addr::from([0xfd00, if direct { 0x172 } else { 0x30 }, 0, 0, 0, 0, 0, n])),
    };
    let data = |side| Some(VxlanData { vni: 7, mac: [2, 1, side, 0, hi, lo] });
    let attrs = if backend == HOST_GW {
        BackendAttrs::plain("host-gw")
    } else {
        BackendAttrs::vxlan(data(4), data(6))
    };
    Lease::new(subnets(n), public, attrs)
}

/// Types lines as an operator would; each must be done.
pub(crate) fn type_lines(lines: &str) {
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let done = Command::new("sh").args(["-c", line]).output().unwrap();
        assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
    }
}

/// One command of `ip`, and what it says.
pub(crate) fn ip(args: &[&str]) -> String {
    let done = Command::new("ip").args(args).output().unwrap();
    assert!(done.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}
