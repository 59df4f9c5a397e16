//! Plans that forbid to promise more than there is.

use serde_json::{Value, json};

use crate::budgets::{BUDGETS, funded, funded_with, give, plan, tree};
use crate::gateway::gateways;

#[tokio::test]
async fn a_plan_can_forbid_over_commitment() {
    for gateway in gateways(|app| app).await {
        let (admin, _) = funded(&gateway).await;
        let [org, team, ada] = tree(&admin).await;
        let plan = plan(&admin, json!({"name": "2026", "over_commit": "forbid"})).await;
        let refused = give(&admin, &plan, ("org", &org), json!(101)).await;
        assert_eq!((&refused.json["code"], &refused.json["limit"]), (&json!("over_committed"), &json!(100)));
        refused.refused(409);
        give(&admin, &plan, ("org", &org), json!(100)).await.ok();
        give(&admin, &plan, ("team", &team), json!(100.5)).await.refused(409);
        give(&admin, &plan, ("team", &team), json!(60)).await.ok();
        give(&admin, &plan, ("user", &ada), json!(60)).await.ok();
        give(&admin, &plan, ("team", &team), json!(59)).await.refused(409);
        let raise = json!({"plan_id": plan, "scope_type": "user", "scope_id": ada, "override_credits": 61});
        admin.post(&format!("{BUDGETS}/overrides"), raise).await.refused(409);
        assert_eq!(admin.get(&format!("{BUDGETS}/overrides")).await.column("id"), [""; 0]);

        let path = format!("{BUDGETS}/plans/{plan}");
        admin.patch(&path, json!({"over_commit": "allow"})).await.ok();
        give(&admin, &plan, ("org", &org), json!(150)).await.ok();
        let whole = admin.get(&format!("{BUDGETS}/effective-allocation?plan_id={plan}")).await.ok();
        assert_eq!((&whole["distributed"], &whole["unallocated"]), (&json!(150), &json!(-50)));
        assert_eq!(whole["over_commit_ratio"], json!(1.5));
        admin.patch(&path, json!({"over_commit": "forbid"})).await.refused(409);

        // What is allowed says how much it is: of the account, the org or the team, the most.
        let given = give(&admin, &plan, ("team", &team), json!(450)).await.ok();
        assert_eq!(given["over_commit_ratio"], json!(3.0));
        let given = give(&admin, &plan, ("team", &team), json!(30)).await.ok();
        assert_eq!(given["over_commit_ratio"], json!(2.0), "60 of the user, of 30");
        let sum = json!({"plan_id": plan, "scope_type": "team", "scope_ids": [team], "total_credits": 60});
        let given = admin.post(&format!("{BUDGETS}/distribute/equal"), sum).await.ok();
        assert_eq!((&given["over_commit_ratio"], &given["status"]), (&json!(1.5), &json!("ok")));
        let raise = json!({"plan_id": plan, "scope_type": "team", "scope_id": team, "override_credits": 15});
        let over = admin.post(&format!("{BUDGETS}/overrides"), raise).await.ok();
        assert_eq!(over["over_commit_ratio"], json!(4.0));
    }
}

