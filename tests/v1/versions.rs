//! `ETag` and `If-Match`: nobody overwrites what they have not seen.

use std::collections::BTreeSet;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::common::{Client, Gateway, Reply, backends};
use crate::operations::{Asked, Operation, operations};
use crate::refusal;
use crate::tenants::Tenant;

async fn patch(client: &Client, path: &str, tag: &str, body: Value) -> Reply {
    client.send(client.request(Method::PATCH, path).header("if-match", tag).json(&body)).await
}

/// A request for what the tenant has.
fn ask(operation: &Operation, tenant: &Tenant) -> Asked {
    let mut asked = operation.ask(|name| match name {
        "email" => Some("ada@acme.com".to_owned()),
        name => tenant.id_for(operation, name, "team"),
    });
    // The example's is none of this gateway's.
    if let Some(issuer) = asked.body.as_mut().and_then(|body| body.get_mut("issuer")) {
        *issuer = serde_json::Value::Null;
    }
    asked
}

#[tokio::test]
async fn every_versioned_operation_refuses_another_version() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let tenant = Tenant::new(&gateway, "Acme").await;
        let operator = gateway.operator_for(&tenant.account);
        let before = tenant.rows(&gateway).await;
        let versioned: Vec<Operation> = operations().into_iter().filter(|o| o.takes("if-match")).collect();
        let names: BTreeSet<String> = versioned.iter().map(Operation::name).collect();
        assert_eq!(names.len(), 43, "{names:#?}");
        for operation in &versioned {
            for tag in ["\"999\"", "W/\"999\"", "\"x\", \"y\""] {
                let reply = operation.call_with(&operator, &ask(operation, &tenant), &[("if-match", tag)]).await;
                assert_eq!(reply.status, StatusCode::PRECONDITION_FAILED, "{}: {}", operation.name(), reply.text());
                refusal(&reply, 412, "version_mismatch");
            }
        }
        assert_eq!(tenant.rows(&gateway).await, before, "nothing was written");
    }
}

/// A condition is never passed over: what has no versions fits none.
#[tokio::test]
async fn what_has_no_versions_fits_no_version() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let tenant = Tenant::new(&gateway, "Acme").await;
        let operator = gateway.operator_for(&tenant.account);
        let before = tenant.rows(&gateway).await;
        let changes = [Method::PUT, Method::PATCH, Method::DELETE];
        let unversioned = operations().into_iter().filter(|o| changes.contains(&o.method) && !o.takes("if-match"));
        let mut seen = 0;
        for operation in unversioned {
            let reply = operation.call_with(&operator, &ask(&operation, &tenant), &[("if-match", "\"1\"")]).await;
            refusal(&reply, 412, "version_mismatch");
            assert!(!operation.described["responses"]["412"].is_null(), "{}", operation.name());
            seen += 1;
        }
        assert!(seen > 5, "{seen}");
        assert_eq!(tenant.rows(&gateway).await, before, "nothing was written");
        let member = format!("/v1/copilot/teams/{}/members/{}", tenant.known("team_id"), tenant.known("user_id"));
        assert_eq!(patch(&operator, &member, "*", json!({"role": "lead"})).await.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn what_is_described_with_a_version_has_one() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let tenant = Tenant::new(&gateway, "Acme").await;
        let operator = gateway.operator_for(&tenant.account);
        let mut seen = 0;
        for operation in operations() {
            if operation.described["responses"]["200"]["headers"]["etag"].is_null() {
                continue;
            }
            let reply = operation.call(&operator, &ask(&operation, &tenant)).await;
            // What an earlier example has taken.
            if reply.status == StatusCode::OK {
                assert!(reply.header("etag").starts_with('"'), "{}", operation.name());
                seen += 1;
            }
        }
        assert!(seen > 20, "{seen}");
    }
}

#[tokio::test]
async fn a_version_is_good_for_one_change() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let admin = gateway.as_account_admin(&account);
        let path = format!("/v1/copilot/orgs/{}", gateway.org(&account, "copilot", "Research").await);

        let first = admin.get(&path).await.header("etag").to_owned();
        let second = patch(&admin, &path, &first, json!({"name": "Science"})).await;
        assert_ne!(second.header("etag"), first);
        refusal(&patch(&admin, &path, &first, json!({"name": "Art"})).await, 412, "version_mismatch");
        let third = patch(&admin, &path, &format!("\"0\", {}", second.header("etag")), json!({"name": "Art"})).await;
        assert_eq!(third.status, StatusCode::OK);
        assert_eq!(patch(&admin, &path, "*", json!({"name": "Music"})).await.status, StatusCode::OK);
        assert_eq!(
            admin.patch(&path, json!({"name": "Law"})).await.status,
            StatusCode::OK,
            "without, the last one wins"
        );
        let now = admin.get(&path).await;
        assert_eq!(now.json()["item"]["name"], "Law");
        let gone = admin.send(admin.request(Method::DELETE, &path).header("if-match", now.header("etag"))).await;
        assert_eq!(gone.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn of_two_at_once_one_is_refused() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let admin = gateway.as_account_admin(&account);
        let path = format!("/v1/copilot/orgs/{}", gateway.org(&account, "copilot", "Research").await);
        for round in 0..5 {
            let tag = admin.get(&path).await.header("etag").to_owned();
            let change = |name: &str| patch(&admin, &path, &tag, json!({"name": format!("{name} {round}")}));
            let (a, b, c) = (change("a"), change("b"), change("c"));
            let (a, b, c) = tokio::join!(a, b, c);
            let mut statuses = [a.status.as_u16(), b.status.as_u16(), c.status.as_u16()];
            statuses.sort_unstable();
            assert_eq!(statuses, [200, 412, 412]);
        }
    }
}

/// Documents that are one row each: a writer of the one never loses what a writer of the other wrote.
#[tokio::test]
async fn the_operators_documents_do_not_touch_each_other() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let operator = gateway.operator();
        let path = |what: &str| format!("/v1/accounts/{account}{what}");
        let paths = ["", "/feature-pack", "/console-model-policy", "/zitadel/config"].map(path);
        let (notes, pack, policy, binding) = tokio::join!(
            operator.patch(&paths[0], json!({"metadata": {"tier": "gold"}})),
            operator.put(&paths[1], json!({"features": ["create_agents"]})),
            operator.put(&paths[2], json!({"deny_models": ["gpt-5*"]})),
            operator.put(&paths[3], json!({"role_prefix": "acme_"})),
        );
        for reply in [notes, pack, policy, binding] {
            assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
        }
        let item = operator.get(&path("")).await.ok()["item"].clone();
        assert_eq!(item["metadata"], json!({"tier": "gold"}));
        assert_eq!(item["feature_pack"]["features"], json!(["create_agents"]));
        assert_eq!(item["console_model_policy"]["deny_models"], json!(["gpt-5*"]));
        assert_eq!(item["zitadel_config"]["role_prefix"], "acme_");
    }
}
