//! How the programs end: the exit codes, and what a service manager should make of them.

use std::io;
use std::path::Path;
use std::process::ExitCode;

/// Why the process ended. The numbers are an interface: they never change meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Stopped by a signal, or did what was asked.
    Done = 0,
    /// Something failed that has no code of its own.
    Failed = 1,
    /// A flag, variable, settings file or network configuration is wrong.
    Invalid = 2,
    /// Asked for something that flannel has, and this program or this kernel has not.
    Unsupported = 3,
    /// A word on the command line that is no flag.
    Word = 4,
    /// Not allowed to change the kernel's network.
    Permission = 5,
    /// Our subnet is held by another host.
    LeaseLost = 6,
    /// The store can't be reached, or refuses us.
    Store = 7,
    /// Another flanneld of this network runs on this host.
    Rival = 8,
    /// The node is not ready, or no daemon runs.
    NotReady = 9,
    /// No interface fits what was asked for.
    Interface = 10,
}

impl Exit {
    /// Every code with its meaning, as the documentation has it.
    pub const ALL: [(Self, &'static str); 11] = [
        (Self::Done, "stopped by TERM or INT, or did what was asked; help and version"),
        (Self::Failed, "failed in a way that has no code of its own; the last line is the reason"),
        (
            Self::Invalid,
            "a flag, variable, settings file or network configuration is wrong; all errors are listed",
        ),
        (Self::Unsupported, "asked for what flannel has, and this program or this kernel has not (yet)"),
        (Self::Word, "a word on the command line that is no flag"),
        (Self::Permission, "no permission to change the network (CAP_NET_ADMIN), or to write a needed file"),
        (Self::LeaseLost, "our subnet is held by another host; the kernel is left as it is"),
        (Self::Store, "the store can't be reached (flannelctl), or refuses us"),
        (
            Self::Rival,
            "another flanneld of this network runs on this host; nothing was written (`--takeover` waits for it)",
        ),
        (Self::NotReady, "`flannelctl status`: the node is not ready, or no daemon runs"),
        (
            Self::Interface,
            "no interface fits the flags that name one, for `--iface-wait` after the start; all that was tried is listed",
        ),
    ];

    /// The number.
    pub fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Why a program can't go on: a sentence for the person, and the code for the service manager.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{message}")]
pub struct Failure {
    /// The code to end with.
    pub exit: Exit,
    /// One sentence, or one a line.
    pub message: String,
}

impl Failure {
    /// A failure of this kind.
    pub fn new(exit: Exit, message: impl ToString) -> Self {
        Self { exit, message: message.to_string() }
    }

    /// A file or folder could not be read or written.
    pub(crate) fn of(path: &Path, error: &io::Error) -> Self {
        let denied = error.kind() == io::ErrorKind::PermissionDenied;
        let exit = if denied { Exit::Permission } else { Exit::Failed };
        Self::new(exit, format!("{}: {error}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_lists_every_exit_code() {
        let page = include_str!("../docs/config.md");
        for (number, (exit, meaning)) in (0..).zip(Exit::ALL) {
            assert_eq!(exit.code(), number);
            let row = format!("| {number} | {meaning} |");
            assert!(page.contains(&row), "docs/config.md lacks {row}");
        }
    }
}
