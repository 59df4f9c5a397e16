//! Orgs.

use super::Uprooted;
use crate::context::{Domain, Tenant};
use crate::id::Id;
use crate::model::directory::Org;
use crate::model::scope::ScopeType;
use crate::store::changes::ChangeKind;
use crate::store::page::{Page, Slice};
use crate::store::{Result, Tx, find, hold, list, on, remove, run};

impl Tx<Tenant> {
    /// Orgs of `domain`, newest first.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn orgs(&mut self, domain: Domain, slice: &Slice) -> Result<Page<Org>> {
        list!(self, slice, Org in "Alchemi_OrgTable", domain = domain)
    }

    /// One org.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn org(&mut self, domain: Domain, id: &Id<Org>) -> Result<Option<Org>> {
        find!(self, "Alchemi_OrgTable", domain = domain, id = id)
    }

    /// An org that is about to be changed, kept from everybody else until the end of
    /// the transaction.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn hold_org(&mut self, domain: Domain, id: &Id<Org>) -> Result<Option<Org>> {
        hold!(self, "Alchemi_OrgTable", domain = domain, id = id)
    }

    /// Makes an org.
    ///
    /// # Errors
    /// [`StoreError::Unique`](crate::store::StoreError::Unique) on `name`.
    pub async fn insert_org(&mut self, org: &Org) -> Result<()> {
        let account = self.account.clone();
        run!(
            self,
            r#"INSERT INTO "Alchemi_OrgTable" (account_id, domain, id, name, description, is_default_global, created_by,
               created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8)"#,
            &account,
            org.domain,
            &org.id,
            &org.name,
            &org.description,
            org.is_default_global,
            &org.created_by,
            org.created_at
        )?;
        self.changed(ChangeKind::Directory);
        Ok(())
    }

    /// Changes an org's name and description; gives the new row.
    ///
    /// # Errors
    /// [`StoreError::Unique`](crate::store::StoreError::Unique) on `name`.
    pub async fn update_org(&mut self, org: &Org) -> Result<Org> {
        let (account, now) = (self.account.clone(), self.now);
        self.changed(ChangeKind::Directory);
        on!(self, |c| sqlx::query_as(
            r#"UPDATE "Alchemi_OrgTable" SET name = $4, description = $5, updated_at = $6, version = version + 1
               WHERE account_id = $1 AND domain = $2 AND id = $3 RETURNING *"#
        )
        .bind(&account)
        .bind(org.domain)
        .bind(&org.id)
        .bind(&org.name)
        .bind(&org.description)
        .bind(now)
        .fetch_one(c)
        .await)
    }

    /// Removes an org, its teams and everything that hangs on it.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn delete_org(&mut self, domain: Domain, id: &Id<Org>) -> Result<Uprooted> {
        let uprooted = self.uproot(domain, ScopeType::Org, id.as_str()).await?;
        remove!(self, "Alchemi_OrgTable", domain = domain, id = id)?;
        Ok(uprooted)
    }
}
