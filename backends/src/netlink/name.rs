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
#[error("interface name {0:?}: 1 to 15 bytes, no `/`, `:`, `%` or white space, not `.` or `..`")]
pub struct BadIfName(String);

impl IfName {
    /// The text.
    pub fn as_str(&self) -> &str {
        let len = self.0.iter().position(|b| *b == 0).unwrap_or(self.0.len());
        std::str::from_utf8(&self.0[..len]).unwrap_or("?")
    }

    /// A name from the kernel: cut at 15 bytes, never refused.
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
        // The kernel replaces `%d` by a number and refuses any other `%`.
        let bad = |c: char| matches!(c, '/' | ':' | '%' | '\0') || c.is_whitespace();
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
#[error("MAC address {0:?}: six bytes in hexadecimal, as 0a:58:0a:f4:01:02")]
pub struct BadMac(String);

impl FromStr for Mac {
    type Err = BadMac;

    fn from_str(text: &str) -> Result<Self, BadMac> {
        // The three forms that Go reads, too: 0a:58:…, 0a-58-… and 0a58.….…
        let forms = [(':', 2), ('-', 2), ('.', 4)];
        let parse = |(separator, digits)| {
            let mut parts = text.split(separator);
            let is_group = |p: &str| p.len() == digits && p.bytes().all(|b| b.is_ascii_hexdigit());
            let number =
                parts.all(is_group).then(|| text.replace(separator, "")).filter(|all| all.len() == 12)?;
            let [_, _, mac @ ..] = u64::from_str_radix(&number, 16).ok()?.to_be_bytes();
            Some(Self(mac))
        };
        forms.into_iter().find_map(parse).ok_or_else(|| BadMac(text.chars().take(64).collect()))
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
        assert!("eth%d".parse::<IfName>().is_err());
    }

    #[test]
    fn a_mac_reads_back_as_it_prints() {
        let mac: Mac = "0e:01:ff:00:a0:0b".parse().unwrap();
        assert_eq!(mac.to_string(), "0e:01:ff:00:a0:0b");
        for other in ["0e-01-ff-00-a0-0b", "0e01.ff00.a00b", "0E:01:FF:00:A0:0B"] {
            assert_eq!(other.parse(), Ok(mac));
        }
        for bad in [
            "0e:01:ff:00:a0",
            "+e:01:ff:00:a0:0b",
            "0e:01-ff:00:a0:0b",
            "0e01ff00a00b",
            "0e01.ff00.a00b.0000",
            "",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }
}
