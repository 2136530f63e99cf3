//! Rules as words of iptables, and what `iptables-save` prints as rules.

use std::fmt::Write;

use subnet_lease::Family;

use super::{Flavour, Hint, IptablesRules, IptablesTable, Jump, OwnChain};
use crate::rules::{End, Match, Rule, RuleNames, Verdict};

/// A rule as `iptables-save` prints it after its chain.
pub(super) fn rule(rule: &Rule, comment: &str) -> String {
    let Rule::When(matches, verdict) = rule else { return String::new() };
    let addresses: String = matches.iter().filter_map(address).collect();
    let marks = matches.iter().filter_map(|m| match m {
        Match::Mark(bits) => Some(format!("-m mark --mark {bits:#x}/{bits:#x} ")),
        Match::Address { .. } => None,
    });
    let target = match verdict {
        Verdict::Accept => "ACCEPT",
        Verdict::Return => "RETURN",
        Verdict::Masquerade { fully_random: false } => "MASQUERADE",
        Verdict::Masquerade { fully_random: true } => "MASQUERADE --random-fully",
    };
    format!("{addresses}{}-m comment --comment \"{comment}\" -j {target}", marks.collect::<String>())
}

fn address(condition: &Match) -> Option<String> {
    let Match::Address { end, inside, net } = condition else { return None };
    // Everything is inside of it: nothing is printed for it.
    if *inside && net.prefix() == 0 {
        return None;
    }
    let not = if *inside { "" } else { "! " };
    let option = if *end == End::Source { "-s" } else { "-d" };
    Some(format!("{not}{option} {net} "))
}

/// What of `have` has to change so that it becomes `want`, as one input of `iptables-restore --noflush`. Every table
/// changes as one: packets see the old rules or the new ones.
pub fn restore(want: Option<&IptablesRules>, have: Option<&IptablesRules>) -> String {
    let mut input = String::new();
    for table in IptablesTable::ALL {
        let lines = table_lines(table, want, have);
        if !lines.is_empty() {
            // Writing into a string does not fail.
            let _ = writeln!(input, "*{}\n{lines}COMMIT", table.name());
        }
    }
    input
}

fn table_lines(table: IptablesTable, want: Option<&IptablesRules>, have: Option<&IptablesRules>) -> String {
    let chains = |rules: Option<&IptablesRules>| -> Vec<OwnChain> {
        rules.iter().flat_map(|r| &r.chains).filter(|c| c.table == table).cloned().collect()
    };
    let (wanted, found) = (chains(want), chains(have));
    let gone: Vec<_> = found.iter().filter(|f| wanted.iter().all(|w| w.name != f.name)).collect();
    let changed: Vec<_> = wanted.iter().filter(|w| !found.contains(w)).collect();
    let mut lines = String::new();
    // Makes a chain, or empties it.
    changed.iter().for_each(|chain| line(&mut lines, &format!(":{} - [0:0]", chain.name)));
    gone.iter().for_each(|chain| line(&mut lines, &format!("-F {}", chain.name)));
    jump_lines(&mut lines, table, want, have);
    for chain in changed {
        chain.rules.iter().for_each(|rule| line(&mut lines, &format!("-A {} {rule}", chain.name)));
    }
    gone.iter().for_each(|chain| line(&mut lines, &format!("-X {}", chain.name)));
    lines
}

/// What stands right stays where it is. A rule is deleted by its text, which takes the first of several: hence before
/// the new one comes.
fn jump_lines(
    lines: &mut String,
    table: IptablesTable,
    want: Option<&IptablesRules>,
    have: Option<&IptablesRules>,
) {
    let jumps = |rules: Option<&IptablesRules>| -> Vec<Jump> {
        rules.iter().flat_map(|r| &r.jumps).filter(|j| j.table == table).cloned().collect()
    };
    let (mut missing, mut deleted) = (jumps(want), Vec::new());
    for jump in jumps(have) {
        match missing.iter().position(|wanted| *wanted == jump) {
            Some(at) => drop(missing.swap_remove(at)),
            None => deleted.push(jump),
        }
    }
    deleted.iter().for_each(|jump| line(lines, &format!("-D {} {}", jump.chain, jump.rule)));
    for Jump { chain, rule, before: Hint(before), .. } in missing {
        let earlier = deleted.iter().filter(|gone| gone.chain == chain && gone.reached).count();
        let at = u32::try_from(earlier).map_or(0, |earlier| before.saturating_sub(earlier));
        match at {
            0 => line(lines, &format!("-A {chain} {rule}")),
            at => line(lines, &format!("-I {chain} {at} {rule}")),
        }
    }
}

fn line(lines: &mut String, text: &str) {
    lines.push_str(text);
    lines.push('\n');
}

/// What has these names of what `iptables-save` printed; none if nothing has.
pub fn read(flavour: Flavour, family: Family, names: RuleNames, saved: &str) -> Option<IptablesRules> {
    let mut rules = IptablesRules { flavour, family, names, chains: Vec::new(), jumps: Vec::new() };
    let mut table = None;
    let mut ended: Vec<&str> = Vec::new();
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = IptablesTable::ALL.into_iter().find(|table| table.name() == name);
            ended.clear();
        }
        let Some(table) = table else { continue };
        if let Some((name, _)) = line.strip_prefix(':').and_then(|rest| rest.split_once(' ')) {
            if RuleNames::of_chain(name) == Some(names) {
                rules.chains.push(OwnChain { table, name: name.to_owned(), rules: Vec::new() });
            }
        } else if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|rest| rest.split_once(' ')) {
            take(&mut rules, &mut ended, table, chain, rule);
        }
    }
    rules.chains.sort_by(|a, b| (a.table, &a.name).cmp(&(b.table, &b.name)));
    rules.jumps.sort_by(|a, b| (a.table, &a.chain).cmp(&(b.table, &b.chain)));
    (!rules.chains.is_empty()).then_some(rules)
}

fn take<'a>(
    rules: &mut IptablesRules,
    ended: &mut Vec<&'a str>,
    table: IptablesTable,
    chain: &'a str,
    rule: &'a str,
) {
    if let Some(ours) = rules.chains.iter_mut().find(|c| c.table == table && c.name == chain) {
        ours.rules.push(rule.to_owned());
    } else if target(rule).and_then(RuleNames::of_chain) == Some(rules.names) {
        let (chain, rule, reached) = (chain.to_owned(), rule.to_owned(), !ended.contains(&chain));
        rules.jumps.push(Jump { table, chain, rule, reached, before: Hint::default() });
    } else if takes_all(rule) {
        ended.push(chain);
    }
}

/// Where a rule sends packets.
fn target(rule: &str) -> Option<&str> {
    let mut words = rule.split(' ');
    words.find(|word| ["-j", "-g"].contains(word))?;
    words.next()
}

/// Whether no packet gets past a rule: it has no condition and a verdict.
pub(super) fn takes_all(rule: &str) -> bool {
    let rule = match rule.strip_prefix("-m comment --comment ") {
        Some(commented) => commented.find("-j ").map_or(commented, |at| &commented[at..]),
        None => rule,
    };
    let verdict = |name| rule.strip_prefix("-j ").is_some_and(|rest| rest.split(' ').next() == Some(name));
    ["ACCEPT", "DROP", "REJECT", "RETURN"].into_iter().any(verdict)
}
