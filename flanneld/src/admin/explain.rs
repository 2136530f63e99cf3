//! `flannelctl explain`: the way of packets to an address, step by step, as this host sees it: lease, route, neighbour,
//! forwarding entry, rules, pod. The first step that is wrong is marked, with what repairs it.
//!
//! ```text
//!   store ─▶ leases ─┐
//!   dry run ─▶ what the kernel has, what a pass would change ─┼─▶ steps (pure) ─▶ text, JSON
//!   kernel ─▶ the route that a packet would take now ─┘
//! ```

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use backends::netlink::route::{RouteView, get_route};
use backends::netlink::{RawMessage, Socket};
use backends::{Fdb, Neigh, Object, Op, Route};
use serde::Serialize;
use serde_json::json;
use subnet_lease::{Lease, SubnetEnv, Subnets};

use super::{Answer, clean};
use crate::config::NodeConfig;
use crate::daemon::seed;
use crate::exit::Failure;
use crate::shell::block_on;
use crate::shell::dry_run::{DryRun, dry_run};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The address of a pod or of a host; of two, each is explained.
    #[arg(required = true, num_args = 1..=2, value_name = "IP")]
    addresses: Vec<IpAddr>,
}

/// Where the CNI plugin's `host-local` keeps its reservations.
const RESERVATIONS: &str = "/var/lib/cni/networks";

/// One step of the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Step {
    what: &'static str,
    /// What is there, in the words of the store or the kernel.
    line: String,
    /// What is wrong with it; none where it is as it should be.
    wrong: Option<String>,
    /// What repairs it.
    repair: Option<String>,
}

impl Step {
    fn right(what: &'static str, line: impl Into<String>) -> Self {
        Self { what, line: line.into(), wrong: None, repair: None }
    }

    fn wrong(what: &'static str, line: &str, wrong: &str, repair: Option<String>) -> Self {
        Self { what, line: line.to_owned(), wrong: Some(wrong.to_owned()), repair }
    }
}

pub(super) fn run(arguments: &Arguments, config: &NodeConfig) -> Result<Answer, Failure> {
    let store = subnet_lease::open(&config.store)?;
    let earlier = SubnetEnv::read(&config.subnet_file).ok();
    let own = earlier.as_ref().and_then(SubnetEnv::leased);
    let leases = block_on(async { Ok(store.list().await?.leases) })?;
    let run = block_on(dry_run(config.settings(seed()), store, earlier))?;
    let leases: Vec<Lease> = leases.into_iter().map(|(lease, _)| lease).collect();
    let mut answers = Vec::new();
    for address in &arguments.addresses {
        let pod = pod(Path::new(RESERVATIONS), *address);
        answers.push((*address, steps(*address, own, &leases, &run, kernel_route(*address), pod)));
    }
    Ok(answer(&answers))
}

fn answer(answers: &[(IpAddr, Vec<Step>)]) -> Answer {
    let json: Vec<_> =
        answers.iter().map(|(address, steps)| json!({ "address": address, "steps": steps })).collect();
    Answer::new(json)
        .text(answers.iter().map(|(address, steps)| text(*address, steps)).collect::<Vec<_>>().join("\n"))
}

fn text(address: IpAddr, steps: &[Step]) -> String {
    let first = steps.iter().position(|step| step.wrong.is_some());
    let mut out = format!("{address}\n");
    for (n, step) in steps.iter().enumerate() {
        // Later steps may be wrong because the first one is.
        let mark = if Some(n) == first { ">" } else { " " };
        out.push_str(&format!("{mark} {:10} {}\n", step.what, clean(&step.line)));
        if let Some(wrong) = &step.wrong {
            out.push_str(&format!("             WRONG: {}\n", clean(wrong)));
        }
        if let Some(repair) = &step.repair {
            out.push_str(&format!("             repaired by: {}\n", clean(repair)));
        }
    }
    let end = match first.and_then(|n| steps.get(n)) {
        Some(step) => format!("the first wrong step is the {}\n", step.what),
        None => "nothing is wrong as far as this host sees\n".to_owned(),
    };
    out + &end
}

