//! How what is wanted and what is there differ.

use std::collections::btree_map::Entry;

use futures_util::{StreamExt, stream};

use super::*;
use crate::clock::Timestamp;
use crate::context::Platform;
use crate::model::provision::{GrantPlace, ItemState};
use crate::provision::UserLookup;
use crate::zitadel::{Error, UserGrant};

/// How many users are asked for at a time.
const LOOKS_AT_ONCE: usize = 8;

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
    /// Why it is not known, place by place.
    remote_problems: Vec<RemoteProblem>,
    /// Whether the account's binding is in use: while it is switched off nothing is granted.
    enabled: bool,
    /// Whether everything is known to be as wanted; `false` while nothing is wanted.
    in_sync: bool,
    /// Everything that is to be so.
    items: Vec<ItemShown>,
    /// Admin roles that the account's organisation granted to others. Nothing is done about them.
    unexpected: Vec<UnexpectedGrant>,
}

/// What Zitadel holds of a project and an organisation.
struct Held {
    /// Whose the project is.
    owner: String,
    roles: Vec<String>,
    /// `None` inside: the project is the organisation's own.
    project_grant: Option<Option<Vec<String>>>,
    grants: Vec<UserGrant>,
}

/// Places are few: usually one.
type Places = BTreeMap<(String, Option<String>), Result<Held, Error>>;

async fn held(provisioner: &Provisioner, project: &str, organization: Option<&str>) -> Result<Held, Error> {
    let remote = provisioner.remote();
    let owner = remote.owner(project, organization).await?;
    let roles = remote.roles(project, organization).await?;
    let project_grant = match organization {
        Some(organization) => remote.project_grant(project, organization).await?.map(|g| g.map(|g| g.role_keys)),
        None => None,
    };
    let grants = remote.grants(project, organization).await?;
    Ok(Held { owner, roles, project_grant, grants })
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
    let (mut tx, Bound { config, suspended, .. }) = read_bound(&call, id.clone()).await?;
    let (items, admins) = (tx.provision_items().await?, tx.all_admins().await?);
    drop(tx);
    let mut places = Places::new();
    let own = config.project_id.clone().map(|project| (project, config.organization_id.clone()));
    let wanted = items.iter().map(|item| (item.project_id.clone(), item.organization_id.clone()));
    for place in wanted.chain(own) {
        if let Entry::Vacant(vacant) = places.entry(place) {
            let (project, organization) = vacant.key();
            let held = held(&call.app.provisioner, project, organization.as_deref()).await;
            vacant.insert(held);
        }
    }
    let unexpected = Others { call: &call, config: &config, items: &items, admins }.unexpected(&places).await?;
    let mut tx = call.read().await?;
    let mut shown = Vec::with_capacity(items.len());
    for item in items {
        shown.push(compared(&mut tx, item, &places, suspended).await?);
    }
    drop(tx);
    let remote_problems: Vec<RemoteProblem> = places
        .iter()
        .filter_map(|((project, organization), held)| {
            Some(RemoteProblem::of(project, organization.as_deref(), held.as_ref().err()?))
        })
        .collect();
    let known = !places.is_empty() && remote_problems.is_empty();
    let in_sync = known
        && !shown.is_empty()
        && shown.iter().all(|item| item.remote == "as_wanted" && item.state == ItemState::Applied);
    let remote = if known { "known" } else { "unknown" };
    let enabled = config.enabled;
    Ok(Answer::of(&Drift { account_id: id, remote, remote_problems, enabled, in_sync, items: shown, unexpected }))
}

/// An item beside what is there. What another account wants of the same user stays when this one
/// wants it no more, and is not left over.
async fn compared(
    tx: &mut Tx<Platform>,
    item: ProvisionItem,
    places: &Places,
    suspended: bool,
) -> Result<ItemShown, Halt> {
    let place = places.get(&(item.project_id.clone(), item.organization_id.clone()));
    let held = place.and_then(|held| held.as_ref().ok());
    let besides = match (held, user_of(&item)) {
        (Some(held), Some(user)) if !wanted_and_retired(&item, suspended).1.is_empty() => {
            let place = GrantPlace::of(&item.project_id, item.organization_id.as_deref(), &held.owner);
            tx.wanted_besides(place, user, Some(&item.id)).await?
        }
        _ => Vec::new(),
    };
    Ok(shown(item, held, &besides, suspended))
}

