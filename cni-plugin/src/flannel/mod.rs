//! The flannel plugin: what the daemon wrote into subnet.env, made into a bridge network, in this process.
//!
//! ```text
//!   subnet.env ─┐
//!   delegate    ├─▶ bridge configuration ──▶ state file ──ADD──▶ bridge
//!   ipam        ┘                                └───────DEL──▶ bridge
//! ```
//!
//! DEL acts on what ADD stored, never on subnet.env: that may be another one by then, or none.

mod env;
mod state;

use std::path::{Path, PathBuf};

use env::Env;
use state::State;

use crate::bridge;
use crate::cni::{Attachment, Call, Code, Failure};
use crate::json::{Json, Object, object, wrong};
use crate::plugin::Plugin;

/// The row of the table.
pub(crate) const PLUGIN: Plugin = Plugin { name: "flannel", level: "v1.9.1", add, del, check, status, gc };

const SUBNET_FILE: &str = "/run/flannel/subnet.env";
const DATA_DIR: &str = "/var/lib/cni/flannel";

/// ADD.
pub(crate) fn add(call: &Call) -> Result<Attachment, Failure> {
    let env = Env::read(&subnet_file(call)?)?;
    let conf = compose(&call.conf, &env)?;
    refuse_other_type(&conf)?;
    let state = state(call)?;
    let text = conf.to_string();
    let fresh = state.save(&text)?;
    let made = bridge::add(call, &conf).inspect_err(|_| {
        // What an earlier ADD stored is still that one's.
        if fresh {
            let _ = state.revert();
        }
    })?;
    if let Err(failure) = state.save_for_others(&text) {
        eprintln!(
            "{failure}: after a change back to the Go plugin, a DEL of {} would find nothing",
            call.container
        );
    }
    Ok(made)
}

/// DEL; success where nothing was stored.
pub(crate) fn del(call: &Call) -> Result<(), Failure> {
    let state = state(call)?;
    let Some(text) = state.load()? else { return Ok(()) };
    match Object::parse("the stored configuration", text.as_bytes()) {
        Ok(conf) => {
            refuse_other_type(&conf)?;
            bridge::del(call, &conf)?;
        }
        // Cut short by a power failure: what the network's configuration says today is the next best.
        Err(_) => bridge::del(call, &call.conf)?,
    }
    state.remove(&text)
}

/// CHECK.
pub(crate) fn check(call: &Call) -> Result<(), Failure> {
    let missing =
        || Failure::new(Code::Check, format!("nothing is stored about container {}", call.container));
    let text = state(call)?.load()?.ok_or_else(missing)?;
    let conf = Object::parse("the stored configuration", text.as_bytes())?;
    refuse_other_type(&conf)?;
    bridge::check(call, &conf)
}

/// STATUS: the daemon has a lease, and an address is free.
pub(crate) fn status(call: &Call) -> Result<(), Failure> {
    let conf = compose(&call.conf, &Env::read(&subnet_file(call)?)?)?;
    refuse_other_type(&conf)?;
    bridge::status(call, &conf)
}

/// GC: what the delegate has to collect.
pub(crate) fn gc(call: &Call) -> Result<(), Failure> {
    bridge::gc(call, &call.conf)
}

/// The bridge plugin's configuration: the given `delegate` with what it leaves open, and addresses from `env`.
fn compose(conf: &Object, env: &Env) -> Result<Object, Failure> {
    let mut out = conf.object("delegate")?.cloned().unwrap_or_default();
    if out.get("type").is_some_and(|kind| !matches!(kind, Json::Text(_))) {
        return Err(wrong("delegate.type", "a text"));
    }
    if let Some(key) = ["name", "ipam"].into_iter().find(|key| out.get(key).is_some()) {
        let msg =
            format!("\"delegate\" must not have {key:?}: it is taken from the network configuration itself");
        return Err(Failure::new(Code::Config, msg));
    }
    for key in ["name", "cniVersion", "runtimeConfig", "args"] {
        if let Some(value) = conf.get(key).filter(|value| **value != Json::from("")) {
            out.set(key, value.clone());
        }
    }
    out.set_default("type", "bridge");
    if out.text("type")? == Some("bridge") {
        out.set_default("isGateway", true);
    }
    // One of the two masquerades: the daemon, or the plugin.
    out.set_default("ipMasq", !env.ipmasq);
    out.set_default("mtu", env.mtu);
    out.set("ipam", ipam(conf, env)?);
    Ok(out.sorted())
}

