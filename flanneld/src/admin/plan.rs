//! `flannelctl plan`: what the next pass would do, as lines for a shell, each with its reason. Nothing is written, and no
//! daemon of ours is needed: on a node of a Go flannel it shows what is missing, stale, wrong, or different by design.

use backends::{Link, Object, Op, Route};
use serde_json::{Value, json};
use subnet_lease::SubnetEnv;

use super::Answer;
use crate::config::NodeConfig;
use crate::daemon::seed;
use crate::exit::Failure;
use crate::shell::block_on;
use crate::shell::dry_run::{DryRun, dry_run};

pub(super) fn run(config: &NodeConfig) -> Result<Answer, Failure> {
    let store = subnet_lease::open(&config.store)?;
    let earlier = SubnetEnv::read(&config.subnet_file).ok();
    let planned = block_on(dry_run(config.settings(seed()), store, earlier))?;
    Ok(Answer::new(as_json(&planned)).text(as_script(&planned)))
}

fn as_script(planned: &DryRun) -> String {
    let lines: String = steps(planned).map(|(_, text, why)| commented(&text, &why)).collect();
    if lines.is_empty() { "# nothing to do\n".to_owned() } else { lines }
}

/// The reason stands at the end of the first line: what follows may be the text of a table.
fn commented(text: &str, why: &str) -> String {
    let (first, rest) = text.split_once('\n').map_or((text, String::new()), |(a, b)| (a, format!("{b}\n")));
    format!("{first}  # {why}\n{rest}")
}

fn as_json(planned: &DryRun) -> Value {
    let step = |(op, text, why): (&Op, String, String)| {
        let verb = if matches!(op, Op::Put { .. }) { "put" } else { "delete" };
        json!({ "step": verb, "shell": text, "why": why })
    };
    Value::Array(steps(planned).map(step).collect())
}

fn steps(planned: &DryRun) -> impl Iterator<Item = (&Op, String, String)> {
    let name =
        |index: u32| planned.links.get(&index).map_or_else(|| format!("if{index}"), ToString::to_string);
    planned.plan.ops.iter().map(move |op| (op, op.shell(&name).to_string(), plain(&why(op))))
}

/// A comment ends with its line; names and tags are whatever somebody chose.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn why(op: &Op) -> String {
    match op {
        Op::Delete(_) => "stale".to_owned(),
        Op::Put { have: None, .. } => "missing".to_owned(),
        Op::Put { want: Object::Table(_) | Object::Iptables(_), .. } => "other rules".to_owned(),
        Op::Put { want, have: Some(have) } => {
            let found = differences(want, have);
            let word = if found.iter().all(|found| BY_DESIGN.iter().any(|word| found.starts_with(word))) {
                "works, not ours"
            } else {
                "wrong"
            };
            format!("{word}: {}", found.join(", "))
        }
    }
}

/// What a Go flannel does as well as we, in its own way.
const BY_DESIGN: [&str; 3] = ["proto ", "scope 0", "alias none"];

/// What the kernel has where it differs from the wish, in the words of `ip`.
fn differences(want: &Object, have: &Object) -> Vec<String> {
    match (want, have) {
        (Object::Link(want), Object::Link(have)) => link(want, have),
        (Object::Route(want), Object::Route(have)) => route(want, have),
        (Object::Fdb(_), Object::Fdb(have)) if have.diverted => vec!["dst diverted".to_owned()],
        (Object::Fdb(_), Object::Fdb(have)) => vec![format!("dst {}", have.dst)],
        (Object::Address(_), Object::Address(_)) => vec!["scope not global".to_owned()],
        (Object::Neigh(_), Object::Neigh(have)) => vec![format!("lladdr {}", have.mac)],
        (Object::Sysctl(..), Object::Sysctl(.., value)) => vec![value.to_string()],
        _ => vec!["other rules".to_owned()],
    }
}

fn differing<T: PartialEq>(name: &str, want: &T, have: &T, shown: impl ToString) -> Option<String> {
    (want != have).then(|| format!("{name} {}", shown.to_string()))
}

fn link(want: &Link, have: &Link) -> Vec<String> {
    let alias = if have.tag.is_empty() { "none" } else { &have.tag };
    let of_kind = have.kind.differences(&want.kind);
    let first = [
        differing("mtu", &want.mtu, &have.mtu, have.mtu),
        differing("address", &want.mac, &have.mac, have.mac),
    ];
    let last = [
        differing("master", &want.master, &have.master, format!("if{}", have.master)),
        differing("name", &want.name, &have.name, have.name),
        differing("alias", &want.tag, &have.tag, alias),
    ];
    let of_kind = of_kind.into_iter().map(|(name, value)| format!("{name} {value}"));
    first.into_iter().flatten().chain(of_kind).chain(last.into_iter().flatten()).collect()
}

