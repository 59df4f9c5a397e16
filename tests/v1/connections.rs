//! Connections: secrets go in and do not come out, settings lead nowhere inside, and grants.

use alchemi::outbound::OutboundRules;
use serde_json::{Value, json};

use crate::common::gateway::SECRET_KEY;
use crate::gateway::{Gateway, gateways, keyed};

const CONNECTIONS: &str = "/copilot/connections";

async fn keyed_gateways() -> Vec<Gateway> {
    gateways(|app| keyed(app, SECRET_KEY)).await
}

async fn sealed(gateway: &Gateway, id: &Value) -> String {
    let id = id.as_str().unwrap();
    let sql = format!(r#"SELECT COALESCE(secret_json, '') FROM "Alchemi_CopilotConnectionTable" WHERE id = '{id}'"#);
    gateway.texts(&sql).await.remove(0)
}

#[tokio::test]
async fn a_connection_is_made_shown_changed_and_removed() {
    for gateway in keyed_gateways().await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let body = json!({
            "name": " Tickets ", "description": "Help desk", "config_json": {"server_url": "https://mcp.example.com"},
            "secret_json": {"api_key": "hunter2", "oauth": {"secret": "s3"}, "unset": null, "blank": " "},
        });
        let (status, made, headers) = admin.post(&format!("{CONNECTIONS}/MCP"), body).await.parts();
        let item = &made["item"];
        assert_eq!((status, &headers["etag"]), (200, &"\"1\"".parse().unwrap()));
        assert_eq!(item["connection_type"], "mcp");
        assert_eq!(item["name"], "Tickets");
        assert_eq!(
            (&item["credential_visibility"], &item["allow_user_self_manage"]),
            (&json!("use_only"), &json!(false))
        );
        assert_eq!(
            (&item["secret_json"], &item["secret_keys"]),
            (&json!({"masked": true}), &json!(["api_key", "oauth"]))
        );
        assert_eq!(item["created_by"], "admin");
        let one = format!("{CONNECTIONS}/{}", item["id"].as_str().unwrap());
        assert_eq!(admin.get(&one).await.ok()["item"], *item);
        let envelope = sealed(&gateway, &item["id"]).await;
        assert!(envelope.starts_with("v1.tests."), "{envelope}");

        // What was read can be sent back.
        let echo = json!({
            "name": item["name"], "description": item["description"], "config_json": item["config_json"],
            "secret_json": item["secret_json"], "credential_visibility": "self_managed", "allow_user_self_manage": true,
        });
        let changed = admin.with("if-match", "\"1\"").patch(&one, echo).await.ok()["item"].clone();
        assert_eq!(
            (&changed["credential_visibility"], &changed["secret_keys"]),
            (&json!("self_managed"), &item["secret_keys"])
        );
        assert_eq!(sealed(&gateway, &item["id"]).await, envelope, "nothing was sealed anew");
        admin.with("if-match", "\"1\"").patch(&one, json!({"name": "late"})).await.refused(412);
        let cleared = admin.patch(&one, json!({"description": null, "config_json": null})).await.ok()["item"].clone();
        assert_eq!((&cleared["description"], &cleared["config_json"]), (&Value::Null, &json!({})));
        admin.patch(&one, json!({"name": null})).await.refused(422);

        admin.post(&format!("{CONNECTIONS}/openapi"), json!({"name": "API"})).await.ok();
        assert_eq!(admin.get(CONNECTIONS).await.column("name"), ["API", "Tickets"]);
        assert_eq!(admin.get(&format!("{CONNECTIONS}?connection_type=mcp")).await.column("name"), ["Tickets"]);
        assert!(admin.get(&format!("{CONNECTIONS}?connection_type=integration")).await.column("name").is_empty());
        assert_eq!(
            admin.get(&format!("{CONNECTIONS}?connection_type=ftp")).await.refused(400),
            "connection_type must be openapi|mcp|composio"
        );
        assert_eq!(admin.delete(&one).await.ok(), json!({"deleted": true}));
        for gone in [admin.delete(&one).await, admin.get(&one).await, admin.patch(&one, json!({})).await] {
            assert_eq!(gone.refused(404), "Connection not found");
        }
    }
}

