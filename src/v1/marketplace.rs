//! `/v1/copilot/marketplace`: agents and connections of the account, listed for its users.

use std::collections::{BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use super::answer::{Answer, Deleted, Halt, Item, Outcome, Refusals, or_404, taken};
use super::call::{Call, CopilotAdmin, IfMatch};
use super::directory::hold_scope;
use super::input::{Body, PageParams, Paging, Path, Query, require};
use super::trial::{Trial, Tried};
use crate::context::{Domain, Tenant};
use crate::id::Id;
use crate::model::audit::{Action, Label};
use crate::model::field::Field;
use crate::model::marketplace::{EntityType, GRANTED_TO, Listing, ListingGrant, Stars, Visibility};
use crate::model::scope::{MemberType, Scope, ScopeType};
use crate::model::text::{Description, Name};
use crate::problem::Problem;
use crate::store::Tx;
use crate::store::audit::Entry;
use crate::store::marketplace::ListingFilter;
use crate::store::page::Page;

pub mod discover;
pub mod grants;
pub mod installs;

/// How many scopes one call may grant a listing to.
const MAX_GRANTS: usize = 1_000;

/// The most that an admin may set a counter to.
const MAX_COUNT: i64 = 1_000_000_000;

const TABLE: &str = "Alchemi_CopilotMarketplaceTable";

/// A listing, or what is to be changed of one: what is not sent stays.
#[derive(Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "entity_type": "connection",
    "entity_id": "019a3c5e-7d10-7c3a-9b1e-2f6d8a4c0b11",
    "title": "Tickets",
    "description": "The help desk's tickets",
    "is_published": true,
    "version": "1.2.0"
}))]
pub struct ListingFields {
    /// `agent` or `connection`; for a new listing.
    #[serde(default)]
    #[schema(value_type = Option<EntityType>)]
    entity_type: Option<String>,
    /// Which one; for a new listing.
    #[serde(default)]
    entity_id: Option<String>,
    /// What it is called here; required in a new listing.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    title: Field<String>,
    /// What it is for.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    description: Field<Description>,
    /// Who may see it: unless said, everybody if it is granted to nobody.
    #[serde(default)]
    #[schema(value_type = Option<Visibility>)]
    visibility: Field<Visibility>,
    /// Whether users see it; true unless said.
    #[serde(default)]
    #[schema(value_type = Option<bool>)]
    is_published: Field<bool>,
    /// Whether it is put forward.
    #[serde(default)]
    #[schema(value_type = Option<bool>)]
    is_featured: Field<bool>,
    /// Whether an admin vouches for it.
    #[serde(default)]
    #[schema(value_type = Option<bool>)]
    is_verified: Field<bool>,
    /// How it is paid for; `free` unless said.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pricing_model: Field<Name>,
    /// The version of what is listed; `1.0.0` unless said.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    version: Field<Name>,
    /// Who made it.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    author: Field<Name>,
    /// Sets the counter of installations.
    #[serde(default)]
    #[schema(value_type = Option<i64>, minimum = 0)]
    installation_count: Field<i64>,
    /// Sets the average of the ratings.
    #[serde(default)]
    #[schema(value_type = Option<f64>, minimum = 0, maximum = 5)]
    rating_avg: Field<f64>,
    /// Sets the counter of ratings.
    #[serde(default)]
    #[schema(value_type = Option<i64>, minimum = 0)]
    rating_count: Field<i64>,
    /// Whom it is granted to, in place of whom it was; null keeps them.
    #[serde(default)]
    #[schema(max_items = 1000)]
    grants: Option<Vec<NewListingGrant>>,
}

/// Whom a listing is to be shown to.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewListingGrant {
    /// `org`, `team` or `user`.
    #[schema(value_type = MemberType, example = "team")]
    scope_type: String,
    /// The scope.
    #[serde(default)]
    scope_id: String,
}

