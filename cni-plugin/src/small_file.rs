//! Files of a few hundred bytes, each read by one system call: ADD reads a dozen of them.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Larger than any of them. What is beyond it in a file that is none of theirs is not read.
const LARGEST: usize = 8192;

/// The text; bytes that are not UTF-8 are replaced, since whoever parses it refuses them anyway.
pub(crate) fn read(path: &Path) -> io::Result<String> {
    let mut bytes = [0; LARGEST];
    let mut file = File::open(path)?;
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
    use crate::scratch::Folder;

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
