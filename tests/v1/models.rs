//! Who may use which model.

use serde_json::{Value, json};

use crate::common::{Client, Gateway, backends};
use crate::operations::NOBODY;
use crate::tenants::Tenant;
use crate::{ids, invalid, refusal, text};

async fn effective(client: &Client, domain: &str, query: &str) -> Value {
    client.get(&format!("/v1/{domain}/models/effective?{query}")).await.ok()
}

#[tokio::test]
async fn grants_are_made_changed_and_removed() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let admin = gateway.as_account_admin(&account);
        for domain in ["console", "copilot"] {
            let path = format!("/v1/{domain}/models/grants");
            let grant = |mode: &str| json!({"model_name": "gpt-4o", "scope_type": "account", "scope_id": account, "access_mode": mode});
            let made = admin.post(&path, grant("deny")).await.ok()["item"].clone();
            let again = admin.post(&path, grant("allow")).await.ok()["item"].clone();
            assert_eq!((&again["id"], &again["access_mode"]), (&made["id"], &json!("allow")));
            let one = format!("{path}/{}", text(&made["id"]));
            assert_eq!(admin.get(&one).await.ok()["item"], again);
            gateway.grant(&account, domain, "claude*", ("account", &account), "allow").await;
            assert_eq!(ids(&admin.get(&format!("{path}?model_name=gpt-4o")).await.ok()), [text(&made["id"])]);

            let mut wrong = grant("allow");
            wrong["domain"] = json!("sales");
            assert_eq!(admin.post(&path, wrong).await.status.as_u16(), 400);
            refusal(&admin.post(&path, grant("perhaps")).await, 400, "invalid_access_mode");
            let at = |kind: &str, id: &str| json!({"model_name": "m", "scope_type": kind, "scope_id": id});
            refusal(&admin.post(&path, at("account", NOBODY)).await, 400, "account_scope_mismatch");
            refusal(&admin.post(&path, at("org", NOBODY)).await, 404, "not_found");
            refusal(&admin.post(&path, at("planet", NOBODY)).await, 400, "invalid_scope_type");
            invalid(
                &admin.post(&path, json!({"model_name": "a*b", "scope_type": "account", "scope_id": account})).await,
                "/model_name",
            );

            let dry = admin.delete(&format!("{one}?dry_run=true")).await.ok();
            assert_eq!(
                (&dry["dry_run"], &dry["before"]["id"], &dry["after"]),
                (&json!(true), &made["id"], &json!(null))
            );
            assert_eq!(admin.get(&one).await.status.as_u16(), 200, "a trial changes nothing");
            assert_eq!(admin.delete(&one).await.ok()["deleted"], true);
            refusal(&admin.get(&one).await, 404, "not_found");
        }
    }
}

#[tokio::test]
async fn a_trial_says_whom_it_would_reach() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let tenant = Tenant::new(&gateway, "Acme").await;
        let admin = gateway.as_account_admin(&tenant.account);
        let before = tenant.rows(&gateway).await;
        let org = tenant.id("copilot", "org_id", "").unwrap();
        let body = json!({"model_name": "new", "scope_type": "org", "scope_id": org});
        let effect = admin.post("/v1/copilot/models/grants?dry_run=true", body).await.ok();
        assert_eq!((&effect["dry_run"], &effect["before"], &effect["users"]), (&json!(true), &json!(null), &json!(1)));
        assert_eq!(effect["after"]["access_mode"], "allow");
        assert_eq!(effect["sample"], json!([tenant.id("copilot", "user_id", "").unwrap()]));
        assert_eq!(tenant.rows(&gateway).await, before);
    }
}

#[tokio::test]
async fn the_nearest_scope_decides() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let admin = gateway.as_account_admin(&account);
        let org = gateway.org(&account, "copilot", "Research").await;
        let team = gateway.team(&account, "copilot", &org, "Language").await;
        let user = gateway.user(&account, "copilot", "ada", &[&team]).await;
        let chain = format!("model_name=gpt-4o&org_id={org}&team_id={team}&user_id={user}");

        let nothing = effective(&admin, "copilot", &chain).await;
        assert_eq!(
            (&nothing["allowed"], &nothing["effective_access"], &nothing["resolved_from"]),
            (&json!(false), &json!("deny"), &json!(null))
        );
        let kinds: Vec<_> =
            nothing["resolution_order"].as_array().unwrap().iter().map(|s| text(&s["scope_type"])).collect();
        assert_eq!(kinds, ["user", "team", "org", "account"]);
        for (scope, id, mode) in
            [("account", &account, "allow"), ("org", &org, "deny"), ("team", &team, "allow"), ("user", &user, "deny")]
        {
            gateway.grant(&account, "copilot", "gpt-4*", (scope, id), mode).await;
            let found = effective(&admin, "copilot", &chain).await;
            assert_eq!(
                (&found["effective_access"], &found["resolved_from"]["scope_type"]),
                (&json!(mode), &json!(scope))
            );
            assert_eq!(found["candidates"][0]["model_name"], "gpt-4*");
        }
        let whole = effective(&admin, "copilot", "model_name=gpt-4o").await;
        assert_eq!(whole["allowed"], true, "the account's own grant");
        refusal(
            &admin.get(&format!("/v1/copilot/models/effective?model_name=m&team_id={NOBODY}")).await,
            404,
            "not_found",
        );

        let ada = gateway.as_end_user(&account, "ada");
        let mine = ada.get("/v1/me/models").await.ok();
        let named = |name: &str| mine["items"].as_array().unwrap().iter().find(|m| m["model_name"] == name).cloned();
        assert_eq!(named("gpt-4o-mini").expect("the upstream knows it")["allowed"], false);
        assert_eq!(mine["domain"], "copilot");
    }
}

#[tokio::test]
async fn the_operators_policy_bounds_the_console() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let admin = gateway.as_account_admin(&account);
        gateway.open_models(&account).await;
        let policy = json!({"allow_models": ["gpt-4*"], "deny_models": ["gpt-4o"]});
        gateway.operator().put(&format!("/v1/accounts/{account}/console-model-policy"), policy).await.ok();
        for (model, allowed) in [("gpt-4o", false), ("gpt-4o-mini", true), ("claude", false)] {
            assert_eq!(
                effective(&admin, "console", &format!("model_name={model}")).await["allowed"],
                allowed,
                "{model}"
            );
            assert_eq!(effective(&admin, "copilot", &format!("model_name={model}")).await["allowed"], true, "{model}");
        }
    }
}
