//! Each item by itself: what fails does not hold up what does not, and nothing that is wanted elsewhere is taken.

use std::time::Duration;

use serde_json::{Value, json};

use crate::common::backends;
use crate::invalid;
use crate::provision::Setting;

fn found<'a>(items: &'a Value, key: &str, value: &str) -> &'a Value {
    let found = items.as_array().unwrap().iter().find(|item| item[key] == value);
    found.unwrap_or_else(|| panic!("no {value} in {items:#}"))
}

#[tokio::test]
async fn a_failure_is_told_by_item_and_only_that_item_is_tried_again() {
    for backend in backends().await {
        let setting = Setting::new(backend).await;
        let names = ["ada", "bob", "ghost", "late"];
        let [ada, bob, ghost, late] = names.map(|name| setting.zitadel.user(&setting.org, &format!("{name}@acme.com")));
        for name in names {
            setting.admin(&format!("{name}@acme.com"), "account_admin").await;
        }
        setting.zitadel.knobs(|knobs| {
            (knobs.ghost_of, knobs.fail_grants_of) = (Some(ghost.clone()), Some(late.clone()));
        });
        let made = setting.post("bootstrap", setting.bootstrap()).await;
        let summary = &made["summary"]["admin_grant_summary"];
        let counted = ["created", "failed", "pending", "exists"].map(|name| summary[name].as_u64().unwrap());
        assert_eq!(counted, [2, 1, 1, 0], "{made:#}");
        let grants = &made["result"]["admin_grants"]["grants"];
        assert_eq!(found(grants, "email", "ada@acme.com")["status"], "created");
        let told = |email: &str| {
            let grant = found(grants, "email", email);
            (grant["status"].clone(), grant["reason"].clone(), grant["message"].clone())
        };
        let (status, reason, message) = told("ghost@acme.com");
        assert_eq!((status, reason), (json!("failed"), json!("exists_but_not_listed")));
        assert!(message.as_str().unwrap().contains("put right there"), "{message}");
        let (status, reason, message) = told("late@acme.com");
        assert_eq!((status, reason), (json!("pending"), json!("zitadel_unavailable")));
        assert_eq!(message, "Zitadel failed with status 503");
        for user in [&ada, &bob] {
            assert_eq!(setting.roles_of(user), ["account_admin"]);
        }
        let drift = setting.drift().await;
        assert_eq!(found(&drift["items"], "target", "ghost@acme.com")["state"], "conflict");
        let pending = found(&drift["items"], "target", "late@acme.com");
        assert_eq!((&pending["state"], &pending["reason"]), (&json!("pending"), &json!("zitadel_unavailable")));
        assert!(pending["attempts"].as_i64() > Some(0) && pending["next_attempt_at"].is_string(), "{pending}");

        // Nobody asks: what passes is made so.
        setting.zitadel.knobs(|knobs| knobs.fail_grants_of = None);
        setting.until_roles(&late, &["account_admin"]).await;
        let writes = setting.zitadel.world().writes;
        let again = setting.post("bootstrap", setting.bootstrap()).await;
        let summary = &again["summary"]["admin_grant_summary"];
        assert_eq!((&summary["exists"], &summary["failed"]), (&json!(3), &json!(1)), "{again:#}");
        assert_eq!(setting.zitadel.world().writes, writes, "who has their role is granted nothing again");
        setting.zitadel.knobs(|knobs| knobs.ghost_of = None);
        setting.post("bootstrap", setting.bootstrap()).await;
        assert_eq!(setting.roles_of(&ghost), ["account_admin"]);
    }
}

