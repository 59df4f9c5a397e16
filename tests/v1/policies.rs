//! What only the operator sets for an account.

use serde_json::json;

use crate::gateway::{gateways, issued};

#[tokio::test]
async fn settings_are_replaced_whole_and_guarded_by_their_version() {
    for gateway in gateways(issued).await {
        let operator = gateway.as_operator(None);
        let account = format!("/accounts/{}", gateway.created_account("Acme").await);
        let cases = [
            (
                "feature-pack",
                "feature_pack",
                json!({"features": ["a", " b ", "a"], "config": {"a": {"n": 1}}}),
                json!({"features": ["a", "b"], "config": {"a": {"n": 1}}}),
                json!({"features": [], "config": {}}),
            ),
            (
                "console-model-policy",
                "console_model_policy",
                json!({"allow_models": ["gpt-4o*"], "deny_models": ["gpt-4"]}),
                json!({"allow_models": ["gpt-4o*"], "deny_models": ["gpt-4"]}),
                json!({"allow_models": [], "deny_models": []}),
            ),
        ];
        for (resource, key, sent, kept, empty) in cases {
            let path = format!("{account}/{resource}");
            let (status, body, headers) = operator.get(&path).await.parts();
            assert_eq!((status, &body[key], &headers["etag"]), (200, &empty, &"\"0\"".parse().unwrap()));
            let first = operator.with("if-match", "\"0\"");
            let (status, body, headers) = first.put(&path, sent).await.parts();
            assert_eq!((status, &body), (200, &json!({"status": "ok", key: kept})));
            assert_eq!(headers["etag"], "\"1\"");
            assert_eq!(first.put(&path, json!({})).await.parts().0, 412);
            assert_eq!(operator.get(&path).await.parts().1, json!({key: kept}));
            let (_, bundle, _) = operator.get(&account).await.parts();
            assert_eq!(bundle["item"][key], kept);
            assert_eq!(operator.put(&path, json!({})).await.parts().1[key], empty);
            assert_eq!(operator.put(&path, json!({"colour": 1})).await.parts().0, 422);
            let gone = operator.put(&format!("/accounts/nothing/{resource}"), json!({})).await.parts();
            assert_eq!((gone.0, &gone.1["detail"]), (404, &json!("Account not found")));
            assert_eq!(operator.get(&format!("/accounts/nothing/{resource}")).await.parts().0, 404);
        }
        let path = format!("{account}/console-model-policy");
        let (status, body, _) = operator.put(&path, json!({"deny_models": ["a*b"]})).await.parts();
        assert_eq!((status, &body["errors"][0]["pointer"]), (422, &json!("/deny_models/0")));
    }
}

#[tokio::test]
async fn an_organisation_belongs_to_one_account() {
    for gateway in gateways(issued).await {
        let operator = gateway.as_operator(None);
        let path = format!("/accounts/{}/zitadel/config", gateway.created_account("Acme").await);
        let other = format!("/accounts/{}/zitadel/config", gateway.created_account("Other").await);
        assert_eq!(operator.get(&path).await.parts().1, json!({"zitadel_config": {}}));

        let sent = json!({"issuer": "https://login.example.com", "audience": "aud", "project_id": "p", "organization_id": "o",
            "role_prefix": "acme_", "role_mappings": {"account_admin": "boss"}, "account_id_claim": "c",
            "product_domains_claim": "d"});
        let mut kept = sent.clone();
        kept["enabled"] = json!(true);
        let (status, body, _) = operator.put(&path, sent).await.parts();
        assert_eq!((status, &body), (200, &json!({"status": "ok", "zitadel_config": kept})));
        assert_eq!(operator.get(&path).await.parts().1["zitadel_config"], kept);

        let (status, body, _) = operator.put(&other, json!({"organization_id": "o"})).await.parts();
        assert_eq!((status, &body["field"]), (409, &json!("organization_id")));
        let (_, body, _) = operator.put(&path, json!({"enabled": false})).await.parts();
        kept["enabled"] = json!(false);
        assert_eq!(body["zitadel_config"], kept, "what is left out stays as it was");
        let (_, body, _) = operator.put(&path, json!({"audience": null})).await.parts();
        kept["audience"] = json!(null);
        assert_eq!(body["zitadel_config"], kept, "and what is off stays off");
        let (_, body, _) = operator.put(&path, json!({"enabled": true, "organization_id": ""})).await.parts();
        (kept["enabled"], kept["organization_id"]) = (json!(true), json!(null));
        assert_eq!(body["zitadel_config"], kept);
        assert_eq!(operator.put(&other, json!({"organization_id": "o"})).await.parts().0, 200);
    }
}

#[tokio::test]
async fn a_binding_names_safe_urls_and_known_roles() {
    // No issuer is configured, so that any may be named.
    let gateway = gateways(|app| app).await.remove(0);
    let operator = gateway.as_operator(None);
    let path = format!("/accounts/{}/zitadel/config", gateway.created_account("Acme").await);
    for issuer in [
        "http://login.example.com",
        "ftp://x.org",
        "https://u:p@x.org",
        "https://x.org/?q",
        "https://x.org/#f",
        "login.example.com",
        "http://localhost.evil.org",
        "file:///etc/passwd",
    ] {
        let (status, body, _) = operator.put(&path, json!({"issuer": issuer})).await.parts();
        assert_eq!((status, &body["errors"][0]["pointer"]), (422, &json!("/issuer")), "{issuer}");
    }
    for issuer in ["https://login.example.com", "http://localhost:8080", "http://127.0.0.1:1", "http://[::1]:1/x"] {
        assert_eq!(operator.put(&path, json!({"issuer": issuer})).await.parts().0, 200, "{issuer}");
    }
    let (status, body, _) = operator.put(&path, json!({"role_mappings": {"boss": "x"}})).await.parts();
    assert_eq!((status, &body["errors"][0]["pointer"]), (422, &json!("/role_mappings")));
}