fn shown(item: ProvisionItem, held: Option<&Held>, besides: &[String], suspended: bool) -> ItemShown {
    let held_keys = held.and_then(|held| held_keys(&item, held));
    let (wanted, retired) = wanted_and_retired(&item, suspended);
    let held = |key: &String| held_keys.as_ref().is_some_and(|held| held.contains(key));
    let missing_keys: Vec<String> = match &held_keys {
        Some(_) => wanted.into_iter().filter(|key| !held(key)).collect(),
        None => Vec::new(),
    };
    let surplus_keys: Vec<String> = retired.into_iter().filter(|key| held(key) && !besides.contains(key)).collect();
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
            let user = user_of(item)?;
            let grants = held.grants.iter().filter(|grant| grant.user == user && grant.active);
            grants.flat_map(|grant| grant.role_keys.clone()).collect()
        }
    })
}

/// Who a grant is of, if it is known.
fn user_of(item: &ProvisionItem) -> Option<&str> {
    let by_id = || (!item.target.contains('@')).then_some(item.target.as_str());
    (item.kind == ItemKind::UserGrant).then(|| item.user_id.as_deref().or_else(by_id))?
}

/// What is looked at to find who holds an admin role that nobody has asked for.
struct Others<'a> {
    call: &'a Call<SuperAdmin>,
    config: &'a ZitadelConfig,
    items: &'a [ProvisionItem],
    admins: Vec<AccountAdmin>,
}

impl Others<'_> {
    /// Admin roles in the account's own place that neither it nor another account has asked for.
    async fn unexpected(&self, places: &Places) -> Result<Vec<UnexpectedGrant>, Halt> {
        let Some(project) = &self.config.project_id else { return Ok(Vec::new()) };
        let organization = self.config.organization_id.as_deref();
        let place = places.get(&(project.clone(), self.config.organization_id.clone()));
        let Some(Ok(held)) = place else { return Ok(Vec::new()) };
        let admin_roles = roles_of(self.config).into_iter().filter(|role| role.base_key != "end_user");
        let admin_roles: Vec<String> = admin_roles.map(|role| role.key).collect();
        let mut unexpected = Vec::new();
        for grant in held.grants.iter().filter(|grant| grant.active) {
            let is_extra = |key: &&String| admin_roles.contains(key) && !self.wants(&grant.user, key);
            let role_keys: Vec<String> = grant.role_keys.iter().filter(is_extra).cloned().collect();
            unexpected.push(UnexpectedGrant { user_id: grant.user.clone(), grant_id: grant.id.clone(), role_keys });
        }
        unexpected.retain(|grant| !grant.role_keys.is_empty());
        if unexpected.is_empty() {
            return Ok(unexpected);
        }
        let unresolved = self.unresolved(organization).await;
        let place = GrantPlace::of(project, organization, &held.owner);
        let mut tx = self.call.read().await?;
        for grant in &mut unexpected {
            let elsewhere = tx.wanted_besides(place, &grant.user_id, None).await?;
            let own = |key: &String| unresolved.iter().any(|(user, role)| *user == grant.user_id && role == key);
            grant.role_keys.retain(|key| !elsewhere.contains(key) && !own(key));
        }
        unexpected.retain(|grant| !grant.role_keys.is_empty());
        Ok(unexpected)
    }

    fn wants(&self, user: &str, key: &String) -> bool {
        let of_user = |item: &&ProvisionItem| user_of(item) == Some(user);
        self.items.iter().filter(of_user).any(|item| item.role_keys.contains(key))
    }

    /// Admins whom no grant here has been resolved for, with their role: everybody whom their
    /// address may mean.
    async fn unresolved(&self, organization: Option<&str>) -> Vec<(String, String)> {
        let is_resolved = |admin: &AccountAdmin| {
            self.items.iter().any(|item| item.target == admin.user_email && item.user_id.is_some())
        };
        let mut looks = Vec::new();
        for admin in self.admins.iter().filter(|admin| !is_resolved(admin)) {
            let Ok(key) = role_key(self.config, prefix_of(self.config), &admin.role) else { continue };
            let (provisioner, email) = (self.call.app.provisioner.clone(), admin.user_email.clone());
            let organization = organization.map(str::to_owned);
            looks.push(async move {
                let users = match provisioner.remote().user(&email, organization.as_deref()).await {
                    Ok(UserLookup::Found(user)) => vec![user],
                    Ok(UserLookup::Several(users)) => users,
                    Ok(UserLookup::Nobody) | Err(_) => Vec::new(),
                };
                users.into_iter().map(|user| (user.user_id, key.clone())).collect::<Vec<_>>()
            });
        }
        stream::iter(looks).buffer_unordered(LOOKS_AT_ONCE).concat().await
    }
}
