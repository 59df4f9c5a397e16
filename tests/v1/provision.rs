//! Roles and grants in Zitadel, through the routes and a stand-in.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::common::zitadel::{self, Zitadel};
use crate::common::{Backend, Client, Gateway, Person, backends};

/// An account that is an organisation of a Zitadel, beside the organisation that owns the project.
pub(crate) struct Setting {
    pub(crate) zitadel: Zitadel,
    pub(crate) gateway: Gateway,
    pub(crate) account: String,
    pub(crate) project: String,
    pub(crate) org: String,
}

pub(crate) fn configure(config: &mut alchemi::config::Config, url: &str) {
    config.zitadel.url = Some(url.to_owned());
    config.zitadel.token = Some(zitadel::TOKEN.into());
    config.zitadel.requests_per_second = 5_000;
}

impl Setting {
    pub(crate) async fn new(backend: Backend) -> Self {
        Self::shaped(backend, |_| {}).await
    }

    pub(crate) async fn shaped(backend: Backend, shape: impl FnOnce(&mut alchemi::config::Config)) -> Self {
        let zitadel = Zitadel::start("127.0.0.1:0".parse().unwrap()).await;
        let owner = zitadel.org("Platform");
        let org = zitadel.org("Acme");
        let project = zitadel.project(&owner, "gateway");
        let gateway = Gateway::start_with(backend, |config| {
            configure(config, zitadel.url());
            shape(config);
        })
        .await;
        let account = gateway.account("Acme").await;
        Self { zitadel, gateway, account, project, org }
    }

    pub(crate) fn path(&self, rest: &str) -> String {
        format!("/v1/accounts/{}/{rest}", self.account)
    }

    pub(crate) fn provision(&self, rest: &str) -> String {
        self.path(&format!("zitadel/provision/{rest}"))
    }

    pub(crate) fn operator(&self) -> Client {
        self.gateway.operator()
    }

    pub(crate) async fn admin(&self, email: &str, role: &str) {
        let body = json!({"user_email": email, "role": role});
        self.operator().post(&self.path("admins"), body).await.ok();
    }

    /// Somebody of the account's organisation.
    pub(crate) fn person(&self, subject: &str) -> Person {
        Person::of(&self.account, subject).of_org(&self.org)
    }

    pub(crate) fn bootstrap(&self) -> Value {
        json!({
            "project_id": self.project, "organization_id": self.org, "resolve_user_ids_from_zitadel": true,
        })
    }

    /// The account bound to its organisation and the project.
    pub(crate) fn binding(&self) -> Value {
        json!({"project_id": self.project, "organization_id": self.org})
    }

    pub(crate) async fn post(&self, rest: &str, body: Value) -> Value {
        self.operator().post(&self.provision(rest), body).await.ok()
    }

    pub(crate) async fn drift(&self) -> Value {
        self.operator().get(&self.provision("drift")).await.ok()
    }

    pub(crate) fn roles_of(&self, user: &str) -> Vec<String> {
        self.zitadel.world().roles_of(user, &self.project).into_iter().collect()
    }

