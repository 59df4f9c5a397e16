//! The binary, as an operator meets it: what its commands print, and how they end.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "../common/mod.rs"]
mod common;

mod books;
mod commands;
mod running;

use std::path::Path;
use std::process::{Command, Output};

/// The binary in an empty environment but for `PATH`: nothing of the machine's own settings counts.
fn alchemi(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_alchemi"));
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .current_dir(folder)
        .env("ALCHEMI_DATA_DIR", folder.join("data"));
    command
}

/// What a command printed, and its exit status.
struct Ended {
    status: i32,
    out: String,
    err: String,
}

fn run(command: &mut Command) -> Ended {
    let Output { status, stdout, stderr } = command.output().unwrap();
    Ended {
        status: status.code().expect("it ended by itself"),
        out: String::from_utf8(stdout).unwrap(),
        err: String::from_utf8(stderr).unwrap(),
    }
}

impl Ended {
    #[track_caller]
    fn done(self) -> String {
        assert_eq!((self.status, &*self.err), (0, ""), "{}", self.out);
        self.out
    }

    /// Ended with `status`, and says why on standard error.
    #[track_caller]
    fn refused(self, status: i32, because: &str) {
        assert_eq!(self.status, status, "{}{}", self.out, self.err);
        let last = self.err.lines().rfind(|line| line.starts_with("alchemi: ") || line.starts_with("error: "));
        let said = last.unwrap_or_else(|| panic!("{:?}", self.err));
        assert!(said.contains(because), "{said:?} does not say {because:?}");
    }
}
