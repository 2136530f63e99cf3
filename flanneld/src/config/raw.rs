//! Settings as written: texts, and where each came from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::ConfigError;
use crate::cli::{self, Flag, Given, Kind, Status};
use crate::exit::Exit;

/// The environment variables of the process.
pub type Environment = BTreeMap<String, String>;

/// Replaces a secret in listings.
const MASK: &str = "***";

/// Every setting that was made; the others have their defaults.
#[derive(Debug, Clone, Default)]
pub struct RawConfig {
    made: BTreeMap<&'static str, Setting>,
    notices: Vec<String>,
    errors: Vec<ConfigError>,
}

/// One setting as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// One text; of a list, one or more.
    pub values: Vec<String>,
    /// Where it was written.
    pub source: Source,
}

/// Where a setting came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The table.
    Default,
    /// The file of `--config`.
    File(PathBuf),
    /// An environment variable.
    Variable(String),
    /// The command line.
    Flag,
    /// The daemon that runs on this node, which has it from there.
    Daemon(Box<Self>),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Variable(name) => f.write_str(name),
            Self::Flag => f.write_str("flag"),
            Self::Daemon(source) => write!(f, "flanneld's {source}"),
        }
    }
}

/// The variables of this process. What is not UTF-8 gets replacement characters, which no setting accepts.
pub fn environment() -> Environment {
    let text = |os: std::ffi::OsString| os.to_string_lossy().into_owned();
    std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect()
}

/// The variables of a file that a unit names as its `EnvironmentFile=`, read as systemd does: comments, quotes, and lines
/// that go on after a backslash.
pub(crate) fn environment_file(text: &str) -> Environment {
    let mut variables = Environment::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let mut line = line.trim_start().to_owned();
        if line.starts_with(['#', ';']) {
            continue;
        }
        while line.ends_with('\\') {
            line.pop();
            line.push_str(lines.next().unwrap_or_default());
        }
        if let Some((name, value)) = line.split_once('=') {
            variables.insert(name.trim().to_owned(), unquoted(value.trim()));
        }
    }
    variables
}

/// A value without its quotes, and without the backslashes that stand before a character outside single quotes.
fn unquoted(value: &str) -> String {
    let (mut out, mut quote) = (String::new(), None);
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', None | Some('"')) => out.extend(chars.next()),
            ('"' | '\'', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            (c, _) => out.push(c),
        }
    }
    out
}

impl RawConfig {
    /// Puts the sources together: a flag wins over a variable, a variable over the file. An empty variable counts as
    /// absent, as in flannel. What is wrong comes out with the rest of the errors when the settings are understood.
    pub fn gather(given: &[Given], environment: &Environment) -> Self {
        let mut raw = Self::gather_without_file(given, environment);
        let file = raw.one("config").to_owned();
        if !file.is_empty() {
            raw.errors = raw.take_file(Path::new(&file));
        }
        raw.errors.extend(raw.not_yet());
        raw.notices.extend(raw.without_effect());
        raw
    }

    /// Of another process, with the file that it names; none of it is judged. Returns what is wrong with the file, too.
    pub(crate) fn gather_of_process(given: &[Given], environment: &Environment) -> (Self, Vec<String>) {
        let mut raw = Self::gather_without_file(given, environment);
        let file = raw.one("config").to_owned();
        let wrong = if file.is_empty() { Vec::new() } else { raw.take_file(Path::new(&file)) };
        raw.notices.clear();
        (raw, wrong.iter().map(ToString::to_string).collect())
    }

    /// The settings of another process: its settings file is not read, and nothing is checked.
    pub(crate) fn gather_without_file(given: &[Given], environment: &Environment) -> Self {
        let mut raw = Self::default();
        raw.take_flags(given);
        raw.take_variables(environment);
        raw
    }

    /// Adds the settings of another one that this one does not have, except those to leave out. Returns the added ones that differ
    /// from their defaults.
    pub(crate) fn or(
        mut self,
        other: &Self,
        is_left_out: impl Fn(&str) -> bool,
    ) -> (Self, Vec<&'static str>) {
        let mut taken = Vec::new();
        for (name, setting) in other.made.iter().filter(|(name, _)| !is_left_out(name)) {
            if self.made.contains_key(name) || *name == "config" {
                continue;
            }
            let default = cli::lookup(name).map_or("", |flag| flag.default);
            if setting.values.iter().any(|value| value != default) {
                taken.push(*name);
            }
            self.made.insert(name, setting.clone());
        }
        self.errors.extend(other.errors.iter().cloned());
        (self, taken)
    }

