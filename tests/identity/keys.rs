//! Key sets: hygiene, rotation, outages.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use alchemi::identity::jwks::{KeyFlaw, KeySet, KeySetFlaw};
use alchemi::identity::{FetchError, Flaw, IdentityConfig, IdentityError, IssuerConfig};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::issuer::{EC, ED, Mode, NOW, RSA, RSA_OTHER, TestIssuer, b64, identity};

fn with(mut jwk: Value, changes: Value) -> Value {
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(jwk.as_object_mut().unwrap().remove(name)),
            value => jwk[name] = value.clone(),
        }
    }
    jwk
}

#[test]
fn keys_that_cannot_be_trusted_are_dropped_and_the_others_stay() {
    let small_modulus = json!({"n": b64(vec![0xAB; 128])});
    let cases = [
        (with(RSA.jwk("k"), small_modulus), KeyFlaw::Weak),
        (with(RSA.jwk("k"), json!({"n": b64([&[0; 200][..], &[0xAB; 128]].concat())})), KeyFlaw::Weak),
        (with(RSA.jwk("k"), json!({"n": b64(vec![0xAB; 1025])})), KeyFlaw::Weak),
        (with(RSA.jwk("k"), json!({"e": "AQ"})), KeyFlaw::Weak),
        (with(RSA.jwk("k"), json!({"e": "Aw"})), KeyFlaw::Weak),
        (with(RSA.jwk("k"), json!({"e": b64([1, 0, 2])})), KeyFlaw::Weak),
        (with(RSA.jwk("k"), json!({"e": ""})), KeyFlaw::Weak),
        (with(RSA.jwk("k"), json!({"n": 5})), KeyFlaw::Malformed),
        (with(RSA.jwk("k"), json!({"n": "a b"})), KeyFlaw::Malformed),
        (with(RSA.jwk("k"), json!({"use": "enc"})), KeyFlaw::Use),
        (with(RSA.jwk("k"), json!({"key_ops": ["encrypt"]})), KeyFlaw::Use),
        (with(RSA.jwk("k"), json!({"key_ops": "verify"})), KeyFlaw::Use),
        (with(RSA.jwk("k"), json!({"alg": "PS256"})), KeyFlaw::Algorithm),
        (with(RSA.jwk("k"), json!({"alg": "ES256"})), KeyFlaw::Algorithm),
        (with(RSA.jwk("k"), json!({"alg": "HS256"})), KeyFlaw::Algorithm),
        (with(RSA.jwk("k"), json!({"d": "AQAB"})), KeyFlaw::Private),
        (with(RSA.jwk("k"), json!({"kid": null})), KeyFlaw::NoKid),
        (with(RSA.jwk("k"), json!({"kid": ""})), KeyFlaw::NoKid),
        (with(RSA.jwk("k"), json!({"kid": 7})), KeyFlaw::NoKid),
        (with(RSA.jwk("k"), json!({"kid": "k".repeat(257)})), KeyFlaw::NoKid),
        (with(EC.jwk("k"), json!({"alg": "ES384"})), KeyFlaw::Algorithm),
        (with(EC.jwk("k"), json!({"crv": "P-384"})), KeyFlaw::Malformed),
        (with(EC.jwk("k"), json!({"crv": "P-521", "alg": null})), KeyFlaw::KeyType),
        (with(EC.jwk("k"), json!({"crv": "secp256k1", "alg": null})), KeyFlaw::KeyType),
        (with(EC.jwk("k"), json!({"x": b64([7; 32])})), KeyFlaw::Malformed),
        (with(ED.jwk("k"), json!({"crv": "X25519"})), KeyFlaw::KeyType),
        (with(ED.jwk("k"), json!({"x": b64([7; 31])})), KeyFlaw::Malformed),
        (json!({"kty": "oct", "kid": "k", "k": "c2VjcmV0"}), KeyFlaw::KeyType),
        (json!({"kty": "AKP", "kid": "k"}), KeyFlaw::KeyType),
        (json!("k"), KeyFlaw::Malformed),
    ];
    for (jwk, flaw) in cases {
        let set = KeySet::parse(json!({"keys": [jwk, EC.jwk("good")]}).to_string().as_bytes()).unwrap();
        assert_eq!((set.len(), set.dropped().get(&flaw)), (1, Some(&1)), "{jwk}");
        assert!(set.get("good").is_some() && set.get("k").is_none());
        let alone = KeySet::parse(json!({"keys": [jwk]}).to_string().as_bytes());
        assert_eq!(alone.unwrap_err(), KeySetFlaw::NoUsableKey);
    }
}

