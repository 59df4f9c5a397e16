//! Refusals that come before the pipeline.

use http::Method;
use serde_json::{Value, json};

use crate::common::{Gateway, backends};

#[tokio::test]
async fn early_refusals_of_governed_paths_have_the_shape_of_the_sdk() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let anybody = gateway.anybody();

        let openai = anybody.delete("/v1/chat/completions").await;
        assert_eq!((openai.status.as_u16(), openai.header("allow")), (405, "POST"));
        assert_eq!(openai.header("x-alchemi-decision"), "deny;code=method_not_allowed");
        assert_eq!(openai.json()["error"]["type"], "invalid_request_error");
        let anthropic = anybody.get("/v1/messages").await.json();
        assert_eq!((&anthropic["type"], &anthropic["error"]["code"]), (&json!("error"), &json!("method_not_allowed")));
        let no_host = "POST /v1/messages HTTP/1.1\r\nhost: a@b\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        let answer = gateway.raw(no_host.to_owned()).await;
        let body: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
        assert_eq!((answer.get(9..12), &body["type"]), (Some("400"), &json!("error")), "{answer}");
    }
}

#[tokio::test]
async fn the_operators_routes_are_only_read() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let operator = gateway.operator();
        for path in ["/healthz", "/readyz", "/metrics"] {
            for (method, status) in [(Method::GET, 200), (Method::HEAD, 200), (Method::POST, 405)] {
                let reply = operator.send(operator.request(method.clone(), path)).await;
                assert_eq!(reply.status, status, "{method} {path}");
                let allow = reply.headers.get("allow").map(|allow| allow.to_str().unwrap());
                assert_eq!(allow, (status == 405).then_some("GET, HEAD"));
            }
        }
    }
}
