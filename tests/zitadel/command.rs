//! `alchemi zitadel …`, as a process.

use std::process::Stdio;
use std::time::Duration;

use jsonwebtoken::Algorithm;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::common::zitadel::{TOKEN, Zitadel};
use crate::common::{Backend, Gateway, Person};

struct Setting {
    zitadel: Zitadel,
    gateway: Gateway,
    account: String,
    project: String,
    org: String,
}

async fn setting() -> Setting {
    let zitadel = Zitadel::start("127.0.0.1:0".parse().unwrap()).await;
    let org = zitadel.org("Acme");
    let project = zitadel.project(&org, "gateway");
    let gateway = Gateway::start(Backend::Sqlite).await;
    let account = gateway.account("Acme").await;
    Setting { zitadel, gateway, account, project, org }
}

/// Exit status and what was said.
async fn run(setting: &Setting, arguments: &[&str], input: &str) -> (i32, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_alchemi"))
        .arg("zitadel")
        .args(arguments)
        .env_clear()
        .env("DATABASE_URL", setting.gateway.database_url())
        .env("ZITADEL_ISSUER", setting.gateway.issuer.url())
        .env("ZITADEL_PROJECT_ID", setting.gateway.issuer.project_id())
        .env("ZITADEL_MGMT_API_BASE_URL", setting.zitadel.url())
        .env("ZITADEL_MGMT_API_TOKEN", TOKEN)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).await.unwrap();
    drop(stdin);
    let output = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output()).await.unwrap().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    (output.status.code().unwrap(), text)
}

#[tokio::test]
async fn an_account_is_planned_bootstrapped_and_compared() {
    let setting = setting().await;
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
    assert!(code == 1 && text.contains("nothing is provisioned"), "{text}");
    let place = ["--project", setting.project.as_str(), "--organization", setting.org.as_str()];
    let (code, text) = run(&setting, &[&["bootstrap", "--dry-run"], &of[..], &place].concat(), "").await;
    assert!(code == 0 && text.contains("missing"), "{text}");
    assert_eq!(setting.zitadel.world().writes, 0);
    let (code, text) = run(&setting, &[&["bootstrap"], &of[..], &place].concat(), "").await;
    assert!(code == 0 && text.contains("created"), "{text}");
    assert_eq!(setting.zitadel.world().roles_of(&ada, &setting.project).len(), 1);
    let (code, text) = run(&setting, &[&["drift"], &of[..]].concat(), "").await;
    assert!(code == 0 && text.contains("Zitadel holds what is wanted"), "{text}");
    let (code, text) = run(&setting, &["plan", "--account", "nobody"], "").await;
    assert!(code == 1 && text.contains("Account not found"), "{text}");
}

#[tokio::test]
async fn a_token_is_explained_and_never_printed() {
    let setting = setting().await;
    let good = setting.gateway.token(&Person::of(&setting.account, "ada").role("account_admin"));
    let (code, text) = run(&setting, &["why", "-"], &good).await;
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
}
