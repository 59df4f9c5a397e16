//! What is a valid access token, and every way in which a token is not.

use std::sync::Arc;
use std::time::Duration;

use alchemi::clock::{ManualClock, Timestamp};
use alchemi::identity::{Flaw, Identity, IdentityConfig, IdentityError, IssuerConfig, Revocation, Source};
use alchemi::problem::Problem;
use aws_lc_rs::hmac;
use serde_json::{Value, json};

use crate::issuer::{EC, EC384, ED, NOW, PROJECT, RSA, RSA_OTHER, Signer, TestIssuer, b64, identity};

const HEADER: &str = r#"{"alg":"RS256","kid":"rsa","typ":"JWT"}"#;

async fn refusal(identity: &Identity, token: &str) -> IdentityError {
    let cached = identity.verify_cached(token);
    let error = identity.verify(token).await.unwrap_err();
    assert!(cached.is_none_or(|verdict| verdict == Err(error)));
    assert_eq!(identity.verify(token).await.unwrap_err(), error, "the second verdict is the first");
    error
}

#[tokio::test]
async fn every_accepted_algorithm_verifies() {
    let issuer = TestIssuer::start().await;
    issuer.publish(vec![
        {
            let mut any = RSA.jwk("any");
            any.as_object_mut().unwrap().remove("alg");
            any
        },
        RSA.jwk("rsa"),
        EC.jwk("ec"),
        EC384.jwk("ec384"),
        ED.jwk("ed"),
    ]);
    let (identity, _) = issuer.identity();
    let signers: [(&str, &Signer, &str); 7] = [
        ("RS256", &RSA, "rsa"),
        ("RS256", &RSA, "any"),
        ("RS384", &RSA, "any"),
        ("RS512", &RSA, "any"),
        ("ES256", &EC, "ec"),
        ("ES384", &EC384, "ec384"),
        ("EdDSA", &ED, "ed"),
    ];
    for (alg, signer, kid) in signers {
        for typ in [json!("JWT"), json!("at+jwt"), json!("application/AT+JWT"), Value::Null] {
            let mut header = json!({"alg": alg, "kid": kid});
            if !typ.is_null() {
                header["typ"] = typ;
            }
            let token = signer.sign_text(&header.to_string(), &issuer.claims(json!({})).to_string());
            let verified = identity.verify(&token).await.unwrap();
            assert_eq!(&**verified.subject(), "286399320075272196");
            assert_eq!(verified.source(), Source::Signature);
        }
    }
    assert_eq!(issuer.fetches(), 1);
}

#[tokio::test]
async fn claims_are_read_as_zitadel_writes_them() {
    let issuer = TestIssuer::start().await;
    let (identity, _) = issuer.identity();
    let roles = format!("urn:zitadel:iam:org:project:{PROJECT}:roles");
    let token = issuer.token(json!({
        "aud": PROJECT,
        "urn:zitadel:iam:org:project:roles": {"generic": {"A": "a.localhost"}},
        "urn:zitadel:iam:org:project:999:roles": {"other_project": {"A": "a.localhost"}},
        roles: {"admin": {"B": "b.localhost"}, "member": {"A": "a.localhost", "B": "b.localhost"}, "flat": "x"},
        "urn:zitadel:iam:user:resourceowner:id": "A",
        "account_id": "acc-2",
        "alchemi:account_id": "acc-1",
        "email": "a@example.com", "email_verified": true,
        "product_domains": "console, copilot",
        "scope": "*",
        "act": {"sub": "impersonator"},
    }));
    let verified = identity.verify(&token).await.unwrap();
    assert_eq!(&**verified.issuer(), issuer.url);
    assert_eq!(verified.client_id(), Some("client-1"));
    assert_eq!(verified.token_id(), Some("V2_296398617516703746-at_296398617516769282"));
    assert_eq!(verified.issued_at(), Some(Timestamp::from_secs(NOW)));
    assert_eq!(verified.expires_at(), Timestamp::from_secs(NOW + 43_200));
    assert_eq!(verified.email().map(|e| &**e), Some("a@example.com"));
    assert_eq!(verified.actor(), Some("impersonator"));
    assert_eq!(verified.resource_owner(), Some("A"));
    assert_eq!(verified.account_candidates(), ["acc-1", "acc-2", "A"]);
    assert_eq!(verified.product_domains().unwrap(), ["console", "copilot"]);
    assert!(verified.scopes().is_empty(), "a claim is no source of scopes unless configured");
    let roles: Vec<_> = verified.roles().iter().map(|(role, orgs)| (role.as_str(), orgs.join(","))).collect();
    assert_eq!(roles, [("admin", "B".to_owned()), ("member", "A,B".to_owned())]);
    assert!(!format!("{verified:?} {identity:?}").contains("example.com"));

    let token = issuer.token(json!({"email": "a@example.com", "email_verified": "true"}));
    assert_eq!(identity.verify(&token).await.unwrap().email(), None);
}

