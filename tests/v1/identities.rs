//! Users made by e-mail address are given their Zitadel id, beside the requests.

use std::time::Duration;

use serde_json::{Value, json};

use crate::common::backends;
use crate::common::zitadel::Stall;
use crate::provision::Setting;

/// A user, once `there` holds of them.
async fn eventually(setting: &Setting, id: &str, there: impl Fn(&Value) -> bool) -> Value {
    let admin = setting.gateway.operator_for(&setting.account);
    let mut shown = Value::Null;
    for _ in 0..1_200 {
        shown = admin.get(&format!("/v1/copilot/users/{id}")).await.ok()["item"].clone();
        if there(&shown) {
            return shown;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it stays at {shown}");
}

async fn user(setting: &Setting, email: &str) -> String {
    let admin = setting.gateway.operator_for(&setting.account);
    let made = admin.post("/v1/copilot/users", json!({"email": email})).await.ok();
    assert_eq!(made["item"]["identity_user_id"], Value::Null, "the request does not wait for Zitadel");
    made["item"]["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_user_made_by_address_is_given_their_id() {
    for backend in backends().await {
        let setting = Setting::shaped(backend, |config| config.zitadel.timeout_seconds = 1).await;
        let binding = json!({"organization_id": setting.org, "project_id": setting.project});
        setting.operator().put(&setting.path("zitadel/config"), binding).await.ok();
        let elsewhere = setting.zitadel.org("Other");
        let ada = setting.zitadel.user(&setting.org, "ada@acme.com");
        setting.zitadel.user(&elsewhere, "ada@acme.com");
        setting.zitadel.user(&elsewhere, "eve@acme.com");

        let made = user(&setting, "ada@acme.com").await;
        let found = eventually(&setting, &made, |user| user["identity_user_id"].is_string()).await;
        assert_eq!((&found["identity_user_id"], &found["identity_lookup"]), (&json!(ada), &Value::Null));
        let audit = setting.gateway.operator_for(&setting.account).get("/v1/audit?action=update").await.ok();
        assert_eq!(audit["items"][0]["object_id"], json!(made), "{}", audit["items"][0]);
        assert_eq!(audit["items"][0]["changed_by"], "system");

        let eve = user(&setting, "eve@acme.com").await;
        let unknown = eventually(&setting, &eve, |user| user["identity_lookup"]["state"] != "pending").await;
        assert_eq!(unknown["identity_lookup"]["state"], "unknown", "another organisation's namesake is nobody here");

        // Zitadel takes the question and never answers: nobody waits but the worker.
        let called = setting.zitadel.requests().len();
        setting.zitadel.knobs(|knobs| knobs.stall = Some(Stall::Call(called)));
        for name in ["carl", "dora"] {
            let made = tokio::time::timeout(Duration::from_secs(5), user(&setting, &format!("{name}@acme.com"))).await;
            let made = made.expect("the request waits for Zitadel");
            assert_eq!(eventually(&setting, &made, |_| true).await["identity_lookup"]["state"], "pending");
        }
        setting.zitadel.knobs(|knobs| (knobs.stall, knobs.down) = (None, true));
        let bob = user(&setting, "bob@acme.com").await;
        let failed = eventually(&setting, &bob, |user| user["identity_lookup"]["state"] != "pending").await;
        assert_eq!(failed["identity_lookup"]["state"], "failed");
        assert!(failed["identity_lookup"]["detail"].is_string(), "{failed}");
    }
}
