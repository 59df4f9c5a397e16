//! What users see of the marketplace.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{Counted, entity_type, granted_to};
use crate::clock::Timestamp;
use crate::context::{Context, Domain, Tenant};
use crate::id::Id;
use crate::model::accounts::Account;
use crate::model::marketplace::{EntityType, Listing, Rating, Sight, Stars};
use crate::model::scope::{Scope, ScopeType};
use crate::store::Tx;
use crate::store::marketplace::ListingFilter;
use crate::store::page::Slice;
use crate::v1::answer::{Answer, Halt, Outcome, Refusals};
use crate::v1::call::{Call, Member};
use crate::v1::directory::{ChainQuery, Standpoint, StandpointHeaders};
use crate::v1::input::{PageParams, Paging, Query};

/// Which listings are looked for.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Search {
    /// Only titles that hold this text, whatever its case.
    title: Option<String>,
    /// Only `agent` or only `connection`.
    #[param(value_type = Option<EntityType>, inline)]
    entity_type: Option<String>,
}

/// A listing as users see it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct SeenListing {
    /// Its id.
    id: Id<Listing>,
    /// The account; shown to admins.
    #[serde(skip_serializing_if = "Option::is_none")]
    account_id: Option<Id<Account>>,
    /// What it is about.
    entity_type: EntityType,
    /// Which one.
    #[schema(example = "019a3c5e-7d10-7c3a-9b1e-2f6d8a4c0b11")]
    entity_id: String,
    /// What it is called here.
    #[schema(example = "Contract reader")]
    title: String,
    /// What it is for.
    description: Option<String>,
    /// Whether users see it.
    is_published: bool,
    /// Whether it is put forward.
    is_featured: bool,
    /// Whether an admin vouches for it.
    is_verified: bool,
    /// How it is paid for, in the account's own words.
    #[schema(example = "free")]
    pricing_model: String,
    /// The version of what is listed.
    #[schema(example = "1.0.0")]
    version: String,
    /// Who made it.
    author: Option<String>,
    /// How many scopes have it installed.
    installation_count: i64,
    /// The average of its ratings, 0 to 5; 0 while there is none.
    #[schema(value_type = f64, example = 4.5)]
    rating_avg: Stars,
    /// How many ratings it has.
    rating_count: i64,
    /// Who listed it; shown to admins.
    #[serde(skip_serializing_if = "Option::is_none")]
    created_by: Option<String>,
    /// When it was listed.
    created_at: Timestamp,
    /// When an admin last changed it.
    updated_at: Timestamp,
    /// Why it is seen.
    visibility: Sight,
}

impl SeenListing {
    /// `to_admin`: with the account, and who listed it.
    fn of(listing: Listing, sight: Sight, to_admin: bool) -> Self {
        Self {
            id: listing.id,
            account_id: to_admin.then_some(listing.account_id),
            entity_type: listing.entity_type,
            entity_id: listing.entity_id,
            title: listing.title,
            description: listing.description,
            is_published: listing.is_published,
            is_featured: listing.is_featured,
            is_verified: listing.is_verified,
            pricing_model: listing.pricing_model,
            version: listing.version,
            author: listing.author,
            installation_count: listing.installation_count,
            rating_avg: listing.rating_avg,
            rating_count: listing.rating_count,
            created_by: listing.created_by.filter(|_| to_admin),
            created_at: listing.created_at,
            updated_at: listing.updated_at,
            visibility: sight,
        }
    }
}

/// A listing as the caller sees it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct MyListing {
    #[serde(flatten)]
    seen: SeenListing,
    /// The scopes of the caller's chain that have it installed, the nearest first.
    installed_in: Vec<Scope>,
    /// How the caller has rated it.
    #[schema(value_type = Option<i64>, minimum = 1, maximum = 5, example = 5)]
    my_rating: Option<Rating>,
}

/// The scopes of the caller in the copilot domain, the nearest first.
pub(super) async fn own_chain(
    tx: &mut Tx<Tenant>,
    caller: &Context,
    standpoint: &Standpoint,
) -> Result<Vec<Scope>, Halt> {
    Ok(standpoint.place(tx, caller).await?.scopes(tx.account()))
}

/// Whether the caller may see everything of the marketplace.
pub(super) fn is_admin(caller: &Context) -> bool {
    caller.domain_admin(Domain::Copilot).is_ok()
}

