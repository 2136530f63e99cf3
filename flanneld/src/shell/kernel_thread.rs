//! The kernel behind a channel, on a thread of its own: a pass over fifty thousand peers must not delay the store's
//! keep-alive.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use backends::kernel::Kernel;
use backends::kernel::real::RealKernel;
use backends::{Owner, Plan};
use tokio::sync::mpsc;

use crate::core::Input;

/// A request; the answer comes into the inbox.
pub(crate) enum Ask {
    /// Answered by [`Input::Host`].
    Host,
    /// Answered by [`Input::Own`].
    Own(Owner),
    /// Answered by [`Input::Applied`].
    Apply(Arc<Plan>),
}

/// The thread. It ends with this or with the inbox.
pub(crate) struct KernelThread {
    asks: Sender<Ask>,
    /// The netlink ports of its requests.
    pub(crate) ports: Vec<u32>,
}

/// The thread has ended.
#[derive(Debug)]
pub(crate) struct Ended;

impl KernelThread {
    /// Asks. The requests are served one after the other.
    pub(crate) fn send(&self, ask: Ask) -> Result<(), Ended> {
        self.asks.send(ask).map_err(|_| Ended)
    }
}

/// Starts the thread in this thread's network namespace. The facts have the way to `reach`.
pub(crate) fn start(inbox: mpsc::Sender<Input>, reach: Option<IpAddr>) -> Result<KernelThread, String> {
    let (asks, asked) = channel();
    let (opened, open) = channel();
    let run = move || match RealKernel::open() {
        Ok(kernel) => {
            // The other end waits for this.
            let _ = opened.send(Ok(kernel.ports()));
            serve(kernel.looking_for(reach), &asked, &inbox);
        }
        Err(error) => drop(opened.send(Err(format!("cannot talk to the kernel: {error}")))),
    };
    let thread = std::thread::Builder::new().name("kernel".to_owned()).spawn(run);
    thread.map_err(|error| format!("cannot start the kernel thread: {error}"))?;
    let ports = open.recv().unwrap_or_else(|_| Err("the kernel thread ended at once".to_owned()))?;
    Ok(KernelThread { asks, ports })
}

fn serve(mut kernel: RealKernel, asked: &Receiver<Ask>, inbox: &mpsc::Sender<Input>) {
    for ask in asked {
        let answer = match ask {
            Ask::Host => Input::Host(kernel.host()),
            Ask::Own(owner) => Input::Own(kernel.own(&owner)),
            Ask::Apply(plan) => Input::Applied(kernel.apply(&plan.ops)),
        };
        if inbox.blocking_send(answer).is_err() {
            break;
        }
    }
}
