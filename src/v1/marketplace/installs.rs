//! Installations and ratings: what users do with listings, and what is counted.

use serde::{Deserialize, Serialize};

use super::discover::{InCopilot, is_admin, own_chain};
use super::{AtListing, entry, granted_to, known};
use crate::context::{Domain, Tenant};
use crate::id::Id;
use crate::model::audit::Action;
use crate::model::marketplace::{Installation, Listing, Rating, Sight, Stars};
use crate::model::scope::{GranteeType, Scope, ScopeType};
use crate::problem::Problem;
use crate::store::Tx;
use crate::v1::answer::{Answer, Deleted, Halt, Item, Items, Outcome, Refusals};
use crate::v1::call::{Call, CopilotAdmin, Member};
use crate::v1::directory::{StandpointHeaders, hold_scope};
use crate::v1::input::{Body, PageParams, Paging, Path, Query};

const TABLE: &str = "Alchemi_CopilotMarketplaceInstallTable";
const RATINGS: &str = "Alchemi_CopilotMarketplaceRatingTable";

/// Where a listing is installed: for the caller alone unless both are sent.
#[derive(Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({}))]
pub struct NewInstallation {
    /// `account`, `org`, `team` or `user`; without it, the caller's own user.
    #[serde(default)]
    #[schema(value_type = Option<GranteeType>)]
    scope_type: Option<String>,
    /// The scope.
    #[serde(default)]
    scope_id: Option<String>,
}

/// The same, in the query.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct InstalledIn {
    /// `account`, `org`, `team` or `user`; without it, the caller's own user.
    #[param(value_type = Option<GranteeType>, inline)]
    scope_type: Option<String>,
    /// The scope.
    scope_id: Option<String>,
}

/// An installation, and how many there are.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Installed {
    /// The installation.
    item: Installation,
    /// The listing's counter.
    installation_count: i64,
}

/// A rating.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewRating {
    /// 1 to 5.
    #[schema(value_type = i64, minimum = 1, maximum = 5, example = 4)]
    rating: Rating,
}

/// The caller's rating, and what all ratings come to.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Rated {
    /// The listing.
    marketplace_id: Id<Listing>,
    /// The caller's own; null: none.
    #[schema(value_type = Option<i64>, minimum = 1, maximum = 5, example = 4)]
    rating: Option<Rating>,
    /// The average of all.
    #[schema(value_type = f64, example = 4.5)]
    rating_avg: Stars,
    /// How many there are.
    rating_count: i64,
}

impl Rated {
    fn of(listing: &Listing, rating: Option<Rating>) -> Self {
        Self {
            marketplace_id: listing.id.clone(),
            rating,
            rating_avg: listing.rating_avg,
            rating_count: listing.rating_count,
        }
    }
}

/// The scope that is meant, which the caller must be an admin of, or themselves.
fn target(call: &Call<Member>, chain: &[Scope], kind: Option<&str>, id: Option<String>) -> Result<Scope, Problem> {
    let own = chain.iter().find(|scope| scope.scope_type == ScopeType::User);
    let scope = match (kind, id) {
        (None, None) => {
            let detail = "The directory does not know you: name a scope with scope_type and scope_id";
            return own.cloned().ok_or_else(|| Problem::conflict("user_unknown", detail));
        }
        (Some(kind), Some(id)) => Scope::new(ScopeType::parse(kind, ScopeType::GRANTEES)?, id),
        _ => {
            let detail = "scope_type and scope_id must be provided together";
            return Err(Problem::bad_request("scope_incomplete", detail));
        }
    };
    if own != Some(&scope) {
        call.context.domain_admin(Domain::Copilot)?;
    }
    Ok(scope)
}

/// The listing of the path, held, if the caller sees it.
async fn held(call: &Call<Member>, tx: &mut Tx<Tenant>, at: &AtListing, chain: &[Scope]) -> Result<Listing, Halt> {
    let listing = known(tx.hold_listing(&at.marketplace_id).await?)?;
    visible(call, tx, listing, chain).await
}