/// The given `ipam` with the daemon's subnets as its ranges, and its networks as further routes.
fn ipam(conf: &Object, env: &Env) -> Result<Object, Failure> {
    let mut out = conf.object("ipam")?.cloned().unwrap_or_default();
    out.set_default("type", "host-local");
    let set = |subnet: &ipnetwork::IpNetwork| vec![object([("subnet", subnet.to_string().into())])];
    let mut routes: Vec<Object> = out.objects("routes")?.into_iter().cloned().collect();
    routes.extend(env.networks.iter().map(|net| object([("dst", net.to_string().into())])));
    out.set("ranges", env.subnets.iter().map(set).collect::<Vec<_>>());
    out.set("routes", routes);
    Ok(out)
}

/// Another plugin than bridge would have to be run as a program, which this one never does.
fn refuse_other_type(conf: &Object) -> Result<(), Failure> {
    match conf.text("type")? {
        None | Some("bridge") => Ok(()),
        Some(kind) => {
            Err(Failure::new(Code::Unsupported, format!("delegate.type {kind:?} is not supported"))
                .details("only bridge is, which is done in this process; no other program is run"))
        }
    }
}

fn subnet_file(call: &Call) -> Result<PathBuf, Failure> {
    Ok(call.conf.text("subnetFile")?.unwrap_or(SUBNET_FILE).into())
}

fn state(call: &Call) -> Result<State, Failure> {
    let folder = Path::new(call.conf.text("dataDir")?.unwrap_or(DATA_DIR));
    Ok(State::new(folder, &call.container, call.ifname))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compose(conf: &str, env: &str) -> Result<String, Code> {
        let conf = Object::parse("the test", conf.as_bytes()).unwrap();
        let env = Env::parse(env).unwrap();
        super::compose(&conf, &env).map(|out| out.to_string()).map_err(|f| f.code)
    }

    const ENV: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    const DUAL: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_IPV6_NETWORK=fc00::/48\n\
                        FLANNEL_IPV6_SUBNET=fc00:0:0:1::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\n";

    #[test]
    fn the_usual_configuration_becomes_what_the_go_plugin_stores() {
        let conf = r#"{"cniVersion":"0.3.1","name":"cbr0","type":"flannel","delegate":{"hairpinMode":true,"isDefaultGateway":true}}"#;
        assert_eq!(
            compose(conf, ENV).unwrap(),
            concat!(
                r#"{"cniVersion":"0.3.1","hairpinMode":true,"#,
                r#""ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.244.1.0/24"}]],"#,
                r#""routes":[{"dst":"10.244.0.0/16"}],"type":"host-local"},"#,
                r#""isDefaultGateway":true,"isGateway":true,"mtu":1450,"name":"cbr0","type":"bridge"}"#
            )
        );
    }

    #[test]
    fn both_families_have_a_range_set_and_a_route_and_masquerade_is_the_opposite_of_the_daemons() {
        let conf = r#"{"name":"n","ipam":{"dataDir":"/d","ranges":[[{"subnet":"1.0.0.0/8"}]],"routes":[{"dst":"0.0.0.0/0"}]}}"#;
        let out = compose(conf, DUAL).unwrap();
        assert!(
            out.contains(r#""ranges":[[{"subnet":"10.244.1.0/24"}],[{"subnet":"fc00:0:0:1::/64"}]]"#),
            "{out}"
        );
        assert!(
            out.contains(r#""routes":[{"dst":"0.0.0.0/0"},{"dst":"10.244.0.0/16"},{"dst":"fc00::/48"}]"#),
            "{out}"
        );
        assert!(out.contains(r#""ipMasq":true"#) && out.contains(r#""dataDir":"/d""#), "{out}");
    }

    #[test]
    fn what_the_delegate_says_is_kept_in_any_case_of_its_keys() {
        let conf = r#"{"name":"n","delegate":{"MTU":1300,"IpMasq":false,"isgateway":false,"bridge":"br7"}}"#;
        let out = compose(conf, DUAL).unwrap();
        assert!(out.contains(r#""MTU":1300"#) && !out.contains("1430"), "{out}");
        assert!(out.contains(r#""IpMasq":false"#) && !out.contains("ipMasq"), "{out}");
        assert!(out.contains(r#""isgateway":false"#) && !out.contains("isGateway"), "{out}");
    }

    #[test]
    fn a_delegate_that_names_itself_or_its_addresses_is_refused() {
        for bad in [r#""name":"x""#, r#""ipam":{}"#, r#""Type":7"#] {
            assert_eq!(
                compose(&format!(r#"{{"name":"n","delegate":{{{bad}}}}}"#), ENV),
                Err(Code::Config),
                "{bad}"
            );
        }
        assert_eq!(compose(r#"{"name":"n","delegate":[]}"#, ENV), Err(Code::Config));
    }
}
