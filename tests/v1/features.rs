//! Feature entitlements, what follows from them, and what holds for the caller.

use serde_json::{Value, json};

use crate::gateway::{Client, gateways};

const ENTITLEMENTS: &str = "/features/entitlements";

async fn entitle(client: &Client, code: &str, scope: (&str, &str), enabled: bool, config: Value) -> Value {
    let body = json!({
        "domain": "copilot", "feature_code": code, "scope_type": scope.0, "scope_id": scope.1,
        "enabled": enabled, "config_json": config,
    });
    client.post(ENTITLEMENTS, body).await.ok()["item"].clone()
}

#[tokio::test]
async fn an_entitlement_is_unique_and_posted_again_it_changes() {
    for gateway in gateways(|app| app).await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let whole = ("account", account.as_str());
        let first = entitle(&admin, "create_agents", whole, true, json!({"max": 5})).await;
        assert_eq!(first["config_json"], json!({"max": 5}));
        let again = entitle(&admin, "create_agents", whole, false, json!({})).await;
        assert_eq!((&first["id"], &again["enabled"]), (&again["id"], &json!(false)));
        entitle(&admin, "image_generation", whole, true, json!({})).await;
        let list = format!("{ENTITLEMENTS}?domain=copilot");
        assert_eq!(admin.get(&list).await.ok()["domain"], "copilot");
        assert_eq!(admin.get(&list).await.column("feature_code"), ["image_generation", "create_agents"]);
        let one = admin.get(&format!("{list}&feature_code=create_agents")).await;
        assert_eq!(one.column("id"), [first["id"].as_str().unwrap()]);
        assert!(admin.get(&format!("{ENTITLEMENTS}?domain=console")).await.column("id").is_empty());
        assert_eq!(admin.get(ENTITLEMENTS).await.json["errors"][0]["pointer"], "domain");

        let path = format!("{ENTITLEMENTS}/{}", first["id"].as_str().unwrap());
        let shown = admin.get(&path).await;
        assert_eq!(shown.headers["etag"], "\"2\"");
        admin.with("if-match", "\"1\"").delete(&path).await.refused(412);
        // Of a domain that the caller does not administer, it does not exist.
        let console = gateway.as_subject(&account, "cora", None, &["console_org_admin"], json!({})).await;
        assert_eq!(console.get(&path).await.refused(404), "Feature entitlement not found");
        assert_eq!(console.delete(&path).await.refused(404), "Feature entitlement not found");
        let stranger = gateway.as_admin_of(&gateway.account("Beta").await).await;
        stranger.get(&path).await.refused(404);
        assert_eq!(admin.delete(&path).await.ok(), json!({"deleted": true}));
        admin.delete(&path).await.refused(404);
    }
}

#[tokio::test]
async fn an_entitlement_is_refused_in_the_words_that_clients_know() {
    for gateway in gateways(|app| app).await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let with = |name: &str, value: Value| {
            let mut body = json!({"domain": "console", "feature_code": "f", "scope_type": "account", "scope_id": account.as_str()});
            body[name] = value;
            body
        };
        for (body, status, detail) in [
            (with("domain", json!("sales")), 400, "Invalid domain: sales"),
            (with("scope_type", json!("agent")), 400, "scope_type must be one of: account,org,team,user"),
            (with("scope_id", json!("other")), 400, "account scope_id must match current account_id"),
            (with("scope_type", json!("user")), 404, "console user not found"),
            (with("feature_code", json!(" ")), 422, "/feature_code: is required and cannot be blank"),
        ] {
            assert_eq!(admin.post(ENTITLEMENTS, body).await.refused(status), detail);
        }
        for config in [json!([]), json!("x"), json!(1)] {
            let reply = admin.post(ENTITLEMENTS, with("config_json", config)).await;
            assert_eq!(reply.json["errors"][0]["pointer"], "/config_json");
        }
        let copilot = gateway.as_subject(&account, "cleo", None, &["copilot_team_admin"], json!({})).await;
        let reply = copilot.post(ENTITLEMENTS, with("enabled", json!(true))).await;
        assert_eq!(reply.refused(403), "console admin access required");
        assert!(admin.get("/features/entitlements?domain=console").await.column("id").is_empty());
    }
}

