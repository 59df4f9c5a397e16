//! Model grants of both product domains.

use super::changes::ChangeKind;
use super::page::{Page, Slice};
use super::{Result, Tx, columns, find, from_columns, list, on, push_scopes, remove};
use crate::context::{Domain, Tenant};
use crate::id::Id;
use crate::model::models::{AccessMode, ModelGrant};
use crate::model::scope::Scope;

columns::stored_as_name!(AccessMode);

from_columns! {
    ModelGrant {
        id, account_id, domain, model_name, scope_type, scope_id, access_mode,
        created_by, created_at, updated_at, version,
    }
}

impl Tx<Tenant> {
    /// Grants of `domain`, or those for exactly `model`, newest first.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn model_grants(
        &mut self,
        domain: Domain,
        model: Option<&str>,
        slice: &Slice,
    ) -> Result<Page<ModelGrant>> {
        list!(self, slice, ModelGrant in "Alchemi_ModelGrantTable", domain = domain; model_name = model)
    }

    /// Every grant of `domain` to one of `scopes`: what
    /// [`ModelRules`](crate::policy::models::ModelRules) are made from.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn model_grants_for(&mut self, domain: Domain, scopes: &[Scope]) -> Result<Vec<ModelGrant>> {
        let account = self.account.clone();
        on!(self, |c| {
            let mut q = sqlx::QueryBuilder::new(r#"SELECT * FROM "Alchemi_ModelGrantTable" WHERE account_id = "#);
            q.push_bind(&account).push(" AND domain = ").push_bind(domain);
            push_scopes!(q, scopes);
            q.build_query_as().fetch_all(c).await
        })
    }

    /// One grant.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn model_grant(&mut self, domain: Domain, id: &Id<ModelGrant>) -> Result<Option<ModelGrant>> {
        find!(self, "Alchemi_ModelGrantTable", domain = domain, id = id)
    }

    /// The grant of exactly this name to this scope.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn model_grant_of(&mut self, domain: Domain, model: &str, scope: &Scope) -> Result<Option<ModelGrant>> {
        find!(
            self,
            "Alchemi_ModelGrantTable",
            domain = domain,
            scope_type = scope.scope_type,
            scope_id = &scope.scope_id,
            model_name = model
        )
    }

    /// Makes a grant, or changes the access of the one for the same model and scope.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn upsert_model_grant(&mut self, grant: &ModelGrant) -> Result<ModelGrant> {
        let (account, now) = (self.account.clone(), self.now);
        self.changed(ChangeKind::Models);
        on!(self, |c| {
            sqlx::query_as(
            r#"INSERT INTO "Alchemi_ModelGrantTable" (account_id, id, domain, model_name, scope_type, scope_id, access_mode,
               created_by, created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9)
               ON CONFLICT (account_id, domain, scope_type, scope_id, model_name)
               DO UPDATE SET access_mode = excluded.access_mode, updated_at = excluded.updated_at,
               version = "Alchemi_ModelGrantTable".version + 1 RETURNING *"#
        )
        .bind(&account)
        .bind(&grant.id)
        .bind(grant.domain)
        .bind(&grant.model_name)
        .bind(grant.scope_type)
        .bind(&grant.scope_id)
        .bind(grant.access_mode)
        .bind(&grant.created_by)
        .bind(now)
        .fetch_one(c)
        .await
        })
    }

    /// Removes a grant.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn delete_model_grant(&mut self, domain: Domain, id: &Id<ModelGrant>) -> Result<bool> {
        let gone = remove!(self, "Alchemi_ModelGrantTable", domain = domain, id = id)?;
        self.changed(ChangeKind::Models);
        Ok(gone)
    }
}
