//! Allocations at run time: the effective rules of a subject, cached, and the
//! reservation that every admitted request holds until it settles.
//!
//! A reservation is made in one transaction over the whole chain, all or nothing,
//! and is the only statement on the allow path. [`Reservation`] settles exactly
//! once: when it is settled, or when it is dropped. What it held is given back and
//! what was used is added in one transaction, batched by the settler that reads
//! the other end of the [`Outbox`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::clock::{SharedClock, Timestamp};
use crate::context::{Domain, Granted};
use crate::credits::{Credits, Factor, Usd};
use crate::id::Id;
use crate::model::accounts::Account;
use crate::model::budgets::day_of;
use crate::model::usage::{CostSource, CounterKey, Dimensions, EntryKind, LedgerRow, RouteKind, Tokens};
use crate::policy::budget::Link;
use crate::policy::{Denial, Permit, Rules};
use crate::store::ledger::{Abandoned, Hold, Settlement};
use crate::store::{Store, StoreError};

pub mod rules;

/// What happens to a request that does not fit into a cap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Enforcement {
    /// It is refused.
    #[default]
    Hard,
    /// It is let through and its ledger row is marked `over_cap`.
    Soft,
    /// Nothing is held; usage is counted.
    Off,
}

/// How allocations are enforced.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AllocationConfig {
    /// `hard`, `soft` or `off`; `ALCHEMI_ENFORCEMENT`.
    pub enforcement: Enforcement,
    /// Whether an account without an allocation is refused; else it is uncapped.
    pub require: bool,
    /// Seconds after which a reservation that nobody settled is charged at its
    /// estimate. Longer than any request may take.
    pub abandon_after_seconds: u64,
    /// How long effective rules are believed without a word from the change feed, in seconds.
    pub rules_ttl_seconds: u64,
    /// How many subjects' rules are kept.
    pub rules_capacity: u64,
}

impl Default for AllocationConfig {
    fn default() -> Self {
        Self {
            enforcement: Enforcement::Hard,
            require: false,
            abandon_after_seconds: 2 * 3600,
            rules_ttl_seconds: 60,
            rules_capacity: 100_000,
        }
    }
}

/// The near end of the queue that the settler drains.
pub type Outbox = mpsc::UnboundedSender<Settlement>;

/// Makes reservations.
#[derive(Debug, Clone)]
pub struct Allocations(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    store: Store,
    clock: SharedClock,
    enforcement: Enforcement,
    abandon_after: Duration,
    outbox: Outbox,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    reserved: AtomicU64,
    exhausted: AtomicU64,
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
}

/// A request that is about to be admitted.
#[derive(Debug, Clone)]
pub struct Admission<'a> {
    /// Its id.
    pub request_id: &'a str,
    /// The kind of route.
    pub kind: RouteKind,
    /// The rules that it was permitted under.
    pub rules: &'a Rules,
    /// The proof of it.
    pub permit: &'a Permit,
    /// Whom and what it counts for.
    pub dimensions: Dimensions,
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
}

impl Allocations {
    /// Reservations in `store`, settled through `outbox`.
    pub fn new(store: Store, clock: SharedClock, config: &AllocationConfig, outbox: Outbox) -> Self {
        Self(Arc::new(Shared {
            store,
            clock,
            enforcement: config.enforcement,
            abandon_after: Duration::from_secs(config.abandon_after_seconds),
            outbox,
            counts: Counts::default(),
        }))
    }

    /// Reservations made, and refused because credits did not suffice.
    pub fn counts(&self) -> (u64, u64) {
        (self.0.counts.reserved.load(Ordering::Relaxed), self.0.counts.exhausted.load(Ordering::Relaxed))
    }

