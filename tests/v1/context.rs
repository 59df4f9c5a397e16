//! What the gateway makes of a caller, and tokens that are cut off.

use std::time::Duration;

use serde_json::json;

use crate::common::{Client, Gateway, Person, Reply, backends};
use crate::{at_mid_january, invalid, refusal, text};

#[tokio::test]
async fn a_caller_sees_their_context() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let nobody = gateway.anybody().get("/v1/me/context").await.ok();
        assert_eq!(
            (&nobody["account_id"], &nobody["is_super_admin"], &nobody["roles"]),
            (&json!(null), &json!(false), &json!([]))
        );
        let admin = gateway.sign_in(&Person::of(&account, "ada").role("account_admin").domains(&["copilot"]));
        let context = admin.get("/v1/me/context").await.ok();
        assert_eq!((&context["account_id"], &context["auth_provider"]), (&json!(account), &json!("zitadel")));
        assert_eq!(
            (&context["roles"], &context["product_domains_allowed"]),
            (&json!(["account_admin"]), &json!(["copilot"]))
        );
        let operator = gateway.operator().get("/v1/me/context").await.ok();
        assert_eq!((&operator["is_super_admin"], &operator["auth_provider"]), (&json!(true), &json!("master_key")));
        assert_eq!(gateway.operator_for(&account).get("/v1/me/context").await.ok()["account_id"], account);
        refusal(&gateway.operator_for("nobody").get("/v1/me/context").await, 403, "account_unknown");
    }
}

#[tokio::test]
async fn only_a_signed_in_caller_sees_the_issuer() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let path = "/v1/auth/zitadel/status";
        let nobody = gateway.anybody().get(path).await.ok();
        assert_eq!(
            (&nobody["issuer"], &nobody["enabled"], &nobody["zitadel_configured"]),
            (&json!(null), &json!(false), &json!(true))
        );
        let eve = gateway.as_end_user(&account, "eve").get(path).await.ok();
        assert_eq!((&eve["issuer"], &eve["enabled"]), (&json!(gateway.issuer.url()), &json!(true)));
        assert_eq!(eve["account_id"], account);
    }
}

#[tokio::test]
async fn roles_follow_the_accounts_binding() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let admin = gateway.sign_in(&Person::of(&account, "ada").role("acme_account_admin"));
        refusal(&admin.get("/v1/audit").await, 403, "account_admin_required");
        let binding = format!("/v1/accounts/{account}/zitadel/config");
        let organization = format!("org-of-{account}");
        gateway.operator().put(&binding, json!({"role_prefix": "acme_", "organization_id": organization})).await.ok();
        assert_eq!(admin.get("/v1/audit").await.status.as_u16(), 200);
        let plain = gateway.sign_in(&Person::of(&account, "bob").role("account_admin"));
        refusal(&plain.get("/v1/audit").await, 403, "account_admin_required");
        gateway.operator().put(&binding, json!({"organization_id": "another"})).await.ok();
        refusal(&admin.get("/v1/audit").await, 403, "account_mismatch");
    }
}

/// The first refusal of a caller; the change feed takes a moment to bring it about.
async fn refused(client: &Client) -> Reply {
    for _ in 0..1_000 {
        let reply = client.get("/v1/me/models").await;
        if !reply.status.is_success() {
            return reply;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the caller is let in for ever");
}

#[tokio::test]
async fn a_revoked_token_is_refused() {
    for backend in backends().await {
        let (gateway, clock) = at_mid_january(backend).await;
        let account = gateway.account("Acme").await;
        let (operator, path) = (gateway.operator(), "/v1/auth/revocations");
        let (eve, bob) = (gateway.as_end_user(&account, "eve"), gateway.as_end_user(&account, "bob"));
        assert_eq!(eve.get("/v1/me/models").await.status.as_u16(), 200);
        clock.advance(Duration::from_secs(10));

        let made = operator.post(path, json!({"subject": "eve", "reason": "lost laptop"})).await.ok();
        assert_eq!(
            (&made["item"]["issuer"], &made["item"]["reason"]),
            (&json!(gateway.issuer.url()), &json!("lost laptop"))
        );
        let refused = refused(&eve).await;
        refusal(&refused, 401, "token_revoked");
        assert!(refused.header("www-authenticate").contains("invalid_token"));
        refusal(&eve.get("/v1/me/context").await, 401, "token_revoked");
        assert_eq!(bob.get("/v1/me/models").await.status.as_u16(), 200);
        clock.advance(Duration::from_secs(10));
        assert_eq!(gateway.as_end_user(&account, "eve").get("/v1/me/models").await.status.as_u16(), 200, "a new token");

        let earlier =
            operator.post(path, json!({"subject": "eve", "issued_before": "2020-01-01T00:00:00Z"})).await.ok();
        assert_eq!(earlier["item"]["issued_before"], made["item"]["issued_before"], "the later moment stays");
        let list = operator.get(path).await.ok();
        assert_eq!(list["items"].as_array().unwrap().len(), 1);
        let id = text(&list["items"][0]["id"]);
        assert_eq!(operator.delete(&format!("{path}/{id}")).await.ok()["deleted"], true);
        refusal(&operator.delete(&format!("{path}/{id}")).await, 404, "not_found");

        invalid(&operator.post(path, json!({"subject": "eve", "issuer": "https://elsewhere"})).await, "/issuer");
        invalid(&operator.post(path, json!({"subject": ""})).await, "/subject");
        let chain = operator.get("/v1/accounts/platform/audit").await.ok();
        assert_eq!(chain["items"][0]["table_name"], "Alchemi_RevocationTable");
        assert_eq!(operator.get("/v1/accounts/platform/audit/verify").await.ok()["item"]["valid"], true);
    }
}

/// The change feed carries a revocation to the other gateways.
#[tokio::test]
async fn a_revocation_reaches_another_gateway() {
    for backend in backends().await {
        if backend == crate::common::Backend::Sqlite {
            continue; // One process at a time.
        }
        let gateway = Gateway::start(backend).await;
        let beside = gateway.beside(|_| {}).await;
        let account = gateway.account("Acme").await;
        let eve = gateway.as_end_user(&account, "eve").at(beside.url());
        assert_eq!(eve.get("/v1/me/models").await.status.as_u16(), 200);
        let cut = json!({"subject": "eve", "issued_before": "2999-01-01T00:00:00Z"});
        gateway.operator().post("/v1/auth/revocations", cut).await.ok();
        refusal(&refused(&eve).await, 401, "token_revoked");
    }
}
