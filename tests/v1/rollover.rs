//! What a window leaves to the next one.

use std::sync::Arc;
use std::time::Duration;

use alchemi::clock::ManualClock;
use alchemi::server::Surroundings;
use serde_json::{Value, json};

use crate::common::{Backend, Client, Gateway, backends};
use crate::{at_mid_january, invalid};

pub(crate) const BASE: &str = "/v1/budgets/copilot";
pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);

/// An account with 1000 credits a month, an org, a user of it, and a plan, in mid-January.
pub(crate) struct Acme {
    pub(crate) gateway: Gateway,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) account: String,
    pub(crate) org: String,
    pub(crate) plan: String,
}

impl Acme {
    pub(crate) async fn new(backend: Backend, plan: Value) -> Self {
        let (gateway, clock) = at_mid_january(backend).await;
        let account = gateway.account("Acme").await;
        gateway.allocate(&account, "1000").await;
        let org = gateway.org(&account, "copilot", "Research").await;
        let plan = gateway.made(&account, &format!("{BASE}/plans"), plan).await;
        Self { gateway, clock, account, org, plan }
    }

    /// The admin, with a token that is valid now.
    pub(crate) fn admin(&self) -> Client {
        self.gateway.as_account_admin(&self.account)
    }

    pub(crate) async fn give(&self, kind: &str, id: &str, credits: i64) {
        self.gateway.allot(&self.account, &self.plan, (kind, id), &credits.to_string()).await;
    }

    pub(crate) async fn use_up(&self, cost: i64, place: Value) {
        let mut body = json!({"raw_cost": cost});
        body.as_object_mut().unwrap().extend(place.as_object().unwrap().clone());
        self.admin().post(&format!("{BASE}/usage/record"), body).await.ok();
    }

    /// What the pool has, in its own credits and in all.
    pub(crate) async fn pool(&self) -> Option<(Value, Value)> {
        let whole = self.admin().get(&format!("{BASE}/effective-allocation")).await.ok();
        let is_pool = |item: &&Value| item["scope_type"] == "pool";
        let pool = whole["items"].as_array().unwrap().iter().find(is_pool)?.clone();
        let listed = self.admin().get(&format!("{BASE}/allocations?plan_id={}", self.plan)).await.ok();
        let row = listed["items"].as_array().unwrap().iter().find(is_pool).unwrap();
        Some((row["rollover_credits"].clone(), pool["effective_allocated"].clone()))
    }

    pub(crate) async fn history(&self) -> Vec<Value> {
        let history = self.admin().get(&format!("{BASE}/cycles/history")).await.ok();
        history["items"].as_array().unwrap().clone()
    }
}

pub(crate) fn rolling(more: Value) -> Value {
    let mut plan = json!({"name": "2026", "rollover": "unused"});
    plan.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    plan
}

