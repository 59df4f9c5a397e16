//! The directory of both product domains: one table for each kind of row, with the
//! domain in its key.

use super::changes::ChangeKind;
use super::page::{Page, Slice};
use super::{Result, Tx, from_columns, on, run};
use crate::context::{Domain, Tenant};
use crate::id::Id;
use crate::model::directory::{Membership, Org, Team, User};
use crate::model::scope::ScopeType;

from_columns! {
    Org { id, account_id, domain, name, description, is_default_global, created_by, created_at, updated_at, version }
    Team { id, account_id, domain, org_id, name, description, created_by, created_at, updated_at, version }
    User {
        id, account_id, domain, identity_user_id, email, display_name, status,
        created_by, created_at, updated_at, version,
    }
    Membership { team_id, user_id, role, created_at }
}

/// Where a user belongs: one row for each team.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The team.
    pub team_id: Id<Team>,
    /// The team's org.
    pub org_id: Id<Org>,
}

from_columns! { Place { team_id, org_id } }

impl Tx<Tenant> {
    /// Orgs of `domain`, newest first.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn orgs(&mut self, domain: Domain, slice: &Slice) -> Result<Page<Org>> {
        let account = self.account.clone();
        let (at, id) = slice.before();
        let rows: Vec<Org> = on!(self, |c| {
            sqlx::query_as(
            r#"SELECT * FROM "Alchemi_OrgTable" WHERE account_id = $1 AND domain = $2 AND (created_at, id) < ($3, $4)
               ORDER BY created_at DESC, id DESC LIMIT $5 OFFSET $6"#
        )
        .bind(&account)
        .bind(domain)
        .bind(at)
        .bind(&id)
        .bind(slice.fetch())
        .bind(slice.skip())
        .fetch_all(c)
        .await
        })?;
        Ok(slice.page(rows, |o| (o.created_at, o.id.as_str())))
    }

    /// One org.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn org(&mut self, domain: Domain, id: &Id<Org>) -> Result<Option<Org>> {
        let account = self.account.clone();
        on!(self, |c| sqlx::query_as(
            r#"SELECT * FROM "Alchemi_OrgTable" WHERE account_id = $1 AND domain = $2 AND id = $3"#
        )
        .bind(&account)
        .bind(domain)
        .bind(id)
        .fetch_optional(c)
        .await)
    }

    /// Makes an org.
    ///
    /// # Errors
    /// [`StoreError::Unique`](super::StoreError::Unique) on `name`.
    pub async fn insert_org(&mut self, org: &Org) -> Result<()> {
        let account = self.account.clone();
        run!(
            self,
            r#"INSERT INTO "Alchemi_OrgTable" (account_id, domain, id, name, description, is_default_global, created_by,
               created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8)"#,
            &account,
            org.domain,
            &org.id,
            &org.name,
            &org.description,
            org.is_default_global,
            &org.created_by,
            org.created_at
        )?;
        self.changed(ChangeKind::Directory);
        Ok(())
    }

    /// Changes an org's name and description.
    ///
    /// # Errors
    /// [`StoreError::Unique`](super::StoreError::Unique) on `name`.
    pub async fn update_org(&mut self, org: &Org) -> Result<()> {
        let (account, now) = (self.account.clone(), self.now);
        run!(
            self,
            r#"UPDATE "Alchemi_OrgTable" SET name = $4, description = $5, updated_at = $6, version = version + 1
               WHERE account_id = $1 AND domain = $2 AND id = $3"#,
            &account,
            org.domain,
            &org.id,
            &org.name,
            &org.description,
            now
        )?;
        self.changed(ChangeKind::Directory);
        Ok(())
    }

    /// Removes an org, its teams and their memberships.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn delete_org(&mut self, domain: Domain, id: &Id<Org>) -> Result<bool> {
        let account = self.account.clone();
        let gone = run!(
            self,
            r#"DELETE FROM "Alchemi_OrgTable" WHERE account_id = $1 AND domain = $2 AND id = $3"#,
            &account,
            domain,
            id
        )?;
        self.changed(ChangeKind::Directory);
        Ok(gone > 0)
    }

    /// Teams of `domain`, or of one org of it, newest first.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn teams(&mut self, domain: Domain, org: Option<&Id<Org>>, slice: &Slice) -> Result<Page<Team>> {
        let account = self.account.clone();
        let (at, id) = slice.before();
        let rows: Vec<Team> = on!(self, |c| {
            let mut q = sqlx::QueryBuilder::new(r#"SELECT * FROM "Alchemi_TeamTable" WHERE account_id = "#);
            q.push_bind(&account).push(" AND domain = ").push_bind(domain);
            q.push(" AND (created_at, id) < (").push_bind(at).push(", ").push_bind(&id).push(")");
            if let Some(org) = org {
                q.push(" AND org_id = ").push_bind(org);
            }
            q.push(" ORDER BY created_at DESC, id DESC LIMIT ").push_bind(slice.fetch());
            q.push(" OFFSET ").push_bind(slice.skip()).build_query_as().fetch_all(c).await
        })?;
        Ok(slice.page(rows, |t| (t.created_at, t.id.as_str())))
    }

    /// One team.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn team(&mut self, domain: Domain, id: &Id<Team>) -> Result<Option<Team>> {
        let account = self.account.clone();
        on!(self, |c| sqlx::query_as(
            r#"SELECT * FROM "Alchemi_TeamTable" WHERE account_id = $1 AND domain = $2 AND id = $3"#
        )
        .bind(&account)
        .bind(domain)
        .bind(id)
        .fetch_optional(c)
        .await)
    }

    /// Makes a team.
    ///
    /// # Errors
    /// [`StoreError::Unique`](super::StoreError::Unique) on `name`, [`StoreError::ForeignKey`](super::StoreError::ForeignKey) without its org.
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

    /// Changes a team's name and description.
    ///
    /// # Errors
    /// [`StoreError::Unique`](super::StoreError::Unique) on `name`.
    pub async fn update_team(&mut self, team: &Team) -> Result<()> {
        let (account, now) = (self.account.clone(), self.now);
        run!(
            self,
            r#"UPDATE "Alchemi_TeamTable" SET name = $4, description = $5, updated_at = $6, version = version + 1
               WHERE account_id = $1 AND domain = $2 AND id = $3"#,
            &account,
            team.domain,
            &team.id,
            &team.name,
            &team.description,
            now
        )?;
        self.changed(ChangeKind::Directory);
        Ok(())
    }

    /// Removes a team and its memberships.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn delete_team(&mut self, domain: Domain, id: &Id<Team>) -> Result<bool> {
        let account = self.account.clone();
        let gone = run!(
            self,
            r#"DELETE FROM "Alchemi_TeamTable" WHERE account_id = $1 AND domain = $2 AND id = $3"#,
            &account,
            domain,
            id
        )?;
        self.changed(ChangeKind::Directory);
        Ok(gone > 0)
    }

    /// Users of `domain`, newest first.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn users(&mut self, domain: Domain, slice: &Slice) -> Result<Page<User>> {
        let account = self.account.clone();
        let (at, id) = slice.before();
        let rows: Vec<User> = on!(self, |c| {
            sqlx::query_as(
            r#"SELECT * FROM "Alchemi_UserTable" WHERE account_id = $1 AND domain = $2 AND (created_at, id) < ($3, $4)
               ORDER BY created_at DESC, id DESC LIMIT $5 OFFSET $6"#
        )
        .bind(&account)
        .bind(domain)
        .bind(at)
        .bind(&id)
        .bind(slice.fetch())
        .bind(slice.skip())
        .fetch_all(c)
        .await
        })?;
        Ok(slice.page(rows, |u| (u.created_at, u.id.as_str())))
    }

    /// One user.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn user(&mut self, domain: Domain, id: &Id<User>) -> Result<Option<User>> {
        let account = self.account.clone();
        on!(self, |c| sqlx::query_as(
            r#"SELECT * FROM "Alchemi_UserTable" WHERE account_id = $1 AND domain = $2 AND id = $3"#
        )
        .bind(&account)
        .bind(domain)
        .bind(id)
        .fetch_optional(c)
        .await)
    }

    /// The user with this identity id, else the one with this e-mail address who
    /// has no other identity id.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn user_by_identity(
        &mut self,
        domain: Domain,
        identity: Option<&str>,
        email: Option<&str>,
    ) -> Result<Option<User>> {
        let account = self.account.clone();
        on!(self, |c| sqlx::query_as(
            r#"SELECT * FROM "Alchemi_UserTable" WHERE account_id = $1 AND domain = $2
               AND (identity_user_id = $3 OR (email = $4 AND (identity_user_id IS NULL OR $3 IS NULL)))
               ORDER BY CASE WHEN identity_user_id = $3 THEN 0 ELSE 1 END LIMIT 1"#
        )
        .bind(&account)
        .bind(domain)
        .bind(identity)
        .bind(email)
        .fetch_optional(c)
        .await)
    }

    /// Makes a user.
    ///
    /// # Errors
    /// [`StoreError::Unique`](super::StoreError::Unique) on `email` or `identity_user_id`.
    pub async fn insert_user(&mut self, user: &User) -> Result<()> {
        let account = self.account.clone();
        run!(
            self,
            r#"INSERT INTO "Alchemi_UserTable" (account_id, domain, id, identity_user_id, email, display_name, status,
               created_by, created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9)"#,
            &account,
            user.domain,
            &user.id,
            &user.identity_user_id,
            &user.email,
            &user.display_name,
            user.status,
            &user.created_by,
            user.created_at
        )?;
        self.changed(ChangeKind::Directory);
        Ok(())
    }

    /// Writes every changeable column of a user.
    ///
    /// # Errors
    /// [`StoreError::Unique`](super::StoreError::Unique) on `email` or `identity_user_id`.
    pub async fn update_user(&mut self, user: &User) -> Result<()> {
        let (account, now) = (self.account.clone(), self.now);
        run!(
            self,
            r#"UPDATE "Alchemi_UserTable" SET identity_user_id = $4, email = $5, display_name = $6, status = $7,
               updated_at = $8, version = version + 1 WHERE account_id = $1 AND domain = $2 AND id = $3"#,
            &account,
            user.domain,
            &user.id,
            &user.identity_user_id,
            &user.email,
            &user.display_name,
            user.status,
            now
        )?;
        self.changed(ChangeKind::Directory);
        Ok(())
    }

    /// Removes a user and their memberships.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn delete_user(&mut self, domain: Domain, id: &Id<User>) -> Result<bool> {
        let account = self.account.clone();
        let gone = run!(
            self,
            r#"DELETE FROM "Alchemi_UserTable" WHERE account_id = $1 AND domain = $2 AND id = $3"#,
            &account,
            domain,
            id
        )?;
        self.changed(ChangeKind::Directory);
        Ok(gone > 0)
    }

    /// Members of a team, newest first.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
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

    /// Makes a user a member of a team, or changes their role; one who is a member
    /// already keeps their role when `role` is none.
    ///
    /// # Errors
    /// [`StoreError::ForeignKey`](super::StoreError::ForeignKey) without the team or the user.
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
               VALUES ($1, $2, $3, $4, COALESCE($5, 'member'), $6)
               ON CONFLICT (account_id, domain, team_id, user_id)
               DO UPDATE SET role = COALESCE($5, "Alchemi_TeamMembershipTable".role) RETURNING *"#
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
    /// [`StoreError`](super::StoreError).
    pub async fn delete_member(&mut self, domain: Domain, team: &Id<Team>, user: &Id<User>) -> Result<bool> {
        let account = self.account.clone();
        let gone = run!(
            self,
            r#"DELETE FROM "Alchemi_TeamMembershipTable" WHERE account_id = $1 AND domain = $2 AND team_id = $3 AND user_id = $4"#,
            &account,
            domain,
            team,
            user
        )?;
        self.changed(ChangeKind::Directory);
        Ok(gone > 0)
    }

    /// The teams of a user with their orgs, oldest membership first.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn places_of(&mut self, domain: Domain, user: &Id<User>) -> Result<Vec<Place>> {
        let account = self.account.clone();
        on!(self, |c| sqlx::query_as(
            r#"SELECT m.team_id, t.org_id FROM "Alchemi_TeamMembershipTable" m
               JOIN "Alchemi_TeamTable" t ON t.account_id = m.account_id AND t.domain = m.domain AND t.id = m.team_id
               WHERE m.account_id = $1 AND m.domain = $2 AND m.user_id = $3 ORDER BY m.created_at, m.team_id"#
        )
        .bind(&account)
        .bind(domain)
        .bind(user)
        .fetch_all(c)
        .await)
    }

    /// Whether the scope is a row of this account's tree of `domain`; the account
    /// itself and the pool always are.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn scope_exists(&mut self, domain: Domain, kind: ScopeType, id: &str) -> Result<bool> {
        let sql = match kind {
            ScopeType::Account => return Ok(self.account.as_str() == id),
            ScopeType::Pool => return Ok(true),
            ScopeType::Org => {
                r#"SELECT CAST(COUNT(*) AS BIGINT) FROM "Alchemi_OrgTable" WHERE account_id = $1 AND domain = $2 AND id = $3"#
            }
            ScopeType::Team => {
                r#"SELECT CAST(COUNT(*) AS BIGINT) FROM "Alchemi_TeamTable" WHERE account_id = $1 AND domain = $2 AND id = $3"#
            }
            ScopeType::User => {
                r#"SELECT CAST(COUNT(*) AS BIGINT) FROM "Alchemi_UserTable" WHERE account_id = $1 AND domain = $2 AND id = $3"#
            }
            ScopeType::Agent => return Ok(false),
        };
        let account = self.account.clone();
        let found: i64 =
            on!(self, |c| sqlx::query_scalar(sql).bind(&account).bind(domain).bind(id).fetch_one(c).await)?;
        Ok(found > 0)
    }
}
