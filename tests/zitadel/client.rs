//! Credentials, limits, retries and errors of the client.

use std::sync::Arc;
use std::time::{Duration, Instant};

use alchemi::clock::{ManualClock, SystemClock, Timestamp};
use alchemi::zitadel::{Code, Error, Management, ManagementConfig, NewGrant, ProjectRole, Surface};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use crate::common::zitadel::{CLIENT, TOKEN, Zitadel};

async fn stand_in() -> Zitadel {
    Zitadel::start("127.0.0.1:0".parse().unwrap()).await
}

fn config(zitadel: &Zitadel) -> ManagementConfig {
    ManagementConfig {
        url: Some(zitadel.url().to_owned()),
        token: Some(TOKEN.into()),
        requests_per_second: 5_000,
        ..ManagementConfig::default()
    }
}

fn client(config: &ManagementConfig) -> Management {
    Management::new(config, None, Arc::new(SystemClock)).unwrap()
}

fn role(key: &str) -> ProjectRole {
    ProjectRole { key: key.to_owned(), display_name: format!("The {key}"), group: Some("g".to_owned()) }
}

fn keys(roles: &[&str]) -> Vec<String> {
    roles.iter().map(|role| (*role).to_owned()).collect()
}

#[tokio::test]
async fn both_apis_do_the_same() {
    for without_v2 in [false, true] {
        let zitadel = stand_in().await;
        zitadel.knobs(|knobs| knobs.without_v2 = without_v2);
        let (owner, tenant) = (zitadel.org("Platform"), zitadel.org("Acme"));
        let project = zitadel.project(&owner, "gateway");
        let ada = zitadel.user(&tenant, "Ada@acme.com");
        let management = client(&config(&zitadel));
        assert_eq!(management.surface().await, Ok(if without_v2 { Surface::V1 } else { Surface::V2 }));

        assert_eq!(management.project_owner(&project, Some(&owner)).await.as_deref(), Ok(owner.as_str()));
        for name in ["a", "b/c", "d"] {
            management.add_role(&project, &owner, &role(name)).await.unwrap();
        }
        assert_eq!(management.roles(&project, &owner).await.unwrap(), ["a", "b/c", "d"].map(role));
        let again = management.add_role(&project, &owner, &role("a")).await.unwrap_err();
        assert!(again.already_exists(), "{again}");

        assert_eq!(management.project_grant(&project, &owner, &tenant).await.unwrap(), None);
        management.add_project_grant(&project, &owner, &tenant, &keys(&["a"])).await.unwrap();
        let granted = management.project_grant(&project, &owner, &tenant).await.unwrap().unwrap();
        management.set_project_grant(&project, &owner, &granted, &keys(&["a", "b/c"])).await.unwrap();
        management.set_project_grant(&project, &owner, &granted, &keys(&["a", "b/c"])).await.unwrap();

        let found = management.users_with_email("ada@ACME.com", Some(&tenant)).await.unwrap();
        assert_eq!((found.len(), &found[0].user_id, &found[0].organization_id), (1, &ada, &tenant));
        let elsewhere = management.users_with_email("ada@acme.com", Some(&owner)).await.unwrap();
        assert!(elsewhere.is_empty());
        let (roles, wrong) = (keys(&["a"]), keys(&["d"]));
        let new = NewGrant { user: &ada, project: &project, organization: &tenant, role_keys: &roles };
        let id = management.add_grant(&new, &owner).await.unwrap();
        assert!(management.add_grant(&new, &owner).await.unwrap_err().already_exists());
        let bad = management.add_grant(&NewGrant { role_keys: &wrong, ..new }, &owner).await.unwrap_err();
        assert!(
            matches!(&bad, Error::Refused { code: Code::FailedPrecondition, id } if id.as_str() == "COMMAND-mm9F4")
        );
        let grant = management.grants(&project, &tenant, Some(&ada)).await.unwrap().remove(0);
        assert_eq!((&grant.id, &grant.role_keys, grant.active), (&id, &keys(&["a"]), true));
        management.set_grant(&grant, &keys(&["a", "b/c"])).await.unwrap();
        // v1 refuses what changes nothing; here, that is as good as done.
        management.set_grant(&grant, &keys(&["a", "b/c"])).await.unwrap();
        assert_eq!(zitadel.world().roles_of(&ada, &project).len(), 2);
        management.remove_grant(&grant).await.unwrap();
        management.remove_grant(&grant).await.unwrap();
        assert!(management.grants(&project, &tenant, None).await.unwrap().is_empty());
        assert!(management.project_owner("999", None).await.unwrap_err().not_found());
        for trick in ["..", ".", "", "../../../v2/users"] {
            assert!(management.project_owner(trick, None).await.is_err(), "{trick}");
        }
        let mut told = String::new();
        let mut registry = Registry::default();
        management.metrics().register(&mut registry);
        encode(&mut told, &registry).unwrap();
        for counted in [
            r#"zitadel_calls_total{operation="add_role",outcome="ok"} 3"#,
            r#"zitadel_calls_total{operation="add_role",outcome="already_exists"} 1"#,
            r#"zitadel_calls_total{operation="add_grant",outcome="failed_precondition"} 1"#,
            r#"zitadel_call_seconds_count{operation="add_role"} 4"#,
        ] {
            assert!(told.contains(counted), "{counted}: {told}");
        }
        let v1 = |path: &str| path.starts_with("/management/v1/");
        let asked = zitadel.requests();
        assert!(asked.iter().skip(1).all(|asked| v1(&asked.path) == without_v2), "{asked:#?}");
    }
}

