//! A change of an admin is followed everywhere: in every place where they were granted something, in tokens that only show
//! their address, and where nothing is to be believed or made at all.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::gateway::PATIENCE;
use crate::common::{Backend, Person, backends};
use crate::provision::{Setting, configure};
use crate::refusal;

/// An account with two admins, in a project that has the product's roles.
async fn setting(backend: Backend) -> (Setting, [String; 2]) {
    let setting = Setting::new(backend).await;
    let users = ["ada", "bob"].map(|name| setting.zitadel.user(&setting.org, &format!("{name}@acme.com")));
    setting.post("sync-roles", json!({"project_id": setting.project})).await;
    for name in ["ada", "bob"] {
        setting.admin(&format!("{name}@acme.com"), "account_admin").await;
    }
    (setting, users)
}

async fn demote(setting: &Setting, name: &str) {
    let one = setting.path(&format!("admins/{name}@acme.com"));
    setting.operator().patch(&one, json!({"role": "console_org_admin"})).await.ok();
}

async fn remove(setting: &Setting, name: &str) {
    setting.operator().delete(&setting.path(&format!("admins/{name}@acme.com"))).await.ok();
}

#[tokio::test]
async fn a_former_role_is_taken_back_where_the_account_is_not_bound() {
    for backend in backends().await {
        let (setting, [ada, bob]) = setting(backend).await;
        // Somewhere that was only named, under a prefix that was only named.
        let mut ask = setting.bootstrap();
        ask["default_role_keys"] = json!(["end_user"]);
        setting.post("sync-roles", json!({"project_id": setting.project, "role_prefix": "x_"})).await;
        ask["role_prefix"] = json!("x_");
        let synced = setting.post("sync-admin-grants", ask).await;
        assert_eq!(synced["result"]["project_grant"]["status"], "created", "{synced:#}");
        for user in [&ada, &bob] {
            assert_eq!(setting.roles_of(user), ["end_user", "x_account_admin"]);
        }
        demote(&setting, "ada").await;
        setting.until_roles(&ada, &["end_user"]).await;
        remove(&setting, "bob").await;
        setting.until_roles(&bob, &[]).await;
        remove(&setting, "ada").await;
        setting.until_roles(&ada, &[]).await;
    }
}

#[tokio::test]
async fn a_former_role_is_taken_back_where_the_account_was_bound_before() {
    for backend in backends().await {
        let (setting, [ada, bob]) = setting(backend).await;
        setting.post("bootstrap", setting.bootstrap()).await;
        let moved = setting.zitadel.org("Moved");
        let binding = json!({"project_id": setting.project, "organization_id": moved});
        setting.operator().put(&setting.path("zitadel/config"), binding).await.ok();
        remove(&setting, "bob").await;
        setting.until_roles(&bob, &[]).await;
        // The new role is granted by the organisation that the account is now, which is let to.
        demote(&setting, "ada").await;
        setting.until_roles(&ada, &["console_org_admin"]).await;
        let by: Vec<String> = setting.zitadel.world().live_grants().map(|grant| grant.org.clone()).collect();
        assert_eq!(by, [moved]);
    }
}

#[tokio::test]
async fn a_former_role_that_was_granted_by_hand_is_taken_back() {
    for backend in backends().await {
        let (setting, [ada, bob]) = setting(backend).await;
        let (project, org) = (&setting.project, &setting.org);
        setting.operator().put(&setting.path("zitadel/config"), setting.binding()).await.ok();
        {
            let mut world = setting.zitadel.world();
            world.add_project_grant_of(project, org, &["account_admin", "console_org_admin"]);
            for user in [&ada, &bob] {
                world.put_grant(user, project, org, &["account_admin"]);
            }
        }
        demote(&setting, "ada").await;
        setting.until_roles(&ada, &["console_org_admin"]).await;
        remove(&setting, "bob").await;
        setting.until_roles(&bob, &[]).await;
    }
}

