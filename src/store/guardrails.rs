//! Guardrails: presets, their patterns, and the scopes that they are assigned to.
//!
//! A preset's version counts the changes of its patterns too, so that whoever keeps
//! what was compiled from them can tell by it.

use super::changes::ChangeKind;
use super::page::{Page, Slice};
use super::{Result, Tx, columns, find, from_columns, hold, list, on, push_in, remove, run};
use crate::clock::Timestamp;
use crate::context::Tenant;
use crate::id::Id;
use crate::model::accounts::JsonText;
use crate::model::guardrails::{GuardType, GuardrailPattern, GuardrailPreset, MatchAction, PatternType, builtin};

mod assignments;

columns::stored_as_name!(GuardType, PatternType, MatchAction);

from_columns! {
    GuardrailPreset { id, account_id, code, name, preset_json, is_system, created_by, created_at, updated_at, version }
    GuardrailPattern {
        id, account_id, preset_id, guard_type, pattern_name, pattern_regex, pattern_type, action, enabled, is_system,
        created_by, created_at, updated_at, version,
    }
}

/// Which patterns are wanted.
#[derive(Debug, Clone, Default)]
pub struct PatternFilter {
    /// Only of this type.
    pub guard_type: Option<GuardType>,
    /// Only those that are, or are not, in use.
    pub enabled: Option<bool>,
    /// Only of this preset.
    pub preset: Option<Id<GuardrailPreset>>,
}

/// Begins a select of patterns that a filter lets through; `$prefix` names what is selected.
macro_rules! select_patterns {
    ($q:ident, $prefix:literal, $account:expr, $filter:expr) => {
        let mut $q = sqlx::QueryBuilder::new(concat!(
            $prefix,
            r#" FROM "Alchemi_CopilotGuardrailPatternTable" WHERE account_id = "#
        ));
        $q.push_bind($account);
        if let Some(guard_type) = $filter.guard_type {
            $q.push(" AND guard_type = ").push_bind(guard_type);
        }
        if let Some(enabled) = $filter.enabled {
            $q.push(" AND enabled = ").push_bind(enabled);
        }
        if let Some(preset) = &$filter.preset {
            $q.push(" AND preset_id = ").push_bind(preset);
        }
    };
}

