//! Agents of the copilot and their grants. Which guardrails an agent must have is in
//! [`guardrails`](super::guardrails), as assignments to the scope `agent`.

use super::changes::ChangeKind;
use super::page::{Page, Slice};
use super::{Result, Tx, columns, find, from_columns, hold, list, on, push_in, push_scopes, remove, run};
use crate::context::Tenant;
use crate::id::Id;
use crate::model::agents::{Agent, AgentGrant, AgentVisibility};
use crate::model::guardrails::GuardrailPreset;
use crate::model::scope::Scope;

columns::stored_as_name!(AgentVisibility);

from_columns! {
    Agent { id, account_id, name, description, definition_json, visibility, created_by, created_at, updated_at, version }
    AgentGrant { id, account_id, agent_id, scope_type, scope_id, created_by, created_at }
}

impl Tx<Tenant> {
    /// Agents, newest first.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn agents(&mut self, slice: &Slice) -> Result<Page<Agent>> {
        list!(self, slice, Agent in "Alchemi_CopilotAgentTable")
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
        // Two lists that are each in order: an OR of the two would be asked of every agent.
        let rows: Vec<Agent> = on!(self, |c| {
            let mut q = sqlx::QueryBuilder::new(r#"SELECT * FROM "Alchemi_CopilotAgentTable" WHERE account_id = "#);
            q.push_bind(&account).push(" AND visibility = 'account'");
            q.push(" AND (created_at, id) < (").push_bind(at).push(", ").push_bind(&id).push(")");
            q.push(r#" UNION ALL SELECT * FROM "Alchemi_CopilotAgentTable" WHERE account_id = "#).push_bind(&account);
            q.push(" AND visibility = 'granted' AND (created_at, id) < (").push_bind(at).push(", ").push_bind(&id);
            q.push(r#") AND id IN (SELECT agent_id FROM "Alchemi_CopilotAgentGrantTable" WHERE account_id = "#);
            q.push_bind(&account);
            push_scopes!(q, scopes);
            q.push(") ORDER BY created_at DESC, id DESC LIMIT ").push_bind(slice.fetch());
            q.push(" OFFSET ").push_bind(slice.skip()).build_query_as().fetch_all(c).await
        })?;
        Ok(slice.page(rows, |a| (a.created_at, a.id.as_str())))
    }

    /// One agent.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn agent(&mut self, id: &Id<Agent>) -> Result<Option<Agent>> {
        find!(self, "Alchemi_CopilotAgentTable", id = id)
    }

    /// An agent that is about to be changed, kept from everybody else until the end of
    /// the transaction.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn hold_agent(&mut self, id: &Id<Agent>) -> Result<Option<Agent>> {
        hold!(self, "Alchemi_CopilotAgentTable", id = id)
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
        self.replace_agent_presets(id, &[]).await?;
        let gone = remove!(self, "Alchemi_CopilotAgentTable", id = id)?;
        self.changed(ChangeKind::Agents);
        Ok(gone)
    }

    /// Grants of an agent, newest first.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn agent_grants(&mut self, agent: &Id<Agent>, slice: &Slice) -> Result<Page<AgentGrant>> {
        list!(self, slice, AgentGrant in "Alchemi_CopilotAgentGrantTable", agent_id = agent)
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
            q.push_bind(&account);
            push_in!(q, "agent_id", agents);
            q.push(" ORDER BY created_at, id").build_query_as().fetch_all(c).await
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
            q.push_bind(&account);
            push_in!(q, "scope_id", agents);
            q.push(" ORDER BY created_at, id").build_query_as().fetch_all(c).await
        })
    }

    /// The grant of an agent to a scope.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn agent_grant_of(&mut self, agent: &Id<Agent>, scope: &Scope) -> Result<Option<AgentGrant>> {
        find!(
            self,
            "Alchemi_CopilotAgentGrantTable",
            agent_id = agent,
            scope_type = scope.scope_type,
            scope_id = &scope.scope_id
        )
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
        let gone = remove!(self, "Alchemi_CopilotAgentGrantTable", id = id)?;
        self.changed(ChangeKind::Agents);
        Ok(gone)
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
