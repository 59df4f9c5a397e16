//! What is to be so in Zitadel, item by item, and how far it is.

use serde::Serialize;

use super::accounts::{Account, AdminRole, ZitadelConfig};
use crate::clock::Timestamp;
use crate::id::Id;

/// What kind of thing is to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ItemKind {
    /// A role of the project.
    Role,
    /// That the account's organisation may grant roles of a project that is another's.
    ProjectGrant,
    /// Roles of a user.
    UserGrant,
}

impl ItemKind {
    /// In the order in which they rest on each other.
    pub const ALL: [Self; 3] = [Self::Role, Self::ProjectGrant, Self::UserGrant];

    /// The name in JSON and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Role => "role",
            Self::ProjectGrant => "project_grant",
            Self::UserGrant => "user_grant",
        }
    }
}

/// How far an item is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ItemState {
    /// To be made so.
    Pending,
    /// So, when last looked at.
    Applied,
    /// Zitadel holds something else, which a person must decide about.
    Conflict,
    /// Zitadel refuses.
    Failed,
}

impl ItemState {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Pending, Self::Applied, Self::Conflict, Self::Failed];

    /// The name in JSON and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Applied => "applied",
            Self::Conflict => "conflict",
            Self::Failed => "failed",
        }
    }
}

/// One thing that is to be so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProvisionItem {
    /// Its id.
    pub id: Id<ProvisionItem>,
    /// For which account.
    pub account_id: Id<Account>,
    /// What.
    pub kind: ItemKind,
    /// In which project.
    pub project_id: String,
    /// By which organisation; for a role, and where the project's own is meant, none.
    pub organization_id: Option<String>,
    /// The role's key; the organisation; the user's e-mail address or id.
    pub target: String,
    /// Of a role.
    pub display_name: Option<String>,
    /// Of a role.
    pub role_group: Option<String>,
    /// The roles that are to be held; none: they are to be taken back.
    pub role_keys: Vec<String>,
    /// Roles that were to be held and are to be taken back.
    pub retired_keys: Vec<String>,
    /// The user behind an e-mail address, once known.
    pub user_id: Option<String>,
    /// How far it is.
    pub state: ItemState,
    /// Why it is no further: a stable code.
    pub reason: Option<String>,
    /// The same, for people.
    pub detail: Option<String>,
    /// Attempts since it was last applied or wanted.
    pub attempts: i64,
    /// When it is looked at next.
    pub next_attempt_at: Timestamp,
    /// When it was last found or made so.
    pub applied_at: Option<Timestamp>,
    /// When it was first wanted.
    pub created_at: Timestamp,
    /// When it was last wanted or looked at.
    pub updated_at: Timestamp,
    /// Counts changes of what is wanted.
    pub version: i64,
}

/// One thing to want.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// What.
    pub kind: ItemKind,
    /// In which project.
    pub project_id: String,
    /// By which organisation.
    pub organization_id: Option<String>,
    /// The role's key; the organisation; the user's e-mail address or id.
    pub target: String,
    /// Of a role.
    pub display_name: Option<String>,
    /// Of a role.
    pub role_group: Option<String>,
    /// The roles to be held.
    pub role_keys: Vec<String>,
    /// Roles to be taken back although nobody remembers having wanted them.
    pub retired_keys: Vec<String>,
    /// The user behind an e-mail address, if known.
    pub user_id: Option<String>,
}

impl Wanted {
    /// A role of a project.
    pub fn role(project: &str, role: &StandardRole) -> Self {
        Self {
            display_name: Some(role.display_name.to_owned()),
            role_group: role.group.clone(),
            ..Self::item(ItemKind::Role, project, None, &role.key)
        }
    }

    /// That an organisation may grant roles of a project.
    pub fn project_grant(project: &str, organization: &str, role_keys: Vec<String>) -> Self {
        let item = Self::item(ItemKind::ProjectGrant, project, Some(organization), organization);
        Self { role_keys, ..item }
    }

