//! A slice of a chain's credits, and what the slices of one account share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use super::balance::{self, Balance};
use crate::clock::Timestamp;
use crate::context::Domain;
use crate::credits::Credits;
use crate::id::Id;
use crate::model::accounts::Account;
use crate::model::scope::Scope;
use crate::policy::budget::Link;
use crate::store::leases::Lease;

/// Longest time after which a refill is tried again, in microseconds.
const LONGEST_PAUSE: i64 = super::REFILL_PAUSE.as_micros() as i64;

/// For how long a scope that ran short is not leased from, in microseconds.
const TIGHT: i64 = 3_000_000;

/// Whether a time of [`TIGHT`] that ends `until` then has begun and is not over; one that lies further ahead was noted
/// before the clock was set back.
fn is_tight(until: i64, now: Timestamp) -> bool {
    (1..=TIGHT).contains(&until.saturating_sub(now.as_micros()))
}

/// What the slices of one account share.
#[derive(Debug)]
pub(super) struct Purse {
    pub(super) account: Id<Account>,
    /// Scopes that ran short, and until when nothing is leased from them, in microseconds.
    tight: Mutex<HashMap<Scope, i64>>,
    /// Scopes whose idle credits other processes were asked for, and when.
    pub(super) asked: tokio::sync::Mutex<HashMap<Scope, Timestamp>>,
    /// How often credits went back.
    returns: AtomicU64,
    /// Held while credits move between a slice and the database.
    pub(super) moving: tokio::sync::Mutex<()>,
    slices: Mutex<Vec<Arc<Slice>>>,
}

impl Purse {
    pub(super) fn of(account: Id<Account>) -> Self {
        Self {
            account,
            tight: Mutex::default(),
            asked: tokio::sync::Mutex::default(),
            returns: AtomicU64::new(0),
            moving: tokio::sync::Mutex::default(),
            slices: Mutex::default(),
        }
    }

    /// From here on, and for a while, nothing is leased for chains with one of these scopes.
    pub(super) fn tighten(&self, scopes: &[Scope], now: Timestamp) {
        let until = now.as_micros().saturating_add(TIGHT);
        {
            let mut tight = self.tight.lock().unwrap_or_else(PoisonError::into_inner);
            tight.retain(|_, until| is_tight(*until, now));
            tight.extend(scopes.iter().map(|scope| (scope.clone(), until)));
        }
        // A slice that comes now finds it in the map.
        for slice in self.slices().iter().filter(|slice| slice.has_any(scopes)) {
            slice.tight_until.store(until, Ordering::Release);
        }
    }

    /// Whether any scope ran short a moment ago.
    pub(super) fn is_tight(&self, now: Timestamp) -> bool {
        self.tight.lock().unwrap_or_else(PoisonError::into_inner).values().any(|until| is_tight(*until, now))
    }

    pub(super) fn slices(&self) -> Vec<Arc<Slice>> {
        self.slices.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn add(&self, slice: &Arc<Slice>) {
        self.slices.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(slice));
        let tight = self.tight.lock().unwrap_or_else(PoisonError::into_inner);
        let until = slice.links.iter().filter_map(|link| tight.get(&link.scope)).max();
        slice.tight_until.fetch_max(until.copied().unwrap_or(i64::MIN), Ordering::AcqRel);
    }

