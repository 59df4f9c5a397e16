//! Agents: what they are, whom they are granted to, and the guardrails that they must have.

use serde_json::{Value, json};

use crate::gateway::{Client, gateways};

const AGENTS: &str = "/copilot/agents";

/// The id of a system preset.
pub(crate) async fn preset(client: &Client, code: &str) -> String {
    let presets = client.get("/copilot/guardrails/presets").await.ok();
    let mut items = presets["items"].as_array().unwrap().iter();
    items.find(|p| p["code"] == code).unwrap()["id"].as_str().unwrap().to_owned()
}

async fn agent(client: &Client, name: &str, grants: Value) -> String {
    let body = json!({"name": name, "guardrail_preset_ids": [preset(client, "pii").await], "grants": grants});
    client.made(AGENTS, body).await
}

#[tokio::test]
async fn an_agent_is_made_changed_and_removed_with_what_belongs_to_it() {
    for gateway in gateways(|app| app).await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let org = admin.made("/copilot/orgs", json!({"name": "Research"})).await;
        let (pii, toxic) = (preset(&admin, "pii").await, preset(&admin, "toxic").await);
        let scope = json!({"scope_type": "org", "scope_id": org});
        let body = json!({"name": " Desk ", "definition_json": {"model": "m"},
            "guardrail_preset_ids": [format!(" {pii} "), "", &pii, &toxic], "grants": [scope, scope]});
        let made = admin.post(AGENTS, body).await;
        assert_eq!(made.headers["etag"], "\"1\"");
        let made = made.ok()["item"].clone();
        assert_eq!((&made["name"], &made["description"]), (&json!("Desk"), &Value::Null));
        assert_eq!(made["mandatory_guardrail_preset_ids"].as_array().unwrap().len(), 2);
        assert_eq!((&made["grants"], &made["visibility"]), (&json!([scope]), &json!("granted")));
        let hidden = json!({"name": "Hidden", "guardrail_preset_ids": [toxic], "visibility": "granted"});
        let hidden = admin.post(AGENTS, hidden).await.ok()["item"].clone();
        assert_eq!((&hidden["grants"], &hidden["visibility"]), (&json!([]), &json!("granted")));
        admin.delete(&format!("{AGENTS}/{}", hidden["id"].as_str().unwrap())).await.ok();
        let both = json!({"name": "x", "guardrail_preset_ids": [toxic], "grants": [scope], "visibility": "account"});
        admin.post(AGENTS, both).await.refused(422);

        let one = format!("{AGENTS}/{}", made["id"].as_str().unwrap());
        assert_eq!(admin.get(&one).await.ok()["item"], made);
        let listed = admin.get(&format!("{AGENTS}?include_grants=true")).await.ok()["items"][0].clone();
        assert_eq!(listed, made);
        assert!(admin.get(AGENTS).await.ok()["items"][0]["grants"].is_null());

        admin.with("if-match", "\"9\"").put(&one, json!({"name": "x"})).await.refused(412);
        let change = json!({"description": "Answers", "guardrail_preset_ids": [toxic], "grants": []});
        let changed = admin.put(&one, change).await.ok()["item"].clone();
        assert_eq!((&changed["name"], &changed["description"]), (&json!("Desk"), &json!("Answers")));
        assert_eq!(changed["definition_json"], json!({"model": "m"}));
        assert_eq!(changed["mandatory_guardrail_preset_ids"], json!([toxic]));
        assert_eq!((&changed["grants"], &changed["visibility"]), (&json!([]), &json!("granted")), "closed");

        assert_eq!(admin.delete(&one).await.ok(), json!({"deleted": true}));
        assert_eq!(admin.delete(&one).await.refused(404), "Agent not found");
        let left = admin.get("/copilot/guardrails/assignments").await.ok();
        assert_eq!(left["items"], json!([]), "its guardrails' assignments went with it");
    }
}

