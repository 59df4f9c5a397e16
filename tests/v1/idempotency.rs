//! `Idempotency-Key`: a POST that is sent again does nothing again.

use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::common::{Client, Gateway, Reply, backends};
use crate::{at_mid_january, refusal, text};

const ORGS: &str = "/v1/copilot/orgs";

async fn post(client: &Client, path: &str, key: &str, body: Value) -> Reply {
    client.send(client.request(Method::POST, path).header("idempotency-key", key).json(&body)).await
}

async fn count(client: &Client) -> usize {
    client.get("/v1/console/orgs").await.ok()["items"].as_array().unwrap().len()
        + client.get(ORGS).await.ok()["items"].as_array().unwrap().len()
}

#[tokio::test]
async fn a_repeated_post_is_answered_and_not_done_again() {
    for backend in backends().await {
        let (gateway, clock) = at_mid_january(backend).await;
        let account = gateway.account("Acme").await;
        let admin = gateway.as_account_admin(&account);
        let before = count(&admin).await;

        let first = post(&admin, ORGS, "k", json!({"name": "Research"})).await;
        assert!(first.headers.get("idempotency-replayed").is_none());
        let etag = first.header("etag").to_owned();
        let first = first.ok();
        clock.advance(Duration::from_secs(23 * 3600));
        let admin = gateway.as_account_admin(&account);
        let again = post(&admin, ORGS, "k", json!({"name": "Research"})).await;
        assert_eq!((again.header("idempotency-replayed"), again.header("etag")), ("true", &*etag));
        assert_eq!(again.ok(), first);
        assert_eq!(count(&admin).await, before + 1);

        let other = post(&admin, ORGS, "k", json!({"name": "Science"})).await;
        refusal(&other, 422, "idempotency_key_reused");
        let grants = "/v1/copilot/models/grants";
        let grant = || json!({"model_name": "m", "scope_type": "account", "scope_id": account});
        post(&admin, grants, "g", grant()).await.ok();
        let other = post(&admin, &format!("{grants}?dry_run=false"), "g", grant()).await;
        refusal(&other, 422, "idempotency_key_reused");
        assert_eq!(count(&admin).await, before + 1);

        clock.advance(Duration::from_secs(3600));
        let admin = gateway.as_account_admin(&account);
        let forgotten = post(&admin, ORGS, "k", json!({"name": "Science"})).await;
        assert_eq!(forgotten.ok()["item"]["name"], "Science");
    }
}

#[tokio::test]
async fn a_key_belongs_to_account_caller_and_route() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let (own, other) = (gateway.account("Own").await, gateway.account("Other").await);
        let body = || json!({"name": "Research"});
        let first = text(&post(&gateway.as_account_admin(&own), ORGS, "k", body()).await.ok()["item"]["id"]);
        let of_other = post(&gateway.as_account_admin(&other), ORGS, "k", body()).await.ok();
        assert_ne!(text(&of_other["item"]["id"]), first);
        let elsewhere = post(&gateway.as_account_admin(&own), "/v1/console/orgs", "k", body()).await.ok();
        assert_eq!(elsewhere["item"]["domain"], "console");
        let by_another = post(&gateway.operator_for(&own), ORGS, "k", body()).await;
        refusal(&by_another, 409, "already_exists");
        let operator = gateway.operator();
        let new = || json!({"account_name": "New"});
        let made = post(&operator, "/v1/accounts", "k", new()).await.ok();
        assert_eq!(post(&operator, "/v1/accounts", "k", new()).await.ok(), made);
    }
}

#[tokio::test]
async fn a_refused_post_may_be_repeated_with_the_same_key() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let admin = gateway.as_account_admin(&account);
        let taken = gateway.org(&account, "copilot", "Research").await;
        refusal(&post(&admin, ORGS, "k", json!({"name": "Research"})).await, 409, "already_exists");
        admin.delete(&format!("{ORGS}/{taken}")).await.ok();
        assert_eq!(post(&admin, ORGS, "k", json!({"name": "Research"})).await.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn concurrent_posts_with_one_key_do_one_thing() {
    for backend in backends().await {
        let gateway = Gateway::start(backend.clone()).await;
        let account = gateway.account("Acme").await;
        // On PostgreSQL a second gateway knows nothing of what the first is about to do.
        let beside = match backend {
            crate::common::Backend::Sqlite => None,
            crate::common::Backend::Postgres(_) => Some(gateway.beside(|_| {}).await),
        };
        let url = |number: usize| match &beside {
            Some(beside) if number % 2 == 1 => beside.url().to_owned(),
            _ => gateway.url().to_owned(),
        };
        let admin = gateway.as_account_admin(&account);
        let calls = (0..12).map(|number| {
            let client = admin.at(&url(number));
            tokio::spawn(async move { post(&client, ORGS, "k", json!({"name": "Research"})).await })
        });
        let mut made = Vec::new();
        for call in calls.collect::<Vec<_>>() {
            let reply = call.await.unwrap();
            match reply.status {
                StatusCode::OK => made.push(reply.json()),
                // Another one is being answered; or, at the other gateway, was answered meanwhile.
                _ => assert!(matches!(&*reply.code(), "request_in_progress" | "already_exists"), "{}", reply.text()),
            }
        }
        assert!(!made.is_empty());
        assert!(made.iter().all(|answer| *answer == made[0]), "{made:#?}");
        assert_eq!(post(&admin, ORGS, "k", json!({"name": "Research"})).await.ok(), made[0]);
    }
}

#[tokio::test]
async fn keys_are_short_text() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let admin = gateway.as_account_admin(&account);
        for key in ["", "a\tb", &"k".repeat(256)] {
            refusal(&post(&admin, ORGS, key, json!({"name": "a"})).await, 400, "invalid_idempotency_key");
        }
        assert_eq!(post(&admin, ORGS, &"k".repeat(255), json!({"name": "a"})).await.status, StatusCode::OK);
    }
}
