//! One side of a comparison: a host of its own on which one set of plugins does what a configuration says.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use netns_harness::{Host, Net, Program, Sandbox, Topology};
use serde_json::{Map, Value};

use crate::facts::{Facts, flatten};
use crate::picture;
use crate::reach;
use crate::table::Configuration;

/// Runs `configuration` with the plugins in `folder`; returns all that could be seen of it.
pub(crate) fn play(folder: &Path, configuration: &Configuration) -> Result<Facts> {
    let net = Net::build(Topology::flat(1))?;
    let host = net.host(0).clone();
    std::fs::create_dir_all(host.path("/run/flannel"))?;
    sh(&host, &configuration.before).context("before")?;
    let mut stage = Stage {
        folder: folder.to_owned(),
        configuration,
        host,
        sandboxes: BTreeMap::new(),
        results: BTreeMap::new(),
        facts: Facts::default(),
    };
    for (number, step) in configuration.steps().into_iter().enumerate() {
        stage.step(&format!("{} {step}", number + 1), step).with_context(|| step.to_owned())?;
    }
    Ok(stage.facts)
}

struct Stage<'a> {
    folder: PathBuf,
    configuration: &'a Configuration,
    host: Host,
    sandboxes: BTreeMap<String, Sandbox>,
    /// By container and interface.
    results: BTreeMap<(String, String), Value>,
    facts: Facts,
}

/// Who is attached, and by what.
struct Attachment<'a> {
    verb: &'a str,
    container: &'a str,
    interface: &'a str,
    /// Empty when the runtime says nothing of it.
    netns: String,
}

impl Stage<'_> {
    fn step(&mut self, label: &str, step: &str) -> Result<()> {
        if let Some(script) = step.strip_prefix("$ ") {
            return sh(&self.host, script);
        }
        let mut words = step.split_whitespace();
        let verb = words.next().unwrap_or_default();
        if verb.starts_with("REACH") {
            let (from, to) = words.next().zip(words.next()).context("REACH needs from and to")?;
            let fact = self.reach(verb == "REACH/udp", from, to.parse()?)?;
            self.facts.add(label, &fact);
            return Ok(());
        }
        let container = words.next().unwrap_or("c1");
        let interface = words.next().unwrap_or("eth0");
        self.sandbox(container)?;
        let netns = if verb.ends_with('-') { String::new() } else { self.sandboxes[container].path().into() };
        let call = Attachment { verb: verb.trim_end_matches('-'), container, interface, netns };
        let key = (container.to_owned(), interface.to_owned());
        let outcome = self.chain(&call, self.results.get(&key).cloned())?;
        self.note(label, step, &outcome);
        match (call.verb, outcome) {
            ("ADD", Outcome::Went(result)) => drop(self.results.insert(key, result)),
            ("DEL", Outcome::Went(_)) => drop(self.results.remove(&key)),
            _ => {}
        }
        if matches!(call.verb, "ADD" | "DEL" | "GC") {
            self.facts.extend(label, picture::take(&self.host, &self.sandboxes)?);
        }
        Ok(())
    }

    /// Whether the first container's port 80 is reached at `to`, and from where it seems to be.
    fn reach(&self, udp: bool, from: &str, to: SocketAddr) -> Result<String> {
        let server = self.sandboxes["c1"].space();
        let client = match from {
            "host" => self.host.space(),
            container => self.sandboxes.get(container).context("no such container")?.space(),
        };
        let seen = if udp { reach::udp(server, client, to) } else { reach::tcp(server, client, to) }?;
        Ok(seen.map_or_else(|| "not reached".to_owned(), |from| format!("reached, and seen from {from}")))
    }

    fn sandbox(&mut self, container: &str) -> Result<()> {
        if !self.sandboxes.contains_key(container) {
            let sandbox = Sandbox::new(&self.host, container)?;
            let enter = format!("nsenter --net={} sh -e -c '{}'", sandbox.path(), self.configuration.inside);
            sh(&self.host, &enter)?;
            self.sandboxes.insert(container.to_owned(), sandbox);
        }
        Ok(())
    }

    /// The plugins one after the other, as libcni calls them.
    fn chain(&self, call: &Attachment<'_>, stored: Option<Value>) -> Result<Outcome> {
        let mut previous = if call.verb == "ADD" { None } else { stored };
        let mut plugins: Vec<_> = self.configuration.plugins.iter().collect();
        if call.verb == "DEL" {
            plugins.reverse();
            previous = previous.filter(|_| self.configuration.has_check());
        }
        for plugin in plugins {
            match self.call(plugin, call, previous.as_ref())? {
                Outcome::Went(result) if call.verb == "ADD" => previous = Some(result),
                Outcome::Went(result) if matches!(call.verb, "VERSION") => return Ok(Outcome::Went(result)),
                Outcome::Went(_) => {}
                failed @ Outcome::Failed(_) => return Ok(failed),
            }
        }
        Ok(Outcome::Went(if call.verb == "ADD" { previous.unwrap_or_default() } else { Value::Null }))
    }

    fn call(
        &self,
        plugin: &Map<String, Value>,
        call: &Attachment<'_>,
        previous: Option<&Value>,
    ) -> Result<Outcome> {
        let kind = plugin["type"].as_str().context("a plugin has a type")?;
        let mut program = Program::new(self.folder.join(kind))
            .env("CNI_COMMAND", call.verb)
            .env("CNI_CONTAINERID", call.container)
            .env("CNI_NETNS", &call.netns)
            .env("CNI_IFNAME", call.interface)
            .env("CNI_PATH", &self.folder)
            .env("CNI_ARGS", &self.configuration.args)
            .stdin(self.configuration.input(plugin, previous));
        for (key, value) in &self.configuration.env {
            program = program.env(key, value);
        }
        let output = self.host.output(&program)?;
        let text = String::from_utf8(output.stdout)?;
        let document = if text.trim().is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&text).with_context(|| format!("{kind} printed {text:?}"))?
        };
        Ok(if output.status.success() { Outcome::Went(document) } else { Outcome::Failed(document) })
    }

    /// The outcome as facts: the message of a failure is its plugin's own affair.
    fn note(&mut self, label: &str, step: &str, outcome: &Outcome) {
        let Configuration { fails_in_go, fails_in_ours, .. } = self.configuration;
        if fails_in_go.contains_key(step) || fails_in_ours.contains_key(step) {
            if let Outcome::Failed(document) = outcome {
                self.facts.failure(step, document);
            }
            return;
        }
        match outcome {
            Outcome::Went(result) => {
                self.facts.add(label, "succeeds");
                self.facts.extend(label, flatten("result", result));
            }
            Outcome::Failed(document) => {
                self.facts.add(label, "fails");
                self.facts.add(label, &format!("code {}", document["code"]));
                self.facts.failure(step, document);
            }
        }
    }
}

/// How a call of a chain ended.
enum Outcome {
    Went(Value),
    Failed(Value),
}

fn sh(host: &Host, script: &str) -> Result<()> {
    if script.is_empty() {
        return Ok(());
    }
    let output = host.output(&Program::new("sh").args(["-e", "-c", script]))?;
    ensure!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
