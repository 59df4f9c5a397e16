//! All of it at once.

use super::super::answer::taken;
use super::admins::{Intended, dry_grants, granted_keys};
use super::roles::{dry_roles, synced_roles, wanted_role};
use super::*;
use crate::model::accounts::ADMIN_ROLES;
use crate::model::provision::StandardRole;

/// The binding that a bootstrap leaves.
fn draft(stored: &ZitadelConfig, ask: &mut Bootstrap, project: &str) -> ZitadelConfig {
    let mut draft = prefixed(ask.role_prefix.take(), stored.clone());
    draft.project_id = Some(project.to_owned());
    if let Some(organization) = ask.organization_id.take() {
        draft.organization_id = Some(organization.into_string());
    }
    if ask.apply_default_role_mappings {
        if draft.role_mappings.is_empty() {
            draft.role_mappings = default_mappings(&draft);
        }
        draft.account_id_claim.get_or_insert_with(|| "alchemi:account_id".to_owned());
        draft.product_domains_claim.get_or_insert_with(|| "product_domains_allowed".to_owned());
    }
    draft
}

/// Each role of an admin under the binding's prefix.
pub(super) fn default_mappings(config: &ZitadelConfig) -> BTreeMap<String, String> {
    ADMIN_ROLES.iter().map(|role| ((*role).to_owned(), format!("{}{role}", prefix_of(config)))).collect()
}

/// Bind the account and make all of it: roles, project grant, admins' grants
///
/// What is to be so is written down first. A bootstrap that is cut short is finished in
/// the background, and one that is repeated changes nothing.
#[utoipa::path(post, path = "/v1/accounts/{account_id}/zitadel/provision/bootstrap", tag = "accounts",
    params(AtAccount), request_body = Bootstrap,
    responses((status = 200, description = "What came of it", body = Bootstrapped), Refusals))]
pub async fn bootstrap_zitadel(
    call: Call<SuperAdmin>,
    Path(AtAccount { account_id: id }): Path<AtAccount>,
    Body(mut ask): Body<Bootstrap>,
) -> super::super::answer::Outcome {
    let project = aimed(&call, &id, ask.project_id.take()).await?;
    let (mut tx, bound) = begin_bound(&call, id.clone()).await?;
    let zitadel_config = draft(&bound.config, &mut ask, &project);
    let config_updated = !bound.stored || zitadel_config != bound.config;
    let organization = zitadel_config.organization_id.clone();
    let roles = if ask.create_project_roles { roles_of(&zitadel_config) } else { Vec::new() };
    let mut admin_grants = GrantsSynced::default();
    let who = ask.who();
    let intended = if ask.grant_existing_account_admins {
        who.intended(tx.all_admins().await?, &zitadel_config, &mut admin_grants)
    } else {
        Vec::new()
    };
    let reads_only = !ask.create_project_roles && !ask.grant_existing_account_admins;
    if !ask.dry_run && !reads_only && !call.app.provisioner.is_configured() {
        return Err(not_configured().into());
    }
    let asked = serde_json::json!({
        "operation": "bootstrap", "project_id": project, "organization_id": organization, "dry_run": ask.dry_run,
    });
    let keys = grantable(&roles, &intended);
    let may = may_grant(&tx.provision_items().await?, &project, organization.as_deref(), keys);
    // Also of a dry run, which forgets it: what would be refused is refused.
    if config_updated {
        write_config(&mut tx, &bound, &zitadel_config).await?;
    }
    let (skip_existing, suspended) = (who.skip_existing, bound.suspended);
    let all = All { project: &project, config: &zitadel_config, roles, may, intended, skip_existing, suspended };
    let made = if ask.dry_run {
        drop(tx);
        dry(&call, all, &mut admin_grants).await
    } else {
        make(&call, tx, &asked, all, &mut admin_grants).await?
    };
    let Parts { roles, project_grant, remote_problem } = made;
    let summary = BootstrapSummary {
        account_id: id.clone(),
        dry_run: ask.dry_run,
        project_id: project,
        organization_id: organization,
        config_updated: config_updated && !ask.dry_run,
        role_sync_summary: roles.summary,
        admin_grant_summary: admin_grants.grants_summary,
        unresolved_admins: admin_grants.unresolved_admins.clone(),
        remote_problem,
    };
    let came = serde_json::json!({"summary": summary});
    let result = BootstrapResult { zitadel_config, roles, project_grant, admin_grants };
    audited(&call, &id, &asked, came, &Bootstrapped { status: StatusOk::OK, summary, result }).await
}

