//! `alchemi zitadel …`, as a process.

use jsonwebtoken::Algorithm;
use serde_json::json;

use crate::common::process::Place;
use crate::common::zitadel::{TOKEN, Zitadel};
use crate::common::{Backend, Gateway, MASTER_KEY, Person, UPSTREAM_KEY, backends};

struct Setting {
    zitadel: Zitadel,
    gateway: Gateway,
    account: String,
    project: String,
    org: String,
}

async fn setting(backend: Backend) -> Setting {
    let zitadel = Zitadel::start("127.0.0.1:0".parse().unwrap()).await;
    let org = zitadel.org("Acme");
    let project = zitadel.project(&org, "gateway");
    let gateway = Gateway::start(backend).await;
    let account = gateway.account("Acme").await;
    Setting { zitadel, gateway, account, project, org }
}

/// Exit status and what was said.
async fn run(setting: &Setting, arguments: &[&str], input: &str) -> (i32, String) {
    run_with(setting, arguments, input, TOKEN).await
}

/// The same with another credential; none, if it is empty.
async fn run_with(setting: &Setting, arguments: &[&str], input: &str, token: &str) -> (i32, String) {
    let token = (!token.is_empty()).then_some(("ZITADEL_MGMT_API_TOKEN", token));
    run_in(setting, arguments, input, token.as_slice()).await
}

/// The same with these variables too.
async fn run_in(setting: &Setting, arguments: &[&str], input: &str, variables: &[(&str, &str)]) -> (i32, String) {
    let mut place = Place::new()
        .with("DATABASE_URL", setting.gateway.database_url())
        .with("ZITADEL_ISSUER", setting.gateway.issuer.url())
        .with("ZITADEL_PROJECT_ID", setting.gateway.issuer.project_id())
        .with("ZITADEL_MGMT_API_BASE_URL", setting.zitadel.url());
    for (name, value) in variables {
        place = place.with(name, value);
    }
    let arguments: Vec<String> = ["zitadel"].iter().chain(arguments).map(|&argument| argument.to_owned()).collect();
    let input = input.to_owned();
    // The stand-in answers meanwhile.
    let ended = tokio::task::spawn_blocking(move || {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        place.run_with(&arguments, &input)
    });
    let ended = ended.await.unwrap();
    (ended.status, ended.out + &ended.err)
}

