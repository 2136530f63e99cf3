//! Our own links: messages built by the types of netlink-packet-route, since they have many attributes, and sent over the raw
//! layer.

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use rtnetlink::packet_core::Emitable;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::{LinkMessageBuilder, LinkUnspec};

use crate::kernel::KernelError;
use crate::netlink::link::{CREATE, EXCLUSIVE, REQUEST, RTM_NEWLINK, delete_link};
use crate::netlink::{Batch, NetlinkError, Socket};
use crate::state::Link;

/// Requests about our links.
pub(super) struct Links<'a>(pub(super) &'a mut Socket);

impl Links<'_> {
    /// Creates the link, or changes what differs; then puts its tag on (an alias in the creating message is silently
    /// ignored).
    pub(super) fn put(&mut self, want: &Link, have: Option<&Link>) -> Result<(), KernelError> {
        let mut done = Ok(());
        match have {
            None => self.send(CREATE | EXCLUSIVE, &create(want))?,
            Some(have) if have.name != want.name => self.rename(have, want)?,
            // What is refused holds back nothing else.
            Some(have) => {
                for change in changes(want, have) {
                    let changed = self.change(&change);
                    done = done.and(changed);
                }
            }
        }
        if have.is_none_or(|have| have.tag != want.tag) {
            let index = if_nametoindex(want.name.as_str()).map_err(NetlinkError::Socket)?;
            let mut message = LinkMessage::default();
            message.header.index = index;
            message.attributes.push(LinkAttribute::IfAlias(want.tag.clone()));
            let tagged = self.change(&message);
            done = done.and(tagged);
        }
        done
    }

    /// In place and up, as kernels since 6.2 allow; an older one refuses (EBUSY) and must have it down, which costs it its
    /// routes and neighbours (law 4): the next pass brings them back.
    fn rename(&mut self, have: &Link, want: &Link) -> Result<(), KernelError> {
        let index = if_nametoindex(have.name.as_str()).map_err(NetlinkError::Socket)?;
        let message = || LinkMessageBuilder::<LinkUnspec>::default().index(index);
        let renamed = message().name(want.name.to_string()).build();
        match self.change(&renamed) {
            Err(KernelError::Netlink(error)) if error.errno() == Errno::EBUSY => {
                self.change(&message().down().build())?;
                self.change(&renamed)?;
                self.set_up(index)
            }
            done => done,
        }
    }

    pub(super) fn delete(&mut self, index: u32) -> Result<(), KernelError> {
        let mut batch = Batch::new();
        delete_link(&mut batch, index);
        Ok(self.0.request(&mut batch)?)
    }

    pub(super) fn set_up(&mut self, index: u32) -> Result<(), KernelError> {
        let up = || LinkMessageBuilder::<LinkUnspec>::default().index(index).up();
        // Another program may have turned its carrier off; a kernel that can't do that also refuses to turn it on.
        self.change(&up().protodown(false).build()).or_else(|_| self.change(&up().build()))
    }

    fn change(&mut self, message: &LinkMessage) -> Result<(), KernelError> {
        self.send(0, message)
    }

    fn send(&mut self, flags: u16, message: &LinkMessage) -> Result<(), KernelError> {
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        let mut batch = Batch::new();
        batch.message(RTM_NEWLINK, REQUEST | flags, &bytes);
        Ok(self.0.request(&mut batch)?)
    }
}

fn create(want: &Link) -> LinkMessage {
    of_kind(want, true).mtu(want.mtu).address(want.mac.0.to_vec()).build()
}

fn of_kind(want: &Link, new: bool) -> LinkMessageBuilder<LinkUnspec> {
    let (kind, data) = want.kind.attributes(new);
    LinkMessageBuilder::new_with_info_kind(kind).name(want.name.to_string()).set_info_data(data)
}

/// One message for what every link has, one for what its kind has: the kernel applies the latter in whole or not at all.
fn changes(want: &Link, have: &Link) -> Vec<LinkMessage> {
    let mut messages = Vec::new();
    if want.kind != have.kind {
        messages.push(of_kind(want, false).build());
    }
    let named = || LinkMessageBuilder::<LinkUnspec>::default().name(want.name.to_string());
    if want.mtu != have.mtu {
        messages.push(named().mtu(want.mtu).build());
    }
    // Only where it differs: setting an address, even the same one, costs the link all its neighbours.
    if want.mac != have.mac {
        messages.push(named().address(want.mac.0.to_vec()).build());
    }
    if want.master != have.master {
        messages.push(named().nocontroller().build());
    }
    messages
}
