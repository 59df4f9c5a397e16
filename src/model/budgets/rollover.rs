//! What a window that ends leaves to the next one.

use std::collections::HashMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Calendar, Division, Plan, PlanStatus, Window};
use crate::clock::Timestamp;
use crate::credits::Credits;
use crate::model::scope::{Scope, ScopeType};

/// What of a window that ends is carried into the pool of the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum RolloverMode {
    /// Nothing; what a renewal carried over goes on until it lapses.
    #[default]
    None,
    /// What the plan gave out and nobody used or holds.
    Unused,
    /// The account's monthly credits that the plan did not give out.
    Unallocated,
}

impl RolloverMode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::None, Self::Unused, Self::Unallocated];

    /// The name in JSON and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Unused => "unused",
            Self::Unallocated => "unallocated",
        }
    }
}

/// Credits that were carried over from one window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Lot {
    /// How many are left.
    pub credits: Credits,
    /// When they lapse; null: never.
    pub until: Option<Timestamp>,
}

/// The sum of lots.
pub fn total(lots: &[Lot]) -> Credits {
    lots.iter().fold(Credits::ZERO, |sum, lot| sum.saturating_add(lot.credits))
}

/// What was used and is held in a window, by scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Taken {
    /// Credits of settled requests.
    pub used: Credits,
    /// Credits that requests under way and leases hold.
    pub held: Credits,
}

/// What a plan has left at the end of a window.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Leftover {
    /// What it gave out and nobody used or holds; what had been carried in is not among it.
    pub unused: Credits,
    /// What is held still, of which some may come back.
    pub held: Credits,
    /// What was used and is held in all.
    pub taken: Credits,
    /// What is left of what had been carried in.
    pub lots: Vec<Lot>,
}

impl Leftover {
    /// What `division` leaves of a window in which so much was `taken`. Of the pool, which has
    /// `own` credits beside what was carried into it, those that lapse first are drawn first.
    pub fn of(division: &Division, taken: &HashMap<Scope, Taken>, own: Credits, carried_in: &[Lot]) -> Self {
        let mut left = Self { lots: carried_in.to_vec(), ..Self::default() };
        left.lots.sort_by_key(|lot| lot.until.map_or(i64::MAX, Timestamp::as_micros));
        for allocation in division.outermost() {
            let Taken { used, held } = taken.get(&allocation.scope).copied().unwrap_or_default();
            let mut drawn = used.saturating_add(held);
            left.taken = left.taken.saturating_add(drawn);
            let mut credits = allocation.effective;
            if allocation.scope.scope_type == ScopeType::Pool && !allocation.overridden {
                credits = own;
                for lot in &mut left.lots {
                    let part = drawn.min(lot.credits).max(Credits::ZERO);
                    (lot.credits, drawn) = (lot.credits.saturating_sub(part), drawn.saturating_sub(part));
                }
            }
            left.unused = left.unused.saturating_add(credits.saturating_sub(drawn).max(Credits::ZERO));
            left.held = left.held.saturating_add(held.max(Credits::ZERO));
        }
        left.lots.retain(|lot| lot.credits > Credits::ZERO);
        left
    }
}

/// The last moment before `end`.
pub fn just_before(end: Timestamp) -> Timestamp {
    end.minus(Duration::from_micros(1))
}

/// The lots that go on at `boundary`: those that do not lapse then, and `fresh` credits
/// until `until`; at most `cap` together, those that last longest first.
pub fn carry(fresh: Lot, left: &[Lot], boundary: Timestamp, cap: Option<Credits>) -> Vec<Lot> {
    let mut room = cap.unwrap_or(Credits::MAX);
    let mut lots: Vec<Lot> = left.iter().copied().filter(|lot| lot.until.is_none_or(|at| at > boundary)).collect();
    lots.push(fresh);
    lots.sort_by_key(|lot| std::cmp::Reverse(lot.until.map_or(i64::MAX, Timestamp::as_micros)));
    for lot in &mut lots {
        lot.credits = lot.credits.min(room);
        room = room.saturating_sub(lot.credits);
    }
    lots.retain(|lot| lot.credits > Credits::ZERO);
    lots
}

