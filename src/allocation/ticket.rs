//! What an admitted request was admitted with, in memory and in the reservation's row.

use std::sync::Arc;

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::lease::Slice;
use super::live::LiveRow;
use super::{Admission, Bill, Receipt};
use crate::clock::Timestamp;
use crate::context::Domain;
use crate::credits::{Credits, Factor, Usd};
use crate::id::Id;
use crate::journal::Entry;
use crate::model::accounts::Account;
use crate::model::budgets::{Enforcement, Plan, day_of};
use crate::model::scope::ScopeType;
use crate::model::usage::{CostSource, CounterKey, Dimensions, EntryKind, LedgerRow, RouteKind, Tokens};
use crate::policy::budget::Link;
use crate::policy::{Permit, Rules};
use crate::store::ledger::{Abandoned, Settlement};

/// An admitted request. What the ledger needs is worked out from it by the settler,
/// off the path of requests.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) request_id: Arc<str>,
    pub(super) hold: Credits,
    /// Of it, what a slice is rid of.
    drawn: Credits,
    /// Let through although a scope went over its cap.
    pub(super) over_cap: bool,
    pub(super) admitted_at: Timestamp,
    /// Where its hold was drawn; none: it has a reservation of its own, or holds nothing.
    pub(super) slice: Option<Arc<Slice>>,
    pub(super) holds: bool,
    /// It has a reservation of its own.
    pub(super) row: Option<LiveRow>,
    /// Where it is written down.
    pub(super) entry: Entry,
    permit: Permit,
    pub(super) kind: RouteKind,
    pub(super) subject: Arc<str>,
    pub(super) model: Arc<str>,
    pub(super) guardrail: Option<String>,
    pub(super) estimate: Usd,
    pub(super) estimated_tokens: Tokens,
}

impl Ticket {
    pub(super) fn of(admission: Admission, now: Timestamp) -> Self {
        let Admission { permit, request_id, kind, subject, model, guardrail, estimate, estimated_tokens } = admission;
        let estimate = estimate.unwrap_or_default();
        Self {
            request_id,
            hold: permit.rules().credits(estimate),
            drawn: Credits::ZERO,
            over_cap: false,
            admitted_at: now,
            slice: None,
            holds: true,
            row: None,
            entry: Entry::default(),
            permit,
            kind,
            subject,
            model,
            guardrail,
            estimate,
            estimated_tokens,
        }
    }

    /// The same, when nothing is enforced.
    pub(super) fn holding_nothing(self) -> Self {
        Self { holds: false, hold: Credits::ZERO, ..self }
    }

    pub(super) fn account(&self) -> &Id<Account> {
        &self.permit.rules().account
    }

    pub(super) fn enforcement(&self) -> Enforcement {
        self.permit.rules().enforcement
    }

    pub(super) fn domain(&self) -> Domain {
        self.permit.rules().domain
    }

    /// Puts back into its slice what the bill leaves over, and keeps the rest as its hold.
    pub(super) fn put_back(&mut self, bill: &Bill, now: Timestamp) {
        let Some(slice) = &self.slice else { return };
        let used = self.permit.rules().factor.credits(bill.cost).unwrap_or(LARGEST).min(LARGEST);
        self.drawn = slice.put_back(self.hold, used, now);
    }

    pub(super) fn links(&self) -> &[Link] {
        self.permit.links()
    }

    pub(super) fn rules(&self) -> &Rules {
        self.permit.rules()
    }

    /// What is written off with its settlement: of its hold, what was not put back.
    pub(super) fn owed(&self) -> Credits {
        if self.slice.is_some() { self.drawn } else { self.hold }
    }

    /// The plan that it is counted under.
    pub(super) fn plan(&self) -> Option<&Plan> {
        self.rules().budget.plan.as_ref().filter(|_| self.domain() == Domain::Copilot)
    }

    /// The first moment of the plan's window, which is that of every link but the account's.
    pub(super) fn cycle_start(&self) -> Option<i64> {
        let plan = self.plan()?;
        let link = self.links().iter().find(|link| link.scope.scope_type != ScopeType::Account);
        let window =
            link.map_or_else(|| plan.window(self.admitted_at, &self.rules().budget.calendar), |link| link.window);
        Some(window.start.as_micros())
    }

    pub(super) fn zone(&self) -> &str {
        self.rules().budget.calendar.zone().iana_name().unwrap_or("UTC")
    }

    /// What another process needs to settle it.
    pub(super) fn detail(&self) -> String {
        serde_json::to_string(&Detail::of(self)).unwrap_or_default()
    }

    /// What is written for it.
    pub(super) fn settlement(mut self, bill: Bill, now: Timestamp) -> (Settlement, Receipt) {
        let request = Request {
            request_id: self.request_id.to_string(),
            account: self.account().clone(),
            hold: self.owed(),
            // The lease's id is taken before the slice is let go of: see `lease::balance`.
            lease: self.slice.as_ref().map(|slice| slice.lease_id()),
            reserved: self.row.is_some(),
            admitted_at: self.admitted_at,
        };
        let receipt = Receipt::new(std::mem::take(&mut self.entry), self.row.take());
        (Detail::of(&self).settlement(request, bill, now), receipt)
    }
}

