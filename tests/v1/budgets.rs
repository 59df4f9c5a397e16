//! Account allocation, plans, allocations, overrides, renewals.

use std::time::Duration;

use serde_json::{Value, json};

use crate::gateway::{Client, Gateway, Reply, gateways, gateways_at_rest};

pub(crate) const BUDGETS: &str = "/budgets/copilot";

/// An admin of an account that may spend 100 credits a month, and the operator.
pub(crate) async fn funded(gateway: &Gateway) -> (Client, Client) {
    funded_with(gateway, 100).await
}

pub(crate) async fn funded_with(gateway: &Gateway, credits: i64) -> (Client, Client) {
    let account = gateway.account("Acme").await;
    let operator = gateway.as_operator(None);
    let terms = json!({"account_id": account, "monthly_credits": credits});
    assert_eq!(operator.post("/budgets/account-allocation", terms).await.ok(), json!({"status": "ok"}));
    (gateway.as_admin_of(&account).await, operator)
}

pub(crate) async fn plan(admin: &Client, body: Value) -> String {
    admin.made(&format!("{BUDGETS}/plans"), body).await
}

pub(crate) async fn give(admin: &Client, plan: &str, scope: (&str, &str), credits: Value) -> Reply {
    let body = json!({"plan_id": plan, "scope_type": scope.0, "scope_id": scope.1, "allocated_credits": credits});
    admin.post(&format!("{BUDGETS}/allocations/upsert"), body).await
}

/// An org, a team of it and a member.
pub(crate) async fn tree(admin: &Client) -> [String; 3] {
    let org = admin.made("/copilot/orgs", json!({"name": "Research"})).await;
    let team = admin.made("/copilot/teams", json!({"org_id": org, "name": "Language"})).await;
    let ada = admin.made("/copilot/users", json!({"email": "ada@acme.com", "team_ids": [team]})).await;
    [org, team, ada]
}

#[tokio::test]
async fn the_operator_sets_what_an_account_may_spend() {
    for gateway in gateways(|app| app).await {
        let (admin, operator) = funded(&gateway).await;
        let path = "/budgets/account-allocation";
        let terms = admin.get(&format!("{BUDGETS}/account-allocation")).await.ok();
        assert_eq!((&terms["monthly_credits"], &terms["credit_factor"]), (&json!(100), &json!(1)));
        assert_eq!(admin.get(path).await.refused(403), "Super admin access required");
        let page = operator.get(path).await.ok();
        let account = page["items"][0]["account_id"].as_str().unwrap().to_owned();
        let one = operator.get(&format!("{path}?account_id={account}")).await;
        assert_eq!(one.headers["etag"], "\"1\"");
        assert_eq!(one.ok()["item"]["overflow_limit"], json!(0));
        assert_eq!(operator.get(&format!("{path}?account_id=gone")).await.ok(), json!({"item": null}));

        let unknown = operator.post(path, json!({"account_id": "gone"})).await;
        assert_eq!(unknown.refused(404), "Account not found");
        for (field, value) in [("monthly_credits", -1), ("overflow_limit", -1), ("credit_factor", 0)] {
            let reply = operator.post(path, json!({"account_id": account, field: value})).await;
            assert_eq!(reply.json["errors"][0]["pointer"], format!("/{field}"));
            reply.refused(422);
        }
        let other = gateway.as_admin_of(&gateway.account("Beta").await).await;
        let none = other.get(&format!("{BUDGETS}/account-allocation")).await.ok();
        let expected = json!({
            "is_capped": false, "monthly_credits": 0, "overflow_limit": 0, "credit_factor": 1, "enforcement": "hard",
        });
        assert_eq!(none, expected);
    }
}

