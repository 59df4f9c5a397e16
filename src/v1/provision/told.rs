//! What the operations tell.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::super::answer::StatusOk;
use crate::id::Id;
use crate::model::accounts::{Account, ZitadelConfig};
use crate::model::provision::{ItemState, ProvisionItem, StandardRole};
use crate::provision::{Did, Outcomes};
use crate::zitadel::{Error, FoundUser};

pub(super) fn remote_word(present: Option<bool>) -> &'static str {
    match present {
        Some(true) => "present",
        Some(false) => "missing",
        None => "unknown",
    }
}

/// How many of each.
#[derive(Debug, Default, Clone, Copy, Serialize, utoipa::ToSchema)]
pub struct Counted {
    pub(super) created: u32,
    pub(super) updated: u32,
    pub(super) exists: u32,
    pub(super) skipped: u32,
    pub(super) failed: u32,
    /// Not yet: made so later.
    pub(super) pending: u32,
}

/// What came of one role or grant.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct ItemResult {
    /// `created`, `updated`, `exists`, `skipped`, `failed` or `pending`.
    #[schema(example = "created")]
    pub(super) status: &'static str,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) message: Option<String>,
    /// The same as a stable code; `dry_run`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<&'static str>,
    /// Zitadel's id of the grant.
    #[serde(skip_serializing_if = "Option::is_none", rename = "userGrantId")]
    pub(super) user_grant_id: Option<String>,
    /// What would be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub(super) request: Option<Value>,
    /// What is there now, on a dry run: `present`, `missing` or `unknown`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) remote: Option<&'static str>,
}

/// Why it cannot be told what Zitadel holds of a project.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct RemoteProblem {
    /// In which project; `null` where the account is bound to none.
    #[schema(example = "259242039378444300")]
    pub(super) project_id: Option<String>,
    /// In which organisation.
    #[schema(example = "259242039378444290")]
    pub(super) organization_id: Option<String>,
    /// A stable code.
    #[schema(example = "zitadel_unavailable")]
    pub(super) reason: &'static str,
    /// The same, for people.
    #[schema(example = "Zitadel cannot be reached")]
    pub(super) detail: String,
}

/// One role.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct RoleResult {
    pub(super) key: String,
    #[serde(flatten)]
    pub(super) result: ItemResult,
}

/// What came of the roles.
#[derive(Debug, Default, Serialize, utoipa::ToSchema)]
pub struct RolesSynced {
    pub(super) roles: Vec<StandardRole>,
    pub(super) results: Vec<RoleResult>,
    pub(super) summary: Counted,
}

/// One admin's grant.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct GrantResult {
    pub(super) email: String,
    pub(super) user_id: Option<String>,
    pub(super) role: String,
    pub(super) role_keys: Vec<String>,
    #[serde(flatten)]
    pub(super) result: ItemResult,
}

/// An admin who was granted nothing.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Unresolved {
    pub(super) email: String,
    pub(super) role: String,
    /// `user_id_not_found`, `ambiguous_email` or `unknown_role`.
    #[schema(example = "user_id_not_found")]
    pub(super) reason: &'static str,
    pub(super) role_keys: Vec<String>,
    /// Whom an ambiguous address may mean.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    pub(super) candidates: Vec<FoundUser>,
}

/// What came of the admins' grants.
#[derive(Debug, Default, Serialize, utoipa::ToSchema)]
pub struct GrantsSynced {
    pub(super) admins_total: usize,
    pub(super) grants: Vec<GrantResult>,
    pub(super) grants_summary: Counted,
    pub(super) unresolved_admins: Vec<Unresolved>,
    /// Ids of users that were looked up, by e-mail address.
    #[schema(value_type = Object)]
    pub(super) resolved_user_ids: BTreeMap<String, String>,
}

/// What came of the admins' grants, and of what they rest on.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct AdminGrantsSynced {
    #[serde(flatten)]
    pub(super) grants: GrantsSynced,
    /// That the organisation may grant these roles of the project; `null` where nothing was asked.
    pub(super) project_grant: Option<ItemResult>,
}

