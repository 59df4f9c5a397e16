//! Where the two databases differ: beginning, ending, notifying, and what runs a statement on either.

#[cfg(feature = "postgres")]
use super::StoreError;
use super::changes::Change;
use super::{Inner, Pools, Result};

/// Runs one statement on whichever database the transaction is on.
///
/// `on!(tx, |c| sqlx::query("…").bind(x).execute(c).await)` gives
/// `Result<_, StoreError>`; the body is expanded once for each driver.
macro_rules! on {
    ($tx:expr, |$c:ident| $body:expr) => {{
        $tx.count_statement();
        let outcome: std::result::Result<_, sqlx::Error> = match &mut $tx.inner {
            #[cfg(feature = "sqlite")]
            $crate::store::Inner::Sqlite(transaction) => {
                let $c = &mut **transaction;
                $body
            }
            #[cfg(feature = "postgres")]
            $crate::store::Inner::Postgres(transaction) => {
                let $c = &mut **transaction;
                $body
            }
        };
        outcome.map_err(|error| $tx.failed(error))
    }};
}
pub(crate) use on;

/// Runs one writing statement: `run!(tx, "…", bound, …)` gives the rows affected.
macro_rules! run {
    ($tx:expr, $sql:expr $(, $bound:expr)* $(,)?) => {
        $crate::store::on!($tx, |c| sqlx::query($sql)$(.bind($bound))*.execute(c).await.map(|done| done.rows_affected()))
    };
}
pub(crate) use run;

/// Rows of several accounts in one statement: `of_accounts!(tx, "… IN (", accounts, ")…")`.
/// Without accounts, no row.
macro_rules! of_accounts {
    ($tx:expr, $select:literal, $accounts:expr, $rest:literal) => {
        $crate::store::on!($tx, |c| {
            let mut q = sqlx::QueryBuilder::new($select);
            $crate::store::dialect::push_list!(q, $accounts);
            q.push($rest).build_query_as().fetch_all(c).await
        })
    };
}
pub(crate) use of_accounts;

/// One row of the account: `find!(tx, "Table", id = id)`.
macro_rules! find {
    ($tx:expr, $table:literal, $($column:ident = $value:expr),+) => {{
        let account = $tx.account.clone();
        $crate::store::on!($tx, |c| {
            let mut q = sqlx::QueryBuilder::new(concat!("SELECT * FROM \"", $table, "\" WHERE account_id = "));
            q.push_bind(&account);
            $(q.push(concat!(" AND ", stringify!($column), " = ")).push_bind($value);)+
            q.build_query_as().fetch_optional(c).await
        })
    }};
}
pub(crate) use find;

/// One row of the account, as [`find!`] finds it, kept from everybody else until the end of
/// the transaction: an UPDATE that changes nothing is the row lock that both databases know.
macro_rules! hold {
    ($tx:expr, $table:literal, $($column:ident = $value:expr),+) => {{
        let account = $tx.account.clone();
        $crate::store::on!($tx, |c| {
            let mut q = sqlx::QueryBuilder::new(concat!("UPDATE \"", $table, "\" SET version = version WHERE account_id = "));
            q.push_bind(&account);
            $(q.push(concat!(" AND ", stringify!($column), " = ")).push_bind($value);)+
            q.push(" RETURNING *").build_query_as().fetch_optional(c).await
        })
    }};
}
pub(crate) use hold;

/// A page of the account's rows, newest first: `list!(tx, slice, Org in "Table", domain = domain)`.
/// What stands behind `;` is an `Option`, and counts where it is given.
macro_rules! list {
    ($tx:expr, $slice:expr, $row:ident in $table:literal $(, $column:ident = $value:expr)* $(; $optional:ident = $given:expr)?) => {{
        let (account, (at, id)) = ($tx.account.clone(), $slice.before());
        let rows: Vec<$row> = $crate::store::on!($tx, |c| {
            let mut q = sqlx::QueryBuilder::new(concat!("SELECT * FROM \"", $table, "\" WHERE account_id = "));
            q.push_bind(&account);
            $(q.push(concat!(" AND ", stringify!($column), " = ")).push_bind($value);)*
            $(if let Some(given) = $given {
                q.push(concat!(" AND ", stringify!($optional), " = ")).push_bind(given);
            })?
            q.push(" AND (created_at, id) < (").push_bind(at).push(", ").push_bind(&id).push(")");
            q.push(" ORDER BY created_at DESC, id DESC LIMIT ").push_bind($slice.fetch());
            q.push(" OFFSET ").push_bind($slice.skip()).build_query_as().fetch_all(c).await
        })?;
        Ok($slice.page(rows, |row| (row.created_at, row.id.as_str())))
    }};
}
pub(crate) use list;

/// Removes one row of the account: `remove!(tx, "Table", id = id)` gives whether it was there.
macro_rules! remove {
    ($tx:expr, $table:literal, $($column:ident = $value:expr),+) => {{
        let account = $tx.account.clone();
        $crate::store::on!($tx, |c| {
            let mut q = sqlx::QueryBuilder::new(concat!("DELETE FROM \"", $table, "\" WHERE account_id = "));
            q.push_bind(&account);
            $(q.push(concat!(" AND ", stringify!($column), " = ")).push_bind($value);)+
            q.build().execute(c).await.map(|done| done.rows_affected() > 0)
        })
    }};
}
pub(crate) use remove;

