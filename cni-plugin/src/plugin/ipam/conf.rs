//! The `ipam` section and what else asks for addresses: `runtimeConfig`, `args` and `CNI_ARGS`.

use std::net::IpAddr;
use std::path::PathBuf;

use backends::local::pool_stamp;

use super::range::{Range, RangeSet};
use super::{HostLocal, Place};
use crate::contract::json::{Json, Object, mistyped, wrong};
use crate::contract::{Call, CniArgs, Code, Dns, During, Failure, Route, Version};
use crate::sys::small_file;

/// Where host-local keeps its folders.
const DATA_DIR: &str = "/var/lib/cni/networks";

impl HostLocal {
    /// Reads an `ipam` section of the call's configuration.
    pub(crate) fn read(call: &Call, ipam: &Object) -> Result<Self, Failure> {
        let sets = sets(ipam, call.conf.object("runtimeConfig")?)?;
        check(&sets, call.version)?;
        let routes = ipam.objects("routes")?.into_iter().map(Route::parse).collect::<Result<_, _>>()?;
        Ok(Self {
            place: place(call),
            network: call.network.clone(),
            sets,
            requested: requested(call)?,
            routes,
            dns: ipam.text("resolvConf")?.map_or_else(|| Ok(Dns::default()), resolv_conf)?,
        })
    }
}

/// Where a network's reservations are. Also found when the rest of the section makes no sense, for DEL.
pub(crate) fn place(call: &Call) -> Place {
    let ipam = call.conf.object("ipam").ok().flatten();
    let folder =
        |key, default| PathBuf::from(ipam.and_then(|ipam| ipam.text(key).ok().flatten()).unwrap_or(default));
    Place {
        folder: folder("dataDir", DATA_DIR).join(&call.network),
        indexes: folder("indexDir", pool_stamp::INDEXES),
    }
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
    let form = || mistyped(key, "a list of lists of objects that have a \"subnet\"");
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
fn requested(call: &Call) -> Result<Vec<IpAddr>, Failure> {
    let conf = &call.conf;
    let mut all = Vec::from_iter(CniArgs::parse(&call.args)?.ip);
    let metadata = conf.object("args")?.map_or(Ok(None), |args| args.object("cni"))?;
    for list in [metadata, conf.object("runtimeConfig")?].into_iter().flatten() {
        for text in list.texts("ips")? {
            let ip = crate::contract::address(&text)
                .ok_or_else(|| wrong("ips", "a list of addresses").details(&text))?;
            if !all.contains(&ip) {
                all.push(ip);
            }
        }
    }
    Ok(all)
}

fn resolv_conf(path: &str) -> Result<Dns, Failure> {
    let text = small_file::read_whole(path.as_ref());
    let text = text.during(Code::Io, || format!("cannot read resolvConf {path}"))?;
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
