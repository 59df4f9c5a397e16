//! Lists: every page once, whatever happened in the same moment.

use serde_json::{Value, json};

use crate::common::{Client, backends};
use crate::{at_mid_january, ids, text};

/// The items of a list, page by page.
async fn walk(client: &Client, path: &str, limit: usize) -> Vec<Value> {
    let (mut items, mut cursor) = (Vec::new(), None::<String>);
    for _ in 0..200 {
        let joint = if path.contains('?') { '&' } else { '?' };
        let after = cursor.map(|cursor| format!("&cursor={cursor}")).unwrap_or_default();
        let page = client.get(&format!("{path}{joint}limit={limit}{after}")).await.ok();
        let found = page["items"].as_array().unwrap();
        assert!(found.len() <= limit);
        items.extend(found.iter().cloned());
        match &page["next_cursor"] {
            Value::String(next) => {
                assert_eq!(found.len(), limit, "a page before the last is full");
                cursor = Some(next.clone());
            }
            end => {
                assert!(end.is_null());
                return items;
            }
        }
    }
    panic!("{path} does not end");
}

/// Time stands still: every row has the same `created_at`, and only its id tells it from the others.
#[tokio::test]
async fn pages_hold_every_row_once_when_all_are_of_one_moment() {
    for backend in backends().await {
        let (gateway, _) = at_mid_january(backend).await;
        let account = gateway.account("Acme").await;
        let operator = gateway.operator_for(&account);
        let post = async |path: &str, body: Value| operator.post(path, body).await.ok();

        let mut paths =
            vec!["/v1/accounts".to_owned(), "/v1/audit".to_owned(), format!("/v1/accounts/{account}/audit")];
        for number in 0..7 {
            gateway.account(&format!("Account {number}")).await;
            let admin = json!({"user_email": format!("ada{number}@acme.com")});
            post(&format!("/v1/accounts/{account}/admins"), admin).await;
            post("/v1/auth/revocations", json!({"subject": format!("subject {number}")})).await;
            post("/v1/budgets/copilot/plans", json!({"name": format!("plan {number}")})).await;
        }
        paths.extend([format!("/v1/accounts/{account}/admins"), "/v1/auth/revocations".to_owned()]);
        paths.extend(["/v1/budgets/copilot/plans".to_owned(), "/v1/budgets/copilot/cycles/history".to_owned()]);
        let plan = text(&operator.get("/v1/budgets/copilot/plans/active").await.ok()["item"]["id"]);
        for domain in ["console", "copilot"] {
            let mut teams = Vec::new();
            for number in 0..7 {
                let org = gateway.org(&account, domain, &format!("org {number}")).await;
                teams.push(gateway.team(&account, domain, &org, "team").await);
                gateway.grant(&account, domain, &format!("model-{number}"), ("org", &org), "allow").await;
                let feature = json!({"domain": domain, "feature_code": "f", "scope_type": "org", "scope_id": org});
                post("/v1/features/entitlements", feature).await;
                if domain == "copilot" {
                    gateway.allot(&account, &plan, ("org", &org), "1").await;
                    let over = json!({"plan_id": plan, "scope_type": "org", "scope_id": org, "override_credits": 1});
                    post("/v1/budgets/copilot/overrides", over).await;
                    post("/v1/budgets/copilot/usage/record", json!({"raw_cost": 1, "org_id": org})).await;
                }
            }
            for number in 0..7 {
                gateway.user(&account, domain, &format!("user {number}"), &[&teams[0]]).await;
            }
            paths.extend(["orgs", "teams", "users", "models/grants"].map(|kind| format!("/v1/{domain}/{kind}")));
            paths.push(format!("/v1/{domain}/teams/{}/members", teams[0]));
            paths.push(format!("/v1/features/entitlements?domain={domain}"));
        }
        let preset = operator.get("/v1/copilot/guardrails/presets?limit=1").await.ok()["items"][0]["id"].clone();
        for number in 0..7 {
            let (agent, code) = (format!("agent {number}"), format!("preset-{number}"));
            let agent = post("/v1/copilot/agents", json!({"name": agent, "guardrail_preset_ids": [preset]})).await;
            post("/v1/copilot/guardrails/presets", json!({"code": code, "name": code})).await;
            let assignment = json!({"preset_id": preset, "scope_type": "agent", "scope_id": agent["item"]["id"]});
            post("/v1/copilot/guardrails/assignments", assignment).await;
        }
        let guardrails = ["presets", "patterns", "assignments"].map(|kind| format!("/v1/copilot/guardrails/{kind}"));
        paths.extend(guardrails);
        paths.extend(["/v1/copilot/agents".to_owned(), "/v1/me/agents".to_owned()]);
        let connection = json!({"name": "shared"});
        let shared = text(&post("/v1/copilot/connections/mcp", connection.clone()).await["item"]["id"]);
        let shared = format!("/v1/copilot/connections/{shared}/grants");
        let mut first = None;
        for number in 0..7 {
            let made = post("/v1/copilot/connections/openapi", connection.clone()).await;
            let listing =
                json!({"entity_type": "connection", "entity_id": made["item"]["id"], "title": format!("{number}")});
            let made = post("/v1/copilot/marketplace", listing).await;
            first = first.or_else(|| made["item"]["id"].as_str().map(str::to_owned));
            let org = gateway.org(&account, "copilot", &format!("granted {number}")).await;
            post(&shared, json!({"scope_type": "org", "scope_id": org})).await;
            let listing = format!("/v1/copilot/marketplace/{}", first.as_deref().unwrap());
            for what in ["grants", "install"] {
                post(&format!("{listing}/{what}"), json!({"scope_type": "org", "scope_id": org})).await;
            }
        }
        let listing = format!("/v1/copilot/marketplace/{}", first.unwrap());
        // Everybody sees it again, after it was granted to some.
        operator.patch(&listing, json!({"visibility": "global"})).await.ok();
        paths.extend(["", "/discover"].map(|list| format!("/v1/copilot/marketplace{list}")));
        paths.extend(["/v1/me/marketplace".to_owned(), format!("{listing}/grants"), format!("{listing}/install")]);
        paths.extend(["/v1/copilot/connections".to_owned(), shared]);
        let budgets = ["allocations", "overrides", "usage-by-scope", "effective-allocation", "alerts?threshold=1"];
        paths.extend(budgets.map(|list| format!("/v1/budgets/copilot/{list}")));
        paths.push("/v1/costs/entries".to_owned());
        for number in 0..7 {
            let renewal = json!({
                "cycle_start": format!("2025-0{}-01T00:00:00Z", number + 1),
                "cycle_end": format!("2025-0{}-01T00:00:00Z", number + 2),
            });
            post("/v1/budgets/copilot/cycles/renew", renewal).await;
        }

        for path in &paths {
            let joint = if path.contains('?') { '&' } else { '?' };
            let whole = operator.get(&format!("{path}{joint}limit=1000")).await.ok();
            let all = whole["items"].as_array().unwrap();
            assert!(whole["next_cursor"].is_null() && all.len() >= 7, "{path}: {whole}");
            for limit in [1, 3, all.len(), all.len() + 1] {
                assert_eq!(&walk(&operator, path, limit).await, all, "{path} by {limit}");
            }
            let skipped = operator.get(&format!("{path}{joint}limit=1000&offset=2")).await.ok();
            assert_eq!(skipped["items"].as_array().unwrap()[..], all[2..], "{path}");
        }
    }
}

