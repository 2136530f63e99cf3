//! Network namespaces: the container's by path, our own, and moving between them.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

use backends::netlink::Socket;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};

use crate::contract::{Call, Code, During, Failure};
use crate::sys::small_file;

/// A network namespace, held open.
#[derive(Debug)]
pub(crate) struct Namespace {
    file: File,
    path: String,
}

/// Why a namespace is not to be entered.
#[derive(Debug)]
pub(crate) enum NoEntry {
    /// There is none: no path, nothing there, or something else.
    Gone(Failure),
    /// It is the one that we are in, and the runtime did not say that this is meant.
    Own(Failure),
}

impl From<NoEntry> for Failure {
    fn from(reason: NoEntry) -> Self {
        match reason {
            NoEntry::Gone(failure) | NoEntry::Own(failure) => failure,
        }
    }
}

impl Namespace {
    /// The namespace of the call; `own` is the one that we are in.
    pub(crate) fn of(call: &Call, own: &Self) -> Result<Self, NoEntry> {
        let what = || format!("CNI_NETNS {:?} cannot be opened", call.netns);
        let pod = Self::open(&call.netns).during(Code::Environment, what).map_err(NoEntry::Gone)?;
        if pod.is(own) && !call.own_allowed {
            let msg = format!("CNI_NETNS {} is the host's own network namespace", call.netns);
            let failure = Failure::new(Code::Namespace, msg).details("CNI_NETNS_OVERRIDE=1 allows it");
            return Err(NoEntry::Own(failure));
        }
        Ok(pod)
    }

    /// The one that we are in.
    pub(crate) fn own() -> Result<Self, Failure> {
        Self::open("/proc/thread-self/ns/net").during(Code::Io, || "cannot open our own namespace".into())
    }

    /// The one at a path, of whatever kind.
    pub(crate) fn open(path: &str) -> std::io::Result<Self> {
        // Whatever else the path may be, opening it does not wait.
        let file = small_file::open(path.as_ref(), OFlag::O_RDONLY | OFlag::O_NONBLOCK, 0)?;
        Ok(Self { file, path: path.to_owned() })
    }

    fn is(&self, other: &Self) -> bool {
        self.id() == other.id()
    }

    /// Equal for two that are the same one.
    pub(crate) fn id(&self) -> Option<(u64, u64)> {
        self.file.metadata().map(|m| (m.dev(), m.ino())).ok()
    }

    /// Moves this thread into it.
    pub(crate) fn enter(&self) -> Result<(), Failure> {
        setns(&self.file, CloneFlags::CLONE_NEWNET)
            .during(Code::Environment, || format!("{} is no network namespace to enter", self.path))
    }

    /// A socket that acts inside, made from outside: afterwards this thread is in `from` again.
    pub(crate) fn socket(&self, from: &Self) -> Result<Socket, Failure> {
        self.enter()?;
        let socket = Socket::route();
        from.enter()?;
        socket.during(Code::Kernel, || format!("no netlink socket in {}", self.path))
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
