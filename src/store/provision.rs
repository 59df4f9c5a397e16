//! What is to be so in Zitadel, and which gateway sees to it.

use super::audit::Entry;
use super::{Result, StoreError, Tx, columns, find, from_columns, on, remove, run};
use crate::clock::Timestamp;
use crate::context::{Platform, Tenant};
use crate::id::Id;
use crate::model::accounts::{AccountAdmin, AccountStatus, JsonText};
use crate::model::audit::{Action, Label};
use crate::model::provision::{GrantPlace, ItemKind, ItemState, NOT_LISTED_YET, ProvisionItem, Wanted, add_missing};

columns::stored_as_name!(ItemKind, ItemState);

const TABLE: &str = "Alchemi_ZitadelItemTable";

struct ItemRow {
    id: Id<ProvisionItem>,
    account_id: Id<crate::model::accounts::Account>,
    kind: ItemKind,
    project_id: String,
    organization_id: String,
    target: String,
    display_name: Option<String>,
    role_group: Option<String>,
    role_keys: String,
    retired_keys: String,
    user_id: Option<String>,
    state: ItemState,
    reason: Option<String>,
    detail: Option<String>,
    attempts: i64,
    next_attempt_at: Timestamp,
    applied_at: Option<Timestamp>,
    created_at: Timestamp,
    updated_at: Timestamp,
    version: i64,
}

from_columns! {
    ItemRow {
        id, account_id, kind, project_id, organization_id, target, display_name, role_group, role_keys, retired_keys,
        user_id, state, reason, detail, attempts, next_attempt_at, applied_at, created_at, updated_at, version,
    }
}

fn text(keys: &[String]) -> String {
    JsonText::of(&keys).get().to_owned()
}

fn keys(text: &str) -> Result<Vec<String>> {
    serde_json::from_str(text).map_err(|e| StoreError::Unreadable { table: TABLE, reason: e.to_string() })
}

impl ItemRow {
    fn read(self) -> Result<ProvisionItem> {
        Ok(ProvisionItem {
            role_keys: keys(&self.role_keys)?,
            retired_keys: keys(&self.retired_keys)?,
            organization_id: Some(self.organization_id).filter(|id| !id.is_empty()),
            id: self.id,
            account_id: self.account_id,
            kind: self.kind,
            project_id: self.project_id,
            target: self.target,
            display_name: self.display_name,
            role_group: self.role_group,
            user_id: self.user_id,
            state: self.state,
            reason: self.reason,
            detail: self.detail,
            attempts: self.attempts,
            next_attempt_at: self.next_attempt_at,
            applied_at: self.applied_at,
            created_at: self.created_at,
            updated_at: self.updated_at,
            version: self.version,
        })
    }
}

fn read_all(rows: Vec<ItemRow>) -> Result<Vec<ProvisionItem>> {
    rows.into_iter().map(ItemRow::read).collect()
}

/// What came of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// How far the item is now.
    pub state: ItemState,
    /// Why it is no further.
    pub reason: Option<String>,
    /// The same, for people.
    pub detail: Option<String>,
    /// When it is looked at next, unless it is applied.
    pub next_attempt_at: Timestamp,
    /// The user, once known.
    pub user_id: Option<String>,
}

