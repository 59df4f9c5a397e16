//! Allocations at run time: the effective rules of a subject, cached, and the
//! reservation that every admitted request holds until it settles.
//!
//! A warm reservation is drawn from a slice of the chain's credits that this process
//! has leased ([`lease`]), without a statement. Where there is none, or the cap is
//! near, it is made in one transaction over the whole chain, all or nothing.
//! Before the request leaves, it is in the [journal](crate::journal), whatever it holds: a
//! process that is killed leaves there what the next one charges ([`record`]).
//! [`Reservation`] settles exactly once: when it is settled, or when it is dropped. What it held is given back and
//! what was used is added in one transaction, batched by the settler that reads
//! the other end of the [`Outbox`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Deserialize;

use crate::clock::SharedClock;
use crate::context::Granted;
use crate::credits::{Credits, Usd};
use crate::id::Id;
use crate::journal::{Journal, JournalError};
use crate::model::accounts::Account;
use crate::model::usage::{CostSource, RouteKind, Tokens};
use crate::policy::budget::{Drawn, Link, scarce, shortage};
use crate::policy::{Denial, Permit};
use crate::problem::Problem;
use crate::store::ledger::{Counter, Hold};
use crate::store::{Store, StoreError};

pub mod lease;
mod live;
mod outbox;
mod patience;
pub mod record;
pub mod rules;
mod ticket;

pub use crate::model::budgets::Enforcement;
use lease::{LeaseConfig, Leases, PATIENCE};
use live::{LiveRows, undo};
pub use outbox::{Finished, Outbox, Receipt};
use patience::Patience;
use ticket::Ticket;

/// How allocations are enforced.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AllocationConfig {
    /// `hard`, `soft`, `shadow` or `off`, for accounts that do not say it themselves;
    /// `ALCHEMI_ENFORCEMENT`.
    pub enforcement: Enforcement,
    /// Whether an account without an allocation is refused; else it is uncapped.
    pub require: bool,
    /// Seconds after which a reservation that nobody settled is charged at its
    /// estimate. Longer than any request may take.
    pub abandon_after_seconds: u64,
    /// How long effective rules are believed without a word from the change feed, in seconds.
    pub rules_ttl_seconds: u64,
    /// How long they are believed beyond that while the database is away, in seconds; 0: not at all.
    pub rules_stale_seconds: u64,
    /// How many subjects' rules are kept.
    pub rules_capacity: u64,
    /// How many finished requests may wait for the ledger; beyond, none is admitted.
    pub max_waiting: usize,
    /// Credits that are taken ahead of need.
    pub leases: LeaseConfig,
}

impl Default for AllocationConfig {
    fn default() -> Self {
        Self {
            enforcement: Enforcement::Hard,
            require: false,
            abandon_after_seconds: 2 * 3600,
            rules_ttl_seconds: 60,
            rules_stale_seconds: 600,
            rules_capacity: 100_000,
            max_waiting: 100_000,
            leases: LeaseConfig::default(),
        }
    }
}

/// Makes reservations.
#[derive(Debug, Clone)]
pub struct Allocations(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    store: Store,
    clock: SharedClock,
    abandon_after: Duration,
    max_waiting: usize,
    outbox: Outbox,
    leases: Option<Leases>,
    journal: Option<Journal>,
    rows: Arc<LiveRows>,
    patience: Arc<Patience>,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    reserved: AtomicU64,
    exhausted: AtomicU64,
    over_cap: AtomicU64,
    would_refuse: AtomicU64,
}

/// Why there is no reservation.
#[derive(Debug, thiserror::Error)]
pub enum ReserveError {
    /// The policy's answer: a scope's credits do not suffice.
    #[error("the allocation is exhausted")]
    Exhausted(Box<Denial>),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The request cannot be written down.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl From<ReserveError> for Problem {
    fn from(error: ReserveError) -> Self {
        match error {
            ReserveError::Exhausted(denial) => (*denial).into(),
            ReserveError::Store(error) => error.into(),
            ReserveError::Journal(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "not admitted");
                Self::unavailable("journal_unavailable", "This gateway cannot write down what it admits; try again", 5)
            }
        }
    }
}

/// A permitted request that is about to be admitted.
#[derive(Debug)]
pub struct Admission {
    /// The proof that it may.
    pub permit: Permit,
    /// Its id.
    pub request_id: Arc<str>,
    /// The kind of route.
    pub kind: RouteKind,
    /// The token's subject.
    pub subject: Arc<str>,
    /// The model that it asks for.
    pub model: Arc<str>,
    /// The guardrail that acted on it.
    pub guardrail: Option<String>,
    /// What it is expected to cost; none when the model has no price.
    pub estimate: Option<Usd>,
    /// What it is expected to use.
    pub estimated_tokens: Tokens,
}