    /// Roles of somebody, by e-mail address or id.
    pub fn user_grant(project: &str, organization: Option<&str>, who: &str, role_keys: Vec<String>) -> Self {
        Self { role_keys, ..Self::item(ItemKind::UserGrant, project, organization, who) }
    }

    fn item(kind: ItemKind, project: &str, organization: Option<&str>, target: &str) -> Self {
        Self {
            kind,
            project_id: project.to_owned(),
            organization_id: organization.map(str::to_owned),
            target: target.to_owned(),
            display_name: None,
            role_group: None,
            role_keys: Vec::new(),
            retired_keys: Vec::new(),
            user_id: None,
        }
    }
}

/// Where a user's roles are: an organisation's grant of a project's roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrantPlace<'a> {
    /// The project.
    pub project: &'a str,
    /// The organisation that grants.
    pub organization: &'a str,
    /// Whose the project is.
    pub owner: &'a str,
}

impl<'a> GrantPlace<'a> {
    /// Where the project's own organisation is meant when none is named.
    pub fn of(project: &'a str, organization: Option<&'a str>, owner: &'a str) -> Self {
        Self { project, organization: organization.unwrap_or(owner), owner }
    }

    /// How items may name the organisation: the project's own need not be named.
    pub fn names(&self) -> [&'a str; 2] {
        [self.organization, if self.organization == self.owner { "" } else { self.organization }]
    }
}

/// A role of the product as a role of the project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct StandardRole {
    /// The project's key: the canonical name behind the prefix.
    #[schema(example = "acme_account_admin")]
    pub key: String,
    /// For people.
    #[schema(example = "Account Admin")]
    pub display_name: String,
    /// For people.
    #[schema(example = "account")]
    pub group: Option<String>,
    /// The canonical name.
    #[schema(example = "account_admin")]
    pub base_key: String,
}

/// Canonical name, display name, group.
const STANDARD_ROLES: [(&str, &str, &str); 6] = [
    ("account_admin", "Account Admin", "account"),
    ("console_org_admin", "Console Org Admin", "console"),
    ("console_team_admin", "Console Team Admin", "console"),
    ("copilot_org_admin", "Copilot Org Admin", "copilot"),
    ("copilot_team_admin", "Copilot Team Admin", "copilot"),
    ("end_user", "End User", "common"),
];

/// The product's roles under a prefix, which may be empty.
pub fn standard_roles(prefix: &str) -> Vec<StandardRole> {
    let role = |(name, display_name, group): (&str, &str, &str)| StandardRole {
        key: format!("{prefix}{name}"),
        display_name: display_name.to_owned(),
        group: Some(group.to_owned()),
        base_key: name.to_owned(),
    };
    STANDARD_ROLES.map(role).into()
}

/// The project's key for a canonical role: as mapped, else behind the prefix.
///
/// # Errors
/// The role is none of the product's: nothing is granted in its place.
pub fn role_key(config: &ZitadelConfig, prefix: &str, role: &str) -> Result<String, String> {
    let canonical: AdminRole = role.parse()?;
    let mapped = config.role_mappings.get(canonical.as_str()).cloned();
    Ok(mapped.unwrap_or_else(|| format!("{prefix}{}", canonical.as_str())))
}

/// The same binding under another prefix: what its mapping has from the former one follows,
/// what was named by hand stays.
#[must_use]
pub fn under_prefix(mut config: ZitadelConfig, prefix: &str) -> ZitadelConfig {
    let former = config.role_prefix.take().unwrap_or_default();
    for (role, key) in &mut config.role_mappings {
        if key.strip_prefix(former.as_str()) == Some(role.as_str()) {
            *key = format!("{prefix}{role}");
        }
    }
    config.role_prefix = (!prefix.is_empty()).then(|| prefix.to_owned());
    config
}

/// The reason of an item whose write no list of Zitadel shows yet.
pub const NOT_LISTED_YET: &str = "not_listed_yet";

/// Adds what is not there yet, in order.
pub fn add_missing(keys: &mut Vec<String>, more: impl IntoIterator<Item = String>) {
    for key in more {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
}
