//! Servers that are no Zitadel, or one that means harm.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use alchemi::clock::SystemClock;
use alchemi::zitadel::{Error, Management, ManagementConfig, Surface};
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use http::{StatusCode, header};
use serde_json::{Value, json};

const SECRET: &str = "the-credential-of-the-operator";

/// A server, and the paths and credentials that it was shown.
struct Stranger {
    url: String,
    asked: Arc<Mutex<Vec<(String, String)>>>,
}

impl Stranger {
    async fn start(answer: impl Fn(&str) -> Response + Clone + Send + Sync + 'static) -> Self {
        let asked: Arc<Mutex<Vec<(String, String)>>> = Arc::default();
        let seen = Arc::clone(&asked);
        let router = Router::new().fallback(async move |request: Request| {
            let shown = request.headers().get(header::AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned());
            let path = request.uri().path().to_owned();
            let answer = answer(&path);
            seen.lock().unwrap().push((path, shown.unwrap_or_default()));
            answer
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, asked }
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

fn at(url: &str) -> ManagementConfig {
    ManagementConfig {
        url: Some(url.to_owned()),
        token: Some(SECRET.into()),
        api: Surface::V2,
        requests_per_second: 5_000,
        timeout_seconds: 60,
        ..ManagementConfig::default()
    }
}

async fn roles(config: &ManagementConfig) -> Result<(), Error> {
    Management::new(config, None, Arc::new(SystemClock)).unwrap().roles("1", "2").await.map(drop)
}

#[tokio::test]
async fn a_credential_stays_with_the_address_that_the_operator_has_set() {
    let elsewhere = Stranger::start(|_| Json(json!({})).into_response()).await;
    for status in [StatusCode::FOUND, StatusCode::TEMPORARY_REDIRECT, StatusCode::PERMANENT_REDIRECT] {
        let to = elsewhere.url.clone();
        let redirects =
            Stranger::start(move |path| (status, [(header::LOCATION, format!("{to}{path}"))]).into_response()).await;
        assert!(roles(&at(&redirects.url)).await.is_err());
        assert_eq!(redirects.asked(), 1, "it is not tried again");
    }
    // Discovery may say where tokens are given, but not on whose machine.
    let to = elsewhere.url.clone();
    let liar = Stranger::start(move |path| match path {
        "/.well-known/openid-configuration" => {
            Json(json!({"issuer": to, "token_endpoint": format!("{to}/here/please")})).into_response()
        }
        _ => (StatusCode::UNAUTHORIZED, Json(json!({"error": "invalid_client"}))).into_response(),
    })
    .await;
    let config = ManagementConfig {
        token: None,
        client_id: Some("me".to_owned()),
        client_secret: Some(SECRET.into()),
        ..at(&liar.url)
    };
    let refused = roles(&config).await.unwrap_err();
    assert_eq!(refused.to_string(), "Zitadel does not accept the credentials of [zitadel] (invalid_client)");
    let asked = liar.asked.lock().unwrap().clone();
    assert_eq!(asked.len(), 2);
    assert!(asked[1].0 == "/here/please" && asked[1].1.starts_with("Basic "), "{asked:?}");
    assert_eq!(elsewhere.asked(), 0);
}

#[tokio::test]
async fn an_answer_is_bounded_in_time_and_in_size_and_never_passed_on() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let begun = Instant::now();
    let impatient = ManagementConfig { timeout_seconds: 1, ..at(&url) };
    assert_eq!(roles(&impatient).await, Err(Error::Timeout));
    assert!(begun.elapsed() < Duration::from_secs(30), "four attempts of a second: {:?}", begun.elapsed());

    // It goes on for as long as somebody reads; so would the next one.
    let endless = Stranger::start(|_| {
        let body = futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b' '; 256 * 1024]));
        Body::from_stream(body).into_response()
    })
    .await;
    let patient = ManagementConfig { timeout_seconds: 60, ..at(&endless.url) };
    assert_eq!(roles(&patient).await, Err(Error::TooLarge));
    assert_eq!(endless.asked(), 1, "it is not fetched again");

    let chatty =
        json!({"code": "permission_denied", "message": SECRET, "details": [{"debug": {"id": SECRET.repeat(9)}}]});
    let pages = [
        (StatusCode::FORBIDDEN, chatty.to_string()),
        (StatusCode::NOT_FOUND, format!("<html>{SECRET}</html>")),
        (StatusCode::INTERNAL_SERVER_ERROR, SECRET.to_owned()),
        (StatusCode::OK, format!("{{\"projectRoles\": [\"{SECRET}\"]}}")),
    ];
    for (status, page) in pages {
        let stranger = Stranger::start(move |_| (status, page.clone()).into_response()).await;
        let error = roles(&at(&stranger.url)).await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains(SECRET), "{error:?}");
    }
}