/// What an admitted request used, as the meter found it.
#[derive(Debug, Clone, Default)]
pub struct Bill {
    /// Tokens by kind.
    pub tokens: Tokens,
    /// What the upstream charges.
    pub cost: Usd,
    /// How that is known.
    pub source: Option<CostSource>,
    /// Remarks for the ledger row.
    pub marks: Vec<&'static str>,
    /// The upstream's id of the call.
    pub upstream_call_id: Option<String>,
    /// The upstream's status; 0 when it never answered.
    pub status: u16,
    /// The guardrail that found something in the answer.
    pub guardrail: Option<String>,
}

impl Allocations {
    /// Reservations in `store`, settled through `outbox`; neither leased nor in a journal.
    pub fn new(store: Store, clock: SharedClock, config: &AllocationConfig, outbox: Outbox) -> Self {
        Self::with(store, clock, config, outbox, None, None)
    }

    /// The same, drawn from `leases` where they suffice, and written down in `journal`.
    pub fn with(
        store: Store,
        clock: SharedClock,
        config: &AllocationConfig,
        outbox: Outbox,
        leases: Option<Leases>,
        journal: Option<Journal>,
    ) -> Self {
        Self(Arc::new(Shared {
            store,
            clock,
            abandon_after: Duration::from_secs(config.abandon_after_seconds),
            max_waiting: config.max_waiting,
            outbox,
            leases,
            journal,
            rows: Arc::default(),
            patience: Arc::default(),
            counts: Counts::default(),
        }))
    }

    /// Reservations made, and refused because credits did not suffice.
    pub fn counts(&self) -> (u64, u64) {
        (self.0.counts.reserved.load(Ordering::Relaxed), self.0.counts.exhausted.load(Ordering::Relaxed))
    }

    /// Reservations made over a cap under `soft` enforcement, and those under `shadow` that
    /// would have been refused.
    pub fn over_cap_counts(&self) -> (u64, u64) {
        (self.0.counts.over_cap.load(Ordering::Relaxed), self.0.counts.would_refuse.load(Ordering::Relaxed))
    }

    /// Reservations drawn from leases, and refills of leases.
    pub fn lease_counts(&self) -> (u64, u64) {
        self.0.leases.as_ref().map_or((0, 0), Leases::counts)
    }

    /// Holds the estimate on every capped scope of the permit's chain; at once, when the
    /// chain's slice has enough.
    ///
    /// Once begun it is carried through, whether or not the caller still waits: a
    /// reservation that nobody takes is given back.
    ///
    /// # Errors
    /// [`ReserveError::Exhausted`] with the scope that lacks credits, under `hard`
    /// enforcement; [`ReserveError::Store`] when the database cannot be asked, or has not taken
    /// for too long what is over; [`ReserveError::Journal`] when the request cannot be written down.
    pub async fn reserve(&self, admission: Admission) -> Result<Reservation, ReserveError> {
        let waiting = self.0.outbox.waiting();
        if waiting >= self.0.max_waiting {
            return Err(StoreError::Unavailable(format!("{waiting} finished requests wait for the ledger")).into());
        }
        let mut ticket = Ticket::of(admission, self.0.clock.now());
        // What has no cap holds nothing; without a journal its row is what a crash leaves.
        let free = self.0.journal.is_some() && ticket.links().iter().all(|link| link.cap.is_none());
        let mut reservation = if free || ticket.enforcement() == Enforcement::Off {
            self.reserved(ticket.holding_nothing())
        } else if let Some(slice) = self.0.leases.as_ref().and_then(|leases| leases.draw(&ticket)) {
            ticket.slice = Some(slice);
            self.reserved(ticket)
        } else {
            let this = self.clone();
            let carried = tokio::spawn(async move { this.hold(ticket).await });
            carried.await.unwrap_or_else(|error| Err(StoreError::Unavailable(error.to_string()).into()))?
        };
        if let Err(error) = reservation.write_down().await {
            reservation.unmake();
            return Err(error.into());
        }
        Ok(reservation)
    }

    /// Counted where it comes into being: whoever leaves before it is handed over settles it all the same.
    fn reserved(&self, ticket: Ticket) -> Reservation {
        self.0.counts.reserved.fetch_add(1, Ordering::Relaxed);
        Reservation { ticket: Some(Box::new(ticket)), shared: Arc::clone(&self.0) }
    }