/// The listing of the path.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Path)]
pub struct AtListing {
    /// The listing.
    #[param(value_type = String)]
    marketplace_id: Id<Listing>,
}

/// Which listings are wanted.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListingsQuery {
    /// Only what is published.
    #[serde(default)]
    published_only: bool,
    /// Only titles that hold this text, whatever its case.
    title: Option<String>,
    /// Only `agent` or only `connection`.
    #[param(value_type = Option<EntityType>, inline)]
    entity_type: Option<String>,
    /// Whether to show whom each is granted to.
    #[serde(default)]
    include_grants: bool,
}

/// Whether to publish.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Publication {
    /// False takes the listing out of the users' sight.
    #[serde(default = "yes")]
    #[param(required = false)]
    publish: bool,
}

fn yes() -> bool {
    true
}

/// A listing as admins see it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ShownListing {
    #[serde(flatten)]
    listing: Listing,
    /// Who may see it, once it is published.
    visibility: Visibility,
    /// Whom it is granted to, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    grants: Option<Vec<Scope>>,
}

/// `{"items": […], "total": …, "next_cursor": …}`
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Counted<T> {
    /// The page, newest first.
    items: Vec<T>,
    /// How many there are on all pages.
    total: i64,
    /// Where the next page starts: send it as `cursor`. `null` at the end.
    next_cursor: Option<String>,
}

impl<T> Counted<T> {
    fn of(page: Page<T>, total: i64) -> Self {
        Self { items: page.items, total, next_cursor: page.next.map(|cursor| cursor.encode()) }
    }
}

impl ShownListing {
    fn of(listing: Listing, grants: Option<Vec<Scope>>) -> Self {
        Self { visibility: listing.visibility, listing, grants }
    }
}

fn entry<'a>(action: Action, table: &'static str, id: &'a str) -> Entry<'a> {
    Entry { action, table, id, label: Label::Copilot }
}

/// 404 for a listing that there is not.
fn known<T>(found: Option<T>) -> Result<T, Problem> {
    or_404(found, "Marketplace listing not found")
}

fn scope_of(grant: &ListingGrant) -> Scope {
    Scope::new(grant.scope_type, grant.scope_id.clone())
}

/// Whom each of some listings is granted to.
async fn granted_to(
    tx: &mut Tx<Tenant>,
    listings: impl Iterator<Item = &Listing>,
) -> Result<HashMap<Id<Listing>, Vec<Scope>>, Halt> {
    let ids: Vec<_> = listings.map(|listing| listing.id.clone()).collect();
    let mut scopes: HashMap<_, Vec<_>> = HashMap::new();
    for grant in tx.grants_of_listings(&ids).await? {
        scopes.entry(grant.marketplace_id.clone()).or_default().push(scope_of(&grant));
    }
    Ok(scopes)
}

async fn grants_of(tx: &mut Tx<Tenant>, listing: &Listing) -> Result<Vec<Scope>, Halt> {
    Ok(granted_to(tx, std::iter::once(listing)).await?.remove(&listing.id).unwrap_or_default())
}

fn entity_type(text: Option<&str>) -> Result<Option<EntityType>, Problem> {
    text.map(EntityType::parse).transpose()
}

/// List the marketplace's listings, for admins
#[utoipa::path(get, path = "/v1/copilot/marketplace", tag = "marketplace", params(ListingsQuery, PageParams),
    responses((status = 200, description = "A page of listings, newest first", body = Counted<ShownListing>), Refusals))]
pub async fn list_marketplace(
    call: Call<CopilotAdmin>,
    Query(wanted): Query<ListingsQuery>,
    Paging(slice): Paging<100>,
) -> Outcome {
    let filter = ListingFilter {
        published_only: wanted.published_only,
        entity_type: entity_type(wanted.entity_type.as_deref())?,
        title: wanted.title,
        seen_from: None,
    };
    let mut tx = call.read().await?;
    let (page, total) = tx.listings(&filter, &slice).await?;
    let mut grants = if wanted.include_grants { Some(granted_to(&mut tx, page.items.iter()).await?) } else { None };
    let shown = page.map(|listing| {
        let grants = grants.as_mut().map(|all| all.remove(&listing.id).unwrap_or_default());
        ShownListing::of(listing, grants)
    });
    Ok(Answer::of(&Counted::of(shown, total)))
}

