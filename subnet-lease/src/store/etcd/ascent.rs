//! A list in pages comes to an end, whatever the store answers.

use etcd_client::GetResponse;

use crate::store::StoreError;

/// Keys of one network, and bytes of them and their values. Ours: many times the largest cluster.
const KEYS: usize = 1 << 18;
const BYTES: usize = 512 << 20;

/// What was listed so far.
#[derive(Default)]
pub(super) struct Ascent {
    last: Vec<u8>,
    keys: usize,
    bytes: usize,
}

impl Ascent {
    /// Counts a page. Returns the key to go on with, if there are more; an error where keys do not ascend or there are too
    /// many.
    pub(super) fn page(&mut self, page: &GetResponse) -> Result<Option<Vec<u8>>, StoreError> {
        for kv in page.kvs() {
            self.step(kv.key(), kv.key().len() + kv.value().len())?;
        }
        match (page.more(), page.kvs().is_empty()) {
            (true, true) => {
                Err(StoreError::Failing("the store promises more keys and shows none".to_owned()))
            }
            (true, false) => Ok(Some([self.last.as_slice(), &[0]].concat())),
            (false, _) => Ok(None),
        }
    }

    fn step(&mut self, key: &[u8], bytes: usize) -> Result<(), StoreError> {
        if key <= self.last.as_slice() {
            let key = String::from_utf8_lossy(key).chars().take(80).collect::<String>();
            return Err(StoreError::Failing(format!("the store lists {key:?} where a later key should be")));
        }
        self.last = key.to_vec();
        (self.keys, self.bytes) = (self.keys + 1, self.bytes.saturating_add(bytes));
        if self.keys > KEYS || self.bytes > BYTES {
            return Err(StoreError::Unsupported(format!(
                "the network has more than {KEYS} keys or {} MiB: most of it is no lease of a host",
                BYTES >> 20
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_ascends_and_ends() {
        let mut ascent = Ascent::default();
        assert_eq!((ascent.step(b"a", 1), ascent.step(b"b", 1)), (Ok(()), Ok(())));
        for key in [&b"b"[..], b"a", b""] {
            assert!(ascent.step(key, 1).is_err(), "{key:?}");
        }
        assert!(Ascent::default().step(b"a", BYTES + 1).is_err());
        let mut long = Ascent::default();
        let listed = (0_u32..).find(|n| long.step(&n.to_be_bytes(), 0).is_err() && *n > 0);
        assert_eq!(listed.and_then(|n| usize::try_from(n).ok()), Some(KEYS));
    }
}