#[tokio::test]
async fn lists_are_read_to_their_end() {
    for without_v2 in [false, true] {
        let zitadel = stand_in().await;
        zitadel.knobs(|knobs| knobs.without_v2 = without_v2);
        let org = zitadel.org("Acme");
        let project = zitadel.project(&org, "gateway");
        for n in 0..1_203 {
            let user = zitadel.user(&org, &format!("u{n}@acme.com"));
            zitadel.world().put_grant(&user, &project, &org, &["r"]);
        }
        let grants = client(&config(&zitadel)).grants(&project, &org, None).await.unwrap();
        let users: std::collections::BTreeSet<_> = grants.iter().map(|grant| &grant.user).collect();
        assert_eq!((grants.len(), users.len()), (1_203, 1_203));
    }
}

#[tokio::test]
async fn each_credential_is_taken_and_a_token_is_fetched_once_and_ahead_of_its_end() {
    let zitadel = stand_in().await;
    let org = zitadel.org("Acme");
    let project = zitadel.project(&org, "gateway");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key.json");
    std::fs::write(&file, zitadel.key_file().to_string()).unwrap();
    let none = ManagementConfig { token: None, ..config(&zitadel) };
    let by_key = ManagementConfig { key_file: Some(file), ..none.clone() };
    let by_secret =
        ManagementConfig { client_id: Some(CLIENT.0.to_owned()), client_secret: Some(CLIENT.1.into()), ..none.clone() };
    for config in [by_key, by_secret.clone()] {
        let clock = Arc::new(ManualClock::at(Timestamp::from_secs(1_800_000_000)));
        let management = Management::new(&config, None, clock.clone()).unwrap();
        let before = zitadel.tokens_given();
        let many = (0..50).map(|_| management.roles(&project, &org));
        for answer in futures_util::future::join_all(many).await {
            answer.unwrap();
        }
        assert_eq!(zitadel.tokens_given() - before, 1, "fifty callers, one token");
        clock.advance(Duration::from_secs(3_500));
        management.roles(&project, &org).await.unwrap();
        assert_eq!(zitadel.tokens_given() - before, 1);
        clock.advance(Duration::from_secs(45));
        management.roles(&project, &org).await.unwrap();
        assert_eq!(zitadel.tokens_given() - before, 2, "ahead of the end");
        zitadel.forget_tokens();
        management.roles(&project, &org).await.unwrap();
        assert_eq!(zitadel.tokens_given() - before, 3, "a token that is refused is replaced");

        // Ahead of its end, a token still holds although there is no other one to be had, and not beyond it.
        zitadel.knobs(|knobs| knobs.no_tokens = true);
        for seconds in [3_545, 30] {
            clock.advance(Duration::from_secs(seconds));
            management.roles(&project, &org).await.unwrap();
        }
        clock.advance(Duration::from_secs(30));
        let ended = management.roles(&project, &org).await;
        assert_eq!(ended, Err(Error::Failed { status: 503, retry_after: None }));
        zitadel.knobs(|knobs| knobs.no_tokens = false);
        management.roles(&project, &org).await.unwrap();
        assert_eq!(zitadel.tokens_given() - before, 4);
    }
    let wrong = ManagementConfig { client_secret: Some("wrong".into()), ..by_secret };
    let refused = client(&wrong).roles(&project, &org).await.unwrap_err();
    assert_eq!(refused.to_string(), "Zitadel does not accept the credentials of [zitadel] (invalid_client)");
    for api in [Surface::Auto, Surface::V2, Surface::V1] {
        let wrong = client(&ManagementConfig { token: Some("wrong".into()), api, ..none.clone() });
        let refused = wrong.roles(&project, &org).await.map(drop);
        assert!(matches!(refused, Err(Error::Refused { code: Code::Unauthenticated, .. })), "{refused:?}");
        assert_eq!(wrong.probe().await.map(drop), refused, "who asks whether it works hears that it does not");
    }
    assert_eq!(client(&none).roles(&project, &org).await, Err(Error::NotConfigured));
}

