//! Attributes as bytes, put together from the inside out.

use subnet_lease::Family;

use backends::netlink::{AF_INET, AF_INET6};

/// An attribute with these bytes.
pub(super) fn attr(kind: u16, payload: &[u8]) -> Vec<u8> {
    let len = payload.len() + 4;
    let mut bytes = Vec::with_capacity(len + 3);
    bytes.extend_from_slice(&u16::try_from(len).unwrap_or(u16::MAX).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(payload);
    bytes.resize(len.next_multiple_of(4), 0);
    bytes
}

/// A number; those of nf_tables are big-endian.
pub(super) fn number(kind: u16, value: u32) -> Vec<u8> {
    attr(kind, &value.to_be_bytes())
}

/// A text with its closing NUL.
pub(super) fn text(kind: u16, text: &str) -> Vec<u8> {
    attr(kind, &[text.as_bytes(), &[0]].concat())
}

/// Attributes inside one.
pub(super) fn nest(kind: u16, parts: &[Vec<u8>]) -> Vec<u8> {
    attr(kind | NESTED, &parts.concat())
}

/// A comment as nft writes it: one typed entry of user data, its text closed by a NUL.
pub(super) fn comment(kind: u16, text: &str) -> Vec<u8> {
    let text = text.as_bytes();
    let len = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    let text = &text[..text.len().min(usize::from(len) - 1)];
    attr(kind, &[&[COMMENT, len], text, &[0]].concat())
}

/// The text of a comment.
pub(crate) fn comment_text(user: &[u8]) -> Option<&str> {
    let (kind, rest) = user.split_first()?;
    let (len, rest) = rest.split_first()?;
    let bytes = rest.get(..usize::from(*len)).filter(|_| *kind == COMMENT)?;
    std::str::from_utf8(bytes.strip_suffix(&[0]).unwrap_or(bytes)).ok()
}

/// Whose packets a table sees: those of one version of IP, or all that enter a bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TableFamily {
    Ip(Family),
    Bridge,
}

impl From<Family> for TableFamily {
    fn from(family: Family) -> Self {
        Self::Ip(family)
    }
}

/// `struct nfgenmsg`: family, version, low half of the generation.
pub(super) fn fixed(family: impl Into<TableFamily>) -> [u8; 4] {
    let number = match family.into() {
        TableFamily::Ip(Family::V4) => AF_INET,
        TableFamily::Ip(Family::V6) => AF_INET6,
        TableFamily::Bridge => NFPROTO_BRIDGE,
    };
    [number, 0, 0, 0]
}

/// Size of `struct nfgenmsg`.
pub(super) const FIXED: usize = 4;
const NESTED: u16 = 0x8000;
const NFPROTO_BRIDGE: u8 = 7;
/// `NFTNL_UDATA_RULE_COMMENT` and `NFTNL_UDATA_SET_ELEM_COMMENT`.
const COMMENT: u8 = 0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_reads_back_and_one_too_long_is_cut_not_torn() {
        for text in ["", "net/c1/eth0", &"x".repeat(254)] {
            let bytes = comment(6, text);
            assert_eq!(comment_text(&bytes[4..]), Some(text));
        }
        assert_eq!(comment_text(&comment(6, &"x".repeat(300))[4..]), Some(&*"x".repeat(254)));
        for broken in [&[][..], &[0], &[0, 9, b'a'], &[1, 2, b'a', 0]] {
            assert_eq!(comment_text(broken), None, "{broken:?}");
        }
    }
}
