//! What the program does under each of its names, as one table row per name.

pub(crate) mod bandwidth;
pub(crate) mod bridge;
mod chained;
mod delegate;
pub(crate) mod firewall;
pub(crate) mod flannel;
pub(crate) mod ipam;
pub(crate) mod loopback;
pub(crate) mod portmap;
pub(crate) mod tuning;

use std::io;

use crate::contract::json::{Json, Object, object};
use crate::contract::{Attachment, Call, Code, Failure, Verb, Version};

/// The release of the reference plugins whose behaviour ours have.
pub(crate) const REFERENCE: &str = "v1.9.1";

/// A plugin: a name by which the program is called, and what each verb does under it.
pub(crate) struct Plugin {
    pub(crate) name: &'static str,
    /// Makes the attachment, or what a chained plugin adds to the one in `prevResult`, and yields the whole of it.
    /// Undoes what it did when it fails.
    pub(crate) add: fn(&Call) -> Result<Attachment, Failure>,
    /// Removes what ADD made; what is already gone is not an error.
    pub(crate) del: fn(&Call) -> Result<(), Failure>,
    /// Whether all that ADD made is there.
    pub(crate) check: fn(&Call) -> Result<(), Failure>,
    /// Whether an ADD would succeed. The failure's code is made 50 unless it is 51.
    pub(crate) status: fn(&Call) -> Result<(), Failure>,
    /// Removes what belongs to no attachment of [`Call::valid`] any more.
    pub(crate) gc: fn(&Call) -> Result<(), Failure>,
}

/// The document of a call, or its failure with the version to report it in.
pub(crate) fn answer(
    plugin: &Plugin,
    command: &str,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Option<Object>, (Failure, Version)> {
    let early = |failure| (failure, Version::NEWEST);
    let verb = Verb::parse(command).map_err(early)?;
    if verb == Verb::Version {
        return Ok(Some(versions()));
    }
    let call = Call::read(verb, variable, &mut io::stdin().lock()).map_err(early)?;
    run(plugin, &call).map_err(|failure| (failure, call.version))
}

fn run(plugin: &Plugin, call: &Call) -> Result<Option<Object>, Failure> {
    let done = match call.verb {
        Verb::Add => return (plugin.add)(call)?.document(call.version).map(Some),
        Verb::Version => return Ok(Some(versions())),
        Verb::Del => (plugin.del)(call),
        Verb::Check => (plugin.check)(call),
        Verb::Status => (plugin.status)(call).map_err(Failure::into_status),
        Verb::Gc => (plugin.gc)(call),
    };
    done.map(|()| None)
}

/// The same for every configuration, which therefore is not waited for.
fn versions() -> Object {
    let all: Vec<Json> = Version::ALL.into_iter().map(|version| version.as_str().into()).collect();
    object([("cniVersion", Version::NEWEST.as_str().into()), ("supportedVersions", all.into())])
}

/// A name that is not in the table.
pub(crate) fn unknown(name: &str, known: &str) -> Failure {
    Failure::new(Code::Environment, format!("there is no plugin {name:?} in this program"))
        .details(format!("it is called by one of the names {known}"))
}