#[tokio::test]
async fn an_agent_that_is_refused_leaves_nothing_behind() {
    for gateway in gateways(|app| app).await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let pii = preset(&admin, "pii").await;
        let kept = agent(&admin, "Kept", json!([])).await;
        let before = admin.get(&format!("{AGENTS}/{kept}")).await.ok();
        let needed = "At least one guardrail preset is required for agent creation/update";
        let of = |presets: Value, scope: (&str, &str)| {
            let grants = json!([{"scope_type": scope.0, "scope_id": scope.1}]);
            json!({"name": "New", "guardrail_preset_ids": presets, "grants": grants})
        };
        for (body, status, detail) in [
            (json!({"name": "New"}), 400, needed),
            (json!({"name": "New", "guardrail_preset_ids": [" "]}), 400, needed),
            (json!({"name": "New", "guardrail_preset_ids": [pii, "a", "b"]}), 404, "Guardrail preset not found: a,b"),
            (of(json!([pii]), ("account", "x")), 400, "scope_type must be one of: org,team,user"),
            (of(json!([pii]), ("org", " ")), 400, "scope_id is required for agent grants"),
            (of(json!([pii]), ("user", "gone")), 404, "copilot user not found"),
            (
                json!({"name": "New", "guardrail_preset_ids": vec![&pii; 101]}),
                422,
                "/guardrail_preset_ids: must be at most 100",
            ),
            (
                json!({"name": "New", "guardrail_preset_ids": [pii],
                    "grants": vec![json!({"scope_type": "org", "scope_id": "x"}); 1001]}),
                422,
                "/grants: must be at most 1000",
            ),
            (json!({"name": " "}), 422, "/name: is required and cannot be blank"),
        ] {
            assert_eq!(admin.post(AGENTS, body.clone()).await.refused(status), detail, "{body}");
            if body.as_object().unwrap().len() > 1 {
                assert_eq!(admin.put(&format!("{AGENTS}/{kept}"), body).await.refused(status), detail);
            }
        }
        assert_eq!(admin.get(AGENTS).await.column("id"), [kept.as_str()]);
        assert_eq!(admin.get(&format!("{AGENTS}/{kept}")).await.ok(), before);
    }
}

#[tokio::test]
async fn grants_come_and_go_and_the_last_one_opens_nothing() {
    for gateway in gateways(|app| app).await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let org = admin.made("/copilot/orgs", json!({"name": "Research"})).await;
        let team = admin.made("/copilot/teams", json!({"org_id": org, "name": "Language"})).await;
        admin.made("/copilot/users", json!({"email": "ada@acme.com", "team_ids": [team]})).await;
        let id = agent(&admin, "Desk", json!([])).await;
        let (one, grants) = (format!("{AGENTS}/{id}"), format!("{AGENTS}/{id}/grants"));
        let ada = gateway.as_member_of(&account, "sub-ada", Some("ada@acme.com")).await;
        let bob = gateway.as_member_of(&account, "sub-bob", None).await;
        let sees = async |who: &Client| !who.get("/me/agents").await.column("id").is_empty();
        assert!(sees(&ada).await && sees(&bob).await, "without grants it is everybody's");

        let to_team = json!({"scope_type": "team", "scope_id": team});
        // The first grant is everybody's matter, not only theirs who get it.
        let eve = admin.made("/copilot/users", json!({"email": "eve@acme.com"})).await;
        let trial = admin.post(&format!("{grants}?dry_run=true"), to_team.clone()).await.ok();
        assert_eq!((&trial["change_count"], &trial["users"]), (&json!(2), &json!(2)));
        let closed = &trial["changes"][1];
        assert_eq!((&closed["action"], &closed["resource_id"]), (&json!("update"), &json!(id)));
        assert_eq!(
            (&closed["before"]["visibility"], &closed["after"]["visibility"]),
            (&json!("account"), &json!("granted"))
        );
        assert_eq!((&closed["before"]["grants"], &closed["after"]["grants"]), (&json!([]), &json!([to_team])));
        assert!(sees(&bob).await);
        let grant = admin.post(&grants, to_team.clone()).await.ok()["item"].clone();
        assert_eq!(admin.post(&grants, to_team.clone()).await.ok()["item"], grant, "granted again");
        let event = &admin.get("/audit?resource=Alchemi_CopilotAgentTable").await.ok()["items"][0];
        assert_eq!((&event["action"], &event["object_id"]), (&json!("update"), &json!(id)));
        assert_eq!(event["updated_values"]["visibility"], "granted");
        let to_eve = json!({"scope_type": "user", "scope_id": eve});
        let trial = admin.post(&format!("{grants}?dry_run=true"), to_eve).await.ok();
        assert_eq!((&trial["change_count"], &trial["users"], &trial["sample"]), (&json!(1), &json!(1), &json!([eve])));
        assert_eq!(admin.get(&grants).await.column("scope_id"), [team.as_str()]);
        assert_eq!(admin.get(&one).await.ok()["item"]["grants"], json!([to_team]));
        assert!(sees(&ada).await && !sees(&bob).await);

        let of_team = format!("{grants}?scope_type=team&scope_id={team}");
        admin.delete(&format!("{of_team}&dry_run=true")).await.ok();
        assert!(sees(&ada).await);
        assert_eq!(admin.delete(&of_team).await.ok(), json!({"deleted": true}));
        assert_eq!(admin.delete(&of_team).await.ok(), json!({"deleted": false}));
        assert!(!sees(&ada).await && !sees(&bob).await, "nobody's, until it is opened");
        let read = admin.get(&one).await.ok()["item"].clone();
        admin.put(&one, json!({"grants": read["grants"], "visibility": read["visibility"]})).await.ok();
        assert!(!sees(&ada).await && !sees(&bob).await, "written back as it was read");
        let both = json!({"grants": [to_team], "visibility": "account"});
        assert_eq!(admin.put(&one, both).await.json["code"], "validation_failed");
        admin.post(&grants, to_team.clone()).await.ok();
        admin.put(&one, json!({"visibility": "account"})).await.ok();
        assert!(sees(&ada).await && sees(&bob).await);
        assert_eq!(admin.get(&grants).await.column("id"), [""; 0]);

        // So too when the scope itself goes.
        admin.post(&grants, to_team.clone()).await.ok();
        admin.delete(&format!("/copilot/orgs/{org}?cascade=true")).await.ok();
        assert_eq!(admin.get(&grants).await.column("id"), [""; 0]);
        assert!(!sees(&bob).await);

        assert_eq!(admin.post(&grants, to_team).await.refused(404), "copilot team not found");
        assert_eq!(admin.get(&format!("{AGENTS}/gone/grants")).await.refused(404), "Copilot agent not found");
        let odd = format!("{grants}?scope_type=account&scope_id=x");
        assert_eq!(admin.delete(&odd).await.refused(400), "scope_type must be one of: org,team,user");
    }
}

