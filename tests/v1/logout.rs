//! Back-channel logout: the identity provider ends a session, and every gateway refuses its tokens.

use std::time::{Duration, Instant};

use http::Method;
use jsonwebtoken::Algorithm;
use serde_json::{Value, json};

use crate::common::gateway::PATIENCE;
use crate::common::{Backend, Client, Gateway, Person, Reply, backends};
use crate::{at_mid_january, refusal};

const PATH: &str = "/v1/auth/zitadel/backchannel-logout";

/// A logout token of `person`, with changes; `null` takes a claim out.
pub(crate) fn logout_token(gateway: &Gateway, person: &Person, changes: Value) -> String {
    let mut claims = gateway.claims(person);
    claims.insert("events".to_owned(), json!({"http://schemas.openid.net/event/backchannel-logout": {}}));
    claims.insert("sid".to_owned(), json!("V1_7"));
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(claims.remove(name)),
            value => drop(claims.insert(name.clone(), value.clone())),
        }
    }
    gateway.issuer.sign(Algorithm::RS256, &claims).unwrap()
}

async fn send(gateway: &Gateway, form: &[(&str, &str)]) -> Reply {
    let anybody = gateway.anybody();
    anybody.send(anybody.request(Method::POST, PATH).form(form)).await
}

pub(crate) async fn log_out(gateway: &Gateway, token: &str) -> Reply {
    send(gateway, &[("logout_token", token)]).await
}

async fn admitted(client: &Client) -> bool {
    client.get("/v1/me/models").await.status.is_success()
}

#[tokio::test]
async fn a_logout_ends_the_tokens_of_the_subject_at_once() {
    for backend in backends().await {
        let (gateway, clock) = at_mid_january(backend).await;
        let account = gateway.account("Acme").await;
        let (eve, bob) = (Person::of(&account, "eve"), Person::of(&account, "bob"));
        let (phone, laptop, other) = (gateway.sign_in(&eve), gateway.sign_in(&eve), gateway.sign_in(&bob));
        for client in [&phone, &laptop, &other] {
            assert!(admitted(client).await);
        }
        clock.advance(Duration::from_secs(10));
        let token = logout_token(&gateway, &eve, json!({}));
        let form = [("state", "ignored"), ("logout_token", token.as_str())];
        let reply = send(&gateway, &form).await;
        assert_eq!(reply.header("cache-control"), "no-store");
        assert_eq!(reply.ok(), json!({"status": "ok"}));
        for client in [&phone, &laptop] {
            refusal(&client.get("/v1/me/models").await, 401, "token_revoked");
        }
        assert!(admitted(&other).await);

        let replayed = refusal(&log_out(&gateway, &token).await, 400, "logout_token_replayed");
        assert_eq!(replayed["error"], "invalid_request");
        clock.advance(Duration::from_secs(2));
        assert!(admitted(&gateway.sign_in(&eve)).await, "who signs in again is let in");

        let chain = gateway.operator().get("/v1/accounts/platform/audit").await.ok();
        let entry = &chain["items"][0];
        assert_eq!((&entry["table_name"], &entry["action"]), (&json!("Alchemi_LogoutTable"), &json!("create")));
        assert_eq!(
            chain["items"].as_array().unwrap().iter().filter(|e| e["table_name"] == "Alchemi_LogoutTable").count(),
            1
        );
        assert_eq!(gateway.operator().get("/v1/accounts/platform/audit/verify").await.ok()["item"]["valid"], true);
    }
}

