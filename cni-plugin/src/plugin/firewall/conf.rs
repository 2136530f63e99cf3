//! The configuration of the firewall plugin.

use std::path::PathBuf;

use crate::contract::json::wrong;
use crate::contract::{Attachment, Call, Failure};

/// What the plugin is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Firewall {
    /// None: firewalld where it runs, else iptables.
    pub(super) backend: Option<Backend>,
    /// The administrator's chain, before all rules of containers.
    pub(super) admin: String,
    pub(super) zone: String,
    pub(super) ingress: Ingress,
    /// The folder of records: which attachment has an address.
    pub(super) folder: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Backend {
    Iptables,
    Firewalld,
}

/// Who may connect to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ingress {
    /// Everybody.
    Open,
    /// Everybody but containers of other bridges.
    SameBridge,
    /// Everybody but containers of any bridge.
    Isolated,
}

const FOLDER: &str = "/run/cni/firewall";

impl Firewall {
    pub(super) fn read(call: &Call) -> Result<Self, Failure> {
        let conf = &call.conf;
        let admin = conf.text("iptablesAdminChainName")?.unwrap_or("CNI-ADMIN");
        if admin.len() > 28
            || admin.starts_with('-')
            || !admin.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
        {
            return Err(wrong("iptablesAdminChainName", "the name of a chain").details(admin));
        }
        Ok(Self {
            backend: match conf.text("backend")? {
                None => None,
                Some("iptables") => Some(Backend::Iptables),
                Some("firewalld") => Some(Backend::Firewalld),
                Some(other) => return Err(wrong("backend", "iptables or firewalld").details(other)),
            },
            admin: admin.to_owned(),
            zone: conf.text("firewalldZone")?.unwrap_or("trusted").to_owned(),
            ingress: match conf.text("ingressPolicy")? {
                None | Some("open") => Ingress::Open,
                Some("same-bridge") => Ingress::SameBridge,
                Some("isolated") => Ingress::Isolated,
                Some(other) => {
                    return Err(wrong("ingressPolicy", "open, same-bridge or isolated").details(other));
                }
            },
            folder: conf.text("dataDir")?.unwrap_or(FOLDER).into(),
        })
    }
}

/// The bridge that a policy is about: the first interface of the result.
pub(super) fn bridge(result: &Attachment) -> Result<&str, Failure> {
    let name = result.interfaces.first().map(|link| link.name.as_str()).filter(|name| !name.is_empty());
    name.ok_or_else(|| wrong("ingressPolicy", "open where prevResult names no bridge"))
}