/// The most that one request is charged, so that sums of many fit: some nine million credits.
const LARGEST: Credits = Credits::from_nanos(i64::MAX >> 10);

/// Of a reservation's row, what has a column of its own.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) request_id: String,
    pub(super) account: Id<Account>,
    pub(super) hold: Credits,
    pub(super) lease: Option<Arc<str>>,
    pub(super) reserved: bool,
    pub(super) admitted_at: Timestamp,
}

/// The rest of a reservation's row. Rows of an older version are read by a newer
/// one: a new member needs a default.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Detail {
    pub(super) kind: RouteKind,
    pub(super) domain: Domain,
    pub(super) dimensions: Dimensions,
    pub(super) counters: Vec<CounterKey>,
    pub(super) held: Vec<CounterKey>,
    pub(super) over_cap: bool,
    #[serde(default)]
    pub(super) enforcement: Enforcement,
    pub(super) factor: Factor,
    pub(super) estimate: Usd,
    pub(super) estimated_tokens: Tokens,
    pub(super) plan_id: Option<String>,
    pub(super) cycle_start: Option<i64>,
    pub(super) zone: String,
}

impl Detail {
    fn of(ticket: &Ticket) -> Self {
        let (rules, links, place) = (ticket.rules(), ticket.links(), &ticket.rules().placement);
        Self {
            kind: ticket.kind,
            domain: rules.domain,
            dimensions: Dimensions {
                org_id: place.org.as_ref().map(ToString::to_string),
                team_id: place.team.as_ref().map(ToString::to_string),
                user_id: place.user.as_ref().map(ToString::to_string),
                subject: Some(ticket.subject.to_string()),
                model_name: Some(ticket.model.to_string()),
                agent_id: rules.agent.as_ref().map(|agent| agent.id.to_string()),
                connection_id: rules.connection.as_ref().map(|connection| connection.id.to_string()),
                guardrail_code: ticket.guardrail.clone(),
            },
            counters: links.iter().map(Link::counter).collect(),
            held: links.iter().filter(|l| ticket.holds && l.cap.is_some()).map(Link::counter).collect(),
            over_cap: ticket.over_cap,
            enforcement: rules.enforcement,
            factor: rules.factor,
            estimate: ticket.estimate,
            estimated_tokens: ticket.estimated_tokens,
            plan_id: ticket.plan().map(|p| p.id.to_string()),
            cycle_start: ticket.cycle_start(),
            zone: ticket.zone().to_owned(),
        }
    }

    /// What is written for a request that nobody settled: its estimate, marked.
    pub(super) fn unsettled(self, request: Request, now: Timestamp) -> Settlement {
        let bill = Bill {
            tokens: self.estimated_tokens,
            cost: self.estimate,
            source: Some(CostSource::Unsettled),
            marks: vec!["unsettled"],
            ..Bill::default()
        };
        self.settlement(request, bill, now)
    }

    pub(super) fn settlement(self, request: Request, bill: Bill, now: Timestamp) -> Settlement {
        let zone = TimeZone::get(&self.zone).unwrap_or(TimeZone::UTC);
        let mut marks = bill.marks;
        let mut dimensions = self.dimensions;
        dimensions.guardrail_code = dimensions.guardrail_code.or(bill.guardrail);
        if self.over_cap {
            marks.push(self.enforcement.mark());
        }
        let row = LedgerRow {
            day: day_of(request.admitted_at, &zone),
            request_id: request.request_id,
            account_id: request.account,
            kind: self.kind,
            entry: EntryKind::Usage,
            domain: self.domain,
            dimensions,
            tokens: bill.tokens,
            raw_cost: bill.cost,
            credit_factor: self.factor,
            // An amount that does not fit is held at the largest: the row must be written.
            credits: self.factor.credits(bill.cost).unwrap_or(LARGEST).min(LARGEST),
            cost_source: bill.source.unwrap_or(CostSource::Free),
            marks: marks.join(","),
            upstream_call_id: bill.upstream_call_id,
            status: bill.status,
            duration_us: i64::try_from(now.since(request.admitted_at).as_micros()).unwrap_or(i64::MAX),
            plan_id: self.plan_id,
            cycle_start: self.cycle_start,
            metadata: "{}".to_owned(),
            created_at: now,
        };
        Settlement {
            row,
            counters: self.counters,
            held: self.held,
            hold: request.hold,
            lease: request.lease,
            reserved: request.reserved,
        }
    }
}

/// What is written for a reservation that nobody settled: its estimate, marked. A
/// row whose detail cannot be read stays, and is reported.
pub(super) fn unsettled(abandoned: &Abandoned, now: Timestamp) -> Option<Settlement> {
    let detail: Detail = serde_json::from_str(&abandoned.detail)
        .inspect_err(|error| {
            tracing::error!(request_id = abandoned.request_id, %error, "an abandoned reservation is unreadable and stays");
        })
        .ok()?;
    let request = Request {
        request_id: abandoned.request_id.clone(),
        account: abandoned.account_id.clone(),
        hold: abandoned.amount,
        lease: None,
        reserved: true,
        admitted_at: abandoned.created_at,
    };
    Some(detail.unsettled(request, now))
}
