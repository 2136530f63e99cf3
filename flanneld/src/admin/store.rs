//! `flannelctl store`: all keys under the prefix as a file, so that a cluster can move between stores.
//!
//! ```text
//!   {"format":1,"prefix":"/coreos.com/network","keys":2}
//!   {"key":"config","value":"{ \"Network\": … }"}
//!   {"key":"subnets/10.5.52.0-24","value":"{ … }","ttl":86399}          seconds; without it the key stays for good
//! ```
//! A value that is not text has `hex` in place of `value`.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use backends::local::files;
use clap::Subcommand;
use serde::{Deserialize, Serialize};
use serde_json::json;
use subnet_lease::{Entry, StoreConfig, StoreError, open};

use super::Answer;
use crate::config::NodeConfig;
use crate::exit::{Exit, Failure};
use crate::shell::block_on;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Write everything under --etcd-prefix to a file, as JSON lines.
    Export {
        /// The file; - for standard output.
        file: PathBuf,
    },
    /// Write what was exported to the store that the --etcd flags name.
    Import {
        /// The file; - for standard input.
        file: PathBuf,
        /// Overwrite keys that exist. Without it an existing key stops the import.
        #[arg(long)]
        replace: bool,
    },
}

/// The number in the first line. A reader refuses other numbers.
const FORMAT: u32 = 1;

/// No line is longer, in bytes: etcd's largest value, doubled by `hex`, and some.
const LONGEST: u64 = 4 << 20;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    format: u32,
    prefix: String,
    keys: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hex: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ttl: Option<u64>,
}

pub(super) fn run(verb: &Verb, config: NodeConfig) -> Result<Answer, Failure> {
    match verb {
        Verb::Export { file } => export(file, &config.store),
        Verb::Import { file, replace } => import(file, *replace, &config.store),
    }
}

fn export(file: &Path, config: &StoreConfig) -> Result<Answer, Failure> {
    let store = open(config)?;
    let prefix = store.name();
    let entries = block_on(async { Ok(store.export().await?) })?;
    let head = Head { format: FORMAT, prefix: prefix.clone(), keys: entries.len() };
    let mut text = line(&head);
    entries.iter().for_each(|entry| text.push_str(&line(&Line::from(entry))));
    let json = json!({ "prefix": prefix, "keys": entries.len(), "file": file.to_string_lossy() });
    if file == Path::new("-") {
        return Ok(Answer::new(json).lines(text));
    }
    // Readable by its owner alone: it has what the store has.
    files::replace_synced(file, 0o600, text.as_bytes()).map_err(|error| Failure::of(file, &error))?;
    Ok(Answer::new(json).text(format!("{prefix}: {} keys written to {}\n", entries.len(), file.display())))
}

fn import(file: &Path, replace: bool, config: &StoreConfig) -> Result<Answer, Failure> {
    let wrong = |why: String| Failure::new(Exit::Invalid, format!("{}: {why}", file.display()));
    let entries = match file == Path::new("-") {
        true => read(std::io::stdin().lock()),
        false => File::open(file).map_err(|e| e.to_string()).and_then(|file| read(BufReader::new(file))),
    };
    let entries = entries.map_err(wrong)?;
    let store = open(config)?;
    let prefix = store.name();
    let written = block_on(async { Ok(store.import(&entries, replace).await) })?;
    match written {
        Ok(()) => Ok(Answer::new(json!({ "prefix": prefix, "keys": entries.len() }))
            .text(format!("{} keys written to {prefix}\n", entries.len()))),
        Err(StoreError::Raced(key)) => Err(Failure::new(
            Exit::Failed,
            format!("{key}, or a key after it, exists already: --replace overwrites existing keys"),
        )),
        Err(error) => Err(error.into()),
    }
}

