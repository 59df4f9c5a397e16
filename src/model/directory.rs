//! The directory: in each product domain, orgs hold teams, and users are members of teams.

use serde::{Deserialize, Serialize};

use super::accounts::Account;
use super::domain::Domain;
use super::scope::{Scope, ScopeType};
use crate::clock::Timestamp;
use crate::id::Id;

/// An org of one domain.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Org {
    /// Its id.
    pub id: Id<Org>,
    /// The account.
    pub account_id: Id<Account>,
    /// The product domain.
    pub domain: Domain,
    /// Its name, unique in the domain.
    #[schema(example = "Research")]
    pub name: String,
    /// What it is for.
    pub description: Option<String>,
    /// Whether it is the org that every account has from its start.
    pub is_default_global: bool,
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

/// A team of an org.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Team {
    /// Its id.
    pub id: Id<Team>,
    /// The account.
    pub account_id: Id<Account>,
    /// The product domain.
    pub domain: Domain,
    /// The org it belongs to.
    pub org_id: Id<Org>,
    /// Its name, unique in the org.
    #[schema(example = "Language")]
    pub name: String,
    /// What it is for.
    pub description: Option<String>,
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

/// Whether a user may use the product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum UserStatus {
    /// In use.
    Active,
    /// Refused on the data plane.
    Suspended,
}

impl UserStatus {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Active, Self::Suspended];

    /// The name in JSON and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Suspended => "suspended",
        }
    }
}

/// A user of one domain; found by identity id, else by e-mail.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct User {
    /// Their id.
    pub id: Id<User>,
    /// The account.
    pub account_id: Id<Account>,
    /// The product domain.
    pub domain: Domain,
    /// Zitadel's user id, the `sub` of their tokens.
    pub identity_user_id: Option<String>,
    /// Their e-mail address.
    pub email: Option<String>,
    /// Their name.
    pub display_name: Option<String>,
    /// Whether they may use the product.
    pub status: UserStatus,
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

/// A user in a team.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Membership {
    /// The team.
    pub team_id: Id<Team>,
    /// The user.
    pub user_id: Id<User>,
    /// The role in the team, free text; `member` unless said.
    #[schema(example = "member")]
    pub role: String,
    /// Since when.
    pub created_at: Timestamp,
}

/// Where a subject stands in one domain of an account: what the rules that apply
/// to them are looked up by.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Placement {
    /// Their own row, when the directory knows them.
    pub user: Option<Id<User>>,
    /// The status of that row.
    pub status: Option<UserStatus>,
    /// The team they act in.
    pub team: Option<Id<Team>>,
    /// The team's org.
    pub org: Option<Id<Org>>,
}

impl Placement {
    /// Their scopes up to the account, the most specific one first.
    pub fn scopes(&self, account: &Id<Account>) -> Vec<Scope> {
        let user = self.user.as_ref().map(|id| Scope::new(ScopeType::User, id.as_str()));
        let team = self.team.as_ref().map(|id| Scope::new(ScopeType::Team, id.as_str()));
        let org = self.org.as_ref().map(|id| Scope::new(ScopeType::Org, id.as_str()));
        let account = Scope::new(ScopeType::Account, account.as_str());
        [user, team, org, Some(account)].into_iter().flatten().collect()
    }

    /// Whether the directory knows them and has suspended them.
    pub fn is_suspended(&self) -> bool {
        self.status == Some(UserStatus::Suspended)
    }
}

/// How the search for a user's id at the identity provider stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LookupState {
    /// Not asked yet.
    Pending,
    /// Nobody there has the address.
    Unknown,
    /// Several people there have it.
    Ambiguous,
    /// Another user here has the id.
    Taken,
    /// The identity provider could not be asked.
    Failed,
}

impl LookupState {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Pending, Self::Unknown, Self::Ambiguous, Self::Taken, Self::Failed];

    /// The name in JSON and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Unknown => "unknown",
            Self::Ambiguous => "ambiguous",
            Self::Taken => "taken",
            Self::Failed => "failed",
        }
    }
}

/// The search for the id of a user who is known by e-mail address alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct IdentityLookup {
    /// The account.
    #[serde(skip)]
    pub account_id: Id<Account>,
    /// The product domain.
    #[serde(skip)]
    pub domain: Domain,
    /// The user.
    #[serde(skip)]
    pub user_id: Id<User>,
    /// How the last attempt ended; at first, pending.
    pub state: LookupState,
    /// Why, where there is more to say.
    #[schema(example = "one of: 291047613578412035, 291047613578412099")]
    pub detail: Option<String>,
    /// Attempts so far.
    pub attempts: i64,
}

/// What the identity provider said about an e-mail address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LookupOutcome {
    /// One person, with this id.
    Found(String),
    /// Nobody.
    Unknown,
    /// Several, with these ids.
    Ambiguous(Vec<String>),
    /// Nothing: it could not be asked, for this reason.
    Failed(String),
}

impl LookupOutcome {
    /// Of the people whose address it is.
    pub fn of(mut ids: Vec<String>) -> Self {
        match (ids.pop(), ids.len()) {
            (None, _) => Self::Unknown,
            (Some(only), 0) => Self::Found(only),
            (Some(last), _) => {
                ids.push(last);
                Self::Ambiguous(ids)
            }
        }
    }

    /// The state of a lookup that is left open with it.
    pub fn state(&self) -> LookupState {
        match self {
            Self::Found(_) => LookupState::Pending,
            Self::Unknown => LookupState::Unknown,
            Self::Ambiguous(_) => LookupState::Ambiguous,
            Self::Failed(_) => LookupState::Failed,
        }
    }

    /// What an admin has to know about it.
    pub fn detail(&self) -> Option<String> {
        match self {
            Self::Found(_) | Self::Unknown => None,
            Self::Ambiguous(ids) => Some(format!("one of: {}", ids.join(", "))),
            Self::Failed(reason) => Some(reason.clone()),
        }
    }
}
