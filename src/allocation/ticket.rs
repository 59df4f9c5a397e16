//! What an admitted request was admitted with, in memory and in the reservation's row.

use std::sync::Arc;

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::lease::Slice;
use super::{Admission, Bill};
use crate::clock::Timestamp;
use crate::context::Domain;
use crate::credits::{Credits, Factor, Usd};
use crate::id::Id;
use crate::model::accounts::Account;
use crate::model::budgets::day_of;
use crate::model::usage::{CostSource, CounterKey, Dimensions, EntryKind, LedgerRow, RouteKind, Tokens};
use crate::policy::Permit;
use crate::policy::budget::Link;
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
    holds: bool,
    permit: Permit,
    kind: RouteKind,
    subject: Arc<str>,
    model: Arc<str>,
    guardrail: Option<String>,
    estimate: Usd,
    estimated_tokens: Tokens,
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

    pub(super) fn domain(&self) -> Domain {
        self.permit.rules().domain
    }

    /// Puts back into its slice what the bill leaves over, and keeps the rest as its hold.
    pub(super) fn put_back(&mut self, bill: &Bill, now: Timestamp) {
        let Some(slice) = &self.slice else { return };
        let used = self.permit.rules().factor.credits(bill.cost).unwrap_or(Credits::MAX);
        self.drawn = slice.put_back(self.hold, used, now);
    }

    pub(super) fn links(&self) -> &[Link] {
        self.permit.links()
    }

    /// What another process needs to settle it.
    pub(super) fn detail(&self) -> String {
        serde_json::to_string(&Detail::of(self)).unwrap_or_default()
    }

    /// What is written for it.
    pub(super) fn settlement(self, bill: Bill, now: Timestamp) -> Settlement {
        let request = Request {
            request_id: self.request_id.to_string(),
            account: self.account().clone(),
            hold: if self.slice.is_some() { self.drawn } else { self.hold },
            // The lease's id is taken before the slice is let go of: see `Leases::is_unused`.
            lease: self.slice.as_ref().map(|slice| slice.lease_id()),
            admitted_at: self.admitted_at,
        };
        Detail::of(&self).settlement(request, bill, now)
    }
}

/// Of a reservation's row, what has a column of its own.
struct Request {
    request_id: String,
    account: Id<Account>,
    hold: Credits,
    lease: Option<Arc<str>>,
    admitted_at: Timestamp,
}

/// The rest of a reservation's row. Rows of an older version are read by a newer
/// one: a new member needs a default.
#[derive(Debug, Serialize, Deserialize)]
struct Detail {
    kind: RouteKind,
    domain: Domain,
    dimensions: Dimensions,
    counters: Vec<CounterKey>,
    held: Vec<CounterKey>,
    over_cap: bool,
    factor: Factor,
    estimate: Usd,
    estimated_tokens: Tokens,
    plan_id: Option<String>,
    cycle_start: Option<i64>,
    zone: String,
}

impl Detail {
    fn of(ticket: &Ticket) -> Self {
        let (rules, links) = (ticket.permit.rules(), ticket.links());
        let plan = rules.budget.plan.as_ref().filter(|_| rules.domain == Domain::Copilot);
        let place = &rules.placement;
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
                guardrail_code: ticket.guardrail.clone(),
                ..Dimensions::default()
            },
            counters: links.iter().map(Link::counter).collect(),
            held: links.iter().filter(|l| ticket.holds && l.cap.is_some()).map(Link::counter).collect(),
            over_cap: ticket.over_cap,
            factor: rules.factor,
            estimate: ticket.estimate,
            estimated_tokens: ticket.estimated_tokens,
            plan_id: plan.map(|p| p.id.to_string()),
            cycle_start: plan.map(|p| p.window(ticket.admitted_at, &rules.budget.zone).start.as_micros()),
            zone: rules.budget.zone.iana_name().unwrap_or("UTC").to_owned(),
        }
    }

    fn settlement(self, request: Request, bill: Bill, now: Timestamp) -> Settlement {
        let zone = TimeZone::get(&self.zone).unwrap_or(TimeZone::UTC);
        let mut marks = bill.marks;
        if self.over_cap {
            marks.push("over_cap");
        }
        let row = LedgerRow {
            day: day_of(request.admitted_at, &zone),
            request_id: request.request_id,
            account_id: request.account,
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
            duration_us: i64::try_from(now.since(request.admitted_at).as_micros()).unwrap_or(i64::MAX),
            plan_id: self.plan_id,
            cycle_start: self.cycle_start,
            metadata: "{}".to_owned(),
            created_at: now,
        };
        Settlement { row, counters: self.counters, held: self.held, hold: request.hold, lease: request.lease }
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
    let bill = Bill {
        tokens: detail.estimated_tokens,
        cost: detail.estimate,
        source: Some(CostSource::Unsettled),
        marks: vec!["unsettled"],
        ..Bill::default()
    };
    let request = Request {
        request_id: abandoned.request_id.clone(),
        account: abandoned.account_id.clone(),
        hold: abandoned.amount,
        lease: None,
        admitted_at: abandoned.created_at,
    };
    Some(detail.settlement(request, bill, now))
}