#[tokio::test]
async fn what_is_no_logout_token_ends_nothing() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let eve = Person::of(&account, "eve");
        let signed_in = gateway.sign_in(&eve);
        let good = logout_token(&gateway, &eve, json!({}));
        let forged = format!("{}AAAA", &good[..good.len() - 4]);
        for token in [
            gateway.token(&eve),
            forged,
            "not.a.token".to_owned(),
            String::new(),
            logout_token(&gateway, &eve, json!({"events": {}})),
            logout_token(&gateway, &eve, json!({"nonce": "n"})),
            logout_token(&gateway, &eve, json!({"jti": null})),
            logout_token(&gateway, &eve, json!({"sub": null, "sid": null})),
            // Signed access tokens name no session.
            logout_token(&gateway, &eve, json!({"sub": null})),
            logout_token(&gateway, &eve, json!({"aud": ["somebody-else"]})),
            logout_token(&gateway, &eve, json!({"iss": "https://login.example.org"})),
        ] {
            let body = refusal(&log_out(&gateway, &token).await, 400, "logout_token_invalid");
            assert_eq!(body["error"], "invalid_request", "{body}");
            assert!(token.is_empty() || !body.to_string().contains(&token), "the token is repeated");
        }
        refusal(&send(&gateway, &[("token", &good)]).await, 400, "logout_token_invalid");
        refusal(
            &send(&gateway, &[("logout_token", &good), ("logout_token", &good)]).await,
            400,
            "logout_token_invalid",
        );
        let json = gateway.anybody().post(PATH, json!({"logout_token": good})).await;
        refusal(&json, 415, "unsupported_media_type");
        refusal(&gateway.anybody().get(PATH).await, 405, "method_not_allowed");
        let huge = "a".repeat(1 << 21);
        refusal(&send(&gateway, &[("logout_token", &huge)]).await, 413, "body_too_large");
        assert!(admitted(&signed_in).await);
        log_out(&gateway, &good).await.ok();
        assert!(!admitted(&signed_in).await);
    }
}

/// One token that arrives many times at once is taken once.
#[tokio::test]
async fn of_many_at_once_one_is_taken() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let token = logout_token(&gateway, &Person::of(&account, "eve"), json!({}));
        let form = [("logout_token", token.as_str())];
        let replies = futures_util::future::join_all((0..16).map(|_| send(&gateway, &form))).await;
        let taken = replies.iter().filter(|reply| reply.status.is_success()).count();
        assert_eq!(taken, 1);
        assert!(replies.iter().all(|r| r.status.is_success() || r.code() == "logout_token_replayed"));
    }
}

/// A logout is kept while a token that it ends may live, and over a restart.
#[tokio::test]
async fn a_restart_forgets_no_logout() {
    for backend in backends().await {
        let mut gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let eve = Person::of(&account, "eve");
        let signed_in = gateway.sign_in(&eve);
        log_out(&gateway, &logout_token(&gateway, &eve, json!({}))).await.ok();
        gateway.stop().await;
        let again = gateway.beside(|_| {}).await;
        refusal(&signed_in.at(again.url()).get("/v1/me/models").await, 401, "token_revoked");
    }
}

/// The change feed carries a logout to the other gateways, long before they read the list anew, each minute.
#[tokio::test]
async fn a_logout_reaches_another_gateway_by_the_feed() {
    for backend in backends().await {
        if backend == Backend::Sqlite {
            continue; // One process at a time.
        }
        let gateway = Gateway::start(backend).await;
        let beside = gateway.beside(|_| {}).await;
        let account = gateway.account("Acme").await;
        let eve = Person::of(&account, "eve");
        let there = gateway.sign_in(&eve).at(beside.url());
        assert!(admitted(&there).await);
        log_out(&gateway, &logout_token(&gateway, &eve, json!({}))).await.ok();
        let since = Instant::now();
        while admitted(&there).await {
            assert!(since.elapsed() < PATIENCE, "still let in");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        refusal(&there.get("/v1/me/models").await, 401, "token_revoked");
        // A replay is known there too.
        let token = logout_token(&gateway, &eve, json!({"jti": "one"}));
        log_out(&gateway, &token).await.ok();
        let anybody = gateway.anybody().at(beside.url());
        let replayed = anybody.send(anybody.request(Method::POST, PATH).form(&[("logout_token", &token)])).await;
        refusal(&replayed, 400, "logout_token_replayed");
    }
}
