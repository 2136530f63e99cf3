//! What an operator sees who uses `etcdctl`.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use super::fixture::Store;

fn command(store: &Store, line: &str) -> Command {
    // The distribution's, or another version's.
    let program = std::env::var_os("SELVAGE_ETCDCTL").unwrap_or_else(|| "etcdctl".into());
    let mut command = Command::new(program);
    command.env("ETCDCTL_API", "3").arg("--endpoints").arg(&store.endpoint).args(line.split(' '));
    command
}

fn etcdctl(store: &Store, line: &str) -> String {
    let output = command(store, line).output().expect("etcdctl is installed (package etcd-client)");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "etcdctl {line}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn keys_are_put_listed_and_deleted() {
    let store = Store::new();
    assert_eq!(etcdctl(&store, "put /net/a 1"), "OK\n");
    etcdctl(&store, "put /net/b 2");
    assert_eq!(etcdctl(&store, "get --prefix /net/"), "/net/a\n1\n/net/b\n2\n");
    assert_eq!(etcdctl(&store, "get --prefix --keys-only --limit 1 /net/"), "/net/a\n\n");
    assert_eq!(
        etcdctl(&store, "get --from-key --sort-by MODIFY --order DESCEND /"),
        "/net/b\n2\n/net/a\n1\n"
    );
    assert_eq!(etcdctl(&store, "get /net/a /net/b"), "/net/a\n1\n");
    assert_eq!(etcdctl(&store, "del --prev-kv /net/a"), "1\n/net/a\n1\n");
    assert_eq!(etcdctl(&store, "get --prefix / --rev 3"), "/net/a\n1\n/net/b\n2\n");
}

#[test]
fn a_transaction_typed_in_takes_the_right_branch() {
    let store = Store::new();
    etcdctl(&store, "put a 1");
    let mut txn = command(&store, "txn");
    let mut txn = txn.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let typed = "value(\"a\") = \"1\"\n\nput b 2\nget a\n\nget a\n\n";
    std::io::Write::write_all(&mut txn.stdin.take().unwrap(), typed.as_bytes()).unwrap();
    let said = txn.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(said.stdout).unwrap(), "SUCCESS\n\nOK\n\na\n1\n");
}

#[test]
fn a_watch_prints_changes_as_they_come() {
    let store = Store::new();
    etcdctl(&store, "put a 1");
    let mut watch = command(&store, "watch --rev 2 --prev-kv a").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut next = |count| (0..count).map(|_| lines.next().unwrap().unwrap()).collect::<Vec<_>>();
    assert_eq!(next(3), ["PUT", "a", "1"]);
    etcdctl(&store, "put a 2");
    assert_eq!(next(5), ["PUT", "a", "1", "a", "2"], "what it was, and what it is");
    etcdctl(&store, "del a");
    assert_eq!(next(5), ["DELETE", "a", "2", "a", ""]);
    watch.kill().unwrap();
    watch.wait().unwrap();
}

#[test]
fn leases_are_granted_listed_and_revoked_with_their_keys() {
    let store = Store::new();
    let granted = etcdctl(&store, "lease grant 100");
    let id = granted.split(' ').nth(1).unwrap();
    assert_eq!(granted, format!("lease {id} granted with TTL(100s)\n"));
    etcdctl(&store, &format!("put a 1 --lease={id}"));
    let left = etcdctl(&store, &format!("lease timetolive --keys {id}"));
    assert!(left.contains("granted with TTL(100s)") && left.contains("attached keys([a])"), "{left}");
    assert_eq!(etcdctl(&store, "lease list"), format!("found 1 leases\n{id}\n"));
    let kept = etcdctl(&store, &format!("lease keep-alive --once {id}"));
    assert_eq!(kept, format!("lease {id} keepalived with TTL(100)\n"));
    assert_eq!(etcdctl(&store, &format!("lease revoke {id}")), format!("lease {id} revoked\n"));
    assert_eq!(etcdctl(&store, "get a"), "");
    assert_eq!(etcdctl(&store, &format!("lease timetolive {id}")), format!("lease {id} already expired\n"));
}

#[test]
fn health_status_members_alarms_and_compaction_answer() {
    let store = Store::new();
    etcdctl(&store, "put a 1");
    etcdctl(&store, "put a 2");
    etcdctl(&store, "endpoint health");
    let status = etcdctl(&store, "endpoint status");
    assert!(status.starts_with(&store.endpoint) && status.contains(", 3.5.0, "), "{status}");
    let members = etcdctl(&store, "member list");
    assert!(members.contains("started, embedded") && members.contains(&store.endpoint), "{members}");
    assert_eq!(etcdctl(&store, "alarm list"), "");
    assert_eq!(etcdctl(&store, "compact 3"), "compacted revision 3\n");
    assert_eq!(etcdctl(&store, "user list"), "");
}

#[test]
fn a_lock_taken_over_leases_and_transactions_is_held_and_given_back() {
    let store = Store::new();
    let said = etcdctl(&store, "lock name echo inside");
    assert_eq!(said, "inside\n");
    assert_eq!(etcdctl(&store, "get --prefix name"), "");
}
