//! Logout tokens.

use std::time::Duration;

use alchemi::clock::Timestamp;
use alchemi::identity::{Flaw, IdentityConfig, IdentityError, logout_refused};
use alchemi::model::revocations::Logout;
use serde_json::{Value, json};

use crate::issuer::{NOW, RSA, TestIssuer, identity};

fn logout(issuer: &TestIssuer, changes: Value) -> String {
    let mut claims = json!({
        "events": {"http://schemas.openid.net/event/backchannel-logout": {}}, "sid": "V1_1", "exp": NOW + 900,
    });
    claims.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    issuer.token(claims)
}

#[tokio::test]
async fn a_logout_token_says_whom_it_ends_and_is_never_an_access_token() {
    let issuer = TestIssuer::start().await;
    let (identity, _) = issuer.identity();
    let token = logout(&issuer, json!({}));
    let expected = Logout {
        issuer: issuer.url.clone(),
        token_id: "V2_296398617516703746-at_296398617516769282".to_owned(),
        subject: Some("286399320075272196".to_owned()),
        session: Some("V1_1".to_owned()),
        issued_before: Timestamp::from_secs(NOW + 1),
        until: Timestamp::from_secs(NOW + 1 + 86_400 + 30),
    };
    assert_eq!(identity.verify_logout(&token).await.unwrap(), expected);
    assert_eq!(identity.verify(&token).await.unwrap_err(), Flaw::NotAnAccessToken.into());
    for changes in [
        json!({"events": null}),
        json!({"events": {"other": {}}}),
        json!({"events": {"http://schemas.openid.net/event/backchannel-logout": true}}),
        json!({"nonce": "n"}),
        json!({"sub": null, "sid": null}),
        json!({"sub": 7}),
        json!({"sid": ""}),
        json!({"jti": null}),
        json!({"iat": null}),
        json!({"aud": "another"}),
        json!({"exp": NOW - 60}),
        json!({"exp": null}),
        // Longer than any token is believed.
        json!({"iat": NOW - 86_400}),
        json!({"iat": NOW + 60}),
        json!({"iss": "https://login.example.org"}),
    ] {
        let error = identity.verify_logout(&logout(&issuer, changes.clone())).await.unwrap_err();
        let problem = logout_refused(error);
        assert_eq!((problem.status(), problem.code()), (400, "logout_token_invalid"), "{changes}");
        assert_eq!(problem.members()["error"].get(), "\"invalid_request\"");
    }
    assert_eq!(logout_refused(IdentityError::Unavailable).status(), 503);
}

/// The `typ` that the standard recommends, those that are as good as none, and others (section 2.4).
#[tokio::test]
async fn a_logout_token_may_say_that_it_is_one_and_nothing_else() {
    let issuer = TestIssuer::start().await;
    let (identity, _) = issuer.identity();
    let claims = issuer.claims(json!({"events": {"http://schemas.openid.net/event/backchannel-logout": {}}}));
    let typed = |typ: Value| {
        let mut header = json!({"alg": "RS256", "kid": "rsa", "typ": typ});
        if typ.is_null() {
            header.as_object_mut().unwrap().remove("typ");
        }
        RSA.sign_text(&header.to_string(), &claims.to_string())
    };
    for typ in [json!("logout+jwt"), json!("application/logout+JWT"), json!("JWT"), json!(null)] {
        identity.verify_logout(&typed(typ.clone())).await.unwrap_or_else(|error| panic!("{typ}: {error}"));
    }
    for typ in [json!("at+jwt"), json!("application/at+jwt"), json!("secevent+jwt"), json!("dpop+jwt"), json!(7)] {
        let error = identity.verify_logout(&typed(typ.clone())).await.unwrap_err();
        assert_eq!(logout_refused(error).status(), 400, "{typ}");
    }
    // And it is never an access token, not even to those who take its claims for one.
    let bare =
        RSA.sign_text(r#"{"alg":"RS256","kid":"rsa","typ":"logout+jwt"}"#, &issuer.claims(json!({})).to_string());
    assert_eq!(identity.verify(&bare).await.unwrap_err(), Flaw::NotAnAccessToken.into());
}

/// Zitadel's logout tokens have the client alone as their audience.
#[tokio::test]
async fn a_logout_token_is_for_one_of_our_clients() {
    let issuer = TestIssuer::start().await;
    let token = logout(&issuer, json!({"aud": "310716@gateway"}));
    let refused = issuer.identity().0.verify_logout(&token).await.unwrap_err();
    assert_eq!(refused, Flaw::Audience.into());
    assert!(logout_refused(refused).detail().contains("ZITADEL_LOGOUT_CLIENT_IDS"));
    let clients = vec!["310716@gateway".to_owned()];
    let config = IdentityConfig { logout_client_ids: clients, ..issuer.config() };
    identity(&config).0.verify_logout(&token).await.unwrap();
    // It lets nobody in whose token is for that client alone.
    let access = issuer.token(json!({"aud": "310716@gateway"}));
    assert_eq!(identity(&config).0.verify(&access).await.unwrap_err(), Flaw::Audience.into());
}

/// Signed access tokens name no session: a logout of a session alone would end nothing, and is not taken for done.
#[tokio::test]
async fn a_session_alone_is_refused_where_no_token_names_one() {
    let issuer = TestIssuer::start().await;
    let (identity, _) = issuer.identity();
    let refused = identity.verify_logout(&logout(&issuer, json!({"sub": null}))).await.unwrap_err();
    assert_eq!(refused, Flaw::SessionAlone.into());
    let problem = logout_refused(refused);
    assert_eq!((problem.status(), problem.code()), (400, "logout_token_invalid"));
    assert!(problem.detail().contains("put `sub` into its logout tokens"), "{}", problem.detail());
    let pending = logout_refused(IdentityError::KeyPending { retry_after: 7 });
    assert_eq!((pending.status(), pending.headers()["retry-after"].to_str().unwrap()), (503, "7"));
}

#[tokio::test]
async fn a_session_without_a_subject_ends_what_names_it() {
    let issuer = TestIssuer::start().await;
    let config = IdentityConfig {
        introspection_client_id: Some("gateway".to_owned()),
        introspection_client_secret: Some("secret".into()),
        ..issuer.config()
    };
    let (identity, clock) = identity(&config);
    for (token, session) in [("one", json!("V1_1")), ("two", json!("V1_2"))] {
        let mut answer = issuer.claims(json!({"sid": session}));
        answer["active"] = json!(true);
        issuer.knobs.answers.lock().unwrap().insert(token.to_owned(), answer);
        identity.verify(token).await.unwrap();
    }
    clock.advance(Duration::from_secs(1));
    let ended = identity.verify_logout(&logout(&issuer, json!({"sub": null}))).await.unwrap();
    assert_eq!((&ended.subject, ended.session.as_deref()), (&None, Some("V1_1")));
    identity.revocations().insert_logout(&ended);
    assert_eq!(identity.verify_cached("one"), Some(Err(IdentityError::Revoked)));
    identity.verify("two").await.unwrap();
    identity.verify(&issuer.token(json!({}))).await.unwrap();
    assert!(identity.revocations().replace(&identity.revocations().seen(), Vec::new(), vec![ended]));
    assert_eq!(identity.verify("one").await.unwrap_err(), IdentityError::Revoked);
}
