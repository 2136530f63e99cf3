//! Where the program begins: a `main` as C has it, in place of the one that the standard library makes.
//!
//! The library's looks for the stack's bounds in `/proc/self/maps`, makes a stack for signals and asks after the handlers
//! of five: 19 of the 34 system calls of a VERSION, and a tenth of a millisecond of each plugin of each chain. What it
//! gives that is needed here is done below: a closed pipe is an error and no end, and the standard files are open.
#![allow(unsafe_code, reason = "a symbol of a fixed name is how libc finds a program's beginning")]

use std::ffi::{CStr, c_char, c_int};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, IntoRawFd};

use dlmalloc::GlobalDlmalloc;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};

/// Takes memory from the kernel 64 KiB at a time. musl's own maps and unmaps a page or two for every new size: twenty
/// more system calls per ADD.
#[global_allocator]
static ALLOCATOR: GlobalDlmalloc = GlobalDlmalloc;

// SAFETY: what `no_mangle` asks for is that no other symbol of the program has the name, and that whoever calls it by that
// name means this signature. The crate is `no_main`, so that the compiler makes no `main` (two would not link), and the
// one caller is libc's start-up code, for which C fixes the signature (argument count, arguments; exit status).
#[unsafe(no_mangle)]
extern "C" fn main(count: c_int, arguments: *const *const c_char) -> c_int {
    if prepare().is_err() {
        return 1;
    }
    let argument = |at: usize| match usize::try_from(count) {
        // SAFETY: C promises `count` pointers to strings that end and that nobody changes while `main` runs.
        Ok(count) if at < count => unsafe { CStr::from_ptr(*arguments.add(at)) }.to_string_lossy(),
        _ => "".into(),
    };
    c_int::from(!super::run(&argument(0), &argument(1)))
}

/// Before anything is opened or written.
fn prepare() -> Result<(), Errno> {
    open_standard_files()?;
    // A runtime that is gone is no reason to stop in the middle of an ADD: writing then fails instead. Programs that are
    // started from here begin with no signal blocked.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGPIPE);
    signals.thread_block()
}

/// A number below three that is free would go to the first file that is opened, a store's or a socket, and what is meant
/// for people would be written into it.
fn open_standard_files() -> Result<(), Errno> {
    let (input, output, error) = (io::stdin(), io::stdout(), io::stderr());
    let mut files =
        [input.as_fd(), output.as_fd(), error.as_fd()].map(|file| PollFd::new(file, PollFlags::empty()));
    poll(&mut files, PollTimeout::ZERO)?;
    for file in files {
        if file.revents().is_some_and(|events| events.contains(PollFlags::POLLNVAL)) {
            // The lowest free number is that file's, since those before it are open by now.
            let nothing = OpenOptions::new().read(true).write(true).open("/dev/null");
            let _ = nothing.map_err(|_| Errno::EBADF)?.into_raw_fd();
        }
    }
    Ok(())
}
