//! Caches: that a known caller costs no look-up, and that a change is not missed.

use alchemi::allocation::Enforcement;
use serde_json::json;

use crate::common::gateway::PATIENCE;
use crate::common::{Backend, backends};
use crate::{Stage, chat};

/// Statements and reads of rules that each of a few requests of a known caller needs, settlement included.
async fn cost_of_a_warm_request(stage: &Stage) -> u64 {
    let mut seen = Vec::new();
    for n in 0..8 {
        let before = (stage.gateway.metric("statements_total").await, stage.gateway.metric("rule_loads_total").await);
        stage.ada.post("/v1/chat/completions", chat("gpt-4o-mini")).await.ok();
        stage.settled(n + 1).await;
        while stage.gateway.metric("settlements_total").await < n as u64 + 1 {
            tokio::task::yield_now().await;
        }
        let statements = stage.gateway.metric("statements_total").await - before.0;
        let loads = stage.gateway.metric("rule_loads_total").await - before.1;
        // The first ones may still see the database's echo of the changes before.
        if n > 2 {
            assert_eq!(loads, 0, "request {n}");
            seen.push(statements);
        }
    }
    assert!(seen.iter().all(|count| *count == seen[0]), "{seen:?}");
    seen[0]
}

#[tokio::test]
async fn a_known_caller_costs_no_statement_but_the_reservation() {
    for backend in backends().await {
        let stage = Stage::with(backend.clone(), |config| config.allocation.enforcement = Enforcement::Off).await;
        let settling = cost_of_a_warm_request(&stage).await;
        // The ledger's row, one counter, one roll-up, what the account has spent.
        assert_eq!(settling, 4);
        assert_eq!(stage.gateway.metric("signature_checks_total").await, 1);
    }
    for backend in backends().await {
        let stage = Stage::with(backend, |config| config.allocation.leases.enabled = false).await;
        // The hold, its note and its end; what is leased needs none of them.
        assert_eq!(cost_of_a_warm_request(&stage).await, 4 + 3);
    }
}

#[tokio::test]
async fn a_refusal_of_a_known_caller_costs_no_statement() {
    let stage = Stage::set().await;
    let grant = stage.gateway.grant(&stage.account, "copilot", "gpt-4o", ("account", &stage.account), "deny").await;
    assert!(!grant.is_empty());
    let refuse = async || assert_eq!(stage.ada.post("/v1/chat/completions", chat("gpt-4o")).await.status, 403);
    refuse().await;
    let before = stage.gateway.metric("statements_total").await;
    for _ in 0..5 {
        refuse().await;
    }
    assert_eq!(stage.gateway.metric("statements_total").await, before);
}

#[tokio::test]
async fn a_change_holds_from_the_next_request_on() {
    for backend in backends().await {
        let stage = Stage::on(backend).await;
        let (gateway, account) = (&stage.gateway, &stage.account);
        let operator = gateway.operator_for(account);
        let ask = async || stage.ada.post("/v1/chat/completions", chat("gpt-4o-mini")).await.status.as_u16();
        for _ in 0..10 {
            assert_eq!(ask().await, 200);
            let deny = gateway.grant(account, "copilot", "gpt-4o-mini", ("account", account), "deny").await;
            assert_eq!(ask().await, 403, "a grant");
            operator.delete(&format!("/v1/copilot/models/grants/{deny}")).await.ok();
            assert_eq!(ask().await, 200, "its end");
            gateway.allocate(account, "0").await;
            assert_eq!(ask().await, 402, "an allocation");
            gateway.allocate(account, "1000").await;
            assert_eq!(ask().await, 200, "another one");
            let org = gateway.org(account, "copilot", "Research").await;
            let team = gateway.team(account, "copilot", &org, "Physics").await;
            let user = gateway.user(account, "copilot", "ada", &[&team]).await;
            let deny = gateway.grant(account, "copilot", "gpt-4o-mini", ("team", &team), "deny").await;
            assert_eq!(ask().await, 403, "a membership");
            operator.delete(&format!("/v1/copilot/models/grants/{deny}")).await.ok();
            operator.delete(&format!("/v1/copilot/users/{user}")).await.ok();
            operator.delete(&format!("/v1/copilot/orgs/{org}?cascade=true")).await.ok();
        }
    }
}

