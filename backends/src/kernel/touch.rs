//! Who changed something: what notifications contain besides "look again".

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::state::{Key, ROUTE_PROTOCOL};

/// Somebody else touched something that may be ours. A hint: it names who fights, and shows that a link is being changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touch {
    /// What was touched.
    pub what: Key,
    /// By whom, where the kernel reports it: it does for routes, addresses, new neighbours and rules, not for links,
    /// forwarding entries and neighbours that go.
    pub by: Option<Who>,
}

/// Somebody, as far as the kernel reports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    /// The name of the program, where it could still be asked.
    pub program: Option<String>,
    /// The netlink port of the request: the process id of a program with one netlink socket, else a number above
    /// the process ids. 0 = not reported.
    pub port: u32,
    /// The route's protocol (`RTPROT_…`), unless it is ours: on a new route it shows who made it.
    pub protocol: Option<u8>,
}

/// The kernel gives such a number to a program's second netlink socket.
const NO_PROCESS: u32 = 1 << 31;

impl Who {
    /// Somebody of whom only a route's protocol is known; none for our own.
    pub fn with_protocol(protocol: u8) -> Self {
        Self { protocol: (protocol != ROUTE_PROTOCOL).then_some(protocol), ..Self::default() }
    }

    /// Whether anything is known.
    pub fn is_known(&self) -> bool {
        self.port != 0 || self.protocol.is_some() || self.program.is_some()
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.program, self.port) {
            (Some(program), port @ 1..NO_PROCESS) => write!(f, "{program} (process {port})")?,
            (Some(program), _) => write!(f, "{program}")?,
            (None, 0) => {}
            (None, port @ 1..NO_PROCESS) => write!(f, "process {port}, which has ended")?,
            (None, port) => write!(f, "the program with netlink port {port}")?,
        }
        let Some(protocol) = self.protocol else { return Ok(()) };
        if self.program.is_some() || self.port != 0 {
            f.write_str(", ")?;
        }
        write!(f, "route protocol {protocol}")?;
        protocol_name(protocol).map_or(Ok(()), |name| write!(f, " ({name})"))
    }
}

/// The names that `ip route` shows (iproute2's `rt_protos`).
fn protocol_name(protocol: u8) -> Option<&'static str> {
    Some(match protocol {
        1 => "redirect",
        2 => "kernel",
        3 => "boot",
        4 => "static",
        9 => "ra",
        11 => "zebra",
        12 => "bird",
        16 => "dhcp",
        18 => "keepalived",
        42 => "babel",
        99 => "openr",
        186 => "bgp",
        187 => "isis",
        188 => "ospf",
        189 => "rip",
        192 => "eigrp",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn somebody_is_named_with_all_that_is_known_of_them() {
        let who = |program: Option<&str>, port, protocol| Who {
            program: program.map(str::to_owned),
            port,
            protocol,
        };
        for (who, expected) in [
            (who(Some("nft"), 71, None), "nft (process 71)"),
            (who(None, 71, None), "process 71, which has ended"),
            (who(None, 4_294_963_000, None), "the program with netlink port 4294963000"),
            (who(Some("bird"), 9, Some(12)), "bird (process 9), route protocol 12 (bird)"),
            (who(None, 0, Some(250)), "route protocol 250"),
        ] {
            assert_eq!(who.to_string(), expected);
        }
        assert!(!Who::with_protocol(ROUTE_PROTOCOL).is_known(), "ourselves");
    }
}
