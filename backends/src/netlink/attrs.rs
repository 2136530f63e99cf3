//! Reading: messages out of a datagram, attributes out of a message.

/// Header of a netlink message, in bytes.
pub(crate) const HEADER: usize = 16;

/// One message of a datagram.
#[derive(Debug, Clone, Copy)]
pub struct RawMessage<'a> {
    /// Message type (`RTM_…`, `NLMSG_…`).
    pub kind: u16,
    /// `NLM_F_…`.
    pub flags: u16,
    /// Sequence number of the request it answers; 0 for notifications.
    pub sequence: u32,
    /// Port id of the socket whose request caused it.
    pub port: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

/// The messages of a datagram; ends at the first one that does not fit.
#[derive(Debug, Clone)]
pub struct Messages<'a>(&'a [u8]);

impl<'a> Messages<'a> {
    /// Over the bytes of one datagram.
    pub fn new(datagram: &'a [u8]) -> Self {
        Self(datagram)
    }

    /// Whether bytes are left that are no message. After the last message this means that the datagram was cut short.
    pub fn is_broken(&self) -> bool {
        !self.0.is_empty() && self.clone().next().is_none()
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = RawMessage<'a>;

    fn next(&mut self) -> Option<RawMessage<'a>> {
        let len = read_u32(self.0)? as usize;
        let body = self.0.get(HEADER..len)?;
        let message = RawMessage {
            kind: read_u16(&self.0[4..])?,
            flags: read_u16(&self.0[6..])?,
            sequence: read_u32(&self.0[8..])?,
            port: read_u32(&self.0[12..])?,
            payload: body,
        };
        self.0 = self.0.get(align(len)..).unwrap_or_default();
        Some(message)
    }
}

/// The attributes of a message or of a nest: type without its flag bits, and bytes. Ends at the first one that does
/// not fit.
#[derive(Clone, Debug)]
pub struct Attrs<'a>(&'a [u8]);

impl<'a> Attrs<'a> {
    /// Over the bytes of a nest.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Over what follows a message's fixed part of `skip` bytes.
    pub fn after(payload: &'a [u8], skip: usize) -> Self {
        Self(payload.get(align(skip)..).unwrap_or_default())
    }

    /// The bytes of the first attribute of this type.
    pub fn find(self, kind: u16) -> Option<&'a [u8]> {
        let mut attrs = self;
        attrs.find_map(|(k, bytes)| (k == kind).then_some(bytes))
    }
}

impl<'a> Iterator for Attrs<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let len = usize::from(read_u16(self.0)?);
        let kind = read_u16(self.0.get(2..)?)? & 0x3fff;
        let bytes = self.0.get(4..len)?;
        self.0 = self.0.get(align(len)..).unwrap_or_default();
        Some((kind, bytes))
    }
}

/// Rounds up to four bytes, the alignment of everything in netlink.
pub(crate) const fn align(len: usize) -> usize {
    (len + 3) & !3
}

/// The first two bytes, host order.
pub fn read_u16(bytes: &[u8]) -> Option<u16> {
    bytes.first_chunk().map(|b| u16::from_ne_bytes(*b))
}

/// The first four bytes, host order.
pub fn read_u32(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|b| u32::from_ne_bytes(*b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Batch;

    #[test]
    fn what_a_batch_wrote_reads_back() {
        let mut batch = Batch::new();
        batch.message(16, 1, &[1, 2, 3, 4]);
        batch.attr(3, b"flannel.1\0");
        let nest = batch.nest(18);
        batch.attr_u32(1, 7);
        batch.end(nest);
        let bytes = batch.seal_for_test(9);
        let message = Messages::new(&bytes).next().unwrap();
        assert_eq!(
            (message.kind, message.flags, message.sequence),
            (16, 5, 9),
            "the last message asks for an answer"
        );
        let attrs = Attrs::after(message.payload, 4);
        assert_eq!(attrs.clone().find(3).unwrap(), b"flannel.1\0");
        let nested = Attrs::new(attrs.find(18).unwrap()).find(1).unwrap();
        assert_eq!(read_u32(nested), Some(7));
    }

    #[test]
    fn truncated_bytes_end_the_iteration() {
        let mut batch = Batch::new();
        batch.message(16, 5, &[0; 16]);
        batch.attr(3, b"flannel.1\0");
        let bytes = batch.seal_for_test(1);
        for cut in 0..bytes.len() {
            for message in Messages::new(&bytes[..cut]) {
                Attrs::after(message.payload, 16).count();
            }
        }
        let mut wrong = bytes;
        wrong[0] = 3;
        assert_eq!(Messages::new(&wrong).count(), 0, "a length below the header's is no message");
        assert_eq!(Attrs::new(&[2, 0, 1, 0]).count(), 0);
        assert_eq!(Attrs::new(&[255, 255, 1, 0, 5]).count(), 0);
    }
}
