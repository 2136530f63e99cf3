//! Programs and their processes: started inside a host, with a log, and never left behind.
#![allow(unsafe_code, reason = "a child enters its namespaces between fork and exec; see `enter_in_child`")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{Pid, getppid};

use crate::live;

/// The environment variables that a program on a host inherits; the test sets all others.
const KEPT: [&str; 4] = ["HOME", "TERM", "RUST_LOG", "GOGC"];

/// The longest run of a program that the harness waits for.
const PATIENCE: Duration = Duration::from_secs(60);

/// A command line, with environment and standard input.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    name: String,
    arg0: Option<String>,
    args: Vec<OsString>,
    env: BTreeMap<String, OsString>,
    stdin: Vec<u8>,
    capabilities: Option<String>,
}

impl Program {
    /// The program at `path`, or the first of that name on PATH.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let mut env: BTreeMap<String, OsString> =
            KEPT.iter().filter_map(|key| Some(((*key).to_owned(), std::env::var_os(key)?))).collect();
        let mut search = std::env::var_os("PATH").unwrap_or_default();
        // The PATH of an ordinary user lacks the directories of iptables.
        search.push(":/usr/sbin:/sbin");
        env.insert("PATH".to_owned(), search);
        Self { path, name, arg0: None, args: Vec::new(), env, stdin: Vec::new(), capabilities: None }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, key: &str, value: impl Into<OsString>) -> Self {
        self.env.insert(key.to_owned(), value.into());
        self
    }

    /// The standard input; empty by default.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Starts the program under another name than its file's, as a link does.
    #[must_use]
    pub fn called(mut self, name: &str) -> Self {
        self.arg0 = Some(name.to_owned());
        self.named(name)
    }

    /// Starts the program as systemd does with `NoNewPrivileges=yes` and this `CapabilityBoundingSet=` (names in lower case,
    /// separated by commas); `setpriv` does it.
    #[must_use]
    pub fn bounded(mut self, capabilities: &str) -> Self {
        self.capabilities = Some(capabilities.to_owned());
        self
    }

    /// The name of the log file, and of the process in messages.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// The name in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn command(&self) -> Command {
        let mut command = match &self.capabilities {
            None => Command::new(&self.path),
            Some(names) => {
                let kept: String = names.split(',').map(|name| format!(",+{name}")).collect();
                let mut command = Command::new("setpriv");
                command.args([format!("--bounding-set=-all{kept}"), "--inh-caps=-all".to_owned()]);
                command.arg("--no-new-privs").arg(&self.path);
                command
            }
        };
        command.args(&self.args).env_clear().envs(&self.env).process_group(0);
        if let Some(arg0) = &self.arg0 {
            command.arg0(arg0);
        }
        command
    }
}

/// A running program. Clones are the same process; it ends with the host it was spawned in.
#[derive(Debug, Clone)]
pub struct Process(Arc<Running>);

#[derive(Debug)]
struct Running {
    name: String,
    pid: Pid,
    child: Mutex<Child>,
    log: PathBuf,
}

impl Process {
    /// Starts `program` inside `spaces`, with standard output and error appended to `log`.
    pub(crate) fn spawn(program: &Program, spaces: Vec<Arc<File>>, log: PathBuf) -> Result<Self> {
        let out = OpenOptions::new().create(true).append(true).open(&log)?;
        let mut command = program.command();
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let child = spawn(program, command, spaces)?;
        let pid = pid_of(&child);
        Ok(Self(Arc::new(Running { name: program.name.clone(), pid, child: Mutex::new(child), log })))
    }

    /// Its name, as in the log file's.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.0.pid.as_raw().unsigned_abs()
    }

    /// Everything it has written so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.0.log).unwrap_or_default()).into_owned()
    }

    /// Its exit status, once it has ended.
    pub fn status(&self) -> Option<ExitStatus> {
        let mut child = self.0.child.lock().unwrap_or_else(PoisonError::into_inner);
        live::reap(self.0.pid, || child.try_wait().ok().flatten())
    }

    /// Sends a signal; nothing happens when the process has ended.
    pub fn signal(&self, signal: Signal) {
        // A child that is not reaped still has its process id.
        if self.status().is_none() {
            let _ = kill(self.0.pid, signal);
        }
    }

    /// Waits until it has ended, `patience` at most.
    pub fn wait(&self, patience: Duration) -> Result<ExitStatus> {
        let end = Instant::now() + patience;
        loop {
            match self.status() {
                Some(status) => return Ok(status),
                None if Instant::now() > end => bail!("{} still runs after {patience:?}", self.name()),
                None => thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// SIGTERM, and the exit status; SIGKILL after 5 s, which is an error.
    pub fn stop(&self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM);
        self.wait(Duration::from_secs(5)).inspect_err(|_| self.kill())
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&self) {
        self.signal(Signal::SIGKILL);
        let _ = self.wait(Duration::from_secs(5));
    }

    /// Its cost so far; `None` after its end.
    pub fn cost(&self) -> Option<Cost> {
        self.status().is_none().then(|| Cost::read(self.pid())).flatten()
    }
}

/// What a process has used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Time on a CPU, of all threads and of children that have ended.
    pub cpu: Duration,
    /// Largest resident memory so far, in KiB (VmHWM).
    pub peak_kib: u64,
}