#[tokio::test]
async fn one_plan_is_in_force() {
    for gateway in gateways(|app| app).await {
        let (admin, _) = funded(&gateway).await;
        let (plans, active) = (format!("{BUDGETS}/plans"), format!("{BUDGETS}/plans/active"));
        assert_eq!(admin.get(&active).await.ok(), json!({"item": null}));
        let first = plan(&admin, json!({"name": " 2026 "})).await;
        let second = plan(&admin, json!({"name": "2027", "cycle": "quarterly"})).await;
        assert_eq!(admin.get(&plans).await.column("id"), [second.clone(), first.clone()]);
        assert_eq!(admin.get(&plans).await.column("status"), ["active", "inactive"]);
        let again = admin.post(&format!("{plans}/{first}/activate"), json!(null)).await.ok();
        assert_eq!((&again["item"]["name"], &again["item"]["cycle"]), (&json!("2026"), &json!("monthly")));
        assert_eq!(admin.get(&active).await.ok()["item"]["id"], json!(first));
        admin.post(&plans, json!({"name": "X", "cycle": "hourly"})).await.refused(422);

        let one = format!("{plans}/{first}");
        let tag = admin.get(&one).await.headers["etag"].to_str().unwrap().to_owned();
        let renamed = admin.with("if-match", &tag).patch(&one, json!({"name": "Year", "over_commit": "forbid"})).await;
        assert_eq!(renamed.ok()["item"]["over_commit"], "forbid");
        admin.with("if-match", &tag).patch(&one, json!({"name": "Lost"})).await.refused(412);
        assert_eq!(admin.patch(&one, json!({"name": "  "})).await.refused(400), "name is required");
        assert_eq!(admin.patch(&format!("{plans}/gone"), json!({})).await.refused(404), "Budget plan not found");

        let stranger = gateway.as_admin_of(&gateway.account("Beta").await).await;
        stranger.get(&one).await.refused(404);
        stranger.post(&format!("{one}/activate"), json!(null)).await.refused(404);
        assert_eq!(stranger.get(&plans).await.column("id"), [""; 0]);
    }
}

#[tokio::test]
async fn shares_are_given_read_and_taken() {
    for gateway in gateways(|app| app).await {
        let (admin, _) = funded(&gateway).await;
        let [org, team, ada] = tree(&admin).await;
        let plan = plan(&admin, json!({"name": "2026"})).await;
        let given = give(&admin, &plan, (" GROUP ", &org), json!("12.000000001")).await.ok();
        assert_eq!(given["item"]["scope_type"], "org");
        assert_eq!(given["item"]["allocated_credits"].to_string(), "12.000000001");
        let again = give(&admin, &plan, ("org", &org), json!(20)).await;
        assert_eq!(again.headers["etag"], "\"2\"");
        assert_eq!(again.ok()["item"]["id"], given["item"]["id"]);
        give(&admin, &plan, ("team", &team), json!(5)).await.ok();
        give(&admin, &plan, ("pool", "pool"), json!(7)).await.ok();

        let expected = "scope_type must be one of: org,pool,team,user";
        assert_eq!(give(&admin, &plan, ("account", "x"), json!(1)).await.refused(400), expected);
        assert_eq!(give(&admin, &plan, ("team", &org), json!(1)).await.refused(404), "copilot team not found");
        assert_eq!(give(&admin, "gone", ("user", &ada), json!(1)).await.refused(404), "Budget plan not found");
        give(&admin, &plan, ("pool", "other"), json!(1)).await.refused(422);
        give(&admin, &plan, ("user", &ada), json!(-1)).await.refused(422);

        let list = format!("{BUDGETS}/allocations?plan_id={plan}");
        assert_eq!(admin.get(&list).await.column("scope_type"), ["pool", "team", "org"]);
        let one = format!("{list}&scope_type=team&scope_id={team}");
        assert_eq!(admin.delete(&one).await.ok(), json!({"deleted": true}));
        assert_eq!(admin.delete(&one).await.ok(), json!({"deleted": false}));
        let stranger = gateway.as_admin_of(&gateway.account("Beta").await).await;
        let foreign = format!("{list}&scope_type=org&scope_id={org}");
        assert_eq!(stranger.delete(&foreign).await.ok(), json!({"deleted": false}));
        give(&stranger, &plan, ("pool", "pool"), json!(1)).await.refused(404);
    }
}

