//! One case: its name, what it needs, and its body.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Failed, Trial};
use netns_harness::caps::{Caps, Need};
use netns_harness::chaos::with_room;
use netns_harness::flannel::{Products, StoreKind};
use netns_harness::{Cluster, Family, Program, Spec};

/// A case of the suite.
pub(crate) struct Case {
    name: String,
    needs: Vec<Need>,
    peers: bool,
    programs: Vec<&'static str>,
    anywhere: Vec<&'static str>,
    in_the_vm: bool,
    body: Box<dyn FnOnce() -> Result<()> + Send>,
}

/// The needs of every cluster.
const CLUSTER: [Need; 6] =
    [Need::Namespaces, Need::Veth, Need::Bridge, Need::Vxlan, Need::NfTables, Need::Ipv6];

/// A case that builds a cluster.
pub(crate) fn case(name: impl Into<String>, body: impl FnOnce() -> Result<()> + Send + 'static) -> Case {
    Case {
        name: name.into(),
        needs: CLUSTER.to_vec(),
        peers: false,
        programs: Vec::new(),
        anywhere: Vec::new(),
        in_the_vm: false,
        body: Box::new(body),
    }
}

impl Case {
    /// Its needs of the machine are exactly these.
    pub(crate) fn needing(self, needs: &[Need]) -> Self {
        Self { needs: needs.to_vec(), ..self }
    }

    /// It needs this of the machine as well.
    pub(crate) fn also_needing(mut self, needs: &[Need]) -> Self {
        self.needs.extend(needs);
        self
    }

    /// It may be skipped where the kernel lacks something: `tests/run vm` runs it on a kernel that has everything.
    pub(crate) fn in_the_vm(self) -> Self {
        Self { in_the_vm: std::env::var_os("SELVAGE_VM").is_none(), ..self }
    }

    /// It needs the real programs to test against.
    pub(crate) fn with_peers(self) -> Self {
        Self { peers: true, ..self }
    }

    /// It needs these programs, as the machine's real root.
    pub(crate) fn with_programs(self, paths: &[&'static str]) -> Self {
        Self { programs: paths.to_vec(), ..self }
    }

    /// It needs these programs, in any folder of PATH.
    pub(crate) fn with_programs_anywhere(self, names: &[&'static str]) -> Self {
        Self { anywhere: names.to_vec(), ..self }
    }

    /// Why it cannot run here.
    fn missing(&self) -> Vec<String> {
        let mut missing: Vec<String> =
            Caps::probe().missing(&self.needs).into_iter().map(Into::into).collect();
        if self.peers && peer("flanneld").is_err() {
            missing.push("the programs of tests/peers are not built".into());
        }
        let lacking = self.programs.iter().filter(|path| !std::path::Path::new(path).exists());
        missing.extend(lacking.map(|path| format!("{path} is not installed; `.ci/setup --tests` does it")));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = |name: &&&str| std::env::split_paths(&path).any(|dir| dir.join(name).exists());
        let lacking = self.anywhere.iter().filter(|name| !found(name));
        missing.extend(lacking.map(|name| format!("no {name} in PATH; `.ci/setup --tests` installs it")));
        if !self.programs.is_empty() && netns_harness::is_rootless() {
            missing.push(
                "system services give up their rights for users that only the machine's root has".into(),
            );
        }
        missing
    }

    fn trial(self) -> Trial {
        let body = self.body;
        Trial::test(self.name, move || body().map_err(|error| Failed::from(format!("{error:?}"))))
    }
}

/// Runs every case that can run, lists the skipped ones, and fails on a skip that is not allowed.
pub(crate) fn run(args: &Arguments, cases: Vec<Case>) -> ExitCode {
    let allowed = std::env::var("SELVAGE_ALLOW_SKIPS").ok().filter(|list| !list.is_empty());
    let mut refused = false;
    let mut trials = Vec::new();
    for case in cases {
        let missing = case.missing();
        if missing.is_empty() {
            trials.push(case.trial());
            continue;
        }
        println!("skipped {}: {}", case.name, missing.join("; "));
        refused |= !case.in_the_vm
            && allowed.as_ref().is_some_and(|list| !list.split(',').any(|name| name == case.name));
        trials.push(case.trial().with_ignored_flag(true));
    }
    let code = libtest_mimic::run(args, trials).exit_code();
    if refused {
        println!("a case was skipped that must run here");
        return ExitCode::FAILURE;
    }
    code
}

/// Our programs. The daemon has the capabilities of the shipped unit and no other: what ships is what is tested.
pub(crate) fn products() -> Result<Products> {
    let dir =
        std::env::var_os("SELVAGE_PRODUCTS").context("SELVAGE_PRODUCTS is not set: run `tests/run netns`")?;
    let products = Products::in_dir(&PathBuf::from(dir))?;
    Ok(Products { capabilities: Some(capabilities()?), ..products })
}

/// What the unit says, as `setpriv` wants it.
pub(crate) fn capabilities() -> Result<String> {
    let unit = include_str!("../../../flanneld/dist/flanneld.service");
    let set = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let names = set.context("the unit has a bounding set")?.split_whitespace();
    Ok(names.map(|name| name.trim_start_matches("CAP_").to_lowercase()).collect::<Vec<_>>().join(","))
}

/// One of the real programs to test against.
pub(crate) fn peer(program: &str) -> Result<PathBuf> {
    let dir =
        std::env::var_os("SELVAGE_PEERS").filter(|d| !d.is_empty()).context("SELVAGE_PEERS is not set")?;
    let path = PathBuf::from(dir).join(program);
    path.exists().then_some(path.clone()).with_context(|| format!("{} does not exist", path.display()))
}

/// A running cluster of three hosts with etcd, unless the spec differs; its pods reach each other.
pub(crate) fn cluster(spec: Spec) -> Result<Cluster> {
    Cluster::up(&spec, &products()?)
}

/// Three hosts of these families. None of them leases `10.42.200.0` or above: these subnets are for the
/// leases that cases write.
pub(crate) fn spec(family: Family) -> Spec {
    with_room(Spec { family, store: StoreKind::Etcd, ..Spec::default() }, 0)
}

/// Runs etcdctl with the cluster's store.
pub(crate) fn etcdctl(cluster: &Cluster, args: &[&str]) -> Result<String> {
    let endpoint = format!("--endpoints={}", cluster.store.endpoint());
    let program = Program::new("etcdctl").env("ETCDCTL_API", "3").arg(endpoint).args(args.iter().copied());
    cluster.net.store().exec(&program)
}
