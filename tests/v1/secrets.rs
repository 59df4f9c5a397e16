//! Keys: what is refused without one, and sealing anew under another.

use std::sync::Mutex;

use alchemi::secret::{KeyRing, SealError};
use alchemi::store::secrets::{Rotation, rotate};
use serde_json::json;

use crate::common::backends;
use crate::common::gateway::{MASTER_KEY, SECRET_KEY};
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
            admin
                .put(
                    "/budgets/copilot/alerts/webhook",
                    json!({"url": "https://a.example.com", "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}),
                )
                .await,
        ] {
            assert_eq!((refused.status, &refused.json["code"]), (503, &json!("secrets_not_configured")));
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
            let webhook = json!({"url": "https://a.example.com", "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"});
            admin.put("/budgets/copilot/alerts/webhook", webhook).await.ok();
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
        assert_eq!(
            counts().await,
            [
                "Alchemi_CopilotConnectionTable tests 10",
                "Alchemi_AccountSsoTable tests 2",
                "Alchemi_AlertWebhookTable tests 2"
            ]
        );

        let both: KeyRing = format!("{NEW},{SECRET_KEY}").parse().unwrap();
        let seen = Mutex::new(Vec::new());
        let note = |so_far: &Rotation| seen.lock().unwrap().push(so_far.resealed);
        let done = rotate(&gateway.store, &both, 2, note).await.unwrap();
        assert_eq!((done.resealed, done.skipped, done.failed.len()), (13, 0, 1));
        assert_eq!((&done.failed[0].account, &done.failed[0].reason), (&other, &SealError::Broken));
        assert!(seen.lock().unwrap().len() >= 6, "in batches");
        assert_eq!(
            counts().await,
            [
                "Alchemi_CopilotConnectionTable new 9",
                "Alchemi_CopilotConnectionTable tests 1",
                "Alchemi_AccountSsoTable new 2",
                "Alchemi_AlertWebhookTable new 2"
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

#[tokio::test]
async fn of_many_changes_at_once_none_is_lost() {
    for gateway in gateways(|app| keyed(app, SECRET_KEY)).await {
        let account = gateway.account("Acme").await;
        let (admin, operator) = (gateway.as_admin_of(&account).await, gateway.as_operator(None));
        let id = admin.made("/copilot/connections/mcp", json!({"name": "a"})).await;
        let (one, sso) = (format!("/copilot/connections/{id}"), format!("/accounts/{account}/sso"));
        let changes = (0..8).map(async |n: i32| {
            let secret = format!("secret_{n}");
            admin.patch(&one, json!({"secret_json": {(secret): n}})).await.ok();
            let secret = format!("n{n}_secret");
            operator.post(&sso, json!({"sso_settings": {(secret): n}})).await.ok();
        });
        futures_util::future::join_all(changes).await;
        assert_eq!(admin.get(&one).await.ok()["item"]["secret_keys"].as_array().unwrap().len(), 8);
        assert_eq!(operator.get(&sso).await.ok()["sso_settings"].as_object().unwrap().len(), 8);
    }
}

/// As the operator does it: the new key first, rotate, the old one out.
#[tokio::test]
async fn the_command_line_tells_and_rotates() {
    for backend in backends().await {
        let folder = tempfile::tempdir().unwrap();
        let url = backend.url(folder.path());
        let run = |keys: &str, arguments: &[&str]| {
            let output = crate::canary::command(folder.path(), &url, keys).args(arguments).output().unwrap();
            let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
            (output.status.code().unwrap(), text)
        };
        assert_eq!(run(SECRET_KEY, &["migrate"]).0, 0);
        let process = crate::canary::Process::start(folder.path(), &url, SECRET_KEY);
        let operator = crate::common::Client::new(&process.url).with_token(MASTER_KEY);
        let account = operator.post("/v1/accounts", json!({"account_name": "Acme"})).await.ok()["account_id"].clone();
        let operator = operator.within(account.as_str().unwrap());
        let body = json!({"name": "a", "secret_json": {"api_key": "k"}});
        operator.post("/v1/copilot/connections/mcp", body).await.ok();
        let ready = operator.get("/readyz").await.text();
        assert!(ready.contains(r#"{"name":"secret keys","status":"ok"}"#), "{ready}");
        drop(process.stop());

        let both = format!("{NEW},{SECRET_KEY}");
        for (keys, arguments, status, told) in [
            (SECRET_KEY, &["secrets", "status"][..], 0, "every secret is under the first key"),
            (&both, &["secrets", "status"], 0, "1 under tests: waiting for `alchemi secrets rotate`"),
            (NEW, &["secrets", "status"], 1, "1 under tests: this key is not configured"),
            (NEW, &["secrets", "rotate"], 1, "was sealed under the key \"tests\""),
            ("", &["secrets", "status"], 1, "no keys"),
            ("", &["secrets", "rotate"], 2, "secrets.keys (ALCHEMI_SECRET_KEY) is empty"),
            (&both, &["secrets", "rotate", "--batch", "1"], 0, "done: 1 sealed anew, 0 changed meanwhile, 0 failed"),
            (NEW, &["secrets", "status"], 0, "every secret is under the first key"),
            ("short", &["secrets", "status"], 2, "secrets.keys (ALCHEMI_SECRET_KEY)"),
        ] {
            let (code, text) = run(keys, arguments);
            assert!(code == status && text.contains(told), "{keys} {arguments:?}: {code} {text}");
        }
        // Without any key it runs all the same, and says what it lacks.
        let process = crate::canary::Process::start(folder.path(), &url, "");
        let ready = operator.at(&process.url).get("/readyz").await.json();
        let check = ready["checks"].as_array().unwrap().iter().find(|check| check["name"] == "secret keys").unwrap();
        assert_eq!(check["status"], "missing");
        assert!(process.stop().contains("secrets are sealed under a key that is not among secrets.keys"));
    }
}