#[tokio::test]
async fn an_equal_distribution_is_exact() {
    for gateway in gateways(|app| app).await {
        let (admin, _) = funded(&gateway).await;
        let [org, ..] = tree(&admin).await;
        let plan = plan(&admin, json!({"name": "2026"})).await;
        let path = format!("{BUDGETS}/distribute/equal");
        let mut teams = Vec::new();
        for name in ["A", "B", "C"] {
            teams.push(admin.made("/copilot/teams", json!({"org_id": org, "name": name})).await);
        }
        let body =
            |ids: &[String]| json!({"plan_id": plan, "scope_type": "team", "scope_ids": ids, "total_credits": 10});
        let done = admin.post(&path, body(&teams)).await.ok();
        assert_eq!(done["per_scope"].to_string(), "3.333333334");
        let shares: Vec<String> = (0..3).map(|i| done["shares"][i]["allocated_credits"].to_string()).collect();
        assert_eq!(shares, ["3.333333334", "3.333333333", "3.333333333"]);
        assert_eq!(done["allocation_ids"].as_array().unwrap().len(), 3);

        assert_eq!(admin.post(&path, body(&[])).await.refused(400), "scope_ids cannot be empty");
        let twice = admin.post(&path, body(&[teams[0].clone(), teams[1].clone(), teams[0].clone()])).await;
        assert_eq!(twice.json["errors"][0]["pointer"], "/scope_ids/2");
        let lost = admin.post(&path, body(&[teams[0].clone(), "gone".to_owned()])).await;
        assert_eq!(lost.refused(404), "copilot team not found");
        let sources = admin.get(&format!("{BUDGETS}/allocations?plan_id={plan}")).await.column("source");
        assert_eq!(sources, ["equal", "equal", "equal"], "what was refused has written nothing");
    }
}

#[tokio::test]
async fn a_plan_that_goes_out_of_force_is_audited_as_it_was() {
    for gateway in gateways(|app| app).await {
        let (admin, _) = funded(&gateway).await;
        let first = plan(&admin, json!({"name": "first"})).await;
        let tried = admin.post(&format!("{BUDGETS}/plans?dry_run=true"), json!({"name": "second"})).await.ok();
        assert_eq!(tried["change_count"], 2, "{tried}");
        plan(&admin, json!({"name": "second"})).await;
        let events = admin.get("/audit?resource=Alchemi_CopilotBudgetPlanTable").await.ok();
        let of = |event: &Value, side: &str, name: &str| event[side][name].clone();
        let (made, retired) = (&events["items"][0], &events["items"][1]);
        assert_eq!(made["action"], "create", "{events}");
        assert_eq!(
            (of(made, "before_value", "name"), of(made, "before_value", "status")),
            (json!("first"), json!("active"))
        );
        assert_eq!(retired["resource_id"], json!(first));
        assert_eq!(
            (of(retired, "before_value", "status"), of(retired, "updated_values", "status")),
            (json!("active"), json!("inactive"))
        );
    }
}

#[tokio::test]
async fn an_override_stands_over_a_share() {
    for gateway in gateways(|app| app).await {
        let (admin, _) = funded(&gateway).await;
        let [org, ..] = tree(&admin).await;
        let plan = plan(&admin, json!({"name": "2026"})).await;
        let over = json!({"plan_id": plan, "scope_type": "org", "scope_id": org, "override_credits": 0});
        let refused = admin.post(&format!("{BUDGETS}/overrides"), over.clone()).await;
        assert_eq!(refused.json["code"], "nothing_to_override");
        refused.refused(409);
        give(&admin, &plan, ("org", &org), json!(1)).await.ok();
        admin.post(&format!("{BUDGETS}/overrides"), over).await.ok();
    }
}

