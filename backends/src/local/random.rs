//! Random bytes of the kernel.

/// Random bytes.
#[allow(
    clippy::expect_used,
    reason = "every kernel since 3.17 has getrandom; without it no HashMap works either"
)]
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the kernel has getrandom");
    bytes
}

/// A random number, for a seed.
pub fn number() -> u64 {
    u64::from_ne_bytes(bytes())
}
