//! Holders of leases: processes that say, again and again, that they live.
//!
//! Which of them do is found out by watching their rows ([`Holder`]): one machine's
//! clock is never compared with another's alone. One that is fenced takes no lease and
//! renews none; what it had is an orphan's.

use crate::clock::Timestamp;
use crate::context::Platform;
use crate::store::{Result, Tx, from_columns, on, run};

/// A process that takes leases, and is not fenced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its id.
    pub holder: String,
    /// Until when it has said that it lives, by its own clock: another value each time.
    pub expires_at: Timestamp,
}

from_columns! { Holder { holder, expires_at } }

impl Tx<Platform> {
    /// Notes a process that will take leases.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn insert_lease_holder(&mut self, holder: &str, expires_at: Timestamp) -> Result<()> {
        run!(
            self,
            r#"INSERT INTO "Alchemi_LeaseHolderTable" (holder, started_at, expires_at) VALUES ($1, $2, $3)"#,
            holder,
            self.now,
            expires_at
        )?;
        Ok(())
    }

    /// Says that the process lives. `false`: it was fenced.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn renew_lease_holder(&mut self, holder: &str, expires_at: Timestamp) -> Result<bool> {
        let renewed = run!(
            self,
            r#"UPDATE "Alchemi_LeaseHolderTable" SET expires_at = $2 WHERE holder = $1 AND fenced = 0"#,
            holder,
            expires_at
        )?;
        Ok(renewed > 0)
    }

    /// Holders that are not fenced.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn lease_holders(&mut self) -> Result<Vec<Holder>> {
        on!(self, |c| sqlx::query_as(r#"SELECT holder, expires_at FROM "Alchemi_LeaseHolderTable" WHERE fenced = 0"#)
            .fetch_all(c)
            .await)
    }

    /// Fences a holder, unless it has said since that it lives, or its time is not over by this
    /// process's clock either.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn fence_silent_lease_holder(&mut self, silent: &Holder) -> Result<()> {
        run!(
            self,
            r#"UPDATE "Alchemi_LeaseHolderTable" SET fenced = 1
               WHERE holder = $1 AND expires_at = $2 AND expires_at <= $3 AND fenced = 0"#,
            &silent.holder,
            silent.expires_at,
            self.now
        )?;
        Ok(())
    }

    /// Fences every holder but this one.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn fence_other_lease_holders(&mut self, holder: &str) -> Result<()> {
        run!(self, r#"UPDATE "Alchemi_LeaseHolderTable" SET fenced = 1 WHERE holder <> $1 AND fenced = 0"#, holder)?;
        Ok(())
    }

    /// Fences one holder, at its own wish or because its journal was replayed.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn fence_lease_holder(&mut self, holder: &str) -> Result<()> {
        run!(self, r#"UPDATE "Alchemi_LeaseHolderTable" SET fenced = 1 WHERE holder = $1"#, holder)?;
        Ok(())
    }
}
