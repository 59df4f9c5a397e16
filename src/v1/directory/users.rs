//! `/v1/{domain}/users`.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{hold_scope, join, not_found, unsuspended};
use crate::context::Tenant;
use crate::id::Id;
use crate::model::audit::Action;
use crate::model::directory::{IdentityLookup, Team, User, UserStatus};
use crate::model::field::Field;
use crate::model::scope::{Scope, ScopeType};
use crate::model::text::{Email, Name, blank_is_none};
use crate::problem::Problem;
use crate::store::audit::Entry;
use crate::store::{StoreError, Tx};
use crate::v1::answer::{Answer, Deleted, Halt, Item, Items, Outcome, Refusals, taken};
use crate::v1::budgets::held_plan;
use crate::v1::call::{Call, DomainAdmin, IfMatch};
use crate::v1::input::{Body, PageParams, Paging, Path};

/// A user, new or known by e-mail address or identity id. At least one of the two is
/// required.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewUser {
    #[serde(default, deserialize_with = "blank_is_none")]
    email: Option<Email>,
    #[serde(default, deserialize_with = "blank_is_none")]
    #[schema(example = "Ada Lovelace")]
    display_name: Option<Name>,
    /// Zitadel's user id, the `sub` of their tokens.
    #[serde(default, deserialize_with = "blank_is_none")]
    #[schema(example = "291047613578412035")]
    identity_user_id: Option<Name>,
    /// Teams of which they become a member.
    #[serde(default)]
    team_ids: BTreeSet<Id<Team>>,
}

/// A change of a user.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UserChange {
    #[serde(default)]
    #[schema(value_type = Option<Email>)]
    email: Field<Email>,
    #[serde(default)]
    #[schema(value_type = Option<Name>)]
    display_name: Field<Name>,
    /// Zitadel's user id, the `sub` of their tokens.
    #[serde(default)]
    #[schema(value_type = Option<Name>)]
    identity_user_id: Field<Name>,
    /// A suspended user is refused on the data plane; an admin who is one changes no users,
    /// themselves neither.
    #[serde(default)]
    #[schema(value_type = Option<UserStatus>)]
    status: Field<UserStatus>,
}

/// A user, and the search for their id.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ShownUser {
    #[serde(flatten)]
    user: User,
    /// How the search for their id at Zitadel stands, which begins by itself where only
    /// the e-mail address is known; `null` when there is nothing to find.
    identity_lookup: Option<IdentityLookup>,
}

/// The user of the path.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Path)]
pub struct AtUser {
    /// The user.
    #[param(value_type = String)]
    user_id: Id<User>,
}

/// A user with the teams that they were added to, for the audit.
#[derive(Serialize)]
struct Enrolled<'a> {
    #[serde(flatten)]
    user: &'a User,
    team_ids: &'a BTreeSet<Id<Team>>,
}

fn entry(action: Action, user: &User) -> Entry<'_> {
    Entry { action, table: "Alchemi_UserTable", id: user.id.as_str(), label: user.domain.into() }
}

/// List users
#[utoipa::path(get, path = "/v1/{domain}/users", tag = "directory", params(PageParams),
    responses((status = 200, description = "A page of users, newest first", body = Items<User>), Refusals))]
pub async fn list_users(call: Call<DomainAdmin>, Paging(slice): Paging<1000>) -> Outcome {
    let users = call.read().await?.users(call.guard.0, &slice).await?;
    Ok(Answer::of(&Items::from(users)))
}

/// Make a user, or complete a known one
///
/// A user with the same identity id or e-mail address is changed by the fields that
/// are sent; when the two are of different users, 409. Then they are added to the teams, as a
/// plan in force that forbids over-commitment allows.
#[utoipa::path(post, path = "/v1/{domain}/users", tag = "directory", request_body = NewUser,
    responses((status = 200, description = "The user", body = Item<User>), Refusals))]
pub async fn create_user(call: Call<DomainAdmin>, Body(new): Body<NewUser>) -> Outcome {
    if new.email.is_none() && new.identity_user_id.is_none() {
        return Err(unidentified().into());
    }
    let (domain, mut tx) = (call.guard.0, call.begin().await?);
    let plan = if new.team_ids.is_empty() { None } else { held_plan(&mut tx, domain).await? };
    for team in &new.team_ids {
        hold_scope(&mut tx, domain, &Scope::new(ScopeType::Team, team.as_str())).await?;
    }
    let identity = new.identity_user_id.as_ref().map(Name::as_str);
    let mut known = tx.hold_users_of(domain, identity, new.email.as_ref().map(Email::as_str)).await?;
    let before = known.pop();
    require_unsuspended(&mut tx, &call).await?;
    if !known.is_empty() {
        let detail =
            "email and identity_user_id belong to different users: send one of them, or remove one of the users";
        return Err(Problem::conflict("ambiguous_user", detail).into());
    }
    let user = match &before {
        Some(known) => tx.update_user(&completed(known, &new)).await.map_err(user_taken)?,
        None => inserted(&mut tx, &call, &new).await?,
    };
    for team in &new.team_ids {
        join(&mut tx, plan.as_ref(), (domain, team, &user.id), None).await?;
    }
    let action = if before.is_some() { Action::Update } else { Action::Create };
    tx.audit(entry(action, &user), before.as_ref(), &Enrolled { user: &user, team_ids: &new.team_ids }).await?;
    call.done_tagged(tx, &Item { item: &user }, user.version).await
}

