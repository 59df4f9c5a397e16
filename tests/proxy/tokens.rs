//! Forged, stale and malformed credentials.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Method;
use jsonwebtoken::Algorithm;
use serde_json::{Map, Value, json};

use crate::common::{Client, Person};
use crate::{Stage, chat};

fn part(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

/// Tokens that must not be believed, each with what is wrong with it, and the code of the refusal.
fn forgeries(stage: &Stage) -> Vec<(&'static str, String, &'static str)> {
    let gateway = &stage.gateway;
    let person = Person::of(&stage.account, "mallory").role("account_admin");
    let good = gateway.token(&person);
    let [header, payload, signature] = good.split('.').collect::<Vec<_>>()[..] else { panic!("three parts") };
    let read = |part: &str| -> Value { serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap() };
    let (head, claims) = (read(header), read(payload));
    let sign = |change: &dyn Fn(&mut Map<String, Value>)| {
        let mut claims = gateway.claims(&person);
        change(&mut claims);
        gateway.issuer.sign(Algorithm::RS256, &claims).unwrap()
    };
    let set = |name: &'static str, value: Value| sign(&move |claims| _ = claims.insert(name.to_owned(), value.clone()));
    let headed = |change: Value| {
        let mut head = head.clone();
        head.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        format!("{}.{payload}.{signature}", part(&head))
    };
    let now = claims["iat"].as_i64().unwrap();
    let mut promoted = claims.clone();
    promoted["alchemi:account_id"] = json!("another");
    let mut wrong = URL_SAFE_NO_PAD.decode(signature).unwrap();
    wrong[7] ^= 1;
    let symmetric = jsonwebtoken::encode(
        &jsonwebtoken::Header {
            kid: head["kid"].as_str().map(str::to_owned),
            ..jsonwebtoken::Header::new(Algorithm::HS256)
        },
        &claims,
        &jsonwebtoken::EncodingKey::from_secret(b"the issuer's public key, as a secret"),
    );
    let invalid = "token_invalid";
    vec![
        ("no algorithm", format!("{}.{payload}.", part(&json!({"alg": "none", "kid": head["kid"]}))), invalid),
        ("a public key as a secret", symmetric.unwrap(), invalid),
        ("another algorithm", headed(json!({"alg": "ES256"})), invalid),
        ("an unknown key", headed(json!({"kid": "999"})), invalid),
        ("a key of its own", headed(json!({"jwk": {"kty": "oct", "k": "AAAA"}})), invalid),
        ("a critical header", headed(json!({"crit": ["exp"]})), invalid),
        ("another claim than was signed", format!("{header}.{}.{signature}", part(&promoted)), invalid),
        ("another signature", format!("{header}.{payload}.{}", URL_SAFE_NO_PAD.encode(wrong)), invalid),
        ("no signature", format!("{header}.{payload}."), invalid),
        ("half a signature", format!("{header}.{payload}.{}", &signature[..40]), invalid),
        ("another issuer", set("iss", json!("http://127.0.0.1:1")), invalid),
        ("a list of issuers", set("iss", json!([gateway.issuer.url()])), invalid),
        ("another audience", set("aud", json!(["somebody-else"])), invalid),
        ("an end in the past", set("exp", json!(now - 3600)), "token_expired"),
        ("no end", sign(&|claims| _ = claims.remove("exp")), invalid),
        ("an end as text", set("exp", json!("tomorrow")), invalid),
        ("a start in the future", set("nbf", json!(now + 1_800)), invalid),
        ("an issue in the future", set("iat", json!(now + 1_800)), invalid),
        ("a life without end", set("exp", json!(now + 100 * 86_400)), invalid),
        ("no subject", sign(&|claims| _ = claims.remove("sub")), invalid),
        ("a number for a subject", set("sub", json!(7)), invalid),
        ("an ID token", set("nonce", json!("n")), invalid),
        ("a logout token", set("events", json!({"http://schemas.openid.net/event/backchannel-logout": {}})), invalid),
        ("an encrypted token", format!("{header}.{payload}.{signature}.{payload}.{payload}"), invalid),
        ("two parts", format!("{header}.{payload}"), invalid),
        ("empty parts", "..".to_owned(), invalid),
        ("no base64", "a+b.c/d.e=f".to_owned(), invalid),
        ("padding", format!("{header}=.{payload}.{signature}"), invalid),
        ("no JSON", format!("{}.{payload}.{signature}", URL_SAFE_NO_PAD.encode("{")), invalid),
        ("too much", format!("{header}.{payload}.{}", "A".repeat(20_000)), invalid),
        ("something opaque", "an-opaque-token-that-nobody-issued".to_owned(), invalid),
        ("almost the operator's key", "operator-key-of-the-tests-0123456788".to_owned(), invalid),
    ]
}

#[tokio::test]
async fn what_is_not_to_be_believed_is_401_in_every_plane() {
    let stage = Stage::set().await;
    for (what, token, code) in forgeries(&stage) {
        let caller = stage.gateway.anybody().with_token(&token);
        let messages = json!({"model": "claude-sonnet-4-5", "max_tokens": 9, "messages": []});
        let control = caller.get("/v1/me/context").await;
        let chat = caller.post("/v1/chat/completions", chat("gpt-4o-mini")).await;
        let messages = caller.post("/v1/messages", messages).await;
        let ungoverned = caller.get("/key/info").await;
        for reply in [&control, &chat, &messages, &ungoverned] {
            assert_eq!((reply.status.as_u16(), reply.code().as_str()), (401, code), "{what}: {}", reply.text());
            let challenge = reply.header("www-authenticate");
            let challenged = challenge.starts_with("Bearer error=\"invalid_token\", error_description=\"");
            assert!(challenged, "{what}: {challenge}");
            assert!(!reply.text().contains(&token), "{what}: the token is repeated");
        }
        for problem in [&control, &ungoverned] {
            assert_eq!(problem.header("content-type"), "application/problem+json", "{what}");
        }
        assert_eq!(chat.json()["error"]["type"], "authentication_error", "{what}");
        assert_eq!(
            (&messages.json()["type"], &messages.json()["error"]["type"]),
            (&json!("error"), &json!("authentication_error"))
        );
    }
    assert_eq!(stage.gateway.forwarded(), []);
}

#[tokio::test]
async fn no_credential_or_one_of_another_kind() {
    let stage = Stage::set().await;
    let anybody = stage.gateway.anybody();
    let send = async |name: Option<(&str, &str)>, path: &str, method: Method| {
        let request = anybody.request(method, path);
        let request = name.into_iter().fold(request, |request, (name, value)| request.header(name, value));
        anybody.send(request.json(&chat("gpt-4o-mini"))).await
    };
    let good = stage.ada.token();
    let basic = format!("Basic {good}");
    let cookie = format!("token={good}");
    for header in
        [None, Some(("authorization", basic.as_str())), Some(("cookie", &cookie)), Some(("authorization", good))]
    {
        for path in ["/v1/chat/completions", "/v1/copilot/teams", "/key/info"] {
            let reply = send(header, path, Method::POST).await;
            assert_eq!((reply.status.as_u16(), reply.code().as_str()), (401, "token_missing"), "{}", reply.text());
            assert_eq!(reply.header("www-authenticate"), "Bearer");
        }
    }
    // Where SDKs put a token.
    for name in ["x-api-key", "api-key"] {
        assert_eq!(send(Some((name, good)), "/v1/chat/completions", Method::POST).await.status, 200);
    }
    let both = stage.ada.request(Method::POST, "/v1/chat/completions").header("x-api-key", good);
    assert_eq!(stage.ada.send(both.json(&chat("gpt-4o-mini"))).await.status, 200);
}

#[tokio::test]
async fn a_revoked_token_ends_at_once() {
    for backend in crate::common::backends().await {
        let stage = Stage::on(backend).await;
        let ask = async |client: &Client| client.post("/v1/chat/completions", chat("gpt-4o-mini")).await;
        ask(&stage.ada).await.ok();
        let body = json!({"issuer": stage.gateway.issuer.url(), "subject": "ada"});
        stage.gateway.operator().post("/v1/auth/revocations", body).await.ok();
        let reply = ask(&stage.ada).await;
        assert_eq!((reply.status.as_u16(), reply.code().as_str()), (401, "token_revoked"), "{}", reply.text());
        assert_eq!(stage.gateway.forwarded().len(), 1);
    }
}
