use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::model::net::{Family, address, contains_net, number, step};

/// The subnets that one family of a network has to give: `network` cut into pieces of `subnet_len`, of which those
/// from `min` to `max` (both included, both aligned) may be leased.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkPool {
    /// The whole network.
    pub network: IpNetwork,
    /// Length of every leased subnet.
    pub subnet_len: u8,
    /// First subnet given out.
    pub min: IpAddr,
    /// Last subnet given out.
    pub max: IpAddr,
}

impl NetworkPool {
    /// IPv4 or IPv6.
    pub fn family(&self) -> Family {
        Family::of(&self.network.ip())
    }

    /// How many subnets there are to lease.
    pub fn room(&self) -> u128 {
        let distance = number(self.max).saturating_sub(number(self.min));
        distance / step(self.family(), self.subnet_len) + 1
    }

    /// The subnet at a place between 0 and [`room`](Self::room).
    pub fn at(&self, index: u128) -> Option<IpNetwork> {
        if index >= self.room() {
            return None;
        }
        let start = number(self.min) + index * step(self.family(), self.subnet_len);
        IpNetwork::new(address(self.family(), start)?, self.subnet_len).ok()
    }

    /// Whether a subnet may be a lease of this network at all: inside it, and of a length that a net-conf may ask for,
    /// since leases of an earlier net-conf live on. Whatever else stands in the store takes no room.
    pub fn could_lease(&self, subnet: IpNetwork) -> bool {
        contains_net(self.network, subnet) && self.lengths().contains(&subnet.prefix())
    }

    /// The lengths of subnets that a net-conf may ask for.
    pub(crate) fn lengths(&self) -> RangeInclusive<u8> {
        self.network.prefix() + 2..=self.family().bits() - 2
    }

    /// The place of a subnet; `None` unless it is exactly one that this pool gives out.
    pub fn index(&self, subnet: IpNetwork) -> Option<u128> {
        let same_shape = Family::of(&subnet.ip()) == self.family() && subnet.prefix() == self.subnet_len;
        let start = number(subnet.network());
        let inside = (number(self.min)..=number(self.max)).contains(&start);
        (same_shape && inside).then(|| (start - number(self.min)) / step(self.family(), self.subnet_len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(network: &str, subnet_len: u8, min: &str, max: &str) -> NetworkPool {
        let addr = |text: &str| text.parse().unwrap();
        NetworkPool { network: network.parse().unwrap(), subnet_len, min: addr(min), max: addr(max) }
    }

    #[test]
    fn a_pool_at_the_end_of_all_addresses_gives_its_last_subnet_and_stops() {
        let pool = pool("255.255.0.0/16", 24, "255.255.1.0", "255.255.255.0");
        assert_eq!(pool.room(), 255);
        assert_eq!(pool.at(254).unwrap().to_string(), "255.255.255.0/24");
        assert_eq!(pool.at(255), None);
    }

    #[test]
    fn places_and_subnets_are_each_others_inverse() {
        let pool = pool("fc00::/48", 64, "fc00:0:0:1::", "fc00:0:0:ffff::");
        assert_eq!(pool.room(), 0xffff);
        for index in [0, 1, 0x7fff, 0xfffe] {
            assert_eq!(pool.index(pool.at(index).unwrap()), Some(index));
        }
    }

    #[test]
    fn a_subnet_of_another_length_or_place_is_not_from_this_pool() {
        let pool = pool("10.5.0.0/16", 24, "10.5.10.0", "10.5.20.0");
        for foreign in ["10.5.9.0/24", "10.5.21.0/24", "10.5.10.0/25", "10.6.10.0/24", "fc00::/64"] {
            assert_eq!(pool.index(foreign.parse().unwrap()), None, "{foreign}");
        }
    }
}
