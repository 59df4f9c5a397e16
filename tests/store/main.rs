//! The store's contract, on both databases.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "../common/postgres.rs"]
mod postgres;

mod changes;
mod ledger;
mod litellm;
mod lookups;
mod migrations;
mod transactions;

use std::sync::Arc;

use alchemi::clock::{SystemClock, Timestamp};
use alchemi::context::{Granted, Platform};
use alchemi::id::{Id, IdSource, RandomIds};
use alchemi::identity::master_key_context;
use alchemi::model::accounts::Account;
use alchemi::store::{DatabaseConfig, Store, migrate};
use sqlx::{AssertSqlSafe, ConnectOptions};
use tempfile::TempDir;

/// A database for one test.
struct Place {
    url: String,
    _folder: TempDir,
}

/// An empty database of each kind that there is.
async fn places() -> Vec<Place> {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = Place { url: format!("sqlite:{}", folder.path().join("alchemi.db").display()), _folder: folder };
    let postgres = postgres::database().await.map(|url| Place { url, _folder: tempfile::tempdir().unwrap() });
    [Some(sqlite), postgres].into_iter().flatten().collect()
}

impl Place {
    fn is_postgres(&self) -> bool {
        self.url.starts_with("postgres")
    }

    fn kind(&self) -> &'static str {
        if self.is_postgres() { "postgres" } else { "sqlite" }
    }

    /// A store without migrations.
    async fn open(&self) -> Store {
        self.open_with(|_| {}).await
    }

    async fn open_with(&self, shape: impl FnOnce(&mut DatabaseConfig)) -> Store {
        let mut config = DatabaseConfig { url: self.url.clone(), max_connections: 4, ..DatabaseConfig::default() };
        shape(&mut config);
        Store::open(&config, Arc::new(SystemClock), Arc::new(RandomIds)).await.unwrap()
    }

    /// A store that is ready.
    async fn store(&self) -> Store {
        let store = self.open().await;
        migrate::apply(&store).await.unwrap();
        store
    }

    /// Runs a script behind the store's back; a SQLite file is made if it is not there.
    async fn run(&self, sql: &str) {
        let sql = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        if self.is_postgres() {
            sql.execute(&mut self.postgres().await).await.unwrap();
        } else {
            let options: sqlx::sqlite::SqliteConnectOptions = self.url.parse().unwrap();
            sql.execute(&mut options.create_if_missing(true).connect().await.unwrap()).await.unwrap();
        }
    }

    /// One column of texts.
    async fn texts(&self, sql: &str) -> Vec<String> {
        let query = sqlx::query_scalar::<_, String>(AssertSqlSafe(sql.to_owned()));
        if self.is_postgres() {
            query.fetch_all(&mut self.postgres().await).await.unwrap()
        } else {
            let options: sqlx::sqlite::SqliteConnectOptions = self.url.parse().unwrap();
            let query = sqlx::query_scalar::<_, String>(AssertSqlSafe(sql.to_owned()));
            query.fetch_all(&mut options.connect().await.unwrap()).await.unwrap()
        }
    }

    async fn postgres(&self) -> sqlx::PgConnection {
        let options: sqlx::postgres::PgConnectOptions = self.url.parse().unwrap();
        options.connect().await.unwrap()
    }
}

/// The operator's right.
fn operator() -> Granted<Platform> {
    master_key_context(None).super_admin().unwrap()
}

fn new_id<T>(at: Timestamp) -> Id<T> {
    (&RandomIds as &dyn IdSource).id(at)
}

fn account(name: &str, at: Timestamp) -> Account {
    Account::new(new_id(at), name.to_owned(), None, at)
}

/// Writes an account; gives it.
async fn insert(store: &Store, name: &str) -> Account {
    let mut tx = store.begin(&operator()).await.unwrap();
    let account = account(name, tx.now());
    tx.insert_account(&account).await.unwrap();
    tx.commit().await.unwrap();
    account
}
