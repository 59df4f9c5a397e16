//! Subjects that were cut off before their tokens expire.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::verified::Verified;
use crate::clock::Timestamp;

/// Every token of a subject that was issued before a moment is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    /// The issuer of the tokens.
    pub issuer: String,
    /// Their subject.
    pub subject: String,
    /// Tokens issued before this are refused; so are those that do not say when.
    pub issued_before: Timestamp,
}

type BySubject = HashMap<Box<str>, Timestamp>;

/// The deny-list, looked at on every verification, cached or not, without a lock.
#[derive(Debug, Default)]
pub struct Revocations(ArcSwap<HashMap<Box<str>, BySubject>>);

impl Revocations {
    /// Replaces the whole list, as read from the store.
    pub fn replace(&self, list: Vec<Revocation>) {
        let mut map = HashMap::new();
        for revocation in list {
            add(&mut map, &revocation);
        }
        self.0.store(Arc::new(map));
    }

    /// Adds one; of two for a subject, the later moment holds.
    pub fn insert(&self, revocation: &Revocation) {
        self.0.rcu(|map| {
            let mut map = HashMap::clone(map);
            add(&mut map, revocation);
            map
        });
    }

    pub(super) fn revoked(&self, verified: &Verified) -> bool {
        let map = self.0.load();
        map.get(&**verified.issuer())
            .and_then(|subjects| subjects.get(&**verified.subject()))
            .is_some_and(|before| verified.issued_at().is_none_or(|at| at < *before))
    }
}

fn add(map: &mut HashMap<Box<str>, BySubject>, revocation: &Revocation) {
    let subjects = map.entry(revocation.issuer.as_str().into()).or_default();
    let before = subjects.entry(revocation.subject.as_str().into()).or_insert(revocation.issued_before);
    *before = (*before).max(revocation.issued_before);
}
