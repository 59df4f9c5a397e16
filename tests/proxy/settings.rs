//! What an operator can choose.

use alchemi::allocation::Enforcement;
use alchemi::dev::Behaviour;
use alchemi::metering::charge::Unpriced;
use alchemi::metering::price::ModelPrice;
use alchemi::model::models::AccessMode;
use serde_json::json;

use crate::common::{Backend, Gateway, backends};
use crate::{Stage, chat, int, nanos, text, with};

#[tokio::test]
async fn soft_enforcement_admits_and_marks() {
    for backend in backends().await {
        let stage = Stage::with(backend, |config| config.allocation.enforcement = Enforcement::Soft).await;
        stage.gateway.allocate(&stage.account, "0").await;
        let mut cost = 0;
        for _ in 0..3 {
            let reply = stage.ada.post("/v1/chat/completions", chat("gpt-4o")).await;
            cost += nanos(reply.header("x-litellm-response-cost"));
        }
        let rows = stage.settled(3).await;
        assert!(rows.iter().all(|row| text(row, "marks") == "over_cap"), "{rows:#?}");
        assert_eq!(stage.counter().await, (cost, 0));
        stage.gateway.allocate(&stage.account, "100").await;
        stage.ada.post("/v1/chat/completions", chat("gpt-4o")).await.ok();
        assert_eq!(text(&stage.settled(4).await[3], "marks"), "");
        assert_eq!(stage.gateway.verify_books().await.differences, []);
    }
}

#[tokio::test]
async fn enforcement_off_counts_and_holds_nothing() {
    for backend in backends().await {
        let stage = Stage::with(backend, |config| config.allocation.enforcement = Enforcement::Off).await;
        stage.gateway.allocate(&stage.account, "0").await;
        let reply = stage.ada.post("/v1/chat/completions", chat("gpt-4o")).await;
        let cost = nanos(reply.header("x-litellm-response-cost"));
        assert_eq!(text(&stage.settled(1).await[0], "marks"), "");
        assert_eq!(stage.counter().await, (cost, 0));
        assert_eq!(stage.gateway.verify_books().await.differences, []);
    }
}

#[tokio::test]
async fn strict_metering_bounds_every_answer() {
    let stage = Stage::with(Backend::Sqlite, |config| config.metering.strict = true).await;
    let sent = async |body: serde_json::Value, path: &str| {
        stage.ada.post(path, body).await.ok();
        stage.gateway.last_forwarded().json().unwrap()
    };
    let unbounded = sent(chat("gpt-4o"), "/v1/chat/completions").await;
    let bound = ["max_tokens", "max_completion_tokens"].iter().find_map(|name| unbounded.get(*name));
    assert_eq!(bound, Some(&json!(1024)), "{unbounded}");
    let small = sent(with(chat("gpt-4o"), "max_tokens", json!(5)), "/v1/chat/completions").await;
    assert_eq!(small["max_tokens"], 5);
    let answered = sent(json!({"model": "gpt-4o", "input": "x"}), "/v1/responses").await;
    assert_eq!(answered["max_output_tokens"], 1024);
}

#[tokio::test]
async fn a_configured_price_outranks_the_upstreams_list_but_not_its_bill() {
    let price: ModelPrice =
        serde_json::from_value(json!({"input_cost_per_token": "0.001", "output_cost_per_token": "0.01"})).unwrap();
    let stage = Stage::with(Backend::Sqlite, |config| {
        config.metering.prices.insert("gpt-4o".to_owned(), price);
    })
    .await;
    let reply = stage.ada.post("/v1/chat/completions", chat("gpt-4o")).await;
    let billed = nanos(reply.header("x-litellm-response-cost"));
    stage.gateway.upstream.behave(Behaviour { no_cost: true, ..Behaviour::default() });
    stage.ada.post("/v1/chat/completions", chat("gpt-4o")).await.ok();
    let rows = stage.settled(2).await;
    assert_eq!((text(&rows[0], "cost_source"), int(&rows[0], "raw_cost")), ("header", billed));
    let priced = int(&rows[1], "input_tokens") * 1_000_000 + int(&rows[1], "output_tokens") * 10_000_000;
    assert_eq!((text(&rows[1], "cost_source"), int(&rows[1], "raw_cost")), ("priced", priced));
}

