//! Traces and metrics on their way to a collector.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use http::{HeaderMap, Uri};
use serde_json::json;

use crate::running::client;
use crate::target::{CHAT, PATIENCE, Target};

/// What a collector was sent: path, headers, body.
type Sent = Arc<Mutex<Vec<(String, HeaderMap, Bytes)>>>;

async fn collector() -> (String, Sent) {
    let sent = Sent::default();
    let kept = Arc::clone(&sent);
    let keep = move |uri: Uri, headers: HeaderMap, body: Bytes| {
        kept.lock().unwrap().push((uri.path().to_owned(), headers, body));
        async {}
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(keep)).await.unwrap() });
    (url, sent)
}

fn holds(body: &[u8], part: &[u8]) -> bool {
    body.windows(part.len()).any(|window| window == part)
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// Something that was sent to `path` and holds all `parts`.
async fn arrives(sent: &Sent, path: &str, parts: &[&[u8]]) -> HeaderMap {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        let all = sent.lock().unwrap().clone();
        let found = all.iter().find(|(at, _, body)| at == path && parts.iter().all(|part| holds(body, part)));
        if let Some((_, headers, _)) = found {
            return headers.clone();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("nothing like it came to {path}: {} came", sent.lock().unwrap().len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_gets_the_span_of_a_request_and_the_metrics() {
    let (url, sent) = collector().await;
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str()),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=number%20seven"),
        ("OTEL_BSP_SCHEDULE_DELAY", "100"),
    ];
    let target = Target::with("telemetry.metrics_seconds = 1", &variables).await;
    let (trace, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let ask = async |model: &str| {
        let body = json!({"model": model, "messages": [{"role": "user", "content": "not for the collector"}]});
        let request = client().post(format!("{}{CHAT}", target.url)).bearer_auth(&target.token).json(&body);
        request.header("traceparent", format!("00-{trace}-{parent}-01")).send().await.unwrap()
    };
    let answer = ask("gpt-4o-mini").await;
    assert_eq!(answer.status(), 200);
    let request_id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();

    // The upstream is called in the same trace, by our span.
    let forwarded = target.upstream.requests().into_iter().rev().find(|request| request.target == CHAT).unwrap();
    let told = forwarded.header("traceparent").unwrap().to_owned();
    let parts: Vec<&str> = told.split('-').collect();
    assert!(parts[1] == trace && parts[2] != parent && parts[3] == "01", "{told}");

    let of_request =
        [bytes(trace), bytes(parts[2]), bytes(parent), request_id.into_bytes(), target.account.clone().into_bytes()];
    let of_request: Vec<&[u8]> = of_request.iter().map(Vec::as_slice).chain([&b"allow"[..], b"alchemi"]).collect();
    let headers = arrives(&sent, "/v1/traces", &of_request).await;
    assert_eq!([&headers["x-tenant"], &headers["content-type"]], ["number seven", "application/x-protobuf"]);

    assert_eq!(ask("nobody-granted-it+status=400").await.status(), 400);
    let headers = arrives(&sent, "/v1/metrics", &[b"alchemi_requests", b"alchemi_gateway_seconds", b"chat"]).await;
    assert_eq!([&headers["x-tenant"], &headers["content-type"]], ["number seven", "application/x-protobuf"]);
    target.end();
    for (path, _, body) in sent.lock().unwrap().iter() {
        assert!(!holds(body, b"not for the collector") && !holds(body, b"sk-upstream-key"), "{path}");
    }
}

/// A collector that is away costs nobody anything.
#[tokio::test(flavor = "multi_thread")]
async fn without_its_collector_a_gateway_serves_on() {
    let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")];
    let target = Target::with("telemetry.metrics_seconds = 1", &variables).await;
    target.serves().await;
    target.end();
}

/// A line for each refused request, and at the level that asks for them one for each that was let through.
#[tokio::test(flavor = "multi_thread")]
async fn logs_say_what_became_of_a_request_and_whose_it_was() {
    let variables = [("ALCHEMI_LOG_FORMAT", "json"), ("RUST_LOG", "info,alchemi::metering=debug")];
    let mut target = Target::start(&variables).await;
    let ask = async |model: &str| {
        let body = json!({"model": model, "messages": [{"role": "user", "content": "not for the log"}]});
        let request = client().post(format!("{}{CHAT}", target.url)).bearer_auth(&target.token).json(&body);
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.headers()["x-request-id"].to_str().unwrap().to_owned())
    };
    let (allowed, refused) = (ask("gpt-4o-mini").await, ask("gpt-4o,gpt-4o-mini").await);
    assert_eq!((allowed.0, refused.0), (200, 400));
    let nobody = client().get(format!("{}/v1/accounts", target.url)).send().await.unwrap();
    let (status, nobody) = (nobody.status(), nobody.headers()["x-request-id"].to_str().unwrap().to_owned());
    assert_eq!(status, 401);
    for id in [&allowed.1, &refused.1, &nobody] {
        target.serve.says(id);
    }
    target.serve.says("settled");
    let lines: Vec<serde_json::Value> = target
        .serve
        .err()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect();
    let line = |message: &str, id: &str| {
        let found = lines.iter().find(|line| line["message"] == message && line["request_id"] == id);
        found.unwrap_or_else(|| panic!("no {message} of {id}: {lines:#?}"))
    };
    let settled = line("settled", &allowed.1);
    assert_eq!(
        (&settled["account"], &settled["status"], &settled["kind"]),
        (&json!(target.account), &json!(200), &json!("chat"))
    );
    assert!(settled["nano_credits"].as_i64().unwrap() > 0, "{settled}");
    let refused = line("refused", &refused.1);
    assert_eq!(
        (&refused["account"], &refused["status"], &refused["level"]),
        (&json!(target.account), &json!(400), &json!("INFO"))
    );
    assert_eq!(refused["code"], "invalid_field");
    let nobody = line("refused", &nobody);
    assert_eq!((&nobody["kind"], &nobody["code"]), (&json!("control"), &json!("token_missing")));
    let log = target.serve.err();
    assert!(!log.contains("not for the log") && !log.contains(&target.token), "{log}");
    target.end();
}
