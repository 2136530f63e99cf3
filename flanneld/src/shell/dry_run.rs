//! What the next pass would do, without doing it: the daemon's own core over the real store and the real kernel, read
//! only. It needs no daemon of ours on the node, and writes to neither.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use backends::{IfName, KernelState, Plan};
use futures::StreamExt;
use subnet_lease::{OwnLease, Store, SubnetEnv};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::core::{Effect, Input, NodeCore, Settings};
use crate::exit::{Exit, Failure};
use crate::shell::clock;
use crate::shell::kernel_thread::{self, Ask};

/// How long the store may take to show its snapshot.
const PATIENCE: Duration = Duration::from_secs(10);

/// The result.
#[derive(Debug, Default)]
pub struct DryRun {
    /// The steps.
    pub plan: Plan,
    /// The host's links by index, for steps that name one so.
    pub links: BTreeMap<u32, IfName>,
    /// What the kernel has of ours.
    pub have: KernelState,
    /// Leases that are refused, by their keys, with the reasons.
    pub refused: Vec<(String, String)>,
}

/// The plan that a daemon with these settings would apply now; otherwise one sentence on what is missing, and the code
/// that the daemon would end with.
pub async fn dry_run(
    settings: Settings,
    store: Arc<dyn Store>,
    earlier: Option<SubnetEnv>,
) -> Result<DryRun, Failure> {
    let (inbox, mut inputs) = mpsc::channel(16);
    let failed = |why: String| Failure::new(Exit::Failed, why);
    let kernel = kernel_thread::start(inbox.clone(), settings.iface.can_reach).map_err(failed)?;
    let mut events = store.watch();
    let mut core = NodeCore::new(settings);
    let (mut claimed, mut run) = (false, DryRun::default());
    let mut effects = match earlier {
        Some(env) => core.handle(clock::boot(), Input::Remembered(env)),
        None => core.tick(clock::boot()),
    };
    loop {
        for effect in effects {
            match effect {
                Effect::ReadHost => drop(kernel.send(Ask::Host)),
                Effect::ReadOwn(owner) => drop(kernel.send(Ask::Own(owner))),
                Effect::Apply(plan) => {
                    return Ok(DryRun { plan: Arc::unwrap_or_clone(plan), refused: refused(&core), ..run });
                }
                // Published once the pass is complete: there was nothing to do.
                Effect::Publish(_) => return Ok(DryRun { refused: refused(&core), ..run }),
                Effect::Claim(_) if !claimed => {
                    claimed = true;
                    drop(inbox.try_send(Input::Claimed(Ok(held(&core).map_err(failed)?))));
                }
                Effect::Exit(exit) => {
                    return Err(Failure::new(exit, core.ending().unwrap_or("a daemon would end here")));
                }
                // A second claim has the same answer. Nothing is written, and nobody listens or asks for the readiness.
                Effect::Claim(_)
                | Effect::Listen(_)
                | Effect::Plane(_)
                | Effect::Share(_)
                | Effect::Remember(_)
                | Effect::Withdraw(_)
                | Effect::Announce(_) => {}
            }
        }
        let next = async {
            tokio::select! {
                Some(input) = inputs.recv() => Some(input),
                Some(event) = events.next() => Some(Input::Store(event)),
                else => None,
            }
        };
        let Ok(Some(input)) = timeout(PATIENCE, next).await else {
            return Err(failed(format!("no plan: {}", core.readiness().reasons.join("; "))));
        };
        match &input {
            Input::Host(Ok(facts)) => {
                run.links = facts.links.iter().map(|link| (link.index, link.name)).collect();
            }
            Input::Own(Ok(own)) => run.have = own.state.clone(),
            _ => {}
        }
        effects = core.handle(clock::boot(), input);
    }
}

fn refused(core: &NodeCore) -> Vec<(String, String)> {
    core.peers().into_iter().flat_map(|peers| peers.refused()).collect()
}

/// A claim would write; the lease that the store already shows for this node stands in for its answer.
fn held(core: &NodeCore) -> Result<OwnLease, String> {
    let lease = core.shown_lease().cloned();
    let lease = lease.ok_or("this node holds no lease yet: there is no plan before a daemon claimed one")?;
    Ok(OwnLease { lease, expires_in: None })
}
