//! How this process stays a holder, and finds out which others are none any more.
//!
//! A holder says that it lives by writing another moment into its row. Who watches it counts from when it has seen that
//! moment first, by its own clock, and only while it looks often enough: neither a clock that is wrong nor one that is
//! set nor an outage of the database makes a holder that lives look dead.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::Leases;
use crate::allocation::record::Note;
use crate::clock::Timestamp;
use crate::context::Granted;
use crate::credits::Credits;
use crate::store::leases::{Holder, LostLease, Orphan};
use crate::store::{Store, StoreError};

/// How many lost leases are looked up at once.
const MOST_LOST: u32 = 500;

/// How long a lost lease is remembered for what settles late.
const REMEMBERED: Duration = Duration::from_secs(7 * 24 * 3600);

/// What this process has seen of the holders.
#[derive(Debug, Default)]
pub(super) struct Watch {
    looked_at: Timestamp,
    /// What each had said last, and since when.
    heard: HashMap<String, (Timestamp, Timestamp)>,
}

impl Watch {
    /// Whether it is time to look again, nine times in a lease's time.
    fn is_due(&self, now: Timestamp, lifetime: Duration) -> bool {
        now < self.looked_at || now >= self.looked_at.plus(lifetime / 9)
    }

    /// Those of the holders that have said nothing for `lifetime`.
    fn silent(&mut self, holders: Vec<Holder>, now: Timestamp, lifetime: Duration) -> Vec<Holder> {
        // What was not looked at for so long may have been out of sight, or the clock was set.
        if now < self.looked_at || now > self.looked_at.plus(lifetime / 3) {
            self.heard.clear();
        }
        self.looked_at = now;
        let mut seen = std::mem::take(&mut self.heard);
        for Holder { holder, expires_at } in &holders {
            let known = seen.remove(holder).filter(|(said, _)| said == expires_at);
            self.heard.insert(holder.clone(), known.unwrap_or((*expires_at, now)));
        }
        let since = |holder: &str| self.heard.get(holder).map_or(now, |(_, since)| *since);
        holders.into_iter().filter(|of| since(&of.holder).plus(lifetime) <= now).collect()
    }
}

impl Leases {
    pub(super) async fn begin(&self) -> Result<(), StoreError> {
        if !self.0.config.enabled || !self.0.store.lock_for_leases()? {
            return Ok(());
        }
        tracing::debug!("this process takes leases");
        let holder: Arc<str> = Arc::from(self.0.store.new_id::<Leases>().as_str());
        let mut tx = self.0.store.begin(&Granted::system()).await?;
        let now = tx.now();
        tx.insert_lease_holder(&holder, now.plus(self.0.lifetime)).await?;
        if self.0.store.backend() == "sqlite" {
            tx.fence_other_lease_holders(&holder).await?;
        }
        let database = tx.database_id().await?;
        if *self.0.database.get_or_init(|| database.clone()) != database {
            let detail = "the database was replaced while this gateway runs: start it anew";
            return Err(StoreError::Setup(detail.to_owned()));
        }
        tx.commit().await?;
        // Before the first request under it: where it cannot be noted now, the next segment has it.
        if let Some(journal) = &self.0.journal {
            let note =
                Note { holder: &holder, database: Some(&database), in_memory: Some(journal.goes_on_in_memory()) };
            let _ = journal.note(&note.to_bytes());
        }
        *self.0.holder.write().unwrap_or_else(PoisonError::into_inner) = holder;
        self.0.renewed_at.store(now.as_micros(), Ordering::Release);
        self.sweep().await
    }

    /// Once a beat: says that this process lives, if it is time to.
    pub(super) async fn keep_alive(&self) -> Result<(), StoreError> {
        let age = self.0.age(self.0.clock.now());
        let due = i64::try_from(self.0.lifetime.as_micros() / 4).unwrap_or(i64::MAX);
        if (0..due).contains(&age) { Ok(()) } else { self.renew().await }
    }

    async fn renew(&self) -> Result<(), StoreError> {
        let holder = self.holder();
        if holder.is_empty() {
            return self.begin().await;
        }
        let mut tx = self.0.store.begin(&Granted::system()).await?;
        let now = tx.now();
        let lives = tx.renew_lease_holder(&holder, now.plus(self.0.lifetime)).await?;
        tx.commit().await?;
        if lives {
            self.0.renewed_at.store(now.as_micros(), Ordering::Release);
            return Ok(());
        }
        tracing::warn!("this process was away for longer than allocation.leases.lease_seconds; its leases are lost");
        self.stand_down();
        self.take_holder();
        self.purses().iter().flat_map(|purse| purse.slices()).for_each(|slice| self.retire(&slice));
        self.begin().await
    }

    /// Nothing is drawn on slices until this process has said again that it lives.
    pub(super) fn stand_down(&self) {
        self.0.renewed_at.store(i64::MIN, Ordering::Release);
    }

