//! The folders of each crate, from the bottom to the top.

use super::{Folder, Upward};

/// Crate, and its folders with what they use.
pub(super) const CRATES: &[(&str, &[Folder])] = &[
    (
        "subnet-lease",
        &[
            ("format", &[]),
            ("attrs", &["format"]),
            ("model", &["format", "attrs"]),
            ("store", &["format", "attrs", "model"]),
            ("admit", &["attrs", "model", "store"]),
            ("server", &["store"]),
            ("simulation", &["model", "store", "admit", "server"]),
        ],
    ),
    (
        "backends",
        &[
            ("local", &[]),
            ("rules", &["subnet-lease"]),
            ("state", &["rules", "subnet-lease"]),
            ("netlink", &["local", "rules", "state", "subnet-lease"]),
            ("plan", &["netlink", "rules", "state", "subnet-lease"]),
            ("plane", &["subnet-lease"]),
            ("backend", &["plan", "plane", "state", "subnet-lease"]),
            ("kernel", &["local", "netlink", "plan", "rules", "state", "subnet-lease"]),
        ],
    ),
    (
        "cni-plugin",
        &[
            ("contract", &["backends"]),
            ("sys", &["contract", "backends", "subnet-lease"]),
            ("plugin", &["contract", "sys", "backends", "subnet-lease"]),
            ("entry", &[]),
        ],
    ),
];

/// Arrows that point up: crate, folder, and what it uses. This list may only become shorter.
pub(super) const UPWARD: &[Upward] = &[
    // A record is a lease as bytes, and subnet.env is a subnet as text: both sides know each other.
    ("subnet-lease", "format", "model"),
    ("subnet-lease", "attrs", "model"),
    // The errors of a claim are those of the store.
    ("subnet-lease", "store", "admit"),
    // A state prints itself as the lines of a plan.
    ("backends", "state", "plan"),
];
