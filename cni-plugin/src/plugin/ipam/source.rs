//! Where a container's addresses come from: managed in this process, or by the program that `ipam.type` names.

use super::{HostLocal, Lease, collect, place, release};
use crate::contract::{Attachment, Call, Code, Dns, Failure, Route, Verb};
use crate::plugin::delegate;

/// What the `ipam` section asks for.
#[derive(Debug)]
pub(crate) enum Source {
    /// A network of frames alone.
    None,
    Own(Box<HostLocal>),
    /// A plugin that we do not have.
    Program(String),
}

/// What a container is given.
#[derive(Debug, Default)]
pub(crate) struct Grant {
    pub(crate) leases: Vec<Lease>,
    pub(crate) routes: Vec<Route>,
    pub(crate) dns: Dns,
}

impl Source {
    /// Reads the `ipam` section of the call's configuration.
    pub(crate) fn read(call: &Call) -> Result<Self, Failure> {
        let Some(ipam) = call.conf.object("ipam")? else { return Ok(Self::None) };
        match ipam.text("type")? {
            None => Ok(Self::None),
            Some("host-local") => Ok(Self::Own(Box::new(HostLocal::read(call, ipam)?))),
            // It would look for its addresses in the same section, and so call itself.
            Some(kind) if delegate::is_ours(kind) => {
                let msg = format!("\"ipam\" is of type {kind}, which manages no addresses");
                Err(Failure::new(Code::Config, msg))
            }
            Some(kind) => Ok(Self::Program(kind.to_owned())),
        }
    }

    /// Addresses for the call's attachment.
    pub(crate) fn reserve(&self, call: &Call) -> Result<Grant, Failure> {
        match self {
            Self::None => Ok(Grant::default()),
            Self::Own(ipam) => Ok(Grant {
                leases: ipam.reserve(&call.holder())?,
                routes: ipam.routes.clone(),
                dns: ipam.dns.clone(),
            }),
            Self::Program(kind) => Ok(delegate::add(call, kind)?.into()),
        }
    }

    /// Whether the attachment has what it was given.
    pub(crate) fn check(&self, call: &Call) -> Result<(), Failure> {
        match self {
            Self::None => Ok(()),
            Self::Own(ipam) => ipam.check_held(&call.holder()),
            Self::Program(kind) => delegate::run(call, kind, Verb::Check),
        }
    }

    /// Whether an ADD would be given something.
    pub(crate) fn status(&self, call: &Call) -> Result<(), Failure> {
        match self {
            Self::None => Ok(()),
            Self::Own(ipam) => ipam.check_free(),
            Self::Program(kind) => delegate::run(call, kind, Verb::Status),
        }
    }
}

/// Frees what the call's attachment has, whatever else of the configuration makes no sense any more.
pub(crate) fn free(call: &Call) -> Result<(), Failure> {
    match program(call) {
        Some(kind) => delegate::run(call, &kind, Verb::Del),
        None => release(&place(call), &call.holder()),
    }
}

/// Frees what no valid attachment has.
pub(crate) fn gc(call: &Call) -> Result<(), Failure> {
    match program(call) {
        Some(kind) => delegate::run(call, &kind, Verb::Gc),
        None => collect(&place(call), &call.valid()?),
    }
}

fn program(call: &Call) -> Option<String> {
    let kind = call.conf.object("ipam").ok()??.text("type").ok()??;
    // Of the others that we have none manages addresses: no ADD has made any.
    (!delegate::is_ours(kind)).then(|| kind.to_owned())
}

impl From<Attachment> for Grant {
    fn from(result: Attachment) -> Self {
        let lease = |ip: crate::contract::Address| Lease { net: ip.net, gateway: ip.gateway };
        Self { leases: result.ips.into_iter().map(lease).collect(), routes: result.routes, dns: result.dns }
    }
}
