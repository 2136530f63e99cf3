//! Everything of a host that an operator sees.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::host::Host;
use crate::process::Program;

/// One command per line. One shell runs all of them, because starting a program takes longer than its answer.
/// A command that fails (the device does not exist) shows nothing.
const LOOK: &str = "
ip -d link show type vxlan
ethtool -k flannel.1 | grep -w tx-checksum-ip-generic
ethtool -k flannel-v6.1 | grep -w tx-checksum-ip-generic
ip -o address show dev flannel.1
ip -o address show dev flannel-v6.1
ip -o address show dev eth0
ip route show table all
ip -6 route show table all
ip neigh show nud permanent
ip -6 neigh show nud permanent
bridge fdb show dev flannel.1
bridge fdb show dev flannel-v6.1
nft list ruleset
sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding
cat /run/flannel/subnet.env
";

/// The state of a host, ours and foreign, as the operator's tools print it; equal pictures are equal states.
/// Ages are left out, and so is what the kernel makes by itself and does not make again after a flush.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Lines, and how often each occurs. The order of lines has no meaning, except for rules, which are one
    /// line.
    lines: BTreeMap<String, usize>,
}

impl Picture {
    /// Takes a picture, in about 30 ms.
    pub fn of(host: &Host) -> Result<Self> {
        let script = LOOK.trim().lines().map(|line| format!("{{ {line}; }} 2>/dev/null; echo '# {line}'\n"));
        let output = host.exec(&Program::new("sh").arg("-c").arg(script.collect::<String>()))?;
        Ok(Self::read(&output))
    }

    fn read(output: &str) -> Self {
        let mut lines = BTreeMap::new();
        let mut part = Vec::new();
        for line in output.lines() {
            let Some(asked) = line.strip_prefix("# ") else {
                part.push(line);
                continue;
            };
            let shown: Vec<String> = match asked.starts_with("nft") {
                true => tables(&part),
                false => part.iter().filter_map(|line| normal(line)).collect(),
            };
            for line in shown {
                *lines.entry(line).or_default() += 1;
            }
            part.clear();
        }
        Self { lines }
    }

    /// The same picture with one address replaced by another.
    pub fn readdressed(&self, old: &str, new: &str) -> Self {
        let lines = self.lines.iter().map(|(line, count)| (replace_word(line, old, new), *count));
        Self { lines: lines.collect() }
    }

    /// What `now` lacks (`-`) and what it has more (`+`); empty when both are equal.
    pub fn differences(&self, now: &Self) -> Vec<String> {
        let one_way = |sign: &'static str, a: &Self, b: &Self| -> Vec<String> {
            let fewer = |line: &String| b.lines.get(line).copied().unwrap_or_default();
            a.lines
                .iter()
                .filter(|(line, n)| fewer(line) < **n)
                .map(|(line, _)| format!("{sign} {line}"))
                .collect()
        };
        let mut all = one_way("-", self, now);
        all.extend(one_way("+", now, self));
        all
    }
}

/// Each table is one line, because the order of rules has a meaning. The order of tables has none.
fn tables(lines: &[&str]) -> Vec<String> {
    lines.split_inclusive(|line| *line == "}").map(|table| table.join("\n")).collect()
}

/// A line without interface indexes (a new device has another index) and ages; `None` for a line that the
/// kernel alone decides.
fn normal(line: &str) -> Option<String> {
    if ["fe80:", "proto kernel", "ff00::", "type anycast", "valid_lft 0"]
        .iter()
        .any(|mark| line.contains(mark))
    {
        return None;
    }
    let line = line.trim();
    let index = line.split_once(": ").filter(|(index, _)| index.bytes().all(|b| b.is_ascii_digit()));
    let line = index.map_or(line, |(_, rest)| rest);
    // The network manager decides how link-local addresses are made. Flags of routes and addresses depend on
    // the last writer.
    let line = ["eui64", "none"]
        .iter()
        .fold(line.to_owned(), |l, mode| l.replace(&format!("addrgenmode {mode}"), ""));
    let words: Vec<&str> =
        line.split_whitespace().filter(|word| !["nodad", "linkdown", "dead"].contains(word)).collect();
    (!words.is_empty()).then(|| words.join(" "))
}

/// Replaces `old` where it is a whole address, not a part of another address.
fn replace_word(line: &str, old: &str, new: &str) -> String {
    let is_part = |c: char| c.is_ascii_hexdigit() || c == '.' || c == ':';
    let (mut done, mut rest) = (String::new(), line);
    while let Some(at) = rest.find(old) {
        let (before, after) = (&rest[..at], &rest[at + old.len()..]);
        let whole = !before.ends_with(is_part) && !after.starts_with(is_part);
        done += before;
        done += if whole { new } else { old };
        rest = after;
    }
    done + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_indexes_mean_nothing_and_numbers_of_equal_lines_do() {
        let one = Picture::read("4: flannel.1: <UP>\na\na\n# ip link\n");
        assert_eq!(one, Picture::read("a\n17: flannel.1: <UP>\na\n# ip link\n"));
        assert_eq!(one.differences(&Picture::read("4: flannel.1: <UP>\na\n# ip link\n")), ["- a"]);
    }

    #[test]
    fn the_order_of_rules_is_part_of_the_picture_and_that_of_tables_is_not() {
        let [one, other] = ["table ip a {\n}\n", "table ip b {\n}\n"];
        let read = |text: String| Picture::read(&(text + "# nft list ruleset\n"));
        assert_eq!(read(one.to_owned() + other), read(other.to_owned() + one));
        assert_ne!(Picture::read("a\nb\n# nft list ruleset\n"), Picture::read("b\na\n# nft list ruleset\n"));
    }

    #[test]
    fn only_whole_addresses_are_replaced() {
        let line = "via 172.30.0.2 dev x src 172.30.0.21 dst 172.30.0.2/16";
        assert_eq!(
            replace_word(line, "172.30.0.2", "172.30.77.2"),
            "via 172.30.77.2 dev x src 172.30.0.21 dst 172.30.77.2/16"
        );
    }
}
