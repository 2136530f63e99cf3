//! FNV-1a: the same number in every version of this program, which a hash of the standard library is not. It detects a torn
//! file and spreads names; it protects against nobody.

use std::{fmt, io};

/// A sum of 64 bits over what is written into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fnv64(u64);

impl Default for Fnv64 {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv64 {
    /// The sum of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self::default().and(bytes)
    }

    /// The sum with these bytes added.
    #[must_use]
    pub fn and(self, bytes: &[u8]) -> Self {
        Self(bytes.iter().fold(self.0, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)))
    }

    /// The number.
    pub fn value(self) -> u64 {
        self.0
    }
}

/// Sixteen hexadecimal digits.
impl fmt::Display for Fnv64 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl io::Write for Fnv64 {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        *self = self.and(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Write for Fnv64 {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        *self = self.and(text.as_bytes());
        Ok(())
    }
}

/// A sum of 32 bits, for a line of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fnv32(u32);

impl Default for Fnv32 {
    fn default() -> Self {
        Self(0x811c_9dc5)
    }
}

impl Fnv32 {
    /// The sum of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self::default().and(bytes)
    }

    /// The sum with these bytes added.
    #[must_use]
    pub fn and(self, bytes: &[u8]) -> Self {
        Self(bytes.iter().fold(self.0, |sum, byte| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193)))
    }

    /// The number.
    pub fn value(self) -> u32 {
        self.0
    }
}

/// Eight hexadecimal digits.
impl fmt::Display for Fnv32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers are those of the definition (draft-eastlake-fnv).
    #[test]
    fn the_sums_are_those_of_the_definition() {
        for (text, short, long) in [
            ("", "811c9dc5", "cbf29ce484222325"),
            ("a", "e40c292c", "af63dc4c8601ec8c"),
            ("foobar", "bf9cf968", "85944171f73967e8"),
        ] {
            assert_eq!(Fnv32::of(text.as_bytes()).to_string(), short, "{text}");
            assert_eq!(Fnv64::of(text.as_bytes()).to_string(), long, "{text}");
        }
        let mut sum = Fnv64::default();
        io::Write::write_all(&mut sum, b"foo").unwrap();
        fmt::Write::write_str(&mut sum, "bar").unwrap();
        assert_eq!(sum, Fnv64::of(b"foobar"));
        assert_eq!(Fnv32::of(b"foo").and(b"bar"), Fnv32::of(b"foobar"));
    }
}
