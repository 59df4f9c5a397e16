//! Opaque tokens.

use std::time::Duration;

use alchemi::identity::{Flaw, IdentityConfig, IdentityError, ScopesSource, Source};
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use base64::Engine as _;
use serde_json::{Value, json};

use crate::issuer::{NOW, PROJECT, TestIssuer, identity};

fn asking(issuer: &TestIssuer) -> IdentityConfig {
    IdentityConfig {
        introspection_client_id: Some("client@alchemi".to_owned()),
        introspection_client_secret: Some("s3cret:+".into()),
        ..issuer.config()
    }
}

fn active(issuer: &TestIssuer, token: &str, changes: Value) {
    let mut answer = issuer.claims(changes);
    answer["active"] = json!(true);
    answer["token_type"] = json!("Bearer");
    issuer.knobs.answers.lock().unwrap().insert(token.to_owned(), answer);
}

#[tokio::test]
async fn an_active_token_is_believed_for_a_minute() {
    let issuer = TestIssuer::start().await;
    active(&issuer, "opaque-1", json!({"scope": "openid", "jti": null}));
    let (identity, clock) = identity(&asking(&issuer));
    let verified = identity.verify("opaque-1").await.unwrap();
    assert_eq!((verified.source(), verified.token_id()), (Source::Introspection, None));
    assert!(identity.verify_cached("opaque-1").unwrap().is_ok());
    let (headers, form) = issuer.knobs.last_introspection.lock().unwrap().clone().unwrap();
    let expected = base64::engine::general_purpose::STANDARD.encode("client%40alchemi:s3cret%3A%2B");
    assert_eq!(headers["authorization"], format!("Basic {expected}"));
    assert_eq!(form["token"], "opaque-1");

    clock.advance(Duration::from_secs(60));
    issuer.knobs.answers.lock().unwrap().clear();
    assert_eq!(identity.verify("opaque-1").await.unwrap_err(), Flaw::Inactive.into());
    assert_eq!(identity.verify("opaque-1").await.unwrap_err(), Flaw::Inactive.into());
    assert_eq!((issuer.introspections(), identity.counts().introspections), (2, 2));
}

#[tokio::test]
async fn many_callers_ask_once() {
    let issuer = TestIssuer::start().await;
    active(&issuer, "opaque", json!({}));
    let (identity, _) = identity(&asking(&issuer));
    for verdict in futures_util::future::join_all((0..100).map(|_| identity.verify("opaque"))).await {
        verdict.unwrap();
    }
    assert_eq!(issuer.introspections(), 1);
}

#[tokio::test]
async fn answers_are_checked_like_tokens() {
    let issuer = TestIssuer::start().await;
    let (identity, _) = identity(&IdentityConfig { allow_delegation: false, ..asking(&issuer) });
    for (n, (changes, error)) in [
        (json!({"iss": "https://evil.example"}), IdentityError::Invalid(Flaw::Issuer)),
        (json!({"aud": ["another"]}), Flaw::Audience.into()),
        (json!({"sub": null}), Flaw::Claim("sub").into()),
        (json!({"exp": NOW - 60}), IdentityError::Expired),
        (json!({"exp": "never"}), Flaw::Claim("exp").into()),
        (json!({"nbf": NOW + 60}), Flaw::NotYetValid.into()),
        (json!({"act": {}}), Flaw::Delegated.into()),
    ]
    .into_iter()
    .enumerate()
    {
        let token = format!("opaque-{n}");
        active(&issuer, &token, changes.clone());
        assert_eq!(identity.verify(&token).await.unwrap_err(), error, "{changes}");
    }
    active(&issuer, "pat", json!({"exp": null, "iat": null, "nbf": null}));
    identity.verify("pat").await.unwrap();
}

#[tokio::test]
async fn an_answer_ends_with_the_token() {
    let issuer = TestIssuer::start().await;
    active(&issuer, "opaque", json!({"exp": NOW + 20}));
    let (identity, clock) = identity(&asking(&issuer));
    identity.verify("opaque").await.unwrap();
    clock.advance(Duration::from_secs(20));
    assert!(identity.verify_cached("opaque").is_none());
}

#[tokio::test]
async fn a_failing_issuer_is_a_503_and_is_asked_again() {
    let issuer = TestIssuer::start().await;
    active(&issuer, "opaque", json!({}));
    let (identity, _) = identity(&asking(&issuer));
    *issuer.knobs.introspection_down.lock().unwrap() = true;
    assert_eq!(identity.verify("opaque").await.unwrap_err(), IdentityError::Unavailable);
    *issuer.knobs.introspection_down.lock().unwrap() = false;
    identity.verify("opaque").await.unwrap();
}

#[tokio::test]
async fn without_a_client_opaque_tokens_are_refused_with_the_reason() {
    let issuer = TestIssuer::start().await;
    let (identity, _) = issuer.identity();
    let error = identity.verify("opaque").await.unwrap_err();
    assert_eq!(error, Flaw::OpaqueNotAccepted.into());
    assert!(error.to_string().contains("introspection is not configured"));
    let (identity, _) = self::identity(&asking(&issuer));
    for odd in ["two words", "a\nb", "===", "é", "a=b"] {
        assert_eq!(identity.verify(odd).await.unwrap_err(), Flaw::Malformed.into());
    }
    assert_eq!(issuer.introspections(), 0);
}

