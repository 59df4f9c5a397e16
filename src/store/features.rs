//! Feature entitlements of both product domains.

use super::changes::ChangeKind;
use super::page::{Page, Slice};
use super::{Result, Tx, find, from_columns, list, on, push_scopes, remove};
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
        list!(self, slice, FeatureEntitlement in "Alchemi_FeatureEntitlementTable", domain = domain; feature_code = feature)
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
        let account = self.account.clone();
        on!(self, |c| {
            let mut q =
                sqlx::QueryBuilder::new(r#"SELECT * FROM "Alchemi_FeatureEntitlementTable" WHERE account_id = "#);
            q.push_bind(&account).push(" AND domain = ").push_bind(domain);
            if let Some(feature) = feature {
                q.push(" AND feature_code = ").push_bind(feature);
            }
            push_scopes!(q, scopes);
            q.build_query_as().fetch_all(c).await
        })
    }

    /// One entitlement, of whichever domain.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn entitlement(&mut self, id: &Id<FeatureEntitlement>) -> Result<Option<FeatureEntitlement>> {
        find!(self, "Alchemi_FeatureEntitlementTable", id = id)
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
        let gone = remove!(self, "Alchemi_FeatureEntitlementTable", id = id)?;
        self.changed(ChangeKind::Features);
        Ok(gone)
    }
}
