//! What an operator can choose.

use std::num::NonZeroU32;

use alchemi::allocation::Enforcement;
use alchemi::dev::Behaviour;
use alchemi::metering::charge::Unpriced;
use alchemi::metering::price::ModelPrice;
use alchemi::model::models::AccessMode;
use serde_json::json;

use crate::common::{Backend, Gateway, backends};
use crate::{Stage, chat, int, nanos, text};

#[tokio::test]
async fn soft_enforcement_admits_and_marks() {
    for backend in backends().await {
        let stage = Stage::with(backend, |config| config.allocation.enforcement = Enforcement::Soft).await;
        stage.gateway.allocate(&stage.account, "0").await;
        let mut cost = 0;
        for _ in 0..3 {
            let reply = stage.ada.post("/v1/chat/completions", chat("gpt-4o")).await;
            assert_eq!(reply.header("x-alchemi-decision"), "allow;code=over_cap");
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

/// Sets how strictly the account's caps hold.
async fn enforce(stage: &Stage, credits: i64, enforcement: serde_json::Value) {
    let body = json!({"account_id": stage.account, "monthly_credits": credits, "enforcement": enforcement});
    stage.gateway.operator().post("/v1/budgets/account-allocation", body).await.ok();
}

#[tokio::test]
async fn an_account_has_its_own_enforcement() {
    for backend in backends().await {
        let stage = Stage::on(backend).await;
        let ask = async || stage.ada.post("/v1/chat/completions", chat("gpt-4o")).await;
        enforce(&stage, 0, json!(null)).await;
        assert_eq!(ask().await.code(), "allocation_exhausted", "hard is the configuration's default");

        enforce(&stage, 0, json!("soft")).await;
        let reply = ask().await;
        assert_eq!((reply.status.as_u16(), reply.header("x-alchemi-decision")), (200, "allow;code=over_cap"));
        enforce(&stage, 0, json!("shadow")).await;
        let reply = ask().await;
        assert_eq!((reply.status.as_u16(), reply.header("x-alchemi-decision")), (200, "allow"));
        enforce(&stage, 1_000, json!("shadow")).await;
        assert_eq!(ask().await.status, 200, "and what fits is not marked");
        enforce(&stage, 0, json!("off")).await;
        assert_eq!(ask().await.status, 200);
        let marks: Vec<_> = stage.settled(4).await.iter().map(|row| text(row, "marks").to_owned()).collect();
        assert_eq!(marks, ["over_cap", "would_refuse", "", ""]);
        for (mark, found) in [("over_cap", 1), ("would_refuse", 1), ("over", 0), ("%", 0)] {
            let path = format!("/v1/costs/entries?mark={}", if mark == "%" { "%25" } else { mark });
            let listed = stage.gateway.as_account_admin(&stage.account).get(&path).await.ok();
            let items = listed["items"].as_array().unwrap();
            assert_eq!(items.len(), found, "{mark}: {listed}");
            assert!(items.iter().all(|item| item["marks"] == json!([mark]) && item["status"] == 200), "{listed}");
        }
        // The caller is not told of a trial.
        let own = stage.ada.get("/v1/me/usage").await.ok();
        let told: Vec<_> = own["items"].as_array().unwrap().iter().map(|item| item["marks"].clone()).collect();
        assert_eq!(told, [json!([]), json!([]), json!([]), json!(["over_cap"])], "the newest first");
        assert_eq!(stage.gateway.metric("reservations_over_cap_total").await, 1);
        assert_eq!(stage.gateway.metric("reservations_shadowed_total").await, 1);
        assert_eq!(stage.gateway.verify_books().await.differences, []);

        // Absent keeps, null goes back to the default; both are shown, and every change is in the audit.
        let operator = stage.gateway.operator();
        let one = format!("/v1/budgets/account-allocation?account_id={}", stage.account);
        let kept = json!({"account_id": stage.account, "monthly_credits": 0});
        operator.post("/v1/budgets/account-allocation", kept).await.ok();
        assert_eq!(operator.get(&one).await.ok()["item"]["enforcement"], "off");
        let admin = stage.gateway.as_account_admin(&stage.account);
        let terms = async || admin.get("/v1/budgets/copilot/account-allocation").await.ok()["enforcement"].clone();
        assert_eq!(terms().await, "off");
        enforce(&stage, 0, json!(null)).await;
        assert_eq!(operator.get(&one).await.ok()["item"]["enforcement"], json!(null));
        assert_eq!(terms().await, "hard");
        assert_eq!(ask().await.code(), "allocation_exhausted");
        let path = format!("/v1/accounts/{}/audit?resource=Alchemi_AccountAllocationTable", stage.account);
        let audit = operator.get(&path).await.ok();
        let (before, after) = (&audit["items"][0]["before_value"], &audit["items"][0]["updated_values"]);
        assert_eq!((&before["enforcement"], &after["enforcement"]), (&json!("off"), &json!(null)));
        let wrong = json!({"account_id": stage.account, "enforcement": "lax"});
        assert_eq!(operator.post("/v1/budgets/account-allocation", wrong).await.status, 422);

        enforce(&stage, 0, json!("shadow")).await;
        let question = json!({"subject": "ada", "model": "gpt-4o"});
        let explained = admin.post("/v1/policy/explain", question).await.ok();
        assert_eq!(explained["decision"], "allow", "{explained}");
        assert!(explained.to_string().contains("enforcement is shadow and lets it through"), "{explained}");
    }
}

/// Every kind by the name that its API has for it, in the caller's own bytes.
#[tokio::test]
async fn strict_metering_bounds_every_answer() {
    let stage = Stage::with(Backend::Sqlite, |config| config.metering.strict = true).await;
    let sent = async |path: &str, body: &str| {
        let request = stage.ada.request(http::Method::POST, path).header("content-type", "application/json");
        stage.ada.send(request.body(body.to_owned())).await.ok();
        String::from_utf8(stage.gateway.last_forwarded().body.to_vec()).unwrap()
    };
    let chat = "/v1/chat/completions";
    let hello = r#""model" : "gpt-4o", "messages":[{"role":"user","content":"hi"}]"#;
    for (path, asked, bounded) in [
        (chat, format!("{{ {hello} }}"), format!("{{\"max_tokens\":1024, {hello} }}")),
        (chat, format!("{{{hello},\"max_tokens\": 5}}"), format!("{{{hello},\"max_tokens\": 5}}")),
        (chat, format!("{{{hello},\"max_tokens\": null}}"), format!("{{{hello},\"max_tokens\": 1024}}")),
        (
            chat,
            format!("{{{hello},\"max_completion_tokens\":99999999,\"n\":3}}"),
            format!("{{{hello},\"max_completion_tokens\":16384,\"n\":3}}"),
        ),
        (
            "/v1/responses",
            r#"{"model":"gpt-4o","input":"x"}"#.to_owned(),
            r#"{"max_output_tokens":1024,"model":"gpt-4o","input":"x"}"#.to_owned(),
        ),
        (
            "/v1/completions",
            r#"{"model":"gpt-4o","prompt":["a","b"]}"#.to_owned(),
            r#"{"max_tokens":1024,"model":"gpt-4o","prompt":["a","b"]}"#.to_owned(),
        ),
        (
            "/v1/messages",
            r#"{"model":"gpt-4o","max_tokens":99999999,"messages":[{"role":"user","content":"hi"}]}"#.to_owned(),
            r#"{"model":"gpt-4o","max_tokens":16384,"messages":[{"role":"user","content":"hi"}]}"#.to_owned(),
        ),
        (
            "/v1/embeddings",
            r#"{"model":"text-embedding-3-small","input":"x"}"#.to_owned(),
            r#"{"model":"text-embedding-3-small","input":"x"}"#.to_owned(),
        ),
    ] {
        assert_eq!(sent(path, &asked).await, bounded, "{path}");
    }
}

/// Whatever is asked, and however badly it was estimated, a cap is never passed.
#[tokio::test]
async fn under_strict_metering_no_answer_costs_more_than_it_holds() {
    for backend in backends().await {
        let stage = Stage::with(backend, |config| {
            config.metering.strict = true;
            // The upstream counts far more tokens than the gateway expects.
            config.ask.count.bytes_per_token = NonZeroU32::new(1_000).unwrap();
        })
        .await;
        stage.gateway.allocate(&stage.account, "0.005").await;
        let dense = |n: u64| {
            let messages = json!([{"role": "user", "content": "7".repeat(200)}]);
            json!({"model": "gpt-4o", "messages": messages, "n": n, "max_tokens": 2})
        };
        let (mut refused, mut count) = (0, 0);
        for n in 1..60 {
            let reply = stage.ada.post("/v1/chat/completions", dense(n % 3 + 1)).await;
            match reply.status.as_u16() {
                402 => refused += 1,
                _ => count += 1,
            }
        }
        stage.settled(count).await;
        let (used, leased) = stage.rested().await;
        assert!(refused > 0 && count > 0 && leased == 0, "{count} of 59");
        assert!(used <= 5_000_000, "{used}");
    }
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
