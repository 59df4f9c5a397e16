//! The marketplace: who lists, who sees, who installs and rates, and what is counted.

use serde_json::{Value, json};

use crate::budgets::tree;
use crate::gateway::{Client, Gateway, gateways};

const MARKET: &str = "/copilot/marketplace";

async fn connection(admin: &Client, name: &str) -> String {
    admin.made("/copilot/connections/mcp", json!({"name": name})).await
}

/// An agent of the account.
async fn agent(gateway: &Gateway, account: &str, id: &str) -> String {
    let sql = format!(
        r#"INSERT INTO "Alchemi_CopilotAgentTable" (account_id, id, name, created_at, updated_at)
           VALUES ('{account}', '{id}', 'Agent', 1, 1)"#
    );
    gateway.execute(&sql).await;
    id.to_owned()
}

/// Lists a new connection under its name; gives the listing's id.
async fn listed(admin: &Client, title: &str, more: Value) -> String {
    let mut body = json!({"entity_type": "connection", "entity_id": connection(admin, title).await, "title": title});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    admin.made(MARKET, body).await
}

async fn titles(client: &Client, path: &str) -> Vec<String> {
    client.get(path).await.column("title")
}

#[tokio::test]
async fn a_listing_is_made_shown_changed_and_removed() {
    for gateway in gateways(|app| app).await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let helper = agent(&gateway, account.as_str(), "agent-1").await;
        let body = json!({"entity_type": " Agent ", "entity_id": helper, "title": " Contract reader "});
        let (status, made, headers) = admin.post(MARKET, body.clone()).await.parts();
        let item = made["item"].clone();
        assert_eq!((status, &headers["etag"]), (200, &"\"1\"".parse().unwrap()));
        for (name, value) in [
            ("entity_type", json!("agent")),
            ("entity_id", json!("agent-1")),
            ("title", json!("Contract reader")),
            ("description", json!(null)),
            ("visibility", json!("global")),
            ("is_published", json!(true)),
            ("is_featured", json!(false)),
            ("is_verified", json!(false)),
            ("pricing_model", json!("free")),
            ("version", json!("1.0.0")),
            ("author", json!(null)),
            ("installation_count", json!(0)),
            ("rating_avg", json!(0)),
            ("rating_count", json!(0)),
            ("grants", json!([])),
            ("created_by", json!("admin")),
        ] {
            assert_eq!(item[name], value, "{name}");
        }
        let one = format!("{MARKET}/{}", item["id"].as_str().unwrap());
        assert_eq!(admin.get(&one).await.ok()["item"], item);

        // Listed again, what was sent changes, and nothing else.
        let counted = json!({"installation_count": 7, "rating_avg": 4.5, "rating_count": 2, "author": "Ada"});
        admin.patch(&one, counted).await.ok();
        let mut again = body;
        again["title"] = json!("Reader");
        again["description"] = json!("Finds dates");
        let again = admin.post(MARKET, again).await.ok()["item"].clone();
        assert_eq!((&again["id"], &again["title"]), (&item["id"], &json!("Reader")));
        assert_eq!(
            (&again["installation_count"], &again["rating_avg"], &again["rating_count"], &again["author"]),
            (&json!(7), &json!(4.5), &json!(2), &json!("Ada"))
        );

        let tag = admin.get(&one).await.headers["etag"].to_str().unwrap().to_owned();
        let kept =
            admin.with("if-match", &tag).patch(&one, json!({"description": null, "is_featured": true})).await.ok();
        assert_eq!((&kept["item"]["description"], &kept["item"]["is_featured"]), (&json!(null), &json!(true)));
        admin.with("if-match", &tag).patch(&one, json!({"title": "late"})).await.refused(412);
        let hidden = admin.post(&format!("{one}/publish?publish=false"), json!(null)).await.ok();
        assert_eq!((&hidden["item"]["is_published"], &hidden["item"]["grants"]), (&json!(false), &Value::Null));
        assert_eq!(admin.post(&format!("{one}/publish"), json!(null)).await.ok()["item"]["is_published"], true);

        let event = &admin.get("/audit?resource=Alchemi_CopilotMarketplaceTable").await.ok()["items"][0];
        assert_eq!((&event["action"], &event["updated_values"]["is_published"]), (&json!("update"), &json!(true)));
        let stranger = gateway.as_admin_of(&gateway.account("Beta").await).await;
        for refused in [stranger.get(&one).await, stranger.patch(&one, json!({})).await, stranger.delete(&one).await] {
            assert_eq!(refused.refused(404), "Marketplace listing not found");
        }
        assert_eq!(admin.delete(&one).await.ok(), json!({"deleted": true}));
        assert_eq!(admin.delete(&one).await.refused(404), "Marketplace listing not found");
    }
}