/// The listing; for somebody who is no admin, only if they see it.
async fn visible(call: &Call<Member>, tx: &mut Tx<Tenant>, listing: Listing, chain: &[Scope]) -> Result<Listing, Halt> {
    if is_admin(&call.context) {
        return Ok(listing);
    }
    let grants = granted_to(tx, std::iter::once(&listing)).await?.remove(&listing.id).unwrap_or_default();
    let sees = listing.is_published && Sight::of(listing.visibility, &grants, chain).is_some();
    Ok(known(sees.then_some(listing))?)
}

/// List where a listing is installed
#[utoipa::path(get, path = "/v1/copilot/marketplace/{marketplace_id}/install", tag = "marketplace",
    params(AtListing, PageParams),
    responses((status = 200, description = "A page of installations, newest first", body = Items<Installation>),
        Refusals))]
pub async fn list_marketplace_installations(
    call: Call<CopilotAdmin>,
    Path(at): Path<AtListing>,
    Paging(slice): Paging<1000>,
) -> Outcome {
    let mut tx = call.read().await?;
    let listing = known(tx.listing(&at.marketplace_id).await?)?;
    Ok(Answer::of(&Items::from(tx.installations(&listing.id, &slice).await?)))
}

/// Install a listing
///
/// For the caller alone; for another scope by an admin. A scope has it once: installed
/// again, nothing changes.
#[utoipa::path(post, path = "/v1/copilot/marketplace/{marketplace_id}/install", tag = "marketplace",
    params(AtListing, StandpointHeaders), request_body = NewInstallation,
    responses((status = 200, description = "The installation", body = Installed), Refusals))]
pub async fn install_marketplace_listing(
    call: Call<Member>,
    standpoint: InCopilot,
    Path(at): Path<AtListing>,
    Body(new): Body<NewInstallation>,
) -> Outcome {
    let mut tx = call.begin().await?;
    let chain = own_chain(&mut tx, &call.context, &standpoint.0).await?;
    // Before it is held: scopes are locked ahead of listings, everywhere.
    let listing = known(tx.listing(&at.marketplace_id).await?)?;
    visible(&call, &mut tx, listing, &chain).await?;
    let scope = target(&call, &chain, new.scope_type.as_deref(), new.scope_id)?;
    hold_scope(&mut tx, Domain::Copilot, &scope).await?;
    let mut listing = held(&call, &mut tx, &at, &chain).await?;
    if let Some(item) = tx.installation(&listing.id, &scope).await? {
        return call.done(tx, &Installed { item, installation_count: listing.installation_count }).await;
    }
    let item = Installation {
        id: tx.new_id(),
        account_id: tx.account().clone(),
        marketplace_id: listing.id.clone(),
        scope_type: scope.scope_type,
        scope_id: scope.scope_id,
        created_by: Some(tx.acting().actor.subject.to_string()),
        created_at: tx.now(),
    };
    tx.insert_installation(&item).await?;
    listing.installation_count = listing.installation_count.saturating_add(1);
    tx.count_listing(&listing).await?;
    tx.audit(entry(Action::Create, TABLE, item.id.as_str()), None::<&()>, &item).await?;
    call.done(tx, &Installed { item, installation_count: listing.installation_count }).await
}

/// Uninstall a listing
///
/// For the caller alone; for another scope by an admin.
#[utoipa::path(delete, path = "/v1/copilot/marketplace/{marketplace_id}/install", tag = "marketplace",
    params(AtListing, InstalledIn, StandpointHeaders),
    responses((status = 200, description = "Whether it was installed", body = Deleted), Refusals))]
pub async fn uninstall_marketplace_listing(
    call: Call<Member>,
    standpoint: InCopilot,
    Path(at): Path<AtListing>,
    Query(of): Query<InstalledIn>,
) -> Outcome {
    let mut tx = call.begin().await?;
    let chain = own_chain(&mut tx, &call.context, &standpoint.0).await?;
    // What is out of sight can be uninstalled all the same.
    let mut listing = known(tx.hold_listing(&at.marketplace_id).await?)?;
    let scope = match target(&call, &chain, of.scope_type.as_deref(), of.scope_id) {
        Ok(scope) => scope,
        Err(problem) => {
            // Whoever may not see it does not hear that it is there.
            visible(&call, &mut tx, listing, &chain).await?;
            return Err(problem.into());
        }
    };
    let Some(gone) = tx.installation(&listing.id, &scope).await? else {
        visible(&call, &mut tx, listing, &chain).await?;
        return call.done(tx, &Deleted { deleted: false }).await;
    };
    tx.delete_installation(&gone.id).await?;
    listing.installation_count = listing.installation_count.saturating_sub(1).max(0);
    tx.count_listing(&listing).await?;
    tx.audit(entry(Action::Delete, TABLE, gone.id.as_str()), Some(&gone), &serde_json::json!({})).await?;
    call.done(tx, &Deleted { deleted: true }).await
}

