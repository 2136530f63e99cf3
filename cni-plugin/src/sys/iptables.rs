//! Rules of iptables, where a configuration asks for them: read with iptables-save, changed with iptables-restore, which
//! does all lines of a table or none.
//!
//! ```text
//!   iptables-save ──▶ Saved ──▶ plan (pure) ──▶ lines ──▶ iptables-restore --noflush
//!       ▲                                                        │ refused: something changed in between
//!       └────────────────────────────────────────────────────────┘
//! ```
//!
//! When we are killed, a program that we started goes on with what it was given. It holds our turn until it has ended,
//! so the next call, often the DEL of the same container, sees what it did.
//!
//! The names of the programs lead to the variant that the host uses (nf_tables or legacy).

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;

use backends::local::processes::{self, Limits, RunError};
use nix::fcntl::{FcntlArg, FdFlag, Flock, FlockArg, fcntl};
use nix::poll::{PollTimeout, poll};
use subnet_lease::Family;

use crate::contract::{Code, Failure};

/// A table of one family, through one variant of the programs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Table {
    pub(crate) family: Family,
    pub(crate) name: &'static str,
    /// The old kernel interface, whatever the host uses otherwise.
    pub(crate) legacy: bool,
}

/// A table as it is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Saved {
    chains: Vec<String>,
    rules: Vec<SavedRule>,
}

/// A rule as it is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SavedRule {
    pub(crate) chain: String,
    pub(crate) words: Vec<String>,
    /// As it was printed, from the chain's name on.
    line: String,
}

/// Lines for iptables-restore.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan(Vec<String>);

/// Beside the lock that iptables of the old interface has.
const LOCK: &str = "/run/selvage-iptables.lock";
/// How often the lock is tried, every five milliseconds: ten seconds.
const LOOKS: u32 = 2000;
const LOOK_MS: u8 = 5;
/// Times that a plan is made anew because something else changed the table meanwhile.
const TRIES: u32 = 10;

impl Table {
    /// Reads the table.
    pub(crate) fn read(&self) -> Result<Saved, Failure> {
        Ok(Saved::parse(&self.run("save", &["-t", self.name], "")?))
    }

    /// Changes the table as planned from what it is.
    pub(crate) fn change(&self, plan: impl Fn(&Saved) -> Plan) -> Result<(), Failure> {
        let _turn = Turn::take();
        let mut refused = Ok(());
        for _ in 0..TRIES {
            let Plan(lines) = plan(&self.read()?);
            if lines.is_empty() {
                return Ok(());
            }
            let input = format!("*{}\n{}\nCOMMIT\n", self.name, lines.join("\n"));
            refused = self.run("restore", &["--noflush", "--wait", WAIT_S], &input).map(|_| ());
            if refused.is_ok() {
                break;
            }
        }
        refused
    }

    /// Whether the host has the programs; where it has not, there are no rules of theirs.
    pub(crate) fn is_there(&self) -> bool {
        find(&self.program("save")).is_ok()
    }

    fn program(&self, verb: &str) -> String {
        let family = if self.family == Family::V4 { "iptables" } else { "ip6tables" };
        format!("{family}{}-{verb}", if self.legacy { "-legacy" } else { "" })
    }

    fn run(&self, verb: &str, arguments: &[&str], input: &str) -> Result<String, Failure> {
        let program = self.program(verb);
        processes::run(&find(&program)?, arguments, input, LIMITS).map_err(|error| {
            let code = match error {
                RunError::Failed { code: Some(LOCKED), .. } => Code::TryAgain,
                RunError::Failed { .. } => Code::Kernel,
                _ => Code::Io,
            };
            Failure::new(code, format!("{program} of table {} failed: {error}", self.name))
        })
    }
}

/// The right to change rules, held by us and by the programs that we run.
pub(crate) struct Turn {
    _lock: Flock<File>,
}

