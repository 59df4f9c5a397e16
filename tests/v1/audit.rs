//! The audit: what it says, how it pages, and that tampering is found.

use std::time::Duration;

use alchemi::clock::ManualClock;
use alchemi::id::Id;
use alchemi::model::accounts::Account;
use aws_lc_rs::digest;
use serde_json::{Value, json};

use crate::gateway::{Gateway, gateways, gateways_at_rest, issued};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn seqs(body: &Value) -> Vec<i64> {
    body["items"].as_array().unwrap().iter().map(|e| e["seq"].as_i64().unwrap()).collect()
}

/// An account with the events 1 (account), 2 (org), and a minute later 3 (admin), 4 (console policy), and 5 (org, by ada).
async fn busy_account(gateway: &Gateway, clock: &ManualClock, name: &str) -> Id<Account> {
    let id = gateway.created_account(name).await;
    let operator = gateway.as_operator(None);
    clock.advance(Duration::from_secs(60));
    operator.post(&format!("/accounts/{id}/admins"), json!({"user_email": "ada@acme.com"})).await.ok();
    operator.put(&format!("/accounts/{id}/console-model-policy"), json!({"deny_models": ["m"]})).await.ok();
    let ada = gateway.as_subject(&id, "ada", Some("ada@acme.com"), &["account_admin"], json!({})).await;
    ada.post("/copilot/orgs", json!({"name": "Research"})).await.ok();
    id
}

#[tokio::test]
async fn events_say_who_did_what_by_both_sets_of_names() {
    for (gateway, clock) in gateways_at_rest(issued).await {
        let id = busy_account(&gateway, &clock, "Acme").await;
        let (status, body, _) = gateway.as_admin_of(&id).await.get("/audit").await.parts();
        assert_eq!((status, &body["domain"], seqs(&body)), (200, &json!("all"), vec![5, 4, 3, 2, 1]));
        let event = &body["items"][0];
        assert_eq!((&event["actor"]["subject"], &event["actor"]["email"]), (&json!("ada"), &json!("ada@acme.com")));
        assert_eq!(
            (&event["actor"]["roles"], &event["actor"]["auth_provider"]),
            (&json!(["account_admin"]), &json!("zitadel"))
        );
        assert_eq!((&event["request_id"], &event["source_ip"]), (&json!("req-1"), &json!("192.0.2.1")));
        assert_eq!((&event["before_value"], &event["updated_values"]["name"]), (&json!({}), &json!("Research")));
        for (ours, theirs) in [("resource_type", "table_name"), ("resource_id", "object_id"), ("at", "updated_at")] {
            assert_eq!(event[ours], event[theirs]);
        }
        assert_eq!(event["changed_by"], "ada");
        let event = &body["items"][1];
        assert_eq!(event["before_value"], json!({"console_model_policy": {"allow_models": [], "deny_models": []}}));
        assert_eq!(event["updated_values"]["console_model_policy"]["deny_models"], json!(["m"]));
        assert_eq!(
            (&event["changed_by"], &event["actor"]["auth_provider"]),
            (&json!("master_key"), &json!("master_key"))
        );
        assert_eq!(event["hash"].as_str().unwrap().len(), 64);
    }
}

#[tokio::test]
async fn filters_and_pages_follow_the_chain() {
    for (gateway, clock) in gateways_at_rest(issued).await {
        let id = busy_account(&gateway, &clock, "Acme").await;
        let ada = gateway.as_admin_of(&id).await;
        for (query, expected) in [
            ("domain=console", vec![4]),
            ("domain=copilot", vec![5, 2]),
            ("domain=iam", vec![3, 1]),
            ("domain=billing", vec![]),
            ("action=upsert", vec![3]),
            ("actor=master_key", vec![4, 3, 2, 1]),
            ("actor=ada", vec![5]),
            ("actor=ada@acme.com", vec![5]),
            ("actor=eve", vec![]),
            ("resource=Alchemi_AccountAdminTable", vec![3]),
            ("from=2027-01-15T08:01:00Z", vec![5, 4, 3]),
            ("to=2027-01-15T08:01:00Z", vec![2, 1]),
            ("limit=2&offset=1", vec![4, 3]),
        ] {
            let (status, body, _) = ada.get(&format!("/audit?{query}")).await.parts();
            assert_eq!((status, seqs(&body)), (200, expected), "{query}: {body}");
        }
        let by_row = ada.get(&format!("/audit?resource={id}")).await.parts().1;
        assert_eq!(seqs(&by_row), [4, 1]);

        let mut path = "/audit?limit=1".to_owned();
        let mut walked = Vec::new();
        loop {
            let (_, body, _) = ada.get(&path).await.parts();
            walked.extend(seqs(&body));
            let Some(cursor) = body["next_cursor"].as_str() else { break };
            path = format!("/audit?limit=1&cursor={cursor}");
        }
        assert_eq!(walked, [5, 4, 3, 2, 1], "events of one moment keep their order");

        for query in [
            "domain=x",
            "action=x",
            "from=yesterday",
            "to=2027-01-15T08:00:00Z&from=2027-01-15T08:01:00Z",
            "limit=1001",
            "cursor=x",
        ] {
            let (status, body, _) = ada.get(&format!("/audit?{query}")).await.parts();
            let name = query.split('=').next().unwrap();
            assert_eq!((status, &body["errors"][0]["pointer"]), (422, &json!(name)), "{query}");
        }
    }
}

