//! A recorded file, read front to back. Whatever is in it: a bounded amount of memory, and no panic.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde_json::value::RawValue;

use super::line::{self, Next};
use super::{Did, FILE_BYTES, FORMAT, From, InputRecord, Record, Start, older};
use crate::core::{Settings, Tick};

/// One entry of a file.
#[derive(Debug)]
pub enum Entry {
    /// A daemon started, or a file begins in the middle of a run.
    Start {
        /// When, since 1970.
        wall: Duration,
        /// Its version.
        program: String,
        /// Where a replay begins; why there is none from here.
        from: Result<Origin, String>,
    },
    /// An input of the core.
    Input {
        /// When, since 1970.
        wall: Duration,
        /// When, since boot.
        at: Tick,
        /// What.
        received: Box<InputRecord<'static>>,
        /// What the core decided; none when the file ends before the decision.
        did: Option<Vec<Did>>,
    },
    /// So many lines in a row can't be read.
    Damaged(usize),
}

/// Where a replay begins.
#[derive(Debug)]
pub enum Origin {
    /// At a start.
    Settings(Box<Settings>),
    /// In the middle of a run: a recorded core.
    Core(Box<RawValue>),
}

impl Entry {
    /// A daemon started here.
    pub fn is_new_run(&self) -> bool {
        matches!(self, Self::Start { from: Ok(Origin::Settings(_)), .. })
    }
}

type Line = Record<'static, Box<RawValue>>;

/// Reads records.
pub struct Reader {
    file: Box<dyn BufRead>,
    /// Read already: the line after a [`Record::Input`], unless that is its decision.
    ahead: Option<Next<Line>>,
    /// The clock at boot.
    boot: Duration,
}

/// No recorder writes more into one file, and the reader takes two.
const MOST: u64 = 4 * FILE_BYTES;

impl Reader {
    /// Reads a file, and before it the older half where `both` are wanted and there is one.
    pub fn open(path: &Path, both: bool) -> io::Result<Self> {
        // The newer one first: it may become the older one meanwhile, and then counts once.
        let newer = regular(path)?;
        let before = both.then(|| regular(&older(path)).ok()).flatten();
        let before = before.filter(|before| !same(before, &newer));
        let file: Box<dyn BufRead> = match before {
            Some(before) => Box::new(BufReader::new(before.chain(newer).take(MOST))),
            None => Box::new(BufReader::new(newer.take(MOST))),
        };
        Ok(Self::new(file))
    }

    /// The same, and waits at the end for later records, also of a new file. It never ends by itself.
    pub fn follow(path: &Path, both: bool) -> io::Result<Self> {
        let newer = Follow::open(path)?;
        let before = both.then(|| regular(&older(path)).ok()).flatten();
        let before = before.filter(|before| !same(before, &newer.file));
        Ok(Self::new(match before {
            Some(before) => Box::new(BufReader::new(before.take(MOST).chain(newer))),
            None => Box::new(BufReader::new(newer)),
        }))
    }

    /// Reads what was recorded in memory.
    pub fn of(bytes: Vec<u8>) -> Self {
        Self::new(Box::new(Cursor::new(bytes)))
    }

    fn new(file: Box<dyn BufRead>) -> Self {
        Self { file, ahead: None, boot: Duration::ZERO }
    }

    fn line(&mut self) -> io::Result<Next<Line>> {
        Ok(match line::read(&mut self.file)? {
            Next::End => Next::End,
            Next::Damaged => Next::Damaged,
            Next::Line(json) => serde_json::from_slice(&json).map_or(Next::Damaged, Next::Line),
        })
    }

    /// The next entry.
    pub fn entry(&mut self) -> io::Result<Option<Entry>> {
        loop {
            let line = match self.ahead.take() {
                Some(line) => line,
                None => self.line()?,
            };
            match line {
                Next::End => return Ok(None),
                Next::Damaged => return self.damaged().map(Some),
                Next::Line(Record::Start(start)) => return Ok(Some(self.start(start))),
                Next::Line(Record::Clock(at, wall)) => self.boot = wall.saturating_sub(at),
                Next::Line(Record::Input(at, received)) => return self.received(at, received).map(Some),
                // The input that it belongs to is damaged.
                Next::Line(Record::Did(_)) => {}
            }
        }
    }

    fn damaged(&mut self) -> io::Result<Entry> {
        let mut lines = 1;
        loop {
            match self.line()? {
                Next::Damaged => lines += 1,
                other => {
                    self.ahead = Some(other);
                    return Ok(Entry::Damaged(lines));
                }
            }
        }
    }

    fn start(&mut self, start: Start<Box<RawValue>>) -> Entry {
        self.boot = start.wall.saturating_sub(start.at);
        let from = match start.from {
            _ if start.format != FORMAT => Err(format!("its format is {}, not {FORMAT}", start.format)),
            From::Settings(settings) => Ok(Origin::Settings(settings)),
            From::Core(core) => Ok(Origin::Core(core)),
            From::Nothing => Err("what the daemon knew was too large to be kept".to_owned()),
        };
        Entry::Start { wall: start.wall, program: start.program, from }
    }

    fn received(&mut self, at: Tick, received: InputRecord<'static>) -> io::Result<Entry> {
        let did = match self.line()? {
            Next::Line(Record::Did(did)) => Some(did),
            other => {
                // When the next input follows at once, the core decided nothing about this one.
                let goes_on = matches!(other, Next::Line(Record::Input(..) | Record::Clock(..)));
                let goes_on = goes_on
                    || matches!(&other, Next::Line(Record::Start(s)) if !matches!(s.from, From::Settings(_)));
                self.ahead = Some(other);
                goes_on.then(Vec::new)
            }
        };
        Ok(Entry::Input { wall: self.boot.saturating_add(at), at, received: Box::new(received), did })
    }
}

/// A recorded file that somebody writes. At its end it waits for more; when another file takes its place, that one follows.
struct Follow {
    path: PathBuf,
    file: File,
    folder: Inotify,
}

impl Follow {
    fn open(path: &Path) -> io::Result<Self> {
        let folder = Inotify::init(InitFlags::IN_CLOEXEC)?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let changes = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVE;
        folder.add_watch(parent.unwrap_or_else(|| Path::new(".")), changes)?;
        Ok(Self { path: path.to_owned(), file: regular(path)?, folder })
    }
}

impl Read for Follow {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            // The next file is looked for first: what was written before it is then all there is to read here.
            let next = regular(&self.path).ok().filter(|next| !same(next, &self.file));
            match self.file.read(buffer)? {
                0 => {}
                read => return Ok(read),
            }
            match next {
                Some(next) => self.file = next,
                None => drop(self.folder.read_events()?),
            }
        }
    }
}

fn regular(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("not a file")) }
}

fn same(a: &File, b: &File) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |file: &File| file.metadata().map(|m| (m.dev(), m.ino())).ok();
    id(a) == id(b)
}
