//! Whom listings are shown to.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{AtListing, NewListingGrant, ShownListing, entry, grants_of, known, scope_of};
use crate::context::{Domain, Tenant};
use crate::id::Id;
use crate::model::audit::Action;
use crate::model::marketplace::{GRANTED_TO, Listing, ListingGrant, Visibility};
use crate::model::scope::{MemberType, Scope, ScopeType};
use crate::problem::Problem;
use crate::store::Tx;
use crate::v1::answer::{Answer, Halt, Item, Items, Outcome, Refusals};
use crate::v1::call::{Call, CopilotAdmin, IfMatch};
use crate::v1::directory::hold_scope;
use crate::v1::input::{Body, PageParams, Paging, Path, Query};
use crate::v1::trial::{Trial, Tried};

const TABLE: &str = "Alchemi_CopilotMarketplaceGrantTable";

/// Which grant, or without both all of them.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct GrantedTo {
    /// `org`, `team` or `user`.
    #[param(value_type = Option<MemberType>, inline)]
    scope_type: Option<String>,
    /// The scope.
    scope_id: Option<String>,
}

/// `{"deleted": 2}`
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct DeletedCount {
    /// How many there were.
    deleted: usize,
}

fn made(tx: &Tx<Tenant>, listing: &Id<Listing>, scope: &Scope) -> ListingGrant {
    ListingGrant {
        id: tx.new_id(),
        account_id: tx.account().clone(),
        marketplace_id: listing.clone(),
        scope_type: scope.scope_type,
        scope_id: scope.scope_id.clone(),
        created_by: Some(tx.acting().actor.subject.to_string()),
        created_at: tx.now(),
        updated_at: tx.now(),
    }
}

/// Grants a listing to exactly these scopes, which are held.
pub(super) async fn replace(tx: &mut Tx<Tenant>, listing: &Id<Listing>, scopes: &[Scope]) -> Result<(), Halt> {
    let granted = tx.grants_of_listings(std::slice::from_ref(listing)).await?;
    let old: BTreeSet<Scope> = granted.iter().map(scope_of).collect();
    for scope in old.iter().filter(|scope| !scopes.contains(scope)) {
        tx.delete_listing_grants(listing, Some(scope)).await?;
    }
    for scope in scopes.iter().filter(|scope| !old.contains(scope)) {
        let grant = made(tx, listing, scope);
        tx.put_listing_grant(&grant).await?;
    }
    Ok(())
}

/// List whom a listing is granted to
#[utoipa::path(get, path = "/v1/copilot/marketplace/{marketplace_id}/grants", tag = "marketplace",
    params(AtListing, PageParams),
    responses((status = 200, description = "A page of grants, newest first", body = Items<ListingGrant>), Refusals))]
pub async fn list_marketplace_grants(
    call: Call<CopilotAdmin>,
    Path(at): Path<AtListing>,
    Paging(slice): Paging<1000>,
) -> Outcome {
    let mut tx = call.read().await?;
    let listing = known(tx.listing(&at.marketplace_id).await?)?;
    Ok(Answer::of(&Items::from(tx.listing_grants(&listing.id, &slice).await?)).tagged(listing.revision))
}

/// Grant a listing to a scope
///
/// A listing that everybody saw is from then on for those whom it is granted to, which the
/// audit and a dry run tell as a change of the listing.
#[utoipa::path(post, path = "/v1/copilot/marketplace/{marketplace_id}/grants", tag = "marketplace",
    params(AtListing, Trial), request_body = NewListingGrant,
    responses((status = 200, description = "The grant", body = Tried<Item<ListingGrant>>), Refusals))]
pub async fn create_marketplace_grant(
    call: Call<CopilotAdmin>,
    Path(at): Path<AtListing>,
    Query(trial): Query<Trial>,
    Body(new): Body<NewListingGrant>,
) -> Outcome {
    let scope = new.scope()?;
    let mut tx = call.begin_or_try(&trial).await?;
    hold_scope(&mut tx, Domain::Copilot, &scope).await?;
    let listing = known(tx.hold_listing(&at.marketplace_id).await?)?;
    let granted = tx.grants_of_listings(std::slice::from_ref(&listing.id)).await?;
    let former: Vec<Scope> = granted.iter().map(scope_of).collect();
    let before = granted.into_iter().find(|grant| scope_of(grant) == scope);
    let grant = made(&tx, &listing.id, &scope);
    let grant = tx.put_listing_grant(&grant).await?;
    tx.audit(entry(Action::Upsert, TABLE, grant.id.as_str()), before.as_ref(), &grant).await?;
    let closes = listing.visibility == Visibility::Global;
    // Whom it is granted to belongs to its revision.
    if closes || before.is_none() {
        let changed = Listing { visibility: Visibility::Granted, ..listing.clone() };
        let changed = tx.update_listing(&changed).await?;
        if closes {
            let scopes = grants_of(&mut tx, &changed).await?;
            let (old, new) = (ShownListing::of(listing, Some(former)), ShownListing::of(changed, Some(scopes)));
            tx.audit(entry(Action::Update, super::TABLE, grant.marketplace_id.as_str()), Some(&old), &new).await?;
        }
    }
    call.done(tx, &Item { item: &grant }).await
}

/// Take a listing from a scope, or from all
///
/// A listing that is granted to nobody any more is seen by nobody, until its visibility is
/// set to `global`. Grants belong to the listing's version.
#[utoipa::path(delete, path = "/v1/copilot/marketplace/{marketplace_id}/grants", tag = "marketplace",
    params(AtListing, GrantedTo, Trial, IfMatch),
    responses((status = 200, description = "How many grants there were", body = Tried<DeletedCount>), Refusals))]
pub async fn delete_marketplace_grants(
    call: Call<CopilotAdmin>,
    Path(at): Path<AtListing>,
    Query(of): Query<GrantedTo>,
    Query(trial): Query<Trial>,
) -> Outcome {
    let mut tx = call.begin_or_try(&trial).await?;
    let listing = known(tx.hold_listing(&at.marketplace_id).await?)?;
    call.expects(listing.revision)?;
    let scope = match (of.scope_type, of.scope_id) {
        (Some(kind), Some(id)) => Some(Scope::new(ScopeType::parse(&kind, GRANTED_TO)?, id)),
        (None, None) => None,
        _ => {
            let detail = "scope_type and scope_id must be provided together";
            return Err(Problem::bad_request("scope_incomplete", detail).into());
        }
    };
    let gone = tx.delete_listing_grants(&listing.id, scope.as_ref()).await?;
    for grant in &gone {
        tx.audit(entry(Action::Delete, TABLE, grant.id.as_str()), Some(grant), &serde_json::json!({})).await?;
    }
    if !gone.is_empty() {
        tx.update_listing(&listing).await?;
    }
    call.done(tx, &DeletedCount { deleted: gone.len() }).await
}
