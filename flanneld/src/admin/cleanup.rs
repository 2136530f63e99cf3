//! `flannelctl cleanup`: takes away what a daemon of this network left in the kernel, which is the difference to an
//! empty wish. Needs no store; a daemon that still runs would put everything back.

use std::fmt::Write;
use std::fs;

use backends::kernel::Kernel;
use backends::kernel::real::RealKernel;
use backends::{KernelState, Owner, Plan, diff};
use subnet_lease::{Family, SubnetEnv};

use crate::config::NodeConfig;
use crate::exit::{Exit, Failure};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Print what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn run(arguments: &Arguments, config: &NodeConfig) -> Result<String, Failure> {
    let env = SubnetEnv::read(&config.subnet_file).ok();
    let owner = owner(config, env.as_ref());
    let mut kernel = RealKernel::open().map_err(|error| Failure::new(Exit::Permission, error))?;
    let own = kernel.own(&owner).map_err(|error| Failure::new(Exit::Permission, error))?;
    let plan = diff(&KernelState::default(), &own.state, &owner);
    let mut said = plan.to_string();
    if env.is_none() {
        let missing = "no network is known, so routes over the underlay (host-gw) were not looked for";
        writeln!(said, "# {}: not there; {missing}", config.subnet_file.display()).unwrap_or_default();
    }
    if arguments.dry_run {
        return Ok(said);
    }
    apply(&mut kernel, &plan)?;
    if env.is_some() && fs::remove_file(&config.subnet_file).is_ok() {
        writeln!(said, "rm {}", config.subnet_file.display()).unwrap_or_default();
    }
    Ok(if said.is_empty() { "nothing of ours is here\n".to_owned() } else { said })
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