/// Whoever is throttled, or told that there is trouble, waits as long as is asked; not for ever.
#[tokio::test]
async fn a_pause_that_is_asked_for_is_kept() {
    for status in [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE] {
        let first = Arc::new(Mutex::new(true));
        let busy = Stranger::start(move |_| match std::mem::take(&mut *first.lock().unwrap()) {
            true => (status, [(header::RETRY_AFTER, "1")]).into_response(),
            false => Json(json!({"projectRoles": Value::Array(Vec::new())})).into_response(),
        })
        .await;
        let begun = Instant::now();
        roles(&at(&busy.url)).await.unwrap();
        assert!(begun.elapsed() >= Duration::from_secs(1), "{status}: {:?}", begun.elapsed());
        assert_eq!(busy.asked(), 2);

        let closed = Stranger::start(move |_| (status, [(header::RETRY_AFTER, "600")]).into_response()).await;
        let error = roles(&at(&closed.url)).await.unwrap_err();
        assert_eq!(error.retry_after(), Some(Duration::from_secs(600)), "{error:?}");
        assert_eq!(closed.asked(), 1, "ten minutes are for later");
    }
}

/// A pause is the client's and not the call's: whatever else there is to ask, it is not asked meanwhile.
#[tokio::test]
async fn a_long_pause_holds_for_all_calls() {
    let closed =
        Stranger::start(|_| (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "600")]).into_response()).await;
    let management = Management::new(&at(&closed.url), None, Arc::new(SystemClock)).unwrap();
    let ten_minutes = Some(Duration::from_secs(600));
    assert_eq!(management.roles("1", "2").await.unwrap_err(), Error::Throttled(ten_minutes));
    let begun = Instant::now();
    for error in [
        management.roles("3", "4").await.unwrap_err(),
        management.users_with_email("ada@acme.com", None).await.unwrap_err(),
        management.probe().await.unwrap_err(),
    ] {
        let left = error.retry_after().unwrap();
        assert!(matches!(error, Error::Throttled(_)) && Some(left) < ten_minutes, "{error:?}");
        assert!(left > Duration::from_secs(500), "{left:?}");
    }
    assert!(begun.elapsed() < Duration::from_secs(60), "nobody waits for it: {:?}", begun.elapsed());
    assert_eq!(closed.asked(), 1);
}

/// Who waits for a turn when a pause is asked for waits for its end.
#[tokio::test]
async fn a_short_pause_holds_for_those_who_wait() {
    let first = Arc::new(Mutex::new(true));
    let busy = Stranger::start(move |_| match std::mem::take(&mut *first.lock().unwrap()) {
        true => (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "2")]).into_response(),
        false => Json(json!({"projectRoles": Value::Array(Vec::new())})).into_response(),
    })
    .await;
    let slow = ManagementConfig { requests_per_second: 1, ..at(&busy.url) };
    let management = Management::new(&slow, None, Arc::new(SystemClock)).unwrap();
    let begun = Instant::now();
    let calls = (0..3).map(|n| {
        let management = management.clone();
        async move {
            management.roles(&n.to_string(), "2").await.unwrap();
            begun.elapsed()
        }
    });
    for ended in futures_util::future::join_all(calls).await {
        assert!(ended >= Duration::from_secs(2), "{ended:?}");
    }
}
