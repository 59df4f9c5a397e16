//! The admins' grants.

use super::bootstrap::dry_project_grant;
use super::*;
use crate::provision::{UserLookup, Why};
use crate::zitadel::UserGrant;

/// What an admin is to be granted.
pub(super) struct Intended {
    admin: AccountAdmin,
    keys: Vec<String>,
    user_id: Option<String>,
}

impl AdminGrants {
    /// Who is to be granted what, and who cannot be.
    pub(super) fn intended(
        &self,
        admins: Vec<AccountAdmin>,
        config: &ZitadelConfig,
        synced: &mut GrantsSynced,
    ) -> Vec<Intended> {
        synced.admins_total = admins.len();
        let mut intended = Vec::new();
        for admin in admins {
            let unresolved = |reason, role_keys| Unresolved {
                email: admin.user_email.clone(),
                role: admin.role.clone(),
                reason,
                role_keys,
                candidates: Vec::new(),
            };
            let Ok(key) = role_key(config, prefix_of(config), &admin.role) else {
                synced.unresolved_admins.push(unresolved("unknown_role", Vec::new()));
                continue;
            };
            let mut keys = vec![key];
            add_missing(&mut keys, self.default_role_keys.iter().map(|key| key.clone().into_string()));
            let mapped = self.user_id_by_email.iter().find(|(email, _)| email.as_str() == admin.user_email);
            let user_id = mapped.map(|(_, id)| id.clone().into_string());
            if user_id.is_none() && !self.resolve_user_ids_from_zitadel {
                synced.unresolved_admins.push(unresolved("user_id_not_found", keys));
                continue;
            }
            intended.push(Intended { admin, keys, user_id });
        }
        intended
    }
}

impl Intended {
    pub(super) fn wanted(&self, project: &str, organization: Option<&str>) -> Wanted {
        let wanted = Wanted::user_grant(project, organization, &self.admin.user_email, self.keys.clone());
        Wanted { user_id: self.user_id.clone(), ..wanted }
    }
}

impl GrantsSynced {
    fn add(&mut self, intended: Intended, user_id: Option<String>, result: ItemResult) {
        let known = intended.user_id.is_some();
        if let Some(id) = user_id.as_ref().filter(|_| !known) {
            self.resolved_user_ids.insert(intended.admin.user_email.clone(), id.clone());
        }
        self.grants_summary.count(result.status);
        let Intended { admin, keys, .. } = intended;
        self.grants.push(GrantResult { email: admin.user_email, user_id, role: admin.role, role_keys: keys, result });
    }

    fn unresolved(&mut self, intended: Intended, why: &Why) {
        let candidates = if let Why::AmbiguousEmail(candidates) = why { candidates.clone() } else { Vec::new() };
        let Intended { admin, keys: role_keys, .. } = intended;
        let (email, role, reason) = (admin.user_email, admin.role, why.code());
        self.unresolved_admins.push(Unresolved { email, role, reason, role_keys, candidates });
    }

    pub(super) fn made(
        &mut self,
        intended: Vec<Intended>,
        items: &[ProvisionItem],
        outcomes: &Outcomes,
        [skip_existing, suspended]: [bool; 2],
    ) {
        for (intended, item) in intended.into_iter().zip(items) {
            let outcome = outcomes.get(item.id.as_str());
            match outcome.map(|outcome| outcome.result()) {
                Some(Err(why @ (Why::UserNotFound | Why::AmbiguousEmail(_)))) => self.unresolved(intended, why),
                _ => {
                    let user_id = outcome.and_then(|outcome| outcome.user_id()).or(item.user_id.as_deref());
                    let user_id = user_id.map(str::to_owned);
                    let result = match suspended {
                        true => ItemResult::withheld(),
                        false => ItemResult::of(item, outcomes, skip_existing),
                    };
                    self.add(intended, user_id, result);
                }
            }
        }
    }
}

/// The roles that are granted to somebody.
pub(super) fn granted_keys(intended: &[Intended]) -> Vec<String> {
    let mut keys = Vec::new();
    add_missing(&mut keys, intended.iter().flat_map(|one| one.keys.iter().cloned()));
    keys
}