/// The published listings that are seen from `chain`.
async fn seen(
    tx: &mut Tx<Tenant>,
    search: Search,
    chain: &[Scope],
    slice: &Slice,
    to_admin: bool,
) -> Result<Counted<SeenListing>, Halt> {
    let granted = chain.iter().filter(|scope| scope.scope_type != ScopeType::Account).cloned().collect();
    let filter = ListingFilter {
        published_only: true,
        entity_type: entity_type(search.entity_type.as_deref())?,
        title: search.title,
        seen_from: Some(granted),
    };
    let (page, total) = tx.listings(&filter, slice).await?;
    let mut grants = granted_to(tx, page.items.iter()).await?;
    let Counted { items, total, next_cursor } = Counted::of(page, total);
    let items = items.into_iter().filter_map(|listing| {
        let grants = grants.remove(&listing.id).unwrap_or_default();
        let sight = Sight::of(listing.visibility, &grants, chain)?;
        Some(SeenListing::of(listing, sight, to_admin))
    });
    Ok(Counted { items: items.collect(), total, next_cursor })
}

/// Look through the marketplace
///
/// Published listings that are for everybody, or granted to a scope of the caller's own
/// chain; an admin may look from any other chain.
#[utoipa::path(get, path = "/v1/copilot/marketplace/discover", tag = "marketplace",
    params(Search, ChainQuery, PageParams, StandpointHeaders),
    responses((status = 200, description = "A page of listings, newest first", body = Counted<SeenListing>), Refusals))]
pub async fn discover_marketplace(
    call: Call<Member>,
    standpoint: InCopilot,
    Query(search): Query<Search>,
    Query(from): Query<ChainQuery>,
    Paging(slice): Paging<100>,
) -> Outcome {
    if from.is_named() {
        call.context.domain_admin(Domain::Copilot)?;
    }
    let mut tx = call.read().await?;
    let chain = if from.is_named() {
        from.scopes(&mut tx, Domain::Copilot).await?
    } else {
        own_chain(&mut tx, &call.context, &standpoint.0).await?
    };
    Ok(Answer::of(&seen(&mut tx, search, &chain, &slice, is_admin(&call.context)).await?))
}

/// List what you see of the marketplace
///
/// As `discover`, with what is installed for you and how you rated it.
#[utoipa::path(get, path = "/v1/me/marketplace", tag = "self-service", params(Search, PageParams, StandpointHeaders),
    responses((status = 200, description = "A page of listings, newest first", body = Counted<MyListing>), Refusals))]
pub async fn list_my_marketplace(
    call: Call<Member>,
    standpoint: InCopilot,
    Query(search): Query<Search>,
    Paging(slice): Paging<100>,
) -> Outcome {
    let mut tx = call.read().await?;
    let chain = own_chain(&mut tx, &call.context, &standpoint.0).await?;
    let Counted { items, total, next_cursor } = seen(&mut tx, search, &chain, &slice, false).await?;
    let ids: Vec<_> = items.iter().map(|item| item.id.clone()).collect();
    let installed = tx.installed_in(&ids, &chain).await?;
    let ratings: HashMap<_, _> = tx.ratings_by(call.context.actor(), &ids).await?.into_iter().collect();
    let items = items.into_iter().map(|seen| {
        let id = &seen.id;
        let has = |scope: &&Scope| {
            installed
                .iter()
                .any(|i| i.marketplace_id == *id && i.scope_type == scope.scope_type && i.scope_id == scope.scope_id)
        };
        let installed_in = chain.iter().filter(has).cloned().collect();
        MyListing { my_rating: ratings.get(id).copied(), installed_in, seen }
    });
    Ok(Answer::of(&Counted { items: items.collect(), total, next_cursor }))
}

/// Where the caller stands in the copilot domain, the only one that has a marketplace.
#[derive(Debug)]
pub struct InCopilot(pub Standpoint);

impl axum::extract::FromRequestParts<crate::v1::App> for InCopilot {
    type Rejection = Halt;

    async fn from_request_parts(parts: &mut http::request::Parts, _: &crate::v1::App) -> Result<Self, Halt> {
        Ok(Self(Standpoint::within(Domain::Copilot, parts)?))
    }
}
