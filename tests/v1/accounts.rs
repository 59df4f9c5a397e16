//! Accounts, their admins and the operator's settings for them.

use serde_json::{Value, json};

use crate::common::{Gateway, backends};
use crate::operations::NOBODY;
use crate::{at_mid_january, invalid, refusal, text};

#[tokio::test]
async fn an_account_is_made_whole() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let operator = gateway.operator();
        let new = json!({
            "account_name": " Acme ", "account_alias": "acme", "domain": "ACME.com", "max_budget": 100.5,
            "metadata": {"timezone": "Europe/Berlin", "tier": "gold"}, "admin_email": "Ada@Acme.com", "admin_password": "",
        });
        let made = operator.post("/v1/accounts", new).await.ok();
        assert_eq!(made["status"], "created");
        let item = &made["item"];
        assert_eq!(item["account_id"], made["account_id"]);
        assert_eq!((&item["account_name"], &item["domain"]), (&json!("Acme"), &json!("acme.com")));
        assert_eq!((&item["status"], &item["max_budget"]), (&json!("active"), &json!(100.5)));
        assert_eq!(item["metadata"], json!({"timezone": "Europe/Berlin", "tier": "gold"}));
        assert_eq!(item["admins"][0]["user_email"], "ada@acme.com");
        assert_eq!(item["admins"][0]["role"], "account_admin");
        assert_eq!(
            (&item["zitadel_config"], &item["allocation"], &item["spend"]),
            (&json!({}), &json!(null), &json!(0))
        );

        let account = text(&made["account_id"]);
        assert_eq!(operator.get(&format!("/v1/accounts/{account}")).await.ok()["item"], *item);
        let orgs = operator.within(&account).get("/v1/copilot/orgs").await.ok();
        assert_eq!(orgs["items"].as_array().unwrap().len(), 1);
        assert_eq!(
            (&orgs["items"][0]["name"], &orgs["items"][0]["is_default_global"]),
            (&json!("global"), &json!(true))
        );
        assert_eq!(operator.within(&account).get("/v1/console/orgs").await.ok()["items"], json!([]));
        let audit = operator.get(&format!("/v1/accounts/{account}/audit")).await.ok();
        let tables: Vec<_> =
            audit["items"].as_array().unwrap().iter().map(|e| e["table_name"].as_str().unwrap()).collect();
        assert_eq!(tables, ["Alchemi_OrgTable", "Alchemi_AccountAdminTable", "Alchemi_AccountTable"]);
    }
}

#[tokio::test]
async fn what_an_account_may_not_be() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let operator = gateway.operator();
        let post = async |field: &str, value: Value| {
            let mut body = json!({"account_name": "Acme"});
            body[field] = value;
            operator.post("/v1/accounts", body).await
        };
        for (field, value, pointer) in [
            ("account_name", json!(""), "/account_name"),
            ("domain", json!("not a host"), "/domain"),
            ("domain", json!("-a.com"), "/domain"),
            ("max_budget", json!(-1), "/max_budget"),
            ("metadata", json!([]), "/metadata"),
            ("metadata", json!({"timezone": "Mars/Olympus"}), "/metadata/timezone"),
            ("metadata", json!({"timezone": 1}), "/metadata/timezone"),
            ("admin_email", json!("ada"), "/admin_email"),
            ("admin_email", json!("ada@acme.com\u{0}"), "/admin_email"),
            ("admin_password", json!("hunter2"), "/admin_password"),
        ] {
            let reply = post(field, value).await;
            invalid(&reply, pointer);
            assert!(!reply.text().contains("hunter2"));
        }
        assert_eq!(operator.get("/v1/accounts").await.ok()["items"], json!([]), "nothing is half made");

        gateway.account("Acme").await;
        let again = refusal(&post("domain", json!(null)).await, 409, "already_exists");
        assert_eq!((&again["field"], &again["detail"]), (&json!("account_name"), &json!("Account already exists")));
        operator.post("/v1/accounts", json!({"account_name": "B", "domain": "b.com"})).await.ok();
        let again = operator.post("/v1/accounts", json!({"account_name": "C", "domain": "B.com"})).await;
        assert_eq!(refusal(&again, 409, "already_exists")["field"], "domain");
    }
}

