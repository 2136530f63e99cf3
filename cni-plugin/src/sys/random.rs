//! Names and Ethernet addresses that nobody else has.

use std::hash::{BuildHasher, RandomState};

use backends::Mac;

/// Eight random bytes: the standard library seeds its hashers from the system.
pub(crate) fn bytes() -> [u8; 8] {
    RandomState::new().hash_one(()).to_ne_bytes()
}

/// A random Ethernet address, locally administered, of one station.
pub(crate) fn mac() -> Mac {
    let [a, b, c, d, e, f, ..] = bytes();
    Mac([a & 0xfc | 0x02, b, c, d, e, f])
}
