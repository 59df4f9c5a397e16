//! What only an operator sets for an account: features, the console's model policy,
//! the binding to Zitadel. Each is a row of its own, so that no change loses a
//! neighbour's.

use std::collections::HashMap;

use super::changes::ChangeKind;
use super::{Result, StoreError, Tx, from_columns, of_accounts, on};
use crate::context::Tenant;
use crate::id::Id;
use crate::model::accounts::{Account, ConsoleModelPolicy, FeaturePack, JsonText, ZitadelConfig};

/// A document of an account, with its version.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Versioned<T> {
    /// The document.
    pub value: T,
    /// Counts changes; 0 while it was never written.
    pub version: i64,
}

/// A column's JSON.
pub(super) fn json(value: &impl serde::Serialize) -> String {
    JsonText::of(value).get().to_owned()
}

/// Reads a column's JSON.
pub(super) fn read<T: serde::de::DeserializeOwned>(table: &'static str, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| StoreError::Unreadable { table, reason: e.to_string() })
}

/// Documents by their account.
type ByAccount<T> = HashMap<Id<Account>, Versioned<T>>;

struct PackRow {
    account_id: Id<Account>,
    features: String,
    config: String,
    version: i64,
}

struct PolicyRow {
    account_id: Id<Account>,
    allow_models: String,
    deny_models: String,
    version: i64,
}

struct ZitadelRow {
    account_id: Id<Account>,
    enabled: bool,
    issuer: Option<String>,
    audience: Option<String>,
    project_id: Option<String>,
    organization_id: Option<String>,
    role_prefix: Option<String>,
    role_mappings: String,
    account_id_claim: Option<String>,
    product_domains_claim: Option<String>,
    version: i64,
}

from_columns! {
    PackRow { account_id, features, config, version }
    PolicyRow { account_id, allow_models, deny_models, version }
    ZitadelRow {
        account_id, enabled, issuer, audience, project_id, organization_id, role_prefix, role_mappings,
        account_id_claim, product_domains_claim, version,
    }
}

impl PackRow {
    fn read(self) -> Result<(Id<Account>, Versioned<FeaturePack>)> {
        let table = "Alchemi_AccountFeaturePackTable";
        let value = FeaturePack { features: read(table, &self.features)?, config: read(table, &self.config)? };
        Ok((self.account_id, Versioned { value, version: self.version }))
    }
}

impl PolicyRow {
    fn read(self) -> Result<(Id<Account>, Versioned<ConsoleModelPolicy>)> {
        let table = "Alchemi_AccountModelPolicyTable";
        let value = ConsoleModelPolicy {
            allow_models: read(table, &self.allow_models)?,
            deny_models: read(table, &self.deny_models)?,
        };
        Ok((self.account_id, Versioned { value, version: self.version }))
    }
}

impl ZitadelRow {
    fn read(self) -> Result<(Id<Account>, Versioned<ZitadelConfig>)> {
        let value = ZitadelConfig {
            enabled: self.enabled,
            issuer: self.issuer,
            audience: self.audience,
            project_id: self.project_id,
            organization_id: self.organization_id,
            role_prefix: self.role_prefix,
            role_mappings: read("Alchemi_AccountZitadelTable", &self.role_mappings)?,
            account_id_claim: self.account_id_claim,
            product_domains_claim: self.product_domains_claim,
        };
        Ok((self.account_id, Versioned { value, version: self.version }))
    }
}

impl<R> Tx<R> {
    pub(super) async fn feature_packs_of(&mut self, accounts: &[Id<Account>]) -> Result<ByAccount<FeaturePack>> {
        let rows: Vec<PackRow> = of_accounts!(
            self,
            r#"SELECT * FROM "Alchemi_AccountFeaturePackTable" WHERE account_id IN ("#,
            accounts,
            ")"
        )?;
        rows.into_iter().map(PackRow::read).collect()
    }

    pub(super) async fn console_model_policies_of(
        &mut self,
        accounts: &[Id<Account>],
    ) -> Result<ByAccount<ConsoleModelPolicy>> {
        let rows: Vec<PolicyRow> = of_accounts!(
            self,
            r#"SELECT * FROM "Alchemi_AccountModelPolicyTable" WHERE account_id IN ("#,
            accounts,
            ")"
        )?;
        rows.into_iter().map(PolicyRow::read).collect()
    }