/// The known user with what was sent written over it.
fn completed(known: &User, sent: &NewUser) -> User {
    let mut user = known.clone();
    let over = |old: Option<String>, new: Option<&str>| new.map(str::to_owned).or(old);
    user.email = over(user.email, sent.email.as_ref().map(Email::as_str));
    user.display_name = over(user.display_name, sent.display_name.as_ref().map(Name::as_str));
    user.identity_user_id = over(user.identity_user_id, sent.identity_user_id.as_ref().map(Name::as_str));
    user
}

async fn inserted(tx: &mut Tx<Tenant>, call: &Call<DomainAdmin>, new: &NewUser) -> Result<User, Halt> {
    let blank = User {
        id: tx.new_id(),
        account_id: tx.account().clone(),
        domain: call.guard.0,
        identity_user_id: None,
        email: None,
        display_name: None,
        status: UserStatus::Active,
        created_by: Some(tx.acting().actor.subject.to_string()),
        created_at: tx.now(),
        updated_at: tx.now(),
        version: 1,
    };
    let user = completed(&blank, new);
    tx.insert_user(&user).await.map_err(user_taken)?;
    Ok(user)
}

/// Show a user
#[utoipa::path(get, path = "/v1/{domain}/users/{user_id}", tag = "directory", params(AtUser),
    responses((status = 200, description = "The user", body = Item<ShownUser>), Refusals))]
pub async fn get_user(call: Call<DomainAdmin>, Path(AtUser { user_id: id }): Path<AtUser>) -> Outcome {
    let mut tx = call.read().await?;
    let user = tx.user(call.guard.0, &id).await?.ok_or_else(|| no_user(&call))?;
    let identity_lookup = tx.identity_lookup(call.guard.0, &id).await?;
    let version = user.version;
    Ok(Answer::of(&Item { item: ShownUser { user, identity_lookup } }).tagged(version))
}

/// Change a user
#[utoipa::path(patch, path = "/v1/{domain}/users/{user_id}", tag = "directory", params(AtUser, IfMatch),
    request_body = UserChange,
    responses((status = 200, description = "The changed user", body = Item<User>), Refusals))]
pub async fn update_user(
    call: Call<DomainAdmin>,
    Path(AtUser { user_id: id }): Path<AtUser>,
    Body(change): Body<UserChange>,
) -> Outcome {
    let mut tx = call.begin().await?;
    let before = tx.hold_user(call.guard.0, &id).await?.ok_or_else(|| no_user(&call))?;
    require_unsuspended(&mut tx, &call).await?;
    call.expects(before.version)?;
    let mut user = before.clone();
    user.email = change.email.map(Email::into_string).over(user.email);
    user.display_name = change.display_name.map(Name::into_string).over(user.display_name);
    user.identity_user_id = change.identity_user_id.map(Name::into_string).over(user.identity_user_id);
    user.status = change.status.over_required(user.status, "/status")?;
    if user.email.is_none() && user.identity_user_id.is_none() {
        return Err(unidentified().into());
    }
    let user = tx.update_user(&user).await.map_err(user_taken)?;
    tx.audit(entry(Action::Update, &user), Some(&before), &user).await?;
    call.done_tagged(tx, &Item { item: &user }, user.version).await
}

/// Remove a user
///
/// Their memberships, model grants, budget allocations and overrides go too; the audit
/// lists them. What they used stays in the ledger.
#[utoipa::path(delete, path = "/v1/{domain}/users/{user_id}", tag = "directory", params(AtUser, IfMatch),
    responses((status = 200, description = "Removed", body = Deleted), Refusals))]
pub async fn delete_user(call: Call<DomainAdmin>, Path(AtUser { user_id: id }): Path<AtUser>) -> Outcome {
    let mut tx = call.begin().await?;
    let user = tx.hold_user(call.guard.0, &id).await?.ok_or_else(|| no_user(&call))?;
    require_unsuspended(&mut tx, &call).await?;
    call.expects(user.version)?;
    let uprooted = tx.delete_user(user.domain, &id).await?;
    tx.audit(entry(Action::Delete, &user), Some(&user), &uprooted).await?;
    call.done(tx, &Deleted { deleted: true }).await
}

/// Refuses an admin who is suspended as a user of the domain: they could restore themselves, or make
/// themselves another row. Who they are in the directory is found as it is for their requests; it is
/// asked after the row is held that is to be changed, which may be their own.
async fn require_unsuspended(tx: &mut Tx<Tenant>, call: &Call<DomainAdmin>) -> Result<(), Halt> {
    if call.context.is_super_admin() {
        return Ok(());
    }
    let actor = call.context.actor();
    let place =
        tx.placement(call.guard.0, &actor.subject, actor.email.as_deref(), None).await.map_err(Problem::from)?;
    unsuspended(place).map(drop)
}

fn no_user(call: &Call<DomainAdmin>) -> Problem {
    not_found(call.guard.0, ScopeType::User)
}

fn unidentified() -> Problem {
    Problem::bad_request("unidentified_user", "Either email or identity_user_id is required")
}

fn user_taken(error: StoreError) -> Halt {
    let field = if error.is_unique("identity_user_id") { "identity_user_id" } else { "email" };
    taken(field, "Another user has this e-mail address or identity id already")(error)
}