#[tokio::test]
async fn an_unknown_admin_role_is_granted_nothing() {
    for backend in backends().await {
        let setting = Setting::new(backend).await;
        let ada = setting.zitadel.user(&setting.org, "ada@acme.com");
        let owner = json!({"user_email": "a@b.c", "role": "owner"});
        invalid(&setting.operator().post(&setting.path("admins"), owner).await, "/role");
        setting.admin("ada@acme.com", "account_admin").await;
        // As another program may have left it.
        setting.gateway.database.execute(r#"UPDATE "Alchemi_AccountAdminTable" SET role = 'owner'"#).await;
        let plan = setting.operator().get(&setting.path("zitadel/provision/plan")).await.ok();
        let planned = &plan["account_admins"][0];
        assert_eq!(planned["resolved_role_keys"], json!([]));
        assert!(planned["problem"].as_str().unwrap().starts_with("role \"owner\" must be one of: account_admin"));
        for dry_run in [true, false] {
            let mut ask = setting.bootstrap();
            ask["dry_run"] = json!(dry_run);
            let made = setting.post("bootstrap", ask).await;
            let unresolved = &made["summary"]["unresolved_admins"][0];
            assert_eq!(
                (&unresolved["reason"], &unresolved["role"]),
                (&json!("unknown_role"), &json!("owner")),
                "{made:#}"
            );
        }
        assert!(setting.roles_of(&ada).is_empty());
    }
}

#[tokio::test]
async fn an_organisation_is_let_grant_what_its_admins_are_to_hold() {
    for without_v2 in [false, true] {
        for backend in backends().await {
            let setting = Setting::new(backend).await;
            setting.zitadel.knobs(|knobs| knobs.without_v2 = without_v2);
            let ada = setting.zitadel.user(&setting.org, "ada@acme.com");
            setting.admin("ada@acme.com", "account_admin").await;
            {
                let mut world = setting.zitadel.world();
                world.put_role(&setting.project, "account_admin");
                world.put_role(&setting.project, "reviewer");
            }
            // The project is another organisation's, and this one may grant nothing of it yet.
            let ask = json!({
                "project_id": setting.project, "organization_id": setting.org, "resolve_user_ids_from_zitadel": true,
                "default_role_keys": ["reviewer"],
            });
            let synced = setting.post("sync-admin-grants", ask).await;
            assert_eq!(synced["result"]["grants_summary"]["created"], 1, "{synced:#}");
            assert_eq!(synced["result"]["grants"].as_array().unwrap().len(), 1);
            assert_eq!(setting.roles_of(&ada), ["account_admin", "reviewer"]);
            let grantable = || setting.zitadel.world().project_grants[0].roles.clone();
            assert_eq!(grantable(), ["account_admin", "reviewer"]);

            // Lists lag behind: no update may build on what the one before it has replaced.
            setting.zitadel.knobs(|knobs| knobs.lag = Duration::from_millis(300));
            for prefix in ["a_", "b_", "c_"] {
                let mut ask = setting.bootstrap();
                (ask["role_prefix"], ask["apply_default_role_mappings"]) = (json!(prefix), json!(false));
                ask["grant_existing_account_admins"] = json!(false);
                let made = setting.post("bootstrap", ask).await;
                assert_eq!(made["result"]["project_grant"]["status"], "updated", "{made:#}");
            }
            let held = grantable();
            assert_eq!(held.len(), 20, "{held:?}");
            assert_eq!(setting.roles_of(&ada), ["account_admin", "reviewer"]);
        }
    }
}

#[tokio::test]
async fn what_is_wanted_under_another_name_of_the_place_stays() {
    for backend in backends().await {
        let setting = Setting::new(backend).await;
        // The project's own organisation need not be named.
        let owner = setting.zitadel.world().projects[&setting.project].org.clone();
        let ada = setting.zitadel.user(&owner, "ada@acme.com");
        setting.admin("ada@acme.com", "account_admin").await;
        setting.post("sync-roles", json!({"project_id": setting.project})).await;
        let unnamed = json!({"project_id": setting.project, "user_id": ada, "role_keys": ["end_user"]});
        setting.post("user-grant", unnamed).await;
        let mut ask = setting.bootstrap();
        (ask["organization_id"], ask["default_role_keys"]) = (json!(owner), json!(["end_user"]));
        setting.post("bootstrap", ask.clone()).await;
        assert_eq!(setting.roles_of(&ada), ["account_admin", "end_user"]);
        ask["default_role_keys"] = json!([]);
        setting.post("bootstrap", ask).await;
        assert_eq!(setting.roles_of(&ada), ["account_admin", "end_user"], "it is asked for as a grant of its own");
    }
}

#[tokio::test]
async fn drift_tells_what_is_held_what_is_missing_and_what_is_left_over() {
    for backend in backends().await {
        let setting = Setting::new(backend).await;
        let ada = setting.zitadel.user(&setting.org, "ada@acme.com");
        let eve = setting.zitadel.user(&setting.org, "eve@acme.com");
        let binding = json!({"organization_id": setting.org, "project_id": setting.project});
        setting.operator().put(&setting.path("zitadel/config"), binding).await.ok();
        setting.zitadel.world().put_grant(&eve, &setting.project, &setting.org, &["account_admin", "reviewer"]);
        let before = setting.drift().await;
        assert_eq!((&before["remote"], &before["in_sync"]), (&json!("known"), &json!(false)), "nothing is wanted yet");
        assert_eq!(before["unexpected"][0]["role_keys"], json!(["account_admin"]), "{before:#}");

        setting.admin("ada@acme.com", "account_admin").await;
        setting.post("bootstrap", setting.bootstrap()).await;
        let drift = setting.drift().await;
        let role = found(&drift["items"], "target", "end_user");
        assert_eq!((&role["held_keys"], &role["missing_keys"]), (&json!(["end_user"]), &json!([])));
        let grant = found(&drift["items"], "target", "ada@acme.com");
        assert_eq!((&grant["held_keys"], &grant["remote"]), (&json!(["account_admin"]), &json!("as_wanted")));
        {
            let mut world = setting.zitadel.world();
            world.projects.get_mut(&setting.project).unwrap().roles.remove("end_user");
            world.project_grants[0].roles.retain(|role| role != "end_user");
            world.grants.iter_mut().find(|grant| grant.user == ada).unwrap().roles = vec!["reviewer".to_owned()];
        }
        let drift = setting.drift().await;
        assert_eq!(drift["in_sync"], false);
        for target in ["end_user", setting.org.as_str()] {
            let item = found(&drift["items"], "target", target);
            assert_eq!((&item["missing_keys"], &item["remote"]), (&json!(["end_user"]), &json!("differs")), "{item}");
        }
        let grant = found(&drift["items"], "target", "ada@acme.com");
        assert_eq!((&grant["held_keys"], &grant["missing_keys"]), (&json!(["reviewer"]), &json!(["account_admin"])));

        // Of a suspended account, everything that was granted is left over, until it is taken back.
        setting.zitadel.world().grants.iter_mut().find(|grant| grant.user == ada).unwrap().roles =
            vec!["account_admin".to_owned()];
        setting.operator().post(&setting.path("status"), json!({"status": "suspended"})).await.ok();
        setting.until_roles(&ada, &[]).await;
        let drift = setting.drift().await;
        let grant = found(&drift["items"], "target", "ada@acme.com");
        assert_eq!((&grant["surplus_keys"], &grant["remote"]), (&json!([]), &json!("as_wanted")), "{grant}");
        setting.zitadel.world().put_grant(&ada, &setting.project, &setting.org, &["account_admin"]);
        let drift = setting.drift().await;
        let grant = found(&drift["items"], "target", "ada@acme.com");
        assert_eq!(
            (&grant["surplus_keys"], &grant["remote"]),
            (&json!(["account_admin"]), &json!("differs")),
            "{grant}"
        );
    }
}
