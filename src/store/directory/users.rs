//! Users.

use super::Uprooted;
use crate::context::{Actor, Domain, Tenant};
use crate::id::Id;
use crate::model::directory::{User, UserStatus};
use crate::model::scope::ScopeType;
use crate::model::text::Email;
use crate::store::changes::ChangeKind;
use crate::store::page::{Page, Slice};
use crate::store::{Result, StoreError, Tx, find, hold, list, on, remove, run};

impl Tx<Tenant> {
    /// Users of `domain`, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn users(&mut self, domain: Domain, slice: &Slice) -> Result<Page<User>> {
        list!(self, slice, User in "Alchemi_UserTable", domain = domain)
    }

    /// One user.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn user(&mut self, domain: Domain, id: &Id<User>) -> Result<Option<User>> {
        find!(self, "Alchemi_UserTable", domain = domain, id = id)
    }

    /// A user that is about to be changed, kept from everybody else until the end of
    /// the transaction.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn hold_user(&mut self, domain: Domain, id: &Id<User>) -> Result<Option<User>> {
        hold!(self, "Alchemi_UserTable", domain = domain, id = id)
    }

    /// The users with this identity id or this e-mail address, at most two, kept
    /// from everybody else until the end of the transaction.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn hold_users_of(
        &mut self,
        domain: Domain,
        identity: Option<&str>,
        email: Option<&str>,
    ) -> Result<Vec<User>> {
        let account = self.account.clone();
        on!(self, |c| sqlx::query_as(
            r#"UPDATE "Alchemi_UserTable" SET version = version
               WHERE account_id = $1 AND domain = $2 AND (identity_user_id = $3 OR email = $4) RETURNING *"#
        )
        .bind(&account)
        .bind(domain)
        .bind(identity)
        .bind(email)
        .fetch_all(c)
        .await)
    }

    /// Makes the row of a subject that signed in, unless there is one. Their e-mail
    /// address stays out of it when another identity has it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn enrol_user(&mut self, domain: Domain, actor: &Actor) -> Result<Option<User>> {
        let email = actor.email.as_deref().and_then(|text| text.parse::<Email>().ok()).map(Email::into_string);
        let known = self.hold_users_of(domain, Some(&actor.subject), email.as_deref()).await?;
        // A row with the address and no identity is theirs already.
        let theirs = |user: &User| user.identity_user_id.as_deref().is_none_or(|id| id == &*actor.subject);
        if known.iter().any(theirs) {
            return Ok(None);
        }
        let user = User {
            id: self.new_id(),
            account_id: self.account.clone(),
            domain,
            identity_user_id: Some(actor.subject.to_string()),
            email: email.filter(|_| known.is_empty()),
            display_name: None,
            status: UserStatus::Active,
            created_by: Some(actor.subject.to_string()),
            created_at: self.now,
            updated_at: self.now,
            version: 1,
        };
        match self.insert_user(&user).await {
            Ok(()) => Ok(Some(user)),
            // Another request of theirs was first.
            Err(StoreError::Unique(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a user.
    ///
    /// # Errors
    /// [`StoreError::Unique`] on `email` or `identity_user_id`.
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
        self.note_identity(user).await
    }

    /// Changes every changeable column of a user; gives the new row.
    ///
    /// # Errors
    /// [`StoreError::Unique`] on `email` or `identity_user_id`.
    pub async fn update_user(&mut self, user: &User) -> Result<User> {
        let (account, now) = (self.account.clone(), self.now);
        self.changed(ChangeKind::Directory);
        let changed = on!(self, |c| sqlx::query_as(
            r#"UPDATE "Alchemi_UserTable" SET identity_user_id = $4, email = $5, display_name = $6, status = $7,
               updated_at = $8, version = version + 1
               WHERE account_id = $1 AND domain = $2 AND id = $3 RETURNING *"#
        )
        .bind(&account)
        .bind(user.domain)
        .bind(&user.id)
        .bind(&user.identity_user_id)
        .bind(&user.email)
        .bind(&user.display_name)
        .bind(user.status)
        .bind(now)
        .fetch_one(c)
        .await)?;
        self.note_identity(&changed).await?;
        Ok(changed)
    }

    /// Removes a user and everything that hangs on it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn delete_user(&mut self, domain: Domain, id: &Id<User>) -> Result<Uprooted> {
        let uprooted = self.uproot(domain, ScopeType::User, id.as_str()).await?;
        remove!(self, "Alchemi_UserTable", domain = domain, id = id)?;
        Ok(uprooted)
    }
}