#[tokio::test]
async fn accounts_are_filtered() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let operator = gateway.operator();
        let (a, b) = (gateway.account("A").await, gateway.account("B").await);
        operator.patch(&format!("/v1/accounts/{a}"), json!({"domain": "a.com"})).await.ok();
        operator.post(&format!("/v1/accounts/{b}/status"), json!({"status": "Suspended"})).await.ok();
        let found = async |query: &str| {
            let list = operator.get(&format!("/v1/accounts?{query}")).await.ok();
            list["items"].as_array().unwrap().iter().map(|i| text(&i["account_id"])).collect::<Vec<_>>()
        };
        assert_eq!(found("").await, [b.clone(), a.clone()]);
        assert_eq!(found("status=active").await, [a.clone()]);
        assert_eq!(found("status=suspended").await, [b.clone()]);
        assert_eq!(found("account_name=B").await, [b.clone()]);
        assert_eq!(found("domain=A.COM").await, [a.clone()]);
        assert!(found("domain=a.com&status=suspended").await.is_empty());
        assert_eq!(operator.get("/v1/accounts?status=gone").await.status.as_u16(), 400);
    }
}

#[tokio::test]
async fn an_account_is_changed() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let operator = gateway.operator();
        let account = gateway.account("Acme").await;
        gateway.account("Other").await;
        let path = format!("/v1/accounts/{account}");
        let patch = async |body: Value| operator.patch(&path, body).await;
        let item =
            patch(json!({"account_alias": "a", "domain": "a.com", "max_budget": "5", "metadata": {"x": 1}})).await.ok();
        assert_eq!(item["item"]["max_budget"], 5);
        let item = patch(json!({"account_alias": "", "domain": null, "max_budget": null, "metadata": null})).await.ok();
        let item = &item["item"];
        assert_eq!(
            (&item["account_alias"], &item["domain"], &item["max_budget"]),
            (&json!(null), &json!(null), &json!(null))
        );
        assert_eq!(item["metadata"], json!({}));
        refusal(&patch(json!({})).await, 400, "no_update_fields");
        invalid(&patch(json!({"status": null})).await, "/status");
        invalid(&patch(json!({"account_name": null})).await, "/account_name");
        assert_eq!(
            refusal(&patch(json!({"account_name": "Other"})).await, 409, "already_exists")["field"],
            "account_name"
        );
        refusal(
            &operator.patch(&format!("/v1/accounts/{NOBODY}"), json!({"account_name": "x"})).await,
            404,
            "not_found",
        );
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
        let tenant = crate::tenants::Tenant::new(&gateway, "Acme").await;
        let other = crate::tenants::Tenant::new(&gateway, "Other").await;
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
        let kept =
            ["Alchemi_AuditHeadTable", "Alchemi_AuditTable", "Alchemi_UsageLedgerTable", "Alchemi_UsageRollupTable"];
        assert_eq!(left, kept);
        let sums =
            tenant.rows(&gateway).await.into_iter().find(|(table, _)| table == "Alchemi_UsageRollupTable").unwrap().1;
        assert_eq!(sums[0]["raw_cost"], 1_250_000_000_i64, "{sums:?}");
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
async fn admins_are_listed_added_changed_and_removed() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let (operator, account) = (gateway.operator(), gateway.account("Acme").await);
        let path = format!("/v1/accounts/{account}/admins");
        let added = operator.post(&path, json!({"user_email": "ADA@acme.com"})).await.ok();
        assert_eq!((&added["status"], &added["item"]["role"]), (&json!("ok"), &json!("account_admin")));
        let again = operator.post(&path, json!({"user_email": "ada@acme.com", "role": "copilot_org_admin"})).await.ok();
        assert_eq!((&again["item"]["id"], &again["item"]["role"]), (&added["item"]["id"], &json!("copilot_org_admin")));
        operator.post(&path, json!({"user_email": "bob@acme.com"})).await.ok();
        assert_eq!(operator.get(&path).await.ok()["items"].as_array().unwrap().len(), 2);

        invalid(&operator.post(&path, json!({"user_email": "c@acme.com", "role": "king"})).await, "/role");
        invalid(&operator.post(&path, json!({"user_email": "c@acme.com", "password": "x"})).await, "/password");
        let ada = format!("{path}/ada@acme.com");
        let taken = operator.patch(&ada, json!({"new_email": "Bob@acme.com"})).await;
        assert_eq!(refusal(&taken, 409, "already_exists")["field"], "user_email");
        let moved = operator.patch(&ada, json!({"new_email": "lady@acme.com", "role": "account_admin"})).await.ok();
        assert_eq!(
            (&moved["item"]["user_email"], &moved["item"]["id"]),
            (&json!("lady@acme.com"), &added["item"]["id"])
        );
        refusal(&operator.patch(&ada, json!({"role": "end_user"})).await, 404, "not_found");
        assert_eq!(operator.delete(&format!("{path}/LADY%40acme.com")).await.ok()["status"], "ok");
        refusal(&operator.delete(&format!("{path}/lady@acme.com")).await, 404, "not_found");
        refusal(
            &operator.post(&format!("/v1/accounts/{NOBODY}/admins"), json!({"user_email": "a@b.de"})).await,
            404,
            "not_found",
        );
    }
}

