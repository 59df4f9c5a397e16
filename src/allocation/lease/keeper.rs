//! Who fills and empties slices, and keeps this process a holder.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::{Errand, Leases, REFILL_PAUSE, Slice};
use crate::clock::Timestamp;
use crate::context::Granted;
use crate::credits::Credits;
use crate::store::StoreError;
use crate::store::leases::Taken;

/// How many lost leases are ended at once.
const MOST_LOST: u32 = 500;

/// How long a lost lease is remembered for what settles late.
const REMEMBERED: Duration = Duration::from_secs(7 * 24 * 3600);

/// The other half of [`Leases`]: everything that waits for the database.
#[derive(Debug)]
pub struct Keeper {
    leases: Leases,
    inbox: mpsc::UnboundedReceiver<Errand>,
}

impl Keeper {
    pub(super) fn new(leases: Leases, inbox: mpsc::UnboundedReceiver<Errand>) -> Self {
        Self { leases, inbox }
    }

    /// Makes this process a holder; on SQLite it is the only one, and what an earlier
    /// process had is lost.
    ///
    /// # Errors
    /// [`StoreError`]; nothing is leased then, until [`run`](Self::run) succeeds with it.
    pub async fn begin(&self) -> Result<(), StoreError> {
        self.leases.begin().await
    }

    /// Keeps leases until it is dropped.
    pub async fn run(mut self) {
        let mut beat = tokio::time::interval(Duration::from_millis(self.leases.0.config.heartbeat_ms.max(10)));
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let done = tokio::select! {
                errand = self.inbox.recv() => match errand {
                    Some(Errand::Refill(slice)) => self.leases.refill(&slice).await,
                    Some(Errand::Recall(account)) => self.leases.gather(&account, 0).await.map(drop),
                    None => return,
                },
                _ = beat.tick() => self.leases.beat().await,
            };
            if let Err(error) = done {
                tracing::warn!(error = &error as &dyn std::error::Error, "leases cannot be kept; trying again");
            }
        }
    }
}

impl Leases {
    fn lifetime(&self) -> Duration {
        Duration::from_secs(self.0.config.lease_seconds.max(10))
    }

    fn believe_until(&self, renewed_at: Timestamp) {
        let until = renewed_at.plus(self.lifetime() * 9 / 10);
        self.0.valid_until.store(until.as_micros(), Ordering::Release);
    }

    async fn begin(&self) -> Result<(), StoreError> {
        if !self.0.config.enabled || !self.0.store.lock_for_leases()? {
            return Ok(());
        }
        tracing::debug!("this process takes leases");
        let holder: Arc<str> = Arc::from(self.0.store.new_id::<Leases>().as_str());
        let mut tx = self.0.store.begin(&Granted::system()).await?;
        let now = tx.now();
        tx.insert_lease_holder(&holder, now.plus(self.lifetime())).await?;
        if self.0.store.backend() == "sqlite" {
            tx.fence_lease_holders(Some(&holder)).await?;
        }
        tx.commit().await?;
        // Before the first request under it: where it cannot be noted now, the next segment has it.
        if let Some(journal) = &self.0.journal {
            let _ = journal.note(holder.as_bytes());
        }
        *self.0.holder.write().unwrap_or_else(PoisonError::into_inner) = holder;
        self.believe_until(now);
        self.end_lost().await
    }

