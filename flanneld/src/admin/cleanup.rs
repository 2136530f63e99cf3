//! `flannelctl cleanup`: takes away what a daemon of this network left in the kernel, which is the difference to an
//! empty wish; puts settings of the host back that still are as the daemon made them; removes the drop-ins of `host-setup`.
//! Needs no store; a daemon that still runs would put everything back.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use backends::kernel::Kernel;
use backends::kernel::real::RealKernel;
use backends::{KernelState, Object, Op, Owner, Plan, diff};
use subnet_lease::{Family, SubnetEnv};

use super::host_setup;
use crate::config::NodeConfig;
use crate::exit::{Exit, Failure};
use crate::node::Changed;
use crate::state_file::StateFile;

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
    if !arguments.keep_settings {
        plan.ops.extend(settings_before(config, &owner, &mut kernel)?);
    }
    let root = arguments.root.clone().or_else(machines_root);
    let mut said = plan.to_string();
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

/// Steps that put back what the daemon changed since the host started and nobody changed after it.
fn settings_before(config: &NodeConfig, owner: &Owner, kernel: &mut RealKernel) -> Result<Vec<Op>, Failure> {
    let changed = StateFile::changed_settings(&config.state_dir, &config.network);
    let links: Vec<_> = changed.iter().map(|c| c.link).collect();
    let owner = Owner { external: links.first().copied(), pods: links, ..owner.clone() };
    let now = kernel.own(&owner).map_err(|error| Failure::new(Exit::Permission, error))?.state;
    let put = |c: &Changed| {
        let as_we_made_it = Object::Sysctl(c.link, c.name, c.ours);
        let have = now.get(&as_we_made_it.key()).filter(|have| **have == as_we_made_it)?;
        Some(Op::Put { want: Object::Sysctl(c.link, c.name, c.before), have: Some(have.clone()) })
    };
    Ok(changed.iter().filter_map(put).collect())
}

/// Ours is what carries our tag or our protocol number; a name alone may be a running flannel's.
fn owner(config: &NodeConfig, env: Option<&SubnetEnv>) -> Owner {
    let networks = env.into_iter().flat_map(|env| Family::ALL.into_iter().filter_map(|f| env.network(f)));
    Owner {
        network: config.network.clone(),
        networks: networks.collect(),
        names: Vec::new(),
        external: None,
        lease_lengths: Vec::new(),
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
