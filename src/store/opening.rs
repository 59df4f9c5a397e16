//! Opening a database: what an address may be, and how each of the two is opened.

use std::time::Duration;

use super::{DatabaseConfig, Pools, Result, StoreError};

pub(super) async fn connect(config: &DatabaseConfig) -> Result<Pools> {
    match kind_of(&config.url)? {
        #[cfg(feature = "sqlite")]
        Kind::Sqlite => sqlite(config).await,
        #[cfg(feature = "postgres")]
        Kind::Postgres => postgres(config).await,
    }
}

/// Refuses what could never be opened, without opening it.
pub(super) fn check(config: &DatabaseConfig) -> Result<()> {
    match kind_of(&config.url)? {
        #[cfg(feature = "sqlite")]
        Kind::Sqlite => sqlite_options(&config.url).map(drop),
        #[cfg(feature = "postgres")]
        Kind::Postgres => postgres_options(&config.url).map(drop),
    }
}

/// What is behind an address.
enum Kind {
    #[cfg(feature = "sqlite")]
    Sqlite,
    #[cfg(feature = "postgres")]
    Postgres,
}

fn kind_of(url: &str) -> Result<Kind> {
    let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme);
    match scheme {
        #[cfg(feature = "sqlite")]
        "sqlite" => Ok(Kind::Sqlite),
        #[cfg(feature = "postgres")]
        "postgres" | "postgresql" => Ok(Kind::Postgres),
        _ => Err(StoreError::Setup(format!(
            "database.url (DATABASE_URL) starts with {scheme:?}: expected sqlite:path/to/file.db or \
             postgres://user@host/name, and a build with that feature"
        ))),
    }
}

/// Refuses a file that is not there, by its whole path.
#[cfg(feature = "sqlite")]
pub(super) fn expect_there(config: &DatabaseConfig) -> Result<()> {
    if config.url.starts_with("sqlite:")
        && let Ok(options) = config.url.parse::<sqlx::sqlite::SqliteConnectOptions>()
        && !options.get_filename().is_file()
    {
        let path = std::path::absolute(options.get_filename());
        let path = path.unwrap_or_else(|_| options.get_filename().to_owned());
        return Err(StoreError::Setup(format!(
            "database.url (DATABASE_URL): there is no database at {}; run this with the gateway's own settings (--config, \
             ALCHEMI_CONFIG, ALCHEMI_DATA_DIR), or make one by `alchemi migrate`",
            path.display()
        )));
    }
    Ok(())
}

fn acquire_timeout(config: &DatabaseConfig) -> Duration {
    Duration::from_millis(config.acquire_timeout_ms)
}

#[cfg(feature = "sqlite")]
fn cannot_be_opened(error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Setup(format!("database.url (DATABASE_URL) cannot be opened: {error}"))
}

#[cfg(feature = "sqlite")]
fn sqlite_options(url: &str) -> Result<sqlx::sqlite::SqliteConnectOptions> {
    if url.contains(":memory:") || url.contains("mode=memory") {
        return Err(StoreError::Setup(
            "database.url (DATABASE_URL) names a database in memory, which cannot be shared by a writer and readers: name a file".to_owned(),
        ));
    }
    url.parse().map_err(|error: sqlx::Error| cannot_be_opened(&error))
}

#[cfg(feature = "sqlite")]
async fn sqlite(config: &DatabaseConfig) -> Result<Pools> {
    use sqlx::sqlite::{SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

    let setup = |e: &dyn std::fmt::Display| cannot_be_opened(e);
    let options = sqlite_options(&config.url)?;
    if let Some(folder) = options.get_filename().parent().filter(|p| !p.as_os_str().is_empty()) {
        private_folder(folder).map_err(|e| setup(&e))?;
    }
    if !options.get_filename().is_file() {
        tracing::info!(file = %options.get_filename().display(), "a new database is made");
    }
    let lease_lock = FileLock::beside(options.get_filename());
    let options = options
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(acquire_timeout(config))
        .foreign_keys(true)
        .statement_cache_capacity(256);
    let writer = SqlitePoolOptions::new()
        .max_connections(1)
        .acquire_timeout(acquire_timeout(config))
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        .connect_with(options.clone())
        .await
        .map_err(|e| setup(&e))?;
    let readers = SqlitePoolOptions::new()
        .max_connections(config.max_connections.max(1))
        .acquire_timeout(acquire_timeout(config))
        .test_before_acquire(false)
        .connect_lazy_with(options.read_only(true));
    Ok(Pools::Sqlite { writer, readers, lease_lock })
}

/// An advisory lock beside SQLite's file, which goes with the process that has it.
#[cfg(feature = "sqlite")]
pub(super) struct FileLock {
    path: std::path::PathBuf,
    held: std::sync::Mutex<Option<std::fs::File>>,
}

#[cfg(feature = "sqlite")]
impl FileLock {
    fn beside(database: &std::path::Path) -> Self {
        let mut path = database.as_os_str().to_owned();
        path.push("-leases");
        Self { path: path.into(), held: std::sync::Mutex::default() }
    }

    /// Whether it is ours.
    pub(super) fn take(&self) -> Result<bool> {
        let mut held = self.held.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if held.is_some() {
            return Ok(true);
        }
        let failed = |e: std::io::Error| StoreError::Setup(format!("{} cannot be locked: {e}", self.path.display()));
        let file = std::fs::File::options().create(true).append(true).open(&self.path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => *held = Some(file),
            Err(std::fs::TryLockError::WouldBlock) => {}
            Err(std::fs::TryLockError::Error(e)) => return Err(failed(e)),
        }
        Ok(held.is_some())
    }

    pub(super) fn let_go(&self) {
        self.held.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    }
}

#[cfg(feature = "postgres")]
fn postgres_options(url: &str) -> Result<sqlx::postgres::PgConnectOptions> {
    let wrong = |_| StoreError::Setup("database.url (DATABASE_URL) is not a postgres:// URL".to_owned());
    url.parse().map_err(wrong)
}

#[cfg(feature = "postgres")]
async fn postgres(config: &DatabaseConfig) -> Result<Pools> {
    use sqlx::ConnectOptions;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    let options: PgConnectOptions = postgres_options(&config.url)?;
    let options = options.application_name("alchemi").statement_cache_capacity(256);
    let pool = PgPoolOptions::new()
        .max_connections(config.max_connections.max(2))
        .acquire_timeout(acquire_timeout(config))
        .connect_with(options.clone())
        .await;
    match pool {
        Ok(pool) => Ok(Pools::Postgres(pool)),
        // Why, the pool does not say.
        Err(sqlx::Error::PoolTimedOut) => {
            match tokio::time::timeout(acquire_timeout(config), options.connect()).await {
                Ok(Err(cause)) => Err(cause.into()),
                Ok(Ok(_)) | Err(_) => Err(sqlx::Error::PoolTimedOut.into()),
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// Makes a folder that only its owner can look into; one that exists stays as it is.
#[cfg(feature = "sqlite")]
fn private_folder(folder: &std::path::Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(folder)
}
