//! Tests that need no kernel, no network and no root: the fake kernel's laws, worlds of many daemons, golden
//! cases, properties.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod conformance;
mod daemon;
mod diff;
mod fights;
mod fuzz;
mod golden;
mod host;
mod networks;
mod properties;
mod record;
mod strangers;
mod values;
mod vanish;
mod world;
