//! The account's allocation, plans, allocations, overrides, equal distribution and renewals.

use std::time::Duration;

use serde_json::{Value, json};

use crate::common::{Client, Gateway, backends};
use crate::operations::NOBODY;
use crate::{at_mid_january, ids, invalid, refusal, text};

const BASE: &str = "/v1/budgets/copilot";

/// An account with 1000 credits a month, a plan, and a tree to divide it over.
struct Tree {
    gateway: Gateway,
    account: String,
    admin: Client,
    plan: String,
    org: String,
    teams: Vec<String>,
    user: String,
}

impl Tree {
    async fn grow(gateway: Gateway) -> Self {
        let account = gateway.account("Acme").await;
        gateway.allocate(&account, "1000").await;
        let org = gateway.org(&account, "copilot", "Research").await;
        let mut teams = Vec::new();
        for name in ["Language", "Vision", "Sound"] {
            teams.push(gateway.team(&account, "copilot", &org, name).await);
        }
        let user = gateway.user(&account, "copilot", "ada", &[&teams[0]]).await;
        let plan = gateway.plan(&account).await;
        let admin = gateway.as_account_admin(&account);
        Self { gateway, account, admin, plan, org, teams, user }
    }

    /// What the plan's scopes have, by kind and id.
    async fn effective(&self, query: &str) -> Value {
        self.admin.get(&format!("{BASE}/effective-allocation?{query}")).await.ok()
    }

    async fn upsert(&self, kind: &str, id: &str, credits: Value) -> crate::common::Reply {
        let body = json!({"plan_id": self.plan, "scope_type": kind, "scope_id": id, "allocated_credits": credits});
        self.admin.post(&format!("{BASE}/allocations/upsert"), body).await
    }

    async fn over(&self, kind: &str, id: &str, credits: i64, expires_at: Option<&str>) -> crate::common::Reply {
        let body = json!({
            "plan_id": self.plan, "scope_type": kind, "scope_id": id, "override_credits": credits,
            "expires_at": expires_at, "reason": "why",
        });
        self.admin.post(&format!("{BASE}/overrides"), body).await
    }

    async fn use_up(&self, cost: &str, place: Value) {
        let mut body = json!({"raw_cost": cost});
        body.as_object_mut().unwrap().extend(place.as_object().unwrap().clone());
        self.admin.post(&format!("{BASE}/usage/record"), body).await.ok();
    }
}

fn scope<'a>(answer: &'a Value, id: &str) -> &'a Value {
    let items = answer["items"].as_array().unwrap();
    items.iter().find(|item| item["scope_id"] == id).unwrap_or_else(|| panic!("{id} is not in {answer}"))
}

#[tokio::test]
async fn an_account_has_what_the_operator_says() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let (operator, admin) = (gateway.operator(), gateway.as_account_admin(&account));
        let (path, own) = ("/v1/budgets/account-allocation", format!("{BASE}/account-allocation"));
        assert_eq!(admin.get(&own).await.ok(), json!({"monthly_credits": 0, "overflow_limit": 0, "credit_factor": 1}));
        let one = format!("{path}?account_id={account}");
        assert_eq!(operator.get(&one).await.ok(), json!({"item": null}));

        let set =
            json!({"account_id": account, "monthly_credits": 1000, "overflow_limit": "100.5", "credit_factor": 1.5});
        assert_eq!(operator.post(path, set).await.ok(), json!({"status": "ok"}));
        let item = operator.get(&one).await.ok()["item"].clone();
        assert_eq!(
            (&item["monthly_credits"], &item["overflow_limit"], &item["credit_factor"]),
            (&json!(1000), &json!(100.5), &json!(1.5))
        );
        assert_eq!(admin.get(&own).await.ok()["credit_factor"], 1.5);
        operator.post(path, json!({"account_id": account})).await.ok();
        assert_eq!(admin.get(&own).await.ok()["monthly_credits"], 0, "left out is the default");
        assert_eq!(operator.get(path).await.ok()["items"].as_array().unwrap().len(), 1);

        refusal(&operator.post(path, json!({"account_id": NOBODY, "monthly_credits": 1})).await, 404, "not_found");
        invalid(&operator.post(path, json!({"account_id": account, "overflow_limit": -1})).await, "/overflow_limit");
        invalid(&operator.post(path, json!({"account_id": account, "credit_factor": 0})).await, "/credit_factor");
        invalid(&operator.post(path, json!({"account_id": account, "credit_factor": -1})).await, "/credit_factor");
    }
}