pub(super) async fn dry_grants(
    call: &Call<SuperAdmin>,
    project: &str,
    organization: Option<&str>,
    intended: Vec<Intended>,
    synced: &mut GrantsSynced,
) {
    let remote = call.app.provisioner.remote();
    let there = remote.grants(project, organization).await;
    for one in intended {
        let user_id = match &one.user_id {
            Some(id) => Ok(id.clone()),
            None => match remote.user(&one.admin.user_email, organization).await {
                Ok(UserLookup::Found(user)) => Ok(user.user_id),
                Ok(UserLookup::Nobody) => {
                    synced.unresolved(one, &Why::UserNotFound);
                    continue;
                }
                Ok(UserLookup::Several(candidates)) => {
                    synced.unresolved(one, &Why::AmbiguousEmail(candidates));
                    continue;
                }
                Err(error) => Err(error),
            },
        };
        let holds = |id: &String, grants: &[UserGrant]| {
            let held = grants.iter().filter(|grant| grant.user == *id && grant.active);
            let held: Vec<&String> = held.flat_map(|grant| &grant.role_keys).collect();
            one.keys.iter().all(|key| held.contains(&key))
        };
        let present = user_id.as_ref().and_then(|id| there.as_ref().map(|grants| holds(id, grants)));
        let request = serde_json::json!({
            "user_id": user_id.as_ref().ok(), "project_id": project, "organization_id": organization,
            "role_keys": one.keys,
        });
        let result = ItemResult::dry(request, present);
        synced.add(one, user_id.ok(), result);
    }
}

/// Grant the account's admins their roles
///
/// An admin whose e-mail address several users of Zitadel have is left out, with the
/// candidates; name the right one in `user_id_by_email`. Where the project is another
/// organisation's, the one that grants is first let to. In a suspended account they are granted
/// once it is active.
#[utoipa::path(post, path = "/v1/accounts/{account_id}/zitadel/provision/sync-admin-grants", tag = "accounts",
    params(AtAccount), request_body = AdminGrantSync,
    responses((status = 200, description = "What came of each admin", body = Provisioned<AdminGrantsSynced>), Refusals))]
pub async fn sync_zitadel_admin_grants(
    call: Call<SuperAdmin>,
    Path(AtAccount { account_id: id }): Path<AtAccount>,
    Body(mut sync): Body<AdminGrantSync>,
) -> super::super::answer::Outcome {
    let who = sync.who();
    let project = aimed(&call, &id, sync.project_id).await?;
    let (mut tx, bound) = begin_bound(&call, id.clone()).await?;
    let config = prefixed(sync.role_prefix, bound.config);
    let organization = sync.organization_id.map(Name::into_string).or_else(|| config.organization_id.clone());
    let mut grants = GrantsSynced::default();
    let intended = who.intended(tx.all_admins().await?, &config, &mut grants);
    let asked = serde_json::json!({
        "operation": "sync_admin_grants", "project_id": project, "organization_id": organization,
        "dry_run": sync.dry_run,
    });
    let may = may_grant(&tx.provision_items().await?, &project, organization.as_deref(), granted_keys(&intended));
    let project_grant = if sync.dry_run {
        drop(tx);
        dry_grants(&call, &project, organization.as_deref(), intended, &mut grants).await;
        dry_project_grant(&call, may.as_ref()).await
    } else {
        if !call.app.provisioner.is_configured() {
            return Err(not_configured().into());
        }
        let wanted = intended.iter().map(|one| one.wanted(&project, organization.as_deref()));
        let wanted: Vec<_> = may.into_iter().chain(wanted).collect();
        let items = want_all(tx, &asked, &wanted).await?;
        let outcomes = converged(&call, &id, &project, &items).await?;
        let (grant, items): (Vec<_>, Vec<_>) = items.into_iter().partition(|item| item.kind == ItemKind::ProjectGrant);
        grants.made(intended, &items, &outcomes, [who.skip_existing, bound.suspended]);
        grant.first().map(|item| ItemResult::of(item, &outcomes, true))
    };
    let came = serde_json::json!({
        "summary": grants.grants_summary, "unresolved_count": grants.unresolved_admins.len(),
        "project_grant": project_grant,
    });
    let result = AdminGrantsSynced { grants, project_grant };
    audited(&call, &id, &asked, came, &Provisioned { status: StatusOk::OK, result }).await
}