/// List an agent or a connection in the marketplace
///
/// Listed again, what is sent is changed; counters and grants stay unless they are sent.
/// A listing that is granted to nobody is for everybody, until it was granted once.
#[utoipa::path(post, path = "/v1/copilot/marketplace", tag = "marketplace", params(Trial), request_body = ListingFields,
    responses((status = 200, description = "The listing", body = Tried<Item<ShownListing>>), Refusals))]
pub async fn create_marketplace_listing(
    call: Call<CopilotAdmin>,
    Query(trial): Query<Trial>,
    Body(mut fields): Body<ListingFields>,
) -> Outcome {
    let (kind, entity) = fields.subject()?;
    let mut tx = call.begin_or_try(&trial).await?;
    let scopes = fields.held_scopes(&mut tx).await?;
    if !tx.hold_entity(kind, &entity).await? {
        let detail = if kind == EntityType::Agent { "Copilot agent not found" } else { "Connection not found" };
        return Err(Problem::not_found(detail).into());
    }
    let before = tx.hold_listing_of(kind, &entity).await?;
    let listing = match &before {
        Some(before) => before.clone(),
        None => Listing {
            id: tx.new_id(),
            account_id: tx.account().clone(),
            entity_type: kind,
            entity_id: entity,
            title: String::new(),
            description: None,
            visibility: Visibility::Global,
            is_published: true,
            is_featured: false,
            is_verified: false,
            pricing_model: "free".to_owned(),
            version: "1.0.0".to_owned(),
            author: None,
            installation_count: 0,
            rating_avg: Stars::default(),
            rating_count: 0,
            rating_total: Stars::default(),
            created_by: Some(tx.acting().actor.subject.to_string()),
            created_at: tx.now(),
            updated_at: tx.now(),
            revision: 1,
        },
    };
    let listing = fields.over(listing, scopes.as_deref())?;
    match before {
        Some(before) => change(&call, tx, before, listing, scopes).await,
        None => {
            tx.insert_listing(&listing).await.map_err(taken("MarketplaceTable", "It was listed at the same moment"))?;
            let scopes = scopes.unwrap_or_default();
            grants::replace(&mut tx, &listing.id, &scopes).await?;
            let revision = listing.revision;
            let shown = ShownListing::of(listing, Some(scopes));
            tx.audit(entry(Action::Create, TABLE, shown.listing.id.as_str()), None::<&()>, &shown).await?;
            call.done_tagged(tx, &Item { item: &shown }, revision).await
        }
    }
}

/// Writes a changed listing, with its event in the audit, and answers with it.
async fn change(
    call: &Call<CopilotAdmin>,
    mut tx: Tx<Tenant>,
    before: Listing,
    after: Listing,
    scopes: Option<Vec<Scope>>,
) -> Outcome {
    let former = grants_of(&mut tx, &before).await?;
    let listing = tx.update_listing(&after).await?;
    let grants = match scopes {
        Some(scopes) => {
            grants::replace(&mut tx, &listing.id, &scopes).await?;
            scopes
        }
        None => former.clone(),
    };
    let (before, after) = (ShownListing::of(before, Some(former)), ShownListing::of(listing, Some(grants)));
    tx.audit(entry(Action::Update, TABLE, after.listing.id.as_str()), Some(&before), &after).await?;
    let revision = after.listing.revision;
    call.done_tagged(tx, &Item { item: &after }, revision).await
}

/// Show a listing, for admins
#[utoipa::path(get, path = "/v1/copilot/marketplace/{marketplace_id}", tag = "marketplace", params(AtListing),
    responses((status = 200, description = "The listing", body = Item<ShownListing>), Refusals))]