#[tokio::test]
async fn a_new_member_does_not_over_commit_a_team_of_a_plan_that_forbids_it() {
    for gateway in gateways(|app| app).await {
        let (admin, _) = funded_with(&gateway, 200).await;
        let [org, team, ada] = tree(&admin).await;
        let strict = plan(&admin, json!({"name": "2026", "over_commit": "forbid"})).await;
        for (scope, credits) in [(("org", &*org), 100), (("team", &*team), 60), (("user", &*ada), 40)] {
            give(&admin, &strict, scope, json!(credits)).await.ok();
        }
        let bob = admin.made("/copilot/users", json!({"email": "bob@acme.com"})).await;
        give(&admin, &strict, ("user", &bob), json!(30)).await.ok();
        let members = format!("/copilot/teams/{team}/members");
        let user = json!({"email": "bob@acme.com", "display_name": "Bob", "team_ids": [team]});
        for (path, body) in [(&*members, json!({"user_id": bob})), ("/copilot/users", user.clone())] {
            let refused = admin.post(path, body).await;
            let told = ["code", "scope_type", "scope_id", "limit", "promised"].map(|name| refused.json[name].clone());
            assert_eq!(told, [json!("over_committed"), json!("team"), json!(team), json!(60), json!(70)]);
            refused.refused(409);
            assert_eq!(admin.get(&members).await.column("user_id"), [&*ada]);
        }
        let kept = admin.get(&format!("/copilot/users/{bob}")).await.ok();
        assert_eq!(kept["item"]["display_name"], Value::Null, "nothing of what was refused is there");

        // Who is a member already may be named again; one without a share brings none along.
        admin.post(&members, json!({"user_id": ada, "role": "lead"})).await.ok();
        admin.made("/copilot/users", json!({"email": "eve@acme.com", "team_ids": [team]})).await;
        let other = admin.made("/copilot/teams", json!({"org_id": org, "name": "without a share"})).await;
        admin.post(&format!("/copilot/teams/{other}/members"), json!({"user_id": bob})).await.ok();

        // As much as there is left fits, and what was given is not more than that.
        give(&admin, &strict, ("user", &bob), json!(20)).await.ok();
        admin.post("/copilot/users", user.clone()).await.ok();
        give(&admin, &strict, ("user", &bob), json!(21)).await.refused(409);
        admin.delete(&format!("{members}/{bob}")).await.ok();
        give(&admin, &strict, ("user", &bob), json!(21)).await.ok();
        admin.post(&members, json!({"user_id": bob})).await.refused(409);
        let path = format!("{BUDGETS}/plans/{strict}");
        admin.patch(&path, json!({"over_commit": "allow"})).await.ok();
        admin.post(&members, json!({"user_id": bob})).await.ok();
        admin.patch(&path, json!({"over_commit": "forbid"})).await.refused(409);
    }
}

#[tokio::test]
async fn a_plan_that_is_over_committed_is_not_put_in_force_nor_renewed() {
    for gateway in gateways(|app| app).await {
        let (admin, operator) = funded(&gateway).await;
        let [org, team, _] = tree(&admin).await;
        let strict = plan(&admin, json!({"name": "2026", "over_commit": "forbid", "cycle": "none"})).await;
        give(&admin, &strict, ("org", &org), json!(60)).await.ok();
        give(&admin, &strict, ("team", &team), json!(90)).await.refused(409);
        let lower = json!({"plan_id": strict, "scope_type": "team", "scope_id": team, "override_credits": 10});
        give(&admin, &strict, ("team", &team), json!(60)).await.ok();
        admin.post(&format!("{BUDGETS}/overrides"), lower).await.ok();
        // Under the override, the org may be lowered; without it, the copy would be too much.
        give(&admin, &strict, ("org", &org), json!(20)).await.ok();
        let cycle = |copy: bool| json!({"cycle_start": "2026-01-01T00:00:00Z", "cycle_end": "2999-02-01T00:00:00Z", "copy_overrides": copy});
        let renew = format!("{BUDGETS}/cycles/renew");
        assert_eq!(admin.post(&renew, cycle(false)).await.json["code"], "over_committed");
        assert_eq!(admin.get(&format!("{BUDGETS}/plans/active")).await.ok()["item"]["id"], json!(strict));

        plan(&admin, json!({"name": "other"})).await;
        let account = admin.get(&format!("{BUDGETS}/effective-allocation")).await.ok()["account_id"].clone();
        let activate = format!("{BUDGETS}/plans/{strict}/activate");
        for (credits, status) in [(19, 409), (20, 200)] {
            let terms = json!({"account_id": account, "monthly_credits": credits});
            operator.post("/budgets/account-allocation", terms).await.ok();
            assert_eq!(admin.post(&activate, json!(null)).await.status, status);
        }
        admin.post(&renew, cycle(true)).await.ok();
    }
}