    /// Waits until a user holds these roles.
    pub(crate) async fn until_roles(&self, user: &str, wanted: &[&str]) {
        let wanted: BTreeSet<String> = wanted.iter().map(|role| (*role).to_owned()).collect();
        for _ in 0..600 {
            if self.zitadel.world().roles_of(user, &self.project) == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{user} holds {:?}: {}", self.roles_of(user), self.drift().await);
    }
}

const ROLES: [&str; 6] =
    ["account_admin", "console_org_admin", "console_team_admin", "copilot_org_admin", "copilot_team_admin", "end_user"];

#[tokio::test]
async fn a_bootstrap_makes_all_of_it_and_a_second_one_changes_nothing() {
    for without_v2 in [false, true] {
        for backend in backends().await {
            let setting = Setting::new(backend).await;
            setting.zitadel.knobs(|knobs| knobs.without_v2 = without_v2);
            let ada = setting.zitadel.user(&setting.org, "Ada@acme.com");
            let bob = setting.zitadel.user(&setting.org, "bob@acme.com");
            setting.admin("ada@acme.com", "account_admin").await;
            setting.admin("bob@acme.com", "copilot_org_admin").await;
            setting.admin("nobody@acme.com", "account_admin").await;

            let plan = setting.operator().get(&setting.provision("plan")).await.ok();
            assert_eq!(plan["remote"], "unknown", "no project is known yet: {plan}");
            assert_eq!(plan["account_admins"][1]["resolved_role_keys"], json!(["copilot_org_admin"]));

            let made = setting.post("bootstrap", setting.bootstrap()).await;
            assert_eq!(made["status"], "ok");
            let summary = &made["summary"];
            assert_eq!(
                (&summary["role_sync_summary"]["created"], &summary["config_updated"]),
                (&json!(6), &json!(true))
            );
            assert_eq!(summary["admin_grant_summary"]["created"], 2, "{made:#}");
            let unresolved = &summary["unresolved_admins"];
            assert_eq!(unresolved[0]["reason"], "user_id_not_found", "{unresolved}");
            assert_eq!(unresolved[0]["email"], "nobody@acme.com");
            assert_eq!(made["result"]["project_grant"]["status"], "created");
            assert_eq!(made["result"]["admin_grants"]["resolved_user_ids"]["ada@acme.com"], ada);
            assert_eq!(setting.zitadel.world().role_keys(&setting.project), ROLES);
            assert_eq!(setting.roles_of(&ada), ["account_admin"]);
            assert_eq!(setting.roles_of(&bob), ["copilot_org_admin"]);
            let config = setting.operator().get(&setting.path("zitadel/config")).await.ok();
            assert_eq!(config["zitadel_config"]["organization_id"], setting.org);
            let metrics = setting.operator().get("/metrics").await.text();
            let counted = "alchemi_zitadel_calls_total{operation=\"add_role\",outcome=\"ok\"} 6";
            assert!(metrics.contains(counted), "{metrics}");
            let timed = "alchemi_zitadel_call_seconds_count{operation=\"add_role\"} 6";
            assert!(metrics.contains(timed), "{metrics}");

            let writes = setting.zitadel.world().writes;
            let again = setting.post("bootstrap", setting.bootstrap()).await;
            assert_eq!(setting.zitadel.world().writes, writes, "{again:#}");
            assert_eq!(again["summary"]["config_updated"], false);
            assert_eq!(again["summary"]["role_sync_summary"]["exists"], 6);
            assert_eq!(again["summary"]["admin_grant_summary"]["exists"], 2);
            let plan = setting.operator().get(&setting.provision("plan")).await.ok();
            assert_eq!((&plan["remote"], &plan["standard_roles"][0]["remote"]), (&json!("known"), &json!("present")));
        }
    }
}

#[tokio::test]
async fn a_dry_run_writes_nothing_and_needs_no_credentials() {
    for backend in backends().await {
        let setting = Setting::new(backend).await;
        setting.zitadel.user(&setting.org, "ada@acme.com");
        setting.admin("ada@acme.com", "account_admin").await;
        let mut ask = setting.bootstrap();
        ask["dry_run"] = json!(true);
        let dry = setting.post("bootstrap", ask.clone()).await;
        assert_eq!(dry["summary"]["role_sync_summary"]["skipped"], 6, "{dry:#}");
        assert_eq!(dry["result"]["roles"]["results"][0]["remote"], "missing");
        assert_eq!(dry["result"]["roles"]["results"][0]["reason"], "dry_run");
        assert_eq!(dry["result"]["admin_grants"]["grants"][0]["remote"], "missing");
        for (operation, body) in [
            ("sync-roles", json!({"project_id": setting.project, "dry_run": true})),
            (
                "sync-admin-grants",
                json!({"project_id": setting.project, "organization_id": setting.org,
                    "resolve_user_ids_from_zitadel": true, "dry_run": true}),
            ),
            ("user-grant", json!({"project_id": setting.project, "user_id": "1", "role_keys": ["r"], "dry_run": true})),
            ("project-role", json!({"project_id": setting.project, "key": "r", "display_name": "R", "dry_run": true})),
        ] {
            let told = setting.post(operation, body).await.to_string();
            assert!(told.contains(r#""reason":"dry_run""#), "{operation}: {told}");
            assert!(told.contains(r#""remote":"missing""#), "{operation}: {told}");
        }
        assert_eq!(setting.zitadel.world().writes, 0);
        assert_eq!(setting.drift().await["items"], json!([]));
        let config = setting.operator().get(&setting.path("zitadel/config")).await.ok();
        assert_eq!(config, json!({"zitadel_config": {}}));

        let refused = setting.operator().post(&setting.provision("user-grant"), json!({"user_id": "1"})).await;
        assert_eq!(refused.json()["detail"], "project_id missing in request and account zitadel config");
        let bare = setting.gateway.beside(|_| {}).await;
        let binding = json!({"organization_id": setting.org, "project_id": setting.project});
        setting.operator().put(&setting.path("zitadel/config"), binding).await.ok();
        let plan = bare.operator().get(&setting.provision("plan?role_prefix=acme_")).await.ok();
        assert_eq!((&plan["remote"], &plan["standard_roles"][0]["remote"]), (&json!("unknown"), &json!("unknown")));
        assert_eq!(plan["standard_roles"][0]["key"], "acme_account_admin", "it is planned all the same: {plan:#}");
        assert_eq!(plan["account_admins"][0]["resolved_role_keys"], json!(["acme_account_admin"]));
        let plan = setting.operator().get(&setting.provision("plan")).await.ok();
        assert_eq!((&plan["remote"], &plan["standard_roles"][0]["remote"]), (&json!("known"), &json!("missing")));
        assert_eq!(setting.drift().await["items"], json!([]), "a plan writes nothing");
        assert_eq!(setting.zitadel.world().writes, 0);
        let path = setting.provision("bootstrap");
        let dry = bare.operator().post(&path, ask.clone()).await.ok();
        assert_eq!(dry["result"]["roles"]["results"][0]["remote"], "unknown");
        ask["dry_run"] = json!(false);
        let refused = bare.operator().post(&path, ask).await;
        assert_eq!((refused.status.as_u16(), refused.code()), (400, "zitadel_not_configured".to_owned()));
        let detail = refused.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.starts_with("Zitadel management client is not configured: set "), "{detail}");
        assert!(detail.contains("ZITADEL_KEY_FILE") && detail.contains("ZITADEL_CLIENT_ID"), "{detail}");
    }
}

#[tokio::test]
async fn nobody_elses_roles_are_touched() {
    for without_v2 in [false, true] {
        for backend in backends().await {
            let setting = Setting::new(backend).await;
            setting.zitadel.knobs(|knobs| knobs.without_v2 = without_v2);
            let ada = setting.zitadel.user(&setting.org, "ada@acme.com");
            let eve = setting.zitadel.user(&setting.org, "eve@acme.com");
            setting.post("sync-roles", json!({"project_id": setting.project, "role_prefix": null})).await;
            {
                let mut world = setting.zitadel.world();
                world.put_role(&setting.project, "reviewer");
                world.add_project_grant_of(&setting.project, &setting.org, &["reviewer"]);
                world.put_grant(&ada, &setting.project, &setting.org, &["reviewer"]);
                world.put_grant(&eve, &setting.project, &setting.org, &["reviewer"]);
            }
            setting.admin("ada@acme.com", "account_admin").await;
            setting.post("bootstrap", setting.bootstrap()).await;
            assert_eq!(setting.roles_of(&ada), ["account_admin", "reviewer"]);

            let body = json!({"user_id": ada, "role_keys": ["end_user"]});
            let granted = setting.post("user-grant", body.clone()).await;
            assert_eq!(granted["result"]["status"], "updated", "{granted}");
            assert!(granted["result"]["userGrantId"].is_string());
            assert_eq!(setting.post("user-grant", body).await["result"]["status"], "exists");
            assert_eq!(setting.roles_of(&ada), ["account_admin", "end_user", "reviewer"]);

            // Another role for the admin takes the place of the former, and of no other.
            let one = setting.path("admins/ada@acme.com");
            setting.operator().patch(&one, json!({"role": "console_org_admin"})).await.ok();
            setting.until_roles(&ada, &["console_org_admin", "end_user", "reviewer"]).await;
            setting.operator().delete(&one).await.ok();
            setting.until_roles(&ada, &["end_user", "reviewer"]).await;
            assert_eq!(setting.roles_of(&eve), ["reviewer"]);
        }
    }
}

#[tokio::test]
async fn an_ambiguous_address_is_granted_nothing() {
    for backend in backends().await {
        let setting = Setting::new(backend).await;
        let elsewhere = setting.zitadel.org("Elsewhere");
        let ada = setting.zitadel.user(&setting.org, "ada@acme.com");
        let other = setting.zitadel.user(&setting.org, "ada@acme.com");
        // A user of the account's own organisation comes before one who says so elsewhere.
        let bob = setting.zitadel.user(&setting.org, "bob@acme.com");
        let impostor = setting.zitadel.user(&elsewhere, "bob@acme.com");
        // Who has not shown that an address is theirs does not have it, wherever they signed up.
        let squatter = setting.zitadel.user(&setting.org, "carol@acme.com");
        setting.zitadel.world().users.get_mut(&squatter).unwrap().verified = false;
        let carol = setting.zitadel.user(&elsewhere, "carol@acme.com");
        setting.admin("carol@acme.com", "account_admin").await;
        setting.admin("ada@acme.com", "account_admin").await;
        setting.admin("bob@acme.com", "account_admin").await;
        let made = setting.post("bootstrap", setting.bootstrap()).await;
        let unresolved = &made["summary"]["unresolved_admins"][0];
        assert_eq!(unresolved["reason"], "ambiguous_email", "{made:#}");
        assert_eq!(unresolved["candidates"][0]["user_id"], ada);
        assert_eq!(unresolved["candidates"][1]["user_id"], other);
        assert_eq!(setting.roles_of(&bob), ["account_admin"]);
        assert!(setting.roles_of(&impostor).is_empty() && setting.roles_of(&ada).is_empty());
        assert_eq!(setting.roles_of(&carol), ["account_admin"]);
        assert!(setting.roles_of(&squatter).is_empty());
        let item =
            setting.drift().await["items"].as_array().unwrap().iter().find(|i| i["target"] == "ada@acme.com").cloned();
        assert_eq!(item.unwrap()["state"], "conflict");

        let mut ask = setting.bootstrap();
        ask["user_id_by_email"] = json!({"ADA@acme.com": other});
        let made = setting.post("bootstrap", ask).await;
        assert_eq!(made["summary"]["unresolved_admins"], json!([]));
        assert_eq!(setting.roles_of(&other), ["account_admin"]);
    }
}

#[tokio::test]
async fn a_prefix_holds_in_both_directions() {
    for backend in backends().await {
        let setting = Setting::new(backend).await;
        let ada = setting.zitadel.user(&setting.org, "ada@acme.com");
        setting.admin("ada@acme.com", "copilot_org_admin").await;
        let mut ask = setting.bootstrap();
        ask["role_prefix"] = json!("acme_");
        setting.post("bootstrap", ask).await;
        assert_eq!(setting.roles_of(&ada), ["acme_copilot_org_admin"]);
        let bundle = setting.operator().get(&setting.path("zitadel/config")).await.ok();
        assert_eq!(bundle["zitadel_config"]["role_mappings"]["account_admin"], "acme_account_admin");
        // What is granted is what the gateway reads.
        let granted = setting.roles_of(&ada);
        let person = crate::common::Person::of(&setting.account, &ada).of_org(&setting.org);
        let person = granted.iter().fold(person, |person, role| person.role(role));
        let client = setting.gateway.sign_in(&person);
        let context = client.get("/v1/me/context").await.ok();
        assert_eq!(context["roles"], json!(["copilot_org_admin"]), "{context}");
    }
}

#[tokio::test]
async fn refusals_speak_in_our_words_and_are_tried_again() {
    for backend in backends().await {
        let setting = Setting::new(backend).await;
        let ada = setting.zitadel.user(&setting.org, "ada@acme.com");
        let body = json!({
            "user_id": ada, "role_keys": ["no_such_role"], "project_id": setting.project, "organization_id": setting.org,
        });
        let path = setting.provision("user-grant");
        let refused = setting.operator().post(&path, body).await;
        assert_eq!((refused.status.as_u16(), refused.code()), (502, "zitadel_failed".to_owned()), "{}", refused.text());
        let detail = refused.json()["detail"].as_str().unwrap().to_owned();
        assert_eq!(
            detail,
            "Failed to provision Zitadel user grant: Zitadel refused: failed_precondition (COMMAND-4m9Vs): the project \
             may lack the role, or the organisation may not grant it, or there is no such user"
        );
        // What Zitadel said stays inside: here, and where the item is shown.
        let said = setting.zitadel.requests().iter().map(|asked| asked.answer["message"].clone()).collect::<Vec<_>>();
        assert!(said.contains(&json!("Project grant not found (COMMAND-4m9Vs)")), "{said:?}");
        let shown = refused.text() + &setting.drift().await.to_string();
        assert!(!shown.contains("grant not found"), "{shown}");
        let empty = setting.operator().post(&path, json!({"user_id": ada, "project_id": setting.project})).await;
        assert_eq!((empty.status.as_u16(), empty.json()["detail"].clone()), (400, json!("role_keys cannot be empty")));

        setting.zitadel.knobs(|knobs| knobs.down = true);
        let role = json!({"key": "late", "display_name": "Late", "project_id": setting.project});
        let refused = setting.operator().post(&setting.provision("project-role"), role).await;
        assert_eq!(
            (refused.status.as_u16(), refused.json()["retried"].clone()),
            (502, json!(true)),
            "{}",
            refused.text()
        );
        setting.zitadel.knobs(|knobs| knobs.down = false);
        let made = async {
            while setting.zitadel.world().role_keys(&setting.project) != ["late"] {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), made).await.expect("it is tried again");
    }
}

#[tokio::test]
async fn drift_tells_what_differs_and_a_repeated_bootstrap_mends_it() {
    for backend in backends().await {
        let setting = Setting::new(backend).await;
        let ada = setting.zitadel.user(&setting.org, "ada@acme.com");
        let eve = setting.zitadel.user(&setting.org, "eve@acme.com");
        setting.admin("ada@acme.com", "account_admin").await;
        setting.post("bootstrap", setting.bootstrap()).await;
        let drift = setting.drift().await;
        assert_eq!((&drift["remote"], &drift["in_sync"]), (&json!("known"), &json!(true)), "{drift:#}");
        {
            let mut world = setting.zitadel.world();
            world.grants.retain(|grant| grant.user != ada);
            world.put_grant(&eve, &setting.project, &setting.org, &["account_admin"]);
        }
        let drift = setting.drift().await;
        assert_eq!(drift["in_sync"], false);
        assert_eq!(drift["unexpected"][0]["user_id"], eve);
        let item = drift["items"].as_array().unwrap().iter().find(|item| item["target"] == "ada@acme.com").unwrap();
        assert_eq!(item["remote"], "differs");
        assert_eq!((&item["held_keys"], &item["missing_keys"]), (&json!([]), &json!(["account_admin"])));
        setting.post("bootstrap", setting.bootstrap()).await;
        assert_eq!(setting.drift().await["in_sync"], true);
        assert_eq!(setting.roles_of(&eve), ["account_admin"], "what others did is told, not undone");
        setting.zitadel.knobs(|knobs| knobs.down = true);
        assert_eq!(setting.drift().await["remote"], "unknown");
    }
}

/// Who asked for what stands in the audit from the moment that it is wanted, whatever comes of it.
#[tokio::test]
async fn the_audit_names_who_asked_although_zitadel_fails() {
    for backend in backends().await {
        let setting = Setting::new(backend).await;
        let ada = setting.zitadel.user(&setting.org, "ada@acme.com");
        setting.admin("ada@acme.com", "account_admin").await;
        let person = setting.gateway.as_super_admin(&setting.account);
        let audit = async || {
            let all = setting.operator().get(&setting.path("audit")).await.ok()["items"].clone();
            let own = |row: &&Value| row["table_name"] == "Alchemi_ZitadelProvision";
            all.as_array().unwrap().iter().filter(own).cloned().collect::<Vec<_>>()
        };
        setting.zitadel.knobs(|knobs| knobs.down = true);
        let grant = json!({"user_id": ada, "role_keys": ["late"], "project_id": setting.project});
        let role = json!({"key": "late", "display_name": "Late", "project_id": setting.project});
        for (path, body) in [("user-grant", &grant), ("project-role", &role)] {
            let refused = person.post(&setting.provision(path), body.clone()).await;
            assert_eq!((refused.status.as_u16(), refused.json()["retried"].clone()), (502, json!(true)));
        }
        let mut all = setting.bootstrap();
        all["create_project_roles"] = json!(false);
        person.post(&setting.provision("bootstrap"), all).await.ok();
        let rows = audit().await;
        let told: Vec<_> =
            rows.iter().map(|row| (&row["updated_values"]["operation"], &row["action"], &row["changed_by"])).collect();
        let (create, person_id) = (json!("create"), json!("super"));
        let (bootstrap, role, grant) = (json!("bootstrap"), json!("project_role"), json!("user_grant"));
        assert_eq!(
            told,
            [
                (&bootstrap, &json!("update"), &person_id),
                (&bootstrap, &create, &person_id),
                (&role, &create, &person_id),
                (&grant, &create, &person_id),
            ]
        );
        assert_eq!(rows[0]["updated_values"]["result"]["summary"]["admin_grant_summary"]["pending"], 1, "{}", rows[0]);
        let wanted = json!([
            {"kind": "project_grant", "target": setting.org, "role_keys": ["account_admin"]},
            {"kind": "user_grant", "target": "ada@acme.com", "role_keys": ["account_admin"]},
        ]);
        assert_eq!(rows[1]["updated_values"]["wanted"], wanted, "{}", rows[1]);
        assert_eq!(rows[3]["updated_values"]["user_id"], ada, "{}", rows[3]);

        // A dry run leaves one row, and it says what was asked.
        let dry = json!({"project_id": setting.project, "dry_run": true});
        person.post(&setting.provision("sync-roles"), dry).await.ok();
        let rows = audit().await;
        let (said, action) = (&rows[0]["updated_values"], &rows[0]["action"]);
        assert_eq!((rows.len(), action, &said["operation"]), (5, &create, &json!("sync_roles")), "{said}");
        assert_eq!((&said["project_id"], &said["result"]["skipped"]), (&json!(setting.project), &json!(6)), "{said}");
    }
}