#[tokio::test]
async fn secrets_merge_and_only_the_gateway_opens_them() {
    for gateway in keyed_gateways().await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let body = json!({"name": "a", "secret_json": {"a": "1", "b": {"c": "2", "d": "3"}}});
        let made = admin.post(&format!("{CONNECTIONS}/mcp"), body).await.ok()["item"].clone();
        let one = format!("{CONNECTIONS}/{}", made["id"].as_str().unwrap());
        let system = alchemi::identity::master_key_context(None).super_admin().unwrap().over(account.clone());
        let opened = async || {
            let mut tx = gateway.store.read(&system).await.unwrap();
            let row = tx.connection(&made["id"].as_str().unwrap().parse().unwrap()).await.unwrap().unwrap();
            let secrets = row.secrets(&SECRET_KEY.parse().unwrap()).unwrap();
            let value = |name: &String| (name.clone(), secrets.expose(name).unwrap().clone());
            Value::Object(secrets.names().iter().map(value).collect())
        };
        for (change, after) in [
            (json!({"a": {"masked": true}, "e": 5}), json!({"a": "1", "b": {"c": "2", "d": "3"}, "e": 5})),
            (
                json!({"b": {"c": null, "d": "\u{2022}\u{2022}\u{2022}\u{2022}\u{2022}\u{2022}\u{2022}\u{2022}"}}),
                json!({"a": "1", "b": {"d": "3"}, "e": 5}),
            ),
            (Value::Null, json!({"a": "1", "b": {"d": "3"}, "e": 5})),
            (json!({}), json!({"a": "1", "b": {"d": "3"}, "e": 5})),
            (json!({"masked": true, "a": "new", "e": null}), json!({"a": "new", "b": {"d": "3"}})),
            (json!({"a": null, "b": null}), json!({})),
        ] {
            let changed = admin.patch(&one, json!({"secret_json": change})).await.ok()["item"].clone();
            let names: Vec<_> = after.as_object().unwrap().keys().cloned().collect();
            assert_eq!((opened().await, &changed["secret_keys"]), (after, &json!(names)), "{change}");
        }
        assert_eq!(sealed(&gateway, &made["id"]).await, "");
        let refused = admin.patch(&one, json!({"secret_json": {"a": {"masked": true}}})).await.refused(422);
        assert!(refused.starts_with("/secret_json/a: "), "{refused}");
        let audit = admin.get("/audit?limit=1").await.ok()["items"][0].clone();
        assert_eq!(audit["updated_values"]["secret_changed"], true);
        assert_eq!(audit["updated_values"]["secret_json"], json!({"masked": true}));

        // An envelope that is moved to another row does not open there.
        let thief = admin.made(&format!("{CONNECTIONS}/mcp"), json!({"name": "t", "secret_json": {"x": "mine"}})).await;
        admin.patch(&one, json!({"secret_json": {"a": "again"}})).await.ok();
        gateway
            .execute(&format!(
                r#"UPDATE "Alchemi_CopilotConnectionTable" SET secret_json = (SELECT secret_json FROM
                   "Alchemi_CopilotConnectionTable" WHERE id = {}) WHERE id = '{thief}'"#,
                made["id"].to_string().replace('"', "'")
            ))
            .await;
        let moved = admin.patch(&format!("{CONNECTIONS}/{thief}"), json!({"secret_json": {"y": "1"}})).await;
        assert_eq!(moved.json["code"], "internal_error");
    }
}