#[tokio::test]
async fn a_listing_is_refused_in_the_words_that_clients_know() {
    for gateway in gateways(|app| app).await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let entity = connection(&admin, "Tickets").await;
        let other = gateway.as_admin_of(&gateway.account("Beta").await).await;
        let theirs = connection(&other, "Theirs").await;
        let with = |name: &str, value: Value| {
            let mut body = json!({"entity_type": "connection", "entity_id": entity, "title": "Tickets"});
            body[name] = value;
            body
        };
        let required = "entity_type, entity_id, and title are required";
        for (body, status, detail) in [
            (with("title", json!(" ")), 400, required),
            (with("entity_id", json!("")), 400, required),
            (with("entity_type", json!(null)), 400, required),
            (with("entity_type", json!("prompt")), 400, "entity_type must be one of: agent,connection"),
            (with("entity_type", json!("agent")), 404, "Copilot agent not found"),
            (with("entity_id", json!("gone")), 404, "Connection not found"),
            (with("entity_id", json!(theirs)), 404, "Connection not found"),
            (with("grants", json!([{"scope_type": "team"}])), 400, "scope_id is required for marketplace grants"),
            (
                with("grants", json!([{"scope_type": "account", "scope_id": "x"}])),
                400,
                "scope_type must be one of: org,team,user",
            ),
            (with("grants", json!([{"scope_type": "team", "scope_id": "gone"}])), 404, "copilot team not found"),
            (with("installation_count", json!(-1)), 422, "/installation_count: must be 0 to 1000000000"),
            (with("rating_count", json!(-1)), 422, "/rating_count: must be 0 to 1000000000"),
            (with("rating_avg", json!(5.1)), 422, "/rating_avg: must be 0 to 5"),
            (with("rating_avg", json!(-0.1)), 422, "/rating_avg: must be 0 to 5"),
            (with("is_published", json!(null)), 422, "/is_published: cannot be null; leave it out to keep it"),
        ] {
            assert_eq!(admin.post(MARKET, body).await.refused(status), detail);
        }
        assert_eq!(admin.get(MARKET).await.ok()["total"], 0);
        let id = admin.made(MARKET, with("visibility", json!("granted"))).await;
        let reply = admin.patch(&format!("{MARKET}/{id}"), json!({"entity_id": "other"})).await;
        assert_eq!(reply.refused(422), "/entity_id: cannot be changed");
    }
}

#[tokio::test]
async fn lists_are_searched_counted_and_paged() {
    for gateway in gateways(|app| app).await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        listed(&admin, "Été 100%", json!({})).await;
        listed(&admin, "100 tickets_a", json!({"is_published": false})).await;
        let helper = agent(&gateway, account.as_str(), "agent-1").await;
        admin.made(MARKET, json!({"entity_type": "agent", "entity_id": helper, "title": "Helper"})).await;
        assert_eq!(titles(&admin, MARKET).await, ["Helper", "100 tickets_a", "Été 100%"]);
        for (query, found) in [
            ("published_only=true", vec!["Helper", "Été 100%"]),
            ("title=%C3%89T%C3%89", vec!["Été 100%"]),
            ("title=100%25", vec!["Été 100%"]),
            ("title=S_A", vec!["100 tickets_a"]),
            ("title=100_", vec![]),
            ("title=%5C", vec![]),
            ("entity_type=agent", vec!["Helper"]),
            ("entity_type=connection&published_only=true&title=t%C3%A9", vec!["Été 100%"]),
            ("limit=1&offset=1", vec!["100 tickets_a"]),
        ] {
            assert_eq!(titles(&admin, &format!("{MARKET}?{query}")).await, found, "{query}");
        }
        let page = admin.get(&format!("{MARKET}?limit=1&include_grants=true")).await.ok();
        assert_eq!((&page["total"], &page["items"][0]["grants"]), (&json!(3), &json!([])));
        assert!(page["next_cursor"].is_string());
        assert_eq!(admin.get(MARKET).await.ok()["items"][0]["grants"], Value::Null);
        admin.get(&format!("{MARKET}?entity_type=prompt")).await.refused(400);
    }
}

