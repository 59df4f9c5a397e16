//! Sign-on settings of accounts.

use std::collections::HashMap;

use super::policies::{json, read};
use super::secrets::sealed;
use super::{Result, StoreError, Tx, from_columns, of_accounts, on, run};
use crate::clock::Timestamp;
use crate::context::Tenant;
use crate::id::Id;
use crate::model::accounts::Account;
use crate::model::sso::{SsoConfig, SsoSettings};

struct SsoRow {
    account_id: Id<Account>,
    id: Id<SsoConfig>,
    sso_provider: Option<String>,
    sso_settings: String,
    enabled: bool,
    secret_json: Option<String>,
    secret_key_id: Option<String>,
    secret_keys: String,
    created_at: Timestamp,
    updated_at: Timestamp,
    version: i64,
}

from_columns! {
    SsoRow {
        account_id, id, sso_provider, sso_settings, enabled, secret_json, secret_key_id, secret_keys,
        created_at, updated_at, version,
    }
}

impl TryFrom<SsoRow> for SsoConfig {
    type Error = StoreError;

    fn try_from(row: SsoRow) -> Result<Self> {
        let shown = read(Self::TABLE, &row.sso_settings)?;
        Ok(Self {
            id: Some(row.id),
            account_id: row.account_id,
            sso_provider: row.sso_provider,
            sso_settings: SsoSettings { shown, secret_keys: read(Self::TABLE, &row.secret_keys)? },
            enabled: row.enabled,
            created_at: Some(row.created_at),
            updated_at: Some(row.updated_at),
            version: row.version,
            sealed: sealed(row.secret_key_id, row.secret_json),
        })
    }
}

impl<R> Tx<R> {
    pub(super) async fn sso_configs_of(&mut self, accounts: &[Id<Account>]) -> Result<HashMap<Id<Account>, SsoConfig>> {
        let rows: Vec<SsoRow> =
            of_accounts!(self, r#"SELECT * FROM "Alchemi_AccountSsoTable" WHERE account_id IN ("#, accounts, ")")?;
        rows.into_iter().map(|row| Ok((row.account_id.clone(), row.try_into()?))).collect()
    }
}

impl Tx<Tenant> {
    /// The account's sign-on settings.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn sso_config(&mut self) -> Result<Option<SsoConfig>> {
        let account = self.account.clone();
        Ok(self.sso_configs_of(std::slice::from_ref(&account)).await?.remove(&account))
    }

    /// Makes or replaces the sign-on settings of a held account; gives the new row.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_sso_config(&mut self, config: &SsoConfig) -> Result<SsoConfig> {
        let (account, now) = (self.account.clone(), self.now);
        let (shown, names) = (json(&config.sso_settings.shown), json(&config.sso_settings.secret_keys));
        let sealed = config.sealed.as_ref();
        let row: SsoRow = on!(self, |c| {
            sqlx::query_as(
            r#"INSERT INTO "Alchemi_AccountSsoTable" (account_id, id, sso_provider, sso_settings, enabled, secret_json,
               secret_key_id, secret_keys, created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9)
               ON CONFLICT (account_id) DO UPDATE SET sso_provider = excluded.sso_provider,
               sso_settings = excluded.sso_settings, enabled = excluded.enabled, secret_json = excluded.secret_json,
               secret_key_id = excluded.secret_key_id, secret_keys = excluded.secret_keys,
               updated_at = excluded.updated_at, version = "Alchemi_AccountSsoTable".version + 1 RETURNING *"#
        )
        .bind(&account)
        .bind(&config.id)
        .bind(&config.sso_provider)
        .bind(&shown)
        .bind(config.enabled)
        .bind(sealed.map(|s| s.envelope.as_str()))
        .bind(sealed.map(|s| s.key_id.as_str()))
        .bind(&names)
        .bind(now)
        .fetch_one(c)
        .await
        })?;
        row.try_into()
    }

    /// Removes the account's sign-on settings.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn delete_sso_config(&mut self) -> Result<bool> {
        let account = self.account.clone();
        Ok(run!(self, r#"DELETE FROM "Alchemi_AccountSsoTable" WHERE account_id = $1"#, &account)? > 0)
    }
}
