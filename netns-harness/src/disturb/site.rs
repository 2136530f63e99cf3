//! The values of a disturbance's words for one host, family and peer; read with the host's own tools.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use ipnetwork::IpNetwork;
use serde_json::Value;

use crate::flannel::{Backend, subnet_env};
use crate::host::Host;
use crate::process::Program;
use crate::topology::{Family, UPLINK};

/// The place of a disturbance.
#[derive(Debug, Clone)]
pub struct Site {
    host: usize,
    family: Family,
    words: Vec<(&'static str, String)>,
}

impl Site {
    /// Words that have the same value for every family.
    pub(super) const HOST_WIDE: [&'static str; 1] = ["uplink"];

    /// Reads the `number`-th host's state with its own tools; `peer` selects one of its routes to peers,
    /// modulo their number.
    pub(super) fn see(
        host: &Host,
        number: usize,
        backend: Backend,
        family: Family,
        peer: usize,
    ) -> Result<Self> {
        let own =
            *host.addresses().iter().find(|a| family.has(a.ip())).context("no address of the family")?;
        let six = family == Family::V6;
        let mut words = vec![
            ("uplink", UPLINK.to_owned()),
            ("f", if six { "-6" } else { "-4" }.to_owned()),
            ("nft", if six { "ip6" } else { "ip" }.to_owned()),
            ("table", if six { "flannel-ipv6" } else { "flannel-ipv4" }.to_owned()),
            ("own", own.to_string()),
            ("other", other(own)?.to_string()),
            ("wrong", if six { "fd30::99" } else { "172.30.250.99" }.to_owned()),
        ];
        let tunnel = (backend == Backend::Vxlan).then(|| backend.link(family));
        words.extend(peer_words(host, family, tunnel, peer)?);
        if let Some(link) = tunnel {
            words.push(("link", link.to_owned()));
            words.push(("tunnel", own_end(host, family, link)?));
            words.push(("stray", format!("{}/{}", nobody(host, family, 251)?, if six { 128 } else { 32 })));
        }
        Ok(Self { host: number, family, words })
    }

    /// Which host.
    pub fn host(&self) -> usize {
        self.host
    }

    /// Which family.
    pub fn family(&self) -> Family {
        self.family
    }

    pub(super) fn knows(&self, word: &str) -> bool {
        self.word(word).is_some()
    }

    pub(super) fn word(&self, word: &str) -> Option<&str> {
        self.words.iter().find(|(name, _)| *name == word).map(|(_, means)| means.as_str())
    }

    /// A line with its words replaced.
    pub(super) fn line(&self, line: &str) -> String {
        self.words
            .iter()
            .fold(line.to_owned(), |line, (word, means)| line.replace(&format!("{{{word}}}"), means))
    }
}

/// The address to change to: a free one of the same network.
fn other(own: IpNetwork) -> Result<IpNetwork> {
    let ip = match own.ip() {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            IpAddr::from([a, b, if c == 77 { 0 } else { 77 }, d])
        }
        IpAddr::V6(ip) => {
            let mut words = ip.segments();
            words[6] = if words[6] == 0x77 { 0 } else { 0x77 };
            IpAddr::from(words)
        }
    };
    Ok(IpNetwork::new(ip, own.prefix())?)
}

/// One peer: its route, and for a tunnel its neighbour and FDB entry.
fn peer_words(
    host: &Host,
    family: Family,
    tunnel: Option<&str>,
    peer: usize,
) -> Result<Vec<(&'static str, String)>> {
    let f = if family == Family::V6 { "-6" } else { "-4" };
    let routes = list(host, &format!("ip -j {f} route show proto 67"))?;
    let Some(route) = (!routes.is_empty()).then(|| &routes[peer % routes.len()]) else {
        return Ok(Vec::new());
    };
    let (subnet, via, dev) = (text(route, "dst")?, text(route, "gateway")?, text(route, "dev")?);
    let six = family == Family::V6;
    let nobody = nobody(host, family, 250)?;
    let through_tunnel = Some(dev.as_str()) == tunnel;
    let wrong = if six { "fd30::99" } else { "172.30.250.99" };
    let mut words = vec![
        ("nobody", format!("{nobody}/{}", if six { 64 } else { 24 })),
        ("nobody_via", if through_tunnel { nobody.clone() } else { wrong.to_owned() }),
        ("onlink", if through_tunnel { "onlink" } else { "" }.to_owned()),
    ];
    if let Some(link) = tunnel.filter(|_| through_tunnel) {
        let neighbours = list(host, &format!("ip -j {f} neigh show to {via} dev {link} nud permanent"))?;
        let mac =
            text(neighbours.first().with_context(|| format!("{via} has no neighbour entry"))?, "lladdr")?;
        let entries = list(host, &format!("bridge -j fdb show dev {link}"))?;
        let entry = entries.iter().find(|it| text(it, "mac").is_ok_and(|it| it == mac));
        let public = text(entry.with_context(|| format!("{mac} has no forwarding entry"))?, "dst")?;
        words.extend([("mac", mac), ("public", public), ("gateway", via.clone())]);
        words.push(("nobody_gateway", nobody));
    }
    words.extend([("subnet", subnet), ("via", via), ("dev", dev)]);
    Ok(words)
}

/// The network address of a subnet of the cluster's network that no host leases: its third byte is above
/// [`Spec`](crate::Spec)'s last subnet for disturbances.
pub(super) fn nobody(host: &Host, family: Family, third: u8) -> Result<String> {
    if family == Family::V6 {
        return Ok(format!("fd42:0:0:fa{third:02x}::"));
    }
    let env = subnet_env(host).context("no subnet.env")?;
    let network = env.get("FLANNEL_NETWORK").context("no network")?;
    let first: Vec<&str> = network.split('.').take(2).collect();
    Ok(format!("{}.{third}.0", first.join(".")))
}

/// The tunnel device's own address.
fn own_end(host: &Host, family: Family, link: &str) -> Result<String> {
    let f = if family == Family::V6 { "-6" } else { "-4" };
    let links = list(host, &format!("ip -j {f} address show dev {link} scope global"))?;
    let address =
        links.iter().find_map(|it| it.get("addr_info")?.get(0)).context("no address on the tunnel")?;
    let length = address.get("prefixlen").and_then(Value::as_u64).context("no prefix length")?;
    Ok(format!("{}/{length}", text(address, "local")?))
}

fn list(host: &Host, line: &str) -> Result<Vec<Value>> {
    let mut words = line.split(' ');
    let output = host.exec(&Program::new(words.next().unwrap_or_default()).args(words))?;
    // Without any entry some versions print nothing.
    if output.trim().is_empty() { Ok(Vec::new()) } else { Ok(serde_json::from_str(&output)?) }
}

fn text(of: &Value, key: &str) -> Result<String> {
    match of.get(key).and_then(Value::as_str) {
        Some(text) => Ok(text.to_owned()),
        None => bail!("{of} has no {key}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_renumbered_twice_has_its_first_address_again() {
        for own in ["172.30.0.3/16", "fd30::3/64"] {
            let own: IpNetwork = own.parse().unwrap();
            let new = other(own).unwrap();
            assert!(new != own && new.network() == own.network());
            assert_eq!(other(new).unwrap(), own);
        }
    }

    #[test]
    fn words_in_braces_are_replaced_and_other_braces_stay() {
        let site = Site { host: 0, family: Family::V4, words: vec![("nft", "ip".to_owned())] };
        assert_eq!(
            site.line("nft add table {nft} x { flags dormant ; }"),
            "nft add table ip x { flags dormant ; }"
        );
    }
}
