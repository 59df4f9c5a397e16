//! The product's SQL, all of it and nowhere else.
//!
//! One SQL text runs on SQLite and PostgreSQL: a statement is written once inside
//! `on!`, which expands it for each driver. A transaction is the repository:
//! `store.begin(&granted)` gives a [`Tx`], resources add methods to it, and
//! [`Tx::commit`] publishes what changed on the feed that caches listen to.
//! There is no other door: no grant, no transaction, and the account that the
//! grant reaches is bound into every statement from there.
//!
//! Rules for a new resource: look-ups return `Option`; every child table's keys
//! include `account_id`; times come from [`Tx::now`], ids from [`Tx::new_id`];
//! lists are keyset pages ([`page`]); a write calls `Tx::changed` and
//! [`Tx::audit`] in the same transaction.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::{SharedClock, Timestamp};
use crate::context::{ActingAs, Granted, Platform, Tenant};
use crate::id::{Id, IdSource};
use crate::model::accounts::Account;

mod columns;
mod dialect;
use columns::from_columns;
use dialect::{find, hold, list, of_accounts, on, push_in, push_scopes, remove, run};

pub mod accounts;
pub mod agents;
pub mod alerts;
pub mod audit;
pub mod budgets;
pub mod changes;
pub mod connections;
pub mod conservation;
pub mod directory;
mod error;
pub mod features;
pub mod guardrails;
pub mod idempotency;
pub mod leases;
pub mod ledger;
pub mod marketplace;
pub mod migrate;
pub mod models;
mod opening;
pub mod page;
pub mod policies;
pub mod provision;
pub mod rehearsal;
pub mod revocations;
pub mod secrets;
pub mod sso;
pub mod usage;

use changes::{Change, ChangeFeed, ChangeKind};
pub use error::{Result, StoreError};

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

/// The database, cheap to clone.
#[derive(Clone)]
pub struct Store(Arc<Shared>);

struct Shared {
    pools: Pools,
    clock: SharedClock,
    ids: Arc<dyn IdSource>,
    feed: ChangeFeed,
    statements: AtomicU64,
    /// A write was refused since one last succeeded.
    refuses_writes: AtomicBool,
}