    /// The settings of the daemon that runs on this node.
    pub(crate) fn of_daemon(mut self) -> Self {
        for setting in self.made.values_mut() {
            setting.source = Source::Daemon(Box::new(setting.source.clone()));
        }
        self
    }

    /// Settings whose variables are written in a file.
    pub(crate) fn of_environment_file(mut self, file: &Path) -> Self {
        for setting in self.made.values_mut().filter(|setting| matches!(setting.source, Source::Variable(_)))
        {
            setting.source = Source::File(file.to_owned());
        }
        self
    }

    /// The setting of a row of the table, made or default.
    pub fn setting(&self, name: &str) -> Setting {
        self.made.get(name).cloned().unwrap_or_else(|| {
            let default = cli::lookup(name).map_or("", |flag| flag.default);
            let values = if default.is_empty() { Vec::new() } else { vec![default.to_owned()] };
            Setting { values, source: Source::Default }
        })
    }

    /// The one value of a setting, made or default.
    pub fn one(&self, name: &str) -> &str {
        let made = self.made.get(name).and_then(|setting| setting.values.last());
        made.map_or_else(|| cli::lookup(name).map_or("", |flag| flag.default), String::as_str)
    }

    /// How a person would have written the setting, for messages; secrets are masked.
    pub fn written(&self, name: &str) -> String {
        self.written_as(name, &self.setting(name).values)
    }

    /// The same with these of its values.
    pub(super) fn written_as(&self, name: &str, values: &[String]) -> String {
        let value = shown(name, values);
        match self.setting(name).source {
            Source::Variable(variable) => format!("{variable}={value:?}"),
            Source::File(path) => format!("{}: {name:?}: {value:?}", path.display()),
            Source::Daemon(_) => format!("--{name}={value:?} of the running flanneld"),
            Source::Flag | Source::Default => format!("--{name}={value:?}"),
        }
    }

    /// Every setting of the table that works: name, value (secrets masked), source.
    pub fn effective(&self) -> impl Iterator<Item = (&'static str, String, Source)> {
        let works = |flag: &&Flag| flag.status == Status::Supported && flag.name != "version";
        cli::rows().filter(works).map(|flag| {
            let setting = self.setting(flag.name);
            (flag.name, shown(flag.name, &setting.values), setting.source)
        })
    }

    /// Warnings: faults that stop nothing.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// Faults that are known before any value is read.
    pub(super) fn errors(&self) -> &[ConfigError] {
        &self.errors
    }

    fn take_flags(&mut self, given: &[Given]) {
        for Given { name, value } in given {
            let setting =
                self.made.entry(name).or_insert_with(|| Setting { values: Vec::new(), source: Source::Flag });
            if cli::lookup(name).is_none_or(|flag| flag.kind != Kind::List) {
                setting.values.clear();
            }
            setting.values.push(value.clone());
        }
    }

    fn take_variables(&mut self, environment: &Environment) {
        for flag in cli::rows() {
            let Some(name) = flag.variable() else { continue };
            if let Some(value) = environment.get(&name).filter(|value| !value.is_empty()) {
                let source = Source::Variable(name);
                self.made.entry(flag.name).or_insert_with(|| Setting { values: vec![value.clone()], source });
            }
        }
        let known = |name: &str| cli::rows().any(|flag| flag.variable().as_deref() == Some(name));
        // Kubernetes itself sets the last two for a Service that is called flanneld.
        let ours = |name: &&String| {
            name.strip_prefix("FLANNELD_")
                .is_some_and(|n| !n.starts_with("PORT") && !n.starts_with("SERVICE_"))
        };
        for name in environment.keys().filter(ours).filter(|name| !known(name)) {
            self.notices.push(format!("{name}: there is no such setting; ignored"));
        }
    }

