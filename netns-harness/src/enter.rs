//! The first call in `main`: gets the right to make namespaces, and ends cleanly on signals.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

use crate::live;

static ROOTLESS: AtomicBool = AtomicBool::new(false);

/// Prepares this process: an unprivileged user gets a user namespace of its own in which it is root, and
/// SIGINT, SIGTERM and SIGHUP end the process only after its hosts, processes and files are gone.
///
/// Call it first in `main`, before any thread exists: the kernel lets only a single-threaded process enter a
/// user namespace. As root, only the handling of signals depends on it.
///
/// # Errors
/// One sentence with the way out, when user namespaces are closed on this machine.
pub fn enter() -> Result<()> {
    if !geteuid().is_root() {
        become_root_inside()?;
        ROOTLESS.store(true, Ordering::Relaxed);
    }
    live::end_cleanly_on_signals().context("cannot watch for signals")
}

/// True when the process is root only inside a user namespace of its own making.
pub fn is_rootless() -> bool {
    ROOTLESS.load(Ordering::Relaxed)
}

fn become_root_inside() -> Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    if let Err(errno) =
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
    {
        bail!(
            "{}",
            why_closed().unwrap_or_else(|| format!("cannot make a user namespace: {errno}; run as root"))
        );
    }
    // The kernel requires that `setgroups` is denied before an unprivileged process may map its group.
    let maps = [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("0 {uid} 1")),
        ("gid_map", format!("0 {gid} 1")),
    ];
    for (file, text) in maps {
        fs::write(format!("/proc/self/{file}"), text).with_context(|| {
            why_closed().unwrap_or_else(|| {
                format!("cannot write /proc/self/{file} of a new user namespace; run as root")
            })
        })?;
    }
    // With AppArmor's restriction all calls so far succeed, but the namespace has no capabilities.
    if unshare(CloneFlags::CLONE_NEWNET).is_err() {
        bail!(
            "{}",
            why_closed().unwrap_or_else(|| "a user namespace gives no capabilities here; run as root".into())
        );
    }
    Ok(())
}

/// Which setting closes user namespaces on this machine, and how to open them.
pub(crate) fn why_closed() -> Option<String> {
    const SWITCHES: [(&str, &str, &str, &str); 3] = [
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "AppArmor gives user namespaces no rights (Ubuntu's default)",
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        (
            "kernel/unprivileged_userns_clone",
            "0",
            "user namespaces are closed to ordinary users",
            "kernel.unprivileged_userns_clone=1",
        ),
        ("user/max_user_namespaces", "0", "user namespaces are closed", "user.max_user_namespaces=15000"),
    ];
    let (.., why, way_out) = SWITCHES.iter().find(|(file, closed, ..)| {
        fs::read_to_string(format!("/proc/sys/{file}")).is_ok_and(|text| text.trim() == *closed)
    })?;
    Some(format!("{why}: run as root, or open them with `sudo sysctl -w {way_out}`"))
}