#[tokio::test]
async fn whatever_a_plan_gives_is_promised_by_the_next_above_that_has_a_share() {
    for gateway in gateways(|app| app).await {
        let (admin, _) = funded(&gateway).await;
        let [org, team, ada] = tree(&admin).await;
        let strict = plan(&admin, json!({"name": "2026", "over_commit": "forbid"})).await;
        let refused = |answer: Reply, of: (&str, &str), promised: i64| {
            let told = ["code", "scope_type", "scope_id", "promised"].map(|name| answer.json[name].clone());
            assert_eq!(told, [json!("over_committed"), json!(of.0), json!(of.1), json!(promised)]);
            answer.refused(409);
        };
        let account = admin.get(&format!("{BUDGETS}/effective-allocation")).await.ok()["account_id"].clone();
        let account = account.as_str().unwrap().to_owned();

        // The pool beside the orgs, and whoever no org or team stands above.
        give(&admin, &strict, ("org", &org), json!(70)).await.ok();
        refused(give(&admin, &strict, ("pool", "pool"), json!(31)).await, ("account", &account), 101);
        give(&admin, &strict, ("pool", "pool"), json!(10)).await.ok();
        let loner = admin.made("/copilot/users", json!({"email": "loner@acme.com"})).await;
        refused(give(&admin, &strict, ("user", &loner), json!(21)).await, ("account", &account), 101);
        give(&admin, &strict, ("user", &loner), json!(20)).await.ok();

        // A member of a team that has no share, by the org; of two such teams of it, once.
        refused(give(&admin, &strict, ("user", &ada), json!(71)).await, ("org", &org), 71);
        let second = admin.made("/copilot/teams", json!({"org_id": org, "name": "second"})).await;
        admin.post(&format!("/copilot/teams/{second}/members"), json!({"user_id": ada})).await.ok();
        give(&admin, &strict, ("user", &ada), json!(70)).await.ok();
        give(&admin, &strict, ("user", &ada), json!(40)).await.ok();
        // By a team as soon as it has one, and by the org where she is in another of it.
        refused(give(&admin, &strict, ("team", &team), json!(40)).await, ("org", &org), 80);
        admin.delete(&format!("/copilot/teams/{second}/members/{ada}")).await.ok();
        give(&admin, &strict, ("team", &team), json!(70)).await.ok();
        refused(give(&admin, &strict, ("team", &second), json!(50)).await, ("org", &org), 120);
        let members = format!("/copilot/teams/{second}/members");
        let brought = admin.post(&members, json!({"user_id": loner})).await;
        refused(brought, ("org", &org), 90);

        // Beyond a share by design.
        let beyond = json!({"plan_id": strict, "scope_type": "team", "scope_id": team, "allocated_credits": 70, "overflow_cap": 500});
        admin.post(&format!("{BUDGETS}/allocations/upsert"), beyond).await.ok();

        // What an org had stood around is the account's.
        let path = format!("{BUDGETS}/plans/{strict}");
        admin.patch(&path, json!({"over_commit": "allow"})).await.ok();
        give(&admin, &strict, ("team", &team), json!(75)).await.ok();
        admin.patch(&path, json!({"over_commit": "forbid"})).await.refused(409);
        give(&admin, &strict, ("org", &org), json!(75)).await.ok();
        give(&admin, &strict, ("pool", "pool"), json!(5)).await.ok();
        admin.patch(&path, json!({"over_commit": "forbid"})).await.ok();
        let around =
            |kind: &str, id: &str| format!("{BUDGETS}/allocations?plan_id={strict}&scope_type={kind}&scope_id={id}");
        assert_eq!(admin.delete(&around("org", &org)).await.ok()["deleted"], json!(true));
        give(&admin, &strict, ("pool", "pool"), json!(6)).await.refused(409);
    }
}