#[tokio::test]
async fn an_account_is_planned_bootstrapped_and_compared() {
    for backend in backends().await {
        let setting = setting(backend).await;
        let ada = setting.zitadel.user(&setting.org, "ada@acme.com");
        let admins = format!("/v1/accounts/{}/admins", setting.account);
        setting.gateway.operator().post(&admins, json!({"user_email": "ada@acme.com"})).await.ok();
        let of = ["--account", setting.account.as_str()];

        let (code, text) = run(&setting, &["status"], "").await;
        assert_eq!(code, 0, "{text}");
        assert!(text.contains("API v2") && text.contains("usable keys") && text.contains("items       none"), "{text}");
        let (code, text) = run(&setting, &[&["plan"], &of[..]].concat(), "").await;
        assert!(code == 0 && text.contains("account_admin") && text.contains("ada@acme.com"), "{text}");
        let (code, text) = run(&setting, &[&["drift"], &of[..]].concat(), "").await;
        let hint = format!("`alchemi zitadel bootstrap --account {}`", setting.account);
        assert!(code == 1 && text.contains("nothing is provisioned") && text.contains(&hint), "{text}");
        let (code, text) = run(&setting, &[&["bootstrap"], &of[..]].concat(), "").await;
        assert!(code == 1 && text.contains("no project: name it by --project"), "{text}");
        let place = ["--project", setting.project.as_str(), "--organization", setting.org.as_str()];
        let (code, text) = run(&setting, &[&["bootstrap", "--dry-run"], &of[..], &place].concat(), "").await;
        assert!(code == 0 && text.contains("missing"), "{text}");
        assert_eq!(setting.zitadel.world().writes, 0);
        let (code, text) = run(&setting, &[&["bootstrap"], &of[..], &place].concat(), "").await;
        assert!(code == 0 && text.contains("created"), "{text}");
        assert_eq!(setting.zitadel.world().roles_of(&ada, &setting.project).len(), 1);
        let (code, text) = run(&setting, &[&["drift"], &of[..]].concat(), "").await;
        assert!(code == 0 && text.contains("Zitadel holds what is wanted"), "{text}");
        let (code, text) = run(&setting, &[&["drift", "--json"], &of[..]].concat(), "").await;
        let told: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(code == 0 && told["in_sync"] == true, "{text}");

        // Why it cannot be told is said, and fails; that it was never to be asked does not fail a plan.
        let wrong = async |arguments: &[&str], token: &str| run_with(&setting, arguments, "", token).await;
        let dry = [&["bootstrap", "--dry-run"], &of[..], &place].concat();
        for asked in [&dry, &[&["plan"], &of[..]].concat(), &[&["drift"], &of[..]].concat()] {
            let (code, text) = wrong(asked, "wrong").await;
            assert!(
                code == 1 && text.contains("cannot be told: Zitadel refused: unauthenticated"),
                "{asked:?}: {text}"
            );
            let (code, text) = wrong(asked, "").await;
            assert!(text.contains("Zitadel management client is not configured"), "{asked:?}: {text}");
            assert_eq!(code, i32::from(asked[0] == "drift"), "{asked:?}: {text}");
        }
        setting.zitadel.world().grants.clear();
        let (code, text) = run(&setting, &[&["drift"], &of[..]].concat(), "").await;
        assert!(code == 1 && text.contains("not held: account_admin"), "{text}");
        assert!(text.contains(&format!("{hint} puts it right")), "{text}");
        let namesake = setting.zitadel.user(&setting.org, "ada@acme.com");
        setting.gateway.operator().delete(&format!("{admins}/ada@acme.com")).await.ok();
        setting.gateway.operator().post(&admins, json!({"user_email": "ada@acme.com"})).await.ok();
        setting.gateway.database.execute(r#"UPDATE "Alchemi_ZitadelItemTable" SET user_id = NULL"#).await;
        let (code, text) = run(&setting, &[&["bootstrap"], &of[..]].concat(), "").await;
        assert!(code == 1 && text.contains("unresolved: ambiguous_email") && text.contains("1 admins"), "{text}");
        assert!(text.contains(&format!("could be {ada}")) && text.contains(&format!("could be {namesake}")), "{text}");
    }
}

#[tokio::test]
async fn what_is_wrong_is_said_in_a_sentence_and_by_the_exit_status() {
    let setting = setting(Backend::Sqlite).await;
    let of = ["--account", setting.account.as_str(), "--project", setting.project.as_str()];
    let (code, text) = run(&setting, &["plan", "--account", "nobody"], "").await;
    assert!(code == 1 && text.contains("Account not found"), "{text}");
    for odd in ["", "a/b", "../accounts", "ein Konto"] {
        let (code, text) = run(&setting, &["plan", "--account", odd], "").await;
        assert!(code != 0 && !text.contains("panicked"), "{odd:?}: {code} {text}");
    }
    let (code, text) = run(&setting, &["plan"], "").await;
    assert!(code == 2 && text.contains("--account"), "{text}");

    let (code, text) = run_with(&setting, &["status"], "", "wrong").await;
    assert!(code == 1 && text.contains("Zitadel refused: unauthenticated"), "{text}");
    let (code, text) = run_with(&setting, &["status"], "", "").await;
    assert!(code == 0 && text.contains("no credentials"), "{text}");
    let (code, text) = run_with(&setting, &[&["bootstrap"], &of[..]].concat(), "", "").await;
    assert!(code == 2 && text.contains("Zitadel management client is not configured"), "{code} {text}");
    let (code, text) = run_with(&setting, &[&["bootstrap", "--dry-run"], &of[..]].concat(), "", "").await;
    assert!(code == 0 && text.contains("unknown"), "{text}");
    setting.zitadel.knobs(|knobs| knobs.down = true);
    let (code, text) = run(&setting, &["status"], "").await;
    assert!(code == 1 && text.contains("Zitadel failed with status 503"), "{text}");

    for nothing in ["-", "", "  "] {
        let (code, text) = run(&setting, &["why", nothing], "\n").await;
        assert!(code == 2 && text.contains("there is no token"), "{nothing:?}: {text}");
    }
    for odd in ["a.b.c", "..", "ä.ö.ü", "eyJhbGciOiJub25lIn0.e30."] {
        let (code, text) = run(&setting, &["why", odd], "").await;
        assert!(code == 1 && text.contains("refused: ") && !text.contains("panicked"), "{odd}: {text}");
    }
}

#[tokio::test]
async fn a_token_is_explained_and_never_printed() {
    let setting = setting(Backend::Sqlite).await;
    let good = setting.gateway.token(&Person::of(&setting.account, "ada").role("account_admin"));
    let (code, text) = run(&setting, &["why", "-"], &format!("Bearer {good}\n")).await;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("roles   account_admin") && text.contains(&setting.account), "{text}");
    assert!(text.ends_with("accepted\n") && !text.contains(&good), "{text}");

    let bare = setting.gateway.token(&Person::of(&setting.account, "eve"));
    let (code, text) = run(&setting, &["why", &bare], "").await;
    assert!(code == 0 && text.contains("roles   none"), "{text}");
    assert!(text.contains("MISSING claim urn:zitadel:iam:org:project:"), "{text}");

    let mut claims = setting.gateway.claims(&Person::of(&setting.account, "mallory"));
    claims.insert("aud".to_owned(), json!(["another"]));
    let foreign = setting.gateway.issuer.sign(Algorithm::RS256, &claims).unwrap();
    let (code, text) = run(&setting, &["why", &foreign], "").await;
    assert!(code == 1 && text.contains("MISSING audience: the token is for another"), "{text}");
    assert!(text.contains("refused: "), "{text}");
    let (code, text) = run(&setting, &["why", "opaque-token"], "").await;
    assert!(code == 1 && text.contains("opaque token, and no introspection client"), "{text}");
    // What is no token is shown to nobody.
    let (code, text) = run(&setting, &["why", UPSTREAM_KEY], "").await;
    assert!(code == 1 && text.contains("a key of the upstream") && !text.contains(UPSTREAM_KEY), "{text}");
    let master_key = [("ALCHEMI_MASTER_KEY", MASTER_KEY)];
    let (code, text) = run_in(&setting, &["why", MASTER_KEY], "", &master_key).await;
    assert!(code == 0 && text.contains("this is the master key") && !text.contains(MASTER_KEY), "{text}");
}

