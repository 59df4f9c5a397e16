//! Dry runs: everything is checked, the effect is told, nothing is written.

use http::Method;
use serde_json::{Value, json};

use crate::budgets::{give, plan, tree};
use crate::common::{Gateway, backends};
use crate::gateway::gateways;
use crate::operations::{Operation, operations};
use crate::tenants::{Tenant, fill};

const BUDGETS: &str = "/budgets/copilot";

fn tries(operation: &Operation) -> bool {
    operation.parameters("query").any(|parameter| parameter["name"] == "dry_run")
}

/// Every write of budgets, grants, entitlements and guardrails can be tried.
#[test]
fn what_decides_over_others_can_be_tried() {
    let settings = ["/budgets/", "/grants", "/features/entitlements", "/guardrails/", "/marketplace"];
    let mut untried: Vec<String> = operations()
        .iter()
        .filter(|o| o.method != Method::GET && settings.iter().any(|of| o.path.contains(of)) && !tries(o))
        .map(Operation::name)
        .collect();
    // What users like is theirs to say.
    let own = ["DELETE", "POST"].map(|method| {
        ["install", "rating"].map(|what| format!("{method} /v1/copilot/marketplace/{{marketplace_id}}/{what}"))
    });
    let own: Vec<_> = own.into_iter().flatten().collect();
    untried.sort();
    assert_eq!(untried, own);
}

#[tokio::test]
async fn a_dry_run_writes_nothing() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let tenant = Tenant::new(&gateway, "Acme").await;
        let operator = gateway.operator_for(&tenant.account);
        let before = tenant.rows(&gateway).await;
        let mut changed = 0;
        for operation in operations().iter().filter(|o| tries(o)) {
            let mut asked = operation.ask(|name| match name {
                "dry_run" => Some("true".to_owned()),
                "scope_type" => Some("team".to_owned()),
                name => tenant.id_for(operation, name, "team"),
            });
            if let Some(body) = &mut asked.body {
                fill(body, &|name, _| match name {
                    "scope_type" => Some(json!("team")),
                    name => tenant.id(operation.domain(), name, "team").map(Value::from),
                });
            }
            // A key that comes with a dry run is not used up by it.
            let key = [("idempotency-key", "a key")];
            for _ in 0..2 {
                let reply = operation.call_with(&operator, &asked, &key).await;
                assert_eq!(reply.status, 200, "{}: {}", operation.name(), reply.text());
                let effect = reply.json();
                assert_eq!(effect["dry_run"], true, "{}: {effect}", operation.name());
                changed += effect["change_count"].as_u64().unwrap();
            }
        }
        assert!(changed > 20, "{changed}");
        assert_eq!(tenant.rows(&gateway).await, before, "nothing was written");
    }
}

