//! `/v1/{domain}/orgs`.

use serde::Deserialize;

use super::{Removal, not_found};
use crate::id::Id;
use crate::model::audit::Action;
use crate::model::directory::Org;
use crate::model::field::Field;
use crate::model::scope::ScopeType;
use crate::model::text::{Description, Name};
use crate::problem::Problem;
use crate::store::audit::Entry;
use crate::store::page::Slice;
use crate::v1::answer::{Answer, Deleted, Item, Items, Outcome, Refusals, taken};
use crate::v1::call::{Call, DomainAdmin, IfMatch};
use crate::v1::input::{Body, PageParams, Paging, Path, Query};

/// A new org.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewOrg {
    name: Name,
    #[serde(default)]
    description: Option<Description>,
}

/// A change of an org.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OrgChange {
    #[serde(default)]
    #[schema(value_type = Option<Name>)]
    name: Field<Name>,
    #[serde(default)]
    #[schema(value_type = Option<Description>)]
    description: Field<Description>,
}

/// The org of the path.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Path)]
pub struct AtOrg {
    /// The org.
    #[param(value_type = String)]
    org_id: Id<Org>,
}

const ORG_TAKEN: &str = "An org with this name exists already";

fn entry(action: Action, org: &Org) -> Entry<'_> {
    Entry { action, table: "Alchemi_OrgTable", id: org.id.as_str(), label: org.domain.into() }
}

/// List orgs
#[utoipa::path(get, path = "/v1/{domain}/orgs", tag = "directory", params(PageParams),
    responses((status = 200, description = "A page of orgs, newest first", body = Items<Org>), Refusals))]
pub async fn list_orgs(call: Call<DomainAdmin>, Paging(slice): Paging<1000>) -> Outcome {
    let orgs = call.read().await?.orgs(call.guard.0, &slice).await?;
    Ok(Answer::of(&Items::from(orgs)))
}

/// Make an org
#[utoipa::path(post, path = "/v1/{domain}/orgs", tag = "directory", request_body = NewOrg,
    responses((status = 200, description = "The new org", body = Item<Org>), Refusals))]
pub async fn create_org(call: Call<DomainAdmin>, Body(new): Body<NewOrg>) -> Outcome {
    let mut tx = call.begin().await?;
    let org = Org {
        id: tx.new_id(),
        account_id: tx.account().clone(),
        domain: call.guard.0,
        name: new.name.into_string(),
        description: new.description.map(Description::into_string),
        is_default_global: false,
        created_by: Some(tx.acting().actor.subject.to_string()),
        created_at: tx.now(),
        updated_at: tx.now(),
        version: 1,
    };
    tx.insert_org(&org).await.map_err(taken("name", ORG_TAKEN))?;
    tx.audit(entry(Action::Create, &org), None::<&()>, &org).await?;
    call.done_tagged(tx, &Item { item: &org }, org.version).await
}

/// Show an org
#[utoipa::path(get, path = "/v1/{domain}/orgs/{org_id}", tag = "directory", params(AtOrg),
    responses((status = 200, description = "The org", body = Item<Org>), Refusals))]
pub async fn get_org(call: Call<DomainAdmin>, Path(AtOrg { org_id: id }): Path<AtOrg>) -> Outcome {
    let org =
        call.read().await?.org(call.guard.0, &id).await?.ok_or_else(|| not_found(call.guard.0, ScopeType::Org))?;
    Ok(Answer::of(&Item { item: &org }).tagged(org.version))
}

/// Change an org
#[utoipa::path(patch, path = "/v1/{domain}/orgs/{org_id}", tag = "directory", params(AtOrg, IfMatch),
    request_body = OrgChange,
    responses((status = 200, description = "The changed org", body = Item<Org>), Refusals))]
pub async fn update_org(
    call: Call<DomainAdmin>,
    Path(AtOrg { org_id: id }): Path<AtOrg>,
    Body(change): Body<OrgChange>,
) -> Outcome {
    let mut tx = call.begin().await?;
    let before = tx.hold_org(call.guard.0, &id).await?.ok_or_else(|| not_found(call.guard.0, ScopeType::Org))?;
    call.expects(before.version)?;
    let mut org = before.clone();
    org.name = change.name.map(Name::into_string).over_required(org.name, "/name")?;
    org.description = change.description.map(Description::into_string).over(org.description);
    let org = tx.update_org(&org).await.map_err(taken("name", ORG_TAKEN))?;
    tx.audit(entry(Action::Update, &org), Some(&before), &org).await?;
    call.done_tagged(tx, &Item { item: &org }, org.version).await
}

/// Remove an org
///
/// An org that has teams is removed only with `cascade=true`, and takes them with it.
/// Model grants, budget allocations and overrides of what is removed go too; the
/// audit lists them.
#[utoipa::path(delete, path = "/v1/{domain}/orgs/{org_id}", tag = "directory",
    params(AtOrg, Removal, IfMatch),
    responses((status = 200, description = "Removed", body = Deleted), Refusals))]
pub async fn delete_org(
    call: Call<DomainAdmin>,
    Path(AtOrg { org_id: id }): Path<AtOrg>,
    Query(removal): Query<Removal>,
) -> Outcome {
    let mut tx = call.begin().await?;
    let org = tx.hold_org(call.guard.0, &id).await?.ok_or_else(|| not_found(call.guard.0, ScopeType::Org))?;
    call.expects(org.version)?;
    let teams = tx.teams(org.domain, Some(&id), &Slice::first(1)).await?;
    if !removal.cascade && !teams.items.is_empty() {
        return Err(Problem::conflict("not_empty", "The org has teams: remove them first, or send cascade=true").into());
    }
    let uprooted = tx.delete_org(org.domain, &id).await?;
    tx.audit(entry(Action::Delete, &org), Some(&org), &uprooted).await?;
    call.done(tx, &Deleted { deleted: true }).await
}