#[tokio::test]
async fn what_a_signed_token_is_refused_for_is_named() {
    let setting = setting(Backend::Sqlite).await;
    let (gateway, account) = (&setting.gateway, &setting.account);
    let good = gateway.token(&Person::of(account, "ada").role("account_admin"));
    let (code, text) = run(&setting, &["why", &good], "").await;
    assert!(code == 0 && text.contains("ok      signature, by a key that its issuer publishes"), "{text}");
    assert!(!text.contains("MISSING"), "{text}");

    let other = gateway.token(&Person::of(account, "eve"));
    let forged = format!("{}.{}", good.rsplit_once('.').unwrap().0, other.rsplit_once('.').unwrap().1);
    let (code, text) = run(&setting, &["why", &forged], "").await;
    assert!(code == 1 && text.contains("MISSING signature: ") && !text.contains("ok      signature"), "{text}");
    assert!(text.contains("refused: The token's signature is wrong"), "{text}");

    let config = format!("/v1/accounts/{account}/zitadel/config");
    gateway.operator().put(&config, json!({"organization_id": "7001"})).await.ok();
    let (code, text) = run(&setting, &["why", &good], "").await;
    let missing =
        "MISSING a role that organisation 7001 granted, whose grants alone count here: account_admin (by org-of-";
    assert!(code == 1 && text.contains(missing) && text.contains("refused: "), "{text}");
    assert!(text.contains(&format!("`alchemi zitadel drift --account {account}`")), "{text}");
    let own = gateway.token(&Person::of(account, "ada").of_org("7001").role("account_admin"));
    let (code, text) = run(&setting, &["why", &own], "").await;
    assert!(code == 0 && text.contains("ok      a role that the account's organisation 7001 granted"), "{text}");
    let bare = gateway.token(&Person::of(account, "ada").of_org("7001"));
    let (code, text) = run(&setting, &["why", &bare], "").await;
    assert!(code == 0 && text.contains("ok      its subject belongs to the account's organisation 7001"), "{text}");

    let elsewhere = r#"UPDATE "Alchemi_AccountZitadelTable" SET issuer = 'https://login.example.com'"#;
    gateway.database.execute(elsewhere).await;
    let (code, text) = run(&setting, &["why", &own], "").await;
    let missing = format!("MISSING issuer of the account {account}: it is bound to https://login.example.com");
    assert!(code == 1 && text.contains(&missing) && text.contains("account none"), "{text}");

    gateway.operator().post("/v1/auth/revocations", json!({"subject": "ada"})).await.ok();
    let (code, text) = run(&setting, &["why", &own], "").await;
    assert!(code == 1 && text.contains("MISSING not revoked: ") && text.contains("has been revoked"), "{text}");
}

