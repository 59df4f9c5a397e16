//! The marketplace: listings, whom they are shown to, where they are installed, and how
//! they are rated. Whoever changes a listing or its counters holds it first.

use super::changes::ChangeKind;
use super::page::{Page, Slice};
use super::{Result, Tx, columns, from_columns, list, on, push_in, push_scopes, remove, run};
use crate::context::Tenant;
use crate::id::Id;
use crate::model::marketplace::{EntityType, Installation, Listing, ListingGrant, Visibility};
use crate::model::scope::Scope;

mod installs;

columns::stored_as_name!(EntityType, Visibility);

from_columns! {
    Listing {
        id, account_id, entity_type, entity_id, title, description, visibility, is_published, is_featured, is_verified,
        pricing_model, version, author, installation_count, rating_avg, rating_count, rating_total, created_by,
        created_at, updated_at, revision,
    }
    ListingGrant { id, account_id, marketplace_id, scope_type, scope_id, created_by, created_at, updated_at }
    Installation { id, account_id, marketplace_id, scope_type, scope_id, created_by, created_at }
}

/// Which listings are wanted.
#[derive(Debug, Clone, Default)]
pub struct ListingFilter {
    /// Only what is published.
    pub published_only: bool,
    /// Only titles that hold this text, whatever its case.
    pub title: Option<String>,
    /// Only this kind.
    pub entity_type: Option<EntityType>,
    /// Only what somebody sees who stands in one of these scopes.
    pub seen_from: Option<Vec<Scope>>,
}

impl ListingFilter {
    /// The pattern of a search for the title.
    fn pattern(&self) -> Option<String> {
        let folded = self.title.as_ref()?.to_lowercase();
        let mut pattern = String::from("%");
        for letter in folded.chars() {
            if matches!(letter, '%' | '_' | '\\') {
                pattern.push('\\');
            }
            pattern.push(letter);
        }
        pattern.push('%');
        Some(pattern)
    }
}

