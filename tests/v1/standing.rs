//! What an account, a token and a binding are worth, through the whole gateway.

use std::time::Duration;

use http::Method;
use serde_json::json;

use crate::common::{Client, Gateway, Person, Reply, backends};
use crate::tenants::Tenant;
use crate::{at_mid_january, invalid, refusal, text};

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

#[tokio::test]
async fn a_suspended_account_is_shut_at_once_and_can_be_restored() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let (admin, operator) = (gateway.as_account_admin(&account), gateway.operator());
        assert_eq!(admin.get("/v1/copilot/orgs").await.status.as_u16(), 200);
        let removed = operator.delete(&format!("/v1/accounts/{account}")).await.ok();
        assert_eq!(removed["status"], "suspended");
        refusal(&admin.get("/v1/copilot/orgs").await, 403, "account_suspended");
        refusal(&admin.get("/v1/me/models").await, 403, "account_suspended");
        assert_eq!(admin.get("/v1/me/context").await.ok()["account_id"], account);
        let status = format!("/v1/accounts/{account}/status");
        let restored = operator.post(&status, json!({"status": "active"})).await.ok();
        assert_eq!(restored["item"]["status"], "active");
        assert_eq!(admin.get("/v1/copilot/orgs").await.status.as_u16(), 200);
    }
}

#[tokio::test]
async fn a_hard_delete_keeps_the_audit_and_the_ledgers_totals() {
    for backend in backends().await {
        let (gateway, _) = at_mid_january(backend).await;
        let tenant = Tenant::new(&gateway, "Acme").await;
        let other = Tenant::new(&gateway, "Other").await;
        let (account, operator) = (&tenant.account, gateway.operator());
        let used = json!({"raw_cost": "1.25", "model_name": "gpt-4o"});
        operator.within(account).post("/v1/budgets/copilot/usage/record", used).await.ok();
        let others = other.rows(&gateway).await;

        let path = format!("/v1/accounts/{account}?hard_delete=true");
        refusal(&operator.delete(&path).await, 400, "confirm_name_mismatch");
        refusal(&operator.delete(&format!("{path}&confirm_name=acme")).await, 400, "confirm_name_mismatch");
        let admin = gateway.as_account_admin(account);
        assert_eq!(admin.get("/v1/copilot/orgs").await.status.as_u16(), 200);
        assert_eq!(operator.delete(&format!("{path}&confirm_name=Acme")).await.ok()["status"], "deleted");

        refusal(&operator.get(&format!("/v1/accounts/{account}")).await, 404, "not_found");
        refusal(&admin.get("/v1/copilot/orgs").await, 403, "account_context_required");
        let left: Vec<_> = tenant
            .rows(&gateway)
            .await
            .into_iter()
            .filter(|(_, rows)| !rows.is_empty())
            .map(|(table, _)| table)
            .collect();
        let kept = [
            "Alchemi_AuditHeadTable",
            "Alchemi_AuditTable",
            "Alchemi_UsageLedgerTable",
            "Alchemi_UsageRollupTable",
            "Alchemi_UsageTotalTable",
        ];
        assert_eq!(left, kept);
        let sums =
            tenant.rows(&gateway).await.into_iter().find(|(table, _)| table == "Alchemi_UsageRollupTable").unwrap().1;
        assert!(sums.iter().any(|sum| sum["raw_cost"] == 1_250_000_000_i64), "{sums:?}");
        assert!(gateway.verify_books().await.differences.is_empty());

        let audit = format!("/v1/accounts/{account}/audit");
        let events = operator.get(&audit).await.ok();
        assert_eq!(events["items"][0]["action"], "delete");
        assert_eq!(operator.get(&format!("{audit}/verify")).await.ok()["item"]["valid"], true);
        assert_eq!(other.rows(&gateway).await, others, "another account keeps everything");
        assert_ne!(gateway.account("Acme").await, *account, "the name is free");
    }
}

#[tokio::test]
async fn reads_and_refusals_leave_no_event() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let tenant = Tenant::new(&gateway, "Acme").await;
        let admin = gateway.as_account_admin(&tenant.account);
        let before = tenant.rows(&gateway).await;
        admin.post("/v1/copilot/orgs", json!({"name": "Research"})).await;
        admin.post("/v1/copilot/orgs", json!({"nam": "Science"})).await;
        admin.get("/v1/copilot/orgs").await.ok();
        gateway.as_end_user(&tenant.account, "eve").post("/v1/copilot/orgs", json!({"name": "Science"})).await;
        assert_eq!(tenant.rows(&gateway).await, before);
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
async fn a_revoked_token_is_refused_on_the_next_request() {
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
        let refused = eve.get("/v1/me/models").await;
        refusal(&refused, 401, "token_revoked");
        assert!(refused.header("www-authenticate").contains("invalid_token"));
        refusal(&eve.get("/v1/me/context").await, 401, "token_revoked");
        assert_eq!(bob.get("/v1/me/models").await.status.as_u16(), 200);
        // An issuer's clock may be ahead: what is not surely from after the moment is refused.
        clock.advance(Duration::from_secs(29));
        refusal(&gateway.as_end_user(&account, "eve").get("/v1/me/models").await, 401, "token_revoked");
        clock.advance(Duration::from_secs(1));
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
        gateway.operator().post("/v1/auth/revocations", json!({"subject": "eve"})).await.ok();
        refusal(&refused(&eve).await, 401, "token_revoked");
    }
}

/// Self-service is of one domain: the one that is named, else the only one of the token, else the gateway's default.
#[tokio::test]
async fn self_service_is_of_one_domain() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let domain = async |client: &Client, path: &str, header: Option<&str>| {
            let request = client.request(Method::GET, path);
            let request = header.into_iter().fold(request, |r, domain| r.header("x-alchemi-domain", domain));
            client.send(request).await
        };
        let both = gateway.as_end_user(&account, "eve");
        let one = gateway.sign_in(&Person::of(&account, "con").domains(&["console"]));
        let path = "/v1/me/models";
        assert_eq!(domain(&both, path, None).await.ok()["domain"], "copilot");
        assert_eq!(domain(&both, path, Some("console")).await.ok()["domain"], "console");
        assert_eq!(domain(&both, "/v1/me/models?domain=copilot", Some("console")).await.ok()["domain"], "copilot");
        assert_eq!(domain(&one, path, None).await.ok()["domain"], "console");
        refusal(&domain(&one, path, Some("copilot")).await, 403, "domain_denied");
        refusal(&domain(&both, path, Some("sales")).await, 400, "invalid_header");
        invalid(&domain(&both, "/v1/me/models?domain=sales", None).await, "domain");
    }
}
