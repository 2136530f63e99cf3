//! The recorder in the daemon's shell.

use std::path::Path;

use tracing::{info, warn};

use super::clock;
use crate::core::{Effect, Input, NodeCore, Tick};
use crate::recorder::{Recorder, Ring};

/// Records what passes between the shell and the core. A failure of the recorder is logged once, and the daemon goes on.
pub(crate) struct Tap(Option<Recorder<Ring>>);

impl Tap {
    /// Opens the file for a daemon that starts now, where the settings name one.
    pub(crate) fn open(path: Option<&Path>, now: Tick, core: &NodeCore) -> Self {
        let Some(path) = path else { return Self(None) };
        match Ring::open(path) {
            Ok(ring) => {
                info!("recording to {} (flannelctl events)", path.display());
                let mut recorder = Recorder::new(ring, clock::wall);
                recorder.start(now, core);
                Self(Some(recorder))
            }
            Err(error) => {
                warn!("nothing is recorded: {}: {error}", path.display());
                Self(None)
            }
        }
    }

    /// Hands an input to the core; no input is a tick.
    pub(crate) fn handle(&mut self, core: &mut NodeCore, now: Tick, input: Option<Input>) -> Vec<Effect> {
        let Some(recorder) = &mut self.0 else {
            return match input {
                Some(input) => core.handle(now, input),
                None => core.tick(now),
            };
        };
        let effects = recorder.handle(core, now, input);
        if let Some(error) = recorder.failure() {
            warn!("nothing is recorded from here on: {error}");
            self.0 = None;
        }
        effects
    }
}
