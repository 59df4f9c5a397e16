//! The directory of both product domains: one table for each kind of row, with the
//! domain in its key.
//!
//! Whoever hangs something on a row of the directory holds the row first
//! ([`Tx::hold_scope`] and its kin), as does whoever removes it: nothing is hung on
//! what another transaction is removing.

use serde::Serialize;

use super::changes::ChangeKind;
use super::{Result, StoreError, Tx, from_columns, on, run};
use crate::context::{Domain, Tenant};
use crate::id::Id;
use crate::model::agents::AgentGrant;
use crate::model::budgets::{Allocation, Override};
use crate::model::connections::ConnectionGrant;
use crate::model::directory::{Membership, Org, Placement, Team, User};
use crate::model::features::FeatureEntitlement;
use crate::model::guardrails::GuardrailAssignment;
use crate::model::marketplace::{Installation, ListingGrant};
use crate::model::models::ModelGrant;
use crate::model::scope::ScopeType;
use crate::problem::Problem;

pub mod lookups;
mod orgs;
mod teams;
mod users;

from_columns! {
    Org { id, account_id, domain, name, description, is_default_global, created_by, created_at, updated_at, version }
    Team { id, account_id, domain, org_id, name, description, created_by, created_at, updated_at, version }
    User {
        id, account_id, domain, identity_user_id, email, display_name, status,
        created_by, created_at, updated_at, version,
    }
    Membership { team_id, user_id, role, created_at }
    Placement { user, status, team, org }
}

/// What was removed along with a row of the directory, because it hung on it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Uprooted {
    /// Teams of the org.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub teams: Vec<Id<Team>>,
    /// Memberships of the teams or the user.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub memberships: Vec<Membership>,
    /// Model grants to any of these scopes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub model_grants: Vec<Id<ModelGrant>>,
    /// Connection grants to any of these scopes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub connection_grants: Vec<Id<ConnectionGrant>>,
    /// Feature entitlements of any of these scopes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub feature_entitlements: Vec<Id<FeatureEntitlement>>,
    /// Grants of agents to any of these scopes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub agent_grants: Vec<Id<AgentGrant>>,
    /// Guardrails assigned to any of these scopes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub guardrail_assignments: Vec<Id<GuardrailAssignment>>,
    /// Grants of the marketplace to any of these scopes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub marketplace_grants: Vec<Id<ListingGrant>>,
    /// Installations in any of these scopes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub marketplace_installations: Vec<Id<Installation>>,
    /// Budget allocations of any of these scopes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub budget_allocations: Vec<Id<Allocation>>,
    /// Budget overrides of any of these scopes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub budget_overrides: Vec<Id<Override>>,
}

/// Why a subject has no place.
#[derive(Debug, thiserror::Error)]
pub enum PlacementError {
    /// They ask to act in a team that they are not a member of, or that does not exist.
    #[error("not a member of the team")]
    TeamDenied,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<PlacementError> for Problem {
    fn from(error: PlacementError) -> Self {
        match error {
            PlacementError::TeamDenied => Self::forbidden(
                "team_denied",
                "You are not a member of the team in x-alchemi-team-id: name one of your teams, or leave it out",
            ),
            PlacementError::Store(error) => error.into(),
        }
    }
}

/// Deletes the rows of a table that name a scope, or a team of the org that it is.
macro_rules! delete_named {
    ($table:literal, $domain:literal) => {
        concat!(
            "DELETE FROM \"",
            $table,
            "\" WHERE account_id = $1 AND CAST($2 AS TEXT) = ",
            $domain,
            r#" AND ((scope_type = $3 AND scope_id = $4) OR (CAST($3 AS TEXT) = 'org' AND scope_type = 'team' AND scope_id IN
               (SELECT id FROM "Alchemi_TeamTable" WHERE account_id = $1 AND domain = $2 AND org_id = $4))) RETURNING id"#
        )
    };
}