#[tokio::test]
async fn what_an_override_gives_or_takes_for_a_time_is_not_built_upon() {
    for (gateway, clock) in gateways_at_rest(|app| app).await {
        let (admin, _) = funded(&gateway).await;
        let [org, team, ada] = tree(&admin).await;
        let strict = plan(&admin, json!({"name": "2026", "over_commit": "forbid"})).await;
        let overrides = format!("{BUDGETS}/overrides");
        let until_nine = |kind: &str, id: &str, credits: i64| {
            json!({"plan_id": strict, "scope_type": kind, "scope_id": id, "override_credits": credits,
                "expires_at": "2027-01-15T09:00:00Z"})
        };
        give(&admin, &strict, ("org", &org), json!(60)).await.ok();
        // What it has for an hour is nothing that others could have for longer.
        admin.post(&overrides, until_nine("org", &org, 90)).await.ok();
        let refused = give(&admin, &strict, ("team", &team), json!(61)).await;
        assert_eq!((&refused.json["limit"], &refused.json["promised"]), (&json!(60), &json!(61)));
        refused.refused(409);
        // Nor what it lacks.
        clock.advance(Duration::from_secs(1));
        admin.post(&overrides, until_nine("org", &org, 10)).await.ok();
        give(&admin, &strict, ("pool", "pool"), json!(41)).await.refused(409);
        give(&admin, &strict, ("pool", "pool"), json!(40)).await.ok();
        clock.advance(Duration::from_secs(2 * 3600));
        give(&admin, &strict, ("team", &team), json!(60)).await.ok();
        give(&admin, &strict, ("user", &ada), json!(60)).await.ok();

        // Behind one that expires comes the next, which lasts, and never what was allocated.
        let lasting = json!({"plan_id": strict, "scope_type": "org", "scope_id": org, "override_credits": 60});
        admin.post(&overrides, lasting.clone()).await.ok();
        clock.advance(Duration::from_secs(1));
        let mut newer = lasting;
        newer["expires_at"] = json!("2027-01-16T09:00:00Z");
        admin.post(&overrides, newer).await.ok();
        give(&admin, &strict, ("org", &org), json!(5)).await.ok();
        give(&admin, &strict, ("pool", "pool"), json!(41)).await.refused(409);
        give(&admin, &strict, ("org", &org), json!(60)).await.ok();
        for id in admin.get(&format!("{overrides}?plan_id={strict}")).await.column("id") {
            admin.delete(&format!("{overrides}/{id}")).await.ok();
        }

        // Who leaves a team is not held back, though all of their share is the account's then.
        admin.delete(&format!("/copilot/teams/{team}/members/{ada}")).await.ok();
        give(&admin, &strict, ("user", &ada), json!(61)).await.refused(409);
        give(&admin, &strict, ("user", &ada), json!(59)).await.ok();
        let around = format!("{BUDGETS}/allocations?plan_id={strict}&scope_type=org&scope_id={org}");
        assert_eq!(admin.delete(&around).await.ok()["deleted"], json!(true));
    }
}

#[tokio::test]
async fn the_newest_override_counts_until_it_expires_or_goes() {
    for gateway in gateways(|app| app).await {
        let (admin, _) = funded(&gateway).await;
        let [_, _, ada] = tree(&admin).await;
        let plan = plan(&admin, json!({"name": "2026"})).await;
        give(&admin, &plan, ("user", &ada), json!(10)).await.ok();
        let path = format!("{BUDGETS}/overrides");
        let body = |credits: i64, expires: Value| json!({"plan_id": plan, "scope_type": "user", "scope_id": ada, "override_credits": credits, "expires_at": expires});
        let effective = async || {
            let answer = admin.get(&format!("{BUDGETS}/effective-allocation?plan_id={plan}")).await.ok();
            let item = &answer["items"][0];
            assert_eq!(item["base_allocated"], json!(10));
            (item["effective_allocated"].clone(), item["override_applied"].clone())
        };
        admin.post(&path, body(20, Value::Null)).await.ok();
        let newest = admin.made(&path, body(30, json!("2999-01-01T00:00:00Z"))).await;
        assert_eq!(effective().await, (json!(30), json!(true)));
        admin.post(&path, body(40, json!("2001-01-01T00:00:00Z"))).await.refused(422);
        assert_eq!(admin.get(&format!("{path}?plan_id={plan}")).await.column("id")[0], newest);
        assert_eq!(admin.delete(&format!("{path}/{newest}")).await.ok(), json!({"deleted": true}));
        admin.delete(&format!("{path}/{newest}")).await.refused(404);
        assert_eq!(effective().await, (json!(20), json!(true)));
    }
}

