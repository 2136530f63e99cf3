//! Where lines are written: two files in turn, or memory.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc::{O_NOFOLLOW, O_NONBLOCK};

/// The most one file holds, in bytes; there are two. A cold start with ten thousand peers takes five million.
pub const FILE_BYTES: u64 = 8 << 20;
/// Lines are gathered until so many bytes are together, or the record is complete.
const BUFFER: usize = 16 << 10;

/// Takes lines.
pub trait Tape: Write {
    /// Bytes written so far.
    fn length(&self) -> u64;

    /// Bytes that still fit.
    fn room(&self) -> u64;

    /// Forgets everything after so many bytes.
    fn cut(&mut self, length: u64) -> io::Result<()>;

    /// Moves the written file aside and begins a new one.
    fn turn(&mut self) -> io::Result<()>;

    /// Begins a new file if somebody removed the written one; whether that was so.
    fn renew(&mut self) -> io::Result<bool> {
        Ok(false)
    }
}

/// A file that, when it is full, takes the place of the one before.
///
/// A killed daemon loses nothing that was written: the pages are the kernel's. Nothing is synced: a crash of the machine
/// ends the kernel's network state, and the recording is about that state.
pub struct Ring {
    path: PathBuf,
    file: File,
    /// What is in the file.
    written: u64,
    buffer: Vec<u8>,
}

/// Where the older half is.
pub fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

impl Ring {
    /// Opens the file to add to it; makes it, and its folder, where they are missing.
    pub fn open(path: &Path) -> io::Result<Self> {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
        }
        let mut file = open(path)?;
        let mut written = file.metadata()?.len();
        if written > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            // The last line is cut short. The next one must begin on a line of its own.
            if last != *b"\n" {
                file.write_all(b"\n")?;
                written += 1;
            }
        }
        Ok(Self { path: path.to_owned(), file, written, buffer: Vec::with_capacity(BUFFER) })
    }
}

/// Opens the file for this daemon alone: it follows no symbolic link, waits for no pipe, and admits no second writer.
fn open(path: &Path) -> io::Result<File> {
    let mut how = OpenOptions::new();
    how.read(true).append(true).create(true).mode(0o600).custom_flags(O_NOFOLLOW | O_NONBLOCK);
    let file = how.open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a file"));
    }
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(io::Error::other("another daemon writes it")),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

impl Write for Ring {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() + bytes.len() > BUFFER {
            self.flush()?;
        }
        if bytes.len() > BUFFER {
            self.file.write_all(bytes)?;
            self.written += bytes.len() as u64;
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all(&self.buffer)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

impl Tape for Ring {
    fn length(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    fn room(&self) -> u64 {
        FILE_BYTES.saturating_sub(self.length())
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.flush()?;
        self.file.set_len(length)?;
        self.written = length;
        Ok(())
    }

    fn turn(&mut self) -> io::Result<()> {
        self.flush()?;
        fs::rename(&self.path, older(&self.path))?;
        self.file = open(&self.path)?;
        self.written = self.file.metadata()?.len();
        Ok(())
    }

    fn renew(&mut self) -> io::Result<bool> {
        let place = |of: fs::Metadata| (of.dev(), of.ino());
        let ours = place(self.file.metadata()?);
        if fs::symlink_metadata(&self.path).is_ok_and(|there| place(there) == ours) {
            return Ok(false);
        }
        *self = Self::open(&self.path)?;
        Ok(true)
    }
}

/// Memory without a limit, for tests and simulations.
impl Tape for Vec<u8> {
    fn length(&self) -> u64 {
        self.len() as u64
    }

    fn room(&self) -> u64 {
        u64::MAX
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.truncate(usize::try_from(length).unwrap_or(usize::MAX));
        Ok(())
    }

    fn turn(&mut self) -> io::Result<()> {
        self.clear();
        Ok(())
    }
}
