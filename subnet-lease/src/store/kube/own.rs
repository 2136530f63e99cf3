//! What is known of our own Node.

use super::Shared;
use super::annotations::{Annotations, OVERWRITE, PUBLIC};
use super::node::{Condition, Node};
use crate::model::lease::{Lease, PublicAddrs};
use crate::model::net::Family;

/// Our Node as the API server had it last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OwnNode {
    pub(super) uid: Box<str>,
    pub(super) annotations: Annotations<Box<str>>,
    pub(super) unavailable: Option<Condition<Box<str>>>,
    /// What its podCIDRs are is read anew when we claim; here only whether they changed.
    digest: u64,
}

/// What those wait for who publish.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Own {
    pub(super) node: Option<OwnNode>,
    /// The older Node that has our podCIDR as well.
    pub(super) rival: Option<String>,
}

impl OwnNode {
    pub(super) fn of(node: &Node<'_>) -> Self {
        Self {
            uid: node.uid.into(),
            annotations: node.annotations.owned(),
            unavailable: node
                .unavailable
                .map(|it| Condition { status: it.status.into(), reason: it.reason.into() }),
            digest: node.digest(),
        }
    }
}

impl Shared {
    pub(super) fn set_own(&self, node: Option<OwnNode>, rival: Option<String>) {
        let now = Own { node, rival };
        self.own.send_if_modified(|own| std::mem::replace(own, now.clone()) != now);
    }

    pub(super) fn set_rival(&self, rival: Option<String>) {
        self.own.send_if_modified(|own| std::mem::replace(&mut own.rival, rival.clone()) != rival);
    }

    /// Where an operator has another address published, our own lease still has ours: what we asked for is done.
    pub(super) fn as_claimed(&self, lease: &mut Lease) {
        if lease.node.as_deref() != Some(self.name()) {
            return;
        }
        let own = self.own.borrow();
        let (Some(node), Some(claimed)) = (&own.node, *self.claimed.borrow()) else { return };
        for (n, family) in Family::ALL.into_iter().enumerate() {
            let overwritten = node.annotations.asked(OVERWRITE[n]);
            if overwritten.is_some() && overwritten == node.annotations.asked(PUBLIC[n]) {
                put(&mut lease.public, claimed, family);
            }
        }
    }
}

fn put(public: &mut PublicAddrs, from: PublicAddrs, family: Family) {
    match family {
        Family::V4 => public.v4 = from.v4,
        Family::V6 => public.v6 = from.v6,
    }
}
