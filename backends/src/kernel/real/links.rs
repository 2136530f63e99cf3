//! Links and addresses over rtnetlink: few, and with many attributes.

use std::future::Future;

use ipnetwork::IpNetwork;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags};
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::sys::AsyncSocket as _;
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec};
use tokio::runtime::Runtime;

use crate::kernel::KernelError;
use crate::netlink::NetlinkError;
use crate::state::Link;

/// A connection with the little runtime that drives it. rtnetlink is two to four times slower on a runtime of several
/// threads, so this one is its own.
pub(super) struct Links {
    runtime: Runtime,
    handle: Handle,
    port: u32,
}

impl Links {
    pub(super) fn open() -> Result<Self, KernelError> {
        let unavailable = |error: std::io::Error| KernelError::Unavailable(format!("rtnetlink: {error}"));
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(unavailable)?;
        let guard = runtime.enter();
        let (mut connection, handle, _) = rtnetlink::new_connection().map_err(unavailable)?;
        let address = connection.socket_mut().socket_mut().bind_auto().map_err(unavailable)?;
        runtime.spawn(connection);
        drop(guard);
        Ok(Self { runtime, handle, port: address.port_number() })
    }

    /// Creates the link, or changes what differs; then puts its tag on (an alias in the creating message is silently
    /// ignored).
    pub(super) fn put(&self, want: &Link, have: Option<&Link>) -> Result<(), KernelError> {
        let mut done = Ok(());
        match have {
            None => self.run(self.handle.link().add(create(want)).execute())?,
            Some(have) if have.name != want.name => self.rename(have, want)?,
            // What is refused holds back nothing else.
            Some(have) => {
                for change in changes(want, have) {
                    let changed = self.run(self.handle.link().change(change).execute());
                    done = done.and(changed);
                }
            }
        }
        if have.is_none_or(|have| have.tag != want.tag) {
            let index = if_nametoindex(want.name.as_str()).map_err(NetlinkError::Socket)?;
            let mut message = LinkMessage::default();
            message.header.index = index;
            let alias = rtnetlink::packet_route::link::LinkAttribute::IfAlias(want.tag.clone());
            message.attributes.push(alias);
            let tagged = self.run(self.handle.link().change(message).execute());
            done = done.and(tagged);
        }
        done
    }

    /// In place and up, as kernels since 6.2 allow; an older one refuses (EBUSY) and must have it down, which costs it its
    /// routes and neighbours (law 4): the next pass brings them back.
    fn rename(&self, have: &Link, want: &Link) -> Result<(), KernelError> {
        let index = if_nametoindex(have.name.as_str()).map_err(NetlinkError::Socket)?;
        let message = || LinkMessageBuilder::<LinkUnspec>::default().index(index);
        let rename =
            || self.run(self.handle.link().change(message().name(want.name.to_string()).build()).execute());
        match rename() {
            Err(KernelError::Netlink(error)) if error.errno() == Errno::EBUSY => {
                self.run(self.handle.link().change(message().down().build()).execute())?;
                rename()?;
                self.set_up(index)
            }
            done => done,
        }
    }

    /// Its netlink port.
    pub(super) fn port(&self) -> u32 {
        self.port
    }

    pub(super) fn delete(&self, index: u32) -> Result<(), KernelError> {
        self.run(self.handle.link().del(index).execute())
    }

    pub(super) fn set_up(&self, index: u32) -> Result<(), KernelError> {
        let up = || LinkMessageBuilder::<LinkUnspec>::default().index(index).up();
        // Somebody may have turned its carrier off; a kernel that can't do that refuses to turn it on, too.
        let free = self.run(self.handle.link().change(up().protodown(false).build()).execute());
        free.or_else(|_| self.run(self.handle.link().change(up().build()).execute()))
    }

    pub(super) fn put_address(&self, index: u32, net: IpNetwork) -> Result<(), KernelError> {
        let mut request = self.handle.address().add(index, net.ip(), net.prefix()).replace();
        if net.is_ipv6() {
            let message = request.message_mut();
            message.header.flags = AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        self.run(request.execute())
    }

    pub(super) fn delete_address(&self, index: u32, net: IpNetwork) -> Result<(), KernelError> {
        let mut message = self.handle.address().add(index, net.ip(), net.prefix());
        let message = std::mem::take(message.message_mut());
        self.run(self.handle.address().del(message).execute())
    }

    fn run(&self, request: impl Future<Output = Result<(), rtnetlink::Error>>) -> Result<(), KernelError> {
        self.runtime.block_on(request).map_err(|error| match error {
            rtnetlink::Error::NetlinkError(message) => {
                let code = message.code.map_or(Errno::EIO as i32, |c| c.get().saturating_abs());
                NetlinkError::refused(code, None).into()
            }
            other => KernelError::Unavailable(format!("rtnetlink: {other}")),
        })
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
