//! Users known by e-mail address alone, until their id at the identity provider is found.
//!
//! Whatever writes a user notes what is to be looked up in the same transaction; a job
//! claims what is due, asks the identity provider outside of any transaction, and
//! settles the outcome. A claim that nobody settles is due again.

use std::time::Duration;

use crate::context::{Domain, Platform, Tenant};
use crate::id::Id;
use crate::model::audit::Action;
use crate::model::directory::{IdentityLookup, LookupOutcome, LookupState, User};
use crate::store::audit::Entry;
use crate::store::{Result, Tx, find, from_columns, on, run};

/// How long a claim lasts.
const CLAIM: Duration = Duration::from_secs(120);
/// How soon the second attempt follows the first; each further one after twice the time.
const FIRST_PAUSE: Duration = Duration::from_secs(30);
/// The longest time between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(6 * 60 * 60);

from_columns! { IdentityLookup { account_id, domain, user_id, state, detail, attempts } }

/// What is to be asked for a lookup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LookupQuestion {
    /// The user's address.
    pub email: String,
    /// The account's organisation at the identity provider, where it is bound to one:
    /// addresses are unique in an organisation at best.
    pub organization_id: Option<String>,
}

from_columns! { LookupQuestion { email, organization_id } }

impl Tx<Platform> {
    /// Claims up to `limit` lookups that are due: no other process gets them for two minutes.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn claim_identity_lookups(&mut self, limit: u32) -> Result<Vec<IdentityLookup>> {
        let now = self.now;
        on!(self, |c| sqlx::query_as(
            r#"UPDATE "Alchemi_IdentityLookupTable" SET due_at = $2, attempts = attempts + 1
               WHERE due_at <= $1 AND (account_id, domain, user_id) IN
                 (SELECT account_id, domain, user_id FROM "Alchemi_IdentityLookupTable" WHERE due_at <= $1
                  ORDER BY due_at LIMIT $3)
               RETURNING account_id, domain, user_id, state, detail, attempts"#
        )
        .bind(now)
        .bind(now.plus(CLAIM))
        .bind(i64::from(limit))
        .fetch_all(c)
        .await)
    }
}

impl Tx<Tenant> {
    /// Notes whether the user's identity is to be looked up.
    pub(super) async fn note_identity(&mut self, user: &User) -> Result<()> {
        let (account, now) = (self.account.clone(), self.now);
        if user.identity_user_id.is_some() || user.email.is_none() {
            return self.forget_lookup(user.domain, &user.id).await;
        }
        run!(
            self,
            r#"INSERT INTO "Alchemi_IdentityLookupTable" (account_id, domain, user_id, due_at) VALUES ($1, $2, $3, $4)
               ON CONFLICT (account_id, domain, user_id) DO UPDATE SET state = 'pending', detail = NULL, attempts = 0,
               due_at = excluded.due_at"#,
            &account,
            user.domain,
            &user.id,
            now
        )?;
        Ok(())
    }

    async fn forget_lookup(&mut self, domain: Domain, user: &Id<User>) -> Result<()> {
        let account = self.account.clone();
        run!(
            self,
            r#"DELETE FROM "Alchemi_IdentityLookupTable" WHERE account_id = $1 AND domain = $2 AND user_id = $3"#,
            &account,
            domain,
            user
        )?;
        Ok(())
    }

    /// The search for a user's identity, while it is not found.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn identity_lookup(&mut self, domain: Domain, user: &Id<User>) -> Result<Option<IdentityLookup>> {
        find!(self, "Alchemi_IdentityLookupTable", domain = domain, user_id = user)
    }

    /// What to ask the identity provider; none when there is nothing left to find.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn lookup_question(&mut self, domain: Domain, user: &Id<User>) -> Result<Option<LookupQuestion>> {
        let account = self.account.clone();
        on!(self, |c| sqlx::query_as(
            r#"SELECT u.email, z.organization_id FROM "Alchemi_UserTable" u
               LEFT JOIN "Alchemi_AccountZitadelTable" z ON z.account_id = u.account_id AND z.enabled
               WHERE u.account_id = $1 AND u.domain = $2 AND u.id = $3
                 AND u.email IS NOT NULL AND u.identity_user_id IS NULL"#
        )
        .bind(&account)
        .bind(domain)
        .bind(user)
        .fetch_optional(c)
        .await)
    }

    /// Writes what came of a lookup. An id is taken only while the user still has the
    /// address that was asked for and no id; true when it was.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn settle_lookup(
        &mut self,
        lookup: &IdentityLookup,
        asked: &LookupQuestion,
        outcome: &LookupOutcome,
    ) -> Result<bool> {
        let LookupOutcome::Found(identity) = outcome else {
            self.postpone_lookup(lookup, outcome.state(), outcome.detail()).await?;
            return Ok(false);
        };
        let held = self.hold_users_of(lookup.domain, Some(identity), Some(&asked.email)).await?;
        let Some(before) = held.iter().find(|user| user.id == lookup.user_id && user.identity_user_id.is_none()) else {
            // Changed meanwhile: whoever did it has noted what is to be looked up now.
            return Ok(false);
        };
        if let Some(other) = held.iter().find(|user| user.identity_user_id.as_deref() == Some(identity)) {
            let detail = format!("user {} has the id {identity} already", other.id);
            self.postpone_lookup(lookup, LookupState::Taken, Some(detail)).await?;
            return Ok(false);
        }
        let found = User { identity_user_id: Some(identity.clone()), ..before.clone() };
        let after = self.update_user(&found).await?;
        let entry = Entry {
            action: Action::Update,
            table: "Alchemi_UserTable",
            id: after.id.as_str(),
            label: after.domain.into(),
        };
        self.audit(entry, Some(before), &after).await?;
        Ok(true)
    }

    async fn postpone_lookup(
        &mut self,
        lookup: &IdentityLookup,
        state: LookupState,
        detail: Option<String>,
    ) -> Result<()> {
        let (account, due) = (self.account.clone(), self.now.plus(pause(lookup.attempts)));
        run!(
            self,
            r#"UPDATE "Alchemi_IdentityLookupTable" SET state = $4, detail = $5, due_at = $6
               WHERE account_id = $1 AND domain = $2 AND user_id = $3 AND attempts = $7"#,
            &account,
            lookup.domain,
            &lookup.user_id,
            state,
            &detail,
            due,
            lookup.attempts
        )?;
        Ok(())
    }
}

fn pause(attempts: i64) -> Duration {
    let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or(0).min(16);
    FIRST_PAUSE.saturating_mul(1 << doublings).min(LONGEST_PAUSE)
}