impl Turn {
    /// Waits for its turn, ten seconds at most; none after that, or when the file cannot be made.
    pub(crate) fn take() -> Option<Self> {
        let mut file = OpenOptions::new();
        let mut file = file.write(true).create(true).truncate(false).mode(0o600).open(LOCK).ok()?;
        // Programs that we start have it as well.
        fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty())).ok()?;
        for _ in 0..LOOKS {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Some(Self { _lock: lock }),
                Err((again, _)) => file = again,
            }
            let _ = poll(&mut [], PollTimeout::from(LOOK_MS));
        }
        None
    }
}

impl Saved {
    fn parse(text: &str) -> Self {
        let mut saved = Self::default();
        for line in text.lines() {
            if let Some(chain) = line.strip_prefix(':').and_then(|rest| rest.split(' ').next()) {
                saved.chains.push(chain.to_owned());
            } else if let Some(line) = line.strip_prefix("-A ") {
                let mut words = words(line);
                if !words.is_empty() {
                    let chain = words.remove(0);
                    saved.rules.push(SavedRule { chain, words, line: line.to_owned() });
                }
            }
        }
        saved
    }

    pub(crate) fn has_chain(&self, chain: &str) -> bool {
        self.chains.iter().any(|other| other == chain)
    }

    /// The rules of a chain.
    pub(crate) fn rules<'a>(&'a self, chain: &'a str) -> impl Iterator<Item = &'a SavedRule> {
        self.rules.iter().filter(move |rule| rule.chain == chain)
    }

    /// Whether a chain has a rule of these words, in any order.
    pub(crate) fn has(&self, chain: &str, words: &[&str]) -> bool {
        self.rules(chain).any(|rule| rule.is(words))
    }
}

impl SavedRule {
    pub(crate) fn is(&self, words: &[&str]) -> bool {
        let mut mine: Vec<_> = self.words.iter().map(String::as_str).collect();
        let mut theirs = words.to_vec();
        mine.sort_unstable();
        theirs.sort_unstable();
        mine == theirs
    }

    /// What follows a word.
    pub(crate) fn after(&self, word: &str) -> Option<&str> {
        let at = self.words.iter().position(|other| other == word)?;
        self.words.get(at + 1).map(String::as_str)
    }
}

impl Plan {
    /// Its first line.
    pub(crate) fn first(&self) -> Option<&str> {
        self.0.first().map(String::as_str)
    }

    /// Makes a chain that is missing. If another process makes it meanwhile, the whole change fails and is planned anew.
    pub(crate) fn chain(&mut self, saved: &Saved, chain: &str) {
        if !saved.has_chain(chain) {
            self.0.push(format!("-N {chain}"));
        }
    }

    /// Makes a chain, or empties it.
    pub(crate) fn empty_chain(&mut self, saved: &Saved, chain: &str) {
        self.0.push(format!("{} {chain}", if saved.has_chain(chain) { "-F" } else { "-N" }));
    }

    /// Adds a rule that is missing, behind the others or before them.
    pub(crate) fn rule(&mut self, saved: &Saved, chain: &str, words: &[&str], first: bool) {
        if !saved.has(chain, words) {
            self.add(chain, words, first);
        }
    }

    /// Adds a rule.
    pub(crate) fn add(&mut self, chain: &str, words: &[&str], first: bool) {
        let words: Vec<_> = words.iter().map(|word| quoted(word)).collect();
        let verb = if first { format!("-I {chain} 1") } else { format!("-A {chain}") };
        self.0.push(format!("{verb} {}", words.join(" ")));
    }

    /// Deletes a rule as it was printed.
    pub(crate) fn delete(&mut self, rule: &SavedRule) {
        self.0.push(format!("-D {}", rule.line));
    }

    /// Deletes a chain with its rules, and those that lead to it from another one.
    pub(crate) fn delete_chain(&mut self, saved: &Saved, chain: &str, entry: &str) {
        saved.rules(entry).filter(|rule| rule.after("-j") == Some(chain)).for_each(|rule| self.delete(rule));
        if saved.has_chain(chain) {
            self.0.push(format!("-F {chain}"));
            self.0.push(format!("-X {chain}"));
        }
    }
}

