//! PostgreSQL for tests: the server of `ALCHEMI_TEST_POSTGRES_URL`, else a private one that lives as long as this process.

use std::env::var_os;
use std::error::Error;
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
/// When a server should be there and is not, with the reason.
pub(crate) async fn database() -> Option<String> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("alchemi_test_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    Some(create(url()?, &name, "template1").await.expect("no database on PostgreSQL for the test"))
}

/// Where the server is, if there is one.
///
/// # Panics
/// When one should be there and is not, with the reason.
pub(crate) fn url() -> Option<&'static str> {
    server().as_ref().expect("no PostgreSQL for the tests").as_ref().map(|server| &*server.url)
}

/// Creates a database as a copy of another; gives its URL.
///
/// # Errors
/// What the server says.
pub(crate) async fn create(server: &str, name: &str, template: &str) -> Result<String, Box<dyn Error>> {
    let mut url: url::Url = server.parse()?;
    let mut connection = PgConnection::connect(server).await?;
    // Another run may have had the same process id on a server that outlives both.
    connection.execute(AssertSqlSafe(format!("DROP DATABASE IF EXISTS {name}"))).await?;
    connection.execute(AssertSqlSafe(format!("CREATE DATABASE {name} TEMPLATE {template}"))).await?;
    connection.close().await?;
    url.set_path(name);
    Ok(url.into())
}

struct Server {
    url: String,
    /// Of a private server: holds the pipe that keeps it alive. Its script reads standard input, and stops and removes
    /// the server when the other end closes, which the system does when this process ends, be it by a panic, a signal
    /// or `exit`.
    _script: Option<Child>,
}

/// The server, started at the first call; `None` where there is none and need not be.
fn server() -> &'static Result<Option<Server>, String> {
    static SERVER: OnceLock<Result<Option<Server>, String>> = OnceLock::new();
    SERVER.get_or_init(|| match var_os("ALCHEMI_TEST_POSTGRES_URL") {
        Some(url) => Ok(Some(Server { url: url.to_string_lossy().into_owned(), _script: None })),
        None => start_private().map_err(|error| error.to_string()),
    })
}

fn start_private() -> Result<Option<Server>, Box<dyn Error>> {
    let mut script = Command::new("sh")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/postgres.sh"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut url = String::new();
    if let Some(stdout) = script.stdout.take() {
        BufReader::new(stdout).read_line(&mut url)?;
    }
    if !url.is_empty() {
        return Ok(Some(Server { url: url.trim().to_owned(), _script: Some(script) }));
    }
    let status = script.wait()?;
    if status.code() == Some(NOT_INSTALLED) && var_os("CI").is_none() {
        eprintln!("note: tests on PostgreSQL are skipped");
        return Ok(None);
    }
    Err(format!("postgres.sh ended with {status}, see above").into())
}