#[tokio::test]
async fn the_operators_documents_are_replaced_whole() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let (operator, account) = (gateway.operator(), gateway.account("Acme").await);
        let path = |what: &str| format!("/v1/accounts/{account}/{what}");

        assert_eq!(
            operator.get(&path("feature-pack")).await.ok()["feature_pack"],
            json!({"features": [], "config": {}})
        );
        let pack = json!({"features": ["a", "b", "a"], "config": {"a": {"x": 1}}});
        let stored = operator.put(&path("feature-pack"), pack).await.ok();
        assert_eq!((&stored["status"], &stored["feature_pack"]["features"]), (&json!("ok"), &json!(["a", "b"])));
        operator.put(&path("feature-pack"), json!({})).await.ok();
        assert_eq!(
            operator.get(&path("feature-pack")).await.ok()["feature_pack"],
            json!({"features": [], "config": {}})
        );

        let policy = json!({"allow_models": ["gpt-4o*"], "deny_models": []});
        operator.put(&path("console-model-policy"), policy.clone()).await.ok();
        assert_eq!(operator.get(&path("console-model-policy")).await.ok()["console_model_policy"], policy);
        invalid(&operator.put(&path("console-model-policy"), json!({"deny_models": ["*a"]})).await, "/deny_models/0");

        assert_eq!(operator.get(&path("zitadel/config")).await.ok()["zitadel_config"], json!({}));
        let config = json!({"organization_id": "17", "issuer": "https://id.acme.com", "role_mappings": {"account_admin": "boss"}});
        let stored = operator.put(&path("zitadel/config"), config).await.ok()["zitadel_config"].clone();
        assert_eq!((&stored["enabled"], &stored["organization_id"]), (&json!(true), &json!("17")));
        assert_eq!(operator.get(&path("zitadel/config")).await.ok()["zitadel_config"], stored);
        invalid(&operator.put(&path("zitadel/config"), json!({"issuer": "http://id.acme.com"})).await, "/issuer");
        invalid(
            &operator.put(&path("zitadel/config"), json!({"role_mappings": {"king": "x"}})).await,
            "/role_mappings",
        );
        let other = gateway.account("Other").await;
        let taken =
            operator.put(&format!("/v1/accounts/{other}/zitadel/config"), json!({"organization_id": "17"})).await;
        assert_eq!(refusal(&taken, 409, "already_exists")["field"], "organization_id");
        for what in ["feature-pack", "console-model-policy", "zitadel/config"] {
            refusal(&operator.get(&format!("/v1/accounts/{NOBODY}/{what}")).await, 404, "not_found");
            refusal(&operator.put(&format!("/v1/accounts/{NOBODY}/{what}"), json!({})).await, 404, "not_found");
        }
    }
}
