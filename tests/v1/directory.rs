//! Orgs, teams, users, memberships.

use alchemi::context::Context;
use alchemi::identity::master_key_context;
use alchemi::store::audit::AuditFilter;
use alchemi::store::page::Slice;
use serde_json::{Value, json};

use crate::gateway::{Client, Gateway, gateways};

/// An org with one team, and the org's id and the team's.
async fn tree(client: &Client, domain: &str) -> (String, String) {
    let org = client.made(&format!("/{domain}/orgs"), json!({"name": "Research"})).await;
    let team = client.made(&format!("/{domain}/teams"), json!({"org_id": org, "name": "Language"})).await;
    (org, team)
}

/// The newest audit event of an account.
async fn last_event(gateway: &Gateway, account: &alchemi::id::Id<alchemi::model::accounts::Account>) -> Value {
    let operator: Context = master_key_context(None);
    let granted = operator.super_admin().unwrap().over(account.clone());
    let mut tx = gateway.store.read(&granted).await.unwrap();
    let events = tx.events(&AuditFilter::default(), &Slice::first(1)).await.unwrap();
    assert!(tx.verify_audit().await.unwrap().valid);
    serde_json::to_value(&events.items[0].event).unwrap()
}

#[tokio::test]
async fn teams_are_made_read_changed_and_removed() {
    for gateway in gateways(|app| app).await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        for domain in ["copilot", "console"] {
            let (org, team) = tree(&admin, domain).await;
            let teams = format!("/{domain}/teams");
            let one = format!("{teams}/{team}");
            let shown = admin.get(&one).await;
            assert_eq!(shown.headers["etag"], "\"1\"");
            let item = shown.ok()["item"].clone();
            assert_eq!(
                (&item["name"], &item["org_id"], &item["domain"]),
                (&json!("Language"), &json!(org), &json!(domain))
            );

            let changed = admin.with("if-match", "\"1\"").patch(&one, json!({"description": "Words"})).await;
            assert_eq!(changed.headers["etag"], "\"2\"");
            assert_eq!(changed.ok()["item"]["description"], "Words");
            admin.with("if-match", "\"1\"").patch(&one, json!({"name": "Lost"})).await.refused(412);
            admin.with("if-match", "W/\"2\"").patch(&one, json!({"name": "Lost"})).await.refused(412);
            admin.with("if-match", "\"2\"").with_another("if-match", "\"2\"").patch(&one, json!({})).await.refused(400);
            admin.with("if-match", "\"é\"").patch(&one, json!({})).await.refused(400);
            for wrong in ["2", "\"2", "\"2\" \"3\"", "\"2\", x", "*, \"2\""] {
                admin.with("if-match", wrong).patch(&one, json!({})).await.refused(400);
            }
            admin.with("if-match", "\"7,\", W/\",\"").patch(&one, json!({})).await.refused(412);
            admin.with("if-match", ", \"7,8\" ,, \"2\"").patch(&one, json!({})).await.ok();
            admin.with("if-match", "\"7\", \"2\", \"3\"").patch(&one, json!({})).await.ok();
            admin.with("if-match", "*").patch(&one, json!({})).await.ok();
            admin.patch(&one, json!({"name": null})).await.refused(422);
            admin.patch(&one, json!({"org_id": org})).await.refused(422);
            let cleared = admin.patch(&one, json!({"description": null})).await.ok();
            assert_eq!(cleared["item"]["description"], Value::Null);

            let other = admin.made(&format!("/{domain}/orgs"), json!({"name": "Sales"})).await;
            admin.made(&teams, json!({"org_id": other, "name": "Language"})).await;
            assert_eq!(admin.get(&format!("{teams}?org_id={org}")).await.column("id"), [&*team]);
            assert_eq!(admin.get(&teams).await.column("name").len(), 2);
            let taken = admin.post(&teams, json!({"org_id": org, "name": " Language "})).await;
            assert_eq!(taken.json["field"], "name");
            taken.refused(409);
            let lost = admin.post(&teams, json!({"org_id": "gone", "name": "X"})).await;
            assert_eq!(lost.refused(404), format!("{domain} org not found"));
            assert_eq!(admin.get(&format!("{teams}/gone")).await.refused(404), format!("{domain} team not found"));

            assert_eq!(admin.delete(&one).await.ok(), json!({"deleted": true}));
            admin.delete(&one).await.refused(404);
        }
    }
}

