//! Several upstreams as one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use alchemi::clock::{ManualClock, Timestamp};
use alchemi::proxy::balance::Balancer;
use alchemi::proxy::forward::{ForwardError, Outgoing, UpstreamConfig, UpstreamError};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};

use super::raw::PATIENCE;
use super::server::{nowhere, upstream};

/// An upstream that says its name, or 503 while it is sick; its health is told apart.
struct Named {
    url: String,
    sick: Arc<AtomicBool>,
    unhealthy: Arc<AtomicBool>,
}

async fn named(name: &'static str) -> Named {
    let (sick, unhealthy) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let flags = (Arc::clone(&sick), Arc::clone(&unhealthy));
    let address = upstream(move |request| {
        let flag = if request.uri().path() == "/health/liveliness" { &flags.1 } else { &flags.0 };
        let failing = flag.load(Ordering::SeqCst);
        async move {
            let mut response = Response::new(Full::new(Bytes::from_static(name.as_bytes())));
            if failing {
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            }
            response
        }
    })
    .await;
    Named { url: format!("http://{address}"), sick, unhealthy }
}

fn balancer(urls: &[&str], clock: &Arc<ManualClock>) -> Balancer {
    let config = UpstreamConfig {
        urls: urls.iter().map(|url| (*url).to_owned()).collect(),
        eject_after: 3,
        eject_for: Duration::from_secs(10),
        health_interval: Duration::from_millis(5),
        ..UpstreamConfig::default()
    };
    Balancer::new(&config, Arc::clone(clock) as _).unwrap()
}

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::at(Timestamp::from_secs(1000)))
}

fn post() -> Request<Outgoing> {
    Request::post("/a").body(Outgoing::from(Bytes::from_static(b"{}"))).unwrap()
}

/// How often each upstream answers, with its status.
async fn ask(balancer: &Balancer, times: usize) -> BTreeMap<(String, u16), usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..times {
        let response = balancer.send(post()).await.unwrap();
        let status = response.status().as_u16();
        let name = String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
        *counts.entry((name, status)).or_default() += 1;
    }
    counts
}

fn counts<const N: usize>(of: [(&str, u16, usize); N]) -> BTreeMap<(String, u16), usize> {
    of.into_iter().map(|(name, status, n)| ((name.to_owned(), status), n)).collect()
}

#[tokio::test]
async fn requests_go_round() {
    let (a, b, c) = (named("a").await, named("b").await, named("c").await);
    let balancer = balancer(&[&a.url, &b.url, &c.url], &clock());
    assert_eq!(ask(&balancer, 9).await, counts([("a", 200, 3), ("b", 200, 3), ("c", 200, 3)]));
}

#[tokio::test]
async fn an_upstream_that_keeps_failing_is_left_out_for_a_while() {
    let (a, b) = (named("a").await, named("b").await);
    let clock = clock();
    let balancer = balancer(&[&a.url, &b.url], &clock);
    a.sick.store(true, Ordering::SeqCst);
    assert_eq!(ask(&balancer, 6).await, counts([("a", 503, 3), ("b", 200, 3)]));
    assert!(balancer.status()[0].ejected && balancer.is_ready());
    assert_eq!(ask(&balancer, 6).await, counts([("b", 200, 6)]));
    a.sick.store(false, Ordering::SeqCst);
    clock.advance(Duration::from_secs(10));
    assert_eq!(ask(&balancer, 6).await, counts([("a", 200, 3), ("b", 200, 3)]));
}

#[tokio::test]
async fn one_success_forgives() {
    let a = named("a").await;
    let balancer = balancer(&[&a.url], &clock());
    for _ in 0..3 {
        a.sick.store(true, Ordering::SeqCst);
        ask(&balancer, 2).await;
        assert_eq!(balancer.status()[0].failures, 2);
        a.sick.store(false, Ordering::SeqCst);
        ask(&balancer, 1).await;
        assert_eq!(balancer.status()[0].failures, 0);
    }
    assert!(balancer.is_ready());
}

