//! Quota leases: slices of a chain's credits that this process has taken ahead of
//! need, so that a warm reservation is one compare-and-swap (spec: allocations,
//! section 3).
//!
//! A slice belongs to the *capped links of a chain, with their caps and
//! windows*. Everybody who is counted under the same ones draws on the same slice;
//! a cap that changes or a window that rolls makes another key, so the old slice is
//! never drawn on again. Because one slice stands for all scopes of its chain at once,
//! nothing has to be given back half-way, and a lease that is lost is one row in
//! the ledger, which roll-ups can add up.
//!
//! **States of a slice.** *Empty*: known, holds nothing; requests reserve one by one
//! (the statement of [`Tx::reserve`](crate::store::Tx)). *Open*: it holds
//! free credits; `lease row = free + held by requests + settled but not written`.
//! *Dead*: its holder was fenced, or it was closed; whoever still has it finds
//! nothing in it.
//!
//! ```text
//! empty --refill--> open --idle for a beat, recalled, or excess--> open, less of it
//!   ^                |  \--refill, when a half is gone--> open, more of it
//!   |                 \--idle, and nothing draws on it--> closed (row deleted)
//!   \--- a new slice <--- dead <--- holder fenced
//! ```
//!
//! **Sizes.** A refill takes what the chain burned in two beats, at least the need of
//! two requests and at most a share of what remains: a half where this process is
//! alone (SQLite), an eighth where others may be (PostgreSQL). Near the cap that is
//! less than two requests, and nothing is leased: each request makes its own
//! reservation. Before a request is refused, all idle slices of its account in this
//! process go back, and other processes are asked for theirs over the change feed;
//! for a while nobody leases from that account again.
//!
//! **Who may.** Each process is a holder of its own, made anew at each start, and says
//! that it lives in one row. When it does not for `lease_seconds`, any other process
//! fences it and ends its leases as `lost_lease` says. Here a slice stops giving a
//! tenth of that time earlier. On SQLite one process has the lease lock of the
//! file; others reserve without leases.
//!
//! | what happens | what follows |
//! |---|---|
//! | a refill's commit is answered by silence | the credits wait in the lease's row, and are free when it closes |
//! | `kill -9` | the holder is fenced when its time is over (at the next start, on SQLite); `charge`: an adjustment of what was open, `release`: free |
//! | a process stood still, and its holder was fenced | its slices give nothing; what it settles is charged as usual, and taken back from the charge |
//! | the database is away | slices go on until they are empty or their time is over |
//! | an account is removed | its leases go with it; settlements become orphans of the ledger |

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::{Notify, mpsc};

use super::ticket::Ticket;
use crate::clock::{SharedClock, Timestamp};
use crate::context::{Domain, Granted};
use crate::credits::Credits;
use crate::id::Id;
use crate::journal::Journal;
use crate::model::accounts::Account;
use crate::policy::budget::Link;
use crate::store::changes::ChangeKind;
use crate::store::leases::{Lease, LostLease};
use crate::store::{Store, StoreError};

mod balance;
#[cfg(test)]
mod interleavings;
mod keeper;
pub use keeper::Keeper;

use balance::Balance;

/// The atomics of [`balance`], which is compiled against others where it is model-checked.
mod atomic {
    pub(super) use std::sync::Arc;
    pub(super) use std::sync::atomic::{AtomicBool, AtomicI64, Ordering, fence};
}

/// How leases are kept.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LeaseConfig {
    /// Whether credits are leased at all; else each request makes its own reservation in
    /// the database.
    pub enabled: bool,
    /// After how many seconds without a sign of life a gateway's leases are lost.
    pub lease_seconds: u64,
    /// How often idle credits are given back, in milliseconds.
    pub heartbeat_ms: u64,
    /// What becomes of a lost lease: `charge` or `release`.
    pub lost: LostLease,
}

impl Default for LeaseConfig {
    fn default() -> Self {
        Self { enabled: true, lease_seconds: 180, heartbeat_ms: 1_000, lost: LostLease::Charge }
    }
}

/// For how long an account that ran short is not leased from.
const TIGHT: Duration = Duration::from_secs(3);

/// How often other processes are asked for the idle credits of one account.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// From how many requests in a beat on a chain is worth a lease.
const BUSY: i64 = 4;