/// The words of a line: blanks separate them but within double quotes, and a backslash takes the next character as it is.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut inside, mut some) = (Vec::new(), String::new(), false, false);
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => (inside, some) = (!inside, true),
            '\\' => word.extend(chars.next()),
            c if c.is_whitespace() && !inside => {
                if some || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                some = false;
            }
            c => word.push(c),
        }
    }
    if some || !word.is_empty() {
        words.push(word);
    }
    words
}

/// The reverse of [`words`] for one of them.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.,:/!=+[]@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\""))
}

fn find(program: &str) -> Result<PathBuf, Failure> {
    processes::find(program).ok_or_else(|| {
        let msg = format!("there is no program {program} on this host, which this backend needs");
        Failure::new(Code::Io, msg)
    })
}

/// Whether the kernel holds tables of the old interface of this name.
pub(crate) fn has_legacy(family: Family, table: &str) -> bool {
    let file = if family == Family::V4 { "ip_tables_names" } else { "ip6_tables_names" };
    let names = crate::sys::small_file::read(format!("/proc/net/{file}").as_ref()).unwrap_or_default();
    names.lines().any(|name| name == table)
}

/// Exit status of iptables-restore when it did not get the lock.
const LOCKED: i32 = 4;
/// Seconds that it waits for it.
const WAIT_S: &str = "5";
/// 20,000 rules are printed within half a second and have some three million bytes.
const LIMITS: Limits = Limits { time: Duration::from_secs(30), output: 64 << 20 };

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = concat!(
        "# Generated\n*nat\n:POSTROUTING ACCEPT [0:0]\n:X - [0:0]\n:Y - [0:0]\n",
        "-A X -p tcp -m comment --comment \"dnat name: \\\"net\\\" id: \\\"c1\\\"\" -m multiport --dports 80 -j Y\n",
        "-A POSTROUTING -s 10.0.0.0/8 -j X\nCOMMIT\n"
    );

    #[test]
    fn a_printed_rule_is_found_in_any_order_of_its_words() {
        let saved = Saved::parse(SAVED);
        assert!(saved.has_chain("X") && saved.has_chain("POSTROUTING") && !saved.has_chain("Z"));
        assert!(saved.has("POSTROUTING", &["-j", "X", "-s", "10.0.0.0/8"]));
        assert!(!saved.has("X", &["-j", "X", "-s", "10.0.0.0/8"]));
        let rule = saved.rules("X").next().unwrap();
        assert_eq!(rule.after("--comment"), Some(r#"dnat name: "net" id: "c1""#));
        assert_eq!((rule.after("-j"), rule.after("-o"), rule.after("Y")), (Some("Y"), None, None));
    }

    #[test]
    fn a_chain_goes_with_what_leads_to_it() {
        let saved = Saved::parse(SAVED);
        let mut plan = Plan::default();
        plan.delete_chain(&saved, "Y", "X");
        assert!(plan.0[0].starts_with("-D X -p tcp") && plan.0[0].contains(r#"\"c1\""#), "{}", plan.0[0]);
        assert_eq!(plan.0[1..], ["-F Y", "-X Y"]);
        let mut nothing = Plan::default();
        nothing.delete_chain(&saved, "Z", "X");
        assert_eq!(nothing, Plan::default());
    }

    #[test]
    fn only_what_is_missing_is_added() {
        let saved = Saved::parse(SAVED);
        let mut plan = Plan::default();
        plan.chain(&saved, "X");
        plan.chain(&saved, "Z");
        plan.rule(&saved, "POSTROUTING", &["-s", "10.0.0.0/8", "-j", "X"], true);
        plan.rule(&saved, "POSTROUTING", &["-j", "Z"], true);
        plan.empty_chain(&saved, "Y");
        assert_eq!(plan.0, ["-N Z", "-I POSTROUTING 1 -j Z", "-F Y"]);
    }

    #[test]
    fn a_word_is_quoted_where_it_must_be_and_reads_back() {
        for word in ["", "a", "a b", "\"", "\\", "it's", "a\\\"b", "[fc00::1]:80", "$(x)"] {
            assert_eq!(words(&quoted(word)), [word], "{word}");
        }
        assert_eq!(words("  a  \"b c\"d \"\" "), ["a", "b cd", ""]);
    }
}
