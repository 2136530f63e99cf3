//! Any kernel, with faults at the seam: what a real one does only now and then, on command.

use nix::errno::Errno;

use super::faults::Rng;
use crate::kernel::{Kernel, KernelError, OpError, Own};
use crate::netlink::NetlinkError;
use crate::plan::{Op, Owner};
use crate::state::Facts;

/// A kernel behind which another one stands. Each fault strikes once.
pub struct Faulty<K> {
    /// The one that does the work.
    pub kernel: K,
    rng: Rng,
    dump: Option<DumpFault>,
    apply: Option<ApplyFault>,
}

/// What becomes of the next dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DumpFault {
    /// It is flagged as interrupted, and a third of the objects is missing.
    Interrupted,
    /// It ends with an error.
    Failed(Errno),
}

/// What becomes of the next plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApplyFault {
    /// This step is refused; the others are done.
    Refused(usize, Errno),
    /// All is done, and no answer comes back: the receive buffer was full.
    Unanswered,
    /// Nothing is sent: the send buffer was full.
    Unsent,
}

impl<K: Kernel> Faulty<K> {
    /// No faults yet. The seed chooses what an interrupted dump lacks.
    pub fn new(kernel: K, seed: u64) -> Self {
        Self { kernel, rng: Rng::new(seed), dump: None, apply: None }
    }

    /// Strikes the next dump.
    pub fn strike_dump(&mut self, fault: DumpFault) {
        self.dump = Some(fault);
    }

    /// Strikes the next plan.
    pub fn strike_apply(&mut self, fault: ApplyFault) {
        self.apply = Some(fault);
    }
}

impl<K: Kernel> Kernel for Faulty<K> {
    fn own(&mut self, owner: &Owner) -> Result<Own, KernelError> {
        match self.dump.take() {
            Some(DumpFault::Failed(errno)) => Err(NetlinkError::Refused { errno, text: None }.into()),
            Some(DumpFault::Interrupted) => {
                let own = self.kernel.own(owner)?;
                let state = own.state.iter().filter(|_| !self.rng.chance(33)).cloned().collect();
                Ok(Own { state, interrupted: true, ..own })
            }
            None => self.kernel.own(owner),
        }
    }

    fn host(&mut self) -> Result<Facts, KernelError> {
        self.kernel.host()
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), OpError>> {
        let lost = |error: NetlinkError| vec![Err(OpError::Failed(error.into())); ops.len()];
        match self.apply.take() {
            Some(ApplyFault::Refused(n, errno)) if n < ops.len() => {
                let mut results = self.kernel.apply(&ops[..n]);
                results.push(Err(OpError::Failed(NetlinkError::Refused { errno, text: None }.into())));
                results.extend(self.kernel.apply(&ops[n + 1..]));
                results
            }
            Some(ApplyFault::Unanswered) => {
                self.kernel.apply(ops);
                lost(NetlinkError::Unknown(Errno::ENOBUFS))
            }
            Some(ApplyFault::Unsent) => lost(NetlinkError::Socket(Errno::ENOBUFS)),
            _ => self.kernel.apply(ops),
        }
    }
}