#[test]
fn a_kid_that_names_two_keys_names_none() {
    let document = json!({"keys": [RSA.jwk("twice"), EC.jwk("twice"), ED.jwk("once")]});
    let set = KeySet::parse(document.to_string().as_bytes()).unwrap();
    assert!(set.get("twice").is_none() && set.get("once").is_some());
    assert_eq!(set.dropped().get(&KeyFlaw::DuplicateKid), Some(&2));
}

#[test]
fn documents_that_are_no_key_set_are_refused() {
    let many: Vec<Value> = (0..65).map(|n| ED.jwk(&n.to_string())).collect();
    let large = format!(r#"{{"keys":[{}],"x":"{}"}}"#, ED.jwk("k"), "x".repeat(256 * 1024));
    for document in
        ["", "{}", "[]", r#"{"keys":{}}"#, r#"{"keys":[],"keys":[]}"#, &json!({"keys": many}).to_string(), &large]
    {
        assert_eq!(KeySet::parse(document.as_bytes()).unwrap_err(), KeySetFlaw::NotAKeySet);
    }
    assert_eq!(KeySet::parse(br#"{"keys":[]}"#).unwrap_err(), KeySetFlaw::NoUsableKey);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_unknown_kids_cost_one_fetch_per_cooldown() {
    let issuer = TestIssuer::start().await;
    let (identity, clock) = issuer.identity();
    let good = issuer.token(json!({}));
    identity.verify(&good).await.unwrap();
    let payload = b64(issuer.claims(json!({})).to_string());
    let token = |n: usize| {
        format!("{}.{payload}.{}", b64(json!({"alg": "RS256", "kid": n.to_string()}).to_string()), b64([0; 256]))
    };
    for round in 0..2 {
        let calls = (0..10_000).map(|n| {
            let (identity, token) = (identity.clone(), token(round * 10_000 + n));
            async move { identity.verify(&token).await }
        });
        for verdict in futures_util::future::join_all(calls).await {
            assert_eq!(verdict.unwrap_err(), Flaw::UnknownKey.into());
        }
        assert!(identity.verify_cached(&good).unwrap().is_ok());
        assert_eq!(issuer.fetches(), 1 + round);
        clock.advance(Duration::from_secs(30));
    }
    assert_eq!(identity.counts().signature_checks, 1);
}

#[tokio::test]
async fn a_new_key_is_accepted_after_one_fetch_and_a_removed_one_stops() {
    let issuer = TestIssuer::start().await;
    let (identity, clock) = issuer.identity();
    let old = issuer.token(json!({}));
    identity.verify(&old).await.unwrap();

    issuer.publish(vec![RSA.jwk("rsa"), RSA_OTHER.jwk("next")]);
    let new = RSA_OTHER.sign("next", &issuer.claims(json!({})));
    clock.advance(Duration::from_secs(30));
    for token in [&new, &old] {
        identity.verify(token).await.unwrap();
    }
    assert_eq!(issuer.fetches(), 2);

    issuer.publish(vec![RSA_OTHER.jwk("next")]);
    clock.advance(Duration::from_secs(100));
    identity.verify(&old).await.expect("the bound is the age of the keys");
    clock.advance(Duration::from_secs(200));
    assert!(identity.verify_cached(&old).is_none());
    assert_eq!(identity.verify(&old).await.unwrap_err(), Flaw::UnknownKey.into());
    identity.verify(&new).await.unwrap();
    assert_eq!(issuer.fetches(), 3);
}

#[tokio::test]
async fn a_key_that_is_used_as_soon_as_it_is_published_is_found() {
    let issuer = TestIssuer::start().await;
    let (identity, clock) = issuer.identity();
    identity.verify(&issuer.token(json!({}))).await.unwrap();
    clock.advance(Duration::from_secs(2));
    issuer.publish(vec![RSA.jwk("rsa"), RSA_OTHER.jwk("next")]);
    let tokens: Vec<String> = (0..50).map(|n| RSA_OTHER.sign("next", &issuer.claims(json!({"n": n})))).collect();
    for verdict in futures_util::future::join_all(tokens.iter().map(|token| identity.verify(token))).await {
        verdict.unwrap();
    }
    assert_eq!(issuer.fetches(), 2);
    // The next search has to wait, whatever is searched for.
    clock.advance(Duration::from_secs(29));
    let unknown = RSA.sign("unknown", &issuer.claims(json!({})));
    assert_eq!(identity.verify(&unknown).await.unwrap_err(), IdentityError::KeyPending { retry_after: 1 });
    assert_eq!(issuer.fetches(), 2);
}

/// Made-up names can make a new key wait for the next search, but nobody hears that a good token is wrong.
#[tokio::test]
async fn a_new_key_behind_made_up_ones_is_pending_and_never_wrong() {
    let issuer = TestIssuer::start().await;
    let (identity, clock) = issuer.identity();
    let known = issuer.token(json!({}));
    identity.verify(&known).await.unwrap();
    clock.advance(Duration::from_secs(2));
    let made_up = |n: usize| RSA.sign(&format!("made-up-{n}"), &issuer.claims(json!({"n": n})));
    let first = made_up(0);
    assert_eq!(identity.verify(&first).await.unwrap_err(), Flaw::UnknownKey.into(), "it was searched for");
    assert_eq!(issuer.fetches(), 2);

    clock.advance(Duration::from_secs(10));
    issuer.publish(vec![RSA.jwk("rsa"), RSA_OTHER.jwk("next")]);
    let new = RSA_OTHER.sign("next", &issuer.claims(json!({})));
    for n in 1..100 {
        assert_eq!(identity.verify(&made_up(n)).await.unwrap_err(), IdentityError::KeyPending { retry_after: 20 });
    }
    assert_eq!(identity.verify(&new).await.unwrap_err(), IdentityError::KeyPending { retry_after: 20 });
    assert_eq!(identity.verify(&first).await.unwrap_err(), Flaw::UnknownKey.into(), "this one is known to be wrong");
    identity.verify(&known).await.unwrap();
    identity.verify(&issuer.token(json!({"n": 1}))).await.expect("known keys know no difference");
    assert_eq!(issuer.fetches(), 2);

    // Whoever asks first when the time is over, the new key is found.
    clock.advance(Duration::from_secs(20));
    assert_eq!(identity.verify(&made_up(100)).await.unwrap_err(), Flaw::UnknownKey.into());
    identity.verify(&new).await.unwrap();
    assert_eq!(issuer.fetches(), 3);
}

#[tokio::test]
async fn a_withdrawn_key_is_wrong_without_a_search() {
    let issuer = TestIssuer::start().await;
    let (identity, clock) = issuer.identity();
    let tokens = [issuer.token(json!({})), EC.sign("ec", &issuer.claims(json!({})))];
    for token in &tokens {
        identity.verify(token).await.unwrap();
    }
    issuer.publish(vec![ED.jwk("ed")]);
    clock.advance(Duration::from_secs(300));
    identity.verify(&ED.sign("ed", &issuer.claims(json!({})))).await.unwrap();
    clock.advance(Duration::from_secs(5));
    for token in &tokens {
        assert_eq!(identity.verify(token).await.unwrap_err(), Flaw::UnknownKey.into());
    }
    assert_eq!(issuer.fetches(), 2);
}

#[tokio::test]
async fn another_key_under_the_same_kid_ends_cached_tokens() {
    let issuer = TestIssuer::start().await;
    let (identity, clock) = issuer.identity();
    let old = issuer.token(json!({}));
    identity.verify(&old).await.unwrap();
    issuer.publish(vec![RSA_OTHER.jwk("rsa")]);
    clock.advance(Duration::from_secs(300));
    assert_eq!(identity.verify(&old).await.unwrap_err(), Flaw::Signature.into());
    identity.verify(&RSA_OTHER.sign("rsa", &issuer.claims(json!({})))).await.unwrap();
}

#[tokio::test]
async fn an_outage_is_bridged_for_known_keys_and_then_fails_closed() {
    let issuer = TestIssuer::start().await;
    let (identity, clock) = issuer.identity();
    let cached = issuer.token(json!({}));
    identity.verify(&cached).await.unwrap();
    let outages =
        [Mode::Status(500), Mode::Bytes(b"<html>".to_vec()), Mode::Bytes(br#"{"keys":[]}"#.to_vec()), Mode::Redirect];
    let mut last_error = None;
    for (minute, mode) in outages.into_iter().enumerate() {
        issuer.mode(mode);
        for _ in 0..2 {
            clock.advance(Duration::from_secs(300));
            identity.verify(&cached).await.unwrap();
            identity.verify(&issuer.token(json!({"minute": minute}))).await.expect("known key, new token");
            let unknown = RSA.sign("unknown", &issuer.claims(json!({})));
            assert_eq!(identity.verify(&unknown).await.unwrap_err(), IdentityError::Unavailable);
        }
        let status = identity.status().remove(0);
        assert_eq!(status.keys, 4);
        assert!(status.stale_since.is_some() && status.last_error.is_some() && status.last_error != last_error);
        last_error = status.last_error;
    }
    clock.advance(Duration::from_secs(3600 - 8 * 300));
    assert_eq!(identity.verify(&cached).await.unwrap_err(), IdentityError::Unavailable);
    assert_eq!(identity.status()[0].keys, 0);

    issuer.mode(Mode::Serve);
    assert_eq!(
        identity.verify(&cached).await.unwrap_err(),
        IdentityError::Unavailable,
        "the cooldown holds after failures too"
    );
    clock.advance(Duration::from_secs(30));
    identity.verify(&cached).await.unwrap();
    let status = identity.status().remove(0);
    assert_eq!((status.last_error, status.stale_since), (None, None));
}

#[tokio::test]
async fn a_fetch_outlives_the_caller_who_caused_it() {
    let issuer = TestIssuer::start().await;
    let gate = Arc::new(Notify::new());
    issuer.mode(Mode::Gate(Arc::clone(&gate)));
    let (identity, _) = issuer.identity();
    let token = issuer.token(json!({}));
    let impatient = tokio::spawn({
        let (identity, token) = (identity.clone(), token.clone());
        async move { identity.verify(&token).await }
    });
    while issuer.fetches() == 0 {
        tokio::task::yield_now().await;
    }
    impatient.abort();
    assert!(impatient.await.unwrap_err().is_cancelled());
    gate.notify_one();
    identity.verify(&token).await.unwrap();
    assert_eq!(issuer.fetches(), 1);
}

#[tokio::test]
async fn waiting_callers_share_one_fetch() {
    let issuer = TestIssuer::start().await;
    let (identity, _) = issuer.identity();
    let tokens: Vec<String> = (0..50).map(|n| ED.sign("ed", &issuer.claims(json!({"n": n})))).collect();
    for verdict in futures_util::future::join_all(tokens.iter().map(|token| identity.verify(token))).await {
        verdict.unwrap();
    }
    assert_eq!((issuer.fetches(), identity.counts().key_fetches), (1, 1));
}

#[tokio::test]
async fn a_clock_that_goes_back_neither_panics_nor_freezes_the_keys() {
    let issuer = TestIssuer::start().await;
    let (identity, clock) = issuer.identity();
    let token = issuer.token(json!({"iat": NOW - 7200, "nbf": NOW - 7200}));
    identity.verify(&token).await.unwrap();
    clock.set(alchemi::clock::Timestamp::from_secs(NOW - 3600));
    identity.verify(&token).await.unwrap();
    let fetched_again = async {
        while issuer.fetches() < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), fetched_again).await.unwrap();
    identity.verify(&token).await.unwrap();
}

#[tokio::test]
async fn discovery_must_speak_for_the_issuer() {
    let issuer = TestIssuer::start().await;
    let document = issuer.knobs.discovery.lock().unwrap().clone().unwrap();
    for (changes, error) in [
        (json!({"issuer": "https://other.example"}), FetchError::IssuerMismatch),
        (json!({"issuer": format!("{}/", issuer.url)}), FetchError::IssuerMismatch),
        (json!({"jwks_uri": "http://keys.example/keys"}), FetchError::Insecure),
        (json!({"jwks_uri": null}), FetchError::Malformed),
    ] {
        *issuer.knobs.discovery.lock().unwrap() = Some(with(document.clone(), changes));
        let (identity, _) = issuer.identity();
        assert_eq!(identity.verify(&issuer.token(json!({}))).await.unwrap_err(), IdentityError::Unavailable);
        assert_eq!(identity.status()[0].last_error, Some(error));
    }
    assert_eq!(issuer.fetches(), 0);
    *issuer.knobs.discovery.lock().unwrap() = None;
    let config = IdentityConfig {
        issuers: vec![IssuerConfig {
            jwks_uri: Some(format!("{}/oauth/v2/keys", issuer.url)),
            ..IssuerConfig::at(&issuer.url)
        }],
        ..issuer.config()
    };
    identity(&config).0.verify(&issuer.token(json!({}))).await.unwrap();
}

#[tokio::test]
async fn an_internal_address_is_asked_in_the_name_of_the_issuer() {
    let issuer = TestIssuer::start().await;
    let public = "https://login.example.com";
    *issuer.knobs.discovery.lock().unwrap() =
        Some(json!({"issuer": public, "jwks_uri": format!("{public}/oauth/v2/keys")}));
    let config = IdentityConfig {
        issuers: vec![IssuerConfig { internal_url: Some(issuer.url.clone()), ..IssuerConfig::at(public) }],
        ..issuer.config()
    };
    identity(&config).0.verify(&issuer.token(json!({"iss": public}))).await.unwrap();
    assert_eq!(*issuer.knobs.hosts.lock().unwrap(), ["login.example.com"]);
    assert_eq!(issuer.knobs.fetches.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_unreachable_issuer_is_a_503() {
    let issuer = TestIssuer::start().await;
    let token = issuer.token(json!({}));
    let config = issuer.config();
    drop(issuer);
    let (identity, _) = identity(&config);
    identity.warm().await;
    assert_eq!(identity.verify(&token).await.unwrap_err(), IdentityError::Unavailable);
    let status = identity.status().remove(0);
    assert_eq!((status.keys, status.last_success, status.last_error), (0, None, Some(FetchError::Unreachable)));
}
