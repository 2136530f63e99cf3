//! The table of configurations, as `table.json` has it.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Configurations, and the differences between the plugins that are meant to be.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Table {
    pub(crate) decided: Vec<Decided>,
    pub(crate) configurations: Vec<Configuration>,
}

/// A difference that is meant to be: facts that only one of the two sides shows.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Decided {
    /// What only Go's plugins show; `*` stands for anything.
    #[serde(default)]
    pub(crate) go: Vec<String>,
    /// What only ours show.
    #[serde(default)]
    pub(crate) ours: Vec<String>,
    pub(crate) why: String,
    /// Only where the configuration's name has this word; everywhere without one.
    #[serde(default)]
    pub(crate) within: String,
}

/// One network and what is done with it on both sides.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Configuration {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) version: Option<String>,
    /// The entries of the network's plugins, in order.
    #[serde(default)]
    pub(crate) plugins: Vec<Map<String, Value>>,
    /// CNI_ARGS.
    #[serde(default)]
    pub(crate) args: String,
    /// Variables that differ from a runtime's.
    #[serde(default)]
    pub(crate) env: BTreeMap<String, String>,
    /// Standard input, instead of the network's own.
    #[serde(default)]
    pub(crate) stdin: Option<String>,
    /// A shell script for the host, before anything.
    #[serde(default)]
    pub(crate) before: String,
    /// A shell script for each container's namespace, before anything.
    #[serde(default)]
    pub(crate) inside: String,
    /// Steps as `VERB [container [interface]]`, `VERB-` without a namespace, `$ script` on the host, or `REACH from to`
    /// (`REACH/udp`): whether the first container's port 80 is reached from the host or a container at an address.
    #[serde(default)]
    pub(crate) steps: Vec<String>,
    /// Steps that fail on both sides, and our code for it.
    #[serde(default)]
    pub(crate) fails: BTreeMap<String, u64>,
    /// Steps that fail with Go's plugins only, and why. After an ADD there is nothing else to compare.
    #[serde(default)]
    pub(crate) fails_in_go: BTreeMap<String, String>,
    /// Steps that fail with ours only: our code, and why. After an ADD likewise.
    #[serde(default)]
    pub(crate) fails_in_ours: BTreeMap<String, (u64, String)>,
}

/// The network's name in all configurations.
pub(crate) const NETWORK: &str = "net1";

impl Table {
    pub(crate) fn read(text: &str) -> Result<Self> {
        let table: Self = serde_json::from_str(text).context("table.json")?;
        for one in &table.configurations {
            ensure!(
                table.configurations.iter().filter(|other| other.name == one.name).count() == 1,
                "{} twice",
                one.name
            );
            ensure!(!one.plugins.is_empty(), "{}: no plugins", one.name);
        }
        Ok(table)
    }
}

impl Configuration {
    pub(crate) fn version(&self) -> &str {
        self.version.as_deref().unwrap_or("1.0.0")
    }

    /// What is done: add, check where the version has it, delete, and delete again.
    pub(crate) fn steps(&self) -> Vec<&str> {
        if !self.steps.is_empty() {
            return self.steps.iter().map(String::as_str).collect();
        }
        let check = self.has_check() && self.fails.is_empty();
        ["ADD", "CHECK", "DEL", "DEL"].into_iter().filter(|step| check || *step != "CHECK").collect()
    }

    /// CHECK, and DEL with the result of ADD, came with 0.4.0.
    pub(crate) fn has_check(&self) -> bool {
        !["", "0.1.0", "0.2.0", "0.3.0", "0.3.1"].contains(&self.version())
    }

    /// The standard input of one plugin, as a runtime makes it.
    pub(crate) fn input(&self, plugin: &Map<String, Value>, previous: Option<&Value>) -> String {
        if let Some(text) = &self.stdin {
            return text.clone();
        }
        let mut conf = plugin.clone();
        conf.entry("name").or_insert_with(|| NETWORK.into());
        if !self.version().is_empty() {
            conf.entry("cniVersion").or_insert_with(|| self.version().into());
        }
        if let Some(previous) = previous {
            conf.insert("prevResult".into(), previous.clone());
        }
        json!(conf).to_string()
    }
}