impl Tx<Tenant> {
    /// Where a subject stands: their row is the one with their identity id, else the
    /// one with their verified e-mail address that has no other identity id; their
    /// team is `team`, else the oldest membership. Without a row, or without a team,
    /// only the broader scopes remain. Who has two such rows is suspended if one of them is.
    ///
    /// # Errors
    /// [`PlacementError::TeamDenied`] when they are no member of `team`.
    pub async fn placement(
        &mut self,
        domain: Domain,
        subject: &str,
        email: Option<&str>,
        team: Option<&Id<Team>>,
    ) -> Result<Placement, PlacementError> {
        let account = self.account.clone();
        // As they are stored, whatever the token's spelling.
        let email = email.map(str::to_lowercase);
        let placement: Option<Placement> = on!(self, |c| {
            sqlx::query_as(
            r#"SELECT u.id AS "user", t.id AS team, t.org_id AS org,
               CASE WHEN EXISTS (SELECT 1 FROM "Alchemi_UserTable" s WHERE s.account_id = $1 AND s.domain = $2
                 AND s.status = 'suspended' AND (s.identity_user_id = $3 OR (s.email = $4 AND s.identity_user_id IS NULL)))
                 THEN 'suspended' ELSE u.status END AS status FROM "Alchemi_UserTable" u
               LEFT JOIN "Alchemi_TeamMembershipTable" m ON m.account_id = u.account_id AND m.domain = u.domain
                 AND m.user_id = u.id AND (CAST($5 AS TEXT) IS NULL OR m.team_id = CAST($5 AS TEXT))
               LEFT JOIN "Alchemi_TeamTable" t ON t.account_id = m.account_id AND t.domain = m.domain AND t.id = m.team_id
               WHERE u.account_id = $1 AND u.domain = $2
                 AND (u.identity_user_id = $3 OR (u.email = $4 AND u.identity_user_id IS NULL))
               ORDER BY CASE WHEN u.identity_user_id = $3 THEN 0 ELSE 1 END, m.created_at, m.team_id LIMIT 1"#
        )
        .bind(&account)
        .bind(domain)
        .bind(subject)
        .bind(email)
        .bind(team)
        .fetch_optional(c)
        .await
        })?;
        let placement = placement.unwrap_or_default();
        if team.is_some() && placement.team.as_ref() != team {
            return Err(PlacementError::TeamDenied);
        }
        Ok(placement)
    }

