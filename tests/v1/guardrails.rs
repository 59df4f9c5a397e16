//! Guardrails: presets, their patterns, and the scopes that they are assigned to.

use serde_json::{Value, json};

use crate::agents::preset;
use crate::gateway::gateways;

const PRESETS: &str = "/copilot/guardrails/presets";
const PATTERNS: &str = "/copilot/guardrails/patterns";
const ASSIGNMENTS: &str = "/copilot/guardrails/assignments";

fn pattern(name: &str, regex: &str) -> Value {
    json!({"guard_type": "pii", "pattern_name": name, "pattern_regex": regex, "pattern_type": "detect"})
}

#[tokio::test]
async fn an_account_has_the_system_presets_from_its_start() {
    for gateway in gateways(|app| app).await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let mut codes = admin.get(PRESETS).await.column("code");
        codes.sort_unstable();
        assert_eq!(codes, ["jailbreak", "pii", "toxic"]);
        let patterns = admin.get(PATTERNS).await.ok();
        assert_eq!(patterns["total"], patterns["items"].as_array().unwrap().len());
        assert!(patterns["items"].as_array().unwrap().iter().all(|p| p["is_system"] == true && p["enabled"] == true));
        let pii = admin.get(&format!("{PATTERNS}?guard_type=pii")).await.column("pattern_name");
        assert!(
            ["email", "phone", "payment_card", "iban", "private_key"].iter().all(|n| pii.contains(&(*n).to_owned()))
        );

        // They can be switched off, and nothing else.
        let id = admin.get(&format!("{PATTERNS}?guard_type=toxic&limit=1")).await.column("id").remove(0);
        let one = format!("{PATTERNS}/{id}");
        assert_eq!(admin.put(&one, json!({"enabled": false})).await.ok()["item"]["enabled"], false);
        assert_eq!(admin.get(&format!("{PATTERNS}?enabled=false")).await.column("id"), [id]);
        for body in [json!({}), json!({"pattern_name": "x"}), json!({"enabled": true, "pattern_regex": "x"})] {
            assert_eq!(admin.put(&one, body).await.refused(400), "System patterns can only toggle enabled");
        }
        assert_eq!(admin.delete(&one).await.refused(403), "System patterns cannot be deleted");
        let system = format!("{PRESETS}/{}", preset(&admin, "pii").await);
        assert_eq!(admin.delete(&system).await.refused(403), "System presets cannot be deleted");
    }
}

#[tokio::test]
async fn patterns_are_added_changed_and_removed() {
    for gateway in gateways(|app| app).await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let body = json!({"guard_type": " PII ", "pattern_name": "customer", "pattern_regex": "C-[0-9]{8}",
            "pattern_type": "detect", "action": "mask"});
        let tried = admin.post(&format!("{PATTERNS}?dry_run=true"), body.clone()).await.ok();
        assert_eq!(tried["change_count"], 1);
        let made = admin.post(PATTERNS, body.clone()).await.ok()["item"].clone();
        assert_eq!(
            (&made["guard_type"], &made["is_system"], &made["enabled"]),
            (&json!("pii"), &json!(false), &json!(true))
        );
        assert_eq!(made["preset_id"], json!(preset(&admin, "pii").await));
        let taken = admin.post(PATTERNS, body).await;
        assert_eq!((&taken.json["code"], &taken.json["field"]), (&json!("already_exists"), &json!("pattern_name")));
        taken.refused(409);

        let one = format!("{PATTERNS}/{}", made["id"].as_str().unwrap());
        let shown = admin.get(&format!("{PRESETS}/{}", made["preset_id"].as_str().unwrap())).await.ok()["item"].clone();
        assert_eq!(shown["preset_json"], json!({"config": {}, "custom_patterns": [made]}));
        let change = json!({"pattern_regex": "C-[0-9]{9}", "action": null, "pattern_type": "block"});
        let changed = admin.put(&one, change).await.ok()["item"].clone();
        assert_eq!((&changed["action"], &changed["pattern_name"]), (&Value::Null, &json!("customer")));
        admin.with("if-match", "\"1\"").delete(&one).await.refused(412);
        assert_eq!(admin.delete(&one).await.ok(), json!({"deleted": true}));
        assert_eq!(admin.get(&one).await.refused(404), "Pattern not found");
    }
}

