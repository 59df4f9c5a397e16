//! The ledger is added up beside requests, and whoever operates the gateway is told.

use std::time::Duration;

use serde_json::Value;

use crate::common::gateway::PATIENCE;
use crate::common::{Gateway, backends};
use crate::{Stage, chat};

/// What `/readyz?verbose` says of the ledger; nothing before it was looked at.
async fn ledger(gateway: &Gateway) -> Option<Value> {
    let reply = gateway.operator().get("/readyz?verbose").await;
    assert_eq!(reply.status, 200, "no reason to take no requests: {}", reply.text());
    let checks = reply.json()["checks"].clone();
    checks.as_array().unwrap().iter().find(|check| check["name"] == "ledger").cloned()
}

/// Until the ledger was looked at with so many differences.
async fn verified(gateway: &Gateway, differences: u64) {
    let looked = async {
        while gateway.metric("ledger_verified_timestamp_seconds").await == 0
            || gateway.metric("ledger_differences").await != differences
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, looked).await.expect("it is verified again and again");
}

#[tokio::test]
async fn books_that_do_not_balance_are_told_of() {
    for backend in backends().await {
        let stage = Stage::with(backend, |config| config.ledger.verify_seconds = 1).await;
        let gateway = &stage.gateway;
        stage.ada.post("/v1/chat/completions", chat("gpt-4o")).await.ok();
        stage.settled(1).await;
        verified(gateway, 0).await;
        assert_eq!(ledger(gateway).await.unwrap()["status"], "ok");

        gateway.database.execute(r#"UPDATE "Alchemi_AllocationCounterTable" SET used = used + 1"#).await;
        verified(gateway, 1).await;
        let told = ledger(gateway).await.unwrap();
        assert_eq!(told["status"], "unbalanced");
        let (detail, account) = (told["detail"].as_str().unwrap(), &stage.account);
        assert!(detail.contains(&**account) && detail.contains("`used`"), "{detail}");
        let reply = gateway.operator().get("/readyz?verbose").await.json();
        let warned =
            reply["warnings"].as_array().unwrap().iter().any(|w| w.as_str().unwrap().contains("ledger verify"));
        assert!(warned, "{reply}");
        // Not for everybody.
        assert!(!gateway.anybody().get("/readyz").await.text().contains("ledger"));

        gateway.database.execute(r#"UPDATE "Alchemi_AllocationCounterTable" SET used = used - 1"#).await;
        verified(gateway, 0).await;
    }
}

#[tokio::test]
async fn of_several_gateways_one_adds_up_and_all_tell() {
    for backend in backends().await {
        if backend == crate::common::Backend::Sqlite {
            continue; // one process each
        }
        let often = |config: &mut alchemi::config::Config| config.ledger.verify_seconds = 1;
        let stage = Stage::with(backend, often).await;
        let second = stage.gateway.beside(often).await;
        // It is taken on until far from now: neither is to begin, and both tell what there is.
        let sql = r#"INSERT INTO "Alchemi_LedgerCheckTable"
            (id, claimed_at, started_at, finished_at, ledger_rows, differences, first_difference)
            VALUES (1, 4000000000000000, 1000000, 2000000, 3, 4, 'here')
            ON CONFLICT (id) DO UPDATE SET claimed_at = excluded.claimed_at, started_at = excluded.started_at,
            finished_at = excluded.finished_at, ledger_rows = excluded.ledger_rows,
            differences = excluded.differences, first_difference = excluded.first_difference"#;
        for gateway in [&stage.gateway, &second] {
            let told = async {
                while gateway.metric("ledger_differences").await != 4
                    || gateway.metric("ledger_rows_verified").await != 3
                {
                    // Whoever had begun before notes what was found.
                    stage.gateway.database.execute(sql).await;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            tokio::time::timeout(PATIENCE, told).await.expect("all tell what one has found");
        }
    }
}

#[tokio::test]
async fn it_can_be_switched_off() {
    let stage = Stage::with(crate::common::Backend::Sqlite, |config| config.ledger.verify_seconds = 0).await;
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert_eq!(stage.gateway.metric("ledger_verified_timestamp_seconds").await, 0);
    assert_eq!(ledger(&stage.gateway).await, None);
}
