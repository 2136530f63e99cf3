//! Programs that are run to their end, within a time and with an output of bounded size.

use std::env;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How much of a program is waited for and read.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// A program that runs longer is killed.
    pub time: Duration,
    /// A program that prints more bytes is killed.
    pub output: usize,
}

/// Why a program did not do what it was run for.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It could not be started, or its pipes failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It ran too long and was killed.
    #[error("it did not end within {0:?} and was killed")]
    Time(Duration),
    /// It printed too much and was killed.
    #[error("it printed more than {0} bytes and was killed")]
    Output(usize),
    /// It ended with an error.
    #[error("{words}")]
    Failed {
        /// Its exit code; none when a signal ended it.
        code: Option<i32>,
        /// The first lines of its standard error as one line, else its exit status.
        words: String,
    },
}

/// Where programs of administrators are, beside the directories of `PATH`, which a service's `PATH` often lacks.
const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"];
/// How often a program that closed its output is asked whether it has ended.
const ASK: Duration = Duration::from_millis(2);

/// The program's file: the first in the absolute directories of `PATH`, then in those that administrators' programs are in.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders: Vec<_> = env::split_paths(&path).filter(|folder| folder.is_absolute()).collect();
    let usual = DIRECTORIES.into_iter().map(PathBuf::from);
    folders.into_iter().chain(usual).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Runs a program with this input on its standard input and returns what it printed.
///
/// # Errors
/// It could not be started, exceeded a limit, or ended with an exit code other than 0.
pub fn run(program: &Path, arguments: &[&str], input: &str, limits: Limits) -> Result<String, RunError> {
    let mut command = Command::new(program);
    command.args(arguments).stderr(Stdio::piped());
    let Ended { status, printed, complained } = exchange(&mut command, input, limits)?;
    if status.success() {
        return Ok(String::from_utf8_lossy(&printed).into_owned());
    }
    let words = first_lines(&String::from_utf8_lossy(&complained)).unwrap_or_else(|| status.to_string());
    Err(RunError::Failed { code: status.code(), words })
}

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// Its standard output.
    pub printed: Vec<u8>,
    /// Its standard error, where the command has a pipe for it.
    pub complained: Vec<u8>,
}

/// Runs a command with this input on its standard input, whatever its exit code. Its standard error goes where the command
/// says.
///
/// # Errors
/// It could not be started, or exceeded a limit.
pub fn exchange(command: &mut Command, input: &str, limits: Limits) -> Result<Ended, RunError> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    talk(&mut child, input.as_bytes(), limits).inspect_err(|_| {
        // It may have ended in this moment; then there is nothing to kill.
        let _ = child.kill();
        let _ = child.wait();
    })
}

/// Writes the input and reads both outputs as the program takes and gives them, in any order, then waits for its end.
#[allow(clippy::disallowed_methods, reason = "a limit of time on another program; it decides nothing else")]
fn talk(child: &mut Child, input: &[u8], limits: Limits) -> Result<Ended, RunError> {
    let end = Instant::now() + limits.time;
    let left = || end.checked_duration_since(Instant::now()).ok_or(RunError::Time(limits.time));
    let (mut stdin, mut input) = (child.stdin.take(), input);
    let mut outputs = [Output::new(child.stdout.take())?, Output::new(child.stderr.take())?];
    if let Some(stdin) = &stdin {
        unblock(stdin.as_fd())?;
    }
    loop {
        if let Some(pipe) = &mut stdin
            && write_some(pipe, &mut input)?
        {
            stdin = None;
        }
        for output in &mut outputs {
            output.read_some(limits.output)?;
        }
        let open = outputs.iter().filter_map(|output| output.pipe.as_ref());
        let mut waited: Vec<_> = open.map(|pipe| PollFd::new(pipe.fd(), PollFlags::POLLIN)).collect();
        if waited.is_empty() {
            break;
        }
        waited.extend(stdin.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLOUT)));
        wait(&mut waited, left()?)?;
    }
    drop(stdin);
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None => wait(&mut [], left()?.min(ASK))?,
        }
    };
    let [printed, complained] = outputs.map(|output| output.bytes);
    Ok(Ended { status, printed, complained })
}

