//! The help and the reference page, both made from the table.

use std::fmt::Write as _;

use super::{Flag, Kind, Status, TABLE};

/// Widest line of the help, in characters; a terminal may be narrower.
const WIDTH: usize = 100;

const SYNTAX: &str = "One dash or two; -flag=value or -flag value; booleans -flag or -flag=false. A variable does the same: \
    FLANNELD_ and the name in capitals with _ for -, for instance FLANNELD_ETCD_PREFIX. A flag wins over a variable, a \
    variable over the file of -config.";

/// What `flanneld --help` prints on a terminal of so many columns.
pub fn usage(columns: Option<usize>) -> String {
    let width = columns.map_or(WIDTH, |columns| columns.min(WIDTH));
    let mut out = String::from(
        "flanneld leases a subnet for this host, and connects it with the other hosts.\n\n\
         Usage: flanneld [FLAG]...\n       \
         flanneld store --data-dir DIR [--listen ADDRESS:PORT]... [--insecure]\n\n",
    );
    wrap(&mut out, SYNTAX, "", width);
    for (heading, rows) in TABLE {
        let _ = write!(out, "\n{heading}:\n");
        for flag in *rows {
            let _ = writeln!(out, "  {}", written(flag));
            wrap(&mut out, &sentence(flag), "        ", width);
        }
    }
    out
}

/// The reference page, `docs/flags.md`.
pub fn reference() -> String {
    let mut out = String::from(
        "# Flags and variables of flanneld\n\n\
         Made from the table in `src/cli/table.rs`: change it there, and run `UPDATE=1 cargo test -p flanneld`.\n\
         How the sources are combined, and what bad values do: [config.md](config.md).\n",
    );
    for (heading, rows) in TABLE {
        let _ = write!(out, "\n## {heading}\n\n| flag | variable | default | meaning |\n|---|---|---|---|\n");
        for flag in *rows {
            let name = if flag.is_variable_only() { String::new() } else { format!("`--{}`", flag.name) };
            let variable = flag.variable().map(|v| format!("`{v}`")).unwrap_or_default();
            let default = if flag.default.is_empty() { String::new() } else { format!("`{}`", flag.default) };
            let _ = writeln!(out, "| {name} | {variable} | {default} | {} |", meaning(flag));
        }
    }
    out
}

fn written(flag: &Flag) -> String {
    match flag.kind {
        _ if flag.is_variable_only() => format!("${}", flag.name),
        Kind::Bool => format!("-{}", flag.name),
        Kind::Int => format!("-{} NUMBER", flag.name),
        Kind::Text => format!("-{} TEXT", flag.name),
        Kind::List => format!("-{} TEXT ...", flag.name),
    }
}

fn sentence(flag: &Flag) -> String {
    match (flag.default, flag.kind) {
        ("", _) | ("false", Kind::Bool) => meaning(flag),
        (default, Kind::Bool | Kind::Int) => format!("{} (default {default})", meaning(flag)),
        (default, _) => format!("{} (default {default:?})", meaning(flag)),
    }
}

fn meaning(flag: &Flag) -> String {
    match flag.status {
        Status::Supported => flag.help.to_owned(),
        Status::NotYet(why) => format!("{}. Not yet: {why}", flag.help),
        Status::NoEffect(why) => format!("{}. No effect: {why}", flag.help),
    }
}

/// Adds a text in lines of at most so many characters, each behind an indent; only a longer word makes a longer line.
fn wrap(out: &mut String, text: &str, indent: &str, width: usize) {
    let mut line = indent.to_owned();
    for word in text.split_whitespace() {
        if line.len() + word.len() > width && line.len() > indent.len() {
            out.push_str(line.trim_end());
            out.push('\n');
            line = indent.to_owned();
        }
        line.push_str(word);
        line.push(' ');
    }
    out.push_str(line.trim_end());
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_names_every_setting_and_wraps_between_words_at_the_width_of_the_terminal() {
        for columns in [None, Some(80), Some(300)] {
            let help = usage(columns);
            for flag in super::super::rows() {
                assert!(help.contains(flag.name), "{}", flag.name);
            }
            let width = columns.unwrap_or(WIDTH).min(WIDTH);
            let wraps = |line: &&str| line.starts_with("        ") && line.trim().contains(' ');
            let wide: Vec<_> = help.lines().filter(wraps).filter(|l| l.chars().count() > width).collect();
            assert!(wide.is_empty(), "{columns:?}: {wide:?}");
        }
    }

    #[test]
    fn the_reference_page_says_what_the_table_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/flags.md");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, reference()).unwrap();
        }
        let page = std::fs::read_to_string(path).unwrap_or_default();
        assert!(page == reference(), "docs/flags.md is out of date: UPDATE=1 cargo test -p flanneld");
    }
}