/// Pure. `route` is what the kernel answers for the address now.
fn steps(
    address: IpAddr,
    own: Option<Subnets>,
    leases: &[Lease],
    run: &DryRun,
    route: Result<Option<(RouteView, String)>, String>,
    pod: Option<String>,
) -> Vec<Step> {
    let holder = leases.iter().find_map(|lease| {
        let subnet = lease.subnets.iter().find(|subnet| subnet.contains(address))?;
        Some((lease, subnet))
    });
    let mut steps = vec![lease_step(holder.map(|(lease, _)| lease), own, run)];
    let route_line = match &route {
        Ok(Some((_, line))) => line.clone(),
        Ok(None) => "the kernel has no route".to_owned(),
        Err(why) => format!("the kernel answers: {why}"),
    };
    let Some((lease, subnet)) = holder else {
        steps.push(Step::right("route", route_line));
        return steps;
    };
    if own == Some(lease.subnets) {
        steps.push(Step::right("route", route_line));
        steps.push(match pod {
            Some(pod) => Step::right("pod", pod),
            None => Step::wrong(
                "pod",
                "no reservation of the CNI plugin",
                "no pod of this host has this address",
                None,
            ),
        });
        return steps;
    }
    let is_route = |object: &Object| matches!(object, Object::Route(route) if route.dst == subnet);
    let taken = route.ok().flatten();
    steps.push(match object("route", run, is_route) {
        Some(step) if step.wrong.is_some() => Step { line: route_line, ..step },
        // Ours stands, and the kernel prefers another one.
        Some(step) => match other_route(run, subnet, taken.as_ref()) {
            Some(why) => Step::wrong("route", &route_line, &why, None),
            None => Step { line: route_line, ..step },
        },
        None => Step::wrong("route", &route_line, "this host makes no route to that subnet", None),
    });
    let Some(route) = wanted(run, is_route).and_then(|object| match object {
        Object::Route(route) => Some(*route),
        _ => None,
    }) else {
        return steps;
    };
    steps.extend(tunnel(run, &route));
    steps.extend(rules(run));
    steps
}

/// The neighbour and the forwarding entry behind a route through a tunnel; nothing for a route over the underlay.
fn tunnel(run: &DryRun, route: &Route) -> Vec<Step> {
    let gateway = route.via;
    let is_neighbour =
        |object: &Object| matches!(object, Object::Neigh(neigh) if Some(neigh.address) == gateway);
    let mut steps: Vec<Step> = object("neighbour", run, is_neighbour).into_iter().collect();
    let mac = wanted(run, is_neighbour).and_then(|object| match object {
        Object::Neigh(Neigh { mac, .. }) => Some(*mac),
        _ => None,
    });
    let is_entry =
        |object: &Object| matches!(object, Object::Fdb(Fdb { mac: found, .. }) if Some(*found) == mac);
    steps.extend(object("FDB", run, is_entry));
    steps
}

fn rules(run: &DryRun) -> Vec<Step> {
    let is_rules = |object: &Object| matches!(object, Object::Table(_) | Object::Iptables(_));
    let step = object("rules", run, is_rules);
    // The whole text of a table is long; its first line names it.
    step.into_iter()
        .map(|step| Step { line: step.line.lines().next().unwrap_or_default().to_owned(), ..step })
        .collect()
}

fn lease_step(lease: Option<&Lease>, own: Option<Subnets>, run: &DryRun) -> Step {
    let Some(lease) = lease else {
        let why = "no lease has this address: no host of this network has it";
        return Step::wrong("lease", "none", why, None);
    };
    let node = lease.node.as_deref().unwrap_or("without a name");
    let whose = if own == Some(lease.subnets) { "this host, " } else { "" };
    let line = format!("{} of {whose}node {node} at {}", lease.subnets, lease.public);
    let key = lease.subnets.to_string();
    match run.refused.iter().find(|(refused, _)| *refused == key) {
        Some((_, why)) => Step::wrong("lease", &line, &format!("refused: {why}"), None),
        None => Step::right("lease", line),
    }
}

/// What the pass wants of such an object: what it would put, else what stands.
fn wanted(run: &DryRun, is_it: impl Fn(&Object) -> bool) -> Option<&Object> {
    let put = run.plan.ops.iter().find_map(|op| match op {
        Op::Put { want, .. } => Some(want).filter(|want| is_it(want)),
        Op::Delete(_) => None,
    });
    put.or_else(|| run.have.iter().find(|object| is_it(object)))
}

