//! The databases that a test runs on, and a second way into them for assertions.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use alchemi::store::migrate;
use serde_json::{Map, Value};
use sqlx::{AssertSqlSafe, Column, Connection as _, Decode, Executor as _, PgConnection, Type};
use tokio::sync::OnceCell;

use super::postgres;

/// Where a gateway keeps its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    /// A file in the gateway's own folder.
    Sqlite,
    /// The database with this URL, which nobody else uses.
    Postgres(String),
}

/// Each database that there is: SQLite always, PostgreSQL as [`postgres::database`] says, with
/// the tables of this version, and nobody in them.
pub(crate) async fn backends() -> Vec<Backend> {
    let postgres = migrated_database().await.map(Backend::Postgres);
    [Some(Backend::Sqlite), postgres].into_iter().flatten().collect()
}

/// The same, with nothing in them.
pub(crate) async fn empty_backends() -> Vec<Backend> {
    let postgres = postgres::database().await.map(Backend::Postgres);
    [Some(Backend::Sqlite), postgres].into_iter().flatten().collect()
}

/// As [`postgres::database`], with the tables of this version in it: a copy, because making them takes longer.
pub(crate) async fn migrated_database() -> Option<String> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    static TEMPLATE: OnceCell<String> = OnceCell::const_new();
    let server = postgres::url()?;
    let template = TEMPLATE.get_or_init(async || {
        let name = format!("alchemi_template_{}", std::process::id());
        let url = postgres::create(server, &name, "template1").await.expect("no template on PostgreSQL");
        let mut connection = PgConnection::connect(&url).await.unwrap();
        connection.execute(AssertSqlSafe(migrate::print("postgres").unwrap())).await.unwrap();
        connection.close().await.unwrap();
        name
    });
    let name = format!("alchemi_copy_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    Some(postgres::create(server, &name, template.await).await.expect("no database on PostgreSQL for the test"))
}

/// A row as JSON, by the names of its columns.
pub(crate) type Row = Map<String, Value>;

/// Connections beside the gateway's own.
#[derive(Clone, Debug)]
pub(crate) enum Database {
    Sqlite(sqlx::SqlitePool),
    Postgres(sqlx::PgPool),
}

impl Backend {
    /// The URL for a gateway whose folder is `folder`.
    pub(crate) fn url(&self, folder: &Path) -> String {
        match self {
            Self::Sqlite => format!("sqlite:{}", folder.join("alchemi.db").display()),
            Self::Postgres(url) => url.clone(),
        }
    }
}

impl Database {
    /// Connects, when first used.
    pub(crate) fn at(url: &str) -> Self {
        if url.starts_with("sqlite:") {
            Self::Sqlite(sqlx::SqlitePool::connect_lazy(url).unwrap())
        } else {
            Self::Postgres(sqlx::postgres::PgPoolOptions::new().max_connections(2).connect_lazy(url).unwrap())
        }
    }

    /// Changes rows behind the gateway's back.
    pub(crate) async fn execute(&self, sql: &str) {
        let query = AssertSqlSafe(sql.to_owned());
        match self {
            Self::Sqlite(pool) => sqlx::query(query).execute(pool).await.map(drop).unwrap(),
            Self::Postgres(pool) => sqlx::query(query).execute(pool).await.map(drop).unwrap(),
        }
    }

    /// The rows of a query; `$1` and so on stand for `texts`.
    pub(crate) async fn rows(&self, sql: &str, texts: &[&str]) -> Vec<Row> {
        match self {
            Self::Sqlite(pool) => {
                let query = texts.iter().fold(sqlx::query(AssertSqlSafe(sql.to_owned())), |q, t| q.bind(*t));
                query.fetch_all(pool).await.unwrap().iter().map(read).collect()
            }
            Self::Postgres(pool) => {
                let query = texts.iter().fold(sqlx::query(AssertSqlSafe(sql.to_owned())), |q, t| q.bind(*t));
                query.fetch_all(pool).await.unwrap().iter().map(read).collect()
            }
        }
    }
}

/// Integers, text, booleans and NULL are all that the schema has.
fn read<R>(row: &R) -> Row
where
    R: sqlx::Row,
    usize: sqlx::ColumnIndex<R>,
    for<'r> i64: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> bool: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> String: Decode<'r, R::Database> + Type<R::Database>,
{
    let value = |at: usize| {
        row.try_get::<Option<i64>, _>(at)
            .map(Value::from)
            .or_else(|_| row.try_get::<Option<String>, _>(at).map(Value::from))
            .or_else(|_| row.try_get::<Option<bool>, _>(at).map(Value::from))
            .unwrap()
    };
    row.columns().iter().map(|column| (column.name().to_owned(), value(column.ordinal()))).collect()
}
