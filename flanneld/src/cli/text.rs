//! The help and the reference page, both made from the table.

use std::fmt::Write as _;

use super::{Flag, Kind, Status, TABLE};

/// Widest line of the help, in characters.
const WIDTH: usize = 100;

/// What `flanneld --help` prints.
pub fn usage() -> String {
    let mut out = String::from(
        "flanneld gives this host a subnet of the cluster's network, and joins it with the others.\n\n\
         Usage: flanneld [FLAG]...\n       \
         flanneld store --data-dir DIR [--listen ADDRESS:PORT]... [--insecure]\n\n\
         One dash or two; -flag=value or -flag value; booleans -flag or -flag=false. A variable does the\n\
         same, FLANNELD_ and the name in capitals with _ for -: FLANNELD_ETCD_PREFIX. A flag wins over a\n\
         variable, a variable over the file of -config.\n",
    );
    for (heading, rows) in TABLE {
        let _ = write!(out, "\n{heading}:\n");
        for flag in *rows {
            let _ = writeln!(out, "  {}", written(flag));
            wrap(&mut out, &sentence(flag));
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

/// Adds a text in lines of at most `WIDTH` characters, indented under its flag.
fn wrap(out: &mut String, text: &str) {
    const INDENT: &str = "        ";
    let mut line = INDENT.to_owned();
    for word in text.split_whitespace() {
        if line.len() + 1 + word.len() > WIDTH {
            out.push_str(line.trim_end());
            out.push('\n');
            line = INDENT.to_owned();
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
    fn the_help_names_every_setting_within_a_hundred_columns() {
        let help = usage();
        for flag in super::super::rows() {
            assert!(help.contains(flag.name), "{}", flag.name);
        }
        let wide: Vec<_> = help.lines().filter(|l| l.chars().count() > WIDTH).collect();
        assert!(wide.is_empty(), "{wide:?}");
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
