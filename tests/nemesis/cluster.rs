//! The database server, to be stopped and started.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Executor};

use crate::common::postgres;
use crate::wire::Target;

/// One database of the tests' server.
#[derive(Debug)]
pub(crate) struct Cluster {
    name: String,
    user: String,
    /// The way to it that no proxy is on.
    pub(crate) url: String,
    pub(crate) target: Target,
    /// Connections that no fault touches, except that the server may be down.
    pub(crate) pool: PgPool,
    /// The folder of a private server's files.
    files: Option<PathBuf>,
}

impl Cluster {
    /// A fresh database; none where there is no PostgreSQL.
    pub(crate) async fn fresh() -> Option<Self> {
        let text = postgres::database().await?;
        let url: url::Url = text.parse().unwrap();
        let name = url.path().trim_start_matches('/').to_owned();
        let user = url.username().to_owned();
        let pool = PgPoolOptions::new()
            .max_connections(3)
            .acquire_timeout(Duration::from_secs(2))
            .connect_lazy(&text)
            .unwrap();
        // The tests' own server acknowledges what it may lose when it is stopped at once.
        pool.execute(AssertSqlSafe(format!("ALTER DATABASE {name} SET synchronous_commit = on"))).await.unwrap();
        let socket = url.query_pairs().find(|(key, _)| key == "host").map(|(_, folder)| folder.into_owned());
        Some(match socket {
            Some(folder) => Self {
                name,
                user,
                url: text,
                target: Target::Unix(format!("{folder}/.s.PGSQL.{}", url.port().unwrap_or(5432))),
                pool,
                files: Some(Path::new(&folder).join("data")).filter(|files| files.join("PG_VERSION").exists()),
            },
            None => {
                let address = format!("{}:{}", url.host_str().unwrap_or("localhost"), url.port().unwrap_or(5432));
                Self { name, user, url: text, target: Target::Tcp(address), pool, files: None }
            }
        })
    }

    /// The URL for a gateway that reaches the server through a proxy at `address`.
    pub(crate) fn url_through(&self, address: &str) -> String {
        format!("postgres://{}@{address}/{}?sslmode=disable", self.user, self.name)
    }

    /// Whether the server is ours to stop.
    pub(crate) fn is_ours(&self) -> bool {
        self.files.is_some()
    }

    /// `pg_ctl stop -m immediate`: what a crash of the server leaves is what it finds at the next start.
    pub(crate) fn stop(&self) -> Stopped {
        let files = self.files.clone().expect("the server is ours");
        let pid = std::fs::read_to_string(files.join("postmaster.pid")).unwrap();
        let process = Path::new("/proc").join(pid.lines().next().unwrap());
        let programs = std::fs::read_link(process.join("exe")).unwrap().parent().unwrap().to_owned();
        // One line, quoted for a shell.
        let command = std::fs::read_to_string(files.join("postmaster.opts")).unwrap().trim().to_owned();
        let control = programs.join("pg_ctl");
        let stop = format!("{} stop -D {} -m immediate -s -w", control.display(), files.display());
        assert!(as_owner(&files, &stop).status().unwrap().success(), "the server does not stop");
        Stopped { files, command }
    }
}

/// A server that was stopped.
#[derive(Debug)]
pub(crate) struct Stopped {
    files: PathBuf,
    command: String,
}

impl Stopped {
    /// Starts it as it was started before; it may not take connections yet.
    pub(crate) fn start(self) {
        let log = self.files.with_file_name("server.log");
        let start = format!("{} >>{} 2>&1 </dev/null &", self.command, log.display());
        assert!(as_owner(&self.files, &start).status().unwrap().success(), "the server does not start");
    }
}

/// A shell command as the user whose files these are: the server refuses to run as root.
fn as_owner(files: &Path, command: &str) -> Command {
    use std::os::unix::fs::MetadataExt as _;
    let owner = std::fs::metadata(files).unwrap().uid();
    let own = std::fs::metadata("/proc/self").unwrap().uid();
    let mut shell = if owner == own {
        let mut shell = Command::new("sh");
        shell.arg("-c");
        shell
    } else {
        let mut shell = Command::new("runuser");
        shell.args(["-u", "postgres", "--", "sh", "-c"]);
        shell
    };
    shell.arg(command).current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
    shell
}
