//! What was used, what it cost, and what holds for the caller.

use std::time::Duration;

use alchemi::clock::Clock as _;
use serde_json::{Value, json};

use crate::budgets::{give, plan, tree};
use crate::gateway::{Client, Gateway, Reply, gateways, gateways_at_rest};

const BUDGETS: &str = "/budgets/copilot";

/// An account with a plan that gives its org, team and user something, at two credits a dollar.
struct Acme {
    operator: Client,
    admin: Client,
    ada: Client,
    ids: [String; 3],
    plan: String,
}

async fn acme(gateway: &Gateway) -> Acme {
    let account = gateway.account("Acme").await;
    let terms = json!({"account_id": account, "monthly_credits": 100, "overflow_limit": 10, "credit_factor": 2});
    gateway.as_operator(None).post("/budgets/account-allocation", terms).await.ok();
    let admin = gateway.as_admin_of(&account).await;
    let ids = tree(&admin).await;
    let plan = plan(&admin, json!({"name": "2026", "cycle": "none"})).await;
    for (kind, id, credits) in [("org", &ids[0], 50), ("team", &ids[1], 40), ("user", &ids[2], 10)] {
        give(&admin, &plan, (kind, id), json!(credits)).await.ok();
    }
    let ada = gateway.as_member_of(&account, "ada", Some("ada@acme.com")).await;
    Acme { operator: gateway.as_operator(Some(&account)), admin, ada, ids, plan }
}

impl Acme {
    async fn record(&self, body: Value) -> Reply {
        self.admin.post(&format!("{BUDGETS}/usage/record"), body).await
    }
}

fn column<'a>(answer: &'a Value, name: &str) -> Vec<&'a Value> {
    answer["items"].as_array().unwrap().iter().map(|item| &item[name]).collect()
}

#[tokio::test]
async fn recorded_usage_draws_on_the_whole_chain() {
    for gateway in gateways(|app| app).await {
        let acme = acme(&gateway).await;
        let [org, team, user] = &acme.ids;
        let body =
            json!({"user_id": user, "raw_cost": "4.500000001", "model_name": "gpt-4o-mini", "metadata": {"job": 7}});
        let row = acme.record(body).await.ok();
        let item = &row["item"];
        assert_eq!(item["credits_incurred"].to_string(), "9.000000002");
        assert_eq!((&item["team_id"], &item["org_id"]), (&json!(team), &json!(org)));
        assert_eq!((&item["cost_source"], &item["metadata"]), (&json!("recorded"), &json!({"job": 7})));

        let chain = acme.admin.get(&format!("{BUDGETS}/effective-allocation?user_id={user}")).await.ok();
        assert_eq!(column(&chain, "scope_type"), ["user", "team", "org", "account"]);
        assert_eq!(column(&chain, "cap"), [10, 40, 50, 110]);
        let used: Vec<String> = column(&chain, "used").iter().map(ToString::to_string).collect();
        assert_eq!(used, ["9.000000002"; 4]);
        assert_eq!(chain["items"][0]["remaining"].to_string(), "0.999999998");
        assert_eq!(chain["distributed"], Value::Null);
        assert_eq!(
            acme.ada.get("/me/allocation").await.ok(),
            chain,
            "the caller sees their own chain as the admin does"
        );

        let usage = acme.admin.get(&format!("{BUDGETS}/usage-by-scope")).await.ok();
        assert_eq!(usage["plan_id"], json!(acme.plan));
        assert_eq!(column(&usage, "scope_type"), ["user", "team", "org"]);
        assert_eq!(column(&usage, "allocated_credits"), [10, 40, 50]);
        acme.record(json!({"team_id": team, "raw_cost": 1})).await.ok();
        let whole = acme.admin.get(&format!("{BUDGETS}/effective-allocation?plan_id={}", acme.plan)).await.ok();
        let used: Vec<String> = column(&whole, "used").iter().map(ToString::to_string).collect();
        assert_eq!(used, ["9.000000002", "11.000000002", "11.000000002"]);
        assert_eq!((&whole["distributed"], &whole["unallocated"]), (&json!(50), &json!(50)));
    }
}

