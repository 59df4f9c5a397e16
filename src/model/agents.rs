//! Agents of the copilot and who may use them.

use serde::{Deserialize, Serialize};

use super::accounts::{Account, JsonText};
use super::scope::ScopeType;
use crate::clock::Timestamp;
use crate::id::Id;

/// Who may use an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AgentVisibility {
    /// Everybody of the account.
    Account,
    /// Whom it is granted to. It stays so when the last grant goes.
    Granted,
}

impl AgentVisibility {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Account, Self::Granted];

    /// The name in JSON and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Account => "account",
            Self::Granted => "granted",
        }
    }
}

/// An agent: a named definition that requests are made through.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Agent {
    /// Its id; what `x-alchemi-agent-id` names.
    pub id: Id<Agent>,
    /// The account.
    pub account_id: Id<Account>,
    /// Its name.
    #[schema(example = "Support desk")]
    pub name: String,
    /// What it is for.
    pub description: Option<String>,
    /// Its definition, a JSON object that only its users read.
    #[schema(value_type = Object)]
    pub definition_json: JsonText,
    /// Who may use it.
    pub visibility: AgentVisibility,
    /// Who made it.
    pub created_by: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it, its grants or its guardrails were last changed.
    pub updated_at: Timestamp,
    /// Counts changes; the `ETag`.
    #[serde(skip)]
    pub version: i64,
}

/// Lets a scope use an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct AgentGrant {
    /// Its id.
    pub id: Id<AgentGrant>,
    /// The account.
    pub account_id: Id<Account>,
    /// The agent.
    pub agent_id: Id<Agent>,
    /// `org`, `team` or `user`.
    #[schema(example = "team")]
    pub scope_type: ScopeType,
    /// The scope.
    pub scope_id: String,
    /// Who made it.
    pub created_by: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
}
