//! Model grants, what follows from them, and what holds for the caller.

use alchemi::model::models::AccessMode;
use alchemi::v1::models::Catalogue;
use serde_json::{Value, json};

use crate::gateway::{Client, gateways};

async fn grant(client: &Client, domain: &str, model: &str, scope: (&str, &str), mode: &str) -> Value {
    let body =
        json!({"domain": domain, "model_name": model, "scope_type": scope.0, "scope_id": scope.1, "access_mode": mode});
    client.post(&format!("/{domain}/models/grants"), body).await.ok()["item"].clone()
}

#[tokio::test]
async fn a_grant_is_unique_and_posted_again_it_changes() {
    for gateway in gateways(|app| app).await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let grants = "/copilot/models/grants";
        let first = grant(&admin, "copilot", "gpt-4o*", ("account", account.as_str()), "allow").await;
        let again = grant(&admin, "copilot", "gpt-4o*", ("account", account.as_str()), "deny").await;
        assert_eq!(first["id"], again["id"]);
        assert_eq!((&first["access_mode"], &again["access_mode"]), (&json!("allow"), &json!("deny")));
        grant(&admin, "copilot", "other", ("account", account.as_str()), "allow").await;
        assert_eq!(admin.get(grants).await.column("model_name"), ["other", "gpt-4o*"]);
        assert_eq!(admin.get(&format!("{grants}?model_name=other")).await.column("model_name"), ["other"]);
        assert!(admin.get("/console/models/grants").await.column("id").is_empty());

        let one = format!("{grants}/{}", first["id"].as_str().unwrap());
        let shown = admin.get(&one).await;
        assert_eq!(shown.headers["etag"], "\"2\"");
        assert_eq!(shown.ok()["item"]["access_mode"], "deny");
        admin.get(&one.replace("copilot", "console")).await.refused(404);
        admin.with("if-match", "\"1\"").delete(&one).await.refused(412);
        let trial = admin.delete(&format!("{one}?dry_run=true")).await.ok();
        let change = &trial["changes"][0];
        assert_eq!((&change["before"]["id"], &change["after"]), (&first["id"], &Value::Null));
        assert_eq!(admin.delete(&one).await.ok(), json!({"deleted": true}));
        assert_eq!(admin.delete(&one).await.refused(404), "Model grant not found");
    }
}

#[tokio::test]
async fn a_grant_is_refused_in_the_words_that_clients_know() {
    for gateway in gateways(|app| app).await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let with = |name: &str, value: Value| {
            let mut body = json!({"model_name": "m", "scope_type": "account", "scope_id": account.as_str()});
            body[name] = value;
            body
        };
        for (body, status, detail) in [
            (with("domain", json!("copilot")), 400, "domain must be console"),
            (with("scope_type", json!("pool")), 400, "scope_type must be one of: account,org,team,user"),
            (with("scope_id", json!("other")), 400, "account scope_id must match current account_id"),
            (with("scope_type", json!("team")), 404, "console team not found"),
            (with("access_mode", json!("maybe")), 400, "access_mode must be allow|deny"),
            (with("model_name", json!("a*b")), 422, "/model_name: may hold one * and only at its end"),
            (with("model_name", json!(" ")), 422, "/model_name: is required and cannot be blank"),
        ] {
            assert_eq!(admin.post("/console/models/grants", body).await.refused(status), detail);
        }
        assert!(admin.get("/console/models/grants").await.column("id").is_empty());
    }
}

