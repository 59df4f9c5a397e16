//! Which presets are assigned to which scopes.

use std::collections::BTreeSet;

use crate::context::Tenant;
use crate::id::Id;
use crate::model::agents::Agent;
use crate::model::guardrails::{AssignedPreset, GuardrailAssignment, GuardrailPreset};
use crate::model::scope::{Scope, ScopeType};
use crate::store::changes::ChangeKind;
use crate::store::page::{Page, Slice};
use crate::store::{Result, Tx, find, from_columns, on, remove};

from_columns! { GuardrailAssignment { id, account_id, preset_id, scope_type, scope_id, created_by, created_at } }

impl Tx<Tenant> {
    /// Assignments, or those to exactly `scope`, newest first.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn guardrail_assignments(
        &mut self,
        scope: Option<&Scope>,
        slice: &Slice,
    ) -> Result<Page<GuardrailAssignment>> {
        let account = self.account.clone();
        let (at, id) = slice.before();
        let rows: Vec<GuardrailAssignment> = on!(self, |c| {
            let mut q = sqlx::QueryBuilder::new(
                r#"SELECT * FROM "Alchemi_CopilotGuardrailAssignmentTable" WHERE account_id = "#,
            );
            q.push_bind(&account).push(" AND (created_at, id) < (").push_bind(at).push(", ").push_bind(&id).push(")");
            if let Some(scope) = scope {
                q.push(" AND scope_type = ").push_bind(scope.scope_type);
                q.push(" AND scope_id = ").push_bind(&scope.scope_id);
            }
            q.push(" ORDER BY created_at DESC, id DESC LIMIT ").push_bind(slice.fetch());
            q.push(" OFFSET ").push_bind(slice.skip()).build_query_as().fetch_all(c).await
        })?;
        Ok(slice.page(rows, |a| (a.created_at, a.id.as_str())))
    }

    /// One assignment.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn guardrail_assignment(&mut self, id: &Id<GuardrailAssignment>) -> Result<Option<GuardrailAssignment>> {
        find!(self, "Alchemi_CopilotGuardrailAssignmentTable", id = id)
    }

    /// Assigns a preset to a scope; whether that is new, and the row that is there now.
    ///
    /// # Errors
    /// [`StoreError::ForeignKey`](crate::store::StoreError::ForeignKey) when the preset is gone.
    pub async fn assign_guardrail_preset(
        &mut self,
        preset: &Id<GuardrailPreset>,
        scope: &Scope,
    ) -> Result<(bool, GuardrailAssignment)> {
        let (account, now, id) = (self.account.clone(), self.now, self.new_id::<GuardrailAssignment>());
        let by = self.by.actor.subject.to_string();
        self.changed(ChangeKind::Guardrails);
        let row: GuardrailAssignment = on!(self, |c| {
            sqlx::query_as(
                r#"INSERT INTO "Alchemi_CopilotGuardrailAssignmentTable" (account_id, id, preset_id, scope_type, scope_id,
                   created_by, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7)
                   ON CONFLICT (account_id, preset_id, scope_type, scope_id) DO UPDATE SET scope_id = excluded.scope_id
                   RETURNING *"#,
            )
            .bind(&account)
            .bind(&id)
            .bind(preset)
            .bind(scope.scope_type)
            .bind(&scope.scope_id)
            .bind(&by)
            .bind(now)
            .fetch_one(c)
            .await
        })?;
        Ok((row.id == id, row))
    }

    /// Removes an assignment.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn delete_guardrail_assignment(&mut self, id: &Id<GuardrailAssignment>) -> Result<bool> {
        let gone = remove!(self, "Alchemi_CopilotGuardrailAssignmentTable", id = id)?;
        self.changed(ChangeKind::Guardrails);
        Ok(gone)
    }

    /// Replaces the presets that an agent must have. What is assigned already stays as it is.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn replace_agent_presets(&mut self, agent: &Id<Agent>, presets: &[Id<GuardrailPreset>]) -> Result<()> {
        let scope = Scope::new(ScopeType::Agent, agent.as_str());
        let held = self.guardrail_assignments(Some(&scope), &Slice::first(u32::MAX)).await?.items;
        for assignment in held.iter().filter(|a| !presets.contains(&a.preset_id)) {
            self.delete_guardrail_assignment(&assignment.id).await?;
        }
        for preset in presets.iter().filter(|p| !held.iter().any(|a| a.preset_id == **p)) {
            self.assign_guardrail_preset(preset, &scope).await?;
        }
        Ok(())
    }

    /// Agents that have this preset.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn agents_guarded_by(&mut self, preset: &Id<GuardrailPreset>) -> Result<BTreeSet<Id<Agent>>> {
        let account = self.account.clone();
        let agents: Vec<Id<Agent>> = on!(self, |c| {
            sqlx::query_scalar(
                r#"SELECT scope_id FROM "Alchemi_CopilotGuardrailAssignmentTable"
                   WHERE account_id = $1 AND preset_id = $2 AND scope_type = 'agent'"#,
            )
            .bind(&account)
            .bind(preset)
            .fetch_all(c)
            .await
        })?;
        Ok(agents.into_iter().collect())
    }

    /// Agents that have no other preset than this one.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn agents_guarded_only_by(&mut self, preset: &Id<GuardrailPreset>) -> Result<Vec<Id<Agent>>> {
        let account = self.account.clone();
        on!(self, |c| {
            sqlx::query_scalar(
            r#"SELECT a.scope_id FROM "Alchemi_CopilotGuardrailAssignmentTable" a
               WHERE a.account_id = $1 AND a.preset_id = $2 AND a.scope_type = 'agent'
               AND NOT EXISTS (SELECT 1 FROM "Alchemi_CopilotGuardrailAssignmentTable" b WHERE b.account_id = a.account_id
                 AND b.scope_type = a.scope_type AND b.scope_id = a.scope_id AND b.preset_id <> a.preset_id)
               ORDER BY a.created_at, a.id"#
        )
        .bind(&account)
        .bind(preset)
        .fetch_all(c)
        .await
        })
    }

    /// What is assigned to each of `scopes`, in their order, and in each by the age of
    /// the assignment.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn assigned_presets(&mut self, scopes: &[Scope]) -> Result<Vec<AssignedPreset>> {
        if scopes.is_empty() {
            return Ok(Vec::new());
        }
        let account = self.account.clone();
        let assignments: Vec<GuardrailAssignment> = on!(self, |c| {
            let mut q = sqlx::QueryBuilder::new(
                r#"SELECT * FROM "Alchemi_CopilotGuardrailAssignmentTable" WHERE account_id = "#,
            );
            q.push_bind(&account).push(" AND (");
            let mut any = q.separated(" OR ");
            for scope in scopes {
                any.push("(scope_type = ").push_bind_unseparated(scope.scope_type);
                any.push_unseparated(" AND scope_id = ").push_bind_unseparated(&scope.scope_id).push_unseparated(")");
            }
            q.push(") ORDER BY created_at, id").build_query_as().fetch_all(c).await
        })?;
        if assignments.is_empty() {
            return Ok(Vec::new());
        }
        let presets: Vec<GuardrailPreset> = on!(self, |c| {
            let mut q =
                sqlx::QueryBuilder::new(r#"SELECT * FROM "Alchemi_CopilotGuardrailPresetTable" WHERE account_id = "#);
            q.push_bind(&account).push(" AND id IN (");
            let mut ids = q.separated(", ");
            for assignment in &assignments {
                ids.push_bind(&assignment.preset_id);
            }
            q.push(")").build_query_as().fetch_all(c).await
        })?;
        let of = |scope: &Scope| {
            let (kind, id) = (scope.scope_type, scope.scope_id.clone());
            let here = assignments.iter().filter(move |a| a.scope_type == kind && a.scope_id == id);
            here.filter_map(|a| {
                let preset = presets.iter().find(|p| p.id == a.preset_id)?.clone();
                Some(AssignedPreset { scope_type: a.scope_type, scope_id: a.scope_id.clone(), preset })
            })
            .collect::<Vec<_>>()
        };
        Ok(scopes.iter().flat_map(of).collect())
    }
}