/// Everything that a bootstrap makes.
struct All<'a> {
    project: &'a str,
    config: &'a ZitadelConfig,
    roles: Vec<StandardRole>,
    may: Option<Wanted>,
    intended: Vec<Intended>,
    skip_existing: bool,
    suspended: bool,
}

/// What came of it, beside the admins' grants.
struct Parts {
    roles: RolesSynced,
    project_grant: Option<ItemResult>,
    remote_problem: Option<RemoteProblem>,
}

/// Says what would be made.
async fn dry(call: &Call<SuperAdmin>, all: All<'_>, admin_grants: &mut GrantsSynced) -> Parts {
    let All { project, config, roles, may, intended, .. } = all;
    let project_grant = dry_project_grant(call, may.as_ref()).await;
    let (roles, remote_problem) = dry_roles(call, project, config, roles).await;
    dry_grants(call, project, config.organization_id.as_deref(), intended, admin_grants).await;
    Parts { roles, project_grant, remote_problem }
}

/// Writes down what is wanted, with the binding's change, and makes it so.
async fn make(
    call: &Call<SuperAdmin>,
    tx: Tx<Tenant>,
    asked: &Value,
    all: All<'_>,
    admin_grants: &mut GrantsSynced,
) -> Result<Parts, Halt> {
    let All { project, config, roles, may, intended, skip_existing, suspended } = all;
    let (account, organization) = (tx.account().clone(), config.organization_id.as_deref());
    let wanted: Vec<Wanted> = roles
        .iter()
        .map(|role| wanted_role(project, config, role))
        .chain(may)
        .chain(intended.iter().map(|one| one.wanted(project, organization)))
        .collect();
    let items = want_all(tx, asked, &wanted).await?;
    let outcomes = converged(call, &account, project, &items).await?;
    let of = |kind: ItemKind| items.iter().filter(|item| item.kind == kind).cloned().collect::<Vec<_>>();
    admin_grants.made(intended, &of(ItemKind::UserGrant), &outcomes, [skip_existing, suspended]);
    let project_grant = of(ItemKind::ProjectGrant).first().map(|item| ItemResult::of(item, &outcomes, true));
    let roles = synced_roles(roles, &of(ItemKind::Role), &outcomes, skip_existing);
    Ok(Parts { roles, project_grant, remote_problem: None })
}

async fn write_config(tx: &mut Tx<Tenant>, bound: &Bound, draft: &ZitadelConfig) -> Result<(), Halt> {
    tx.put_zitadel_config(draft)
        .await
        .map_err(taken("organization_id", "organization_id already assigned to another account"))?;
    let before = bound.stored.then(|| serde_json::json!({"zitadel_config": bound.config}));
    let after = serde_json::json!({"zitadel_config": draft});
    let account = tx.account().clone();
    let entry =
        Entry { action: Action::Update, table: "Alchemi_AccountZitadelTable", id: account.as_str(), label: Label::Iam };
    Ok(tx.audit(entry, before.as_ref(), &after).await?)
}

/// What the account's organisation is to be able to grant.
fn grantable(roles: &[StandardRole], intended: &[Intended]) -> Vec<String> {
    let mut keys: Vec<String> = roles.iter().map(|role| role.key.clone()).collect();
    add_missing(&mut keys, granted_keys(intended));
    keys
}

/// Whether the organisation may grant them already.
pub(super) async fn dry_project_grant(call: &Call<SuperAdmin>, may: Option<&Wanted>) -> Option<ItemResult> {
    let Wanted { project_id, target: organization, role_keys, .. } = may?;
    let there = call.app.provisioner.remote().project_grant(project_id, organization).await;
    let present = there.as_ref().map(|grant| match grant {
        // Its owner may grant every role of a project.
        None => true,
        Some(grant) => {
            let keys = grant.as_ref().map(|grant| grant.role_keys.as_slice()).unwrap_or_default();
            role_keys.iter().all(|key| keys.contains(key))
        }
    });
    let request =
        serde_json::json!({"project_id": project_id, "organization_id": organization, "role_keys": role_keys});
    Some(ItemResult::dry(request, present))
}