/// How long a request waits for a refill before it makes a reservation of its own.
const REFILL_PATIENCE: Duration = Duration::from_millis(20);

/// After how long a refill that brought nothing is tried again.
const REFILL_PAUSE: Duration = Duration::from_millis(250);

/// Slices by the hash of their key.
type Shard = RwLock<HashMap<u64, Arc<Slice>>>;

/// The slices of this process.
#[derive(Debug, Clone)]
pub struct Leases(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    store: Store,
    clock: SharedClock,
    config: LeaseConfig,
    hasher: foldhash::fast::FixedState,
    shards: Box<[Shard]>,
    accounts: Mutex<HashMap<Id<Account>, Arc<Purse>>>,
    /// Who this process is to the database; empty while it may not lease.
    holder: RwLock<Arc<str>>,
    /// Until when slices may be drawn on, in microseconds.
    valid_until: AtomicI64,
    /// When it was last looked for lost leases, in microseconds.
    swept_at: AtomicI64,
    errands: mpsc::UnboundedSender<Errand>,
    /// Where it is noted which holder's requests are in it.
    journal: Option<Journal>,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    drawn: AtomicU64,
    refills: AtomicU64,
}

/// What the keeper is asked to do.
#[derive(Debug)]
enum Errand {
    Refill(Arc<Slice>),
    Recall(Id<Account>),
}

/// What the slices of one account share.
#[derive(Debug)]
struct Purse {
    account: Id<Account>,
    /// Until when nothing is leased, in microseconds.
    tight_until: AtomicI64,
    /// When other processes may be asked again, in microseconds.
    ask_after: AtomicI64,
    /// How often credits went back.
    returns: AtomicU64,
    /// Held while credits move between a slice and the database.
    moving: tokio::sync::Mutex<()>,
    slices: Mutex<Vec<Arc<Slice>>>,
}

impl Purse {
    fn is_tight(&self, now: Timestamp) -> bool {
        now.as_micros() < self.tight_until.load(Ordering::Acquire)
    }

    fn tighten(&self, now: Timestamp) {
        self.tight_until.fetch_max(now.plus(TIGHT).as_micros(), Ordering::AcqRel);
    }