    /// Holds the estimate on every capped scope of the permit's chain.
    ///
    /// # Errors
    /// [`ReserveError::Exhausted`] with the scope that lacks credits, under `hard`
    /// enforcement; [`ReserveError::Store`] when the database cannot be asked.
    pub async fn reserve(&self, admission: Admission<'_>) -> Result<Reservation, ReserveError> {
        let hold = admission.estimate.and_then(|cost| admission.rules.factor.credits(cost)).unwrap_or_default();
        let mut ticket = Ticket::of(&admission, hold, self.0.clock.now());
        if self.0.enforcement == Enforcement::Off {
            ticket.held.clear();
            return Ok(self.reservation(ticket));
        }
        // In a task of its own, because a caller who leaves meanwhile must not leave a hold
        // behind that nobody gives back: a reservation that nobody takes gives itself back.
        let (own, links) = (self.clone(), admission.permit.links().to_vec());
        match tokio::spawn(async move { own.hold(ticket, &links).await }).await {
            Ok(reserved) => reserved,
            Err(ended) => match ended.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(ended) => Err(StoreError::Unavailable(ended.to_string()).into()),
            },
        }
    }

    fn reservation(&self, ticket: Ticket) -> Reservation {
        self.0.counts.reserved.fetch_add(1, Ordering::Relaxed);
        let (outbox, clock) = (self.0.outbox.clone(), Arc::clone(&self.0.clock));
        Reservation { ticket: Some(Box::new(ticket)), outbox, clock }
    }

    async fn hold(&self, mut ticket: Ticket, links: &[Link]) -> Result<Reservation, ReserveError> {
        if !self.try_hold(&ticket, links).await? {
            self.0.counts.exhausted.fetch_add(1, Ordering::Relaxed);
            if self.0.enforcement == Enforcement::Hard {
                return Err(ReserveError::Exhausted(Box::new(self.shortage(&ticket, links).await?)));
            }
            ticket.over_cap = true;
            self.try_hold(&ticket, links).await?;
        }
        Ok(self.reservation(ticket))
    }

    async fn try_hold(&self, ticket: &Ticket, links: &[Link]) -> Result<bool, StoreError> {
        let granted = Granted::system().over(ticket.account.clone());
        let mut tx = self.0.store.begin(&granted).await?;
        let detail = serde_json::to_string(ticket).unwrap_or_default();
        let held = tx
            .reserve(&Hold {
                request_id: &ticket.request_id,
                links,
                amount: ticket.hold,
                over_cap: ticket.over_cap,
                detail: &detail,
                expires_at: ticket.admitted_at.plus(self.0.abandon_after),
            })
            .await?;
        if held {
            tx.commit().await?;
        }
        Ok(held)
    }

    /// Which scope lacks how much; asked only after a refusal, so that the allow
    /// path does not pay for it.
    async fn shortage(&self, ticket: &Ticket, links: &[Link]) -> Result<Denial, StoreError> {
        let granted = Granted::system().over(ticket.account.clone());
        let counters = self.0.store.read(&granted).await?.counters(links).await?;
        let left = |link: &Link| {
            let cap = link.cap?;
            let taken = counters
                .iter()
                .find(|c| c.key() == link.counter())
                .map_or(Credits::ZERO, |c| c.used.saturating_add(c.leased));
            Some(cap.saturating_sub(taken))
        };
        let scarcest = links.iter().filter_map(|l| Some((l, left(l)?))).min_by_key(|(_, left)| *left);
        Ok(match scarcest {
            Some((link, remaining)) => Denial::AllocationExhausted {
                scope: link.scope.clone(),
                remaining: remaining.max(Credits::ZERO),
                requested: ticket.hold,
                resets_at: link.window.end,
            },
            None => Denial::AllocationMissing,
        })
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

    /// Charges reservations that nobody settled at their estimate, marked
    /// `unsettled`; gives how many there were.
    ///
    /// # Errors
    /// [`StoreError`]; what was not charged is found again.
    pub async fn charge_abandoned(&self) -> Result<usize, StoreError> {
        let mut total = 0;
        loop {
            let mut tx = self.0.store.begin(&Granted::system()).await?;
            let abandoned = tx.abandoned(200).await?;
            if abandoned.is_empty() {
                return Ok(total);
            }
            let now = self.0.clock.now();
            let batch: Vec<Settlement> = abandoned.iter().map(|a| Ticket::recover(a).unsettled(now)).collect();
            total += tx.settle(&batch).await?;
            tx.commit().await?;
        }
    }
}

/// What an admitted request was admitted with; kept in the reservation's row too,
/// so that another process can settle it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Ticket {
    request_id: String,
    #[serde(skip, default = "Id::nobody")]
    account: Id<Account>,
    kind: RouteKind,
    domain: Domain,
    dimensions: Dimensions,
    counters: Vec<CounterKey>,
    held: Vec<CounterKey>,
    #[serde(skip)]
    hold: Credits,
    over_cap: bool,
    factor: Factor,
    estimate: Usd,
    estimated_tokens: Tokens,
    plan_id: Option<String>,
    cycle_start: Option<i64>,
    zone: String,
    #[serde(skip)]
    admitted_at: Timestamp,
}

