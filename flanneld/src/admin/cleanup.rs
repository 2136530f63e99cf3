//! `flannelctl cleanup`: takes away what a daemon of this network left in the kernel, which is the difference to an
//! empty wish; puts settings of the host back that still are as the daemon made them; removes the drop-ins of `host-setup`.
//! Needs no store; a daemon that still runs would put everything back.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use backends::kernel::Kernel;
use backends::kernel::real::RealKernel;
use backends::{Facts, HostLink, KernelState, Object, Op, Owner, Plan, Sysctl, diff};
use ipnetwork::IpNetwork;
use subnet_lease::{Family, SubnetEnv};

use super::host_setup;
use crate::config::NodeConfig;
use crate::core::Changed;
use crate::exit::{Exit, Failure};
use crate::shell::state_file::StateFile;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Print what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Leave settings under /proc/sys as they are: another program may rely on them by now.
    #[arg(long)]
    keep_settings: bool,
    /// The host's root directory, where `host-setup` was given one.
    #[arg(long)]
    root: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments, config: &NodeConfig) -> Result<String, Failure> {
    let env = SubnetEnv::read(&config.subnet_file).ok();
    let owner = owner(config, env.as_ref());
    let mut kernel = RealKernel::open().map_err(|error| Failure::new(Exit::Permission, error))?;
    let own = kernel.own(&owner).map_err(|error| Failure::new(Exit::Permission, error))?;
    let mut plan = diff(&KernelState::default(), &own.state, &owner);
    let (before, left) = match arguments.keep_settings {
        true => (Vec::new(), String::new()),
        false => settings_before(config, &owner, &mut kernel)?,
    };
    plan.ops.extend(before);
    let root = arguments.root.clone().or_else(machines_root);
    let mut said = plan.to_string() + &left;
    said.extend(root.as_deref().map(host_setup::removals));
    if env.is_none() {
        let missing = "no network is known, so routes over the underlay (host-gw) were not looked for";
        writeln!(said, "# {}: not there; {missing}", config.subnet_file.display()).unwrap_or_default();
    }
    if arguments.dry_run {
        return Ok(said);
    }
    apply(&mut kernel, &plan)?;
    root.as_deref().map_or(Ok(()), host_setup::remove)?;
    if env.is_some() && fs::remove_file(&config.subnet_file).is_ok() {
        writeln!(said, "rm {}", config.subnet_file.display()).unwrap_or_default();
    }
    Ok(if said.is_empty() { "nothing of ours is here\n".to_owned() } else { said })
}

/// The files of `host-setup` are the machine's: who cleans up in another network namespace than the machine's first
/// process leaves them alone.
fn machines_root() -> Option<PathBuf> {
    let [ours, first] = ["self", "1"].map(|process| fs::read_link(format!("/proc/{process}/ns/net")).ok());
    (ours.is_some() && ours == first).then(|| PathBuf::from("/"))
}

/// Steps that put back what the daemon changed since the host started and nobody changed after it; and, as comments, those
/// that are not taken, since somebody's packets still depend on it.
fn settings_before(
    config: &NodeConfig,
    owner: &Owner,
    kernel: &mut RealKernel,
) -> Result<(Vec<Op>, String), Failure> {
    let changed = StateFile::changed_settings(&config.state_dir, &config.network);
    let links: Vec<_> = changed.iter().map(|c| c.link).collect();
    let owner = Owner { external: links.first().copied(), pods: links, ..owner.clone() };
    let denied = |error| Failure::new(Exit::Permission, error);
    let now = kernel.own(&owner).map_err(denied)?.state;
    let needed = still_forwarding(&kernel.host().map_err(denied)?, &owner.networks);
    let put = |c: &Changed| {
        let as_we_made_it = Object::Sysctl(c.link, c.name, c.ours);
        let have = now.get(&as_we_made_it.key()).filter(|have| **have == as_we_made_it)?;
        Some(Op::Put { want: Object::Sysctl(c.link, c.name, c.before), have: Some(have.clone()) })
    };
    let (stay, back): (Vec<Op>, Vec<Op>) =
        changed.iter().filter_map(put).partition(|op| needed.is_some() && is_of_forwarding(op));
    let why = needed.unwrap_or_default();
    let stay = stay.iter().map(|op| format!("# {op}: not done, since {why}; again once that is gone\n"));
    Ok((back, stay.collect()))
}

