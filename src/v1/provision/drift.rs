//! How what is wanted and what is there differ.

use std::collections::btree_map::Entry;

use super::*;
use crate::clock::Timestamp;
use crate::model::provision::ItemState;
use crate::zitadel::UserGrant;

/// One thing that is to be so, and whether it is.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ItemShown {
    /// Its id.
    #[schema(value_type = String, example = "019a3c5e-7d10-7c3a-9b1e-2f6d8a4c0b11")]
    id: Id<ProvisionItem>,
    /// What.
    kind: ItemKind,
    /// In which project.
    #[schema(example = "259242039378444300")]
    project_id: String,
    /// By which organisation.
    #[schema(example = "259242039378444290")]
    organization_id: Option<String>,
    /// The role's key; the organisation; the user's e-mail address or id.
    #[schema(example = "ada@acme.com")]
    target: String,
    /// The user behind the address, once known.
    user_id: Option<String>,
    /// The roles to be held; none: they are to be taken back.
    role_keys: Vec<String>,
    /// Roles to be taken back.
    retired_keys: Vec<String>,
    /// How far it is.
    state: ItemState,
    /// Why it is no further: a stable code.
    #[schema(example = "user_id_not_found")]
    reason: Option<String>,
    /// The same, for people.
    detail: Option<String>,
    /// Attempts since it was last applied or wanted.
    attempts: i64,
    /// When it is tried next; `null` once applied.
    next_attempt_at: Option<Timestamp>,
    /// When it was last found or made so.
    applied_at: Option<Timestamp>,
    /// What is there now: `as_wanted`, `differs` or `unknown`.
    #[schema(example = "as_wanted")]
    remote: &'static str,
    /// What Zitadel holds in its place: the role, what the organisation may grant, the user's
    /// roles; `null` where it cannot be told.
    held_keys: Option<Vec<String>>,
    /// Of what is wanted, what is not there.
    missing_keys: Vec<String>,
    /// Of what is to be taken back, what is still there.
    surplus_keys: Vec<String>,
}

/// Somebody who holds one of the product's roles though no admin of the account.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct UnexpectedGrant {
    #[schema(example = "259242039378444291")]
    user_id: String,
    #[schema(example = "259242039378444295")]
    grant_id: String,
    role_keys: Vec<String>,
}

/// How what is wanted and what is there differ.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Drift {
    account_id: Id<Account>,
    /// `known`, or `unknown` where there are no credentials, or nobody answers.
    #[schema(example = "known")]
    remote: &'static str,
    /// Whether everything is known to be as wanted; `false` while nothing is wanted.
    in_sync: bool,
    /// Everything that is to be so.
    items: Vec<ItemShown>,
    /// Admin roles that the account's organisation granted to others. Nothing is done about them.
    unexpected: Vec<UnexpectedGrant>,
}

/// What Zitadel holds of a project and an organisation.
struct Held {
    roles: Vec<String>,
    /// `None` inside: the project is the organisation's own.
    project_grant: Option<Option<Vec<String>>>,
    grants: Vec<UserGrant>,
}

/// Places are few: usually one.
type Places = BTreeMap<(String, Option<String>), Option<Held>>;

async fn held(provisioner: &Provisioner, project: &str, organization: Option<&str>) -> Option<Held> {
    let remote = provisioner.remote();
    let roles = remote.roles(project, organization).await.ok()?;
    let project_grant = match organization {
        Some(organization) => remote.project_grant(project, organization).await.ok()?.map(|g| g.map(|g| g.role_keys)),
        None => None,
    };
    let grants = remote.grants(project, organization).await.ok()?;
    Some(Held { roles, project_grant, grants })
}

/// Show how what is wanted and what is there differ
///
/// Reads only; `sync-roles`, `sync-admin-grants` and `bootstrap` put it right.
#[utoipa::path(get, path = "/v1/accounts/{account_id}/zitadel/provision/drift", tag = "accounts", params(AtAccount),
    responses((status = 200, description = "What differs", body = Drift), Refusals))]
pub async fn get_zitadel_drift(
    call: Call<SuperAdmin>,
    Path(AtAccount { account_id: id }): Path<AtAccount>,
) -> super::super::answer::Outcome {
    let (mut tx, bound) = read_bound(&call, id.clone()).await?;
    let items = tx.provision_items().await?;
    let suspended = tx.this_account().await?.is_some_and(|a| a.status != crate::model::accounts::AccountStatus::Active);
    drop(tx);
    let mut places = Places::new();
    let own = bound.config.project_id.clone().map(|project| (project, bound.config.organization_id.clone()));
    let wanted = items.iter().map(|item| (item.project_id.clone(), item.organization_id.clone()));
    for place in wanted.chain(own) {
        if let Entry::Vacant(vacant) = places.entry(place) {
            let (project, organization) = vacant.key();
            let held = held(&call.app.provisioner, project, organization.as_deref()).await;
            vacant.insert(held);
        }
    }
    let unexpected = unexpected(&bound.config, &items, &places);
    let known = !places.is_empty() && places.values().all(Option::is_some);
    let items: Vec<ItemShown> = items.into_iter().map(|item| shown(item, &places, suspended)).collect();
    let in_sync = known
        && !items.is_empty()
        && items.iter().all(|item| item.remote == "as_wanted" && item.state == ItemState::Applied);
    let remote = if known { "known" } else { "unknown" };
    Ok(Answer::of(&Drift { account_id: id, remote, in_sync, items, unexpected }))
}

