//! The gateway as a process of its own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Where Debian and others put libfaketime for programs with threads.
const FAKETIME: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
];

/// The library that moves a process's clock, where it is installed.
pub(crate) fn faketime() -> Option<&'static Path> {
    FAKETIME.iter().map(Path::new).find(|path| path.exists())
}

#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) url: String,
    folder: PathBuf,
    child: Option<Child>,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Process {
    /// One that has not been started; `folder` has its `alchemi.toml` and takes its log.
    pub(crate) fn new(folder: PathBuf, port: u16) -> Self {
        Self { url: format!("http://127.0.0.1:{port}"), folder, child: None }
    }

    /// Starts it, and returns before it listens.
    pub(crate) fn start(&mut self) {
        let log = File::options().create(true).append(true).open(self.folder.join("log")).unwrap();
        let mut command = alchemi(&["serve"], &self.config());
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        if let Some(library) = faketime() {
            command
                .env("LD_PRELOAD", library)
                .env("FAKETIME_TIMESTAMP_FILE", self.clock())
                .env("FAKETIME_NO_CACHE", "1")
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        self.child = Some(command.spawn().unwrap());
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.folder.join("alchemi.toml")
    }

    fn clock(&self) -> PathBuf {
        self.folder.join("clock")
    }

    /// Moves its clock away from the system's, at once.
    pub(crate) fn set_clock(&self, seconds: i64) {
        // A reader must not find it half written.
        let fresh = self.folder.join("clock.new");
        std::fs::write(&fresh, format!("{seconds:+}\n")).unwrap();
        std::fs::rename(fresh, self.clock()).unwrap();
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Sends a signal by its name.
    pub(crate) fn signal(&self, name: &str) {
        let Some(child) = &self.child else { return };
        let done = Command::new("kill").arg(format!("-{name}")).arg(child.id().to_string()).status().unwrap();
        assert!(done.success(), "kill -{name} failed");
    }

    /// Whether it ended although nobody asked it to.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().unwrap()
    }

    /// SIGTERM; gives how it ended, or nothing if it did not within `patience` and had to be killed.
    pub(crate) async fn stop(&mut self, patience: Duration) -> Option<ExitStatus> {
        self.signal("TERM");
        let until = Instant::now() + patience;
        while Instant::now() < until {
            if let Some(status) = self.ended() {
                self.child = None;
                return Some(status);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.kill();
        None
    }

    /// What it logged as an error, the first few lines.
    pub(crate) fn complaints(&self) -> String {
        let log = std::fs::read(self.folder.join("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        log.lines().filter(|line| line.contains("ERROR")).take(5).fold(String::new(), |all, line| all + "\n" + line)
    }

    /// The end of its log.
    pub(crate) fn last_words(&self) -> String {
        let log = std::fs::read(self.folder.join("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

/// The binary with a configuration file.
pub(crate) fn alchemi(arguments: &[&str], config: &Path) -> Command {
    let mut command = crate::common::process::alchemi();
    command.args(arguments).arg("--config").arg(config);
    command
}
