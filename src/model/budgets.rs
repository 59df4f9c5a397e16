//! Budgets: an account's credits, plans with their calendar windows, allocations
//! and overrides.

use serde::{Deserialize, Serialize};

use super::accounts::Account;
use super::scope::{Scope, ScopeType};
use crate::clock::Timestamp;
use crate::credits::{Credits, Factor};
use crate::id::Id;

mod calendar;
mod cycle;
mod division;
mod enforcement;
mod rollover;
#[cfg(test)]
mod tests;

pub use calendar::{Calendar, day_of, zone_of};
pub use cycle::{BudgetCycle, Closed, Lineage, RenewalSummary};
pub use division::{Commitment, Division, Standing, newly_exceeded};
pub use enforcement::Enforcement;
pub use rollover::{Leftover, Lot, RolloverMode, Taken, carry, just_before, total};

/// What an account may spend in a calendar month of its time zone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct AccountAllocation {
    /// The account.
    pub account_id: Id<Account>,
    /// Credits for each month.
    pub monthly_credits: Credits,
    /// Credits that may be spent beyond them.
    pub overflow_limit: Credits,
    /// Credits for each US dollar.
    pub credit_factor: Factor,
    /// What happens to a request that does not fit; null: what the gateway's configuration says.
    pub enforcement: Option<Enforcement>,
    /// Since when these figures hold.
    pub effective_from: Timestamp,
    /// Who set them.
    pub updated_by: Option<String>,
    /// When they were first set.
    pub created_at: Timestamp,
    /// When they were last set.
    pub updated_at: Timestamp,
    /// Counts changes; the `ETag`.
    #[serde(skip)]
    pub version: i64,
}

impl AccountAllocation {
    /// The same as the share of a scope: the account's own.
    pub fn whole(&self) -> EffectiveAllocation {
        EffectiveAllocation {
            scope: Scope::new(ScopeType::Account, self.account_id.as_str()),
            base: self.monthly_credits,
            effective: self.monthly_credits,
            overridden: false,
            carried: Credits::ZERO,
            least: self.monthly_credits,
            most: self.monthly_credits,
            overflow_cap: Some(self.overflow_limit),
            until: None,
        }
    }

    /// Monthly credits and what may be spent beyond them.
    pub fn cap(&self) -> Credits {
        self.monthly_credits.saturating_add(self.overflow_limit)
    }
}

/// How long a plan's window is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Cycle {
    /// A day.
    Daily,
    /// A week from Monday.
    Weekly,
    /// A calendar month.
    Monthly,
    /// Three calendar months from January, April, July or October.
    Quarterly,
    /// A calendar year.
    Yearly,
    /// One window that never ends.
    None,
}

impl Cycle {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Daily, Self::Weekly, Self::Monthly, Self::Quarterly, Self::Yearly, Self::None];

    /// The name in JSON and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Quarterly => "quarterly",
            Self::Yearly => "yearly",
            Self::None => "none",
        }
    }

    /// The window around `now` in a calendar, starting no earlier than `from`.
    ///
    /// Days begin at their first moment in the zone, whatever its clocks do then.
    ///
    /// ```
    /// use alchemi::model::budgets::{Calendar, Cycle};
    ///
    /// let berlin = Calendar::from(jiff::tz::TimeZone::get("Europe/Berlin")?);
    /// let window = Cycle::Monthly.window("2026-03-31T22:30:00Z".parse()?, &berlin, "2020-01-01T00:00:00Z".parse()?);
    /// assert_eq!(window.start.to_string(), "2026-03-31T22:00:00Z"); // midnight of 1 April in Berlin
    /// assert_eq!(window.end.map(|e| e.to_string()).as_deref(), Some("2026-04-30T22:00:00Z"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn window(self, now: Timestamp, calendar: &Calendar, from: Timestamp) -> Window {
        match calendar.window(self, now) {
            Some((start, end)) => Window { start: start.max(from), end: Some(end) },
            None => Window { start: from, end: None },
        }
    }
}

/// A stretch of time that credits are counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, utoipa::ToSchema)]
pub struct Window {
    /// Its first moment.
    pub start: Timestamp,
    /// The first moment behind it; none when it never ends.
    pub end: Option<Timestamp>,
}

/// Whether a plan is the one in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PlanStatus {
    /// In force; one at most for each account.
    Active,
    /// Kept.
    Inactive,
}

impl PlanStatus {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Active, Self::Inactive];

    /// The name in JSON and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Inactive => "inactive",
        }
    }
}

/// Whether allocations may add up to more than there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OverCommit {
    /// They may; the answer tells the ratio.
    #[default]
    Allow,
    /// A write that would is refused. What may be spent beyond a share is not counted.
    Forbid,
}

impl OverCommit {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Allow, Self::Forbid];

    /// The name in JSON and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Forbid => "forbid",
        }
    }
}

