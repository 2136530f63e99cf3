//! The embedded store as a process of its own, with a folder of its own.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

pub(crate) struct Server {
    child: Child,
    folder: PathBuf,
    pub(crate) addr: SocketAddr,
}

/// How long a start may take.
const START: Duration = Duration::from_secs(10);

impl Server {
    pub(crate) fn start(flanneld: &Path, words: &[String]) -> Result<Self> {
        let addr = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let folder =
            std::env::temp_dir().join(format!("bench-hostile-{}-{}", std::process::id(), addr.port()));
        let child = Command::new(flanneld)
            .args(["store", "--data-dir"])
            .arg(&folder)
            .args(["--listen", &addr.to_string()])
            .args(words)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("{} store", flanneld.display()))?;
        let mut server = Self { child, folder, addr };
        let end = Instant::now() + START;
        while TcpStream::connect(addr).is_err() {
            if let Some(ended) = server.ended()? {
                bail!("the store ended: {ended}");
            }
            if Instant::now() > end {
                bail!("the store does not listen on {addr}");
            }
            std::thread::yield_now();
        }
        Ok(server)
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Result<Option<std::process::ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// A figure of /proc/PID/status, in MiB.
    pub(crate) fn memory(&self, name: &str) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kibibytes = line.and_then(|rest| rest.split_whitespace().next()).context("no such figure")?;
        Ok(kibibytes.parse::<f64>()? / 1024.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}
