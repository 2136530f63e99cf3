//! Deletes containers' links for the CNI plugin. The kernel removes a link at once, and then keeps the process that asked
//! waiting for 10 to 40 ms. The daemon can wait, and the plugin needs no child that a process 1 might not reap.

use std::sync::atomic::{AtomicUsize, Ordering};

use backends::IfName;
use backends::netlink::link::{LinkView, delete_link, get_link_at};
use backends::netlink::{Batch, NetlinkError, Socket};
use tracing::{info, warn};

/// Waits at once. Ours: beyond it the plugin is better off waiting itself.
const AT_ONCE: usize = 64;

static WAITING: AtomicUsize = AtomicUsize::new(0);

/// Begins to delete the container's link of this index in our network namespace, for a process; whether it did.
pub(crate) fn begin(index: u32, asker: Option<u32>) -> bool {
    if WAITING.fetch_add(1, Ordering::Relaxed) >= AT_ONCE {
        WAITING.fetch_sub(1, Ordering::Relaxed);
        return false;
    }
    let work = move || {
        match delete(index) {
            Ok(Some(link)) => info!(%link, index, asker, "deleted the link of a container"),
            Ok(None) => info!(index, asker, "not deleted: no link of a container has this index"),
            Err(error) => warn!(index, asker, "could not delete the link of a container: {error}"),
        }
        WAITING.fetch_sub(1, Ordering::Relaxed);
    };
    // Its thread may serve the next one, for some seconds.
    drop(tokio::task::spawn_blocking(work));
    true
}

/// Only a link that the plugin's mark shows to be a container's: an index may be another link's by now. Returns its name.
fn delete(index: u32) -> Result<Option<IfName>, NetlinkError> {
    let mut socket = Socket::route()?;
    let link = socket.get(&mut get_link_at(index), |message| {
        let link = LinkView::parse(&message).ok()?;
        link.is_containers().then_some(link.name)
    })?;
    if link.is_some() {
        let mut batch = Batch::new();
        delete_link(&mut batch, index);
        socket.request(&mut batch)?;
    }
    Ok(link)
}
