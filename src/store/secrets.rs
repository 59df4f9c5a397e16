//! What is sealed, in every table that holds sealed secrets: under which keys, and
//! sealed anew under the newest.

use super::audit::Entry;
use super::{Result, Store, StoreError, Tx, from_columns, on, run};
use crate::context::{Granted, Platform};
use crate::id::Id;
use crate::model::accounts::Account;
use crate::model::alerts::AlertWebhook;
use crate::model::audit::{Action, Label};
use crate::model::connections::Connection;
use crate::model::sso::SsoConfig;
use crate::secret::{KeyRing, Place, SealError, Sealed};

/// A sealed value out of its columns.
pub(super) fn sealed(key_id: Option<String>, envelope: Option<String>) -> Option<Sealed> {
    key_id.zip(envelope).map(|(key_id, envelope)| Sealed { key_id, envelope })
}

/// A column that holds sealed values, with its statements.
struct Column {
    table: &'static str,
    counts: &'static str,
    next: &'static str,
    reseal: &'static str,
}

/// A table with the columns `account_id`, `id`, `secret_json` and `secret_key_id`.
macro_rules! column {
    ($table:literal, $named:expr) => {
        Column {
            table: $named,
            counts: concat!(
                r#"SELECT secret_key_id AS key_id, CAST(COUNT(*) AS BIGINT) AS secrets FROM ""#,
                $table,
                r#"" WHERE secret_key_id IS NOT NULL GROUP BY secret_key_id ORDER BY secret_key_id"#
            ),
            next: concat!(
                r#"SELECT account_id, id, secret_json FROM ""#,
                $table,
                r#"" WHERE secret_json IS NOT NULL AND secret_key_id <> $1 AND (account_id, id) > ($2, $3)
                   ORDER BY account_id, id LIMIT $4"#
            ),
            reseal: concat!(
                r#"UPDATE ""#,
                $table,
                r#"" SET secret_json = $4, secret_key_id = $5 WHERE account_id = $1 AND id = $2 AND secret_json = $3"#
            ),
        }
    };
}

const COLUMNS: [Column; 3] = [
    column!("Alchemi_CopilotConnectionTable", Connection::TABLE),
    column!("Alchemi_AccountSsoTable", SsoConfig::TABLE),
    column!("Alchemi_AlertWebhookTable", AlertWebhook::TABLE),
];

/// How many secrets of a table are sealed under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedCount {
    /// The table.
    pub table: &'static str,
    /// The key's id.
    pub key_id: String,
    /// How many.
    pub secrets: i64,
}

/// What a rotation did so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rotation {
    /// Secrets sealed anew.
    pub resealed: u64,
    /// Secrets that somebody else changed meanwhile; they are under the newest key or are looked at next time.
    pub skipped: u64,
    /// Secrets that do not open, each with why.
    pub failed: Vec<Unopened>,
}

/// A secret that does not open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unopened {
    /// The table.
    pub table: &'static str,
    /// The account.
    pub account: Id<Account>,
    /// The row.
    pub id: String,
    /// Why.
    pub reason: SealError,
}

struct CountRow {
    key_id: String,
    secrets: i64,
}

struct SealedRow {
    account_id: Id<Account>,
    id: String,
    secret_json: String,
}

from_columns! {
    CountRow { key_id, secrets }
    SealedRow { account_id, id, secret_json }
}

impl Tx<Platform> {
    /// How many secrets there are, by table and key.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn sealed_counts(&mut self) -> Result<Vec<SealedCount>> {
        let mut all = Vec::new();
        for column in &COLUMNS {
            let rows: Vec<CountRow> = on!(self, |c| sqlx::query_as(column.counts).fetch_all(c).await)?;
            let count = |row: CountRow| SealedCount { table: column.table, key_id: row.key_id, secrets: row.secrets };
            all.extend(rows.into_iter().map(count));
        }
        Ok(all)
    }
}

/// Seals everything anew that is not under the first key of `ring`, in transactions of
/// `batch` rows, and tells `progress` after each. It may be stopped at any moment and
/// run again, beside gateways that are at work: a secret that is changed meanwhile is
/// left as it is. What was done is in the operator's audit.
///
/// # Errors
/// [`StoreError`]; what was committed before stays. [`StoreError::Setup`] without a key.
pub async fn rotate(
    store: &Store,
    ring: &KeyRing,
    batch: u32,
    mut progress: impl FnMut(&Rotation),
) -> Result<Rotation> {
    let newest = ring.ids().next().ok_or_else(|| {
        StoreError::Setup("secrets.keys (ALCHEMI_SECRET_KEY) is empty: there is no key to seal under".to_owned())
    })?;
    let mut done = Rotation::default();
    for column in &COLUMNS {
        let (mut account, mut id) = (Id::nobody(), String::new());
        loop {
            let mut tx = store.begin(&Granted::system()).await?;
            let rows: Vec<SealedRow> = on!(tx, |c| sqlx::query_as(column.next)
                .bind(newest)
                .bind(&account)
                .bind(&id)
                .bind(i64::from(batch.max(1)))
                .fetch_all(c)
                .await)?;
            let Some(last) = rows.last() else { break };
            (account, id) = (last.account_id.clone(), last.id.clone());
            for row in rows {
                reseal(&mut tx, ring, column, row, &mut done).await?;
            }
            tx.commit().await?;
            progress(&done);
        }
    }
    if done.resealed > 0 {
        let mut tx = store.begin(&Granted::system()).await?;
        let entry = Entry { action: Action::Update, table: "Alchemi_SecretKey", id: newest, label: Label::Iam };
        let told = serde_json::json!({ "resealed": done.resealed, "failed": done.failed.len() });
        tx.audit(entry, None::<&()>, &told).await?;
        tx.commit().await?;
    }
    Ok(done)
}

async fn reseal(
    tx: &mut Tx<Platform>,
    ring: &KeyRing,
    column: &Column,
    row: SealedRow,
    done: &mut Rotation,
) -> Result<()> {
    let SealedRow { account_id: account, id, secret_json: old } = row;
    let place = Place { account: account.as_str(), table: column.table, row: &id, column: "secret_json" };
    match ring.open(&old, place).and_then(|plain| ring.seal(&plain, place)) {
        Ok(new) => match run!(tx, column.reseal, &account, &id, &old, &new.envelope, &new.key_id)? {
            0 => done.skipped += 1,
            _ => done.resealed += 1,
        },
        Err(reason) => done.failed.push(Unopened { table: column.table, account, id, reason }),
    }
    Ok(())
}