/// Show how you rated a listing
#[utoipa::path(get, path = "/v1/copilot/marketplace/{marketplace_id}/rating", tag = "marketplace",
    params(AtListing, StandpointHeaders),
    responses((status = 200, description = "Your rating, and all of them", body = Item<Rated>), Refusals))]
pub async fn get_marketplace_rating(call: Call<Member>, standpoint: InCopilot, Path(at): Path<AtListing>) -> Outcome {
    let mut tx = call.read().await?;
    let chain = own_chain(&mut tx, &call.context, &standpoint.0).await?;
    let listing = known(tx.listing(&at.marketplace_id).await?)?;
    let listing = visible(&call, &mut tx, listing, &chain).await?;
    let rating = own_rating(&call, &mut tx, &listing).await?;
    Ok(Answer::of(&Item { item: Rated::of(&listing, rating) }))
}

/// Rate a listing
///
/// Each user once; rated again, the rating changes.
#[utoipa::path(post, path = "/v1/copilot/marketplace/{marketplace_id}/rating", tag = "marketplace",
    params(AtListing, StandpointHeaders), request_body = NewRating,
    responses((status = 200, description = "Your rating, and all of them", body = Item<Rated>), Refusals))]
pub async fn rate_marketplace_listing(
    call: Call<Member>,
    standpoint: InCopilot,
    Path(at): Path<AtListing>,
    Body(new): Body<NewRating>,
) -> Outcome {
    let mut tx = call.begin().await?;
    let chain = own_chain(&mut tx, &call.context, &standpoint.0).await?;
    let mut listing = held(&call, &mut tx, &at, &chain).await?;
    let before = own_rating(&call, &mut tx, &listing).await?;
    tx.put_rating(call.context.actor(), &listing.id, new.rating).await?;
    listing.rate(before, Some(new.rating));
    tx.count_listing(&listing).await?;
    let (before, after) = (before.map(told), told(new.rating));
    tx.audit(entry(Action::Upsert, RATINGS, listing.id.as_str()), before.as_ref(), &after).await?;
    call.done(tx, &Item { item: Rated::of(&listing, Some(new.rating)) }).await
}

/// Take your rating of a listing back
#[utoipa::path(delete, path = "/v1/copilot/marketplace/{marketplace_id}/rating", tag = "marketplace",
    params(AtListing, StandpointHeaders),
    responses((status = 200, description = "Whether there was one", body = Deleted), Refusals))]
pub async fn delete_marketplace_rating(
    call: Call<Member>,
    standpoint: InCopilot,
    Path(at): Path<AtListing>,
) -> Outcome {
    let mut tx = call.begin().await?;
    let chain = own_chain(&mut tx, &call.context, &standpoint.0).await?;
    let mut listing = known(tx.hold_listing(&at.marketplace_id).await?)?;
    let Some(before) = own_rating(&call, &mut tx, &listing).await? else {
        visible(&call, &mut tx, listing, &chain).await?;
        return call.done(tx, &Deleted { deleted: false }).await;
    };
    tx.delete_rating(call.context.actor(), &listing.id).await?;
    listing.rate(Some(before), None);
    tx.count_listing(&listing).await?;
    let gone = told(before);
    tx.audit(entry(Action::Delete, RATINGS, listing.id.as_str()), Some(&gone), &serde_json::json!({})).await?;
    call.done(tx, &Deleted { deleted: true }).await
}

fn told(rating: Rating) -> serde_json::Value {
    serde_json::json!({ "rating": rating })
}

async fn own_rating(call: &Call<Member>, tx: &mut Tx<Tenant>, listing: &Listing) -> Result<Option<Rating>, Halt> {
    let found = tx.ratings_by(call.context.actor(), std::slice::from_ref(&listing.id)).await?;
    Ok(found.into_iter().next().map(|(_, rating)| rating))
}