#[tokio::test]
async fn a_pattern_is_refused_with_the_reason() {
    for gateway in gateways(|app| app).await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let with = |name: &str, value: Value| {
            let mut body = pattern("p", "p");
            body[name] = value;
            body
        };
        let types = "pattern_type must be one of: detect,block,allow";
        for (body, status, detail) in [
            (with("guard_type", json!("other")), 400, "guard_type must be one of: pii,toxic,jailbreak"),
            (with("pattern_type", json!("mask")), 400, types),
            (with("preset_id", json!("gone")), 404, "Guardrail preset not found"),
            (pattern("p", "a(b"), 422, "/pattern_regex: is not a regular expression at character 2: unclosed group"),
            (pattern("p", "a*"), 422, "/pattern_regex: must not match the empty text"),
            (pattern("p", ""), 422, "/pattern_regex: must have 1 to 1024 bytes"),
            (
                with("action", json!("allow")),
                422,
                "/action: must be left out, or allow, where pattern_type is allow, and only there",
            ),
        ] {
            assert_eq!(admin.post(PATTERNS, body).await.refused(status), detail);
        }
        let huge = admin.post(PATTERNS, pattern("p", "(a{1000}){1000}")).await.refused(422);
        assert!(huge.starts_with("/pattern_regex: is too large once compiled"), "{huge}");
        assert_eq!(
            admin.get(&format!("{PATTERNS}?guard_type=PII")).await.refused(400),
            "guard_type must be one of: pii,toxic,jailbreak"
        );
    }
}

#[tokio::test]
async fn a_preset_posted_again_keeps_its_patterns() {
    for gateway in gateways(|app| app).await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let body = json!({"code": "finance", "name": "Finance", "preset_json": {"config": {"level": 1}}});
        let made = admin.post(PRESETS, body).await.ok()["item"].clone();
        let id = made["id"].as_str().unwrap();
        let mut own = pattern("ledger", "L-[0-9]+");
        own["preset_id"] = json!(id);
        let own = admin.made(PATTERNS, own).await;
        let shown = admin.get(&format!("{PRESETS}/{id}")).await.ok()["item"].clone();

        // What was shown may come back; it is no second way to make patterns.
        let again = json!({"code": "finance", "name": "Money", "preset_json": shown["preset_json"]});
        let again = admin.post(PRESETS, again).await.ok()["item"].clone();
        assert_eq!((&again["id"], &again["name"]), (&json!(id), &json!("Money")));
        assert_eq!(again["preset_json"], shown["preset_json"]);
        assert_eq!(again["preset_json"]["custom_patterns"][0]["id"], json!(own));
        let more =
            json!({"code": "finance", "name": "Money", "preset_json": {"custom_patterns": [{"pattern_regex": "x"}]}});
        let refused = admin.post(PRESETS, more).await;
        assert_eq!(refused.json["errors"][0]["pointer"], "/preset_json/custom_patterns/0");
        refused.refused(422);

        admin.delete(&format!("{PRESETS}/{id}?dry_run=true")).await.ok();
        assert_eq!(admin.delete(&format!("{PRESETS}/{id}")).await.ok(), json!({"deleted": true}));
        assert_eq!(admin.get(&format!("{PATTERNS}/{own}")).await.refused(404), "Pattern not found");
    }
}

#[tokio::test]
async fn assignments_are_unique_and_agents_keep_one() {
    for gateway in gateways(|app| app).await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let (pii, own) = (preset(&admin, "pii").await, json!({"code": "own", "name": "Own"}));
        let own = admin.made(PRESETS, own).await;
        let body = json!({"preset_id": pii, "scope_type": "account", "scope_id": account.as_str()});
        let first = admin.made(ASSIGNMENTS, body.clone()).await;
        assert_eq!(admin.made(ASSIGNMENTS, body).await, first);
        let agent = admin.made("/copilot/agents", json!({"name": "Desk", "guardrail_preset_ids": [own]})).await;
        let of_agent = format!("{ASSIGNMENTS}?scope_type=agent&scope_id={agent}");
        let mandatory = admin.get(&of_agent).await.column("id");
        assert_eq!(mandatory.len(), 1);
        let last = format!("{ASSIGNMENTS}/{}", mandatory[0]);
        assert_eq!(admin.delete(&last).await.json["code"], "guardrail_preset_required");
        let only = admin.delete(&format!("{PRESETS}/{own}")).await;
        assert_eq!((&only.json["code"], &only.json["agent_id"]), (&json!("guardrail_preset_required"), &json!(agent)));
        let to_agent = json!({"preset_id": pii, "scope_type": "agent", "scope_id": agent});
        admin.made(ASSIGNMENTS, to_agent).await;
        let shown = admin.get(&format!("/copilot/agents/{agent}")).await.ok()["item"].clone();
        assert_eq!(shown["mandatory_guardrail_preset_ids"], json!([own, pii]));
        assert_eq!(admin.delete(&last).await.ok(), json!({"deleted": true}));
        assert_eq!(admin.delete(&format!("{PRESETS}/{own}")).await.ok(), json!({"deleted": true}));

        let odd = |preset: &str, kind: &str, id: &str| json!({"preset_id": preset, "scope_type": kind, "scope_id": id});
        for (body, status, detail) in [
            (odd(&pii, "pool", "x"), 400, "scope_type must be one of: account,agent,org,team,user"),
            (odd(&pii, "agent", "gone"), 404, "Copilot agent not found"),
            (odd(&pii, "team", "gone"), 404, "copilot team not found"),
            (odd("gone", "account", account.as_str()), 404, "Guardrail preset not found"),
        ] {
            assert_eq!(admin.post(ASSIGNMENTS, body).await.refused(status), detail);
        }
        let half = format!("{ASSIGNMENTS}?scope_type=team");
        assert_eq!(admin.get(&half).await.refused(400), "scope_id is required when scope_type is provided");
        assert_eq!(admin.delete(&format!("{ASSIGNMENTS}/gone")).await.refused(404), "Guardrail assignment not found");
    }
}

