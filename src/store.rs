//! The product's SQL, all of it and nowhere else.
//!
//! One SQL text runs on SQLite and PostgreSQL: a statement is written once inside
//! [`on!`], which expands it for each driver. A transaction is the repository:
//! `store.begin(&granted)` gives a [`Tx`], resources add methods to it, and
//! [`Tx::commit`] publishes what changed on the feed that caches listen to.
//! There is no other door: no grant, no transaction, and the account that the
//! grant reaches is bound into every statement from there.
//!
//! Rules for a new resource: look-ups return `Option`; every child table's keys
//! include `account_id`; times come from [`Tx::now`], ids from [`Tx::new_id`];
//! lists are keyset pages ([`page`]); a write calls [`Tx::changed`] and
//! [`Tx::audit`] in the same transaction.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::{SharedClock, Timestamp};
use crate::context::{ActingAs, Granted, Platform, Tenant};
use crate::id::{Id, IdSource};
use crate::model::accounts::Account;
use crate::problem::Problem;

mod dialect;
use dialect::{from_columns, of_accounts, on, run};

pub mod accounts;
pub mod audit;
pub mod budgets;
pub mod changes;
pub mod conservation;
pub mod directory;
pub mod idempotency;
pub mod ledger;
pub mod migrate;
pub mod models;
pub mod page;
pub mod policies;
pub mod revocations;
pub mod usage;

use changes::{Change, ChangeFeed, ChangeKind};

/// Where the data lives and how it is reached.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DatabaseConfig {
    /// `sqlite:path` or `postgres://…`; `DATABASE_URL`. Empty: `alchemi.db` in the data directory.
    pub url: String,
    /// Connections for reading (SQLite) or for everything (PostgreSQL).
    pub max_connections: u32,
    /// How long to wait for a connection or for SQLite's writer, in milliseconds.
    pub acquire_timeout_ms: u64,
    /// What to do about migrations at start-up.
    pub migrate: migrate::AtStart,
}