#[tokio::test]
async fn a_list_is_newest_first_and_a_cursor_outlives_changes() {
    for backend in backends().await {
        let (gateway, clock) = at_mid_january(backend).await;
        let account = gateway.account("Acme").await;
        let admin = gateway.as_account_admin(&account);
        let mut made = Vec::new();
        for number in 0..6 {
            made.insert(0, gateway.org(&account, "console", &format!("org {number}")).await);
            clock.advance(std::time::Duration::from_micros(1));
        }
        let first = admin.get("/v1/console/orgs?limit=3").await.ok();
        assert_eq!(ids(&first), made[..3]);

        // A newer row, and the row that the cursor stands on is gone.
        gateway.org(&account, "console", "newer").await;
        admin.delete(&format!("/v1/console/orgs/{}", made[2])).await.ok();
        let rest = admin.get(&format!("/v1/console/orgs?cursor={}", text(&first["next_cursor"]))).await.ok();
        assert_eq!(ids(&rest), made[3..]);
    }
}

#[tokio::test]
async fn lists_have_their_default_length() {
    for backend in backends().await {
        let (gateway, _) = at_mid_january(backend).await;
        let account = gateway.account("Acme").await;
        let admin = gateway.as_account_admin(&account);
        for number in 0..101 {
            let body = json!({"email": format!("u{number}@acme.com")});
            admin.post("/v1/console/users", body).await.ok();
        }
        assert_eq!(admin.get("/v1/console/users").await.ok()["items"].as_array().unwrap().len(), 101);
        let audit = admin.get("/v1/audit").await.ok();
        assert_eq!(audit["items"].as_array().unwrap().len(), 100);
        assert!(audit["next_cursor"].is_string());
    }
}