#[tokio::test]
async fn what_was_not_sent_goes_to_another() {
    let a = named("a").await;
    let gone = format!("http://{}", nowhere().await);
    let balancer = balancer(&[&gone, &a.url], &clock());
    assert_eq!(ask(&balancer, 10).await, counts([("a", 200, 10)]));
    assert!(balancer.status()[0].ejected);

    let again = balancer_of_gone().await;
    let streamed = Request::post("/a").body(Outgoing::stream(Full::new(Bytes::from_static(b"x")))).unwrap();
    assert!(matches!(again.send(streamed).await, Err(ForwardError::Unreachable(_))), "a stream cannot be sent twice");
}

async fn balancer_of_gone() -> Balancer {
    let (one, two) = (format!("http://{}", nowhere().await), format!("http://{}", nowhere().await));
    balancer(&[&one, &two], &clock())
}

#[tokio::test]
async fn when_all_are_out_all_are_tried() {
    let (a, b) = (named("a").await, named("b").await);
    let balancer = balancer(&[&a.url, &b.url], &clock());
    for upstream in [&a, &b] {
        upstream.sick.store(true, Ordering::SeqCst);
    }
    ask(&balancer, 6).await;
    assert!(balancer.status().iter().all(|status| status.ejected) && balancer.is_ready());
    for upstream in [&a, &b] {
        upstream.sick.store(false, Ordering::SeqCst);
    }
    assert_eq!(ask(&balancer, 4).await, counts([("a", 200, 2), ("b", 200, 2)]));
}

#[tokio::test]
async fn an_upstream_that_was_never_healthy_is_down_at_once() {
    let a = named("a").await;
    a.unhealthy.store(true, Ordering::SeqCst);
    // There is no second check while anybody waits.
    let health_interval = Duration::from_secs(3_600);
    let config = UpstreamConfig { urls: vec![a.url.clone()], health_interval, ..UpstreamConfig::default() };
    let balancer = Arc::new(Balancer::new(&config, clock()).unwrap());
    let watched = Arc::clone(&balancer);
    let watch = tokio::spawn(async move { watched.watch().await });
    let seen = async {
        while balancer.is_ready() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, seen).await.expect("one health check is enough");
    watch.abort();
}

#[tokio::test]
async fn health_checks_find_out_by_themselves() {
    let (a, b) = (named("a").await, named("b").await);
    let balancer = Arc::new(balancer(&[&a.url, &b.url], &clock()));
    let watched = Arc::clone(&balancer);
    let watch = tokio::spawn(async move { watched.watch().await });
    for (unhealthy, expected) in [(true, counts([("b", 200, 4)])), (false, counts([("a", 200, 2), ("b", 200, 2)]))] {
        a.unhealthy.store(unhealthy, Ordering::SeqCst);
        let seen = async {
            while balancer.status()[0].up == unhealthy {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(PATIENCE, seen).await.expect("the health check notices");
        assert_eq!(ask(&balancer, 4).await, expected);
    }
    watch.abort();
}

#[tokio::test]
async fn readiness_is_what_health_checks_find() {
    let a = named("a").await;
    let balancer = Arc::new(balancer(&[&a.url], &clock()));
    let watched = Arc::clone(&balancer);
    let watch = tokio::spawn(async move { watched.watch().await });
    for unhealthy in [true, false] {
        a.unhealthy.store(unhealthy, Ordering::SeqCst);
        let seen = async {
            while balancer.is_ready() == unhealthy {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(PATIENCE, seen).await.expect("readiness follows");
        assert_eq!(ask(&balancer, 1).await, counts([("a", 200, 1)]), "the only upstream is always tried");
    }
    watch.abort();
}

#[test]
fn wrong_configuration_names_its_key() {
    let of = |config: UpstreamConfig| Balancer::new(&config, clock()).unwrap_err();
    let bad =
        of(UpstreamConfig { urls: vec!["http://a".into(), "http://u:canary@h".into()], ..UpstreamConfig::default() });
    assert!(matches!(bad, UpstreamError::Url(2)) && !bad.to_string().contains("canary"));
    assert!(matches!(of(UpstreamConfig { urls: vec![], ..UpstreamConfig::default() }), UpstreamError::NoUrl));
    assert!(matches!(
        of(UpstreamConfig { health_path: "health".into(), ..UpstreamConfig::default() }),
        UpstreamError::HealthPath
    ));
}