enum Pools {
    /// One writer, because SQLite has one; many readers, which WAL lets run beside it.
    #[cfg(feature = "sqlite")]
    Sqlite { writer: sqlx::SqlitePool, readers: sqlx::SqlitePool, lease_lock: opening::FileLock },
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
    /// Events in the account's chain so far.
    audited: u32,
    rehearsal: bool,
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
        let pools = opening::connect(config).await?;
        let feed = ChangeFeed::start(&pools).await?;
        Ok(Self(Arc::new(Shared {
            pools,
            clock,
            ids,
            feed,
            statements: AtomicU64::new(0),
            refuses_writes: AtomicBool::new(false),
        })))
    }

    /// Looks at the settings of a database without opening it.
    ///
    /// # Errors
    /// [`StoreError::Setup`] for an address that no database can be at.
    pub fn check(config: &DatabaseConfig) -> Result<()> {
        opening::check(config)
    }

    /// [Opens](Self::open) a database that is there: for commands that look after one, and
    /// would find an empty one in a folder that is not the gateway's.
    ///
    /// # Errors
    /// [`StoreError::Setup`] that names the path, and as [`open`](Self::open).
    pub async fn open_existing(config: &DatabaseConfig, clock: SharedClock, ids: Arc<dyn IdSource>) -> Result<Self> {
        #[cfg(feature = "sqlite")]
        opening::expect_there(config)?;
        Self::open(config, clock, ids).await
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
        self.open_tx(granted, dialect::begin(&self.0.pools).await.map_err(|error| self.failed(error))?)
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
            audited: 0,
            rehearsal: false,
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

    /// The present moment, by the clock that transactions go by.
    pub fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    /// A fresh identifier, for what is known before a transaction begins.
    pub fn new_id<T>(&self) -> Id<T> {
        self.0.ids.id(self.0.clock.now())
    }

    /// Whether this process may take leases: on SQLite, one process at a time, for as
    /// long as the store lives.
    ///
    /// # Errors
    /// [`StoreError::Setup`] when the lock's file cannot be made.
    pub fn lock_for_leases(&self) -> Result<bool> {
        match &self.0.pools {
            #[cfg(feature = "sqlite")]
            Pools::Sqlite { lease_lock, .. } => lease_lock.take(),
            #[cfg(feature = "postgres")]
            Pools::Postgres(_) => Ok(true),
        }
    }

    /// Whether the database answers and can be written, within two seconds. A writer under
    /// way is no reason to say no, and is waited for only when a write was refused before.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::ReadOnly`].
    pub async fn ping(&self) -> Result<()> {
        let asked = tokio::time::timeout(Duration::from_secs(2), async {
            let mut tx = self.read(&Granted::system()).await?;
            on!(tx, |c| sqlx::query_scalar::<_, i64>("SELECT CAST(1 AS BIGINT)").fetch_one(c).await)?;
            dialect::check_writable(&mut tx.inner).await?;
            drop(tx);
            if self.0.refuses_writes.load(Ordering::Relaxed) { self.try_write().await } else { Ok(()) }
        });
        asked.await.unwrap_or_else(|_| Err(StoreError::Unavailable("no answer within 2 s".to_owned())))
    }

    /// Writes something that changes nothing.
    async fn try_write(&self) -> Result<()> {
        let mut tx = self.begin(&Granted::system()).await?;
        run!(tx, r#"UPDATE "Alchemi_MigrationTable" SET name = name"#)?;
        tx.commit().await?;
        self.0.refuses_writes.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Notes what a failure says about the database.
    fn failed(&self, error: StoreError) -> StoreError {
        if matches!(error, StoreError::ReadOnly(_)) {
            self.0.refuses_writes.store(true, Ordering::Relaxed);
        }
        error
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
        let change = Change::of(account.clone(), kind);
        if !self.changes.contains(&change) {
            self.changes.push(change);
        }
    }

    /// Makes the writes durable and tells the feed: whoever follows it with
    /// [`Store::on_change`] in this process has been told when this returns.
    /// A [rehearsal](Tx::rehearse) is rolled back instead, and nobody is told.
    ///
    /// # Errors
    /// [`StoreError`]; nothing is written then, unless the answer was lost on its way.
    pub async fn commit(mut self) -> Result<()> {
        if self.rehearsal {
            return dialect::rollback(self.inner).await;
        }
        self.revise_budgets().await?;
        let Self { store, changes, mut inner, .. } = self;
        dialect::notify(&mut inner, &changes).await?;
        if changes.is_empty() {
            return dialect::commit(inner).await.map_err(|error| store.failed(error));
        }
        // A task of its own: what is committed after the caller went away is told all the same, and told afterwards.
        let committed = tokio::spawn(async move {
            let outcome = dialect::commit(inner).await;
            store.0.feed.publish(&changes);
            outcome.map_err(|error| store.failed(error))
        });
        committed.await.unwrap_or_else(|error| Err(StoreError::Unavailable(error.to_string())))
    }

    pub(crate) fn count_statement(&self) {
        self.store.0.statements.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn failed(&self, error: sqlx::Error) -> StoreError {
        self.store.failed(error.into())
    }
}

impl Tx<Platform> {
    /// The same transaction, from here on within `account`.
    pub fn within(self, account: Id<Account>) -> Tx<Tenant> {
        let Self { inner, store, by, now, changes, rehearsal, .. } = self;
        Tx { inner, store, account, by, now, changes, audited: 0, rehearsal, reach: PhantomData }
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

#[cfg(test)]
#[cfg(feature = "postgres")]
#[path = "../tests/common/postgres.rs"]
mod postgres;

/// Databases for tests inside the crate.
#[cfg(test)]
pub(crate) mod testing;

#[cfg(all(test, feature = "sqlite"))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_commit_whose_caller_goes_away_is_told_all_the_same() {
        let fresh = testing::sqlite().await;
        let mut changes = fresh.store.changes();
        let mut tx = fresh.store.begin(&Granted::system()).await.unwrap();
        let account = Account::new(tx.new_id(), "Acme".to_owned(), None, tx.now());
        tx.insert_account(&account).await.unwrap();
        tokio::select! {
            biased;
            _ = tx.commit() => unreachable!("it waits for the database"),
            () = std::future::ready(()) => {}
        }
        assert_eq!(changes.recv().await.unwrap().account, account.account_id);
        let mut tx = fresh.store.read(&Granted::system()).await.unwrap();
        assert!(tx.account_by_id_or_organization(account.account_id.as_str()).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_refused_write_is_remembered_until_one_succeeds() {
        let testing::Fresh { store, .. } = &testing::sqlite().await;
        let query_only = async |sql: &'static str| {
            let writer = match &store.0.pools {
                Pools::Sqlite { writer, .. } => writer,
                #[cfg(feature = "postgres")]
                Pools::Postgres(_) => unreachable!("it is SQLite"),
            };
            sqlx::query(sql).execute(writer).await.unwrap();
        };
        // As on a disk that is full or mounted for reading.
        query_only("PRAGMA query_only = 1").await;
        store.ping().await.unwrap();
        let refused = store.begin(&Granted::system()).await.map(drop);
        assert!(matches!(refused, Err(StoreError::ReadOnly(_))), "{refused:?}");
        for _ in 0..2 {
            let ready = store.ping().await;
            assert!(matches!(ready, Err(StoreError::ReadOnly(_))), "{ready:?}");
        }
        query_only("PRAGMA query_only = 0").await;
        store.ping().await.unwrap();
        assert!(!store.0.refuses_writes.load(Ordering::Relaxed));
    }
}
