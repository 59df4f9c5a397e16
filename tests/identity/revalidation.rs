//! Signed tokens that the issuer is asked about again.

use std::sync::Arc;
use std::time::Duration;

use alchemi::identity::{Identity, IdentityConfig, IdentityError, RevalidateConfig};
use serde_json::json;

use crate::issuer::{NOW, TestIssuer, identity};

fn asking(issuer: &TestIssuer, probability: f64) -> IdentityConfig {
    IdentityConfig {
        introspection_client_id: Some("gateway".to_owned()),
        introspection_client_secret: Some("secret".into()),
        revalidate: RevalidateConfig { probability, min_age_seconds: 300 },
        ..issuer.config()
    }
}

fn active(issuer: &TestIssuer, token: &str) {
    let mut answer = issuer.claims(json!({}));
    answer["active"] = json!(true);
    issuer.knobs.answers.lock().unwrap().insert(token.to_owned(), answer);
}

/// Until the issuer has been asked so often about signed tokens, and has answered.
async fn asked(identity: &Identity, issuer: &TestIssuer, times: u64) {
    let enough = async {
        while identity.counts().revalidations < times || (issuer.introspections() as u64) < times {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), enough).await.unwrap();
}

/// The verdict as soon as it is another one than yes.
async fn ended(identity: &Identity, token: &str) -> IdentityError {
    let refused = async {
        loop {
            match identity.verify(token).await {
                Ok(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                Err(error) => return error,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), refused).await.unwrap()
}

#[tokio::test]
async fn an_old_token_that_the_issuer_has_ended_stops() {
    let issuer = TestIssuer::start().await;
    let (identity, clock) = identity(&asking(&issuer, 1.0));
    let token = issuer.token(json!({}));
    active(&issuer, &token);
    for _ in 0..10 {
        identity.verify(&token).await.unwrap();
    }
    clock.advance(Duration::from_secs(299));
    identity.verify(&token).await.unwrap();
    assert_eq!(identity.counts().revalidations, 0, "it is too young");

    clock.advance(Duration::from_secs(1));
    for _ in 0..10 {
        identity.verify(&token).await.unwrap();
    }
    asked(&identity, &issuer, 1).await;
    identity.verify(&token).await.unwrap();
    assert_eq!(identity.counts().revalidations, 1, "then it rests");

    issuer.knobs.answers.lock().unwrap().clear();
    clock.advance(Duration::from_secs(300));
    identity.verify(&token).await.expect("the request that asks does not wait for the answer");
    // The answer before may still be under way, and be taken for this one's: then there is another time.
    let refused = async {
        loop {
            for _ in 0..100 {
                match identity.verify(&token).await {
                    Ok(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                    Err(error) => return error,
                }
            }
            clock.advance(Duration::from_secs(300));
        }
    };
    assert_eq!(tokio::time::timeout(Duration::from_secs(30), refused).await.unwrap(), IdentityError::Revoked);
    assert_eq!(identity.verify(&token).await.unwrap_err(), IdentityError::Revoked);
    assert_eq!(identity.counts().revalidations_ended, 1);
    identity.verify(&issuer.token(json!({"jti": "another"}))).await.unwrap();
}

#[tokio::test]
async fn a_token_that_comes_old_is_asked_about_at_its_first_use() {
    let issuer = TestIssuer::start().await;
    let (identity, _) = identity(&asking(&issuer, 1.0));
    let token = issuer.token(json!({"iat": NOW - 3600, "nbf": NOW - 3600}));
    identity.verify(&token).await.unwrap();
    assert_eq!(ended(&identity, &token).await, IdentityError::Revoked);
}

/// Only the first issuer can be asked, and it knows its own tokens alone.
#[tokio::test]
async fn a_token_of_another_issuer_is_not_asked_about() {
    let (issuer, second) = (TestIssuer::start().await, TestIssuer::start().await);
    let mut config = asking(&issuer, 1.0);
    config.issuers.extend(second.config().issuers);
    let (identity, clock) = identity(&config);
    let token = second.token(json!({}));
    clock.advance(Duration::from_secs(300));
    for _ in 0..3 {
        identity.verify(&token).await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!((identity.counts().revalidations, issuer.introspections()), (0, 0));
}

#[tokio::test]
async fn an_issuer_that_does_not_answer_ends_nothing() {
    let issuer = TestIssuer::start().await;
    let (identity, clock) = identity(&asking(&issuer, 1.0));
    let token = issuer.token(json!({}));
    *issuer.knobs.introspection_down.lock().unwrap() = true;
    clock.advance(Duration::from_secs(300));
    identity.verify(&token).await.unwrap();
    asked(&identity, &issuer, 1).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    identity.verify(&token).await.unwrap();
    assert_eq!(identity.counts().revalidations_ended, 0);
}

/// However slow the issuer and however many the tokens, few questions are open, and nobody waits for them.
#[tokio::test]
async fn questions_at_a_time_are_bounded_and_nobody_waits_for_them() {
    let issuer = TestIssuer::start().await;
    let (identity, clock) = identity(&asking(&issuer, 1.0));
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    *issuer.knobs.introspection_gate.lock().unwrap() = Some(Arc::clone(&gate));
    let tokens: Vec<String> = (0..100).map(|n| issuer.token(json!({"jti": n.to_string()}))).collect();
    tokens.iter().for_each(|token| active(&issuer, token));
    clock.advance(Duration::from_secs(300));
    for token in &tokens {
        identity.verify(token).await.unwrap();
    }
    asked(&identity, &issuer, 8).await;
    for token in &tokens {
        identity.verify(token).await.unwrap();
    }
    assert_eq!((identity.counts().revalidations, issuer.introspections()), (8, 8));
    gate.add_permits(1_000);
    // Those that were passed over have their turn, and nobody has two.
    for round in 0..2_000 {
        for token in &tokens {
            identity.verify(token).await.unwrap();
        }
        if identity.counts().revalidations == 100 {
            break;
        }
        assert!(round < 1_999, "{} of 100", identity.counts().revalidations);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    asked(&identity, &issuer, 100).await;
    assert_eq!(identity.counts().revalidations_ended, 0);
}

#[tokio::test]
async fn a_share_of_the_uses_asks() {
    let issuer = TestIssuer::start().await;
    let (identity, clock) = identity(&asking(&issuer, 0.25));
    let tokens: Vec<String> = (0..400).map(|n| issuer.token(json!({"jti": n.to_string()}))).collect();
    tokens.iter().for_each(|token| active(&issuer, token));
    clock.advance(Duration::from_secs(300));
    for token in &tokens {
        identity.verify(token).await.unwrap();
        // One at a time, so that none is left out because too many are under way.
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        asked(&identity, &issuer, identity.counts().revalidations).await;
    }
    let so_far = identity.counts().revalidations;
    assert!((60..=140).contains(&so_far), "{so_far} of 400");
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let with = |probability| IdentityConfig {
        revalidate: RevalidateConfig { probability, min_age_seconds: 300 },
        project_id: Some("1".to_owned()),
        issuers: vec![alchemi::identity::IssuerConfig::at("https://login.example.com")],
        ..IdentityConfig::default()
    };
    assert!(with(0.1).check().unwrap_err().to_string().contains("revalidate needs introspection_client_id"));
    for probability in [-0.1, 1.1, f64::NAN] {
        assert!(with(probability).check().unwrap_err().to_string().contains("0 to 1"));
    }
    assert_eq!(with(0.0).check(), Ok(()));
}