/// The conditions of a filter, on `l`.
macro_rules! push_filter {
    ($q:expr, $account:expr, $filter:expr) => {{
        $q.push_bind($account.clone());
        if $filter.published_only {
            $q.push(" AND l.is_published");
        }
        if let Some(pattern) = $filter.pattern() {
            $q.push(" AND l.title_folded LIKE ").push_bind(pattern).push(r" ESCAPE '\'");
        }
        if let Some(kind) = $filter.entity_type {
            $q.push(" AND l.entity_type = ").push_bind(kind);
        }
        if let Some(scopes) = &$filter.seen_from {
            $q.push(
                r#" AND (l.visibility = 'global' OR l.id IN
                   (SELECT marketplace_id FROM "Alchemi_CopilotMarketplaceGrantTable" WHERE account_id = "#,
            );
            $q.push_bind($account.clone());
            push_scopes!($q, scopes);
            $q.push("))");
        }
    }};
}

impl Tx<Tenant> {
    /// Whether the account has such an agent or connection, which then stays until the end
    /// of the transaction.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn hold_entity(&mut self, kind: EntityType, id: &str) -> Result<bool> {
        let sql = match kind {
            EntityType::Agent => {
                r#"UPDATE "Alchemi_CopilotAgentTable" SET version = version WHERE account_id = $1 AND id = $2"#
            }
            EntityType::Connection => {
                r#"UPDATE "Alchemi_CopilotConnectionTable" SET version = version WHERE account_id = $1 AND id = $2"#
            }
        };
        let account = self.account.clone();
        Ok(run!(self, sql, &account, id)? > 0)
    }

    /// Listings that match, newest first, and how many there are on all pages.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn listings(&mut self, filter: &ListingFilter, slice: &Slice) -> Result<(Page<Listing>, i64)> {
        let account = self.account.clone();
        let (at, id) = slice.before();
        let rows: Vec<Listing> = on!(self, |c| {
            let mut q = sqlx::QueryBuilder::new(
                r#"SELECT l.*, COALESCE(l.agent_id, l.connection_id) AS entity_id
                   FROM "Alchemi_CopilotMarketplaceTable" l WHERE l.account_id = "#,
            );
            push_filter!(q, account, filter);
            q.push(" AND (l.created_at, l.id) < (").push_bind(at).push(", ").push_bind(&id).push(")");
            q.push(" ORDER BY l.created_at DESC, l.id DESC LIMIT ").push_bind(slice.fetch());
            q.push(" OFFSET ").push_bind(slice.skip()).build_query_as().fetch_all(c).await
        })?;
        let total: i64 = on!(self, |c| {
            let mut q = sqlx::QueryBuilder::new(
                r#"SELECT CAST(COUNT(*) AS BIGINT) FROM "Alchemi_CopilotMarketplaceTable" l WHERE l.account_id = "#,
            );
            push_filter!(q, account, filter);
            q.build_query_scalar().fetch_one(c).await
        })?;
        Ok((slice.page(rows, |l| (l.created_at, l.id.as_str())), total))
    }

    /// One listing.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn listing(&mut self, id: &Id<Listing>) -> Result<Option<Listing>> {
        let account = self.account.clone();
        on!(self, |c| sqlx::query_as(
            r#"SELECT l.*, COALESCE(l.agent_id, l.connection_id) AS entity_id
               FROM "Alchemi_CopilotMarketplaceTable" l WHERE l.account_id = $1 AND l.id = $2"#
        )
        .bind(&account)
        .bind(id)
        .fetch_optional(c)
        .await)
    }

    /// A listing that is about to be changed, kept from everybody else until the end of the
    /// transaction.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn hold_listing(&mut self, id: &Id<Listing>) -> Result<Option<Listing>> {
        let account = self.account.clone();
        on!(self, |c| sqlx::query_as(
            r#"UPDATE "Alchemi_CopilotMarketplaceTable" SET revision = revision WHERE account_id = $1 AND id = $2
               RETURNING *, COALESCE(agent_id, connection_id) AS entity_id"#
        )
        .bind(&account)
        .bind(id)
        .fetch_optional(c)
        .await)
    }

    /// The listing of an agent or a connection, held as by [`Tx::hold_listing`].
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn hold_listing_of(&mut self, kind: EntityType, entity: &str) -> Result<Option<Listing>> {
        let account = self.account.clone();
        on!(self, |c| {
            sqlx::query_as(
                r#"UPDATE "Alchemi_CopilotMarketplaceTable" SET revision = revision
               WHERE account_id = $1 AND entity_type = $2 AND COALESCE(agent_id, connection_id) = $3
               RETURNING *, COALESCE(agent_id, connection_id) AS entity_id"#,
            )
            .bind(&account)
            .bind(kind)
            .bind(entity)
            .fetch_optional(c)
            .await
        })
    }

    /// Makes a listing.
    ///
    /// # Errors
    /// [`StoreError::Unique`](super::StoreError::Unique) when the agent or the connection is listed already.
    pub async fn insert_listing(&mut self, listing: &Listing) -> Result<()> {
        let account = self.account.clone();
        let of = |kind| (listing.entity_type == kind).then_some(listing.entity_id.as_str());
        let (agent, connection) = (of(EntityType::Agent), of(EntityType::Connection));
        self.changed(ChangeKind::Marketplace);
        on!(self, |c| {
            sqlx::query(
            r#"INSERT INTO "Alchemi_CopilotMarketplaceTable" (account_id, id, entity_type, agent_id, connection_id, title,
               title_folded, description, visibility, is_published, is_featured, is_verified, pricing_model, version,
               author, installation_count, rating_avg, rating_count, rating_total, created_by, created_at, updated_at)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22)"#
        )
        .bind(&account)
        .bind(&listing.id)
        .bind(listing.entity_type)
        .bind(agent)
        .bind(connection)
        .bind(&listing.title)
        .bind(listing.title.to_lowercase())
        .bind(&listing.description)
        .bind(listing.visibility)
        .bind(listing.is_published)
        .bind(listing.is_featured)
        .bind(listing.is_verified)
        .bind(&listing.pricing_model)
        .bind(&listing.version)
        .bind(&listing.author)
        .bind(listing.installation_count)
        .bind(listing.rating_avg)
        .bind(listing.rating_count)
        .bind(listing.rating_total)
        .bind(&listing.created_by)
        .bind(listing.created_at)
        .bind(listing.updated_at)
        .execute(c)
        .await
        .map(drop)
        })
    }

    /// Writes a listing that was held: a change of an admin, with a new revision.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn update_listing(&mut self, listing: &Listing) -> Result<Listing> {
        let (account, now) = (self.account.clone(), self.now);
        self.changed(ChangeKind::Marketplace);
        let kept: Listing = on!(self, |c| {
            sqlx::query_as(
            r#"UPDATE "Alchemi_CopilotMarketplaceTable" SET title = $3, title_folded = $4, description = $5,
               visibility = $6, is_published = $7, is_featured = $8, is_verified = $9, pricing_model = $10, version = $11,
               author = $12, updated_at = $13, revision = revision + 1 WHERE account_id = $1 AND id = $2
               RETURNING *, COALESCE(agent_id, connection_id) AS entity_id"#
        )
        .bind(&account)
        .bind(&listing.id)
        .bind(&listing.title)
        .bind(listing.title.to_lowercase())
        .bind(&listing.description)
        .bind(listing.visibility)
        .bind(listing.is_published)
        .bind(listing.is_featured)
        .bind(listing.is_verified)
        .bind(&listing.pricing_model)
        .bind(&listing.version)
        .bind(&listing.author)
        .bind(now)
        .fetch_one(c)
        .await
        })?;
        self.count_listing(listing).await?;
        Ok(Listing {
            installation_count: listing.installation_count,
            rating_avg: listing.rating_avg,
            rating_count: listing.rating_count,
            rating_total: listing.rating_total,
            ..kept
        })
    }

    /// Writes the counters of a listing that was held.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn count_listing(&mut self, listing: &Listing) -> Result<()> {
        let account = self.account.clone();
        run!(
            self,
            r#"UPDATE "Alchemi_CopilotMarketplaceTable" SET installation_count = $3, rating_avg = $4, rating_count = $5,
               rating_total = $6 WHERE account_id = $1 AND id = $2"#,
            &account,
            &listing.id,
            listing.installation_count,
            listing.rating_avg,
            listing.rating_count,
            listing.rating_total
        )?;
        self.changed(ChangeKind::Marketplace);
        Ok(())
    }

    /// Removes a listing with its grants, installations and ratings.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn delete_listing(&mut self, id: &Id<Listing>) -> Result<bool> {
        let gone = remove!(self, "Alchemi_CopilotMarketplaceTable", id = id)?;
        self.changed(ChangeKind::Marketplace);
        Ok(gone)
    }
}

