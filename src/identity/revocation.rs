//! Subjects and sessions that were cut off before their tokens expire.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use super::verified::Verified;
use crate::clock::Timestamp;
use crate::model::revocations::Logout;

/// Every token of a subject that was issued before a moment is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    /// The issuer of the tokens.
    pub issuer: String,
    /// Their subject.
    pub subject: String,
    /// Tokens issued before this, by our clock, are refused; so are those that do not say when.
    pub issued_before: Timestamp,
}

/// What an issuer's tokens are refused for.
#[derive(Debug, Clone, Default)]
struct Denied {
    subjects: HashMap<Box<str>, Timestamp>,
    sessions: HashSet<Box<str>>,
}

type ByIssuer = HashMap<Box<str>, Denied>;

/// The deny-list, looked at on every verification, cached or not, without a lock.
///
/// A [`Revocation`] has its moment by our clock and a token its `iat` by the issuer's, which
/// may be ahead: a token from before the moment may say up to the tolerated difference after
/// it, and is refused all the same. A [`Logout`] has its moment by the issuer's own clock.
#[derive(Debug, Default)]
pub struct Revocations {
    list: ArcSwap<ByIssuer>,
    /// The tolerated difference between the clocks.
    leeway: Duration,
}

/// A state of the list.
#[derive(Debug, Clone)]
pub struct Seen(Arc<ByIssuer>);

impl Revocations {
    /// An empty list, for tokens of issuers whose clocks may be ahead by `leeway`.
    pub fn new(leeway: Duration) -> Self {
        Self { list: ArcSwap::default(), leeway }
    }

    /// The state of the list, to be taken before it is read from the store.
    pub fn seen(&self) -> Seen {
        Seen(self.list.load_full())
    }

    /// Replaces the whole list, as read from the store after `seen`. False when something
    /// was added meanwhile, which the reading may lack: it is kept, and the list to be
    /// read again.
    #[must_use]
    pub fn replace(&self, seen: &Seen, revocations: Vec<Revocation>, logouts: Vec<Logout>) -> bool {
        let mut map = ByIssuer::new();
        for revocation in revocations {
            self.cut_off(&mut map, &revocation);
        }
        for logout in logouts {
            end(&mut map, &logout);
        }
        let before = self.list.compare_and_swap(&seen.0, Arc::new(map));
        Arc::ptr_eq(&before, &seen.0)
    }

    /// Adds one; of two for a subject, the later moment holds.
    pub fn insert(&self, revocation: &Revocation) {
        self.change(|map| self.cut_off(map, revocation));
    }

    /// Adds what a logout ends: the subject's tokens, or the session's when it names
    /// no subject.
    pub fn insert_logout(&self, logout: &Logout) {
        self.change(|map| end(map, logout));
    }

    fn change(&self, change: impl Fn(&mut ByIssuer)) {
        self.list.rcu(|map| {
            let mut map = HashMap::clone(map);
            change(&mut map);
            map
        });
    }

    /// Whether a token may be from before a moment by our clock, or does not say when it is from.
    pub fn may_be_from_before(&self, verified: &Verified, moment: Timestamp) -> bool {
        verified.issued_at().is_none_or(|at| at < moment.plus(self.leeway))
    }

    pub(super) fn revoked(&self, verified: &Verified) -> bool {
        let map = self.list.load();
        let Some(denied) = map.get(&**verified.issuer()) else { return false };
        let before = denied.subjects.get(&**verified.subject());
        before.is_some_and(|before| verified.issued_at().is_none_or(|at| at < *before))
            || verified.session().is_some_and(|session| denied.sessions.contains(session))
    }

    fn cut_off(&self, map: &mut ByIssuer, Revocation { issuer, subject, issued_before }: &Revocation) {
        deny(map, issuer, subject, issued_before.plus(self.leeway));
    }
}

fn end(map: &mut ByIssuer, logout: &Logout) {
    match (&logout.subject, &logout.session) {
        (Some(subject), _) => deny(map, &logout.issuer, subject, logout.issued_before),
        (None, Some(session)) => {
            map.entry(logout.issuer.as_str().into()).or_default().sessions.insert(session.as_str().into());
        }
        (None, None) => {}
    }
}

fn deny(map: &mut ByIssuer, issuer: &str, subject: &str, issued_before: Timestamp) {
    let subjects = &mut map.entry(issuer.into()).or_default().subjects;
    let before = subjects.entry(subject.into()).or_insert(issued_before);
    *before = (*before).max(issued_before);
}
