//! What is written down of a cycle that was closed.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{AccountAllocation, Calendar, Cycle, Lot, Plan, just_before, total};
use crate::clock::Timestamp;
use crate::credits::Credits;
use crate::id::Id;
use crate::model::accounts::{Account, JsonText};

/// A cycle that was closed: by a renewal, which put another plan in the plan's place,
/// or by its end, when the plan rolls over into its own next window.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct BudgetCycle {
    /// Its id.
    pub id: Id<BudgetCycle>,
    /// The account.
    pub account_id: Id<Account>,
    /// The plan whose cycle it was.
    pub source_plan_id: Id<Plan>,
    /// The plan that came next; the same one when it rolled over by itself.
    pub new_plan_id: Id<Plan>,
    /// The first moment of the closed cycle.
    pub cycle_start: Timestamp,
    /// The first moment behind it.
    pub cycle_end: Timestamp,
    /// Credits carried into the pool of what came next.
    pub rollover_credits: Credits,
    /// Credits used beyond the account's monthly ones.
    pub overflow_charge_credits: Credits,
    /// The [`RenewalSummary`].
    #[schema(value_type = RenewalSummary)]
    pub summary_json: JsonText,
    /// Who renewed; `system` when it rolled over by itself.
    pub created_by: Option<String>,
    /// When.
    pub created_at: Timestamp,
}

/// What was found at the end of a cycle, and carried over.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RenewalSummary {
    /// The plan whose cycle it was.
    pub source_plan_id: Id<Plan>,
    /// The plan that came next.
    pub new_plan_id: Id<Plan>,
    /// Credits used on the days of the cycle.
    pub used_credits: Credits,
    /// The account's monthly credits.
    pub monthly_credits: Credits,
    /// Used credits beyond the monthly ones.
    pub overflow_charge_credits: Credits,
    /// What was there to be carried over: what nobody used or holds in the last window
    /// of the cycle, or what the plan did not give out.
    pub unused_credits: Credits,
    /// What requests under way still held in that window.
    #[serde(default)]
    pub held_credits: Credits,
    /// What was used and held in it by all who have a share; null where it was not noted.
    #[serde(default)]
    pub taken_credits: Option<Credits>,
    /// What had been carried into that window.
    #[serde(default)]
    pub carried_in: Vec<Lot>,
    /// What was carried over.
    #[serde(default)]
    pub carried_over: Vec<Lot>,
    /// The sum of it, which the pool of what came next has beside its own credits.
    pub rollover_credits: Credits,
}

/// What was found at the end of a cycle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// Credits used on its days.
    pub used: Credits,
    /// What was there to be carried over.
    pub unused: Credits,
    /// What requests under way still held.
    pub held: Credits,
    /// What was used and held.
    pub taken: Credits,
    /// What had been carried into its last window.
    pub carried_in: Vec<Lot>,
}

impl RenewalSummary {
    /// Of what one plan leaves to the other, or to itself.
    pub fn new(
        (source, new): (&Id<Plan>, &Id<Plan>),
        account: Option<&AccountAllocation>,
        closed: Closed,
        carried_over: Vec<Lot>,
    ) -> Self {
        let Closed { used, unused, held, taken, carried_in } = closed;
        let monthly = account.map(|a| a.monthly_credits);
        Self {
            source_plan_id: source.clone(),
            new_plan_id: new.clone(),
            used_credits: used,
            monthly_credits: monthly.unwrap_or_default(),
            overflow_charge_credits: monthly.map_or(Credits::ZERO, |m| used.saturating_sub(m).max(Credits::ZERO)),
            unused_credits: unused,
            held_credits: held,
            taken_credits: Some(taken),
            carried_in,
            rollover_credits: total(&carried_over),
            carried_over,
        }
    }
}

impl BudgetCycle {
    /// The row of a summary.
    pub fn new(
        id: Id<Self>,
        account_id: Id<Account>,
        (cycle_start, cycle_end): (Timestamp, Timestamp),
        summary: &RenewalSummary,
        (created_by, created_at): (Option<String>, Timestamp),
    ) -> Self {
        Self {
            id,
            account_id,
            source_plan_id: summary.source_plan_id.clone(),
            new_plan_id: summary.new_plan_id.clone(),
            cycle_start,
            cycle_end,
            rollover_credits: summary.rollover_credits,
            overflow_charge_credits: summary.overflow_charge_credits,
            summary_json: JsonText::of(summary),
            created_by,
            created_at,
        }
    }
}

/// The renewals that led to a plan, the newest first, each with what it found unused.
#[derive(Debug, Clone)]
pub struct Lineage(Vec<(BudgetCycle, Credits)>);

impl Lineage {
    /// Of a plan, out of the account's renewals.
    pub fn of(plan: &Id<Plan>, renewals: Vec<(BudgetCycle, Credits)>) -> Self {
        let mut into: HashMap<Id<Plan>, (BudgetCycle, Credits)> =
            renewals.into_iter().map(|(renewal, unused)| (renewal.new_plan_id.clone(), (renewal, unused))).collect();
        let mut line: Vec<(BudgetCycle, Credits)> = Vec::new();
        while let Some(renewal) = into.remove(line.last().map_or(plan, |(renewal, _)| &renewal.source_plan_id)) {
            line.push(renewal);
        }
        Self(line)
    }

    fn renewals(&self) -> impl Iterator<Item = &BudgetCycle> {
        self.0.iter().map(|(renewal, _)| renewal)
    }

    /// The first of the plans, where the last one is not the first.
    pub fn origin(&self) -> Option<&Id<Plan>> {
        self.renewals().last().map(|renewal| &renewal.source_plan_id)
    }

    /// Whether the plan was put into the place of another one by one of the renewals, or is the first.
    pub fn has(&self, plan: &Id<Plan>) -> bool {
        self.origin() == Some(plan) || self.renewals().any(|renewal| renewal.new_plan_id == *plan)
    }

    /// The renewal of exactly this cycle, else one whose cycle has a part of it.
    pub fn renewal_of(&self, (start, end): (Timestamp, Timestamp)) -> Option<&BudgetCycle> {
        let exact = self.renewals().find(|renewal| (renewal.cycle_start, renewal.cycle_end) == (start, end));
        exact.or_else(|| self.renewals().find(|renewal| start < renewal.cycle_end && renewal.cycle_start < end))
    }

    /// The plan of the line that was the newest `at` a moment, and since when, if `origin` is the
    /// first one and when it was made.
    pub fn in_force<'a>(
        &'a self,
        at: Timestamp,
        origin: (&'a Id<Plan>, Timestamp),
    ) -> Option<(&'a Id<Plan>, Timestamp)> {
        let made = self.renewals().map(|renewal| (&renewal.new_plan_id, renewal.created_at));
        made.chain([origin]).find(|(_, since)| *since <= at)
    }

    /// Whether a renewal carried over what a part of the cycle's window around `at` had left.
    pub fn has_carried(&self, cycle: Cycle, at: Timestamp, calendar: &Calendar) -> bool {
        let Some((start, end)) = calendar.window(cycle, at) else { return false };
        self.0.iter().filter(|(_, unused)| *unused > Credits::ZERO).any(|(renewal, _)| {
            let last = just_before(renewal.cycle_end).min(renewal.created_at);
            (start..end).contains(&last)
        })
    }
}
