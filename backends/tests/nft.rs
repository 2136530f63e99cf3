//! Our tables in a real kernel, each test in a network namespace of its own. Needs root and the `nft` program, which
//! stands for everybody else who changes rules.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::thread;

use backends::TableKey;
use backends::kernel::KernelEvent;
use backends::kernel::real::{EventFilter, Events, nft};
use backends::netlink::{NetlinkError, Socket};
use backends::rules::{Chain, ChainKind, Hook, Policy, RuleInput, RuleNames, RuleSettings, RuleTable, rules};
use nix::sched::{CloneFlags, unshare};
use subnet_lease::Family;

/// Runs the test on a thread that has left for an empty network namespace, which goes with the thread.
fn in_namespace(test: impl FnOnce(&mut Socket) + Send) {
    let enter = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap_or_else(|e| {
            panic!("a network namespace is needed and could not be made ({e}): run these tests as root")
        });
        test(&mut Socket::netfilter().expect("a netfilter socket"));
    };
    thread::scope(|scope| {
        if let Err(panic) = scope.spawn(enter).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn wish(masquerade: bool, fully_random: bool, forward_rules: bool) -> Vec<RuleTable> {
    let pairs = [("10.244.0.0/14", "10.244.3.0/24"), ("fd00:10:244::/56", "fd00:10:244:3::/64")];
    rules(&RuleInput {
        networks: pairs.map(|(c, p)| (c.parse().unwrap(), p.parse().unwrap())).to_vec(),
        settings: RuleSettings {
            masquerade,
            fully_random,
            forward_rules,
            no_masquerade: ["172.16.0.0/12", "192.0.2.7/32", "2001:db8::/33", "2001:db8::7/128"]
                .map(|net| net.parse().unwrap())
                .to_vec(),
            ..RuleSettings::default()
        },
        ..RuleInput::default()
    })
}

fn every_wish() -> impl Iterator<Item = Vec<RuleTable>> {
    (0..8).map(|bits| wish(bits & 1 != 0, bits & 2 != 0, bits & 4 != 0))
}

/// Runs `nft -f -` with this input and returns what it printed.
fn by_hand(script: &str) -> String {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the nft program (package nftables)");
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    assert!(status.success(), "nft: {}\n{script}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

fn key(family: Family) -> TableKey {
    TableKey { family, names: RuleNames::Flannel }
}

fn read(socket: &mut Socket, family: Family) -> Option<RuleTable> {
    nft::read(socket, key(family)).unwrap()
}

#[test]
fn what_is_written_reads_back_as_equal() {
    in_namespace(|socket| {
        for table in every_wish().flatten() {
            nft::replace(socket, &table).unwrap();
            assert_eq!(read(socket, table.family), Some(table));
        }
    });
}

#[test]
fn the_text_of_a_table_loaded_by_hand_is_that_table() {
    in_namespace(|socket| {
        for table in every_wish().flatten() {
            by_hand(&table.to_nft());
            let by_text = by_hand("list ruleset");
            assert_eq!(read(socket, table.family).as_ref(), Some(&table), "{by_text}");
            nft::replace(socket, &table).unwrap();
            assert_eq!(by_hand("list ruleset"), by_text);
        }
    });
}

#[test]
fn a_table_that_is_absent_reads_as_none_and_can_be_deleted() {
    in_namespace(|socket| {
        for family in Family::ALL {
            assert_eq!(read(socket, family), None);
            nft::delete(socket, key(family)).unwrap();
        }
        for table in wish(true, true, true) {
            nft::replace(socket, &table).unwrap();
            nft::delete(socket, key(table.family)).unwrap();
            assert_eq!(read(socket, table.family), None);
        }
        assert_eq!(by_hand("list ruleset"), "");
    });
}

/// What others do to rules: scripts for nft. Each must be seen.
const CHANGES: &[(&str, &str)] = &[
    ("everything flushed", "flush ruleset"),
    ("the table deleted", "delete table ip flannel-ipv4"),
    ("the rules flushed", "flush table ip flannel-ipv4"),
    ("a chain deleted", "flush chain ip flannel-ipv4 forward; delete chain ip flannel-ipv4 forward"),
    ("a rule more, last", "add rule ip flannel-ipv4 postrtg return"),
    ("a rule more, first", "insert rule ip flannel-ipv4 forward drop"),
    ("the same rule twice", "add rule ip flannel-ipv4 forward ip daddr 10.244.0.0/14 accept"),
    ("a rule with a counter", "add rule ip flannel-ipv4 forward counter"),
    ("a rule with no verdict", "add rule ip flannel-ipv4 forward ip saddr 10.244.0.0/14"),
    ("a rule with a set", "add rule ip flannel-ipv4 forward ip saddr { 10.0.0.1, 10.0.0.2 } accept"),
    ("a dormant table", "add table ip flannel-ipv4 { flags dormant; }"),
    ("another policy", "add chain ip flannel-ipv4 forward { policy drop; }"),
    ("a chain more", "add chain ip flannel-ipv4 more { type filter hook input priority 0; }"),
    ("a chain more that no hook calls", "add chain ip flannel-ipv4 more"),
];

/// What others write in place of our text: before and after.
const EDITS: &[(&str, &str, &str)] = &[
    ("another priority", "priority 100", "priority 101"),
    ("another hook", "hook forward", "hook input"),
    (
        "another chain type",
        "type nat hook postrouting priority 100",
        "type filter hook postrouting priority 100",
    ),
    ("another chain name", "chain forward", "chain forwards"),
    ("an exact mark", "meta mark & 0x4000 == 0x4000", "meta mark 0x4000"),
    ("another mask", "mark & 0x4000", "mark & 0xc000"),
    ("another verdict", "0x4000 return", "0x4000 accept"),
    ("another network", "192.0.2.7/32", "192.0.2.8/32"),
    ("a wider network", "172.16.0.0/12", "172.16.0.0/11"),
    (
        "inside for outside",
        "saddr != 10.244.0.0/14 ip daddr 10.244.3.0/24",
        "saddr 10.244.0.0/14 ip daddr 10.244.3.0/24",
    ),
    ("another way to choose ports", "fully-random", "random"),
    (
        "ports in a range",
        "ip daddr != 224.0.0.0/4 masquerade fully-random",
        "meta l4proto tcp masquerade to :1024-2048",
    ),
    ("greater for equal", "ip saddr 10.244.0.0/14 accept", "ip saddr >= 10.244.0.0 accept"),
    ("a mask with a hole", "ip saddr 10.244.0.0/14 accept", "ip saddr & 255.0.255.0 == 10.0.0.0 accept"),
    (
        "two rules swapped",
        "saddr 10.244.0.0/14 accept\n\t\tip daddr",
        "daddr 10.244.0.0/14 accept\n\t\tip saddr",
    ),
];

fn edited(table: &RuleTable, (what, before, after): (&str, &str, &str)) -> String {
    let text = table.to_nft();
    assert!(text.contains(before), "{what} changes nothing");
    let text = text.replace(before, after);
    // Only nat chains masquerade.
    if after.contains("type filter") { text.replace("masquerade fully-random", "accept") } else { text }
}

#[test]
fn whatever_others_change_is_seen_and_a_replacement_repairs_it() {
    in_namespace(|socket| {
        let wished = wish(true, true, true);
        let table = &wished[0];
        let edits = EDITS.iter().map(|edit| (edit.0, edited(table, *edit)));
        let changes = CHANGES.iter().map(|(what, script)| (*what, (*script).to_owned()));
        for (what, script) in changes.chain(edits) {
            wished.iter().for_each(|t| nft::replace(socket, t).unwrap());
            by_hand(&script);
            assert_ne!(read(socket, Family::V4).as_ref(), Some(table), "{what} is not seen");
            nft::replace(socket, table).unwrap();
            assert_eq!(read(socket, Family::V4).as_ref(), Some(table), "{what} is not repaired");
        }
    });
}

#[test]
fn tables_of_others_stay_as_they_are() {
    in_namespace(|socket| {
        by_hand(
            "table inet flannel-ipv4 { chain forward { type filter hook forward priority 0; policy drop; }; }",
        );
        by_hand("table ip other { chain forward { ip saddr 10.0.0.1 accept; }; chain postrtg { accept; }; }");
        let before = by_hand("list ruleset");
        assert_eq!(read(socket, Family::V4), None);
        for table in wish(true, true, true) {
            nft::replace(socket, &table).unwrap();
            assert_eq!(read(socket, table.family).as_ref(), Some(&table));
            nft::delete(socket, key(table.family)).unwrap();
        }
        assert_eq!(by_hand("list ruleset"), before);
    });
}

#[test]
fn a_refused_replacement_changes_nothing_and_names_what_was_refused() {
    in_namespace(|socket| {
        let good = wish(true, true, true).remove(0);
        nft::replace(socket, &good).unwrap();
        // A nat chain can't stand in this hook.
        let wrong = Chain {
            name: "wrong".to_owned(),
            kind: ChainKind::Nat,
            hook: Hook::Forward,
            priority: 0,
            policy: Policy::Accept,
            rules: good.chains[0].rules.clone(),
        };
        let mut bad = good.clone();
        bad.chains.insert(1, wrong);
        let error = nft::replace(socket, &bad).unwrap_err();
        assert!(matches!(error, NetlinkError::Refused { .. }), "{error:?}");
        assert!(error.to_string().contains("chain wrong"), "{error}");
        assert_eq!(read(socket, Family::V4), Some(good.clone()));
        nft::replace(socket, &good).unwrap();
    });
}

fn with_exemptions(count: u32) -> RuleTable {
    let nets = (0..count).map(|n| format!("192.{}.{}.0/24", n / 256, n % 256).parse().unwrap());
    let input = RuleInput {
        networks: vec![("10.244.0.0/16".parse().unwrap(), "10.244.3.0/24".parse().unwrap())],
        settings: RuleSettings { masquerade: true, no_masquerade: nets.collect(), ..RuleSettings::default() },
        ..RuleInput::default()
    };
    rules(&input).remove(0)
}

#[test]
fn hundreds_of_exemptions_are_still_one_transaction_and_too_many_are_said_to_be() {
    in_namespace(|socket| {
        let many = with_exemptions(400);
        nft::replace(socket, &many).unwrap();
        assert_eq!(read(socket, Family::V4).as_ref(), Some(&many));
        let error = nft::replace(socket, &with_exemptions(20_000)).unwrap_err();
        assert!(error.to_string().contains("name fewer networks"), "{error}");
        assert_eq!(read(socket, Family::V4), Some(many));
    });
}

#[test]
fn a_table_reads_whole_while_another_one_changes() {
    in_namespace(|socket| {
        let [table, other] = <[RuleTable; 2]>::try_from(wish(true, true, true)).unwrap();
        nft::replace(socket, &table).unwrap();
        thread::scope(|scope| {
            // A thread is born in the namespace of the one that starts it.
            let churn = scope.spawn(|| {
                let mut socket = Socket::netfilter().unwrap();
                (0..300).for_each(|_| nft::replace(&mut socket, &other).unwrap());
            });
            while !churn.is_finished() {
                assert_eq!(read(socket, Family::V4).as_ref(), Some(&table));
            }
        });
    });
}

/// Without waiting: who made the change has its answer after everybody who listens has the notification.
#[test]
fn a_rule_of_a_chain_that_forwarded_packets_were_found_to_pass_is_heard_of_and_that_of_another_is_not() {
    in_namespace(|_| {
        let chains = "add table inet site; add chain inet site ask; add chain inet site other";
        by_hand(&chains.replace("; ", "\n"));
        let mut events = Events::netfilter().unwrap();
        let found = EventFilter { gates: vec!["ask".to_owned()], ..EventFilter::default() };
        for (chain, filter, expected) in [
            ("ask", &found, Some(KernelEvent::Own)),
            ("other", &found, None),
            ("ask", &EventFilter::default(), None),
        ] {
            by_hand(&format!("add rule inet site {chain} drop\n"));
            assert_eq!(events.drain(filter).unwrap().event, expected, "{chain}");
        }
    });
}
