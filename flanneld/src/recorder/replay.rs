//! Runs recorded inputs through the same core, and compares the decisions.

use std::io;
use std::time::Duration;

use super::{Did, Entry, InputRecord, Known, Origin, Reader};
use crate::core::{NodeCore, Tick};

/// Replays a file.
pub struct Replay {
    reader: Reader,
    running: Result<Box<Running>, String>,
}

struct Running {
    core: NodeCore,
    known: Known,
}

/// One entry, replayed.
#[derive(Debug)]
pub enum Step {
    /// A run begins, or goes on.
    Start {
        /// When, since 1970.
        wall: Duration,
        /// The version that recorded it.
        program: String,
        /// The daemon started here.
        new: bool,
        /// Why there is no replay from here, if there is none.
        problem: Option<String>,
    },
    /// An input, and what the core decided.
    Input {
        /// When, since 1970.
        wall: Duration,
        /// When, since boot.
        at: Tick,
        /// The input, in a few words.
        received: String,
        /// Failed steps, as lines.
        failures: Vec<String>,
        /// The decision compared with the recorded one.
        comparison: Comparison,
    },
    /// Lines that can't be read.
    Damaged(usize),
}

/// A decision compared with the recorded one.
#[derive(Debug, PartialEq, Eq)]
pub enum Comparison {
    /// The same.
    Same(Vec<Did>),
    /// Another one.
    Differs {
        /// What it decides now.
        now: Vec<Did>,
        /// What it decided then.
        then: Vec<Did>,
    },
    /// The decision of then is not on file: the daemon was killed, or writes it at this moment.
    Unknown(Vec<Did>),
    /// There is no replay here, for this reason.
    Impossible(String),
}

impl Replay {
    /// Replays what is read.
    pub fn new(reader: Reader) -> Self {
        Self { reader, running: Err("the file does not begin with a start".to_owned()) }
    }

    /// The core as it is after the last step.
    pub fn into_core(self) -> Option<NodeCore> {
        self.running.ok().map(|running| running.core)
    }

    /// The next step.
    pub fn step(&mut self) -> io::Result<Option<Step>> {
        Ok(self.reader.entry()?.map(|entry| match entry {
            Entry::Start { wall, program, from } => self.start(wall, program, from),
            Entry::Damaged(lines) => {
                self.running = Err(format!("{lines} damaged lines before it"));
                Step::Damaged(lines)
            }
            Entry::Input { wall, at, received, did } => self.received(wall, at, *received, did),
        }))
    }

    fn start(&mut self, wall: Duration, program: String, from: Result<Origin, String>) -> Step {
        let new = matches!(from, Ok(Origin::Settings(_)));
        self.running = from
            .and_then(|from| match from {
                Origin::Settings(settings) => Ok(NodeCore::new(*settings)),
                Origin::Core(json) => NodeCore::restored(json.get())
                    .map_err(|error| format!("this version can't take over what {program} knew: {error}")),
            })
            .map(|core| Box::new(Running { core, known: Known::default() }));
        Step::Start { wall, program, new, problem: self.running.as_ref().err().cloned() }
    }

    fn received(
        &mut self,
        wall: Duration,
        at: Tick,
        received: InputRecord<'static>,
        then: Option<Vec<Did>>,
    ) -> Step {
        let (text, failures) = (received.to_string(), received.failures().to_vec());
        let comparison = match &mut self.running {
            Err(why) => Comparison::Impossible(why.clone()),
            Ok(running) => match received.input(&mut running.known) {
                Err(why) => {
                    self.running = Err(why.clone());
                    Comparison::Impossible(why)
                }
                Ok(input) => {
                    let effects = match input {
                        Some(input) => running.core.handle(at, input),
                        None => running.core.tick(at),
                    };
                    let now = Did::all(&effects);
                    match then {
                        None => Comparison::Unknown(now),
                        Some(then) if then == now => Comparison::Same(now),
                        Some(then) => Comparison::Differs { now, then },
                    }
                }
            },
        };
        Step::Input { wall, at, received: text, failures, comparison }
    }
}