#[tokio::test]
async fn what_was_not_used_is_there_in_the_next_window() {
    for backend in backends().await {
        let acme = Acme::new(backend, rolling(json!({}))).await;
        acme.give("org", &acme.org, 100).await;
        acme.give("pool", "pool", 10).await;
        acme.use_up(30, json!({"org_id": acme.org})).await;
        assert_eq!(acme.pool().await, Some((json!(0), json!(10))));
        assert!(acme.history().await.is_empty());

        acme.clock.advance(17 * DAY);
        for _ in 0..2 {
            assert_eq!(acme.pool().await, Some((json!(80), json!(90))), "70 of the org, 10 of the pool");
        }
        let history = acme.history().await;
        assert_eq!(history.len(), 1);
        let (cycle, summary) = (&history[0], &history[0]["summary_json"]);
        assert_eq!((&cycle["source_plan_id"], &cycle["new_plan_id"]), (&json!(acme.plan), &json!(acme.plan)));
        assert_eq!(
            (&cycle["cycle_start"], &cycle["cycle_end"]),
            (&json!("2026-01-15T12:00:00Z"), &json!("2026-02-01T00:00:00Z"))
        );
        assert_eq!((&cycle["created_by"], &cycle["rollover_credits"]), (&json!("system"), &json!(80)));
        assert_eq!((&summary["used_credits"], &summary["unused_credits"]), (&json!(30), &json!(80)));
        assert_eq!(summary["carried_over"], json!([{"credits": 80, "until": "2026-03-01T00:00:00Z"}]));

        // Carried credits are drawn first; what is left of them lapses, once.
        acme.use_up(50, json!({})).await;
        acme.clock.advance(28 * DAY);
        assert_eq!(acme.pool().await, Some((json!(110), json!(120))), "100 of the org, and the pool's own 10");
        acme.admin().patch(&format!("{BASE}/plans/{}", acme.plan), json!({"rollover_cap": 25})).await.ok();
        acme.clock.advance(31 * DAY);
        assert_eq!(acme.pool().await, Some((json!(25), json!(35))));
        acme.admin().patch(&format!("{BASE}/plans/{}", acme.plan), json!({"rollover": "none"})).await.ok();
        acme.clock.advance(30 * DAY);
        assert_eq!(acme.pool().await.unwrap().1, json!(10), "what was carried has lapsed");
        assert_eq!(acme.history().await.len(), 3);
        let audit = acme.admin().get("/v1/audit?resource=Alchemi_CopilotBudgetWindowTable").await.ok();
        assert_eq!(audit["items"].as_array().unwrap().len(), 3);
        assert_eq!(audit["items"][0]["actor"]["subject"], "system");
        assert!(acme.gateway.verify_books().await.differences.is_empty());
    }
}