#[tokio::test]
async fn a_connection_is_refused_in_the_words_that_clients_know() {
    for gateway in keyed_gateways().await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let composio =
            |config: Value, secret: Value| json!({"name": "c", "config_json": config, "secret_json": secret});
        for (kind, body, status, detail) in [
            ("ftp", json!({"name": "a"}), 400, "connection_type must be openapi|mcp|composio"),
            ("mcp", json!({"name": " "}), 422, "/name: is required and cannot be blank"),
            ("mcp", json!({}), 422, "/name: is required"),
            (
                "mcp",
                json!({"name": "a", "credential_visibility": "all"}),
                400,
                "credential_visibility must be use_only|self_managed",
            ),
            ("composio", composio(json!({}), json!({})), 400, "composio config_json.auth_mode must be oauth|api_key"),
            (
                "integration",
                composio(json!({"auth_mode": "API_KEY "}), json!({"api_key": " "})),
                400,
                "composio api_key mode requires secret_json.api_key",
            ),
            (
                "composio",
                composio(json!({"auth_mode": "api_key"}), json!({"api_key": 7})),
                422,
                "/secret_json/api_key: must be a text",
            ),
            ("mcp", json!({"name": "a", "secret_json": "hunter2"}), 422, "/secret_json: must be a JSON object"),
            ("mcp", json!({"name": "a", "config_json": ["hunter2"]}), 422, "/config_json: must be a JSON object"),
            (
                "mcp",
                json!({"name": "a", "secret_json": {"masked": true}}),
                422,
                "/secret_json/masked: stands for secrets, and none are stored yet",
            ),
            (
                "mcp",
                json!({"name": "a", "config_json": {"openapi": "3.1.0", "paths": {}, "api_key": "hunter2"}}),
                422,
                "/config_json/api_key: holds a secret by its name: secrets belong in secret_json",
            ),
            (
                "mcp",
                json!({"name": "a", "config_json": {"credentials": {"user": "hunter2"}}}),
                422,
                "/config_json/credentials/user: holds a secret by its name: secrets belong in secret_json",
            ),
            (
                "mcp",
                json!({"name": "a", "config_json": {"auth": {"client_secret": "hunter2"}}}),
                422,
                "/config_json/auth/client_secret: holds a secret by its name: secrets belong in secret_json",
            ),
            (
                "mcp",
                json!({"name": "a", "config_json": {"server_url": "http://mcp.example.com"}}),
                422,
                "/config_json/server_url: must be an https:// URL without credentials",
            ),
            (
                "mcp",
                json!({"name": "a", "config_json": {"server_url": "https://mcp.example.com/?v=1&Api-Key=hunter2"}}),
                422,
                "/config_json/server_url: holds a secret in its query, `Api-Key`, and would be shown",
            ),
            (
                "mcp",
                json!({"name": "a", "config_json": {"headers": [{"name": "X-Upstream", "value": "bearer  hunter2hunter2"}]}}),
                422,
                "/config_json/headers/0/value: holds credentials, and would be shown",
            ),
            (
                "mcp",
                json!({"name": "a", "config_json": {"headers": [{"name": "X-Api-Key", "value": "hunter2"}]}}),
                422,
                "/config_json/headers/0/value: holds a secret by its name: secrets belong in secret_json",
            ),
            (
                "mcp",
                json!({"name": "a", "config_json": {"signing key": "hunter2"}}),
                422,
                "/config_json/signing key: holds a secret by its name: secrets belong in secret_json",
            ),
            (
                "mcp",
                json!({"name": "a", "config_json": {"args": ["Authorization: token hunter2hunter2hunter2"]}}),
                422,
                "/config_json/args/0: holds credentials, and would be shown",
            ),
            (
                "mcp",
                json!({"name": "a", "config_json": {"with": "Basic YWRhOmh1bnRlcjI="}}),
                422,
                "/config_json/with: holds credentials, and would be shown",
            ),
            (
                "mcp",
                json!({"name": "a", "config_json": {"dsn": "postgres://ada:hunter2@db/main"}}),
                422,
                "/config_json/dsn: holds credentials, and would be shown",
            ),
            (
                "mcp",
                json!({"name": "a", "config_json": {"args": ["--api-key=hunter2"]}}),
                422,
                "/config_json/args/0: holds credentials, and would be shown",
            ),
            (
                "mcp",
                json!({"name": "a", "config_json": {"env": ["OPENAI_API_KEY=hunter2"]}}),
                422,
                "/config_json/env/0: holds credentials, and would be shown",
            ),
            (
                "mcp",
                json!({"name": "a", "config_json": {"headers": {"X-Auth": "hunter2"}}}),
                422,
                "/config_json/headers/X-Auth: holds a secret by its name: secrets belong in secret_json",
            ),
            (
                "mcp",
                json!({"name": "a", "config_json": {"base_url": "https://mcp.example.com/?key=hunter2"}}),
                422,
                "/config_json/base_url: holds a secret in its query, `key`, and would be shown",
            ),
        ] {
            assert_eq!(admin.post(&format!("{CONNECTIONS}/{kind}"), body).await.refused(status), detail);
        }
        assert!(admin.get(CONNECTIONS).await.column("id").is_empty());

        let words = json!({"args": ["--api-key-file=", "--verbose=1"], "dsn": "postgres://ada@db/main", "label": "Basic authentication", "hint": "Bearer authentication", "about": "bearer of news"});
        let told = admin.made(&format!("{CONNECTIONS}/mcp"), json!({"name": "words", "config_json": words})).await;
        admin.delete(&format!("{CONNECTIONS}/{told}")).await.ok();

        // The same on what a change leads to.
        let body = composio(json!({"auth_mode": "oauth"}), json!({}));
        let one = format!("{CONNECTIONS}/{}", admin.made(&format!("{CONNECTIONS}/composio"), body).await);
        let to_key = json!({"config_json": {"auth_mode": "api_key"}});
        assert_eq!(
            admin.patch(&one, to_key.clone()).await.refused(400),
            "composio api_key mode requires secret_json.api_key"
        );
        admin.patch(&one, json!({"secret_json": {"api_key": "k"}})).await.ok();
        admin.patch(&one, to_key).await.ok();
        assert_eq!(
            admin.patch(&one, json!({"secret_json": {"api_key": null}})).await.refused(400),
            "composio api_key mode requires secret_json.api_key"
        );
    }
}

