//! What the tests share that need more than one crate, or a kernel.
//!
//! ```text
//!   budget, arrows     what the crates may depend on, and how large the plugin may be
//!   documents, words  the documents name only files and tests that exist; words that must not come back
//!   solo, lines        one daemon on a fake kernel; an operator's lines for it
//!   world              many daemons on fake kernels, one clock, one seed
//!   conformance        the laws of the kernel, as functions for the fake and the real one
//!   fuzz               mutated bytes for every reader of bytes from outside
//! ```
//!
//! The suites are in `suites/`, recorded cases in `golden/`, real programs to test against in `peers/`.

pub mod arrows;
pub mod budget;
pub mod conformance;
pub mod documents;
pub mod fuzz;
pub mod lines;
pub mod solo;
pub mod words;
pub mod world;
