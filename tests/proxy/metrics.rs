//! What `/metrics` says after traffic, and that no caller can make it grow.

use std::collections::BTreeMap;

use http::Method;

use crate::common::backends;
use crate::common::gateway::PATIENCE;
use crate::{Stage, chat, streamed};

/// Every sample by its name and labels.
async fn samples(stage: &Stage) -> BTreeMap<String, f64> {
    let text = stage.gateway.operator().get("/metrics").await.text();
    assert!(text.ends_with("# EOF\n"));
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| line.rsplit_once(' ').unwrap())
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        .collect()
}

#[tokio::test]
async fn what_was_done_is_counted_once_by_kind_and_code() {
    for backend in backends().await {
        let stage = Stage::on(backend).await;
        let ask = async |model: &str| stage.ada.post("/v1/chat/completions", chat(model)).await.status.as_u16();
        assert_eq!(ask("gpt-4o").await, 200);
        assert_eq!(stage.ada.post("/v1/chat/completions", streamed("gpt-4o")).await.status, 200);
        assert_eq!(ask("gpt-4o+status=429").await, 429);
        stage.gateway.grant(&stage.account, "copilot", "gpt-4o", ("account", &stage.account), "deny").await;
        assert_eq!(ask("gpt-4o").await, 403);
        assert_eq!(stage.gateway.anybody().post("/v1/messages", chat("x")).await.status, 401);
        stage.gateway.allocate(&stage.account, "0").await;
        assert_eq!(ask("gpt-4o-mini").await, 402);
        stage.settled(3).await;
        // What is in the ledger is counted a moment later.
        let counted = async {
            while stage.gateway.metric("settlements_total").await < 3
                || stage.gateway.metric("settlements_waiting").await > 0
            {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, counted).await.expect("it is counted");

        let found = samples(&stage).await;
        let is = |name: &str, value: f64| assert_eq!(found.get(name), Some(&value), "{name} in {found:#?}");
        is(r#"alchemi_requests_total{kind="chat",code="allow"}"#, 3.0);
        is(r#"alchemi_requests_total{kind="chat",code="model_denied"}"#, 1.0);
        is(r#"alchemi_requests_total{kind="chat",code="allocation_exhausted"}"#, 1.0);
        is(r#"alchemi_requests_total{kind="messages",code="token_missing"}"#, 1.0);
        is(r#"alchemi_upstream_responses_total{kind="chat",status="200"}"#, 2.0);
        is(r#"alchemi_upstream_responses_total{kind="chat",status="429"}"#, 1.0);
        is("alchemi_gateway_seconds_count", 3.0);
        is("alchemi_upstream_seconds_count", 3.0);
        is("alchemi_reservations_total", 3.0);
        is("alchemi_reservations_refused_total", 1.0);
        is("alchemi_settlements_total", 3.0);
        is("alchemi_settlement_failures_total", 0.0);
        is("alchemi_settlements_waiting", 0.0);
        is("alchemi_requests_in_flight", 0.0);
        is("alchemi_upstreams_available", 1.0);
        is("alchemi_jwks_stale_issuers", 0.0);
        for name in
            ["token_cache_hits_total", "signature_checks_total", "jwks_fetches_total", "jwks_keys", "statements_total"]
        {
            assert!(found[&format!("alchemi_{name}")] >= 1.0, "{name} in {found:#?}");
        }
        let waited = found.iter().filter(|(name, _)| name.starts_with("alchemi_upstream_seconds_bucket")).count();
        assert!(waited > 5, "{found:#?}");
    }
}

#[tokio::test]
async fn no_caller_makes_them_grow() {
    let stage = Stage::set().await;
    let flood = async |round: usize| {
        for n in 0..20 {
            let name = format!("model-of-{round}-{n}");
            stage.ada.post("/v1/chat/completions", chat(&name)).await;
            stage.ada.get(&format!("/nowhere/{name}")).await;
            stage.gateway.anybody().with_token(&name).post("/v1/embeddings", chat(&name)).await;
            let method = Method::from_bytes(format!("M{n}").as_bytes()).unwrap();
            stage.ada.send(stage.ada.request(method, "/v1/chat/completions")).await;
        }
        samples(&stage).await
    };
    let (first, second) = (flood(1).await, flood(2).await);
    let names = |samples: &BTreeMap<String, f64>| samples.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&first), names(&second), "what callers make up is no label");
    assert!(first.len() < 200, "{}", first.len());
    for name in first.keys() {
        assert!(!name.contains("model-of") && !name.contains(&stage.account) && !name.contains("ada"), "{name}");
    }
}