impl Tx<Tenant> {
    /// Wants something, or wants it looked at again. What was wanted before in its place and
    /// is not any more is to be taken back.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn want(&mut self, wanted: &Wanted) -> Result<ProvisionItem> {
        let organization = wanted.organization_id.as_deref().unwrap_or_default();
        let known = self.wanted_at(wanted.kind, &wanted.project_id, organization, &wanted.target).await?;
        let mut retired = wanted.retired_keys.clone();
        if let Some(known) = &known {
            add_missing(&mut retired, known.retired_keys.iter().chain(&known.role_keys).cloned());
        }
        retired.retain(|key| !wanted.role_keys.contains(key));
        // What was written and is not listed yet is still to be looked for.
        let reason = known.and_then(|known| known.reason).filter(|reason| reason == NOT_LISTED_YET);
        let (account, id, now) = (self.account.clone(), self.new_id::<ProvisionItem>(), self.now);
        let (role_keys, retired_keys) = (text(&wanted.role_keys), text(&retired));
        let row: ItemRow = on!(self, |c| {
            sqlx::query_as(
                r#"INSERT INTO "Alchemi_ZitadelItemTable" (account_id, id, kind, project_id, organization_id, target,
                   display_name, role_group, role_keys, retired_keys, user_id, state, next_attempt_at, created_at, updated_at)
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 'pending', $12, $12, $12)
                   ON CONFLICT (account_id, kind, project_id, organization_id, target) DO UPDATE SET
                   display_name = excluded.display_name, role_group = excluded.role_group,
                   role_keys = excluded.role_keys, retired_keys = excluded.retired_keys,
                   user_id = COALESCE(excluded.user_id, "Alchemi_ZitadelItemTable".user_id), state = 'pending',
                   reason = $13, detail = NULL, attempts = 0, next_attempt_at = excluded.next_attempt_at,
                   updated_at = excluded.updated_at, version = "Alchemi_ZitadelItemTable".version + 1 RETURNING *"#
            )
            .bind(&account)
            .bind(&id)
            .bind(wanted.kind)
            .bind(&wanted.project_id)
            .bind(organization)
            .bind(&wanted.target)
            .bind(&wanted.display_name)
            .bind(&wanted.role_group)
            .bind(&role_keys)
            .bind(&retired_keys)
            .bind(&wanted.user_id)
            .bind(now)
            .bind(&reason)
            .fetch_one(c)
            .await
        })?;
        row.read()
    }

    async fn wanted_at(
        &mut self,
        kind: ItemKind,
        project: &str,
        organization: &str,
        target: &str,
    ) -> Result<Option<ProvisionItem>> {
        let row: Option<ItemRow> = find!(
            self,
            "Alchemi_ZitadelItemTable",
            kind = kind,
            project_id = project,
            organization_id = organization,
            target = target
        )?;
        row.map(ItemRow::read).transpose()
    }

    /// Everything that is to be so for the account, in the order in which it rests on
    /// each other, oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn provision_items(&mut self) -> Result<Vec<ProvisionItem>> {
        let account = self.account.clone();
        let rows: Vec<ItemRow> = on!(self, |c| sqlx::query_as(
            r#"SELECT * FROM "Alchemi_ZitadelItemTable" WHERE account_id = $1
               ORDER BY CASE kind WHEN 'role' THEN 0 WHEN 'project_grant' THEN 1 ELSE 2 END, created_at, id"#
        )
        .bind(&account)
        .fetch_all(c)
        .await)?;
        read_all(rows)
    }

    /// Every admin, oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn all_admins(&mut self) -> Result<Vec<AccountAdmin>> {
        let account = self.account.clone();
        on!(self, |c| sqlx::query_as(
            r#"SELECT * FROM "Alchemi_AccountAdminTable" WHERE account_id = $1 ORDER BY created_at, id"#
        )
        .bind(&account)
        .fetch_all(c)
        .await)
    }

    /// The subjects that the directory knows under an e-mail address.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn subjects_of(&mut self, email: &str) -> Result<Vec<String>> {
        let account = self.account.clone();
        on!(self, |c| sqlx::query_scalar(
            r#"SELECT DISTINCT identity_user_id FROM "Alchemi_UserTable"
               WHERE account_id = $1 AND email = $2 AND identity_user_id IS NOT NULL"#
        )
        .bind(&account)
        .bind(email)
        .fetch_all(c)
        .await)
    }

    /// Has every grant of the account looked at again: it was suspended or restored.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn review_grants(&mut self) -> Result<u64> {
        let (account, now) = (self.account.clone(), self.now);
        run!(
            self,
            r#"UPDATE "Alchemi_ZitadelItemTable" SET state = 'pending',
               reason = CASE WHEN reason = 'not_listed_yet' THEN reason END, detail = NULL, attempts = 0,
               next_attempt_at = $2, updated_at = $2, version = version + 1
               WHERE account_id = $1 AND kind = 'user_grant'"#,
            &account,
            now
        )
    }

    /// The account is deleted: of what was to be so, only what is to be taken back remains.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn retire_grants(&mut self) -> Result<u64> {
        let account = self.account.clone();
        run!(
            self,
            r#"DELETE FROM "Alchemi_ZitadelItemTable" WHERE account_id = $1 AND kind <> 'user_grant'"#,
            &account
        )?;
        self.review_grants().await
    }

    /// Audits what has been changed in Zitadel for an item.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn note_write(&mut self, item: &ProvisionItem, change: &serde_json::Value) -> Result<()> {
        let entry = Entry { action: Action::Update, table: TABLE, id: item.id.as_str(), label: Label::Iam };
        self.audit(entry, None::<&()>, change).await
    }

    /// Whether a role, or that it may be granted, is still to be made that a grant may rest on.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn rests_on_pending(&mut self, item: &ProvisionItem) -> Result<bool> {
        let account = self.account.clone();
        let pending: Option<i64> = on!(self, |c| sqlx::query_scalar(
            r#"SELECT CAST(1 AS BIGINT) FROM "Alchemi_ZitadelItemTable" WHERE account_id = $1 AND project_id = $2
               AND state = 'pending' AND id <> $3 AND (kind = 'role' OR kind = 'project_grant' AND $4 = 'user_grant')
               LIMIT 1"#
        )
        .bind(&account)
        .bind(&item.project_id)
        .bind(&item.id)
        .bind(item.kind.as_str())
        .fetch_optional(c)
        .await)?;
        Ok(pending.is_some())
    }

    /// One thing that is to be so.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn provision_item(&mut self, id: &Id<ProvisionItem>) -> Result<Option<ProvisionItem>> {
        let row: Option<ItemRow> = find!(self, "Alchemi_ZitadelItemTable", id = id)?;
        row.map(ItemRow::read).transpose()
    }

    /// Wants nothing of it any more, and has nothing taken back.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn forget_item(&mut self, id: &Id<ProvisionItem>) -> Result<bool> {
        remove!(self, "Alchemi_ZitadelItemTable", id = id)
    }

    /// Notes what came of an attempt at an item, unless something else is wanted by now.
    /// An item that is applied and wants nothing is gone.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn note_attempt(&mut self, item: &ProvisionItem, attempt: &Attempt, kept: bool) -> Result<bool> {
        let (account, now) = (self.account.clone(), self.now);
        let applied = attempt.state == ItemState::Applied;
        if applied && !kept {
            let gone = run!(
                self,
                r#"DELETE FROM "Alchemi_ZitadelItemTable" WHERE account_id = $1 AND id = $2 AND version = $3"#,
                &account,
                &item.id,
                item.version
            )?;
            return Ok(gone > 0);
        }
        let retired = if applied { text(&[]) } else { text(&item.retired_keys) };
        let noted = run!(
            self,
            r#"UPDATE "Alchemi_ZitadelItemTable" SET state = $4, reason = $5, detail = $6, next_attempt_at = $7,
               user_id = COALESCE($8, user_id), retired_keys = $9, updated_at = $10,
               attempts = CASE WHEN $4 = 'applied' THEN 0 ELSE attempts + 1 END,
               applied_at = CASE WHEN $4 = 'applied' THEN $10 ELSE applied_at END
               WHERE account_id = $1 AND id = $2 AND version = $3"#,
            &account,
            &item.id,
            item.version,
            attempt.state,
            &attempt.reason,
            &attempt.detail,
            attempt.next_attempt_at,
            &attempt.user_id,
            &retired,
            now
        )?;
        Ok(noted > 0)
    }
}

