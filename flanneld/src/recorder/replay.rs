//! The recorded inputs through the same core, and what it decides now.

use std::io;
use std::time::Duration;

use super::{Did, Entry, Heard, Known, Origin, Reader};
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
    /// The core heard something and decided this.
    Heard {
        /// When, since 1970.
        wall: Duration,
        /// When, since boot.
        at: Tick,
        /// What it heard, in a few words.
        heard: String,
        /// Failed steps, as lines.
        failures: Vec<String>,
        /// How that compares with what is on file.
        verdict: Verdict,
    },
    /// Lines that can't be read.
    Damaged(usize),
}

/// A decision compared with the recorded one.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The same.
    Same(Vec<Did>),
    /// Another one.
    Differs {
        /// What it decides now.
        now: Vec<Did>,
        /// What it decided then.
        then: Vec<Did>,
    },
    /// What it decided then is not on file: the daemon was killed, or writes at this moment.
    Unknown(Vec<Did>),
    /// Nothing can be replayed here, for this reason.
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
            Entry::Heard { wall, at, heard, did } => self.heard(wall, at, *heard, did),
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

    fn heard(&mut self, wall: Duration, at: Tick, heard: Heard<'static>, then: Option<Vec<Did>>) -> Step {
        let (text, failures) = (heard.to_string(), heard.failures().to_vec());
        let verdict = match &mut self.running {
            Err(why) => Verdict::Impossible(why.clone()),
            Ok(running) => match heard.input(&mut running.known) {
                Err(why) => {
                    self.running = Err(why.clone());
                    Verdict::Impossible(why)
                }
                Ok(input) => {
                    let effects = match input {
                        Some(input) => running.core.handle(at, input),
                        None => running.core.tick(at),
                    };
                    let now = Did::all(&effects);
                    match then {
                        None => Verdict::Unknown(now),
                        Some(then) if then == now => Verdict::Same(now),
                        Some(then) => Verdict::Differs { now, then },
                    }
                }
            },
        };
        Step::Heard { wall, at, heard: text, failures, verdict }
    }
}
