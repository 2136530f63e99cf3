//! Writing: many messages in one buffer, each with its attributes.

use super::attrs::align;

/// Messages to send together. Build with [`Batch::message`] and the attribute calls, send with
/// [`Socket::apply`](super::Socket::apply).
#[derive(Debug, Default, Clone)]
pub struct Batch {
    bytes: Vec<u8>,
    starts: Vec<usize>,
}

/// An open nest; close it with [`Batch::end`].
#[must_use = "a nest has no length until it is closed"]
pub struct Nest(usize);

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// A batch of one message.
    pub(crate) fn of(fill: impl FnOnce(&mut Self) -> &mut Self) -> Self {
        let mut batch = Self::new();
        fill(&mut batch);
        batch
    }

    /// Begins a message with its type, flags (`NLM_F_REQUEST` included by the caller) and fixed part.
    pub fn message(&mut self, kind: u16, flags: u16, fixed: &[u8]) -> &mut Self {
        self.close();
        self.starts.push(self.bytes.len());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 8]);
        self.bytes.extend_from_slice(fixed);
        self.pad();
        self
    }

    /// Adds an attribute to the message begun last.
    pub fn attr(&mut self, kind: u16, payload: &[u8]) -> &mut Self {
        let len = u16::try_from(payload.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&payload[..usize::from(len) - 4]);
        self.pad();
        self
    }

    /// Adds an attribute of four bytes, host order.
    pub fn attr_u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// Adds an attribute of one byte.
    pub fn attr_u8(&mut self, kind: u16, value: u8) -> &mut Self {
        self.attr(kind, &[value])
    }

    /// Adds a text with its closing NUL.
    pub fn attr_str(&mut self, kind: u16, text: &str) -> &mut Self {
        let mut bytes = Vec::with_capacity(text.len() + 1);
        bytes.extend_from_slice(text.as_bytes());
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    /// Opens a nest.
    pub fn nest(&mut self, kind: u16) -> Nest {
        let nest = Nest(self.bytes.len());
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        nest
    }

    /// Adds bytes as they are, for the fixed part inside a nest (a peer's link header).
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self.pad();
        self
    }

    /// Closes a nest.
    pub fn end(&mut self, nest: Nest) -> &mut Self {
        let len = u16::try_from(self.bytes.len() - nest.0).unwrap_or(u16::MAX);
        self.bytes[nest.0..nest.0 + 2].copy_from_slice(&len.to_ne_bytes());
        self
    }

    /// Adds the messages of another batch.
    pub fn append(&mut self, mut other: Self) {
        self.close();
        other.close();
        self.starts.extend(other.starts.iter().map(|start| start + self.bytes.len()));
        self.bytes.extend_from_slice(&other.bytes);
    }

    /// Messages in the batch.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Writes lengths and sequence numbers (consecutive from `first`), asks for an acknowledgement on every `every`-th
    /// message and on the last, and yields the ranges of at most `every` messages to send one after the other.
    pub(super) fn seal(&mut self, first: u32, every: usize) -> Vec<std::ops::Range<usize>> {
        self.number(first);
        let mut ranges = Vec::with_capacity(self.starts.len() / every + 1);
        for (n, start) in self.starts.iter().copied().enumerate() {
            let last_of_range = n + 1 == self.starts.len() || (n + 1).is_multiple_of(every);
            if last_of_range {
                self.bytes[start + 6] |= NLM_F_ACK;
                let from = self.starts[n - n % every];
                let to = self.starts.get(n + 1).copied().unwrap_or(self.bytes.len());
                ranges.push(from..to);
            }
        }
        ranges
    }

    /// Writes lengths and sequence numbers (consecutive from `first`).
    pub(super) fn number(&mut self, first: u32) {
        self.close();
        for (n, start) in self.starts.iter().copied().enumerate() {
            let sequence = first.wrapping_add(u32::try_from(n).unwrap_or(u32::MAX));
            self.bytes[start + 8..start + 12].copy_from_slice(&sequence.to_ne_bytes());
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Fixes the length of the message begun last.
    fn close(&mut self) {
        if let Some(start) = self.starts.last() {
            let len = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
            self.bytes[*start..start + 4].copy_from_slice(&len.to_ne_bytes());
        }
    }

    fn pad(&mut self) {
        self.bytes.resize(align(self.bytes.len()), 0);
    }

    #[cfg(test)]
    pub(crate) fn seal_for_test(mut self, sequence: u32) -> Vec<u8> {
        self.seal(sequence, usize::MAX);
        self.bytes
    }
}

const NLA_F_NESTED: u16 = 0x8000;
const NLM_F_ACK: u8 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_message_of_a_range_asks_for_an_answer() {
        let mut batch = Batch::new();
        for _ in 0..5 {
            batch.message(24, 1, &[0; 12]);
        }
        let ranges = batch.seal(7, 2);
        assert_eq!(ranges, [0..56, 56..112, 112..140]);
        let asks: Vec<_> = batch.starts.iter().map(|s| batch.bytes[s + 6] & NLM_F_ACK != 0).collect();
        assert_eq!(asks, [false, true, false, true, true]);
        assert_eq!(batch.bytes[batch.starts[4] + 8], 11);
    }
}
