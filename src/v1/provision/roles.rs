//! A user's grant, a role, and all of the product's roles.

use super::bootstrap::dry_project_grant;
use super::*;
use crate::model::provision::{StandardRole, standard_roles};

/// 502 with what went wrong in our own words.
fn bad_gateway(what: &str, result: &ItemResult) -> Problem {
    let message = result.message.as_deref().unwrap_or("not done yet");
    let detail = format!("Failed to provision Zitadel {what}: {message}");
    Problem::new(http::StatusCode::BAD_GATEWAY, "zitadel_failed", detail)
        .with("reason", result.reason.unwrap_or("pending"))
        .with("retried", result.status == "pending")
}

/// Grant a user roles of the project
///
/// Roles that they hold already stay. Where the project is another organisation's, the one that
/// grants is first let to. In a suspended account it is granted once that is active. What Zitadel cannot take now is tried again in the
/// background; the answer then is a 502 with `retried: true`.
#[utoipa::path(post, path = "/v1/accounts/{account_id}/zitadel/provision/user-grant", tag = "accounts",
    params(AtAccount), request_body = NewUserGrant,
    responses((status = 200, description = "What was done", body = Provisioned<UserGranted>), Refusals))]
pub async fn provision_user_grant(
    call: Call<SuperAdmin>,
    Path(AtAccount { account_id: id }): Path<AtAccount>,
    Body(new): Body<NewUserGrant>,
) -> super::super::answer::Outcome {
    let project = aimed(&call, &id, new.project_id).await?;
    let (mut tx, bound) = begin_bound(&call, id.clone()).await?;
    let organization = new.organization_id.map(Name::into_string).or(bound.config.organization_id);
    let role_keys: Vec<String> = new.role_keys.into_iter().map(Name::into_string).collect();
    if role_keys.is_empty() {
        return Err(Problem::bad_request("role_keys_empty", "role_keys cannot be empty").into());
    }
    let user = new.user_id.into_string();
    let asked = serde_json::json!({
        "operation": "user_grant", "user_id": user, "project_id": project, "organization_id": organization,
        "role_keys": role_keys, "dry_run": new.dry_run,
    });
    let items = tx.provision_items().await?;
    let may = may_grant(&items, &project, organization.as_deref(), role_keys.clone());
    let (result, project_grant) = if new.dry_run {
        drop(tx);
        let held = call.app.provisioner.remote().grants(&project, organization.as_deref()).await;
        let holds = |keys: &[String]| role_keys.iter().all(|key| keys.contains(key));
        let present =
            held.as_ref().map(|grants| grants.iter().any(|grant| grant.user == user && holds(&grant.role_keys)));
        (ItemResult::dry(asked.clone(), present), dry_project_grant(&call, may.as_ref()).await)
    } else {
        if !call.app.provisioner.is_configured() {
            return Err(bad_gateway("user grant", &not_configured_result()).into());
        }
        let mut wanted = Wanted::user_grant(&project, organization.as_deref(), &user, role_keys);
        // Roles that were granted this way before stay.
        let known = items.into_iter().find(|item| {
            item.kind == ItemKind::UserGrant
                && item.target == user
                && item.project_id == project
                && item.organization_id == organization
        });
        add_missing(&mut wanted.role_keys, known.into_iter().flat_map(|known| known.role_keys));
        let granted = made(&call, tx, &project, &asked, may.into_iter().chain([wanted]).collect()).await?;
        let result = granted.of(ItemKind::UserGrant).unwrap_or_else(|| ItemResult::plain("pending"));
        (if bound.suspended { ItemResult::withheld() } else { result }, granted.of(ItemKind::ProjectGrant))
    };
    if matches!(result.status, "failed" | "pending") && !bound.suspended {
        return Err(bad_gateway("user grant", &result).into());
    }
    let result = UserGranted { result, project_grant };
    let came = serde_json::json!(result);
    audited(&call, &id, &asked, came, &Provisioned { status: StatusOk::OK, result }).await
}

/// What was written down, and what came of it.
struct Made(Vec<ProvisionItem>, Outcomes);

impl Made {
    fn of(&self, kind: ItemKind) -> Option<ItemResult> {
        let Self(items, outcomes) = self;
        items.iter().find(|item| item.kind == kind).map(|item| ItemResult::of(item, outcomes, true))
    }
}

/// Writes it down and makes it so.
async fn made(
    call: &Call<SuperAdmin>,
    tx: Tx<Tenant>,
    project: &str,
    asked: &Value,
    wanted: Vec<Wanted>,
) -> Result<Made, Halt> {
    let account = tx.account().clone();
    let items = want_all(tx, asked, &wanted).await?;
    let outcomes = converged(call, &account, project, &items).await?;
    Ok(Made(items, outcomes))
}

fn not_configured_result() -> ItemResult {
    let message = Some(NOT_CONFIGURED.to_owned());
    ItemResult { message, reason: Some("zitadel_not_configured"), ..ItemResult::plain("failed") }
}

/// Add a role to the project
#[utoipa::path(post, path = "/v1/accounts/{account_id}/zitadel/provision/project-role", tag = "accounts",
    params(AtAccount), request_body = NewProjectRole,
    responses((status = 200, description = "What was done", body = Provisioned<ItemResult>), Refusals))]
