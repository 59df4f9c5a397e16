//! Who is calling, and what callers are refused.

use serde_json::json;

use crate::gateway::{ISSUER, gateways, issued};

#[tokio::test]
async fn anybody_may_ask_who_they_are() {
    for gateway in gateways(issued).await {
        let acme = gateway.created_account("Acme").await;

        let (status, body, _) = gateway.as_nobody().get("/me/context").await.parts();
        assert_eq!(status, 200);
        let empty = json!({"account_id": null, "is_super_admin": false, "auth_provider": null, "roles": [], "scopes": [],
            "product_domains_allowed": []});
        assert_eq!(body, empty);

        let (_, body, _) = gateway.as_admin_of(&acme).await.get("/me/context").await.parts();
        assert_eq!(body["account_id"], json!(acme));
        assert_eq!(body["roles"], json!(["account_admin"]));
        assert_eq!(body["auth_provider"], "zitadel");
        assert_eq!(body.as_object().unwrap().len(), 6);
    }
}

#[tokio::test]
async fn the_issuer_is_shown_to_those_who_signed_in() {
    for gateway in gateways(issued).await {
        let acme = gateway.created_account("Acme").await;

        let (status, body, _) = gateway.as_nobody().get("/auth/zitadel/status").await.parts();
        assert_eq!(status, 200);
        let anonymous = json!({"enabled": false, "zitadel_configured": true, "issuer": null, "auth_provider": null,
            "account_id": null, "roles": [], "scopes": [], "product_domains_allowed": []});
        assert_eq!(body, anonymous);

        let (_, body, _) = gateway.as_member_of(&acme, "bob", None).await.get("/auth/zitadel/status").await.parts();
        assert_eq!((&body["enabled"], &body["issuer"]), (&json!(true), &json!(ISSUER)));
    }
}

#[tokio::test]
async fn callers_of_a_suspended_account_see_their_context_and_nothing_else() {
    for gateway in gateways(issued).await {
        let acme = gateway.created_account("Acme").await;
        gateway.as_operator(None).delete(&format!("/accounts/{acme}")).await.ok();

        let ada = gateway.as_admin_of(&acme).await;
        assert_eq!(ada.get("/me/context").await.parts().0, 200);
        for path in ["/auth/zitadel/status", "/audit", "/audit/verify", "/audit/export"] {
            let (status, body, _) = ada.get(path).await.parts();
            assert_eq!((status, &body["code"]), (403, &json!("account_suspended")), "{path}");
        }

        let restored = gateway
            .as_operator(None)
            .post(&format!("/accounts/{acme}/status"), json!({"status": " Active "}))
            .await
            .parts();
        assert_eq!((restored.0, &restored.1["item"]["status"]), (200, &json!("active")));
        gateway.as_admin_of(&acme).await.get("/audit").await.ok();
    }
}

#[tokio::test]
async fn operators_routes_refuse_others_and_unknown_callers() {
    let gateway = gateways(issued).await.remove(0);
    let acme = gateway.created_account("Acme").await;
    let account = format!("/accounts/{acme}");
    let super_only = [
        "/accounts".to_owned(),
        account.clone(),
        format!("{account}/admins"),
        format!("{account}/feature-pack"),
        format!("{account}/console-model-policy"),
        format!("{account}/zitadel/config"),
        format!("{account}/audit"),
        format!("{account}/audit/verify"),
        format!("{account}/audit/export"),
        "/auth/revocations".to_owned(),
    ];
    for path in super_only {
        let (status, body, _) = gateway.as_admin_of(&acme).await.get(&path).await.parts();
        assert_eq!((status, &body["detail"]), (403, &json!("Super admin access required")), "{path}");
        assert_eq!(gateway.as_nobody().get(&path).await.parts().0, 401, "{path}");
        assert_eq!(gateway.as_operator(None).get(&path).await.parts().0, 200, "{path}");
    }
    for path in ["/audit", "/audit/verify", "/audit/export"] {
        assert_eq!(
            gateway.as_member_of(&acme, "bob", None).await.get(path).await.parts().1["detail"],
            "Account admin access required"
        );
        assert_eq!(gateway.as_operator(None).get(path).await.parts().1["detail"], "Account context required");
        assert_eq!(gateway.as_nobody().get(path).await.parts().0, 401);
    }
}
