//! Who loses a role is out at once, everywhere.

use std::sync::Arc;
use std::time::{Duration, Instant};

use alchemi::clock::SystemClock;
use alchemi::dev::{DevIssuer, DevUser, Org};
use alchemi::id::RandomIds;
use alchemi::identity::IssuerConfig;
use serde_json::json;

use crate::common::gateway::PATIENCE;
use crate::common::zitadel::{API, Zitadel};
use crate::common::{Backend, Client, Gateway, Person, Reply, backends};
use crate::provision::{Setting, configure};
use crate::refusal;

/// When, and why, a subject was cut off last.
async fn cut_off(gateway: &Gateway, subject: &str) -> Option<(serde_json::Value, serde_json::Value)> {
    let query = r#"SELECT issued_before, reason FROM "Alchemi_RevocationTable" WHERE subject = $1"#;
    let rows = gateway.database.rows(query, &[subject]).await;
    rows.first().map(|row| (row["issued_before"].clone(), row["reason"].clone()))
}

/// Somebody of the account at a gateway whose caches know them: the control plane and the model are theirs to use.
struct Known(Client);

impl Known {
    async fn at(client: Client) -> Self {
        let known = Self(client);
        for _ in 0..3 {
            assert_eq!(known.ask().await.map(|reply| reply.status.as_u16()), [200, 200]);
        }
        known
    }

    async fn ask(&self) -> [Reply; 2] {
        let chat = json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]});
        [self.0.get("/v1/audit").await, self.0.post("/v1/chat/completions", chat).await]
    }

    async fn refuses(&self, codes: &[&str]) {
        for reply in self.ask().await {
            assert!(codes.contains(&reply.code().as_str()), "{} {}", reply.status, reply.text());
        }
    }
}

/// An account with an admin, Ada, and gateways that know her: the one that is told of what follows, and on PostgreSQL
/// another one.
struct Scene {
    setting: Setting,
    ada: String,
    here: Known,
    there: Option<(Gateway, Known)>,
}

impl Scene {
    async fn set(backend: Backend) -> Self {
        // A file is one process's.
        let alone = backend == Backend::Sqlite;
        let setting = Setting::new(backend).await;
        setting.gateway.open_models(&setting.account).await;
        setting.gateway.allocate(&setting.account, "1000").await;
        let ada = setting.zitadel.user(&setting.org, "ada@acme.com");
        setting.admin("ada@acme.com", "account_admin").await;
        setting.post("bootstrap", setting.bootstrap()).await;
        let token = setting.gateway.token(&setting.person(&ada).role("account_admin"));
        let here = Known::at(setting.gateway.anybody().with_token(&token)).await;
        let there = if alone {
            None
        } else {
            let gateway = setting.gateway.beside(|config| configure(config, setting.zitadel.url())).await;
            let known = Known::at(gateway.anybody().with_token(&token)).await;
            Some((gateway, known))
        };
        Self { setting, ada, here, there }
    }

    /// The next request is refused here; there, long before the list is read anew, each minute.
    async fn is_refused(&self, codes: &[&str]) {
        self.here.refuses(codes).await;
        let Some((_, known)) = &self.there else { return };
        let since = Instant::now();
        while known.ask().await.iter().any(|reply| reply.status == 200) {
            assert!(since.elapsed() < PATIENCE, "still admitted after {:?}", since.elapsed());
        }
        known.refuses(codes).await;
    }
}

