//! `flannelctl cleanup`: removes what a daemon of this network left in the kernel, which is the difference to an empty wish;
//! puts back host settings that are still as the daemon made them; removes the files of `host-setup`.
//!
//! Beside a daemon that runs it is refused: that one would put everything back, and packets would be lost meanwhile.

use std::fs;
use std::path::PathBuf;

use backends::kernel::Kernel;
use backends::kernel::real::RealKernel;
use backends::{Facts, HostLink, KernelState, Object, Op, Owner, Plan, Sysctl, diff};
use ipnetwork::IpNetwork;
use serde_json::json;
use subnet_lease::{Family, SubnetEnv};

use super::lease::{OwnLease, own_lease};
use super::{Answer, host_setup};
use crate::config::NodeConfig;
use crate::core::Changed;
use crate::exit::{Exit, Failure};
use crate::serve::socket;
use crate::shell::block_on;
use crate::shell::rival::{self, Rival};
use crate::shell::state_file::StateFile;

#[derive(Debug, Default, clap::Args)]
pub(super) struct Arguments {
    /// Print what would be done. Nothing is changed.
    #[arg(long)]
    dry_run: bool,
    /// Leave settings under /proc/sys as they are: another program may rely on them by now.
    #[arg(long)]
    keep_settings: bool,
    /// Also end this node's lease in the store, so that another host may have its subnets at once. A reservation stays.
    #[arg(long)]
    release_lease: bool,
    /// The host's root directory, where `host-setup` was given one.
    #[arg(long)]
    root: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments, config: &NodeConfig) -> Result<Answer, Failure> {
    let rival = at_work(config);
    if let Some(rival) = rival.as_ref().filter(|_| !arguments.dry_run) {
        return Err(beside(rival));
    }
    let env = SubnetEnv::read(&config.subnet_file).ok();
    let leased = env.as_ref().and_then(SubnetEnv::leased);
    // Before anything is removed: a store that does not answer leaves the host as it is.
    let lease = if arguments.release_lease { Some(own_lease(config, leased)?) } else { None };
    let owner = owner(config, env.as_ref());
    let mut kernel = RealKernel::open().map_err(|error| Failure::new(Exit::Permission, error))?;
    let own = kernel.own(&owner).map_err(|error| Failure::new(Exit::Permission, error))?;
    let mut plan = diff(&KernelState::default(), &own.state, &owner);
    let (before, left) = match arguments.keep_settings {
        true => (Vec::new(), Vec::new()),
        false => settings_before(config, &owner, &mut kernel)?,
    };
    plan.ops.extend(before);
    let root = arguments.root.clone().or_else(machines_root);
    let files = root.as_deref().map(host_setup::ours).unwrap_or_default();
    let mut steps: Vec<String> = plan.ops.iter().map(ToString::to_string).collect();
    steps.extend(files.iter().map(|path| format!("rm {}", path.display())));
    steps.extend(env.iter().map(|_| format!("rm {}", config.subnet_file.display())));
    steps.extend(lease.iter().filter_map(OwnLease::step));
    let mut notes = left;
    notes.extend(lease.iter().filter_map(OwnLease::note));
    notes.extend(rival.map(|rival| format!("not possible now: {}", beside(&rival).message)));
    if env.is_none() {
        let missing = "no network is known, so routes over the underlay (host-gw) were not looked for";
        notes.push(format!("{}: not there; {missing}", config.subnet_file.display()));
    }
    if !arguments.dry_run {
        apply(&mut kernel, &plan)?;
        host_setup::remove(&files)?;
        if env.is_some() {
            fs::remove_file(&config.subnet_file).map_err(|error| {
                Failure::new(Exit::Failed, format!("{}: {error}", config.subnet_file.display()))
            })?;
        }
        lease.map_or(Ok(()), |lease| lease.end(config))?;
    }
    Ok(answer(arguments.dry_run, &steps, &notes))
}

/// The same lines for a dry run and a real one.
fn answer(dry_run: bool, steps: &[String], notes: &[String]) -> Answer {
    let steps_text = steps.iter().map(|step| format!("{step}\n"));
    let text: String = steps_text.chain(notes.iter().map(|note| format!("# {note}\n"))).collect();
    let answer = Answer::new(json!({ "dry_run": dry_run, "steps": steps, "notes": notes }));
    answer.text(if text.is_empty() { "nothing of ours is here\n".to_owned() } else { text })
}

/// The daemon of this network that runs here: ours, or one whose kernel objects would be taken for what ours left.
fn at_work(config: &NodeConfig) -> Option<Rival> {
    let held =
        block_on(async { Ok(socket::holder(&config.daemons, &config.core.network).await) }).ok().flatten();
    held.map(|pid| Rival::of_ours(pid, &config.core.network))
        .or_else(|| rival::find(&config.core.network, &config.daemons))
}

