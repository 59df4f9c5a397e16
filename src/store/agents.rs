//! Agents of the copilot and their grants. Which guardrails an agent must have is in
//! [`guardrails`](super::guardrails), as assignments to the scope `agent`.

use super::changes::ChangeKind;
use super::page::{Page, Slice};
use super::{Result, Tx, dialect, from_columns, on, run};
use crate::context::Tenant;
use crate::id::Id;
use crate::model::agents::{Agent, AgentGrant, AgentVisibility};
use crate::model::guardrails::GuardrailPreset;
use crate::model::scope::Scope;

dialect::stored_as_name!(AgentVisibility);

from_columns! {
    Agent { id, account_id, name, description, definition_json, visibility, created_by, created_at, updated_at, version }
    AgentGrant { id, account_id, agent_id, scope_type, scope_id, created_by, created_at }
}

/// The elements of a list between parentheses; of an empty one, what nothing equals.
macro_rules! push_ids {
    ($q:expr, $ids:expr) => {{
        let mut ids = $q.separated(", ");
        for id in $ids {
            ids.push_bind(id);
        }
        if $ids.is_empty() {
            ids.push("NULL");
        }
    }};
}

impl Tx<Tenant> {
    /// Agents, newest first.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn agents(&mut self, slice: &Slice) -> Result<Page<Agent>> {
        let account = self.account.clone();
        let (at, id) = slice.before();
        let rows: Vec<Agent> = on!(self, |c| {
            sqlx::query_as(
                r#"SELECT * FROM "Alchemi_CopilotAgentTable" WHERE account_id = $1 AND (created_at, id) < ($2, $3)
                   ORDER BY created_at DESC, id DESC LIMIT $4 OFFSET $5"#,
            )
            .bind(&account)
            .bind(at)
            .bind(&id)
            .bind(slice.fetch())
            .bind(slice.skip())
            .fetch_all(c)
            .await
        })?;
        Ok(slice.page(rows, |a| (a.created_at, a.id.as_str())))
    }

    /// Agents that somebody with these scopes may use, newest first: those granted to
    /// one of them, and those that are everybody's. As
    /// [`CompanionRule`](crate::policy::companions::CompanionRule) decides about one.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn agents_for(&mut self, scopes: &[Scope], slice: &Slice) -> Result<Page<Agent>> {
        let account = self.account.clone();
        let (at, id) = slice.before();
        let rows: Vec<Agent> = on!(self, |c| {
            let mut q =
                sqlx::QueryBuilder::new(r#"SELECT a.* FROM "Alchemi_CopilotAgentTable" a WHERE a.account_id = "#);
            q.push_bind(&account).push(" AND (a.created_at, a.id) < (").push_bind(at).push(", ").push_bind(&id);
            q.push(
                r#") AND (a.visibility = 'account' OR EXISTS (SELECT 1 FROM "Alchemi_CopilotAgentGrantTable" g
                   WHERE g.account_id = a.account_id AND g.agent_id = a.id AND (1 = 0"#,
            );
            for scope in scopes {
                q.push(" OR (g.scope_type = ").push_bind(scope.scope_type);
                q.push(" AND g.scope_id = ").push_bind(&scope.scope_id).push(")");
            }
            q.push("))) ORDER BY a.created_at DESC, a.id DESC LIMIT ").push_bind(slice.fetch());
            q.push(" OFFSET ").push_bind(slice.skip()).build_query_as().fetch_all(c).await
        })?;
        Ok(slice.page(rows, |a| (a.created_at, a.id.as_str())))
    }

    /// One agent.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn agent(&mut self, id: &Id<Agent>) -> Result<Option<Agent>> {
        let account = self.account.clone();
        on!(self, |c| sqlx::query_as(r#"SELECT * FROM "Alchemi_CopilotAgentTable" WHERE account_id = $1 AND id = $2"#)
            .bind(&account)
            .bind(id)
            .fetch_optional(c)
            .await)
    }

    /// An agent that is about to be changed, kept from everybody else until the end of
    /// the transaction.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn hold_agent(&mut self, id: &Id<Agent>) -> Result<Option<Agent>> {
        let account = self.account.clone();
        on!(self, |c| sqlx::query_as(
            r#"UPDATE "Alchemi_CopilotAgentTable" SET version = version WHERE account_id = $1 AND id = $2 RETURNING *"#
        )
        .bind(&account)
        .bind(id)
        .fetch_optional(c)
        .await)
    }

    /// Makes an agent.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn insert_agent(&mut self, agent: &Agent) -> Result<()> {
        let account = self.account.clone();
        run!(
            self,
            r#"INSERT INTO "Alchemi_CopilotAgentTable" (account_id, id, name, description, definition_json,
               visibility, created_by, created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8)"#,
            &account,
            &agent.id,
            &agent.name,
            &agent.description,
            &agent.definition_json,
            agent.visibility,
            &agent.created_by,
            agent.created_at
        )?;
        self.changed(ChangeKind::Agents);
        Ok(())
    }

    /// Changes every changeable column of an agent; gives the new row. Also called when
    /// only its grants or guardrails change: they belong to its version.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn update_agent(&mut self, agent: &Agent) -> Result<Agent> {
        let (account, now) = (self.account.clone(), self.now);
        self.changed(ChangeKind::Agents);
        on!(self, |c| sqlx::query_as(
            r#"UPDATE "Alchemi_CopilotAgentTable" SET name = $3, description = $4, definition_json = $5,
               visibility = $6, updated_at = $7, version = version + 1 WHERE account_id = $1 AND id = $2 RETURNING *"#
        )
        .bind(&account)
        .bind(&agent.id)
        .bind(&agent.name)
        .bind(&agent.description)
        .bind(&agent.definition_json)
        .bind(agent.visibility)
        .bind(now)
        .fetch_one(c)
        .await)
    }

    /// Removes an agent with its grants and its guardrails' assignments.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn delete_agent(&mut self, id: &Id<Agent>) -> Result<bool> {
        let account = self.account.clone();
        self.replace_agent_presets(id, &[]).await?;
        let gone =
            run!(self, r#"DELETE FROM "Alchemi_CopilotAgentTable" WHERE account_id = $1 AND id = $2"#, &account, id)?;
        self.changed(ChangeKind::Agents);
        Ok(gone > 0)
    }

    /// Grants of an agent, newest first.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn agent_grants(&mut self, agent: &Id<Agent>, slice: &Slice) -> Result<Page<AgentGrant>> {
        let account = self.account.clone();
        let (at, id) = slice.before();
        let rows: Vec<AgentGrant> = on!(self, |c| {
            sqlx::query_as(
                r#"SELECT * FROM "Alchemi_CopilotAgentGrantTable" WHERE account_id = $1 AND agent_id = $2
                   AND (created_at, id) < ($3, $4) ORDER BY created_at DESC, id DESC LIMIT $5 OFFSET $6"#,
            )
            .bind(&account)
            .bind(agent)
            .bind(at)
            .bind(&id)
            .bind(slice.fetch())
            .bind(slice.skip())
            .fetch_all(c)
            .await
        })?;
        Ok(slice.page(rows, |g| (g.created_at, g.id.as_str())))
    }

    /// Every grant of several agents, oldest first.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn grants_of_agents(&mut self, agents: &[Id<Agent>]) -> Result<Vec<AgentGrant>> {
        let account = self.account.clone();
        on!(self, |c| {
            let mut q =
                sqlx::QueryBuilder::new(r#"SELECT * FROM "Alchemi_CopilotAgentGrantTable" WHERE account_id = "#);
            q.push_bind(&account).push(" AND agent_id IN (");
            push_ids!(q, agents);
            q.push(") ORDER BY created_at, id").build_query_as().fetch_all(c).await
        })
    }

    /// The presets that several agents must have, oldest assignment first.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn presets_of_agents(&mut self, agents: &[Id<Agent>]) -> Result<Vec<(Id<Agent>, Id<GuardrailPreset>)>> {
        let account = self.account.clone();
        on!(self, |c| {
            let mut q = sqlx::QueryBuilder::new(
                r#"SELECT scope_id, preset_id FROM "Alchemi_CopilotGuardrailAssignmentTable"
                   WHERE scope_type = 'agent' AND account_id = "#,
            );
            q.push_bind(&account).push(" AND scope_id IN (");
            push_ids!(q, agents);
            q.push(") ORDER BY created_at, id").build_query_as().fetch_all(c).await
        })
    }

    /// The grant of an agent to a scope.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn agent_grant_of(&mut self, agent: &Id<Agent>, scope: &Scope) -> Result<Option<AgentGrant>> {
        let account = self.account.clone();
        on!(self, |c| sqlx::query_as(
            r#"SELECT * FROM "Alchemi_CopilotAgentGrantTable"
               WHERE account_id = $1 AND agent_id = $2 AND scope_type = $3 AND scope_id = $4"#
        )
        .bind(&account)
        .bind(agent)
        .bind(scope.scope_type)
        .bind(&scope.scope_id)
        .fetch_optional(c)
        .await)
    }

    /// Grants an agent to a scope that it is not granted to.
    ///
    /// # Errors
    /// [`StoreError::Unique`](super::StoreError::Unique) when it is.
    pub async fn insert_agent_grant(&mut self, agent: &Id<Agent>, scope: &Scope) -> Result<AgentGrant> {
        let (account, now, id) = (self.account.clone(), self.now, self.new_id::<AgentGrant>());
        let by = self.by.actor.subject.to_string();
        self.changed(ChangeKind::Agents);
        on!(self, |c| sqlx::query_as(
            r#"INSERT INTO "Alchemi_CopilotAgentGrantTable" (account_id, id, agent_id, scope_type, scope_id, created_by,
               created_at) VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING *"#
        )
        .bind(&account)
        .bind(&id)
        .bind(agent)
        .bind(scope.scope_type)
        .bind(&scope.scope_id)
        .bind(&by)
        .bind(now)
        .fetch_one(c)
        .await)
    }

    /// Removes a grant.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn delete_agent_grant(&mut self, id: &Id<AgentGrant>) -> Result<bool> {
        let account = self.account.clone();
        let gone = run!(
            self,
            r#"DELETE FROM "Alchemi_CopilotAgentGrantTable" WHERE account_id = $1 AND id = $2"#,
            &account,
            id
        )?;
        self.changed(ChangeKind::Agents);
        Ok(gone > 0)
    }

    /// Replaces the grants of an agent. What is granted already stays as it is.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn replace_agent_grants(&mut self, agent: &Id<Agent>, scopes: &[Scope]) -> Result<()> {
        let held = self.grants_of_agents(std::slice::from_ref(agent)).await?;
        let of = |grant: &AgentGrant| Scope::new(grant.scope_type, grant.scope_id.clone());
        for grant in held.iter().filter(|grant| !scopes.contains(&of(grant))) {
            self.delete_agent_grant(&grant.id).await?;
        }
        for scope in scopes.iter().filter(|scope| !held.iter().any(|grant| of(grant) == **scope)) {
            self.insert_agent_grant(agent, scope).await?;
        }
        Ok(())
    }
}
