//! The recorder: every input of the core and every decision, written to a file as it happens. So a fault can be studied and
//! run again later, on any machine, without a network.
//!
//! ```text
//!   Input ──▶ InputRecord ─ a line ─▶ Tape ──▶ events ── full ──▶ events.1
//!     │         (differences)          ▲          │
//!     ▼                                │          ├─▶ flannelctl events   what happened, who did it, what was done
//!   NodeCore ── Effects ────────▶ Did ─┘          └─▶ flannelctl replay   the same inputs through the same core
//! ```
//!
//! A record is one line of JSON. An input is on file before the core handles it, so an input that kills the daemon is there,
//! too. A dump, the host's facts and a snapshot of the store are written as the difference to the one before. Each file
//! begins with what a replay needs: the settings of a run, or the core itself as it was in the middle of a run.
//!
//! Why, and what it costs: `docs/recorder.md`.

mod delta;
mod did;
mod input;
mod line;
mod reader;
mod replay;
mod tape;
pub mod text;

use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use did::{Did, PlanNote};
pub use input::{Applied, InputRecord, Known};
pub use reader::{Entry, Origin, Reader};
pub use replay::{Comparison, Replay, Step};
pub use tape::{FILE_BYTES, Ring, Tape, older};

use crate::core::{Effect, Input, NodeCore, Settings, Tick};
use input::{Bases, name};

/// The version of the format; a reader refuses any other.
const FORMAT: u32 = 1;
/// A clock that was set by more than this is noted.
const CLOCK_SLACK: Duration = Duration::from_secs(1);

/// One line. `C` is a core: one to write down, or the text of one.
#[allow(clippy::large_enum_variant, reason = "one lives at a time, on its way to or from the file")]
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Record<'a, C> {
    Start(Start<C>),
    /// The clock was set: it showed so much at that tick.
    Clock(#[serde(with = "nanos")] Tick, #[serde(with = "nanos")] Duration),
    #[serde(rename = "heard")]
    Input(#[serde(with = "nanos")] Tick, InputRecord<'a>),
    /// What the core decided about the last input; absent when that was nothing.
    Did(Vec<Did>),
}

/// From here on there is a replay.
#[derive(Debug, Serialize, Deserialize)]
struct Start<C> {
    format: u32,
    program: String,
    #[serde(with = "nanos")]
    at: Tick,
    /// Time since 1970.
    #[serde(with = "nanos")]
    wall: Duration,
    from: From<C>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum From<C> {
    /// A daemon started.
    Settings(Box<Settings>),
    /// A daemon goes on; this is all it knows.
    Core(C),
    /// A daemon goes on, and what it knows is too large.
    Nothing,
}

/// Records the inputs of a core and what it decides.
pub struct Recorder<T> {
    tape: T,
    wall: fn() -> Duration,
    bases: Bases,
    /// The clock at boot, as noted last.
    boot: Duration,
    failed: Option<io::Error>,
}

impl<T: Tape> Recorder<T> {
    /// Writes on this tape; `wall` returns the time since 1970.
    pub fn new(tape: T, wall: fn() -> Duration) -> Self {
        Self { tape, wall, bases: Bases::default(), boot: Duration::ZERO, failed: None }
    }

    /// A daemon starts.
    pub fn start(&mut self, now: Tick, core: &NodeCore) {
        self.failed = None;
        let started = self.begin(now, From::Settings(Box::new(core.settings().clone())));
        self.note(started.map(drop));
    }

    /// Hands an input to the core, and records both the input and the decision; no input is a tick.
    pub fn handle(&mut self, core: &mut NodeCore, now: Tick, input: Option<Input>) -> Vec<Effect> {
        if self.failed.is_none() {
            let recorded = self.record(core, now, input.as_ref());
            self.note(recorded);
        }
        let effects = match input {
            Some(input) => core.handle(now, input),
            None => core.tick(now),
        };
        let did = if self.failed.is_none() { Did::all(&effects) } else { Vec::new() };
        if !did.is_empty() {
            let did = line::write(&mut self.tape, &Record::<()>::Did(did), 0);
            self.note(did.map(drop));
        }
        effects
    }

    /// Why nothing is recorded any more.
    pub fn failure(&self) -> Option<&io::Error> {
        self.failed.as_ref()
    }

    /// The tape.
    pub fn into_tape(self) -> T {
        self.tape
    }

    fn note(&mut self, result: io::Result<()>) {
        self.failed = result.and_then(|()| self.tape.flush()).err();
    }

    fn record(&mut self, core: &NodeCore, now: Tick, input: Option<&Input>) -> io::Result<()> {
        let boot = (self.wall)().saturating_sub(now);
        if boot.abs_diff(self.boot) > CLOCK_SLACK {
            self.boot = boot;
            self.append(&Record::Clock(now, boot + now))?;
        }
        // Somebody may have deleted our file together with subnet.env. No other input is a reason to look at the disk.
        if matches!(input, Some(Input::File)) && self.tape.renew()? {
            self.go_on(now, core)?;
        }
        let before = self.tape.room();
        if self.append_input(core, now, input)? {
            return Ok(());
        }
        // An input that does not fit into a file less than half full would not fit into a new one either.
        if before < FILE_BYTES / 2 {
            self.tape.turn()?;
            self.go_on(now, core)?;
            if self.append_input(core, now, input)? {
                return Ok(());
            }
        }
        self.bases = Bases::default();
        self.append(&Record::Input(now, InputRecord::TooLarge(name(input).to_owned()))).map(drop)
    }

    /// A new file begins in the middle of a run.
    fn go_on(&mut self, now: Tick, core: &NodeCore) -> io::Result<()> {
        if !self.begin(now, From::Core(core))? {
            self.begin(now, From::Nothing)?;
        }
        Ok(())
    }

    fn begin(&mut self, now: Tick, from: From<&NodeCore>) -> io::Result<bool> {
        let wall = (self.wall)();
        self.bases = Bases::default();
        self.boot = wall.saturating_sub(now);
        let program = env!("CARGO_PKG_VERSION").to_owned();
        self.append(&Record::Start(Start { format: FORMAT, program, at: now, wall, from }))
    }

    fn append_input(&mut self, core: &NodeCore, now: Tick, input: Option<&Input>) -> io::Result<bool> {
        let record = InputRecord::of(input, core, &mut self.bases);
        self.append(&Record::Input(now, record))
    }

    /// Whether it fitted, with a decision about it.
    fn append(&mut self, record: &Record<'_, &NodeCore>) -> io::Result<bool> {
        line::write(&mut self.tape, record, did::MOST)
    }
}

/// A time as whole nanoseconds: five hundred years of them fit.
mod nanos {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_nanos)
    }
}