#[tokio::test]
async fn usage_that_cannot_be_is_refused() {
    for gateway in gateways(|app| app).await {
        let acme = acme(&gateway).await;
        let [_, team, user] = &acme.ids;
        acme.record(json!({"raw_cost": -1})).await.refused(422);
        acme.record(json!({})).await.refused(422);
        acme.record(json!({"raw_cost": 9_000_000_000_u64})).await.refused(422);
        acme.record(json!({"raw_cost": 4_000_000_000_u64})).await.ok();
        acme.record(json!({"raw_cost": 4_000_000_000_u64})).await.refused(422);
        let lost = acme.record(json!({"raw_cost": 1, "team_id": user})).await;
        assert_eq!(lost.refused(404), "copilot team not found");
        let other = acme.admin.made("/copilot/orgs", json!({"name": "Sales"})).await;
        acme.record(json!({"raw_cost": 1, "team_id": team, "org_id": other})).await.refused(422);
        let stranger = gateway.as_admin_of(&gateway.account("Beta").await).await;
        let foreign = stranger.post(&format!("{BUDGETS}/usage/record"), json!({"raw_cost": 1, "user_id": user})).await;
        assert_eq!(foreign.refused(404), "copilot user not found");
        stranger.get(&format!("{BUDGETS}/effective-allocation?plan_id={}", acme.plan)).await.refused(404);
        stranger.get(&format!("{BUDGETS}/effective-allocation?user_id={user}")).await.refused(404);
        stranger.get(&format!("{BUDGETS}/usage-by-scope?plan_id={}", acme.plan)).await.refused(404);
        let none = stranger.get(&format!("{BUDGETS}/usage-by-scope")).await.ok();
        assert_eq!(none, json!({"plan_id": null, "items": [], "next_cursor": null}));
    }
}

#[tokio::test]
async fn alerts_name_whose_budget_nears_its_end() {
    for gateway in gateways(|app| app).await {
        let acme = acme(&gateway).await;
        let [_, team, user] = &acme.ids;
        acme.record(json!({"user_id": user, "raw_cost": "4.6"})).await.ok();
        acme.record(json!({"team_id": team, "raw_cost": "13.4"})).await.ok();
        let alerts = acme.admin.get(&format!("{BUDGETS}/alerts")).await.ok();
        assert_eq!(column(&alerts, "entity_name"), ["ada@acme.com", "Language"]);
        assert_eq!(column(&alerts, "alert_level"), ["critical", "critical"]);
        assert_eq!(alerts["items"][1]["budget"], json!({"entity_type": "TEAM", "entity_id": team}));
        let all = acme.admin.get(&format!("{BUDGETS}/alerts?threshold=30")).await.ok();
        assert_eq!(column(&all, "entity_name"), ["ada@acme.com", "Language", "Research", "Acme"]);
        acme.record(json!({"user_id": user, "raw_cost": 1})).await.ok();
        let alerts = acme.admin.get(&format!("{BUDGETS}/alerts?threshold=100")).await.ok();
        assert_eq!(alerts["items"][0]["alert_level"], "exceeded");
        acme.admin.get(&format!("{BUDGETS}/alerts?threshold=1001")).await.refused(422);
    }
}

#[tokio::test]
async fn alerts_go_on_page_by_page_from_the_most_used_to_the_least() {
    for gateway in gateways(|app| app).await {
        let acme = acme(&gateway).await;
        let [org, team, _] = &acme.ids;
        let mut users = Vec::new();
        for n in 0..9 {
            let user = json!({"email": format!("user{n}@acme.com")});
            users.push(acme.admin.made("/copilot/users", user).await);
            give(&acme.admin, &acme.plan, ("user", &users[n]), json!(10)).await.ok();
            // Two of each share, so that a page can end between equals.
            let cost = json!({"user_id": users[n], "raw_cost": 3 + n / 2});
            acme.record(cost).await.ok();
        }
        // Nothing is allocated to it, and so nothing of that is used.
        give(&acme.admin, &acme.plan, ("org", org), json!(0)).await.ok();
        acme.record(json!({"team_id": team, "raw_cost": 1})).await.ok();
        for (threshold, budgets) in [("0", 13), ("0.000001", 11), ("60", 10), ("80", 8), ("100.5", 3), ("141", 0)] {
            let path = format!("{BUDGETS}/alerts?threshold={threshold}");
            let whole = acme.admin.get(&path).await.ok();
            let all = whole["items"].as_array().unwrap();
            assert_eq!(all.len(), budgets, "{threshold}: {whole}");
            let shares: Vec<f64> = all.iter().map(|alert| alert["usage_percentage"].as_f64().unwrap()).collect();
            assert!(shares.is_sorted_by(|a, b| a >= b), "{shares:?}");
            let (mut walked, mut cursor) = (Vec::new(), String::new());
            loop {
                let page = acme.admin.get(&format!("{path}&limit=3{cursor}")).await.ok();
                walked.extend(page["items"].as_array().unwrap().iter().cloned());
                let Some(next) = page["next_cursor"].as_str() else { break };
                cursor = format!("&cursor={next}");
            }
            assert_eq!(walked, *all, "{threshold}");
            assert_eq!(
                acme.admin.get(&format!("{path}&limit=3&offset=2")).await.ok()["items"],
                json!(all[2.min(all.len())..5.min(all.len())])
            );
        }
    }
}

