//! What is told of provisioning is what is done, what would be done, and why it cannot be told.

use serde_json::{Value, json};

use crate::common::backends;
use crate::provision::Setting;
use crate::refusal;

#[tokio::test]
async fn another_prefix_is_followed_by_what_was_made_under_the_former() {
    for backend in backends().await {
        let setting = Setting::new(backend).await;
        let ada = setting.zitadel.user(&setting.org, "ada@acme.com");
        setting.admin("ada@acme.com", "copilot_org_admin").await;
        let bootstrap = async |prefix: &str| {
            let mut ask = setting.bootstrap();
            ask["role_prefix"] = json!(prefix);
            setting.post("bootstrap", ask).await
        };
        bootstrap("a_").await;
        assert_eq!(setting.roles_of(&ada), ["a_copilot_org_admin"]);
        let path = setting.path("zitadel/config");
        let mut config = setting.operator().get(&path).await.ok()["zitadel_config"].clone();
        config["role_mappings"]["account_admin"] = json!("boss");
        setting.operator().put(&path, config).await.ok();
        let plan = setting.operator().get(&setting.provision("plan?role_prefix=b_")).await.ok();
        assert_eq!(plan["account_admins"][0]["resolved_role_keys"], json!(["b_copilot_org_admin"]), "{plan:#}");

        let made = bootstrap("b_").await;
        let mappings = &made["result"]["zitadel_config"]["role_mappings"];
        assert_eq!(
            (&mappings["copilot_org_admin"], &mappings["account_admin"]),
            (&json!("b_copilot_org_admin"), &json!("boss"))
        );
        assert_eq!(setting.roles_of(&ada), ["b_copilot_org_admin"]);
        let dry = setting.post("sync-roles", json!({"role_prefix": "c_", "dry_run": true})).await;
        let keys: Vec<_> = dry["result"]["roles"].as_array().unwrap().iter().map(|role| role["key"].clone()).collect();
        assert!(keys.contains(&json!("c_copilot_org_admin")) && keys.contains(&json!("boss")), "{keys:?}");
    }
}