#[tokio::test]
async fn one_plan_is_in_force() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let admin = gateway.as_account_admin(&account);
        let path = format!("{BASE}/plans");
        let active = async || admin.get(&format!("{path}/active")).await.ok()["item"].clone();
        assert_eq!(active().await, json!(null));
        let a = admin.post(&path, json!({"name": "A"})).await.ok()["item"].clone();
        assert_eq!(
            (&a["cycle"], &a["status"], &a["over_commit"]),
            (&json!("monthly"), &json!("active"), &json!("allow"))
        );
        let b = admin.post(&path, json!({"name": "B", "cycle": "weekly", "over_commit": "forbid"})).await.ok()["item"]
            .clone();
        assert_eq!(active().await, b);
        let one = format!("{path}/{}", text(&a["id"]));
        assert_eq!(admin.get(&one).await.ok()["item"]["status"], "inactive");
        assert_eq!(admin.post(&format!("{one}/activate"), json!({})).await.ok()["item"]["status"], "active");
        assert_eq!(active().await["id"], a["id"]);
        let again = admin.post(&format!("{one}/activate"), json!({})).await;
        assert_eq!(again.status.as_u16(), 200);
        assert_eq!(ids(&admin.get(&path).await.ok()), [text(&b["id"]), text(&a["id"])]);

        assert_eq!(admin.patch(&one, json!({"name": "A2"})).await.ok()["item"]["name"], "A2");
        refusal(&admin.patch(&one, json!({"name": " "})).await, 400, "name_required");
        invalid(&admin.patch(&one, json!({"name": null})).await, "/name");
        invalid(&admin.patch(&one, json!({"cycle": "daily"})).await, "/cycle");
        invalid(&admin.post(&path, json!({"name": "C", "cycle": "hourly"})).await, "/cycle");
        for (method, suffix) in [("get", ""), ("patch", ""), ("post", "/activate")] {
            let missing = format!("{path}/{NOBODY}{suffix}");
            let reply = match method {
                "get" => admin.get(&missing).await,
                "patch" => admin.patch(&missing, json!({"name": "x"})).await,
                _ => admin.post(&missing, json!({})).await,
            };
            refusal(&reply, 404, "not_found");
        }
    }
}

#[tokio::test]
async fn of_many_plans_at_once_one_is_in_force() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let admin = gateway.as_account_admin(&account);
        let path = format!("{BASE}/plans");
        let calls = (0..8).map(|number| {
            let (admin, path) = (admin.clone(), path.clone());
            tokio::spawn(async move { admin.post(&path, json!({"name": number.to_string()})).await.status.as_u16() })
        });
        for call in calls.collect::<Vec<_>>() {
            assert!(matches!(call.await.unwrap(), 200 | 409));
        }
        let plans = admin.get(&path).await.ok();
        let active = plans["items"].as_array().unwrap().iter().filter(|plan| plan["status"] == "active").count();
        assert_eq!(active, 1, "{plans}");
    }
}