#[tokio::test]
async fn another_domain_and_another_account_have_none_of_it() {
    for gateway in gateways(|app| app).await {
        let (acme, beta) = (gateway.account("Acme").await, gateway.account("Beta").await);
        let (admin, stranger) = (gateway.as_admin_of(&acme).await, gateway.as_admin_of(&beta).await);
        let (org, team) = tree(&admin, "copilot").await;
        let user = admin.made("/copilot/users", json!({"email": "ada@acme.com"})).await;
        for (kind, id) in [("orgs", &org), ("teams", &team), ("users", &user)] {
            for (client, domain) in [(&admin, "console"), (&stranger, "copilot")] {
                let path = format!("/{domain}/{kind}/{id}");
                client.get(&path).await.refused(404);
                client.patch(&path, json!({})).await.refused(404);
                client.delete(&path).await.refused(404);
                assert!(client.get(&format!("/{domain}/{kind}")).await.column("id").is_empty());
            }
            admin.get(&format!("/copilot/{kind}/{id}")).await.ok();
        }
        stranger.post("/copilot/teams", json!({"org_id": org, "name": "Mine"})).await.refused(404);
        stranger.post(&format!("/copilot/teams/{team}/members"), json!({"user_id": user})).await.refused(404);
        stranger.post("/copilot/users", json!({"email": "eve@beta.com", "team_ids": [team]})).await.refused(404);
        assert!(stranger.get("/copilot/users").await.column("id").is_empty());
        let only_console = json!({"product_domains_allowed": ["console"]});
        let limited = gateway.as_subject(&acme, "limited", None, &["account_admin"], only_console).await;
        assert!(limited.get("/copilot/teams").await.refused(403).contains("Domain access denied"));
        let member = gateway.as_member_of(&acme, "someone", None).await;
        assert_eq!(member.get("/copilot/users").await.refused(403), "copilot admin access required");
    }
}

#[tokio::test]
async fn a_user_is_made_once_and_completed_after() {
    for gateway in gateways(|app| app).await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let (_, team) = tree(&admin, "copilot").await;
        let users = "/copilot/users";
        let none = admin.post(users, json!({"email": " ", "display_name": "Nobody"})).await;
        assert_eq!(none.refused(400), "Either email or identity_user_id is required");
        // Nothing is written when a team does not exist.
        let lost = admin.post(users, json!({"email": "ada@acme.com", "team_ids": [team, "gone"]})).await;
        assert_eq!(lost.refused(404), "copilot team not found");
        assert!(admin.get(users).await.column("id").is_empty());

        let made = admin.post(users, json!({"email": "Ada@Acme.com ", "team_ids": [team, team]})).await.ok();
        let ada = made["item"]["id"].as_str().unwrap().to_owned();
        assert_eq!((&made["item"]["email"], &made["item"]["status"]), (&json!("ada@acme.com"), &json!("active")));
        assert_eq!(last_event(&gateway, &account).await["updated_values"]["team_ids"], json!([team]));
        let again = json!({"email": "ADA@acme.com", "identity_user_id": "sub-1", "display_name": "Ada"});
        let completed = admin.post(users, again).await.ok();
        assert_eq!(completed["item"]["id"], json!(ada));
        assert_eq!(last_event(&gateway, &account).await["action"], "update");
        let by_identity = admin.post(users, json!({"identity_user_id": "sub-1", "display_name": ""})).await.ok();
        assert_eq!((&by_identity["item"]["id"], &by_identity["item"]["display_name"]), (&json!(ada), &json!("Ada")));

        let bob = admin.made(users, json!({"email": "bob@acme.com"})).await;
        let both = admin.post(users, json!({"email": "bob@acme.com", "identity_user_id": "sub-1"})).await;
        assert_eq!(both.json["code"], "ambiguous_user");
        both.refused(409);
        // The same person in the other domain is another row.
        let console = admin.made("/console/users", json!({"email": "ada@acme.com", "identity_user_id": "sub-1"})).await;
        assert_ne!(console, ada);

        let one = format!("{users}/{bob}");
        let taken = admin.patch(&one, json!({"email": "ada@acme.com"})).await;
        assert_eq!(taken.json["field"], "email");
        taken.refused(409);
        let taken = admin.patch(&one, json!({"identity_user_id": "sub-1"})).await;
        assert_eq!(taken.json["field"], "identity_user_id");
        taken.refused(409);
        admin.patch(&one, json!({"email": null})).await.refused(400);
        admin.patch(&one, json!({"status": "gone"})).await.refused(422);
        let suspended = admin.patch(&one, json!({"status": "suspended"})).await.ok();
        assert_eq!(suspended["item"]["status"], "suspended");
        assert_eq!(admin.get(&one).await.ok()["item"]["status"], "suspended");
        assert_eq!(admin.delete(&one).await.ok(), json!({"deleted": true}));
        assert_eq!(admin.get(&one).await.refused(404), "copilot user not found");
    }
}