impl Ticket {
    fn of(admission: &Admission<'_>, hold: Credits, now: Timestamp) -> Self {
        let (rules, links) = (admission.rules, admission.permit.links());
        let plan = rules.budget.plan.as_ref().filter(|_| rules.domain == Domain::Copilot);
        Self {
            request_id: admission.request_id.to_owned(),
            account: rules.account.clone(),
            kind: admission.kind,
            domain: rules.domain,
            dimensions: admission.dimensions.clone(),
            counters: links.iter().map(Link::counter).collect(),
            held: links.iter().filter(|l| l.cap.is_some()).map(Link::counter).collect(),
            hold,
            over_cap: false,
            factor: rules.factor,
            estimate: admission.estimate.unwrap_or_default(),
            estimated_tokens: admission.estimated_tokens,
            plan_id: plan.map(|p| p.id.to_string()),
            cycle_start: plan.map(|p| p.window(now, &rules.budget.zone).start.as_micros()),
            zone: rules.budget.zone.iana_name().unwrap_or("UTC").to_owned(),
            admitted_at: now,
        }
    }

    /// The ticket of a reservation's row. A row of a version whose detail cannot be
    /// read is still charged what it holds.
    fn recover(abandoned: &Abandoned) -> Self {
        let mut ticket = serde_json::from_str(&abandoned.detail).unwrap_or_else(|error| {
            tracing::error!(request_id = abandoned.request_id, %error, "a reservation's detail is unreadable");
            Self::unknown(abandoned)
        });
        ticket.account = abandoned.account_id.clone();
        ticket.hold = abandoned.amount;
        ticket.admitted_at = abandoned.created_at;
        ticket
    }

    fn unknown(abandoned: &Abandoned) -> Self {
        Self {
            request_id: abandoned.request_id.clone(),
            account: abandoned.account_id.clone(),
            kind: RouteKind::Chat,
            domain: Domain::Copilot,
            dimensions: Dimensions::default(),
            counters: Vec::new(),
            held: Vec::new(),
            hold: abandoned.amount,
            over_cap: false,
            factor: Factor::ONE,
            estimate: Usd::from_nanos(abandoned.amount.nanos()),
            estimated_tokens: Tokens::default(),
            plan_id: None,
            cycle_start: None,
            zone: "UTC".to_owned(),
            admitted_at: abandoned.created_at,
        }
    }

    fn unsettled(self, now: Timestamp) -> Settlement {
        let bill = Bill {
            tokens: self.estimated_tokens,
            cost: self.estimate,
            source: Some(CostSource::Unsettled),
            marks: vec!["unsettled"],
            ..Bill::default()
        };
        self.settled(bill, now)
    }

    fn settled(self, bill: Bill, now: Timestamp) -> Settlement {
        let zone = TimeZone::get(&self.zone).unwrap_or(TimeZone::UTC);
        let mut marks = bill.marks;
        if self.over_cap {
            marks.push("over_cap");
        }
        let row = LedgerRow {
            day: day_of(self.admitted_at, &zone),
            request_id: self.request_id,
            account_id: self.account,
            kind: self.kind,
            entry: EntryKind::Usage,
            domain: self.domain,
            dimensions: self.dimensions,
            tokens: bill.tokens,
            raw_cost: bill.cost,
            credit_factor: self.factor,
            // An amount that does not fit is held at the largest: the row must be written.
            credits: self.factor.credits(bill.cost).unwrap_or(Credits::MAX),
            cost_source: bill.source.unwrap_or(CostSource::Free),
            marks: marks.join(","),
            upstream_call_id: bill.upstream_call_id,
            status: bill.status,
            duration_us: i64::try_from(now.since(self.admitted_at).as_micros()).unwrap_or(i64::MAX),
            plan_id: self.plan_id,
            cycle_start: self.cycle_start,
            metadata: "{}".to_owned(),
            created_at: now,
        };
        Settlement { row, counters: self.counters, held: self.held, hold: self.hold }
    }
}

/// Credits held for one admitted request, and the duty to settle.
///
/// Dropped without [`settle`](Self::settle), it is given back whole and the ledger
/// says `not_forwarded`: so only what was never sent may be dropped.
#[derive(Debug)]
#[must_use = "a reservation that is dropped is given back, as if nothing had been sent"]
pub struct Reservation {
    ticket: Option<Box<Ticket>>,
    outbox: Outbox,
    clock: SharedClock,
}

impl Reservation {
    /// Ends the reservation with what was used.
    pub fn settle(mut self, bill: Bill) {
        self.send(bill);
    }

    fn send(&mut self, bill: Bill) {
        let Some(ticket) = self.ticket.take() else { return };
        if let Err(lost) = self.outbox.send(ticket.settled(bill, self.clock.now())) {
            // The settler is gone: the reservation's row stays and is charged when it expires.
            tracing::error!(request_id = lost.0.row.request_id, "settled after the settler has stopped");
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.send(Bill { marks: vec!["not_forwarded"], ..Bill::default() });
    }
}
