//! The output for a person: one line per step, rewritten while it runs on a terminal, plain otherwise.

use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

const FRAMES: [char; 10] = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏'];
const WIDTH: usize = 72;

/// Standard output, as a place for steps and their results.
#[derive(Debug, Clone, Copy)]
pub struct Screen {
    live: bool,
    colour: bool,
}

impl Screen {
    /// Rewrites lines only on a terminal, and has colours unless `NO_COLOR` is set.
    pub fn new() -> Self {
        let live = io::stdout().is_terminal() && std::env::var_os("TERM").is_some_and(|term| term != "dumb");
        Self { live, colour: live && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) }
    }

    /// Does one step and prints how long it took. On a terminal the name is printed first, with an animation.
    pub fn step<T: Send>(&self, what: &str, job: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let start = Instant::now();
        let result = if self.live { turning(what, job) } else { job() };
        let took = format!("{:>6} ms", start.elapsed().as_millis());
        let mark = match &result {
            Ok(_) => self.paint("32", if self.live { "✓" } else { "ok" }),
            Err(_) => self.paint("31", if self.live { "✗" } else { "FAILED" }),
        };
        let clear = if self.live { "\r\x1b[K" } else { "" };
        self.say(&format!("{clear}{mark} {what:WIDTH$} {}", self.paint("2", &took)));
        result
    }

    /// One line.
    pub fn say(&self, line: &str) {
        // An error means that the reader closed our output.
        let _ = writeln!(io::stdout(), "{line}");
    }

    /// Lines that belong to the step before.
    pub fn detail(&self, text: &str) {
        for line in text.lines() {
            self.say(&format!("    {}", cut(line, 96)));
        }
    }

    /// Makes a figure bold.
    pub fn strong(&self, text: &str) -> String {
        self.paint("1", text)
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

impl Default for Screen {
    fn default() -> Self {
        Self::new()
    }
}

fn turning<T: Send>(what: &str, job: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let (done, end) = channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            for frame in FRAMES.iter().cycle() {
                let mut out = io::stdout();
                let _ = write!(out, "\r\x1b[K{frame} {what}").and_then(|()| out.flush());
                if end.recv_timeout(Duration::from_millis(80)) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        });
        let result = job();
        drop(done);
        result
    })
}

/// A line of at most `width` characters.
fn cut(line: &str, width: usize) -> String {
    if line.chars().count() <= width {
        return line.to_owned();
    }
    line.chars().take(width - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_is_cut_and_says_so() {
        assert_eq!(cut("abcdef", 6), "abcdef");
        assert_eq!(cut("abcdefg", 6), "abcde…");
    }
}
