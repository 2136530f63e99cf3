//! The firewall in firewalld: containers' addresses are sources of a zone.

use std::net::IpAddr;
use std::time::Duration;

use backends::local::dbus::{Bus, Method, Reply};
use ipnetwork::IpNetwork;

use crate::contract::{Code, During, Failure};

const FIREWALLD: &str = "org.fedoraproject.FirewallD1";
/// It changes its rules meanwhile.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether firewalld runs.
pub(super) fn runs() -> bool {
    Bus::connect(PATIENCE).and_then(|mut bus| bus.has(FIREWALLD)).unwrap_or(false)
}

/// Adds the addresses; those that the zone has already are fine.
pub(super) fn add(zone: &str, addresses: &[IpAddr]) -> Result<(), Failure> {
    each(addresses, |bus, source| match call(bus, "addSource", zone, source)? {
        Reply::Error(error) if !error.contains("ZONE_ALREADY_SET") && !error.contains("ALREADY_ENABLED") => {
            Err(Failure::new(
                Code::Kernel,
                format!("firewalld does not add {source} to zone {zone}: {error}"),
            ))
        }
        _ => Ok(()),
    })
}

/// Removes the addresses; those that it has not are fine.
pub(super) fn remove(zone: &str, addresses: &[IpAddr]) -> Result<(), Failure> {
    each(addresses, |bus, source| call(bus, "removeSource", zone, source).map(|_| ()))
}

/// Whether the zone has the addresses.
pub(super) fn check(zone: &str, addresses: &[IpAddr]) -> Result<(), Failure> {
    each(addresses, |bus, source| match call(bus, "querySource", zone, source)? {
        Reply::Return(body) if body.first() == Some(&1) => Ok(()),
        _ => Err(Failure::new(Code::Check, format!("{source} is no source of firewalld's zone {zone}"))),
    })
}

fn each(
    addresses: &[IpAddr],
    mut work: impl FnMut(&mut Bus, &str) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut bus =
        Bus::connect(PATIENCE).during(Code::Io, || "cannot reach firewalld over the system's bus".into())?;
    addresses.iter().try_for_each(|ip| work(&mut bus, &IpNetwork::from(*ip).to_string()))
}

fn call(bus: &mut Bus, name: &str, zone: &str, source: &str) -> Result<Reply, Failure> {
    let method = Method {
        destination: FIREWALLD,
        path: "/org/fedoraproject/FirewallD1",
        interface: "org.fedoraproject.FirewallD1.zone",
        name,
    };
    bus.call(&method, &[zone, source]).during(Code::Io, || format!("firewalld does not answer {name}"))
}
