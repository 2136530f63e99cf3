//! The daemon `flanneld`: one loop that joins the store and the kernel. `flannelctl`, the same program under another name, is for people.
//!
//! ```text
//!   cli ─▶ config ─▶ daemon ─▶ shell                          what the command line asks for, then the loop
//!                                │ inputs        ▲
//!   store ── changes ───────────▶│               │ effects
//!   kernel ── notifications ────▶│               │
//!   subnet.env, timers ─────────▶▼               │
//!                              NodeCore: net-conf, own lease, peers, facts ─▶ wish ─▶ diff ─▶ plan       pure
//!                                                │
//!                                                ├─▶ read the kernel, apply a plan         a thread of its own
//!                                                ├─▶ claim the lease                       the store's client
//!                                                ├─▶ publish subnet.env, notify systemd
//!                                                └─▶ end the process with an exit code
//!   recorder: every input before the core sees it, and what the core decided
//!   serve:    status socket, health server, metrics; they read copies of the core's status
//! ```
//!
//! The core is a value without I/O, clock or `async`: inputs go in, effects come out. The shell performs the effects and is the only part
//! that waits. So a thousand cores run in one thread on a clock that jumps, and the recorded inputs of a daemon can be
//! replayed:
//!
//! ```
//! use flanneld::exit::Exit;
//!
//! // The exit codes are an interface for service managers; the meaning of a number never changes.
//! assert_eq!(Exit::ALL.map(|(exit, _)| exit.code()), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
//! ```
//!
//! What always holds:
//! - Nothing is written to the kernel before the net-conf, the own lease, a snapshot of the store and the underlay are known.
//! - Every input only starts a pass. No code decides by the kind of an event what has to change.
//! - Stopping changes nothing in the kernel. The first pass on an unchanged host is an empty plan.
//! - A daemon refuses to start beside another one of the same network, before it writes anything.
//! - No secret is in a log line, a status, a message or the recorder's file.

pub mod admin;
pub mod cli;
pub mod config;
pub mod core;
pub mod daemon;
pub mod exit;
pub mod host;
pub mod recorder;
pub mod serve;
pub mod shell;
