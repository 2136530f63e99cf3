//! The folders of each crate, from the bottom to the top.

use super::{Folder, Upward};

/// Crate, and its folders with what they use.
pub(super) const CRATES: &[(&str, &[Folder])] = &[
    ("subnet-lease", SUBNET_LEASE),
    ("backends", BACKENDS),
    ("flanneld", FLANNELD),
    ("cni-plugin", CNI_PLUGIN),
];

/// Arrows that point up: crate, folder, and what it uses. This list may only become shorter.
pub(super) const UPWARD: &[Upward] = &[
    // A record is a lease as bytes, and a lease keeps the unknown fields of its record.
    ("subnet-lease", "format", "model"),
    ("subnet-lease", "attrs", "model"),
    // A store in memory chooses subnets itself.
    ("subnet-lease", "store", "admit"),
];

const SUBNET_LEASE: &[Folder] = &[
    ("format", &[]),
    ("attrs", &["format"]),
    ("model", &["format", "attrs"]),
    ("store", &["format", "attrs", "model"]),
    ("admit", &["attrs", "model", "store"]),
    ("server", &["store"]),
    ("simulation", &["model", "store", "admit", "server"]),
];

const BACKENDS: &[Folder] = &[
    ("local", &["subnet-lease"]),
    ("netlink", &["local", "subnet-lease"]),
    ("rules", &["local", "netlink", "subnet-lease"]),
    ("state", &["netlink", "rules", "subnet-lease"]),
    ("plan", &["netlink", "rules", "state", "subnet-lease"]),
    ("plane", &["subnet-lease"]),
    ("backend", &["plan", "plane", "state", "subnet-lease"]),
    ("kernel", &["local", "netlink", "plan", "rules", "state", "subnet-lease"]),
];

const FLANNELD: &[Folder] = &[
    ("exit", &[]),
    ("cli", &["exit"]),
    ("host", &["cli", "backends", "subnet-lease"]),
    ("core", &["exit", "host", "backends", "subnet-lease"]),
    ("config", &["exit", "cli", "host", "core", "backends", "subnet-lease"]),
    ("recorder", &["core", "backends", "subnet-lease"]),
    ("shell", &["exit", "cli", "config", "host", "core", "recorder", "backends", "subnet-lease"]),
    ("serve", &["exit", "host", "core", "shell", "backends", "subnet-lease"]),
    ("daemon", &["exit", "cli", "config", "host", "core", "shell", "serve", "backends", "subnet-lease"]),
    (
        "admin",
        &[
            "exit",
            "cli",
            "config",
            "host",
            "core",
            "recorder",
            "shell",
            "serve",
            "daemon",
            "backends",
            "subnet-lease",
        ],
    ),
];

const CNI_PLUGIN: &[Folder] = &[
    ("contract", &["backends", "subnet-lease"]),
    ("sys", &["contract", "backends", "subnet-lease"]),
    ("plugin", &["contract", "sys", "backends", "subnet-lease"]),
    ("entry", &[]),
];
