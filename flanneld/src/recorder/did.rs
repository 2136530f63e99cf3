//! What the core decided, as texts that can be read and compared.

use std::fmt::Write as _;

use backends::Plan;
use backends::local::hash::Fnv64;
use backends::plane::PlaneWish;
use serde::{Deserialize, Serialize};
use subnet_lease::{Claim, SubnetEnv};

use crate::core::{Effect, Readiness};

/// More than all decisions about one input ever take, in bytes.
pub(super) const MOST: u64 = 64 << 10;
/// Steps of a plan that are written down; of a longer one only the first are. Replaying it brings back all.
const STEPS: usize = 40;
/// The longest text that is kept whole, in bytes.
const TEXT: usize = 1 << 10;

/// One decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Did {
    /// To change the kernel.
    Plan(PlanNote),
    /// Anything else, in words.
    #[serde(untagged)]
    Text(String),
}

/// A plan as far as it is written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanNote {
    /// How many steps create, replace and delete.
    pub counts: (usize, usize, usize),
    /// Equal for equal plans: a checksum of all its lines.
    pub sum: String,
    /// The first steps.
    pub steps: Vec<String>,
}

impl Did {
    /// What these effects say.
    pub fn all(effects: &[Effect]) -> Vec<Self> {
        effects.iter().filter_map(Self::of).collect()
    }

    /// None for what follows from the input alone.
    fn of(effect: &Effect) -> Option<Self> {
        let text = match effect {
            Effect::Listen(_) | Effect::Share(_) => return None,
            Effect::Apply(plan) => return Some(Self::Plan(PlanNote::of(plan))),
            Effect::ReadHost => "read the host".to_owned(),
            Effect::ReadOwn(_) => "read our own".to_owned(),
            Effect::Claim(claim) => claimed(claim),
            Effect::Plane(wishes) => steered(wishes),
            Effect::Publish(env) => published(env),
            Effect::Remember(memory) => {
                format!("remember {} and {} peers", memory.own.subnets, memory.peers.len())
            }
            Effect::Withdraw(reason) => format!("withdraw subnet.env: {reason}"),
            Effect::Announce(readiness) => announced(readiness),
            Effect::Exit(code) => format!("exit {}", code.code()),
        };
        Some(Self::Text(bounded(text)))
    }
}

impl PlanNote {
    fn of(plan: &Plan) -> Self {
        let mut sum = Fnv64::default();
        let steps = plan.ops.iter().take(STEPS).map(|op| bounded(op.to_string())).collect();
        // A checksum has no error to return.
        let _ = write!(sum, "{plan}");
        Self { counts: plan.counts(), sum: sum.to_string(), steps }
    }

    /// Steps that were not written down.
    pub fn left_out(&self) -> usize {
        let (created, replaced, deleted) = self.counts;
        created.saturating_add(replaced).saturating_add(deleted).saturating_sub(self.steps.len())
    }
}

fn claimed(claim: &Claim) -> String {
    let before = claim.previous.map_or_else(|| "any subnet".to_owned(), |subnets| subnets.to_string());
    let mut text = format!("claim {before} at {} as {:?}", claim.public, claim.attrs.kind);
    for data in [&claim.attrs.v4, &claim.attrs.v6].into_iter().flatten() {
        let _ = write!(text, " {data}");
    }
    text
}

/// A digest stands for the rows: there is one for each peer.
fn steered(wishes: &[PlaneWish]) -> String {
    let wish = |wish: &PlaneWish| {
        let mut sum = Fnv64::default();
        for (row, value) in &wish.rows {
            // A checksum has no error to return.
            let _ = writeln!(sum, "{row}={value}");
        }
        format!("{} {} rows ({sum})", wish.backend, wish.rows.len())
    };
    let each: Vec<String> = wishes.iter().map(wish).collect();
    format!("planes: {}", if each.is_empty() { "none".to_owned() } else { each.join(", ") })
}

fn published(env: &SubnetEnv) -> String {
    format!("publish {}", env.text().trim_end().replace("FLANNEL_", "").replace('\n', " "))
}

fn announced(readiness: &Readiness) -> String {
    let word = if readiness.ready { "ready" } else { "not ready" };
    if readiness.reasons.is_empty() {
        word.to_owned()
    } else {
        format!("{word}: {}", readiness.reasons.join("; "))
    }
}

/// A long text as its beginning and a checksum of the whole.
pub(super) fn bounded(mut text: String) -> String {
    if text.len() > TEXT {
        let mut sum = Fnv64::default();
        let _ = sum.write_str(&text);
        let end = (0..=TEXT).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        let _ = write!(text, "… ({sum})");
    }
    text
}