#[tokio::test]
async fn an_admin_who_is_suspended_as_a_user_does_not_restore_themselves() {
    for gateway in gateways(|app| app).await {
        let account = gateway.account("Acme").await;
        let boss = gateway.as_subject(&account, "boss", Some("boss@acme.com"), &["account_admin"], json!({})).await;
        let (admin, users) = (boss, "/copilot/users");
        let eve = gateway.as_subject(&account, "eve", Some("eve@acme.com"), &["account_admin"], json!({})).await;
        let row = admin.made(users, json!({"email": "eve@acme.com"})).await;
        let (own, suspended) = (format!("{users}/{row}"), json!({"status": "suspended"}));
        eve.patch(&own, suspended.clone()).await.ok();

        let tried = [
            eve.patch(&own, json!({"status": "active"})).await,
            eve.patch(&own, json!({"email": "other@acme.com"})).await,
            eve.delete(&own).await,
            eve.post(users, json!({"identity_user_id": "eve"})).await,
            eve.post(users, json!({"email": "eve@acme.com", "identity_user_id": "other"})).await,
        ];
        for refused in tried {
            assert_eq!(refused.json["code"], "user_suspended");
            refused.refused(403);
        }
        assert_eq!(eve.get(users).await.column("status"), ["suspended"], "and nothing else is there");
        // The other domain knows nothing of it.
        eve.post("/console/users", json!({"email": "eve@acme.com"})).await.ok();

        admin.patch(&own, json!({"status": "active"})).await.ok();
        eve.patch(&own, json!({"display_name": "Eve"})).await.ok();
        eve.patch(&own, suspended).await.ok();

        // A second row does not hide the first.
        admin.post(users, json!({"identity_user_id": "eve"})).await.ok();
        assert_eq!(eve.patch(&own, json!({"status": "active"})).await.json["code"], "user_suspended");
        gateway.as_operator(Some(&account)).patch(&own, json!({"status": "active"})).await.ok();
        eve.patch(&own, json!({"display_name": "Eve"})).await.ok();
    }
}

#[tokio::test]
async fn members_join_change_and_leave() {
    for gateway in gateways(|app| app).await {
        let admin = gateway.as_admin_of(&gateway.account("Acme").await).await;
        let (_, team) = tree(&admin, "console").await;
        let user = admin.made("/console/users", json!({"email": "ada@acme.com"})).await;
        let members = format!("/console/teams/{team}/members");
        let one = format!("{members}/{user}");
        admin.patch(&one, json!({"role": "lead"})).await.refused(404);
        assert_eq!(admin.post(&members, json!({"user_id": "gone"})).await.refused(404), "console user not found");
        assert_eq!(admin.get("/console/teams/gone/members").await.refused(404), "console team not found");
        let joined = admin.post(&members, json!({"user_id": user})).await.ok();
        assert_eq!(joined["item"]["role"], "member");
        assert_eq!(admin.patch(&one, json!({"role": "lead"})).await.ok()["item"]["role"], "lead");
        // Joining again without a role keeps it.
        assert_eq!(admin.post(&members, json!({"user_id": user})).await.ok()["item"]["role"], "lead");
        assert_eq!(admin.get(&members).await.column("user_id"), [user]);
        assert_eq!(admin.delete(&one).await.ok(), json!({"deleted": true}));
        admin.delete(&one).await.refused(404);
        assert!(admin.get(&members).await.column("user_id").is_empty());
    }
}