    async fn hold(&self, mut ticket: Ticket) -> Result<Reservation, ReserveError> {
        if let Some(leases) = &self.0.leases
            && let Some(slice) = leases.draw_after_refill(&ticket).await
        {
            ticket.slice = Some(slice);
            return Ok(self.reserved(ticket));
        }
        let seen = self.0.leases.as_ref().map_or(0, |leases| leases.returns(ticket.account()));
        if self.try_hold(&mut ticket).await? || self.hold_what_comes_back(&mut ticket, seen).await? {
            return Ok(self.reserved(ticket));
        }
        let over = match ticket.enforcement() {
            Enforcement::Soft => Some(&self.0.counts.over_cap),
            Enforcement::Shadow => Some(&self.0.counts.would_refuse),
            Enforcement::Hard | Enforcement::Off => None,
        };
        if let Some(count) = over {
            ticket.over_cap = true;
            if !self.try_hold(&mut ticket).await? {
                // More than a counter can hold: its use is counted all the same.
                ticket = ticket.holding_nothing();
            }
            count.fetch_add(1, Ordering::Relaxed);
            return Ok(self.reserved(ticket));
        }
        self.0.counts.exhausted.fetch_add(1, Ordering::Relaxed);
        Err(ReserveError::Exhausted(Box::new(self.shortage(&ticket).await?)))
    }

    /// Tries again with credits that lie idle in slices, here and in other processes, and with what requests
    /// held that are over and on their way into the ledger.
    async fn hold_what_comes_back(&self, ticket: &mut Ticket, seen: u64) -> Result<bool, StoreError> {
        let counters = self.counters(ticket).await?;
        let Some(scopes) = scarce(&drawn(ticket.links(), &counters), ticket.hold) else { return Ok(false) };
        if let Some(leases) = &self.0.leases {
            if leases.gather(ticket.account(), &scopes, seen).await? && self.try_hold(ticket).await? {
                return Ok(true);
            }
            leases.ask_others(ticket.account(), &scopes).await?;
        }
        // Who is let through over the cap does not wait; whoever tries caps out does, to see whom they would refuse.
        if ticket.enforcement() == Enforcement::Soft {
            return Ok(false);
        }
        let Some(_waiting) = self.0.patience.wait(ticket.account()) else { return Ok(false) };
        for pause in PATIENCE {
            tokio::time::sleep(pause).await;
            let counters = self.counters(ticket).await?;
            let fits = drawn(ticket.links(), &counters).iter().all(|drawn| drawn.fits(ticket.hold));
            if fits && self.try_hold(ticket).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn counters(&self, ticket: &Ticket) -> Result<Vec<Counter>, StoreError> {
        let granted = Granted::system().over(ticket.account().clone());
        self.0.store.read(&granted).await?.counters(ticket.links()).await
    }

    async fn try_hold(&self, ticket: &mut Ticket) -> Result<bool, StoreError> {
        let granted = Granted::system().over(ticket.account().clone());
        let mut tx = self.0.store.begin(&granted).await?;
        let detail = ticket.detail();
        let held = tx
            .reserve(&Hold {
                request_id: &ticket.request_id,
                links: ticket.links(),
                amount: ticket.hold,
                over_cap: ticket.over_cap,
                detail: &detail,
                expires_at: ticket.admitted_at.plus(self.0.abandon_after),
            })
            .await?;
        if held {
            if let Err(error) = tx.commit().await {
                // It may have been made all the same.
                let store = self.0.store.clone();
                tokio::spawn(undo(store, granted, Arc::clone(&ticket.request_id), ticket.links().to_vec()));
                return Err(error);
            }
            ticket.row = Some(self.0.rows.insert(&ticket.request_id));
        }
        Ok(held)
    }

    /// Which scope lacks how much; asked only after a refusal, so that the allow
    /// path does not pay for it.
    async fn shortage(&self, ticket: &Ticket) -> Result<Denial, StoreError> {
        let counters = self.counters(ticket).await?;
        Ok(shortage(&drawn(ticket.links(), &counters), ticket.hold).unwrap_or(Denial::AllocationMissing))
    }

    /// Whether `subject` of `account` made the stored response with this id. A response
    /// that was answered a moment ago may still be on its way into the ledger.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn owns_response(&self, account: &Id<Account>, subject: &str, id: &str) -> Result<bool, StoreError> {
        let granted = Granted::system().over(account.clone());
        for pause in [0, 50, 200, 750] {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            if self.0.store.read(&granted).await?.owns_response(subject, id).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Hands reservations that nobody settled to the settler, which charges them at
    /// their estimate, marked `unsettled`; gives how many there were. From then on this process
    /// has them: they are renewed until they are in the ledger.
    ///
    /// # Errors
    /// [`StoreError`]; what was not charged is found again.
    pub async fn charge_abandoned(&self) -> Result<usize, StoreError> {
        let abandoned = self.0.store.read(&Granted::system()).await?.abandoned(MOST_ABANDONED).await?;
        let now = self.0.clock.now();
        let finished = abandoned.iter().filter_map(|found| {
            let row = self.0.rows.claim(&found.request_id)?;
            Some(Finished::abandoned(ticket::unsettled(found, now)?, row))
        });
        Ok(finished.map(|finished| self.0.outbox.send(finished)).filter(|sent| *sent).count())
    }

    /// Says of every reservation that has a row, and whose request this process has, that it
    /// is not abandoned: to be called three times in the time after which it would be.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn renew_rows(&self) -> Result<(), StoreError> {
        let ids = self.0.rows.ids();
        if ids.is_empty() {
            return Ok(());
        }
        let mut tx = self.0.store.begin(&Granted::system()).await?;
        let until = tx.now().plus(self.0.abandon_after);
        tx.renew_reservations(&ids, until).await?;
        tx.commit().await
    }

    /// After how long a reservation that nobody renews is charged.
    pub fn abandon_after(&self) -> Duration {
        self.0.abandon_after
    }
}

/// The links with what their counters hold; one that was never touched holds nothing.
pub fn drawn<'a>(links: &'a [Link], counters: &[Counter]) -> Vec<Drawn<'a>> {
    let of = |link: &'a Link| {
        let counter = counters.iter().find(|counter| counter.key() == link.counter());
        let (used, reserved) = counter.map(|counter| (counter.used, counter.leased)).unwrap_or_default();
        Drawn { link, used, reserved }
    };
    links.iter().map(of).collect()
}

