//! What was used, and what it cost.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

use crate::common::{Client, Gateway, backends};
use crate::operations::NOBODY;
use crate::{at_mid_january, invalid, refusal, text};

const BASE: &str = "/v1/budgets/copilot";

async fn record(client: &Client, body: Value) -> Value {
    client.post(&format!("{BASE}/usage/record"), body).await.ok()["item"].clone()
}

#[tokio::test]
async fn usage_is_recorded_once_and_everywhere() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let terms = json!({"account_id": account, "monthly_credits": 10, "credit_factor": 2});
        gateway.operator().post("/v1/budgets/account-allocation", terms).await.ok();
        let org = gateway.org(&account, "copilot", "Research").await;
        let team = gateway.team(&account, "copilot", &org, "Language").await;
        let user = gateway.user(&account, "copilot", "ada", &[&team]).await;
        let plan = gateway.plan(&account).await;
        gateway.allot(&account, &plan, ("team", &team), "5").await;
        let admin = gateway.as_account_admin(&account);

        let path = format!("{BASE}/usage/record");
        let body = json!({"raw_cost": "2.000000001", "user_id": user, "model_name": "gpt-4o", "metadata": {"job": 7}});
        let send = || admin.send(admin.request(Method::POST, &path).header("idempotency-key", "k").json(&body));
        let item = send().await.ok()["item"].clone();
        assert_eq!(send().await.ok()["item"], item);
        assert_eq!((&item["org_id"], &item["team_id"], &item["user_id"]), (&json!(org), &json!(team), &json!(user)));
        assert_eq!((&item["metadata"], &item["cost_source"]), (&json!({"job": 7}), &json!("recorded")));
        let rows = gateway.ledger(&account).await;
        assert_eq!(rows.len(), 1);
        assert_eq!(
            (&rows[0]["raw_cost"], &rows[0]["credits_incurred"]),
            (&json!(2_000_000_001_i64), &json!(4_000_000_002_i64))
        );
        let counters = gateway.counters(&account).await;
        for scope in [("account", &account), ("org", &org), ("team", &team), ("user", &user)] {
            assert_eq!(counters[&(scope.0.to_owned(), scope.1.clone())], (4_000_000_002, 0), "{scope:?}");
        }
        let by_scope = admin.get(&format!("{BASE}/usage-by-scope")).await.text();
        assert!(by_scope.contains(r#""used":4.000000002"#), "{by_scope}");
        assert!(gateway.verify_books().await.differences.is_empty());

        // It has happened, cap or no cap.
        record(&admin, json!({"raw_cost": 100, "team_id": team})).await;
        let usage = admin.get(&format!("{BASE}/usage-by-scope?plan_id={plan}")).await.ok();
        assert_eq!(usage["items"][0]["overflow_used"].to_string(), "199.000000002");
        assert!(gateway.verify_books().await.differences.is_empty());
    }
}

#[tokio::test]
async fn what_usage_may_not_be() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let admin = gateway.as_account_admin(&account);
        let send = |body: Value| admin.post("/v1/budgets/copilot/usage/record", body);
        invalid(&send(json!({})).await, "/raw_cost");
        invalid(&send(json!({"raw_cost": -1})).await, "/raw_cost");
        invalid(&send(json!({"raw_cost": 1, "metadata": []})).await, "/metadata");
        invalid(&send(json!({"raw_cost": 1, "model_name": ""})).await, "/model_name");
        for field in ["org_id", "team_id", "user_id"] {
            refusal(&send(json!({"raw_cost": 1, field: NOBODY})).await, 404, "not_found");
        }
        send(json!({"raw_cost": 9_000_000_000_i64})).await.ok();
        invalid(&send(json!({"raw_cost": "0.000000001"})).await, "/raw_cost");
        assert_eq!(gateway.ledger(&account).await.len(), 1);
        assert!(gateway.verify_books().await.differences.is_empty());
    }
}

