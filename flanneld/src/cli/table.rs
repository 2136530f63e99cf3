//! The table itself. Names and defaults of flannel's settings are flannel's, to the letter.

use super::{Flag, Kind, Status};

/// Every setting, in the groups of the help.
pub const TABLE: &[(&str, &[Flag])] = &[
    (
        "Store",
        &[
            text(
                "store",
                "etcd",
                "etcd, or embedded: this daemon runs its own store, on a loopback address of --etcd-endpoints or on 127.0.0.1:2379",
            ),
            text("store-dir", "", "directory of the embedded store; default: store in the state directory"),
            text(
                "etcd-endpoints",
                "http://127.0.0.1:4001,http://127.0.0.1:2379",
                "etcd servers, separated by commas; they must agree on http or https",
            ),
            text("etcd-prefix", "/coreos.com/network", "key under which the cluster's network is kept"),
            text("etcd-keyfile", "", "private key (PEM) of this client; needs --etcd-certfile"),
            text("etcd-certfile", "", "certificate (PEM) of this client; needs --etcd-keyfile"),
            text("etcd-cafile", "", "certificate authority (PEM) that signed the servers' certificates"),
            text("etcd-username", "", "user name for etcd's own access control"),
            text("etcd-password", "", "password of that user").secret(),
            text("node-id", "", "name of this node in its lease; empty: $NODE_NAME, else the host name"),
            int("subnet-lease-ttl", "1440", "minutes that a lease lasts unless it is renewed, 2 to 525600"),
            int(
                "subnet-lease-renew-margin",
                "60",
                "minutes before the end of the lease at which it is renewed, 1 to 525599; less than --subnet-lease-ttl",
            ),
            int(
                "vanish-hold",
                "60",
                "seconds for which peers are kept when most of them vanish from the store at once; 0: they are removed at once",
            ),
            switch(
                "release-on-exit",
                "false",
                "give the lease back when the daemon stops; pods of this host lose their network",
            ),
        ],
    ),
    (
        "Kubernetes",
        &[
            switch(
                "kube-subnet-mgr",
                "false",
                "keep leases in Kubernetes, as annotations of its Nodes, instead of etcd",
            ),
            text(
                "kube-api-url",
                "",
                "address of the API server; default: the kubeconfig's, else that of the pod",
            ),
            text(
                "kubeconfig-file",
                "",
                "kubeconfig with server and credentials; default: the pod's own credentials",
            ),
            text(
                "kube-annotation-prefix",
                "flannel.alpha.coreos.com",
                "what the names of our annotations begin with",
            ),
            text(
                "net-config-path",
                "/etc/kube-flannel/net-conf.json",
                "file with the network's configuration; read again when it changes",
            ),
            switch(
                "set-node-network-unavailable",
                "true",
                "keep the Node's condition NetworkUnavailable: False while the data path works",
            ),
            variable("EVENT_QUEUE_DEPTH", "length of flannel's queue of Nodes").no_effect(NO_QUEUE),
            variable("CONT_WHEN_CACHE_NOT_READY", "whether flannel goes on when the list of Nodes is late")
                .no_effect(NO_QUEUE),
        ],
    ),
    (
        "Interface",
        &[
            list(
                "iface",
                "interface between the hosts, by name or address; may be repeated, the first that fits wins",
            ),
            list(
                "iface-regex",
                "regular expression for the interface, matched with addresses and then with names; may be repeated; tried after \
                 --iface",
            ),
            text(
                "iface-can-reach",
                "",
                "use the interface through which this address is reached; tried last",
            ),
            int(
                "iface-wait",
                "60",
                "seconds to wait for the named interface after the start; then the daemon ends with code 10",
            ),
            text(
                "public-ip",
                "",
                "IPv4 address that is published to the other hosts; default: the interface's",
            ),
            text(
                "public-ipv6",
                "",
                "IPv6 address that is published to the other hosts; default: the interface's",
            ),
        ],
    ),
    (
        "Traffic",
        &[
            switch("ip-masq", "false", "masquerade packets of pods that leave the cluster's network"),
            switch(
                "ip-masq-fully-random-disable",
                "false",
                "keep source ports when masquerading, where possible",
            ),
            text(
                "tunnel-checksum",
                "auto",
                "on or off: whether the hardware computes checksums of tunnel packets; auto: off on kernels before 5.7, which get \
                 them wrong behind source NAT",
            ),
            switch("iptables-forward-rules", "true", "accept forwarding from and to the cluster's network"),
            switch(
                "ip-blackhole-route",
                "false",
                "add a blackhole route for this host's own subnet; every other route is preferred to it",
            ),
            list(
                "no-masq-cidrs",
                "networks outside the cluster for which packets of pods are not masqueraded, separated by commas; may be repeated",
            ),
            text(
                "traffic-rules",
                "auto",
                "how rules are made: nftables, iptables, iptables-nft, iptables-legacy; auto: as EnableNFTables of the \
                 net-conf is set, else nftables where the kernel has it",
            ),
            int("iptables-resync", "5", "seconds between two audits of iptables rules, where some are ours"),
        ],
    ),
    (
        "Files",
        &[
            text("subnet-file", "/run/flannel/subnet.env", "file from which the CNI plugin reads the subnet"),
            text(
                "state-dir",
                "",
                "directory of what the daemon remembers for its next start; default: /var/lib/flannel with flannel's subnet file, \
                 else beside the subnet file",
            ),
            text(
                "record-file",
                "",
                "file in which the daemon records what it receives and does, 16 MiB with the file before it (flannelctl events); \
                 default: events beside the subnet file; off for none",
            ),
            text(
                "config",
                "",
                "JSON file with settings, {\"ip-masq\": true}; flags and variables override it",
            ),
        ],
    ),
    (
        "Health",
        &[
            text(
                "healthz-ip",
                "0.0.0.0",
                "address of the health server; 0.0.0.0, flannel's default, is every address of both families; 127.0.0.1 keeps it to this host",
            ),
            int("healthz-port", "0", "port of the health server (/healthz, /readyz, /metrics); 0 for none"),
            variable("NOTIFY_SOCKET", "set by systemd: READY=1 is sent there when the first pass has ended"),
        ],
    ),
    (
        "Log",
        &[
            int("v", "0", "detail of the log: 1 to 5 for debug, 6 and above for everything"),
            text("vmodule", "", "log detail per source file").no_effect("use RUST_LOG=module=level instead"),
            text("log_backtrace_at", "", "stack trace at a log line")
                .no_effect("no log line has a place in the source here"),
            switch("version", "false", "print the version and exit"),
        ],
    ),
    (
        "Node",
        &[
            switch(
                "takeover",
                "false",
                "wait for the end of another flanneld of this network on this host, and go on in its place",
            ),
            variable("NODE_NAME", "name of this node where --node-id does not set it"),
            variable("POD_NAME", "pod of this daemon; names the Node where NODE_NAME does not"),
            variable("POD_NAMESPACE", "namespace of that pod"),
        ],
    ),
    (
        "Not here yet",
        &[
            variable("WIREGUARD_KEY_FILE", "file of the WireGuard private key")
                .status(Status::NotYet("the wireguard backend does not exist yet")),
            variable("ACCESS_KEY_ID", "credentials for tencent-vpc").status(CLOUD),
            variable("ACCESS_KEY_SECRET", "credentials for tencent-vpc").status(CLOUD).secret(),
        ],
    ),
];

const NO_QUEUE: &str = "there is no such queue: any number of Nodes is read as it comes";

const CLOUD: Status = Status::NotYet("cloud backends do not exist yet");

const fn row(name: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Flag {
    Flag { name, kind, default, help, status: Status::Supported, secret: false }
}

const fn text(name: &'static str, default: &'static str, help: &'static str) -> Flag {
    row(name, Kind::Text, default, help)
}

const fn switch(name: &'static str, default: &'static str, help: &'static str) -> Flag {
    row(name, Kind::Bool, default, help)
}

const fn int(name: &'static str, default: &'static str, help: &'static str) -> Flag {
    row(name, Kind::Int, default, help)
}

const fn list(name: &'static str, help: &'static str) -> Flag {
    row(name, Kind::List, "", help)
}

const fn variable(name: &'static str, help: &'static str) -> Flag {
    row(name, Kind::Text, "", help)
}

impl Flag {
    const fn status(mut self, status: Status) -> Self {
        self.status = status;
        self
    }

    const fn no_effect(self, why: &'static str) -> Self {
        self.status(Status::NoEffect(why))
    }

    const fn secret(mut self) -> Self {
        self.secret = true;
        self
    }
}