/// Whose packets this host still forwards, in words: the pods do not end with our daemon, and others may forward as well.
fn still_forwarding(facts: &Facts, networks: &[IpNetwork]) -> Option<String> {
    let is_bridge = |link: &HostLink| link.kind == "bridge";
    let has_ports = |link: &&HostLink| facts.links.iter().any(|port| port.master == link.index);
    let bridge = facts.links.iter().filter(|link| is_bridge(link)).find(has_ports);
    let beside = || {
        let within = facts.links_within(networks).into_iter();
        within.filter_map(|name| facts.link_named(name)).find(|link| !is_bridge(link))
    };
    let has_ports = bridge.map(|link| format!("the bridge {} has ports", link.name));
    has_ports.or_else(|| Some(format!("{} has an address of the network", beside()?.name)))
}

/// Whether it ends forwarding, or what a forwarding host needs to keep its default route.
fn is_of_forwarding(op: &Op) -> bool {
    matches!(op.object(), Object::Sysctl(_, Sysctl::HostForward(_) | Sysctl::Forward | Sysctl::RouterRa, _))
}

/// Ours is what carries our tag or our protocol number; a name alone may be a running flannel's.
fn owner(config: &NodeConfig, env: Option<&SubnetEnv>) -> Owner {
    let networks = env.into_iter().flat_map(|env| Family::ALL.into_iter().filter_map(|f| env.network(f)));
    Owner {
        network: config.network.clone(),
        networks: networks.collect(),
        names: Vec::new(),
        external: None,
        pools: Vec::new(),
        pods: Vec::new(),
        first_pass: false,
    }
}

fn apply(kernel: &mut RealKernel, plan: &Plan) -> Result<(), Failure> {
    let results = kernel.apply(&plan.ops);
    let failed = plan.ops.iter().zip(results).filter_map(|(op, r)| Some(format!("{op}: {}", r.err()?)));
    let failed: Vec<_> = failed.collect();
    if failed.is_empty() { Ok(()) } else { Err(Failure::new(Exit::Failed, failed.join("\n"))) }
}

#[cfg(test)]
mod tests {
    use backends::HostAddress;

    use super::*;

    fn link(index: u32, name: &str, kind: &str, master: u32) -> HostLink {
        HostLink {
            index,
            name: name.parse().unwrap(),
            kind: kind.to_owned(),
            mtu: 1500,
            up: true,
            carrier: true,
            loopback: false,
            point_to_point: false,
            master,
            tunnel: None,
        }
    }

    #[test]
    fn a_host_forwards_for_a_bridge_with_ports_and_for_links_with_our_addresses() {
        let (eth0, cni0) = (link(2, "eth0", "", 0), link(3, "cni0", "bridge", 0));
        let (port, alone) = (link(4, "veth1", "veth", 3), link(4, "veth1", "veth", 0));
        let address = |link, net: &str| HostAddress {
            link,
            net: net.parse().unwrap(),
            peer: None,
            global: true,
            permanent: true,
            temporary: false,
            deprecated: false,
            tentative: false,
        };
        let ours = "10.42.0.0/16".parse().unwrap();
        for (links, addresses, expected) in [
            (vec![&eth0, &cni0, &port], vec![], Some("cni0 has ports")),
            (vec![&eth0, &cni0], vec![address(3, "10.42.7.1/24")], None),
            (vec![&eth0, &alone], vec![address(4, "10.42.7.1/32")], Some("veth1 has an address")),
            (vec![&eth0, &alone], vec![address(4, "192.0.2.1/32")], None),
        ] {
            let links = links.into_iter().cloned().collect();
            let facts = Facts { links, addresses, ..Facts::default() };
            let said = still_forwarding(&facts, &[ours]);
            assert_eq!(said.is_some(), expected.is_some(), "{said:?}");
            assert!(said.unwrap_or_default().contains(expected.unwrap_or_default()));
        }
    }
}