fn route(want: &Route, have: &Route) -> Vec<String> {
    let via = have.via.map_or_else(|| "none".to_owned(), |via| via.to_string());
    let dev = have.link.map_or_else(|| "none".to_owned(), |link| link.to_string());
    let kind = if have.kind == want.kind { None } else { Some("another kind of route".to_owned()) };
    let found = [
        kind,
        differing("via", &want.via, &have.via, via),
        differing("dev", &want.link, &have.link, dev),
        differing("onlink", &want.onlink, &have.onlink, have.onlink),
        differing("proto", &want.protocol, &have.protocol, have.protocol),
        differing("scope", &want.scope, &have.scope, have.scope),
    ];
    found.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use backends::Plan;

    use super::*;

    fn peer_route() -> Route {
        Route {
            via: "10.5.7.0".parse().ok(),
            link: "flannel.1".parse().ok(),
            onlink: true,
            kind: backends::RouteKind::Unicast,
            metric: 0,
            scope: 8,
            ..Route::blackhole("10.5.7.0/24".parse().unwrap())
        }
    }

    fn planned(ops: Vec<Op>) -> DryRun {
        DryRun {
            plan: Plan { ops },
            links: BTreeMap::from([(2, "eth0".parse().unwrap())]),
            ..DryRun::default()
        }
    }

    #[test]
    fn every_line_has_its_reason_and_a_difference_by_design_is_no_fault() {
        let (want, flannel) = (peer_route(), Route { protocol: 3, scope: 0, ..peer_route() });
        let moved = Route { via: "10.5.8.0".parse().ok(), ..flannel };
        let put = |have: Option<Route>| Op::Put { want: Object::Route(want), have: have.map(Object::Route) };
        let stale = Op::Delete(Object::Route(flannel));
        let script = as_script(&planned(vec![put(None), put(Some(flannel)), put(Some(moved)), stale]));
        let line = "ip route replace 10.5.7.0/24 via 10.5.7.0 dev flannel.1 onlink proto 67 scope 8";
        let expected = format!(
            "{line}  # missing\n{line}  # works, not ours: proto 3, scope 0\n\
             {line}  # wrong: via 10.5.8.0, proto 3, scope 0\n\
             ip route delete 10.5.7.0/24 via 10.5.7.0 dev flannel.1 onlink proto 3  # stale\n"
        );
        assert_eq!(script, expected);
        assert_eq!(as_script(&planned(Vec::new())), "# nothing to do\n");
    }

    #[test]
    fn a_shell_takes_every_name_as_one_word_and_the_underlay_by_its_name() {
        let kind = backends::LinkKind::Vxlan(backends::Vxlan {
            vni: 1,
            port: 8472,
            local: None,
            parent: 2,
            learning: false,
            gbp: false,
        });
        let tagged = |tag: &str| {
            Object::Link(Box::new(Link {
                name: "a;b$c".parse().unwrap(),
                kind,
                mtu: 1450,
                mac: "02:00:00:00:00:01".parse().unwrap(),
                tag: tag.to_owned(),
                master: 0,
            }))
        };
        let (want, have) = (tagged("selvage:/a'; reboot #\n"), tagged(""));
        let ops = vec![Op::Put { want: want.clone(), have: None }, Op::Put { want: have, have: Some(want) }];
        let expected = "ip link add 'a;b$c' address 02:00:00:00:00:01 mtu 1450 type vxlan id 1 dev eth0 dstport 8472 nolearning  # missing\n\
             ip link set 'a;b$c' alias 'selvage:/a'\\''; reboot #\n'\n\
             ip link set 'a;b$c' alias ''  # wrong: alias selvage:/a'; reboot #?\n";
        assert_eq!(as_script(&planned(ops)), expected);
    }

    #[test]
    fn json_has_a_step_a_line_and_a_reason() {
        let steps = as_json(&planned(vec![Op::Delete(Object::Route(peer_route()))]));
        let expected = json!([{
            "step": "delete",
            "shell": "ip route delete 10.5.7.0/24 via 10.5.7.0 dev flannel.1 onlink proto 67 scope 8",
            "why": "stale",
        }]);
        assert_eq!(steps, expected);
    }
}
