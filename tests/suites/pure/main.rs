//! Tests that need no kernel, no network and no root: the fake kernel's laws, worlds of many daemons, golden cases,
//! properties.

mod conformance;
mod daemon;
mod diff;
mod golden;
mod properties;
mod world;