#[tokio::test]
async fn a_trial_says_whom_it_concerns_and_writes_nothing() {
    for gateway in gateways(|app| app).await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let org = admin.made("/copilot/orgs", json!({"name": "Research"})).await;
        let team = admin.made("/copilot/teams", json!({"org_id": org, "name": "Language"})).await;
        let ada = admin.made("/copilot/users", json!({"email": "ada@acme.com", "team_ids": [team]})).await;
        admin.made("/copilot/users", json!({"email": "bob@acme.com"})).await;
        for (kind, id, users) in
            [("account", account.as_str(), 2), ("org", &*org, 1), ("team", &*team, 1), ("user", &*ada, 1)]
        {
            let body = json!({"model_name": "m", "scope_type": kind, "scope_id": id});
            let trial = admin.post("/copilot/models/grants?dry_run=true", body).await.ok();
            assert_eq!((&trial["dry_run"], &trial["users"]), (&json!(true), &json!(users)), "{kind}");
            assert_eq!(trial["sample"].as_array().unwrap().len(), users);
            let change = &trial["changes"][0];
            assert_eq!((&change["before"], &change["after"]["access_mode"]), (&Value::Null, &json!("allow")));
        }
        assert!(admin.get("/copilot/models/grants").await.column("id").is_empty());
    }
}

#[tokio::test]
async fn the_most_specific_scope_decides() {
    for gateway in gateways(|app| app).await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let org = admin.made("/copilot/orgs", json!({"name": "Research"})).await;
        let team = admin.made("/copilot/teams", json!({"org_id": org, "name": "Language"})).await;
        let user = admin.made("/copilot/users", json!({"email": "ada@acme.com"})).await;
        grant(&admin, "copilot", "gpt-4o", ("account", account.as_str()), "deny").await;
        grant(&admin, "copilot", "gpt-*", ("org", &org), "allow").await;
        let deciding = grant(&admin, "copilot", "gpt-4*", ("org", &org), "deny").await;
        grant(&admin, "copilot", "gpt-4o", ("user", &user), "allow").await;

        let ask = async |query: String| admin.get(&format!("/copilot/models/effective?model_name={query}")).await;
        let none = ask("mistral".to_owned()).await.ok();
        assert_eq!(
            none,
            json!({"model_name": "mistral", "effective_access": "deny", "allowed": false, "resolved_from": null,
                   "reason": "default", "candidates": [],
                   "resolution_order": [{"scope_type": "account", "scope_id": account}]})
        );
        let of_org = ask(format!("gpt-4o&org_id={org}&team_id={team}")).await.ok();
        assert_eq!((&of_org["effective_access"], &of_org["reason"]), (&json!("deny"), &json!("grant")));
        assert_eq!(of_org["resolved_from"], json!({"scope_type": "org", "scope_id": org}));
        assert_eq!(of_org["candidates"].as_array().unwrap().len(), 2);
        assert_eq!(of_org["candidates"][0]["id"], deciding["id"]);
        assert_eq!(ask(format!("gpt-3&org_id={org}")).await.ok()["allowed"], true);
        let of_user = ask(format!("gpt-4o&org_id={org}&user_id={user}")).await.ok();
        assert_eq!((&of_user["allowed"], &of_user["resolved_from"]["scope_type"]), (&json!(true), &json!("user")));
        assert_eq!(ask("m&team_id=gone".to_owned()).await.refused(404), "copilot team not found");
        assert_eq!(admin.get("/copilot/models/effective").await.json["errors"][0]["pointer"], "model_name");
    }
}

