//! Windows against an oracle that knows no calendar: it walks from a moment, hour by hour, to where the period's number
//! changes, and has of the zone its offsets alone.

use jiff::tz::TimeZone;
use proptest::prelude::*;

use super::{Calendar, Cycle, Window};
use crate::clock::Timestamp;
use crate::model::accounts::JsonText;

const HOUR: i64 = 3_600_000_000;
const NEVER: Timestamp = Timestamp::from_micros(i64::MIN);

/// Year and month of a day, counted from 1970-01-01 (Hinnant, "chrono-compatible low-level date algorithms").
fn civil(day: i64) -> (i64, i64) {
    let shifted = day + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month)
}

/// The number of the period that a moment is in.
fn period(cycle: Cycle, micros: i64, zone: &TimeZone) -> i64 {
    let offset = zone.to_offset(jiff::Timestamp::from_microsecond(micros).unwrap()).seconds();
    let day = (micros.div_euclid(1_000_000) + i64::from(offset)).div_euclid(86_400);
    let (year, month) = civil(day);
    match cycle {
        Cycle::Daily => day,
        // 1970-01-01 was a Thursday.
        Cycle::Weekly => (day + 3).div_euclid(7),
        Cycle::Monthly => year * 12 + month - 1,
        Cycle::Quarterly => year * 4 + (month - 1) / 3,
        Cycle::Yearly => year,
        Cycle::None => 0,
    }
}

/// The first moment of another period, going from `from` in steps of `step`.
fn edge(cycle: Cycle, from: i64, step: i64, zone: &TimeZone) -> i64 {
    let number = period(cycle, from, zone);
    let mut inside = from;
    while period(cycle, inside + step, zone) == number {
        inside += step;
    }
    let mut outside = inside + step;
    while (outside - inside).abs() > 1 {
        let middle = i64::midpoint(inside, outside);
        if period(cycle, middle, zone) == number { inside = middle } else { outside = middle }
    }
    inside.max(outside)
}

fn window(cycle: Cycle, at: i64, zone: &TimeZone, from: Timestamp) -> (i64, i64) {
    window_in(cycle, at, &Calendar::from(zone.clone()), from)
}

fn window_in(cycle: Cycle, at: i64, calendar: &Calendar, from: Timestamp) -> (i64, i64) {
    let Window { start, end } = cycle.window(Timestamp::from_micros(at), calendar, from);
    (start.as_micros(), end.unwrap().as_micros())
}

fn zones() -> Vec<String> {
    jiff::tz::db().available().map(|name| name.to_string()).collect()
}

