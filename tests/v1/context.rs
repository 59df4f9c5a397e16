use serde_json::json;

use super::common::{Gateway, ISSUER, backends};

#[tokio::test]
async fn anybody_may_ask_who_they_are() {
    for backend in backends() {
        let gateway = Gateway::start(backend).await;
        let acme = gateway.account("Acme").await;

        let (status, body, _) = gateway.as_nobody().get("/v1/me/context").await;
        assert_eq!(status, 200);
        let empty = json!({"account_id": null, "is_super_admin": false, "auth_provider": null, "roles": [], "scopes": [],
            "product_domains_allowed": []});
        assert_eq!(body, empty);

        let (_, body, _) = gateway.as_admin_of(&acme).get("/v1/me/context").await;
        assert_eq!(body["account_id"], json!(acme));
        assert_eq!(body["roles"], json!(["account_admin"]));
        assert_eq!(body["auth_provider"], "zitadel");
        assert_eq!(body.as_object().unwrap().len(), 6);
    }
}

#[tokio::test]
async fn the_issuer_is_shown_to_those_who_signed_in() {
    for backend in backends() {
        let gateway = Gateway::start(backend).await;
        let acme = gateway.account("Acme").await;

        let (status, body, _) = gateway.as_nobody().get("/v1/auth/zitadel/status").await;
        assert_eq!(status, 200);
        let anonymous = json!({"enabled": false, "zitadel_configured": true, "issuer": null, "auth_provider": null,
            "account_id": null, "roles": [], "scopes": [], "product_domains_allowed": []});
        assert_eq!(body, anonymous);

        let (_, body, _) = gateway.as_member_of(&acme).get("/v1/auth/zitadel/status").await;
        assert_eq!((&body["enabled"], &body["issuer"]), (&json!(true), &json!(ISSUER)));
    }
}

#[tokio::test]
async fn callers_of_a_suspended_account_see_their_context_and_nothing_else() {
    for backend in backends() {
        let gateway = Gateway::start(backend).await;
        let acme = gateway.account("Acme").await;
        let ada = gateway.as_admin_of(&acme);
        gateway.as_operator().delete(&format!("/v1/accounts/{acme}")).await;

        assert_eq!(ada.get("/v1/me/context").await.0, 200);
        for path in ["/v1/auth/zitadel/status", "/v1/audit", "/v1/audit/verify", "/v1/audit/export"] {
            let (status, body, _) = ada.get(path).await;
            assert_eq!((status, &body["code"]), (403, &json!("account_suspended")), "{path}");
        }

        let restored =
            gateway.as_operator().post(&format!("/v1/accounts/{acme}/status"), json!({"status": " Active "})).await;
        assert_eq!((restored.0, &restored.1["item"]["status"]), (200, &json!("active")));
        assert_eq!(ada.get("/v1/audit").await.0, 200);
    }
}

#[tokio::test]
async fn operators_routes_refuse_others_and_unknown_callers() {
    let gateway = Gateway::start(super::common::Backend::Sqlite).await;
    let acme = gateway.account("Acme").await;
    let account = format!("/v1/accounts/{acme}");
    let super_only = [
        "/v1/accounts".to_owned(),
        account.clone(),
        format!("{account}/admins"),
        format!("{account}/feature-pack"),
        format!("{account}/console-model-policy"),
        format!("{account}/zitadel/config"),
        format!("{account}/audit"),
        format!("{account}/audit/verify"),
        format!("{account}/audit/export"),
        "/v1/auth/revocations".to_owned(),
    ];
    for path in super_only {
        let (status, body, _) = gateway.as_admin_of(&acme).get(&path).await;
        assert_eq!((status, &body["detail"]), (403, &json!("Super admin access required")), "{path}");
        assert_eq!(gateway.as_nobody().get(&path).await.0, 401, "{path}");
        assert_eq!(gateway.as_operator().get(&path).await.0, 200, "{path}");
    }
    for path in ["/v1/audit", "/v1/audit/verify", "/v1/audit/export"] {
        assert_eq!(gateway.as_member_of(&acme).get(path).await.1["detail"], "Account admin access required");
        assert_eq!(gateway.as_operator().get(path).await.1["detail"], "Account context required");
        assert_eq!(gateway.as_nobody().get(path).await.0, 401);
    }
}