#[tokio::test]
async fn what_holds_something_goes_only_with_cascade_and_leaves_nothing_dangling() {
    for gateway in gateways(|app| app).await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let (org, team) = tree(&admin, "copilot").await;
        let user = admin.made("/copilot/users", json!({"email": "ada@acme.com", "team_ids": [team]})).await;
        let grant = async |model: &str, kind: &str, id: &str| {
            let body = json!({"model_name": model, "scope_type": kind, "scope_id": id});
            admin.made("/copilot/models/grants", body).await
        };
        let of_user = grant("m", "user", &user).await;
        let of_team = grant("m", "team", &team).await;
        let of_org = grant("m", "org", &org).await;
        let of_account = grant("m", "account", account.as_str()).await;

        let refused = admin.delete(&format!("/copilot/teams/{team}")).await.refused(409);
        assert!(refused.contains("cascade=true"), "{refused}");
        admin.delete(&format!("/copilot/orgs/{org}")).await.refused(409);
        admin.delete(&format!("/copilot/orgs/{org}?cascade=true")).await.ok();
        let event = last_event(&gateway, &account).await;
        assert_eq!((&event["action"], &event["resource_id"]), (&json!("delete"), &json!(org)));
        let gone = &event["updated_values"];
        assert_eq!(gone["teams"], json!([team]));
        assert_eq!(gone["memberships"][0]["user_id"], json!(user));
        let mut grants: Vec<_> = gone["model_grants"].as_array().unwrap().iter().map(|g| g.as_str().unwrap()).collect();
        grants.sort_unstable();
        assert_eq!(grants, {
            let mut both = [of_org.as_str(), of_team.as_str()];
            both.sort_unstable();
            both
        });
        assert_eq!(admin.get("/copilot/models/grants").await.column("id"), [of_account.clone(), of_user]);
        admin.get(&format!("/copilot/teams/{team}")).await.refused(404);
        admin.delete(&format!("/copilot/users/{user}")).await.ok();
        assert_eq!(admin.get("/copilot/models/grants").await.column("id"), [of_account]);
    }
}

#[tokio::test]
async fn nothing_is_hung_on_what_is_being_removed() {
    for gateway in gateways(|app| app).await {
        let admin = gateway.as_admin_of(&gateway.account("Acme").await).await;
        for round in 0..10 {
            let org = admin.made("/copilot/orgs", json!({"name": format!("org {round}")})).await;
            let path = format!("/copilot/orgs/{org}");
            let grant = json!({"model_name": "m", "scope_type": "org", "scope_id": org});
            let (removed, granted, team) = tokio::join!(
                admin.delete(&path),
                admin.post("/copilot/models/grants", grant),
                admin.post("/copilot/teams", json!({"org_id": org, "name": "Late"})),
            );
            assert!(matches!(removed.status, 200 | 409), "{}", removed.json);
            assert!(matches!(granted.status, 200 | 404) && matches!(team.status, 200 | 404));
            if removed.status == 200 {
                assert_eq!(team.status, 404);
                assert!(!admin.get("/copilot/models/grants").await.column("scope_id").contains(&org));
            }
        }
    }
}

#[tokio::test]
async fn lists_are_paged_to_their_end() {
    for gateway in gateways(|app| app).await {
        let admin = gateway.as_admin_of(&gateway.account("Acme").await).await;
        let mut made = Vec::new();
        for n in 0..5 {
            made.insert(0, admin.made("/console/users", json!({"identity_user_id": format!("s{n}")})).await);
        }
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = admin.get(&format!("/console/users?limit=2{cursor}")).await.ok();
            seen.extend(page["items"].as_array().unwrap().iter().map(|u| u["id"].as_str().unwrap().to_owned()));
            let Some(next) = page["next_cursor"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        assert_eq!(seen, made);
        admin.get("/console/users?limit=0").await.refused(422);
        admin.get("/console/users?cursor=x").await.refused(422);
    }
}

#[tokio::test]
async fn a_user_known_by_address_alone_is_looked_for() {
    for gateway in gateways(|app| app).await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let lookup =
            async |id: &str| admin.get(&format!("/copilot/users/{id}")).await.ok()["item"]["identity_lookup"].clone();
        let pending = json!({"state": "pending", "detail": null, "attempts": 0});
        let ada = admin.made("/copilot/users", json!({"email": "ada@acme.com"})).await;
        let bob = admin.made("/copilot/users", json!({"identity_user_id": "8002"})).await;
        assert_eq!((lookup(&ada).await, lookup(&bob).await), (pending.clone(), Value::Null));
        let one = format!("/copilot/users/{ada}");
        admin.patch(&one, json!({"identity_user_id": "8001"})).await.ok();
        assert_eq!(lookup(&ada).await, Value::Null);
        admin.patch(&one, json!({"identity_user_id": null})).await.ok();
        assert_eq!(lookup(&ada).await, pending);
        admin.delete(&one).await.ok();
    }
}