/// The elements of a list, which stands between parentheses; of none, what nothing equals.
macro_rules! push_list {
    ($q:expr, $values:expr) => {{
        let mut values = $q.separated(", ");
        for value in $values {
            values.push_bind(value);
        }
        if $values.is_empty() {
            values.push("NULL");
        }
    }};
}
pub(crate) use push_list;

/// ` AND column IN (…)`.
macro_rules! push_in {
    ($q:expr, $column:literal, $values:expr) => {{
        $q.push(concat!(" AND ", $column, " IN ("));
        $crate::store::dialect::push_list!($q, $values);
        $q.push(")");
    }};
}
pub(crate) use push_in;

/// ` AND (…)`: rows that are for one of some scopes; without any, none. Nothing but the
/// scopes stands in the OR, so that SQLite looks each of them up in an index.
macro_rules! push_scopes {
    ($q:expr, $scopes:expr) => {{
        $q.push(" AND (");
        let mut any = $q.separated(" OR ");
        for scope in $scopes {
            any.push("(scope_type = ").push_bind_unseparated(scope.scope_type);
            any.push_unseparated(" AND scope_id = ")
                .push_bind_unseparated(scope.scope_id.clone())
                .push_unseparated(")");
        }
        if $scopes.is_empty() {
            any.push("1 = 0");
        }
        $q.push(")");
    }};
}
pub(crate) use push_scopes;

pub(super) async fn begin(pools: &Pools) -> Result<Inner> {
    Ok(match pools {
        // IMMEDIATE: a transaction that upgrades from read to write later could fail then.
        #[cfg(feature = "sqlite")]
        Pools::Sqlite { writer, .. } => Inner::Sqlite(writer.begin_with("BEGIN IMMEDIATE").await?),
        #[cfg(feature = "postgres")]
        Pools::Postgres(pool) => Inner::Postgres(begun(pool, "BEGIN").await?),
    })
}

pub(super) async fn begin_read(pools: &Pools) -> Result<Inner> {
    Ok(match pools {
        #[cfg(feature = "sqlite")]
        Pools::Sqlite { readers, .. } => Inner::Sqlite(readers.begin().await?),
        #[cfg(feature = "postgres")]
        Pools::Postgres(pool) => {
            Inner::Postgres(begun(pool, "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY").await?)
        }
    })
}

/// A transaction, carried through to its beginning whether or not the caller still
/// waits: a `BEGIN` that nobody waits for is rolled back by nobody, and the next who
/// gets the connection would be inside of it.
#[cfg(feature = "postgres")]
async fn begun(pool: &sqlx::PgPool, statement: &'static str) -> Result<sqlx::PgTransaction<'static>> {
    let pool = pool.clone();
    let begun = tokio::spawn(async move { pool.begin_with(statement).await });
    Ok(begun.await.map_err(|error| StoreError::Unavailable(error.to_string()))??)
}

pub(super) async fn commit(inner: Inner) -> Result<()> {
    match inner {
        #[cfg(feature = "sqlite")]
        Inner::Sqlite(transaction) => transaction.commit().await?,
        #[cfg(feature = "postgres")]
        Inner::Postgres(transaction) => transaction.commit().await?,
    }
    Ok(())
}

pub(super) async fn rollback(inner: Inner) -> Result<()> {
    match inner {
        #[cfg(feature = "sqlite")]
        Inner::Sqlite(transaction) => transaction.rollback().await?,
        #[cfg(feature = "postgres")]
        Inner::Postgres(transaction) => transaction.rollback().await?,
    }
    Ok(())
}

/// The one of two texts that the database takes, where no text serves both.
pub(super) fn text_for<'a>(inner: &Inner, [sqlite, postgres]: [&'a str; 2]) -> &'a str {
    let _ = (sqlite, postgres);
    match inner {
        #[cfg(feature = "sqlite")]
        Inner::Sqlite(_) => sqlite,
        #[cfg(feature = "postgres")]
        Inner::Postgres(_) => postgres,
    }
}

/// PostgreSQL sends notifications when, and only when, the transaction commits.
pub(super) async fn notify(inner: &mut Inner, changes: &[Change]) -> Result<()> {
    match inner {
        #[cfg(feature = "sqlite")]
        Inner::Sqlite(_) => {}
        #[cfg(feature = "postgres")]
        Inner::Postgres(transaction) => {
            for change in changes {
                sqlx::query("SELECT pg_notify($1, $2)")
                    .bind(super::changes::CHANNEL)
                    .bind(change.encode())
                    .execute(&mut **transaction)
                    .await?;
            }
        }
    }
    #[cfg(not(feature = "postgres"))]
    let _ = changes;
    Ok(())
}

