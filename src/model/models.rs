//! Who may use which model.

use serde::{Deserialize, Serialize};

use super::accounts::Account;
use super::domain::Domain;
use super::scope::ScopeType;
use crate::clock::Timestamp;
use crate::id::Id;

/// Whether a grant lets in or keeps out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AccessMode {
    /// Lets in.
    Allow,
    /// Keeps out; wins inside its scope.
    Deny,
}

impl AccessMode {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Allow, Self::Deny];

    /// The name in JSON and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

/// Lets a scope use a model, or keeps it from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct ModelGrant {
    /// Its id.
    pub id: Id<ModelGrant>,
    /// The account.
    pub account_id: Id<Account>,
    /// The product domain.
    pub domain: Domain,
    /// The model's public name; may end in `*`.
    #[schema(example = "gpt-4o*")]
    pub model_name: String,
    /// The kind of scope.
    pub scope_type: ScopeType,
    /// The scope.
    pub scope_id: String,
    /// Whether it lets in or keeps out.
    pub access_mode: AccessMode,
    /// Who made it.
    pub created_by: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// Counts changes; the `ETag`.
    #[serde(skip)]
    pub version: i64,
}