    /// Says that this process lives, ends what others lost, and gives back what is idle.
    async fn beat(&self) -> Result<(), StoreError> {
        let now = self.0.clock.now();
        let left = self.0.valid_until.load(Ordering::Acquire).saturating_sub(now.as_micros());
        if Duration::from_micros(u64::try_from(left).unwrap_or(0)) < self.lifetime() * 2 / 3 {
            self.renew().await?;
        }
        let swept = Timestamp::from_micros(self.0.swept_at.load(Ordering::Relaxed));
        if now >= swept.plus(self.lifetime() / 9) || now < swept {
            self.end_lost().await?;
        }
        let purses: Vec<_> = self.0.accounts.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        for purse in purses {
            let _moving = purse.moving.lock().await;
            for slice in purse.slices() {
                self.tend(&slice).await?;
            }
        }
        // A purse that is tight must be remembered for as long as it is.
        self.0
            .accounts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|_, purse| Arc::strong_count(purse) > 1 || purse.is_tight(now) || !purse.slices().is_empty());
        Ok(())
    }

    async fn renew(&self) -> Result<(), StoreError> {
        let holder = Arc::clone(&self.0.holder.read().unwrap_or_else(PoisonError::into_inner));
        if holder.is_empty() {
            return self.begin().await;
        }
        let mut tx = self.0.store.begin(&Granted::system()).await?;
        let now = tx.now();
        let lives = tx.renew_lease_holder(&holder, now.plus(self.lifetime())).await?;
        tx.commit().await?;
        if lives {
            self.believe_until(now);
            return Ok(());
        }
        tracing::warn!("this process was away for longer than allocation.leases.lease_seconds; its leases are lost");
        self.bury().await?;
        self.begin().await
    }

    /// Declares every slice dead; what is still free in them is taken back from the charge.
    async fn bury(&self) -> Result<(), StoreError> {
        let purses: Vec<_> = self.0.accounts.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        for purse in purses {
            let _moving = purse.moving.lock().await;
            for slice in purse.slices() {
                self.retire(&slice).await?;
            }
            purse.slices.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
        for shard in &self.0.shards {
            shard.write().unwrap_or_else(PoisonError::into_inner).clear();
        }
        Ok(())
    }

    /// Fences holders whose time is over, and ends the leases of fenced ones.
    async fn end_lost(&self) -> Result<(), StoreError> {
        let mut tx = self.0.store.begin(&Granted::system()).await?;
        tx.fence_lease_holders(None).await?;
        self.0.swept_at.store(tx.now().as_micros(), Ordering::Relaxed);
        let orphans = tx.orphaned_leases(None, MOST_LOST).await?;
        let before = tx.now().minus(REMEMBERED);
        tx.forget_lost_leases(before).await?;
        tx.commit().await?;
        for orphan in orphans {
            let mut tx = self.0.store.begin(&Granted::system()).await?;
            let charged = tx.end_orphan(&orphan, self.0.config.lost).await?;
            tx.commit().await?;
            if let Some(credits) = charged.filter(|credits| *credits != Credits::ZERO) {
                tracing::warn!(
                    account = %orphan.account_id, lease = orphan.lease_id, %credits,
                    "a gateway is gone with its lease: what was open in it is charged"
                );
            }
        }
        Ok(())
    }

    /// Once a beat: idle credits go back, and so does what is more than the chain burns.
    async fn tend(&self, slice: &Arc<Slice>) -> Result<(), StoreError> {
        let demand = slice.demand.swap(0, Ordering::Relaxed);
        let requests = slice.requests.swap(0, Ordering::Relaxed);
        let burn = slice.burn.load(Ordering::Relaxed);
        slice.burn.store((burn / 2).saturating_add(demand / 2), Ordering::Relaxed);
        slice.pace.store((slice.pace.load(Ordering::Relaxed) + requests) / 2, Ordering::Relaxed);
        if requests == 0 {
            slice.burn.store(0, Ordering::Relaxed);
            return self.close(slice).await.map(drop);
        }
        let excess = slice.balance.free().saturating_sub(burn.max(demand).saturating_mul(4));
        if excess > 0 {
            self.give_back(slice, excess).await?;
        }
        Ok(())
    }

    async fn refill(&self, slice: &Arc<Slice>) -> Result<(), StoreError> {
        let filled = self.fill(slice).await;
        if !matches!(filled, Ok(true)) {
            slice.fill_after.store(self.0.clock.now().plus(REFILL_PAUSE).as_micros(), Ordering::Relaxed);
        }
        slice.balance.filled();
        slice.filled.notify_waiters();
        filled.map(drop)
    }

    /// Whether there was something to take.
    async fn fill(&self, slice: &Arc<Slice>) -> Result<bool, StoreError> {
        let _moving = slice.purse.moving.lock().await;
        if slice.balance.is_closed() || slice.purse.is_tight(self.0.clock.now()) {
            return Ok(false);
        }
        let mut tx = self.0.store.begin(&Granted::system().over(slice.purse.account.clone())).await?;
        let counters = tx.counters(&slice.links).await?;
        let left = |link: &crate::policy::budget::Link| {
            let counter = counters.iter().find(|counter| counter.key() == link.counter());
            let taken = counter.map_or(Credits::ZERO, |c| c.used.saturating_add(c.leased));
            link.cap.unwrap_or(Credits::MAX).saturating_sub(taken).nanos()
        };
        let remaining = slice.links.iter().map(left).min().unwrap_or(0);
        let Some(amount) = self.size(slice, remaining) else { return Ok(false) };
        slice.opened.store(true, Ordering::Release);
        match tx.take_lease(&slice.lease(amount)).await? {
            Taken::Short => return Ok(false),
            Taken::Fenced => {
                drop(tx);
                self.retire(slice).await?;
                return Ok(false);
            }
            Taken::Yes => {}
        }
        tx.commit().await?;
        slice.low.store(amount / 2, Ordering::Relaxed);
        if !slice.balance.put(amount) {
            return Ok(false);
        }
        self.0.counts.refills.fetch_add(1, Ordering::Relaxed);
        Ok(true)
    }

    /// How much a refill takes; none so near to the cap that requests go one by one.
    fn size(&self, slice: &Slice, remaining: i64) -> Option<i64> {
        let share = if self.0.store.backend() == "sqlite" { 2 } else { 8 };
        let demand = slice.demand.load(Ordering::Relaxed);
        let need = demand / slice.requests.load(Ordering::Relaxed).max(1);
        let burn = slice.burn.load(Ordering::Relaxed).max(demand);
        let least = need.saturating_mul(2).max(1);
        let amount = burn.saturating_mul(2).max(least.saturating_mul(2)).min(remaining / share);
        (amount >= least).then_some(amount)
    }
}
