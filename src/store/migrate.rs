//! Migrations: numbered SQL that touches only `Alchemi_*` objects, with their own
//! bookkeeping table, so that they live beside LiteLLM's schema and its Prisma.
//!
//! They are applied in one transaction under a lock. Each file may be run twice,
//! so a database where they were applied by hand is recognised and left alone.

use aws_lc_rs::digest;
use sqlx::AssertSqlSafe;

use super::{Inner, Result, Store, StoreError, Tx, dialect, on};
use crate::context::Platform;

/// What to do about migrations when a process starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AtStart {
    /// Apply what is missing.
    #[default]
    Auto,
    /// Refuse to start when something is missing.
    Check,
    /// Do not look.
    Off,
}

/// One numbered step.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    /// Its number; they are applied in order.
    pub version: i64,
    /// Its name, the same on both databases.
    pub name: &'static str,
    /// Its text.
    pub sql: &'static str,
}

impl Migration {
    /// SHA-256 of the text, in hex: an applied migration never changes.
    pub fn checksum(&self) -> String {
        crate::id::hex(digest::digest(&digest::SHA256, self.sql.as_bytes()).as_ref())
    }
}

const BOOKKEEPING: &str = r#"CREATE TABLE IF NOT EXISTS "Alchemi_MigrationTable" (
    version    BIGINT NOT NULL PRIMARY KEY,
    name       TEXT   NOT NULL,
    checksum   TEXT   NOT NULL
);"#;

/// "alchemi" as a number: the key of PostgreSQL's advisory lock.
#[cfg(feature = "postgres")]
const LOCK: i64 = 0x61_6c63_6865_6d69;

/// The migrations for `backend`, in order.
///
/// # Errors
/// [`StoreError::Setup`] for a backend that this build does not have.
pub fn migrations(backend: &str) -> Result<&'static [Migration]> {
    macro_rules! step {
        ($folder:literal, $version:literal, $number:literal, $name:literal) => {
            Migration {
                version: $version,
                name: $name,
                sql: include_str!(concat!("../../migrations/", $folder, "/", $number, "_", $name, ".sql")),
            }
        };
    }
    macro_rules! from {
        ($folder:literal) => {
            &[
                step!($folder, 1, "0001", "init"),
                step!($folder, 2, "0002", "connections"),
                step!($folder, 3, "0003", "guardrails"),
                step!($folder, 4, "0004", "marketplace"),
                step!($folder, 5, "0005", "zitadel"),
                step!($folder, 6, "0006", "lifecycle"),
                step!($folder, 7, "0007", "listings"),
                step!($folder, 8, "0008", "leases"),
                step!($folder, 9, "0009", "indexes"),
                step!($folder, 10, "0010", "visible_agents"),
                step!($folder, 11, "0011", "ledger_check"),
                step!($folder, 12, "0012", "cycles"),
                step!($folder, 13, "0013", "alerts"),
                step!($folder, 14, "0014", "totals"),
                step!($folder, 15, "0015", "cut_off_addresses"),
                step!($folder, 16, "0016", "counted_requests"),
                step!($folder, 17, "0017", "database_id"),
                step!($folder, 18, "0018", "renewed_credits"),
                step!($folder, 19, "0019", "calendars"),
                step!($folder, 20, "0020", "ranked_budgets"),
                step!($folder, 21, "0021", "listed_usage"),
            ]
        };
    }
    match backend {
        "sqlite" => Ok(from!("sqlite")),
        "postgres" => Ok(from!("postgres")),
        other => Err(StoreError::Setup(format!("no migrations for {other:?}: expected sqlite or postgres"))),
    }
}

/// All of it as plain SQL that can be fed to `psql` or `sqlite3`, and run twice.
///
/// # Errors
/// [`StoreError::Setup`] for an unknown backend.
pub fn print(backend: &str) -> Result<String> {
    let mut text = format!("{BOOKKEEPING}\n\n");
    for migration in migrations(backend)? {
        text.push_str(migration.sql);
        text.push_str(&format!(
            "\nINSERT INTO \"Alchemi_MigrationTable\" (version, name, checksum) VALUES ({}, '{}', '{}') ON CONFLICT (version) DO NOTHING;\n\n",
            migration.version,
            migration.name,
            migration.checksum()
        ));
    }
    Ok(text)
}

/// Does what the configuration says.
///
/// # Errors
/// [`StoreError::Setup`] naming what is missing or was changed by hand.
pub async fn at_start(store: &Store, choice: AtStart) -> Result<Vec<Migration>> {
    match choice {
        AtStart::Auto => apply(store).await,
        AtStart::Check => match pending(store).await?.as_slice() {
            [] => Ok(Vec::new()),
            [first, ..] => Err(StoreError::Setup(format!(
                "the database lacks migration {:04}_{}: run `alchemi migrate`, or set database.migrate = \"auto\"",
                first.version, first.name
            ))),
        },
        AtStart::Off => Ok(Vec::new()),
    }
}

