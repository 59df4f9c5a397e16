//! Quota leases: slices of a chain's credits that this process has taken ahead of
//! need, so that a warm reservation is one compare-and-swap.
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
//! reservation. Before a request is refused, idle slices of the chains that share the
//! scope which ran short go back in this process, and other processes are asked for
//! theirs over the change feed; for a while nobody leases for those chains again, and
//! everybody else goes on. Nothing is asked for where more was *used* than would leave
//! room for the request.
//!
//! **Who may.** Each process is a holder of its own, made anew at each start, and says
//! that it lives in one row. When it does not for `lease_seconds`, as another process
//! has watched, that one fences it and ends its leases as `lost` says (`holder`). Here
//! a slice stops giving a tenth of that time earlier. On SQLite one process has the lease
//! lock of the file; others reserve without leases.
//!
//! | what happens | what follows |
//! |---|---|
//! | a commit is answered by silence | the slice is given up for a new one; when nothing draws on it any more, its lease's row tells what is free |
//! | `kill -9` | the holder is fenced when its time is over (at the next start, on SQLite); `charge`: an adjustment of what was open, `release`: free |
//! | a process stood still, and its holder was fenced | its slices give nothing; what it settles is charged as usual, and taken back from the charge; when nothing draws on a slice any more, so is the rest |
//! | the database is away | slices go on until they are empty or their time is over, and keep what is idle |
//! | an account is removed | its leases go with it; settlements become orphans of the ledger |

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::mpsc;

use super::ticket::Ticket;
use crate::clock::{SharedClock, Timestamp};
use crate::credits::Credits;
use crate::id::Id;
use crate::journal::Journal;
use crate::model::accounts::Account;
use crate::model::scope::Scope;
use crate::store::Store;
use crate::store::changes::{Change, ChangeKind};
use crate::store::leases::LostLease;

mod balance;
mod holder;
#[cfg(test)]
mod interleavings;
mod keeper;
mod returns;
mod slice;

pub(crate) use holder::end_orphans;
pub use keeper::Keeper;
pub(super) use slice::Slice;

use holder::Watch;
use slice::{Purse, capped};

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
    /// After how many seconds without a sign of life a gateway's leases are lost; at least 10.
    pub lease_seconds: u64,
    /// The beat in milliseconds, at least 10, at which idle credits are given back, and it is looked whether a
    /// sign of life is due and whether others have given theirs.
    pub heartbeat_ms: u64,
    /// What becomes of a lost lease: `charge` or `release`.
    pub lost: LostLease,
}

impl Default for LeaseConfig {
    fn default() -> Self {
        Self { enabled: true, lease_seconds: 180, heartbeat_ms: 1_000, lost: LostLease::Charge }
    }
}

/// How often other processes are asked for the idle credits of one scope.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// When it is looked whether credits have come back: out of other processes, or with what has settled.
pub(super) const PATIENCE: [Duration; 3] =
    [Duration::from_millis(20), Duration::from_millis(80), Duration::from_millis(200)];

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
    /// How long a holder lives without a word.
    lifetime: Duration,
    /// When this one was last heard of, in microseconds.
    renewed_at: AtomicI64,
    watch: Mutex<Watch>,
    /// Which database the leases are of.
    database: OnceLock<String>,
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
    Recall(Id<Account>, Scope),
}

impl Shared {
    /// How long ago this holder was last heard of, in microseconds; below zero when the clock
    /// was set back since.
    fn age(&self, now: Timestamp) -> i64 {
        now.as_micros().saturating_sub(self.renewed_at.load(Ordering::Acquire))
    }

    /// Whether slices may be drawn on. A tenth of the time is kept for a clock that was set
    /// back by as much since.
    fn may_draw(&self, at: Timestamp) -> bool {
        let tenth = i64::try_from(self.lifetime.as_micros() / 10).unwrap_or(0);
        (-tenth..9 * tenth).contains(&self.age(at))
    }
}

const SHARDS: usize = 64;

impl Leases {
    /// Leases out of `store`, and who keeps them; nothing is leased until the keeper runs.
    /// Whose they are is noted in the journal that requests are written down in.
    pub fn new(store: Store, clock: SharedClock, config: LeaseConfig, journal: Option<Journal>) -> (Self, Keeper) {
        let (errands, inbox) = mpsc::unbounded_channel();
        let asked = errands.clone();
        store.on_change(move |change| {
            if let Change { kind: ChangeKind::Leases, account, scope: Some(scope) } = change {
                let _ = asked.send(Errand::Recall(account.clone(), scope.clone()));
            }
        });
        let leases = Self(Arc::new(Shared {
            store,
            clock,
            lifetime: Duration::from_secs(config.lease_seconds.max(10)),
            config,
            hasher: foldhash::fast::FixedState::default(),
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            accounts: Mutex::default(),
            holder: RwLock::new(Arc::from("")),
            renewed_at: AtomicI64::new(i64::MIN),
            watch: Mutex::default(),
            database: OnceLock::new(),
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
        if !self.0.may_draw(ticket.admitted_at) {
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
        if !slice.is_busy() || !self.0.may_draw(ticket.admitted_at) || !slice.may_fill(ticket.admitted_at) {
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
        ticket.domain().hash(&mut hasher);
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
        let holder = self.holder();
        if holder.is_empty() {
            return None;
        }
        let purse = self.purse(ticket.account());
        let mut shard = self.shard(key)?.write().unwrap_or_else(PoisonError::into_inner);
        if shard.get(&key).is_some_and(|slice| slice.balance.is_closed()) {
            shard.remove(&key);
        }
        let slice = shard.entry(key).or_insert_with(|| {
            let chain = (ticket.domain(), ticket.links());
            let lease_id = Arc::from(self.0.store.new_id::<Slice>().as_str());
            let slice = Arc::new(Slice::empty(key, Arc::clone(&purse), chain, lease_id, holder));
            purse.add(&slice);
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
        let purse = accounts.entry(account.clone()).or_insert_with(|| Arc::new(Purse::of(account.clone())));
        Arc::clone(purse)
    }

    fn known_purse(&self, account: &Id<Account>) -> Option<Arc<Purse>> {
        self.0.accounts.lock().unwrap_or_else(PoisonError::into_inner).get(account).cloned()
    }

    fn purses(&self) -> Vec<Arc<Purse>> {
        self.0.accounts.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// What is tight must be remembered for as long as it is.
    fn forget_empty_purses(&self) {
        let now = self.0.clock.now();
        let mut accounts = self.0.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        accounts.retain(|_, purse| Arc::strong_count(purse) > 1 || purse.is_tight(now) || !purse.is_empty());
    }
}
