//! Breaking things, and measuring how long it is felt: by pods ([`outage`]) and in the kernel's state ([`Rest`]).
//!
//! ```text
//!   LIST      what an operator, another program or an accident does to a host, as the lines they would type
//!   Site      what the words of those lines mean on one host, family and peer
//!   Picture   everything of a host that an operator sees, ours and foreign, without what counts or ages
//!   Notices   when the kernel last said that something changed
//!   Rest      a net with its pictures: harms it, waits until it looks as before, says how long that took
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

/// Interval of the packets that feel the disturbance; the outage is exact to about this.
pub const INTERVAL: Duration = Duration::from_micros(250);

/// Sends a steady stream from one pod to another, does `harm`, waits until the pods talk again, and reports what the
/// stream met with. The error is that they do not talk within `patience`.
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
    ping_until(from.space(), at, patience).context("the pods do not talk again")?;
    flowing(&stream)?;
    stream.stop()
}

/// Lets the stream run for another 200 packets, 50 ms.
fn flowing(stream: &Stream) -> Result<()> {
    let goal = stream.sent() + 200;
    let sent = || if stream.sent() < goal { anyhow::bail!("the sender is stuck") } else { Ok(()) };
    eventually(Duration::from_secs(10), sent).map(drop)
}
