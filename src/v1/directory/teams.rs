//! `/v1/{domain}/teams` and `/v1/{domain}/teams/{team_id}/members`.

use serde::Deserialize;

use super::{Removal, hold_scope, join, not_found};
use crate::context::Domain;
use crate::id::Id;
use crate::model::audit::Action;
use crate::model::directory::{Membership, Org, Team, User};
use crate::model::field::Field;
use crate::model::scope::{Scope, ScopeType};
use crate::model::text::{Description, Name};
use crate::problem::Problem;
use crate::store::audit::Entry;
use crate::store::page::Slice;
use crate::v1::answer::{Answer, Deleted, Item, Items, Outcome, Refusals, or_404, taken};
use crate::v1::budgets::held_plan;
use crate::v1::call::{Call, DomainAdmin, IfMatch};
use crate::v1::input::{Body, PageParams, Paging, Path, Query};

/// A new team.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTeam {
    org_id: Id<Org>,
    name: Name,
    #[serde(default)]
    description: Option<Description>,
}

/// A change of a team.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TeamChange {
    #[serde(default)]
    #[schema(value_type = Option<Name>)]
    name: Field<Name>,
    #[serde(default)]
    #[schema(value_type = Option<Description>)]
    description: Field<Description>,
}

/// Which teams are wanted.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct TeamFilter {
    /// Only teams of this org.
    #[param(value_type = Option<String>)]
    org_id: Option<Id<Org>>,
}

/// The team of the path.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Path)]
pub struct AtTeam {
    /// The team.
    #[param(value_type = String)]
    team_id: Id<Team>,
}

/// A new member of a team.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewMember {
    user_id: Id<User>,
    /// The role in the team, free text; `member` unless said.
    #[serde(default)]
    role: Option<Name>,
}

/// Another role of a member.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MemberChange {
    #[schema(example = "lead")]
    role: Name,
}

/// The membership of the path.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Path)]
pub struct AtMember {
    /// The team.
    #[param(value_type = String)]
    team_id: Id<Team>,
    /// The user.
    #[param(value_type = String)]
    user_id: Id<User>,
}

const TEAM_TAKEN: &str = "A team with this name exists already in the org";
const NO_MEMBER: &str = "The user is not a member of the team";

fn entry(action: Action, team: &Team) -> Entry<'_> {
    Entry { action, table: "Alchemi_TeamTable", id: team.id.as_str(), label: team.domain.into() }
}

fn member_entry(action: Action, domain: Domain, member: &Membership) -> Entry<'_> {
    Entry { action, table: "Alchemi_TeamMembershipTable", id: member.team_id.as_str(), label: domain.into() }
}

/// List teams
#[utoipa::path(get, path = "/v1/{domain}/teams", tag = "directory", params(TeamFilter, PageParams),
    responses((status = 200, description = "A page of teams, newest first", body = Items<Team>), Refusals))]
pub async fn list_teams(
    call: Call<DomainAdmin>,
    Query(filter): Query<TeamFilter>,
    Paging(slice): Paging<1000>,
) -> Outcome {
    let teams = call.read().await?.teams(call.guard.0, filter.org_id.as_ref(), &slice).await?;
    Ok(Answer::of(&Items::from(teams)))
}

/// Make a team
#[utoipa::path(post, path = "/v1/{domain}/teams", tag = "directory", request_body = NewTeam,
    responses((status = 200, description = "The new team", body = Item<Team>), Refusals))]
pub async fn create_team(call: Call<DomainAdmin>, Body(new): Body<NewTeam>) -> Outcome {
    let mut tx = call.begin().await?;
    hold_scope(&mut tx, call.guard.0, &Scope::new(ScopeType::Org, new.org_id.as_str())).await?;
    let team = Team {
        id: tx.new_id(),
        account_id: tx.account().clone(),
        domain: call.guard.0,
        org_id: new.org_id,
        name: new.name.into_string(),
        description: new.description.map(Description::into_string),
        created_by: Some(tx.acting().actor.subject.to_string()),
        created_at: tx.now(),
        updated_at: tx.now(),
        version: 1,
    };
    tx.insert_team(&team).await.map_err(taken("name", TEAM_TAKEN))?;
    tx.audit(entry(Action::Create, &team), None::<&()>, &team).await?;
    call.done_tagged(tx, &Item { item: &team }, team.version).await
}

/// Show a team
#[utoipa::path(get, path = "/v1/{domain}/teams/{team_id}", tag = "directory", params(AtTeam),
    responses((status = 200, description = "The team", body = Item<Team>), Refusals))]
pub async fn get_team(call: Call<DomainAdmin>, Path(AtTeam { team_id: id }): Path<AtTeam>) -> Outcome {
    let team = call.read().await?.team(call.guard.0, &id).await?.ok_or_else(|| no_team(&call))?;
    Ok(Answer::of(&Item { item: &team }).tagged(team.version))
}

/// Change a team
#[utoipa::path(patch, path = "/v1/{domain}/teams/{team_id}", tag = "directory", params(AtTeam, IfMatch),
    request_body = TeamChange,
    responses((status = 200, description = "The changed team", body = Item<Team>), Refusals))]
pub async fn update_team(
    call: Call<DomainAdmin>,
    Path(AtTeam { team_id: id }): Path<AtTeam>,
    Body(change): Body<TeamChange>,
) -> Outcome {
    let mut tx = call.begin().await?;
    let before = tx.hold_team(call.guard.0, &id).await?.ok_or_else(|| no_team(&call))?;
    call.expects(before.version)?;
    let mut team = before.clone();
    team.name = change.name.map(Name::into_string).over_required(team.name, "/name")?;
    team.description = change.description.map(Description::into_string).over(team.description);
    let team = tx.update_team(&team).await.map_err(taken("name", TEAM_TAKEN))?;
    tx.audit(entry(Action::Update, &team), Some(&before), &team).await?;
    call.done_tagged(tx, &Item { item: &team }, team.version).await
}

