//! What was read from the database, kept for longer while the database is away.

use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use moka::future::Cache;

use super::RulesError;
use crate::store::Store;

/// How often it is looked whether the database is back.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Answers that are good for a time, and for a longer one while nobody can be asked.
#[derive(Debug)]
pub(super) struct Kept<K, V>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    fresh: Cache<K, V>,
    stale: Cache<K, V>,
    outage: Arc<Outage>,
}

impl<K, V> Kept<K, V>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// `capacity` answers, good for `ttl`, and during an outage for `grace` more.
    pub(super) fn new(capacity: u64, ttl: Duration, grace: Duration, outage: Arc<Outage>) -> Self {
        let cache = |ttl| Cache::builder().max_capacity(capacity).time_to_live(ttl).build();
        // Not kept at all without grace.
        let kept = if grace.is_zero() { 0 } else { capacity };
        let stale = Cache::builder().max_capacity(kept).time_to_live(ttl + grace).build();
        Self { fresh: cache(ttl), stale, outage }
    }

    /// The answer to `key`: known, or loaded, once for all who wait for it.
    ///
    /// Once it has shown that the database is away, nobody waits for it who can be answered
    /// with what it said last.
    pub(super) async fn get(&self, key: K, load: impl Future<Output = Result<V, RulesError>>) -> Result<V, RulesError> {
        if let Some(known) = self.fresh.get(&key).await {
            return Ok(known);
        }
        if self.outage.lasts()
            && let Some(known) = self.stale.get(&key).await
        {
            return Ok(known);
        }
        match Box::pin(self.fresh.try_get_with(key.clone(), load)).await {
            Ok(loaded) => {
                self.stale.insert(key, loaded.clone()).await;
                Ok(loaded)
            }
            Err(error) => {
                if !error.is_outage() {
                    return Err((*error).clone());
                }
                self.outage.begin();
                self.stale.get(&key).await.ok_or_else(|| (*error).clone())
            }
        }
    }

    /// Forgets an answer that no longer holds.
    pub(super) async fn forget(&self, key: &K) {
        self.fresh.invalidate(key).await;
        self.stale.invalidate(key).await;
    }
}

/// Whether the database was away when it was asked last.
#[derive(Debug)]
pub(super) struct Outage {
    store: Store,
    lasts: AtomicBool,
}

impl Outage {
    pub(super) fn of(store: Store) -> Arc<Self> {
        Arc::new(Self { store, lasts: AtomicBool::new(false) })
    }

    fn lasts(&self) -> bool {
        self.lasts.load(Ordering::Acquire)
    }

    /// Lasts until the database answers; nobody's request looks for that.
    fn begin(self: &Arc<Self>) {
        if self.lasts.swap(true, Ordering::AcqRel) {
            return;
        }
        tracing::warn!("the database is away: who is known is served by the rules that it gave last");
        let outage = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK_AGAIN).await;
                let Some(outage) = outage.upgrade() else { return };
                if outage.store.ping().await.is_ok() {
                    outage.lasts.store(false, Ordering::Release);
                    tracing::info!("the database is back");
                    return;
                }
            }
        });
    }
}