/// A plan: how the copilot domain's credits are divided, and for how long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Plan {
    /// Its id.
    pub id: Id<Plan>,
    /// The account.
    pub account_id: Id<Account>,
    /// Its name.
    #[schema(example = "2026")]
    pub name: String,
    /// How long its windows are.
    pub cycle: Cycle,
    /// Whether it is in force.
    pub status: PlanStatus,
    /// Whether allocations may add up to more than there is.
    pub over_commit: OverCommit,
    /// What of a window that ends is carried into the pool of the next one.
    pub rollover: RolloverMode,
    /// The most that is carried into a window; null: no limit.
    pub rollover_cap: Option<Credits>,
    /// For how many windows carried credits last.
    #[schema(minimum = 1, maximum = 12)]
    pub rollover_windows: i64,
    /// Up to when windows were closed; none while none is.
    #[serde(skip)]
    pub rolled_to: Option<Timestamp>,
    /// When the last of them is looked at again, because requests still held some of it.
    #[serde(skip)]
    pub look_again_at: Option<Timestamp>,
    /// Who made it.
    pub created_by: Option<String>,
    /// When it was made; its first window starts then.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// Counts changes; the `ETag`.
    #[serde(skip)]
    pub version: i64,
}

impl Plan {
    /// The window around `now`.
    pub fn window(&self, now: Timestamp, calendar: &Calendar) -> Window {
        self.cycle.window(now, calendar, self.created_at)
    }
}

/// A scope's share of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Allocation {
    /// Its id.
    pub id: Id<Allocation>,
    /// The account.
    pub account_id: Id<Account>,
    /// The plan.
    pub plan_id: Id<Plan>,
    /// The kind of scope.
    pub scope_type: ScopeType,
    /// The scope; `pool` for the pool.
    pub scope_id: String,
    /// Credits for each window, with those that were rolled over.
    pub allocated_credits: Credits,
    /// Credits that may be spent beyond them; none: no overflow.
    pub overflow_cap: Option<Credits>,
    /// Of the allocated credits, those that were carried over from the windows before.
    pub rollover_credits: Credits,
    /// When the carried ones lapse: the end of the window that they were carried into.
    pub rollover_until: Option<Timestamp>,
    /// `manual`, `equal` or `cycle_rollover`.
    #[schema(example = "manual")]
    pub source: String,
    /// Who made it.
    pub created_by: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// Counts changes; the `ETag`.
    #[serde(skip)]
    pub version: i64,
}

impl Allocation {
    /// Whose share it is.
    pub fn scope(&self) -> Scope {
        Scope::new(self.scope_type, self.scope_id.clone())
    }
}

/// Credits that a scope has instead of its allocation, until it expires; the
/// newest that has not expired wins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Override {
    /// Its id.
    pub id: Id<Override>,
    /// The account.
    pub account_id: Id<Account>,
    /// The plan.
    pub plan_id: Id<Plan>,
    /// The kind of scope.
    pub scope_type: ScopeType,
    /// The scope.
    pub scope_id: String,
    /// Credits for each window.
    pub override_credits: Credits,
    /// Why.
    pub reason: Option<String>,
    /// Until when; none: for good.
    pub expires_at: Option<Timestamp>,
    /// Who made it.
    pub created_by: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// What a scope has in force: its allocation with the override that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EffectiveAllocation {
    /// Whose.
    pub scope: Scope,
    /// The allocation's credits.
    pub base: Credits,
    /// The override's credits, else the allocation's.
    pub effective: Credits,
    /// Whether an override counts.
    pub overridden: bool,
    /// What of the allocation's was carried over from windows that ended.
    pub carried: Credits,
    /// The least that it has, now or when overrides of it expire.
    pub least: Credits,
    /// The most, without what was carried over.
    pub most: Credits,
    /// Credits that may be spent beyond.
    pub overflow_cap: Option<Credits>,
    /// When these figures change by themselves, because an override or what was carried
    /// over lapses.
    pub until: Option<Timestamp>,
}

impl EffectiveAllocation {
    /// The most that may be used and held together in a window.
    pub fn cap(&self) -> Credits {
        self.effective.saturating_add(self.overflow_cap.unwrap_or_default())
    }

    /// What it has without what was carried over, which the account's month was billed for before.
    pub fn fresh(&self) -> Credits {
        if self.overridden { self.effective } else { self.effective.saturating_sub(self.carried) }
    }

    /// Takes account of what it comes to when overrides expire: of those that have not, the newest
    /// first, each with its credits and its end.
    pub fn foresee(&mut self, overrides: impl IntoIterator<Item = (Credits, Option<Timestamp>)>) {
        (self.least, self.most) = (self.effective, self.fresh());
        let mut newer_until = None;
        for (credits, until) in overrides {
            // One that does not outlast all that are newer never counts.
            if until.is_some() && until <= newer_until {
                continue;
            }
            self.least = self.least.min(credits);
            self.most = self.most.max(credits);
            if until.is_none() {
                return;
            }
            newer_until = until;
        }
        self.least = self.least.min(self.base);
        self.most = self.most.max(self.base.saturating_sub(self.carried));
    }
}