    fn slices(&self) -> Vec<Arc<Slice>> {
        self.slices.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Credits of one chain that requests of this process draw on.
#[derive(Debug)]
pub(super) struct Slice {
    key: u64,
    purse: Arc<Purse>,
    domain: Domain,
    /// The capped ones.
    links: Box<[Link]>,
    lease_id: Arc<str>,
    holder: Arc<str>,
    balance: Balance,
    /// Below this it is refilled.
    low: AtomicI64,
    /// Asked for in this beat.
    demand: AtomicI64,
    requests: AtomicI64,
    /// Asked for in an average beat.
    burn: AtomicI64,
    /// Requests in an average beat.
    pace: AtomicI64,
    /// When a refill may be tried again, in microseconds.
    fill_after: AtomicI64,
    /// Its lease may have a row.
    opened: AtomicBool,
    filled: Notify,
}

impl Slice {
    /// The lease that it is.
    pub(super) fn lease_id(&self) -> Arc<str> {
        Arc::clone(&self.lease_id)
    }

    /// Puts back what a request did not use; gives what the lease is rid of.
    pub(super) fn put_back(&self, held: Credits, used: Credits, now: Timestamp) -> Credits {
        // Where others wait for it, it goes straight back to the counters.
        if used >= held || self.purse.is_tight(now) {
            return held;
        }
        let used = used.max(Credits::ZERO);
        if self.balance.put(held.saturating_sub(used).nanos()) { used } else { held }
    }

    fn may_fill(&self, now: Timestamp) -> bool {
        now.as_micros() >= self.fill_after.load(Ordering::Relaxed) && !self.purse.is_tight(now)
    }

    fn note(&self, amount: i64) {
        self.demand.fetch_add(amount, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    fn is_for(&self, account: &Id<Account>, domain: Domain, links: &[Link]) -> bool {
        self.domain == domain && self.purse.account == *account && capped(links).eq(self.links.iter())
    }

    fn lease(&self, amount: i64) -> Lease<'_> {
        Lease {
            id: &self.lease_id,
            holder: &self.holder,
            domain: self.domain,
            links: &self.links,
            amount: Credits::from_nanos(amount),
        }
    }
}

fn capped(links: &[Link]) -> impl Iterator<Item = &Link> {
    links.iter().filter(|link| link.cap.is_some())
}

const SHARDS: usize = 64;

impl Leases {
    /// Leases out of `store`, and who keeps them; nothing is leased until the keeper runs.
    /// Whose they are is noted in the journal that requests are written down in.
    pub fn new(store: Store, clock: SharedClock, config: LeaseConfig, journal: Option<Journal>) -> (Self, Keeper) {
        let (errands, inbox) = mpsc::unbounded_channel();
        let asked = errands.clone();
        store.on_change(move |change| {
            if change.kind == ChangeKind::Leases {
                let _ = asked.send(Errand::Recall(change.account.clone()));
            }
        });
        let leases = Self(Arc::new(Shared {
            store,
            clock,
            config,
            hasher: foldhash::fast::FixedState::default(),
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            accounts: Mutex::default(),
            holder: RwLock::new(Arc::from("")),
            valid_until: AtomicI64::new(i64::MIN),
            swept_at: AtomicI64::new(i64::MIN),
            errands,
            journal,
            counts: Counts::default(),
        }));
        let keeper = Keeper::new(leases.clone(), inbox);
        (leases, keeper)
    }

    /// Reservations that were drawn from slices, and refills of slices.
    pub fn counts(&self) -> (u64, u64) {
        (self.0.counts.drawn.load(Ordering::Relaxed), self.0.counts.refills.load(Ordering::Relaxed))
    }

    /// Draws the ticket's hold from the slice of its chain, if there is enough.
    pub(super) fn draw(&self, ticket: &Ticket) -> Option<Arc<Slice>> {
        if ticket.admitted_at.as_micros() >= self.0.valid_until.load(Ordering::Acquire) {
            return None;
        }
        let key = self.key(ticket)?;
        let slice = self.find(key, ticket)?;
        let drawn = self.draw_from(&slice, ticket);
        if drawn {
            slice.note(ticket.hold.nanos());
        }
        drawn.then_some(slice)
    }

    fn draw_from(&self, slice: &Arc<Slice>, ticket: &Ticket) -> bool {
        if !slice.balance.take(ticket.hold.nanos()) {
            return false;
        }
        if slice.balance.free() < slice.low.load(Ordering::Relaxed) && slice.may_fill(ticket.admitted_at) {
            self.want(slice);
        }
        self.0.counts.drawn.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// For a request that did not find enough: has the slice of its chain refilled, and
    /// draws on it if that is soon done. A chain with a request now and then is left
    /// alone.
    pub(super) async fn draw_after_refill(&self, ticket: &Ticket) -> Option<Arc<Slice>> {
        let slice = self.note(ticket)?;
        let busy = slice.requests.load(Ordering::Relaxed) >= BUSY || slice.pace.load(Ordering::Relaxed) >= BUSY / 2;
        let valid = ticket.admitted_at.as_micros() < self.0.valid_until.load(Ordering::Acquire);
        if !busy || !valid || !slice.may_fill(ticket.admitted_at) {
            return None;
        }
        {
            let filled = slice.filled.notified();
            if !self.draw_from(&slice, ticket) {
                self.want(&slice);
                let _ = tokio::time::timeout(REFILL_PATIENCE, filled).await;
                if !self.draw_from(&slice, ticket) {
                    return None;
                }
            }
        }
        Some(slice)
    }

    fn want(&self, slice: &Arc<Slice>) {
        if slice.balance.want() {
            let _ = self.0.errands.send(Errand::Refill(Arc::clone(slice)));
        }
    }

    /// None: the chain has no cap, so that there is nothing to lease.
    fn key(&self, ticket: &Ticket) -> Option<u64> {
        let mut hasher = self.0.hasher.build_hasher();
        let mut any = false;
        for link in capped(ticket.links()) {
            any = true;
            link.scope.hash(&mut hasher);
            link.window.start.hash(&mut hasher);
            link.cap.map(Credits::nanos).hash(&mut hasher);
        }
        ticket.account().as_str().hash(&mut hasher);
        any.then(|| hasher.finish())
    }

    fn shard(&self, key: u64) -> Option<&Shard> {
        self.0.shards.get(usize::try_from(key % SHARDS as u64).unwrap_or(0))
    }

    fn find(&self, key: u64, ticket: &Ticket) -> Option<Arc<Slice>> {
        let shard = self.shard(key)?.read().unwrap_or_else(PoisonError::into_inner);
        // Two keys with one hash: the second one goes without a lease.
        shard.get(&key).filter(|s| s.is_for(ticket.account(), ticket.domain(), ticket.links())).cloned()
    }

    /// The slice of a ticket's chain, made if need be, with the ticket's demand noted.
    fn note(&self, ticket: &Ticket) -> Option<Arc<Slice>> {
        let key = self.key(ticket)?;
        let holder = Arc::clone(&self.0.holder.read().unwrap_or_else(PoisonError::into_inner));
        if holder.is_empty() {
            return None;
        }
        let purse = self.purse(ticket.account());
        let mut shard = self.shard(key)?.write().unwrap_or_else(PoisonError::into_inner);
        if shard.get(&key).is_some_and(|slice| slice.balance.is_closed()) {
            shard.remove(&key);
        }
        let slice = shard.entry(key).or_insert_with(|| {
            let slice = Arc::new(Slice {
                key,
                purse: Arc::clone(&purse),
                domain: ticket.domain(),
                links: capped(ticket.links()).cloned().collect(),
                lease_id: Arc::from(self.0.store.new_id::<Slice>().as_str()),
                holder,
                balance: Balance::empty(),
                low: AtomicI64::new(0),
                demand: AtomicI64::new(0),
                requests: AtomicI64::new(0),
                burn: AtomicI64::new(0),
                pace: AtomicI64::new(0),
                fill_after: AtomicI64::new(i64::MIN),
                opened: AtomicBool::new(false),
                filled: Notify::new(),
            });
            purse.slices.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&slice));
            slice
        });
        if !slice.is_for(ticket.account(), ticket.domain(), ticket.links()) {
            return None;
        }
        slice.note(ticket.hold.nanos());
        Some(Arc::clone(slice))
    }

    fn purse(&self, account: &Id<Account>) -> Arc<Purse> {
        let mut accounts = self.0.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        let purse = accounts.entry(account.clone()).or_insert_with(|| {
            Arc::new(Purse {
                account: account.clone(),
                tight_until: AtomicI64::new(i64::MIN),
                ask_after: AtomicI64::new(i64::MIN),
                returns: AtomicU64::new(0),
                moving: tokio::sync::Mutex::default(),
                slices: Mutex::default(),
            })
        });
        Arc::clone(purse)
    }

    /// How often credits of the account went back; to be read before a reservation is tried.
    pub(super) fn returns(&self, account: &Id<Account>) -> u64 {
        let accounts = self.0.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        accounts.get(account).map_or(0, |purse| purse.returns.load(Ordering::Acquire))
    }

    /// Brings the account's idle credits in this process back. Whether any came back since `seen`.
    pub(super) async fn gather(&self, account: &Id<Account>, seen: u64) -> Result<bool, StoreError> {
        let purse = {
            let accounts = self.0.accounts.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(purse) = accounts.get(account) else { return Ok(false) };
            Arc::clone(purse)
        };
        purse.tighten(self.0.clock.now());
        self.empty(&purse).await?;
        Ok(purse.returns.load(Ordering::Acquire) != seen)
    }

    async fn empty(&self, purse: &Purse) -> Result<(), StoreError> {
        let _moving = purse.moving.lock().await;
        for slice in purse.slices() {
            self.give_back(&slice, i64::MAX).await?;
        }
        Ok(())
    }

    /// Asks other processes that have leases of the account for what is idle there.
    /// `false`: there is none, or they were asked a moment ago.
    pub(super) async fn ask_others(&self, account: &Id<Account>) -> Result<bool, StoreError> {
        if self.0.store.backend() == "sqlite" {
            return Ok(false);
        }
        let purse = self.purse(account);
        let now = self.0.clock.now();
        let due = |after: i64| (now.as_micros() >= after).then(|| now.plus(ASK_EVERY).as_micros());
        if purse.ask_after.fetch_update(Ordering::AcqRel, Ordering::Acquire, due).is_err() {
            return Ok(false);
        }
        purse.tighten(now);
        let holder = Arc::clone(&self.0.holder.read().unwrap_or_else(PoisonError::into_inner));
        let mut tx = self.0.store.begin(&Granted::system().over(account.clone())).await?;
        if !tx.leased_elsewhere(&holder).await? {
            return Ok(false);
        }
        tx.recall_leases();
        tx.commit().await?;
        Ok(true)
    }

    /// Gives at most `most` of what is free back to the counters. The purse's `moving`
    /// is held.
    async fn give_back(&self, slice: &Arc<Slice>, most: i64) -> Result<(), StoreError> {
        let mut amount = slice.balance.withdraw(most);
        while amount > 0 {
            let open = self.hand_back(slice, amount).await?;
            // A lease that was lost: what is still free is taken back from its charge.
            amount = if open { 0 } else { slice.balance.close() };
        }
        Ok(())
    }

    /// Gives back what was taken out of the slice. `false`: its lease was lost.
    async fn hand_back(&self, slice: &Arc<Slice>, amount: i64) -> Result<bool, StoreError> {
        let returned = async {
            let mut tx = self.0.store.begin(&Granted::system().over(slice.purse.account.clone())).await?;
            let open = tx.return_lease(&slice.lease(amount)).await?;
            tx.commit().await?;
            Ok(open)
        };
        let open = returned.await.inspect_err(|error: &StoreError| {
            // Whether it was committed is unknown: what is not put back is free when the lease closes.
            tracing::warn!(error = error as &dyn std::error::Error, "idle credits cannot be given back");
        })?;
        slice.purse.returns.fetch_add(1, Ordering::AcqRel);
        Ok(open)
    }

    /// Gives everything back, after the last settlement: this process leases no more.
    pub async fn end(&self) {
        self.0.valid_until.store(i64::MIN, Ordering::Release);
        let holder =
            std::mem::replace(&mut *self.0.holder.write().unwrap_or_else(PoisonError::into_inner), Arc::from(""));
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
        let purses: Vec<_> = self.0.accounts.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        for purse in purses {
            let _moving = purse.moving.lock().await;
            for slice in purse.slices() {
                self.close(&slice).await?;
            }
        }
        // What a request still holds is open in its lease's row, and is lost.
        let mut tx = self.0.store.begin(&Granted::system()).await?;
        tx.fence_lease_holder(holder).await?;
        tx.commit().await
    }

    /// Closes the slice, gives back what was free, and ends the lease if nothing draws on
    /// it any more; else it is tried again. The purse's `moving` is held.
    ///
    /// In this order: while there is something to draw, whoever has found the slice may do
    /// so between a look at who uses it and its end.
    async fn close(&self, slice: &Arc<Slice>) -> Result<bool, StoreError> {
        self.retire(slice).await?;
        self.forget(slice);
        if !balance::is_unused(slice, &slice.lease_id) {
            return Ok(false);
        }
        if slice.opened.load(Ordering::Acquire) {
            let mut tx = self.0.store.begin(&Granted::system().over(slice.purse.account.clone())).await?;
            tx.close_lease(&slice.lease(0)).await?;
            tx.commit().await?;
            slice.opened.store(false, Ordering::Release);
        }
        slice.purse.slices.lock().unwrap_or_else(PoisonError::into_inner).retain(|known| !Arc::ptr_eq(known, slice));
        slice.purse.returns.fetch_add(1, Ordering::AcqRel);
        Ok(true)
    }

    /// Ends the slice: what was free goes back, or, where the lease was lost, is taken back from
    /// its charge.
    async fn retire(&self, slice: &Arc<Slice>) -> Result<(), StoreError> {
        let rest = slice.balance.close();
        if rest > 0 {
            self.hand_back(slice, rest).await?;
        }
        Ok(())
    }

    /// Nobody finds the slice from here on.
    fn forget(&self, slice: &Arc<Slice>) {
        let Some(shard) = self.shard(slice.key) else { return };
        let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
        if shard.get(&slice.key).is_some_and(|known| Arc::ptr_eq(known, slice)) {
            shard.remove(&slice.key);
        }
    }
}
