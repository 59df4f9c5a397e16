//! Accounts: made, changed, listed, suspended, removed.

use std::time::Duration;

use alchemi::v1::App;
use serde_json::{Value, json};

use crate::gateway::{gateways, gateways_at_rest, issued};

#[tokio::test]
async fn an_account_starts_with_its_admin_and_the_global_org() {
    for gateway in gateways(issued).await {
        let operator = gateway.as_operator(None);
        let (status, body, headers) = operator
            .post(
                "/accounts",
                json!({"account_name": " Acme ", "account_alias": "", "domain": "ACME.com", "max_budget": "1234567.000000001",
                    "metadata": {"timezone": "Europe/Berlin", "n": 1.50}, "admin_email": "Ada@Acme.com", "admin_password": ""}),
            )
            .await.parts();
        assert_eq!((status, &body["status"]), (200, &json!("created")), "{body}");
        assert_eq!(headers["etag"], "\"1\"");
        let id = body["account_id"].as_str().unwrap();
        let item = &body["item"];
        assert_eq!(item["account_name"], "Acme");
        assert_eq!(item["account_alias"], Value::Null);
        assert_eq!(item["domain"], "acme.com");
        assert_eq!(item["status"], "active");
        assert_eq!(item["created_by"], "master_key");
        assert_eq!(item["admins"][0]["user_email"], "ada@acme.com");
        assert_eq!(item["admins"][0]["role"], "account_admin");
        assert_eq!(item["spend"], 0);
        assert_eq!((&item["sso_config"], &item["allocation"]), (&Value::Null, &Value::Null));
        assert_eq!(item["feature_pack"], json!({"features": [], "config": {}}));
        assert_eq!(item["console_model_policy"], json!({"allow_models": [], "deny_models": []}));
        assert_eq!(item["zitadel_config"], json!({}));

        let path = format!("/accounts/{id}");
        let (_, text, _) = operator.text(http::Method::GET, &path, None).await;
        assert!(text.contains(r#""max_budget":1234567.000000001"#), "every digit is kept: {text}");
        assert!(text.contains(r#"{"n":1.5,"timezone":"Europe/Berlin"}"#), "the text as it came: {text}");

        let (_, audit, _) = operator.get(&format!("{path}/audit")).await.parts();
        let seen: Vec<_> = audit["items"].as_array().unwrap().iter().map(|e| (&e["seq"], &e["table_name"])).collect();
        let tables = ["Alchemi_OrgTable", "Alchemi_AccountAdminTable", "Alchemi_AccountTable"].map(|t| json!(t));
        assert_eq!(seen, [(&json!(3), &tables[0]), (&json!(2), &tables[1]), (&json!(1), &tables[2])]);
        let org = &audit["items"][0]["updated_values"];
        assert_eq!((&org["name"], &org["is_default_global"]), (&json!("global"), &json!(true)));
        assert_eq!(org["description"], "Default global organization");
    }
}

#[tokio::test]
async fn what_is_taken_is_a_conflict() {
    for gateway in gateways(issued).await {
        let operator = gateway.as_operator(None);
        operator.post("/accounts", json!({"account_name": "Acme", "domain": "acme.com"})).await.ok();
        let other = gateway.created_account("Other").await;
        let path = format!("/accounts/{other}");
        for (answer, detail) in [
            (operator.post("/accounts", json!({"account_name": "Acme"})).await.parts(), "Account already exists"),
            (
                operator.post("/accounts", json!({"account_name": "New", "domain": "ACME.COM"})).await.parts(),
                "Domain already assigned to another account",
            ),
            (operator.patch(&path, json!({"account_name": "Acme"})).await.parts(), "Account already exists"),
            (
                operator.patch(&path, json!({"domain": "acme.com"})).await.parts(),
                "Domain already assigned to another account",
            ),
        ] {
            assert_eq!((answer.0, &answer.1["detail"]), (409, &json!(detail)));
        }
        let (_, list, _) = operator.get("/accounts").await.parts();
        assert_eq!(list["items"].as_array().unwrap().len(), 2, "a refusal writes nothing");
    }
}

#[tokio::test]
async fn bad_fields_are_named() {
    let gateway = gateways(issued).await.remove(0);
    let operator = gateway.as_operator(None);
    let id = gateway.created_account("Acme").await;
    let deep = serde_json::from_str::<Value>(&format!("{}{}", "[".repeat(120), "]".repeat(120))).unwrap();
    let password = json!({"account_name": "x", "admin_password": "hunter2"});
    for (body, pointer) in [
        (json!({}), "/account_name"),
        (json!({"account_name": "  "}), "/account_name"),
        (json!({"account_name": "x", "color": "red"}), "/color"),
        (json!({"account_name": "x", "max_budget": -1}), "/max_budget"),
        (json!({"account_name": "x", "max_budget": "NaN"}), "/max_budget"),
        (json!({"account_name": "x", "max_budget": 0.00000000001}), "/max_budget"),
        (json!({"account_name": "x", "metadata": []}), "/metadata"),
        (json!({"account_name": "x", "metadata": {"timezone": "Mars/Base"}}), "/metadata/timezone"),
        (json!({"account_name": "x", "metadata": {"timezone": 1}}), "/metadata/timezone"),
        (json!({"account_name": "x", "domain": "not a host"}), "/domain"),
        (json!({"account_name": "x", "admin_email": "nobody"}), "/admin_email"),
        (password.clone(), "/admin_password"),
    ] {
        let (status, answer, _) = operator.post("/accounts", body).await.parts();
        assert_eq!((status, &answer["errors"][0]["pointer"]), (422, &json!(pointer)), "{answer}");
        assert_eq!(answer["request_id"], "req-1");
    }
    let (_, answer, _) = operator.post("/accounts", password).await.parts();
    let detail = answer["detail"].as_str().unwrap();
    assert!(detail.contains("Zitadel owns passwords") && !detail.contains("hunter2"), "{detail}");
    let ok = operator.patch(&format!("/accounts/{id}"), json!({"metadata": {"deep": deep}})).await.parts();
    assert_eq!(ok.0, 200);
    let too_deep = format!(r#"{{"metadata":{{"deep":{}{}}}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    let path = format!("/accounts/{id}");
    let (status, text, _) = operator.text(http::Method::PATCH, &path, Some(too_deep)).await;
    assert_eq!(status, 422, "{text}");
}

#[tokio::test]
async fn a_patch_keeps_clears_and_sets() {
    for gateway in gateways(issued).await {
        let operator = gateway.as_operator(None);
        let (_, made, _) = operator
            .post(
                "/accounts",
                json!({"account_name": "Acme", "account_alias": "a", "domain": "acme.com", "max_budget": 5}),
            )
            .await
            .parts();
        let path = format!("/accounts/{}", made["account_id"].as_str().unwrap());
        operator.put(&format!("{path}/feature-pack"), json!({"features": ["x"]})).await.ok();

        let (status, body, headers) = operator
            .patch(&path, json!({"account_alias": null, "domain": "", "metadata": {"theme": "dark"}}))
            .await
            .parts();
        assert_eq!(status, 200, "{body}");
        assert_eq!(headers["etag"], "\"2\"");
        let item = &body["item"];
        assert_eq!((&item["account_alias"], &item["domain"]), (&Value::Null, &Value::Null));
        assert_eq!((&item["account_name"], &item["max_budget"]), (&json!("Acme"), &json!(5)));
        assert_eq!(item["feature_pack"]["features"], json!(["x"]), "metadata takes nothing of its neighbours");

        for (body, status, detail) in [
            (json!({}), 400, "No update fields provided"),
            (json!({"status": "deleted"}), 400, "status must be active or suspended"),
            (json!({"account_name": null}), 422, "/account_name: cannot be null; leave it out to keep it"),
            (json!({"max_budget": -0.1}), 422, "/max_budget: must be at least 0"),
        ] {
            let (got, answer, _) = operator.patch(&path, body).await.parts();
            assert_eq!((got, &answer["detail"]), (status, &json!(detail)));
        }
        let (got, answer, _) = operator.patch("/accounts/nothing", json!({"status": "active"})).await.parts();
        assert_eq!((got, &answer["detail"]), (404, &json!("Account not found")));

        let stale = operator.with("if-match", "\"1\"");
        assert_eq!(stale.patch(&path, json!({"domain": "x.org"})).await.parts().0, 412);
        let fresh = operator.with("if-match", "\"2\"");
        assert_eq!(fresh.patch(&path, json!({"domain": "x.org"})).await.parts().0, 200);
    }
}

#[tokio::test]
async fn accounts_are_listed_in_pages_with_as_many_statements_for_two_as_for_one() {
    for (gateway, clock) in gateways_at_rest(issued).await {
        let operator = gateway.as_operator(None);
        for name in ["A", "B", "C"] {
            let id = gateway.created_account(name).await;
            operator.post(&format!("/accounts/{id}/admins"), json!({"user_email": "x@y.org"})).await.ok();
            clock.advance(std::time::Duration::from_secs(1));
        }
        let counted = async |path: &str| {
            let before = gateway.store.statements();
            let (status, body, _) = operator.get(path).await.parts();
            assert_eq!(status, 200);
            (gateway.store.statements() - before, body)
        };
        let (one, first) = counted("/accounts?limit=1").await;
        let (two, page) = counted("/accounts?limit=2").await;
        assert_eq!(one, two);
        assert_eq!(first["items"][0]["account_name"], "C");
        let names = |body: &Value| {
            body["items"].as_array().unwrap().iter().map(|a| a["account_name"].clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(&page), ["C", "B"]);
        assert!(page["items"].as_array().unwrap().iter().all(|a| a["admins"][0]["user_email"] == "x@y.org"));
        let cursor = page["next_cursor"].as_str().unwrap();
        let (_, last) = counted(&format!("/accounts?limit=2&cursor={cursor}")).await;
        assert_eq!((names(&last), &last["next_cursor"]), (vec![json!("A")], &Value::Null));

        let id = page["items"][0]["account_id"].as_str().unwrap();
        operator.post(&format!("/accounts/{id}/status"), json!({"status": "suspended"})).await.ok();
        assert_eq!(names(&counted("/accounts?status=suspended").await.1), ["C"]);
        assert_eq!(names(&counted("/accounts?account_name=B").await.1), ["B"]);
        assert_eq!(names(&counted("/accounts?offset=2").await.1), ["A"]);
        assert_eq!(operator.get("/accounts?status=gone").await.parts().0, 400);
        assert_eq!(operator.get("/accounts?limit=0").await.parts().0, 422);
    }
}

#[tokio::test]
async fn spend_is_what_the_account_has_spent() {
    for gateway in gateways(issued).await {
        let id = gateway.created_account("Acme").await;
        gateway
            .execute(&format!(r#"INSERT INTO "Alchemi_UsageTotalTable" VALUES ('{id}', 1500000001, 3000000002)"#))
            .await;
        gateway
            .execute(&format!(
                r#"INSERT INTO "Alchemi_AccountAllocationTable" (account_id, monthly_credits, overflow_limit, credit_factor,
                   effective_from, created_at, updated_at) VALUES ('{id}', 10500000000, 0, 2000000000, 0, 0, 0)"#
            ))
            .await;
        let (_, text, _) = gateway.as_operator(None).text(http::Method::GET, &format!("/accounts/{id}"), None).await;
        assert!(text.contains(r#""spend":1.500000001"#), "{text}");
        assert!(text.contains(r#""monthly_credits":10.5"#), "{text}");
        assert!(text.contains(r#""effective_from":"1970-01-01T00:00:00Z""#), "{text}");
    }
}

#[tokio::test]
async fn a_soft_delete_suspends_and_a_hard_one_leaves_audit_and_ledger() {
    for gateway in gateways(issued).await {
        let operator = gateway.as_operator(None);
        let id = gateway.created_account("Acme").await;
        let path = format!("/accounts/{id}");
        operator.put(&format!("{path}/zitadel/config"), json!({"organization_id": "org-1"})).await.ok();

        let (status, body, _) = operator.delete(&path).await.parts();
        assert_eq!((status, body), (200, json!({"status": "suspended", "account_id": id})));
        for wrong in ["?hard_delete=true", "?hard_delete=true&confirm_name=acme"] {
            let (status, body, _) = operator.delete(&format!("{path}{wrong}")).await.parts();
            assert_eq!(status, 400);
            assert_eq!(body["detail"], "confirm_name must match account_name for hard delete");
        }
        let (status, body, _) = operator.delete(&format!("{path}?hard_delete=true&confirm_name=Acme")).await.parts();
        assert_eq!((status, body), (200, json!({"status": "deleted", "account_id": id})));

        assert_eq!(operator.get(&path).await.parts().0, 404);
        assert_eq!(operator.delete(&path).await.parts().0, 404);
        let (_, audit, _) = operator.get(&format!("{path}/audit?limit=1")).await.parts();
        let last = &audit["items"][0];
        assert_eq!((&last["action"], &last["object_id"]), (&json!("delete"), &json!(id)));
        assert_eq!(last["updated_values"], json!({"hard_delete": true}));
        assert_eq!(last["before_value"]["status"], "suspended");
        let (_, verdict, _) = operator.get(&format!("{path}/audit/verify")).await.parts();
        assert_eq!(verdict["item"]["valid"], true);

        let again = gateway.created_account("Acme").await;
        let (status, body, _) = operator
            .put(&format!("/accounts/{again}/zitadel/config"), json!({"organization_id": "org-1"}))
            .await
            .parts();
        assert_eq!(status, 200, "name and organisation are free again: {body}");
    }
}

#[tokio::test]
async fn a_repeated_creation_is_answered_once() {
    for gateway in gateways(issued).await {
        let operator = gateway.as_operator(None).with("idempotency-key", "k-1");
        let first = operator.post("/accounts", json!({"account_name": "Acme"})).await.parts();
        let second = operator.post("/accounts", json!({"account_name": "Acme"})).await.parts();
        assert_eq!((first.0, second.0), (200, 200));
        assert_eq!(first.1, second.1);
        assert_eq!(second.2["idempotency-replayed"], "true");
    }
}

#[tokio::test]
async fn of_concurrent_changes_to_one_version_one_is_made() {
    for gateway in gateways(issued).await {
        let path = format!("/accounts/{}", gateway.created_account("Acme").await);
        let operator = gateway.as_operator(None).with("if-match", "\"1\"");
        let answers = futures_util::future::join_all((0..8).map(|n| {
            let (operator, path) = (&operator, &path);
            async move { operator.patch(path, json!({"account_alias": format!("a{n}")})).await.parts().0 }
        }))
        .await;
        assert_eq!(answers.iter().filter(|status| **status == 200).count(), 1, "{answers:?}");
        assert!(answers.iter().all(|status| [200, 412].contains(status)), "{answers:?}");
        let (_, verdict, _) = gateway.as_operator(None).get(&format!("{path}/audit/verify")).await.parts();
        assert_eq!((&verdict["item"]["valid"], &verdict["item"]["events"]), (&json!(true), &json!(3)));
    }
}

#[tokio::test]
async fn a_body_is_not_waited_for() {
    let hasty = |app: App| app.with_body_timeout(Duration::from_millis(1));
    for gateway in gateways(hasty).await {
        let (nobody, operator) = (gateway.as_nobody(), gateway.as_operator(None));
        assert_eq!(nobody.with("idempotency-key", "k-1").post_silence("/accounts").await, 401, "nothing is read");
        assert_eq!(operator.with("idempotency-key", "k-1").post_silence("/accounts").await, 408);
        assert_eq!(operator.with("content-type", "application/json").post_silence("/accounts").await, 408);
    }
}

#[tokio::test]
async fn a_refused_method_is_told_which_there_are() {
    for gateway in gateways(|app| app).await {
        let (status, body, headers) = gateway.as_operator(None).delete("/accounts").await.parts();
        assert_eq!((status, &body["request_id"]), (405, &json!("req-1")));
        assert_eq!(headers.get_all("allow").iter().collect::<Vec<_>>(), ["GET,HEAD,POST"]);
    }
}
