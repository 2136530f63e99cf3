//! What befalls a world, as a value: drawn from a seed, read from a file, lived through.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backends::Op;
use serde::{Deserialize, Serialize};

use super::failure::caught;
use super::{Failure, Shape, Trouble, World, shrink};

/// A world and all that befalls it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Scenario {
    /// What it shows, for who reads the file.
    #[serde(default)]
    pub about: String,
    /// How the world is.
    pub shape: Shape,
    /// For delays, losses and addresses.
    pub seed: u64,
    /// Each ends when everything is quiet, with a look at all that must hold.
    pub acts: Vec<Vec<Strike>>,
    /// A bug to be found: steps that are answered and not done.
    #[serde(skip)]
    pub broken: Option<fn(&Op) -> bool>,
}

/// One trouble of an act.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Strike {
    /// Milliseconds from the beginning of the act.
    pub at: u64,
    /// Whom.
    pub node: usize,
    /// What.
    pub trouble: Trouble,
}

impl Scenario {
    /// A world in which nothing happens yet.
    pub fn new(shape: &Shape, seed: u64) -> Self {
        Self { about: String::new(), shape: shape.clone(), seed, acts: Vec::new(), broken: None }
    }

    /// Begins another act, with these strikes.
    #[must_use]
    pub fn act(mut self, strikes: impl IntoIterator<Item = (u64, usize, Trouble)>) -> Self {
        self.acts.push(Vec::new());
        self.and(strikes)
    }

    /// More strikes in the last act.
    #[must_use]
    pub fn and(mut self, strikes: impl IntoIterator<Item = (u64, usize, Trouble)>) -> Self {
        let strikes = strikes.into_iter().map(|(at, node, trouble)| Strike { at, node, trouble });
        self.acts.last_mut().expect("an act was begun").extend(strikes);
        self
    }

    /// The world before anything happens.
    pub fn world(&self) -> World {
        let mut world = World::new(self.shape.clone(), self.seed);
        world.broken = self.broken;
        world
    }

    /// Lives through it.
    pub fn run(&self) -> Result<World, Failure> {
        self.run_in(self.world())
    }

    /// Lives through it in a world that was prepared.
    pub fn run_in(&self, mut world: World) -> Result<World, Failure> {
        caught(move || {
            for act in &self.acts {
                for strike in act {
                    world.trouble(strike.node, Duration::from_millis(strike.at), strike.trouble.clone());
                }
                world.check();
            }
            world
        })
    }

    /// Lives through it. Where something does not hold, the scenario is made as small as can be within half a minute,
    /// written down, and the test fails.
    pub fn prove(&self) -> World {
        self.run().unwrap_or_else(|failure| {
            let (small, failure) = shrink(self, failure);
            let test = std::thread::current().name().unwrap_or("world").to_owned();
            let file = folder().join(format!("{}-{}.json", test.replace("::", "-"), self.seed));
            small.write(&file);
            panic!(
                "{failure}\n\nagain, whole: WORLD_SEED={} cargo test -p tests --test pure {test}\nagain, small: WORLD_FILE={} \
                 cargo test -p tests --test pure world::every_scenario\nto keep it: copy that file to tests/golden/worlds/",
                self.seed,
                file.display()
            )
        })
    }

    /// Writes it down.
    pub fn write(&self, file: &Path) {
        let mut small = self.clone();
        small.acts.iter_mut().for_each(|act| act.sort_by_key(|s| s.at));
        fs::create_dir_all(file.parent().expect("a file is in a folder")).expect("the folder of scenarios");
        fs::write(file, small.to_string()).expect("the scenario's file");
    }

    /// All strikes that are not starts.
    pub fn troubles(&self) -> usize {
        self.acts.iter().flatten().filter(|s| s.trouble != Trouble::Start).count()
    }
}

impl std::fmt::Display for Scenario {
    /// As JSON, one line for each strike.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let line = |value: &dyn Fn() -> serde_json::Result<String>| value().map_err(|_| std::fmt::Error);
        writeln!(f, "{{\n  \"about\": {},", line(&|| serde_json::to_string(&self.about))?)?;
        writeln!(f, "  \"shape\": {},", line(&|| serde_json::to_string(&self.shape))?)?;
        writeln!(f, "  \"seed\": {},\n  \"acts\": [", self.seed)?;
        for (n, act) in self.acts.iter().enumerate() {
            let strikes: Result<Vec<_>, _> = act.iter().map(|s| line(&|| serde_json::to_string(s))).collect();
            let comma = if n + 1 < self.acts.len() { "," } else { "" };
            writeln!(f, "    [\n      {}\n    ]{comma}", strikes?.join(",\n      "))?;
        }
        writeln!(f, "  ]\n}}")
    }
}

/// Reads one.
pub fn in_file(file: &Path) -> Scenario {
    let text = fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

/// The seeds of a test: so many from the first one on, as many as `WORLD_SEEDS` says, or the one of `WORLD_SEED`.
pub fn seeds(from: u64, count: u64) -> Vec<u64> {
    let number = |name| std::env::var(name).ok().and_then(|s| s.parse::<u64>().ok());
    match number("WORLD_SEED") {
        Some(seed) => vec![seed],
        None => (from..from + number("WORLD_SEEDS").unwrap_or(count)).collect(),
    }
}

/// Where failed scenarios go: beside what cargo built.
fn folder() -> PathBuf {
    let built = std::env::current_exe().ok();
    let target = built.as_deref().and_then(|exe| exe.ancestors().nth(3));
    target.unwrap_or_else(|| Path::new("target")).join("worlds")
}

/// A net-conf as JSON in JSON, not as text.
pub(super) mod embedded {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
    use serde_json::Value;

    pub(in super::super) fn serialize<S: Serializer>(text: &str, to: S) -> Result<S::Ok, S::Error> {
        let value: Value = serde_json::from_str(text).map_err(ser::Error::custom)?;
        value.serialize(to)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
        serde_json::to_string(&Value::deserialize(from)?).map_err(de::Error::custom)
    }
}
