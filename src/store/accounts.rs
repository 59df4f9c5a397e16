//! Accounts, their admins and the operator's settings for them.

use super::changes::ChangeKind;
use super::page::{Page, Slice};
use super::{Result, StoreError, Tx, from_columns, on, run};
use crate::context::{Platform, Tenant};
use crate::credits::Usd;
use crate::id::Id;
use crate::model::accounts::{Account, AccountAdmin, ConsoleModelPolicy, FeaturePack, JsonText, ZitadelConfig};

from_columns! {
    Account {
        account_id, account_name, account_alias, domain, status, metadata, max_budget,
        created_by, created_at, updated_at, version,
    }
    AccountAdmin { id, account_id, user_email, role, created_by, created_at, updated_at, version }
}

/// What an operator's document looks like in its table, with its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned<T> {
    /// The document.
    pub value: T,
    /// Counts changes; 0 while it was never written.
    pub version: i64,
}

fn text(value: &impl serde::Serialize) -> String {
    JsonText::of(value).get().to_owned()
}

fn read<T: serde::de::DeserializeOwned>(table: &'static str, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| StoreError::Unreadable { table, reason: e.to_string() })
}

impl Tx<Platform> {
    /// Makes an account.
    ///
    /// # Errors
    /// [`StoreError::Unique`] on `account_name` or `domain`.
    pub async fn insert_account(&mut self, account: &Account) -> Result<()> {
        run!(
            self,
            r#"INSERT INTO "Alchemi_AccountTable" (account_id, account_name, account_alias, domain, status, metadata,
               max_budget, created_by, created_at, updated_at, version)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"#,
            &account.account_id,
            &account.account_name,
            &account.account_alias,
            &account.domain,
            account.status,
            &account.metadata,
            account.max_budget,
            &account.created_by,
            account.created_at,
            account.updated_at,
            account.version
        )?;
        self.changed_in(&account.account_id, ChangeKind::Account);
        Ok(())
    }

    /// Accounts, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn accounts(&mut self, status: Option<&str>, slice: &Slice) -> Result<Page<Account>> {
        let (at, id) = slice.before();
        let rows: Vec<Account> = on!(self, |c| {
            let mut q =
                sqlx::QueryBuilder::new(r#"SELECT * FROM "Alchemi_AccountTable" WHERE (created_at, account_id) < ("#);
            q.push_bind(at).push(", ").push_bind(&id).push(")");
            if let Some(status) = status {
                q.push(" AND status = ").push_bind(status);
            }
            q.push(" ORDER BY created_at DESC, account_id DESC LIMIT ").push_bind(slice.fetch());
            q.push(" OFFSET ").push_bind(slice.skip());
            q.build_query_as().fetch_all(c).await
        })?;
        Ok(slice.page(rows, |a| (a.created_at, a.account_id.as_str())))
    }

    /// The account whose id, or whose Zitadel organisation, is `key`; the id wins.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn account_by_id_or_organization(&mut self, key: &str) -> Result<Option<Account>> {
        on!(self, |c| sqlx::query_as(
            r#"SELECT a.* FROM "Alchemi_AccountTable" a
               LEFT JOIN "Alchemi_AccountZitadelTable" z ON z.account_id = a.account_id AND z.enabled
               WHERE a.account_id = $1 OR z.organization_id = $1
               ORDER BY CASE WHEN a.account_id = $1 THEN 0 ELSE 1 END LIMIT 1"#
        )
        .bind(key)
        .fetch_optional(c)
        .await)
    }

    /// Admins of several accounts, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn admins_of(&mut self, accounts: &[Id<Account>]) -> Result<Vec<AccountAdmin>> {
        if accounts.is_empty() {
            return Ok(Vec::new());
        }
        on!(self, |c| {
            let mut q = sqlx::QueryBuilder::new(r#"SELECT * FROM "Alchemi_AccountAdminTable" WHERE account_id IN ("#);
            let mut ids = q.separated(", ");
            for id in accounts {
                ids.push_bind(id);
            }
            q.push(") ORDER BY created_at DESC, id DESC").build_query_as().fetch_all(c).await
        })
    }
}

impl Tx<Tenant> {
    /// The account itself.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn this_account(&mut self) -> Result<Option<Account>> {
        let account = self.account.clone();
        on!(self, |c| sqlx::query_as(r#"SELECT * FROM "Alchemi_AccountTable" WHERE account_id = $1"#)
            .bind(&account)
            .fetch_optional(c)
            .await)
    }

