//! Leases of gateways that others have given up.

use std::sync::Arc;
use std::time::Duration;

use alchemi::clock::{Clock, ManualClock, SystemClock};
use alchemi::config::Config;
use alchemi::server::Surroundings;
use serde_json::json;

use crate::common::gateway::PATIENCE;
use crate::common::{Backend, backends};
use crate::leases::{burst, flat, hoarding, open_leases};
use crate::{Stage, int, text};

/// A clock that is so far ahead of the system's, and stands still.
fn clock(ahead: Duration) -> (Arc<ManualClock>, Surroundings) {
    let clock = Arc::new(ManualClock::at(SystemClock.now().plus(ahead)));
    (Arc::clone(&clock), Surroundings { clock, ..Surroundings::default() })
}

fn beating_fast(config: &mut Config) {
    flat(config);
    config.allocation.leases.heartbeat_ms = 20;
}

/// Lets time pass for a gateway, in steps that it can follow, until another's lease is charged; gives the charge.
async fn given_up(stage: &Stage, clock: &ManualClock, settled: usize) -> crate::Row {
    let charged = async {
        loop {
            let rows = stage.gateway.ledger(&stage.account).await;
            if rows.len() > settled {
                return rows.into_iter().find(|row| text(row, "marks") == "lost_lease").expect("an adjustment");
            }
            clock.advance(Duration::from_secs(20));
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
    };
    tokio::time::timeout(PATIENCE, charged).await.expect("it is given up")
}

#[tokio::test]
async fn a_gateway_that_was_given_up_adjusts_what_it_was_charged() {
    for backend in backends().await {
        let mut stage = Stage::with(backend, hoarding).await;
        let zone = json!({"metadata": {"timezone": "Pacific/Kiritimati"}});
        stage.gateway.operator().patch(&format!("/v1/accounts/{}", stage.account), zone).await.ok();
        assert_eq!(burst(&stage.ada, 40).await, 40);
        stage.settled(40).await;
        let open: i64 = open_leases(&stage.gateway).await.iter().sum();
        assert!(open > 0);
        let (clock, surroundings) = clock(Duration::ZERO);
        let second = stage.gateway.beside_in(surroundings, beating_fast).await;
        let lost = given_up(&stage, &clock, 40).await;
        assert_eq!((text(&lost, "entry"), int(&lost, "credits_incurred")), ("adjustment", open));
        let at = jiff::Timestamp::from_microsecond(int(&lost, "created_at")).unwrap();
        assert_eq!(text(&lost, "day"), at.in_tz("Pacific/Kiritimati").unwrap().date().to_string());
        assert_eq!(stage.counter().await, (400_000_000 + open, 0));
        let books = second.verify_books().await;
        assert_eq!(books.differences, []);
        // Whoever asks why finds it in the audit.
        let lease = text(&lost, "request_id").trim_end_matches(":lost");
        let sql = r#"SELECT updated_values FROM "Alchemi_AuditTable" WHERE resource_id = $1"#;
        let told = stage.gateway.database.rows(sql, &[lease]).await;
        let told: serde_json::Value = text(&told[0], "updated_values").parse().unwrap();
        assert_eq!(told["amount"].to_string(), credits(open), "{told}");
        // It was only asleep: what it had not used is taken back.
        stage.gateway.stop().await;
        assert_eq!(stage.counter().await, (400_000_000, 0));
        assert_eq!(second.verify_books().await.differences, []);
    }
}

#[tokio::test]
async fn what_an_admin_gave_back_of_a_lost_lease_is_not_given_back_again() {
    for backend in backends().await {
        let mut stage = Stage::with(backend, hoarding).await;
        assert_eq!(burst(&stage.ada, 40).await, 40);
        stage.settled(40).await;
        let (clock, surroundings) = clock(Duration::ZERO);
        let second = stage.gateway.beside_in(surroundings, beating_fast).await;
        let lost = given_up(&stage, &clock, 40).await;
        let reversal = json!({"reverses": text(&lost, "request_id"), "reason": "it was never used"});
        let operator = second.operator_for(&stage.account);
        operator.post("/v1/budgets/copilot/adjustments", reversal.clone()).await.ok();
        assert_eq!(stage.counter().await, (400_000_000, 0));
        let again = operator.post("/v1/budgets/copilot/adjustments", reversal).await;
        assert_eq!((again.status.as_u16(), again.code().as_str()), (409, "already_reversed"));
        stage.gateway.stop().await;
        assert_eq!(stage.counter().await, (400_000_000, 0));
        assert_eq!(second.verify_books().await.differences, []);
    }
}

/// An amount of nanos as JSON says it.
fn credits(nanos: i64) -> String {
    let text = format!("{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// It hears that it was fenced while requests are under way and its leases are charged.
#[tokio::test]
async fn a_gateway_that_was_given_up_goes_on_as_another_holder() {
    for backend in backends().await {
        let stage = Stage::with(backend, |config| {
            flat(config);
            config.allocation.leases.heartbeat_ms = 100;
            config.allocation.leases.lease_seconds = 10;
        })
        .await;
        let mut asked = 40;
        assert_eq!(burst(&stage.ada, 40).await, 40);
        let database = &stage.gateway.database;
        database.execute(r#"UPDATE "Alchemi_LeaseHolderTable" SET fenced = 1, expires_at = 0"#).await;
        // Whoever comes next ends what fenced ones have.
        let second = stage.gateway.beside(flat).await;
        let drawn = stage.gateway.metric("reservations_leased_total").await;
        let again = async {
            while stage.gateway.metric("reservations_leased_total").await < drawn + 40 {
                assert_eq!(burst(&stage.ada, 20).await, 20);
                asked += 20;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(3 * PATIENCE, again).await.expect("it leases again");
        let used = asked as i64 * 10_000_000;
        let rested = async {
            while stage.counter().await != (used, 0) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let charged = tokio::time::timeout(PATIENCE, rested).await;
        assert!(charged.is_ok(), "{:?} is charged, {used} was used", stage.counter().await);
        assert_eq!(second.verify_books().await.differences, []);
    }
}

#[tokio::test]
async fn a_gateway_whose_clock_is_ahead_gives_up_nobody_who_lives() {
    for backend in backends().await {
        if backend == Backend::Sqlite {
            continue; // one process each
        }
        let stage = Stage::with(backend, hoarding).await;
        assert_eq!(burst(&stage.ada, 40).await, 40);
        let (clock, surroundings) = clock(Duration::from_secs(3_600));
        let _second = stage.gateway.beside_in(surroundings, beating_fast).await;
        for _ in 0..3 {
            clock.advance(Duration::from_secs(20));
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
        let fenced = r#"SELECT holder FROM "Alchemi_LeaseHolderTable" WHERE fenced = 1"#;
        assert_eq!(stage.gateway.database.rows(fenced, &[]).await.len(), 0);
        assert_eq!(burst(&stage.ada, 40).await, 40);
        assert_eq!(stage.settled(80).await.iter().filter(|row| !text(row, "marks").is_empty()).count(), 0);
    }
}
