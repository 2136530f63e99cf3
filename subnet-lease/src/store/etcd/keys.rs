use crate::model::net::Subnets;

/// flannel's keys under one prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    /// The prefix is cleaned as Go's `path.Join` does, because flannel does so.
    pub(super) fn new(prefix: &str) -> Self {
        let mut parts: Vec<&str> = Vec::new();
        for part in prefix.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        let root = if prefix.starts_with('/') { "/" } else { "" };
        Self { prefix: format!("{root}{}", parts.join("/")) }
    }

    /// The net-conf's key.
    pub(super) fn config(&self) -> String {
        format!("{}/config", self.prefix)
    }

    /// What the keys of all leases, and nothing else, begin with.
    pub(super) fn subnets(&self) -> String {
        format!("{}/subnets/", self.prefix)
    }

    /// The first key behind all leases.
    pub(super) fn subnets_end(&self) -> String {
        // '0' follows '/'.
        format!("{}/subnets0", self.prefix)
    }

    /// What all keys of the network begin with, and the first key behind them.
    pub(super) fn all(&self) -> (String, String) {
        (format!("{}/", self.prefix), format!("{}0", self.prefix))
    }

    /// The key of one lease.
    pub(super) fn lease(&self, subnets: &Subnets) -> String {
        format!("{}{subnets}", self.subnets())
    }

    /// The last part of a lease's key.
    pub(super) fn name(&self, key: &[u8]) -> Option<String> {
        let name = key.strip_prefix(self.subnets().as_bytes())?;
        Some(String::from_utf8_lossy(name).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_where_flannel_puts_them_whatever_the_slashes() {
        for prefix in ["/coreos.com/network", "/coreos.com/network/", "//coreos.com/./x/../network"] {
            let keys = Keys::new(prefix);
            assert_eq!(keys.config(), "/coreos.com/network/config");
            let subnets = "10.5.52.0-24".parse().unwrap();
            assert_eq!(keys.lease(&subnets), "/coreos.com/network/subnets/10.5.52.0-24");
        }
        assert_eq!(Keys::new("a").config(), "a/config");
    }

    #[test]
    fn a_neighbouring_key_is_not_taken_for_a_lease() {
        let keys = Keys::new("/n");
        assert_eq!(keys.name(b"/n/subnets/x").as_deref(), Some("x"));
        assert_eq!(keys.name(b"/n/subnetsX/10.5.52.0-24"), None);
        assert!(keys.subnets() < keys.subnets_end());
        assert!(keys.lease(&"10.5.52.0-24".parse().unwrap()) < keys.subnets_end());
    }
}