#[tokio::test]
async fn who_sees_a_listing() {
    for gateway in gateways(|app| app).await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let [org, team, ada] = tree(&admin).await;
        let bob = admin.made("/copilot/users", json!({"email": "bob@acme.com"})).await;
        let for_all = listed(&admin, "For all", json!({})).await;
        listed(&admin, "Hidden", json!({"is_published": false})).await;
        let teams =
            json!({"grants": [{"scope_type": "team", "scope_id": team}, {"scope_type": "team", "scope_id": team}]});
        let for_team = listed(&admin, "For the team", teams).await;
        let as_ada = gateway.as_member_of(&account, "sub-ada", Some("ada@acme.com")).await;
        let as_bob = gateway.as_member_of(&account, "sub-bob", Some("bob@acme.com")).await;
        let (discover, mine) = (format!("{MARKET}/discover"), "/me/marketplace");

        for path in [discover.as_str(), mine] {
            assert_eq!(titles(&as_ada, path).await, ["For the team", "For all"]);
            assert_eq!(titles(&as_bob, path).await, ["For all"]);
            assert_eq!(as_bob.get(path).await.ok()["total"], 1);
        }
        let seen = as_ada.get(&discover).await.ok();
        for (path, shown) in [(discover.as_str(), true), (mine, false)] {
            let of = async |client: &Client| client.get(path).await.ok()["items"][0].clone();
            for (item, shown) in [(of(&as_ada).await, false), (of(&admin).await, shown)] {
                assert!(item["title"].is_string() && item["updated_at"].is_string() && item["rating_avg"] == 0);
                assert_eq!([item.get("created_by").is_some(), item.get("account_id").is_some()], [shown; 2], "{item}");
            }
        }
        let sight = |n: usize| seen["items"][n]["visibility"].clone();
        assert_eq!(sight(0), json!({"mode": "granted", "matched_scope": format!("team:{team}")}));
        assert_eq!(sight(1), json!({"mode": "global", "matched_scope": "global"}));
        assert_eq!(titles(&as_ada, &format!("{discover}?title=TEAM&entity_type=connection")).await, ["For the team"]);

        // An admin looks from any place; nobody else looks from another's.
        for (query, found) in [
            (format!("team_id={team}"), 2),
            (format!("org_id={org}"), 1),
            (format!("user_id={bob}"), 1),
            (String::new(), 1),
        ] {
            assert_eq!(admin.get(&format!("{discover}?{query}")).await.ok()["total"], found, "{query}");
        }
        assert_eq!(admin.get(&format!("{discover}?team_id=gone")).await.refused(404), "copilot team not found");
        let reply = as_ada.get(&format!("{discover}?user_id={bob}")).await;
        assert_eq!(reply.json["code"], "domain_admin_required");
        let limited = json!({"product_domains_allowed": ["console"]});
        let limited = gateway.as_subject(&account, "sub-cy", None, &["end_user"], limited).await;
        for path in [discover.as_str(), mine] {
            assert_eq!(limited.get(path).await.json["code"], "domain_denied");
        }

        // The last grant gone, nobody sees it, until it is for everybody.
        let grants = format!("{MARKET}/{for_team}/grants");
        let gone = format!("{grants}?scope_type=team&scope_id={team}");
        assert_eq!(admin.delete(&gone).await.ok(), json!({"deleted": 1}));
        assert_eq!(titles(&as_ada, mine).await, ["For all"]);
        assert_eq!(admin.get(&format!("{MARKET}/{for_team}")).await.ok()["item"]["visibility"], "granted");
        admin.patch(&format!("{MARKET}/{for_team}"), json!({"visibility": "global"})).await.ok();
        assert_eq!(titles(&as_bob, mine).await, ["For the team", "For all"]);

        // A grant makes what was for everybody a thing of the few.
        let user = json!({"scope_type": "user", "scope_id": bob});
        let trial = admin.post(&format!("{MARKET}/{for_all}/grants?dry_run=true"), user.clone()).await.ok();
        assert_eq!((&trial["change_count"], &trial["users"]), (&json!(2), &json!(2)), "it is taken from Ada");
        let granted = admin.post(&format!("{MARKET}/{for_all}/grants"), user.clone()).await.ok()["item"].clone();
        let again = admin.post(&format!("{MARKET}/{for_all}/grants"), user).await.ok()["item"].clone();
        assert_eq!(granted["id"], again["id"]);
        let event = &admin.get("/audit?resource=Alchemi_CopilotMarketplaceTable").await.ok()["items"][0];
        assert_eq!((&event["action"], &event["object_id"]), (&json!("update"), &json!(for_all)));
        let (before, after) = (&event["before_value"], &event["updated_values"]);
        assert_eq!((&before["visibility"], &after["visibility"]), (&json!("global"), &json!("granted")));
        assert_eq!((&before["grants"], &after["grants"][0]["scope_id"]), (&json!([]), &json!(bob)));
        assert_eq!(titles(&as_ada, mine).await, ["For the team"]);
        let seen = as_bob.get(mine).await.ok();
        assert_eq!(seen["items"][1]["visibility"]["matched_scope"], format!("user:{bob}"));
        // Grants go with what they are for.
        admin.delete(&format!("/copilot/users/{bob}")).await.ok();
        assert_eq!(admin.get(&format!("{MARKET}/{for_all}/grants")).await.column("id"), [""; 0]);
        assert_eq!(titles(&as_ada, mine).await, ["For the team"]);
        let _ = ada;
    }
}

