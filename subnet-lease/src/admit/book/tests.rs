use super::*;
use crate::admit::claim::tests::claim;

const V4: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
const HOUR: Duration = Duration::from_secs(3600);

fn at(hours: u32) -> Duration {
    HOUR * hours
}

#[test]
fn renewing_an_unchanged_lease_tells_nobody_and_lasts() {
    let (mut book, host) = (LeaseBook::default(), claim("192.168.0.1", V4));
    let (own, events) = book.claim(at(0), &host, at(24)).unwrap();
    assert_eq!(events, [StoreEvent::Upsert(own.lease.clone())]);
    let revision = book.revision();
    assert_eq!(book.claim(at(23), &host, at(24)).unwrap(), (own.clone(), vec![]));
    assert_eq!(book.revision(), revision);
    assert_eq!(book.expire(at(46)), []);
    assert_eq!(book.expire(at(47)), [StoreEvent::Removed(vec![own.lease.subnets])]);
}

#[test]
fn a_changed_attribute_is_told_and_keeps_the_epoch() {
    let (mut book, mut host) = (LeaseBook::default(), claim("192.168.0.1", V4));
    let (before, _) = book.claim(at(0), &host, at(24)).unwrap();
    host.attrs.kind = "host-gw".into();
    let (after, events) = book.claim(at(1), &host, at(24)).unwrap();
    assert_eq!(events, [StoreEvent::Upsert(after.lease.clone())]);
    assert_eq!(before.lease.epoch, after.lease.epoch);
}

#[test]
fn who_lost_its_subnets_says_so_as_long_as_its_lease_lasts() {
    let (mut book, host) = (LeaseBook::default(), claim("192.168.0.1", V4));
    let (own, _) = book.claim(at(0), &host, at(24)).unwrap();
    assert_eq!(own.lease.former(), None);
    let lost = own.lease.subnets;
    book.claim(at(25), &Claim { previous: Some(lost), ..claim("192.168.0.2", V4) }, at(24)).unwrap();
    let (new, _) = book.claim(at(26), &Claim { previous: Some(lost), ..host.clone() }, at(24)).unwrap();
    assert_eq!(new.lease.former(), Some(lost));
    let read = Lease::from_record(&new.lease.subnets.to_string(), &new.lease.to_record()).unwrap();
    assert_eq!(read.former(), Some(lost));
    let again = Claim { previous: Some(new.lease.subnets), ..host };
    assert_eq!(book.claim(at(27), &again, at(24)).unwrap().0.lease.former(), Some(lost));
}

#[test]
fn a_host_that_slept_past_its_lease_never_takes_over_who_came_after() {
    let (mut book, host) = (LeaseBook::default(), claim("192.168.0.1", V4));
    let (own, _) = book.claim(at(0), &host, at(24)).unwrap();
    let newcomer = Claim { previous: Some(own.lease.subnets), ..claim("192.168.0.2", V4) };
    let (theirs, _) = book.claim(at(25), &newcomer, at(24)).unwrap();
    assert_eq!(theirs.lease.subnets, own.lease.subnets);
    let sleeper = Claim { previous: Some(own.lease.subnets), ..host };
    let (moved, _) = book.claim(at(26), &sleeper, at(24)).unwrap();
    assert_ne!(moved.lease.subnets, theirs.lease.subnets);
    assert_eq!(book.leases().count(), 2);
}

#[test]
fn a_write_by_someone_who_saw_an_older_revision_is_refused() {
    let mut book = LeaseBook::default();
    let (own, _) = book.claim(at(0), &claim("192.168.0.1", V4), at(24)).unwrap();
    let seen = book.revision_of(&own.lease.subnets);
    let changed = Lease { node: Some("x".into()), ..own.lease.clone() };
    book.put(at(1), changed, seen, Some(at(24))).unwrap();
    for stale in [seen, None] {
        let refused = book.put(at(2), own.lease.clone(), stale, Some(at(24)));
        assert_eq!(refused, Err(StoreError::Raced(own.lease.subnets.to_string())));
    }
}

#[test]
fn a_reservation_stays_a_reservation_when_its_host_claims_it() {
    let (mut book, host) = (LeaseBook::default(), claim("192.168.0.1", V4));
    book.put(at(0), host.lease("10.5.7.0-24".parse().unwrap(), None), None, None).unwrap();
    let (own, _) = book.claim(at(1), &host, at(24)).unwrap();
    assert_eq!((own.lease.subnets.to_string().as_str(), own.expires_in), ("10.5.7.0-24", None));
    assert_eq!(book.expire(at(10_000)), []);
}

#[test]
fn giving_up_a_subnet_and_taking_another_is_one_step() {
    let mut book = LeaseBook::default();
    let (old, _) = book.claim(at(0), &claim("192.168.0.1", V4), at(24)).unwrap();
    let renumbered = claim("192.168.0.1", r#"{"Network":"10.6.0.0/16","Backend":{"Type":"vxlan"}}"#);
    let (new, events) = book.claim(at(1), &renumbered, at(24)).unwrap();
    assert_eq!(events, [StoreEvent::Removed(vec![old.lease.subnets]), StoreEvent::Upsert(new.lease.clone())]);
    assert_eq!(book.leases().collect::<Vec<_>>(), [&new.lease]);
}
