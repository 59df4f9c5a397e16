//! Who fills and empties slices, and keeps this process a holder.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::slice::{Purse, Slice};
use super::{Errand, Leases, REFILL_PAUSE};
use crate::context::Granted;
use crate::credits::Credits;
use crate::policy::budget::Link;
use crate::store::StoreError;
use crate::store::leases::Taken;

/// How many refills and recalls are under way at once.
const ERRANDS: usize = 8;

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
    ///
    /// A sign of life waits for nothing that is done for slices; a refill waits for one slice of its
    /// account at a time.
    pub async fn run(self) {
        let Self { leases, mut inbox } = self;
        let errands = stream::poll_fn(move |context| inbox.poll_recv(context));
        let run = |errand| {
            let leases = leases.clone();
            async move { leases.run_errand(errand).await }
        };
        tokio::join!(
            leases.at_each_beat(Duty::SayThatItLives),
            leases.at_each_beat(Duty::LookAfterOthers),
            leases.at_each_beat(Duty::TendSlices),
            errands.for_each_concurrent(ERRANDS, run),
        );
    }
}

/// What is done once a beat.
#[derive(Debug, Clone, Copy)]
enum Duty {
    SayThatItLives,
    LookAfterOthers,
    TendSlices,
}

fn report(done: Result<(), StoreError>) {
    if let Err(error) = done {
        tracing::warn!(error = &error as &dyn std::error::Error, "leases cannot be kept; trying again");
    }
}

impl Leases {
    async fn at_each_beat(&self, duty: Duty) {
        let mut beat = tokio::time::interval(Duration::from_millis(self.0.config.heartbeat_ms.max(10)));
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            beat.tick().await;
            report(match duty {
                Duty::SayThatItLives => self.keep_alive().await,
                Duty::LookAfterOthers => self.look_after_others().await,
                Duty::TendSlices => self.tend_all().await,
            });
        }
    }

    async fn run_errand(&self, errand: Errand) {
        report(match errand {
            Errand::Refill(slice) => self.refill(&slice).await,
            Errand::Recall(account, scope) => self.gather(&account, &[scope], 0).await.map(drop),
        });
    }

    /// Once a beat: gives back what is idle, in every account.
    async fn tend_all(&self) -> Result<(), StoreError> {
        for purse in self.purses() {
            match self.tend(&purse).await {
                // There is no use in asking for each account.
                Err(error @ StoreError::Unavailable(_)) => return Err(error),
                done => report(done),
            }
        }
        self.forget_empty_purses();
        Ok(())
    }

    /// Idle credits go back, and so does what is more than the chain burns.
    async fn tend(&self, purse: &Purse) -> Result<(), StoreError> {
        let slices = purse.slices();
        let mut idle = Vec::new();
        for slice in &slices {
            match slice.end_beat() {
                None => idle.push(slice),
                Some(0) => {}
                Some(excess) => {
                    let _moving = purse.moving.lock().await;
                    self.give_back(slice, excess).await?;
                }
            }
        }
        let _moving = purse.moving.lock().await;
        self.close(purse, &idle).await
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
        if slice.balance.is_closed() || slice.is_tight(self.0.clock.now()) {
            return Ok(false);
        }
        let mut tx = self.0.store.begin(&Granted::system().over(slice.purse.account.clone())).await?;
        let counters = tx.counters(&slice.links).await?;
        let left = |link: &Link| {
            let counter = counters.iter().find(|counter| counter.key() == link.counter());
            let taken = counter.map_or(Credits::ZERO, |c| c.used.saturating_add(c.leased));
            link.cap.unwrap_or(Credits::MAX).saturating_sub(taken).nanos()
        };
        let remaining = slice.links.iter().map(left).min().unwrap_or(0);
        let share = if self.0.store.backend() == "sqlite" { 2 } else { 8 };
        let Some(amount) = slice.size(remaining, share) else { return Ok(false) };
        slice.opened.store(true, Ordering::Release);
        match tx.take_lease(&slice.lease(amount)).await? {
            Taken::Short => return Ok(false),
            Taken::Fenced => {
                self.lost(slice);
                return Ok(false);
            }
            Taken::Yes => {}
        }
        // Where the answer is lost, its lease's row may have more than it has.
        tx.commit().await.inspect_err(|_| self.retire(slice))?;
        slice.low.store(amount / 2, Ordering::Relaxed);
        if !slice.balance.put(amount) {
            return Ok(false);
        }
        self.0.counts.refills.fetch_add(1, Ordering::Relaxed);
        Ok(true)
    }
}
