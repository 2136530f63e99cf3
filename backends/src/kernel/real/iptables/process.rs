//! One program from start to end, within a time.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use crate::kernel::KernelError;

/// No program may take longer. Ours: 20,000 rules are printed within half a second.
const PATIENCE: Duration = Duration::from_secs(10);
/// More than this is not read (bytes). Ours: that of 20,000 rules is some three million.
const MOST: u64 = 64 << 20;

/// Runs a program with this input and returns what it printed; an exit code other than 0 is an error with its words.
pub(super) fn run(program: &Path, arguments: &[&str], input: &str) -> Result<String, KernelError> {
    let name = program.file_name().map_or_else(|| program.to_string_lossy(), |name| name.to_string_lossy());
    let failed = |said: String| KernelError::Program { program: name.clone().into_owned(), said };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
    let (said, hears) = channel();
    write(&mut child, input);
    read(child.stdout.take(), 0, said.clone());
    read(child.stderr.take(), 1, said);
    let mut texts = [String::new(), String::new()];
    for _ in 0..2 {
        let Ok((which, text)) = hears.recv_timeout(PATIENCE) else {
            // It may have ended in this moment; then there is nothing to kill.
            let _ = child.kill();
            let _ = child.wait();
            return Err(failed(format!("no end after {PATIENCE:?}")));
        };
        texts[which] = text;
    }
    let [printed, complained] = texts;
    match child.wait() {
        Ok(status) if status.success() => Ok(printed),
        Ok(status) => Err(failed(words(&complained).unwrap_or_else(|| status.to_string()))),
        Err(error) => Err(failed(error.to_string())),
    }
}

/// A thread of its own: the program may print before it has read everything. One that ends early says why itself.
fn write(child: &mut Child, input: &str) {
    let (stdin, input) = (child.stdin.take(), input.to_owned());
    if let Some(mut stdin) = stdin {
        thread::spawn(move || stdin.write_all(input.as_bytes()));
    }
}

fn read<R: Read + Send + 'static>(pipe: Option<R>, which: usize, said: Sender<(usize, String)>) {
    thread::spawn(move || {
        let mut text = Vec::new();
        // What could be read counts; the exit code tells the rest.
        let _ = pipe.map(|pipe| pipe.take(MOST).read_to_end(&mut text));
        let _ = said.send((which, String::from_utf8_lossy(&text).into_owned()));
    });
}

/// The first lines of a complaint as one.
fn words(text: &str) -> Option<String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("Try `"));
    let said: Vec<_> = lines.take(3).collect();
    (!said.is_empty()).then(|| said.join("; "))
}