/// Nobody here knows her subject, and Zitadel cannot be asked.
#[tokio::test]
async fn an_admin_who_is_known_by_address_alone_is_cut_off_while_zitadel_is_down() {
    for backend in backends().await {
        let alone = backend == Backend::Sqlite;
        let setting = Setting::new(backend).await;
        setting.operator().put(&setting.path("zitadel/config"), setting.binding()).await.ok();
        setting.admin("ada@acme.com", "account_admin").await;
        let other = setting.gateway.account("Other").await;
        let at = |person: Person| setting.gateway.sign_in(&person.role("account_admin"));
        let ada = setting.person("ada-subject").role("account_admin").email("Ada@acme.com");
        let token = setting.gateway.token(&ada);
        let here = setting.gateway.anybody().with_token(&token);
        let eve = at(setting.person("eve-subject").email("eve@acme.com"));
        let elsewhere = at(Person::of(&other, "another-ada").email("ada@acme.com"));
        let beside = match alone {
            true => None,
            false => Some(setting.gateway.beside(|config| configure(config, setting.zitadel.url())).await),
        };
        let there = beside.as_ref().map(|gateway| gateway.anybody().with_token(&token));
        for client in [Some(&here), Some(&eve), Some(&elsewhere), there.as_ref()].into_iter().flatten() {
            client.get("/v1/audit").await.ok();
        }
        setting.zitadel.knobs(|knobs| knobs.down = true);
        remove(&setting, "ada").await;
        refusal(&here.get("/v1/audit").await, 401, "token_revoked");
        let since = Instant::now();
        while let Some(there) = &there
            && there.get("/v1/audit").await.status == 200
        {
            assert!(since.elapsed() < PATIENCE, "still admitted after {:?}", since.elapsed());
        }
        for client in [&eve, &elsewhere] {
            client.get("/v1/audit").await.ok();
        }
        // The address alone: who shows none that is verified is somebody else.
        let mut claims =
            setting.gateway.claims(&setting.person("squatter").role("account_admin").email("ada@acme.com"));
        claims.insert("email_verified".to_owned(), json!(false));
        let squatter = setting.gateway.issuer.sign(jsonwebtoken::Algorithm::RS256, &claims).unwrap();
        setting.gateway.anybody().with_token(&squatter).get("/v1/audit").await.ok();
    }
}

#[tokio::test]
async fn a_binding_that_is_switched_off_is_not_believed_and_nothing_is_made_of_it() {
    for backend in backends().await {
        let (setting, [ada, bob]) = setting(backend).await;
        setting.post("bootstrap", setting.bootstrap()).await;
        let carol = setting.zitadel.user(&setting.org, "carol@acme.com");
        let client = setting.gateway.sign_in(&setting.person(&ada).role("account_admin"));
        client.get("/v1/audit").await.ok();
        let path = setting.path("zitadel/config");
        let config = setting.operator().get(&path).await.ok()["zitadel_config"].clone();
        let switched = |on: bool| {
            let mut config = config.clone();
            config["enabled"] = json!(on);
            config
        };
        setting.zitadel.knobs(|knobs| knobs.down = true);
        setting.admin("carol@acme.com", "account_admin").await;
        setting.operator().put(&path, switched(false)).await.ok();
        // What was begun before has ended.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let sql = r#"SELECT holder FROM "Alchemi_ZitadelLeaseTable""#;
        while !setting.gateway.database.rows(sql, &[]).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        setting.zitadel.knobs(|knobs| knobs.down = false);

        refusal(&client.get("/v1/audit").await, 403, "binding_off");
        let chat = json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]});
        assert_eq!(client.post("/v1/chat/completions", chat).await.code(), "binding_off");
        // An operator is one wherever they come from.
        setting.gateway.as_super_admin(&setting.account).get(&path).await.ok();
        for (operation, body) in [
            ("bootstrap", setting.bootstrap()),
            ("sync-roles", json!({})),
            ("sync-admin-grants", json!({})),
            ("user-grant", json!({"user_id": ada, "role_keys": ["end_user"]})),
            ("project-role", json!({"key": "k", "display_name": "K"})),
        ] {
            refusal(&setting.operator().post(&setting.provision(operation), body).await, 409, "binding_off");
        }
        assert_eq!(setting.drift().await["enabled"], false);
        // What was granted is taken back all the same; what was not is not granted meanwhile.
        remove(&setting, "bob").await;
        setting.until_roles(&bob, &[]).await;
        assert!(setting.roles_of(&carol).is_empty());
        setting.operator().put(&path, switched(true)).await.ok();
        setting.until_roles(&carol, &["account_admin"]).await;
        client.get("/v1/audit").await.ok();
    }
}

#[tokio::test]
async fn in_a_suspended_account_nothing_is_said_to_be_granted() {
    for backend in backends().await {
        let (setting, [ada, bob]) = setting(backend).await;
        setting.operator().post(&setting.path("status"), json!({"status": "suspended"})).await.ok();
        let made = setting.post("bootstrap", setting.bootstrap()).await;
        let told = |grant: &Value| (grant["status"].clone(), grant["reason"].clone());
        let withheld = (json!("pending"), json!("account_suspended"));
        for grant in made["result"]["admin_grants"]["grants"].as_array().unwrap() {
            assert_eq!(told(grant), withheld, "{made:#}");
        }
        assert_eq!(made["summary"]["admin_grant_summary"]["pending"], 2);
        let granted = setting.post("user-grant", json!({"user_id": ada, "role_keys": ["end_user"]})).await;
        assert_eq!(told(&granted["result"]), withheld, "{granted}");
        assert!(setting.roles_of(&ada).is_empty() && setting.roles_of(&bob).is_empty());
        setting.operator().post(&setting.path("status"), json!({"status": "active"})).await.ok();
        setting.until_roles(&ada, &["account_admin", "end_user"]).await;
        setting.until_roles(&bob, &["account_admin"]).await;
    }
}
