//! What is refused: in whose words, with what advice, and that nothing gets through.

use http::Method;
use serde_json::{Value, json};

use crate::common::{Backend, Gateway, Person, Reply, backends};
use crate::{Stage, chat, nanos, with};

/// The three shapes of a refusal.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Shape {
    OpenAi,
    Anthropic,
    Problem,
}

#[track_caller]
fn refused(reply: &Reply, status: u16, code: &str, shape: Shape) -> Value {
    assert_eq!((reply.status.as_u16(), reply.code().as_str()), (status, code), "{}", reply.text());
    assert_eq!(reply.header("x-alchemi-decision"), format!("deny;code={code}"));
    let body = reply.json();
    let id = json!(reply.header("x-request-id"));
    let kind = if shape == Shape::Problem { "application/problem+json" } else { "application/json" };
    assert_eq!(reply.header("content-type"), kind);
    match shape {
        Shape::OpenAi => {
            assert_eq!((&body["error"]["param"], &body["error"]["request_id"]), (&Value::Null, &id));
            assert!(body["error"]["message"].is_string() && body["error"]["type"].is_string(), "{body}");
            body["error"].clone()
        }
        Shape::Anthropic => {
            assert_eq!((&body["type"], &body["request_id"]), (&json!("error"), &id));
            assert!(body["error"]["message"].is_string() && body["error"]["type"].is_string(), "{body}");
            body["error"].clone()
        }
        Shape::Problem => {
            assert_eq!((&body["status"], &body["request_id"]), (&json!(status), &id));
            assert!(body["detail"].is_string() && body["type"].is_string(), "{body}");
            body
        }
    }
}

async fn nothing_happened(stage: &Stage) {
    assert_eq!(stage.gateway.forwarded(), [], "nothing reaches the upstream");
    assert_eq!(stage.gateway.ledger(&stage.account).await, [], "nothing is charged");
    assert_eq!(stage.counter().await, (0, 0), "nothing is held");
}

