//! Where windows begin and end, in an account's time zone and in those that it had before.

use std::time::Duration;

use jiff::civil::{Date, Weekday};
use jiff::tz::TimeZone;
use jiff::{Span, ToSpan as _, Zoned};
use serde::{Deserialize, Serialize};

use super::Cycle;
use crate::clock::Timestamp;
use crate::model::accounts::JsonText;

/// How long a change of the time zone is remembered: until no window can have begun before it.
const REMEMBERED: Duration = Duration::from_secs(800 * 24 * 3600);

/// Most changes of the time zone that are remembered: beyond them there is none, because each may have moved the end of
/// a window.
const MOST_CHANGES: usize = 32;

/// An account's calendar: its time zone, and which others it had until when.
///
/// A change of the time zone moves the end of the window that it falls into, and not its
/// beginning: what is counted in it stays counted. Where the other zone's calendar is in the
/// next period already, that begins with the change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Calendar {
    zone: TimeZone,
    /// Oldest first, no two until the same time.
    former: Vec<(TimeZone, Timestamp)>,
}

/// A time zone that an account had before, as it is stored.
#[derive(Serialize, Deserialize)]
struct FormerZone {
    zone: String,
    until: Timestamp,
}

/// A period of a calendar: the day that it is named by, and its ends.
#[derive(Debug, Clone, Copy)]
struct Period {
    first: Date,
    start: Timestamp,
    end: Timestamp,
}

impl Default for Calendar {
    fn default() -> Self {
        Self::from(TimeZone::UTC)
    }
}

impl From<TimeZone> for Calendar {
    fn from(zone: TimeZone) -> Self {
        Self { zone, former: Vec::new() }
    }
}

impl Calendar {
    /// The time zone now.
    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// The calendar when the time zone is another one from `at` on, or from the last change on if that
    /// was later; none after too many changes.
    pub fn changed(mut self, zone: TimeZone, at: Timestamp) -> Option<Self> {
        let before = std::mem::replace(&mut self.zone, zone);
        // What was in force for no time moved nothing.
        if self.former.last().is_none_or(|(_, until)| *until < at) {
            self.former.retain(|(_, until)| *until > at.minus(REMEMBERED));
            self.former.push((before, at));
        }
        (self.former.len() <= MOST_CHANGES).then_some(self)
    }

    /// The calendar with the time zones of before, as [`former`](Self::former) gives them.
    pub(crate) fn with_former(self, former: &JsonText) -> Self {
        let former: Vec<FormerZone> = former.read().unwrap_or_default();
        let zone = |name: &str| TimeZone::get(name).unwrap_or(TimeZone::UTC);
        // An earlier version kept them in another order, and without number.
        let mut until = Timestamp::from_micros(i64::MIN);
        let mut ordered = Vec::new();
        for FormerZone { zone: name, until: end } in &former {
            if until < *end {
                until = *end;
                ordered.push((zone(name), *end));
            }
        }
        let latest = ordered.len().saturating_sub(MOST_CHANGES);
        Self { former: ordered.into_iter().skip(latest).collect(), ..self }
    }

    /// The time zones of before, to be stored.
    pub(crate) fn former(&self) -> JsonText {
        let stored = |(zone, until): &(TimeZone, Timestamp)| FormerZone {
            zone: zone.iana_name().unwrap_or("UTC").to_owned(),
            until: *until,
        };
        JsonText::of(&self.former.iter().map(stored).collect::<Vec<_>>())
    }

    /// The day of `at`, as `YYYY-MM-DD`.
    pub fn day_of(&self, at: Timestamp) -> String {
        let former = self.former.iter().find(|(_, until)| at < *until).map(|(zone, _)| zone);
        day_of(at, former.unwrap_or(&self.zone))
    }

    /// The ends of the cycle's window around `at`; none of a cycle without windows.
    pub(super) fn window(&self, cycle: Cycle, at: Timestamp) -> Option<(Timestamp, Timestamp)> {
        let length = cycle.length()?;
        self.period(cycle, length, at, self.former.len()).map(|period| (period.start, period.end))
    }

    /// The period around `at` in the calendar as it was after so many changes.
    fn period(&self, cycle: Cycle, length: Span, at: Timestamp, changes: usize) -> Option<Period> {
        let zone = self.former.get(changes).map_or(&self.zone, |(zone, _)| zone);
        let plain = |at| {
            let first = cycle.first_day(day(at, zone)?)?;
            Some((first, midnight(first, zone)?))
        };
        let ends = |first: Date| midnight(first.checked_add(length).ok()?, zone);
        let Some((_, since)) = changes.checked_sub(1).and_then(|last| self.former.get(last)) else {
            let (first, start) = plain(at)?;
            return Some(Period { first, start, end: ends(first)? });
        };
        let before = self.period(cycle, length, at.min(*since), changes - 1)?;
        if at < *since {
            let after = self.period(cycle, length, *since, changes)?;
            let end = if after.start == before.start { after.end } else { before.end.min(*since) };
            return Some(Period { end, ..before });
        }
        let (first, start) = plain(at)?;
        let first = first.max(before.first);
        let start = if first == before.first {
            before.start
        } else if first == plain(*since)?.0 {
            *since
        } else {
            start
        };
        Some(Period { first, start, end: ends(first)? })
    }
}

impl Cycle {
    /// How long its windows are.
    fn length(self) -> Option<Span> {
        Some(match self {
            Self::Daily => 1.day(),
            Self::Weekly => 1.week(),
            Self::Monthly => 1.month(),
            Self::Quarterly => 3.months(),
            Self::Yearly => 1.year(),
            Self::None => return None,
        })
    }

    /// The first day of the period of a day.
    fn first_day(self, day: Date) -> Option<Date> {
        let month = |months: i8| Date::new(day.year(), day.month() - (day.month() - 1) % months, 1).ok();
        match self {
            Self::Daily => Some(day),
            Self::Weekly => day.checked_sub(i64::from(day.weekday().since(Weekday::Monday)).days()).ok(),
            Self::Monthly => month(1),
            Self::Quarterly => month(3),
            Self::Yearly => month(12),
            Self::None => None,
        }
    }
}

fn day(at: Timestamp, zone: &TimeZone) -> Option<Date> {
    Some(jiff::Timestamp::from_microsecond(at.as_micros()).ok()?.to_zoned(zone.clone()).date())
}

fn midnight(date: Date, zone: &TimeZone) -> Option<Timestamp> {
    let start: Zoned = date.to_zoned(zone.clone()).ok()?.start_of_day().ok()?;
    Some(Timestamp::from_micros(start.timestamp().as_microsecond()))
}

/// The day of `at` in `zone`, as `YYYY-MM-DD`.
pub fn day_of(at: Timestamp, zone: &TimeZone) -> String {
    day(at, zone).map(|day| day.to_string()).unwrap_or_default()
}

/// The time zone that `timezone` in an account's metadata names; UTC without one.
pub fn zone_of(metadata: &JsonText) -> TimeZone {
    #[derive(Deserialize)]
    struct Notes {
        timezone: Option<String>,
    }
    metadata
        .read::<Notes>()
        .ok()
        .and_then(|notes| notes.timezone)
        .and_then(|name| TimeZone::get(&name).ok())
        .unwrap_or(TimeZone::UTC)
}
