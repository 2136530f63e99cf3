//! `CNI_ARGS`: `K=V;K=V`, for requests that have no other place.

use std::net::IpAddr;

use backends::Mac;

use super::{Code, Failure};

/// The keys that we use.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct CniArgs {
    /// A requested address.
    pub(crate) ip: Option<IpAddr>,
    /// A requested Ethernet address for the container's interface.
    pub(crate) mac: Option<Mac>,
}

impl CniArgs {
    /// Unknown keys are refused unless `IgnoreUnknown` is true anywhere, as in the reference plugins; what Kubernetes
    /// and Nomad send along is not unknown.
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        let mut args = Self::default();
        let (mut unknown, mut ignore) = (None, false);
        for part in text.split(';').filter(|_| !text.is_empty()) {
            let (key, value) =
                part.split_once('=').filter(|(_, v)| !v.contains('=')).ok_or_else(|| bad(part))?;
            match key {
                "IP" => args.ip = Some(address(value).ok_or_else(|| bad(part))?),
                "MAC" => args.mac = Some(value.parse().map_err(|_| bad(part))?),
                "IgnoreUnknown" => ignore = truth(value).ok_or_else(|| bad(part))?,
                key if key.starts_with("K8S_") || key.starts_with("NOMAD_") => {}
                _ => unknown = Some(part),
            }
        }
        match unknown {
            Some(part) if !ignore => Err(bad(part).details("IgnoreUnknown=1 allows any key")),
            _ => Ok(args),
        }
    }
}

/// An address, with or without its prefix length; an IPv4 address in IPv6 form is the IPv4 address.
pub(crate) fn address(text: &str) -> Option<IpAddr> {
    let bare = text.split_once('/').map_or(text, |(address, _)| address);
    bare.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

fn truth(text: &str) -> Option<bool> {
    match text.to_lowercase().as_str() {
        "1" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

fn bad(part: &str) -> Failure {
    Failure::new(Code::Environment, format!("CNI_ARGS has {part:?}, which is not understood"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kubernetes_and_podman_send_is_read() {
        let kubernetes = "K8S_POD_NAME=a;IgnoreUnknown=1;K8S_POD_UID=b;K8S_POD_INFRA_CONTAINER_ID=c";
        assert_eq!(CniArgs::parse(kubernetes), Ok(CniArgs::default()));
        let podman = CniArgs::parse("IgnoreUnknown=1;X=y;MAC=02:00:00:00:00:07;IP=10.1.2.3").unwrap();
        assert_eq!(podman.ip, Some("10.1.2.3".parse().unwrap()));
        assert_eq!(podman.mac, Some("02:00:00:00:00:07".parse().unwrap()));
        assert_eq!(CniArgs::parse(""), Ok(CniArgs::default()));
    }

    #[test]
    fn an_unknown_key_is_refused_unless_all_are_allowed() {
        assert!(CniArgs::parse("X=y").is_err());
        assert!(CniArgs::parse("X=y;IgnoreUnknown=TRUE").is_ok());
        assert!(CniArgs::parse("X=y;IgnoreUnknown=0").is_err());
        for bad in ["IP", "IP=", "IP=a=b", "=", ";", "IP=10.1.2.3;", "MAC=1"] {
            assert!(CniArgs::parse(bad).is_err(), "{bad}");
        }
    }
}