#[tokio::test]
async fn a_renewal_carries_over_what_was_not_used_once() {
    for gateway in gateways(|app| app).await {
        let (admin, _) = funded(&gateway).await;
        let [org, team, ada] = tree(&admin).await;
        let source = plan(&admin, json!({"name": "2026", "cycle": "none"})).await;
        for (scope, credits) in [(("org", &*org), 50), (("team", &*team), 30), (("pool", "pool"), 5)] {
            give(&admin, &source, scope, json!(credits)).await.ok();
        }
        let over = json!({"plan_id": source, "scope_type": "team", "scope_id": team, "override_credits": 31});
        admin.post(&format!("{BUDGETS}/overrides"), over).await.ok();
        let usage = json!({"user_id": ada, "raw_cost": 20, "model_name": "gpt-4o-mini"});
        admin.post(&format!("{BUDGETS}/usage/record"), usage).await.ok();

        let path = format!("{BUDGETS}/cycles/renew");
        let cycle = json!({"cycle_start": "2020-01-01T00:00:00Z", "cycle_end": "2999-01-01T00:00:00Z",
            "rollover_cap": 33, "copy_overrides": true});
        let done = admin.post(&path, cycle.clone()).await.ok();
        let summary = &done["summary"];
        assert_eq!(summary["used_credits"], json!(20));
        assert_eq!(summary["unused_credits"], json!(35), "30 of the org, 5 of the pool; the team's are the org's");
        assert_eq!(summary["rollover_credits"], json!(33));
        assert_eq!(done["item"]["name"], "2026 (2999-01-01)");
        let again = admin.post(&path, cycle).await.ok();
        assert_eq!(again["cycle_id"], done["cycle_id"], "the same renewal is answered, not done again");
        let overlap = json!({"cycle_start": "2026-01-01T00:00:00Z", "cycle_end": "2026-02-01T00:00:00Z"});
        assert_eq!(admin.post(&path, overlap.clone()).await.json["code"], "cycle_overlaps");

        let renewed = done["item"]["id"].as_str().unwrap().to_owned();
        let whole = admin.get(&format!("{BUDGETS}/effective-allocation")).await.ok();
        assert_eq!(whole["plan_id"], json!(renewed));
        let pool = whole["items"].as_array().unwrap().iter().find(|i| i["scope_type"] == "pool").unwrap();
        assert_eq!(pool["effective_allocated"], json!(38), "its own 5 and what was carried over");
        let listed = admin.get(&format!("{BUDGETS}/allocations?plan_id={renewed}")).await.ok();
        let pool = listed["items"].as_array().unwrap().iter().find(|i| i["scope_type"] == "pool").unwrap();
        assert_eq!((&pool["source"], &pool["rollover_credits"]), (&json!("manual"), &json!(33)));
        let overrides = admin.get(&format!("{BUDGETS}/overrides?plan_id={renewed}")).await.column("reason");
        assert_eq!(overrides, [format!("copied_from:{source}")]);
        let history = admin.get(&format!("{BUDGETS}/cycles/history")).await;
        assert_eq!(history.column("source_plan_id"), [&*source]);

        let closed = admin.post(&format!("{BUDGETS}/plans/{source}/activate"), json!(null)).await;
        assert_eq!(closed.json["code"], "plan_renewed");
        assert!(closed.refused(409).contains(&renewed));
        let backwards = json!({"cycle_start": "2026-02-01T00:00:00Z", "cycle_end": "2026-02-01T00:00:00Z"});
        assert_eq!(admin.post(&path, backwards).await.refused(400), "cycle_end must be after cycle_start");
        let stranger = gateway.as_admin_of(&gateway.account("Beta").await).await;
        let none =
            stranger.post(&path, json!({"cycle_start": "2026-01-01T00:00:00Z", "cycle_end": "2026-02-01T00:00:00Z"}));
        assert_eq!(none.await.refused(404), "No active budget plan found");
    }
}

#[tokio::test]
async fn only_admins_of_the_domain_may() {
    for gateway in gateways(|app| app).await {
        let account = gateway.account("Acme").await;
        let member = gateway.as_member_of(&account, "ada", None).await;
        let gets = [
            "account-allocation",
            "plans",
            "plans/active",
            "plans/x",
            "allocations",
            "overrides",
            "effective-allocation",
            "usage-by-scope",
            "alerts",
            "cost-breakdown",
            "cycles/history",
        ];
        for path in gets {
            assert_eq!(member.get(&format!("{BUDGETS}/{path}")).await.refused(403), "copilot admin access required");
        }
        for path in [
            "plans",
            "plans/x/activate",
            "allocations/upsert",
            "distribute/equal",
            "overrides",
            "usage/record",
            "cycles/renew",
        ] {
            member.post(&format!("{BUDGETS}/{path}"), json!({})).await.refused(403);
        }
        member.patch(&format!("{BUDGETS}/plans/x"), json!({})).await.refused(403);
        member.delete(&format!("{BUDGETS}/allocations?plan_id=x&scope_type=org&scope_id=y")).await.refused(403);
        member.delete(&format!("{BUDGETS}/overrides/x")).await.refused(403);
        member.get("/costs/breakdown").await.refused(403);
        member.post("/budgets/account-allocation", json!({})).await.refused(403);
    }
}
