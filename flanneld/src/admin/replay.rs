//! `flannelctl replay`: runs the recorded inputs of a daemon through the core of this program. Changes nothing.

use std::io::{self, Write};
use std::path::PathBuf;

use serde_json::{Value, json};

use super::Form;
use super::events::{open, written};
use crate::exit::{Exit, Failure};
use crate::recorder::text::{below, line, time};
use crate::recorder::{Comparison, Did, Replay, Step};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The recorded file.
    file: PathBuf,
    /// Print only what is decided differently.
    #[arg(long)]
    brief: bool,
}

/// How it went.
#[derive(Debug, Default)]
struct Tally {
    replayed: usize,
    differ: usize,
    impossible: usize,
    damaged: usize,
}

pub(super) fn run(arguments: &Arguments, form: Form, out: &mut dyn Write) -> Result<(), Failure> {
    let mut replay = Replay::new(open(&arguments.file, false)?);
    let mut tally = Tally::default();
    written(print(&mut replay, arguments.brief, form, &mut tally, out), &arguments.file)?;
    let Tally { replayed, differ, impossible, damaged } = tally;
    if replayed == 0 {
        let why = format!("{}: nothing in it can be replayed", arguments.file.display());
        return Err(Failure::new(Exit::Invalid, why));
    }
    let left = match (impossible, damaged) {
        (0, 0) => String::new(),
        _ => format!("; {impossible} could not be replayed, {damaged} lines are damaged"),
    };
    if differ > 0 {
        let why = format!("{differ} of {replayed} inputs are decided differently{left}");
        return Err(Failure::new(Exit::Failed, why));
    }
    let end = match form {
        Form::Json => {
            json!({ "replayed": replayed, "differ": 0, "impossible": impossible, "damaged": damaged })
                .to_string()
        }
        Form::Text => format!("{replayed} inputs, all decided as recorded{left}"),
    };
    written(writeln!(out, "{end}"), &arguments.file)
}

fn print(
    replay: &mut Replay,
    brief: bool,
    form: Form,
    tally: &mut Tally,
    out: &mut dyn Write,
) -> io::Result<()> {
    while let Some(step) = replay.step()? {
        tally.count(&step);
        let differs = matches!(step, Step::Input { comparison: Comparison::Differs { .. }, .. });
        if !brief || differs {
            match form {
                Form::Json => writeln!(out, "{}", as_json(&step))?,
                Form::Text => write!(out, "{}", as_lines(&step))?,
            }
        }
    }
    Ok(())
}

impl Tally {
    fn count(&mut self, step: &Step) {
        let (replayed, differ, impossible, damaged) = match step {
            Step::Start { .. } => (0, 0, 0, 0),
            Step::Damaged(lines) => (0, 0, 0, *lines),
            Step::Input { comparison: Comparison::Impossible(_), .. } => (0, 0, 1, 0),
            Step::Input { comparison: Comparison::Differs { .. }, .. } => (1, 1, 0, 0),
            Step::Input { .. } => (1, 0, 0, 0),
        };
        self.replayed += replayed;
        self.differ += differ;
        self.impossible += impossible;
        self.damaged += damaged;
    }
}

/// One object a line, as `events` prints them.
fn as_json(step: &Step) -> Value {
    let texts = |did: &[Did]| did.iter().map(ToString::to_string).collect::<Vec<_>>();
    match step {
        Step::Start { wall, program, new, problem } => {
            json!({ "time": time(*wall), "program": program, "starts": new, "problem": problem })
        }
        Step::Damaged(lines) => json!({ "damaged": lines }),
        Step::Input { wall, received, failures, comparison, .. } => {
            let failures: Vec<_> = failures.iter().map(ToString::to_string).collect();
            let mut object =
                json!({ "time": time(*wall), "heard": received.to_string(), "failures": failures });
            match comparison {
                Comparison::Same(did) => object["did"] = texts(did).into(),
                Comparison::Unknown(did) => object["now"] = texts(did).into(),
                Comparison::Differs { now, then } => {
                    (object["then"], object["now"]) = (texts(then).into(), texts(now).into());
                }
                Comparison::Impossible(why) => object["impossible"] = why.to_string().into(),
            }
            object
        }
    }
}

fn as_lines(step: &Step) -> String {
    match step {
        Step::Start { wall, program, new, problem } => {
            let word = if *new { "starts" } else { "goes on" };
            let problem = problem.iter().map(|why| below(&format!("no replay from here: {why}")));
            line(*wall, &format!("flanneld {program} {word}")) + &problem.collect::<String>()
        }
        Step::Damaged(lines) => format!("    ({lines} damaged lines)\n"),
        Step::Input { wall, received, failures, comparison, .. } => {
            let failures = failures.iter().map(|failure| below(&format!("failed: {failure}")));
            line(*wall, received) + &failures.collect::<String>() + &judged(comparison)
        }
    }
}

fn judged(comparison: &Comparison) -> String {
    let all = |did: &[Did]| did.iter().map(|did| below(&did.to_string())).collect::<String>();
    match comparison {
        Comparison::Same(did) => all(did),
        Comparison::Unknown(did) => all(did) + &below("(what it decided then is not on file)"),
        Comparison::Differs { now, then } => {
            let some = |did: &[Did]| if did.is_empty() { below("nothing") } else { all(did) };
            format!("  decided then:\n{}  decides now:\n{}", some(then), some(now))
        }
        Comparison::Impossible(why) => below(&format!("(no replay: {why})")),
    }
}
