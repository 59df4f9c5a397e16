//! Whose e-mail address it is: users that were made by address are given their id at
//! the identity provider, beside the requests that made them.

use futures_util::future::BoxFuture;

use crate::context::Granted;
use crate::model::directory::{IdentityLookup, LookupOutcome};
use crate::store::{Store, StoreError};

/// Most lookups of one pass.
const BATCH: u32 = 32;

/// Finds people at the identity provider.
pub trait FindByEmail: Send + Sync {
    /// The ids of those who have the e-mail address, in one organisation where it is named.
    ///
    /// # Errors
    /// Why nobody could be asked, in one sentence without secrets.
    fn find<'a>(&'a self, email: &'a str, organization: Option<&'a str>) -> BoxFuture<'a, Result<Vec<String>, String>>;
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