/// Applies what is missing and says what it applied.
///
/// # Errors
/// [`StoreError::Setup`] when an applied migration differs from this build's.
pub async fn apply(store: &Store) -> Result<Vec<Migration>> {
    let mut tx = dialect::begin(&store.0.pools).await?;
    lock(&mut tx).await?;
    run(&mut tx, BOOKKEEPING).await?;
    let missing = missing(&mut tx, store.backend()).await?;
    for migration in &missing {
        run(&mut tx, migration.sql).await?;
        record(&mut tx, migration).await?;
    }
    dialect::commit(tx).await?;
    Ok(missing)
}

/// What [`apply`] would apply; writes nothing.
///
/// # Errors
/// As [`apply`].
pub async fn pending(store: &Store) -> Result<Vec<Migration>> {
    let mut tx = dialect::begin_read(&store.0.pools).await?;
    if !bookkeeping_exists(&mut tx).await? {
        return Ok(migrations(store.backend())?.to_vec());
    }
    missing(&mut tx, store.backend()).await
}

async fn missing(tx: &mut Inner, backend: &str) -> Result<Vec<Migration>> {
    let applied = applied(tx).await?;
    let mut missing = Vec::new();
    for migration in migrations(backend)? {
        match applied.iter().find(|(version, _)| *version == migration.version) {
            None => missing.push(*migration),
            Some((_, checksum)) if *checksum == migration.checksum() => {}
            Some(_) => {
                return Err(StoreError::Setup(format!(
                    "migration {:04}_{} was applied with another text: this build does not fit the database",
                    migration.version, migration.name
                )));
            }
        }
    }
    Ok(missing)
}

macro_rules! each {
    ($tx:expr, |$c:ident| $body:expr) => {
        match $tx {
            #[cfg(feature = "sqlite")]
            Inner::Sqlite(transaction) => {
                let $c = &mut **transaction;
                $body
            }
            #[cfg(feature = "postgres")]
            Inner::Postgres(transaction) => {
                let $c = &mut **transaction;
                $body
            }
        }
    };
}

impl Tx<Platform> {
    /// Which database this is, by the name that its migrations gave it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn database_id(&mut self) -> Result<String> {
        on!(self, |c| sqlx::query_scalar(r#"SELECT id FROM "Alchemi_DatabaseTable""#).fetch_one(c).await)
    }
}

async fn run(tx: &mut Inner, sql: &'static str) -> Result<()> {
    each!(tx, |c| sqlx::raw_sql(AssertSqlSafe(sql)).execute(c).await.map(drop))?;
    Ok(())
}

async fn applied(tx: &mut Inner) -> Result<Vec<(i64, String)>> {
    Ok(each!(tx, |c| sqlx::query_as(r#"SELECT version, checksum FROM "Alchemi_MigrationTable" ORDER BY version"#)
        .fetch_all(c)
        .await)?)
}

async fn record(tx: &mut Inner, migration: &Migration) -> Result<()> {
    each!(tx, |c| sqlx::query(
        r#"INSERT INTO "Alchemi_MigrationTable" (version, name, checksum) VALUES ($1, $2, $3)"#
    )
    .bind(migration.version)
    .bind(migration.name)
    .bind(migration.checksum())
    .execute(c)
    .await
    .map(drop))?;
    Ok(())
}

async fn lock(tx: &mut Inner) -> Result<()> {
    match tx {
        // BEGIN IMMEDIATE is the lock.
        #[cfg(feature = "sqlite")]
        Inner::Sqlite(_) => {}
        #[cfg(feature = "postgres")]
        Inner::Postgres(transaction) => {
            sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(LOCK).execute(&mut **transaction).await?;
        }
    }
    Ok(())
}

async fn bookkeeping_exists(tx: &mut Inner) -> Result<bool> {
    let found: Option<i64> = match tx {
        #[cfg(feature = "sqlite")]
        Inner::Sqlite(transaction) => {
            sqlx::query_scalar("SELECT CAST(1 AS BIGINT) FROM sqlite_master WHERE name = 'Alchemi_MigrationTable'")
                .fetch_optional(&mut **transaction)
                .await?
        }
        #[cfg(feature = "postgres")]
        Inner::Postgres(transaction) => {
            sqlx::query_scalar(r#"SELECT CAST(1 AS BIGINT) WHERE to_regclass('"Alchemi_MigrationTable"') IS NOT NULL"#)
                .fetch_optional(&mut **transaction)
                .await?
        }
    };
    Ok(found.is_some())
}
