//! The `ipam` section and what else asks for addresses: `runtimeConfig`, `args` and `CNI_ARGS`.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use super::Ipam;
use super::range::{Range, RangeSet};
use crate::cni::{Call, CniArgs, Code, Dns, During, Failure, Route, Version};
use crate::json::{Json, Object, wrong};

/// Where host-local keeps its folders.
const DATA_DIR: &str = "/var/lib/cni/networks";

impl Ipam {
    /// Reads the `ipam` section of a configuration (the call's own, or the one made for a delegate); none when there
    /// is none.
    pub(crate) fn read(call: &Call, conf: &Object) -> Result<Option<Self>, Failure> {
        let Some(ipam) = conf.object("ipam")? else { return Ok(None) };
        let Some(kind) = ipam.text("type")? else { return Ok(None) };
        if kind != "host-local" {
            return Err(Failure::new(Code::Unsupported, format!("ipam.type {kind:?} is not supported"))
                .details(
                    "addresses are managed in this process, as host-local does it; no other program is run",
                ));
        }
        let sets = sets(ipam, conf.object("runtimeConfig")?)?;
        check(&sets, call.version)?;
        let routes = ipam.objects("routes")?.into_iter().map(Route::parse).collect::<Result<_, _>>()?;
        Ok(Some(Self {
            folder: folder(call, conf),
            network: call.network.clone(),
            sets,
            requested: requested(call, conf)?,
            routes,
            dns: ipam.text("resolvConf")?.map_or_else(|| Ok(Dns::default()), resolv_conf)?,
        }))
    }
}

/// The folder of a network's reservations. Also found when the rest of the section makes no sense, for DEL.
/// A stored configuration names the network it was made for, whatever that is called today.
pub(crate) fn folder(call: &Call, conf: &Object) -> PathBuf {
    let ipam = conf.object("ipam").ok().flatten();
    let root = ipam.and_then(|ipam| ipam.text("dataDir").ok().flatten()).unwrap_or(DATA_DIR);
    let network = conf.text("name").ok().flatten().unwrap_or(&call.network);
    PathBuf::from(root).join(network)
}

/// No `ipam` section where one is needed.
pub(super) fn missing() -> Failure {
    Failure::new(Code::Config, "the network configuration has no \"ipam\" of type host-local")
}

/// Those of the runtime first, then the single range of old, then the list.
fn sets(ipam: &Object, runtime: Option<&Object>) -> Result<Vec<RangeSet>, Failure> {
    let mut sets = runtime.map_or_else(|| Ok(vec![]), |r| listed(r, "ipRanges"))?;
    if let Some(range) = Range::parse(ipam)? {
        sets.push(RangeSet::new(vec![range])?);
    }
    sets.extend(listed(ipam, "ranges")?);
    Ok(sets)
}

fn listed(from: &Object, key: &str) -> Result<Vec<RangeSet>, Failure> {
    let form = || wrong(key, "a list of lists of objects that have a \"subnet\"");
    let range = |json: &Json| Range::parse(json.as_object().ok_or_else(form)?)?.ok_or_else(form);
    let set = |json: &Json| match json {
        Json::List(ranges) => RangeSet::new(ranges.iter().map(range).collect::<Result<_, _>>()?),
        _ => Err(form()),
    };
    from.list(key)?.iter().map(set).collect()
}

fn check(sets: &[RangeSet], version: Version) -> Result<(), Failure> {
    let bad = |msg: String| Err(Failure::new(Code::Config, format!("ipam: {msg}")));
    if sets.is_empty() {
        return bad("no range is given".into());
    }
    for (n, set) in sets.iter().enumerate() {
        if let Some(other) = sets[..n].iter().find(|other| other.overlaps(set)) {
            return bad(format!("range sets {} and {} overlap", other.name(), set.name()));
        }
        if version < Version::V0_3_0 && sets[..n].iter().any(|other| other.is_ipv4() == set.is_ipv4()) {
            return bad(format!(
                "more than one address of a family needs cniVersion 0.3.0, and this is {}",
                version.as_str()
            ));
        }
    }
    Ok(())
}

/// Every address that was asked for by name, wherever.
fn requested(call: &Call, conf: &Object) -> Result<Vec<IpAddr>, Failure> {
    let mut all = Vec::from_iter(CniArgs::parse(&call.args)?.ip);
    let metadata = conf.object("args")?.map_or(Ok(None), |args| args.object("cni"))?;
    for list in [metadata, conf.object("runtimeConfig")?].into_iter().flatten() {
        for text in list.texts("ips")? {
            let ip = crate::cni::address(&text)
                .ok_or_else(|| wrong("ips", "a list of addresses").details(&text))?;
            if !all.contains(&ip) {
                all.push(ip);
            }
        }
    }
    Ok(all)
}

fn resolv_conf(path: &str) -> Result<Dns, Failure> {
    let text = fs::read_to_string(path).during(Code::Io, || format!("cannot read resolvConf {path}"))?;
    Ok(parse_resolv_conf(&text))
}

fn parse_resolv_conf(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines().filter(|line| !line.starts_with(['#', ';'])) {
        let mut words = line.split_whitespace();
        let (key, mut rest) = (words.next(), words.map(str::to_owned));
        match key {
            Some("nameserver") => dns.nameservers.extend(rest.next()),
            Some("domain") => dns.domain = rest.next().unwrap_or_default(),
            Some("search") => dns.search.extend(rest),
            Some("options") => dns.options.extend(rest),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolv_conf_becomes_dns() {
        let dns = parse_resolv_conf(
            "# x\nnameserver 10.0.0.1\nsearch a b\noptions ndots:5\ndomain c\nsortlist 1\n",
        );
        assert_eq!(dns.nameservers, ["10.0.0.1"]);
        assert_eq!((dns.search.len(), dns.options.len(), dns.domain.as_str()), (2, 1, "c"));
    }
}