/// Remove a team
///
/// A team that has members is removed only with `cascade=true`, and ends their
/// memberships; the users stay. Model grants, budget allocations and overrides of the
/// team go too; the audit lists them.
#[utoipa::path(delete, path = "/v1/{domain}/teams/{team_id}", tag = "directory",
    params(AtTeam, Removal, IfMatch),
    responses((status = 200, description = "Removed", body = Deleted), Refusals))]
pub async fn delete_team(
    call: Call<DomainAdmin>,
    Path(AtTeam { team_id: id }): Path<AtTeam>,
    Query(removal): Query<Removal>,
) -> Outcome {
    let mut tx = call.begin().await?;
    let team = tx.hold_team(call.guard.0, &id).await?.ok_or_else(|| no_team(&call))?;
    call.expects(team.version)?;
    let members = tx.members(team.domain, &id, &Slice::first(1)).await?;
    if !removal.cascade && !members.items.is_empty() {
        let detail = "The team has members: remove them first, or send cascade=true";
        return Err(Problem::conflict("not_empty", detail).into());
    }
    let uprooted = tx.delete_team(team.domain, &id).await?;
    tx.audit(entry(Action::Delete, &team), Some(&team), &uprooted).await?;
    call.done(tx, &Deleted { deleted: true }).await
}

/// List members of a team
#[utoipa::path(get, path = "/v1/{domain}/teams/{team_id}/members", tag = "directory", params(AtTeam, PageParams),
    responses((status = 200, description = "A page of members, newest first", body = Items<Membership>), Refusals))]
pub async fn list_team_members(
    call: Call<DomainAdmin>,
    Path(AtTeam { team_id: team }): Path<AtTeam>,
    Paging(slice): Paging<1000>,
) -> Outcome {
    let mut tx = call.read().await?;
    tx.team(call.guard.0, &team).await?.ok_or_else(|| no_team(&call))?;
    Ok(Answer::of(&Items::from(tx.members(call.guard.0, &team, &slice).await?)))
}

/// Make a user a member of a team
///
/// One who is a member already gets the role that is sent, and keeps theirs when none is. A
/// plan in force that forbids over-commitment refuses a member whose share does not fit into
/// the team's beside those of the others; into its org's, where the team has none; else into the
/// account's credits.
#[utoipa::path(post, path = "/v1/{domain}/teams/{team_id}/members", tag = "directory", params(AtTeam),
    request_body = NewMember,
    responses((status = 200, description = "The membership", body = Item<Membership>), Refusals))]
pub async fn add_team_member(
    call: Call<DomainAdmin>,
    Path(AtTeam { team_id: team }): Path<AtTeam>,
    Body(new): Body<NewMember>,
) -> Outcome {
    let (domain, mut tx) = (call.guard.0, call.begin().await?);
    let plan = held_plan(&mut tx, domain).await?;
    hold_scope(&mut tx, domain, &Scope::new(ScopeType::Team, team.as_str())).await?;
    hold_scope(&mut tx, domain, &Scope::new(ScopeType::User, new.user_id.as_str())).await?;
    let before = tx.member(domain, &team, &new.user_id).await?;
    let place = (domain, &team, &new.user_id);
    let member = join(&mut tx, plan.as_ref(), place, new.role.as_ref().map(Name::as_str)).await?;
    tx.audit(member_entry(Action::Upsert, domain, &member), before.as_ref(), &member).await?;
    call.done(tx, &Item { item: &member }).await
}

/// Change a member's role
#[utoipa::path(patch, path = "/v1/{domain}/teams/{team_id}/members/{user_id}", tag = "directory", params(AtMember),
    request_body = MemberChange,
    responses((status = 200, description = "The changed membership", body = Item<Membership>), Refusals))]
pub async fn update_team_member(
    call: Call<DomainAdmin>,
    Path(AtMember { team_id: team, user_id: user }): Path<AtMember>,
    Body(change): Body<MemberChange>,
) -> Outcome {
    let (domain, mut tx) = (call.guard.0, call.begin().await?);
    hold_scope(&mut tx, domain, &Scope::new(ScopeType::Team, team.as_str())).await?;
    let before = or_404(tx.member(domain, &team, &user).await?, NO_MEMBER)?;
    let member = tx.put_member(domain, &team, &user, Some(change.role.as_str())).await?;
    tx.audit(member_entry(Action::Update, domain, &member), Some(&before), &member).await?;
    call.done(tx, &Item { item: &member }).await
}

/// End a membership
#[utoipa::path(delete, path = "/v1/{domain}/teams/{team_id}/members/{user_id}", tag = "directory", params(AtMember),
    responses((status = 200, description = "Ended", body = Deleted), Refusals))]
pub async fn remove_team_member(
    call: Call<DomainAdmin>,
    Path(AtMember { team_id: team, user_id: user }): Path<AtMember>,
) -> Outcome {
    let (domain, mut tx) = (call.guard.0, call.begin().await?);
    hold_scope(&mut tx, domain, &Scope::new(ScopeType::Team, team.as_str())).await?;
    let member = or_404(tx.member(domain, &team, &user).await?, NO_MEMBER)?;
    tx.delete_member(domain, &team, &user).await?;
    tx.audit(member_entry(Action::Delete, domain, &member), Some(&member), &serde_json::json!({})).await?;
    call.done(tx, &Deleted { deleted: true }).await
}

fn no_team(call: &Call<DomainAdmin>) -> Problem {
    not_found(call.guard.0, ScopeType::Team)
}
