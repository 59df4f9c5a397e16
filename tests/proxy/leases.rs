//! Credits that gateways take ahead of need.

use std::time::Duration;

use alchemi::config::Config;
use alchemi::metering::charge::Unpriced;
use futures_util::future::join_all;
use serde_json::json;

use crate::common::database::Database;
use crate::common::gateway::PATIENCE;
use crate::common::{Backend, Client, Gateway, backends};
use crate::{Stage, chat, int, text};

/// Each request is held and charged at one hundredth.
const MODEL: &str = "free-for-all";

fn flat(config: &mut Config) {
    config.metering.unpriced = "flat:0.01".parse::<Unpriced>().unwrap();
    config.allocation.leases.enabled = true;
}

/// The same, and what is idle stays where it is.
fn hoarding(config: &mut Config) {
    flat(config);
    config.allocation.leases.heartbeat_ms = 3_600_000;
    config.allocation.leases.lease_seconds = 10;
}

/// How many of so many requests at once are admitted.
async fn burst(client: &Client, count: usize) -> usize {
    let replies = join_all((0..count).map(|_| client.post("/v1/chat/completions", chat(MODEL)))).await;
    replies.iter().filter(|reply| reply.status == 200).count()
}

async fn open_leases(gateway: &Gateway) -> Vec<i64> {
    let sql = r#"SELECT amount FROM "Alchemi_AllocationLeaseTable" WHERE state = 'open'"#;
    gateway.database.rows(sql, &[]).await.iter().map(|row| int(row, "amount")).collect()
}

#[tokio::test]
async fn a_busy_chain_reserves_without_a_statement() {
    for backend in backends().await {
        let stage = Stage::with(backend, hoarding).await;
        let gateway = &stage.gateway;
        assert_eq!(burst(&stage.ada, 60).await, 60);
        stage.settled(60).await;
        let count = async || {
            let mut counts = [0; 3];
            for (count, name) in
                counts.iter_mut().zip(["reservations_leased_total", "lease_refills_total", "statements_total"])
            {
                *count = gateway.metric(name).await;
            }
            counts
        };
        let before = count().await;
        for n in 0..20 {
            stage.ada.post("/v1/chat/completions", chat(MODEL)).await.ok();
            stage.settled(61 + n).await;
        }
        let after = count().await;
        assert_eq!(after[0] - before[0], 20, "each is drawn from the lease");
        // The ledger's row, the lease, one counter, one roll-up; the counters, the lease and they again for a refill.
        let most = 20 * 4 + (after[1] - before[1] + 1) * 3;
        assert!(after[2] - before[2] <= most, "{before:?} {after:?}");
        assert_eq!(gateway.verify_books().await.differences, []);
    }
}

#[tokio::test]
async fn what_a_lease_has_is_admitted_without_the_database() {
    for backend in backends().await {
        let stage = Stage::with(backend, hoarding).await;
        let gateway = &stage.gateway;
        assert_eq!(burst(&stage.ada, 60).await, 60);
        stage.settled(60).await;
        let drawn = gateway.metric("reservations_leased_total").await;
        // Nothing can be settled, so that every statement is an admission's.
        let (mut sqlite, mut postgres) = (None, None);
        match &gateway.database {
            Database::Sqlite(pool) => {
                let mut other = pool.acquire().await.unwrap();
                sqlx::query("BEGIN IMMEDIATE").execute(&mut *other).await.unwrap();
                sqlite = Some(other);
            }
            Database::Postgres(pool) => {
                let mut other = pool.begin().await.unwrap();
                let lock = r#"LOCK TABLE "Alchemi_UsageLedgerTable" IN ACCESS EXCLUSIVE MODE"#;
                sqlx::query(lock).execute(&mut *other).await.unwrap();
                postgres = Some(other);
            }
        }
        let before = gateway.metric("statements_total").await;
        for _ in 0..20 {
            stage.ada.post("/v1/chat/completions", chat(MODEL)).await.ok();
        }
        let statements = gateway.metric("statements_total").await - before;
        assert_eq!(gateway.metric("reservations_leased_total").await - drawn, 20);
        // On PostgreSQL the settler's first one, which waits.
        assert!(statements <= u64::from(postgres.is_some()), "{statements}");
        assert!(gateway.metric("settlements_waiting").await > 0);
        if let Some(mut other) = sqlite {
            sqlx::query("ROLLBACK").execute(&mut *other).await.unwrap();
        }
        drop(postgres);
        stage.settled(80).await;
        assert_eq!(gateway.verify_books().await.differences, []);
    }
}