impl Cost {
    fn read(pid: u32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        let peak_kib = peak.trim().trim_end_matches(" kB").parse().ok()?;
        let (own, children) = ticks(pid)?;
        Some(Self { cpu: threads(pid).max(own) + children, peak_kib })
    }
}

/// CPU time in steps of 10 ms: of all threads, also ended ones, and of reaped children.
fn ticks(pid: u32) -> Option<(Duration, Duration)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may contain blanks and brackets, so fields count from its last bracket. utime, stime, cutime
    // and cstime are fields 14 to 17 of proc(5).
    let fields: Vec<u64> = stat
        .rsplit(')')
        .next()?
        .split_whitespace()
        .skip(11)
        .take(4)
        .filter_map(|it| it.parse().ok())
        .collect();
    let [user, system, child_user, child_system] = fields[..] else { return None };
    Some((
        Duration::from_millis(10 * (user + system)),
        Duration::from_millis(10 * (child_user + child_system)),
    ))
}

/// CPU time in nanoseconds, of the living threads.
fn threads(pid: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let nanos = tasks.filter_map(|task| {
        let stat = fs::read_to_string(task.path().join("schedstat")).ok()?;
        stat.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}

/// Runs `program` inside `spaces` to its end and returns its output; any exit status is accepted. Fails when
/// it cannot be started, or runs longer than a minute.
pub(crate) fn output(program: &Program, spaces: Vec<Arc<File>>) -> Result<Output> {
    let mut command = program.command();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(program, command, spaces)?;
    let pid = pid_of(&child);
    if let Some(mut stdin) = child.stdin.take() {
        let bytes = program.stdin.clone();
        // A program that does not read its input is not an error.
        thread::spawn(move || stdin.write_all(&bytes));
    }
    let (done, end) = channel();
    thread::spawn(move || done.send(child.wait_with_output()));
    let output = end.recv_timeout(PATIENCE).or_else(|_| {
        let _ = kill(pid, Signal::SIGKILL);
        end.recv()
    });
    live::reap(pid, || Some(()));
    Ok(output.with_context(|| format!("{} did not end within a minute", program.name))??)
}

type Job = (Command, Sender<io::Result<Child>>);

/// One thread that never ends starts all children: the kernel sends the parent-death signal when the *thread*
/// that forked ends.
static NURSERY: LazyLock<Sender<Job>> = LazyLock::new(|| {
    let (jobs, queue) = channel::<Job>();
    thread::spawn(move || {
        for (mut command, answer) in queue {
            let child = command.spawn();
            if let Ok(child) = &child {
                live::add_child(pid_of(child));
            }
            let _ = answer.send(child);
        }
    });
    jobs
});

fn spawn(program: &Program, mut command: Command, spaces: Vec<Arc<File>>) -> Result<Child> {
    enter_in_child(&mut command, spaces);
    let (answer, child) = channel();
    NURSERY.send((command, answer)).context("the thread that starts programs is gone")?;
    child.recv()?.with_context(|| format!("cannot start {}", shown(&program.path)))
}

fn enter_in_child(command: &mut Command, spaces: Vec<Arc<File>>) {
    let parent = Pid::this();
    let enter = move || {
        for space in &spaces {
            setns(space, CloneFlags::empty())?;
        }
        set_pdeathsig(Signal::SIGKILL)?;
        // This process blocks the signals that end it; see `live::end_cleanly_on_signals`.
        SigSet::empty().thread_set_mask()?;
        // If the parent died before the line above, no signal comes.
        if getppid() != parent {
            return Err(io::Error::from(io::ErrorKind::BrokenPipe));
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed. The closure makes a few system
    // calls on descriptors that it owns, and allocates nothing: an `io::Error` of an errno or a kind is a
    // plain value.
    unsafe { command.pre_exec(enter) };
}

fn pid_of(child: &Child) -> Pid {
    // The kernel's process ids end at 2^22.
    Pid::from_raw(i32::try_from(child.id()).unwrap_or_default())
}

fn shown(path: &Path) -> String {
    let missing = path.is_absolute() && !path.exists();
    if missing {
        format!("{}: no such file; is it built?", path.display())
    } else {
        path.display().to_string()
    }
}