#[tokio::test]
async fn a_project_that_zitadel_does_not_know_is_refused_and_what_cannot_be_had_is_forgotten() {
    for without_v2 in [false, true] {
        for backend in backends().await {
            let setting = Setting::new(backend).await;
            setting.zitadel.knobs(|knobs| knobs.without_v2 = without_v2);
            let ada = setting.zitadel.user(&setting.org, "ada@acme.com");
            setting.admin("ada@acme.com", "account_admin").await;
            for (operation, mut body) in [
                ("bootstrap", setting.bootstrap()),
                ("sync-roles", json!({})),
                ("sync-admin-grants", setting.bootstrap()),
                ("user-grant", json!({"user_id": ada, "role_keys": ["end_user"]})),
                ("project-role", json!({"key": "k", "display_name": "K"})),
            ] {
                body["project_id"] = json!("424242424242424242");
                let refused = setting.operator().post(&setting.provision(operation), body).await;
                refusal(&refused, 404, "project_not_found");
            }
            assert_eq!(setting.drift().await["items"], json!([]));
            let config = setting.operator().get(&setting.path("zitadel/config")).await.ok();
            assert_eq!(config, json!({"zitadel_config": {}}));

            setting.post("bootstrap", setting.bootstrap()).await;
            let body = json!({"user_id": ada, "role_keys": ["no_such_role"]});
            assert_eq!(setting.operator().post(&setting.provision("user-grant"), body).await.status, 502);
            let stuck = async || {
                let items = setting.drift().await["items"].clone();
                let stuck = items.as_array().unwrap().iter().filter(|item| item["state"] != "applied");
                stuck.map(|item| item["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
            };
            let items = stuck().await;
            // The grant, and that the organisation may grant it.
            assert_eq!(items.len(), 2);
            for item in items {
                let one = setting.provision(&format!("items/{item}"));
                assert_eq!(setting.operator().delete(&one).await.ok(), json!({"deleted": true}));
                refusal(&setting.operator().delete(&one).await, 404, "not_found");
            }
            assert_eq!(stuck().await, Vec::<String>::new());
            let applied = setting.drift().await["items"][0]["id"].as_str().unwrap().to_owned();
            let refused = setting.operator().delete(&setting.provision(&format!("items/{applied}"))).await;
            refusal(&refused, 409, "item_not_failed");
            assert_eq!(setting.roles_of(&ada), ["account_admin"]);
        }
    }
}

#[tokio::test]
async fn it_is_told_why_zitadels_side_is_unknown() {
    for backend in backends().await {
        let setting = Setting::new(backend).await;
        setting.admin("ada@acme.com", "account_admin").await;
        let plan = setting.operator().get(&setting.provision("plan")).await.ok();
        assert_eq!(plan["remote_problem"]["reason"], "project_id_missing", "{plan:#}");
        setting.post("bootstrap", setting.bootstrap()).await;
        let bare = setting.gateway.beside(|_| {}).await;
        setting.zitadel.knobs(|knobs| knobs.down = true);
        let mut dry = setting.bootstrap();
        dry["dry_run"] = json!(true);
        for (operator, reason) in
            [(setting.operator(), "zitadel_unavailable"), (bare.operator(), "zitadel_not_configured")]
        {
            let plan = operator.get(&setting.provision("plan")).await.ok();
            assert_eq!((&plan["remote"], &plan["remote_problem"]["reason"]), (&json!("unknown"), &json!(reason)));
            let drift = operator.get(&setting.provision("drift")).await.ok();
            let problem = drift["remote_problems"].as_array().unwrap().iter().find(|p| p["reason"] == reason);
            assert_eq!(problem.unwrap()["project_id"], setting.project, "{drift:#}");
            let made = operator.post(&setting.provision("bootstrap"), dry.clone()).await.ok();
            let told = &made["summary"]["remote_problem"];
            assert_eq!((&told["reason"], &told["organization_id"]), (&json!(reason), &json!(setting.org)), "{made:#}");
            let role = &made["result"]["roles"]["results"][0];
            assert_eq!((&role["remote"], &role["message"]), (&json!("unknown"), &told["detail"]));
        }
    }
}

#[tokio::test]
async fn a_dry_run_says_what_would_be_asked_and_refused() {
    for backend in backends().await {
        let setting = Setting::new(backend).await;
        setting.zitadel.user(&setting.org, "ada@acme.com");
        setting.admin("ada@acme.com", "account_admin").await;
        setting.post("bootstrap", setting.bootstrap()).await;
        let ask = json!({"default_role_keys": ["reviewer"], "resolve_user_ids_from_zitadel": true});
        setting.zitadel.world().put_role(&setting.project, "reviewer");
        let mut dry = ask.clone();
        dry["dry_run"] = json!(true);
        let told = setting.post("sync-admin-grants", dry).await["result"]["project_grant"].clone();
        assert_eq!(told["remote"], "missing", "{told}");
        let made = setting.post("sync-admin-grants", ask).await["result"]["project_grant"].clone();
        assert_eq!(made["status"], "updated", "{made}");
        let items = setting.drift().await["items"].clone();
        let item = items.as_array().unwrap().iter().find(|item| item["kind"] == "project_grant").unwrap();
        assert_eq!(told["request"]["role_keys"], item["role_keys"], "what it would ask is what it asks");

        // An organisation is one account's.
        let other = setting.gateway.account("Other").await;
        for dry_run in [true, false] {
            let mut ask = setting.bootstrap();
            ask["dry_run"] = json!(dry_run);
            let path = format!("/v1/accounts/{other}/zitadel/provision/bootstrap");
            let refused = setting.operator().post(&path, ask).await;
            assert_eq!(refusal(&refused, 409, "already_exists")["field"], "organization_id", "{dry_run}");
        }
    }
}

#[tokio::test]
async fn drift_leaves_to_others_what_is_theirs_and_knows_its_admins_before_they_are_resolved() {
    for backend in backends().await {
        let setting = Setting::new(backend).await;
        let ada = setting.zitadel.user(&setting.org, "ada@acme.com");
        setting.admin("ada@acme.com", "account_admin").await;
        setting.post("bootstrap", setting.bootstrap()).await;
        // Another account wants the same of her in the same place.
        let other = setting.gateway.account("Other").await;
        let path = format!("/v1/accounts/{other}/zitadel/provision/user-grant");
        let mut body = setting.binding();
        (body["user_id"], body["role_keys"]) = (json!(ada), json!(["account_admin"]));
        setting.operator().post(&path, body).await.ok();
        setting.operator().post(&setting.path("status"), json!({"status": "suspended"})).await.ok();
        let grant = async || {
            let items = setting.drift().await["items"].clone();
            items.as_array().unwrap().iter().find(|item| item["target"] == "ada@acme.com").unwrap().clone()
        };
        let mut item = grant().await;
        while item["state"] != "applied" {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            item = grant().await;
        }
        let told = (&item["surplus_keys"], &item["remote"]);
        assert_eq!(told, (&json!([]), &json!("as_wanted")), "what stays for another is not left over: {item}");
        assert_eq!(setting.roles_of(&ada), ["account_admin"]);
        assert_eq!(setting.drift().await["unexpected"], json!([]), "another account has asked for it");
        setting.operator().post(&setting.path("status"), json!({"status": "active"})).await.ok();

        // Made in the control plane and granted by hand; and one whose address two people have.
        let hands = ["carol", "dave", "dave", "eve"]
            .map(|name| setting.zitadel.user(&setting.org, &format!("{name}@acme.com")));
        for user in &hands {
            setting.zitadel.world().put_grant(user, &setting.project, &setting.org, &["account_admin"]);
        }
        for name in ["carol", "dave"] {
            setting.admin(&format!("{name}@acme.com"), "account_admin").await;
        }
        setting.zitadel.knobs(|knobs| knobs.down = false);
        let drift = setting.drift().await;
        let unexpected: Vec<&Value> =
            drift["unexpected"].as_array().unwrap().iter().map(|grant| &grant["user_id"]).collect();
        assert_eq!(unexpected, [&json!(hands[3])], "{drift:#}");
    }
}