/// What came of a user's grant, and of what it rests on.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct UserGranted {
    #[serde(flatten)]
    pub(super) result: ItemResult,
    /// That the organisation may grant these roles of the project; `null` where nothing was asked.
    pub(super) project_grant: Option<ItemResult>,
}

/// `{"status": "ok", "result": …}`
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Provisioned<T> {
    #[serde(flatten)]
    pub(super) status: StatusOk,
    pub(super) result: T,
}

/// What a bootstrap came to, in short.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct BootstrapSummary {
    pub(super) account_id: Id<Account>,
    pub(super) dry_run: bool,
    pub(super) project_id: String,
    pub(super) organization_id: Option<String>,
    pub(super) config_updated: bool,
    pub(super) role_sync_summary: Counted,
    pub(super) admin_grant_summary: Counted,
    pub(super) unresolved_admins: Vec<Unresolved>,
    /// On a dry run: why it cannot be told what Zitadel holds, if it cannot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) remote_problem: Option<RemoteProblem>,
}

/// What a bootstrap came to.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct BootstrapResult {
    pub(super) zitadel_config: ZitadelConfig,
    pub(super) roles: RolesSynced,
    /// That the organisation may grant roles of the project; `null` where nothing was asked.
    pub(super) project_grant: Option<ItemResult>,
    pub(super) admin_grants: GrantsSynced,
}

/// `{"status": "ok", "summary": …, "result": …}`
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Bootstrapped {
    #[serde(flatten)]
    pub(super) status: StatusOk,
    pub(super) summary: BootstrapSummary,
    pub(super) result: BootstrapResult,
}

impl RemoteProblem {
    pub(super) fn of(project: &str, organization: Option<&str>, error: &Error) -> Self {
        Self {
            project_id: Some(project.to_owned()),
            organization_id: organization.map(str::to_owned),
            reason: error.code(),
            detail: error.to_string(),
        }
    }
}

impl Counted {
    pub(super) fn count(&mut self, status: &str) {
        let counter = match status {
            "created" => &mut self.created,
            "updated" => &mut self.updated,
            "exists" => &mut self.exists,
            "skipped" => &mut self.skipped,
            "pending" => &mut self.pending,
            _ => &mut self.failed,
        };
        *counter += 1;
    }
}

impl ItemResult {
    pub(super) fn plain(status: &'static str) -> Self {
        Self { status, message: None, reason: None, user_grant_id: None, request: None, remote: None }
    }

    /// What would be asked, and whether it is there already, or why that cannot be told.
    pub(super) fn dry(request: Value, present: Result<bool, &Error>) -> Self {
        let remote = remote_word(present.ok());
        let message = present.err().map(ToString::to_string);
        let (reason, request, remote) = (Some("dry_run"), Some(request), Some(remote));
        Self { reason, request, remote, message, ..Self::plain("skipped") }
    }

    /// Not granted, because the account is suspended.
    pub(super) fn withheld() -> Self {
        let message = Some("the account is suspended; it is granted once the account is active again".to_owned());
        Self { message, reason: Some("account_suspended"), ..Self::plain("pending") }
    }

    pub(super) fn of(item: &ProvisionItem, outcomes: &Outcomes, skip_existing: bool) -> Self {
        let Some(outcome) = outcomes.get(item.id.as_str()) else {
            let message = Some("not done yet; it is done in the background".to_owned());
            return Self { message, ..Self::plain("pending") };
        };
        let status = match outcome.result() {
            Ok(Did::Created) => "created",
            Ok(Did::Updated | Did::Removed) => "updated",
            Ok(Did::Nothing) => {
                let message = Some("it is there already".to_owned());
                let told = if skip_existing { Self::plain("exists") } else { Self::plain("failed") };
                let user_grant_id = outcome.grant_id().map(str::to_owned);
                return Self { message, reason: (!skip_existing).then_some("already_exists"), user_grant_id, ..told };
            }
            Err(why) => {
                let status = if outcome.item_state() == ItemState::Pending { "pending" } else { "failed" };
                return Self { message: Some(why.to_string()), reason: Some(why.code()), ..Self::plain(status) };
            }
        };
        Self { user_grant_id: outcome.grant_id().map(str::to_owned), ..Self::plain(status) }
    }
}
