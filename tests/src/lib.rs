//! What needs more than one crate, or a kernel, to be tested.

pub mod budget;
pub mod conformance;
pub mod fuzz;
pub mod lines;
pub mod solo;
pub mod world;
