//! The paths in a source file.

/// The text before the file's tests.
pub(super) fn without_tests(text: &str) -> String {
    let end =
        ["#[cfg(test)]\nmod tests", "#[cfg(all(test,"].iter().filter_map(|start| text.find(start)).min();
    without_comments(&text[..end.unwrap_or(text.len())])
}

/// Comments go, and strings become empty. A quote in a character or a lifetime is left alone.
fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['/', '"', '\'']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("'\"'") {
            3
        } else if rest.starts_with("'\\\"'") {
            4
        } else if rest.starts_with('"') {
            string_length(rest, out.ends_with('#'))
        } else {
            out.push_str(&rest[..1]);
            1
        };
        rest = &rest[length..];
    }
    out.push_str(rest);
    out
}

/// Of a string literal that begins here; `raw` for `r#"…"#`.
fn string_length(text: &str, raw: bool) -> usize {
    if raw {
        return text[1..].find("\"#").map_or(text.len(), |at| at + 3);
    }
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            '"' if !escaped => return at + 1,
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    text.len()
}

/// Every path of two or more names, `use` trees with braces taken apart: `a::{b, c::d}` is `a::b` and `a::c::d`.
pub(super) fn paths(text: &str) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let mut at = 0;
    while let Some(found) = text[at..].find("::") {
        let colons = at + found;
        let start = text[..colons].rfind(|c| !is_name(c)).map_or(0, |before| before + 1);
        at = colons + 2;
        if start < colons && !text[..start].ends_with("::") {
            at = tree(text, start, &[], &mut all).max(at);
        }
    }
    all
}

/// Reads a tree that begins at `start`; returns where it ends.
fn tree(text: &str, start: usize, before: &[String], all: &mut Vec<Vec<String>>) -> usize {
    let is_name = |c: char| c.is_alphanumeric() || c == '_' || c == '*';
    let mut path = before.to_vec();
    let mut at = start;
    loop {
        let end = text[at..].find(|c| !is_name(c)).map_or(text.len(), |length| at + length);
        if end > at {
            path.push(text[at..end].to_owned());
            at = end;
        }
        if text[at..].starts_with("::") {
            at += 2;
        } else {
            break;
        }
        if text[at..].starts_with('{') {
            return group(text, at + 1, &path, all);
        }
    }
    if path.len() > 1 {
        all.push(path);
    }
    at
}

/// The members of a group in braces; returns where the group ends.
fn group(text: &str, start: usize, path: &[String], all: &mut Vec<Vec<String>>) -> usize {
    let mut at = start;
    loop {
        let skipped = text[at..].find(|c: char| !c.is_whitespace() && c != ',');
        at = skipped.map_or(text.len(), |length| at + length);
        if at >= text.len() {
            return at;
        }
        if text[at..].starts_with('}') {
            return at + 1;
        }
        let end = tree(text, at, path, all);
        // `name as other`, and whatever else is no name, up to the next comma or brace.
        let next = text[end..].find([',', '}']).map_or(text.len(), |length| end + length);
        at = next.max(at + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_use_tree_is_taken_apart() {
        let found = paths("use crate::{plan::Op, state::{Key, Link as L}, diff};");
        let found: Vec<String> = found.iter().map(|path| path.join("::")).collect();
        assert_eq!(found, ["crate::plan::Op", "crate::state::Key", "crate::state::Link", "crate::diff"]);
    }

    #[test]
    fn paths_in_comments_strings_and_tests_do_not_count() {
        let text = "// crate::a::B\nlet x = \"crate::b::C\"; let y = '\"'; z(r#\"crate::e\"#); crate::c::d();\n#[cfg(test)]\nmod tests { use crate::f::G; }";
        assert_eq!(paths(&without_tests(text)), [["crate", "c", "d"].map(str::to_owned)]);
    }
}