#[tokio::test]
async fn grants_are_listed_and_removed_together() {
    for gateway in gateways(|app| app).await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let [org, team, ada] = tree(&admin).await;
        let id = listed(&admin, "Tickets", json!({"grants": [{"scope_type": "org", "scope_id": org}]})).await;
        let (one, grants) = (format!("{MARKET}/{id}"), format!("{MARKET}/{id}/grants"));
        let tag = async || admin.get(&one).await.headers["etag"].to_str().unwrap().to_owned();
        for _ in 0..2 {
            admin.post(&grants, json!({"scope_type": "team", "scope_id": team})).await.ok();
            assert_eq!(tag().await, "\"2\"", "once granted, nothing changes");
        }
        admin.with("if-match", "\"1\"").patch(&one, json!({"grants": []})).await.refused(412);
        assert_eq!(admin.get(&grants).await.column("scope_type"), ["team", "org"]);
        // In place of whom it was granted to; what stays keeps its row.
        let replaced =
            json!({"grants": [{"scope_type": "user", "scope_id": ada}, {"scope_type": "team", "scope_id": team}]});
        let shown = admin.patch(&one, replaced).await.ok()["item"]["grants"].clone();
        assert_eq!(shown, json!([{"scope_type": "team", "scope_id": team}, {"scope_type": "user", "scope_id": ada}]));
        assert_eq!(admin.patch(&one, json!({"grants": null})).await.ok()["item"]["grants"], shown);

        let words = "scope_type and scope_id must be provided together";
        assert_eq!(admin.delete(&format!("{grants}?scope_type=team")).await.refused(400), words);
        admin.delete(&format!("{grants}?scope_type=pool&scope_id=pool")).await.refused(400);
        let trial = admin.delete(&format!("{grants}?dry_run=true")).await.ok();
        assert_eq!((&trial["change_count"], &trial["users"]), (&json!(2), &json!(1)));
        for (deleted, version) in [(2, "\"5\""), (0, "\"5\"")] {
            assert_eq!(admin.delete(&grants).await.ok(), json!({"deleted": deleted}));
            assert_eq!(tag().await, version);
        }
        assert_eq!(admin.get(&format!("{MARKET}/gone/grants")).await.refused(404), "Marketplace listing not found");
    }
}

