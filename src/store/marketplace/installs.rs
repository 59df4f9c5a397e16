//! Installations and ratings. Whoever writes one holds its listing.

use crate::context::{Actor, Domain, Tenant};
use crate::id::Id;
use crate::model::marketplace::{Installation, Listing, Rating};
use crate::model::scope::{Scope, ScopeType};
use crate::store::changes::ChangeKind;
use crate::store::page::{Page, Slice};
use crate::store::{Result, StoreError, Tx, list, on, push_in, push_scopes, run};

impl Tx<Tenant> {
    /// Where a listing is installed, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn installations(&mut self, listing: &Id<Listing>, slice: &Slice) -> Result<Page<Installation>> {
        list!(self, slice, Installation in "Alchemi_CopilotMarketplaceInstallTable", marketplace_id = listing)
    }

    /// Where one of `scopes` has some of the listings installed.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn installed_in(&mut self, listings: &[Id<Listing>], scopes: &[Scope]) -> Result<Vec<Installation>> {
        let account = self.account.clone();
        on!(self, |c| {
            let mut q = sqlx::QueryBuilder::new(
                r#"SELECT * FROM "Alchemi_CopilotMarketplaceInstallTable" WHERE account_id = "#,
            );
            q.push_bind(&account);
            push_in!(q, "marketplace_id", listings);
            push_scopes!(q, scopes);
            q.build_query_as().fetch_all(c).await
        })
    }

    /// The installation in exactly this scope.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn installation(&mut self, listing: &Id<Listing>, scope: &Scope) -> Result<Option<Installation>> {
        let found = self.installed_in(std::slice::from_ref(listing), std::slice::from_ref(scope)).await?;
        Ok(found.into_iter().next())
    }

    /// Notes an installation.
    ///
    /// # Errors
    /// [`StoreError::Unique`] when the scope has it.
    pub async fn insert_installation(&mut self, new: &Installation) -> Result<()> {
        let account = self.account.clone();
        run!(
            self,
            r#"INSERT INTO "Alchemi_CopilotMarketplaceInstallTable" (account_id, id, marketplace_id, scope_type, scope_id,
               created_by, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7)"#,
            &account,
            &new.id,
            &new.marketplace_id,
            new.scope_type,
            &new.scope_id,
            &new.created_by,
            new.created_at
        )?;
        Ok(())
    }

    /// Removes an installation.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn delete_installation(&mut self, id: &Id<Installation>) -> Result<()> {
        let account = self.account.clone();
        run!(
            self,
            r#"DELETE FROM "Alchemi_CopilotMarketplaceInstallTable" WHERE account_id = $1 AND id = $2"#,
            &account,
            id
        )?;
        Ok(())
    }

    /// Uninstalls what a row of the copilot's directory, or the teams of an org, have
    /// installed, and counts it.
    pub(in crate::store) async fn uninstall_from(
        &mut self,
        kind: ScopeType,
        id: &str,
    ) -> Result<Vec<Id<Installation>>> {
        let account = self.account.clone();
        let gone: Vec<(Id<Installation>, Id<Listing>)> = on!(self, |c| {
            sqlx::query_as(
            r#"DELETE FROM "Alchemi_CopilotMarketplaceInstallTable" WHERE account_id = $1 AND ((scope_type = $2 AND scope_id = $3)
               OR (CAST($2 AS TEXT) = 'org' AND scope_type = 'team' AND scope_id IN
                 (SELECT id FROM "Alchemi_TeamTable" WHERE account_id = $1 AND domain = $4 AND org_id = $3)))
               RETURNING id, marketplace_id"#
        )
        .bind(&account)
        .bind(kind)
        .bind(id)
        .bind(Domain::Copilot)
        .fetch_all(c)
        .await
        })?;
        let mut listings: Vec<_> = gone.iter().map(|(_, listing)| listing.clone()).collect();
        // In one order, so that two removals cannot wait for each other in a circle.
        listings.sort();
        for listing in listings {
            run!(
                self,
                r#"UPDATE "Alchemi_CopilotMarketplaceTable" SET installation_count = installation_count - 1
                   WHERE account_id = $1 AND id = $2 AND installation_count > 0"#,
                &account,
                &listing
            )?;
        }
        if !gone.is_empty() {
            self.changed(ChangeKind::Marketplace);
        }
        Ok(gone.into_iter().map(|(installation, _)| installation).collect())
    }

    /// How somebody has rated some of the listings.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn ratings_by(&mut self, who: &Actor, listings: &[Id<Listing>]) -> Result<Vec<(Id<Listing>, Rating)>> {
        let account = self.account.clone();
        let rows: Vec<(Id<Listing>, i64)> = on!(self, |c| {
            let mut q = sqlx::QueryBuilder::new(
                r#"SELECT marketplace_id, rating FROM "Alchemi_CopilotMarketplaceRatingTable" WHERE account_id = "#,
            );
            q.push_bind(&account).push(" AND issuer = ").push_bind(&*who.issuer);
            q.push(" AND subject = ").push_bind(&*who.subject);
            push_in!(q, "marketplace_id", listings);
            q.build_query_as().fetch_all(c).await
        })?;
        rows.into_iter()
            .map(|(listing, stars)| {
                let reason = || format!("{stars} is no rating");
                let unreadable =
                    || StoreError::Unreadable { table: "Alchemi_CopilotMarketplaceRatingTable", reason: reason() };
                Ok((listing, Rating::from_i64(stars).ok_or_else(unreadable)?))
            })
            .collect()
    }

    /// Notes how somebody rates a listing now.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_rating(&mut self, who: &Actor, listing: &Id<Listing>, rating: Rating) -> Result<()> {
        let (account, now) = (self.account.clone(), self.now);
        run!(
            self,
            r#"INSERT INTO "Alchemi_CopilotMarketplaceRatingTable" (account_id, marketplace_id, issuer, subject, rating,
               created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $6)
               ON CONFLICT (account_id, marketplace_id, issuer, subject)
               DO UPDATE SET rating = excluded.rating, updated_at = excluded.updated_at"#,
            &account,
            listing,
            &*who.issuer,
            &*who.subject,
            rating.as_i64(),
            now
        )?;
        Ok(())
    }

    /// Takes a rating back.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn delete_rating(&mut self, who: &Actor, listing: &Id<Listing>) -> Result<()> {
        let account = self.account.clone();
        run!(
            self,
            r#"DELETE FROM "Alchemi_CopilotMarketplaceRatingTable"
               WHERE account_id = $1 AND marketplace_id = $2 AND issuer = $3 AND subject = $4"#,
            &account,
            listing,
            &*who.issuer,
            &*who.subject
        )?;
        Ok(())
    }
}