fn beside(rival: &Rival) -> Failure {
    let Rival { stop, .. } = rival;
    let why = format!(
        "{rival} runs on this host and would put everything back: stop it first ({stop}) and run cleanup again; --dry-run prints \
         what would be removed"
    );
    Failure::new(Exit::Rival, why)
}

/// The files of `host-setup` belong to the machine. In a network namespace other than that of the machine's first process
/// they are left alone.
fn machines_root() -> Option<PathBuf> {
    let [ours, first] = ["self", "1"].map(|process| fs::read_link(format!("/proc/{process}/ns/net")).ok());
    (ours.is_some() && ours == first).then(|| PathBuf::from("/"))
}

/// Steps that put back what the daemon changed since boot and nobody changed after it; and notes on those that are left out
/// because packets still depend on them.
fn settings_before(
    config: &NodeConfig,
    owner: &Owner,
    kernel: &mut RealKernel,
) -> Result<(Vec<Op>, Vec<String>), Failure> {
    let changed = StateFile::changed_settings(&config.state_dir, &config.core.network);
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
    let stay =
        stay.iter().map(|op| format!("{op}: not done, since {why}; run cleanup again once that is gone"));
    Ok((back, stay.collect()))
}

/// What this host still forwards for, in words: pods outlive our daemon, and other programs may forward as well.
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

/// Whether the step ends forwarding, or removes what a forwarding host needs to keep its default route.
fn is_of_forwarding(op: &Op) -> bool {
    matches!(op.object(), Object::Sysctl(_, Sysctl::HostForward(_) | Sysctl::Forward | Sysctl::RouterRa, _))
}

/// Ours is what carries our tag or our protocol number. A name alone may be another flannel's.
fn owner(config: &NodeConfig, env: Option<&SubnetEnv>) -> Owner {
    let networks = env.into_iter().flat_map(|env| Family::ALL.into_iter().filter_map(|f| env.network(f)));
    Owner {
        network: config.core.network.clone(),
        networks: networks.collect(),
        names: Vec::new(),
        external: None,
        pools: Vec::new(),
        pods: Vec::new(),
        routers: Vec::new(),
        rules: config.core.rule_names,
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
        HostLink { master, ..HostLink::plain(index, name.parse().unwrap(), kind) }
    }

    #[test]
    fn a_host_forwards_for_a_bridge_with_ports_and_for_links_with_our_addresses() {
        let (eth0, cni0) = (link(2, "eth0", "", 0), link(3, "cni0", "bridge", 0));
        let (port, alone) = (link(4, "veth1", "veth", 3), link(4, "veth1", "veth", 0));
        let address = |link, net: &str| HostAddress::plain(link, net.parse().unwrap());
        let ours = "10.42.0.0/16".parse().unwrap();
        for (links, addresses, expected) in [
            (vec![&eth0, &cni0, &port], vec![], Some("cni0 has ports")),
            (vec![&eth0, &cni0], vec![address(3, "10.42.7.1/24")], None),
            (vec![&eth0, &alone], vec![address(4, "10.42.7.1/32")], Some("veth1 has an address")),
            (vec![&eth0, &alone], vec![address(4, "192.0.2.1/32")], None),
        ] {
            let links = links.into_iter().cloned().collect();
            let facts = Facts { links, addresses, ..Facts::default() };
            let output = still_forwarding(&facts, &[ours]);
            assert_eq!(output.is_some(), expected.is_some(), "{output:?}");
            assert!(output.unwrap_or_default().contains(expected.unwrap_or_default()));
        }
    }

    #[test]
    fn a_dry_run_and_a_real_one_print_the_same_lines() {
        let (steps, notes) = (["ip link delete flannel.1".to_owned()], ["a note".to_owned()]);
        let text = |dry_run| answer(dry_run, &steps, &notes).print(super::super::Form::Text, None);
        assert_eq!(text(true), "ip link delete flannel.1\n# a note\n");
        assert_eq!(text(true), text(false));
        assert_eq!(answer(true, &[], &[]).print(super::super::Form::Text, None), "nothing of ours is here\n");
    }

    #[test]
    fn beside_a_daemon_the_refusal_names_the_process_and_what_to_do() {
        let network = subnet_lease::NetworkId::new("/a");
        let Failure { exit, message } = beside(&Rival::of_ours(Some(4711), &network));
        assert_eq!(exit, Exit::Rival);
        for part in ["flanneld of network /a (pid 4711)", "kill 4711", "--dry-run"] {
            assert!(message.contains(part), "{part} is not in: {message}");
        }
    }
}
