//! Commands that look after a database.

use serde_json::json;

use crate::common::{Backend, Gateway, Person, backends, empty_backends};
use crate::process::{Ended, Place};

/// The command line on the database of a test.
fn on(url: &str) -> Place {
    Place::new().with("DATABASE_URL", url)
}

/// What a command that must succeed has printed.
#[track_caller]
fn done(ended: Ended) -> String {
    assert_eq!(ended.status, 0, "{ended:?}");
    ended.out
}

#[track_caller]
fn refused(ended: &Ended, status: i32, words: &str) {
    assert!(ended.status == status && ended.err.contains(words), "{words}: {ended:?}");
}

#[tokio::test]
async fn migrations_are_applied_once_and_can_be_printed() {
    for backend in empty_backends().await {
        let folder = tempfile::tempdir().unwrap();
        let url = backend.url(folder.path());
        let place = on(&url);
        let applied = done(place.run(&["migrate"]));
        assert!(applied.starts_with("applied 0001_init\n"), "{applied}");
        assert_eq!(done(place.run(&["migrate"])), "nothing to apply\n");
        assert_eq!(done(place.run(&["audit", "verify"])), "nothing was ever audited\n");
        let name = if matches!(backend, Backend::Sqlite) { "sqlite" } else { "postgres" };
        let sql = done(place.run(&["migrate", "--print", name]));
        assert!(sql.contains(r#"CREATE TABLE IF NOT EXISTS "Alchemi_AccountTable""#), "{sql}");
    }
}

#[test]
fn a_database_that_cannot_be_used_is_named() {
    refused(&on("mysql://127.0.0.1/x").run(&["migrate"]), 2, "sqlite:");
    // Nobody listens there.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let away = format!("postgres://nobody@{closed}/none");
    refused(&on(&away).run(&["migrate"]), 1, "cannot be reached");
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

        let place = on(gateway.database_url());
        let verify = |what: &str| place.run(&[what, "verify"]);
        let (ledger, audit) = (done(verify("ledger")), done(verify("audit")));
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
        refused(&ledger, 1, "the books do not balance");
        refused(&audit, 1, "are broken");
    }
}
