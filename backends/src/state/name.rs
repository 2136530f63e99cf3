//! Interface names and MAC addresses: small, copied, ordered.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An interface name, at most 15 bytes (`IFNAMSIZ` less the closing NUL). Copied, never allocated: a node with
/// ten thousand peers holds thirty thousand of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IfName([u8; 15]);

/// Why a text is no interface name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("interface name {0:?}: 1 to 15 bytes, no `/`, `:` or white space, not `.` or `..`")]
pub struct BadIfName(String);

impl IfName {
    /// The text.
    pub fn as_str(&self) -> &str {
        let len = self.0.iter().position(|b| *b == 0).unwrap_or(self.0.len());
        std::str::from_utf8(&self.0[..len]).unwrap_or("?")
    }

    /// A name the kernel told us: cut at 15 bytes, never refused.
    pub fn from_kernel(bytes: &[u8]) -> Self {
        let mut name = [0; 15];
        let text = bytes.split(|b| *b == 0).next().unwrap_or_default();
        let len = text.len().min(15);
        name[..len].copy_from_slice(&text[..len]);
        Self(name)
    }
}

impl FromStr for IfName {
    type Err = BadIfName;

    fn from_str(text: &str) -> Result<Self, BadIfName> {
        let bad = |c: char| c == '/' || c == ':' || c == '\0' || c.is_whitespace();
        if text.is_empty() || text.len() > 15 || text == "." || text == ".." || text.contains(bad) {
            return Err(BadIfName(text.chars().take(64).collect()));
        }
        Ok(Self::from_kernel(text.as_bytes()))
    }
}

impl TryFrom<String> for IfName {
    type Error = BadIfName;

    fn try_from(text: String) -> Result<Self, BadIfName> {
        text.parse()
    }
}

impl From<IfName> for String {
    fn from(name: IfName) -> Self {
        name.as_str().to_owned()
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl TryFrom<String> for Mac {
    type Error = BadMac;

    fn try_from(text: String) -> Result<Self, BadMac> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

/// Why a text is no MAC address.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("MAC address {0:?}: six bytes in hexadecimal, separated by colons")]
pub struct BadMac(String);

impl FromStr for Mac {
    type Err = BadMac;

    fn from_str(text: &str) -> Result<Self, BadMac> {
        let parse = || {
            let mut mac = [0; 6];
            let mut parts = text.split(':');
            for byte in &mut mac {
                let part =
                    parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))?;
                *byte = u8::from_str_radix(part, 16).ok()?;
            }
            parts.next().is_none().then_some(Self(mac))
        };
        parse().ok_or_else(|| BadMac(text.chars().take(64).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_fifteen_bytes_fits_and_sixteen_do_not() {
        assert_eq!("flannel-v6.1234".parse::<IfName>().unwrap().as_str(), "flannel-v6.1234");
        assert!("flannel-v6.12345".parse::<IfName>().is_err());
        assert!("a/b".parse::<IfName>().is_err());
    }

    #[test]
    fn a_mac_reads_back_as_it_prints() {
        let mac: Mac = "0e:01:ff:00:a0:0b".parse().unwrap();
        assert_eq!(mac.to_string(), "0e:01:ff:00:a0:0b");
        assert!("0e:01:ff:00:a0".parse::<Mac>().is_err());
        assert!("+e:01:ff:00:a0:0b".parse::<Mac>().is_err());
    }
}
