//! Many callers at the same moment: what must be one stays one.

use std::time::Duration;

use serde_json::json;

use crate::common::database::migrated_database;
use crate::common::{Backend, Gateway, backends};
use crate::{at_mid_january, ids, text};

const BASE: &str = "/v1/budgets/copilot";

/// Names are unique whatever happens at the same time.
#[tokio::test]
async fn of_many_at_once_one_gets_the_name() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let admin = gateway.as_account_admin(&account);
        let calls = (0..8).map(|_| {
            let admin = admin.clone();
            tokio::spawn(
                async move { admin.post("/v1/console/orgs", json!({"name": "Research"})).await.status.as_u16() },
            )
        });
        let mut statuses = Vec::new();
        for call in calls.collect::<Vec<_>>() {
            statuses.push(call.await.unwrap());
        }
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 409, 409, 409, 409, 409, 409, 409]);
    }
}

/// Writers of one account wait for each other at the head of the chain, and leave no gap.
#[tokio::test]
async fn concurrent_writers_make_one_chain() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let admin = gateway.as_account_admin(&account);
        let calls = (0..16).map(|number| {
            let admin = admin.clone();
            tokio::spawn(async move {
                admin.post("/v1/console/orgs", json!({"name": number.to_string()})).await.status.as_u16()
            })
        });
        for call in calls.collect::<Vec<_>>() {
            assert_eq!(call.await.unwrap(), 200);
        }
        let verdict = admin.get("/v1/audit/verify").await.ok();
        assert_eq!((&verdict["item"]["valid"], &verdict["item"]["events"]), (&json!(true), &json!(18)));
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

/// What is divided at the same moment adds up to no more than there is.
#[tokio::test]
async fn concurrent_shares_do_not_over_commit_a_plan_that_forbids_it() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let other = gateway.beside(|_| {}).await;
        let account = gateway.account("Acme").await;
        gateway.allocate(&account, "100").await;
        let plan = json!({"name": "2026", "over_commit": "forbid"});
        let plan = gateway.made(&account, &format!("{BASE}/plans"), plan).await;
        let mut calls = Vec::new();
        for n in 0..8 {
            let org = gateway.org(&account, "copilot", &n.to_string()).await;
            let body = json!({"plan_id": plan, "scope_type": "org", "scope_id": org, "allocated_credits": 30});
            let admin = if n % 2 == 0 { &gateway } else { &other }.as_account_admin(&account);
            calls.push(async move { admin.post(&format!("{BASE}/allocations/upsert"), body).await });
        }
        let calls: Vec<_> = calls.into_iter().map(tokio::spawn).collect();
        let mut given = 0;
        for call in calls {
            let reply = call.await.unwrap();
            match reply.status.as_u16() {
                200 => given += 1,
                _ => assert_eq!(reply.code(), "over_committed"),
            }
        }
        assert_eq!(given, 3);
    }
}

/// Who joins a team at the same moment brings no more along than it has, beside who is given something meanwhile.
#[tokio::test]
async fn concurrent_members_do_not_over_commit_a_plan_that_forbids_it() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let other = gateway.beside(|_| {}).await;
        let account = gateway.account("Acme").await;
        let plan = json!({"name": "2026", "over_commit": "forbid"});
        let plan = gateway.made(&account, &format!("{BASE}/plans"), plan).await;
        let org = gateway.org(&account, "copilot", "Research").await;
        let team = gateway.team(&account, "copilot", &org, "Language").await;
        gateway.allot(&account, &plan, ("team", &team), "100").await;
        let mut calls = Vec::new();
        for n in 0..8 {
            let user = gateway.user(&account, "copilot", &n.to_string(), &[]).await;
            gateway.allot(&account, &plan, ("user", &user), "30").await;
            let admin = if n % 2 == 0 { &gateway } else { &other }.as_account_admin(&account);
            let path = format!("/v1/copilot/teams/{team}/members");
            calls.push(async move { admin.post(&path, json!({"user_id": user})).await });
        }
        let calls: Vec<_> = calls.into_iter().map(tokio::spawn).collect();
        let mut joined = 0;
        for call in calls {
            let reply = call.await.unwrap();
            match reply.status.as_u16() {
                200 => joined += 1,
                _ => assert_eq!(reply.code(), "over_committed", "{}", reply.text()),
            }
        }
        assert_eq!(joined, 3);
    }
}

/// Who joins a team while the account's first plan is made waits for it, or it waits for them.
#[tokio::test]
async fn a_first_plan_knows_of_those_who_join_meanwhile() {
    let Some(url) = migrated_database().await else { return };
    let database = sqlx::PgPool::connect(&url).await.unwrap();
    let gateway = Gateway::start(Backend::Postgres(url)).await;
    let account = gateway.account("Acme").await;
    let admin = gateway.as_account_admin(&account);
    let org = gateway.org(&account, "copilot", "Research").await;
    let team = gateway.team(&account, "copilot", &org, "Language").await;
    let ada = gateway.user(&account, "copilot", "ada", &[&team]).await;
    let eve = gateway.user(&account, "copilot", "eve", &[]).await;

    // Stops who joins behind their look for a plan.
    let mut held = database.begin().await.unwrap();
    sqlx::query(r#"SELECT 1 FROM "Alchemi_TeamTable" WHERE id = $1 FOR UPDATE"#)
        .bind(&team)
        .execute(&mut *held)
        .await
        .unwrap();
    let waiting = async || -> i64 {
        let sql =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        sqlx::query_scalar(sql).fetch_one(&database).await.unwrap()
    };
    let joining = {
        let (admin, path, eve) = (admin.clone(), format!("/v1/copilot/teams/{team}/members"), eve.clone());
        tokio::spawn(async move { admin.post(&path, json!({"user_id": eve})).await })
    };
    let pause = || tokio::time::sleep(Duration::from_millis(5));
    while waiting().await == 0 && !joining.is_finished() {
        pause().await;
    }
    let planning = tokio::spawn(async move {
        let plan = json!({"name": "2026", "over_commit": "forbid"});
        let plan = admin.post(&format!("{BASE}/plans"), plan).await.ok()["item"]["id"].clone();
        let mut last = None;
        for (kind, id, credits) in [("org", &org, 100), ("user", &ada, 60), ("user", &eve, 60)] {
            let share = json!({"plan_id": plan, "scope_type": kind, "scope_id": id, "allocated_credits": credits});
            last = Some(admin.post(&format!("{BASE}/allocations/upsert"), share).await);
        }
        last.unwrap()
    });
    while waiting().await < 2 && !planning.is_finished() {
        pause().await;
    }
    held.rollback().await.unwrap();
    let (joined, given) = (joining.await.unwrap(), planning.await.unwrap());
    let refused: Vec<_> = [&joined, &given].into_iter().filter(|reply| !reply.status.is_success()).collect();
    assert_eq!(refused.len(), 1, "{} {}", joined.text(), given.text());
    assert_eq!(refused[0].code(), "over_committed");
}

#[tokio::test]
async fn of_many_renewals_at_once_one_is_done() {
    for backend in backends().await {
        let (gateway, _) = at_mid_january(backend).await;
        let account = gateway.account("Acme").await;
        gateway.plan(&account).await;
        let admin = gateway.as_account_admin(&account);
        let renewal = json!({"cycle_start": "2026-01-01T00:00:00Z", "cycle_end": "2026-02-01T00:00:00Z"});
        let calls = (0..6).map(|_| {
            let (admin, renewal) = (admin.clone(), renewal.clone());
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
        assert_eq!(ids(&admin.get(&format!("{BASE}/plans")).await.ok()).len(), 2);
    }
}