/// Whom listings are shown to.
impl Tx<Tenant> {
    /// The grants of a listing, newest first.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn listing_grants(&mut self, listing: &Id<Listing>, slice: &Slice) -> Result<Page<ListingGrant>> {
        list!(self, slice, ListingGrant in "Alchemi_CopilotMarketplaceGrantTable", marketplace_id = listing)
    }

    /// Every grant of some listings, oldest first.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn grants_of_listings(&mut self, listings: &[Id<Listing>]) -> Result<Vec<ListingGrant>> {
        let account = self.account.clone();
        on!(self, |c| {
            let mut q =
                sqlx::QueryBuilder::new(r#"SELECT * FROM "Alchemi_CopilotMarketplaceGrantTable" WHERE account_id = "#);
            q.push_bind(&account);
            push_in!(q, "marketplace_id", listings);
            q.push(" ORDER BY created_at, id").build_query_as().fetch_all(c).await
        })
    }

    /// Makes a grant, or notes that it was made again.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn put_listing_grant(&mut self, grant: &ListingGrant) -> Result<ListingGrant> {
        let (account, now) = (self.account.clone(), self.now);
        self.changed(ChangeKind::Marketplace);
        on!(self, |c| {
            sqlx::query_as(
            r#"INSERT INTO "Alchemi_CopilotMarketplaceGrantTable" (account_id, id, marketplace_id, scope_type, scope_id,
               created_by, created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $7)
               ON CONFLICT (account_id, marketplace_id, scope_type, scope_id)
               DO UPDATE SET updated_at = excluded.updated_at RETURNING *"#
        )
        .bind(&account)
        .bind(&grant.id)
        .bind(&grant.marketplace_id)
        .bind(grant.scope_type)
        .bind(&grant.scope_id)
        .bind(&grant.created_by)
        .bind(now)
        .fetch_one(c)
        .await
        })
    }

    /// Removes the grant of a listing to `scope`, or all of them; gives those that were there.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn delete_listing_grants(
        &mut self,
        listing: &Id<Listing>,
        scope: Option<&Scope>,
    ) -> Result<Vec<ListingGrant>> {
        let account = self.account.clone();
        self.changed(ChangeKind::Marketplace);
        on!(self, |c| {
            let mut q =
                sqlx::QueryBuilder::new(r#"DELETE FROM "Alchemi_CopilotMarketplaceGrantTable" WHERE account_id = "#);
            q.push_bind(&account).push(" AND marketplace_id = ").push_bind(listing);
            if let Some(scope) = scope {
                q.push(" AND scope_type = ").push_bind(scope.scope_type);
                q.push(" AND scope_id = ").push_bind(&scope.scope_id);
            }
            q.push(" RETURNING *").build_query_as().fetch_all(c).await
        })
    }
}
