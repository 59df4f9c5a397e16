//! What the operations tell.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::super::answer::StatusOk;
use crate::id::Id;
use crate::model::accounts::{Account, ZitadelConfig};
use crate::model::provision::{ItemState, ProvisionItem, StandardRole};
use crate::provision::{Did, Outcomes};
use crate::zitadel::FoundUser;

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

    pub(super) fn dry(request: Value, remote: &'static str) -> Self {
        Self { reason: Some("dry_run"), request: Some(request), remote: Some(remote), ..Self::plain("skipped") }
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
