//! Whose tokens were cut off, by the operator or by an identity provider: in no account, but for
//! the addresses of former admins.

use std::collections::HashMap;

use super::changes::ChangeKind;
use super::page::{Page, Slice};
use super::{Result, Tx, from_columns, on, run};
use crate::clock::Timestamp;
use crate::context::{Platform, Tenant};
use crate::id::Id;
use crate::model::revocations::{Logout, Revocation};

from_columns! {
    Revocation { id, issuer, subject, issued_before, reason, created_by, created_at }
    Logout { issuer, token_id, subject, session, issued_before, until }
}

impl Tx<Platform> {
    /// All of them, for the deny-list that every verification looks at.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn revocations(&mut self) -> Result<Vec<Revocation>> {
        on!(self, |c| sqlx::query_as(r#"SELECT * FROM "Alchemi_RevocationTable" ORDER BY created_at, id"#)
            .fetch_all(c)
            .await)
    }

    /// A page of them, newest first.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn revocation_page(&mut self, slice: &Slice) -> Result<Page<Revocation>> {
        let (at, id) = slice.before();
        let rows: Vec<Revocation> = on!(self, |c| sqlx::query_as(
            r#"SELECT * FROM "Alchemi_RevocationTable" WHERE (created_at, id) < ($1, $2)
               ORDER BY created_at DESC, id DESC LIMIT $3 OFFSET $4"#
        )
        .bind(at)
        .bind(&id)
        .bind(slice.fetch())
        .bind(slice.skip())
        .fetch_all(c)
        .await)?;
        Ok(slice.page(rows, |r| (r.created_at, r.id.as_str())))
    }

    /// The revocation of a subject's tokens.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn revocation_of(&mut self, issuer: &str, subject: &str) -> Result<Option<Revocation>> {
        on!(self, |c| sqlx::query_as(r#"SELECT * FROM "Alchemi_RevocationTable" WHERE issuer = $1 AND subject = $2"#)
            .bind(issuer)
            .bind(subject)
            .fetch_optional(c)
            .await)
    }

    /// One revocation.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn revocation(&mut self, id: &Id<Revocation>) -> Result<Option<Revocation>> {
        on!(self, |c| sqlx::query_as(r#"SELECT * FROM "Alchemi_RevocationTable" WHERE id = $1"#)
            .bind(id)
            .fetch_optional(c)
            .await)
    }

    /// Lets a subject's older tokens in again.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn delete_revocation(&mut self, id: &Id<Revocation>) -> Result<bool> {
        let gone = run!(self, r#"DELETE FROM "Alchemi_RevocationTable" WHERE id = $1"#, id)?;
        self.changed_in(&Id::nobody(), ChangeKind::Revocations);
        Ok(gone > 0)
    }

    /// Keeps a logout; false, and nothing is written, when its token was taken before.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn insert_logout(&mut self, logout: &Logout) -> Result<bool> {
        let made = run!(
            self,
            r#"INSERT INTO "Alchemi_LogoutTable" (issuer, token_id, subject, session, issued_before, until)
               VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (issuer, token_id) DO NOTHING"#,
            &logout.issuer,
            &logout.token_id,
            &logout.subject,
            &logout.session,
            logout.issued_before,
            logout.until
        )?;
        if made == 0 {
            return Ok(false);
        }
        let now = self.now;
        run!(self, r#"DELETE FROM "Alchemi_LogoutTable" WHERE until <= $1"#, now)?;
        self.changed_in(&Id::nobody(), ChangeKind::Revocations);
        Ok(true)
    }

    /// The logouts that still matter.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn logouts(&mut self) -> Result<Vec<Logout>> {
        let now = self.now;
        on!(self, |c| sqlx::query_as(r#"SELECT * FROM "Alchemi_LogoutTable" WHERE until > $1"#)
            .bind(now)
            .fetch_all(c)
            .await)
    }
}

/// Also within an account: an admin who is removed is cut off in the same transaction.
impl<R> Tx<R> {
    /// Cuts a subject off; of two moments for a subject, the later holds. Gives
    /// what holds now.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn put_revocation(&mut self, new: &Revocation) -> Result<Revocation> {
        let row = on!(self, |c| {
            sqlx::query_as(
            r#"INSERT INTO "Alchemi_RevocationTable" (id, issuer, subject, issued_before, reason, created_by, created_at)
               VALUES ($1, $2, $3, $4, $5, $6, $7)
               ON CONFLICT (issuer, subject) DO UPDATE SET
               issued_before = CASE WHEN excluded.issued_before > "Alchemi_RevocationTable".issued_before
               THEN excluded.issued_before ELSE "Alchemi_RevocationTable".issued_before END,
               reason = COALESCE(excluded.reason, "Alchemi_RevocationTable".reason) RETURNING *"#
        )
        .bind(&new.id)
        .bind(&new.issuer)
        .bind(&new.subject)
        .bind(new.issued_before)
        .bind(&new.reason)
        .bind(&new.created_by)
        .bind(new.created_at)
        .fetch_one(c)
        .await
        })?;
        self.changed_in(&Id::nobody(), ChangeKind::Revocations);
        Ok(row)
    }
}

impl Tx<Tenant> {
    /// Cuts off in this account whatever was issued before now to an e-mail address, whosever
    /// it is.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn cut_off_address(&mut self, email: &str) -> Result<()> {
        let (account, now) = (self.account.clone(), self.now);
        run!(
            self,
            r#"INSERT INTO "Alchemi_CutOffAddressTable" (account_id, user_email, issued_before) VALUES ($1, $2, $3)
               ON CONFLICT (account_id, user_email) DO UPDATE SET issued_before = excluded.issued_before"#,
            &account,
            email,
            now
        )?;
        self.changed(ChangeKind::Account);
        Ok(())
    }

    /// The addresses that were cut off in this account, and since when.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn cut_off_addresses(&mut self) -> Result<HashMap<String, Timestamp>> {
        let account = self.account.clone();
        let rows: Vec<(String, Timestamp)> = on!(self, |c| sqlx::query_as(
            r#"SELECT user_email, issued_before FROM "Alchemi_CutOffAddressTable" WHERE account_id = $1"#
        )
        .bind(&account)
        .fetch_all(c)
        .await)?;
        Ok(rows.into_iter().collect())
    }
}