#[tokio::test]
async fn scopes_may_come_from_introspection_of_signed_tokens() {
    let issuer = TestIssuer::start().await;
    let config = IdentityConfig { scopes_source: ScopesSource::Introspection, ..asking(&issuer) };
    let (identity, _) = identity(&config);
    let token = issuer.token(json!({"scope": "forged"}));
    active(&issuer, &token, json!({"scope": "openid console:admin"}));
    let verified = identity.verify(&token).await.unwrap();
    assert_eq!(
        (verified.scopes(), verified.source()),
        (&["openid".to_owned(), "console:admin".to_owned()][..], Source::Signature)
    );
    let revoked = issuer.token(json!({"jti": "revoked"}));
    assert_eq!(identity.verify(&revoked).await.unwrap_err(), Flaw::Inactive.into());
}

#[tokio::test]
async fn each_issuer_is_asked_about_its_own_tokens_alone() {
    let (first, second) = (TestIssuer::start().await, TestIssuer::start().await);
    let mut of_second = second.config().issuers.remove(0);
    of_second.introspection_client_id = Some("other".to_owned());
    let issuers = [first.config().issuers.remove(0), of_second.clone()].to_vec();
    let config = IdentityConfig { issuers, scopes_source: ScopesSource::Introspection, ..asking(&first) };
    assert!(config.check().unwrap_err().to_string().contains("needs introspection_client_secret"));
    let nobody =
        IdentityConfig { issuers: [&first, &second].map(|i| i.config().issuers.remove(0)).to_vec(), ..config.clone() };
    assert!(nobody.check().unwrap_err().to_string().contains("those of each"));
    of_second.introspection_client_secret = Some("hidden".into());
    let config = IdentityConfig { issuers: [first.config().issuers.remove(0), of_second].to_vec(), ..config };
    let (identity, _) = identity(&config);
    for (issuer, scope) in [(&first, "one"), (&second, "two")] {
        let token = issuer.token(json!({"jti": scope}));
        active(issuer, &token, json!({"scope": scope}));
        assert_eq!(identity.verify(&token).await.unwrap().scopes(), [scope]);
    }
    assert_eq!((first.introspections(), second.introspections()), (1, 1));
    let (headers, _) = second.knobs.last_introspection.lock().unwrap().clone().unwrap();
    let expected = base64::engine::general_purpose::STANDARD.encode("other:hidden");
    assert_eq!(headers["authorization"], format!("Basic {expected}"));

    // Said twice for the first, it is not clear which holds.
    let mut twice = config.clone();
    twice.issuers[0].introspection_client_id = Some("again".to_owned());
    twice.issuers[0].introspection_client_secret = Some("hidden".into());
    assert!(twice.check().unwrap_err().to_string().contains("set one of both"));

    // What does not say whose it is goes to the first, and to nobody else.
    active(&second, "opaque", json!({}));
    assert_eq!(identity.verify("opaque").await.unwrap_err(), Flaw::Inactive.into());
    assert_eq!((first.introspections(), second.introspections()), (2, 1));
    assert_eq!(identity.probe_introspection().await, Some(Ok(())));
    *second.knobs.introspection_down.lock().unwrap() = true;
    assert!(identity.probe_introspection().await.unwrap().is_err());
}

#[tokio::test]
async fn an_opaque_token_is_shown_to_nobody_but_the_first_issuer() {
    let (first, second) = (TestIssuer::start().await, TestIssuer::start().await);
    let mut issuers = [&first, &second].map(|issuer| issuer.config().issuers.remove(0)).to_vec();
    issuers[1].introspection_client_id = Some("other".to_owned());
    issuers[1].introspection_client_secret = Some("hidden".into());
    let (identity, _) = identity(&IdentityConfig { issuers, ..first.config() });
    active(&second, "opaque", json!({}));
    assert_eq!(identity.verify("opaque").await.unwrap_err(), Flaw::OpaqueNotAccepted.into());
    assert_eq!(second.introspections(), 0);
}

#[tokio::test]
async fn a_key_file_signs_the_client_assertion() {
    let issuer = TestIssuer::start().await;
    active(&issuer, "opaque", json!({}));
    let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
    let der: Pkcs8V1Der<'_> = pair.as_der().unwrap();
    let der = base64::engine::general_purpose::STANDARD.encode(der.as_ref());
    let lines: Vec<&str> = der.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n"));
    let file = tempfile::NamedTempFile::new().unwrap();
    let write = |kind: &str| {
        let content = json!({"type": kind, "keyId": "key-1", "key": pem, "appId": "app", "clientId": "client@alchemi"});
        std::fs::write(file.path(), content.to_string()).unwrap();
    };
    write("application");
    let config = IdentityConfig { introspection_key_file: Some(file.path().to_owned()), ..issuer.config() };
    let (identity, _) = identity(&config);
    identity.verify("opaque").await.unwrap();
    let (headers, form) = issuer.knobs.last_introspection.lock().unwrap().clone().unwrap();
    assert!(!headers.contains_key("authorization"));
    assert_eq!(form["client_assertion_type"], "urn:ietf:params:oauth:client-assertion-type:jwt-bearer");
    let key = crate::issuer::Signer::Rsa(pair).jwk("key-1");
    let key = alchemi::identity::jwks::Key::import(key.as_object().unwrap()).unwrap();
    let jws = alchemi::identity::jwt::Jws::parse(&form["client_assertion"]).unwrap();
    jws.verify(&key).unwrap();
    let claims: Value = serde_json::from_slice(jws.unverified_payload()).unwrap();
    assert_eq!(
        claims,
        json!({"iss": "client@alchemi", "sub": "client@alchemi", "aud": issuer.url, "iat": NOW, "exp": NOW + 60})
    );

    write("serviceaccount");
    let error =
        alchemi::identity::Identity::new(&config, std::sync::Arc::new(alchemi::clock::SystemClock)).unwrap_err();
    assert!(error.to_string().contains("application"), "{error}");
    assert!(!PROJECT.is_empty() && !format!("{config:?}").contains("BEGIN"));
}
