//! The configuration of the bandwidth plugin.

use crate::contract::json::{Json, Object, mistyped};
use crate::contract::{Call, Code, Failure};

/// The limits of both directions; none where there is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Bandwidth {
    /// To the container.
    pub(super) ingress: Option<Limit>,
    /// From the container.
    pub(super) egress: Option<Limit>,
}

/// A limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limit {
    /// Bytes per second.
    pub(super) rate: u64,
    /// Bytes that may go at once.
    pub(super) burst: u32,
}

const KEYS: [&str; 4] = ["ingressRate", "ingressBurst", "egressRate", "egressBurst"];

impl Bandwidth {
    /// The limits at the top level, if there is one; else those of the runtime.
    pub(super) fn read(call: &Call) -> Result<Self, Failure> {
        refuse_unsupported(&call.conf)?;
        if KEYS.iter().any(|key| call.conf.get(key).is_some()) {
            return Self::of(&call.conf);
        }
        let runtime = call.conf.object("runtimeConfig")?;
        let given = runtime.map_or(Ok(None), |runtime| runtime.object("bandwidth"))?;
        let Some(given) = given else { return Ok(Self::default()) };
        refuse_unsupported(given)?;
        Self::of(given)
    }

    fn of(conf: &Object) -> Result<Self, Failure> {
        let bits = |key: &str| match conf.get(key) {
            None => Ok(0),
            Some(Json::Number(number)) => {
                number.as_u64().ok_or_else(|| mistyped(key, "a whole number of bits"))
            }
            Some(_) => Err(mistyped(key, "a whole number of bits")),
        };
        Ok(Self {
            ingress: Limit::of(bits(KEYS[0])?, bits(KEYS[1])?, "ingress")?,
            egress: Limit::of(bits(KEYS[2])?, bits(KEYS[3])?, "egress")?,
        })
    }
}

/// Limits for a part of the addresses would be limits for all of them: refused, never ignored.
fn refuse_unsupported(conf: &Object) -> Result<(), Failure> {
    for key in ["shapedSubnets", "unshapedSubnets"] {
        if !conf.list(key)?.is_empty() {
            let msg = format!("{key:?} is not supported by this plugin");
            return Err(Failure::new(Code::Unsupported, msg)
                .details("our limits hold for all traffic; the reference bandwidth plugin has it"));
        }
    }
    Ok(())
}

impl Limit {
    /// From bits per second and bits; nothing of both is no limit.
    fn of(rate: u64, burst: u64, direction: &str) -> Result<Option<Self>, Failure> {
        let refuse = |why: &str| {
            Err(Failure::new(Code::Config, format!("{direction}Rate and {direction}Burst: {why}")))
        };
        match (rate, burst) {
            (0, 0) => Ok(None),
            (0, _) | (_, 0) => refuse("one of them alone makes no limit"),
            (1..8, _) => refuse("less than 8 bits per second"),
            _ => match u32::try_from(burst / 8) {
                Ok(u32::MAX) | Err(_) => refuse("a burst of 4 GiB or more"),
                Ok(0) => refuse("a burst of less than 8 bits"),
                Ok(bytes) => Ok(Some(Self { rate: rate / 8, burst: bytes })),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(conf: &str) -> Result<Bandwidth, String> {
        let conf = Object::parse("the test", conf.as_bytes()).unwrap();
        Bandwidth::of(&conf).map_err(|failure| failure.to_string())
    }

    #[test]
    fn rates_and_bursts_are_bits_and_of_any_size() {
        let both = read(
            r#"{"IngressRate":40000000000,"ingressBurst":4294967295,"egressRate":8000,"egressBurst":80}"#,
        );
        let ingress = Some(Limit { rate: 5_000_000_000, burst: 536_870_911 });
        assert_eq!(both, Ok(Bandwidth { ingress, egress: Some(Limit { rate: 1000, burst: 10 }) }));
        assert_eq!(read("{}"), Ok(Bandwidth::default()));
        assert_eq!(read(r#"{"ingressRate":0,"ingressBurst":0}"#), Ok(Bandwidth::default()));
    }

    #[test]
    fn half_a_limit_and_a_senseless_one_are_refused_by_name() {
        for bad in [
            r#"{"egressRate":8}"#,
            r#"{"egressBurst":8}"#,
            r#"{"egressRate":8,"egressBurst":34359738360}"#,
            r#"{"egressRate":7,"egressBurst":8}"#,
            r#"{"egressRate":8,"egressBurst":7}"#,
            r#"{"egressRate":"8","egressBurst":8}"#,
            r#"{"egressRate":-8,"egressBurst":8}"#,
            r#"{"egressRate":1.5,"egressBurst":8}"#,
        ] {
            assert!(read(bad).is_err_and(|why| why.contains("egress")), "{bad}");
        }
    }
}
