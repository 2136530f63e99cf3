//! Golden cases, a folder each. `input.json` is what the daemon gets; `wish.txt` is what it would do to an
//! empty host, `plan.txt` what it does to this one, as shell lines. `UPDATE=1` writes both again. A new
//! folder is a new case.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backends::kernel::KernelEvent;
use backends::kernel::fake::FakeKernel;
use backends::rules::RuleSettings;
use flanneld::core::{Input, Settings};
use nix::errno::Errno;
use serde::Deserialize;
use serde_json::Value;
use subnet_lease::{Lease, StoreEvent, SubnetEnv};
use tests::lines::type_line;
use tests::solo::{Solo, settings};

/// What the daemon gets.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    /// What the case shows, in one sentence.
    about: String,
    /// The net-conf.
    network: Value,
    /// Key of the lease that the store grants.
    own: String,
    /// All leases as flannel's records, with our own lease if the store already has it.
    leases: BTreeMap<String, Value>,
    /// The host: links, addresses, default routes.
    host: Vec<String>,
    /// What already exists in the kernel.
    #[serde(default)]
    before: Vec<String>,
    /// What an earlier daemon published.
    #[serde(default)]
    env: Option<String>,
    #[serde(default)]
    masquerade: bool,
    #[serde(default)]
    blackhole: bool,
    /// What happens afterwards.
    #[serde(default)]
    then: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Step {
    /// The store sends records; null for a lease that ended.
    Hear(BTreeMap<String, Option<Value>>),
    /// A record cannot be read.
    Unreadable(String),
    /// An operator types a line.
    Hand(Vec<String>),
    /// The next dumps are interrupted.
    Interrupt(u32),
    /// One of the next steps fails once.
    Fail(u64),
    /// The daemon is killed and starts again.
    Restart,
    /// Time passes, in seconds.
    Wait(u64),
}

fn lease(key: &str, record: &Value) -> Lease {
    Lease::from_record(key, record.to_string().as_bytes()).unwrap_or_else(|e| panic!("{key}: {e}"))
}

fn type_all(kernel: &mut FakeKernel, lines: &[String]) {
    for line in lines {
        type_line(&mut kernel.net, line).unwrap_or_else(|e| panic!("{e:?}"));
    }
}

impl Case {
    fn settings(&self) -> Settings {
        let on = self.masquerade;
        let rules = RuleSettings { masquerade: on, forward_rules: on, ..RuleSettings::default() };
        Settings { rules, blackhole_route: self.blackhole, ..settings() }
    }

    /// A daemon started on this host.
    fn start(&self, before: &[String]) -> Solo {
        let mut kernel = FakeKernel::new(1);
        type_all(&mut kernel, &self.host);
        type_all(&mut kernel, before);
        let any = serde_json::json!({"PublicIP": "0.0.0.0", "PublicIPv6": null});
        let own = lease(&self.own, self.leases.get(&self.own).unwrap_or(&any));
        let mut solo = Solo::new(self.settings(), kernel, own);
        if let Some(env) = &self.env {
            solo.hear(Input::Remembered(SubnetEnv::parse(env).unwrap()));
        }
        self.give(&mut solo);
        solo.notice();
        // Storms are paced, so the next event comes after a pause.
        solo.wait(Duration::from_secs(2));
        solo
    }

    fn give(&self, solo: &mut Solo) {
        let leases = self.leases.iter().map(|(key, record)| lease(key, record)).collect();
        solo.start(self.network.to_string().as_bytes(), leases);
    }

    fn wish(&self) -> String {
        format!("# {}\n{}", self.about, plans_text(&mut self.start(&[])))
    }