impl Default for DatabaseConfig {
    fn default() -> Self {
        Self { url: String::new(), max_connections: 16, acquire_timeout_ms: 5_000, migrate: migrate::AtStart::Auto }
    }
}

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A row with the same unique values exists. Holds the constraint or columns, as the database names them.
    #[error("a row with the same unique values exists ({0})")]
    Unique(String),
    /// A row refers to one that does not exist, or is referred to by others.
    #[error("a referred row does not exist, or the row is still referred to")]
    ForeignKey,
    /// A value is outside of what the schema allows.
    #[error("a value is outside of what the schema allows")]
    Check,
    /// The database cannot be reached, or is too busy.
    #[error("the database cannot be reached: {0}")]
    Unavailable(String),
    /// The URL or the schema is not usable.
    #[error("{0}")]
    Setup(String),
    /// A row holds what this version cannot read.
    #[error("row of {table} is unreadable: {reason}")]
    Unreadable {
        /// The table.
        table: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// An amount left the range that books can hold.
    #[error("an amount does not fit")]
    Overflow,
    /// A statement failed otherwise: a defect.
    #[error("statement failed: {0}")]
    Statement(#[source] sqlx::Error),
}

impl StoreError {
    /// Whether a unique violation names `column`.
    pub fn is_unique(&self, column: &str) -> bool {
        matches!(self, Self::Unique(at) if at.contains(column))
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        use sqlx::error::ErrorKind;
        match &error {
            sqlx::Error::Database(database) => match database.kind() {
                ErrorKind::UniqueViolation => {
                    Self::Unique(database.constraint().unwrap_or_else(|| database.message()).to_owned())
                }
                ErrorKind::ForeignKeyViolation => Self::ForeignKey,
                ErrorKind::CheckViolation | ErrorKind::NotNullViolation => Self::Check,
                _ if dialect::is_transient(database.as_ref()) => Self::Unavailable(database.message().to_owned()),
                _ => Self::Statement(error),
            },
            sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::Tls(_) => {
                Self::Unavailable(error.to_string())
            }
            _ => Self::Statement(error),
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unique(at) => {
                Self::conflict("already_exists", "One with the same unique values exists").with("constraint", at)
            }
            StoreError::ForeignKey => {
                Self::conflict("still_referenced", "Something that this refers to is gone, or still refers to it")
            }
            StoreError::Check => Self::invalid("", "a value is outside of what is allowed"),
            StoreError::Unavailable(reason) => {
                tracing::warn!(%reason, "the database cannot be reached");
                Self::unavailable("store_unavailable", "The database cannot be reached; try again", 1)
            }
            StoreError::Overflow => Self::invalid("", "the resulting amount is too large"),
            error @ (StoreError::Setup(_) | StoreError::Unreadable { .. } | StoreError::Statement(_)) => {
                tracing::error!(error = &error as &dyn std::error::Error, "store failed");
                Self::internal()
            }
        }
    }
}

/// What a store's method gives.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// The database, cheap to clone.
#[derive(Clone)]
pub struct Store(Arc<Shared>);

struct Shared {
    pools: Pools,
    clock: SharedClock,
    ids: Arc<dyn IdSource>,
    feed: ChangeFeed,
    statements: AtomicU64,
}

enum Pools {
    /// One writer, because SQLite has one; many readers, which WAL lets run beside it.
    #[cfg(feature = "sqlite")]
    Sqlite { writer: sqlx::SqlitePool, readers: sqlx::SqlitePool },
    #[cfg(feature = "postgres")]
    Postgres(sqlx::PgPool),
}

enum Inner {
    #[cfg(feature = "sqlite")]
    Sqlite(sqlx::Transaction<'static, sqlx::Sqlite>),
    #[cfg(feature = "postgres")]
    Postgres(sqlx::Transaction<'static, sqlx::Postgres>),
}

/// An open transaction. Dropped without [`Tx::commit`], it changes nothing.
pub struct Tx<Reach = Tenant> {
    inner: Inner,
    store: Store,
    account: Id<Account>,
    by: ActingAs,
    now: Timestamp,
    changes: Vec<Change>,
    reach: PhantomData<fn() -> Reach>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Store").field(&self.backend()).finish()
    }
}

impl<R> std::fmt::Debug for Tx<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tx").field("account", &self.account).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the database of `config` and starts listening for changes. Migrations
    /// are a step of their own: [`migrate::at_start`].
    ///
    /// # Errors
    /// [`StoreError::Setup`] for a URL of another kind or a file that cannot be made,
    /// [`StoreError::Unavailable`] when the server does not answer.
    pub async fn open(config: &DatabaseConfig, clock: SharedClock, ids: Arc<dyn IdSource>) -> Result<Self> {
        let pools = dialect::connect(config).await?;
        let feed = ChangeFeed::start(&pools).await?;
        Ok(Self(Arc::new(Shared { pools, clock, ids, feed, statements: AtomicU64::new(0) })))
    }

    /// `sqlite` or `postgres`.
    pub fn backend(&self) -> &'static str {
        match &self.0.pools {
            #[cfg(feature = "sqlite")]
            Pools::Sqlite { .. } => "sqlite",
            #[cfg(feature = "postgres")]
            Pools::Postgres(_) => "postgres",
        }
    }

    /// A transaction that may write.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn begin<R>(&self, granted: &Granted<R>) -> Result<Tx<R>>
    where
        Granted<R>: Reach,
    {
        self.open_tx(granted, dialect::begin(&self.0.pools).await?)
    }

    /// A transaction that only reads; on SQLite it does not wait for the writer.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn read<R>(&self, granted: &Granted<R>) -> Result<Tx<R>>
    where
        Granted<R>: Reach,
    {
        self.open_tx(granted, dialect::begin_read(&self.0.pools).await?)
    }

    fn open_tx<R>(&self, granted: &Granted<R>, inner: Inner) -> Result<Tx<R>>
    where
        Granted<R>: Reach,
    {
        Ok(Tx {
            inner,
            store: self.clone(),
            account: granted.reaches(),
            by: granted.by().clone(),
            now: self.0.clock.now(),
            changes: Vec::new(),
            reach: PhantomData,
        })
    }

    /// What has changed, from every process that shares the database.
    pub fn changes(&self) -> tokio::sync::broadcast::Receiver<Change> {
        self.0.feed.subscribe()
    }

    /// Calls `watch` with every change: with one of this process before its commit
    /// returns, so that whoever is told of a change also finds it in force.
    pub fn on_change(&self, watch: impl Fn(&Change) + Send + Sync + 'static) {
        self.0.feed.watch(Box::new(watch));
    }

    /// Statements sent so far; tests hold the warm path to none.
    pub fn statements(&self) -> u64 {
        self.0.statements.load(Ordering::Relaxed)
    }

    /// Whether the database answers, within two seconds.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn ping(&self) -> Result<()> {
        let asked = tokio::time::timeout(Duration::from_secs(2), async {
            let mut tx = self.read(&Granted::system()).await?;
            on!(tx, |c| sqlx::query_scalar::<_, i64>("SELECT CAST(1 AS BIGINT)").fetch_one(c).await).map(drop)
        });
        asked.await.unwrap_or_else(|_| Err(StoreError::Unavailable("no answer within 2 s".to_owned())))
    }

    /// Closes every connection; what is open is rolled back.
    pub async fn close(&self) {
        dialect::close(&self.0.pools).await;
    }
}

