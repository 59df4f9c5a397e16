use aws_lc_rs::digest;
use serde_json::{Value, json};

use super::common::{Gateway, backends};

fn seqs(body: &Value) -> Vec<i64> {
    body["items"].as_array().unwrap().iter().map(|e| e["seq"].as_i64().unwrap()).collect()
}

/// An account with events 1 (account), 2 (org), 3 (admin, a minute later), 4 (console policy).
async fn busy_account(gateway: &Gateway) -> String {
    let id = gateway.account("Acme").await;
    let operator = gateway.as_operator();
    gateway.clock.advance(std::time::Duration::from_secs(60));
    operator.post(&format!("/v1/accounts/{id}/admins"), json!({"user_email": "ada@acme.com"})).await;
    operator.put(&format!("/v1/accounts/{id}/console-model-policy"), json!({"deny_models": ["m"]})).await;
    id
}

#[tokio::test]
async fn events_say_who_did_what_by_both_sets_of_names() {
    for backend in backends() {
        let gateway = Gateway::start(backend).await;
        let id = busy_account(&gateway).await;
        let (status, body, _) = gateway.as_admin_of(&id).get("/v1/audit").await;
        assert_eq!((status, &body["domain"], seqs(&body)), (200, &json!("all"), vec![4, 3, 2, 1]));
        let event = &body["items"][0];
        assert_eq!(event["actor"]["subject"], "operator");
        assert_eq!(event["actor"]["email"], "operator@example.com");
        assert_eq!(event["actor"]["roles"], json!(["super_admin"]));
        assert_eq!((&event["request_id"], &event["source_ip"]), (&json!("req-1"), &json!("192.0.2.1")));
        assert_eq!(event["before_value"], json!({"console_model_policy": {"allow_models": [], "deny_models": []}}));
        assert_eq!(event["updated_values"]["console_model_policy"]["deny_models"], json!(["m"]));
        for (ours, theirs) in [("resource_type", "table_name"), ("resource_id", "object_id"), ("at", "updated_at")] {
            assert_eq!(event[ours], event[theirs]);
        }
        assert_eq!(event["changed_by"], "operator");
        assert_eq!(event["hash"].as_str().unwrap().len(), 64);
    }
}

#[tokio::test]
async fn filters_and_pages_follow_the_chain() {
    for backend in backends() {
        let gateway = Gateway::start(backend).await;
        let id = busy_account(&gateway).await;
        let ada = gateway.as_admin_of(&id);
        for (query, expected) in [
            ("domain=console", vec![4]),
            ("domain=copilot", vec![2]),
            ("domain=iam", vec![3, 1]),
            ("domain=billing", vec![]),
            ("action=upsert", vec![3]),
            ("actor=operator", vec![4, 3, 2, 1]),
            ("actor=operator@example.com", vec![4, 3, 2, 1]),
            ("actor=ada", vec![]),
            ("resource=Alchemi_AccountAdminTable", vec![3]),
            ("from=2027-01-15T08:01:00Z", vec![4, 3]),
            ("to=2027-01-15T08:01:00Z", vec![2, 1]),
            ("limit=2&offset=1", vec![3, 2]),
        ] {
            let (status, body, _) = ada.get(&format!("/v1/audit?{query}")).await;
            assert_eq!((status, seqs(&body)), (200, expected), "{query}: {body}");
        }
        let by_row = ada.get(&format!("/v1/audit?resource={id}")).await.1;
        assert_eq!(seqs(&by_row), [4, 1]);

        let mut path = "/v1/audit?limit=1".to_owned();
        let mut walked = Vec::new();
        loop {
            let (_, body, _) = ada.get(&path).await;
            walked.extend(seqs(&body));
            let Some(cursor) = body["next_cursor"].as_str() else { break };
            path = format!("/v1/audit?limit=1&cursor={cursor}");
        }
        assert_eq!(walked, [4, 3, 2, 1], "events of one moment keep their order");

        for query in ["domain=x", "action=x", "from=yesterday", "limit=1001", "cursor=x"] {
            let (status, body, _) = ada.get(&format!("/v1/audit?{query}")).await;
            let name = query.split('=').next().unwrap();
            assert_eq!((status, &body["errors"][0]["pointer"]), (422, &json!(name)), "{query}");
        }
    }
}

