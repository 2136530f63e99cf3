//! What all messages of nf_tables share: the header, texts, numbers and comments. Every constant of nf_tables is here or
//! beside the object it belongs to, and nowhere else.

use subnet_lease::Family;

use crate::netlink::link::REQUEST;
use crate::netlink::{AF_BRIDGE, AF_INET, AF_INET6, AF_UNSPEC, Attrs, Batch, RawMessage};

/// Whose packets a table sees: `ip`, `ip6`, `inet` (both) or `bridge`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TableFamily(pub u8);

impl TableFamily {
    /// Every family, in a request to read.
    pub const ANY: Self = Self(AF_UNSPEC);
    /// Packets of IPv4 and IPv6 in one table (`NFPROTO_INET`).
    pub const INET: Self = Self(1);
    /// Frames that enter a bridge (`NFPROTO_BRIDGE`).
    pub const BRIDGE: Self = Self(AF_BRIDGE);

    /// The versions of IP whose packets such a table sees.
    pub fn families(self) -> &'static [Family] {
        match self.0 {
            AF_INET => &[Family::V4],
            AF_INET6 => &[Family::V6],
            1 => &Family::ALL,
            _ => &[],
        }
    }
}

impl From<Family> for TableFamily {
    fn from(family: Family) -> Self {
        Self(if family == Family::V4 { AF_INET } else { AF_INET6 })
    }
}

/// The name that `nft` prints.
impl std::fmt::Display for TableFamily {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.0 {
            AF_INET => "ip",
            AF_INET6 => "ip6",
            1 => "inet",
            AF_BRIDGE => "bridge",
            _ => "other",
        })
    }
}

/// Begins a message of this kind (without the subsystem).
pub(super) fn message(batch: &mut Batch, kind: u16, flags: u16, family: TableFamily) -> &mut Batch {
    batch.message(SUBSYSTEM << 8 | kind, REQUEST | flags, &[family.0, 0, 0, 0])
}

/// The attributes of a message of one of these kinds.
pub(super) fn attributes<'a>(message: &RawMessage<'a>, kinds: &[u16]) -> Option<Attrs<'a>> {
    let ours = message.kind >> 8 == SUBSYSTEM && kinds.contains(&(message.kind & 0xff));
    ours.then(|| Attrs::after(message.payload, NFGENMSG))
}

/// A text without its closing NUL.
pub(super) fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes.strip_suffix(&[0]).unwrap_or(bytes)).ok()
}

/// Numbers of nf_tables are big-endian.
pub(super) fn be32(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_be_bytes)
}

/// Adds a number.
pub(super) fn number(batch: &mut Batch, kind: u16, value: u32) -> &mut Batch {
    batch.attr(kind, &value.to_be_bytes())
}

/// Adds bytes as `nft` nests them wherever a value can also be something else.
pub(super) fn value(batch: &mut Batch, kind: u16, bytes: &[u8]) {
    let nest = batch.nest(kind);
    batch.attr(DATA_VALUE, bytes).end(nest);
}

/// Adds a comment as `nft` writes it: one typed entry of user data, its text closed by a NUL. A text that is too long is cut.
pub(super) fn comment(batch: &mut Batch, kind: u16, text: &str) {
    let text = &text.as_bytes()[..text.len().min(LONGEST_COMMENT)];
    let len = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    batch.attr(kind, &[&[UDATA_COMMENT, len], text, &[0]].concat());
}

/// The text of a comment.
pub(super) fn comment_text(user: &[u8]) -> Option<&str> {
    let (kind, rest) = user.split_first()?;
    let (len, rest) = rest.split_first()?;
    if *kind != UDATA_COMMENT {
        return None;
    }
    text(rest.get(..usize::from(*len))?)
}

/// `NFNL_SUBSYS_NFTABLES`, the high half of a message's type.
pub(super) const SUBSYSTEM: u16 = 10;
/// Size of `struct nfgenmsg`: family, version, low half of the generation.
pub(super) const NFGENMSG: usize = 4;