impl Tx<Tenant> {
    /// Presets, newest first.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn guardrail_presets(&mut self, slice: &Slice) -> Result<Page<GuardrailPreset>> {
        list!(self, slice, GuardrailPreset in "Alchemi_CopilotGuardrailPresetTable")
    }

    /// One preset.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn guardrail_preset(&mut self, id: &Id<GuardrailPreset>) -> Result<Option<GuardrailPreset>> {
        find!(self, "Alchemi_CopilotGuardrailPresetTable", id = id)
    }

    /// A preset that is about to be changed, or that something is hung on, kept from
    /// everybody else until the end of the transaction.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn hold_guardrail_preset(&mut self, id: &Id<GuardrailPreset>) -> Result<Option<GuardrailPreset>> {
        hold!(self, "Alchemi_CopilotGuardrailPresetTable", id = id)
    }

    /// As [`Tx::hold_guardrail_preset`], by its code.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn hold_guardrail_preset_of(&mut self, code: &str) -> Result<Option<GuardrailPreset>> {
        hold!(self, "Alchemi_CopilotGuardrailPresetTable", code = code)
    }

    /// Makes a preset, or changes name and settings of the one with the same code.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn upsert_guardrail_preset(&mut self, preset: &GuardrailPreset) -> Result<GuardrailPreset> {
        let (account, now) = (self.account.clone(), self.now);
        self.changed(ChangeKind::Guardrails);
        on!(self, |c| {
            sqlx::query_as(
                r#"INSERT INTO "Alchemi_CopilotGuardrailPresetTable" (account_id, id, code, name, preset_json, is_system,
                   created_by, created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8)
                   ON CONFLICT (account_id, code) DO UPDATE SET name = excluded.name, preset_json = excluded.preset_json,
                   updated_at = excluded.updated_at, version = "Alchemi_CopilotGuardrailPresetTable".version + 1
                   RETURNING *"#,
            )
            .bind(&account)
            .bind(&preset.id)
            .bind(&preset.code)
            .bind(&preset.name)
            .bind(&preset.preset_json)
            .bind(preset.is_system)
            .bind(&preset.created_by)
            .bind(now)
            .fetch_one(c)
            .await
        })
    }

    /// Removes a preset with its patterns and assignments.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn delete_guardrail_preset(&mut self, id: &Id<GuardrailPreset>) -> Result<bool> {
        let gone = remove!(self, "Alchemi_CopilotGuardrailPresetTable", id = id)?;
        self.changed(ChangeKind::Guardrails);
        Ok(gone)
    }

    /// Makes the presets that every account has, with their patterns.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn insert_system_presets(&mut self) -> Result<()> {
        for guard_type in GuardType::ALL {
            let preset = GuardrailPreset {
                id: self.new_id(),
                account_id: self.account.clone(),
                code: guard_type.as_str().to_owned(),
                name: builtin::preset_name(guard_type).to_owned(),
                preset_json: JsonText::empty_object(),
                is_system: true,
                created_by: Some(self.by.actor.subject.to_string()),
                created_at: self.now,
                updated_at: self.now,
                version: 1,
            };
            let preset = self.upsert_guardrail_preset(&preset).await?;
            let patterns: Vec<_> =
                builtin::ALL.iter().filter(|b| b.guard_type == guard_type).map(|b| self.builtin(b, &preset)).collect();
            self.insert_guardrail_patterns(&patterns).await?;
        }
        Ok(())
    }

    fn builtin(&self, builtin: &builtin::Builtin, preset: &GuardrailPreset) -> GuardrailPattern {
        GuardrailPattern {
            id: self.new_id(),
            account_id: self.account.clone(),
            preset_id: preset.id.clone(),
            guard_type: builtin.guard_type,
            pattern_name: builtin.name.to_owned(),
            pattern_regex: builtin.regex.to_owned(),
            pattern_type: builtin.pattern_type,
            action: builtin.action,
            enabled: true,
            is_system: true,
            created_by: preset.created_by.clone(),
            created_at: self.now,
            updated_at: self.now,
            version: 1,
        }
    }

    /// Patterns, newest first.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn guardrail_patterns(
        &mut self,
        filter: &PatternFilter,
        slice: &Slice,
    ) -> Result<Page<GuardrailPattern>> {
        let account = self.account.clone();
        let (at, id) = slice.before();
        let rows: Vec<GuardrailPattern> = on!(self, |c| {
            select_patterns!(q, "SELECT *", &account, filter);
            q.push(" AND (created_at, id) < (").push_bind(at).push(", ").push_bind(&id).push(")");
            q.push(" ORDER BY created_at DESC, id DESC LIMIT ").push_bind(slice.fetch());
            q.push(" OFFSET ").push_bind(slice.skip()).build_query_as().fetch_all(c).await
        })?;
        Ok(slice.page(rows, |p| (p.created_at, p.id.as_str())))
    }

    /// How many patterns there are.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn count_guardrail_patterns(&mut self, filter: &PatternFilter) -> Result<i64> {
        let account = self.account.clone();
        on!(self, |c| {
            select_patterns!(q, "SELECT CAST(COUNT(*) AS BIGINT)", &account, filter);
            q.build_query_scalar().fetch_one(c).await
        })
    }

    /// Every pattern of several presets, oldest first.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn patterns_of_presets(&mut self, presets: &[Id<GuardrailPreset>]) -> Result<Vec<GuardrailPattern>> {
        let account = self.account.clone();
        on!(self, |c| {
            let mut q =
                sqlx::QueryBuilder::new(r#"SELECT * FROM "Alchemi_CopilotGuardrailPatternTable" WHERE account_id = "#);
            q.push_bind(&account);
            push_in!(q, "preset_id", presets);
            q.push(" ORDER BY created_at, id").build_query_as().fetch_all(c).await
        })
    }

    /// One pattern.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn guardrail_pattern(&mut self, id: &Id<GuardrailPattern>) -> Result<Option<GuardrailPattern>> {
        find!(self, "Alchemi_CopilotGuardrailPatternTable", id = id)
    }

    /// A pattern that is about to be changed, kept from everybody else until the end of
    /// the transaction, as its preset is.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn hold_guardrail_pattern(&mut self, id: &Id<GuardrailPattern>) -> Result<Option<GuardrailPattern>> {
        // The preset first: whoever changes it or another of its patterns holds it too.
        let Some(pattern) = self.guardrail_pattern(id).await? else { return Ok(None) };
        self.hold_guardrail_preset(&pattern.preset_id).await?;
        self.guardrail_pattern(id).await
    }

    /// Makes a pattern.
    ///
    /// # Errors
    /// [`StoreError::Unique`](super::StoreError::Unique) on `pattern_name`.
    pub async fn insert_guardrail_pattern(&mut self, pattern: &GuardrailPattern) -> Result<()> {
        self.insert_guardrail_patterns(std::slice::from_ref(pattern)).await?;
        self.patterns_changed(&pattern.preset_id).await
    }

    async fn insert_guardrail_patterns(&mut self, patterns: &[GuardrailPattern]) -> Result<()> {
        if patterns.is_empty() {
            return Ok(());
        }
        let account = self.account.clone();
        on!(self, |c| {
            let mut q = sqlx::QueryBuilder::new(
                r#"INSERT INTO "Alchemi_CopilotGuardrailPatternTable" (account_id, id, preset_id, guard_type, pattern_name,
                   pattern_regex, pattern_type, action, enabled, is_system, created_by, created_at, updated_at) "#,
            );
            q.push_values(patterns, |mut row, p| {
                row.push_bind(&account).push_bind(&p.id).push_bind(&p.preset_id).push_bind(p.guard_type);
                row.push_bind(&p.pattern_name).push_bind(&p.pattern_regex).push_bind(p.pattern_type);
                row.push_bind(p.action).push_bind(p.enabled).push_bind(p.is_system).push_bind(&p.created_by);
                row.push_bind(p.created_at).push_bind(p.updated_at);
            });
            q.build().execute(c).await.map(drop)
        })?;
        self.changed(ChangeKind::Guardrails);
        Ok(())
    }

    /// Changes every changeable column of a pattern; gives the new row.
    ///
    /// # Errors
    /// [`StoreError::Unique`](super::StoreError::Unique) on `pattern_name`.
    pub async fn update_guardrail_pattern(&mut self, pattern: &GuardrailPattern) -> Result<GuardrailPattern> {
        let (account, now) = (self.account.clone(), self.now);
        let changed = on!(self, |c| {
            sqlx::query_as(
            r#"UPDATE "Alchemi_CopilotGuardrailPatternTable" SET pattern_name = $3, pattern_regex = $4, pattern_type = $5,
               action = $6, enabled = $7, updated_at = $8, version = version + 1
               WHERE account_id = $1 AND id = $2 RETURNING *"#
        )
        .bind(&account)
        .bind(&pattern.id)
        .bind(&pattern.pattern_name)
        .bind(&pattern.pattern_regex)
        .bind(pattern.pattern_type)
        .bind(pattern.action)
        .bind(pattern.enabled)
        .bind(now)
        .fetch_one(c)
        .await
        })?;
        self.patterns_changed(&pattern.preset_id).await?;
        Ok(changed)
    }

    /// Removes a pattern.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn delete_guardrail_pattern(&mut self, pattern: &GuardrailPattern) -> Result<bool> {
        let gone = remove!(self, "Alchemi_CopilotGuardrailPatternTable", id = &pattern.id)?;
        self.patterns_changed(&pattern.preset_id).await?;
        Ok(gone)
    }

    async fn patterns_changed(&mut self, preset: &Id<GuardrailPreset>) -> Result<()> {
        let (account, now): (_, Timestamp) = (self.account.clone(), self.now);
        run!(
            self,
            r#"UPDATE "Alchemi_CopilotGuardrailPresetTable" SET version = version + 1, updated_at = $3
               WHERE account_id = $1 AND id = $2"#,
            &account,
            preset,
            now
        )?;
        self.changed(ChangeKind::Guardrails);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Granted;
    use crate::model::accounts::Account;
    use crate::store::testing::{Fresh, databases};
    use crate::store::{Store, migrate};

    async fn tx(store: &Store, account: &Id<Account>) -> Tx<Tenant> {
        store.begin(&Granted::system().over(account.clone())).await.unwrap()
    }

    /// What the patterns of an account say, with the code and name of their presets.
    async fn said(fresh: &Fresh, account: &Id<Account>) -> Vec<String> {
        let mut tx = tx(&fresh.store, account).await;
        let presets = tx.guardrail_presets(&Slice::first(9)).await.unwrap().items;
        let ids: Vec<_> = presets.iter().map(|p| p.id.clone()).collect();
        let patterns = tx.patterns_of_presets(&ids).await.unwrap();
        let one = |p: &GuardrailPattern| {
            let preset = presets.iter().find(|preset| preset.id == p.preset_id).unwrap();
            let of = (&preset.code, &preset.name, preset.preset_json.get(), preset.is_system);
            format!(
                "{of:?} {:?} {} {} {:?} {:?} {} {}",
                p.guard_type, p.pattern_name, p.pattern_regex, p.pattern_type, p.action, p.enabled, p.is_system
            )
        };
        let mut all: Vec<_> = patterns.iter().map(one).collect();
        all.sort_unstable();
        all
    }

    #[tokio::test]
    async fn accounts_of_before_have_what_later_ones_get() {
        for fresh in databases().await {
            let (before, later) = (fresh.account("Before").await, fresh.account("Later").await);
            let mut own = tx(&fresh.store, &later).await;
            own.insert_system_presets().await.unwrap();
            own.commit().await.unwrap();
            let all = migrate::migrations(fresh.store.backend()).unwrap();
            let sql = all.iter().find(|m| m.name == "guardrails").unwrap().sql;
            for _ in 0..2 {
                let mut own = tx(&fresh.store, &before).await;
                on!(own, |c| sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(c).await.map(drop)).unwrap();
                own.commit().await.unwrap();
            }
            let found = said(&fresh, &before).await;
            assert_eq!(found, said(&fresh, &later).await);
            assert_eq!(found.len(), builtin::ALL.len());
        }
    }
}
