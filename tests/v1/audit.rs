//! The audit: who changed what, chained so that nothing is changed unseen.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

use crate::common::{Gateway, Person, backends};
use crate::{at_mid_january, refusal, text};

/// SHA-256 in hex.
fn sha256(parts: [&str; 2]) -> String {
    let mut digest = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    parts.iter().for_each(|part| digest.update(part.as_bytes()));
    digest.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn an_event_says_who_did_what_from_where() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let ada = gateway.sign_in(&Person::of(&account, "ada").email("ada@acme.com").role("account_admin"));
        let made = ada.post("/v1/copilot/orgs", json!({"name": "Research"})).await;
        let (request, org) = (made.header("x-request-id").to_owned(), text(&made.json()["item"]["id"]));
        ada.patch(&format!("/v1/copilot/orgs/{org}"), json!({"name": "Science"})).await.ok();

        let list = ada.get(&format!("/v1/audit?resource={org}")).await.ok();
        let (changed, created) = (&list["items"][0], &list["items"][1]);
        assert_eq!(created["request_id"], request);
        assert_eq!(created["source_ip"], "127.0.0.1");
        assert_eq!(created["actor"]["subject"], "ada");
        assert_eq!(created["actor"]["email"], "ada@acme.com");
        assert_eq!(created["actor"]["roles"], json!(["account_admin"]));
        assert_eq!(
            (&created["action"], &created["domain"], &created["before_value"]),
            (&json!("create"), &json!("copilot"), &json!({}))
        );
        assert_eq!(
            (&created["table_name"], &created["object_id"], &created["changed_by"]),
            (&json!("Alchemi_OrgTable"), &json!(org), &json!("ada"))
        );
        assert_eq!(
            (&changed["before_value"]["name"], &changed["updated_values"]["name"]),
            (&json!("Research"), &json!("Science"))
        );
        assert_eq!(changed["seq"].as_i64(), created["seq"].as_i64().map(|seq| seq + 1));
    }
}

#[tokio::test]
async fn reads_and_refusals_leave_no_event() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let tenant = crate::tenants::Tenant::new(&gateway, "Acme").await;
        let admin = gateway.as_account_admin(&tenant.account);
        let before = tenant.rows(&gateway).await;
        admin.post("/v1/copilot/orgs", json!({"name": "Research"})).await;
        admin.post("/v1/copilot/orgs", json!({"nam": "Science"})).await;
        admin.get("/v1/copilot/orgs").await.ok();
        gateway.as_end_user(&tenant.account, "eve").post("/v1/copilot/orgs", json!({"name": "Science"})).await;
        assert_eq!(tenant.rows(&gateway).await, before);
    }
}

#[tokio::test]
async fn events_are_filtered() {
    for backend in backends().await {
        let (gateway, clock) = at_mid_january(backend).await;
        let account = gateway.account("Acme").await;
        clock.advance(Duration::from_secs(60));
        let org = gateway.org(&account, "console", "Research").await;
        let ada = gateway.sign_in(&Person::of(&account, "ada").email("ada@acme.com").role("account_admin"));
        ada.delete(&format!("/v1/console/orgs/{org}")).await.ok();
        gateway.allocate(&account, "1").await;
        let count = async |query: &str| {
            let list = ada.get(&format!("/v1/audit?{query}")).await.ok();
            list["items"].as_array().unwrap().len()
        };
        assert_eq!(count("").await, 5);
        assert_eq!((count("domain=all").await, count("domain=console").await), (5, 2));
        assert_eq!(
            (count("domain=copilot").await, count("domain=billing").await, count("domain=iam").await),
            (1, 1, 1)
        );
        assert_eq!(
            (count("actor=ada").await, count("actor=ada@acme.com").await, count("actor=master_key").await),
            (1, 1, 4)
        );
        assert_eq!((count("action=delete").await, count("action=create").await), (1, 3));
        assert_eq!((count(&format!("resource={org}")).await, count("resource=Alchemi_OrgTable").await), (2, 3));
        assert_eq!((count("from=2026-01-15T12:01:00Z").await, count("to=2026-01-15T12:01:00Z").await), (3, 2));
        assert_eq!(count("from=2026-01-15T12:01:00Z&domain=billing&actor=master_key").await, 1);
    }
}

