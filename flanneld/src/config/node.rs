//! Settings as meant.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use backends::local::daemon::DAEMONS;
use backends::rules::iptables::Flavour;
use backends::rules::{Asked, RuleNames, RuleSettings};
use ipnetwork::IpNetwork;
use regex_lite::Regex;
use subnet_lease::etcd::EtcdConfig;
use subnet_lease::{PublicAddrs, StoreConfig};

use super::{ConfigError, ConfigErrors, RawConfig, Source, etcd, kube};
use crate::cli;
use crate::core::Settings;
use crate::host::iface::IfaceWish;

/// Where a daemon with flannel's own subnet file has its state file.
const STATE_DIR: &str = "/var/lib/flannel";

/// Where the store within a daemon listens: etcd's own port, which is in the default of `--etcd-endpoints`, too.
const EMBEDDED: &str = "http://127.0.0.1:2379";

/// The longest node name that a lease record takes, in bytes: that of a DNS name.
const NODE_ID_MAX: usize = 253;

/// Networks that may be exempt from masquerading. Ours: each is a rule, and some 600 fit into one transaction.
const EXEMPT_MOST: usize = 256;

/// The settings of one daemon, read and checked.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Where leases live, and when ours is renewed.
    pub store: StoreConfig,
    /// The store is within this daemon: its directory.
    pub embedded: Option<PathBuf>,
    /// What the core needs. The network's id is the store's prefix; the seed is still 0.
    pub core: Settings,
    /// Whether a daemon that is stopped gives its lease back.
    pub release_on_exit: bool,
    /// Wait for another daemon of this network to end, and go on in its place.
    pub takeover: bool,
    /// The file for the CNI plugin.
    pub subnet_file: PathBuf,
    /// The directory of the state file.
    pub state_dir: PathBuf,
    /// The recorder's file.
    pub record_file: Option<PathBuf>,
    /// The folder of this host's daemons, with their locks and sockets. No flag changes it: they must find each other.
    pub daemons: PathBuf,
    /// Where the health server listens; `[::]` stands for IPv4 as well.
    pub health: Option<SocketAddr>,
    /// Detail of the log: 0 for info, 1 to 5 for debug, above for trace.
    pub verbosity: i64,
}

impl NodeConfig {
    /// Reads the settings. The host name is the node's name where no setting has one.
    pub fn understand(raw: &RawConfig, host_name: &str) -> Result<Self, ConfigErrors> {
        let mut read = ConfigReader { raw, errors: raw.errors().to_vec() };
        let (ttl, renew_margin) = read.lease_times();
        let mut etcd = EtcdConfig { ttl, renew_margin, ..etcd::read(&mut read) };
        let subnet_file = read.one("subnet-file", path);
        let state_dir = read.state_dir(&subnet_file);
        let embedded = read.embedded(&state_dir, &mut etcd.endpoints);
        let store = match kube::read(&mut read) {
            Some(kube) => StoreConfig::Kube(kube),
            None => StoreConfig::Etcd(etcd),
        };
        let core = read.core(&store, host_name);
        let config = Self {
            store,
            embedded,
            core,
            record_file: read.record_file(&subnet_file),
            state_dir,
            release_on_exit: read.bool("release-on-exit"),
            takeover: read.bool("takeover"),
            subnet_file,
            daemons: DAEMONS.into(),
            health: read.health(),
            verbosity: read.int("v", "a whole number", i64::MIN..=i64::MAX),
        };
        ConfigErrors::or(read.errors, config)
    }

    /// The core's settings for a run; the seed is its random number.
    pub fn settings(&self, seed: u64) -> Settings {
        Settings { seed, ..self.core.clone() }
    }
}

/// The address of an endpoint that nobody reaches but this host.
pub(crate) fn loopback(endpoint: &str) -> Option<SocketAddr> {
    endpoint.strip_prefix("http://")?.parse().ok().filter(|address: &SocketAddr| address.ip().is_loopback())
}