#[tokio::test]
async fn budgets_near_their_end_are_told() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        gateway.allocate(&account, "1000").await;
        let plan = gateway.plan(&account).await;
        let admin = gateway.as_account_admin(&account);
        for (name, cost) in [("A", 79), ("B", 80), ("C", 90), ("D", 100)] {
            let org = gateway.org(&account, "copilot", name).await;
            gateway.allot(&account, &plan, ("org", &org), "100").await;
            record(&admin, json!({"raw_cost": cost, "org_id": org})).await;
        }
        let alerts = async |query: &str| {
            let answer = admin.get(&format!("{BASE}/alerts{query}")).await.ok();
            let items = answer["items"].as_array().unwrap().clone();
            items
                .iter()
                .map(|a| format!("{} {} {}", text(&a["entity_name"]), text(&a["alert_level"]), a["usage_percentage"]))
                .collect::<Vec<_>>()
        };
        assert_eq!(alerts("").await, ["D exceeded 100.0", "C critical 90.0", "B warning 80.0"]);
        assert_eq!(alerts("?threshold=95").await, ["D exceeded 100.0"]);
        assert_eq!(alerts("?threshold=30").await.len(), 5, "the account too");
        let answer = admin.get(&format!("{BASE}/alerts?threshold=30")).await.ok();
        let own = answer["items"].as_array().unwrap().iter().find(|a| a["entity_name"] == "Acme").expect("the account");
        assert_eq!(own["budget"], json!({"entity_type": "ACCOUNT", "entity_id": account}));
    }
}