pub(super) async fn close(pools: &Pools) {
    match pools {
        #[cfg(feature = "sqlite")]
        Pools::Sqlite { writer, readers, lease_lock } => {
            readers.close().await;
            writer.close().await;
            lease_lock.let_go();
        }
        #[cfg(feature = "postgres")]
        Pools::Postgres(pool) => pool.close().await,
    }
}

/// Whether the same statement may succeed when tried again, by the error's code.
///
/// PostgreSQL's codes have five characters: it is starting, stopping, out of
/// connections, in a transaction that somebody left or that took too long, cannot use its
/// disk, or broke a deadlock. SQLite's are
/// numbers, the kind in the low byte: busy, locked, an I/O error, a file that cannot be
/// opened.
pub(super) fn is_transient(code: &str) -> bool {
    if code.len() == 5 {
        return ["08", "53", "57P", "58"].iter().any(|class| code.starts_with(class))
            || matches!(code, "25P02" | "25P03" | "40001" | "40P01" | "55P03" | "57014");
    }
    code.parse::<i32>().is_ok_and(|code| matches!(code & 0xff, 5 | 6 | 10 | 14))
}

/// Whether the database can be read only, by the error's code: PostgreSQL's
/// `read_only_sql_transaction`, as a standby says, and a full disk; SQLite's read-only
/// file and full disk.
pub(super) fn is_read_only(code: &str) -> bool {
    matches!(code, "25006" | "53100")
        || (code.len() != 5 && code.parse::<i32>().is_ok_and(|n| matches!(n & 0xff, 8 | 13)))
}

/// Whether writes would be refused, where the database tells without one: a standby of
/// PostgreSQL, or one that an operator has set to read only.
pub(super) async fn check_writable(inner: &mut Inner) -> Result<()> {
    match inner {
        #[cfg(feature = "sqlite")]
        Inner::Sqlite(_) => Ok(()),
        #[cfg(feature = "postgres")]
        Inner::Postgres(transaction) => {
            let sql = "SELECT pg_is_in_recovery() OR current_setting('default_transaction_read_only') = 'on'";
            let read_only: bool = sqlx::query_scalar(sql).fetch_one(&mut **transaction).await?;
            if read_only {
                return Err(StoreError::ReadOnly("a standby, or default_transaction_read_only".to_owned()));
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::{is_read_only, is_transient};
    use crate::context::Granted;
    use crate::id::RandomIds;
    use crate::store::{DatabaseConfig, Store, StoreError, testing};

    #[tokio::test]
    async fn who_leaves_before_a_transaction_has_begun_leaves_none_behind() {
        for fresh in testing::databases().await {
            let config = DatabaseConfig { max_connections: 1, ..fresh.config.clone() };
            let store = Store::open(&config, fresh.clock.clone(), Arc::new(RandomIds)).await.unwrap();
            let system = Granted::system();
            for n in 0..300 {
                let _ = tokio::time::timeout(Duration::from_micros(n * 5), store.read(&system)).await;
                let mut tx = store.begin(&system).await.unwrap();
                run!(tx, r#"DELETE FROM "Alchemi_AccountTable" WHERE account_id = ''"#).unwrap();
                tx.commit().await.unwrap();
            }
        }
    }

    #[test]
    fn a_conversation_that_breaks_is_an_outage_and_not_a_failed_statement() {
        let broken = [
            sqlx::Error::Protocol("unknown message type: '\u{d2}'".to_owned()),
            sqlx::Error::WorkerCrashed,
            sqlx::Error::PoolTimedOut,
            std::io::Error::from(std::io::ErrorKind::ConnectionReset).into(),
        ];
        for error in broken {
            let error = StoreError::from(error);
            assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
        }
        assert!(matches!(StoreError::from(sqlx::Error::RowNotFound), StoreError::Statement(_)));
    }

    #[test]
    fn codes_that_are_worth_another_try() {
        // SQLITE_BUSY, _BUSY_SNAPSHOT, _LOCKED, _LOCKED_SHAREDCACHE, _IOERR, _IOERR_WRITE, _IOERR_IN_PAGE,
        // _CANTOPEN, _CANTOPEN_FULLPATH; then PostgreSQL's.
        let transient = ["5", "517", "6", "262", "10", "778", "8714", "14", "782"];
        let of_postgres =
            ["08006", "53300", "57P01", "57P03", "57014", "58030", "25P02", "25P03", "40001", "40P01", "55P03"];
        for code in transient.into_iter().chain(of_postgres) {
            assert!(is_transient(code), "{code}");
        }
        // SQLITE_ERROR, _CORRUPT, _CONSTRAINT_UNIQUE, _READONLY, _AUTH; then PostgreSQL's, some of which are numbers.
        for code in ["1", "11", "2067", "8", "23", "", "22003", "23505", "42601", "00005", "00010"] {
            assert!(!is_transient(code), "{code}");
        }
        // SQLITE_READONLY, _READONLY_DBMOVED, _FULL; then PostgreSQL's.
        for code in ["8", "1032", "13", "25006", "53100"] {
            assert!(is_read_only(code), "{code}");
        }
        for code in ["1", "5", "10", "23505", "00008", "57P01"] {
            assert!(!is_read_only(code), "{code}");
        }
    }
}
