//! Every operation of the description, done with success: its answer fits its schema, a POST is not done twice under
//! one key, and what was removed is not there any more.

use std::fmt::Write;

use http::{Method, header};
use serde_json::{Value, json};

use crate::common::{Client, Person, Reply, backends};
use crate::conventions::shaped;
use crate::operations::{Asked, LOGOUT, Operation, operations};
use crate::provision::Setting;
use crate::schemas::Schemas;
use crate::tenants::{Tenant, fill};
use crate::{logout, refusal, text};

/// An account with one of everything, in a gateway that has a Zitadel.
struct Stage<'a> {
    setting: &'a Setting,
    tenant: Tenant,
    revocation: String,
    /// What cannot be had.
    item: String,
    operator: Client,
    ada: Person,
    /// Makes names that nothing has.
    number: u32,
}

impl<'a> Stage<'a> {
    async fn new(setting: &'a Setting, name: &str) -> Self {
        let tenant = Tenant::new(&setting.gateway, name).await;
        let operator = setting.gateway.operator_for(&tenant.account);
        let revoked = json!({"subject": format!("{name}-gone")});
        let revoked = operator.post("/v1/auth/revocations", revoked).await.ok();
        let ada = Person::of(&tenant.account, &format!("{name}-ada")).of_org(&setting.org);
        let item = impossible(setting, &tenant.account).await;
        Self { setting, revocation: text(&revoked["item"]["id"]), item, operator, ada, tenant, number: 0 }
    }

    /// A request of what is there, and of names that are free.
    fn ask(&mut self, operation: &Operation) -> Asked {
        self.number += 1;
        let number = self.number;
        let filters = operation.method == Method::GET && !operation.path.ends_with("/effective");
        let mut asked = operation.ask(|name| match name {
            _ if filters && !operation.path.contains(&format!("{{{name}}}")) => None,
            "scope_type" => Some("team".to_owned()),
            "email" => Some("ada@acme.com".to_owned()),
            "revocation_id" => Some(self.revocation.clone()),
            "item_id" if operation.path.contains("/provision/") => Some(self.item.clone()),
            "cascade" => Some("true".to_owned()),
            _ => self.tenant.id_for(operation, name, "team"),
        });
        let of_zitadel = operation.path.contains("/zitadel/");
        let Some(body) = &mut asked.body else { return asked };
        if operation.path.ends_with("/install") {
            // The operator, who calls, has no place in the directory to install it for.
            *body = json!({"scope_type": "team", "scope_id": ""});
        }
        fill(body, &|name, _| match name {
            "project_id" if of_zitadel => Some(json!(self.setting.project)),
            "organization_id" if of_zitadel => Some(json!(self.setting.org)),
            "issuer" => Some(json!(self.setting.gateway.issuer.url())),
            "role_prefix" if of_zitadel => Some(Value::Null),
            "dry_run" if of_zitadel => Some(json!(false)),
            "user_id" if of_zitadel => Some(json!(self.setting.zitadel.user(&self.setting.org, &address(number)))),
            "scope_type" => Some(json!("team")),
            "key" | "code" | "identity_user_id" | "subject" => Some(json!(format!("fresh-{number}"))),
            "name" | "account_name" | "title" | "pattern_name" => Some(json!(format!("Fresh {number}"))),
            "domain" if operation.path.starts_with("/v1/accounts") => Some(json!(format!("fresh{number}.example"))),
            "email" | "user_email" | "new_email" | "admin_email" => Some(json!(address(number))),
            // Of a recorded use they are only labels.
            "agent_id" | "connection_id" if operation.path.ends_with("/usage/record") => None,
            _ => self.tenant.id_for(operation, name, "team").map(Value::from),
        });
        asked
    }

    /// Who calls an operation: the subject themselves, where it is about who calls.
    fn caller(&self, operation: &Operation) -> Client {
        if operation.path.starts_with("/v1/me/") {
            return self.setting.gateway.sign_in(&self.ada);
        }
        self.operator.clone()
    }
}

/// A role that the project does not have, wanted all the same; gives the item's id.
async fn impossible(setting: &Setting, account: &str) -> String {
    let path = |rest: &str| format!("/v1/accounts/{account}/zitadel/provision/{rest}");
    let body = json!({"user_id": "1", "role_keys": ["no_such_role"], "project_id": setting.project});
    let refused = setting.operator().post(&path("user-grant"), body).await;
    assert_eq!(refused.status.as_u16(), 502, "{}", refused.text());
    text(&setting.operator().get(&path("drift")).await.ok()["items"][0]["id"])
}

fn address(number: u32) -> String {
    format!("fresh{number}@acme.com")
}

/// What holds an answer to its description.
struct Judge {
    schemas: Schemas,
    broken: String,
}

