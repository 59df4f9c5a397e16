//! Ways around the policy that attackers found, closed.

use std::time::Duration;

use alchemi::metering::price::ModelPrice;
use http::Method;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::common::Backend;
use crate::{Stage, chat, with};

/// LiteLLM takes `?model=` before the body's model.
#[tokio::test]
async fn a_query_does_not_reach_the_upstream() {
    let stage = Stage::set().await;
    for query in ["?model=gpt-4o", "?model=a&model=b", "?api-version=2024-10-21", "?mod%65l=gpt-4o"] {
        stage.ada.post(&format!("/v1/chat/completions{query}"), chat("gpt-4o-mini")).await.ok();
        assert_eq!(stage.gateway.last_forwarded().target, "/v1/chat/completions");
    }
    let beta = json!({"model": "claude-sonnet-4-5", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]});
    stage.ada.post("/v1/messages?beta=true&model=x", beta).await.ok();
    assert_eq!(stage.gateway.last_forwarded().target, "/v1/messages?beta=true");
}

/// What would cost more than a number can hold is not therefore free.
#[tokio::test]
async fn a_huge_request_holds_no_less_than_a_large_one() {
    let stage = Stage::set().await;
    for field in ["n", "best_of"] {
        let reply = stage.ada.post("/v1/chat/completions", with(chat("gpt-4o-mini"), field, json!(1_u64 << 54))).await;
        assert_eq!((reply.status.as_u16(), reply.code().as_str()), (400, "invalid_field"));
    }
    let endless = with(chat("gpt-4o-mini"), "max_tokens", json!(u64::MAX));
    let reply = stage.ada.post("/v1/completions", with(endless, "prompt", json!("x"))).await;
    assert!(matches!(reply.status.as_u16(), 200 | 402), "bounded by the model's maximum, or refused: {}", reply.text());
    assert!(stage.gateway.forwarded().len() <= 1);
}

/// An estimate that overflows at its price is not the estimate of a model without one.
#[tokio::test]
async fn what_no_budget_holds_is_refused() {
    let price = serde_json::from_value(json!({"input_cost_per_token": "0.000001", "output_cost_per_token": "0.01"}));
    let price: ModelPrice = price.unwrap();
    // Unknown to the upstream's list, which would bound its output.
    let stage = Stage::with(Backend::Sqlite, |config| {
        config.metering.prices.insert("mystery".to_owned(), price);
    })
    .await;
    let ask = async |max_tokens: u64| {
        let body = with(chat("mystery"), "max_tokens", json!(max_tokens));
        stage.ada.post("/v1/chat/completions", body).await
    };
    for max_tokens in [u64::MAX, 1 << 62, 1_000_000_000_000] {
        let reply = ask(max_tokens).await;
        assert_eq!((reply.status.as_u16(), reply.code().as_str()), (400, "estimate_too_large"), "{max_tokens}");
    }
    let reply = ask(100_000_000_000).await;
    assert_eq!((reply.status.as_u16(), reply.code().as_str()), (402, "allocation_exhausted"));
    assert_eq!((stage.gateway.forwarded(), stage.counter().await), (vec![], (0, 0)));
    assert_eq!(ask(10).await.header("x-alchemi-decision"), "allow");
}

/// The upstream would call servers, or run prompts, that nobody granted, under our credential.
#[tokio::test]
async fn servers_and_stored_prompts_are_not_the_callers_to_name() {
    let stage = Stage::set().await;
    let mcp = json!([{"type": "mcp", "server_label": "x", "server_url": "litellm_proxy/mcp/x"}]);
    let connector = json!([{"type": "mcp", "server_label": "x", "connector_id": "connector_gmail"}]);
    let response = json!({"model": "gpt-4o-mini", "input": "x"});
    let message = json!({"model": "claude-sonnet-4-5", "max_tokens": 9, "messages": []});
    for (path, body, field) in [
        ("/v1/responses", with(response.clone(), "tools", mcp.clone()), "tools.server_url"),
        ("/v1/responses", with(response.clone(), "tools", connector), "tools.connector_id"),
        ("/v1/responses", with(response.clone(), "prompt", json!({"id": "pmpt_1"})), "prompt.id"),
        ("/v1/chat/completions", with(chat("gpt-4o-mini"), "tools", mcp.clone()), "tools.server_url"),
        (
            "/v1/messages",
            with(message, "mcp_servers", json!([{"type": "url", "url": "http://10.0.0.1"}])),
            "mcp_servers",
        ),
    ] {
        let reply = stage.ada.post(path, body).await;
        assert_eq!((reply.status.as_u16(), reply.code().as_str()), (400, "field_not_allowed"), "{path} {field}");
        assert!(reply.json()["error"]["message"].as_str().unwrap().contains(field), "{}", reply.text());
    }
    assert_eq!(stage.gateway.forwarded(), []);
    // An operator can choose otherwise.
    let open = stage.gateway.beside(|config| {
        let mut fields = config.ask.forbidden_fields.patterns().to_vec();
        fields.retain(|field| field != "tools.server_url");
        config.ask.forbidden_fields = fields.into();
    });
    let open = open.await;
    stage.ada.at(open.url()).post("/v1/responses", with(response, "tools", mcp)).await.ok();
}

