//! Who waits for credits that are held to come back: few of each account, whose looks cost the database something.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::id::Id;
use crate::model::accounts::Account;

/// How many requests of one account wait at once; others are refused at once.
const MOST: usize = 32;

/// How many requests of each account wait.
#[derive(Debug, Default)]
pub(super) struct Patience(Mutex<HashMap<Id<Account>, usize>>);

/// One that waits, until it is dropped.
#[derive(Debug)]
pub(super) struct Waiting {
    account: Id<Account>,
    patience: Arc<Patience>,
}

impl Patience {
    /// None: enough of the account's wait already.
    pub(super) fn wait(self: &Arc<Self>, account: &Id<Account>) -> Option<Waiting> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = waiting.entry(account.clone()).or_default();
        if *count >= MOST {
            return None;
        }
        *count += 1;
        drop(waiting);
        Some(Waiting { account: account.clone(), patience: Arc::clone(self) })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut waiting = self.patience.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = waiting.get_mut(&self.account) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.account);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_of_an_account_wait_and_others_are_none_of_theirs() {
        let patience = Arc::<Patience>::default();
        let (acme, beta) = (Id::stored("acme"), Id::stored("beta"));
        let mut waiting: Vec<_> = (0..MOST).map(|_| patience.wait(&acme).unwrap()).collect();
        assert!(patience.wait(&acme).is_none() && patience.wait(&beta).is_some());
        waiting.pop();
        assert!(patience.wait(&acme).is_some());
        drop(waiting);
        assert!(patience.0.lock().unwrap().is_empty());
    }
}