#[tokio::test]
async fn scopes_are_given_shares() {
    for backend in backends().await {
        let tree = Tree::grow(Gateway::start(backend).await).await;
        let path = format!("{BASE}/allocations");
        let made = tree.upsert("team", &tree.teams[0], json!("12.5")).await.ok()["item"].clone();
        assert_eq!(
            (&made["allocated_credits"], &made["source"], &made["overflow_cap"]),
            (&json!(12.5), &json!("manual"), &json!(null))
        );
        let again = tree.upsert(" TEAM ", &tree.teams[0], json!(20)).await.ok()["item"].clone();
        assert_eq!((&again["id"], &again["allocated_credits"]), (&made["id"], &json!(20)));
        assert_eq!(tree.upsert("group", &tree.org, json!(100)).await.ok()["item"]["scope_type"], "org");
        tree.upsert("user", &tree.user, json!(5)).await.ok();
        tree.upsert("pool", "pool", json!(50)).await.ok();
        assert_eq!(ids(&tree.admin.get(&path).await.ok()).len(), 4);
        assert_eq!(ids(&tree.admin.get(&format!("{path}?plan_id={NOBODY}")).await.ok()).len(), 0);

        invalid(&tree.upsert("team", &tree.teams[0], json!(-1)).await, "/allocated_credits");
        invalid(&tree.upsert("pool", "other", json!(1)).await, "/scope_id");
        refusal(&tree.upsert("account", &tree.account, json!(1)).await, 400, "invalid_scope_type");
        refusal(&tree.upsert("team", NOBODY, json!(1)).await, 404, "not_found");
        let body = json!({"plan_id": NOBODY, "scope_type": "pool", "scope_id": "pool", "allocated_credits": 1});
        refusal(&tree.admin.post(&format!("{path}/upsert"), body).await, 404, "not_found");

        let of = format!("{path}?plan_id={}&scope_type=team&scope_id={}", tree.plan, tree.teams[0]);
        assert_eq!(tree.admin.delete(&of).await.ok(), json!({"deleted": true}));
        assert_eq!(tree.admin.delete(&of).await.ok(), json!({"deleted": false}));
        invalid(&tree.admin.delete(&format!("{path}?plan_id={}", tree.plan)).await, "scope_type");
    }
}

