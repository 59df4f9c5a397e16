//! Cycles that are renewed by hand, and what they carry over.

use std::time::Duration;

use serde_json::json;

use crate::common::backends;
use crate::invalid;
use crate::rollover::{Acme, BASE, DAY, rolling};

#[tokio::test]
async fn what_a_window_leaves_is_carried_over_by_one_renewal() {
    for backend in backends().await {
        let acme = Acme::new(backend, rolling(json!({"rollover_windows": 12}))).await;
        acme.give("org", &acme.org, 100).await;
        // There was no plan then.
        assert_eq!(acme.renew("2025-11-01", "2025-12-01").await, json!(0));
        assert_eq!(acme.renew("2025-12-01", "2026-01-01").await, json!(0));
        assert_eq!(acme.renew("2026-01-01", "2026-01-10").await, json!(0));
        assert_eq!(acme.renew("2026-01-10", "2026-01-16").await, json!(100));
        // Parts of the same window.
        acme.clock.advance(DAY);
        assert_eq!(acme.renew("2026-01-16", "2026-01-17").await, json!(100));
        assert_eq!(acme.renew("2026-01-10", "2026-01-16").await, json!(100), "the same one");
        acme.clock.advance(DAY);
        assert_eq!(acme.renew("2026-01-17", "2026-02-03").await, json!(100));
        acme.use_up(30, json!({})).await;
        // The end of January carries over what is left of what a renewal has carried over, the end of February anew.
        acme.clock.advance(15 * DAY);
        assert_eq!(acme.pool_now().await, json!(70));
        acme.clock.advance(28 * DAY);
        assert_eq!(acme.pool_now().await, json!(170));
        // That has been done by itself, and some of it is used.
        acme.clock.advance(2 * DAY);
        acme.use_up(20, json!({})).await;
        assert_eq!(acme.renew("2026-02-03", "2026-03-01").await, json!(150));
        assert_eq!(acme.pool_now().await, json!(150));
    }
}

#[tokio::test]
async fn what_a_renewal_carries_over_is_spent_once() {
    for backend in backends().await {
        let acme = Acme::new(backend, json!({"name": "2026"})).await;
        acme.give("org", &acme.org, 100).await;
        acme.use_up(30, json!({"org_id": acme.org})).await;
        // Before the end of the cycle, by a plan whose windows leave nothing by themselves.
        acme.clock.advance(15 * DAY);
        assert_eq!(acme.renew("2026-01-01", "2026-02-01").await, json!(70));
        acme.use_up(50, json!({})).await;
        acme.clock.advance(2 * DAY);
        assert_eq!(acme.pool_now().await, json!(20), "the rest goes on");
        assert_eq!(acme.history().await.len(), 2);
        acme.clock.advance(28 * DAY);
        let whole = acme.admin().get(&format!("{BASE}/effective-allocation")).await.ok();
        let kinds: Vec<_> = whole["items"].as_array().unwrap().iter().map(|item| item["scope_type"].clone()).collect();
        assert_eq!(kinds, ["org"], "a pool that there was for it alone is gone with it");
        // The same renewal is the same one, whatever came after it.
        assert_eq!(acme.renew("2026-02-01", "2026-03-01").await, json!(100));
        assert_eq!(acme.renew("2026-01-01", "2026-02-01").await, json!(70));
        assert_eq!(acme.pool_now().await, json!(100), "nothing was done");
        let early = json!({"cycle_start": "2026-04-01T00:00:00Z", "cycle_end": "2026-05-01T00:00:00Z"});
        invalid(&acme.admin().post(&format!("{BASE}/cycles/renew"), early).await, "/cycle_start");
        let part = json!({"cycle_start": "2026-01-15T00:00:00Z", "cycle_end": "2026-01-16T00:00:00Z"});
        let overlap = acme.admin().post(&format!("{BASE}/cycles/renew"), part).await;
        assert_eq!((overlap.status.as_u16(), &overlap.json()["code"]), (409, &json!("cycle_overlaps")));
    }
}

#[tokio::test]
async fn renewals_in_a_row_do_not_forget_what_was_carried_over() {
    for backend in backends().await {
        let acme = Acme::new(backend, rolling(json!({}))).await;
        acme.give("org", &acme.org, 100).await;
        assert_eq!(acme.renew("2026-01-01", "2026-01-16").await, json!(100));
        acme.use_up(100, json!({})).await;
        acme.clock.advance(DAY);
        assert_eq!(acme.renew("2026-01-16", "2026-01-17").await, json!(0));
        acme.clock.advance(DAY);
        assert_eq!(acme.renew("2026-01-17", "2026-01-18").await, json!(0));
        acme.clock.advance(15 * DAY);
        assert_eq!(acme.pool_now().await, json!(0));
        // One that had nothing to carry over takes nothing from the end of the window.
        acme.use_up(100, json!({"org_id": acme.org})).await;
        assert_eq!(acme.renew("2026-02-01", "2026-02-02").await, json!(0));
        acme.clock.advance(28 * DAY);
        assert_eq!(acme.pool_now().await, json!(100));
    }
}

