//! Small files, each opened, read and written by one system call: an ADD has a dozen of them. What stands under a
//! file's name may be a FIFO or a device that somebody put there: nothing here waits for one. Files that are replaced are
//! in [`backends::local::files`].

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;

/// Most small files have a few hundred bytes; the rest of a larger file is not read.
const SMALL: usize = 8192;
/// The largest file that is read whole (bytes); a stored configuration can hold some hundred kilobytes of annotations.
const LARGEST: u64 = 4 << 20;

/// The file, closed at exec. The standard library uses musl's `open`, which needs a second system call for that.
pub(crate) fn open(path: &Path, flags: OFlag, mode: u32) -> io::Result<File> {
    Ok(openat(AT_FDCWD, path, flags | OFlag::O_CLOEXEC, Mode::from_bits_truncate(mode))?.into())
}

/// Writes the text in place, where half of it does no harm: a call that is killed leaves no draft. Makes the file where it
/// is missing; a link is not followed.
pub(crate) fn overwrite(path: &Path, text: &str) -> io::Result<()> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    open(path, flags, 0o600)?.write_all(text.as_bytes())
}

/// Writes it all to a file that is there.
pub(crate) fn write(path: &Path, text: &str) -> io::Result<()> {
    open(path, OFlag::O_WRONLY | OFlag::O_TRUNC, 0)?.write_all(text.as_bytes())
}

/// The text of a regular file of any size up to 4 MiB.
pub(crate) fn read_whole(path: &Path) -> io::Result<String> {
    let file = open(path, READING, 0)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        return Err(io::Error::other("larger than 4 MiB"));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Opening a FIFO or a device to read does not wait.
const READING: OFlag = OFlag::O_RDONLY.union(OFlag::O_NONBLOCK).union(OFlag::O_NOCTTY);

/// The text; bytes that are not UTF-8 are replaced, and the parser refuses them. A FIFO without a writer has no text.
pub(crate) fn read(path: &Path) -> io::Result<String> {
    let mut bytes = [0; SMALL];
    let mut file = open(path, READING, 0)?;
    // A regular file yields all it has at once, and so does one of /proc.
    let len = loop {
        match file.read(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    Ok(String::from_utf8_lossy(&bytes[..len]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::scratch::Folder;

    #[test]
    fn a_file_is_read_whole_and_garbage_is_no_crash() {
        let folder = Folder::new();
        let path = folder.path().join("x");
        for (bytes, text) in [(&b""[..], ""), (b"a\r\nb", "a\r\nb"), (b"\xff\0", "\u{fffd}\0")] {
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(read(&path).unwrap(), text);
        }
        assert!(read(folder.path()).is_err(), "a folder");
    }

    #[test]
    fn a_fifo_and_a_device_are_no_files_and_are_not_waited_for() {
        let folder = Folder::new();
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, Mode::from_bits_truncate(0o600)).unwrap();
        assert_eq!(read(&fifo).unwrap(), "");
        for path in [&*fifo, Path::new("/dev/zero"), folder.path()] {
            assert!(read_whole(path).is_err(), "{}", path.display());
        }
        assert!(overwrite(&fifo, "x").is_err());
    }
}