pub async fn get_marketplace_listing(call: Call<CopilotAdmin>, Path(at): Path<AtListing>) -> Outcome {
    let mut tx = call.read().await?;
    let listing = known(tx.listing(&at.marketplace_id).await?)?;
    let grants = grants_of(&mut tx, &listing).await?;
    let revision = listing.revision;
    Ok(Answer::of(&Item { item: ShownListing::of(listing, Some(grants)) }).tagged(revision))
}

/// Change a listing
#[utoipa::path(patch, path = "/v1/copilot/marketplace/{marketplace_id}", tag = "marketplace",
    params(AtListing, Trial, IfMatch), request_body = ListingFields,
    responses((status = 200, description = "The changed listing", body = Tried<Item<ShownListing>>), Refusals))]
pub async fn update_marketplace_listing(
    call: Call<CopilotAdmin>,
    Path(at): Path<AtListing>,
    Query(trial): Query<Trial>,
    Body(mut fields): Body<ListingFields>,
) -> Outcome {
    let mut tx = call.begin_or_try(&trial).await?;
    let scopes = fields.held_scopes(&mut tx).await?;
    let before = known(tx.hold_listing(&at.marketplace_id).await?)?;
    call.expects(before.revision)?;
    let same = |sent: &Option<String>, is: &str| sent.as_ref().is_none_or(|sent| sent == is);
    require(same(&fields.entity_type, before.entity_type.as_str()), "/entity_type", "cannot be changed")?;
    require(same(&fields.entity_id, &before.entity_id), "/entity_id", "cannot be changed")?;
    let after = fields.over(before.clone(), scopes.as_deref())?;
    change(&call, tx, before, after, scopes).await
}

/// Publish a listing, or take it out of sight
#[utoipa::path(post, path = "/v1/copilot/marketplace/{marketplace_id}/publish", tag = "marketplace",
    params(AtListing, Publication, Trial, IfMatch),
    responses((status = 200, description = "The listing", body = Tried<Item<ShownListing>>), Refusals))]
pub async fn publish_marketplace_listing(
    call: Call<CopilotAdmin>,
    Path(at): Path<AtListing>,
    Query(publication): Query<Publication>,
    Query(trial): Query<Trial>,
) -> Outcome {
    let mut tx = call.begin_or_try(&trial).await?;
    let before = known(tx.hold_listing(&at.marketplace_id).await?)?;
    call.expects(before.revision)?;
    let listing = tx.update_listing(&Listing { is_published: publication.publish, ..before.clone() }).await?;
    let (before, after) = (ShownListing::of(before, None), ShownListing::of(listing, None));
    tx.audit(entry(Action::Update, TABLE, after.listing.id.as_str()), Some(&before), &after).await?;
    let revision = after.listing.revision;
    call.done_tagged(tx, &Item { item: &after }, revision).await
}

/// Remove a listing
///
/// With its grants, installations and ratings; what it is about stays.
#[utoipa::path(delete, path = "/v1/copilot/marketplace/{marketplace_id}", tag = "marketplace",
    params(AtListing, Trial, IfMatch),
    responses((status = 200, description = "Removed", body = Tried<Deleted>), Refusals))]
pub async fn delete_marketplace_listing(
    call: Call<CopilotAdmin>,
    Path(at): Path<AtListing>,
    Query(trial): Query<Trial>,
) -> Outcome {
    let mut tx = call.begin_or_try(&trial).await?;
    let listing = known(tx.hold_listing(&at.marketplace_id).await?)?;
    call.expects(listing.revision)?;
    let grants = grants_of(&mut tx, &listing).await?;
    let deleted = tx.delete_listing(&listing.id).await?;
    let gone = ShownListing::of(listing, Some(grants));
    tx.audit(entry(Action::Delete, TABLE, gone.listing.id.as_str()), Some(&gone), &serde_json::json!({})).await?;
    call.done(tx, &Deleted { deleted }).await
}

