//! `flannelctl network`: the cluster's net-conf.

use std::io::Read;
use std::path::{Path, PathBuf};

use backends::kernel::Kernel;
use backends::kernel::real::RealKernel;
use clap::Subcommand;
use serde_json::{Value, json};
use subnet_lease::{Lease, NetworkConfig, NetworkPool, StoreConfig, SubnetEnv, open};

use super::Answer;
use crate::config::NodeConfig;
use crate::exit::{Exit, Failure};
use crate::host::iface;
use crate::host::outside::{self, Kind, Overlap};
use crate::shell::block_on;

/// No net-conf is larger, in bytes; etcd takes 1.5 MiB.
const LARGEST: u64 = 1 << 20;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Print the net-conf as the store has it.
    Show,
    /// Check a net-conf and write it to the store.
    Set {
        /// JSON file; - for standard input.
        file: PathBuf,
        /// Write it although it overlaps networks of this host; not where it would cut this host off.
        #[arg(long)]
        force: bool,
    },
    /// Check a net-conf, also against the addresses of this host, and print how much room it has. Nothing is written.
    Check {
        /// JSON file; - for standard input.
        file: PathBuf,
        /// Only warn where it overlaps networks of this host; not where it would cut this host off.
        #[arg(long)]
        force: bool,
    },
}

pub(super) fn run(verb: &Verb, config: &NodeConfig) -> Result<Answer, Failure> {
    match verb {
        Verb::Check { file, force } => {
            let network = check(&read(file)?)?;
            fits_host(&network, config, *force)?;
            Ok(Answer::new(room_as_json(&network)).text(room(&network)))
        }
        Verb::Show => show(&config.store),
        Verb::Set { file, force } => {
            let json = read(file)?;
            let network = check(&json)?;
            fits_host(&network, config, *force)?;
            set(&config.store, &json, &network)
        }
    }
}

fn show(config: &StoreConfig) -> Result<Answer, Failure> {
    let store = open(config)?;
    let stored = block_on(async { Ok(store.get_config().await?) })?;
    let stored = stored.ok_or_else(|| {
        Failure::new(
            Exit::Failed,
            format!("{}/config: there is none; flannelctl network set FILE writes one", store.name()),
        )
    })?;
    // Standard output has the JSON alone, for programs. A wrong net-conf is shown as well, with what is wrong with it.
    match check(&stored.json) {
        Ok(network) => eprint!("{}", room(&network)),
        Err(failure) => eprintln!("{failure}"),
    }
    let text = String::from_utf8_lossy(&stored.json);
    let json = serde_json::from_slice(&stored.json).unwrap_or_else(|_| Value::from(text.as_ref()));
    Ok(Answer::new(json).text(format!("{}\n", text.trim_end())))
}

fn set(config: &StoreConfig, json: &[u8], network: &NetworkConfig) -> Result<Answer, Failure> {
    let store = open(config)?;
    let key = format!("{}/config", store.name());
    let revision = block_on(async {
        let seen = store.get_config().await?;
        let current = seen.as_ref().and_then(|seen| NetworkConfig::parse(&seen.json).ok());
        let leases = store.list().await?.leases;
        // A key that is no lease of the present network belongs to no host.
        let held = leases.iter().map(|(lease, _)| lease);
        fits(network, held.filter(|lease| current.as_ref().is_none_or(|(old, _)| holds(old, lease))))?;
        if seen.as_ref().is_some_and(|seen| seen.json == json) {
            return Ok(None);
        }
        let version = store.put_config(json, seen.as_ref().map(|seen| &seen.version)).await?;
        Ok(Some(version.to_string()))
    })?;
    let mut json = room_as_json(network);
    json["key"] = Value::from(key.as_str());
    json["revision"] = Value::from(revision.clone());
    let what =
        revision.map_or_else(|| "unchanged".to_owned(), |revision| format!("written (revision {revision})"));
    Ok(Answer::new(json).text(format!("{key}: {what}\n{}", room(network))))
}