#[tokio::test]
async fn installations_are_one_for_a_scope_and_counted() {
    for gateway in gateways(|app| app).await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let [_, team, ada] = tree(&admin).await;
        let id = listed(&admin, "Tickets", json!({"installation_count": 5})).await;
        let secret = listed(&admin, "Secret", json!({"visibility": "granted"})).await;
        let (one, install) = (format!("{MARKET}/{id}"), format!("{MARKET}/{id}/install"));
        let as_ada = gateway.as_member_of(&account, "sub-ada", Some("ada@acme.com")).await;

        let mine = as_ada.post(&install, json!({})).await.ok();
        assert_eq!((&mine["item"]["scope_id"], &mine["installation_count"]), (&json!(ada), &json!(6)));
        let again = as_ada.post(&install, json!({"scope_type": "user", "scope_id": ada})).await.ok();
        assert_eq!(again, mine, "once");
        let of_team = json!({"scope_type": "team", "scope_id": team});
        assert_eq!(as_ada.post(&install, of_team.clone()).await.json["code"], "domain_admin_required");
        assert_eq!(admin.post(&install, of_team).await.ok()["installation_count"], 7);
        assert_eq!(admin.post(&install, json!({})).await.json["code"], "user_unknown");
        admin.post(&install, json!({"scope_type": "team"})).await.refused(400);
        assert_eq!(
            admin.post(&install, json!({"scope_type": "team", "scope_id": "gone"})).await.refused(404),
            "copilot team not found"
        );
        assert_eq!(admin.get(&install).await.column("scope_type"), ["team", "user"]);
        let shown = as_ada.get("/me/marketplace").await.ok();
        assert_eq!(
            shown["items"][0]["installed_in"],
            json!([{"scope_type": "user", "scope_id": ada}, {"scope_type": "team", "scope_id": team}])
        );
        // What one does not see, one does not install.
        let unseen = format!("{MARKET}/{secret}/install");
        assert_eq!(as_ada.post(&unseen, json!({})).await.refused(404), "Marketplace listing not found");
        for of in ["", "?scope_type=team", &format!("?scope_type=team&scope_id={team}")] {
            assert_eq!(as_ada.delete(&format!("{unseen}{of}")).await.refused(404), "Marketplace listing not found");
        }
        assert_eq!(as_ada.get(&install).await.json["code"], "domain_admin_required");
        // Out of sight, it can be uninstalled all the same.
        admin.post(&format!("{one}/publish?publish=false"), json!(null)).await.ok();
        assert_eq!(as_ada.delete(&install).await.ok(), json!({"deleted": true}));
        as_ada.delete(&install).await.refused(404);
        admin.post(&format!("{one}/publish"), json!(null)).await.ok();
        assert_eq!(as_ada.delete(&install).await.ok(), json!({"deleted": false}));
        assert_eq!(admin.get(&one).await.ok()["item"]["installation_count"], 6);
        // An installation goes with the scope that has it.
        admin.delete(&format!("/copilot/teams/{team}?cascade=true")).await.ok();
        assert_eq!(admin.get(&one).await.ok()["item"]["installation_count"], 5);
        assert_eq!(admin.get(&install).await.column("id"), [""; 0]);
    }
}