fn shown(item: ProvisionItem, places: &Places, suspended: bool) -> ItemShown {
    let held = places.get(&(item.project_id.clone(), item.organization_id.clone())).and_then(Option::as_ref);
    let held_keys = held.and_then(|held| held_keys(&item, held));
    let (wanted, retired) = wanted_and_retired(&item, suspended);
    let held = |key: &String| held_keys.as_ref().is_some_and(|held| held.contains(key));
    let missing_keys: Vec<String> = match &held_keys {
        Some(_) => wanted.into_iter().filter(|key| !held(key)).collect(),
        None => Vec::new(),
    };
    let surplus_keys: Vec<String> = retired.into_iter().filter(held).collect();
    let remote = match held_keys {
        Some(_) if missing_keys.is_empty() && surplus_keys.is_empty() => "as_wanted",
        Some(_) => "differs",
        None => "unknown",
    };
    ItemShown {
        remote,
        held_keys,
        missing_keys,
        surplus_keys,
        next_attempt_at: (item.state != ItemState::Applied).then_some(item.next_attempt_at),
        id: item.id,
        kind: item.kind,
        project_id: item.project_id,
        organization_id: item.organization_id,
        target: item.target,
        user_id: item.user_id,
        role_keys: item.role_keys,
        retired_keys: item.retired_keys,
        state: item.state,
        reason: item.reason,
        detail: item.detail,
        attempts: item.attempts,
        applied_at: item.applied_at,
    }
}

/// What an item wants to be held, and what not. A suspended account's users are to hold nothing.
fn wanted_and_retired(item: &ProvisionItem, suspended: bool) -> (Vec<String>, Vec<String>) {
    let (wanted, mut retired) = match item.kind {
        ItemKind::Role => (vec![item.target.clone()], Vec::new()),
        ItemKind::ProjectGrant => (item.role_keys.clone(), Vec::new()),
        ItemKind::UserGrant if suspended => (Vec::new(), item.role_keys.clone()),
        ItemKind::UserGrant => (item.role_keys.clone(), Vec::new()),
    };
    if item.kind == ItemKind::UserGrant {
        add_missing(&mut retired, item.retired_keys.iter().cloned());
    }
    (wanted, retired)
}

/// `None` where it cannot be told: whose the address is.
fn held_keys(item: &ProvisionItem, held: &Held) -> Option<Vec<String>> {
    Some(match item.kind {
        ItemKind::Role => held.roles.iter().filter(|key| **key == item.target).cloned().collect(),
        ItemKind::ProjectGrant => match &held.project_grant {
            // Its owner may grant every role of a project.
            None => item.role_keys.clone(),
            Some(keys) => keys.clone().unwrap_or_default(),
        },
        ItemKind::UserGrant => {
            let user = item.user_id.as_deref().or((!item.target.contains('@')).then_some(item.target.as_str()))?;
            let grants = held.grants.iter().filter(|grant| grant.user == user && grant.active);
            grants.flat_map(|grant| grant.role_keys.clone()).collect()
        }
    })
}

/// Admin roles in the account's own place that nobody here has asked for.
fn unexpected(config: &ZitadelConfig, items: &[ProvisionItem], places: &Places) -> Vec<UnexpectedGrant> {
    let Some(project) = &config.project_id else { return Vec::new() };
    let prefix = config.role_prefix.as_deref().unwrap_or_default();
    let admin_roles: Vec<String> =
        roles_of(config, prefix).into_iter().filter(|role| role.base_key != "end_user").map(|role| role.key).collect();
    let Some(Some(held)) = places.get(&(project.clone(), config.organization_id.clone())) else { return Vec::new() };
    let wanted = |user: &str, key: &String| {
        let of_user = |item: &&ProvisionItem| item.user_id.as_deref() == Some(user) || item.target == user;
        items.iter().filter(of_user).any(|item| item.role_keys.contains(key))
    };
    let extra = |grant: &UserGrant| {
        let role_keys: Vec<String> = grant
            .role_keys
            .iter()
            .filter(|key| admin_roles.contains(key) && !wanted(&grant.user, key))
            .cloned()
            .collect();
        let (user_id, grant_id) = (grant.user.clone(), grant.id.clone());
        (!role_keys.is_empty()).then_some(UnexpectedGrant { user_id, grant_id, role_keys })
    };
    held.grants.iter().filter(|grant| grant.active).filter_map(extra).collect()
}