#[tokio::test]
async fn what_a_plan_adds_up_to_is_added_up_anew_when_it_may_have_changed() {
    for (gateway, clock) in gateways_at_rest(|app| app).await {
        let acme = acme(&gateway).await;
        let [_, team, user] = &acme.ids;
        let ask = async || {
            let before = gateway.store.statements();
            let whole = acme.admin.get(&format!("{BUDGETS}/effective-allocation?limit=1")).await.ok();
            assert_eq!(whole["items"].as_array().unwrap().len(), 1);
            assert!(whole["next_cursor"].is_string());
            (whole["distributed"].clone(), gateway.store.statements() - before)
        };
        let (sum, first) = ask().await;
        assert_eq!(sum, json!(50), "the org's, which the others are part of");
        // An echo of what was made before may come meanwhile: then it is added up once more.
        let mut then = first;
        for _ in 0..100 {
            let (again, statements) = ask().await;
            assert_eq!(again, sum);
            then = statements;
            if then < first {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(first - then, 2, "it is known, and only a page is read");

        // Of the plan, of the directory, of the account.
        let members = format!("/copilot/teams/{team}/members");
        acme.admin.delete(&format!("{members}/{user}")).await.ok();
        assert_eq!(ask().await.0, json!(60));
        acme.admin.post(&members, json!({"user_id": user})).await.ok();
        assert_eq!(ask().await.0, json!(50));
        give(&acme.admin, &acme.plan, ("pool", "pool"), json!(5)).await.ok();
        assert_eq!(ask().await.0, json!(55));

        // What lapses does so by itself.
        let minute = Duration::from_secs(60);
        let raise = json!({"plan_id": acme.plan, "scope_type": "pool", "scope_id": "pool", "override_credits": 25,
            "expires_at": clock.now().plus(minute).to_string()});
        acme.admin.post(&format!("{BUDGETS}/overrides"), raise).await.ok();
        assert_eq!(ask().await.0, json!(75));
        clock.advance(minute - Duration::from_micros(1));
        assert_eq!(ask().await.0, json!(75));
        clock.advance(Duration::from_micros(1));
        assert_eq!(ask().await.0, json!(55));
    }
}

/// What an account has spent is one row: without its history, the figures are the same.
#[tokio::test]
async fn spend_does_not_read_history() {
    for gateway in gateways(|app| app).await {
        let acme = acme(&gateway).await;
        for model in 0..5 {
            acme.record(json!({"raw_cost": "1.000000001", "model_name": format!("model-{model}")})).await.ok();
        }
        acme.operator.post(&format!("{BUDGETS}/adjustments"), json!({"credits": -1, "reason": "gift"})).await.ok();
        let operator = gateway.as_operator(None);
        let spend = async || operator.get("/accounts").await.ok()["items"][0]["spend"].to_string();
        let limit = async || {
            // Two credits for each dollar: what is left of the books, in dollars.
            acme.record(json!({"raw_cost": "4499999995.499999996"})).await.refused(422);
            acme.operator
                .post(&format!("{BUDGETS}/adjustments"), json!({"credits": "-9.000000011", "reason": "too much"}))
                .await
                .refused(422);
        };
        assert_eq!(spend().await, "5.000000005");
        limit().await;
        gateway.execute(r#"DELETE FROM "Alchemi_UsageRollupTable""#).await;
        assert_eq!(spend().await, "5.000000005");
        limit().await;
        acme.record(json!({"raw_cost": "4499999995.499999995"})).await.ok();
        assert_eq!(spend().await, "4500000000.5");
    }
}

#[tokio::test]
async fn costs_add_up_however_they_are_broken_down() {
    for gateway in gateways(|app| app).await {
        let acme = acme(&gateway).await;
        let [_, team, user] = &acme.ids;
        acme.record(json!({"user_id": user, "raw_cost": "1.5", "model_name": "a", "agent_id": "x"})).await.ok();
        acme.record(json!({"team_id": team, "raw_cost": "0.25", "model_name": "b"})).await.ok();
        let by_model = acme.admin.get(&format!("{BUDGETS}/cost-breakdown?by=llm")).await.ok();
        assert_eq!(
            by_model,
            json!({"by": "llm", "items": [{"key": "a", "raw_cost": 1.5, "credits": 3}, {"key": "b", "raw_cost": 0.25, "credits": 0.5}],
                "next_offset": null})
        );
        for (offset, key, next) in [(0, "a", json!(1)), (1, "b", Value::Null)] {
            let part = acme.admin.get(&format!("{BUDGETS}/cost-breakdown?by=llm&limit=1&offset={offset}")).await.ok();
            assert_eq!((column(&part, "key"), &part["next_offset"]), (vec![&json!(key)], &next));
        }
        let by_agent = acme.admin.get(&format!("{BUDGETS}/cost-breakdown")).await.ok();
        assert_eq!(column(&by_agent, "key"), [&json!("x"), &Value::Null]);
        let wrong = acme.admin.get(&format!("{BUDGETS}/cost-breakdown?by=org")).await;
        assert_eq!(wrong.refused(400), "by must be one of: agent,llm,connection,guardrail");
        let grouped = acme.admin.get(&format!("{BUDGETS}/cost-breakdown?group_by=team,llm")).await.ok();
        assert_eq!(grouped["group_by"], json!(["team", "llm"]));
        let keys: Vec<_> =
            grouped["items"].as_array().unwrap().iter().map(|i| (&i["team_id"], &i["model_name"])).collect();
        assert_eq!(keys, [(&json!(team), &json!("a")), (&json!(team), &json!("b"))]);
        for query in ["by=llm&group_by=team", "group_by=colour", "group_by=org,team,user,day"] {
            acme.admin.get(&format!("{BUDGETS}/cost-breakdown?{query}")).await.refused(422);
        }

        let costs = acme.admin.get("/costs/breakdown").await.ok();
        assert_eq!(costs["domain"], "copilot");
        assert_eq!((&costs["totals"]["raw_cost"], &costs["totals"]["requests"]), (&json!(1.75), &json!(2)));
        assert_eq!(costs["items"][0]["guardrail_code"], Value::Null);
        assert!(costs["items"][0].get("day").is_none());
        let one = acme.admin.get(&format!("/costs/breakdown?user_id={user}&group_by=user,day&limit=1")).await.ok();
        assert_eq!((&one["items"][0]["user_id"], &one["next_offset"]), (&json!(user), &Value::Null));
        let day = one["items"][0]["day"].as_str().unwrap().to_owned();
        let first = acme.admin.get("/costs/breakdown?limit=1").await.ok();
        assert_eq!(first["next_offset"], json!(1));
        let days = acme.admin.get(&format!("/costs/breakdown?group_by=day&from={day}&to={day}")).await.ok();
        assert_eq!(days["totals"]["requests"], json!(2));
        let before = acme.admin.get(&format!("/costs/breakdown?group_by=day&to={day}T00:00:00Z")).await.ok();
        assert_eq!(before["totals"]["requests"], json!(0), "a moment is the first that is too late");
        assert_eq!(acme.admin.get("/costs/breakdown?domain=console").await.ok()["items"], json!([]));
        for query in ["domain=x", "group_by=x", "group_by=org,team,user,day", "from=yesterday", "limit=0"] {
            acme.admin.get(&format!("/costs/breakdown?{query}")).await.refused(422);
        }
    }
}

#[tokio::test]
async fn an_admin_lists_the_rows_of_the_ledger() {
    for gateway in gateways(|app| app).await {
        let acme = acme(&gateway).await;
        let [org, team, user] = &acme.ids;
        acme.record(json!({"user_id": user, "raw_cost": 1})).await.ok();
        let second = acme.record(json!({"team_id": team, "raw_cost": 2})).await.ok();
        let undo = json!({"reverses": second["item"]["id"], "reason": "Recorded twice"});
        acme.operator.post(&format!("{BUDGETS}/adjustments"), undo).await.ok();
        acme.operator.post(&format!("{BUDGETS}/adjustments"), json!({"credits": 3, "reason": "Support"})).await.ok();
        let beta = gateway.account("Beta").await;
        let other = gateway.as_admin_of(&beta).await;
        other.post(&format!("{BUDGETS}/usage/record"), json!({"raw_cost": 7})).await.ok();
        assert_eq!(column(&other.get("/costs/entries").await.ok(), "raw_cost"), [7]);
        let listed = async |query: &str| acme.admin.get(&format!("/costs/entries?{query}")).await.ok();
        let costs = async |query: &str| {
            let listed = listed(query).await;
            column(&listed, "credits_incurred").into_iter().map(|c| c.as_i64().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(costs("").await, [3, -4, 4, 2], "the newest first");
        assert_eq!(costs(&format!("user_id={user}")).await, [2]);
        assert_eq!(costs(&format!("team_id={team}")).await, [-4, 4, 2]);
        assert_eq!(costs(&format!("org_id={org}&entry=usage")).await, [4, 2]);
        assert_eq!(costs("entry=reversal").await, [-4]);
        assert_eq!(costs("mark=cut").await, [] as [i64; 0]);
        assert_eq!(costs("domain=console").await, [] as [i64; 0]);
        assert_eq!(costs("from=2001-01-01&to=2001-01-31").await, [] as [i64; 0]);
        let day = listed("limit=1").await["items"][0]["created_at"].as_str().unwrap()[..10].to_owned();
        assert_eq!(costs(&format!("from={day}&to={day}")).await, [3, -4, 4, 2]);
        let first = listed("limit=1").await;
        assert_eq!((&first["items"][0]["marks"], &first["items"][0]["status"]), (&json!([]), &json!(0)));
        let next = first["next_cursor"].as_str().unwrap();
        assert_eq!(costs(&format!("cursor={next}")).await, [-4, 4, 2]);
        // A row's id is what undoes it.
        let id = listed("entry=adjustment").await["items"][0]["id"].clone();
        acme.operator.post(&format!("{BUDGETS}/adjustments"), json!({"reverses": id, "reason": "No"})).await.ok();
        for query in ["entry=refund", "mark=", "domain=x", "from=yesterday", "limit=0"] {
            acme.admin.get(&format!("/costs/entries?{query}")).await.refused(422);
        }
        acme.ada.get("/costs/entries").await.refused(403);
    }
}

#[tokio::test]
async fn a_member_sees_their_own_usage() {
    for gateway in gateways(|app| app).await {
        let acme = acme(&gateway).await;
        let [_, team, user] = &acme.ids;
        for cost in [1, 2] {
            acme.record(json!({"user_id": user, "raw_cost": cost})).await.ok();
        }
        acme.record(json!({"team_id": team, "raw_cost": 5})).await.ok();
        let usage = acme.ada.get("/me/usage?limit=1").await.ok();
        assert_eq!(column(&usage, "raw_cost"), [2]);
        assert_eq!((&usage["totals"]["raw_cost"], &usage["totals"]["credits_incurred"]), (&json!(3), &json!(6)));
        let next = usage["next_cursor"].as_str().unwrap();
        let rest = acme.ada.get(&format!("/me/usage?cursor={next}")).await.ok();
        assert_eq!(column(&rest, "raw_cost"), [1]);
        let account = gateway.account("Beta").await;
        let unknown = gateway.as_member_of(&account, "eve", None).await;
        assert_eq!(unknown.get("/me/usage").await.ok(), json!({"totals": null, "items": [], "next_cursor": null}));
        let chain = unknown.get("/me/allocation").await.ok();
        assert_eq!(column(&chain, "scope_type"), ["account"]);
        assert_eq!(column(&chain, "cap"), [&Value::Null], "nothing was set: nothing limits");
    }
}

/// All credits that there can be, recorded and taken back as often as one likes, leave books that balance.
#[tokio::test]
async fn what_is_recorded_and_taken_back_leaves_no_trace_in_caps() {
    for gateway in gateways(|app| app).await {
        let acme = acme(&gateway).await;
        let path = format!("{BUDGETS}/adjustments");
        for _ in 0..3 {
            let recorded = acme.record(json!({"user_id": acme.ids[2], "raw_cost": 4_000_000_000_u64})).await.ok();
            let undo = json!({"reverses": recorded["item"]["id"], "reason": "Too much"});
            acme.operator.post(&path, undo).await.ok();
        }
        // Given back in another way, it cannot be taken back once more.
        let recorded = acme.record(json!({"user_id": acme.ids[2], "raw_cost": 5})).await.ok();
        acme.operator.post(&path, json!({"credits": -10, "reason": "Goodwill"})).await.ok();
        let undo = json!({"reverses": recorded["item"]["id"], "reason": "Too much"});
        let refused = acme.operator.post(&path, undo).await;
        assert_eq!((refused.status, &refused.json["code"]), (409, &json!("not_reversible")));
        acme.operator.post(&path, json!({"credits": 10, "reason": "It was right"})).await.ok();
        acme.operator.post(&path, json!({"reverses": recorded["item"]["id"], "reason": "Too much"})).await.ok();
        acme.record(json!({"user_id": acme.ids[2], "raw_cost": 1})).await.ok();
        let usage = acme.admin.get(&format!("{BUDGETS}/usage-by-scope")).await.ok();
        assert_eq!(column(&usage, "used"), [2, 2, 2]);
    }
}

#[tokio::test]
async fn corrections_are_rows_of_their_own() {
    for gateway in gateways(|app| app).await {
        let acme = acme(&gateway).await;
        let [org, team, user] = &acme.ids;
        let path = format!("{BUDGETS}/adjustments");
        let used = async || {
            let usage = acme.admin.get(&format!("{BUDGETS}/usage-by-scope")).await.ok();
            column(&usage, "used").into_iter().cloned().collect::<Vec<_>>()
        };
        let recorded = acme.record(json!({"user_id": user, "raw_cost": 4, "model_name": "m"})).await.ok();
        let id = recorded["item"]["id"].clone();
        assert_eq!(used().await, [8, 8, 8]);

        let undo = json!({"reverses": id, "reason": "Recorded twice"});
        let tried = acme.operator.post(&format!("{path}?dry_run=true"), undo.clone()).await.ok();
        assert_eq!((&tried["dry_run"], &tried["change_count"]), (&json!(true), &json!(1)));
        assert_eq!(used().await, [8, 8, 8]);
        let undone = acme.operator.post(&path, undo.clone()).await.ok()["item"].clone();
        assert_eq!((&undone["entry"], &undone["credits_incurred"]), (&json!("reversal"), &json!(-8)));
        assert_eq!((&undone["raw_cost"], &undone["user_id"]), (&json!(-4), &json!(user)));
        assert_eq!(undone["metadata"], json!({"reason": "Recorded twice", "reverses": id}));
        assert_eq!(used().await, [0, 0, 0]);
        let again = json!({"reverses": undone["id"], "reason": "No"});
        for (body, code) in [(undo, "already_reversed"), (again, "not_reversible")] {
            let refused = acme.operator.post(&path, body).await;
            assert_eq!((refused.status, &refused.json["code"]), (409, &json!(code)));
        }

        let charge = json!({"credits": 3, "team_id": team, "reason": "Support"});
        assert_eq!(acme.operator.post(&path, charge).await.ok()["item"]["entry"], "adjustment");
        let back = json!({"credits": -1, "org_id": org, "reason": "Goodwill"});
        acme.operator.post(&path, back).await.ok();
        assert_eq!(used().await, [0, 3, 2], "the user, the team, the org");
        for (body, pointer) in [
            (json!({"credits": -3, "reason": "More than there is"}), "/credits"),
            (json!({"credits": 0, "reason": "Nothing"}), "/credits"),
            (json!({"credits": 1, "reverses": id, "reason": "Both"}), "/credits"),
            (json!({"reason": "Neither"}), "/credits"),
            (json!({"credits": 9_000_000_000_u64, "reason": "Too much"}), "/credits"),
            (json!({"reverses": id, "user_id": user, "reason": "Whose"}), "/reverses"),
            (json!({"credits": 1}), "/reason"),
        ] {
            let refused = acme.operator.post(&path, body).await;
            assert_eq!((refused.status, &refused.json["errors"][0]["pointer"]), (422, &json!(pointer)));
        }
        let report = alchemi::store::conservation::verify(&gateway.store).await.unwrap();
        assert!(report.differences.is_empty(), "{:?}", report.differences);
        let costs = acme.admin.get("/costs/breakdown").await.ok();
        assert_eq!((&costs["totals"]["credits_incurred"], &costs["totals"]["raw_cost"]), (&json!(2), &json!(0)));
        assert_eq!(costs["totals"]["requests"], json!(1), "a correction is no request");
        let backwards = acme.admin.get("/costs/breakdown?from=2026-02-01&to=2026-01-01").await;
        assert_eq!((backwards.status, &backwards.json["errors"][0]["pointer"]), (422, &json!("to")));
    }
}