/// What a grant reaches, by its kind.
pub trait Reach: sealed::Sealed {
    /// The account of a tenant's grant; no account's id for the platform's.
    fn reaches(&self) -> Id<Account>;
}

mod sealed {
    pub trait Sealed {}
    impl<R> Sealed for crate::context::Granted<R> {}
}

impl Reach for Granted<Tenant> {
    fn reaches(&self) -> Id<Account> {
        self.account().clone()
    }
}

impl Reach for Granted<Platform> {
    fn reaches(&self) -> Id<Account> {
        Id::nobody()
    }
}

impl<R> Tx<R> {
    /// The moment at which the transaction was begun.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// A fresh identifier.
    pub fn new_id<T>(&self) -> Id<T> {
        self.store.0.ids.id(self.now)
    }

    /// Who acts, as written into `created_by` and `updated_by`.
    pub fn acting(&self) -> &ActingAs {
        &self.by
    }

    /// Notes for the feed that `kind` of `account` has changed.
    pub(crate) fn changed_in(&mut self, account: &Id<Account>, kind: ChangeKind) {
        let change = Change { account: account.clone(), kind };
        if !self.changes.contains(&change) {
            self.changes.push(change);
        }
    }

    /// Makes the writes durable and tells the feed.
    ///
    /// # Errors
    /// [`StoreError`]; nothing is written then.
    pub async fn commit(mut self) -> Result<()> {
        let changes = std::mem::take(&mut self.changes);
        dialect::notify(&mut self.inner, &changes).await?;
        dialect::commit(self.inner).await?;
        self.store.0.feed.publish(&changes);
        Ok(())
    }

    pub(crate) fn count_statement(&self) {
        self.store.0.statements.fetch_add(1, Ordering::Relaxed);
    }
}

impl Tx<Platform> {
    /// The same transaction, from here on within `account`.
    pub fn within(self, account: Id<Account>) -> Tx<Tenant> {
        let Self { inner, store, by, now, changes, .. } = self;
        Tx { inner, store, account, by, now, changes, reach: PhantomData }
    }
}

impl Tx<Tenant> {
    /// The account that every statement is bound to.
    pub fn account(&self) -> &Id<Account> {
        &self.account
    }

    /// Notes for the feed that `kind` has changed.
    pub(crate) fn changed(&mut self, kind: ChangeKind) {
        let account = self.account.clone();
        self.changed_in(&account, kind);
    }
}