/// Reads settings and collects what is wrong with them.
pub(super) struct ConfigReader<'a> {
    raw: &'a RawConfig,
    errors: Vec<ConfigError>,
}

impl ConfigReader<'_> {
    fn core(&mut self, store: &StoreConfig, host_name: &str) -> Settings {
        Settings {
            network: store.network_id(),
            renew_margin: store.renew_margin(),
            store_addresses: store.addresses(),
            node: Some(self.node_id(host_name)),
            iface: self.iface(),
            iface_wait: Some(self.seconds("iface-wait", "a number of seconds", 0..=86_400)),
            tx_checksum: self.one("tunnel-checksum", |text| match text {
                "auto" => Ok(None),
                "on" => Ok(Some(true)),
                "off" => Ok(Some(false)),
                _ => Err("neither auto, on nor off".to_owned()),
            }),
            rules: RuleSettings {
                masquerade: self.bool("ip-masq"),
                fully_random: !self.bool("ip-masq-fully-random-disable"),
                forward_rules: self.bool("iptables-forward-rules"),
                no_masquerade: self.no_masquerade(),
                program: self.one("traffic-rules", traffic_rules),
            },
            rule_names: RuleNames::Flannel,
            blackhole_route: self.bool("ip-blackhole-route"),
            iptables_resync: self.seconds("iptables-resync", "a number of seconds", 1..=86_400),
            vanish_hold: self.seconds("vanish-hold", "a number of seconds", 0..=86_400),
            seed: 0,
        }
    }

    /// The one value of a setting; the type's default stands in for a wrong one, which is noted.
    pub(super) fn one<T: Default>(
        &mut self,
        name: &str,
        understand: impl FnOnce(&str) -> Result<T, String>,
    ) -> T {
        let understood = understand(self.raw.one(name));
        self.or_note(name, understood).unwrap_or_default()
    }

    /// Like [`Self::one`] for a setting that may be absent: empty.
    pub(super) fn optional<T>(
        &mut self,
        name: &str,
        understand: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.one(name, |text| if text.is_empty() { Ok(None) } else { understand(text).map(Some) })
    }

    /// Notes the first of two settings that need each other, where the second is absent.
    pub(super) fn together(&mut self, [a, b]: [&str; 2]) {
        for (one, other) in [(a, b), (b, a)] {
            if !self.raw.one(one).is_empty() && self.raw.one(other).is_empty() {
                self.note(one, format!("needs --{other} as well"));
            }
        }
    }

    pub(super) fn note(&mut self, name: &str, why: impl Into<String>) {
        self.errors.push(ConfigError::invalid(self.raw.written(name), why.into()));
    }

    fn or_note<T>(&mut self, name: &str, understood: Result<T, String>) -> Option<T> {
        understood.map_err(|why| self.note(name, why)).ok()
    }

    pub(super) fn bool(&mut self, name: &str) -> bool {
        self.one(name, |text| cli::parse_bool(text).ok_or_else(|| "neither true nor false".to_owned()))
    }

    fn int(&mut self, name: &str, what: &str, range: RangeInclusive<i64>) -> i64 {
        let why = match (*range.start(), *range.end()) {
            (i64::MIN, i64::MAX) => format!("not {what}"),
            (i64::MIN, last) => format!("not {what} (0 to {last})"),
            (first, last) => format!("not {what} ({first} to {last})"),
        };
        self.one(name, |text| cli::parse_int(text).filter(|n| range.contains(n)).ok_or(why))
    }

    fn seconds(&mut self, name: &str, what: &str, range: RangeInclusive<i64>) -> Duration {
        Duration::from_secs(self.int(name, what, range).unsigned_abs())
    }

    /// How long a lease lasts, and how long before that it is renewed.
    fn lease_times(&mut self) -> (Duration, Duration) {
        let mut minutes = |name, range| 60 * self.seconds(name, "a number of minutes", range);
        let ttl = minutes("subnet-lease-ttl", 2..=525_600);
        let margin = minutes("subnet-lease-renew-margin", 1..=525_599);
        if margin >= ttl {
            let lasts =
                format!("not less than a lease lasts (--subnet-lease-ttl: {} minutes)", ttl.as_secs() / 60);
            self.note("subnet-lease-renew-margin", lasts);
        }
        (ttl, margin)
    }

    /// The directory of the store within this daemon, which listens where the clients of this host look for one.
    fn embedded(&mut self, state_dir: &Path, endpoints: &mut Vec<String>) -> Option<PathBuf> {
        let within = self.one("store", |text| match text {
            "etcd" => Ok(false),
            "embedded" => Ok(true),
            _ => Err("not etcd or embedded".to_owned()),
        });
        let dir = self.optional("store-dir", path);
        if !within {
            return None;
        }
        if self.raw.setting("etcd-endpoints").source == Source::Default {
            *endpoints = vec![EMBEDDED.to_owned()];
        } else if endpoints.iter().any(|endpoint| loopback(endpoint).is_none()) {
            self.note("etcd-endpoints", "with --store=embedded http://127.0.0.1:PORT or http://[::1]:PORT");
        }
        Some(dir.unwrap_or_else(|| state_dir.join("store")))
    }

    fn list<T>(&mut self, name: &str, understand: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        let values = self.raw.setting(name).values;
        let mut understood = Vec::new();
        for text in values {
            match understand(&text) {
                Ok(value) => understood.push(value),
                Err(why) => {
                    self.errors.push(ConfigError::invalid(self.raw.written_as(name, &[text]), why));
                }
            }
        }
        understood
    }

    /// Networks, separated by commas or one a flag; host bits don't count.
    fn no_masquerade(&mut self) -> Vec<IpNetwork> {
        let lists = self.list("no-masq-cidrs", |text| {
            let net = |part: &str| {
                let part = part.trim();
                part.parse::<IpNetwork>()
                    .map_err(|_| format!("{part:?} is not a network, as in 192.0.2.0/24"))
            };
            text.split(',').filter(|part| !part.trim().is_empty()).map(net).collect::<Result<Vec<_>, _>>()
        });
        let nets: Vec<_> = lists.into_iter().flatten().collect();
        if nets.len() > EXEMPT_MOST {
            self.note("no-masq-cidrs", format!("more than {EXEMPT_MOST} networks"));
        }
        nets
    }

    fn iface(&mut self) -> IfaceWish {
        IfaceWish {
            names: self.list("iface", |text| text.parse()),
            regexes: self.list("iface-regex", expression),
            can_reach: self.optional("iface-can-reach", |text| {
                let address: IpAddr = text.parse().map_err(|_| "not an IP address".to_owned())?;
                others_reach(address)
            }),
            public: PublicAddrs {
                v4: self.public("public-ip", "IPv4"),
                v6: self.public("public-ipv6", "IPv6"),
            },
        }
    }

    /// An address of a family that other hosts can send to.
    fn public<A: FromStr + Into<IpAddr> + Copy>(&mut self, name: &str, family: &str) -> Option<A> {
        self.optional(name, |text| {
            let address: A = text.parse().map_err(|_| match text.parse::<IpAddr>() {
                Ok(IpAddr::V4(_)) => "an IPv4 address, which is --public-ip".to_owned(),
                Ok(IpAddr::V6(_)) => "an IPv6 address, which is --public-ipv6".to_owned(),
                Err(_) => format!("not an {family} address"),
            })?;
            others_reach(address)
        })
    }

    /// `0.0.0.0` means both families, as in Go: probes of an IPv6-only cluster come over IPv6.
    fn health(&mut self) -> Option<SocketAddr> {
        let ip = self.one("healthz-ip", |text| {
            text.parse::<IpAddr>().map(Some).map_err(|_| "not an IP address".to_owned())
        })?;
        let ip = if ip.is_unspecified() { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { ip };
        // Zero and below are off, as in flannel.
        let port = self.int("healthz-port", "a port", i64::MIN..=65_535);
        u16::try_from(port).ok().filter(|port| *port > 0).map(|port| SocketAddr::new(ip, port))
    }

    fn node_id(&mut self, host_name: &str) -> String {
        let flag = ["node-id", "NODE_NAME"].into_iter().find(|name| !self.raw.one(name).is_empty());
        let name = flag.map_or(host_name, |name| self.raw.one(name));
        let fits =
            !name.is_empty() && name.len() <= NODE_ID_MAX && name.chars().all(|c| c.is_ascii_graphic());
        if !fits {
            let place =
                flag.map_or_else(|| format!("host name {host_name:?}"), |name| self.raw.written(name));
            let why =
                format!("not a node name (1 to {NODE_ID_MAX} visible ASCII characters); --node-id sets one");
            self.errors.push(ConfigError::invalid(place, why));
        }
        name.to_owned()
    }

    /// The folder of flannel's subnet file is empty after a restart of the host, so the state file of that network is elsewhere.
    /// Any other subnet file has the state file beside it: daemons in several network namespaces of one machine have a subnet
    /// file each, and so a state file each.
    fn state_dir(&mut self, subnet_file: &Path) -> PathBuf {
        let usual = cli::lookup("subnet-file").is_some_and(|flag| Path::new(flag.default) == subnet_file);
        let default = || if usual { PathBuf::from(STATE_DIR) } else { folder(subnet_file) };
        self.optional("state-dir", path).unwrap_or_else(default)
    }

    /// Beside the subnet file, which is in memory: the daemon's repairs must not wait for a disk.
    fn record_file(&mut self, subnet_file: &Path) -> Option<PathBuf> {
        let file =
            self.optional("record-file", |text| if text == "off" { Ok(None) } else { path(text).map(Some) });
        file.unwrap_or_else(|| Some(folder(subnet_file).join("events")))
    }
}

