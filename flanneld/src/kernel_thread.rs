//! The kernel behind a channel, on a thread of its own: a pass over fifty thousand peers must not delay the store's
//! keep-alive, and rtnetlink's little runtime must not run inside another.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use backends::kernel::Kernel;
use backends::kernel::real::RealKernel;
use backends::{Owner, Plan};
use tokio::sync::mpsc::UnboundedSender;

use crate::node::Input;

/// A request; the answer comes into the inbox.
pub(crate) enum Ask {
    /// Answered by [`Input::Host`].
    Host,
    /// Answered by [`Input::Own`].
    Own(Owner),
    /// Answered by [`Input::Applied`].
    Apply(Arc<Plan>),
}

/// Starts the thread in this thread's network namespace. It ends with the sender or with the inbox.
pub(crate) fn start(inbox: UnboundedSender<Input>) -> Result<Sender<Ask>, String> {
    let (asks, asked) = channel();
    let (opened, open) = channel();
    let serve = move || {
        let mut kernel = match RealKernel::open() {
            Ok(kernel) => kernel,
            // The other end waits for exactly this word.
            Err(error) => return drop(opened.send(Err(format!("cannot talk to the kernel: {error}")))),
        };
        drop(opened.send(Ok(())));
        for ask in asked {
            let answer = match ask {
                Ask::Host => Input::Host(kernel.host()),
                Ask::Own(owner) => Input::Own(kernel.own(&owner)),
                Ask::Apply(plan) => Input::Applied(kernel.apply(&plan.ops)),
            };
            if inbox.send(answer).is_err() {
                break;
            }
        }
    };
    let thread = std::thread::Builder::new().name("kernel".to_owned()).spawn(serve);
    thread.map_err(|error| format!("cannot start the kernel thread: {error}"))?;
    open.recv().unwrap_or_else(|_| Err("the kernel thread ended at once".to_owned())).map(|()| asks)
}