#[tokio::test]
async fn costs_are_broken_down() {
    for backend in backends().await {
        let (gateway, clock) = at_mid_january(backend).await;
        let account = gateway.account("Acme").await;
        let org = gateway.org(&account, "copilot", "Research").await;
        let admin = gateway.as_account_admin(&account);
        record(&admin, json!({"raw_cost": 1, "model_name": "a", "agent_id": "x", "org_id": org})).await;
        record(&admin, json!({"raw_cost": 2, "model_name": "b", "agent_id": "x"})).await;
        clock.advance(Duration::from_secs(24 * 3600));
        let admin = gateway.as_account_admin(&account);
        record(&admin, json!({"raw_cost": 4, "model_name": "a"})).await;

        let by = async |query: &str| {
            let answer = admin.get(&format!("{BASE}/cost-breakdown?{query}")).await.ok();
            answer["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|i| (i["key"].clone(), i["raw_cost"].clone()))
                .collect::<Vec<_>>()
        };
        assert_eq!(by("by=llm").await, [(json!("a"), json!(5)), (json!("b"), json!(2))]);
        assert_eq!(by("").await, [(json!(null), json!(4)), (json!("x"), json!(3))], "by agent unless said");
        assert_eq!(by("by=llm&from=2026-01-16").await, [(json!("a"), json!(4))]);
        refusal(&admin.get(&format!("{BASE}/cost-breakdown?by=weather")).await, 400, "invalid_breakdown");

        let path = "/v1/costs/breakdown";
        let whole = admin.get(path).await.ok();
        assert_eq!(
            (&whole["domain"], &whole["totals"]["raw_cost"], &whole["totals"]["requests"]),
            (&json!("copilot"), &json!(7), &json!(3))
        );
        let days = admin.get(&format!("{path}?group_by=day,llm")).await.ok();
        assert_eq!(days["items"].as_array().unwrap().len(), 3);
        assert_eq!((&days["items"][0]["day"], &days["items"][0]["model_name"]), (&json!("2026-01-16"), &json!("a")));
        assert!(days["items"][0].get("agent_id").is_none());
        let first = admin.get(&format!("{path}?group_by=day,llm&limit=2")).await.ok();
        assert_eq!(
            (&first["next_offset"], &first["totals"]["raw_cost"]),
            (&json!(2), &json!(7)),
            "the sum is of all pages"
        );
        let rest = admin.get(&format!("{path}?group_by=day,llm&limit=2&offset=2")).await.ok();
        assert_eq!((rest["items"].as_array().unwrap().len(), &rest["next_offset"]), (1, &json!(null)));
        assert_eq!(admin.get(&format!("{path}?org_id={org}")).await.ok()["totals"]["raw_cost"], 1);
        assert_eq!(admin.get(&format!("{path}?org_id={NOBODY}")).await.ok()["items"], json!([]));
        assert_eq!(admin.get(&format!("{path}?domain=console")).await.ok()["totals"]["requests"], 0);
        for (span, cost) in
            [("from=2026-01-15&to=2026-01-15", 3), ("to=2026-01-16T00:00:00Z", 3), ("from=2026-01-16T23:59:59Z", 4)]
        {
            assert_eq!(admin.get(&format!("{path}?{span}")).await.ok()["totals"]["raw_cost"], cost, "{span}");
        }
        invalid(&admin.get(&format!("{path}?group_by=llm,weather")).await, "group_by");
        invalid(&admin.get(&format!("{path}?group_by=llm,day,org,team")).await, "group_by");
        invalid(&admin.get(&format!("{path}?from=2026-13-01")).await, "from");
    }
}

#[tokio::test]
async fn a_caller_sees_their_own_usage_alone() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let (ada, bob) =
            (gateway.user(&account, "copilot", "ada", &[]).await, gateway.user(&account, "copilot", "bob", &[]).await);
        let admin = gateway.as_account_admin(&account);
        for (user, cost) in [(&ada, 1), (&ada, 2), (&bob, 4)] {
            record(&admin, json!({"raw_cost": cost, "user_id": user})).await;
        }
        let mine = gateway.as_end_user(&account, "ada").get("/v1/me/usage").await.ok();
        assert_eq!((&mine["totals"]["requests"], &mine["totals"]["raw_cost"]), (&json!(2), &json!(3)));
        assert_eq!(mine["items"].as_array().unwrap().len(), 2);
        assert!(mine["items"].as_array().unwrap().iter().all(|item| item["user_id"] == ada));
        let page = gateway.as_end_user(&account, "ada").get("/v1/me/usage?limit=1").await.ok();
        let next = format!("/v1/me/usage?limit=1&cursor={}", text(&page["next_cursor"]));
        assert_eq!(gateway.as_end_user(&account, "ada").get(&next).await.ok()["items"][0], mine["items"][1]);
        let stranger = gateway.as_end_user(&account, "eve").get("/v1/me/usage").await.ok();
        assert_eq!((&stranger["totals"], &stranger["items"]), (&json!(null), &json!([])));
    }
}

/// Self-service is of one domain: the one that is named, else the only one of the token, else the gateway's default.
#[tokio::test]
async fn self_service_is_of_one_domain() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let domain = async |client: &Client, path: &str, header: Option<&str>| {
            let request = client.request(Method::GET, path);
            let request = header.into_iter().fold(request, |r, domain| r.header("x-alchemi-domain", domain));
            client.send(request).await
        };
        let both = gateway.as_end_user(&account, "eve");
        let one = gateway.sign_in(&crate::common::Person::of(&account, "con").domains(&["console"]));
        let path = "/v1/me/models";
        assert_eq!(domain(&both, path, None).await.ok()["domain"], "copilot");
        assert_eq!(domain(&both, path, Some("console")).await.ok()["domain"], "console");
        assert_eq!(domain(&both, "/v1/me/models?domain=copilot", Some("console")).await.ok()["domain"], "copilot");
        assert_eq!(domain(&one, path, None).await.ok()["domain"], "console");
        refusal(&domain(&one, path, Some("copilot")).await, 403, "domain_denied");
        refusal(&domain(&both, path, Some("sales")).await, 400, "invalid_header");
        invalid(&domain(&both, "/v1/me/models?domain=sales", None).await, "domain");
    }
}
