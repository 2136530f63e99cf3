//! Disturbances, and how long pods ([`outage`]) and the kernel's state ([`Rest`]) are affected.
//!
//! ```text
//!   LIST      what an operator, another program or an accident does to a host, as lines to type
//!   Site      the values of the words in those lines, for one host, family and peer
//!   Picture   everything of a host that an operator sees, ours and foreign, without counters and ages
//!   Notices   when the kernel sent its last notification
//!   Rest      a net with its pictures: disturbs it, waits until it is as before, returns the time
//! ```

mod list;
mod notices;
mod picture;
mod rest;
mod site;

use std::time::Duration;

use anyhow::{Context, Result};

pub use list::{Disturbance, LIST};
pub use picture::Picture;
pub use rest::{PATIENCE, Rest, Times, repair_times};
pub use site::Site;

use crate::pod::Pod;
use crate::probe::ping_until;
use crate::stream::{Report, Stream};
use crate::topology::{Family, eventually};

/// Interval of the packets that measure the outage; the outage is exact to about this.
pub const INTERVAL: Duration = Duration::from_micros(250);

/// Sends a steady stream from one pod to another, does `harm`, waits until the pods reach each other again,
/// and reports the stream's losses. It is an error if they do not within `patience`.
pub fn outage(
    from: &Pod,
    to: &Pod,
    family: Family,
    patience: Duration,
    harm: impl FnOnce() -> Result<()>,
) -> Result<Report> {
    let at = to.address(family)?;
    let stream = Stream::start(from.space(), to.space(), at, INTERVAL)?;
    flowing(&stream)?;
    harm()?;
    flowing(&stream)?;
    ping_until(from.space(), at, patience).context("the pods do not reach each other again")?;
    flowing(&stream)?;
    stream.stop()
}

/// Waits until the stream has sent another 200 packets, 50 ms.
fn flowing(stream: &Stream) -> Result<()> {
    let goal = stream.sent() + 200;
    let sent = || if stream.sent() < goal { anyhow::bail!("the sender sends nothing") } else { Ok(()) };
    eventually(Duration::from_secs(10), sent).map(drop)
}
