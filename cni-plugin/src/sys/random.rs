//! Random Ethernet addresses.

use backends::Mac;
use backends::local::random;

/// A random Ethernet address, locally administered, of one station.
pub(crate) fn mac() -> Mac {
    let [a, rest @ ..] = random::bytes::<6>();
    let [b, c, d, e, f] = rest;
    Mac([a & 0xfc | 0x02, b, c, d, e, f])
}
