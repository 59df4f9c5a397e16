//! Teams and who is in them.

use super::Uprooted;
use crate::context::{Domain, Tenant};
use crate::id::Id;
use crate::model::directory::{Membership, Org, Team, User};
use crate::model::scope::ScopeType;
use crate::store::changes::ChangeKind;
use crate::store::page::{Page, Slice};
use crate::store::{Result, Tx, find, hold, list, on, remove, run};

impl Tx<Tenant> {
    /// Teams of `domain`, or of one org of it, newest first.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn teams(&mut self, domain: Domain, org: Option<&Id<Org>>, slice: &Slice) -> Result<Page<Team>> {
        list!(self, slice, Team in "Alchemi_TeamTable", domain = domain; org_id = org)
    }

    /// One team.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn team(&mut self, domain: Domain, id: &Id<Team>) -> Result<Option<Team>> {
        find!(self, "Alchemi_TeamTable", domain = domain, id = id)
    }

    /// A team that is about to be changed, kept from everybody else until the end of
    /// the transaction.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn hold_team(&mut self, domain: Domain, id: &Id<Team>) -> Result<Option<Team>> {
        hold!(self, "Alchemi_TeamTable", domain = domain, id = id)
    }

    /// Makes a team.
    ///
    /// # Errors
    /// [`StoreError::Unique`](crate::store::StoreError::Unique) on `name`, [`StoreError::ForeignKey`](crate::store::StoreError::ForeignKey) without its org.
    pub async fn insert_team(&mut self, team: &Team) -> Result<()> {
        let account = self.account.clone();
        run!(
            self,
            r#"INSERT INTO "Alchemi_TeamTable" (account_id, domain, id, org_id, name, description, created_by, created_at,
               updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8)"#,
            &account,
            team.domain,
            &team.id,
            &team.org_id,
            &team.name,
            &team.description,
            &team.created_by,
            team.created_at
        )?;
        self.changed(ChangeKind::Directory);
        Ok(())
    }

    /// Changes a team's name and description; gives the new row.
    ///
    /// # Errors
    /// [`StoreError::Unique`](crate::store::StoreError::Unique) on `name`.
    pub async fn update_team(&mut self, team: &Team) -> Result<Team> {
        let (account, now) = (self.account.clone(), self.now);
        self.changed(ChangeKind::Directory);
        on!(self, |c| sqlx::query_as(
            r#"UPDATE "Alchemi_TeamTable" SET name = $4, description = $5, updated_at = $6, version = version + 1
               WHERE account_id = $1 AND domain = $2 AND id = $3 RETURNING *"#
        )
        .bind(&account)
        .bind(team.domain)
        .bind(&team.id)
        .bind(&team.name)
        .bind(&team.description)
        .bind(now)
        .fetch_one(c)
        .await)
    }

    /// Removes a team and everything that hangs on it.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn delete_team(&mut self, domain: Domain, id: &Id<Team>) -> Result<Uprooted> {
        let uprooted = self.uproot(domain, ScopeType::Team, id.as_str()).await?;
        remove!(self, "Alchemi_TeamTable", domain = domain, id = id)?;
        Ok(uprooted)
    }

    /// Members of a team, newest first.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn members(&mut self, domain: Domain, team: &Id<Team>, slice: &Slice) -> Result<Page<Membership>> {
        let account = self.account.clone();
        let (at, id) = slice.before();
        let rows: Vec<Membership> = on!(self, |c| sqlx::query_as(
            r#"SELECT * FROM "Alchemi_TeamMembershipTable" WHERE account_id = $1 AND domain = $2 AND team_id = $3
               AND (created_at, user_id) < ($4, $5) ORDER BY created_at DESC, user_id DESC LIMIT $6 OFFSET $7"#
        )
        .bind(&account)
        .bind(domain)
        .bind(team)
        .bind(at)
        .bind(&id)
        .bind(slice.fetch())
        .bind(slice.skip())
        .fetch_all(c)
        .await)?;
        Ok(slice.page(rows, |m| (m.created_at, m.user_id.as_str())))
    }

    /// One membership.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn member(&mut self, domain: Domain, team: &Id<Team>, user: &Id<User>) -> Result<Option<Membership>> {
        find!(self, "Alchemi_TeamMembershipTable", domain = domain, team_id = team, user_id = user)
    }

    /// Makes a user a member of a team, or changes their role; one who is a member
    /// already keeps their role when `role` is none.
    ///
    /// # Errors
    /// [`StoreError::ForeignKey`](crate::store::StoreError::ForeignKey) without the team or the user.
    pub async fn put_member(
        &mut self,
        domain: Domain,
        team: &Id<Team>,
        user: &Id<User>,
        role: Option<&str>,
    ) -> Result<Membership> {
        let (account, now) = (self.account.clone(), self.now);
        let row = on!(self, |c| sqlx::query_as(
            r#"INSERT INTO "Alchemi_TeamMembershipTable" (account_id, domain, team_id, user_id, role, created_at)
               VALUES ($1, $2, $3, $4, COALESCE(CAST($5 AS TEXT), 'member'), $6)
               ON CONFLICT (account_id, domain, team_id, user_id)
               DO UPDATE SET role = COALESCE(CAST($5 AS TEXT), "Alchemi_TeamMembershipTable".role) RETURNING *"#
        )
        .bind(&account)
        .bind(domain)
        .bind(team)
        .bind(user)
        .bind(role)
        .bind(now)
        .fetch_one(c)
        .await)?;
        self.changed(ChangeKind::Directory);
        Ok(row)
    }

    /// Ends a membership.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn delete_member(&mut self, domain: Domain, team: &Id<Team>, user: &Id<User>) -> Result<bool> {
        let gone = remove!(self, "Alchemi_TeamMembershipTable", domain = domain, team_id = team, user_id = user)?;
        self.changed(ChangeKind::Directory);
        Ok(gone)
    }
}
