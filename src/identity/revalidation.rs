//! Signed tokens that live long, looked at again.
//!
//! A JWT is believed until it expires, though its session may have ended at the issuer.
//! Of the uses of an older one, a share makes the gateway ask (RFC 7662), beside the
//! request: the answer counts for the next one. Which uses is a fixed sequence that
//! looks like chance, so that it is the same in every test.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use foldhash::fast::{FixedState, RandomState};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Digest;
use super::config::{IdentityConfig, ScopesSource};
use super::verified::{Source, Verified};
use crate::clock::Timestamp;

/// Most questions at a time; a use whose turn comes meanwhile passes without one.
const MAX_CONCURRENT: usize = 8;

/// When the issuer was last asked about a token; at first, never.
#[derive(Debug, Default)]
pub(super) struct LastAsked(AtomicI64);

#[derive(Debug)]
pub(super) struct Revalidation {
    /// Of 2^32 uses, how many are asked about.
    share: u64,
    min_age: Duration,
    uses: AtomicU64,
    order: FixedState,
    permits: Arc<Semaphore>,
    gone: moka::sync::Cache<Digest, (), RandomState>,
    pub asked: AtomicU64,
    pub ended: AtomicU64,
}

impl Revalidation {
    /// `None` when nothing is to be asked again, or all is asked each minute anyway.
    pub(super) fn new(config: &IdentityConfig) -> Option<Self> {
        let settings = &config.revalidate;
        if settings.probability <= 0.0 || config.scopes_source == ScopesSource::Introspection {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 2^32")]
        let share = (settings.probability.min(1.0) * 4_294_967_296.0) as u64;
        Some(Self {
            share,
            min_age: Duration::from_secs(settings.min_age_seconds),
            uses: AtomicU64::new(0),
            order: FixedState::default(),
            permits: Arc::new(Semaphore::new(MAX_CONCURRENT)),
            gone: moka::sync::Cache::builder()
                .max_capacity(config.cache_capacity)
                .build_with_hasher(RandomState::default()),
            asked: AtomicU64::new(0),
            ended: AtomicU64::new(0),
        })
    }

    /// Leave to ask about a token, if this use of it is one to ask about: a signed
    /// token, old enough, and not asked about for as long as that.
    pub(super) fn turn(&self, verified: &Verified, last: &LastAsked, now: Timestamp) -> Option<OwnedSemaphorePermit> {
        if verified.source() != Source::Signature {
            return None;
        }
        let asked = last.0.load(Ordering::Relaxed);
        let since = Timestamp::from_micros(asked).max(verified.issued_at()?);
        if now < since.plus(self.min_age) {
            return None;
        }
        let use_ = self.uses.fetch_add(1, Ordering::Relaxed);
        if self.order.hash_one(use_) >> 32 >= self.share {
            return None;
        }
        let permit = Arc::clone(&self.permits).try_acquire_owned().ok()?;
        // Of two uses at once, one asks.
        last.0.compare_exchange(asked, now.as_micros(), Ordering::Relaxed, Ordering::Relaxed).ok()?;
        Some(permit)
    }

    /// Refuses a token from now on.
    pub(super) fn end(&self, digest: Digest) {
        self.ended.fetch_add(1, Ordering::Relaxed);
        self.gone.insert(digest, ());
    }

    pub(super) fn has_ended(&self, digest: &Digest) -> bool {
        self.gone.contains_key(digest)
    }
}
