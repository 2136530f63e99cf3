//! What was seen, as lines that are the same on both sides when the plugins did the same.

use std::collections::BTreeMap;

use serde_json::Value;

/// Lines, each with how often it was seen, and the documents of the steps that failed.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    lines: BTreeMap<String, usize>,
    failures: BTreeMap<String, Value>,
}

impl Facts {
    pub(crate) fn add(&mut self, label: &str, fact: &str) {
        *self.lines.entry(format!("{label}: {}", nameless(fact))).or_default() += 1;
    }

    pub(crate) fn extend(&mut self, label: &str, facts: impl IntoIterator<Item = String>) {
        facts.into_iter().for_each(|fact| self.add(label, &fact));
    }

    pub(crate) fn failure(&mut self, step: &str, document: &Value) {
        self.failures.entry(step.to_owned()).or_insert_with(|| document.clone());
    }

    /// By step; of a step that failed twice the first.
    pub(crate) fn failures(&self) -> &BTreeMap<String, Value> {
        &self.failures
    }

    /// What these show and the others do not, or less often.
    pub(crate) fn beyond(&self, others: &Self) -> Vec<String> {
        let more = |(line, count): &(&String, &usize)| {
            **count > others.lines.get(line.as_str()).copied().unwrap_or_default()
        };
        self.lines.iter().filter(more).map(|(line, _)| line.clone()).collect()
    }
}

/// Every leaf of a document as `path = value`.
pub(crate) fn flatten(path: &str, value: &Value) -> Vec<String> {
    match value {
        Value::Object(map) => {
            map.iter().flat_map(|(key, value)| flatten(&format!("{path}.{key}"), value)).collect()
        }
        Value::Array(list) => {
            list.iter().enumerate().flat_map(|(at, value)| flatten(&format!("{path}[{at}]"), value)).collect()
        }
        Value::Null => vec![],
        leaf => vec![format!("{path} = {leaf}")],
    }
}

/// Names that are drawn and Ethernet addresses say nothing: `veth#`, `ifb#`, `#:#`.
pub(crate) fn nameless(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let drawn = [("veth", 8, "veth#"), ("bwp", 12, "ifb#")]
            .into_iter()
            .find(|(prefix, digits, _)| rest.strip_prefix(prefix).is_some_and(|tail| hex(tail) == *digits));
        let taken = match drawn {
            Some((prefix, digits, name)) => {
                out += name;
                prefix.len() + digits
            }
            None if is_mac(rest) && !out.ends_with(|c: char| c.is_ascii_hexdigit() || c == ':') => {
                out += "#:#";
                17
            }
            None => {
                out.push(first);
                first.len_utf8()
            }
        };
        rest = &rest[taken..];
    }
    out
}

fn hex(text: &str) -> usize {
    text.chars().take_while(char::is_ascii_hexdigit).count()
}

/// Six pairs of hexadecimal digits with colons between them.
fn is_mac(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() >= 17
        && bytes[..17]
            .iter()
            .enumerate()
            .all(|(at, byte)| if at % 3 == 2 { *byte == b':' } else { byte.is_ascii_hexdigit() })
        && !bytes.get(17).is_some_and(|next| next.is_ascii_hexdigit() || *next == b':')
}

/// Whether `text` is like `pattern`, in which `*` stands for anything.
pub(crate) fn is_like(text: &str, pattern: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    true
}

/// The few rules above, shown once each; the suite has no harness of its own to run them in.
pub(crate) fn prove() {
    assert_eq!(nameless("link veth0a1b2c3d is 0a:58:0a:01:02:03"), "link veth# is #:#");
    assert_eq!(nameless("fd00:10:58:0a:01:02:03:04"), "fd00:10:58:0a:01:02:03:04");
    assert_eq!(nameless("bwp0123456789ab vethernet"), "ifb# vethernet");
    assert!(is_like("1 ADD: code 999", "*code 999") && is_like("abc", "a*c") && is_like("abc", "abc"));
    assert!(!is_like("abcd", "abc") && !is_like("abc", "b*") && !is_like("abc", "a*d"));
}