#[tokio::test]
async fn a_dry_run_tells_what_would_change_for_whom() {
    for gateway in gateways(|app| app).await {
        let account = gateway.account("Acme").await;
        let (admin, operator) = (gateway.as_admin_of(&account).await, gateway.as_operator(None));
        let [org, team, ada] = tree(&admin).await;
        let bob = admin.made("/copilot/users", json!({"email": "bob@acme.com"})).await;
        admin.made("/console/users", json!({"email": "cy@acme.com"})).await;
        let try_it = async |path: &str, body: Value| admin.post(&format!("{BUDGETS}{path}?dry_run=true"), body).await;

        // The account's credits are everybody's.
        let terms = json!({"account_id": account, "monthly_credits": 100});
        let effect = operator.post("/budgets/account-allocation?dry_run=true", terms.clone()).await.ok();
        assert_eq!((&effect["users"], &effect["change_count"]), (&json!(3), &json!(1)));
        let change = &effect["changes"][0];
        assert_eq!((&change["before"], &change["after"]["monthly_credits"]), (&Value::Null, &json!(100)));
        assert_eq!(
            operator.get(&format!("/budgets/account-allocation?account_id={account}")).await.ok()["item"],
            Value::Null
        );

        let effect = try_it("/plans", json!({"name": "2026"})).await.ok();
        assert_eq!((&effect["users"], &effect["changes"][0]["after"]["name"]), (&json!(2), &json!("2026")));
        assert_eq!(admin.get(&format!("{BUDGETS}/plans")).await.column("id"), [""; 0]);
        let first = plan(&admin, json!({"name": "2026"})).await;

        let share = |kind: &str, id: &str| json!({"plan_id": first, "scope_type": kind, "scope_id": id, "allocated_credits": 5});
        for (kind, id, users) in [("org", &*org, 1), ("team", &*team, 1), ("user", &*bob, 1), ("pool", "pool", 2)] {
            let effect = try_it("/allocations/upsert", share(kind, id)).await.ok();
            assert_eq!(effect["users"], users, "{kind}");
            assert_eq!(effect["changes"][0]["after"]["scope_type"], kind);
        }
        // Whoever has a share of their own or of their team's draws on no pool.
        give(&admin, &first, ("team", &team), json!(5)).await.ok();
        let effect = try_it("/allocations/upsert", share("pool", "pool")).await.ok();
        assert_eq!(effect["sample"], json!([bob]));
        let effect = try_it("/allocations/upsert", share("team", &team)).await.ok();
        assert_eq!(effect["changes"][0]["before"]["allocated_credits"], 5);

        let sum = json!({"plan_id": first, "scope_type": "user", "scope_ids": [ada, bob], "total_credits": 3});
        let effect = try_it("/distribute/equal", sum).await.ok();
        assert_eq!((&effect["change_count"], &effect["users"]), (&json!(2), &json!(2)));
        let over = json!({"plan_id": first, "scope_type": "team", "scope_id": team, "override_credits": 9});
        let effect = try_it("/overrides", over.clone()).await.ok();
        assert_eq!((&effect["sample"], &effect["changes"][0]["action"]), (&json!([ada]), &json!("create")));
        assert_eq!(admin.get(&format!("{BUDGETS}/overrides")).await.column("id"), [""; 0]);
        assert_eq!(admin.get(&format!("{BUDGETS}/allocations")).await.column("scope_type"), ["team"]);

        let gone = format!("{BUDGETS}/allocations?plan_id={first}&scope_type=team&scope_id={team}&dry_run=true");
        let effect = admin.delete(&gone).await.ok();
        assert_eq!((&effect["changes"][0]["after"], &effect["users"]), (&Value::Null, &json!(1)));
        let none = admin.delete(&gone.replace(&team, "gone")).await.ok();
        assert_eq!((&none["change_count"], &none["users"], &none["sample"]), (&json!(0), &json!(0), &json!([])));

        // Both plans change when another is put in force.
        let second = plan(&admin, json!({"name": "2027"})).await;
        let effect = admin.post(&format!("{BUDGETS}/plans/{first}/activate?dry_run=true"), json!(null)).await.ok();
        let changes = effect["changes"].as_array().unwrap();
        let ids: Vec<_> = changes.iter().map(|c| (&c["resource_id"], &c["after"]["status"])).collect();
        assert_eq!(ids, [(&json!(second), &json!("inactive")), (&json!(first), &json!("active"))]);
        assert_eq!(admin.get(&format!("{BUDGETS}/plans/active")).await.ok()["item"]["id"], json!(second));
    }
}

#[tokio::test]
async fn a_dry_run_is_refused_as_the_write_would_be() {
    for gateway in gateways(|app| app).await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let [org, ..] = tree(&admin).await;
        let terms = json!({"account_id": account, "monthly_credits": 10});
        gateway.as_operator(None).post("/budgets/account-allocation", terms).await.ok();
        let plan = plan(&admin, json!({"name": "2026", "over_commit": "forbid"})).await;
        let share = |scope: &str, credits: i64| json!({"plan_id": plan, "scope_type": "org", "scope_id": scope, "allocated_credits": credits});
        let path = format!("{BUDGETS}/allocations/upsert?dry_run=true");
        assert_eq!(admin.post(&path, share(&org, 11)).await.json["code"], "over_committed");
        assert_eq!(admin.post(&path, share("gone", 1)).await.refused(404), "copilot org not found");
        admin.post(&path, share(&org, -1)).await.refused(422);
        assert_eq!(admin.post(&path, share(&org, 10)).await.ok()["dry_run"], true);
        // What cannot be tried says so, and is not done.
        let reply = admin.post("/copilot/orgs?dry_run=true", json!({"name": "Sales"})).await;
        assert_eq!(reply.json["errors"][0]["pointer"], "dry_run");
        reply.refused(422);
        assert_eq!(admin.get("/copilot/orgs").await.column("name"), ["Research"]);
        for wrong in ["yes", "1", ""] {
            let path = format!("{BUDGETS}/plans?dry_run={wrong}");
            assert_eq!(admin.post(&path, json!({"name": "x"})).await.json["errors"][0]["pointer"], "dry_run");
        }
    }
}