impl ListingFields {
    /// What a new listing is about.
    fn subject(&self) -> Result<(EntityType, String), Problem> {
        let given = |text: &Option<String>| text.as_deref().map(str::trim).filter(|t| !t.is_empty()).map(str::to_owned);
        let title = match &self.title {
            Field::Set(title) => given(&Some(title.clone())),
            Field::Keep | Field::Clear => None,
        };
        let (Some(kind), Some(entity), Some(_)) = (given(&self.entity_type), given(&self.entity_id), title) else {
            let detail = "entity_type, entity_id, and title are required";
            return Err(Problem::bad_request("field_required", detail));
        };
        Ok((EntityType::parse(&kind)?, entity))
    }

    /// Whom the listing is to be granted to, each once, in one order; the scopes stay until
    /// the end of the transaction.
    async fn held_scopes(&mut self, tx: &mut Tx<Tenant>) -> Result<Option<Vec<Scope>>, Halt> {
        let Some(grants) = self.grants.take() else { return Ok(None) };
        require(grants.len() <= MAX_GRANTS, "/grants", "must be at most 1000")?;
        let scopes = grants.iter().map(NewListingGrant::scope).collect::<Result<BTreeSet<_>, _>>()?;
        for scope in &scopes {
            hold_scope(tx, Domain::Copilot, scope).await?;
        }
        Ok(Some(scopes.into_iter().collect()))
    }

    fn over(self, old: Listing, scopes: Option<&[Scope]>) -> Result<Listing, Problem> {
        let text = |name: Field<Name>| name.map(Name::into_string);
        let title = self.title.over_required(old.title, "/title")?;
        let title: Name = title.parse().map_err(|error| Problem::invalid("/title", error))?;
        let granted = scopes.is_some_and(|scopes| !scopes.is_empty());
        let usual = if granted { Visibility::Granted } else { old.visibility };
        let counted = |count: i64, pointer| {
            require((0..=MAX_COUNT).contains(&count), pointer, "must be 0 to 1000000000").map(|()| count)
        };
        let installation_count =
            self.installation_count.over_required(old.installation_count, "/installation_count")?;
        let rated = !self.rating_avg.is_keep() || !self.rating_count.is_keep();
        let rating_avg = match self.rating_avg {
            Field::Set(stars) => Stars::try_from(stars).map_err(|error| Problem::invalid("/rating_avg", error))?,
            other => other.map(|_| old.rating_avg).over_required(old.rating_avg, "/rating_avg")?,
        };
        let rating_count =
            counted(self.rating_count.over_required(old.rating_count, "/rating_count")?, "/rating_count")?;
        Ok(Listing {
            title: title.into_string(),
            description: self.description.map(Description::into_string).over(old.description),
            visibility: self.visibility.over_required(usual, "/visibility")?,
            is_published: self.is_published.over_required(old.is_published, "/is_published")?,
            is_featured: self.is_featured.over_required(old.is_featured, "/is_featured")?,
            is_verified: self.is_verified.over_required(old.is_verified, "/is_verified")?,
            pricing_model: text(self.pricing_model).over_required(old.pricing_model, "/pricing_model")?,
            version: text(self.version).over_required(old.version, "/version")?,
            author: text(self.author).over(old.author),
            installation_count: counted(installation_count, "/installation_count")?,
            rating_avg,
            rating_count,
            rating_total: if rated { rating_avg.times(rating_count) } else { old.rating_total },
            ..old
        })
    }
}

impl NewListingGrant {
    fn scope(&self) -> Result<Scope, Problem> {
        let kind = ScopeType::parse(&self.scope_type, GRANTED_TO)?;
        let id = self.scope_id.trim();
        if id.is_empty() {
            return Err(Problem::bad_request("field_required", "scope_id is required for marketplace grants"));
        }
        Ok(Scope::new(kind, id))
    }
}