/// Compares the network with this host: by the rules of the daemon, and with its choice of the interface.
fn fits_host(network: &NetworkConfig, config: &NodeConfig, force: bool) -> Result<(), Failure> {
    let facts = match RealKernel::open().and_then(|mut kernel| kernel.host()) {
        Ok(facts) => facts,
        Err(error) => {
            eprintln!("flannelctl: the network is not compared with this host, which can't be read: {error}");
            return Ok(());
        }
    };
    let families: Vec<_> = network.pools().map(|pool| pool.family()).collect();
    let external = iface::choose(&facts, &config.core.iface, &families).ok().map(|choice| choice.external);
    let guarded = outside::guarded(&facts, external.as_ref(), &config.core.store_addresses);
    let had = SubnetEnv::read(&config.subnet_file).ok().as_ref().and_then(SubnetEnv::leased);
    judge(&outside::overlaps(network, &facts, &guarded, had), force)
}

/// What cuts this host off is refused in any case, and what may be on purpose unless it is forced.
fn judge(overlaps: &[Overlap], force: bool) -> Result<(), Failure> {
    let (refused, warned): (Vec<_>, Vec<_>) = overlaps.iter().partition(|o| o.kind == Kind::Vital || !force);
    for overlap in warned {
        eprintln!("flannelctl: {}", overlap.sentence());
    }
    if refused.is_empty() {
        return Ok(());
    }
    let way_out = if refused.iter().any(|overlap| overlap.kind == Kind::Vital) {
        "this host would be cut off: choose a network apart from the hosts'"
    } else {
        "choose another network, or take it nevertheless with --force"
    };
    let lines: Vec<_> = refused.iter().map(|overlap| overlap.sentence()).collect();
    Err(Failure::new(Exit::Invalid, format!("{}\n{way_out}", lines.join("\n"))))
}

/// Hosts whose leases are outside the new network would be cut off, at their next start at the latest.
fn fits<'a>(network: &NetworkConfig, leases: impl Iterator<Item = &'a Lease>) -> Result<(), Failure> {
    const NAMED: usize = 10;
    let (held, outside): (Vec<_>, Vec<_>) = leases.partition(|lease| holds(network, lease));
    if network.room() < held.len() as u128 {
        let why = format!("{} leases are held, and this network has room for {}", held.len(), network.room());
        return Err(Failure::new(Exit::Failed, why));
    }
    if outside.is_empty() {
        return Ok(());
    }
    let name = |lease: &&Lease| {
        let node = lease.node.as_deref().map(|node| format!(" ({node:?})")).unwrap_or_default();
        format!("  {}{node}\n", lease.subnets)
    };
    let more = outside.len().saturating_sub(NAMED);
    let more = if more > 0 { format!("  and {more} more\n") } else { String::new() };
    let names: String = outside.iter().take(NAMED).map(name).collect();
    let why = format!("these leases would be outside of the network; it is not written:\n{names}{more}");
    Err(Failure::new(Exit::Failed, why.trim_end()))
}

fn holds(network: &NetworkConfig, lease: &Lease) -> bool {
    lease.subnets.iter().all(|net| network.pools().any(|pool| pool.could_lease(net)))
}

fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    let wrong = |why: String| Failure::new(Exit::Invalid, format!("{}: {why}", file.display()));
    let mut json = Vec::new();
    let read = if file == Path::new("-") {
        std::io::stdin().lock().take(LARGEST + 1).read_to_end(&mut json)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut json))
    };
    read.map_err(|error| wrong(format!("can't be read: {error}")))?;
    if json.len() as u64 > LARGEST {
        return Err(wrong("larger than 1 MiB".to_owned()));
    }
    Ok(json.trim_ascii().to_vec())
}

fn check(json: &[u8]) -> Result<NetworkConfig, Failure> {
    let lines = |errors: Vec<_>| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    let (network, warnings) =
        NetworkConfig::parse(json).map_err(|e| Failure::new(Exit::Invalid, lines(e)))?;
    for warning in warnings {
        eprintln!("flannelctl: {warning}");
    }
    Ok(network)
}

