//! `flannelctl events`: what a daemon received and did, from its recorded file. Needs neither store nor daemon.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use super::Form;
use crate::config::NodeConfig;
use crate::exit::{Exit, Failure};
use crate::recorder::text::{below, line, since, time};
use crate::recorder::{Did, Entry, InputRecord, Reader};
use crate::shell::clock;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Only what is newer: 10m, 2h, 3d, or a time such as 2026-11-21T10:26:07Z.
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Go on printing what the daemon records from now on.
    #[arg(short, long)]
    follow: bool,
    /// The recorded file; default: that of the daemon on this host.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

pub(super) fn run(
    arguments: &Arguments,
    form: Form,
    config: &NodeConfig,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let from = arguments.since.as_deref().map_or(Some(Duration::ZERO), |text| since(text, clock::wall()));
    let wrong = || Failure::new(Exit::Invalid, "--since: neither a span (10m, 2h, 3d) nor a time (UTC)");
    let from = from.ok_or_else(wrong)?;
    let path = arguments.file.as_deref().or(config.record_file.as_deref());
    let path =
        path.ok_or_else(|| Failure::new(Exit::Invalid, "nothing is recorded here (--record-file=off)"))?;
    let both = arguments.file.is_none();
    let mut page = Page { out, form, from, quiet: None };
    if arguments.follow {
        let mut reader = Reader::follow(path, both).map_err(|error| Failure::of(path, &error))?;
        return written(page.print(&mut reader), path);
    }
    written(page.print(&mut open(path, both)?), path)
}

/// Opens a recorded file; the daemon's own with its older half.
pub(super) fn open(path: &Path, both: bool) -> Result<Reader, Failure> {
    Reader::open(path, both).map_err(|error| Failure::of(path, &error))
}

/// `flannelctl … | head` is no failure.
pub(super) fn written(result: io::Result<()>, path: &Path) -> Result<(), Failure> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::of(path, &error)),
        _ => Ok(()),
    }
}

struct Page<'a> {
    out: &'a mut dyn Write,
    form: Form,
    from: Duration,
    /// When the last of some looks was that found nothing to do, and how many they were.
    quiet: Option<(Duration, usize)>,
}

impl Page<'_> {
    fn print(&mut self, reader: &mut Reader) -> io::Result<()> {
        while let Some(entry) = reader.entry()? {
            if self.form == Form::Json { self.as_json(&entry) } else { self.as_lines(&entry) }?;
            // Whoever follows sees it now.
            self.out.flush()?;
        }
        self.print_quiet()?;
        self.out.flush()
    }

    fn as_lines(&mut self, entry: &Entry) -> io::Result<()> {
        match entry {
            Entry::Start { wall, .. } | Entry::Input { wall, .. } if *wall < self.from => Ok(()),
            Entry::Start { wall, program, from } => {
                self.print_quiet()?;
                let word = if entry.is_new_run() { "starts" } else { "goes on in a new file" };
                write!(self.out, "{}", line(*wall, &format!("flanneld {program} {word}")))?;
                from.as_ref()
                    .err()
                    .map_or(Ok(()), |why| write!(self.out, "{}", below(&format!("no replay: {why}"))))
            }
            Entry::Input { wall, received, did, .. } => {
                let did = did.as_deref().unwrap_or_default();
                if received.is_quiet() && did.iter().all(Did::is_quiet) {
                    let looks = usize::from(matches!(**received, InputRecord::Own { .. }));
                    self.quiet = Some((*wall, self.quiet.map_or(0, |(_, before)| before) + looks));
                    return Ok(());
                }
                self.print_quiet()?;
                write!(self.out, "{}", line(*wall, &received.to_string()))?;
                let failures = received.failures().iter().map(|failure| format!("failed: {failure}"));
                let did =
                    did.iter().filter(|did| !matches!(did, Did::Text(text) if text.starts_with("read ")));
                for text in failures.chain(did.map(ToString::to_string)) {
                    write!(self.out, "{}", below(&text))?;
                }
                Ok(())
            }
            Entry::Damaged(lines) => writeln!(self.out, "    ({lines} damaged lines)"),
        }
    }

    fn print_quiet(&mut self) -> io::Result<()> {
        match self.quiet.take() {
            None | Some((_, 0)) => Ok(()),
            Some((wall, 1)) => write!(self.out, "{}", line(wall, "a look that found nothing to do")),
            Some((wall, looks)) => {
                write!(
                    self.out,
                    "{}",
                    line(wall, &format!("the last of {looks} looks that found nothing to do"))
                )
            }
        }
    }

    fn as_json(&mut self, entry: &Entry) -> io::Result<()> {
        let value = match entry {
            Entry::Start { wall, .. } | Entry::Input { wall, .. } if *wall < self.from => return Ok(()),
            Entry::Start { wall, program, from } => json!({
                "time": time(*wall), "program": program, "starts": entry.is_new_run(), "problem": from.as_ref().err(),
            }),
            Entry::Input { wall, at, received, did } => json!({
                "time": time(*wall), "tick": at.as_secs_f64(), "heard": received.to_string(), "input": received, "did": did,
            }),
            Entry::Damaged(lines) => json!({ "damaged": lines }),
        };
        writeln!(self.out, "{value}")
    }
}