#[tokio::test]
async fn forged_and_malformed_headers_are_refused_without_asking_the_issuer() {
    let issuer = TestIssuer::start().await;
    let (identity, _) = issuer.identity();
    let claims = issuer.claims(json!({})).to_string();
    let header = |extra: &str| format!(r#"{{"alg":"RS256","kid":"rsa","typ":"JWT",{extra}}}"#);
    let with_alg = |alg: &str| format!(r#"{{"alg":{alg},"kid":"rsa"}}"#);
    let long_kid = format!(r#"{{"alg":"RS256","kid":"{}"}}"#, "k".repeat(257));
    let cases: Vec<(String, Flaw)> = vec![
        (with_alg("\"none\""), Flaw::Algorithm),
        (with_alg("\"None\""), Flaw::Algorithm),
        (with_alg("\"nOnE\""), Flaw::Algorithm),
        (with_alg("\"HS256\""), Flaw::Algorithm),
        (with_alg("\"hs256\""), Flaw::Algorithm),
        (with_alg("\"rs256\""), Flaw::Algorithm),
        (with_alg("\"PS256\""), Flaw::Algorithm),
        (with_alg("\"ES512\""), Flaw::Algorithm),
        (with_alg("\"RS1\""), Flaw::Algorithm),
        (with_alg("null"), Flaw::Algorithm),
        (with_alg("7"), Flaw::Algorithm),
        (with_alg("[\"RS256\"]"), Flaw::Algorithm),
        (r#"{"kid":"rsa"}"#.to_owned(), Flaw::Algorithm),
        (header(r#""crit":["exp"]"#), Flaw::Header),
        (header(r#""crit":["b64"],"b64":false"#), Flaw::Header),
        (header(r#""b64":true"#), Flaw::Header),
        (header(r#""zip":"DEF""#), Flaw::Header),
        (header(r#""cty":"JWT""#), Flaw::Header),
        (header(r#""jku":"http://127.0.0.1:1/keys""#), Flaw::Header),
        (header(r#""x5u":"http://127.0.0.1:1/cert""#), Flaw::Header),
        (header(r#""x5c":["AA"]"#), Flaw::Header),
        (header(&format!(r#""jwk":{}"#, RSA_OTHER.jwk("rsa"))), Flaw::Header),
        (header(r#""x":1,"x":2"#), Flaw::Malformed),
        (r#"{"alg":"RS256","alg":"RS256","kid":"rsa"}"#.to_owned(), Flaw::Malformed),
        (r#"{"alg":"RS256","kid":"rsa","kid":"rsa"}"#.to_owned(), Flaw::Malformed),
        (r#"{"alg":"RS256","kid":"rsa","typ":"secevent+jwt"}"#.to_owned(), Flaw::Header),
        (r#"{"alg":"RS256","kid":"rsa","typ":"dpop+jwt"}"#.to_owned(), Flaw::Header),
        (r#"{"alg":"RS256","kid":"rsa","typ":7}"#.to_owned(), Flaw::Header),
        (r#"{"alg":"RS256","kid":null}"#.to_owned(), Flaw::UnknownKey),
        (r#"{"alg":"RS256","kid":5}"#.to_owned(), Flaw::UnknownKey),
        (r#"{"alg":"RS256"}"#.to_owned(), Flaw::UnknownKey),
        (long_kid, Flaw::UnknownKey),
        ("[]".to_owned(), Flaw::Malformed),
        ("{}x".to_owned(), Flaw::Malformed),
        (format!("\u{feff}{HEADER}"), Flaw::Malformed),
        (format!(r#"{{"alg":"RS256","kid":"rsa","x":{}{}}}"#, "[".repeat(2000), "]".repeat(2000)), Flaw::Malformed),
    ];
    for (header, flaw) in cases {
        let token = RSA.sign_text(&header, &claims);
        assert_eq!(refusal(&identity, &token).await, flaw.into(), "{header}");
    }
    assert_eq!((issuer.fetches(), identity.counts().signature_checks), (0, 0));
}

#[tokio::test]
async fn altered_tokens_are_refused() {
    let issuer = TestIssuer::start().await;
    let (identity, _) = issuer.identity();
    let good = issuer.token(json!({}));
    let [header, payload, signature] = <[&str; 3]>::try_from(good.split('.').collect::<Vec<_>>()).unwrap();
    let hmac = |secret: &[u8]| {
        let input = format!("{}.{payload}", b64(r#"{"alg":"HS256","kid":"rsa"}"#));
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), input.as_bytes());
        format!("{input}.{}", b64(tag))
    };
    let jwk = RSA.jwk("rsa");
    let invalid = |flaw: Flaw| IdentityError::Invalid(flaw);
    let cases = [
        (String::new(), IdentityError::Missing),
        ("x".repeat(8193), invalid(Flaw::TooLong)),
        (format!("{good}."), invalid(Flaw::OpaqueNotAccepted)),
        (format!("{good}.a.b"), invalid(Flaw::Encrypted)),
        (format!("{good}="), invalid(Flaw::Malformed)),
        (format!("{good} "), invalid(Flaw::Malformed)),
        (format!("{good}\n"), invalid(Flaw::Malformed)),
        (format!("\u{feff}{good}"), invalid(Flaw::Malformed)),
        (format!(" {header}.{payload}.{signature}"), invalid(Flaw::Malformed)),
        (format!("{header}.{payload}."), invalid(Flaw::Signature)),
        (format!("{header}..{signature}"), invalid(Flaw::Malformed)),
        (format!(".{payload}.{signature}"), invalid(Flaw::Malformed)),
        ("..".to_owned(), invalid(Flaw::Malformed)),
        (format!("{header}.{payload}.{}", b64(vec![0; 256])), invalid(Flaw::Signature)),
        (format!("{header}.{payload}.{}", &signature[..100]), invalid(Flaw::Signature)),
        (format!("{header}.{}.{signature}", b64("{}")), invalid(Flaw::Claim("iss"))),
        (format!("{}.{payload}.{signature}", b64(r#"{"alg":"RS384","kid":"rsa"}"#)), invalid(Flaw::Algorithm)),
        (format!("{}.{payload}.{signature}", b64(r#"{"alg":"ES256","kid":"rsa"}"#)), invalid(Flaw::Algorithm)),
        (hmac(jwk.to_string().as_bytes()), invalid(Flaw::Algorithm)),
        (hmac(jwk["n"].as_str().unwrap().as_bytes()), invalid(Flaw::Algorithm)),
        (hmac(b""), invalid(Flaw::Algorithm)),
        (RSA_OTHER.sign("rsa", &issuer.claims(json!({}))), invalid(Flaw::Signature)),
        (RSA.sign("no-such-key", &issuer.claims(json!({}))), invalid(Flaw::UnknownKey)),
        (RSA.sign("../../dev/null", &issuer.claims(json!({}))), invalid(Flaw::UnknownKey)),
        (RSA.sign("' OR 1=1 --", &issuer.claims(json!({}))), invalid(Flaw::UnknownKey)),
    ];
    for (token, error) in cases {
        assert_eq!(refusal(&identity, &token).await, error, "{token}");
    }
    for zero in [vec![0; 64], vec![0xff; 64]] {
        let input = format!("{}.{payload}", b64(r#"{"alg":"ES256","kid":"ec"}"#));
        let token = format!("{input}.{}", b64(zero));
        assert_eq!(refusal(&identity, &token).await, Flaw::Signature.into());
    }
    identity.verify(&good).await.unwrap();
}

/// Setting the unused low bits of the last character must not give a second spelling.
#[tokio::test]
async fn unused_bits_do_not_make_another_token() {
    let issuer = TestIssuer::start().await;
    let (identity, _) = issuer.identity();
    let good = EC.sign("ec", &issuer.claims(json!({})));
    identity.verify(&good).await.unwrap();
    let last = good.chars().last().unwrap();
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    for other in alphabet.chars().filter(|c| *c != last) {
        let token = format!("{}{other}", &good[..good.len() - 1]);
        assert!(matches!(refusal(&identity, &token).await, IdentityError::Invalid(Flaw::Malformed | Flaw::Signature)));
    }
}

#[tokio::test]
async fn claims_of_the_wrong_kind_are_refused() {
    let issuer = TestIssuer::start().await;
    let (identity, _) = issuer.identity();
    let claim = |name| IdentityError::Invalid(Flaw::Claim(name));
    let invalid = |flaw: Flaw| IdentityError::Invalid(flaw);
    let url = issuer.url.clone();
    let cases = [
        (json!({"iss": null}), claim("iss")),
        (json!({"iss": 5}), claim("iss")),
        (json!({"iss": ["https://evil.example", url]}), claim("iss")),
        (json!({"iss": "https://evil.example"}), invalid(Flaw::Issuer)),
        (json!({"iss": format!("{url}/")}), invalid(Flaw::Issuer)),
        (json!({"iss": url.to_uppercase()}), invalid(Flaw::Issuer)),
        (json!({"aud": null}), claim("aud")),
        (json!({"aud": 5}), claim("aud")),
        (json!({"aud": []}), claim("aud")),
        (json!({"aud": [PROJECT, 5]}), claim("aud")),
        (json!({"aud": {PROJECT: 1}}), claim("aud")),
        (json!({"aud": "another"}), invalid(Flaw::Audience)),
        (json!({"aud": format!("{PROJECT}0")}), invalid(Flaw::Audience)),
        (json!({"sub": null}), claim("sub")),
        (json!({"sub": ""}), claim("sub")),
        (json!({"sub": 7}), claim("sub")),
        (json!({"exp": null}), claim("exp")),
        (json!({"exp": "1800043200"}), claim("exp")),
        (json!({"exp": 1e19}), claim("exp")),
        (json!({"exp": 1_800_000_000.5}), claim("exp")),
        (json!({"exp": i64::MAX}), invalid(Flaw::Lifetime)),
        (json!({"exp": -1}), IdentityError::Expired),
        (json!({"exp": NOW - 30}), IdentityError::Expired),
        (json!({"exp": NOW + 86_401}), invalid(Flaw::Lifetime)),
        (json!({"iat": null}), claim("iat")),
        (json!({"iat": "1800000000"}), claim("iat")),
        (json!({"iat": NOW + 31}), invalid(Flaw::IssuedAhead)),
        (json!({"iat": NOW + 31_536_000, "exp": NOW + 31_536_001}), invalid(Flaw::IssuedAhead)),
        (json!({"nbf": NOW + 31}), invalid(Flaw::NotYetValid)),
        (json!({"nbf": NOW + 3600}), invalid(Flaw::NotYetValid)),
        (json!({"nbf": "soon"}), claim("nbf")),
        (json!({"jti": null}), invalid(Flaw::NotAnAccessToken)),
        (json!({"jti": 3}), claim("jti")),
        (json!({"nonce": "n"}), invalid(Flaw::NotAnAccessToken)),
        (json!({"at_hash": "h"}), invalid(Flaw::NotAnAccessToken)),
        (json!({"c_hash": "h"}), invalid(Flaw::NotAnAccessToken)),
        (json!({"azp": "client-1"}), invalid(Flaw::NotAnAccessToken)),
        (json!({"sid": "V1_1"}), invalid(Flaw::NotAnAccessToken)),
        (json!({"events": {}}), invalid(Flaw::NotAnAccessToken)),
    ];
    for (changes, error) in cases {
        assert_eq!(refusal(&identity, &issuer.token(changes.clone())).await, error, "{changes}");
    }
    for changes in [json!({"exp": NOW - 29}), json!({"iat": NOW + 30}), json!({"nbf": NOW + 30}), json!({"nbf": null})]
    {
        identity.verify(&issuer.token(changes)).await.unwrap();
    }
}

#[tokio::test]
async fn payloads_that_two_readers_could_read_differently_are_refused() {
    let issuer = TestIssuer::start().await;
    let (identity, _) = issuer.identity();
    let claims = issuer.claims(json!({})).to_string();
    let open = claims.strip_suffix('}').unwrap();
    let roles = format!("urn:zitadel:iam:org:project:{PROJECT}:roles");
    for payload in [
        format!(r#"{open},"exp":{}}}"#, NOW + 60),
        format!(r#"{open},"iss":"https://evil.example"}}"#),
        format!(r#"{open},"sub":"other"}}"#),
        format!(r#"{open},"account_id":"a","account_id":"b"}}"#),
        format!(r#"{open},"{roles}":{{"x":{{}},"x":{{"A":"a"}}}}}}"#),
        format!(r#"{open},"exp":1e300}}"#),
        format!(r#"{open},"deep":{}{}}}"#, "[".repeat(2500), "]".repeat(2500)),
        format!("{claims} {{}}"),
        format!("\u{feff}{claims}"),
        format!("[{claims}]"),
        "null".to_owned(),
        String::new(),
    ] {
        let token = RSA.sign_text(HEADER, &payload);
        assert_eq!(refusal(&identity, &token).await, Flaw::Malformed.into(), "{payload}");
    }
    assert_eq!(identity.counts().signature_checks, 0);
}

#[tokio::test]
async fn an_issuer_speaks_only_for_itself() {
    let (a, b) = (TestIssuer::start().await, TestIssuer::start().await);
    b.publish(vec![RSA_OTHER.jwk("rsa")]);
    let config = IdentityConfig {
        issuers: vec![
            IssuerConfig { audiences: vec!["only-a".to_owned()], ..IssuerConfig::at(&a.url) },
            IssuerConfig::at(&b.url),
        ],
        ..a.config()
    };
    let (identity, _) = identity(&config);
    identity.verify(&RSA.sign("rsa", &a.claims(json!({"aud": "only-a"})))).await.unwrap();
    identity.verify(&RSA_OTHER.sign("rsa", &b.claims(json!({})))).await.unwrap();
    let crossed = RSA.sign("rsa", &b.claims(json!({})));
    assert_eq!(refusal(&identity, &crossed).await, Flaw::Signature.into());
    let crossed = RSA_OTHER.sign("rsa", &b.claims(json!({"aud": "only-a"})));
    assert_eq!(refusal(&identity, &crossed).await, Flaw::Audience.into());
}

#[tokio::test]
async fn a_cached_token_ends_with_itself() {
    let issuer = TestIssuer::start().await;
    let (identity, clock) = issuer.identity();
    let token = issuer.token(json!({"exp": NOW + 100}));
    assert!(identity.verify_cached(&token).is_none());
    identity.verify(&token).await.unwrap();
    assert!(identity.verify_cached(&token).unwrap().is_ok());
    let checks = identity.counts().signature_checks;
    identity.verify(&token).await.unwrap();
    assert_eq!((identity.counts().signature_checks, identity.counts().cache_hits), (checks, 2));

    clock.advance(Duration::from_secs(101));
    assert!(identity.verify_cached(&token).is_none());
    identity.verify(&token).await.expect("within the leeway");
    clock.advance(Duration::from_secs(29));
    assert_eq!(identity.verify(&token).await.unwrap_err(), IdentityError::Expired);
    clock.set(Timestamp::from_secs(NOW - 3600));
    assert_eq!(identity.verify(&issuer.token(json!({}))).await.unwrap_err(), Flaw::NotYetValid.into());
}

#[tokio::test]
async fn tokens_with_a_common_prefix_are_different_tokens() {
    let issuer = TestIssuer::start().await;
    let (identity, _) = issuer.identity();
    let one = issuer.token(json!({"zz": "a".repeat(300), "zzz": 1}));
    let two = issuer.token(json!({"zz": "a".repeat(300), "zzz": 2, "sub": "286399320075272196"}));
    assert_eq!(one[..200], two[..200]);
    let forged = format!("{}{}", &one[..one.rfind('.').unwrap()], &two[two.rfind('.').unwrap()..]);
    identity.verify(&one).await.unwrap();
    assert!(identity.verify_cached(&two).is_none());
    assert_eq!(refusal(&identity, &forged).await, Flaw::Signature.into());
    identity.verify(&two).await.unwrap();
}

#[tokio::test]
async fn one_token_means_what_each_configuration_says() {
    let issuer = TestIssuer::start().await;
    let token = issuer.token(json!({}));
    let (ours, _) = issuer.identity();
    ours.verify(&token).await.unwrap();
    let config = IdentityConfig { project_id: Some("999".to_owned()), ..issuer.config() };
    assert_eq!(refusal(&identity(&config).0, &token).await, Flaw::Audience.into());
    let config = IdentityConfig { audiences: vec!["*".to_owned()], ..config };
    identity(&config).0.verify(&token).await.unwrap();
    let config = IdentityConfig { allowed_client_ids: vec!["another".to_owned()], ..issuer.config() };
    assert_eq!(refusal(&identity(&config).0, &token).await, Flaw::Client.into());
    let config = IdentityConfig { allow_delegation: false, ..issuer.config() };
    assert_eq!(refusal(&identity(&config).0, &issuer.token(json!({"act": {}}))).await, Flaw::Delegated.into());
    let (nobody, _) = identity(&IdentityConfig::default());
    assert_eq!(refusal(&nobody, &token).await, Flaw::Issuer.into());
}

#[tokio::test]
async fn revocations_stop_cached_tokens_at_once() {
    let issuer = TestIssuer::start().await;
    let (identity, _) = issuer.identity();
    // Its clock may be ahead by the leeway of 30 seconds: the first of these may be from before.
    let (before, after) = (issuer.token(json!({"iat": NOW + 29})), issuer.token(json!({"iat": NOW + 30})));
    let other = issuer.token(json!({"iat": NOW - 10, "sub": "other"}));
    for token in [&before, &after, &other] {
        identity.verify(token).await.unwrap();
    }
    let revocation = |at| Revocation {
        issuer: issuer.url.clone(),
        subject: "286399320075272196".to_owned(),
        issued_before: Timestamp::from_secs(at),
    };
    identity.revocations().insert(&revocation(NOW));
    identity.revocations().insert(&revocation(NOW - 100));
    assert_eq!(identity.verify_cached(&before), Some(Err(IdentityError::Revoked)));
    assert_eq!(identity.verify(&before).await.unwrap_err(), IdentityError::Revoked);
    let unseen = issuer.token(json!({"iat": NOW - 20}));
    assert_eq!(identity.verify(&unseen).await.unwrap_err(), IdentityError::Revoked);
    for token in [&after, &other] {
        identity.verify(token).await.unwrap();
    }
    let seen = identity.revocations().seen();
    identity.revocations().insert(&revocation(NOW - 50));
    assert!(!identity.revocations().replace(&seen, Vec::new(), Vec::new()), "what was added meanwhile is kept");
    assert_eq!(identity.verify(&before).await.unwrap_err(), IdentityError::Revoked);
    assert!(identity.revocations().replace(&identity.revocations().seen(), Vec::new(), Vec::new()));
    identity.verify(&before).await.unwrap();
}

#[test]
fn refusals_become_problems_that_say_what_to_do() {
    let cases = [
        (IdentityError::Missing, 401, "token_missing"),
        (Flaw::Signature.into(), 401, "token_invalid"),
        (IdentityError::Expired, 401, "token_expired"),
        (IdentityError::Revoked, 401, "token_revoked"),
        (IdentityError::Unavailable, 503, "identity_unavailable"),
        (IdentityError::ClientRefused, 503, "identity_unavailable"),
        (IdentityError::KeyPending { retry_after: 7 }, 503, "identity_unavailable"),
    ];
    for (error, status, code) in cases {
        let problem = Problem::from(error);
        assert_eq!((problem.status(), problem.code()), (status, code));
        let header = if status == 401 { "www-authenticate" } else { "retry-after" };
        assert!(problem.headers().contains_key(header));
    }
    let challenge = Problem::from(IdentityError::Expired);
    let challenge = challenge.headers()["www-authenticate"].to_str().unwrap().to_owned();
    assert!(challenge.starts_with("Bearer error=\"invalid_token\", error_description=\""), "{challenge}");
}

/// Any text gives a verdict, and never the same one as a good token.
#[test]
fn any_text_is_refused_calmly() {
    use proptest::prelude::*;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let config = IdentityConfig {
        issuers: vec![IssuerConfig::at("http://127.0.0.1:1")],
        project_id: Some(PROJECT.to_owned()),
        ..IdentityConfig::default()
    };
    let identity = Identity::new(&config, Arc::new(ManualClock::at(Timestamp::from_secs(NOW)))).unwrap();
    proptest!(ProptestConfig::with_cases(512), |(text in "\\PC{0,200}|[A-Za-z0-9_.-]{0,200}", parts in proptest::collection::vec("\\PC{0,60}", 3))| {
        prop_assert!(runtime.block_on(identity.verify(&text)).is_err());
        let token = format!("{}.{}.{}", b64(&parts[0]), b64(&parts[1]), b64(&parts[2]));
        prop_assert!(runtime.block_on(identity.verify(&token)).is_err());
    });
}
