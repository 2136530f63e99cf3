//! The attributes of an expression, and the expression that they are.

use super::{
    CT_ORIGINAL, DATA_VERDICT, EQUAL, Expr, FIB_DESTINATION, FIB_TYPE, GOTO, JUMP, MASK_AND_FLIP,
    NAT_DESTINATION, NAT_MAPS, NOT_EQUAL, RETURN, VERDICT_REGISTER, Verdict,
};
use crate::netlink::Attrs;
use crate::netlink::nft::message::{DATA_VALUE, NF_ACCEPT, NF_DROP, TableFamily, be32, text};

/// The attributes of an expression.
pub(super) struct ExprBody<'a>(pub(super) &'a [u8]);

impl<'a> ExprBody<'a> {
    /// The expression; none if it has anything that we would not write.
    pub(super) fn read(&self, name: &str) -> Option<Expr> {
        let known = match name {
            "payload" => self.has_only(4),
            "meta" => self.has_only(2),
            "ct" | "fib" | "cmp" => self.has_only(3),
            "bitwise" => self.has_only(6),
            "lookup" => self.has_only(5) && self.number(5).unwrap_or(0) == 0,
            "masq" => self.has_only(1),
            "nat" => self.has_only(7) && self.number(7).unwrap_or(0) & !NAT_MAPS == 0,
            _ => true,
        };
        if !known {
            return None;
        }
        Some(match name {
            "payload" => Expr::Payload {
                base: self.number(2)?,
                offset: self.number(3)?,
                len: self.number(4)?,
                slot: self.slot(1)?,
            },
            "meta" => Expr::Meta { key: self.number(2)?, slot: self.slot(1)? },
            "ct" => Expr::Connection {
                key: self.number(2)?,
                original: self.find(3).map_or(Some(false), |way| (way == [CT_ORIGINAL]).then_some(true))?,
                slot: self.slot(1)?,
            },
            "fib" if self.number(2)? == FIB_TYPE && self.number(3)? == FIB_DESTINATION => {
                Expr::RouteType { slot: self.slot(1)? }
            }
            "bitwise" => {
                let (mask, flip) = (self.value(4)?, self.value(5)?);
                // The operation has a name only since Linux 5.6; before, there was no other.
                let plain =
                    flip.iter().all(|b| *b == 0) && self.number(6).unwrap_or(MASK_AND_FLIP) == MASK_AND_FLIP;
                let whole = self.number(3)? as usize == mask.len() && flip.len() == mask.len();
                let slot = self.slot(1)?;
                (plain && whole && self.slot(2)? == slot).then(|| Expr::Mask { slot, mask: mask.to_vec() })?
            }
            "cmp" => {
                let equal =
                    [EQUAL, NOT_EQUAL].contains(&self.number(2)?).then(|| self.number(2) == Some(EQUAL))?;
                Expr::Compare { slot: self.slot(1)?, equal, bytes: self.value(3)?.to_vec() }
            }
            "lookup" => Expr::Lookup {
                set: text(self.find(1)?)?.to_owned(),
                slot: self.slot(2)?,
                into: self.find(3).map_or(Some(None), |_| self.slot(3).map(Some))?,
            },
            "immediate" if self.number(1)? == VERDICT_REGISTER => Expr::Verdict(self.verdict()?),
            "masq" => Expr::Masquerade { flags: self.find(1).map_or(Some(0), be32)? },
            "nat" if self.number(1)? == NAT_DESTINATION && self.same(3, 4) && self.same(5, 6) => {
                let family = u8::try_from(self.number(2)?).ok().map(TableFamily)?;
                let [family] = *family.families() else { return None };
                Expr::TranslateTo { family, address: self.slot(3)?, port: self.slot(5)? }
            }
            "match" => Expr::Match {
                name: text(self.find(1)?)?.to_owned(),
                info: self.find(3).unwrap_or_default().to_vec(),
            },
            "target" => Expr::Target { name: text(self.find(1)?)?.to_owned() },
            _ => return None,
        })
    }

    fn verdict(&self) -> Option<Verdict> {
        let verdict = ExprBody(Attrs::new(self.find(2)?).find(DATA_VERDICT)?);
        let chain = || Some(text(verdict.find(2)?)?.to_owned());
        let plain = self.has_only(2) && verdict.has_only(1);
        Some(match verdict.number(1)? {
            NF_ACCEPT if plain => Verdict::Accept,
            NF_DROP if plain => Verdict::Drop,
            RETURN if plain => Verdict::Return,
            JUMP => Verdict::Jump(chain()?),
            GOTO => Verdict::Goto(chain()?),
            _ => return None,
        })
    }

    fn find(&self, kind: u16) -> Option<&'a [u8]> {
        Attrs::new(self.0).find(kind)
    }

    fn number(&self, kind: u16) -> Option<u32> {
        self.find(kind).and_then(be32)
    }

    fn slot(&self, kind: u16) -> Option<u32> {
        slot_of(self.number(kind)?)
    }

    fn value(&self, kind: u16) -> Option<&'a [u8]> {
        Attrs::new(self.find(kind)?).find(DATA_VALUE)
    }

    /// The kernel repeats the first register of a range as its last.
    fn same(&self, first: u16, last: u16) -> bool {
        self.find(last).is_none_or(|last| self.find(first) == Some(last))
    }

    /// Nothing beyond the attributes that we read.
    fn has_only(&self, highest: u16) -> bool {
        Attrs::new(self.0).all(|(kind, _)| kind <= highest)
    }
}

fn slot_of(register: u32) -> Option<u32> {
    match register {
        1..=4 => Some((register - 1) * 4),
        8..=23 => Some(register - 8),
        _ => None,
    }
}