impl Judge {
    fn judge(&mut self, operation: &Operation, asked: &Asked, reply: &Reply) -> bool {
        let name = operation.name();
        if reply.status.as_u16() != 200 {
            writeln!(self.broken, "{name} {asked:?}: {} {}", reply.status, reply.text()).unwrap();
            return false;
        }
        let described = &operation.described["responses"]["200"];
        let kind = reply.header("content-type");
        let content = &described["content"][kind];
        let lines = reply.text();
        let documents: Vec<&str> = if kind == "application/json" { vec![&lines] } else { lines.lines().collect() };
        for document in documents {
            let document: Value = serde_json::from_str(document).unwrap();
            for misfit in self.schemas.misfits(&content["schema"], &document) {
                writeln!(self.broken, "{name}: {misfit}\n  in {document}").unwrap();
            }
            // Its answer has two shapes, of which the example shows one.
            if operation.path != "/v1/budgets/account-allocation" {
                shaped(&document, &content["example"], &name);
            }
        }
        if !described["headers"]["etag"].is_null() && !reply.headers.contains_key(header::ETAG) {
            writeln!(self.broken, "{name}: no etag").unwrap();
        }
        true
    }
}

/// A POST that is sent again under its key gives the first answer; with another body it is refused.
async fn repeated(stage: &Stage<'_>, operation: &Operation, asked: &Asked) -> Reply {
    let client = stage.caller(operation);
    let key = ("idempotency-key", "exercised");
    let first = operation.call_with(&client, asked, &[key]).await;
    if first.status.as_u16() != 200 {
        return first;
    }
    let again = operation.call_with(&client, asked, &[key]).await;
    assert_eq!(again.status, first.status, "{}: {}", operation.name(), again.text());
    assert_eq!(
        again.headers.get("idempotency-replayed").map(|v| v.as_bytes()),
        Some(&b"true"[..]),
        "{}",
        operation.name()
    );
    assert_eq!((again.text(), again.headers.get(header::ETAG)), (first.text(), first.headers.get(header::ETAG)));
    let mut other = asked.body.as_ref().map(Value::to_string).unwrap_or_default();
    other.push(' ');
    let other = client.request(Method::POST, &asked.path).header(key.0, key.1).body(other);
    let other = client.send(other.header(header::CONTENT_TYPE, "application/json")).await;
    refusal(&other, 422, "idempotency_key_reused");
    first
}

/// What was removed is not found again.
async fn removed(stage: &Stage<'_>, operation: &Operation, asked: &Asked, reply: &Reply) {
    let told = reply.json();
    let gone = told["deleted"] == true || told["deleted"].as_u64().is_some_and(|n| n > 0) || told["status"].is_string();
    assert!(gone, "{}: {told}", operation.name());
    let of_one = operation.path.ends_with('}') && operation.path != "/v1/accounts/{account_id}";
    if of_one && operations().iter().any(|o| o.method == Method::GET && o.path == operation.path) {
        let path = asked.path.split('?').next().unwrap();
        refusal(&stage.operator.get(path).await, 404, "not_found");
    }
}

#[tokio::test]
async fn every_operation_can_be_done_and_answers_as_described() {
    for backend in backends().await {
        let setting = Setting::new(backend).await;
        let mut stage = Stage::new(&setting, "Own").await;
        let mut judge = Judge { schemas: Schemas::of_the_description(), broken: String::new() };
        let mut all: Vec<_> = operations().into_iter().filter(|operation| operation.name() != LOGOUT).collect();
        // A plan that was renewed is closed.
        all.sort_by_key(|operation| operation.path.ends_with("/cycles/renew"));
        let mut done = 0;
        // What is made can be read after; what is removed is of an account of its own.
        for method in [Method::POST, Method::PUT, Method::PATCH, Method::GET, Method::DELETE] {
            for operation in all.iter().filter(|operation| operation.method == method) {
                if method == Method::DELETE {
                    stage = Stage::new(&setting, &format!("Own {done}")).await;
                }
                let asked = stage.ask(operation);
                let reply = match method {
                    Method::POST => repeated(&stage, operation, &asked).await,
                    _ => operation.call(&stage.caller(operation), &asked).await,
                };
                if judge.judge(operation, &asked, &reply) && method == Method::DELETE {
                    removed(&stage, operation, &asked, &reply).await;
                }
                done += 1;
            }
        }
        assert!(judge.broken.is_empty(), "\n{}", judge.broken);
        assert_eq!(done + 1, operations().len());
        // The body is the credential.
        let token = logout::logout_token(&setting.gateway, &stage.ada, json!({}));
        let logout = logout::log_out(&setting.gateway, &token).await;
        assert_eq!(logout.ok(), json!({"status": "ok"}));
    }
}
