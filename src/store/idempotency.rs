//! Answers to POSTs that carried an `Idempotency-Key`, written in the same
//! transaction as what they answer.

use std::time::Duration;

use super::{Reach, Result, Tx, on, run};
use crate::context::Granted;
use crate::id::Id;
use crate::model::accounts::Account;

/// How long an answer is replayed.
pub const KEPT_FOR: Duration = Duration::from_secs(24 * 3600);

/// Which request an answer belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RequestKey {
    /// The caller's account; nobody's for an operator without one.
    pub account: Id<Account>,
    /// The caller: issuer and subject.
    pub caller: String,
    /// Method and path.
    pub route: String,
    /// The header's value.
    pub key: String,
    /// A fingerprint of query and body, in hex.
    pub body_hash: String,
}

/// An answer that was given before.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct GivenAnswer {
    /// The fingerprint of the query and body that it answered.
    pub body_hash: String,
    /// Its status.
    pub status: i64,
    /// Its `ETag`.
    pub etag: Option<String>,
    /// Its JSON.
    pub answer: String,
}

impl<R> Tx<R>
where
    Granted<R>: Reach,
{
    /// The answer given to `request` within the last 24 hours.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn given_answer(&mut self, request: &RequestKey) -> Result<Option<GivenAnswer>> {
        let since = self.now.minus(KEPT_FOR);
        on!(self, |c| sqlx::query_as(
            r#"SELECT body_hash, status, etag, answer FROM "Alchemi_IdempotencyTable"
               WHERE account_id = $1 AND caller = $2 AND route = $3 AND key = $4 AND created_at > $5"#
        )
        .bind(&request.account)
        .bind(&request.caller)
        .bind(&request.route)
        .bind(&request.key)
        .bind(since)
        .fetch_optional(c)
        .await)
    }

    /// Keeps `answer` and forgets those that are too old.
    ///
    /// # Errors
    /// [`StoreError::Unique`](super::StoreError::Unique) when the same request was
    /// answered meanwhile by another transaction.
    pub async fn keep_answer(&mut self, request: &RequestKey, answer: &GivenAnswer) -> Result<()> {
        let now = self.now;
        run!(self, r#"DELETE FROM "Alchemi_IdempotencyTable" WHERE created_at <= $1"#, now.minus(KEPT_FOR))?;
        run!(
            self,
            r#"INSERT INTO "Alchemi_IdempotencyTable" (account_id, caller, route, key, body_hash, status, etag, answer, created_at)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"#,
            &request.account,
            &request.caller,
            &request.route,
            &request.key,
            &request.body_hash,
            answer.status,
            &answer.etag,
            &answer.answer,
            now
        )?;
        Ok(())
    }
}
