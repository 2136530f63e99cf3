//! Names that fit where the kernel has little room, made as the reference plugins make them.

use hmac_sha512::Hash;

/// A prefix filled up to `length` characters with the hexadecimal digits of a SHA-512.
pub(crate) fn name(prefix: &str, hashed: &str, length: usize) -> String {
    let digits = Hash::hash(hashed.as_bytes()).map(|byte| format!("{byte:02x}")).concat();
    let mut name = format!("{prefix}{digits}");
    name.truncate(length);
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the reference plugins' own tests expect.
    #[test]
    fn names_are_those_of_the_reference_plugins() {
        assert_eq!(name("CNI-", "test1234", 28), "CNI-2bbe0c48b91a7d1b8a6753a8");
        assert_eq!(name("CNI-DN-", "test1234", 28).len(), 28);
    }
}
