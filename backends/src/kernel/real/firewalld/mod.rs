//! firewalld: the cluster's networks in its zone for what is trusted.
//!
//! What stands is read from its rules; it is talked to only to change that. Its answer is its rules' change, which is a
//! notification. What it is told holds until it loads its rules anew, which is one, too.

mod dbus;

use std::io;

use ipnetwork::IpNetwork;

use self::dbus::{Bus, Interface};
use crate::kernel::KernelError;

const ZONE: Interface<'_> = Interface {
    destination: "org.fedoraproject.FirewallD1",
    path: "/org/fedoraproject/FirewallD1",
    name: "org.fedoraproject.FirewallD1.zone",
};
const CONFIG: Interface<'_> = Interface {
    destination: "org.fedoraproject.FirewallD1",
    path: "/org/fedoraproject/FirewallD1/config",
    name: "org.fedoraproject.FirewallD1.config",
};
/// firewalld's own zone that accepts everything.
const TRUSTED: &str = "trusted";

/// Whether it may be talked to.
pub(super) fn is_there() -> bool {
    Bus::exists()
}

/// Has it trust a network until it loads its rules anew.
pub(super) fn trust(net: IpNetwork) -> Result<(), KernelError> {
    let source = net.to_string();
    let add = || Bus::connect()?.call(ZONE, "addSource", &[TRUSTED, &source]);
    match add() {
        Err(error) if !error.to_string().contains("ALREADY_ENABLED") => Err(failed(&error)),
        _ => Ok(()),
    }
}

/// Has it not trust a network any more, unless its own files say so: that was somebody else.
pub(super) fn distrust(net: IpNetwork) -> Result<(), KernelError> {
    let source = net.to_string();
    let remove = || -> io::Result<()> {
        let mut bus = Bus::connect()?;
        if bus.call(CONFIG, "getZoneOfSource", &[&source])?.is_empty() {
            bus.call(ZONE, "removeSource", &[TRUSTED, &source])?;
        }
        Ok(())
    };
    remove().map_err(|error| failed(&error))
}

fn failed(error: &io::Error) -> KernelError {
    KernelError::Program { program: "firewalld".to_owned(), said: error.to_string() }
}