#[tokio::test]
async fn settings_lead_nowhere_inside() {
    for gateway in keyed_gateways().await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let kind = format!("{CONNECTIONS}/openapi");
        let made = admin.made(&kind, json!({"name": "a"})).await;
        for host in ["127.0.0.1", "2130706433", "0x7f.1", "[::ffff:10.0.0.1]", "169.254.169.254", "localhost", "redis"]
        {
            let config = json!({"config_json": {"base_url": format!("https://{host}/")}});
            let mut new = config.clone();
            new["name"] = json!("b");
            for refused in [admin.post(&kind, new).await, admin.patch(&format!("{CONNECTIONS}/{made}"), config).await] {
                assert!(refused.refused(422).starts_with("/config_json/base_url: leads to this machine"), "{host}");
            }
        }
        let rules = OutboundRules { allow_loopback: true, allow_networks: vec!["10.0.0.0/8".parse().unwrap()] };
        let open = admin.at(&gateway.shaped(|app| app.with_outbound(rules.clone())));
        for url in ["http://127.0.0.1:3000", "https://10.1.2.3/mcp"] {
            open.post(&kind, json!({"name": "b", "config_json": {"base_url": url}})).await.ok();
        }
    }
}

#[tokio::test]
async fn grants_of_a_connection() {
    for gateway in keyed_gateways().await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let org = admin.made("/copilot/orgs", json!({"name": "Research"})).await;
        let team = admin.made("/copilot/teams", json!({"org_id": org, "name": "Language"})).await;
        let connection = admin.made(&format!("{CONNECTIONS}/mcp"), json!({"name": "a"})).await;
        let grants = format!("{CONNECTIONS}/{connection}/grants");
        let body = |kind: &str, id: &str| json!({"scope_type": kind, "scope_id": id});

        let first = admin.post(&grants, body("team", &team)).await.ok()["item"].clone();
        assert_eq!((&first["can_manage"], &first["connection_id"]), (&json!(false), &json!(connection)));
        let mut manage = body("team", &team);
        manage["can_manage"] = json!(true);
        let again = admin.post(&grants, manage).await;
        assert_eq!(again.headers["etag"], "\"2\"");
        let again = again.ok()["item"].clone();
        assert_eq!((&again["id"], &again["can_manage"]), (&first["id"], &json!(true)));
        admin.post(&grants, body("org", &org)).await.ok();
        assert_eq!(admin.get(&grants).await.column("scope_type"), ["org", "team"]);

        for (path, body, status, detail) in [
            (&*grants, body("account", account.as_str()), 400, "scope_type must be one of: org,team,user"),
            (&grants, body("team", "gone"), 404, "copilot team not found"),
            (&grants, body("org", &team), 404, "copilot org not found"),
            ("/copilot/connections/gone/grants", body("org", &org), 404, "Connection not found"),
        ] {
            assert_eq!(admin.post(path, body).await.refused(status), detail);
        }
        assert_eq!(admin.get("/copilot/connections/gone/grants").await.refused(404), "Connection not found");
        let one = format!("{grants}/{}", first["id"].as_str().unwrap());
        admin.made("/copilot/users", json!({"email": "ada@acme.com", "team_ids": [team]})).await;
        let trial = admin.post(&format!("{grants}?dry_run=true"), body("team", &team)).await.ok();
        assert_eq!((&trial["users"], &trial["changes"][0]["after"]["can_manage"]), (&json!(1), &json!(false)));
        assert_eq!(admin.delete(&format!("{one}?dry_run=true")).await.ok()["change_count"], 1);
        let kept = admin.get(&grants).await.ok()["items"][1]["can_manage"].clone();
        assert_eq!(kept, true, "trials write nothing");
        admin.with("if-match", "\"1\"").delete(&one).await.refused(412);
        assert_eq!(admin.delete(&one).await.ok(), json!({"deleted": true}));
        assert_eq!(admin.delete(&one).await.refused(404), "Connection grant not found");

        // A scope takes its grants along, and so does the connection.
        admin.post(&grants, body("team", &team)).await.ok();
        admin.delete(&format!("/copilot/orgs/{org}?cascade=true")).await.ok();
        assert!(admin.get(&grants).await.column("id").is_empty());
        let audit = admin.get("/audit?limit=1").await.ok()["items"][0]["updated_values"].clone();
        assert_eq!(audit["connection_grants"].as_array().unwrap().len(), 2);
        let org = admin.made("/copilot/orgs", json!({"name": "Art"})).await;
        admin.post(&grants, body("org", &org)).await.ok();
        admin.delete(&format!("{CONNECTIONS}/{connection}")).await.ok();
        let left = gateway.texts(r#"SELECT id FROM "Alchemi_CopilotConnectionGrantTable""#).await;
        assert!(left.is_empty());
    }
}