fn wait(fds: &mut [PollFd<'_>], time: Duration) -> Result<(), RunError> {
    // Rounded up, so that the last millisecond is not spent turning in circles.
    let time = PollTimeout::try_from(time + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
    match poll(fds, time) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(errno) => Err(io::Error::from(errno).into()),
    }
}

/// Whether all is written. A program that closes its input early reports the reason itself, so that is no error here.
fn write_some(pipe: &mut impl Write, input: &mut &[u8]) -> io::Result<bool> {
    while !input.is_empty() {
        match pipe.write(input) {
            Ok(n) => *input = &input[n..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(true),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// A pipe that is read without waiting.
trait Pipe {
    fn fd(&self) -> BorrowedFd<'_>;
    fn read_into(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
}

impl<P: Read + AsFd> Pipe for P {
    fn fd(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }

    fn read_into(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read(buffer)
    }
}

/// One output of a program.
struct Output {
    /// None after its end.
    pipe: Option<Box<dyn Pipe>>,
    bytes: Vec<u8>,
}

impl Output {
    fn new(pipe: Option<impl Pipe + 'static>) -> io::Result<Self> {
        if let Some(pipe) = &pipe {
            unblock(pipe.fd())?;
        }
        Ok(Self { pipe: pipe.map(|pipe| Box::new(pipe) as Box<dyn Pipe>), bytes: Vec::new() })
    }

    /// Reads what is there.
    fn read_some(&mut self, most: usize) -> Result<(), RunError> {
        let mut buffer = [0; 8192];
        while let Some(pipe) = &mut self.pipe {
            match pipe.read_into(&mut buffer) {
                Ok(0) => self.pipe = None,
                Ok(n) if self.bytes.len() + n > most => return Err(RunError::Output(most)),
                Ok(n) => self.bytes.extend(&buffer[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn unblock(pipe: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(pipe, FcntlArg::F_GETFL)?);
    fcntl(pipe, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// The first lines of a complaint as one.
fn first_lines(text: &str) -> Option<String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("Try `"));
    let first: Vec<_> = lines.take(3).collect();
    (!first.is_empty()).then(|| first.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { time: Duration::from_secs(30), output: 1 << 20 };

    fn shell(script: &str, input: &str, limits: Limits) -> Result<String, RunError> {
        run(&find("sh").unwrap(), &["-c", script], input, limits)
    }

    #[test]
    fn what_a_program_prints_is_returned_whatever_the_order_of_reading_and_writing() {
        let input = "line of text\n".repeat(40_000);
        assert_eq!(shell("cat", &input, LIMITS).unwrap(), input);
        assert_eq!(shell("cat >/dev/null; echo all >&2; echo done", &input, LIMITS).unwrap(), "done\n");
        assert_eq!(shell("echo early; exec <&-; exec >&- 2>&-; exit 0", &input, LIMITS).unwrap(), "early\n");
        assert_eq!(shell("echo 'it '", "", LIMITS).unwrap(), "it \n");
    }

    #[test]
    fn a_program_that_fails_gives_its_words_and_its_code() {
        let error =
            shell("printf 'one\\n\\nTry `x`\\n two\\nthree\\nfour' >&2; exit 4", "", LIMITS).unwrap_err();
        assert!(matches!(&error, RunError::Failed { code: Some(4), .. }));
        assert_eq!(error.to_string(), "one; two; three");
        assert_eq!(shell("exit 3", "", LIMITS).unwrap_err().to_string(), "exit status: 3");
        let error = run(Path::new("/nonexistent"), &[], "", LIMITS).unwrap_err();
        assert!(matches!(error, RunError::Io(_)));
    }

    #[test]
    fn a_program_beyond_a_limit_is_killed() {
        let short = Limits { time: Duration::from_millis(50), ..LIMITS };
        assert!(matches!(shell("exec sleep 60", "", short), Err(RunError::Time(_))));
        assert!(matches!(shell("exec >&- 2>&-; exec sleep 60", "", short), Err(RunError::Time(_))));
        let small = Limits { output: 10_000, ..LIMITS };
        assert!(matches!(shell("exec cat /dev/zero", "", small), Err(RunError::Output(10_000))));
        assert_eq!(shell("head -c 10000 /dev/zero", "", small).unwrap().len(), 10_000);
    }
}
