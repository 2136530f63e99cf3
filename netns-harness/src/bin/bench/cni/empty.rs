//! A program that does nothing, to measure what a start costs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Result, bail};
use netns_harness::Host;

/// exit(0) in machine code.
const CODE: &[u8] = if cfg!(target_arch = "x86_64") {
    // xor edi, edi; mov eax, 60; syscall
    &[0x31, 0xff, 0xb8, 0x3c, 0, 0, 0, 0x0f, 0x05]
} else if cfg!(target_arch = "aarch64") {
    // mov x0, #0; mov x8, #93; svc #0
    &[0, 0, 0x80, 0xd2, 0xa8, 0x0b, 0x80, 0xd2, 0x01, 0, 0, 0xd4]
} else {
    &[]
};
/// EM_X86_64, EM_AARCH64 of elf.h.
const MACHINE: u16 = if cfg!(target_arch = "aarch64") { 183 } else { 62 };
const BASE: u64 = 0x40_0000;
const HEADERS: u64 = 64 + 56;

/// Writes it to the host's /run; the path is this machine's.
pub(super) fn program(host: &Host) -> Result<PathBuf> {
    if CODE.is_empty() {
        bail!("no empty program for this processor");
    }
    let path = host.path("/run/empty");
    fs::write(&path, elf())?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// The smallest static ELF file: its header, one segment, the code.
fn elf() -> Vec<u8> {
    let size = HEADERS + CODE.len() as u64;
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let half = |file: &mut Vec<u8>, value: u16| file.extend(value.to_le_bytes());
    let word = |file: &mut Vec<u8>, value: u32| file.extend(value.to_le_bytes());
    let long = |file: &mut Vec<u8>, value: u64| file.extend(value.to_le_bytes());
    // ET_EXEC, machine, version; entry, program headers, no sections.
    half(&mut file, 2);
    half(&mut file, MACHINE);
    word(&mut file, 1);
    [BASE + HEADERS, 64, 0].into_iter().for_each(|value| long(&mut file, value));
    word(&mut file, 0);
    [64, 56, 1, 64, 0, 0].into_iter().for_each(|value| half(&mut file, value));
    // PT_LOAD, readable and executable: the whole file at BASE.
    word(&mut file, 1);
    word(&mut file, 5);
    [0, BASE, BASE, size, size, 0x1000].into_iter().for_each(|value| long(&mut file, value));
    file.extend(CODE);
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_runs_it_and_it_says_that_all_is_well() {
        let path = std::env::temp_dir().join(format!("empty-{}", std::process::id()));
        fs::write(&path, elf()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let status = std::process::Command::new(&path).status();
        fs::remove_file(&path).unwrap();
        assert!(status.unwrap().success());
    }
}
