//! What is let through, and what it costs.

use serde_json::json;

use crate::common::{Gateway, backends};

#[tokio::test]
async fn a_chat_completion_is_answered_and_paid() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        gateway.open_models(&account).await;
        gateway.allocate(&account, "10").await;
        let ada = gateway.as_end_user(&account, "ada");

        let body = json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello there"}]});
        let reply = ada.post("/v1/chat/completions", body).await;

        let cost = reply.header("x-litellm-response-cost").to_owned();
        let id = reply.header("x-request-id").to_owned();
        assert_eq!(reply.header("x-alchemi-decision"), "allow");
        assert_eq!(reply.ok()["object"], "chat.completion");
        let cost = alchemi::credits::Usd::rounded(&cost).unwrap().nanos();
        assert!(cost > 0);
        let row = &gateway.settled(&account, 1).await[0];
        assert_eq!(
            (&row["request_id"], &row["raw_cost"], &row["credits_incurred"]),
            (&json!(id), &json!(cost), &json!(cost))
        );
        assert_eq!(gateway.counters(&account).await[&("account".to_owned(), account.clone())], (cost, 0));
    }
}