    fn take_file(&mut self, path: &Path) -> Vec<ConfigError> {
        let whole = |why: String| vec![ConfigError::invalid(format!("--config={path:?}"), why)];
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) => return whole(format!("can't be read: {error}")),
        };
        let entries = match serde_json::from_slice(&text) {
            Ok(Value::Object(entries)) => entries,
            Ok(_) => return whole("not a JSON object of settings".to_owned()),
            Err(error) => return whole(format!("not JSON: {error}")),
        };
        let mut errors = Vec::new();
        for (name, value) in entries {
            let place = || format!("{}: {name:?}", path.display());
            match file_entry(&name, value) {
                Ok((name, values)) => {
                    let source = Source::File(path.to_owned());
                    self.made.entry(name).or_insert_with(|| Setting { values, source });
                }
                Err(why) => errors.push(ConfigError::invalid(place(), why)),
            }
        }
        errors
    }

    /// Settings for something that is not supported yet. A variable without a flag is no such setting: manifests written for
    /// flannel set all of them.
    fn not_yet(&self) -> Vec<ConfigError> {
        let asks = |flag: &Flag| {
            let same = match flag.kind {
                Kind::Bool => cli::parse_bool(self.one(flag.name)) == cli::parse_bool(flag.default),
                _ => self.one(flag.name) == flag.default,
            };
            !same && !flag.is_variable_only()
        };
        let refused = cli::rows().filter(|flag| asks(flag)).filter_map(|flag| match flag.status {
            Status::NotYet(why) => Some((flag.name, why)),
            _ => None,
        });
        refused
            .map(|(name, why)| ConfigError::new(Exit::Unsupported, self.written(name), why.to_owned()))
            .collect()
    }

    fn without_effect(&self) -> Vec<String> {
        // Manifests written for flannel set variables that have no flag.
        let made = cli::rows().filter(|flag| self.made.contains_key(flag.name) && !flag.is_variable_only());
        let notice = |flag: &Flag| match flag.status {
            Status::NoEffect(why) => Some(format!("{}: no effect: {why}", self.written(flag.name))),
            _ => None,
        };
        made.filter_map(notice).collect()
    }
}

fn shown(name: &str, values: &[String]) -> String {
    let secret = cli::lookup(name).is_some_and(|flag| flag.secret);
    if secret && values.iter().any(|v| !v.is_empty()) {
        return MASK.to_owned();
    }
    values.iter().map(|text| without_password(text)).collect::<Vec<_>>().join(", ")
}

/// The user part of addresses (`http://user:password@host`) is refused, and the error does not repeat it.
fn without_password(text: &str) -> String {
    let part = |part: &str| match part.rsplit_once('@') {
        Some((_, host)) if part.contains("://") => format!("{MASK}@{host}"),
        _ => part.to_owned(),
    };
    text.split(',').map(part).collect::<Vec<_>>().join(",")
}

/// One entry of the settings file: the row's name and the values as texts.
fn file_entry(name: &str, value: Value) -> Result<(&'static str, Vec<String>), String> {
    let settable = |f: &&Flag| !f.is_variable_only() && !["config", "version"].contains(&f.name);
    let flag = cli::lookup(name).filter(settable).ok_or("there is no such setting")?;
    let scalar = |value: Value| match value {
        Value::String(text) => Ok(text),
        Value::Bool(truth) => Ok(truth.to_string()),
        Value::Number(number) => Ok(number.to_string()),
        _ => Err("not a text, number, true or false".to_owned()),
    };
    let values = match value {
        Value::Array(entries) if flag.kind == Kind::List => {
            entries.into_iter().map(scalar).collect::<Result<_, _>>()?
        }
        value => vec![scalar(value)?],
    };
    Ok((flag.name, values))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_file_is_read_as_systemd_reads_it() {
        let text = "# a comment\n; another\n\nFLANNELD_A=plain \n  B=\"two words\" \nC='it is'\nD=a\\\nb\nE=a\\ b\nF=\nnonsense\n";
        let read = environment_file(text);
        let value = |name: &str| read.get(name).map(String::as_str);
        assert_eq!(value("FLANNELD_A"), Some("plain"));
        assert_eq!((value("B"), value("C")), (Some("two words"), Some("it is")));
        assert_eq!((value("D"), value("E"), value("F")), (Some("ab"), Some("a b"), Some("")));
        assert_eq!(read.len(), 6);
    }
}