#[tokio::test]
async fn the_union_of_a_chain_holds() {
    for gateway in gateways(|app| app).await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let org = admin.made("/copilot/orgs", json!({"name": "Research"})).await;
        let [pii, toxic, jailbreak] =
            [preset(&admin, "pii").await, preset(&admin, "toxic").await, preset(&admin, "jailbreak").await];
        let agent = admin.made("/copilot/agents", json!({"name": "Desk", "guardrail_preset_ids": [jailbreak]})).await;
        for (preset, kind, id) in [(&pii, "account", account.as_str()), (&toxic, "org", &org), (&pii, "org", &org)] {
            let body = json!({"preset_id": preset, "scope_type": kind, "scope_id": id});
            admin.made(ASSIGNMENTS, body).await;
        }
        let found = admin.get(&format!("/copilot/guardrails/effective?org_id={org}&agent_id={agent}")).await.ok();
        let items = found["items"].as_array().unwrap();
        let from: Vec<_> =
            items.iter().map(|i| (i["code"].as_str().unwrap(), i["source_scope_type"].as_str().unwrap())).collect();
        assert_eq!(from, [("jailbreak", "agent"), ("toxic", "org"), ("pii", "org"), ("pii", "account")]);
        let order = found["resolution_order"].as_array().unwrap();
        assert_eq!(
            order.iter().map(|s| s["scope_type"].as_str().unwrap()).collect::<Vec<_>>(),
            ["agent", "org", "account"]
        );
        let least = admin.get("/copilot/guardrails/effective").await.ok();
        assert_eq!(least["items"].as_array().unwrap().len(), 1);
        let gone = admin.get("/copilot/guardrails/effective?agent_id=gone").await;
        assert_eq!(gone.refused(404), "Copilot agent not found");

        // What is assigned to a scope goes with it.
        admin.delete(&format!("/copilot/orgs/{org}?cascade=true")).await.ok();
        let left = admin.get(ASSIGNMENTS).await.column("scope_type");
        assert_eq!(left, ["account", "agent"]);
    }
}

/// Of two presets, one goes as a whole and the other from the agent: only the first to come gets its way.
#[tokio::test]
async fn an_agent_keeps_a_guardrail_whatever_goes_at_once() {
    for gateway in gateways(|app| app).await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let pii = preset(&admin, "pii").await;
        for round in 0..10 {
            let own = admin.made(PRESETS, json!({"code": format!("own-{round}"), "name": "Own"})).await;
            let body = json!({"name": format!("Desk {round}"), "guardrail_preset_ids": [own, pii]});
            let agent = admin.made("/copilot/agents", body).await;
            let assigned = admin.get(&format!("{ASSIGNMENTS}?scope_type=agent&scope_id={agent}")).await.ok();
            let mut assigned = assigned["items"].as_array().unwrap().iter();
            let of_pii = assigned.find(|a| a["preset_id"] == json!(pii)).unwrap()["id"].as_str().unwrap().to_owned();
            let (one, other) = (format!("{PRESETS}/{own}"), format!("{ASSIGNMENTS}/{of_pii}"));
            let (of_preset, of_assignment) = tokio::join!(admin.delete(&one), admin.delete(&other));
            let left = match (of_preset.status, of_assignment.status) {
                (200, 409) => &pii,
                (409, 200) => &own,
                both => panic!("{both:?}: {} {}", of_preset.json, of_assignment.json),
            };
            let shown = admin.get(&format!("/copilot/agents/{agent}")).await;
            assert_eq!(shown.headers["etag"], "\"2\"", "its guardrails belong to its version");
            assert_eq!(shown.ok()["item"]["mandatory_guardrail_preset_ids"], json!([left]));
        }
    }
}