#[tokio::test]
async fn each_user_rates_once_and_may_change_it() {
    for gateway in gateways(|app| app).await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let id = listed(&admin, "Tickets", json!({})).await;
        let (one, rating) = (format!("{MARKET}/{id}"), format!("{MARKET}/{id}/rating"));
        let as_ada = gateway.as_member_of(&account, "sub-ada", None).await;
        let as_bob = gateway.as_member_of(&account, "sub-bob", None).await;
        let rate = async |client: &Client, stars: i64| {
            let item = client.post(&rating, json!({"rating": stars})).await.ok()["item"].clone();
            json!([item["rating"], item["rating_avg"], item["rating_count"]])
        };
        assert_eq!(rate(&as_ada, 5).await, json!([5, 5, 1]));
        assert_eq!(rate(&as_bob, 2).await, json!([2, 3.5, 2]));
        assert_eq!(rate(&as_ada, 3).await, json!([3, 2.5, 2]), "changed, not counted twice");
        assert_eq!(rate(&admin, 1).await, json!([1, 2, 3]));
        let item = admin.get(&one).await;
        assert_eq!(item.headers["etag"], "\"1\"", "no change of an admin's");
        let item = item.ok()["item"].clone();
        assert_eq!((&item["rating_avg"], &item["rating_count"]), (&json!(2), &json!(3)));
        assert_eq!(as_ada.get(&rating).await.ok()["item"]["rating"], 3);
        assert_eq!(as_ada.get("/me/marketplace").await.ok()["items"][0]["my_rating"], 3);
        assert_eq!(as_bob.delete(&rating).await.ok(), json!({"deleted": true}));
        assert_eq!(as_bob.delete(&rating).await.ok(), json!({"deleted": false}));
        let item = as_bob.get(&rating).await.ok()["item"].clone();
        assert_eq!((&item["rating"], &item["rating_avg"]), (&Value::Null, &json!(2)));
        for wrong in [json!(0), json!(6), json!(4.5), json!("5"), json!(null)] {
            assert_eq!(as_ada.post(&rating, json!({"rating": wrong})).await.json["errors"][0]["pointer"], "/rating");
        }
        // What an admin sets holds, and goes on from there.
        admin.patch(&one, json!({"rating_avg": 4, "rating_count": 9})).await.ok();
        assert_eq!(rate(&as_bob, 5).await, json!([5, 4.1, 10]));
        admin.patch(&one, json!({"visibility": "granted"})).await.ok();
        for refused in [as_ada.get(&rating).await, as_ada.post(&rating, json!({"rating": 1})).await] {
            assert_eq!(refused.refused(404), "Marketplace listing not found");
        }
    }
}

/// Ratings and installations of the same moment are all counted.
#[tokio::test]
async fn nothing_that_is_counted_is_lost() {
    for gateway in gateways(|app| app).await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let id = listed(&admin, "Tickets", json!({})).await;
        let mut clients = Vec::new();
        for number in 0..8 {
            let email = format!("u{number}@acme.com");
            admin.made("/copilot/users", json!({"email": email})).await;
            clients.push(gateway.as_member_of(&account, &format!("sub-{number}"), Some(&email)).await);
        }
        let all = clients.iter().map(async |client| {
            client.post(&format!("{MARKET}/{id}/install"), json!({})).await.ok();
            client.post(&format!("{MARKET}/{id}/rating"), json!({"rating": 4})).await.ok();
        });
        futures_util::future::join_all(all).await;
        let item = admin.get(&format!("{MARKET}/{id}")).await.ok()["item"].clone();
        assert_eq!(
            (&item["installation_count"], &item["rating_count"], &item["rating_avg"]),
            (&json!(8), &json!(8), &json!(4))
        );
    }
}

#[tokio::test]
async fn a_listing_goes_with_what_it_is_about() {
    for gateway in gateways(|app| app).await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let [_, team, _] = tree(&admin).await;
        let id = listed(&admin, "Tickets", json!({"grants": [{"scope_type": "team", "scope_id": team}]})).await;
        admin.post(&format!("{MARKET}/{id}/rating"), json!({"rating": 4})).await.ok();
        let about = admin.get(&format!("{MARKET}/{id}")).await.ok()["item"]["entity_id"].as_str().unwrap().to_owned();
        let helper = agent(&gateway, account.as_str(), "agent-1").await;
        admin.made(MARKET, json!({"entity_type": "agent", "entity_id": helper, "title": "Helper"})).await;
        admin.delete(&format!("/copilot/connections/{about}")).await.ok();
        assert_eq!(titles(&admin, MARKET).await, ["Helper"]);
        admin.delete("/copilot/agents/agent-1").await.ok();
        assert_eq!(admin.get(MARKET).await.ok()["total"], 0);
    }
}