    pub(super) fn holder(&self) -> Arc<str> {
        Arc::clone(&self.0.holder.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn take_holder(&self) -> Arc<str> {
        std::mem::replace(&mut *self.0.holder.write().unwrap_or_else(PoisonError::into_inner), Arc::from(""))
    }

    /// Once a beat: ends what others lost, if it is time to look. Who takes no leases does so too.
    pub(super) async fn look_after_others(&self) -> Result<(), StoreError> {
        let due = {
            let watch = self.0.watch.lock().unwrap_or_else(PoisonError::into_inner);
            watch.is_due(self.0.clock.now(), self.0.lifetime)
        };
        if due { self.sweep().await } else { Ok(()) }
    }

    /// Fences holders that do not live any more, and ends the leases of fenced ones.
    async fn sweep(&self) -> Result<(), StoreError> {
        let mut tx = self.0.store.begin(&Granted::system()).await?;
        let (holders, now) = (tx.lease_holders().await?, tx.now());
        let silent = {
            let mut watch = self.0.watch.lock().unwrap_or_else(PoisonError::into_inner);
            watch.silent(holders, now, self.0.lifetime)
        };
        for holder in &silent {
            tx.fence_silent_lease_holder(holder).await?;
        }
        tx.forget_lost_leases(now.minus(REMEMBERED)).await?;
        tx.commit().await?;
        end_orphans(&self.0.store, None, self.0.config.lost).await
    }
}

/// Ends leases of fenced holders, of one of them or of all, each in a transaction of its own.
pub(crate) async fn end_orphans(store: &Store, holder: Option<&str>, lost: LostLease) -> Result<(), StoreError> {
    loop {
        let orphans = store.read(&Granted::system()).await?.orphaned_leases(holder, MOST_LOST).await?;
        let mut ended = 0;
        for orphan in &orphans {
            match end_lost(store, orphan, lost).await {
                // It stays, and is no reason to leave the others, or not to start.
                Err(error @ StoreError::Unreadable { .. }) => {
                    tracing::error!(lease = orphan.lease_id, %error, "a lost lease cannot be ended");
                }
                other => {
                    other?;
                    ended += 1;
                }
            }
        }
        if ended == 0 || orphans.len() < MOST_LOST as usize {
            return Ok(());
        }
    }
}

async fn end_lost(store: &Store, orphan: &Orphan, lost: LostLease) -> Result<(), StoreError> {
    let mut tx = store.begin(&Granted::system()).await?;
    let charged = tx.end_orphan(orphan, lost).await?;
    tx.commit().await?;
    if let Some(credits) = charged.filter(|credits| *credits != Credits::ZERO) {
        tracing::warn!(
            account = %orphan.account_id, lease = orphan.lease_id, %credits,
            "a gateway is gone with its lease: what was open in it is charged"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFETIME: Duration = Duration::from_secs(180);

    fn holders(said: &[(&str, i64)]) -> Vec<Holder> {
        let holder =
            |(holder, at): &(&str, i64)| Holder { holder: (*holder).to_owned(), expires_at: Timestamp::from_secs(*at) };
        said.iter().map(holder).collect()
    }

    fn silent(watch: &mut Watch, said: &[(&str, i64)], now: i64) -> Vec<String> {
        let found = watch.silent(holders(said), Timestamp::from_secs(now), LIFETIME);
        found.into_iter().map(|holder| holder.holder).collect()
    }

    #[test]
    fn who_says_nothing_for_a_lease_s_time_is_silent_whatever_its_clock_shows() {
        let mut watch = Watch::default();
        for n in 0..9 {
            let now = 10_000 + 20 * n;
            // One lives, with a clock that is an hour behind; one is gone, with one that is ahead.
            assert_eq!(silent(&mut watch, &[("lives", 6_400 + n), ("gone", 14_000)], now), [] as [&str; 0]);
        }
        assert_eq!(silent(&mut watch, &[("lives", 6_500), ("gone", 14_000)], 10_180), ["gone"]);
    }

    #[test]
    fn after_an_outage_or_a_jump_of_the_clock_everybody_has_a_lease_s_time_again() {
        for back_at in [10_120 + 61, 20_000, 9_000] {
            let mut watch = Watch::default();
            for now in [10_000, 10_060, 10_120] {
                assert_eq!(silent(&mut watch, &[("other", 10_000)], now), [] as [&str; 0]);
            }
            for n in 0..9 {
                assert_eq!(silent(&mut watch, &[("other", 10_000)], back_at + 20 * n), [] as [&str; 0]);
            }
            assert_eq!(silent(&mut watch, &[("other", 10_000)], back_at + 180), ["other"]);
        }
    }

    #[test]
    fn it_looks_again_when_it_is_time_or_the_clock_was_set_back() {
        let mut watch = Watch::default();
        silent(&mut watch, &[], 1_000);
        let due = |now| watch.is_due(Timestamp::from_secs(now), LIFETIME);
        assert_eq!([1_000, 1_019, 1_020, 999].map(due), [false, false, true, true]);
    }
}
