//! Budgets by how much of them is used: whatever happens to budgets, the list that an index leads is
//! the one that is read as a whole.

use std::time::Duration;

use alchemi::clock::Clock as _;
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any};
use proptest::prop_oneof;
use proptest::sample::Index;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

use crate::at_mid_january;
use crate::budgets::{plan, tree};
use crate::common::{Client, backends};
use crate::gateway::gateways_at_rest;

const BASE: &str = "/v1/budgets/copilot";
const STEPS: usize = 150;

/// What happens; an index is of a scope, or of a row.
#[derive(Debug, Clone)]
enum Step {
    Give(Index, &'static str),
    TakeAway(Index),
    Use(Index, u32),
    Override(Index, &'static str, Option<u32>),
    TakeBack(Index),
    Leave(Index),
    PutInForce(Index),
    Wait(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let scope = any::<Index>;
    // Of the least of them there are no hundredths.
    let credits = || prop_oneof![Just("0"), Just("0.00000004"), Just("0.000000199"), Just("1"), Just("10"), Just("30")];
    prop_oneof![
        3 => (scope(), credits()).prop_map(|(of, credits)| Step::Give(of, credits)),
        1 => scope().prop_map(Step::TakeAway),
        5 => (scope(), 1..12_u32).prop_map(|(of, cost)| Step::Use(of, cost)),
        2 => (scope(), credits(), proptest::option::of(1..40_u32)).prop_map(|(of, c, hours)| Step::Override(of, c, hours)),
        1 => scope().prop_map(Step::TakeBack),
        1 => scope().prop_map(Step::Leave),
        1 => scope().prop_map(Step::PutInForce),
        2 => (1..30_u32).prop_map(Step::Wait),
    ]
}

/// An account with two plans, an org of users, and a pool.
struct Acme {
    admin: Client,
    team: String,
    plans: [String; 2],
    in_force: usize,
    users: usize,
    scopes: Vec<(&'static str, String)>,
}

impl Acme {
    async fn take(&mut self, step: &Step, now: jiff::Timestamp) {
        let plan = &self.plans[self.in_force];
        match step {
            Step::Give(of, credits) => {
                let (kind, id) = of.get(&self.scopes);
                let credits: Value = serde_json::from_str(credits).unwrap();
                let share = json!({"plan_id": plan, "scope_type": kind, "scope_id": id, "allocated_credits": credits});
                self.admin.post(&format!("{BASE}/allocations/upsert"), share).await.ok();
            }
            Step::TakeAway(of) => {
                let (kind, id) = of.get(&self.scopes);
                let share = format!("{BASE}/allocations?plan_id={plan}&scope_type={kind}&scope_id={id}");
                self.admin.delete(&share).await;
            }
            Step::Use(of, cost) => {
                let (kind, id) = of.get(&self.scopes);
                let mut usage = json!({"raw_cost": cost});
                if *kind != "pool" {
                    usage[format!("{kind}_id")] = json!(id);
                }
                self.admin.post(&format!("{BASE}/usage/record"), usage).await.ok();
            }
            Step::Override(of, credits, hours) => {
                let (kind, id) = of.get(&self.scopes);
                let credits: Value = serde_json::from_str(credits).unwrap();
                let until = hours.map(|hours| (now + jiff::SignedDuration::from_hours(hours.into())).to_string());
                let more = json!({"plan_id": plan, "scope_type": kind, "scope_id": id, "override_credits": credits,
                    "expires_at": until});
                self.admin.post(&format!("{BASE}/overrides"), more).await;
            }
            Step::TakeBack(of) => {
                let listed = self.admin.get(&format!("{BASE}/overrides?plan_id={plan}")).await.ok();
                let rows = listed["items"].as_array().unwrap();
                if !rows.is_empty() {
                    let id = of.get(rows)["id"].as_str().unwrap();
                    self.admin.delete(&format!("{BASE}/overrides/{id}")).await.ok();
                }
            }
            Step::Leave(of) => {
                let at = of.index(self.scopes.len());
                if self.scopes[at].0 == "user" {
                    self.admin.delete(&format!("/v1/copilot/users/{}", self.scopes[at].1)).await.ok();
                    self.users += 1;
                    self.scopes[at].1 = user(&self.admin, &self.team, self.users).await;
                }
            }
            Step::PutInForce(which) => {
                self.in_force = which.index(2);
                self.put_in_force().await;
            }
            Step::Wait(_) => {}
        }
    }

    async fn put_in_force(&self) {
        self.admin.post(&format!("{BASE}/plans/{}/activate", self.plans[self.in_force]), json!({})).await.ok();
    }

    async fn alerts(&self, threshold: f64, more: &str) -> Value {
        self.admin.get(&format!("{BASE}/alerts?threshold={threshold}{more}")).await.ok()
    }
}

async fn user(admin: &Client, team: &str, number: usize) -> String {
    let new = json!({"identity_user_id": number.to_string(), "team_ids": [team]});
    let made = admin.post("/v1/copilot/users", new).await.ok();
    made["item"]["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn whatever_happens_to_budgets_those_most_used_are_found() {
    let steps = vec(step(), STEPS).new_tree(&mut TestRunner::deterministic()).unwrap().current();
    for backend in backends().await {
        let (gateway, clock) = at_mid_january(backend).await;
        let account = gateway.account("Acme").await;
        gateway.allocate(&account, "1000").await;
        let org = gateway.org(&account, "copilot", "Research").await;
        let team = json!({"org_id": org, "name": "Language"});
        let team = gateway.made(&account, "/v1/copilot/teams", team).await;
        let mut plans = Vec::new();
        for plan in [json!({"name": "one", "cycle": "weekly", "rollover": "unused"}), json!({"name": "another"})] {
            plans.push(gateway.made(&account, &format!("{BASE}/plans"), plan).await);
        }
        let admin = gateway.as_account_admin(&account);
        let mut scopes = vec![("org", org), ("team", team.clone()), ("pool", "pool".to_owned())];
        for number in 1..=5 {
            scopes.push(("user", user(&admin, &team, number).await));
        }
        let [one, another] = <[String; 2]>::try_from(plans).unwrap();
        let mut acme = Acme { admin, team, plans: [one, another], in_force: 0, users: 5, scopes };
        acme.put_in_force().await;
        let mut seen = 0;
        for (n, step) in steps.iter().enumerate() {
            if let Step::Wait(hours) = step {
                clock.advance(Duration::from_secs(3600 * u64::from(*hours)));
                acme.admin = gateway.as_account_admin(&account);
            }
            acme.take(step, jiff::Timestamp::from_microsecond(clock.now().as_micros()).unwrap()).await;
            let whole = acme.alerts(0.0, "&limit=1000").await;
            for threshold in [0.000_001, 24.5, 80.0, 100.0, 333.0] {
                let above = |alert: &&Value| alert["usage_percentage"].as_f64().unwrap() >= threshold;
                let expected: Vec<Value> = whole["items"].as_array().unwrap().iter().filter(above).cloned().collect();
                seen += expected.len();
                let found = acme.alerts(threshold, "&limit=1000").await;
                assert_eq!(found["items"], json!(expected), "{threshold} after step {n}: {step:?}");
                let (mut walked, mut cursor) = (Vec::new(), String::new());
                if n % 10 != 0 {
                    continue;
                }
                loop {
                    let page = acme.alerts(threshold, &format!("&limit=2{cursor}")).await;
                    walked.extend(page["items"].as_array().unwrap().iter().cloned());
                    let Some(next) = page["next_cursor"].as_str() else { break };
                    cursor = format!("&cursor={next}");
                }
                assert_eq!(walked, expected, "{threshold} by pages after step {n}: {step:?}");
            }
        }
        assert!(seen > STEPS, "{seen} alerts are too few to compare");
    }
}

#[tokio::test]
async fn what_is_ranked_once_is_not_ranked_again() {
    for (gateway, clock) in gateways_at_rest(|app| app).await {
        let account = gateway.account("Acme").await;
        let admin = gateway.as_admin_of(&account).await;
        let [org, ..] = tree(&admin).await;
        let plan = plan(&admin, json!({"name": "2026"})).await;
        let give = async |credits: i64| {
            crate::budgets::give(&admin, &plan, ("org", &org), json!(credits)).await.ok();
        };
        let spend = async |cost: i64| {
            admin.post("/budgets/copilot/usage/record", json!({"raw_cost": cost, "org_id": org})).await.ok();
        };
        let ask = async || {
            let before = gateway.store.statements();
            let alerts = admin.get("/budgets/copilot/alerts").await.ok();
            let shares = alerts["items"].as_array().unwrap().iter().map(|alert| alert["usage_percentage"].clone());
            (gateway.store.statements() - before, shares.collect::<Vec<_>>())
        };
        give(10).await;
        spend(8).await;
        let (first, found) = ask().await;
        assert_eq!(found, [json!(80.0)]);
        let (again, found) = ask().await;
        assert_eq!(found, [json!(80.0)]);
        assert!(again < first, "{again} statements after {first}");
        // A settlement ranks what it adds to.
        spend(1).await;
        assert_eq!(ask().await, (again, vec![json!(90.0)]));
        give(11).await;
        let (changed, found) = ask().await;
        assert!(found[0].as_f64().unwrap() < 82.0 && changed > again, "{found:?}");
        assert_eq!(ask().await.0, again);
        // What lapses is ranked when it does.
        let until = json!({"plan_id": plan, "scope_type": "org", "scope_id": org, "override_credits": 9,
            "expires_at": "2027-01-15T09:00:00Z"});
        admin.post("/budgets/copilot/overrides", until).await.ok();
        assert_eq!(ask().await.1, [json!(100.0)]);
        assert_eq!(ask().await.0, again);
        clock.advance(Duration::from_secs(3600));
        let (lapsed, found) = ask().await;
        assert!(found[0].as_f64().unwrap() < 82.0 && lapsed > again, "{found:?}");
        assert_eq!(ask().await.0, again);
    }
}

/// Somebody whose clock is ahead has ranked what holds later; where nothing can be ranked, all is looked at.
#[tokio::test]
async fn what_is_ranked_for_another_moment_is_not_believed() {
    for backend in backends().await {
        let (gateway, clock) = at_mid_january(backend).await;
        let account = gateway.account("Acme").await;
        gateway.allocate(&account, "1000").await;
        let org = gateway.org(&account, "copilot", "Research").await;
        let plan = gateway.made(&account, &format!("{BASE}/plans"), json!({"name": "2026"})).await;
        gateway.allot(&account, &plan, ("org", &org), "10").await;
        let shares = async || {
            let alerts = gateway.as_account_admin(&account).get(&format!("{BASE}/alerts")).await.ok();
            alerts["items"].as_array().unwrap().iter().map(|it| it["usage_percentage"].clone()).collect::<Vec<_>>()
        };
        let admin = gateway.as_account_admin(&account);
        let hour = (jiff::Timestamp::from_microsecond(clock.now().as_micros()).unwrap()
            + jiff::SignedDuration::from_hours(1))
        .to_string();
        let more = json!({"plan_id": plan, "scope_type": "org", "scope_id": org, "override_credits": 1000, "expires_at": hour});
        admin.post(&format!("{BASE}/overrides"), more).await.ok();
        admin.post(&format!("{BASE}/usage/record"), json!({"raw_cost": 9, "org_id": org})).await.ok();
        assert!(shares().await.is_empty());
        gateway.database.execute(r#"UPDATE "Alchemi_BudgetRevisionTable" SET ranked_at = 9000000000000000"#).await;
        clock.advance(Duration::from_secs(2 * 3600));
        assert_eq!(shares().await, [json!(90.0)]);
        gateway.database.execute(r#"UPDATE "Alchemi_BudgetRevisionTable" SET ranked_at = 0"#).await;
        assert_eq!(shares().await, [json!(90.0)]);
        let left =
            gateway.database.rows(r#"SELECT revision - ranked AS n FROM "Alchemi_BudgetRevisionTable""#, &[]).await;
        assert_eq!(left[0]["n"], json!(0), "it is ranked again");
    }
}
