//! Network namespaces that a mount keeps, from `/proc/self/mountinfo` (proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// Where network namespaces are mounted, as `ip netns` and container runtimes do.
///
/// # Errors
/// The file cannot be read.
pub fn network_namespaces() -> io::Result<Vec<PathBuf>> {
    let mounts = fs::read("/proc/self/mountinfo")?;
    Ok(mounts.split(|byte| *byte == b'\n').filter_map(network_namespace).collect())
}

/// The mount point in a line such as `36 25 0:4 net:[4026532001] /run/netns/x rw … - nsfs nsfs rw`.
fn network_namespace(line: &[u8]) -> Option<PathBuf> {
    let mut words = line.split(|byte| *byte == b' ').skip(3);
    let (root, point) = (words.next()?, words.next()?);
    let kind = words.skip_while(|word| *word != b"-").nth(1)?;
    let is_namespace = kind == b"nsfs" && root.starts_with(b"net:[");
    is_namespace.then(|| OsString::from_vec(unescaped(point)).into())
}

/// The kernel writes a blank, a line end or a backslash of a path as a backslash and three octal digits.
fn unescaped(mut text: &[u8]) -> Vec<u8> {
    let octal = |text: &[u8]| {
        let digits = std::str::from_utf8(text.strip_prefix(b"\\")?.get(..3)?).ok()?;
        u8::from_str_radix(digits, 8).ok()
    };
    let mut out = Vec::with_capacity(text.len());
    while let Some((first, rest)) = text.split_first() {
        let escaped = octal(text);
        out.push(escaped.unwrap_or(*first));
        text = if escaped.is_some() { &text[4..] } else { rest };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mounted_network_namespace_is_found_and_nothing_else_is() {
        let line = br"36 25 0:4 net:[4026532001] /run/netns/a\040b\134c rw shared:1 - nsfs nsfs rw";
        assert_eq!(network_namespace(line), Some(r"/run/netns/a b\c".into()));
        for other in [
            "36 25 0:4 mnt:[4026532001] /x rw - nsfs nsfs rw",
            "36 25 0:4 / / rw - ext4 /dev/x rw",
            "36 25 0:4 net:[4026532001] /x rw",
            "",
        ] {
            assert_eq!(network_namespace(other.as_bytes()), None, "{other}");
        }
        for odd in [r"\", r"\04", r"\777", r"\08x"] {
            assert_eq!(unescaped(odd.as_bytes()), odd.as_bytes());
        }
    }

    #[test]
    fn this_machines_mounts_can_be_read() {
        network_namespaces().unwrap();
    }
}