#[tokio::test]
async fn a_sum_is_divided_exactly() {
    for backend in backends().await {
        let tree = Tree::grow(Gateway::start(backend).await).await;
        let path = format!("{BASE}/distribute/equal");
        let send = |scope_ids: Value, total: &str| {
            let body =
                json!({"plan_id": tree.plan, "scope_type": "team", "scope_ids": scope_ids, "total_credits": total});
            tree.admin.post(&path, body)
        };
        let done = send(json!(tree.teams), "100").await.text();
        assert!(done.contains(r#""per_scope":33.333333334"#), "{done}");
        let done: Value = serde_json::from_str(&done).unwrap();
        assert_eq!(done["status"], "ok");
        let list = tree.admin.get(&format!("{BASE}/allocations")).await;
        let text = list.text();
        let amounts: Vec<&str> =
            text.split(r#""allocated_credits":"#).skip(1).map(|rest| rest.split(',').next().unwrap()).collect();
        assert_eq!(amounts.iter().filter(|a| **a == "33.333333333").count(), 2, "{amounts:?}");
        assert_eq!(amounts.iter().filter(|a| **a == "33.333333334").count(), 1, "{amounts:?}");
        assert!(list.json()["items"].as_array().unwrap().iter().all(|item| item["source"] == "equal"));

        refusal(&send(json!([]), "1").await, 400, "scope_ids_empty");
        invalid(&send(json!([tree.teams[0], tree.teams[1], tree.teams[0]]), "1").await, "/scope_ids/2");
        invalid(&send(json!(tree.teams), "-1").await, "/total_credits");
        refusal(&send(json!([tree.teams[0], NOBODY]), "9").await, 404, "not_found");
        assert_eq!(tree.admin.get(&format!("{BASE}/allocations")).await.text(), text, "nothing is half divided");
    }
}

#[tokio::test]
async fn the_newest_override_that_holds_counts() {
    for backend in backends().await {
        let (gateway, clock) = at_mid_january(backend).await;
        let tree = Tree::grow(gateway).await;
        let team = &tree.teams[0];
        tree.upsert("team", team, json!(10)).await.ok();
        let effective = async || {
            let answer = tree.effective("").await;
            let item = scope(&answer, team).clone();
            (item["base_allocated"].clone(), item["effective_allocated"].clone(), item["override_applied"].clone())
        };
        assert_eq!(effective().await, (json!(10), json!(10), json!(false)));
        let first = text(&tree.over("team", team, 20, None).await.ok()["item"]["id"]);
        assert_eq!(effective().await, (json!(10), json!(20), json!(true)));
        clock.advance(Duration::from_secs(1));
        tree.over("team", team, 30, Some("2026-01-15T13:00:00Z")).await.ok();
        assert_eq!(effective().await.1, json!(30));
        let chain = tree.effective(&format!("user_id={}", tree.user)).await;
        assert_eq!(scope(&chain, team)["cap"], 30, "the hot path sees the same");
        clock.advance(Duration::from_secs(3600));
        let tree = Tree { admin: tree.gateway.as_account_admin(&tree.account), ..tree };
        let effective = tree.effective("").await;
        assert_eq!(scope(&effective, &tree.teams[0])["effective_allocated"], 20, "it has expired");
        assert_eq!(tree.admin.delete(&format!("{BASE}/overrides/{first}")).await.ok()["deleted"], true);
        let effective = tree.effective("").await;
        assert_eq!(scope(&effective, &tree.teams[0])["effective_allocated"], 10);
        refusal(&tree.admin.delete(&format!("{BASE}/overrides/{first}")).await, 404, "not_found");

        invalid(&tree.over("team", &tree.teams[0], -1, None).await, "/override_credits");
        invalid(&tree.over("team", &tree.teams[0], 1, Some("2026-01-15T12:00:00Z")).await, "/expires_at");
        refusal(&tree.over("team", NOBODY, 1, None).await, 404, "not_found");
        let list = tree.admin.get(&format!("{BASE}/overrides?plan_id={}", tree.plan)).await.ok();
        assert_eq!((list["items"].as_array().unwrap().len(), &list["items"][0]["reason"]), (1, &json!("why")));
    }
}

#[tokio::test]
async fn a_plan_may_forbid_over_commitment() {
    for backend in backends().await {
        let tree = Tree::grow(Gateway::start(backend).await).await;
        let plan = format!("{BASE}/plans/{}", tree.plan);
        tree.upsert("org", &tree.org, json!(1001)).await.ok();
        let whole = tree.effective("").await;
        assert_eq!((&whole["distributed"], &whole["unallocated"]), (&json!(1001), &json!(-1)));
        assert_eq!(whole["over_commit_ratio"], 1.001);
        refusal(&tree.admin.patch(&plan, json!({"over_commit": "forbid"})).await, 409, "over_committed");
        tree.upsert("org", &tree.org, json!(600)).await.ok();
        assert_eq!(
            tree.admin.patch(&plan, json!({"over_commit": "forbid"})).await.ok()["item"]["over_commit"],
            "forbid"
        );

        let over = refusal(&tree.upsert("org", &tree.org, json!(1001)).await, 409, "over_committed");
        assert_eq!(
            (&over["scope_type"], &over["limit"], &over["promised"]),
            (&json!("account"), &json!(1000), &json!(1001))
        );
        tree.upsert("team", &tree.teams[0], json!(400)).await.ok();
        let over = refusal(&tree.upsert("team", &tree.teams[1], json!(201)).await, 409, "over_committed");
        assert_eq!((&over["scope_type"], &over["scope_id"]), (&json!("org"), &json!(tree.org)));
        refusal(&tree.over("team", &tree.teams[0], 601, None).await, 409, "over_committed");
        let body = json!({"plan_id": tree.plan, "scope_type": "team", "scope_ids": tree.teams, "total_credits": 601});
        refusal(&tree.admin.post(&format!("{BASE}/distribute/equal"), body).await, 409, "over_committed");
        assert_eq!(scope(&tree.effective("").await, &tree.teams[0])["effective_allocated"], 400, "nothing was written");
        tree.upsert("team", &tree.teams[1], json!(200)).await.ok();
    }
}

#[tokio::test]
async fn a_chain_tells_what_is_left() {
    for backend in backends().await {
        let tree = Tree::grow(Gateway::start(backend).await).await;
        tree.upsert("org", &tree.org, json!(100)).await.ok();
        tree.upsert("team", &tree.teams[0], json!(40)).await.ok();
        tree.use_up("15.5", json!({"user_id": tree.user})).await;
        let chain = tree.effective(&format!("user_id={}", tree.user)).await;
        let kinds: Vec<_> = chain["items"].as_array().unwrap().iter().map(|i| text(&i["scope_type"])).collect();
        assert_eq!(kinds, ["user", "team", "org", "account"]);
        let team = scope(&chain, &tree.teams[0]);
        assert_eq!(
            (&team["cap"], &team["used"], &team["reserved"], &team["remaining"]),
            (&json!(40), &json!(15.5), &json!(0), &json!(24.5))
        );
        assert_eq!(scope(&chain, &tree.user)["cap"], json!(null), "only counted");
        assert_eq!(scope(&chain, &tree.account)["remaining"], 984.5);
        assert!(chain.get("distributed").is_none());
        let mine = tree.gateway.as_end_user(&tree.account, "ada").get("/v1/me/allocation").await.ok();
        assert_eq!(mine, chain, "the caller's own chain is the same");
        let stranger = tree.gateway.as_end_user(&tree.account, "eve").get("/v1/me/allocation").await.ok();
        assert_eq!(stranger["items"].as_array().unwrap().len(), 1);
        assert_eq!(tree.effective(&format!("org_id={}", tree.org)).await["items"].as_array().unwrap().len(), 2);
        let other = tree.gateway.org(&tree.account, "copilot", "Other").await;
        let wrong = format!("{BASE}/effective-allocation?org_id={other}&team_id={}", tree.teams[0]);
        invalid(&tree.admin.get(&wrong).await, "/org_id");
        let unknown = format!("{BASE}/effective-allocation?plan_id={NOBODY}");
        refusal(&tree.admin.get(&unknown).await, 404, "not_found");
    }
}

/// Whose scopes have nothing of their own draws on the pool.
#[tokio::test]
async fn the_pool_is_for_those_without_a_share() {
    for backend in backends().await {
        let tree = Tree::grow(Gateway::start(backend).await).await;
        tree.upsert("pool", "pool", json!(50)).await.ok();
        tree.use_up("5", json!({"user_id": tree.user})).await;
        assert_eq!(scope(&tree.effective("").await, "pool")["used"], 5);
        tree.upsert("team", &tree.teams[0], json!(10)).await.ok();
        tree.use_up("3", json!({"user_id": tree.user})).await;
        assert_eq!(scope(&tree.effective("").await, "pool")["used"], 5);
        assert_eq!(scope(&tree.effective("").await, &tree.teams[0])["used"], 8, "counted before it was capped");
        assert!(tree.gateway.verify_books().await.differences.is_empty());
    }
}

#[tokio::test]
async fn windows_roll_by_themselves() {
    for backend in backends().await {
        let (gateway, clock) = at_mid_january(backend).await;
        let tree = Tree::grow(gateway).await;
        tree.upsert("org", &tree.org, json!(100)).await.ok();
        tree.use_up("10", json!({"org_id": tree.org})).await;
        let january = tree.effective("").await;
        let org = scope(&january, &tree.org);
        assert_eq!(org["window"], json!({"start": "2026-01-15T12:00:00Z", "end": "2026-02-01T00:00:00Z"}));
        assert_eq!((&org["used"], &org["remaining"]), (&json!(10), &json!(90)));

        clock.advance(Duration::from_secs(17 * 24 * 3600));
        let tree = Tree { admin: tree.gateway.as_account_admin(&tree.account), ..tree };
        let february = tree.effective("").await;
        let org = scope(&february, &tree.org);
        assert_eq!(org["window"], json!({"start": "2026-02-01T00:00:00Z", "end": "2026-03-01T00:00:00Z"}));
        assert_eq!((&org["used"], &org["remaining"]), (&json!(0), &json!(100)));
    }
}

#[tokio::test]
async fn windows_are_of_the_accounts_time_zone() {
    for backend in backends().await {
        let (gateway, _) = at_mid_january(backend).await;
        let account = gateway.account("Acme").await;
        let zone = json!({"metadata": {"timezone": "Asia/Tokyo"}});
        gateway.operator().patch(&format!("/v1/accounts/{account}"), zone).await.ok();
        gateway.allocate(&account, "1").await;
        let mine = gateway.as_end_user(&account, "eve").get("/v1/me/allocation").await.ok();
        let window = json!({"start": "2025-12-31T15:00:00Z", "end": "2026-01-31T15:00:00Z"});
        assert_eq!(mine["items"][0]["window"], window);
    }
}

#[tokio::test]
async fn a_renewal_carries_over_what_is_left() {
    for backend in backends().await {
        let (gateway, clock) = at_mid_january(backend).await;
        let tree = Tree::grow(gateway).await;
        tree.upsert("org", &tree.org, json!(100)).await.ok();
        tree.upsert("pool", "pool", json!(10)).await.ok();
        tree.over("org", &tree.org, 80, None).await.ok();
        tree.use_up("30", json!({"org_id": tree.org})).await;
        clock.advance(Duration::from_secs(17 * 24 * 3600));
        let tree = Tree { admin: tree.gateway.as_account_admin(&tree.account), ..tree };

        let path = format!("{BASE}/cycles/renew");
        let renewal = |cap: Value| {
            json!({
                "cycle_start": "2026-01-01T00:00:00Z", "cycle_end": "2026-02-01T00:00:00Z", "rollover_cap": cap,
                "copy_overrides": true,
            })
        };
        refusal(
            &tree
                .admin
                .post(&path, json!({"cycle_start": "2026-02-01T00:00:00Z", "cycle_end": "2026-02-01T00:00:00Z"}))
                .await,
            400,
            "invalid_cycle",
        );
        invalid(&tree.admin.post(&path, renewal(json!(-1))).await, "/rollover_cap");
        let done = tree.admin.post(&path, renewal(json!(40))).await.ok();
        let summary = &done["summary"];
        assert_eq!(
            (&summary["used_credits"], &summary["unused_credits"], &summary["rollover_credits"]),
            (&json!(30), &json!(60), &json!(40))
        );
        assert_eq!((&summary["source_plan_id"], &summary["new_plan_id"]), (&json!(tree.plan), &done["item"]["id"]));
        assert_eq!((&done["item"]["name"], &done["item"]["status"]), (&json!("plan (2026-02-01)"), &json!("active")));
        assert_ne!(done["item"]["id"], tree.plan);

        let now = tree.effective("").await;
        assert_eq!(now["plan_id"], done["item"]["id"]);
        assert_eq!(
            (&scope(&now, "pool")["base_allocated"], &scope(&now, &tree.org)["effective_allocated"]),
            (&json!(50), &json!(80))
        );
        let again = tree.admin.post(&path, renewal(json!(40))).await.ok();
        assert_eq!((&again["cycle_id"], &again["item"]["id"]), (&done["cycle_id"], &done["item"]["id"]), "done once");
        let overlap = json!({"cycle_start": "2026-01-20T00:00:00Z", "cycle_end": "2026-03-01T00:00:00Z"});
        refusal(&tree.admin.post(&path, overlap).await, 409, "cycle_overlaps");
        let history = tree.admin.get(&format!("{BASE}/cycles/history")).await.ok();
        assert_eq!(history["items"].as_array().unwrap().len(), 1);
        assert_eq!(
            (&history["items"][0]["id"], &history["items"][0]["rollover_credits"]),
            (&done["cycle_id"], &json!(40))
        );

        clock.advance(Duration::from_secs(28 * 24 * 3600));
        let tree = Tree { admin: tree.gateway.as_account_admin(&tree.account), ..tree };
        assert_eq!(
            scope(&tree.effective("").await, "pool")["effective_allocated"],
            10,
            "what was carried over has lapsed"
        );
    }
}

#[tokio::test]
async fn of_many_renewals_at_once_one_is_done() {
    for backend in backends().await {
        let (gateway, _) = at_mid_january(backend).await;
        let tree = Tree::grow(gateway).await;
        let renewal = json!({"cycle_start": "2026-01-01T00:00:00Z", "cycle_end": "2026-02-01T00:00:00Z"});
        let calls = (0..6).map(|_| {
            let (admin, renewal) = (tree.admin.clone(), renewal.clone());
            tokio::spawn(async move { admin.post(&format!("{BASE}/cycles/renew"), renewal).await })
        });
        let mut cycles = Vec::new();
        for call in calls.collect::<Vec<_>>() {
            let reply = call.await.unwrap();
            if reply.status.is_success() {
                cycles.push(text(&reply.json()["cycle_id"]));
            } else {
                assert_eq!(reply.code(), "already_exists", "{}", reply.text());
            }
        }
        cycles.dedup();
        assert_eq!(cycles.len(), 1);
        assert_eq!(ids(&tree.admin.get(&format!("{BASE}/plans")).await.ok()).len(), 2);
    }
}