/// How many abandoned reservations are handed over at once.
const MOST_ABANDONED: u32 = 10_000;

/// Credits held for one admitted request, and the duty to settle.
///
/// Dropped without [`settle`](Self::settle), it is given back whole and the ledger
/// says `not_forwarded`: so only what was never sent may be dropped.
#[derive(Debug)]
#[must_use = "a reservation that is dropped is given back, as if nothing had been sent"]
pub struct Reservation {
    ticket: Option<Box<Ticket>>,
    shared: Arc<Shared>,
}

impl Reservation {
    /// Whether it was made over a cap, and the client is to be told.
    pub fn is_over_cap(&self) -> bool {
        self.ticket.as_ref().is_some_and(|ticket| ticket.over_cap && ticket.enforcement() == Enforcement::Soft)
    }

    /// Ends the reservation with what was used.
    pub fn settle(mut self, bill: Bill) {
        self.send(bill);
    }

    /// Begins its entry in the journal.
    async fn write_down(&mut self) -> Result<(), JournalError> {
        let (Some(journal), Some(ticket)) = (&self.shared.journal, &mut self.ticket) else { return Ok(()) };
        ticket.entry = journal.begin(|out| record::admit(ticket, out))?;
        journal.synced(&ticket.entry).await
    }

    /// Undoes a reservation that could not be written down, without a row if nothing is owed.
    fn unmake(mut self) {
        let at = self.shared.clock.now();
        let Some(ticket) = &mut self.ticket else { return };
        // What the journal has, synced or not, is settled like anything that was not forwarded.
        if ticket.slice.is_some() && !ticket.entry.is_written() {
            ticket.put_back(&Bill::default(), at);
            if ticket.owed() == Credits::ZERO {
                self.ticket = None;
            }
        }
    }

    fn send(&mut self, bill: Bill) {
        let Some(mut ticket) = self.ticket.take() else { return };
        let shared = &*self.shared;
        let (request_id, at) = (Arc::clone(&ticket.request_id), shared.clock.now());
        ticket.put_back(&bill, at);
        if let Some(journal) = &shared.journal {
            journal.finish(&ticket.entry, |out| record::settle(&ticket, &bill, at, out));
        }
        if !shared.outbox.send(Finished::settled(ticket, bill, at)) {
            // The settler is gone: the entry stays for the next process, and so does a reservation's row.
            tracing::error!(%request_id, "settled after the settler has stopped");
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.send(Bill { marks: vec!["not_forwarded"], ..Bill::default() });
    }
}
