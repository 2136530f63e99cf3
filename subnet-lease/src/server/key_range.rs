//! Which keys a request means: one, a span, or everything from a key on.

use std::ops::Bound;

/// Where a search in a tree map starts and ends.
type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// The keys meant by a pair of `key` and `range_end`, as etcd reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum KeyRange {
    One(Vec<u8>),
    /// From the first key up to, not including, the second. Empty when they are not in order.
    Span(Vec<u8>, Vec<u8>),
    From(Vec<u8>),
}

impl KeyRange {
    /// An empty `range_end` means `key` alone, and one zero byte means every key from `key` on.
    pub(crate) fn new(key: &[u8], range_end: &[u8]) -> Self {
        match range_end {
            [] => Self::One(key.to_vec()),
            [0] => Self::From(key.to_vec()),
            end => Self::Span(key.to_vec(), end.to_vec()),
        }
    }

    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::One(only) => key == only,
            Self::Span(from, to) => from.as_slice() <= key && key < to.as_slice(),
            Self::From(from) => from.as_slice() <= key,
        }
    }

    /// Bytes that it takes.
    pub(crate) fn weight(&self) -> usize {
        match self {
            Self::One(key) | Self::From(key) => key.len(),
            Self::Span(from, to) => from.len() + to.len(),
        }
    }

    /// True for a span whose end does not lie behind its start.
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::Span(from, to) if to <= from)
    }

    /// Bounds for a search in a tree map; `None` for an empty span, which such a search refuses.
    pub(crate) fn bounds(&self) -> Option<Bounds<'_>> {
        match self {
            _ if self.is_empty() => None,
            Self::One(only) => Some((Bound::Included(only), Bound::Included(only))),
            Self::Span(from, to) => Some((Bound::Included(from), Bound::Excluded(to))),
            Self::From(from) => Some((Bound::Included(from), Bound::Unbounded)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_end_means_one_key_and_a_zero_byte_means_all_that_follow() {
        assert!(KeyRange::new(b"b", b"").contains(b"b"));
        assert!(!KeyRange::new(b"b", b"").contains(b"ba"));
        assert!(KeyRange::new(b"b", b"\0").contains(b"zz"));
        assert!(!KeyRange::new(b"b", b"\0").contains(b"a"));
        assert!(!KeyRange::new(b"b", b"c").contains(b"c"));
    }

    #[test]
    fn a_span_that_ends_before_it_starts_holds_nothing() {
        let backwards = KeyRange::new(b"c", b"a");
        assert!(backwards.is_empty() && backwards.bounds().is_none() && !backwards.contains(b"b"));
    }
}
