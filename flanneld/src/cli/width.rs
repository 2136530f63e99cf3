//! How wide the terminal is.

use std::os::fd::AsFd;

use rustix::termios::tcgetwinsize;

/// The columns of the terminal that this stream writes to; none for a pipe, a file, or a terminal of unknown width.
pub(crate) fn terminal_width(stream: impl AsFd) -> Option<usize> {
    // Anything else has no window size: ENOTTY.
    let columns = tcgetwinsize(stream).ok()?.ws_col;
    (columns > 0).then(|| columns.into())
}