#[tokio::test]
async fn what_passes_is_tried_again_and_what_does_not_is_not() {
    let zitadel = stand_in().await;
    let org = zitadel.org("Acme");
    let project = zitadel.project(&org, "gateway");
    let management = client(&ManagementConfig { api: Surface::V2, ..config(&zitadel) });
    zitadel.knobs(|knobs| knobs.throttle = 1);
    let begun = Instant::now();
    management.roles(&project, &org).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(950), "Retry-After: 1, and {:?}", begun.elapsed());
    zitadel.knobs(|knobs| knobs.fail_one_in = Some(2));
    for name in ["a", "b", "c", "d"] {
        let added = management.add_role(&project, &org, &role(name)).await;
        assert!(added.is_ok() || added.unwrap_err().already_exists(), "the answer was lost, the role is there");
    }
    assert_eq!(zitadel.world().role_keys(&project), ["a", "b", "c", "d"]);
    zitadel.knobs(|knobs| (knobs.fail_one_in, knobs.down) = (None, true));
    let asked = zitadel.requests().len();
    assert_eq!(management.roles(&project, &org).await, Err(Error::Failed { status: 503, retry_after: None }));
    assert_eq!(zitadel.requests().len() - asked, 4);
    zitadel.knobs(|knobs| knobs.down = false);
    let asked = zitadel.requests().len();
    assert!(management.project_owner("999", None).await.unwrap_err().not_found());
    assert_eq!(zitadel.requests().len() - asked, 1);
    let nobody = ManagementConfig { url: Some("http://127.0.0.1:9".to_owned()), ..config(&zitadel) };
    assert_eq!(client(&nobody).roles(&project, &org).await, Err(Error::Unreachable));
}

#[tokio::test]
async fn calls_are_spread_over_time() {
    let zitadel = stand_in().await;
    let org = zitadel.org("Acme");
    let project = zitadel.project(&org, "gateway");
    let management = client(&ManagementConfig { requests_per_second: 20, api: Surface::V2, ..config(&zitadel) });
    let begun = Instant::now();
    for answer in futures_util::future::join_all((0..21).map(|_| management.roles(&project, &org))).await {
        answer.unwrap();
    }
    assert!(begun.elapsed() >= Duration::from_millis(990), "{:?}", begun.elapsed());
}

#[test]
fn addresses_are_safe_and_settings_are_told_by_their_names() {
    for url in ["http://login.example.com", "https://u:p@x.org", "ftp://x.org", "https://x.org/?q", "x"] {
        let config = ManagementConfig { url: Some(url.to_owned()), ..ManagementConfig::default() };
        let told = config.check().unwrap_err().to_string();
        assert!(told.starts_with("zitadel.url (ZITADEL_MGMT_API_BASE_URL) = "), "{told}");
    }
    let token = ManagementConfig { token: Some(TOKEN.into()), ..ManagementConfig::default() };
    let told = Management::new(&token, None, Arc::new(SystemClock)).unwrap_err().to_string();
    assert!(told.contains("ZITADEL_ISSUER"), "{told}");
    let file = ManagementConfig { key_file: Some("/nowhere.json".into()), ..ManagementConfig::default() };
    let told = Management::new(&file, Some(("https://x.org", None)), Arc::new(SystemClock)).unwrap_err().to_string();
    assert!(told.starts_with("zitadel.key_file (ZITADEL_KEY_FILE) = \"/nowhere.json\""), "{told}");
    assert!(!format!("{token:?}").contains(TOKEN));
}
