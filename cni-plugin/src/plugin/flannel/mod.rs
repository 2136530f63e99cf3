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
use std::time::Duration;

use env::Env;
use state::State;

use crate::contract::json::{Json, Object, mistyped, object, wrong};
use crate::contract::{Attachment, Call, Code, Failure, Verb, is_name};
use crate::plugin::Plugin;
use crate::plugin::delegate;
use crate::sys::daemon;

/// The row of the table.
pub(crate) const PLUGIN: Plugin = Plugin { name: "flannel", add, del, check, status, gc };

const SUBNET_FILE: &str = "/run/flannel/subnet.env";
const DATA_DIR: &str = "/var/lib/cni/flannel";
/// How long an ADD waits for the daemon's file when the configuration has no other time (ms): a daemon that starts together with the
/// runtime has its subnet by then, and a runtime does not take the call for lost.
const WAIT: u32 = 2000;
/// The longest wait that can be asked for (ms); kubelet's patience is two minutes.
const LONGEST_WAIT: u32 = 60_000;

/// ADD.
pub(crate) fn add(call: &Call) -> Result<Attachment, Failure> {
    let env = Env::await_file(&subnet_file(call)?, wait(call)?)?;
    let delegated = call.with(compose(&call.conf, &env)?)?;
    let kind = kind(&delegated.conf)?;
    let state = state(call)?;
    let text = delegated.conf.to_string();
    let fresh = state.save(&text)?;
    let made = delegate::add(&delegated, kind).inspect_err(|_| {
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
    let text = match state.load() {
        Ok(None) => return state.remove(None),
        Ok(text) => text,
        // What is there and cannot be read is as good as a file that was cut short.
        Err(failure) => {
            eprintln!("{failure}");
            None
        }
    };
    // A file that was cut short by a power failure: today's configuration of the network replaces it.
    let stored = text.as_ref().and_then(|text| stored(call, text).ok());
    let delegated = stored.map_or_else(|| call.with(without_env(&call.conf)?), Ok)?;
    delegate::run(&delegated, kind(&delegated.conf)?, Verb::Del)?;
    match state.remove(text.as_deref()) {
        // Nothing of the container is left but an entry that no ADD made.
        Err(failure) if text.is_none() => eprintln!("{failure}"),
        other => return other,
    }
    Ok(())
}

/// CHECK.
pub(crate) fn check(call: &Call) -> Result<(), Failure> {
    let missing =
        || Failure::new(Code::Check, format!("nothing is stored about container {}", call.container));
    let mut delegated = stored(call, &state(call)?.load()?.ok_or_else(missing)?)?;
    if let Some(result) = call.conf.get("prevResult") {
        delegated.conf.set("prevResult", result.clone());
    }
    delegate::run(&delegated, kind(&delegated.conf)?, Verb::Check)
}

/// STATUS: the daemon has a lease, and an address is free.
pub(crate) fn status(call: &Call) -> Result<(), Failure> {
    let env = Env::read(&subnet_file(call)?).map_err(|failure| match failure.code {
        Code::TryAgain => failure.details(daemon::why()),
        _ => failure,
    })?;
    let delegated = call.with(compose(&call.conf, &env)?)?;
    delegate::run(&delegated, kind(&delegated.conf)?, Verb::Status)
}

/// GC: a DEL of every stored attachment of this network that is not valid, then what the delegate finds. Goes on
/// after a failure.
pub(crate) fn gc(call: &Call) -> Result<(), Failure> {
    let valid = call.valid()?;
    let mut failures = Vec::new();
    for key in State::list(&data_dir(call)?)?.into_iter().filter(|key| !valid.contains(key)) {
        failures.extend(collect(call, key).err());
    }
    failures.extend(collect_delegate(call).err());
    Failure::all(failures)
}

/// A DEL without a namespace of a stored attachment, if it is of this network.
fn collect(call: &Call, (container, ifname): (String, String)) -> Result<(), Failure> {
    let (Ok(ifname), true) = (ifname.parse(), is_name(&container)) else { return Ok(()) };
    let gone = Call { verb: Verb::Del, container, ifname, netns: String::new(), ..call.clone() };
    let text = state(&gone)?.load().unwrap_or_else(|failure| {
        eprintln!("{failure}");
        None
    });
    let text = text.unwrap_or_default();
    match stored(&gone, &text) {
        Ok(delegated) if delegated.network == call.network => del(&gone),
        _ => Ok(()),
    }
}

fn collect_delegate(call: &Call) -> Result<(), Failure> {
    let mut delegated = call.with(without_env(&call.conf)?)?;
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        if let Some(list) = call.conf.get(key) {
            delegated.conf.set(key, list.clone());
        }
    }
    delegate::run(&delegated, kind(&delegated.conf)?, Verb::Gc)
}

/// The call with the configuration that its ADD stored.
fn stored(call: &Call, text: &str) -> Result<Call, Failure> {
    call.with(Object::parse("the stored configuration", text.as_bytes())?)
}

fn kind(conf: &Object) -> Result<&str, Failure> {
    match conf.text("type")?.unwrap_or("bridge") {
        "flannel" => Err(Failure::new(Code::Config, "\"delegate\" cannot be of type flannel itself")),
        kind => Ok(kind),
    }
}

/// The delegate's configuration: the given `delegate` with what it leaves open, and addresses from `env`.
fn compose(conf: &Object, env: &Env) -> Result<Object, Failure> {
    let mut out = without_env(conf)?;
    // One of the two masquerades: the daemon, or the plugin.
    out.set_default("ipMasq", !env.ipmasq);
    out.set_default("mtu", env.mtu);
    out.set("ipam", ipam(conf, env)?);
    Ok(out.sorted())
}

/// As much of it as is known without the daemon's file: enough to remove what an ADD made.
fn without_env(conf: &Object) -> Result<Object, Failure> {
    let mut out = conf.object("delegate")?.cloned().unwrap_or_default();
    if out.get("type").is_some_and(|kind| !matches!(kind, Json::Text(_))) {
        return Err(mistyped("delegate.type", "a text"));
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
    let mut ipam = conf.object("ipam")?.cloned().unwrap_or_default();
    ipam.set_default("type", "host-local");
    out.set("ipam", ipam);
    Ok(out)
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

fn subnet_file(call: &Call) -> Result<PathBuf, Failure> {
    Ok(call.conf.text("subnetFile")?.unwrap_or(SUBNET_FILE).into())
}

fn wait(call: &Call) -> Result<Duration, Failure> {
    let ms = call.conf.number("subnetFileWait")?.unwrap_or(WAIT);
    if ms > LONGEST_WAIT {
        return Err(wrong("subnetFileWait", "at most 60000, in milliseconds"));
    }
    Ok(Duration::from_millis(ms.into()))
}

fn data_dir(call: &Call) -> Result<PathBuf, Failure> {
    Ok(call.conf.text("dataDir")?.unwrap_or(DATA_DIR).into())
}

fn state(call: &Call) -> Result<State, Failure> {
    Ok(State::new(Path::new(&data_dir(call)?), &call.container, call.ifname))
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
        for (bad, code) in
            [(r#""name":"x""#, Code::Config), (r#""ipam":{}"#, Code::Config), (r#""Type":7"#, Code::Decoding)]
        {
            let conf = format!(r#"{{"name":"n","delegate":{{{bad}}}}}"#);
            assert_eq!(compose(&conf, ENV), Err(code), "{bad}");
        }
        assert_eq!(compose(r#"{"name":"n","delegate":[]}"#, ENV), Err(Code::Decoding));
    }
}