#[tokio::test]
async fn a_model_without_a_price_is_admitted_refused_or_flat() {
    let set = async |unpriced: &str| {
        let unpriced: Unpriced = unpriced.parse().unwrap();
        Stage::with(Backend::Sqlite, |config| config.metering.unpriced = unpriced).await
    };
    let stage = set("allow").await;
    stage.ada.post("/v1/chat/completions", chat("free-for-all")).await.ok();
    let row = &stage.settled(1).await[0];
    assert_eq!((text(row, "cost_source"), int(row, "raw_cost")), ("unpriced", 0));
    assert!(int(row, "output_tokens") > 0);

    let stage = set("deny").await;
    let reply = stage.ada.post("/v1/chat/completions", chat("free-for-all")).await;
    assert_eq!((reply.status.as_u16(), reply.code().as_str()), (403, "model_unpriced"));
    assert_eq!(stage.gateway.forwarded(), []);
    stage.ada.post("/v1/chat/completions", chat("gpt-4o")).await.ok();

    let stage = set("flat:0.25").await;
    stage.ada.post("/v1/chat/completions", chat("free-for-all")).await.ok();
    let row = &stage.settled(1).await[0];
    assert_eq!((text(row, "cost_source"), int(row, "raw_cost")), ("unpriced", 250_000_000));
}

#[tokio::test]
async fn models_can_be_open_until_somebody_closes_them() {
    let gateway =
        Gateway::start_with(Backend::Sqlite, |config| config.policy.default_model_access = AccessMode::Allow).await;
    let account = gateway.account("Acme").await;
    let ada = gateway.as_end_user(&account, "ada");
    ada.post("/v1/chat/completions", chat("gpt-4o")).await.ok();
    gateway.grant(&account, "copilot", "gpt-4o", ("account", &account), "deny").await;
    assert_eq!(ada.post("/v1/chat/completions", chat("gpt-4o")).await.status, 403);
}

#[tokio::test]
async fn operators_can_have_an_address_of_their_own() {
    let stage = Stage::with(Backend::Sqlite, |config| config.admin_listen = Some("127.0.0.1:0".parse().unwrap())).await;
    let admin = stage.gateway.server.as_ref().unwrap().admin_address().unwrap();
    let operators = stage.gateway.anybody().at(&format!("http://{admin}"));
    let metrics = operators.get("/metrics").await;
    assert!(metrics.status == 200 && metrics.text().ends_with("# EOF\n"));
    assert_eq!(operators.get("/readyz").await.ok()["status"], "ready");
    assert_eq!(operators.get("/v1/accounts").await.status, 404);
    assert_eq!(stage.gateway.operator().get("/metrics").await.status, 404);

    assert!(operators.get("/readyz?verbose").await.ok()["warnings"].is_array());

    let stage = Stage::set().await;
    assert_eq!(stage.gateway.anybody().get("/metrics").await.status, 401);
    assert_eq!(stage.ada.get("/metrics").await.status, 403);
    assert_eq!(stage.gateway.as_super_admin(&stage.account).get("/metrics").await.status, 200);
    assert_eq!(stage.gateway.anybody().get("/healthz").await.text(), "ok\n");
}

#[tokio::test]
async fn readiness_warns_operators_of_what_is_left_open() {
    for backend in backends().await {
        let stage = Stage::with(backend, |config| config.allocation.enforcement = Enforcement::Soft).await;
        let operator = stage.gateway.operator();
        let warnings = async || {
            let ready = operator.get("/readyz?verbose").await.ok();
            assert_eq!(ready["status"], "ready");
            serde_json::from_value::<Vec<String>>(ready["warnings"].clone()).unwrap()
        };
        let all = warnings().await;
        for says in ["1 accounts are bound to no Zitadel organisation", "enforcement = \"soft\"", "super_admin_org_id"]
        {
            assert!(all.iter().any(|warning| warning.contains(says)), "{says}: {all:?}");
        }
        let config = format!("/v1/accounts/{}/zitadel/config", stage.account);
        operator.put(&config, json!({"organization_id": "7001"})).await.ok();
        assert!(!warnings().await.iter().any(|warning| warning.contains("organisation (")));
        // Others learn that it is ready, and no more.
        assert!(stage.gateway.anybody().get("/readyz").await.ok().get("warnings").is_none());
        assert_eq!(stage.gateway.anybody().get("/readyz?verbose").await.status, 401);
        assert_eq!(stage.ada.get("/readyz?verbose=1").await.status, 403);
    }
}
