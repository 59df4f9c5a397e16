//! Opaque tokens, which only the issuer can read.

use serde_json::json;

use crate::common::{Person, backends};
use crate::{Stage, chat, text};

#[tokio::test]
async fn an_opaque_token_is_let_in_where_introspection_is_set_up() {
    for backend in backends().await {
        let stage = Stage::on(backend).await;
        let api = stage.gateway.issuer.api_client().clone();
        let asking = stage
            .gateway
            .beside(|config| {
                config.identity.introspection_client_id = Some(api.id);
                config.identity.introspection_client_secret = Some(api.secret.into());
            })
            .await;
        let person = Person::of(&stage.account, "grace").role("account_admin");
        stage.gateway.claims(&person);
        let token = stage.gateway.issuer.opaque("grace").unwrap();
        let grace = asking.anybody().with_token(&token);
        for _ in 0..3 {
            grace.post("/v1/chat/completions", chat("gpt-4o")).await.ok();
        }
        assert_eq!(grace.get("/v1/me/context").await.ok()["roles"], json!(["account_admin"]));
        let rows = stage.settled(3).await;
        assert!(rows.iter().all(|row| text(row, "subject") == "grace"), "{rows:?}");
        assert_eq!(asking.metric("introspections_total").await, 1, "a hot token is asked about once");

        let unknown = asking.anybody().with_token("nobody-issued-this");
        let reply = unknown.post("/v1/chat/completions", chat("gpt-4o")).await;
        assert_eq!((reply.status.as_u16(), reply.code().as_str()), (401, "token_invalid"));
        assert!(reply.header("www-authenticate").starts_with("Bearer error=\"invalid_token\""));

        // Without introspection it says why, and reaches nobody.
        let reply = stage.gateway.anybody().with_token(&token).post("/v1/chat/completions", chat("gpt-4o")).await;
        assert_eq!((reply.status.as_u16(), reply.code().as_str()), (401, "token_invalid"));
        assert!(reply.text().contains("introspection"), "{}", reply.text());
        assert_eq!(stage.gateway.forwarded().len(), 3);
    }
}