#[tokio::test]
async fn an_export_can_be_checked_by_anybody() {
    for (gateway, clock) in gateways_at_rest(issued).await {
        let id = busy_account(&gateway, &clock, "Acme").await;
        let notes = "{ \"metadata\": { \"smtp_password\": \"hunter2\",\n \"note\": \"na\u{ef}ve\" } }";
        let path = format!("/accounts/{id}");
        gateway.as_operator(None).text(http::Method::PATCH, &path, Some(notes.to_owned())).await;

        let ada = gateway.as_admin_of(&id).await;
        let (status, text, headers) = ada.text(http::Method::GET, "/audit/export", None).await;
        assert_eq!((status, headers["content-type"].to_str().unwrap()), (200, "application/x-ndjson"));
        assert!(!text.contains("hunter2") && text.contains("na\u{ef}ve"), "{text}");
        let mut previous = String::new();
        for (n, line) in text.lines().enumerate() {
            let event: Value = serde_json::from_str(line).unwrap();
            assert_eq!(event["seq"].as_u64().unwrap(), n as u64 + 1);
            let hash = event["hash"].as_str().unwrap();
            let own = line.replace(&format!(",\"hash\":\"{hash}\""), "");
            let digest = digest::digest(&digest::SHA256, format!("{previous}{own}").as_bytes());
            assert_eq!(hash, hex(digest.as_ref()));
            previous = hash.to_owned();
        }
        assert_eq!(text.lines().count(), 6);
        let (_, rest, _) = ada.text(http::Method::GET, "/audit/export?after=4", None).await;
        assert!(text.ends_with(&rest) && rest.lines().count() == 2);
        let other = gateway.created_account("Other").await;
        let (_, others, _) = gateway.as_admin_of(&other).await.text(http::Method::GET, "/audit/export", None).await;
        assert!(!others.contains(id.as_str()), "an account sees its own chain alone");
    }
}

#[tokio::test]
async fn tampering_is_found_at_its_place() {
    let tampering = [
        ("UPDATE", "SET actor_subject = 'eve'", "AND seq = 3", 3, "changed"),
        ("UPDATE", "SET updated_values = '{}'", "AND seq = 1", 1, "changed"),
        ("UPDATE", "SET before_value = 'no json'", "AND seq = 2", 2, "changed"),
        ("UPDATE", "SET at = at + 1", "AND seq = 4", 4, "changed"),
        ("UPDATE", "SET request_id = NULL", "AND seq = 5", 5, "changed"),
        ("DELETE FROM", "", "AND seq = 2", 2, "missing"),
        ("DELETE FROM", "", "AND seq = 5", 5, "missing"),
        ("DELETE FROM", "", "", 1, "missing"),
    ];
    for (gateway, clock) in gateways_at_rest(issued).await {
        for (n, (verb, set, rows, seq, reason)) in tampering.into_iter().enumerate() {
            let id = busy_account(&gateway, &clock, &format!("Acme {n}")).await;
            let ada = gateway.as_admin_of(&id).await;
            let whole = ada.get("/audit/verify").await.ok();
            assert_eq!(whole["item"], json!({"valid": true, "events": 5, "broken_at_seq": null, "reason": null}));
            let sql = format!(r#"{verb} "Alchemi_AuditTable" {set} WHERE account_id = '{id}' {rows}"#);
            gateway.execute(&sql).await;
            let body = ada.get("/audit/verify").await.ok();
            let item = &body["item"];
            assert_eq!((&item["valid"], &item["broken_at_seq"]), (&json!(false), &json!(seq)), "{sql}");
            assert!(item["reason"].as_str().unwrap().contains(reason), "{item}");
        }
    }
}

#[tokio::test]
async fn an_account_that_never_was_has_no_audit() {
    let gateway = gateways(issued).await.remove(0);
    let operator = gateway.as_operator(None);
    for tail in ["", "/verify", "/export"] {
        assert_eq!(operator.get(&format!("/accounts/nothing/audit{tail}")).await.parts().0, 404);
    }
    let acme = gateway.created_account("Acme").await;
    assert_eq!(seqs(&gateway.as_operator(Some(&acme)).get("/audit").await.parts().1), [2, 1]);
}