#[tokio::test]
async fn idle_credits_go_back_within_two_heartbeats() {
    for backend in backends().await {
        let stage = Stage::with(backend, |config| {
            flat(config);
            config.allocation.leases.heartbeat_ms = 200;
        })
        .await;
        let mut asked = 0;
        while stage.gateway.metric("reservations_leased_total").await == 0 {
            assert_eq!(burst(&stage.ada, 40).await, 40);
            asked += 40;
        }
        stage.settled(asked).await;
        let returned = async {
            while !open_leases(&stage.gateway).await.is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(2), returned).await.unwrap();
        assert_eq!(stage.counter().await, (asked as i64 * 10_000_000, 0));
        assert_eq!(stage.gateway.verify_books().await.differences, []);
    }
}

#[tokio::test]
async fn a_gateway_that_stops_gives_everything_back() {
    for backend in backends().await {
        let mut stage = Stage::with(backend, hoarding).await;
        assert_eq!(burst(&stage.ada, 40).await, 40);
        assert!(!open_leases(&stage.gateway).await.is_empty());
        stage.gateway.stop().await;
        assert_eq!(open_leases(&stage.gateway).await, [] as [i64; 0]);
        assert_eq!(stage.counter().await, (400_000_000, 0));
    }
}

#[tokio::test]
async fn a_changed_cap_holds_for_the_next_request_whatever_is_leased() {
    for backend in backends().await {
        let stage = Stage::with(backend, hoarding).await;
        assert_eq!(burst(&stage.ada, 40).await, 40);
        assert!(open_leases(&stage.gateway).await.iter().any(|amount| *amount > 0));
        stage.gateway.allocate(&stage.account, "0.4").await;
        assert_eq!(burst(&stage.ada, 3).await, 0);
        stage.gateway.allocate(&stage.account, "0.45").await;
        assert_eq!(burst(&stage.ada, 20).await, 5);
        stage.settled(45).await;
        assert_eq!(stage.gateway.verify_books().await.differences, []);
    }
}

#[tokio::test]
async fn three_gateways_spend_the_last_credit_and_no_more() {
    for backend in backends().await {
        if backend == Backend::Sqlite {
            continue; // one process each
        }
        let stage = Stage::with(backend, hoarding).await;
        let gateway = &stage.gateway;
        gateway.allocate(&stage.account, "3").await;
        let (second, third) = (gateway.beside(hoarding).await, gateway.beside(hoarding).await);
        let clients = [stage.ada.clone(), stage.ada.at(second.url()), stage.ada.at(third.url())];
        let mut admitted = 0;
        for client in &clients {
            admitted += burst(client, 40).await;
        }
        assert_eq!(admitted, 120);
        assert!(open_leases(gateway).await.iter().sum::<i64>() > 0, "something is stranded");
        // They never give back of their own accord: whoever runs short asks.
        let spent = async {
            while admitted < 300 {
                for client in clients.iter().rev() {
                    admitted += burst(client, 30).await;
                }
            }
        };
        tokio::time::timeout(PATIENCE, spent).await.unwrap();
        assert_eq!(admitted, 300);
        for client in &clients {
            assert_eq!(burst(client, 10).await, 0);
        }
        stage.settled(300).await;
        assert_eq!(stage.counter().await, (3_000_000_000, 0));
        assert_eq!(gateway.verify_books().await.differences, []);
    }
}

