//! Go's flag syntax, as flannel's users write it: one dash or two, `-x=v` or `-x v`, booleans only `-x` or `-x=v`.

use super::{Flag, Kind, lookup};
use crate::exit::{Exit, Failure};

/// What the daemon is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Run with these flags.
    Run(Vec<Given>),
    /// Print the flags.
    Help,
    /// Print the version.
    Version,
    /// Be the embedded store; the arguments after the word.
    Store(Vec<String>),
}

/// A flag that was given, in the order of the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// Name of the flag without dashes.
    pub name: &'static str,
    /// Its value as written; `true` for a bare boolean.
    pub value: String,
}

/// Why a command line was refused. Nothing after the place is read, because its meaning is unknown.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadArgument {
    /// `---x`, `-=x`.
    #[error("{0:?}: not a flag (write -name=value or --name=value)")]
    Syntax(String),
    /// No such flag.
    #[error("--{0}: there is no such flag (flanneld --help lists them)")]
    Unknown(String),
    /// A flag without its value.
    #[error("--{0}: needs a value")]
    NoValue(&'static str),
    /// A boolean with something else.
    #[error("--{0}={1:?}: neither true nor false")]
    NotBool(&'static str, String),
    /// An integer that is none.
    #[error("--{0}={1:?}: not a whole number")]
    NotInt(&'static str, String),
    /// A word that is no flag. flannel would ignore it and what follows.
    #[error(
        "{0:?}: flanneld takes flags only, and the word `store` as its first argument (people use flannelctl)"
    )]
    Word(String),
}

impl From<BadArgument> for Failure {
    fn from(bad: BadArgument) -> Self {
        let exit = if matches!(bad, BadArgument::Word(_)) { Exit::Word } else { Exit::Invalid };
        Self::new(exit, bad)
    }
}

/// Reads the arguments after the program's name.
pub fn parse(arguments: &[String]) -> Result<Command, BadArgument> {
    if let Some((word, rest)) = arguments.split_first()
        && word == "store"
    {
        return Ok(Command::Store(rest.to_vec()));
    }
    let mut given = Vec::new();
    let mut left = arguments.iter();
    while let Some(argument) = left.next() {
        let (name, value) = split(argument)?;
        let flag = match (lookup(name).filter(|f| !f.is_variable_only()), name) {
            (Some(flag), _) => flag,
            (None, "h" | "help") => return Ok(Command::Help),
            (None, name) => return Err(BadArgument::Unknown(name.to_owned())),
        };
        let value = value.map(str::to_owned);
        let value = if flag.kind == Kind::Bool {
            value.unwrap_or_else(|| "true".to_owned())
        } else {
            value.or_else(|| left.next().cloned()).ok_or(BadArgument::NoValue(flag.name))?
        };
        check(flag, &value)?;
        given.push(Given { name: flag.name, value });
    }
    let version = given.iter().rfind(|g| g.name == "version").and_then(|g| parse_bool(&g.value));
    Ok(if version == Some(true) { Command::Version } else { Command::Run(given) })
}

/// The name and the value of `-name`, `--name`, `-name=value`, `--name=value`.
fn split(argument: &str) -> Result<(&str, Option<&str>), BadArgument> {
    let word = || BadArgument::Word(argument.to_owned());
    let body = argument.strip_prefix('-').ok_or_else(word)?;
    let body = body.strip_prefix('-').unwrap_or(body);
    match body {
        // `-` is a word to Go; `--` ends the flags, and the daemon takes nothing after them.
        "" => Err(word()),
        _ if body.starts_with(['-', '=']) => Err(BadArgument::Syntax(argument.to_owned())),
        _ => Ok(body.split_once('=').map_or((body, None), |(name, value)| (name, Some(value)))),
    }
}

fn check(flag: &'static Flag, value: &str) -> Result<(), BadArgument> {
    match flag.kind {
        Kind::Bool if parse_bool(value).is_none() => Err(BadArgument::NotBool(flag.name, value.to_owned())),
        Kind::Int if parse_int(value).is_none() => Err(BadArgument::NotInt(flag.name, value.to_owned())),
        _ => Ok(()),
    }
}

