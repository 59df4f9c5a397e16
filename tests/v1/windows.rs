//! Budgets in time, and whose credits are drawn on.

use std::time::Duration;

use serde_json::{Value, json};

use crate::common::{Client, Gateway, backends};
use crate::operations::NOBODY;
use crate::{at_mid_january, invalid, refusal, text};

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
        let new = json!({"account_name": "Acme", "metadata": {"timezone": "Asia/Tokyo"}});
        let made = gateway.operator().post("/v1/accounts", new).await.ok();
        let account = made["item"]["account_id"].as_str().unwrap().to_owned();
        gateway.allocate(&account, "1").await;
        let mine = gateway.as_end_user(&account, "eve").get("/v1/me/allocation").await.ok();
        let window = json!({"start": "2025-12-31T15:00:00Z", "end": "2026-01-31T15:00:00Z"});
        assert_eq!(mine["items"][0]["window"], window);
    }
}

/// What is used stays used, whatever zone the account goes through: the window's end moves alone.
#[tokio::test]
async fn another_time_zone_gives_nothing_back() {
    for backend in backends().await {
        let (gateway, clock) = at_mid_january(backend).await;
        let account = gateway.account("Acme").await;
        gateway.allocate(&account, "100").await;
        let admin = gateway.as_account_admin(&account);
        admin.post("/v1/budgets/copilot/usage/record", json!({"raw_cost": 90})).await.ok();
        let mine = async || {
            let mine = gateway.as_end_user(&account, "eve").get("/v1/me/allocation").await.ok();
            let item = &mine["items"][0];
            assert_eq!((&item["used"], &item["remaining"]), (&json!(90), &json!(10)));
            (item["window"]["start"].clone(), item["window"]["end"].clone())
        };
        let begun = json!("2026-01-01T00:00:00Z");
        for (metadata, end) in [
            (json!({"timezone": "Asia/Kolkata"}), "2026-01-31T18:30:00Z"),
            (json!({"timezone": "America/New_York"}), "2026-02-01T05:00:00Z"),
            // Without one it is UTC's.
            (json!({}), "2026-02-01T00:00:00Z"),
        ] {
            clock.advance(Duration::from_secs(60));
            let change = json!({"metadata": metadata});
            gateway.operator().patch(&format!("/v1/accounts/{account}"), change).await.ok();
            assert_eq!(mine().await, (begun.clone(), json!(end)));
        }
        assert_eq!(gateway.verify_books().await.differences, []);
    }
}
