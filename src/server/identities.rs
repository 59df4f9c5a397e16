//! Whose e-mail address it is: users that were made by address are given their id at
//! the identity provider, beside the requests that made them.

use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use crate::context::Granted;
use crate::model::directory::{IdentityLookup, LookupOutcome};
use crate::store::changes::{Change, ChangeKind};
use crate::store::{Store, StoreError};
use crate::zitadel::Management;

/// Most lookups of one pass.
const BATCH: u32 = 32;

/// How often lookups whose time has come are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(15);

/// How long after a change of a directory, so that a list of users is one pass.
const SETTLED: Duration = Duration::from_millis(200);

/// Finds people at the identity provider.
pub trait FindByEmail: Send + Sync {
    /// The ids of those who have the e-mail address, in one organisation where it is named.
    ///
    /// # Errors
    /// Why nobody could be asked, in one sentence without secrets.
    fn find<'a>(&'a self, email: &'a str, organization: Option<&'a str>) -> BoxFuture<'a, Result<Vec<String>, String>>;
}

/// Only who has shown that the address is theirs: anybody may claim one.
impl FindByEmail for Management {
    fn find<'a>(&'a self, email: &'a str, organization: Option<&'a str>) -> BoxFuture<'a, Result<Vec<String>, String>> {
        Box::pin(async move {
            let people = self.users_with_email(email, organization).await.map_err(|error| error.to_string())?;
            Ok(people.into_iter().filter(|person| person.email_verified).map(|person| person.user_id).collect())
        })
    }
}

/// Resolves what is due, when a directory has changed and every quarter of a minute.
pub(super) async fn keep_resolving(mut changes: Receiver<Change>, store: Store, people: impl FindByEmail) {
    loop {
        match resolve(&store, &people).await {
            Ok((_, true)) => continue,
            Ok((_, false)) => {}
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "users cannot be given their ids");
            }
        }
        // An error of time is that nothing has changed.
        let _ = tokio::time::timeout(LOOK_EVERY, directory_changed(&mut changes)).await;
        tokio::time::sleep(SETTLED).await;
    }
}

async fn directory_changed(changes: &mut Receiver<Change>) {
    loop {
        match changes.recv().await {
            Ok(change) if !matches!(change.kind, ChangeKind::Directory | ChangeKind::Everything) => {}
            Ok(_) | Err(RecvError::Lagged(_)) => return,
            // The store is closed: the job ends with the others.
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// One pass over the lookups that are due; gives how many users were given their id, and
/// whether more is due.
///
/// # Errors
/// [`StoreError`]; what was claimed is due again after two minutes.
pub async fn resolve(store: &Store, people: &dyn FindByEmail) -> Result<(usize, bool), StoreError> {
    let mut tx = store.begin(&Granted::system()).await?;
    let claimed = tx.claim_identity_lookups(BATCH).await?;
    tx.commit().await?;
    let mut found = 0;
    for lookup in &claimed {
        found += usize::from(settle(store, people, lookup).await?);
    }
    Ok((found, claimed.len() == BATCH as usize))
}

async fn settle(store: &Store, people: &dyn FindByEmail, lookup: &IdentityLookup) -> Result<bool, StoreError> {
    let granted = Granted::system().over(lookup.account_id.clone());
    let asked = store.read(&granted).await?.lookup_question(lookup.domain, &lookup.user_id).await?;
    let Some(asked) = asked else { return Ok(false) };
    let outcome = match people.find(&asked.email, asked.organization_id.as_deref()).await {
        Ok(ids) => LookupOutcome::of(ids),
        Err(reason) => LookupOutcome::Failed(reason),
    };
    let mut tx = store.begin(&granted).await?;
    let found = tx.settle_lookup(lookup, &asked, &outcome).await?;
    tx.commit().await?;
    Ok(found)
}