#[tokio::test]
async fn an_export_can_be_checked_without_the_gateway() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        for number in 0..20 {
            gateway.org(&account, "console", &format!("org {number} é \"q\" \u{2028}")).await;
        }
        let admin = gateway.as_account_admin(&account);
        let reply = admin.get("/v1/audit/export").await;
        assert_eq!(reply.header("content-type"), "application/x-ndjson");
        let export = reply.text();
        let mut previous = String::new();
        for (number, line) in export.split_terminator('\n').enumerate() {
            let (signed, hash) = line.split_once(",\"hash\":\"").expect("the hash comes last");
            let hash = hash.strip_suffix("\"}").expect("nothing behind it");
            assert_eq!(sha256([&previous, &format!("{signed}}}")]), hash, "line {number}");
            let event: Value = serde_json::from_str(line).unwrap();
            assert_eq!(event["seq"], number + 1);
            hash.clone_into(&mut previous);
        }
        assert_eq!(export.lines().count(), 22);
        let rest = admin.get("/v1/audit/export?after=20").await.text();
        assert_eq!(rest, export.split_inclusive('\n').skip(20).collect::<String>());
        assert_eq!(gateway.operator().get(&format!("/v1/accounts/{account}/audit/export")).await.text(), export);
        let verdict = admin.get("/v1/audit/verify").await.ok();
        assert_eq!(verdict["item"], json!({"valid": true, "events": 22, "broken_at_seq": null, "reason": null}));
    }
}

#[tokio::test]
async fn tampering_is_found() {
    for (sql, broken) in [
        (r#"UPDATE "Alchemi_AuditTable" SET actor_subject = 'mallory' WHERE account_id = $1 AND seq = 3"#, 3),
        (r#"UPDATE "Alchemi_AuditTable" SET updated_values = '{}' WHERE account_id = $1 AND seq = 4"#, 4),
        (r#"UPDATE "Alchemi_AuditTable" SET at = at + 1 WHERE account_id = $1 AND seq = 1"#, 1),
        (r#"UPDATE "Alchemi_AuditTable" SET actor_roles = 'no JSON' WHERE account_id = $1 AND seq = 2"#, 2),
        (r#"DELETE FROM "Alchemi_AuditTable" WHERE account_id = $1 AND seq = 2"#, 2),
        (r#"DELETE FROM "Alchemi_AuditTable" WHERE account_id = $1 AND seq = 5"#, 5),
        (r#"UPDATE "Alchemi_AuditTable" SET hash = 'x' WHERE account_id = $1 AND seq = 5"#, 5),
        (r#"UPDATE "Alchemi_AuditTable" SET seq = 9 WHERE account_id = $1 AND seq = 5"#, 5),
    ] {
        for backend in backends().await {
            let gateway = Gateway::start(backend).await;
            let (account, other) = (gateway.account("Acme").await, gateway.account("Other").await);
            for number in 0..3 {
                gateway.org(&account, "console", &format!("org {number}")).await;
            }
            gateway.database.rows(sql, &[&account]).await;
            let verdict = gateway.as_account_admin(&account).get("/v1/audit/verify").await.ok()["item"].clone();
            assert_eq!(
                (&verdict["valid"], &verdict["broken_at_seq"]),
                (&json!(false), &json!(broken)),
                "{sql}: {verdict}"
            );
            assert!(verdict["reason"].is_string());
            let others = gateway.operator().get(&format!("/v1/accounts/{other}/audit/verify")).await.ok();
            assert_eq!(others["item"]["valid"], true);
        }
    }
}

/// Writers of one account wait for each other at the head of the chain, and leave no gap.
#[tokio::test]
async fn concurrent_writers_make_one_chain() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let admin = gateway.as_account_admin(&account);
        let calls = (0..16).map(|number| {
            let admin = admin.clone();
            tokio::spawn(async move {
                admin.post("/v1/console/orgs", json!({"name": number.to_string()})).await.status.as_u16()
            })
        });
        for call in calls.collect::<Vec<_>>() {
            assert_eq!(call.await.unwrap(), 200);
        }
        let verdict = admin.get("/v1/audit/verify").await.ok();
        assert_eq!((&verdict["item"]["valid"], &verdict["item"]["events"]), (&json!(true), &json!(18)));
    }
}

#[tokio::test]
async fn a_chain_that_never_was_is_not_found() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        for what in ["", "/verify", "/export"] {
            refusal(&gateway.operator().get(&format!("/v1/accounts/nobody/audit{what}")).await, 404, "not_found");
            let own = gateway.operator().get(&format!("/v1/accounts/platform/audit{what}")).await;
            assert_eq!(own.status.as_u16(), 200);
        }
        let request = gateway.operator().request(Method::GET, "/v1/accounts/platform/audit/export?after=-1");
        assert_eq!(gateway.operator().send(request).await.status.as_u16(), 422);
    }
}
