//! What is wanted comes to be, whatever happens in between.

use std::sync::Arc;
use std::time::{Duration, Instant};

use alchemi::clock::{Clock, ManualClock, SystemClock};
use alchemi::id::RandomIds;
use alchemi::provision::Provisioner;
use alchemi::store::{DatabaseConfig, Store};
use alchemi::zitadel::{Management, ManagementConfig};
use serde_json::json;

use crate::common::zitadel::{self, Zitadel};
use crate::common::{Backend, Gateway, Person, backends};
use crate::provision::{Setting, configure};

/// Fifty admins, Zitadel failing one call in five (before or after the deed), and the worker killed after one, two, three
/// … calls, over and over: all is as wanted in the end, and nobody else's roles are touched.
#[tokio::test]
async fn a_bootstrap_of_fifty_that_is_killed_at_every_step_converges() {
    for backend in backends().await {
        let zitadel = Zitadel::start("127.0.0.1:0".parse().unwrap()).await;
        let owner = zitadel.org("Platform");
        let org = zitadel.org("Acme");
        let project = zitadel.project(&owner, "gateway");
        // A gateway whose own worker cannot reach Zitadel, so that only ours works; it writes down what is wanted.
        let mut gateway = Gateway::start_with(backend.clone(), |config| {
            configure(config, "http://127.0.0.1:9");
        })
        .await;
        let account = gateway.account("Acme").await;
        let mut users = Vec::new();
        for n in 0..50 {
            let email = format!("admin{n}@acme.com");
            users.push(zitadel.user(&org, &email));
            let body = json!({"user_email": email, "role": "copilot_org_admin"});
            gateway.operator().post(&format!("/v1/accounts/{account}/admins"), body).await.ok();
        }
        let eve = zitadel.user(&org, "eve@acme.com");
        {
            let mut world = zitadel.world();
            world.put_role(&project, "reviewer");
            world.add_project_grant_of(&project, &org, &["reviewer"]);
            for user in users.iter().take(10).chain([&eve]) {
                world.put_grant(user, &project, &org, &["reviewer"]);
            }
        }
        let body = json!({
            "project_id": project, "organization_id": org, "resolve_user_ids_from_zitadel": true,
        });
        let path = format!("/v1/accounts/{account}/zitadel/provision/bootstrap");
        let made = gateway.operator().post(&path, body.clone()).await.ok();
        assert_eq!(made["summary"]["role_sync_summary"]["created"], 0, "{made}");

        zitadel.knobs(|knobs| (knobs.fail_one_in, knobs.lag) = (Some(5), Duration::from_millis(20)));
        let database = DatabaseConfig { url: gateway.database_url().to_owned(), ..DatabaseConfig::default() };
        let clock = Arc::new(ManualClock::at(SystemClock.now().plus(Duration::from_secs(3_600))));
        let config = ManagementConfig {
            url: Some(zitadel.url().to_owned()),
            token: Some(zitadel::TOKEN.into()),
            requests_per_second: 5_000,
            ..ManagementConfig::default()
        };
        let mut kills = 0;
        let store = Store::open(&database, clock.clone(), Arc::new(RandomIds)).await.unwrap();
        loop {
            let management = Management::new(&config, None, clock.clone()).unwrap();
            let worker = Provisioner::new(store.clone(), management, None);
            let already = zitadel.requests().len();
            let allowed = 1 + kills % 9;
            let killed = async {
                while zitadel.requests().len() < already + allowed {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            let finished = tokio::select! {
                done = worker.run_once() => !done.unwrap(),
                () = killed => false,
            };
            // The lease of the dead and every pause end.
            clock.advance(Duration::from_secs(4_000));
            if finished {
                break;
            }
            kills += 1;
            assert!(kills < 3_000, "it does not converge");
        }
        assert!(kills > 50, "killed {kills} times");
        println!("killed {kills} times, {} calls", zitadel.requests().len());
        zitadel.knobs(|knobs| (knobs.fail_one_in, knobs.lag) = (None, Duration::ZERO));
        for (n, user) in users.iter().enumerate() {
            let held: Vec<String> = zitadel.world().roles_of(user, &project).into_iter().collect();
            let wanted: &[&str] = if n < 10 { &["copilot_org_admin", "reviewer"] } else { &["copilot_org_admin"] };
            assert_eq!(held, wanted, "admin{n}");
        }
        let mut once: Vec<String> = zitadel.world().live_grants().map(|grant| grant.user.clone()).collect();
        let all = once.len();
        once.sort();
        once.dedup();
        assert_eq!((all, once.len()), (51, 51), "one grant for each");
        let held: Vec<String> = zitadel.world().roles_of(&eve, &project).into_iter().collect();
        assert_eq!(held, ["reviewer"]);

        gateway.stop().await;
        // The clock of the dead ran ahead of the one that follows.
        gateway.database.rows(r#"DELETE FROM "Alchemi_ZitadelLeaseTable" RETURNING project_id"#, &[]).await;
        let healthy = gateway.beside(|config| configure(config, zitadel.url())).await;
        let writes = zitadel.world().writes;
        let again = healthy.operator().post(&path, body).await.ok();
        assert_eq!(zitadel.world().writes, writes, "the second bootstrap changes nothing");
        assert_eq!(again["summary"]["admin_grant_summary"]["exists"], 50, "{}", again["summary"]);
    }
}

#[tokio::test]
async fn an_admin_who_is_removed_is_cut_off_on_every_gateway_within_a_second() {
    for backend in backends().await {
        // What is in one process alone is no second gateway's business on SQLite.
        let Backend::Postgres(_) = &backend else { continue };
        let setting = Setting::new(backend).await;
        let ada = setting.zitadel.user(&setting.org, "ada@acme.com");
        setting.admin("ada@acme.com", "account_admin").await;
        setting.post("bootstrap", setting.bootstrap()).await;
        let second = setting.gateway.beside(|config| configure(config, setting.zitadel.url())).await;
        let person = Person::of(&setting.account, &ada).role("account_admin").of_org(&setting.org);
        let token = setting.gateway.token(&person);
        let there = second.anybody().with_token(&token);
        assert_eq!(there.get("/v1/audit").await.status, 200);
        // A revocation is to the microsecond, a token's `iat` to the second.
        tokio::time::sleep(Duration::from_millis(1_100)).await;

        setting.operator().delete(&setting.path("admins/ada@acme.com")).await.ok();
        let removed = Instant::now();
        while there.get("/v1/audit").await.status != 401 {
            assert!(removed.elapsed() < Duration::from_secs(1), "still admitted after {:?}", removed.elapsed());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        setting.until_roles(&ada, &[]).await;
        for _ in 0..100 {
            let items = setting.drift().await["items"].clone();
            if !items.to_string().contains("ada@acme.com") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("nothing is wanted any more, and the item stays");
    }
}

#[tokio::test]
async fn a_suspended_account_is_refused_and_its_grants_are_taken_back_until_it_is_restored() {
    for backend in backends().await {
        let postgres = matches!(backend, Backend::Postgres(_));
        let setting = Setting::new(backend).await;
        let ada = setting.zitadel.user(&setting.org, "ada@acme.com");
        setting.admin("ada@acme.com", "account_admin").await;
        setting.post("bootstrap", setting.bootstrap()).await;
        let second = setting.gateway.beside(|config| configure(config, setting.zitadel.url())).await;
        let person = Person::of(&setting.account, &ada).role("account_admin").of_org(&setting.org);
        let there = second.anybody().with_token(&setting.gateway.token(&person));
        assert_eq!(there.get("/v1/audit").await.status, 200);

        setting.operator().post(&setting.path("status"), json!({"status": "suspended"})).await.ok();
        let suspended = Instant::now();
        while postgres && there.get("/v1/audit").await.status == 200 {
            assert!(suspended.elapsed() < Duration::from_secs(1));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        setting.until_roles(&ada, &[]).await;
        setting.operator().post(&setting.path("status"), json!({"status": "active"})).await.ok();
        setting.until_roles(&ada, &["account_admin"]).await;

        let name = "Acme";
        let path = format!("/v1/accounts/{}?hard_delete=true&confirm_name={name}", setting.account);
        setting.operator().delete(&path).await.ok();
        setting.until_roles(&ada, &[]).await;
    }
}

#[tokio::test]
async fn what_zitadel_lists_late_is_waited_for_and_what_it_never_lists_is_a_conflict() {
    let setting = Setting::new(Backend::Sqlite).await;
    setting.zitadel.knobs(|knobs| knobs.lag = Duration::from_millis(300));
    let ada = setting.zitadel.user(&setting.org, "ada@acme.com");
    let ghost = setting.zitadel.user(&setting.org, "ghost@acme.com");
    setting.admin("ada@acme.com", "account_admin").await;
    setting.post("bootstrap", setting.bootstrap()).await;
    let body = |user: &str, key: &str| json!({"user_id": user, "role_keys": [key]});
    let (first, second) = tokio::join!(
        setting.post("user-grant", body(&ada, "end_user")),
        setting.post("user-grant", body(&ada, "console_org_admin")),
    );
    assert_eq!((&first["status"], &second["status"]), (&json!("ok"), &json!("ok")));
    assert_eq!(setting.roles_of(&ada), ["account_admin", "console_org_admin", "end_user"], "neither loses the other's");

    setting.zitadel.knobs(|knobs| (knobs.lag, knobs.ghost_of) = (Duration::ZERO, Some(ghost.clone())));
    let path = setting.path("zitadel/provision/user-grant");
    let refused = setting.operator().post(&path, body(&ghost, "end_user")).await;
    assert_eq!((refused.status.as_u16(), refused.json()["reason"].clone()), (502, json!("exists_but_not_listed")));
    let drift = setting.drift().await;
    let item = drift["items"].as_array().unwrap().iter().find(|item| item["target"] == ghost).unwrap();
    assert_eq!(item["state"], "conflict");
}

#[tokio::test]
async fn an_admin_who_is_added_later_is_granted_their_role() {
    let setting = Setting::new(Backend::Sqlite).await;
    setting.post("bootstrap", setting.bootstrap()).await;
    setting.admin("late@acme.com", "account_admin").await;
    let late = setting.zitadel.user(&setting.org, "late@acme.com");
    // Nobody at first, then there: it is tried again.
    setting.admin("late@acme.com", "account_admin").await;
    setting.until_roles(&late, &["account_admin"]).await;
}

/// When, and why, a subject was cut off last.
async fn cut_off(gateway: &Gateway, subject: &str) -> Option<(serde_json::Value, serde_json::Value)> {
    let query = r#"SELECT issued_before, reason FROM "Alchemi_RevocationTable" WHERE subject = $1"#;
    let rows = gateway.database.rows(query, &[subject]).await;
    rows.first().map(|row| (row["issued_before"].clone(), row["reason"].clone()))
}

#[tokio::test]
async fn an_admin_is_cut_off_in_an_account_that_zitadel_is_not_told_of() {
    for backend in backends().await {
        let gateway = Gateway::start_with(backend, |_| {}).await;
        let account = gateway.account("Acme").await;
        let (operator, path) = (gateway.operator(), format!("/v1/accounts/{account}/admins"));
        for name in ["ada", "bob"] {
            let (email, subject) = (format!("{name}@acme.com"), format!("{name}-subject"));
            operator.post(&path, json!({"user_email": email})).await.ok();
            let user = json!({"email": email, "identity_user_id": subject});
            gateway.operator_for(&account).post("/v1/copilot/users", user).await.ok();
        }
        let ada = gateway.sign_in(&Person::of(&account, "ada-subject").role("account_admin"));
        assert_eq!(ada.get("/v1/audit").await.status, 200);
        operator.post(&path, json!({"user_email": "ada@acme.com"})).await.ok();
        assert_eq!(cut_off(&gateway, "ada-subject").await, None, "the same role again is no change");
        // A revocation is to the microsecond, a token's `iat` to the second.
        tokio::time::sleep(Duration::from_millis(1_100)).await;

        let one = format!("{path}/ada@acme.com");
        operator.patch(&one, json!({"role": "console_org_admin"})).await.ok();
        assert_eq!(ada.get("/v1/audit").await.status, 401, "from the answer on");
        let (first, reason) = cut_off(&gateway, "ada-subject").await.unwrap();
        assert_eq!(reason, "the role as an admin changed");

        let disabled = json!({"enabled": false, "project_id": "1"});
        operator.put(&format!("/v1/accounts/{account}/zitadel/config"), disabled).await.ok();
        operator.delete(&one).await.ok();
        let (second, reason) = cut_off(&gateway, "ada-subject").await.unwrap();
        assert_eq!(reason, "removed as an admin");
        assert!(second.as_i64() > first.as_i64(), "{first} {second}");
        assert_eq!(cut_off(&gateway, "bob-subject").await, None);
    }
}

#[tokio::test]
async fn an_attempt_that_took_nothing_cuts_nobody_off() {
    let setting = Setting::new(Backend::Sqlite).await;
    let ada = setting.zitadel.user(&setting.org, "ada@acme.com");
    setting.admin("ada@acme.com", "account_admin").await;
    setting.post("bootstrap", setting.bootstrap()).await;
    let until_state = async |wanted: &str| {
        for _ in 0..600 {
            let drift = setting.drift().await;
            let item = drift["items"].as_array().unwrap().iter().find(|item| item["target"] == "ada@acme.com").unwrap();
            if item["state"] == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("never {wanted}: {}", setting.drift().await);
    };
    // Deactivated: nothing is written, whatever the role is to be.
    setting.zitadel.world().grants.iter_mut().for_each(|grant| grant.active = false);
    let change = json!({"role": "console_org_admin"});
    setting.operator().patch(&setting.path("admins/ada@acme.com"), change).await.ok();
    let cut = cut_off(&setting.gateway, &ada).await;
    assert_eq!(cut.as_ref().unwrap().1, "the role as an admin changed");
    until_state("conflict").await;
    assert_eq!(cut_off(&setting.gateway, &ada).await, cut, "a conflict takes no role");

    // Refused: the organisation may not grant the new role. The same role once more has it tried again.
    {
        let mut world = setting.zitadel.world();
        world.grants.iter_mut().for_each(|grant| grant.active = true);
        world.project_grants.iter_mut().for_each(|grant| grant.roles.retain(|role| role != "console_org_admin"));
    }
    setting.admin("ada@acme.com", "console_org_admin").await;
    until_state("failed").await;
    assert_eq!(setting.roles_of(&ada), ["account_admin"]);
    assert_eq!(cut_off(&setting.gateway, &ada).await, cut, "a refusal takes no role");

    setting.zitadel.world().project_grants.iter_mut().for_each(|grant| grant.roles.push("console_org_admin".into()));
    setting.admin("ada@acme.com", "console_org_admin").await;
    until_state("applied").await;
    assert_eq!(setting.roles_of(&ada), ["console_org_admin"]);
    assert_eq!(cut_off(&setting.gateway, &ada).await.unwrap().1, "a role was taken back");
}