#[tokio::test]
async fn a_pool_of_nothing_stays_when_what_was_carried_into_it_has_lapsed() {
    for backend in backends().await {
        let acme = Acme::new(backend, rolling(json!({}))).await;
        acme.give("org", &acme.org, 40).await;
        acme.give("pool", "pool", 0).await;
        acme.clock.advance(17 * DAY);
        assert_eq!(acme.pool().await, Some((json!(40), json!(40))));
        acme.use_up(40, json!({"org_id": acme.org})).await;
        acme.clock.advance(28 * DAY);
        assert_eq!(acme.pool().await, Some((json!(0), json!(0))), "whoever has no share has nothing");
    }
}

#[tokio::test]
async fn what_was_held_and_then_used_does_not_come_back() {
    for backend in backends().await {
        let acme = Acme::new(backend, rolling(json!({}))).await;
        acme.give("org", &acme.org, 100).await;
        let org = acme.org.clone();
        let counter = async |used: i64, held: i64| {
            let nano = 1_000_000_000;
            let sql = format!(
                r#"INSERT INTO "Alchemi_AllocationCounterTable"
                   (account_id, scope_type, scope_id, window_start, used, leased, cap, updated_at)
                   SELECT account_id, 'org', '{org}', created_at, {}, {}, {}, created_at FROM "Alchemi_CopilotBudgetPlanTable"
                   WHERE TRUE ON CONFLICT (account_id, scope_type, scope_id, window_start)
                   DO UPDATE SET used = excluded.used, leased = excluded.leased"#,
                used * nano,
                held * nano,
                100 * nano
            );
            acme.gateway.database.execute(&sql).await;
        };
        counter(1, 60).await;
        acme.clock.advance(17 * DAY);
        assert_eq!(acme.pool().await, Some((json!(39), json!(39))));
        counter(61, 0).await;
        acme.give("org", &acme.org, 900).await;
        acme.clock.advance(Duration::from_secs(10));
        assert_eq!(acme.pool().await, Some((json!(39), json!(39))));
    }
}

#[tokio::test]
async fn renewals_in_any_order_carry_over_each_window() {
    for backend in backends().await {
        let acme = Acme::new(backend, json!({"name": "2026"})).await;
        acme.give("org", &acme.org, 100).await;
        acme.give("pool", "pool", 50).await;
        acme.use_up(30, json!({"org_id": acme.org})).await;
        acme.clock.advance(31 * DAY);
        acme.use_up(40, json!({})).await;
        // 20 March
        acme.clock.advance(33 * DAY);
        assert_eq!(acme.renew("2026-02-01", "2026-03-01").await, json!(110), "100 of the org, 10 of the pool");
        acme.use_up(5, json!({})).await;
        assert_eq!(acme.renew("2026-01-01", "2026-02-01").await, json!(105 + 120), "and 70 and 50 of January");
    }
}

#[tokio::test]
async fn renewals_that_come_late_lose_nothing() {
    for backend in backends().await {
        let acme = Acme::new(backend, json!({"name": "2026"})).await;
        acme.give("org", &acme.org, 100).await;
        acme.use_up(30, json!({"org_id": acme.org})).await;
        acme.clock.advance(19 * DAY);
        acme.use_up(5, json!({"org_id": acme.org})).await;
        assert_eq!(acme.renew("2026-01-01", "2026-02-01").await, json!(70));
        assert_eq!(acme.pool_now().await, json!(70));
        acme.use_up(40, json!({"org_id": acme.org})).await;
        acme.use_up(1, json!({})).await;
        acme.clock.advance(28 * DAY);
        assert_eq!(acme.pool_now().await, json!(0), "it has lapsed");
        assert_eq!(acme.renew("2026-02-01", "2026-03-01").await, json!(60));
        // All at once, months later.
        acme.use_up(10, json!({"org_id": acme.org})).await;
        acme.clock.advance(59 * DAY);
        assert_eq!(acme.renew("2026-03-01", "2026-04-01").await, json!(90));
        assert_eq!(acme.renew("2026-04-01", "2026-05-01").await, json!(190));
    }
}
