//! Credits that gateways take ahead of need.

use std::time::Duration;

use alchemi::config::Config;
use alchemi::dev::Behaviour;
use alchemi::metering::charge::Unpriced;
use futures_util::future::join_all;

use crate::common::database::Database;
use crate::common::gateway::PATIENCE;
use crate::common::{Backend, Client, Gateway, Person, backends};
use crate::{Stage, chat, int, open, streamed};

/// Each request is held and charged at one hundredth.
pub(crate) const MODEL: &str = "free-for-all";

pub(crate) fn flat(config: &mut Config) {
    config.metering.unpriced = "flat:0.01".parse::<Unpriced>().unwrap();
    config.allocation.leases.enabled = true;
}

/// The same, and what is idle stays where it is.
pub(crate) fn hoarding(config: &mut Config) {
    flat(config);
    config.allocation.leases.heartbeat_ms = 3_600_000;
}

/// How many of so many requests at once are admitted.
pub(crate) async fn burst(client: &Client, count: usize) -> usize {
    let replies = join_all((0..count).map(|_| client.post("/v1/chat/completions", chat(MODEL)))).await;
    replies.iter().filter(|reply| reply.status == 200).count()
}

pub(crate) async fn open_leases(gateway: &Gateway) -> Vec<i64> {
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
        // The ledger's row, the lease, one counter, one roll-up, what the account has spent; the counters, the lease and
        // they again for a refill.
        let most = 20 * 5 + (after[1] - before[1] + 1) * 3;
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
        let (before, refills) = (gateway.metric("statements_total").await, gateway.metric("lease_refills_total").await);
        for _ in 0..20 {
            stage.ada.post("/v1/chat/completions", chat(MODEL)).await.ok();
        }
        let statements = gateway.metric("statements_total").await - before;
        assert_eq!(gateway.metric("reservations_leased_total").await - drawn, 20);
        // On PostgreSQL the settler's first one, which waits; and those of refills ahead of need.
        let refills = gateway.metric("lease_refills_total").await - refills;
        assert!(refills <= 1 && statements <= u64::from(postgres.is_some()) + refills * 3, "{statements}, {refills}");
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
        tokio::time::timeout(Duration::from_secs(30), returned).await.unwrap();
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

/// People with an amount each in the plan of an account, and a team and an org that have one too; their ids.
async fn people(stage: &Stage, each: &[(&str, &str)]) -> Vec<(String, Client)> {
    let (gateway, account) = (&stage.gateway, &stage.account);
    let org = gateway.org(account, "copilot", "Research").await;
    let team = gateway.team(account, "copilot", &org, "Physics").await;
    let plan = gateway.plan(account).await;
    gateway.allot(account, &plan, ("org", &org), "1000").await;
    gateway.allot(account, &plan, ("team", &team), "1000").await;
    let mut people = Vec::new();
    for (subject, amount) in each {
        let user = gateway.user(account, "copilot", subject, &[&team]).await;
        gateway.allot(account, &plan, ("user", &user), amount).await;
        people.push((user, gateway.as_end_user(account, subject)));
    }
    people
}

/// How many of so many requests, one after the other, are drawn from leases.
async fn drawn(gateway: &Gateway, client: &Client, count: usize) -> u64 {
    let before = gateway.metric("reservations_leased_total").await;
    for _ in 0..count {
        client.post("/v1/chat/completions", chat(MODEL)).await.ok();
    }
    gateway.metric("reservations_leased_total").await - before
}

/// Has so many requests answered at once until there are leases enough for many.
async fn warmed_up(gateway: &Gateway, client: &Client) {
    let warm = async {
        while drawn(gateway, client, 1).await == 0 {
            assert_eq!(burst(client, 40).await, 40);
        }
        assert_eq!(burst(client, 60).await, 60);
        while drawn(gateway, client, 20).await < 20 {}
    };
    tokio::time::timeout(PATIENCE, warm).await.expect("it leases");
}

#[tokio::test]
async fn who_has_used_up_a_cap_of_their_own_takes_nobody_else_off_leases() {
    for backend in backends().await {
        let stage = Stage::with(backend.clone(), hoarding).await;
        let gateway = &stage.gateway;
        let people = people(&stage, &[("eve", "0.05"), ("bob", "900")]).await;
        let ((her_id, eve), (_, bob)) = (&people[0], &people[1]);
        let second = if backend == Backend::Sqlite { None } else { Some(gateway.beside(hoarding).await) };
        let there = second.as_ref().map(|second| (second, bob.at(second.url())));
        warmed_up(gateway, bob).await;
        if let Some((second, bob)) = &there {
            warmed_up(second, bob).await;
        }
        // Two hundredths are used, three are held by answers that go on: those may come back.
        assert_eq!(burst(eve, 2).await, 2);
        gateway.upstream.behave(Behaviour { gap: PATIENCE, ..Behaviour::default() });
        let long = streamed(MODEL);
        let held = join_all((0..3).map(|_| open(eve, "/v1/chat/completions", &long))).await;
        gateway.upstream.behave(Behaviour::default());
        for _ in 0..5 {
            assert_eq!(eve.post("/v1/chat/completions", chat(MODEL)).await.status, 402);
            assert_eq!(drawn(gateway, bob, 4).await, 4);
            if let Some((second, bob)) = &there {
                assert_eq!(burst(&eve.at(second.url()), 1).await, 0);
                assert_eq!(drawn(second, bob, 4).await, 4);
            }
        }
        drop(held);
        let hers = ("user".to_owned(), her_id.clone());
        let spent = async {
            while gateway.counters(&stage.account).await[&hers] != (50_000_000, 0) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, spent).await.expect("she has used up all of it");
        assert_eq!(burst(eve, 3).await, 0);
        assert_eq!(drawn(gateway, bob, 4).await, 4);
        assert_eq!(gateway.verify_books().await.differences, []);
    }
}

#[tokio::test]
async fn a_chain_of_four_caps_and_another_domain_reserve_without_a_statement() {
    for backend in backends().await {
        let stage = Stage::with(backend, hoarding).await;
        let gateway = &stage.gateway;
        let copilot = people(&stage, &[("bob", "900")]).await.remove(0).1;
        // Without a place in the plan, a chain in both domains is the account's cap and no other.
        let console = gateway.sign_in(&Person::of(&stage.account, "carl").domains(&["console"]));
        for client in [&copilot, &console, &stage.ada] {
            warmed_up(gateway, client).await;
        }
        for client in [&copilot, &console, &stage.ada] {
            assert_eq!(drawn(gateway, client, 20).await, 20);
        }
        assert_eq!(gateway.verify_books().await.differences, []);
    }
}

/// What another gateway holds idle, while it is busy, is had by all who come at once.
#[tokio::test]
async fn of_requests_at_once_none_is_refused_while_another_gateway_hoards() {
    for backend in backends().await {
        if backend == Backend::Sqlite {
            continue; // one process each
        }
        let stage = Stage::with(backend, hoarding).await;
        let gateway = &stage.gateway;
        let second = gateway.beside(hoarding).await;
        let there = stage.ada.at(second.url());
        let mut used = 0;
        while open_leases(gateway).await.iter().sum::<i64>() < 200_000_000 {
            used += burst(&there, 40).await;
        }
        // What is left lies there, all but nothing.
        let cap = (used + 20) * 10;
        stage.settled(used).await;
        gateway.allocate(&stage.account, &format!("{}.{:03}", cap / 1_000, cap % 1_000)).await;
        let replies = join_all((0..20).map(|_| stage.ada.post("/v1/chat/completions", chat(MODEL)))).await;
        let statuses: Vec<_> = replies.iter().map(|reply| reply.status.as_u16()).collect();
        assert_eq!(statuses, [200; 20]);
        assert_eq!(burst(&stage.ada, 1).await, 0);
        stage.settled(used + 20).await;
        assert_eq!(stage.counter().await.0, (used as i64 + 20) * 10_000_000);
        assert_eq!(gateway.verify_books().await.differences, []);
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
