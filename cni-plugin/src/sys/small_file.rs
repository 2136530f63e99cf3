//! Files of a few hundred bytes, each opened, read and written by one system call: an ADD has a dozen of them.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;

/// Larger than any of them. What is beyond it in a file that is none of theirs is not read.
const LARGEST: usize = 8192;

/// Flags of a file that is written anew.
pub(crate) const ANEW: OFlag = OFlag::O_WRONLY.union(OFlag::O_CREAT).union(OFlag::O_TRUNC);

/// The file, closed at exec. The standard library's way is musl's `open`, which says so in a second system call.
pub(crate) fn open(path: &Path, flags: OFlag, mode: u32) -> io::Result<File> {
    Ok(openat(AT_FDCWD, path, flags | OFlag::O_CLOEXEC, Mode::from_bits_truncate(mode))?.into())
}

/// Writes it all to a file that is there.
pub(crate) fn write(path: &Path, text: &str) -> io::Result<()> {
    open(path, OFlag::O_WRONLY | OFlag::O_TRUNC, 0)?.write_all(text.as_bytes())
}

/// The text; bytes that are not UTF-8 are replaced, since whoever parses it refuses them anyway.
pub(crate) fn read(path: &Path) -> io::Result<String> {
    let mut bytes = [0; LARGEST];
    let mut file = open(path, OFlag::O_RDONLY, 0)?;
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
}