#[tokio::test]
async fn an_admin_who_is_removed_is_cut_off_on_every_gateway_by_the_feed() {
    for backend in backends().await {
        let scene = Scene::set(backend).await;
        let setting = &scene.setting;
        let eve = Known::at(setting.gateway.sign_in(&setting.person("eve").role("account_admin"))).await;
        setting.operator().delete(&setting.path("admins/ada@acme.com")).await.ok();
        scene.is_refused(&["token_revoked"]).await;
        for reply in eve.ask().await {
            reply.ok();
        }
        setting.until_roles(&scene.ada, &[]).await;
        let forgotten = async {
            while setting.drift().await["items"].to_string().contains("ada@acme.com") {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let forgotten = tokio::time::timeout(Duration::from_secs(30), forgotten).await;
        forgotten.expect("nothing is wanted any more, and the item stays");
    }
}

#[tokio::test]
async fn a_suspended_account_is_refused_and_its_grants_are_taken_back_until_it_is_restored() {
    for backend in backends().await {
        let scene = Scene::set(backend).await;
        let (setting, ada) = (&scene.setting, &scene.ada);
        setting.operator().post(&setting.path("status"), json!({"status": "suspended"})).await.ok();
        // The latter as soon as her grant is taken back.
        scene.is_refused(&["account_suspended", "token_revoked"]).await;
        setting.until_roles(ada, &[]).await;
        setting.operator().post(&setting.path("status"), json!({"status": "active"})).await.ok();
        setting.until_roles(ada, &["account_admin"]).await;

        let name = "Acme";
        let path = format!("/v1/accounts/{}?hard_delete=true&confirm_name={name}", setting.account);
        setting.operator().delete(&path).await.ok();
        setting.until_roles(ada, &[]).await;
    }
}

/// One instance has an issuer for each of its domains; a subject's tokens of all of them end.
#[tokio::test]
async fn an_admin_is_cut_off_at_every_issuer() {
    for backend in backends().await {
        let (clock, ids) = (Arc::new(SystemClock), Arc::new(RandomIds));
        let second = DevIssuer::start("127.0.0.1:0".parse().unwrap(), clock, ids).await.unwrap();
        let setting = Setting::shaped(backend, |config| {
            for issuer in &mut config.identity.issuers {
                issuer.platform = Some(true);
            }
            let second_domain = IssuerConfig { platform: Some(true), ..IssuerConfig::at(second.url()) };
            config.identity.issuers.push(second_domain);
            config.identity.audiences.push(second.project_id().to_owned());
        })
        .await;
        let ada = setting.zitadel.user(&setting.org, "ada@acme.com");
        setting.admin("ada@acme.com", "account_admin").await;
        setting.post("bootstrap", setting.bootstrap()).await;
        let organization =
            Org { id: setting.org.clone(), name: "Acme".to_owned(), domain: "acme.localhost".to_owned() };
        second.add_user(DevUser {
            subject: ada.clone(),
            email: None,
            name: "Ada".to_owned(),
            organization,
            roles: Vec::new(),
            claims: serde_json::Map::default(),
        });
        let token = second.mint(&ada, Duration::from_secs(600)).unwrap();
        let client = setting.gateway.anybody().with_token(&token);
        client.get("/v1/me/models").await.ok();
        setting.operator().delete(&setting.path("admins/ada@acme.com")).await.ok();
        refusal(&client.get("/v1/me/models").await, 401, "token_revoked");
    }
}

/// Where the account is bound to an issuer, the same id at another one is somebody else's.
#[tokio::test]
async fn an_admin_of_a_bound_account_is_cut_off_at_its_issuer() {
    for backend in backends().await {
        let gateway = Gateway::start_with(backend, |config| {
            config.identity.issuers.push(IssuerConfig::at("https://login.example.com"));
        })
        .await;
        let account = gateway.account("Acme").await;
        let (operator, path) = (gateway.operator(), format!("/v1/accounts/{account}"));
        operator.put(&format!("{path}/zitadel/config"), json!({"issuer": gateway.issuer.url()})).await.ok();
        operator.post(&format!("{path}/admins"), json!({"user_email": "ada@acme.com"})).await.ok();
        let user = json!({"email": "ada@acme.com", "identity_user_id": "ada-subject"});
        gateway.operator_for(&account).post("/v1/copilot/users", user).await.ok();
        operator.delete(&format!("{path}/admins/ada@acme.com")).await.ok();
        let query = r#"SELECT issuer FROM "Alchemi_RevocationTable" WHERE subject = $1"#;
        let rows = gateway.database.rows(query, &["ada-subject"]).await;
        assert_eq!(rows.iter().map(|row| &row["issuer"]).collect::<Vec<_>>(), [gateway.issuer.url()]);
    }
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
    for backend in backends().await {
        let setting = Setting::new(backend).await;
        let ada = setting.zitadel.user(&setting.org, "ada@acme.com");
        setting.admin("ada@acme.com", "account_admin").await;
        setting.post("bootstrap", setting.bootstrap()).await;
        let until_state = async |wanted: &str| {
            for _ in 0..600 {
                let drift = setting.drift().await;
                let item =
                    drift["items"].as_array().unwrap().iter().find(|item| item["target"] == "ada@acme.com").unwrap();
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

        setting
            .zitadel
            .world()
            .project_grants
            .iter_mut()
            .for_each(|grant| grant.roles.push("console_org_admin".into()));
        setting.admin("ada@acme.com", "console_org_admin").await;
        until_state("applied").await;
        assert_eq!(setting.roles_of(&ada), ["console_org_admin"]);
        assert_eq!(cut_off(&setting.gateway, &ada).await.unwrap().1, "a role was taken back");
    }
}

/// What is granted is what the next token says, and what the gateway makes of it; what is not any more is refused.
#[tokio::test]
async fn grants_tokens_and_roles_are_one_circle() {
    for backend in backends().await {
        let zitadel = Zitadel::start("127.0.0.1:0".parse().unwrap()).await;
        let (owner, org) = (zitadel.org("Platform"), zitadel.org("Acme"));
        let project = zitadel.project(&owner, "gateway");
        let ada = zitadel.user(&org, "ada@acme.com");
        let gateway = Gateway::start_with(backend, |config| {
            configure(config, zitadel.url());
            config.identity.issuers = vec![IssuerConfig::at(zitadel.url())];
            // One machine has one clock, and who signs in again is let in at once.
            config.identity.leeway_seconds = 0;
            config.identity.project_id = Some(project.clone());
            config.identity.introspection_client_id = Some(API.0.to_owned());
            config.identity.introspection_client_secret = Some(API.1.into());
        })
        .await;
        let (operator, account) = (gateway.operator(), gateway.account("Acme").await);
        let admins = format!("/v1/accounts/{account}/admins");
        let admin = json!({"user_email": "ada@acme.com", "role": "copilot_org_admin"});
        operator.post(&admins, admin).await.ok();
        let bootstrap = json!({
            "project_id": project, "organization_id": org, "role_prefix": "acme_",
            "resolve_user_ids_from_zitadel": true,
        });
        operator.post(&format!("/v1/accounts/{account}/zitadel/provision/bootstrap"), bootstrap).await.ok();

        let signed_in = || [zitadel.token_of(&ada, &project), zitadel.opaque_token_of(&ada, &project)];
        let clients = || signed_in().map(|token| gateway.anybody().with_token(&token));
        let first = clients();
        for client in &first {
            let context = client.get("/v1/me/context").await.ok();
            assert_eq!((&context["account_id"], &context["roles"]), (&json!(account), &json!(["copilot_org_admin"])));
        }
        let one = format!("{admins}/ada@acme.com");
        operator.patch(&one, json!({"role": "account_admin"})).await.ok();
        for client in &first {
            refusal(&client.get("/v1/me/context").await, 401, "token_revoked");
        }
        // Until Zitadel has it, who had a role that was taken back is cut off once more, and that second is over.
        taken_back(&gateway, &ada, None).await;
        let before = cut_off(&gateway, &ada).await;
        let second = signed_in_with(&clients, json!(["account_admin"])).await;
        for client in &second {
            client.get("/v1/audit").await.ok();
        }
        operator.delete(&one).await.ok();
        for client in &second {
            refusal(&client.get("/v1/audit").await, 401, "token_revoked");
        }
        taken_back(&gateway, &ada, before).await;
        for client in signed_in_with(&clients, json!([])).await {
            refusal(&client.get("/v1/audit").await, 403, "account_admin_required");
        }
    }
}

/// Until somebody is cut off because Zitadel does not give them a role any more, and not as `before`.
async fn taken_back(gateway: &Gateway, subject: &str, before: Option<(serde_json::Value, serde_json::Value)>) {
    let waited = async {
        loop {
            let now = cut_off(gateway, subject).await;
            if now != before && now.is_some_and(|(_, reason)| reason == "a role was taken back") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waited).await.expect("a role is taken back");
}

/// New tokens, as soon as they are let in with these roles.
async fn signed_in_with(clients: impl Fn() -> [Client; 2], roles: serde_json::Value) -> [Client; 2] {
    for _ in 0..100 {
        let clients = clients();
        let mut all = true;
        for client in &clients {
            let context = client.get("/v1/me/context").await;
            all &= context.status == 200 && context.json()["roles"] == roles;
        }
        if all {
            return clients;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("never {roles}");
}
