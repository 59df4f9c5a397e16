//! Scopes: whom a grant, an allocation or a rule is for.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::problem::Problem;

/// The kind of a scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ScopeType {
    /// The whole account.
    Account,
    /// An org of one domain.
    Org,
    /// A team of one domain.
    Team,
    /// A user of one domain.
    User,
    /// Credits that nobody has of their own.
    Pool,
    /// An agent.
    Agent,
}

/// Describes [`ScopeType::GRANTEES`].
#[derive(Debug, utoipa::ToSchema)]
#[schema(rename_all = "lowercase")]
pub enum GranteeType {
    /// The whole account.
    Account,
    /// An org of one domain.
    Org,
    /// A team of one domain.
    Team,
    /// A user of one domain.
    User,
}

/// Describes [`ScopeType::MEMBERS`].
#[derive(Debug, utoipa::ToSchema)]
#[schema(rename_all = "lowercase")]
pub enum MemberType {
    /// An org of one domain.
    Org,
    /// A team of one domain.
    Team,
    /// A user of one domain.
    User,
}

/// Describes [`ScopeType::GUARDED`].
#[derive(Debug, utoipa::ToSchema)]
#[schema(rename_all = "lowercase")]
pub enum GuardedType {
    /// The whole account.
    Account,
    /// An org of one domain.
    Org,
    /// A team of one domain.
    Team,
    /// A user of one domain.
    User,
    /// An agent.
    Agent,
}

impl ScopeType {
    /// All of them, broadest first: the order in which locks are taken.
    pub const ALL: [Self; 6] = [Self::Account, Self::Pool, Self::Org, Self::Team, Self::User, Self::Agent];

    /// Kinds that a model grant or an entitlement may be for.
    pub const GRANTEES: &'static [Self] = &[Self::Account, Self::Org, Self::Team, Self::User];

    /// Kinds that a connection or an agent may be granted to.
    pub const MEMBERS: &'static [Self] = &[Self::Org, Self::Team, Self::User];

    /// Kinds that a guardrail preset may be assigned to.
    pub const GUARDED: &'static [Self] = &[Self::Account, Self::Agent, Self::Org, Self::Team, Self::User];

    /// Kinds that an allocation may be for.
    pub const BUDGETED: &'static [Self] = &[Self::Org, Self::Pool, Self::Team, Self::User];

    /// The name in JSON and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Account => "account",
            Self::Org => "org",
            Self::Team => "team",
            Self::User => "user",
            Self::Pool => "pool",
            Self::Agent => "agent",
        }
    }

    /// Reads one of `allowed`.
    ///
    /// # Errors
    /// 400 that lists what is allowed.
    pub fn parse(text: &str, allowed: &[Self]) -> Result<Self, Problem> {
        allowed.iter().copied().find(|s| s.as_str() == text).ok_or_else(|| {
            let mut names: Vec<_> = allowed.iter().map(|s| s.as_str()).collect();
            names.sort_unstable();
            Problem::bad_request("invalid_scope_type", format!("scope_type must be one of: {}", names.join(",")))
        })
    }

    /// As [`ScopeType::parse`], for budgets: case and blanks do not matter, and
    /// `group` is an org.
    ///
    /// # Errors
    /// 400 that lists what is allowed.
    pub fn parse_budgeted(text: &str) -> Result<Self, Problem> {
        let text = text.trim().to_lowercase();
        Self::parse(if text == "group" { "org" } else { &text }, Self::BUDGETED)
    }
}

impl fmt::Display for ScopeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A scope: its kind and id.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Scope {
    /// Its kind.
    pub scope_type: ScopeType,
    /// Its id; `pool` for the pool, the account's id for the account.
    #[schema(example = "019a3c5e-7d10-7c3a-9b1e-2f6d8a4c0b11")]
    pub scope_id: String,
}

impl Scope {
    /// A scope.
    pub fn new(scope_type: ScopeType, scope_id: impl Into<String>) -> Self {
        Self { scope_type, scope_id: scope_id.into() }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.scope_type, self.scope_id)
    }
}
