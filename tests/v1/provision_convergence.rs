//! What is wanted comes to be, whatever happens in between.

use std::sync::Arc;
use std::time::Duration;

use alchemi::clock::{Clock, ManualClock, SystemClock};
use alchemi::id::RandomIds;
use alchemi::provision::Provisioner;
use alchemi::store::{DatabaseConfig, Store};
use alchemi::zitadel::{Management, ManagementConfig};
use serde_json::{Value, json};

use crate::common::fifty::{ADMINS, Fifty};
use crate::common::zitadel;
use crate::common::{Gateway, backends};
use crate::provision::{Setting, configure};

/// Fifty admins, Zitadel failing one call in five (before or after the deed), and the worker killed after one, two, three
/// … calls, over and over: all is as wanted in the end, and nobody else's roles are touched.
#[tokio::test]
async fn a_bootstrap_of_fifty_that_is_killed_at_every_step_converges() {
    for backend in backends().await {
        let scene = Fifty::new().await;
        let zitadel = &scene.zitadel;
        // A gateway whose own worker cannot reach Zitadel, so that only ours works; it writes down what is wanted.
        let mut gateway = Gateway::start_with(backend.clone(), |config| {
            configure(config, "http://127.0.0.1:9");
        })
        .await;
        let account = gateway.account("Acme").await;
        scene.admit(&gateway.operator(), &account).await;
        let path = format!("/v1/accounts/{account}/zitadel/provision/bootstrap");
        let made = gateway.operator().post(&path, scene.bootstrap()).await.ok();
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
            let worker = Provisioner::new(store.clone(), management, Vec::new());
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
        scene.check();

        gateway.stop().await;
        // The clock of the dead ran ahead of the one that follows.
        gateway.database.rows(r#"DELETE FROM "Alchemi_ZitadelLeaseTable" RETURNING project_id"#, &[]).await;
        let healthy = gateway.beside(|config| configure(config, zitadel.url())).await;
        let writes = zitadel.world().writes;
        let again = healthy.operator().post(&path, scene.bootstrap()).await.ok();
        assert_eq!(zitadel.world().writes, writes, "the second bootstrap changes nothing");
        assert_eq!(again["summary"]["admin_grant_summary"]["exists"], ADMINS, "{}", again["summary"]);
    }
}

#[tokio::test]
async fn what_zitadel_lists_late_is_waited_for_and_what_it_never_lists_is_a_conflict() {
    for backend in backends().await {
        let setting = Setting::new(backend).await;
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
        assert_eq!(
            setting.roles_of(&ada),
            ["account_admin", "console_org_admin", "end_user"],
            "neither loses the other's"
        );

        setting.zitadel.knobs(|knobs| (knobs.lag, knobs.ghost_of) = (Duration::ZERO, Some(ghost.clone())));
        let path = setting.path("zitadel/provision/user-grant");
        let refused = setting.operator().post(&path, body(&ghost, "end_user")).await;
        assert_eq!((refused.status.as_u16(), refused.json()["reason"].clone()), (502, json!("exists_but_not_listed")));
        let drift = setting.drift().await;
        let item = drift["items"].as_array().unwrap().iter().find(|item| item["target"] == ghost).unwrap();
        assert_eq!(item["state"], "conflict");
    }
}

#[tokio::test]
async fn an_admin_who_is_added_later_is_granted_their_role() {
    for backend in backends().await {
        let setting = Setting::new(backend).await;
        setting.post("bootstrap", setting.bootstrap()).await;
        setting.admin("late@acme.com", "account_admin").await;
        let late = setting.zitadel.user(&setting.org, "late@acme.com");
        // Nobody at first, then there: it is tried again.
        setting.admin("late@acme.com", "account_admin").await;
        setting.until_roles(&late, &["account_admin"]).await;
    }
}

/// A grant that no list shows yet when its admin goes is taken back once one does.
#[tokio::test]
async fn what_is_listed_late_is_taken_back_all_the_same() {
    let of_each = backends().await.into_iter().map(async |backend| {
        let setting = Setting::new(backend).await;
        let [ada, bob] = ["ada", "bob"].map(|name| setting.zitadel.user(&setting.org, &format!("{name}@acme.com")));
        setting.post("bootstrap", setting.bootstrap()).await;
        // Longer than lists are waited for (6 s).
        setting.zitadel.knobs(|knobs| knobs.lag = Duration::from_secs(12));
        let is_late = async |target: &str| {
            let drift = setting.drift().await;
            let items = drift["items"].as_array().unwrap().iter();
            items.filter(|item| item["reason"] == "not_listed_yet").any(|item| item["target"] == target)
        };
        // One goes when it is known to be late, the other while the first attempt waits for the list.
        for (user, email, once_late) in [(&ada, "ada@acme.com", true), (&bob, "bob@acme.com", false)] {
            setting.admin(email, "account_admin").await;
            while setting.roles_of(user).is_empty() || (once_late && !is_late(email).await) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert_eq!(setting.roles_of(user), ["account_admin"]);
            setting.operator().delete(&setting.path(&format!("admins/{email}"))).await.ok();
            setting.until_roles(user, &[]).await;
        }
    });
    futures_util::future::join_all(of_each).await;
}

/// What Zitadel has taken stands in the audit although its lists do not show it in time.
#[tokio::test]
async fn a_write_is_audited_although_no_list_shows_it() {
    let of_each = backends().await.into_iter().map(async |backend| {
        let setting = Setting::new(backend).await;
        let [ada, bob] = ["ada", "bob"].map(|name| setting.zitadel.user(&setting.org, &format!("{name}@acme.com")));
        setting.admin("ada@acme.com", "account_admin").await;
        setting.post("bootstrap", setting.bootstrap()).await;
        // Longer than lists are waited for.
        setting.zitadel.knobs(|knobs| knobs.lag = Duration::from_secs(60));
        setting.operator().delete(&setting.path("admins/ada@acme.com")).await.ok();
        let body = json!({"user_id": bob, "role_keys": ["end_user"]});
        let late = setting.operator().post(&setting.path("zitadel/provision/user-grant"), body).await;
        assert_eq!(
            (late.status.as_u16(), late.json()["reason"].clone()),
            (502, json!("not_listed_yet")),
            "{}",
            late.text()
        );
        let all = setting.operator().get(&setting.path("audit")).await.ok()["items"].clone();
        let said = |did: &str, target: &str| {
            let of_item = |row: &&Value| row["table_name"] == "Alchemi_ZitadelItemTable";
            let mut rows = all.as_array().unwrap().iter().filter(of_item).map(|row| &row["updated_values"]);
            let found = rows.find(|row| row["zitadel"] == did && row["target"] == target);
            found.unwrap_or_else(|| panic!("no {did} of {target} in {all:#}")).clone()
        };
        let removed = said("removed", "ada@acme.com");
        assert_eq!((&removed["taken_back"], &removed["user_id"]), (&json!(["account_admin"]), &json!(ada)));
        let created = said("created", &bob);
        assert_eq!((&created["role_keys"], &created["confirmed"]), (&json!(["end_user"]), &json!(true)));
    });
    futures_util::future::join_all(of_each).await;
}
