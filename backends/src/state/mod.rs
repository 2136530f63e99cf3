//! Kernel state as a set of objects: the wish, the dump and the inside of the fake kernel are all this one type.

mod facts;
mod kind;
mod object;
mod rules;
mod sysctl;
mod system;

pub(crate) use crate::netlink::{IfName, Mac};
pub use facts::{Facts, HostAddress, HostLink, HostRoute};
#[cfg(feature = "kernel")]
pub(crate) use kind::ROWS as LINK_KINDS;
pub use kind::{LinkKind, Vxlan};
pub use object::{Address, Fdb, Key, Link, Neigh, Object, ROUTE_PROTOCOL, Route, RouteKind, default_metric};
pub use rules::{IptablesKey, TableKey};
pub use sysctl::Sysctl;
pub use system::{Feature, System};

/// Objects ordered by [`Key`]. Several may share a key in a dump: the kernel allows two routes to one destination with
/// equal metric, and the first of them is the one in force. Their order is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelState {
    objects: Vec<Object>,
}

impl KernelState {
    /// The objects, in key order; in-force order within a key.
    pub fn iter(&self) -> std::slice::Iter<'_, Object> {
        self.objects.iter()
    }

    /// The same as a slice.
    pub fn as_slice(&self) -> &[Object] {
        &self.objects
    }

    /// How many objects.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// The first object with this key.
    pub fn get(&self, key: &Key) -> Option<&Object> {
        let at = self.objects.partition_point(|o| o.key() < *key);
        self.objects.get(at).filter(|o| o.key() == *key)
    }

    /// The links among the objects.
    pub fn links(&self) -> impl Iterator<Item = &Link> {
        self.objects.iter().map_while(|o| match o {
            Object::Link(link) => Some(&**link),
            _ => None,
        })
    }
}

impl FromIterator<Object> for KernelState {
    fn from_iter<I: IntoIterator<Item = Object>>(objects: I) -> Self {
        let mut objects: Vec<_> = objects.into_iter().collect();
        objects.sort_by_key(Object::key);
        Self { objects }
    }
}

impl<'a> IntoIterator for &'a KernelState {
    type Item = &'a Object;
    type IntoIter = std::slice::Iter<'a, Object>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