    fn plan(&self) -> String {
        let mut solo = self.start(&self.before);
        let mut text = format!("# {}\n\n# start\n{}", self.about, plans_text(&mut solo));
        for step in &self.then {
            let _ = write!(text, "\n# {}\n", step.heading());
            self.perform(step, &mut solo);
            solo.notice();
            text += &plans_text(&mut solo);
        }
        self.check_quiet(&mut solo);
        let refused: Vec<_> = solo.core.peers().into_iter().flat_map(|p| p.refused()).collect();
        text.extend(refused.into_iter().map(|(key, why)| format!("\n# refused {key}: {why}\n")));
        let readiness = solo.core.readiness();
        let word = if readiness.ready { "ready" } else { "not ready" };
        text + &format!(
            "\n# {word}{}\n",
            readiness.reasons.iter().map(|r| format!("\n#   {r}")).collect::<String>()
        )
    }

    fn perform(&self, step: &Step, solo: &mut Solo) {
        match step {
            Step::Hear(records) => records.iter().for_each(|(key, record)| {
                let event = match record {
                    Some(record) => StoreEvent::Upsert(lease(key, record)),
                    None => StoreEvent::Removed(vec![key.parse().unwrap()]),
                };
                solo.hear(Input::Store(event));
            }),
            Step::Unreadable(key) => {
                let event = StoreEvent::Unreadable { key: key.clone(), reason: "not a JSON object".into() };
                solo.hear(Input::Store(event));
            }
            Step::Hand(lines) => type_all(&mut solo.kernel, lines),
            Step::Interrupt(times) => solo.kernel.faults.interrupt_dumps(*times),
            Step::Fail(nth) => solo.kernel.faults.fail_nth(*nth, Errno::EBUSY),
            Step::Restart => {
                solo.restart(self.settings());
                self.give(solo);
            }
            Step::Wait(seconds) => solo.wait(Duration::from_secs(*seconds)),
        }
    }

    /// A minute later one more pass finds nothing to do.
    fn check_quiet(&self, solo: &mut Solo) {
        solo.wait(Duration::from_secs(60));
        solo.take_plans();
        solo.hear(Input::Kernel(KernelEvent::Overrun));
        let plans = solo.take_plans();
        assert!(plans.iter().all(|(_, failed)| *failed > 0), "{}: not as wished: {plans:?}", self.about);
    }
}

impl Step {
    fn heading(&self) -> String {
        match self {
            Self::Hear(records) => {
                let word = |(key, record): (&String, &Option<Value>)| {
                    format!("{key} {}", if record.is_some() { "comes or changes" } else { "goes" })
                };
                records.iter().map(word).collect::<Vec<_>>().join(", ")
            }
            Self::Unreadable(key) => format!("{key} can't be read"),
            Self::Hand(lines) => format!("an operator types: {}", lines.join("; ")),
            Self::Interrupt(times) => format!("the next dumps will be interrupted: {times}"),
            Self::Fail(nth) => format!("step {nth} from now will fail"),
            Self::Restart => "the daemon is killed and starts again".to_owned(),
            Self::Wait(seconds) => format!("{seconds} s later"),
        }
    }
}

/// The plans that were applied. A repeated plan is printed once.
fn plans_text(solo: &mut Solo) -> String {
    let mut plans = solo.take_plans();
    plans.dedup();
    let failures = |failed| if failed > 0 { format!("# {failed} failed\n") } else { String::new() };
    let text: String =
        plans.into_iter().map(|(plan, failed)| format!("{plan}{}", failures(failed))).collect();
    if text.is_empty() { "# nothing to do\n".to_owned() } else { text }
}

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let mut cases: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.retain(|path| path.join("input.json").exists());
    cases.sort();
    cases
}

#[test]
fn every_golden_case_matches_its_folder() {
    let update = std::env::var_os("UPDATE").is_some();
    let mut wrong = String::new();
    let cases = cases();
    assert!(cases.len() >= 20, "the cases are gone: {}", cases.len());
    for folder in cases {
        let input = fs::read(folder.join("input.json")).unwrap();
        let case: Case =
            serde_json::from_slice(&input).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        for (name, text) in [("wish.txt", case.wish()), ("plan.txt", case.plan())] {
            let file = folder.join(name);
            if update {
                fs::write(&file, &text).unwrap();
            } else if fs::read_to_string(&file).unwrap_or_default() != text {
                let _ = write!(wrong, "{} should be (UPDATE=1 writes it):\n{text}\n", file.display());
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}
