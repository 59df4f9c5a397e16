//! Model grants of both product domains.

use super::changes::ChangeKind;
use super::page::{Page, Slice};
use super::{Result, Tx, dialect, find, from_columns, list, on, remove};
use crate::context::{Domain, Tenant};
use crate::id::Id;
use crate::model::directory::User;
use crate::model::models::{AccessMode, ModelGrant};
use crate::model::scope::Scope;

dialect::stored_as_name!(AccessMode);

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
        if scopes.is_empty() {
            return Ok(Vec::new());
        }
        let account = self.account.clone();
        on!(self, |c| {
            let mut q = sqlx::QueryBuilder::new(r#"SELECT * FROM "Alchemi_ModelGrantTable" WHERE account_id = "#);
            q.push_bind(&account).push(" AND domain = ").push_bind(domain).push(" AND (");
            let mut any = q.separated(" OR ");
            for scope in scopes {
                any.push("(scope_type = ").push_bind_unseparated(scope.scope_type);
                any.push_unseparated(" AND scope_id = ").push_bind_unseparated(&scope.scope_id).push_unseparated(")");
            }
            q.push(")").build_query_as().fetch_all(c).await
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
        let account = self.account.clone();
        on!(self, |c| sqlx::query_as(
            r#"SELECT * FROM "Alchemi_ModelGrantTable"
               WHERE account_id = $1 AND domain = $2 AND scope_type = $3 AND scope_id = $4 AND model_name = $5"#
        )
        .bind(&account)
        .bind(domain)
        .bind(scope.scope_type)
        .bind(&scope.scope_id)
        .bind(model)
        .fetch_optional(c)
        .await)
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

    /// How many users of `domain` a scope reaches, and the first `sample` (at least 1) of them by id.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn users_within(&mut self, domain: Domain, scope: &Scope, sample: u32) -> Result<(i64, Vec<Id<User>>)> {
        let account = self.account.clone();
        let rows: Vec<(Id<User>, i64)> = on!(self, |c| {
            sqlx::query_as(
            r#"SELECT u.id, CAST(COUNT(*) OVER () AS BIGINT) FROM "Alchemi_UserTable" u
               WHERE u.account_id = $1 AND u.domain = $2 AND (CAST($3 AS TEXT) = 'account'
                 OR (CAST($3 AS TEXT) = 'user' AND u.id = $4)
                 OR EXISTS (SELECT 1 FROM "Alchemi_TeamMembershipTable" m
                    JOIN "Alchemi_TeamTable" t ON t.account_id = m.account_id AND t.domain = m.domain AND t.id = m.team_id
                    WHERE m.account_id = u.account_id AND m.domain = u.domain AND m.user_id = u.id
                    AND ((CAST($3 AS TEXT) = 'team' AND t.id = $4) OR (CAST($3 AS TEXT) = 'org' AND t.org_id = $4))))
               ORDER BY u.id LIMIT $5"#
        )
        .bind(&account)
        .bind(domain)
        .bind(scope.scope_type)
        .bind(&scope.scope_id)
        .bind(i64::from(sample))
        .fetch_all(c)
        .await
        })?;
        let total = rows.first().map_or(0, |(_, total)| *total);
        Ok((total, rows.into_iter().map(|(id, _)| id).collect()))
    }
}