#[tokio::test]
async fn the_nearest_scope_decides_and_settings_are_merged_within_the_pack() {
    for gateway in gateways(|app| app).await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let org = admin.made("/copilot/orgs", json!({"name": "Research"})).await;
        let team = admin.made("/copilot/teams", json!({"org_id": org, "name": "Language"})).await;
        let ada = admin.made("/copilot/users", json!({"email": "ada@acme.com", "team_ids": [team]})).await;
        entitle(&admin, "agents", ("account", account.as_str()), true, json!({"max": 1, "deep": {"a": 1, "b": 1}}))
            .await;
        let of_org = entitle(&admin, "agents", ("org", &org), false, json!({"deep": {"b": 2}, "by": "org"})).await;
        entitle(&admin, "agents", ("user", &ada), true, json!({"by": null})).await;

        let ask =
            async |query: &str| admin.get(&format!("/features/effective?domain=copilot&feature_code={query}")).await;
        let nobody = ask("images").await.ok();
        assert_eq!(
            nobody,
            json!({"domain": "copilot", "feature_code": "images", "effective_enabled": false, "effective_config": {},
                   "resolved_from": null, "reason": "default", "candidates": [],
                   "resolution_order": [{"scope_type": "account", "scope_id": account}]})
        );
        let of_team = ask(&format!("agents&org_id={org}&team_id={team}")).await.ok();
        assert_eq!((&of_team["effective_enabled"], &of_team["reason"]), (&json!(false), &json!("entitlement")));
        assert_eq!(of_team["effective_config"], json!({"max": 1, "deep": {"a": 1, "b": 2}, "by": "org"}));
        assert_eq!(of_team["candidates"][0]["id"], of_org["id"]);
        assert_eq!(of_team["resolved_from"], json!({"scope_type": "org", "scope_id": org}));
        let of_ada = ask(&format!("agents&org_id={org}&user_id={ada}")).await.ok();
        assert_eq!(of_ada["effective_enabled"], true);
        assert_eq!(of_ada["effective_config"], json!({"max": 1, "deep": {"a": 1, "b": 2}}));
        assert_eq!(ask("agents&team_id=gone").await.refused(404), "copilot team not found");
        assert_eq!(ask("%20").await.json["errors"][0]["pointer"], "feature_code");

        let me = gateway.as_member_of(&account, "sub-ada", Some("ada@acme.com")).await;
        let mine = me.get("/me/features").await.ok();
        assert_eq!(mine["items"][0]["feature_code"], "agents");
        assert_eq!((&mine["items"][0]["enabled"], &mine["items"][0]["reason"]), (&json!(true), &json!("entitlement")));
        assert_eq!(mine["items"][0]["effective_config"]["deep"], json!({"a": 1, "b": 2}));
        assert_eq!(me.get("/me/features?domain=console").await.ok()["items"], json!([]));

        // What the operator leaves out is off, whatever an entitlement says.
        let operator = gateway.as_operator(None);
        let pack = json!({"features": ["images"], "config": {"images": {"size": 1}}});
        operator.put(&format!("/accounts/{account}/feature-pack"), pack).await.ok();
        let outside = ask(&format!("agents&user_id={ada}")).await.ok();
        assert_eq!((&outside["effective_enabled"], &outside["reason"]), (&json!(false), &json!("outside_pack")));
        entitle(&admin, "images", ("team", &team), true, json!({"size": 2})).await;
        let mine = me.get("/me/features").await.ok();
        let found: Vec<_> =
            mine["items"].as_array().unwrap().iter().map(|f| (&f["feature_code"], &f["enabled"])).collect();
        assert_eq!(found, [(&json!("agents"), &json!(false)), (&json!("images"), &json!(true))]);
        assert_eq!(mine["items"][1]["effective_config"], json!({"size": 2}));
        assert_eq!(ask("images").await.ok()["effective_config"], json!({"size": 1}));
    }
}

#[tokio::test]
async fn entitlements_go_with_what_they_are_for() {
    for gateway in gateways(|app| app).await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let org = admin.made("/copilot/orgs", json!({"name": "Research"})).await;
        let team = admin.made("/copilot/teams", json!({"org_id": org, "name": "Language"})).await;
        entitle(&admin, "f", ("org", &org), true, json!({})).await;
        entitle(&admin, "f", ("team", &team), true, json!({})).await;
        entitle(&admin, "f", ("account", account.as_str()), true, json!({})).await;
        admin.delete(&format!("/copilot/orgs/{org}?cascade=true")).await.ok();
        assert_eq!(admin.get("/features/entitlements?domain=copilot").await.column("scope_type"), ["account"]);
        let event = &admin.get("/audit?resource=Alchemi_OrgTable").await.ok()["items"][0];
        assert_eq!(event["updated_values"]["feature_entitlements"].as_array().unwrap().len(), 2);
    }
}