/// Nobody looks at the budget but a request that draws on what was carried.
#[tokio::test]
async fn the_first_request_of_a_window_finds_what_was_carried() {
    for backend in backends().await {
        let acme = Acme::new(backend, rolling(json!({"cycle": "daily"}))).await;
        acme.gateway.open_models(&acme.account).await;
        acme.give("org", &acme.org, 40).await;
        acme.give("pool", "pool", 0).await;
        let ask = async || {
            let body = json!({"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 9});
            let ada = acme.gateway.as_end_user(&acme.account, "ada");
            ada.post("/v1/chat/completions", body).await.status.as_u16()
        };
        assert_eq!(ask().await, 402, "the pool is empty");
        acme.clock.advance(DAY);
        assert_eq!(ask().await, 200);
        assert_eq!(ask().await, 200, "the rules are known now");
        assert_eq!(acme.history().await.len(), 1);
        // The override lapses by itself, too.
        let over = json!({"plan_id": acme.plan, "scope_type": "pool", "scope_id": "pool", "override_credits": 0,
            "expires_at": "2026-01-16T13:00:00Z"});
        acme.admin().post(&format!("{BASE}/overrides"), over).await.ok();
        assert_eq!(ask().await, 402);
        acme.clock.advance(Duration::from_secs(3_600));
        assert_eq!(ask().await, 200);
    }
}

#[tokio::test]
async fn of_many_gateways_and_callers_one_carries_over() {
    for backend in backends().await {
        let acme = Acme::new(backend, rolling(json!({}))).await;
        let surroundings = Surroundings { clock: acme.clock.clone(), ..Surroundings::default() };
        let other = acme.gateway.beside_in(surroundings, |_| {}).await;
        acme.give("org", &acme.org, 100).await;
        acme.clock.advance(17 * DAY);
        let (admin, there) = (acme.admin(), other.as_account_admin(&acme.account));
        let mut looking = Vec::new();
        for n in 0..24 {
            let client = if n % 2 == 0 { admin.clone() } else { there.clone() };
            let path = ["effective-allocation", "usage-by-scope", "alerts"][n % 3];
            looking.push(tokio::spawn(async move { client.get(&format!("{BASE}/{path}")).await.ok() }));
        }
        for one in looking {
            one.await.unwrap();
        }
        assert_eq!(acme.pool().await, Some((json!(100), json!(100))));
        assert_eq!(acme.history().await.len(), 1);
    }
}

#[tokio::test]
async fn carried_credits_last_as_long_as_the_plan_says() {
    for backend in backends().await {
        let acme = Acme::new(backend, rolling(json!({"cycle": "daily", "rollover_windows": 2}))).await;
        acme.give("org", &acme.org, 10).await;
        acme.clock.advance(DAY);
        assert_eq!(acme.pool().await, Some((json!(10), json!(10))));
        acme.use_up(4, json!({})).await;
        acme.clock.advance(DAY);
        assert_eq!(acme.pool().await, Some((json!(16), json!(16))), "6 of yesterday's and 10 more");
        acme.use_up(7, json!({})).await;
        acme.clock.advance(DAY);
        assert_eq!(acme.pool().await, Some((json!(19), json!(19))), "the 6 are used, and 1 of the 10");
        // Nobody looks for a month: what is older than two windows would have lapsed.
        acme.clock.advance(30 * DAY);
        assert_eq!(acme.pool().await, Some((json!(20), json!(20))));
        let history = acme.history().await;
        assert_eq!(history.len(), 5);
        assert!(history.iter().any(|cycle| cycle["cycle_end"] == "2026-02-17T00:00:00Z"), "{history:#?}");
    }
}

#[tokio::test]
async fn what_the_plan_does_not_give_out_can_be_carried_instead() {
    for backend in backends().await {
        let acme = Acme::new(backend, json!({"name": "2026", "rollover": "unallocated", "rollover_cap": 300})).await;
        acme.give("org", &acme.org, 800).await;
        acme.clock.advance(17 * DAY);
        assert_eq!(acme.pool().await, Some((json!(200), json!(200))));
        acme.clock.advance(28 * DAY);
        assert_eq!(acme.pool().await, Some((json!(200), json!(200))), "what was carried was not given out");
    }
}

/// What requests hold at the end of a window may come back.
#[tokio::test]
async fn what_is_held_at_the_end_is_looked_at_again() {
    for backend in backends().await {
        let acme = Acme::new(backend, rolling(json!({}))).await;
        acme.give("org", &acme.org, 100).await;
        acme.use_up(1, json!({"org_id": acme.org})).await;
        let held = async |nanos: i64| {
            let sql =
                format!(r#"UPDATE "Alchemi_AllocationCounterTable" SET leased = {nanos} WHERE scope_type = 'org'"#);
            acme.gateway.database.rows(&sql, &[]).await;
        };
        held(60_000_000_000).await;
        acme.clock.advance(17 * DAY);
        assert_eq!(acme.pool().await, Some((json!(39), json!(39))));
        held(0).await;
        assert_eq!(acme.pool().await, Some((json!(39), json!(39))), "not at once");
        // Meanwhile the org has more, which was not there to be left.
        acme.give("org", &acme.org, 900).await;
        acme.clock.advance(Duration::from_secs(10));
        assert_eq!(acme.pool().await, Some((json!(99), json!(99))));
        let history = acme.history().await;
        assert_eq!((history.len(), &history[0]["rollover_credits"]), (1, &json!(99)));
        assert_eq!(history[0]["summary_json"]["held_credits"], json!(0));
    }
}

#[tokio::test]
async fn a_plan_carries_over_from_the_moment_that_it_is_told_to() {
    for backend in backends().await {
        let acme = Acme::new(backend, json!({"name": "2026"})).await;
        acme.give("org", &acme.org, 100).await;
        acme.clock.advance(17 * DAY);
        let plan = format!("{BASE}/plans/{}", acme.plan);
        assert_eq!(acme.admin().patch(&plan, json!({"rollover": "unused"})).await.ok()["item"]["rollover"], "unused");
        assert_eq!(acme.pool().await, None, "January ended before");
        acme.clock.advance(28 * DAY);
        assert_eq!(acme.pool().await, Some((json!(100), json!(100))));

        // While another plan is in force, it leaves nothing.
        let other = acme.gateway.made(&acme.account, &format!("{BASE}/plans"), json!({"name": "other"})).await;
        acme.clock.advance(31 * DAY);
        acme.admin().post(&format!("{plan}/activate"), json!({})).await.ok();
        assert_eq!(acme.pool().await.unwrap().1, json!(0), "it has lapsed");
        assert_ne!(other, acme.plan);
        // A renewal takes what the plan says along, and what the pool has been carried is not carried again.
        acme.clock.advance(30 * DAY);
        assert_eq!(acme.pool().await, Some((json!(100), json!(100))));
        let cycle = json!({"cycle_start": "2026-05-01T00:00:00Z", "cycle_end": "2026-06-01T00:00:00Z"});
        let renewed = acme.admin().post(&format!("{BASE}/cycles/renew"), cycle).await.ok();
        assert_eq!(
            (&renewed["item"]["rollover"], &renewed["summary"]["rollover_credits"]),
            (&json!("unused"), &json!(200))
        );
        acme.clock.advance(31 * DAY);
        assert_eq!(acme.pool_now().await, json!(100), "what April left has lapsed, May has been carried over once");
    }
}

impl Acme {
    /// What a renewal carries over.
    pub(crate) async fn renew(&self, start: &str, end: &str) -> Value {
        let cycle = json!({"cycle_start": format!("{start}T00:00:00Z"), "cycle_end": format!("{end}T00:00:00Z")});
        let renewed = self.admin().post(&format!("{BASE}/cycles/renew"), cycle).await.ok();
        renewed["summary"]["rollover_credits"].clone()
    }

    pub(crate) async fn pool_now(&self) -> Value {
        let whole = self.admin().get(&format!("{BASE}/effective-allocation")).await.ok();
        let items = whole["items"].as_array().unwrap();
        items.iter().find(|item| item["scope_type"] == "pool").map_or(json!(0), |i| i["effective_allocated"].clone())
    }
}

#[tokio::test]
async fn a_window_goes_on_in_another_time_zone() {
    for backend in backends().await {
        let acme = Acme::new(backend, rolling(json!({}))).await;
        acme.give("org", &acme.org, 100).await;
        acme.clock.advance(17 * DAY);
        acme.use_up(95, json!({"org_id": acme.org})).await;
        let zone = json!({"metadata": {"timezone": "America/New_York"}});
        acme.gateway.operator().patch(&format!("/v1/accounts/{}", acme.account), zone).await.ok();
        acme.clock.advance(28 * DAY);
        assert_eq!(acme.pool_now().await, json!(5));
        acme.clock.advance(31 * DAY);
        assert_eq!(acme.pool_now().await, json!(100), "of March");
    }
}

#[tokio::test]
async fn a_time_zone_is_changed_so_often_and_no_more() {
    for backend in backends().await {
        let acme = Acme::new(backend, rolling(json!({}))).await;
        let (operator, path) = (acme.gateway.operator(), format!("/v1/accounts/{}", acme.account));
        let zone = |n: u32| if n.is_multiple_of(2) { "Asia/Tokyo" } else { "UTC" };
        for n in 0..32 {
            acme.clock.advance(Duration::from_secs(1));
            operator.patch(&path, json!({"metadata": {"timezone": zone(n)}})).await.ok();
        }
        acme.clock.advance(Duration::from_secs(1));
        let refused = operator.patch(&path, json!({"metadata": {"timezone": zone(32)}})).await;
        assert_eq!((refused.status.as_u16(), refused.code().as_str()), (409, "too_many_time_zones"));
        assert_eq!(operator.get(&path).await.ok()["item"]["metadata"]["timezone"], zone(31));
        operator.patch(&path, json!({"metadata": {"timezone": zone(31), "note": "as it is"}})).await.ok();
    }
}

#[tokio::test]
async fn what_was_carried_over_lasts_to_the_end_of_the_window_in_any_time_zone() {
    // The end of February there, with an hour before and behind it.
    for (zone, hours) in [("Asia/Tokyo", 15 - 24), ("America/New_York", 5)] {
        for backend in backends().await {
            let acme = Acme::new(backend, rolling(json!({}))).await;
            acme.give("org", &acme.org, 100).await;
            // 1 February, 12:00
            acme.clock.advance(17 * DAY);
            assert_eq!(acme.pool_now().await, json!(100));
            acme.use_up(30, json!({})).await;
            let change = json!({"metadata": {"timezone": zone}});
            acme.gateway.operator().patch(&format!("/v1/accounts/{}", acme.account), change).await.ok();
            let to_the_end = 27 * DAY + DAY / 2;
            let hour = Duration::from_secs(3600);
            acme.clock.advance(if hours < 0 { to_the_end - hour * 9 } else { to_the_end + hour * 5 } - hour);
            assert_eq!(acme.pool_now().await, json!(100), "{zone}: what January left");
            acme.clock.advance(2 * hour);
            assert_eq!(acme.pool_now().await, json!(100), "{zone}: what February left");
            assert_eq!(acme.history().await[0]["summary_json"]["carried_over"].as_array().unwrap().len(), 1);
        }
    }
}

#[tokio::test]
async fn a_window_of_two_plans_is_carried_over_once() {
    for backend in backends().await {
        let acme = Acme::new(backend, rolling(json!({}))).await;
        acme.give("org", &acme.org, 100).await;
        // 15 February: January has rolled over by itself.
        acme.clock.advance(31 * DAY);
        assert_eq!(acme.pool_now().await, json!(100));
        assert_eq!(acme.renew("2026-01-01", "2026-02-01").await, json!(100));
        // 2 March
        acme.clock.advance(15 * DAY);
        assert_eq!(acme.pool_now().await, json!(100));
        assert_eq!(acme.renew("2026-02-01", "2026-02-15").await, json!(100), "by itself, once");
    }
}

#[tokio::test]
async fn a_plan_without_windows_leaves_what_it_has_once() {
    for backend in backends().await {
        let acme = Acme::new(backend, json!({"name": "2026", "cycle": "none"})).await;
        acme.give("org", &acme.org, 100).await;
        acme.use_up(30, json!({"org_id": acme.org})).await;
        acme.clock.advance(50 * DAY);
        assert_eq!(acme.renew("2026-01-01", "2026-02-01").await, json!(70));
        assert_eq!(acme.renew("2026-02-01", "2026-03-01").await, json!(70));
        acme.clock.advance(DAY);
        // What its successor has had since is another matter.
        assert_eq!(acme.renew("2026-03-01", "2026-04-01").await, json!(170));
    }
}

#[tokio::test]
async fn rollovers_that_cannot_be_are_refused() {
    for backend in backends().await {
        let acme = Acme::new(backend, rolling(json!({"rollover_cap": 5}))).await;
        let admin = acme.admin();
        let path = format!("{BASE}/plans");
        for (wrong, pointer) in [
            (json!({"cycle": "none"}), "/rollover"),
            (json!({"rollover": "all"}), "/rollover"),
            (json!({"rollover_cap": -1}), "/rollover_cap"),
            (json!({"rollover_windows": 0}), "/rollover_windows"),
            (json!({"rollover_windows": 13}), "/rollover_windows"),
        ] {
            invalid(&admin.post(&path, rolling(wrong)).await, pointer);
        }
        let one = format!("{path}/{}", acme.plan);
        invalid(&admin.patch(&one, json!({"rollover_windows": 13})).await, "/rollover_windows");
        invalid(&admin.patch(&one, json!({"rollover": null})).await, "/rollover");
        let cleared = admin.patch(&one, json!({"rollover_cap": null})).await.ok();
        assert_eq!((&cleared["item"]["rollover_cap"], &cleared["item"]["rollover_windows"]), (&Value::Null, &json!(1)));
    }
}
