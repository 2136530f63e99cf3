//! Breaking things under traffic, and measuring how long it is felt.

use std::time::Duration;

use anyhow::{Context, Result};

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