/// Nor other models than the one that was judged, nor what the upstream keeps of anybody.
#[tokio::test]
async fn nested_models_and_references_are_not_the_callers_to_name() {
    let stage = Stage::set().await;
    let response = |field: &str, value: Value| with(json!({"model": "gpt-4o-mini", "input": "x"}), field, value);
    let content = |part: Value| with(chat("gpt-4o-mini"), "messages", json!([{"role": "user", "content": [part]}]));
    let message = json!({"model": "claude-sonnet-4-5", "max_tokens": 9, "messages": [{"role": "user", "content": [
        {"type": "document", "source": {"type": "file", "file_id": "file_1"}}]}]});
    let of_tool = |field: &str, value: Value| json!([with(json!({"type": "code_interpreter"}), field, value)]);
    for (path, body, field) in [
        ("/v1/responses", response("tools", json!([{"type": "image_generation", "model": "gpt-4o"}])), "tools.model"),
        ("/v1/chat/completions", with(chat("gpt-4o-mini"), "tools", of_tool("model", json!("gpt-4o"))), "tools.model"),
        ("/v1/responses", response("moderation", json!({"model": "gpt-4o"})), "moderation.model"),
        ("/v1/chat/completions", with(chat("gpt-4o-mini"), "plugins", json!([{"model": "gpt-4o"}])), "plugins"),
        ("/v1/responses", response("tools", of_tool("vector_store_ids", json!(["vs_1"]))), "tools.vector_store_ids"),
        ("/v1/responses", response("tools", of_tool("container", json!("cntr_1"))), "tools.container"),
        (
            "/v1/responses",
            response("tools", of_tool("container", json!({"type": "auto", "file_ids": ["f"]}))),
            "file_ids",
        ),
        ("/v1/responses", response("input", json!([{"type": "item_reference", "id": "msg_1"}])), "item_reference"),
        ("/v1/responses", response("input", json!([{"id": "msg_1"}])), "item_reference"),
        (
            "/v1/responses",
            response("input", json!([{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}])),
            "file_id",
        ),
        ("/v1/chat/completions", content(json!({"type": "file", "file": {"file_id": "f"}})), "file_id"),
        ("/v1/messages", message, "file_id"),
    ] {
        let reply = stage.ada.post(path, body.clone()).await;
        assert_eq!((reply.status.as_u16(), reply.code().as_str()), (400, "field_not_allowed"), "{path} {body}");
        assert!(reply.json()["error"]["message"].as_str().unwrap().contains(field), "{}", reply.text());
        // However the name is written.
        let escaped =
            body.to_string().replace("file_id\"", "file\\u005fid\"").replace("\"item_ref", "\"\\u0069tem_ref");
        let escaped = escaped
            .replace("\"container\"", "\"c\\u006fntainer\"")
            .replace("\"model\":\"gpt-4o\"}", "\"mod\\u0065l\":\"gpt-4o\"}");
        let request = stage.ada.request(Method::POST, path).header("content-type", "application/json");
        let reply = stage.ada.send(request.body(escaped.clone())).await;
        assert_eq!((reply.status.as_u16(), reply.code().as_str()), (400, "field_not_allowed"), "{path} {escaped}");
    }
    // Nor is it passed over for a name or a number beside it that others read in their own way.
    for beside in [r#""\ud800":1"#, r#""x":"\ud800""#, r#""x":1e999"#] {
        for (member, value) in [
            ("tools", r#"[{"type":"code_interpreter","container":"cntr_1",BESIDE}]"#),
            ("tools", r#"[{"type":"mcp","server_url":"http://e",BESIDE}]"#),
            ("tools", r#"[{"type":"file_search","vector_store_ids":["vs"],BESIDE}]"#),
            ("moderation", r#"{"model":"gpt-4o",BESIDE}"#),
        ] {
            let value = value.replace("BESIDE", beside);
            let body = format!(r#"{{"model":"gpt-4o-mini","input":"x","{member}":{value}}}"#);
            let request = stage.ada.request(Method::POST, "/v1/responses").header("content-type", "application/json");
            let reply = stage.ada.send(request.body(body.clone())).await;
            assert_eq!(reply.status, 400, "{body}");
        }
    }
    assert_eq!(stage.gateway.forwarded(), []);
    // What only looks like it.
    let own = json!([{"type": "code_interpreter", "container": {"type": "auto"}}]);
    stage.ada.post("/v1/responses", response("tools", own)).await.ok();
    let named = json!({"properties": {"model": {"type": "string"}, "file_id": {"type": "string"}}});
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": named}}]);
    stage.ada.post("/v1/chat/completions", with(chat("gpt-4o-mini"), "tools", tools)).await.ok();
    let history = json!([
        {"role": "user", "content": "the file_id and item_reference"},
        {"type": "message", "id": "msg_1", "role": "assistant", "content": [{"type": "output_text", "text": "x"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{\"file_id\": 1}"},
    ]);
    stage.ada.post("/v1/responses", response("input", history)).await.ok();
}

#[tokio::test]
async fn a_header_that_is_judged_stands_once() {
    let stage = Stage::set().await;
    let body = chat("gpt-4o-mini").to_string();
    for (name, first, second) in [
        ("content-type", "application/json", "multipart/form-data; boundary=x"),
        ("content-encoding", "identity", "gzip"),
    ] {
        let request = stage.ada.request(Method::POST, "/v1/chat/completions").header(name, first).header(name, second);
        let reply = stage.ada.send(request.body(body.clone())).await;
        assert_eq!((reply.status.as_u16(), reply.code().as_str()), (400, "invalid_header"), "{name}");
    }
    assert_eq!(stage.gateway.forwarded(), []);
}

/// A stored response is the maker's alone, whoever else shares the upstream's key.
#[tokio::test]
async fn a_stored_response_is_its_makers() {
    let stage = Stage::set().await;
    let ask = json!({"model": "gpt-4o-mini", "input": "remember this"});
    let id = stage.ada.post("/v1/responses", ask.clone()).await.ok()["id"].as_str().unwrap().to_owned();
    stage.settled(1).await;
    let bob = stage.gateway.as_end_user(&stage.account, "bob");
    let other = stage.gateway.account("Other").await;
    stage.gateway.open_models(&other).await;
    let eve = stage.gateway.as_end_user(&other, "ada");
    for stranger in [&bob, &eve] {
        assert_eq!(stranger.get(&format!("/v1/responses/{id}")).await.status, 404);
        assert_eq!(stranger.delete(&format!("/v1/responses/{id}")).await.status, 404);
        let continued = with(ask.clone(), "previous_response_id", json!(id));
        assert_eq!(stranger.post("/v1/responses", continued).await.status, 404);
    }
    assert_eq!(stage.gateway.forwarded().len(), 1, "only the making of it");
    stage.ada.get(&format!("/v1/responses/{id}")).await.ok();
    stage.ada.post("/v1/responses", with(ask, "previous_response_id", json!(id))).await.ok();
}

/// Whoever sends nothing, or never a whole first head, is let go.
#[tokio::test]
async fn a_first_head_has_its_time() {
    let stage = Stage::with(Backend::Sqlite, |config| config.limits.head_seconds = 1).await;
    let address = stage.gateway.url().strip_prefix("http://").unwrap().to_owned();
    for sent in ["", "P", "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut socket = TcpStream::connect(&address).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut socket, sent.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(20), socket.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "{sent:?} keeps the connection");
    }
}

#[tokio::test]
async fn an_admin_who_asks_is_told_what_decided() {
    let stage = Stage::set().await;
    let admin = stage.gateway.as_account_admin(&stage.account);
    let asked = |client: &crate::common::Client| {
        client.request(Method::POST, "/v1/chat/completions").header("x-alchemi-explain", "1").json(&chat("gpt-4o-mini"))
    };
    let reply = admin.send(asked(&admin)).await;
    assert!(reply.header("x-alchemi-trace").contains("gpt-4o-mini allowed by a grant on account"));
    let reply = stage.ada.send(asked(&stage.ada)).await;
    assert!(!reply.headers.contains_key("x-alchemi-trace"), "nobody else is");
}

/// What LiteLLM would take from a body or a header for a setting of its own.
#[tokio::test]
async fn no_caller_sets_what_the_upstream_does() {
    let stage = Stage::set().await;
    for field in [
        "headers",
        "input_cost_per_second",
        "cache_read_input_token_cost",
        "disable_global_guardrail",
        "provider_specific_header",
        "success_callback",
        "aws_role_name",
        "vertex_project",
        "litellm_anything",
        "mock_timeout",
        "langsmith_base_url",
    ] {
        let reply = stage.ada.post("/v1/chat/completions", with(chat("gpt-4o-mini"), field, json!(0))).await;
        assert_eq!((reply.status.as_u16(), reply.code().as_str()), (400, "field_not_allowed"), "{field}");
    }
    let steering = [
        "x-mcp-servers",
        "langfuse_trace_user_id",
        "litellm-changed-by",
        "llm_provider-foo",
        "x-original-url",
        "baggage",
    ];
    let request = stage.ada.request(Method::POST, "/v1/chat/completions").json(&chat("gpt-4o-mini"));
    stage.ada.send(steering.iter().fold(request, |request, name| request.header(*name, "evil"))).await.ok();
    let seen = stage.gateway.last_forwarded();
    assert!(steering.iter().all(|name| seen.header_values(name).is_empty()), "{:?}", seen.headers);
}