#[tokio::test]
async fn a_gateway_that_was_given_up_adjusts_what_it_was_charged() {
    for backend in backends().await {
        let mut stage = Stage::with(backend, hoarding).await;
        assert_eq!(burst(&stage.ada, 40).await, 40);
        stage.settled(40).await;
        let open: i64 = open_leases(&stage.gateway).await.iter().sum();
        assert!(open > 0);
        let sql = r#"UPDATE "Alchemi_LeaseHolderTable" SET expires_at = 0 RETURNING holder"#;
        assert_eq!(stage.gateway.database.rows(sql, &[]).await.len(), 1);
        let second = stage.gateway.beside(flat).await;
        let charged = stage.settled(41).await;
        let lost = charged.iter().find(|row| text(row, "marks") == "lost_lease").expect("an adjustment");
        assert_eq!((text(lost, "entry"), int(lost, "credits_incurred")), ("adjustment", open));
        assert_eq!(stage.counter().await, (400_000_000 + open, 0));
        assert_eq!(second.verify_books().await.differences, []);
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
        let sql = r#"UPDATE "Alchemi_LeaseHolderTable" SET expires_at = 0 RETURNING holder"#;
        assert_eq!(stage.gateway.database.rows(sql, &[]).await.len(), 1);
        let second = stage.gateway.beside(flat).await;
        let charged = stage.settled(41).await;
        let lost = charged.iter().find(|row| text(row, "marks") == "lost_lease").expect("an adjustment");
        let reversal = json!({"reverses": text(lost, "request_id"), "reason": "it was never used"});
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

/// Of a thousand requests at once as many are admitted as there are credits, wherever those lie.
#[tokio::test]
async fn a_thousand_requests_at_once_on_the_last_credits_of_three_gateways() {
    const LEFT: usize = 137;
    const BEAT: Duration = Duration::from_millis(500);
    for backend in backends().await {
        if backend == Backend::Sqlite {
            continue; // one process each
        }
        let beating = |config: &mut Config| {
            flat(config);
            config.allocation.leases.heartbeat_ms = BEAT.as_millis() as u64;
            // However busy the machine is: all of them wait for one row.
            config.database.acquire_timeout_ms = 120_000;
        };
        let stage = Stage::with(backend, beating).await;
        let gateway = &stage.gateway;
        let (second, third) = (gateway.beside(beating).await, gateway.beside(beating).await);
        let clients = [stage.ada.clone(), stage.ada.at(second.url()), stage.ada.at(third.url())];
        // Each has leased some, and has use for more.
        let mut before = 0;
        for client in &clients {
            before += burst(client, 40).await;
        }
        assert_eq!(before, 120);
        let cap = (before + LEFT) * 10;
        gateway.allocate(&stage.account, &format!("{}.{:03}", cap / 1_000, cap % 1_000)).await;

        let upstream = gateway.forwarded().len();
        let ask = |n: usize| {
            let client = &clients[n % clients.len()];
            async move { client.post("/v1/chat/completions", chat(MODEL)).await }
        };
        let replies = join_all((0..1_000).map(ask)).await;
        let admitted = replies.iter().filter(|reply| reply.status == 200).count();
        let refused = replies.iter().filter(|reply| reply.status == 402).count();
        assert_eq!((admitted, admitted + refused), (LEFT, 1_000));
        assert_eq!(gateway.forwarded().len() - upstream, LEFT, "a refused request never reaches the upstream");
        // Nothing was stranded: there is nothing more to be had, then or later.
        tokio::time::sleep(BEAT).await;
        for client in &clients {
            assert_eq!(burst(client, 3).await, 0);
        }
        stage.settled(before + LEFT).await;
        assert_eq!(stage.rested().await, ((before + LEFT) as i64 * 10_000_000, 0));
        assert_eq!(gateway.verify_books().await.differences, []);
    }
}

/// What one gateway took and has no use for, another has within a heartbeat, without a refusal in between.
#[tokio::test]
async fn nobody_is_refused_while_credits_lie_idle_for_longer_than_a_heartbeat() {
    const BEAT: Duration = Duration::from_millis(300);
    for backend in backends().await {
        if backend == Backend::Sqlite {
            continue; // one process each
        }
        let beating = |config: &mut Config| {
            flat(config);
            config.allocation.leases.heartbeat_ms = BEAT.as_millis() as u64;
        };
        let stage = Stage::with(backend, beating).await;
        let gateway = &stage.gateway;
        let second = gateway.beside(beating).await;
        gateway.allocate(&stage.account, "2").await;
        assert_eq!(burst(&stage.ada, 100).await, 100);
        stage.settled(100).await;
        // The first has leases yet, the second is new to the account.
        tokio::time::sleep(2 * BEAT).await;
        let there = stage.ada.at(second.url());
        for n in 0..100 {
            let reply = there.post("/v1/chat/completions", chat(MODEL)).await;
            assert_eq!(reply.status, 200, "request {n}: {}", reply.text());
        }
        assert_eq!(burst(&there, 2).await + burst(&stage.ada, 2).await, 0);
        stage.settled(200).await;
        assert_eq!(stage.rested().await, (2_000_000_000, 0));
        assert_eq!(gateway.verify_books().await.differences, []);
    }
}