pub(super) const NEWTABLE: u16 = 0;
pub(super) const GETTABLE: u16 = 1;
pub(super) const DELTABLE: u16 = 2;
pub(super) const NEWCHAIN: u16 = 3;
pub(super) const GETCHAIN: u16 = 4;
pub(super) const DELCHAIN: u16 = 5;
pub(super) const NEWRULE: u16 = 6;
pub(super) const GETRULE: u16 = 7;
pub(super) const DELRULE: u16 = 8;
pub(super) const NEWSET: u16 = 9;
pub(super) const GETSET: u16 = 10;
pub(super) const NEWELEMENT: u16 = 12;
pub(super) const GETELEMENT: u16 = 13;
pub(super) const DELELEMENT: u16 = 14;
pub(super) const NEWGENERATION: u16 = 15;
pub(super) const GETGENERATION: u16 = 16;

/// `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, `NFTA_RULE_TABLE`, `NFTA_SET_TABLE`, `NFTA_SET_ELEM_LIST_TABLE`.
pub(super) const TABLE: u16 = 1;
pub(super) const TABLE_FLAGS: u16 = 2;
pub(super) const TABLE_COMMENT: u16 = 6;

pub(super) const CHAIN_NAME: u16 = 3;
pub(super) const CHAIN_HOOK: u16 = 4;
pub(super) const CHAIN_POLICY: u16 = 5;
pub(super) const CHAIN_TYPE: u16 = 7;
pub(super) const CHAIN_FLAGS: u16 = 10;
pub(super) const HOOK_NUMBER: u16 = 1;
pub(super) const HOOK_PRIORITY: u16 = 2;

pub(super) const RULE_CHAIN: u16 = 2;
pub(super) const RULE_HANDLE: u16 = 3;
pub(super) const RULE_EXPRESSIONS: u16 = 4;
pub(super) const RULE_COMMENT: u16 = 7;

pub(super) const GENERATION_ID: u16 = 1;
pub(super) const GENERATION_PROGRAM: u16 = 3;

/// `NFTA_LIST_ELEM`.
pub(super) const LIST_ELEMENT: u16 = 1;
/// `NFTA_DATA_VALUE`.
pub(super) const DATA_VALUE: u16 = 1;
/// `NFTNL_UDATA_RULE_COMMENT`, and the same of elements.
const UDATA_COMMENT: u8 = 0;
/// Bytes of a comment that the kernel and `nft` take.
const LONGEST_COMMENT: usize = 254;

/// `NF_INET_PRE_ROUTING` and `NF_BR_PRE_ROUTING`.
pub const PREROUTING: u32 = 0;
/// `NF_INET_LOCAL_IN`.
pub const INPUT: u32 = 1;
/// `NF_INET_FORWARD`.
pub const FORWARD: u32 = 2;
/// `NF_INET_LOCAL_OUT`.
pub const OUTPUT: u32 = 3;
/// `NF_INET_POST_ROUTING`.
pub const POSTROUTING: u32 = 4;
/// `NF_DROP`, of a policy or a verdict.
pub const NF_DROP: u32 = 0;
/// `NF_ACCEPT`.
pub const NF_ACCEPT: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Messages;

    fn written(text: &str) -> Vec<u8> {
        let mut batch = Batch::new();
        comment(message(&mut batch, NEWRULE, 0, TableFamily::INET), RULE_COMMENT, text);
        let bytes = batch.seal_for_test(1);
        let message = Messages::new(&bytes).next().unwrap();
        attributes(&message, &[NEWRULE]).unwrap().find(RULE_COMMENT).unwrap().to_vec()
    }

    #[test]
    fn a_comment_reads_back_and_one_too_long_is_cut_not_torn() {
        for text in ["", "net/c1/eth0", &"x".repeat(254)] {
            assert_eq!(comment_text(&written(text)), Some(text));
        }
        assert_eq!(comment_text(&written(&"x".repeat(300))), Some(&*"x".repeat(254)));
        for broken in [&[][..], &[0], &[0, 9, b'a'], &[1, 2, b'a', 0]] {
            assert_eq!(comment_text(broken), None, "{broken:?}");
        }
    }
}