#[tokio::test]
async fn an_agent_is_tried_before_it_is_made_or_changed() {
    for gateway in gateways(|app| app).await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let org = admin.made("/copilot/orgs", json!({"name": "Research"})).await;
        admin.made("/copilot/users", json!({"email": "ada@acme.com"})).await;
        let body = json!({"name": "Desk", "guardrail_preset_ids": [preset(&admin, "pii").await]});
        let tried = admin.post(&format!("{AGENTS}?dry_run=true"), body.clone()).await.ok();
        assert_eq!((&tried["dry_run"], &tried["change_count"], &tried["users"]), (&json!(true), &json!(1), &json!(1)));
        assert_eq!(admin.get(AGENTS).await.column("id"), [""; 0]);
        let refused = admin.post(&format!("{AGENTS}?dry_run=true"), json!({"name": "Desk"})).await;
        assert_eq!(refused.json["code"], "guardrail_preset_required");

        let one = format!("{AGENTS}/{}", admin.made(AGENTS, body).await);
        let before = admin.get(&one).await.ok();
        let change = json!({"grants": [{"scope_type": "org", "scope_id": org}]});
        let tried = admin.put(&format!("{one}?dry_run=true"), change).await.ok();
        assert_eq!((&tried["change_count"], &tried["users"]), (&json!(1), &json!(1)));
        let of = |row: &str| tried["changes"][0][row]["visibility"].clone();
        assert_eq!((of("before"), of("after")), (json!("account"), json!("granted")));
        assert_eq!(admin.get(&one).await.ok(), before);
    }
}

/// Agents that name the same presets and scopes in opposite orders wait for each other, and none is given up.
#[tokio::test]
async fn locks_are_taken_in_one_order() {
    for gateway in gateways(|app| app).await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let (mut presets, mut grants) = (Vec::new(), Vec::new());
        for code in ["pii", "toxic", "jailbreak"] {
            presets.push(preset(&admin, code).await);
            let org = admin.made("/copilot/orgs", json!({"name": code})).await;
            grants.push(json!({"scope_type": "org", "scope_id": org}));
        }
        let there = json!({"name": "There", "guardrail_preset_ids": presets, "grants": grants});
        presets.reverse();
        grants.reverse();
        let back = json!({"name": "Back", "guardrail_preset_ids": presets, "grants": grants});
        for _ in 0..5 {
            let (there, back) = tokio::join!(admin.post(AGENTS, there.clone()), admin.post(AGENTS, back.clone()));
            for made in [there.ok(), back.ok()] {
                let shown = made["item"]["mandatory_guardrail_preset_ids"].as_array().unwrap();
                assert_eq!(shown.len(), presets.len());
                assert_eq!(made["item"]["grants"].as_array().unwrap().len(), grants.len());
            }
        }
    }
}