#[tokio::test]
async fn an_export_can_be_checked_by_anybody() {
    for backend in backends() {
        let gateway = Gateway::start(backend).await;
        let id = busy_account(&gateway).await;
        let notes = "{ \"metadata\": { \"smtp_password\": \"hunter2\",\n \"note\": \"na\u{ef}ve\" } }";
        let path = format!("/v1/accounts/{id}");
        gateway.as_operator().text(http::Method::PATCH, &path, Some(notes.to_owned())).await;

        let ada = gateway.as_admin_of(&id);
        let (status, text, headers) = ada.text(http::Method::GET, "/v1/audit/export", None).await;
        assert_eq!((status, headers["content-type"].to_str().unwrap()), (200, "application/x-ndjson"));
        assert!(!text.contains("hunter2") && text.contains("na\u{ef}ve"), "{text}");
        let mut previous = String::new();
        for (n, line) in text.lines().enumerate() {
            let event: Value = serde_json::from_str(line).unwrap();
            assert_eq!(event["seq"].as_u64().unwrap(), n as u64 + 1);
            let hash = event["hash"].as_str().unwrap();
            let own = line.replace(&format!(",\"hash\":\"{hash}\""), "");
            let digest = digest::digest(&digest::SHA256, format!("{previous}{own}").as_bytes());
            assert_eq!(hash, crate::id::hex(digest.as_ref()));
            previous = hash.to_owned();
        }
        assert_eq!(text.lines().count(), 5);
        let (_, rest, _) = ada.text(http::Method::GET, "/v1/audit/export?after=3", None).await;
        assert!(text.ends_with(&rest) && rest.lines().count() == 2);
        let other = gateway.account("Other").await;
        let (_, others, _) = gateway.as_admin_of(&other).text(http::Method::GET, "/v1/audit/export", None).await;
        assert!(!others.contains(&id), "an account sees its own chain alone");
    }
}

#[tokio::test]
async fn tampering_is_found_at_its_place() {
    for backend in backends() {
        for (change, seq, reason) in [
            (r#"UPDATE "Alchemi_AuditTable" SET actor_subject = 'eve' WHERE seq = 3"#, 3, "changed"),
            (r#"UPDATE "Alchemi_AuditTable" SET updated_values = '{}' WHERE seq = 1"#, 1, "changed"),
            (r#"UPDATE "Alchemi_AuditTable" SET before_value = 'no json' WHERE seq = 2"#, 2, "changed"),
            (r#"UPDATE "Alchemi_AuditTable" SET at = at + 1 WHERE seq = 4"#, 4, "changed"),
            (r#"DELETE FROM "Alchemi_AuditTable" WHERE seq = 2"#, 2, "missing"),
            (r#"DELETE FROM "Alchemi_AuditTable" WHERE seq = 4"#, 4, "missing"),
            (r#"DELETE FROM "Alchemi_AuditTable""#, 1, "missing"),
        ] {
            let gateway = Gateway::start(backend.clone()).await;
            let id = busy_account(&gateway).await;
            let ada = gateway.as_admin_of(&id);
            let (_, whole, _) = ada.get("/v1/audit/verify").await;
            assert_eq!(whole["item"], json!({"valid": true, "events": 4, "broken_at_seq": null, "reason": null}));
            gateway.execute(change).await;
            let (status, body, _) = ada.get("/v1/audit/verify").await;
            let item = &body["item"];
            assert_eq!((status, &item["valid"], &item["broken_at_seq"]), (200, &json!(false), &json!(seq)), "{change}");
            assert!(item["reason"].as_str().unwrap().contains(reason), "{item}");
        }
    }
}

#[tokio::test]
async fn an_account_that_never_was_has_no_audit() {
    let gateway = Gateway::start(super::common::Backend::Sqlite).await;
    let operator = gateway.as_operator();
    for tail in ["", "/verify", "/export"] {
        assert_eq!(operator.get(&format!("/v1/accounts/nothing/audit{tail}")).await.0, 404);
    }
    let acme = gateway.account("Acme").await;
    assert_eq!(seqs(&gateway.as_operator_in(&acme).get("/v1/audit").await.1), [2, 1]);
}
