//! Keys: what is refused without one, and sealing anew under another.

use std::sync::Mutex;

use alchemi::secret::{KeyRing, SealError};
use alchemi::store::secrets::{Rotation, rotate};
use serde_json::json;

use crate::common::gateway::SECRET_KEY;
use crate::gateway::{gateways, keyed};

const NEW: &str = "new:AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

#[tokio::test]
async fn without_a_key_only_what_has_secrets_is_refused() {
    for gateway in gateways(|app| app).await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let (operator, sso) = (gateway.as_operator(None), format!("/accounts/{account}/sso"));
        let keyed = admin.at(&gateway.shaped(|app| keyed(app, SECRET_KEY)));

        let plain = admin.made("/copilot/connections/mcp", json!({"name": "a"})).await;
        admin.patch(&format!("/copilot/connections/{plain}"), json!({"name": "b", "secret_json": {}})).await.ok();
        operator.post(&sso, json!({"sso_settings": {"google_client_id": "i"}})).await.ok();
        let secret = json!({"name": "c", "secret_json": {"api_key": "k"}});
        let sealed = keyed.made("/copilot/connections/mcp", secret.clone()).await;
        let sealed = format!("/copilot/connections/{sealed}");
        for refused in [
            admin.post("/copilot/connections/mcp", secret.clone()).await,
            admin.patch(&sealed, json!({"secret_json": {"api_key": "l"}})).await,
            operator.post(&sso, json!({"sso_settings": {"google_client_secret": "s"}})).await,
        ] {
            assert_eq!((refused.status, &refused.json["code"]), (503, &json!("secret_key_missing")));
            assert!(refused.headers.contains_key("retry-after"));
        }
        // What is sealed is still shown by its names, changed beside its secrets, and removed.
        assert_eq!(admin.get(&sealed).await.ok()["item"]["secret_keys"], json!(["api_key"]));
        admin.patch(&sealed, json!({"name": "d", "secret_json": {"masked": true}})).await.ok();
        let other = admin.at(&gateway.shaped(|app| crate::gateway::keyed(app, NEW)));
        let unknown = other.patch(&sealed, json!({"secret_json": {"api_key": "l"}})).await;
        assert_eq!((unknown.status, &unknown.json["code"]), (503, &json!("secret_key_unknown")));
        admin.delete(&sealed).await.ok();
        assert_eq!(admin.get("/copilot/connections").await.column("name"), ["b"]);
    }
}

#[tokio::test]
async fn every_secret_is_sealed_anew_and_what_does_not_open_is_named() {
    for gateway in gateways(|app| keyed(app, SECRET_KEY)).await {
        let (acme, other) = (gateway.account("Acme").await, gateway.account("Other").await);
        for account in [&acme, &other] {
            let admin = gateway.as_admin_of(account).await;
            for number in 0..5 {
                let body = json!({"name": format!("c{number}"), "secret_json": {"api_key": number}});
                admin.post("/copilot/connections/mcp", body).await.ok();
            }
            admin.post("/copilot/connections/mcp", json!({"name": "none"})).await.ok();
            let sso = json!({"sso_settings": {"google_client_secret": "s"}});
            gateway.as_operator(None).post(&format!("/accounts/{account}/sso"), sso).await.ok();
        }
        gateway
            .execute(&format!(
                r#"UPDATE "Alchemi_CopilotConnectionTable" SET secret_json = secret_json || 'A'
                   WHERE account_id = '{other}' AND name = 'c3'"#
            ))
            .await;
        let system = alchemi::identity::master_key_context(None).super_admin().unwrap();
        let counts = async || {
            let counts = gateway.store.begin(&system).await.unwrap().sealed_counts().await.unwrap();
            counts.iter().map(|c| format!("{} {} {}", c.table, c.key_id, c.secrets)).collect::<Vec<_>>()
        };
        assert_eq!(counts().await, ["Alchemi_CopilotConnectionTable tests 10", "Alchemi_AccountSsoTable tests 2"]);

        let both: KeyRing = format!("{NEW},{SECRET_KEY}").parse().unwrap();
        let seen = Mutex::new(Vec::new());
        let note = |so_far: &Rotation| seen.lock().unwrap().push(so_far.resealed);
        let done = rotate(&gateway.store, &both, 2, note).await.unwrap();
        assert_eq!((done.resealed, done.skipped, done.failed.len()), (11, 0, 1));
        assert_eq!((&done.failed[0].account, &done.failed[0].reason), (&other, &SealError::Broken));
        assert!(seen.lock().unwrap().len() >= 6, "in batches");
        assert_eq!(
            counts().await,
            [
                "Alchemi_CopilotConnectionTable new 9",
                "Alchemi_CopilotConnectionTable tests 1",
                "Alchemi_AccountSsoTable new 2"
            ]
        );
        // Again, there is nothing to do but what fails; and the new key alone opens the rest.
        let again = rotate(&gateway.store, &both, 100, |_| {}).await.unwrap();
        assert_eq!((again.resealed, again.failed.len()), (0, 1));
        let admin = gateway.as_admin_of(&acme).await.at(&gateway.shaped(|app| keyed(app, NEW)));
        for id in admin.get("/copilot/connections").await.column("id") {
            admin.patch(&format!("/copilot/connections/{id}"), json!({"secret_json": {"more": 1}})).await.ok();
        }
        assert!(rotate(&gateway.store, &KeyRing::default(), 100, |_| {}).await.is_err());
    }
}