/// The step about such an object; none where the host neither has it nor wants it.
fn object(what: &'static str, run: &DryRun, is_it: impl Fn(&Object) -> bool) -> Option<Step> {
    let op = run.plan.ops.iter().find(|op| is_it(op.object()));
    let have = run.have.iter().find(|object| is_it(object));
    // As an operator would type it.
    let line = have.map(|object| Op::Put { want: object.clone(), have: None }.to_string());
    match (op, line) {
        (Some(op @ Op::Put { .. }), line) => {
            let wrong = if line.is_some() { "it is not as it should be" } else { "it is missing" };
            let repair =
                format!("the daemon's next pass ({})", op.to_string().lines().next().unwrap_or_default());
            Some(Step::wrong(what, line.as_deref().unwrap_or("none"), wrong, Some(repair)))
        }
        (Some(Op::Delete(_)), line) => {
            let why = "it is stale";
            let repair = "the daemon's next pass, which deletes it".to_owned();
            Some(Step::wrong(what, line.as_deref().unwrap_or("none"), why, Some(repair)))
        }
        (None, Some(line)) => Some(Step::right(what, line)),
        (None, None) => None,
    }
}

/// Why packets do not take our route although it stands.
fn other_route(
    run: &DryRun,
    subnet: ipnetwork::IpNetwork,
    taken: Option<&(RouteView, String)>,
) -> Option<String> {
    let ours = run.have.iter().find_map(|object| match object {
        Object::Route(route) if route.dst == subnet => Some(route),
        _ => None,
    })?;
    match taken {
        None => Some(
            "our route exists, and the kernel finds no way: a rule of policy routing may forbid it (ip rule)"
                .to_owned(),
        ),
        Some((view, _)) if view.gateway == ours.via && Some(view.link) == index_of(run, ours) => None,
        Some(_) => Some(format!(
            "packets take another way than our route to {subnet}: a more specific route, or a rule of policy routing (ip rule)"
        )),
    }
}

fn index_of(run: &DryRun, route: &Route) -> Option<u32> {
    run.links.iter().find(|(_, name)| Some(**name) == route.link).map(|(index, _)| *index)
}

/// The route that a packet of this host would take now, with a line as `ip route get` prints it.
fn kernel_route(to: IpAddr) -> Result<Option<(RouteView, String)>, String> {
    let mut socket = Socket::route().map_err(|error| error.to_string())?;
    let read = |message: RawMessage<'_>| {
        let mut found = None;
        // A message of another kind is no answer.
        RouteView::parse(&message, |route| found = Some(route)).ok()?;
        found
    };
    let found = socket.get(&mut get_route(to), read).map_err(|error| error.to_string())?;
    Ok(found.map(|route| {
        let via = route.gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
        let name = nix::net::if_::if_indextoname(route.link).ok();
        let name =
            name.map_or_else(|| format!("if{}", route.link), |name| name.to_string_lossy().into_owned());
        let source = route.source.map(|source| format!(" src {source}")).unwrap_or_default();
        (route, format!("{to}{via} dev {name}{source}"))
    }))
}

/// Which container reserved an address of this host.
fn pod(reservations: &Path, address: IpAddr) -> Option<String> {
    let networks = fs::read_dir(reservations).ok()?.flatten();
    networks.into_iter().find_map(|network| {
        let text = fs::read_to_string(network.path().join(address.to_string())).ok()?;
        let mut words = text.split_whitespace();
        let (container, link) = (words.next()?, words.next().unwrap_or("eth0"));
        let name = network.file_name();
        Some(format!("container {container}, {link}, of the CNI network {}", name.to_string_lossy()))
    })
}

#[cfg(test)]
mod tests {
    use backends::{KernelState, Plan, RouteKind};
    use subnet_lease::BackendAttrs;

    use super::*;

    fn lease(subnet: &str, public: &str, node: &str) -> Lease {
        let public = [public.parse::<IpAddr>().unwrap()].into_iter().collect();
        let lease = Lease::new(subnet.parse().unwrap(), public, BackendAttrs::plain("vxlan"));
        Lease { node: Some(node.to_owned()), ..lease }
    }

    fn route() -> Route {
        Route {
            via: "10.5.7.0".parse().ok(),
            link: "flannel.1".parse().ok(),
            onlink: true,
            kind: RouteKind::Unicast,
            metric: 0,
            scope: 0,
            ..Route::blackhole("10.5.7.0/24".parse().unwrap())
        }
    }

    fn world() -> Vec<Object> {
        let (mac, link) = ("02:00:00:00:00:07".parse().unwrap(), "flannel.1".parse().unwrap());
        vec![
            Object::Route(route()),
            Object::Neigh(Neigh { link, address: "10.5.7.0".parse().unwrap(), mac }),
            Object::Fdb(Fdb { link, mac, dst: "192.0.2.7".parse().unwrap(), diverted: false }),
        ]
    }

