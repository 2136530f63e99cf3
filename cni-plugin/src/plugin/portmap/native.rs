//! Port maps in nf_tables: what each verb does with the table.

use std::time::Duration;

use backends::netlink::nft::{Change, Element, Reader, Rule};
use backends::netlink::{NetlinkError, Socket};
use nix::errno::Errno;
use nix::poll::ppoll;
use nix::sys::time::TimeSpec;
use subnet_lease::Family;

use super::table::{TABLE, Wish, meaning};
use crate::contract::{Code, During, Failure};

/// Tries when others change the ruleset at the same time; the last one ignores that.
const TRIES: u32 = 20;

/// How often elements that are about to expire are read, and the time between two reads; the slowest kernel has a tick of
/// ten milliseconds.
const LOOKS: u32 = 100;
const BETWEEN: Duration = Duration::from_micros(500);

/// Elements by family and set.
pub(super) type Owned = (Family, String, Vec<Element>);
/// An element of ours that was taken away, with its family.
pub(super) type Removed = (Family, Element);

/// Puts the wishes of one attachment in force, all at once. Elements of another attachment for the same host ports are
/// replaced: the last attachment wins, as with the reference plugin.
pub(super) fn add(socket: &mut Socket, wishes: &[Wish]) -> Result<(), Failure> {
    let mut replace = false;
    for _ in 0..TRIES {
        let mut reader = Reader { socket, table: TABLE };
        let generation = reader.generation().during(Code::Kernel, no_tables)?;
        let mut change = Change::of(TABLE);
        let mut guarded = replace;
        for wish in wishes {
            let missing = missing(&mut reader, wish).during(Code::Kernel, no_tables)?;
            if !missing.is_empty() {
                wish.structure(&mut change, &missing);
                guarded = true;
            }
            for (set, elements) in &wish.elements {
                if replace {
                    let held = reader.elements(wish.family, set).during(Code::Kernel, no_tables)?;
                    let held = held.into_iter().filter(|h| elements.iter().any(|e| e.key == h.key));
                    change.delete(wish.family, set, &held.collect::<Vec<_>>());
                }
                change.add(wish.family, set, elements);
            }
        }
        match change.commit(socket, generation.filter(|_| guarded)) {
            Err(error) if error.errno() == Errno::ERESTART => {}
            Err(error) if error.errno() == Errno::EEXIST && !replace => replace = true,
            other => {
                return other.during(Code::Kernel, || format!("cannot set up port maps in table {TABLE}"));
            }
        }
    }
    Err(Failure::new(Code::TryAgain, "the host's nf_tables rules change faster than they can be read"))
}

/// Removes the elements whose owner is meant, and returns them.
pub(super) fn remove(socket: &mut Socket, meant: &dyn Fn(&str) -> bool) -> Result<Vec<Removed>, Failure> {
    let ending = expire(socket, meant)?;
    end(socket, ending, meant)
}

/// Makes the elements whose owner is meant expire: they end with the kernel's next tick, without waiting for its readers.
pub(super) fn expire(socket: &mut Socket, meant: &dyn Fn(&str) -> bool) -> Result<Vec<Owned>, Failure> {
    let what = || format!("cannot remove port maps from table {TABLE}");
    for n in 1..=TRIES {
        let mut reader = Reader { socket, table: TABLE };
        let generation = reader.generation().during(Code::Kernel, what)?;
        let found = owned(&mut reader, meant)?;
        if found.is_empty() {
            return Ok(vec![]);
        }
        let mut change = Change::of(TABLE);
        found.iter().for_each(|(family, set, elements)| change.expire(*family, set, elements));
        match change.commit(socket, generation.filter(|_| n < TRIES)) {
            Err(error) if error.errno() == Errno::ERESTART => {}
            // A kernel that cannot let elements expire may refuse.
            _ => return Ok(found),
        }
    }
    Err(Failure::new(Code::Kernel, what()))
}