/// Moments within days of every change of a zone's clocks, and anywhere.
fn moment(zone: &TimeZone, seconds: i64, near: i64) -> i64 {
    let at = jiff::Timestamp::from_second(seconds).unwrap();
    let change = zone.following(at).next().map(|change| change.timestamp().as_microsecond());
    match change {
        Some(change) if near.abs() < 3 * 24 * HOUR => change + near,
        _ => at.as_microsecond(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn windows_are_what_walking_through_time_finds(
        zone in prop::sample::select(zones()),
        // 2012 to 2090
        seconds in 1_325_376_000_i64..3_786_912_000,
        near in -6 * 24 * HOUR..6 * 24 * HOUR,
    ) {
        let zone = TimeZone::get(&zone).unwrap();
        let at = moment(&zone, seconds, near);
        for cycle in Cycle::ALL.into_iter().filter(|cycle| *cycle != Cycle::None) {
            let (start, end) = window(cycle, at, &zone, NEVER);
            let expected = (edge(cycle, at, -HOUR, &zone), edge(cycle, at, HOUR, &zone));
            prop_assert_eq!((start, end), expected, "{:?} at {}", cycle, Timestamp::from_micros(at));
            prop_assert!(start <= at && at < end);
            // The next one begins where it ends, and so did this one.
            prop_assert_eq!(window(cycle, end, &zone, NEVER).0, end);
            prop_assert_eq!(window(cycle, start - 1, &zone, NEVER).1, start);
            // A plan's first window begins with the plan.
            let made = Timestamp::from_micros(at - (at - start) / 2);
            prop_assert_eq!(window(cycle, at, &zone, made), (made.as_micros(), end));
        }
    }

    #[test]
    fn windows_follow_one_another_through_changes_of_the_time_zone(
        first in prop::sample::select(zones()),
        others in prop::collection::vec((prop::sample::select(zones()), 0..70 * 24 * HOUR), 1..4),
        seconds in 1_325_376_000_i64..3_786_912_000,
        near in -80 * 24 * HOUR..80 * 24 * HOUR,
    ) {
        let mut calendar = Calendar::from(TimeZone::get(&first).unwrap());
        let mut change = seconds * 1_000_000;
        for (zone, later) in others {
            let former = calendar.clone();
            calendar = calendar.changed(TimeZone::get(&zone).unwrap(), Timestamp::from_micros(change)).unwrap();
            for cycle in Cycle::ALL.into_iter().filter(|cycle| *cycle != Cycle::None) {
                // What is counted at that moment is counted in the same window, unless that is over in the other zone.
                let (start, _) = window_in(cycle, change, &calendar, NEVER);
                prop_assert!(start == window_in(cycle, change, &former, NEVER).0 || start == change, "{:?}", cycle);
            }
            change += later;
        }
        let at = seconds * 1_000_000 + near;
        for cycle in Cycle::ALL.into_iter().filter(|cycle| *cycle != Cycle::None) {
            let (start, end) = window_in(cycle, at, &calendar, NEVER);
            prop_assert!(start <= at && at < end, "{:?}", cycle);
            prop_assert_eq!(window_in(cycle, end - 1, &calendar, NEVER), (start, end), "{:?}", cycle);
            prop_assert_eq!(window_in(cycle, end, &calendar, NEVER).0, end, "{:?}", cycle);
            prop_assert_eq!(window_in(cycle, start - 1, &calendar, NEVER).1, start, "{:?}", cycle);
        }
        prop_assert_eq!(Calendar::from(calendar.zone().clone()).with_former(&calendar.former()), calendar);
    }
}

#[test]
fn a_change_of_the_time_zone_moves_the_end_of_a_window() {
    let [honolulu, tokyo] = ["Pacific/Honolulu", "Asia/Tokyo"].map(|zone| TimeZone::get(zone).unwrap());
    let month = |calendar: &Calendar, at: &str| {
        let window = Cycle::Monthly.window(at.parse().unwrap(), calendar, NEVER);
        (window.start.to_string(), window.end.unwrap().to_string())
    };
    let window = |start: &str, end: &str| (format!("{start}Z"), format!("{end}Z"));
    let changed = |at: &str| Calendar::from(honolulu.clone()).changed(tokyo.clone(), at.parse().unwrap()).unwrap();
    let calendar = changed("2026-03-20T12:00:00Z");
    for at in ["2026-03-02T00:00:00Z", "2026-03-25T00:00:00Z"] {
        assert_eq!(month(&calendar, at), window("2026-03-01T10:00:00", "2026-03-31T15:00:00"));
    }
    // It is April already, there.
    let calendar = changed("2026-03-31T20:00:00Z");
    assert_eq!(month(&calendar, "2026-03-31T19:00:00Z"), window("2026-03-01T10:00:00", "2026-03-31T20:00:00"));
    assert_eq!(month(&calendar, "2026-03-31T21:00:00Z"), window("2026-03-31T20:00:00", "2026-04-30T15:00:00"));
    // And the other way round it is March still, which has been.
    let calendar = Calendar::from(tokyo).changed(honolulu, "2026-03-31T20:00:00Z".parse().unwrap()).unwrap();
    for at in ["2026-03-31T19:00:00Z", "2026-03-31T21:00:00Z"] {
        assert_eq!(month(&calendar, at), window("2026-03-31T15:00:00", "2026-05-01T10:00:00"));
    }
    assert_eq!(calendar.day_of("2026-03-31T19:00:00Z".parse().unwrap()), "2026-04-01");
    assert_eq!(calendar.day_of("2026-03-31T21:00:00Z".parse().unwrap()), "2026-03-31");
}

#[test]
fn changes_that_come_out_of_their_order_or_by_the_thousand_are_looked_up_at_once() {
    let zones = ["Asia/Tokyo", "UTC"].map(|zone| TimeZone::get(zone).unwrap());
    let mut calendar = Calendar::default();
    let mut changes = 0;
    for n in 0..1_000_i64 {
        // Those who wait for the account's row have read the clock before.
        let at = Timestamp::from_secs(1_800_000_000 + n - 3 * (n % 2));
        let Some(next) = calendar.clone().changed(zones[n as usize % 2].clone(), at) else { break };
        (calendar, changes) = (next, n);
    }
    // Every other one comes too late to have been in force.
    assert_eq!(calendar.former().read::<Vec<serde_json::Value>>().unwrap().len(), 32, "after {changes}");
    for cycle in Cycle::ALL {
        cycle.window(Timestamp::from_secs(1_799_999_000), &calendar, NEVER);
    }
    // What was stored before there was an order.
    let stored: Vec<_> = (0..5_000_i64)
        .map(|n| serde_json::json!({"zone": "Asia/Tokyo", "until": Timestamp::from_secs(1_800_000_000 + (n ^ 1))}))
        .collect();
    let calendar = Calendar::default().with_former(&JsonText::of(&stored));
    for at in [1_700_000_000, 1_800_004_999, 1_900_000_000].map(Timestamp::from_secs) {
        let window = Cycle::Monthly.window(at, &calendar, NEVER);
        assert!(window.start <= at && window.end.is_some_and(|end| at < end));
    }
}

#[test]
fn a_cycle_without_windows_has_one_that_never_ends() {
    let from = Timestamp::from_secs(7);
    let only = Cycle::None.window(Timestamp::from_secs(1_800_000_000), &Calendar::default(), from);
    assert_eq!(only, Window { start: from, end: None });
}

#[test]
fn days_that_a_zone_left_out_are_no_windows() {
    // Samoa went from 29 to 31 December 2011.
    let zone = Calendar::from(TimeZone::get("Pacific/Apia").unwrap());
    let last: Timestamp = "2011-12-30T09:59:59Z".parse().unwrap();
    let first: Timestamp = "2011-12-30T10:00:00Z".parse().unwrap();
    assert_eq!(Cycle::Daily.window(last, &zone, NEVER).end, Some(first));
    assert_eq!(Cycle::Daily.window(first, &zone, NEVER).start, first);
}
