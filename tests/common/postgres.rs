//! PostgreSQL for tests: the server of `ALCHEMI_TEST_POSTGRES_URL`, else a private one that lives as long as this process.

use std::env::{var, var_os};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

/// What `postgres.sh` ends with when PostgreSQL is not installed.
const NOT_INSTALLED: i32 = 3;

/// The URL of a fresh, empty database.
///
/// `None`, with a note, where PostgreSQL is not installed; with `CI` set that is a failure, so that no check is
/// skipped there. Databases on a server of one's own are left for inspection.
///
/// # Panics
/// When a server is there but does not start or does not answer.
pub async fn database() -> Option<String> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let server = server()?;
    let name = format!("alchemi_test_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    create(server, &name).await.unwrap_or_else(|error| panic!("cannot create a database on {server}: {error}"));
    Some(in_server(server, &name))
}

async fn create(server: &str, name: &str) -> sqlx::Result<()> {
    let mut connection = PgConnection::connect(server).await?;
    // Another run may have had the same process id on a server that outlives both.
    connection.execute(AssertSqlSafe(format!("DROP DATABASE IF EXISTS {name}"))).await?;
    connection.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await?;
    connection.close().await
}

/// `server` with `name` as its database.
fn in_server(server: &str, name: &str) -> String {
    let mut url = url::Url::parse(server).unwrap_or_else(|error| panic!("{server} is not a URL: {error}"));
    url.set_path(name);
    url.into()
}

/// The URL of the server, started at the first call.
fn server() -> Option<&'static str> {
    static SERVER: OnceLock<Option<(String, Option<Private>)>> = OnceLock::new();
    let server = SERVER.get_or_init(|| match var("ALCHEMI_TEST_POSTGRES_URL") {
        Ok(url) => Some((url, None)),
        Err(_) => Private::start().map(|(url, private)| (url, Some(private))),
    });
    server.as_ref().map(|(url, _)| url.as_str())
}

/// A server of this process. Its script reads standard input, and stops and removes the server when the other end
/// closes, which the system does when this process ends, be it by a panic, a signal or `exit`.
struct Private(#[expect(dead_code, reason = "holds the pipe that keeps the server alive")] Child);

impl Private {
    fn start() -> Option<(String, Self)> {
        let mut script = Command::new("sh")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/postgres.sh"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run sh: {error}"));
        let mut url = String::new();
        if let Some(stdout) = script.stdout.take() {
            BufReader::new(stdout).read_line(&mut url).unwrap_or_else(|error| panic!("postgres.sh: {error}"));
        }
        if !url.is_empty() {
            return Some((url.trim().to_owned(), Self(script)));
        }
        let status = script.wait().ok().and_then(|status| status.code());
        if status == Some(NOT_INSTALLED) && var_os("CI").is_none() {
            eprintln!("note: tests on PostgreSQL are skipped");
            return None;
        }
        panic!("no PostgreSQL for the tests (postgres.sh ended with status {status:?}, see above)");
    }
}