/// The same as [`room`]; what does not fit 64 bits is as much as does.
fn room_as_json(network: &NetworkConfig) -> Value {
    let number = |count: u128| u64::try_from(count).unwrap_or(u64::MAX);
    let pool = |pool: NetworkPool| {
        json!({
            "network": pool.network.to_string(),
            "subnets": number(pool.room()),
            "subnet_length": pool.subnet_len,
            "addresses": number(addresses(&pool)),
        })
    };
    json!({
        "pools": network.pools().map(pool).collect::<Vec<_>>(),
        "hosts": number(network.room()),
        "backend": network.backend.name(),
    })
}

/// How many hosts a network has room for, and how many addresses each of them has.
fn room(network: &NetworkConfig) -> String {
    let lines: String = network.pools().map(|pool| pool_room(&pool)).collect();
    format!("{lines}room for {} hosts, backend {}\n", large(network.room()), network.backend.name())
}

fn pool_room(pool: &NetworkPool) -> String {
    let (room, length) = (large(pool.room()), pool.subnet_len);
    format!("{}: {room} subnets (/{length}) of {} addresses\n", pool.network, large(addresses(pool)))
}

/// Addresses of one subnet. The first address is the tunnel's; the last IPv4 address is for broadcasts.
fn addresses(pool: &NetworkPool) -> u128 {
    let bits = u32::from(pool.family().bits() - pool.subnet_len);
    1_u128.checked_shl(bits).unwrap_or(u128::MAX) - if pool.network.is_ipv4() { 2 } else { 1 }
}

/// A count that a person can read: beyond a million the nearest power of two.
fn large(count: u128) -> String {
    if count <= 1_000_000 { count.to_string() } else { format!("about 2^{}", (count + count / 2).ilog2()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(json: &str) -> Result<String, Failure> {
        check(json.as_bytes()).map(|network| room(&network))
    }

    #[test]
    fn a_network_s_room_is_hosts_times_addresses() {
        let dual = r#"{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fc00::/48", "Backend": {"Type": "vxlan"}}"#;
        let expected = "10.5.0.0/16: 255 subnets (/24) of 254 addresses\n\
                        fc00::/48: 65535 subnets (/64) of about 2^64 addresses\n\
                        room for 255 hosts, backend vxlan\n";
        assert_eq!(output(dual).as_deref(), Ok(expected));
    }

    #[test]
    fn every_fault_of_a_net_conf_is_a_line_and_the_code_is_that_of_a_wrong_setting() {
        let refused = output(
            r#"{"Network": "10.5.0.0/16", "SubnetLen": 31, "SubnetMin": "10.6.0.0", "Backend": {"Type": "vxlan"}}"#,
        );
        let Failure { exit, message } = refused.unwrap_err();
        assert_eq!(exit, Exit::Invalid);
        assert!(message.lines().count() >= 1 && message.contains("SubnetLen"), "{message}");
    }

    #[test]
    fn what_cuts_the_host_off_is_refused_in_any_case_and_what_is_doubtful_unless_forced() {
        let overlap = |with: &str, kind| Overlap {
            network: "10.0.0.0/8".parse().unwrap(),
            with: with.parse().unwrap(),
            what: "something".to_owned(),
            kind,
        };
        let (fatal, doubtful) =
            (overlap("10.0.0.1/32", Kind::Vital), overlap("10.9.0.0/16", Kind::Connected));
        let both = [fatal, doubtful.clone()];
        assert_eq!(judge(&[], false), Ok(()));
        assert_eq!(judge(std::slice::from_ref(&doubtful), true), Ok(()));
        let refused = judge(&[doubtful], false).unwrap_err();
        assert_eq!(refused.exit, Exit::Invalid);
        assert!(refused.message.contains("10.9.0.0/16") && refused.message.contains("--force"), "{refused}");
        for force in [true, false] {
            let refused = judge(&both, force).unwrap_err();
            assert!(
                refused.message.contains("10.0.0.1") && !refused.message.contains("--force"),
                "{refused}"
            );
        }
    }

    #[test]
    fn large_counts_are_powers_of_two() {
        assert_eq!(large(1_000_000), "1000000");
        assert_eq!(
            (large(u128::from(u64::MAX)), large(1 << 21)),
            ("about 2^64".to_owned(), "about 2^21".to_owned())
        );
    }
}