/// Everything is read and checked before anything is written.
fn read(mut input: impl BufRead) -> Result<Vec<Entry>, String> {
    let mut entries = Vec::new();
    let mut head: Option<Head> = None;
    for number in 1.. {
        let mut bytes = Vec::new();
        let read = input.by_ref().take(LONGEST).read_until(b'\n', &mut bytes);
        read.map_err(|e| format!("can't be read: {e}"))?;
        if bytes.is_empty() {
            break;
        }
        let wrong = |why: String| format!("line {number}: {why}");
        if head.is_none() {
            let first: Head = serde_json::from_slice(&bytes)
                .map_err(|_| wrong("not what `flannelctl store export` writes".to_owned()))?;
            if first.format != FORMAT {
                return Err(wrong(format!("format {}, and this version reads {FORMAT}", first.format)));
            }
            head = Some(first);
            continue;
        }
        let line: Line = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
        entries.push(line.entry().map_err(wrong)?);
    }
    match head {
        Some(head) if head.keys == entries.len() => Ok(entries),
        Some(head) => Err(format!("{} keys, and the first line says {}: cut off?", entries.len(), head.keys)),
        None => Err("empty".to_owned()),
    }
}

impl From<&Entry> for Line {
    fn from(entry: &Entry) -> Self {
        let text = std::str::from_utf8(&entry.value).ok().map(ToOwned::to_owned);
        let hex = text.is_none().then(|| {
            entry.value.iter().fold(String::new(), |mut hex, byte| {
                // Writing to a string does not fail.
                let _ = write!(hex, "{byte:02x}");
                hex
            })
        });
        Self { key: entry.key.clone(), value: text, hex, ttl: entry.ttl.map(|ttl| ttl.as_secs().max(1)) }
    }
}

impl Line {
    /// The value is not checked: another flannel may understand more of it than we do.
    fn entry(self) -> Result<Entry, String> {
        let value = match (self.value, self.hex) {
            (Some(text), None) => text.into_bytes(),
            (None, Some(hex)) => unhex(&hex).ok_or("hex is not hexadecimal")?,
            _ => return Err("one of value and hex".to_owned()),
        };
        if self.key.is_empty() || self.key.len() > 512 || self.key.chars().any(char::is_control) {
            return Err("not a key".to_owned());
        }
        Ok(Entry { key: self.key, value, ttl: self.ttl.map(Duration::from_secs) })
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> =
        text.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect::<Option<_>>()?;
    let pairs = digits.chunks_exact(2);
    pairs.remainder().is_empty().then(|| digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

fn line(value: &impl Serialize) -> String {
    // Strings and numbers: nothing in them that JSON has no form for.
    serde_json::to_string(value).map(|text| text + "\n").unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{"key":"config","value":"{\"Network\":\"10.5.0.0/16\"}"}"#;
    const LEASE: &str = r#"{"key":"subnets/10.5.7.0-24","value":"{\"PublicIP\":\"10.0.0.1\"}","ttl":60}"#;

    fn file(keys: usize, lines: &[&str]) -> String {
        format!("{{\"format\":1,\"prefix\":\"/n\",\"keys\":{keys}}}\n{}\n", lines.join("\n"))
    }

    fn refused(text: &str) -> String {
        read(text.as_bytes()).unwrap_err()
    }

    #[test]
    fn what_was_exported_is_read_back_as_it_was() {
        let entries = vec![
            Entry { key: "config".into(), value: br#"{"Network":"10.5.0.0/16"}"#.to_vec(), ttl: None },
            Entry { key: "other".into(), value: vec![0, 255, 16], ttl: Some(Duration::from_secs(9)) },
        ];
        let lines: Vec<_> = entries.iter().map(|e| line(&Line::from(e)).trim_end().to_owned()).collect();
        let lines: Vec<_> = lines.iter().map(String::as_str).collect();
        assert_eq!(read(file(2, &lines).as_bytes()), Ok(entries));
    }

    #[test]
    fn a_file_that_is_damaged_is_refused_whole_with_its_line() {
        assert!(read(file(2, &[CONFIG, LEASE]).as_bytes()).is_ok());
        assert_eq!(refused(""), "empty");
        assert!(refused("hello\n").contains("line 1: not what"));
        assert!(refused(&file(1, &[CONFIG]).replace("\"format\":1", "\"format\":2")).contains("format 2"));
        assert!(refused(&file(3, &[CONFIG, LEASE])).contains("cut off?"));
        assert!(refused(&file(1, &[r#"{"key":"config","value":1}"#])).starts_with("line 2: "));
        assert!(refused(&file(1, &[r#"{"key":"","value":"x"}"#])).starts_with("line 2: not a key"));
        assert!(refused(&file(1, &[r#"{"key":"a","hex":"123"}"#])).contains("hexadecimal"));
    }
}