#[tokio::test]
async fn a_subject_sees_the_models_of_their_own_place() {
    let shape = |app: alchemi::v1::App| {
        let known = || vec!["gpt-4o".to_owned(), "gpt-4o-mini".to_owned(), "mistral".to_owned()];
        app.with_catalogue(Catalogue::new(known)).with_default_model_access(AccessMode::Deny)
    };
    for gateway in gateways(shape).await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let org = admin.made("/copilot/orgs", json!({"name": "Research"})).await;
        let first = admin.made("/copilot/teams", json!({"org_id": org, "name": "First"})).await;
        let second = admin.made("/copilot/teams", json!({"org_id": org, "name": "Second"})).await;
        let foreign = admin.made("/copilot/teams", json!({"org_id": org, "name": "Foreign"})).await;
        let ada = json!({"email": "ada@acme.com", "team_ids": [first]});
        let ada = admin.made("/copilot/users", ada).await;
        admin.post(&format!("/copilot/teams/{second}/members"), json!({"user_id": ada})).await.ok();
        grant(&admin, "copilot", "gpt-4o*", ("team", &first), "allow").await;
        grant(&admin, "copilot", "gpt-4o", ("team", &second), "deny").await;
        grant(&admin, "copilot", "mistral", ("account", account.as_str()), "allow").await;

        let allowed = async |client: &Client, path: &str| -> Vec<String> {
            let answer = client.get(path).await.ok();
            let items = answer["items"].as_array().unwrap().clone();
            items
                .iter()
                .filter(|i| i["allowed"] == true)
                .map(|i| i["model_name"].as_str().unwrap().to_owned())
                .collect()
        };
        let me = gateway.as_member_of(&account, "sub-ada", Some("ada@acme.com")).await;
        // By e-mail, in the oldest team.
        assert_eq!(allowed(&me, "/me/models").await, ["gpt-4o", "gpt-4o*", "gpt-4o-mini", "mistral"]);
        assert_eq!(allowed(&me.with("x-alchemi-team-id", &second), "/me/models").await, ["mistral"]);
        for team in [&*foreign, "gone", "", "two words"] {
            let denied = me.with("x-alchemi-team-id", team).get("/me/models").await;
            assert_eq!(denied.json["code"], "team_denied", "{team:?}");
            denied.refused(403);
        }
        // Tied to another identity, the address finds the row no more.
        admin.patch(&format!("/copilot/users/{ada}"), json!({"identity_user_id": "sub-other"})).await.ok();
        assert_eq!(allowed(&me, "/me/models").await, ["mistral"]);
        let other = gateway.as_member_of(&account, "sub-other", None).await;
        assert_eq!(allowed(&other, "/me/models").await.len(), 4);
        assert!(allowed(&other, "/me/models?domain=console").await.is_empty());
        assert!(allowed(&other.with("x-alchemi-domain", "console"), "/me/models").await.is_empty());
        let limited = json!({"product_domains_allowed": ["console"]});
        let limited = gateway.as_subject(&account, "sub-other", None, &["end_user"], limited).await;
        assert_eq!(limited.get("/me/models").await.ok()["domain"], "console");
        assert_eq!(limited.get("/me/models?domain=copilot").await.json["code"], "domain_denied");
    }
}

#[tokio::test]
async fn the_console_policy_comes_before_every_grant() {
    for gateway in gateways(|app| app.with_default_model_access(AccessMode::Allow)).await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let operator = alchemi::identity::master_key_context(None).super_admin().unwrap();
        let mut tx = gateway.store.begin(&operator.over(account.clone())).await.unwrap();
        let policy = serde_json::from_value(json!({"allow_models": ["gpt-*"], "deny_models": ["gpt-3"]})).unwrap();
        tx.put_console_model_policy(&policy).await.unwrap();
        tx.commit().await.unwrap();
        for domain in ["console", "copilot"] {
            for model in ["gpt-3", "gpt-4", "mistral"] {
                grant(&admin, domain, model, ("account", account.as_str()), "allow").await;
            }
        }
        let ask = async |domain: &str, model: &str| -> Value {
            let answer = admin.get(&format!("/{domain}/models/effective?model_name={model}")).await.ok();
            json!([answer["allowed"], answer["reason"]])
        };
        assert_eq!(ask("console", "gpt-3").await, json!([false, "policy_denies"]));
        assert_eq!(ask("console", "gpt-4").await, json!([true, "grant"]));
        assert_eq!(ask("console", "mistral").await, json!([false, "outside_policy"]));
        assert_eq!(ask("console", "gpt-5").await, json!([true, "default"]));
        assert_eq!(ask("copilot", "gpt-3").await, json!([true, "grant"]));
    }
}