#[tokio::test]
async fn a_token_is_bound_to_an_account_made_later() {
    for backend in backends().await {
        let stage = Stage::on(backend).await;
        let gateway = &stage.gateway;
        let person = crate::common::Person::of("no-account", "eve");
        let eve = gateway.sign_in(&person);
        let ask = async || eve.post("/v1/chat/completions", chat("gpt-4o-mini")).await;
        assert_eq!(ask().await.code(), "account_unknown");
        // Her token's organisation becomes that of an account.
        let account = gateway.account("Later").await;
        gateway.open_models(&account).await;
        let config = json!({"enabled": true, "organization_id": "org-of-no-account"});
        let path = format!("/v1/accounts/{account}/zitadel/config");
        gateway.operator().put(&path, config).await.ok();
        ask().await.ok();
    }
}

#[tokio::test]
async fn another_gateway_on_the_same_database_hears_of_it_by_the_feed() {
    for backend in backends().await {
        if backend == Backend::Sqlite {
            continue; // one process each
        }
        let stage = Stage::on(backend).await;
        let second = stage.gateway.beside(|_| {}).await;
        let there = stage.ada.at(second.url());
        let ask = async || there.post("/v1/chat/completions", chat("gpt-4o-mini")).await.status.as_u16();
        let becomes = async |status: u16| {
            let asked = async { while ask().await != status {} };
            tokio::time::timeout(PATIENCE, asked).await.is_ok()
        };
        assert_eq!(ask().await, 200);
        let account = &stage.account;
        let deny = stage.gateway.grant(account, "copilot", "gpt-4o-mini", ("account", account), "deny").await;
        assert!(becomes(403).await, "a grant");
        let path = format!("/v1/copilot/models/grants/{deny}");
        stage.gateway.operator_for(account).delete(&path).await.ok();
        assert!(becomes(200).await, "its end");
        let path = format!("/v1/accounts/{account}/status");
        stage.gateway.operator().post(&path, json!({"status": "suspended"})).await.ok();
        assert!(becomes(403).await, "a suspension");
        stage.gateway.operator().post(&path, json!({"status": "active"})).await.ok();
        assert!(becomes(200).await, "its end");
        let revocation = json!({"subject": "ada"});
        stage.gateway.operator().post("/v1/auth/revocations", revocation).await.ok();
        assert!(becomes(401).await, "a revocation");
    }
}

/// As a server runs: the change feed's readers are on other threads than the answer to the change.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_change_holds_from_the_next_request_on_whatever_thread_serves_it() {
    for backend in backends().await {
        let stage = Stage::on(backend).await;
        let (gateway, account) = (&stage.gateway, &stage.account);
        let operator = gateway.operator_for(account);
        // Work that keeps all threads busy.
        let busy: Vec<_> = (0..4)
            .map(|n| {
                let other = gateway.as_end_user(account, &format!("other-{n}"));
                tokio::spawn(async move {
                    loop {
                        other.get("/v1/models").await;
                    }
                })
            })
            .collect();
        let ask = async || stage.ada.post("/v1/chat/completions", chat("gpt-4o-mini")).await.status.as_u16();
        for _ in 0..30 {
            let deny = gateway.grant(account, "copilot", "gpt-4o-mini", ("account", account), "deny").await;
            assert_eq!(ask().await, 403);
            operator.delete(&format!("/v1/copilot/models/grants/{deny}")).await.ok();
            assert_eq!(ask().await, 200);
        }
        busy.iter().for_each(tokio::task::JoinHandle::abort);
    }
}