#[tokio::test]
async fn bodies_that_could_mean_something_else() {
    let stage = Stage::set().await;
    let bodies = [
        (r#"{"model":"gpt-4o-mini","model":"gpt-4o","messages":[]}"#, "duplicate_field"),
        (r#"{"model":"gpt-4o-mini","mod\u0065l":"gpt-4o","messages":[]}"#, "duplicate_field"),
        (r#"{"model":"gpt-4o-mini","stream":false,"stream":true,"messages":[]}"#, "duplicate_field"),
        (r#"{"model":"gpt-4o-mini","messages":[],"api_base":"http://evil"}"#, "field_not_allowed"),
        (r#"{"model":"gpt-4o-mini","messages":[],"mock_response":"free"}"#, "field_not_allowed"),
        (r#"{"model":"gpt-4o-mini","messages":[],"tags":["x"]}"#, "field_not_allowed"),
        (r#"{"model":"gpt-4o-mini","messages":[],"metadata":{"tags":["x"]}}"#, "field_not_allowed"),
        (r#"{"model":"gpt-4o-mini,gpt-4o","messages":[]}"#, "invalid_field"),
        (r#"{"messages":[]}"#, "model_required"),
        (r#"{"model":"gpt-4o-mini""#, "invalid_json"),
        ("[]", "invalid_json"),
        ("", "invalid_json"),
    ];
    for (body, code) in bodies {
        let request = stage.ada.request(Method::POST, "/v1/chat/completions");
        let reply = stage.ada.send(request.header("content-type", "application/json").body(body)).await;
        refused(&reply, 400, code, Shape::OpenAi);
    }
    let request = stage.ada.request(Method::POST, "/v1/chat/completions").header("content-type", "text/plain");
    refused(&stage.ada.send(request.body("{}")).await, 415, "unsupported_media_type", Shape::OpenAi);
    let request = stage.ada.request(Method::POST, "/v1/chat/completions").header("content-encoding", "gzip");
    refused(&stage.ada.send(request.body("x")).await, 415, "unsupported_content_encoding", Shape::OpenAi);
    let mismatch = stage.ada.post("/engines/gpt-4o/chat/completions", chat("gpt-4o-mini")).await;
    refused(&mismatch, 400, "model_mismatch", Shape::OpenAi);
    nothing_happened(&stage).await;
}

#[tokio::test]
async fn a_body_above_the_limit() {
    let stage = Stage::with(Backend::Sqlite, |config| config.limits.body_bytes = 1_000).await;
    let long = json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "x".repeat(2_000)}]});
    refused(&stage.ada.post("/v1/chat/completions", long).await, 413, "body_too_large", Shape::OpenAi);
    let chunked = stage.gateway.raw(format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nconnection: close\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n7d0\r\n{}\r\n0\r\n\r\n",
        stage.ada.token(),
        " ".repeat(2_000)
    ));
    assert!(chunked.await.starts_with("HTTP/1.1 413"));
    nothing_happened(&stage).await;
}

#[tokio::test]
async fn a_model_without_a_grant_comes_with_advice() {
    let gateway = Gateway::start(Backend::Sqlite).await;
    let account = gateway.account("Acme").await;
    let ada = gateway.as_end_user(&account, "ada");
    for model in ["gpt-4o", "no-such-model"] {
        let reply = ada.post("/v1/chat/completions", chat(model)).await;
        let error = refused(&reply, 403, "model_denied", Shape::OpenAi);
        assert_eq!((&error["type"], &error["model"]), (&json!("permission_error"), &json!(model)));
        let advice = format!("Ask an admin of account Acme to grant you the model `{model}`");
        assert_eq!(error["message"], json!(advice));
    }
    gateway.grant(&account, "copilot", "gpt-4o-mini", ("account", &account), "allow").await;
    let error = refused(&ada.post("/v1/chat/completions", chat("gpt-4o")).await, 403, "model_denied", Shape::OpenAi);
    assert!(error["message"].as_str().unwrap().ends_with(", or choose one of: gpt-4o-mini"), "{error}");
    let messages = json!({"model": "claude-sonnet-4-5", "max_tokens": 9, "messages": []});
    let error = refused(&ada.post("/v1/messages", messages).await, 403, "model_denied", Shape::Anthropic);
    assert_eq!(error["type"], "permission_error");
    // A fallback is a model like any other.
    let sly = with(chat("gpt-4o-mini"), "fallbacks", json!(["gpt-4o"]));
    let error = refused(&ada.post("/v1/chat/completions", sly).await, 403, "model_denied", Shape::OpenAi);
    assert_eq!(error["model"], "gpt-4o");
    assert_eq!(gateway.forwarded(), []);
}

#[tokio::test]
async fn a_model_that_the_upstream_does_not_know_is_its_own_to_refuse() {
    let stage = Stage::set().await;
    let reply = stage.ada.post("/v1/chat/completions", chat("no-such-model")).await;
    assert_eq!((reply.status.as_u16(), reply.header("x-alchemi-decision")), (400, "allow"));
    assert_eq!(reply.json()["error"]["code"], "400");
    let row = &stage.settled(1).await[0];
    assert_eq!((&row["raw_cost"], &row["status"]), (&json!(0), &json!(400)));
    assert_eq!(stage.counter().await, (0, 0));
}

#[tokio::test]
async fn an_exhausted_allocation_is_not_to_be_retried() {
    for backend in backends().await {
        let stage = Stage::on(backend).await;
        stage.gateway.allocate(&stage.account, "0.000001").await;
        let reply = stage.ada.post("/v1/chat/completions", with(chat("gpt-4o"), "max_tokens", json!(100))).await;
        let error = refused(&reply, 402, "allocation_exhausted", Shape::OpenAi);
        assert_eq!(reply.header("x-should-retry"), "false");
        assert_eq!(error["type"], "insufficient_quota");
        assert_eq!(error["scope"], json!({"scope_type": "account", "scope_id": stage.account}));
        assert_eq!(nanos(&error["remaining_credits"].to_string()), 1_000);
        let requested = nanos(&error["requested_credits"].to_string());
        assert!((1_000_000..2_000_000).contains(&requested), "100 tokens at 0.00001, and the question: {requested}");
        assert!(error["resets_at"].as_str().unwrap().ends_with("-01T00:00:00Z"), "{error}");
        let messages = json!({"model": "claude-sonnet-4-5", "max_tokens": 9, "messages": []});
        let reply = stage.ada.post("/v1/messages", messages).await;
        let error = refused(&reply, 402, "allocation_exhausted", Shape::Anthropic);
        assert_eq!((&error["type"], reply.header("x-should-retry")), (&json!("billing_error"), "false"));
        // Free kinds are not held to it.
        stage.ada.get("/v1/models").await.ok();
        assert_eq!(stage.gateway.forwarded().len(), 1);
        assert_eq!(stage.counter().await.1, 0);
    }
}

#[tokio::test]
async fn an_account_without_an_allocation_where_one_is_required() {
    let gateway = Gateway::start_with(Backend::Sqlite, |config| config.allocation.require = true).await;
    let account = gateway.account("Acme").await;
    gateway.open_models(&account).await;
    let ada = gateway.as_end_user(&account, "ada");
    let reply = ada.post("/v1/chat/completions", chat("gpt-4o")).await;
    refused(&reply, 402, "allocation_missing", Shape::OpenAi);
    assert_eq!(reply.header("x-should-retry"), "false");
    gateway.allocate(&account, "1").await;
    ada.post("/v1/chat/completions", chat("gpt-4o")).await.ok();
}

#[tokio::test]
async fn who_may_not_be_here_at_all() {
    let stage = Stage::set().await;
    let (gateway, account) = (&stage.gateway, &stage.account);
    let ask = async |client: &crate::Client| client.post("/v1/chat/completions", chat("gpt-4o")).await;

    let stranger = gateway.as_end_user("nowhere", "eve");
    refused(&ask(&stranger).await, 403, "account_unknown", Shape::OpenAi);
    let other = gateway.account("Umbrella").await;
    refused(&ask(&stage.ada.within(&other)).await, 403, "account_mismatch", Shape::OpenAi);
    refused(&ask(&stage.ada.within("nowhere")).await, 403, "account_mismatch", Shape::OpenAi);

    let console_only = gateway.sign_in(&Person::of(account, "cleo").domains(&["console"]));
    ask(&console_only).await.ok();
    let request = console_only.request(Method::POST, "/v1/chat/completions").header("x-alchemi-domain", "copilot");
    refused(&console_only.send(request.json(&chat("gpt-4o"))).await, 403, "domain_denied", Shape::OpenAi);
    let nowhere = gateway.sign_in(&Person::of(account, "nemo").domains(&["elsewhere"]));
    refused(&ask(&nowhere).await, 403, "domain_denied", Shape::OpenAi);

    let header = async |name: &str, value: &str| {
        let request = stage.ada.request(Method::POST, "/v1/chat/completions").header(name, value);
        stage.ada.send(request.json(&chat("gpt-4o"))).await
    };
    refused(&header("x-alchemi-team-id", "not-mine").await, 403, "team_denied", Shape::OpenAi);
    refused(&header("x-alchemi-agent-id", "a1").await, 403, "agent_denied", Shape::OpenAi);
    refused(&header("x-alchemi-connection-id", "c1").await, 403, "connection_denied", Shape::OpenAi);
    refused(&header("x-alchemi-domain", "nonsense").await, 400, "invalid_header", Shape::OpenAi);
    refused(&header("x-api-key", "another-token").await, 400, "ambiguous_credentials", Shape::OpenAi);
    assert_eq!(gateway.forwarded().len(), 1, "only the one that was let in");
}

#[tokio::test]
async fn suspension_holds_from_the_next_request_on() {
    for backend in backends().await {
        let stage = Stage::on(backend).await;
        let (gateway, account) = (&stage.gateway, &stage.account);
        let user = gateway.user(account, "copilot", "ada", &[]).await;
        let ask = async || stage.ada.post("/v1/chat/completions", chat("gpt-4o-mini")).await;
        let operator = gateway.operator_for(account);
        ask().await.ok();
        operator.patch(&format!("/v1/copilot/users/{user}"), json!({"status": "suspended"})).await.ok();
        refused(&ask().await, 403, "user_suspended", Shape::OpenAi);
        operator.patch(&format!("/v1/copilot/users/{user}"), json!({"status": "active"})).await.ok();
        ask().await.ok();
        let status = format!("/v1/accounts/{account}/status");
        gateway.operator().post(&status, json!({"status": "suspended"})).await.ok();
        refused(&ask().await, 403, "account_suspended", Shape::OpenAi);
        gateway.operator().post(&status, json!({"status": "active"})).await.ok();
        ask().await.ok();
    }
}

#[tokio::test]
async fn what_is_not_governed_is_not_forwarded() {
    let stage = Stage::set().await;
    let post = async |path: &str| stage.ada.post(path, chat("gpt-4o")).await;
    for path in ["/key/generate", "/v1/files", "/user/new", "/v1/audio/translations", "/model/info", "/v1x/models"] {
        refused(&post(path).await, 404, "route_not_governed", Shape::Problem);
    }
    let operator = stage.gateway.operator();
    refused(&operator.get("/model/info").await, 404, "route_not_governed", Shape::Problem);
    let reply = stage.ada.get("/v1/chat/completions").await;
    refused(&reply, 405, "method_not_allowed", Shape::OpenAi);
    assert_eq!(reply.header("allow"), "POST");
    for path in
        ["/v1//chat/completions", "/v1/chat/..%2fcompletions", "/v1/chat%00/completions", "/v1/chat;x/completions"]
    {
        let answer = stage.gateway.raw(format!(
            "POST {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\nauthorization: Bearer {}\r\ncontent-length: 2\r\n\r\n{{}}",
            stage.ada.token()
        ));
        let answer = answer.await;
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("invalid_path"), "{path}: {answer}");
    }
    nothing_happened(&stage).await;
}

#[tokio::test]
async fn our_own_prefixes_are_never_forwarded() {
    let stage = Stage::set().await;
    let prefixes = ["me", "accounts", "auth", "copilot", "console", "budgets", "features", "policy", "audit", "costs"];
    let upstream = stage.gateway.anybody().with_token("sk-of-the-caller");
    for prefix in prefixes {
        for path in [format!("/v1/{prefix}/no/such/path"), format!("/V1/{prefix}/No-such-path")] {
            let reply = stage.ada.post(&path, json!({})).await;
            assert_eq!(reply.status, 404, "{path}: {}", reply.text());
            assert_eq!(reply.header("content-type"), "application/problem+json", "{path}");
            let reply = upstream.post(&path, json!({})).await;
            assert!([401, 404].contains(&reply.status.as_u16()), "{path}: {}", reply.text());
        }
    }
    nothing_happened(&stage).await;
}