impl Plan {
    /// Whether a window has ended that nothing was carried over from yet, or is to be
    /// looked at again.
    pub fn rollover_is_due(&self, now: Timestamp, calendar: &Calendar) -> bool {
        let Some(rolled_to) = self.rolled_to.filter(|_| self.rolls_over()) else { return false };
        self.window(now, calendar).start > rolled_to || self.look_again_at.is_some_and(|at| at <= now)
    }

    /// Whether windows of it are carried over, or what a renewal carried into it goes on.
    pub fn rolls_over(&self) -> bool {
        self.status == PlanStatus::Active && self.rolled_to.is_some()
    }

    /// What had been carried over, each until a window ends in the present calendar: that of another
    /// time zone was until a few hours earlier or later.
    pub fn lots(&self, lots: &[Lot], calendar: &Calendar) -> Vec<Lot> {
        let nearest = |until: Timestamp| match calendar.window(self.cycle, until) {
            Some((start, end)) if until.as_micros() - start.as_micros() > end.as_micros() - until.as_micros() => end,
            Some((start, _)) => start,
            None => until,
        };
        lots.iter().map(|lot| Lot { until: lot.until.map(nearest), ..*lot }).collect()
    }

    /// The windows that have ended since the last one that was carried over, oldest first.
    /// Of those before, nothing could have lasted until `now`.
    pub fn ended_windows(&self, now: Timestamp, calendar: &Calendar) -> Vec<Window> {
        let Some(rolled_to) = self.rolled_to else { return Vec::new() };
        let mut ended = Vec::new();
        let mut start = self.window(now, calendar).start;
        for _ in 0..self.rollover_windows.max(1) {
            if start <= rolled_to {
                break;
            }
            let window = self.window(just_before(start), calendar);
            start = window.start;
            ended.push(window);
        }
        ended.reverse();
        ended
    }

    /// When credits lapse that are carried into the window that begins at `boundary`.
    pub fn lapse(&self, boundary: Timestamp, calendar: &Calendar) -> Option<Timestamp> {
        let mut end = boundary;
        for _ in 0..self.rollover_windows.max(1) {
            end = self.window(end, calendar).end?;
        }
        Some(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::budgets::EffectiveAllocation;

    const fn at(day: i64) -> Timestamp {
        Timestamp::from_secs(day * 86_400)
    }

    fn lot(credits: i64, day: i64) -> Lot {
        Lot { credits: Credits::from_units(credits), until: Some(at(day)) }
    }

    fn left(used: i64, held: i64, lots: &[Lot]) -> (Credits, Vec<Lot>) {
        let pool = Scope::new(ScopeType::Pool, "pool");
        let own = Credits::from_units(5);
        let division = Division {
            allocations: vec![EffectiveAllocation {
                scope: pool.clone(),
                base: own,
                effective: own.saturating_add(total(lots)),
                overridden: false,
                carried: total(lots),
                least: own,
                most: own,
                overflow_cap: None,
                until: None,
            }],
            standings: Vec::new(),
        };
        let taken = Taken { used: Credits::from_units(used), held: Credits::from_units(held) };
        let left = Leftover::of(&division, &HashMap::from([(pool, taken)]), own, lots);
        (left.unused, left.lots)
    }

    #[test]
    fn what_lapses_first_is_drawn_first_and_the_own_credits_last() {
        let lots = [lot(10, 3), lot(20, 2)];
        assert_eq!(left(0, 0, &lots), (Credits::from_units(5), vec![lot(20, 2), lot(10, 3)]));
        assert_eq!(left(15, 7, &lots), (Credits::from_units(5), vec![lot(8, 3)]));
        assert_eq!(left(33, 0, &lots), (Credits::from_units(2), Vec::new()));
        assert_eq!(left(99, 0, &lots), (Credits::ZERO, Vec::new()));
    }

    #[test]
    fn what_is_carried_is_capped_and_what_lasts_longest_is_kept() {
        let old = [lot(10, 3), lot(20, 2)];
        assert_eq!(carry(lot(4, 4), &old, at(2), None), [lot(4, 4), lot(10, 3)]);
        assert_eq!(carry(lot(4, 4), &old, at(1), Some(Credits::from_units(9))), [lot(4, 4), lot(5, 3)]);
        assert_eq!(carry(lot(0, 4), &old, at(3), None), []);
    }
}