    /// Writes every changeable column, if the row still has `account.version`.
    ///
    /// # Errors
    /// [`StoreError::Unique`] on `account_name` or `domain`.
    pub async fn update_account(&mut self, account: &Account) -> Result<()> {
        let now = self.now;
        run!(
            self,
            r#"UPDATE "Alchemi_AccountTable" SET account_name = $2, account_alias = $3, domain = $4, status = $5,
               metadata = $6, max_budget = $7, updated_at = $8, version = version + 1 WHERE account_id = $1"#,
            &account.account_id,
            &account.account_name,
            &account.account_alias,
            &account.domain,
            account.status,
            &account.metadata,
            account.max_budget,
            now
        )?;
        self.changed(ChangeKind::Account);
        Ok(())
    }

    /// Removes the account and, by its foreign keys, every row of it. Audit and
    /// ledger stay.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn delete_account(&mut self) -> Result<bool> {
        let account = self.account.clone();
        let gone = run!(self, r#"DELETE FROM "Alchemi_AccountTable" WHERE account_id = $1"#, &account)?;
        self.changed(ChangeKind::Account);
        Ok(gone > 0)
    }

    /// What the account's requests have cost so far, in US dollars.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn spend(&mut self) -> Result<Usd> {
        let account = self.account.clone();
        on!(self, |c| sqlx::query_scalar(
            r#"SELECT CAST(COALESCE(SUM(raw_cost), 0) AS BIGINT) FROM "Alchemi_UsageRollupTable" WHERE account_id = $1"#
        )
        .bind(&account)
        .fetch_one(c)
        .await)
    }

    /// The account's admins, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn admins(&mut self, slice: &Slice) -> Result<Page<AccountAdmin>> {
        let account = self.account.clone();
        let (at, id) = slice.before();
        let rows: Vec<AccountAdmin> = on!(self, |c| sqlx::query_as(
            r#"SELECT * FROM "Alchemi_AccountAdminTable" WHERE account_id = $1 AND (created_at, id) < ($2, $3)
               ORDER BY created_at DESC, id DESC LIMIT $4 OFFSET $5"#
        )
        .bind(&account)
        .bind(at)
        .bind(&id)
        .bind(slice.fetch())
        .bind(slice.skip())
        .fetch_all(c)
        .await)?;
        Ok(slice.page(rows, |a| (a.created_at, a.id.as_str())))
    }

    /// The admin with this e-mail address.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn admin_by_email(&mut self, email: &str) -> Result<Option<AccountAdmin>> {
        let account = self.account.clone();
        on!(self, |c| sqlx::query_as(
            r#"SELECT * FROM "Alchemi_AccountAdminTable" WHERE account_id = $1 AND user_email = $2"#
        )
        .bind(&account)
        .bind(email)
        .fetch_optional(c)
        .await)
    }

    /// Makes an admin, or changes the role of the one with this e-mail address.
    ///
    /// # Errors
    /// [`StoreError::ForeignKey`] when the account is gone.
    pub async fn upsert_admin(&mut self, admin: &AccountAdmin) -> Result<AccountAdmin> {
        let account = self.account.clone();
        let row = on!(self, |c| {
            sqlx::query_as(
            r#"INSERT INTO "Alchemi_AccountAdminTable" (account_id, id, user_email, role, created_by, created_at, updated_at)
               VALUES ($1, $2, $3, $4, $5, $6, $6)
               ON CONFLICT (account_id, user_email) DO UPDATE SET role = excluded.role, updated_at = excluded.updated_at,
               version = "Alchemi_AccountAdminTable".version + 1 RETURNING *"#
        )
        .bind(&account)
        .bind(&admin.id)
        .bind(&admin.user_email)
        .bind(&admin.role)
        .bind(&admin.created_by)
        .bind(admin.created_at)
        .fetch_one(c)
        .await
        })?;
        self.changed(ChangeKind::Account);
        Ok(row)
    }

    /// Changes an admin's address and role.
    ///
    /// # Errors
    /// [`StoreError::Unique`] on `user_email`.
    pub async fn update_admin(&mut self, admin: &AccountAdmin) -> Result<()> {
        let (account, now) = (self.account.clone(), self.now);
        run!(
            self,
            r#"UPDATE "Alchemi_AccountAdminTable" SET user_email = $3, role = $4, updated_at = $5, version = version + 1
               WHERE account_id = $1 AND id = $2"#,
            &account,
            &admin.id,
            &admin.user_email,
            &admin.role,
            now
        )?;
        self.changed(ChangeKind::Account);
        Ok(())
    }

    /// Removes an admin.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn delete_admin(&mut self, id: &Id<AccountAdmin>) -> Result<bool> {
        let account = self.account.clone();
        let gone =
            run!(self, r#"DELETE FROM "Alchemi_AccountAdminTable" WHERE account_id = $1 AND id = $2"#, &account, id)?;
        self.changed(ChangeKind::Account);
        Ok(gone > 0)
    }

    /// The features that the operator switched on.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn feature_pack(&mut self) -> Result<Versioned<FeaturePack>> {
        let account = self.account.clone();
        let row: Option<(String, String, i64)> = on!(self, |c| sqlx::query_as(
            r#"SELECT features, config, version FROM "Alchemi_AccountFeaturePackTable" WHERE account_id = $1"#
        )
        .bind(&account)
        .fetch_optional(c)
        .await)?;
        let Some((features, config, version)) = row else {
            return Ok(Versioned { value: FeaturePack::default(), version: 0 });
        };
        let table = "Alchemi_AccountFeaturePackTable";
        Ok(Versioned {
            value: FeaturePack { features: read(table, &features)?, config: read(table, &config)? },
            version,
        })
    }

    /// Replaces the features that are switched on; gives the new version.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_feature_pack(&mut self, pack: &FeaturePack) -> Result<i64> {
        let (account, now) = (self.account.clone(), self.now);
        let (features, config) = (text(&pack.features), text(&pack.config));
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
        let row: Option<(String, String, i64)> = on!(self, |c| {
            sqlx::query_as(
            r#"SELECT allow_models, deny_models, version FROM "Alchemi_AccountModelPolicyTable" WHERE account_id = $1"#
        )
        .bind(&account)
        .fetch_optional(c)
        .await
        })?;
        let Some((allow, deny, version)) = row else {
            return Ok(Versioned { value: ConsoleModelPolicy::default(), version: 0 });
        };
        let table = "Alchemi_AccountModelPolicyTable";
        let value = ConsoleModelPolicy { allow_models: read(table, &allow)?, deny_models: read(table, &deny)? };
        Ok(Versioned { value, version })
    }

    /// Replaces which models the account's console may use; gives the new version.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_console_model_policy(&mut self, policy: &ConsoleModelPolicy) -> Result<i64> {
        let (account, now) = (self.account.clone(), self.now);
        let (allow, deny) = (text(&policy.allow_models), text(&policy.deny_models));
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
        let row: Option<ZitadelRow> =
            on!(self, |c| sqlx::query_as(r#"SELECT * FROM "Alchemi_AccountZitadelTable" WHERE account_id = $1"#)
                .bind(&account)
                .fetch_optional(c)
                .await)?;
        row.map(ZitadelRow::read).transpose()
    }

    /// Binds the account to Zitadel; gives the new version.
    ///
    /// # Errors
    /// [`StoreError::Unique`] on `organization_id` when another account is that organisation.
    pub async fn put_zitadel_config(&mut self, config: &ZitadelConfig) -> Result<i64> {
        let (account, now) = (self.account.clone(), self.now);
        let mappings = text(&config.role_mappings);
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

struct ZitadelRow {
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
    ZitadelRow {
        enabled, issuer, audience, project_id, organization_id, role_prefix, role_mappings,
        account_id_claim, product_domains_claim, version,
    }
}

impl ZitadelRow {
    fn read(self) -> Result<Versioned<ZitadelConfig>> {
        Ok(Versioned {
            value: ZitadelConfig {
                enabled: self.enabled,
                issuer: self.issuer,
                audience: self.audience,
                project_id: self.project_id,
                organization_id: self.organization_id,
                role_prefix: self.role_prefix,
                role_mappings: read("Alchemi_AccountZitadelTable", &self.role_mappings)?,
                account_id_claim: self.account_id_claim,
                product_domains_claim: self.product_domains_claim,
            },
            version: self.version,
        })
    }
}