    pub(super) fn remove(&self, slice: &Arc<Slice>) {
        self.slices.lock().unwrap_or_else(PoisonError::into_inner).retain(|known| !Arc::ptr_eq(known, slice));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slices.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// How often credits went back.
    pub(super) fn returns(&self) -> u64 {
        self.returns.load(Ordering::Acquire)
    }

    pub(super) fn returned(&self) {
        self.returns.fetch_add(1, Ordering::AcqRel);
    }
}

/// Credits of one chain that requests of this process draw on.
#[derive(Debug)]
pub(in crate::allocation) struct Slice {
    pub(super) key: u64,
    pub(super) purse: Arc<Purse>,
    domain: Domain,
    /// The capped ones.
    pub(super) links: Box<[Link]>,
    pub(super) lease_id: Arc<str>,
    pub(super) holder: Arc<str>,
    pub(super) balance: Balance,
    /// What was free when it was closed, and has not gone back.
    pub(super) rest: AtomicI64,
    /// Below this it is refilled.
    pub(super) low: AtomicI64,
    /// Asked for in this beat.
    demand: AtomicI64,
    requests: AtomicI64,
    /// Asked for in an average beat.
    burn: AtomicI64,
    /// Requests in an average beat.
    pace: AtomicI64,
    /// When a refill may be tried again, in microseconds.
    pub(super) fill_after: AtomicI64,
    /// Until when nothing is leased for it, in microseconds: one of its scopes ran short.
    tight_until: AtomicI64,
    /// Its lease may have a row.
    pub(super) opened: AtomicBool,
    pub(super) filled: Notify,
}

/// From how many requests in a beat on a chain is worth a lease.
const BUSY: i64 = 4;

impl Slice {
    pub(super) fn empty(
        key: u64,
        purse: Arc<Purse>,
        (domain, links): (Domain, &[Link]),
        lease_id: Arc<str>,
        holder: Arc<str>,
    ) -> Self {
        Self {
            key,
            purse,
            domain,
            links: capped(links).cloned().collect(),
            lease_id,
            holder,
            balance: Balance::empty(),
            rest: AtomicI64::new(0),
            low: AtomicI64::new(0),
            demand: AtomicI64::new(0),
            requests: AtomicI64::new(0),
            burn: AtomicI64::new(0),
            pace: AtomicI64::new(0),
            fill_after: AtomicI64::new(i64::MIN),
            tight_until: AtomicI64::new(i64::MIN),
            opened: AtomicBool::new(false),
            filled: Notify::new(),
        }
    }

    /// The lease that it is.
    pub(in crate::allocation) fn lease_id(&self) -> Arc<str> {
        Arc::clone(&self.lease_id)
    }

    /// Puts back what a request did not use; gives what the lease is rid of.
    pub(in crate::allocation) fn put_back(&self, held: Credits, used: Credits, now: Timestamp) -> Credits {
        // Where others wait for it, it goes straight back to the counters.
        if used >= held || self.is_tight(now) {
            return held;
        }
        let used = used.max(Credits::ZERO);
        if self.balance.put(held.saturating_sub(used).nanos()) { used } else { held }
    }

    pub(super) fn is_tight(&self, now: Timestamp) -> bool {
        is_tight(self.tight_until.load(Ordering::Acquire), now)
    }

    pub(super) fn may_fill(&self, now: Timestamp) -> bool {
        let pause = self.fill_after.load(Ordering::Relaxed).saturating_sub(now.as_micros());
        // One that lies further ahead was noted before the clock was set back.
        !(1..=LONGEST_PAUSE).contains(&pause) && !self.is_tight(now)
    }

    /// A chain with a request now and then is not busy.
    pub(super) fn is_busy(&self) -> bool {
        self.requests.load(Ordering::Relaxed) >= BUSY || self.pace.load(Ordering::Relaxed) >= BUSY / 2
    }