#[tokio::test]
async fn credentials_that_are_wrong_are_no_outage_and_half_of_one_is_named() {
    let setting = setting(Backend::Sqlite).await;
    let api = setting.gateway.issuer.api_client().clone();
    let person = Person::of(&setting.account, "ada").role("account_admin");
    setting.gateway.claims(&person);
    let opaque = setting.gateway.issuer.opaque("ada").unwrap();
    let client = |secret: &'static str| {
        [("ZITADEL_INTROSPECTION_CLIENT_ID", api.id.as_str()), ("ZITADEL_INTROSPECTION_CLIENT_SECRET", secret)]
    };
    let (code, text) = run_in(&setting, &["why", &opaque], "", &client("wrong")).await;
    assert!(code == 1 && text.contains("MISSING introspection: the issuer does not accept"), "{text}");
    assert!(text.contains("does not accept this service's own credentials") && !text.contains("reached"), "{text}");
    let (code, text) = run_in(&setting, &["status"], "", &client("wrong")).await;
    assert!(code == 1 && text.contains("introspect  the issuer does not accept our client's credentials"), "{text}");

    let right = [client("")[0], ("ZITADEL_INTROSPECTION_CLIENT_SECRET", api.secret.as_str())];
    let (code, text) = run_in(&setting, &["why", &opaque], "", &right).await;
    assert!(code == 0 && text.contains("ok      its issuer says that it is active"), "{text}");
    let (code, text) = run_in(&setting, &["status"], "", &right).await;
    assert!(code == 0 && text.contains("introspect  answers"), "{text}");

    let halves = [
        ("ZITADEL_CLIENT_ID", "client_id (ZITADEL_CLIENT_ID) without client_secret (ZITADEL_CLIENT_SECRET)"),
        ("ZITADEL_CLIENT_SECRET", "client_secret (ZITADEL_CLIENT_SECRET) without client_id (ZITADEL_CLIENT_ID)"),
    ];
    let bootstrap = ["bootstrap", "--account", setting.account.as_str(), "--project", setting.project.as_str()];
    for (variable, named) in halves {
        let half = [(variable, "provisioner")];
        let (_, text) = run_in(&setting, &["status"], "", &half).await;
        assert!(text.contains(&format!("management  {named}")), "{text}");
        let (code, text) = run_in(&setting, &bootstrap, "", &half).await;
        assert!(code == 2 && text.contains(named), "{code} {text}");
    }
}
