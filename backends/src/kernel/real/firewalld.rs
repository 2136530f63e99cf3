//! firewalld: the cluster's networks in its zone for what is trusted.
//!
//! What stands is read from its rules; it is talked to only to change that. Its answer is its rules' change, which is a
//! notification. What is set holds until it loads its rules anew, which sends one, too.

use std::io;
use std::time::Duration;

use ipnetwork::IpNetwork;

use crate::kernel::KernelError;
use crate::local::dbus::{Bus, Method};

const ADD: Method<'_> = zone("addSource");
const REMOVE: Method<'_> = zone("removeSource");
const KEPT: Method<'_> = Method {
    destination: FIREWALLD,
    path: "/org/fedoraproject/FirewallD1/config",
    interface: "org.fedoraproject.FirewallD1.config",
    name: "getZoneOfSource",
};
const FIREWALLD: &str = "org.fedoraproject.FirewallD1";
/// firewalld answers at once, or is loading its rules anew, which takes a second or two.
const PATIENCE: Duration = Duration::from_secs(3);
/// firewalld's own zone that accepts everything.
const TRUSTED: &str = "trusted";

/// Whether it may be talked to.
pub(super) fn is_there() -> bool {
    Bus::exists()
}

/// Has it trust a network until it loads its rules anew.
pub(super) fn trust(net: IpNetwork) -> Result<(), KernelError> {
    let source = net.to_string();
    let add = || Bus::connect(PATIENCE)?.call(&ADD, &[TRUSTED, &source])?.text();
    match add() {
        Err(error) if !error.to_string().contains("ALREADY_ENABLED") => Err(failed(&error)),
        _ => Ok(()),
    }
}

/// Ends its trust in a network, unless its own files name that network: then somebody else trusts it.
pub(super) fn distrust(net: IpNetwork) -> Result<(), KernelError> {
    let source = net.to_string();
    let remove = || -> io::Result<()> {
        let mut bus = Bus::connect(PATIENCE)?;
        if bus.call(&KEPT, &[&source])?.text()?.is_empty() {
            bus.call(&REMOVE, &[TRUSTED, &source])?.text()?;
        }
        Ok(())
    };
    remove().map_err(|error| failed(&error))
}

const fn zone(name: &str) -> Method<'_> {
    Method {
        destination: FIREWALLD,
        path: "/org/fedoraproject/FirewallD1",
        interface: "org.fedoraproject.FirewallD1.zone",
        name,
    }
}

fn failed(error: &io::Error) -> KernelError {
    KernelError::Program { program: "firewalld".to_owned(), said: error.to_string() }
}