/// Waits until these elements are gone; an element that an old kernel does not let expire is deleted.
pub(super) fn end(
    socket: &mut Socket,
    found: Vec<Owned>,
    meant: &dyn Fn(&str) -> bool,
) -> Result<Vec<Removed>, Failure> {
    let what = || format!("cannot remove port maps from table {TABLE}");
    for n in 0..LOOKS {
        let mut change = Change::of(TABLE);
        let mut left = 0;
        for (family, set, _) in &found {
            let mut there =
                Reader { socket, table: TABLE }.elements(*family, set).during(Code::Kernel, what)?;
            there.retain(|element| meant(&element.owner));
            left += there.len();
            there.retain(|element| !element.ends || n + 1 == LOOKS);
            change.delete(*family, set, &there);
        }
        if left == 0 {
            break;
        }
        match change.commit(socket, None) {
            // Another process removed one: read again.
            Err(error) if error.errno() == Errno::ENOENT => {}
            other => other.during(Code::Kernel, what)?,
        }
        let _ = ppoll(&mut [], Some(TimeSpec::from_duration(BETWEEN)), None);
    }
    let of_set = |(family, _, elements): Owned| elements.into_iter().map(move |element| (family, element));
    Ok(found.into_iter().flat_map(of_set).filter(|(_, element)| !element.value.is_empty()).collect())
}

/// The elements whose owner is meant, by family and set.
fn owned(reader: &mut Reader<'_>, meant: &dyn Fn(&str) -> bool) -> Result<Vec<Owned>, Failure> {
    let what = || format!("cannot read table {TABLE}");
    let mut found = Vec::new();
    for family in Family::ALL {
        for set in reader.sets(family).during(Code::Kernel, what)? {
            let mut elements = reader.elements(family, &set).during(Code::Kernel, what)?;
            elements.retain(|element| meant(&element.owner));
            if !elements.is_empty() {
                found.push((family, set, elements));
            }
        }
    }
    Ok(found)
}

/// Checks that everything the wishes want is there.
pub(super) fn check(socket: &mut Socket, wishes: &[Wish]) -> Result<(), Failure> {
    let what = || format!("cannot read table {TABLE}");
    let mut reader = Reader { socket, table: TABLE };
    for wish in wishes {
        if let Some(rule) = missing(&mut reader, wish).during(Code::Kernel, what)?.first() {
            let msg = format!("table {TABLE} has lost a rule of chain {} ({})", rule.chain, rule.note);
            return Err(Failure::new(Code::Check, msg).details("the next ADD of any container makes it anew"));
        }
        for (set, elements) in &wish.elements {
            let there = reader.elements(wish.family, set).during(Code::Kernel, what)?;
            elements.iter().try_for_each(|wanted| compare(set, wanted, &there))?;
        }
    }
    Ok(())
}

/// The rules of a wish that the table lacks.
fn missing<'w>(reader: &mut Reader<'_>, wish: &'w Wish) -> Result<Vec<&'w Rule>, NetlinkError> {
    let mut missing: Vec<_> = wish.rules.iter().collect();
    reader.rules(wish.family, None, |there| missing.retain(|rule| !there.is(rule)))?;
    Ok(missing)
}

fn compare(set: &str, wanted: &Element, there: &[Element]) -> Result<(), Failure> {
    let name = meaning(wanted).map_or_else(
        || format!("an entry of set {set}"),
        |(protocol, port, ..)| format!("the forward of host port {port} (protocol {protocol})"),
    );
    match there.iter().find(|element| element.key == wanted.key) {
        Some(element) if element == wanted => Ok(()),
        Some(element) => Err(Failure::new(Code::Check, format!("{name} belongs to {} now", element.owner))),
        None => Err(Failure::new(Code::Check, format!("{name} is gone from table {TABLE}"))),
    }
}

fn no_tables() -> String {
    "cannot read the host's nf_tables rules".to_owned()
}

/// Checks that the kernel has nf_tables and answers us.
pub(super) fn usable(socket: &mut Socket) -> Result<(), Failure> {
    Reader { socket, table: TABLE }.generation().map(|_| ()).during(Code::Kernel, no_tables)
}
