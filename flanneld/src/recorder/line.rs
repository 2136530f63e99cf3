//! Records as lines: JSON, a tab, a checksum. The checksum shows a line that is cut short or damaged; reading goes on at the
//! next line.

use std::io::{self, BufRead, Read, Write};

use backends::local::hash::Fnv32;
use serde::Serialize;

use super::tape::{FILE_BYTES, Tape};

/// Writes a record and leaves `spare` bytes of room behind it. Where there is not so much room, nothing is written and the
/// answer is false.
pub(super) fn write(tape: &mut impl Tape, record: &impl Serialize, spare: u64) -> io::Result<bool> {
    let (before, room) = (tape.length(), tape.room().saturating_sub(spare));
    let mut line = Line { tape, sum: Fnv32::default(), left: room.saturating_sub(TAIL) };
    match serde_json::to_writer(&mut line, record) {
        Ok(()) => {
            let sum = line.sum;
            writeln!(tape, "\t{sum}").map(|()| true)
        }
        Err(error) if error.io_error_kind() == Some(io::ErrorKind::FileTooLarge) => {
            tape.cut(before).map(|()| false)
        }
        Err(error) => Err(error.into()),
    }
}

/// A tab, eight digits, the end of the line.
const TAIL: u64 = 10;

struct Line<'a, T> {
    tape: &'a mut T,
    sum: Fnv32,
    left: u64,
}

impl<T: Tape> Write for Line<'_, T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len() as u64;
        self.left = self.left.checked_sub(length).ok_or(io::ErrorKind::FileTooLarge)?;
        self.sum = self.sum.and(bytes);
        self.tape.write_all(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The next line.
pub(super) enum Next<T> {
    /// A whole line with this content.
    Line(T),
    /// Damaged, cut short or too long.
    Damaged,
    /// There are no more.
    End,
}

/// Reads the JSON of a line. At most a file's worth of bytes is held.
pub(super) fn read(file: &mut impl BufRead) -> io::Result<Next<Vec<u8>>> {
    let mut line = Vec::new();
    if file.by_ref().take(FILE_BYTES).read_until(b'\n', &mut line)? == 0 {
        return Ok(Next::End);
    }
    let json = line.strip_suffix(b"\n").and_then(|line| line.split_at_checked(line.len().checked_sub(9)?));
    let whole = json.is_some_and(|(json, tail)| tail == format!("\t{}", Fnv32::of(json)).as_bytes());
    if !whole {
        return Ok(Next::Damaged);
    }
    line.truncate(line.len() - 10);
    Ok(Next::Line(line))
}
