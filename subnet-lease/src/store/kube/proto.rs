//! Kubernetes' protobuf, read in place: what is not asked for is skipped by its length and never looked at.

/// What marks a whole object: four bytes, then a `runtime.Unknown`.
const MAGIC: &[u8] = b"k8s\0";

/// The bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

/// The fields of a message, in the order in which they were written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields<'a>(&'a [u8]);

/// The value of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Fields<'a> {
    pub(super) fn of(message: &'a [u8]) -> Self {
        Self(message)
    }

    fn read(&mut self) -> Result<(u64, Value<'a>), Broken> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Number(self.varint()?),
            1 => Value::Bytes(self.take(8)?),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Broken)?;
                Value::Bytes(self.take(length)?)
            }
            5 => Value::Bytes(self.take(4)?),
            _ => return Err(Broken),
        };
        Ok((tag >> 3, value))
    }

    fn varint(&mut self) -> Result<u64, Broken> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = *self.take(1)?.first().ok_or(Broken)?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Broken)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Broken> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Broken)?;
        self.0 = rest;
        Ok(taken)
    }
}

/// Ends after the first error.
impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), Broken>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.read();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Value<'a> {
    pub(super) fn bytes(self) -> Result<&'a [u8], Broken> {
        if let Self::Bytes(bytes) = self { Ok(bytes) } else { Err(Broken) }
    }

    pub(super) fn text(self) -> Result<&'a str, Broken> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Broken)
    }

    pub(super) fn fields(self) -> Result<Fields<'a>, Broken> {
        self.bytes().map(Fields::of)
    }

    pub(super) fn number(self) -> Result<u64, Broken> {
        if let Self::Number(number) = self { Ok(number) } else { Err(Broken) }
    }
}

/// A whole object: its kind and its message.
pub(super) fn object(bytes: &[u8]) -> Result<(&str, Fields<'_>), Broken> {
    let unknown = bytes.strip_prefix(MAGIC).ok_or(Broken)?;
    let (mut kind, mut message) = ("", Fields::of(&[]));
    for field in Fields::of(unknown) {
        match field? {
            // TypeMeta: apiVersion and kind.
            (1, meta) => {
                for field in meta.fields()? {
                    if let (2, text) = field? {
                        kind = text.text()?;
                    }
                }
            }
            (2, raw) => message = raw.fields()?,
            _ => {}
        }
    }
    Ok((kind, message))
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A field that holds bytes, as the server writes it.
    pub(crate) fn field(number: u8, bytes: impl AsRef<[u8]>) -> Vec<u8> {
        let bytes = bytes.as_ref();
        let mut written = vec![number << 3 | 2];
        let mut length = bytes.len();
        while length > 0x7f {
            written.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
            length >>= 7;
        }
        written.push(u8::try_from(length).unwrap());
        written.extend_from_slice(bytes);
        written
    }

    /// A whole object.
    pub(crate) fn whole(kind: &str, message: &[u8]) -> Vec<u8> {
        [MAGIC, &field(1, [field(1, "v1"), field(2, kind)].concat()), &field(2, message)].concat()
    }

    #[test]
    fn an_object_is_read_by_kind_and_message() {
        let bytes = whole("Node", &field(3, "x".repeat(300)));
        let (kind, mut fields) = object(&bytes).unwrap();
        assert_eq!(kind, "Node");
        let (number, value) = fields.next().unwrap().unwrap();
        assert_eq!((number, value.text().unwrap().len()), (3, 300));
        assert!(fields.next().is_none());
        assert!(object(b"{}").is_err());
    }

    #[test]
    fn a_length_beyond_the_end_is_an_error_and_the_last_item() {
        let mut fields = Fields::of(&[0x0a, 0x05, b'x']);
        assert_eq!(fields.next(), Some(Err(Broken)));
        assert_eq!(fields.next(), None);
        let mut endless = Fields::of(&[0xff; 12]);
        assert_eq!(endless.next(), Some(Err(Broken)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused_without_a_panic(bytes: Vec<u8>) {
            let _ = object(&bytes);
            let _ = Fields::of(&bytes).count();
        }
    }
}
