//! How people of an account sign on.

use serde_json::{Value, json};

use crate::common::gateway::SECRET_KEY;
use crate::gateway::{gateways, keyed};

const MASK: &str = "\u{2022}\u{2022}\u{2022}\u{2022}\u{2022}\u{2022}\u{2022}\u{2022}";

#[tokio::test]
async fn settings_are_masked_merged_and_removed() {
    for gateway in gateways(|app| keyed(app, SECRET_KEY)).await {
        let account = gateway.account("Acme").await;
        let operator = gateway.as_operator(None);
        let path = format!("/accounts/{account}/sso");
        let empty = operator.get(&path).await.ok();
        assert_eq!(
            (&empty["id"], &empty["account_id"], &empty["sso_provider"], &empty["enabled"], &empty["sso_settings"]),
            (&Value::Null, &json!(account), &Value::Null, &json!(false), &json!({}))
        );
        assert_eq!(operator.get(&format!("/accounts/{account}")).await.ok()["item"]["sso_config"], Value::Null);

        let post = async |body: Value| operator.post(&path, body).await.ok();
        let first = json!({
            "sso_provider": " google ", "enabled": true,
            "sso_settings": {"google_client_id": "i", "google_client_secret": "hunter2", "secret": "", "scopes": ["a"]},
        });
        assert_eq!(post(first).await, json!({"status": "ok"}));
        let shown = operator.get(&path).await;
        assert_eq!(shown.headers["etag"], "\"1\"");
        let shown = shown.ok();
        assert_eq!((&shown["sso_provider"], &shown["enabled"]), (&json!("google"), &json!(true)));
        let settings = json!({"google_client_id": "i", "google_client_secret": MASK, "scopes": ["a"]});
        assert_eq!(shown["sso_settings"], settings);
        assert_eq!(operator.get(&format!("/accounts/{account}")).await.ok()["item"]["sso_config"], shown);

        // What was read can be sent back; provider and `enabled` replace.
        post(json!({"sso_provider": "google", "enabled": true, "sso_settings": settings})).await;
        assert_eq!(operator.get(&path).await.ok()["sso_settings"], settings);
        post(json!({"sso_settings": {"google_client_id": "", "client_secret": "more", "scopes": null}})).await;
        let shown = operator.get(&path).await.ok();
        assert_eq!((&shown["sso_provider"], &shown["enabled"]), (&Value::Null, &json!(false)));
        let merged = json!({"client_secret": MASK, "google_client_id": "i", "google_client_secret": MASK});
        assert_eq!(shown["sso_settings"], merged);
        post(json!({"sso_settings": {"client_secret": null, "google_client_secret": {"masked": true}}})).await;
        let left = json!({"google_client_id": "i", "google_client_secret": MASK});
        assert_eq!(operator.get(&path).await.ok()["sso_settings"], left);

        operator.with("if-match", "\"1\"").post(&path, json!({})).await.refused(412);
        operator.with("if-match", "\"1\"").delete(&path).await.refused(412);
        assert_eq!(operator.delete(&path).await.ok(), json!({"status": "ok", "deleted": true}));
        assert_eq!(operator.delete(&path).await.ok(), json!({"status": "ok", "deleted": false}));
        assert_eq!(operator.get(&path).await.ok(), empty);
        let audit = operator.get(&format!("/accounts/{account}/audit?resource=Alchemi_AccountSsoTable")).await.ok();
        assert_eq!(audit["items"].as_array().unwrap().len(), 5);
        assert!(!audit.to_string().contains("hunter2"));
    }
}

#[tokio::test]
async fn settings_are_refused_with_their_field() {
    for gateway in gateways(|app| keyed(app, SECRET_KEY)).await {
        let account = gateway.account("Acme").await;
        let operator = gateway.as_operator(None);
        let path = format!("/accounts/{account}/sso");
        for (settings, detail) in [
            (json!("hunter2"), "/sso_settings: must be a JSON object"),
            (
                json!({"google": {"client_id": "i"}}),
                "/sso_settings/google: must be a text, a number, true, false, null or a list of such",
            ),
            (
                json!({"client_secret": ["hunter2"]}),
                "/sso_settings/client_secret: must be a text, a number, true, false, null or a list of such",
            ),
            (
                json!({"generic_token_endpoint": "http://id.example.com/token"}),
                "/sso_settings/generic_token_endpoint: must be an https:// URL without credentials",
            ),
            (
                json!({"generic_userinfo_endpoint": "https://169.254.169.254/"}),
                "/sso_settings/generic_userinfo_endpoint: leads to this machine or into a network that is not the \
                 internet, which the gateway does not allow",
            ),
            (
                json!({"client_secret": MASK}),
                "/sso_settings/client_secret: stands for a secret, and none is stored under this name",
            ),
        ] {
            assert_eq!(operator.post(&path, json!({"sso_settings": settings})).await.refused(422), detail);
        }
        assert_eq!(operator.post("/accounts/gone/sso", json!({})).await.refused(404), "Account not found");
        assert_eq!(operator.get(&path).await.ok()["id"], Value::Null);
    }
}
