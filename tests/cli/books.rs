//! Commands that look after a database.

use std::process::Command;

use serde_json::json;

use crate::common::{Backend, Gateway, Person, backends};
use crate::{alchemi, run};

/// The command line on the database of a test.
fn on(url: &str, folder: &tempfile::TempDir, arguments: &[&str]) -> Command {
    let mut command = alchemi(folder.path());
    command.args(arguments).env("DATABASE_URL", url);
    command
}

#[tokio::test]
async fn migrations_are_applied_once_and_can_be_printed() {
    for backend in backends().await {
        let folder = tempfile::tempdir().unwrap();
        let url = backend.url(folder.path());
        let applied = run(&mut on(&url, &folder, &["migrate"])).done();
        assert!(applied.starts_with("applied 0001_init\n"), "{applied}");
        assert_eq!(run(&mut on(&url, &folder, &["migrate"])).done(), "nothing to apply\n");
        let name = if matches!(backend, Backend::Sqlite) { "sqlite" } else { "postgres" };
        let sql = run(&mut on(&url, &folder, &["migrate", "--print", name])).done();
        assert!(sql.contains(r#"CREATE TABLE IF NOT EXISTS "Alchemi_AccountTable""#), "{sql}");
    }
}

#[test]
fn a_database_that_cannot_be_used_is_named() {
    let folder = tempfile::tempdir().unwrap();
    run(&mut on("mysql://127.0.0.1/x", &folder, &["migrate"])).refused(2, "sqlite:");
    // Nobody listens there.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let away = format!("postgres://nobody@{closed}/none");
    run(&mut on(&away, &folder, &["migrate"])).refused(1, "cannot be reached");
}

/// Books and audit that balance, until somebody changes a row by hand.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_by_hand_is_found() {
    for backend in backends().await {
        let mut gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        gateway.open_models(&account).await;
        gateway.allocate(&account, "1000").await;
        let ada = gateway.sign_in(&Person::of(&account, "ada"));
        let body = json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]});
        ada.post("/v1/chat/completions", body).await.ok();
        gateway.settled(&account, 1).await;
        gateway.stop().await;

        let folder = tempfile::tempdir().unwrap();
        let url = gateway.database_url().to_owned();
        let verify = |what: &str| run(&mut on(&url, &folder, &[what, "verify"]));
        let (ledger, audit) = (verify("ledger").done(), verify("audit").done());
        assert!(ledger.starts_with("1 rows, 1 counters, 0 open reservations"), "{ledger}");
        assert!(audit.contains(&format!("{account}: ")) && audit.contains("intact"), "{audit}");

        gateway
            .database
            .execute(r#"UPDATE "Alchemi_UsageLedgerTable" SET credits_incurred = credits_incurred + 1"#)
            .await;
        gateway.database.execute(r#"UPDATE "Alchemi_AuditTable" SET action = 'other' WHERE seq = 2"#).await;
        let (ledger, audit) = (verify("ledger"), verify("audit"));
        assert!(
            ledger.out.contains("account") && audit.out.contains("broken at event 2"),
            "{}{}",
            ledger.out,
            audit.out
        );
        ledger.refused(1, "the books do not balance");
        audit.refused(1, "are broken");
    }
}