/// What is due. Of an account whose binding is switched off, only what is to be taken back.
macro_rules! due {
    ($columns:literal, $rest:literal) => {
        concat!(
            "SELECT ",
            $columns,
            r#" FROM "Alchemi_ZitadelItemTable" i WHERE i.state <> 'applied' AND i.next_attempt_at <= $1
               AND (i.kind = 'user_grant' AND i.role_keys = '[]' OR NOT EXISTS (SELECT 1
               FROM "Alchemi_AccountZitadelTable" z WHERE z.account_id = i.account_id AND NOT z.enabled)) "#,
            $rest
        )
    };
}

impl Tx<Platform> {
    /// Projects in which something is due, the one that waits longest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn due_projects(&mut self) -> Result<Vec<String>> {
        let now = self.now;
        on!(self, |c| sqlx::query_scalar(due!(
            "i.project_id",
            "GROUP BY i.project_id ORDER BY MIN(i.next_attempt_at) LIMIT 100"
        ))
        .bind(now)
        .fetch_all(c)
        .await)
    }

    /// What is due in a project next, in the order in which it rests on each other.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn due_item(&mut self, project: &str) -> Result<Option<ProvisionItem>> {
        let now = self.now;
        let row: Option<ItemRow> = on!(self, |c| sqlx::query_as(due!(
            "i.*",
            "AND i.project_id = $2 ORDER BY CASE i.kind WHEN 'role' THEN 0 WHEN 'project_grant' THEN 1 ELSE 2 END,
             i.next_attempt_at, i.id LIMIT 1"
        ))
        .bind(now)
        .bind(project)
        .fetch_optional(c)
        .await)?;
        row.map(ItemRow::read).transpose()
    }

    /// What items want a user to hold in a place, in accounts that are active; but for one item.
    /// What others want is not to be taken back.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn wanted_besides(
        &mut self,
        place: GrantPlace<'_>,
        user: &str,
        except: Option<&Id<ProvisionItem>>,
    ) -> Result<Vec<String>> {
        let [named, or_named] = place.names();
        let except = except.map_or("", Id::as_str);
        let rows: Vec<String> = on!(self, |c| sqlx::query_scalar(
            r#"SELECT i.role_keys FROM "Alchemi_ZitadelItemTable" i
               JOIN "Alchemi_AccountTable" a ON a.account_id = i.account_id AND a.status = 'active'
               WHERE i.kind = 'user_grant' AND i.user_id = $1 AND i.project_id = $2
               AND i.organization_id IN ($3, $4) AND i.id <> $5"#
        )
        .bind(user)
        .bind(place.project)
        .bind(named)
        .bind(or_named)
        .bind(except)
        .fetch_all(c)
        .await)?;
        let mut wanted = Vec::new();
        for row in rows {
            add_missing(&mut wanted, keys(&row)?);
        }
        Ok(wanted)
    }

    /// How many items are in which state, over all accounts.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn provision_counts(&mut self) -> Result<Vec<(String, i64)>> {
        on!(self, |c| sqlx::query_as(
            r#"SELECT state, CAST(COUNT(*) AS BIGINT) FROM "Alchemi_ZitadelItemTable" GROUP BY state ORDER BY state"#
        )
        .fetch_all(c)
        .await)
    }

    /// Whether an account is there and in use.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn is_active(&mut self, item: &ProvisionItem) -> Result<bool> {
        let status: Option<AccountStatus> =
            on!(self, |c| sqlx::query_scalar(r#"SELECT status FROM "Alchemi_AccountTable" WHERE account_id = $1"#)
                .bind(&item.account_id)
                .fetch_optional(c)
                .await)?;
        Ok(status == Some(AccountStatus::Active))
    }

    /// Takes or keeps the right to write into a project until a moment; whether it is had.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn lease_project(&mut self, project: &str, holder: &str, until: Timestamp) -> Result<bool> {
        let now = self.now;
        let had = run!(
            self,
            r#"INSERT INTO "Alchemi_ZitadelLeaseTable" (project_id, holder, until) VALUES ($1, $2, $3)
               ON CONFLICT (project_id) DO UPDATE SET holder = excluded.holder, until = excluded.until
               WHERE "Alchemi_ZitadelLeaseTable".holder = excluded.holder OR "Alchemi_ZitadelLeaseTable".until <= $4"#,
            project,
            holder,
            until,
            now
        )?;
        Ok(had > 0)
    }

    /// Gives the right back.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn release_project(&mut self, project: &str, holder: &str) -> Result<()> {
        run!(self, r#"DELETE FROM "Alchemi_ZitadelLeaseTable" WHERE project_id = $1 AND holder = $2"#, project, holder)
            .map(drop)
    }
}
