//! What the next pass would do, without doing it: the daemon's own core over the real store and the real kernel, read
//! only. It needs no daemon of ours on the node, and writes to neither.

use std::sync::Arc;
use std::time::Duration;

use backends::Plan;
use backends::kernel::Kernel;
use backends::kernel::real::RealKernel;
use futures::StreamExt;
use subnet_lease::{OwnLease, Store, SubnetEnv};
use tokio::time::timeout;

use crate::clock;
use crate::node::{Effect, Input, NodeCore, Settings};

/// How long the store may take to show its snapshot.
const PATIENCE: Duration = Duration::from_secs(10);

/// The plan that a daemon with these settings would apply now; one sentence on what is missing otherwise.
pub async fn dry_run(settings: Settings, store: Arc<dyn Store>, earlier: Option<SubnetEnv>) -> Result<Plan, String> {
    let mut kernel = RealKernel::open().map_err(|e| format!("cannot read the kernel: {e}"))?;
    let mut core = NodeCore::new(settings);
    let mut events = store.watch();
    let mut claimed = false;
    let mut inputs: Vec<Input> = earlier.into_iter().map(Input::Remembered).collect();
    loop {
        while let Some(input) = inputs.pop() {
            for effect in core.handle(clock::boot(), input) {
                match effect {
                    Effect::ReadHost => inputs.push(Input::Host(kernel.host())),
                    Effect::ReadOwn(owner) => inputs.push(Input::Own(kernel.own(&owner))),
                    Effect::Apply(plan) => return Ok(plan),
                    // Published once the pass is complete: there was nothing to do.
                    Effect::Publish(_) => return Ok(Plan::default()),
                    Effect::Claim(_) if !claimed => {
                        claimed = true;
                        inputs.push(Input::Claimed(Ok(held(&core)?)));
                    }
                    _ => {}
                }
            }
        }
        match timeout(PATIENCE, events.next()).await {
            Ok(Some(event)) => inputs.push(Input::Store(event)),
            _ => return Err(format!("no plan: {}", core.readiness().reasons.join("; "))),
        }
        if core.is_quiet(clock::boot()) && core.readiness().ready {
            return Ok(Plan::default());
        }
    }
}

/// A claim would write; the lease that the store already shows for this node stands in for its answer.
fn held(core: &NodeCore) -> Result<OwnLease, String> {
    let lease = core.shown_lease().cloned();
    let lease = lease.ok_or("this node holds no lease yet: there is no plan before a daemon claimed one")?;
    Ok(OwnLease { lease, expires_in: None })
}
