//! Waiting for notifications of the kernel.

use std::os::fd::AsFd;
use std::time::Duration;

use backends::netlink::{Received, Socket};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::time::{ClockId, clock_gettime};

use crate::contract::{Code, During, Failure};
use crate::sys::netns::Namespace;

/// Notifications in a namespace, until a deadline.
pub(super) struct Events {
    socket: Socket,
    deadline: Duration,
}

impl Events {
    /// Subscribes to one group; the thread is in that namespace afterwards.
    pub(super) fn within(namespace: &Namespace, group: u32, time: Duration) -> Result<Self, Failure> {
        namespace.enter()?;
        let socket = Socket::subscribe(libc::NETLINK_ROUTE, &[group]);
        let socket = socket.during(Code::Kernel, || "cannot listen to the kernel's events".into())?;
        Ok(Self { socket, deadline: now()? + time })
    }

    /// Waits for a notification and reads all that are there. False once the time is over.
    pub(super) fn wait(&mut self) -> Result<bool, Failure> {
        let left = self.deadline.saturating_sub(now()?);
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            other => return other.map(|_| false).during(Code::Kernel, || "cannot wait for events".into()),
        }
        while !matches!(self.socket.receive(), Ok(Received::Empty) | Err(_)) {}
        Ok(!left.is_zero())
    }
}

/// Since the boot.
pub(super) fn now() -> Result<Duration, Failure> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC);
    now.map(Duration::from).during(Code::Io, || "no clock".into())
}
