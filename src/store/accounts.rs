//! Accounts and their admins.

use std::collections::HashMap;

use super::changes::ChangeKind;
use super::page::{Page, Slice};
use super::{Result, Tx, find, from_columns, list, of_accounts, on, remove, run};
use crate::context::{Platform, Tenant};
use crate::id::Id;
use crate::model::accounts::{Account, AccountAdmin, AccountBundle, AccountStatus};
use crate::model::budgets::AccountAllocation;

from_columns! {
    Account {
        account_id, account_name, account_alias, domain, status, metadata, max_budget,
        created_by, created_at, updated_at, version,
    }
    AccountAdmin { id, account_id, user_email, role, created_by, created_at, updated_at, version }
    AccountAllocation {
        account_id, monthly_credits, overflow_limit, credit_factor, enforcement, effective_from,
        updated_by, created_at, updated_at, version,
    }
}

/// Which accounts are wanted.
#[derive(Debug, Clone, Default)]
pub struct AccountFilter {
    /// Only of this status.
    pub status: Option<AccountStatus>,
    /// Only of this name.
    pub account_name: Option<String>,
    /// Only of this e-mail domain.
    pub domain: Option<String>,
}

impl Tx<Platform> {
    /// Makes an account.
    ///
    /// # Errors
    /// [`StoreError::Unique`](super::StoreError::Unique) on `account_name` or `domain`.
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
    /// [`StoreError`](super::StoreError).
    pub async fn accounts(&mut self, filter: &AccountFilter, slice: &Slice) -> Result<Page<Account>> {
        let (at, id) = slice.before();
        let rows: Vec<Account> = on!(self, |c| {
            let mut q =
                sqlx::QueryBuilder::new(r#"SELECT * FROM "Alchemi_AccountTable" WHERE (created_at, account_id) < ("#);
            q.push_bind(at).push(", ").push_bind(&id).push(")");
            if let Some(status) = filter.status {
                q.push(" AND status = ").push_bind(status);
            }
            for (column, value) in [(" AND account_name = ", &filter.account_name), (" AND domain = ", &filter.domain)]
            {
                if let Some(value) = value {
                    q.push(column).push_bind(value);
                }
            }
            q.push(" ORDER BY created_at DESC, account_id DESC LIMIT ").push_bind(slice.fetch());
            q.push(" OFFSET ").push_bind(slice.skip());
            q.build_query_as().fetch_all(c).await
        })?;
        Ok(slice.page(rows, |a| (a.created_at, a.account_id.as_str())))
    }

    /// How many active accounts are bound to which issuer, and how many of those to no Zitadel
    /// organisation: issuer, accounts, of them without an organisation.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn accounts_by_issuer(&mut self) -> Result<Vec<(Option<String>, i64, i64)>> {
        on!(self, |c| sqlx::query_as(
            r#"SELECT z.issuer, CAST(COUNT(*) AS BIGINT), CAST(COUNT(*) - COUNT(z.organization_id) AS BIGINT)
               FROM "Alchemi_AccountTable" a
               LEFT JOIN "Alchemi_AccountZitadelTable" z ON z.account_id = a.account_id AND z.enabled
               WHERE a.status = $1 GROUP BY z.issuer"#
        )
        .bind(AccountStatus::Active)
        .fetch_all(c)
        .await)
    }

    /// The account whose id, or whose Zitadel organisation, is `key`; the id wins.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn account_by_id_or_organization(&mut self, key: &str) -> Result<Option<Account>> {
        on!(self, |c| sqlx::query_as(
            r#"SELECT a.* FROM "Alchemi_AccountTable" a
               LEFT JOIN "Alchemi_AccountZitadelTable" z ON z.account_id = a.account_id
               WHERE a.account_id = $1 OR z.organization_id = $1
               ORDER BY CASE WHEN a.account_id = $1 THEN 0 ELSE 1 END LIMIT 1"#
        )
        .bind(key)
        .fetch_optional(c)
        .await)
    }

    /// Everything that an operator keeps about `accounts`, in as many statements for
    /// a page as for one.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn bundles(&mut self, accounts: Vec<Account>) -> Result<Vec<AccountBundle>> {
        self.bundled(accounts).await
    }
}