    /// Whether the scope is a row of this account's tree of `domain`; the account
    /// itself and the pool always are.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn scope_exists(&mut self, domain: Domain, kind: ScopeType, id: &str) -> Result<bool> {
        let sql = match kind {
            ScopeType::Account => return Ok(self.account.as_str() == id),
            ScopeType::Pool => return Ok(true),
            ScopeType::Agent => {
                r#"SELECT id FROM "Alchemi_CopilotAgentTable"
                   WHERE account_id = $1 AND CAST($2 AS TEXT) = 'copilot' AND id = $3"#
            }
            ScopeType::Org => r#"SELECT id FROM "Alchemi_OrgTable" WHERE account_id = $1 AND domain = $2 AND id = $3"#,
            ScopeType::Team => {
                r#"SELECT id FROM "Alchemi_TeamTable" WHERE account_id = $1 AND domain = $2 AND id = $3"#
            }
            ScopeType::User => {
                r#"SELECT id FROM "Alchemi_UserTable" WHERE account_id = $1 AND domain = $2 AND id = $3"#
            }
        };
        let account = self.account.clone();
        let found: Option<String> =
            on!(self, |c| sqlx::query_scalar(sql).bind(&account).bind(domain).bind(id).fetch_optional(c).await)?;
        Ok(found.is_some())
    }

    /// As [`Tx::scope_exists`], and keeps the row from being changed or removed by
    /// others until the end of the transaction.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn hold_scope(&mut self, domain: Domain, kind: ScopeType, id: &str) -> Result<bool> {
        // An UPDATE that changes nothing is the row lock that both databases know.
        let sql = match kind {
            ScopeType::Account | ScopeType::Pool => return self.scope_exists(domain, kind, id).await,
            ScopeType::Agent => {
                r#"UPDATE "Alchemi_CopilotAgentTable" SET version = version
                   WHERE account_id = $1 AND CAST($2 AS TEXT) = 'copilot' AND id = $3"#
            }
            ScopeType::Org => {
                r#"UPDATE "Alchemi_OrgTable" SET version = version WHERE account_id = $1 AND domain = $2 AND id = $3"#
            }
            ScopeType::Team => {
                r#"UPDATE "Alchemi_TeamTable" SET version = version WHERE account_id = $1 AND domain = $2 AND id = $3"#
            }
            ScopeType::User => {
                r#"UPDATE "Alchemi_UserTable" SET version = version WHERE account_id = $1 AND domain = $2 AND id = $3"#
            }
        };
        let account = self.account.clone();
        Ok(run!(self, sql, &account, domain, id)? > 0)
    }

    /// Deletes what hangs on a row of the directory. Budgets and connections are the copilot's.
    async fn uproot(&mut self, domain: Domain, kind: ScopeType, id: &str) -> Result<Uprooted> {
        let at = (domain, kind, id);
        let model_grants = self.uproot_from(delete_named!("Alchemi_ModelGrantTable", "domain"), at).await?;
        let connection_grants =
            self.uproot_from(delete_named!("Alchemi_CopilotConnectionGrantTable", "'copilot'"), at).await?;
        let feature_entitlements =
            self.uproot_from(delete_named!("Alchemi_FeatureEntitlementTable", "domain"), at).await?;
        let agent_grants = self.uproot_from(delete_named!("Alchemi_CopilotAgentGrantTable", "'copilot'"), at).await?;
        let guardrail_assignments =
            self.uproot_from(delete_named!("Alchemi_CopilotGuardrailAssignmentTable", "'copilot'"), at).await?;
        let marketplace_grants =
            self.uproot_from(delete_named!("Alchemi_CopilotMarketplaceGrantTable", "'copilot'"), at).await?;
        let marketplace_installations = match domain {
            Domain::Copilot => self.uninstall_from(kind, id).await?,
            Domain::Console => Vec::new(),
        };
        let budget_allocations =
            self.uproot_from(delete_named!("Alchemi_CopilotBudgetAllocationTable", "'copilot'"), at).await?;
        let budget_overrides =
            self.uproot_from(delete_named!("Alchemi_CopilotBudgetOverrideTable", "'copilot'"), at).await?;
        let account = self.account.clone();
        let memberships = on!(self, |c| sqlx::query_as(
            r#"DELETE FROM "Alchemi_TeamMembershipTable" WHERE account_id = $1 AND domain = $2
               AND ((CAST($3 AS TEXT) = 'team' AND team_id = $4) OR (CAST($3 AS TEXT) = 'user' AND user_id = $4)
                 OR (CAST($3 AS TEXT) = 'org' AND team_id IN
                   (SELECT id FROM "Alchemi_TeamTable" WHERE account_id = $1 AND domain = $2 AND org_id = $4)))
               RETURNING *"#
        )
        .bind(&account)
        .bind(domain)
        .bind(kind)
        .bind(id)
        .fetch_all(c)
        .await)?;
        let teams = self
            .uproot_from(
                r#"DELETE FROM "Alchemi_TeamTable"
                   WHERE account_id = $1 AND domain = $2 AND CAST($3 AS TEXT) = 'org' AND org_id = $4 RETURNING id"#,
                at,
            )
            .await?;
        let uprooted = Uprooted {
            teams,
            memberships,
            model_grants,
            connection_grants,
            feature_entitlements,
            agent_grants,
            guardrail_assignments,
            marketplace_grants,
            marketplace_installations,
            budget_allocations,
            budget_overrides,
        };
        self.changed(ChangeKind::Directory);
        if !uprooted.model_grants.is_empty() {
            self.changed(ChangeKind::Models);
        }
        if !uprooted.marketplace_grants.is_empty() {
            self.changed(ChangeKind::Marketplace);
        }
        if !uprooted.feature_entitlements.is_empty() {
            self.changed(ChangeKind::Features);
        }
        if !uprooted.agent_grants.is_empty() {
            self.changed(ChangeKind::Agents);
        }
        if !uprooted.guardrail_assignments.is_empty() {
            self.changed(ChangeKind::Guardrails);
        }
        if !uprooted.budget_allocations.is_empty() || !uprooted.budget_overrides.is_empty() {
            self.changed(ChangeKind::Budget);
        }
        Ok(uprooted)
    }

    async fn uproot_from<T: 'static>(
        &mut self,
        sql: &'static str,
        (domain, kind, id): (Domain, ScopeType, &str),
    ) -> Result<Vec<Id<T>>> {
        let account = self.account.clone();
        on!(self, |c| sqlx::query_scalar(sql).bind(&account).bind(domain).bind(kind).bind(id).fetch_all(c).await)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::context::Granted;
    use crate::model::accounts::Account;
    use crate::model::directory::UserStatus;
    use crate::store::{DatabaseConfig, Store, migrate};

    // Budgets of what is removed go with it; those of others stay.
    #[tokio::test]
    async fn budgets_go_with_what_they_are_for() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("alchemi.db").display());
        let config = DatabaseConfig { url, ..DatabaseConfig::default() };
        let store =
            Store::open(&config, Arc::new(crate::clock::SystemClock), Arc::new(crate::id::RandomIds)).await.unwrap();
        migrate::apply(&store).await.unwrap();
        let mut tx = store.begin(&Granted::system()).await.unwrap();
        let account = Account::new(tx.new_id(), "Acme".to_owned(), None, tx.now());
        tx.insert_account(&account).await.unwrap();
        let mut tx = tx.within(account.account_id.clone());
        let id = &account.account_id;
        let (email, user) = (Some("ada@acme.com".to_owned()), tx.new_id());
        let user = User {
            id: user,
            account_id: id.clone(),
            domain: Domain::Copilot,
            identity_user_id: None,
            email,
            display_name: None,
            status: UserStatus::Active,
            created_by: None,
            created_at: tx.now(),
            updated_at: tx.now(),
            version: 1,
        };
        tx.insert_user(&user).await.unwrap();
        run!(
            tx,
            r#"INSERT INTO "Alchemi_CopilotBudgetPlanTable" (account_id, id, name, created_at, updated_at)
               VALUES ($1, 'plan', 'plan', 0, 0)"#,
            id
        )
        .unwrap();
        for (row, scope) in [("mine", user.id.as_str()), ("other", "somebody")] {
            run!(
                tx,
                r#"INSERT INTO "Alchemi_CopilotBudgetAllocationTable"
                   (account_id, id, plan_id, scope_type, scope_id, created_at, updated_at)
                   VALUES ($1, $2, 'plan', 'user', $3, 0, 0)"#,
                id,
                row,
                scope
            )
            .unwrap();
            run!(
                tx,
                r#"INSERT INTO "Alchemi_CopilotBudgetOverrideTable"
                   (account_id, id, plan_id, scope_type, scope_id, override_credits, created_at)
                   VALUES ($1, $2, 'plan', 'user', $3, 1, 0)"#,
                id,
                row,
                scope
            )
            .unwrap();
        }
        // The same id in the console is somebody else.
        assert!(tx.delete_user(Domain::Console, &user.id).await.unwrap().budget_allocations.is_empty());
        let gone = tx.delete_user(Domain::Copilot, &user.id).await.unwrap();
        assert_eq!(gone.budget_allocations, ["mine".parse().unwrap()]);
        assert_eq!(gone.budget_overrides, ["mine".parse().unwrap()]);
        assert!(tx.user(Domain::Copilot, &user.id).await.unwrap().is_none());
        let left: i64 = on!(tx, |c| sqlx::query_scalar(
            r#"SELECT CAST(COUNT(*) AS BIGINT) FROM "Alchemi_CopilotBudgetOverrideTable""#
        )
        .fetch_one(c)
        .await)
        .unwrap();
        assert_eq!(left, 1);
    }
}