/// A boolean in any of Go's spellings.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// A whole number as Go reads it with base 0: `17`, `-1`, `0x11`, `0o21`, `021`, `0b10001`, `1_000`.
pub fn parse_int(text: &str) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix(['+', '-']) {
        Some(rest) => (text.starts_with('-'), rest),
        None => (false, text),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', _, ..] => (8, &lower[1..]),
        _ => (10, lower.as_str()),
    };
    // An underscore stands between digits, or between a prefix and the first digit.
    let after_prefix = digits.len() < lower.len();
    let digits = if after_prefix { digits.strip_prefix('_').unwrap_or(digits) } else { digits };
    if digits.split('_').any(|part| part.is_empty() || !part.chars().all(|c| c.is_digit(radix))) {
        return None;
    }
    let digits = digits.replace('_', "");
    i64::from_str_radix(&if negative { format!("-{digits}") } else { digits }, radix).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(arguments: &[&str]) -> Result<Command, BadArgument> {
        parse(&arguments.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>())
    }

    fn given(arguments: &[&str]) -> Vec<(&'static str, String)> {
        match run(arguments) {
            Ok(Command::Run(given)) => given.into_iter().map(|g| (g.name, g.value)).collect(),
            other => panic!("{arguments:?}: {other:?}"),
        }
    }

    #[test]
    fn one_dash_or_two_and_an_equals_sign_or_the_next_word_mean_the_same() {
        for way in [
            &["-etcd-prefix=/a"][..],
            &["--etcd-prefix=/a"],
            &["-etcd-prefix", "/a"],
            &["--etcd-prefix", "/a"],
        ] {
            assert_eq!(given(way), [("etcd-prefix", "/a".to_owned())]);
        }
    }

    #[test]
    fn a_boolean_never_takes_the_next_word() {
        assert_eq!(given(&["--ip-masq"]), [("ip-masq", "true".to_owned())]);
        assert_eq!(given(&["-ip-masq=F"]), [("ip-masq", "F".to_owned())]);
        assert_eq!(run(&["--ip-masq", "false"]), Err(BadArgument::Word("false".to_owned())));
        assert_eq!(run(&["--ip-masq=yes"]), Err(BadArgument::NotBool("ip-masq", "yes".to_owned())));
    }

    #[test]
    fn a_value_may_be_empty_or_begin_with_a_dash() {
        assert_eq!(given(&["--public-ip="]), [("public-ip", String::new())]);
        assert_eq!(given(&["--healthz-port", "-1"]), [("healthz-port", "-1".to_owned())]);
        assert_eq!(given(&["--iface", "--x"]), [("iface", "--x".to_owned())]);
    }

    #[test]
    fn a_repeated_flag_is_kept_each_time_in_order() {
        let expected = [("iface", "eth1".to_owned()), ("iface", "eth0".to_owned())];
        assert_eq!(given(&["--iface=eth1", "--iface", "eth0"]), expected);
    }

    #[test]
    fn a_word_is_refused_where_flannel_would_ignore_it() {
        for word in ["lease", "-", "--", "status"] {
            assert_eq!(run(&["--ip-masq", word]), Err(BadArgument::Word(word.to_owned())));
        }
    }

    #[test]
    fn an_unknown_flag_a_missing_value_and_odd_dashes_are_named() {
        assert_eq!(run(&["--bogus=1"]), Err(BadArgument::Unknown("bogus".to_owned())));
        assert_eq!(run(&["--NODE_NAME=a"]), Err(BadArgument::Unknown("NODE_NAME".to_owned())));
        assert_eq!(run(&["--iface"]), Err(BadArgument::NoValue("iface")));
        assert_eq!(run(&["---iface=a"]), Err(BadArgument::Syntax("---iface=a".to_owned())));
        assert_eq!(run(&["-=a"]), Err(BadArgument::Syntax("-=a".to_owned())));
        assert_eq!(run(&["--healthz-port=x"]), Err(BadArgument::NotInt("healthz-port", "x".to_owned())));
    }

    #[test]
    fn help_and_version_are_asked_for_in_all_the_usual_ways() {
        for way in ["-h", "--h", "-help", "--help"] {
            assert_eq!(run(&["--ip-masq", way]), Ok(Command::Help));
        }
        assert_eq!(run(&["-version"]), Ok(Command::Version));
        assert_eq!(run(&["--version=true", "--ip-masq"]), Ok(Command::Version));
        assert!(matches!(run(&["--version=false"]), Ok(Command::Run(_))));
    }

    #[test]
    fn the_word_store_counts_as_the_first_argument_only() {
        let expected = Command::Store(vec!["--data-dir".to_owned(), "/x".to_owned()]);
        assert_eq!(run(&["store", "--data-dir", "/x"]), Ok(expected));
        assert_eq!(run(&["--ip-masq", "store"]), Err(BadArgument::Word("store".to_owned())));
    }

    #[test]
    fn numbers_are_read_as_go_reads_them() {
        for (text, number) in [
            ("0", 0),
            ("17", 17),
            ("-17", -17),
            ("+17", 17),
            ("0x11", 17),
            ("0X1f", 31),
            ("0o21", 17),
            ("021", 17),
            ("0b10001", 17),
            ("1_000", 1000),
            ("0x_1f", 31),
            ("0_7", 7),
            ("-0x10", -16),
            ("9223372036854775807", i64::MAX),
            ("-9223372036854775808", i64::MIN),
        ] {
            assert_eq!(parse_int(text), Some(number), "{text}");
        }
        for text in [
            "",
            "-",
            "x",
            "1.5",
            "08",
            "0x",
            "1__0",
            "_1",
            "1_",
            "0x1_",
            "9223372036854775808",
            "--1",
            "1 ",
            "٣",
        ] {
            assert_eq!(parse_int(text), None, "{text}");
        }
    }
}