impl<R> Tx<R> {
    async fn bundled(&mut self, accounts: Vec<Account>) -> Result<Vec<AccountBundle>> {
        let ids: Vec<_> = accounts.iter().map(|a| a.account_id.clone()).collect();
        let totals = self.totals_of(&ids).await?;
        let mut spend: HashMap<_, _> = totals.into_iter().map(|t| (t.account_id, t.raw_cost)).collect();
        let mut admins = HashMap::<_, Vec<_>>::new();
        for admin in self.admins_of(&ids).await? {
            admins.entry(admin.account_id.clone()).or_default().push(admin);
        }
        let allocations = self.allocations_of(&ids).await?;
        let mut allocations: HashMap<_, _> = allocations.into_iter().map(|a| (a.account_id.clone(), a)).collect();
        let mut packs = self.feature_packs_of(&ids).await?;
        let mut policies = self.console_model_policies_of(&ids).await?;
        let mut bindings = self.zitadel_configs_of(&ids).await?;
        let mut sso_configs = self.sso_configs_of(&ids).await?;
        let bundle = |account: Account| {
            let id = account.account_id.clone();
            AccountBundle {
                account,
                spend: spend.remove(&id).unwrap_or_default(),
                admins: admins.remove(&id).unwrap_or_default(),
                sso_config: sso_configs.remove(&id),
                allocation: allocations.remove(&id),
                feature_pack: packs.remove(&id).unwrap_or_default().value,
                console_model_policy: policies.remove(&id).unwrap_or_default().value,
                zitadel_config: bindings.remove(&id).map(|b| b.value),
            }
        };
        Ok(accounts.into_iter().map(bundle).collect())
    }

    /// Admins of several accounts, newest first.
    async fn admins_of(&mut self, accounts: &[Id<Account>]) -> Result<Vec<AccountAdmin>> {
        of_accounts!(
            self,
            r#"SELECT * FROM "Alchemi_AccountAdminTable" WHERE account_id IN ("#,
            accounts,
            ") ORDER BY created_at DESC, id DESC"
        )
    }

    /// The credits of several accounts.
    pub(super) async fn allocations_of(&mut self, accounts: &[Id<Account>]) -> Result<Vec<AccountAllocation>> {
        of_accounts!(
            self,
            r#"SELECT l.*, e.enforcement FROM "Alchemi_AccountAllocationTable" l
               LEFT JOIN "Alchemi_AccountEnforcementTable" e ON e.account_id = l.account_id WHERE l.account_id IN ("#,
            accounts,
            ")"
        )
    }
}

impl Tx<Tenant> {
    /// The account itself.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn this_account(&mut self) -> Result<Option<Account>> {
        let account = self.account.clone();
        on!(self, |c| sqlx::query_as(r#"SELECT * FROM "Alchemi_AccountTable" WHERE account_id = $1"#)
            .bind(&account)
            .fetch_optional(c)
            .await)
    }

    /// The account itself, held until the commit: nobody else changes it, its admins
    /// or its settings meanwhile.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn hold_account(&mut self) -> Result<Option<Account>> {
        let account = self.account.clone();
        // Locks the row on both databases, as SELECT … FOR UPDATE does on one.
        on!(self, |c| sqlx::query_as(
            r#"UPDATE "Alchemi_AccountTable" SET version = version WHERE account_id = $1 RETURNING *"#
        )
        .bind(&account)
        .fetch_optional(c)
        .await)
    }

    /// `account`, which is this one, with everything that an operator keeps about it.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn bundle(&mut self, account: Account) -> Result<Option<AccountBundle>> {
        Ok(self.bundled(vec![account]).await?.pop())
    }

    /// Writes every changeable column of a held account.
    ///
    /// # Errors
    /// [`StoreError::Unique`](super::StoreError::Unique) on `account_name` or `domain`.
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
    /// [`StoreError`](super::StoreError).
    pub async fn delete_account(&mut self) -> Result<bool> {
        let account = self.account.clone();
        let gone = run!(self, r#"DELETE FROM "Alchemi_AccountTable" WHERE account_id = $1"#, &account)?;
        run!(self, r#"DELETE FROM "Alchemi_BudgetRevisionTable" WHERE account_id = $1"#, &account)?;
        self.changed(ChangeKind::Account);
        Ok(gone > 0)
    }

    /// The account's admins, newest first.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn admins(&mut self, slice: &Slice) -> Result<Page<AccountAdmin>> {
        list!(self, slice, AccountAdmin in "Alchemi_AccountAdminTable")
    }

    /// The admin with this e-mail address.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn admin_by_email(&mut self, email: &str) -> Result<Option<AccountAdmin>> {
        find!(self, "Alchemi_AccountAdminTable", user_email = email)
    }

    /// Makes an admin, or changes the role of the one with this e-mail address.
    ///
    /// # Errors
    /// [`StoreError::ForeignKey`](super::StoreError::ForeignKey) when the account is gone.
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
    /// [`StoreError::Unique`](super::StoreError::Unique) on `user_email`.
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
    /// [`StoreError`](super::StoreError).
    pub async fn delete_admin(&mut self, id: &Id<AccountAdmin>) -> Result<bool> {
        let gone = remove!(self, "Alchemi_AccountAdminTable", id = id)?;
        self.changed(ChangeKind::Account);
        Ok(gone)
    }
}