    pub(super) fn note(&self, amount: i64) {
        self.demand.fetch_add(amount, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn is_for(&self, account: &Id<Account>, domain: Domain, links: &[Link]) -> bool {
        self.domain == domain && self.purse.account == *account && capped(links).eq(self.links.iter())
    }

    pub(super) fn has_any(&self, scopes: &[Scope]) -> bool {
        self.links.iter().any(|link| scopes.contains(&link.scope))
    }

    pub(super) fn lease(&self, amount: i64) -> Lease<'_> {
        Lease {
            id: &self.lease_id,
            holder: &self.holder,
            domain: self.domain,
            links: &self.links,
            amount: Credits::from_nanos(amount),
        }
    }

    /// Takes what was not handed back after all.
    pub(super) fn keep(&self, amount: i64) {
        if !self.balance.put(amount) {
            self.rest.fetch_add(amount, Ordering::AcqRel);
        }
    }

    /// Nothing is taken out or put in from here on.
    pub(super) fn close(&self) {
        self.rest.fetch_add(self.balance.close(), Ordering::AcqRel);
    }

    /// It is closed, and what was free in it has gone back.
    pub(super) fn has_ended(&self) -> bool {
        self.balance.is_closed() && self.rest.load(Ordering::Acquire) == 0
    }

    /// Whether nobody but its purse and the caller refers to it, once it is closed and cannot be found.
    pub(super) fn is_unused(self: &Arc<Self>) -> bool {
        balance::is_unused(self, &self.lease_id)
    }

    /// Ends a beat: how much it has beyond what the chain burns; none when nobody asked in this beat.
    pub(super) fn end_beat(&self) -> Option<i64> {
        let demand = self.demand.swap(0, Ordering::Relaxed);
        let requests = self.requests.swap(0, Ordering::Relaxed);
        let burn = self.burn.load(Ordering::Relaxed);
        self.burn.store((burn / 2).saturating_add(demand / 2), Ordering::Relaxed);
        self.pace.store((self.pace.load(Ordering::Relaxed) + requests) / 2, Ordering::Relaxed);
        if requests == 0 || self.balance.is_closed() {
            self.burn.store(0, Ordering::Relaxed);
            return None;
        }
        Some(self.balance.free().saturating_sub(burn.max(demand).saturating_mul(4)).max(0))
    }

    /// How much a refill takes of `remaining`, at most one in `share`; none so near to the cap that requests go one by
    /// one.
    pub(super) fn size(&self, remaining: i64, share: i64) -> Option<i64> {
        let demand = self.demand.load(Ordering::Relaxed);
        let need = demand / self.requests.load(Ordering::Relaxed).max(1);
        let burn = self.burn.load(Ordering::Relaxed).max(demand);
        let least = need.saturating_mul(2).max(1);
        let amount = burn.saturating_mul(2).max(least.saturating_mul(2)).min(remaining / share);
        (amount >= least).then_some(amount)
    }
}

pub(super) fn capped(links: &[Link]) -> impl Iterator<Item = &Link> {
    links.iter().filter(|link| link.cap.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::budgets::Window;
    use crate::model::scope::ScopeType;

    fn slice(purse: &Arc<Purse>, user: &str) -> Arc<Slice> {
        let window = Window { start: Timestamp::from_micros(0), end: None };
        let link = |scope| Link { scope, cap: Some(Credits::MAX), window };
        let links = [link(Scope::new(ScopeType::Account, "acme")), link(Scope::new(ScopeType::User, user))];
        let slice = Slice::empty(0, Arc::clone(purse), (Domain::Copilot, &links), "lease".into(), "holder".into());
        let slice = Arc::new(slice);
        purse.add(&slice);
        slice
    }

    #[test]
    fn only_chains_with_the_scope_that_ran_short_are_tight_and_only_for_a_while() {
        let purse = Arc::new(Purse::of(Id::stored("acme")));
        let (ada, bob) = (slice(&purse, "ada"), slice(&purse, "bob"));
        let at = Timestamp::from_secs;
        purse.tighten(&[Scope::new(ScopeType::User, "ada")], at(100));
        let later = slice(&purse, "ada");
        let tight = |now| [&ada, &bob, &later].map(|slice| slice.is_tight(now));
        assert_eq!(tight(at(102)), [true, false, true]);
        assert!(purse.is_tight(at(102)));
        assert_eq!(tight(at(103)), [false; 3]);
        assert!(!purse.is_tight(at(103)));
        // A clock that is set back does not make it last.
        assert_eq!(tight(at(50)), [false; 3]);
        purse.tighten(&[Scope::new(ScopeType::Account, "acme")], at(50));
        assert_eq!(tight(at(51)), [true; 3]);
    }

    #[test]
    fn a_refill_is_tried_again_after_its_pause_and_when_the_clock_was_set_back() {
        let purse = Arc::new(Purse::of(Id::stored("acme")));
        let slice = slice(&purse, "ada");
        let at = Timestamp::from_micros;
        assert!(slice.may_fill(at(0)));
        slice.fill_after.store(9_000_000, Ordering::Relaxed);
        assert_eq!(
            [8_750_000, 8_999_999, 9_000_000, 1_000].map(|now| slice.may_fill(at(now))),
            [false, false, true, true]
        );
    }
}