/// Who makes the rules.
fn traffic_rules(text: &str) -> Result<Asked, String> {
    Ok(match text {
        "auto" => Asked::Auto,
        "nftables" => Asked::Nftables,
        "iptables" => Asked::Iptables,
        "iptables-nft" => Asked::Flavour(Flavour::Nft),
        "iptables-legacy" => Asked::Flavour(Flavour::Legacy),
        _ => return Err("not auto, nftables, iptables, iptables-nft or iptables-legacy".to_owned()),
    })
}

/// The regex library reports an error as a drawing of several lines; the last line is the reason.
fn expression(text: &str) -> Result<Regex, String> {
    let why = |error: regex_lite::Error| {
        let error = error.to_string();
        format!("not a regular expression: {}", error.lines().last().unwrap_or_default())
    };
    Regex::new(text).map_err(why)
}

/// The address, if packets from other hosts can arrive there.
fn others_reach<A: Into<IpAddr> + Copy>(address: A) -> Result<A, String> {
    let what = match address.into() {
        ip if ip.is_unspecified() => "no address",
        ip if ip.is_loopback() => "a loopback address",
        ip if ip.is_multicast() => "a multicast address",
        IpAddr::V4(ip) if ip.is_broadcast() => "the broadcast address",
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => "an IPv4 address in IPv6 clothes",
        _ => return Ok(address),
    };
    Err(format!("{what}, which no other host reaches"))
}

fn folder(file: &Path) -> PathBuf {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or_else(|| Path::new(".")).to_owned()
}

/// A path that can be given to the system and printed.
pub(super) fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() || text.contains(['\0', char::REPLACEMENT_CHARACTER]) {
        return Err("not a path (some characters, UTF-8)".to_owned());
    }
    Ok(PathBuf::from(text))
}