    fn run(have: Vec<Object>, ops: Vec<Op>) -> DryRun {
        let links = [(5, "flannel.1".parse().unwrap())].into();
        DryRun {
            plan: Plan { ops },
            links,
            have: have.into_iter().collect::<KernelState>(),
            refused: Vec::new(),
        }
    }

    fn taken() -> (RouteView, String) {
        let view = RouteView {
            dst: "10.5.7.0/24".parse().unwrap(),
            table: 254,
            tos: 0,
            protocol: 67,
            scope: 0,
            kind: 1,
            metric: 0,
            gateway: "10.5.7.0".parse().ok(),
            link: 5,
            onlink: true,
            source: None,
            cloned: false,
            special: false,
            mtu: 0,
        };
        (view, "10.5.7.9 via 10.5.7.0 dev flannel.1".to_owned())
    }

    fn explain(address: &str, run: &DryRun, route: (RouteView, String)) -> Vec<Step> {
        let leases = [lease("10.5.7.0-24", "192.0.2.7", "h7"), lease("10.5.8.0-24", "192.0.2.8", "h8")];
        let own = "10.5.8.0-24".parse().ok();
        steps(address.parse().unwrap(), own, &leases, run, Ok(Some(route)), None)
    }

    fn names(steps: &[Step]) -> Vec<(&str, bool)> {
        steps.iter().map(|step| (step.what, step.wrong.is_none())).collect()
    }

    #[test]
    fn a_healthy_way_has_all_its_steps() {
        let found = explain("10.5.7.9", &run(world(), vec![]), taken());
        assert_eq!(names(&found), [("lease", true), ("route", true), ("neighbour", true), ("FDB", true)]);
        let output = text("10.5.7.9".parse().unwrap(), &found);
        assert!(output.contains("10.5.7.0-24 of node h7 at 192.0.2.7"), "{output}");
        assert!(output.ends_with("nothing is wrong as far as this host sees\n"), "{output}");
    }

    #[test]
    fn the_first_wrong_step_is_marked_with_what_repairs_it() {
        let mut have = world();
        let entry = have.remove(2);
        let put = Op::Put { want: entry, have: None };
        let found = explain("10.5.7.9", &run(have, vec![put]), taken());
        assert_eq!(names(&found), [("lease", true), ("route", true), ("neighbour", true), ("FDB", false)]);
        let output = text("10.5.7.9".parse().unwrap(), &found);
        for part in ["> FDB", "WRONG: it is missing", "bridge fdb", "the first wrong step is the FDB"] {
            assert!(output.contains(part), "{part} is not in:\n{output}");
        }
    }

    #[test]
    fn a_route_of_another_program_that_is_preferred_is_named() {
        let (view, _) = taken();
        let other = (RouteView { gateway: None, link: 2, ..view }, "10.5.7.9 dev eth0".to_owned());
        let found = explain("10.5.7.9", &run(world(), vec![]), other);
        let wrong = found[1].wrong.as_deref().unwrap();
        assert!(
            found[1].line == "10.5.7.9 dev eth0" && wrong.contains("packets take another way"),
            "{wrong}"
        );
    }

    #[test]
    fn an_address_without_a_lease_and_a_refused_lease_are_said_to_be_that() {
        let found = explain("10.5.9.9", &run(world(), vec![]), taken());
        assert!(found[0].wrong.as_deref().unwrap().contains("no lease has this address"));
        let refused = vec![("10.5.7.0-24".to_owned(), "its VNI is 2".to_owned())];
        let found = explain("10.5.7.9", &DryRun { refused, ..run(vec![], vec![]) }, taken());
        assert_eq!(found[0].wrong.as_deref(), Some("refused: its VNI is 2"));
        assert_eq!(found[1].wrong.as_deref(), Some("this host makes no route to that subnet"));
    }

    #[test]
    fn an_address_of_this_host_leads_to_the_container_that_reserved_it() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("cbr0")).unwrap();
        fs::write(folder.path().join("cbr0/10.5.8.9"), "c1\r\neth0").unwrap();
        let pod = pod(folder.path(), "10.5.8.9".parse().unwrap()).unwrap();
        assert_eq!(pod, "container c1, eth0, of the CNI network cbr0");
        let found = explain("10.5.8.9", &run(vec![], vec![]), taken());
        assert_eq!(names(&found), [("lease", true), ("route", true), ("pod", false)]);
    }
}
