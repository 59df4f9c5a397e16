//! How credits go back: idle, recalled, or at the end.
//!
//! The transaction is begun before anything is taken out of a slice, so that nothing is while the database is away.
//! Where it is unknown whether a commit has come about, the slice is [retired](Leases::retire): when nothing draws on
//! it any more, all that its lease's row still has is free, or, if the lease was lost, all that is left of its charge
//! is taken back.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::slice::{Purse, Slice};
use super::{ASK_EVERY, Leases};
use crate::context::{Granted, Tenant};
use crate::id::Id;
use crate::model::accounts::Account;
use crate::model::scope::Scope;
use crate::store::{StoreError, Tx};

/// How many leases are closed in one transaction.
const CLOSED_AT_ONCE: usize = 100;

impl Leases {
    /// How often credits of the account went back; to be read before a reservation is tried.
    pub(in crate::allocation) fn returns(&self, account: &Id<Account>) -> u64 {
        self.known_purse(account).map_or(0, |purse| purse.returns())
    }

    /// Brings back what lies idle in this process on chains with one of these scopes. Whether
    /// any of the account's came back since `seen`.
    pub(in crate::allocation) async fn gather(
        &self,
        account: &Id<Account>,
        scopes: &[Scope],
        seen: u64,
    ) -> Result<bool, StoreError> {
        let Some(purse) = self.known_purse(account) else { return Ok(false) };
        purse.tighten(scopes, self.0.clock.now());
        {
            let _moving = purse.moving.lock().await;
            for slice in purse.slices() {
                if slice.has_any(scopes) {
                    self.give_back(&slice, i64::MAX).await?;
                }
            }
        }
        Ok(purse.returns() != seen)
    }

    /// Asks other processes for what lies idle there on these scopes, unless they were a moment ago.
    pub(in crate::allocation) async fn ask_others(
        &self,
        account: &Id<Account>,
        scopes: &[Scope],
    ) -> Result<(), StoreError> {
        if self.0.store.backend() == "sqlite" {
            return Ok(());
        }
        let purse = self.purse(account);
        let mut asked = purse.asked.lock().await;
        let now = self.0.clock.now();
        asked.retain(|_, at| *at <= now && now < at.plus(ASK_EVERY));
        let due: Vec<_> = scopes.iter().filter(|scope| !asked.contains_key(scope)).cloned().collect();
        if due.is_empty() {
            return Ok(());
        }
        asked.extend(due.iter().map(|scope| (scope.clone(), now)));
        purse.tighten(&due, now);
        let holder = self.holder();
        let mut tx = self.0.store.begin(&Granted::system().over(account.clone())).await?;
        if !tx.leased_elsewhere(&holder, &due).await? {
            return Ok(());
        }
        tx.recall_leases(&due);
        tx.commit().await
    }

    async fn begin_for(&self, purse: &Purse) -> Result<Tx<Tenant>, StoreError> {
        self.0.store.begin(&Granted::system().over(purse.account.clone())).await
    }

    /// Gives at most `most` of what is free back to the counters. The purse's `moving` is held.
    pub(super) async fn give_back(&self, slice: &Arc<Slice>, most: i64) -> Result<(), StoreError> {
        if slice.balance.free() == 0 {
            return Ok(());
        }
        let tx = self.begin_for(&slice.purse).await?;
        match slice.balance.withdraw(most) {
            0 => Ok(()),
            amount => self.hand_back(tx, slice, amount).await,
        }
    }

    /// Gives back what was taken out of the slice; of a lease that was lost, it is taken back
    /// from the charge.
    async fn hand_back(&self, mut tx: Tx<Tenant>, slice: &Arc<Slice>, amount: i64) -> Result<(), StoreError> {
        // Not committed: it still has what it had.
        let open = tx.return_lease(&slice.lease(amount)).await.inspect_err(|_| slice.keep(amount))?;
        tx.commit().await.inspect_err(|_| self.retire(slice))?;
        if !open {
            self.lost(slice);
        }
        slice.purse.returned();
        Ok(())
    }

    /// Ends slices of a purse, and gives back what was free in them. Those that requests still
    /// draw on are left to the next beat. The purse's `moving` is held.
    pub(super) async fn close(&self, purse: &Purse, slices: &[&Arc<Slice>]) -> Result<(), StoreError> {
        // Those that have nothing left, and are drawn on yet, have to wait.
        let due = slices.iter().copied().filter(|slice| !slice.has_ended() || slice.is_unused());
        let (opened, new): (Vec<_>, Vec<_>) = due.partition(|slice| slice.opened.load(Ordering::Acquire));
        for slice in new {
            self.retire(slice);
            if slice.is_unused() {
                purse.remove(slice);
            }
        }
        for some in opened.chunks(CLOSED_AT_ONCE) {
            self.close_opened(purse, some).await?;
        }
        Ok(())
    }

    /// In this order: while there is something to draw, whoever has found a slice may do so
    /// between a look at who uses it and its end.
    async fn close_opened(&self, purse: &Purse, slices: &[&Arc<Slice>]) -> Result<(), StoreError> {
        let mut tx = self.begin_for(purse).await?;
        slices.iter().for_each(|slice| self.retire(slice));
        let (unused, used): (Vec<_>, Vec<_>) = slices.iter().copied().partition(|slice| slice.is_unused());
        let leases: Vec<_> = unused.iter().map(|slice| slice.lease(0)).collect();
        if leases.is_empty() {
            drop(tx);
        } else {
            let closed = tx.close_leases(&leases).await?;
            tx.commit().await?;
            for slice in unused {
                if !closed.contains(&*slice.lease_id) {
                    let mut tx = self.begin_for(purse).await?;
                    tx.reverse_lost_lease(&slice.lease_id).await?;
                    tx.commit().await?;
                }
                purse.remove(slice);
            }
            purse.returned();
        }
        for slice in used {
            if slice.rest.load(Ordering::Acquire) == 0 {
                continue;
            }
            let tx = self.begin_for(purse).await?;
            let rest = slice.rest.swap(0, Ordering::AcqRel);
            self.hand_back(tx, slice, rest).await?;
        }
        Ok(())
    }

    /// Nothing is drawn on the slice from here on, and nobody finds it; a later beat
    /// [closes](Self::close) it.
    pub(super) fn retire(&self, slice: &Arc<Slice>) {
        slice.close();
        let Some(shard) = self.shard(slice.key) else { return };
        let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
        if shard.get(&slice.key).is_some_and(|known| Arc::ptr_eq(known, slice)) {
            shard.remove(&slice.key);
        }
    }

    /// The slice's lease was lost.
    pub(super) fn lost(&self, slice: &Arc<Slice>) {
        if self.holder() == slice.holder {
            self.stand_down();
        }
        self.retire(slice);
    }

    /// Gives everything back, after the last settlement: this process leases no more.
    pub async fn end(&self) {
        self.stand_down();
        let holder = self.take_holder();
        if holder.is_empty() {
            return;
        }
        if let Err(error) = self.end_holder(&holder).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "leases cannot be given back; they are lost later"
            );
        }
    }

    async fn end_holder(&self, holder: &str) -> Result<(), StoreError> {
        for purse in self.purses() {
            let _moving = purse.moving.lock().await;
            let slices = purse.slices();
            self.close(&purse, &slices.iter().collect::<Vec<_>>()).await?;
        }
        // What a request still holds is open in its lease's row, and is lost.
        let mut tx = self.0.store.begin(&Granted::system()).await?;
        tx.fence_lease_holder(holder).await?;
        tx.commit().await
    }
}
