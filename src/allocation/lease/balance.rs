//! What a slice has free, and whether anybody draws on it: the words that requests, settlements and the keeper share
//! without a lock.
//!
//! Free credits and the end of the slice are one word, so that nothing can be put
//! into a slice that has been emptied for good. `interleavings` explores this file
//! with the atomics of a model checker in place of the standard library's.

use super::atomic::{Arc, AtomicBool, AtomicI64, Ordering, fence};

/// What the word says when the slice gives and takes nothing any more.
const CLOSED: i64 = i64::MIN;

/// Credits that may be drawn, in nanos.
#[derive(Debug)]
pub(super) struct Balance {
    free: AtomicI64,
    /// A refill is wanted or under way.
    filling: AtomicBool,
}

impl Balance {
    pub(super) fn empty() -> Self {
        Self { free: AtomicI64::new(0), filling: AtomicBool::new(false) }
    }

    /// What is free.
    pub(super) fn free(&self) -> i64 {
        self.free.load(Ordering::Acquire).max(0)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.free.load(Ordering::Acquire) == CLOSED
    }

    /// Takes `amount`, if there is as much.
    pub(super) fn take(&self, amount: i64) -> bool {
        let enough = |free: i64| (free >= amount).then(|| free - amount);
        self.free.fetch_update(Ordering::AcqRel, Ordering::Acquire, enough).is_ok()
    }

    /// Puts `amount` in, by a refill or because a request did not need it. `false`: it is
    /// closed, and `amount` is not in it.
    pub(super) fn put(&self, amount: i64) -> bool {
        let open = |free: i64| (free != CLOSED).then(|| free.saturating_add(amount));
        self.free.fetch_update(Ordering::AcqRel, Ordering::Acquire, open).is_ok()
    }

    /// Takes out what is free, at most `most`.
    pub(super) fn withdraw(&self, most: i64) -> i64 {
        let left = |free: i64| (free > 0).then(|| free - free.min(most));
        self.free.fetch_update(Ordering::AcqRel, Ordering::Acquire, left).map_or(0, |free| free.min(most))
    }

    /// From here on nothing is taken or put in; gives what was free.
    pub(super) fn close(&self) -> i64 {
        self.free.swap(CLOSED, Ordering::AcqRel).max(0)
    }

    /// Asks for a refill. `false`: one is on its way.
    pub(super) fn want(&self) -> bool {
        !self.filling.swap(true, Ordering::AcqRel)
    }

    /// The refill that was asked for is over.
    pub(super) fn filled(&self) {
        self.filling.swap(false, Ordering::AcqRel);
    }
}

/// Whether no request and no settlement refers to a slice that is closed and that nobody
/// can find any more, but for its purse and the caller: a request has the slice before it
/// draws, and a settlement the lease's id before the request lets go of the slice.
pub(super) fn is_unused<S>(slice: &Arc<S>, lease_id: &Arc<impl ?Sized>) -> bool {
    let alone = Arc::strong_count(slice) <= 2;
    // What a request did before it let go of the slice is seen from here on.
    fence(Ordering::Acquire);
    alone && Arc::strong_count(lease_id) == 1
}