pub async fn provision_project_role(
    call: Call<SuperAdmin>,
    Path(AtAccount { account_id: id }): Path<AtAccount>,
    Body(new): Body<NewProjectRole>,
) -> super::super::answer::Outcome {
    let project = aimed(&call, &id, new.project_id).await?;
    let (tx, bound) = begin_bound(&call, id.clone()).await?;
    let key = new.key.into_string();
    let role = StandardRole {
        display_name: new.display_name.into_string(),
        group: new.group.map(Name::into_string),
        base_key: key.clone(),
        key,
    };
    let asked = serde_json::json!({
        "operation": "project_role", "project_id": project, "key": role.key, "display_name": role.display_name,
        "group": role.group, "dry_run": new.dry_run,
    });
    let result = if new.dry_run {
        drop(tx);
        let organization = bound.config.organization_id.as_deref();
        let keys = call.app.provisioner.remote().roles(&project, organization).await;
        ItemResult::dry(asked.clone(), keys.as_ref().map(|keys| keys.contains(&role.key)))
    } else {
        if !call.app.provisioner.is_configured() {
            return Err(bad_gateway("project role", &not_configured_result()).into());
        }
        let made = made(&call, tx, &project, &asked, vec![wanted_role(&project, &bound.config, &role)]).await?;
        made.of(ItemKind::Role).unwrap_or_else(|| ItemResult::plain("pending"))
    };
    if matches!(result.status, "failed" | "pending") {
        return Err(bad_gateway("project role", &result).into());
    }
    let came = serde_json::json!(result);
    audited(&call, &id, &asked, came, &Provisioned { status: StatusOk::OK, result }).await
}

/// A role of the project; the account's organisation helps v1 to find the project.
pub(super) fn wanted_role(project: &str, config: &ZitadelConfig, role: &StandardRole) -> Wanted {
    Wanted { organization_id: config.organization_id.clone(), ..Wanted::role(project, role) }
}

/// The product's roles as the account maps them.
pub(super) fn roles_of(config: &ZitadelConfig) -> Vec<StandardRole> {
    let prefix = prefix_of(config);
    let mapped = |role: StandardRole| {
        let key = role_key(config, prefix, &role.base_key).unwrap_or_else(|_| role.key.clone());
        StandardRole { key, ..role }
    };
    standard_roles(prefix).into_iter().map(mapped).collect()
}

/// Make the product's roles in the project
#[utoipa::path(post, path = "/v1/accounts/{account_id}/zitadel/provision/sync-roles", tag = "accounts",
    params(AtAccount), request_body = RoleSync,
    responses((status = 200, description = "What came of each role", body = Provisioned<RolesSynced>), Refusals))]
pub async fn sync_zitadel_roles(
    call: Call<SuperAdmin>,
    Path(AtAccount { account_id: id }): Path<AtAccount>,
    Body(sync): Body<RoleSync>,
) -> super::super::answer::Outcome {
    let project = aimed(&call, &id, sync.project_id).await?;
    let (tx, bound) = begin_bound(&call, id.clone()).await?;
    let config = prefixed(sync.role_prefix, bound.config);
    let roles = roles_of(&config);
    let asked = serde_json::json!({
        "operation": "sync_roles", "project_id": project, "role_prefix": prefix_of(&config), "dry_run": sync.dry_run,
    });
    let result = if sync.dry_run {
        drop(tx);
        dry_roles(&call, &project, &config, roles).await.0
    } else {
        if !call.app.provisioner.is_configured() {
            return Err(not_configured().into());
        }
        let wanted: Vec<Wanted> = roles.iter().map(|role| wanted_role(&project, &config, role)).collect();
        let items = want_all(tx, &asked, &wanted).await?;
        let outcomes = converged(&call, &id, &project, &items).await?;
        synced_roles(roles, &items, &outcomes, sync.skip_existing)
    };
    let came = serde_json::json!(result.summary);
    audited(&call, &id, &asked, came, &Provisioned { status: StatusOk::OK, result }).await
}

/// What would be made, and why it cannot be told what is there, if it cannot.
pub(super) async fn dry_roles(
    call: &Call<SuperAdmin>,
    project: &str,
    config: &ZitadelConfig,
    roles: Vec<StandardRole>,
) -> (RolesSynced, Option<RemoteProblem>) {
    let organization = config.organization_id.as_deref();
    let there = call.app.provisioner.remote().roles(project, organization).await;
    let mut synced = RolesSynced::default();
    for role in &roles {
        let request = serde_json::json!({"key": role.key, "display_name": role.display_name, "group": role.group});
        synced.add(&role.key, ItemResult::dry(request, there.as_ref().map(|keys| keys.contains(&role.key))));
    }
    let problem = there.err().map(|error| RemoteProblem::of(project, organization, &error));
    (RolesSynced { roles, ..synced }, problem)
}

pub(super) fn synced_roles(
    roles: Vec<StandardRole>,
    items: &[ProvisionItem],
    outcomes: &Outcomes,
    skip_existing: bool,
) -> RolesSynced {
    let mut synced = RolesSynced::default();
    for item in items {
        synced.add(&item.target, ItemResult::of(item, outcomes, skip_existing));
    }
    RolesSynced { roles, ..synced }
}

impl RolesSynced {
    fn add(&mut self, key: &str, result: ItemResult) {
        self.summary.count(result.status);
        self.results.push(RoleResult { key: key.to_owned(), result });
    }
}
