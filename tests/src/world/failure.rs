//! What was found, caught on its way up so that the scenario can be made smaller.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any, set_hook, take_hook};
use std::sync::Once;

use flanneld::core::Tick;

use super::World;

/// Something did not hold.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What did not: a smaller scenario must break the same.
    pub rule: String,
    /// Where, if it was one node; `WORLD_TRACE` and `WORLD_RECORD` show that one's side.
    pub node: Option<usize>,
    /// When.
    pub at: Tick,
    /// What it looks like.
    pub what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] at {:?}", self.rule, self.at)?;
        self.node.map_or(Ok(()), |n| write!(f, " node {n}"))?;
        write!(f, ": {}", self.what)
    }
}

impl World {
    /// Ends the run.
    pub(super) fn fail(&self, rule: &str, node: Option<usize>, what: String) -> ! {
        panic_any(Failure { rule: rule.to_owned(), node, at: self.now, what })
    }
}

thread_local! {
    static CATCHING: Cell<bool> = const { Cell::new(false) };
    static SAID: RefCell<String> = const { RefCell::new(String::new()) };
}

/// What it returns, or how it failed: by a rule of the world, or by a panic of the product. Nothing is printed.
pub(super) fn caught<T>(live: impl FnOnce() -> T) -> Result<T, Failure> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |info| {
            if CATCHING.get() {
                SAID.set(info.to_string());
            } else {
                before(info);
            }
        }));
    });
    CATCHING.set(true);
    let result = catch_unwind(AssertUnwindSafe(live));
    CATCHING.set(false);
    result.map_err(failure)
}

fn failure(payload: Box<dyn Any + Send>) -> Failure {
    match payload.downcast::<Failure>() {
        Ok(failure) => *failure,
        Err(_) => Failure { rule: "panic".to_owned(), node: None, at: Tick::ZERO, what: SAID.take() },
    }
}
