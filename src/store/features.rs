//! Feature entitlements of both product domains.

use super::changes::ChangeKind;
use super::page::{Page, Slice};
use super::{Result, Tx, from_columns, on, run};
use crate::context::{Domain, Tenant};
use crate::id::Id;
use crate::model::features::FeatureEntitlement;
use crate::model::scope::Scope;

from_columns! {
    FeatureEntitlement {
        id, account_id, domain, feature_code, scope_type, scope_id, enabled, config_json,
        created_by, created_at, updated_at, version,
    }
}

impl Tx<Tenant> {
    /// Entitlements of `domain`, or those for exactly `feature`, newest first.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn entitlements(
        &mut self,
        domain: Domain,
        feature: Option<&str>,
        slice: &Slice,
    ) -> Result<Page<FeatureEntitlement>> {
        let account = self.account.clone();
        let (at, id) = slice.before();
        let rows: Vec<FeatureEntitlement> = on!(self, |c| {
            let mut q =
                sqlx::QueryBuilder::new(r#"SELECT * FROM "Alchemi_FeatureEntitlementTable" WHERE account_id = "#);
            q.push_bind(&account).push(" AND domain = ").push_bind(domain);
            q.push(" AND (created_at, id) < (").push_bind(at).push(", ").push_bind(&id).push(")");
            if let Some(feature) = feature {
                q.push(" AND feature_code = ").push_bind(feature);
            }
            q.push(" ORDER BY created_at DESC, id DESC LIMIT ").push_bind(slice.fetch());
            q.push(" OFFSET ").push_bind(slice.skip()).build_query_as().fetch_all(c).await
        })?;
        Ok(slice.page(rows, |e| (e.created_at, e.id.as_str())))
    }

    /// Every entitlement of `domain` for one of `scopes`, or those for exactly `feature`:
    /// what [`FeatureRules`](crate::policy::features::FeatureRules) are made from.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn entitlements_for(
        &mut self,
        domain: Domain,
        feature: Option<&str>,
        scopes: &[Scope],
    ) -> Result<Vec<FeatureEntitlement>> {
        if scopes.is_empty() {
            return Ok(Vec::new());
        }
        let account = self.account.clone();
        on!(self, |c| {
            let mut q =
                sqlx::QueryBuilder::new(r#"SELECT * FROM "Alchemi_FeatureEntitlementTable" WHERE account_id = "#);
            q.push_bind(&account).push(" AND domain = ").push_bind(domain);
            if let Some(feature) = feature {
                q.push(" AND feature_code = ").push_bind(feature);
            }
            q.push(" AND (");
            let mut any = q.separated(" OR ");
            for scope in scopes {
                any.push("(scope_type = ").push_bind_unseparated(scope.scope_type);
                any.push_unseparated(" AND scope_id = ").push_bind_unseparated(&scope.scope_id).push_unseparated(")");
            }
            q.push(")").build_query_as().fetch_all(c).await
        })
    }

    /// One entitlement, of whichever domain.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn entitlement(&mut self, id: &Id<FeatureEntitlement>) -> Result<Option<FeatureEntitlement>> {
        let account = self.account.clone();
        on!(self, |c| sqlx::query_as(
            r#"SELECT * FROM "Alchemi_FeatureEntitlementTable" WHERE account_id = $1 AND id = $2"#
        )
        .bind(&account)
        .bind(id)
        .fetch_optional(c)
        .await)
    }

    /// The entitlement of exactly this scope for exactly this feature.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn entitlement_of(
        &mut self,
        domain: Domain,
        feature: &str,
        scope: &Scope,
    ) -> Result<Option<FeatureEntitlement>> {
        let found = self.entitlements_for(domain, Some(feature), std::slice::from_ref(scope)).await?;
        Ok(found.into_iter().next())
    }

    /// Makes an entitlement, or changes the one of the same scope for the same feature.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn upsert_entitlement(&mut self, entitlement: &FeatureEntitlement) -> Result<FeatureEntitlement> {
        let (account, now) = (self.account.clone(), self.now);
        self.changed(ChangeKind::Features);
        on!(self, |c| {
            sqlx::query_as(
            r#"INSERT INTO "Alchemi_FeatureEntitlementTable" (account_id, id, domain, feature_code, scope_type, scope_id,
               enabled, config_json, created_by, created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $10)
               ON CONFLICT (account_id, domain, feature_code, scope_type, scope_id)
               DO UPDATE SET enabled = excluded.enabled, config_json = excluded.config_json,
               updated_at = excluded.updated_at, version = "Alchemi_FeatureEntitlementTable".version + 1 RETURNING *"#
        )
        .bind(&account)
        .bind(&entitlement.id)
        .bind(entitlement.domain)
        .bind(&entitlement.feature_code)
        .bind(entitlement.scope_type)
        .bind(&entitlement.scope_id)
        .bind(entitlement.enabled)
        .bind(&entitlement.config_json)
        .bind(&entitlement.created_by)
        .bind(now)
        .fetch_one(c)
        .await
        })
    }

    /// Removes an entitlement.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn delete_entitlement(&mut self, id: &Id<FeatureEntitlement>) -> Result<bool> {
        let account = self.account.clone();
        let gone = run!(
            self,
            r#"DELETE FROM "Alchemi_FeatureEntitlementTable" WHERE account_id = $1 AND id = $2"#,
            &account,
            id
        )?;
        self.changed(ChangeKind::Features);
        Ok(gone > 0)
    }
}