    pub(super) async fn zitadel_configs_of(&mut self, accounts: &[Id<Account>]) -> Result<ByAccount<ZitadelConfig>> {
        let rows: Vec<ZitadelRow> =
            of_accounts!(self, r#"SELECT * FROM "Alchemi_AccountZitadelTable" WHERE account_id IN ("#, accounts, ")")?;
        rows.into_iter().map(ZitadelRow::read).collect()
    }
}

impl Tx<Tenant> {
    /// The features that the operator switched on.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn feature_pack(&mut self) -> Result<Versioned<FeaturePack>> {
        let account = self.account.clone();
        Ok(self.feature_packs_of(std::slice::from_ref(&account)).await?.remove(&account).unwrap_or_default())
    }

    /// Replaces the features that are switched on; gives the new version.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_feature_pack(&mut self, pack: &FeaturePack) -> Result<i64> {
        let (account, now) = (self.account.clone(), self.now);
        let (features, config) = (json(&pack.features), json(&pack.config));
        let version = on!(self, |c| {
            sqlx::query_scalar(
            r#"INSERT INTO "Alchemi_AccountFeaturePackTable" (account_id, features, config, updated_at) VALUES ($1, $2, $3, $4)
               ON CONFLICT (account_id) DO UPDATE SET features = excluded.features, config = excluded.config,
               updated_at = excluded.updated_at, version = "Alchemi_AccountFeaturePackTable".version + 1 RETURNING version"#
        )
        .bind(&account)
        .bind(&features)
        .bind(&config)
        .bind(now)
        .fetch_one(c)
        .await
        })?;
        self.changed(ChangeKind::Account);
        Ok(version)
    }

    /// Which models the account's console may use.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn console_model_policy(&mut self) -> Result<Versioned<ConsoleModelPolicy>> {
        let account = self.account.clone();
        Ok(self.console_model_policies_of(std::slice::from_ref(&account)).await?.remove(&account).unwrap_or_default())
    }

    /// Replaces which models the account's console may use; gives the new version.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_console_model_policy(&mut self, policy: &ConsoleModelPolicy) -> Result<i64> {
        let (account, now) = (self.account.clone(), self.now);
        let (allow, deny) = (json(&policy.allow_models), json(&policy.deny_models));
        let version = on!(self, |c| sqlx::query_scalar(
            r#"INSERT INTO "Alchemi_AccountModelPolicyTable" (account_id, allow_models, deny_models, updated_at)
               VALUES ($1, $2, $3, $4)
               ON CONFLICT (account_id) DO UPDATE SET allow_models = excluded.allow_models,
               deny_models = excluded.deny_models, updated_at = excluded.updated_at,
               version = "Alchemi_AccountModelPolicyTable".version + 1 RETURNING version"#
        )
        .bind(&account)
        .bind(&allow)
        .bind(&deny)
        .bind(now)
        .fetch_one(c)
        .await)?;
        self.changed(ChangeKind::Models);
        Ok(version)
    }

    /// How the account is bound to Zitadel.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn zitadel_config(&mut self) -> Result<Option<Versioned<ZitadelConfig>>> {
        let account = self.account.clone();
        Ok(self.zitadel_configs_of(std::slice::from_ref(&account)).await?.remove(&account))
    }

    /// Binds the account to Zitadel; gives the new version.
    ///
    /// # Errors
    /// [`StoreError::Unique`] on `organization_id` when another account is that organisation.
    pub async fn put_zitadel_config(&mut self, config: &ZitadelConfig) -> Result<i64> {
        let (account, now) = (self.account.clone(), self.now);
        let mappings = json(&config.role_mappings);
        let version = on!(self, |c| {
            sqlx::query_scalar(
            r#"INSERT INTO "Alchemi_AccountZitadelTable" (account_id, enabled, issuer, audience, project_id,
               organization_id, role_prefix, role_mappings, account_id_claim, product_domains_claim, updated_at)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
               ON CONFLICT (account_id) DO UPDATE SET enabled = excluded.enabled, issuer = excluded.issuer,
               audience = excluded.audience, project_id = excluded.project_id, organization_id = excluded.organization_id,
               role_prefix = excluded.role_prefix, role_mappings = excluded.role_mappings,
               account_id_claim = excluded.account_id_claim, product_domains_claim = excluded.product_domains_claim,
               updated_at = excluded.updated_at, version = "Alchemi_AccountZitadelTable".version + 1 RETURNING version"#
        )
        .bind(&account)
        .bind(config.enabled)
        .bind(&config.issuer)
        .bind(&config.audience)
        .bind(&config.project_id)
        .bind(&config.organization_id)
        .bind(&config.role_prefix)
        .bind(&mappings)
        .bind(&config.account_id_claim)
        .bind(&config.product_domains_claim)
        .bind(now)
        .fetch_one(c)
        .await
        })?;
        self.changed(ChangeKind::Account);
        Ok(version)
    }
}
