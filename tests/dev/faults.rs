use std::time::Duration;

use alchemi::dev::upstream::{Activity, Failure};
use alchemi::dev::{Behaviour, DevError, DevUpstream, UpstreamOptions};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::soon;
use super::upstream::{chat, events, header, post, start, streamed, upstream, with_model};

#[tokio::test]
async fn it_fails_when_told_to() {
    let upstream = upstream().await;
    let limited =
        post(&upstream, "/v1/chat/completions", with_model(chat("hi"), "gpt-4o+status=429+retry-after=2")).await;
    assert_eq!((limited.status().as_u16(), header(&limited, "retry-after")), (429, Some("2")));
    assert_eq!(
        (header(&limited, "x-litellm-response-cost"), header(&limited, "x-litellm-call-id").is_some()),
        (Some("0"), true)
    );
    let error = limited.json::<Value>().await.unwrap()["error"].clone();
    assert_eq!((&error["type"], &error["code"]), (&json!("throttling_error"), &json!("429")));

    let fail = Some(Failure { status: StatusCode::INTERNAL_SERVER_ERROR, retry_after: None });
    upstream.behave(Behaviour { fail, ..Behaviour::default() });
    assert_eq!(post(&upstream, "/v1/messages", chat("hi")).await.status().as_u16(), 500);
    upstream.behave(Behaviour::default());
    assert_eq!(post(&upstream, "/v1/chat/completions", chat("hi")).await.status().as_u16(), 200);
}

#[tokio::test]
async fn usage_and_cost_can_be_withheld() {
    let upstream = upstream().await;
    let plain = post(&upstream, "/v1/chat/completions", with_model(chat("hi"), "gpt-4o+no-usage")).await;
    assert_eq!(header(&plain, "x-litellm-response-cost"), None);
    assert!(plain.json::<Value>().await.unwrap().get("usage").is_none());
    let chunks =
        events(post(&upstream, "/v1/chat/completions", with_model(streamed(chat("hi")), "gpt-4o+no-usage")).await)
            .await;
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));

    let chunks =
        events(post(&upstream, "/v1/chat/completions", with_model(streamed(chat("hi")), "gpt-4o+no-cost")).await).await;
    let usage = &chunks[chunks.len() - 2]["usage"];
    assert!(usage["total_tokens"].is_u64() && usage.get("cost").is_none());
}

#[tokio::test]
async fn a_cut_stream_breaks_after_its_frames() {
    let upstream = upstream().await;
    let mut answer = post(&upstream, "/v1/chat/completions", with_model(streamed(chat("hi")), "gpt-4o+cut=3")).await;
    let mut text = String::new();
    let error = loop {
        match soon(answer.chunk()).await {
            Ok(Some(bytes)) => text.push_str(std::str::from_utf8(&bytes).unwrap()),
            Ok(None) => panic!("ended as if it were whole"),
            Err(error) => break error,
        }
    };
    assert_eq!(text.matches("data: ").count(), 3, "{error}");
    let seen = soon(upstream.until(|activity| activity.open == 0)).await;
    assert_eq!((seen.completed, seen.cancelled), (1, 0), "the upstream's own doing");
}

#[tokio::test]
async fn hanging_up_is_seen_in_a_stream_and_before_an_answer() {
    let upstream = upstream().await;
    let mut endless =
        post(&upstream, "/v1/chat/completions", with_model(streamed(chat("hi")), "gpt-4o+endless+gap=1")).await;
    for _ in 0..50 {
        assert!(soon(endless.chunk()).await.unwrap().is_some());
    }
    assert_eq!(upstream.activity(), Activity { received: 1, open: 1, completed: 0, cancelled: 0 });
    drop(endless);
    soon(upstream.until(|activity| activity.cancelled == 1)).await;

    let url = format!("{}/v1/chat/completions", upstream.url());
    let body = with_model(chat("hi"), "gpt-4o+delay=600000");
    let waiting = tokio::spawn(async move { Client::new().post(url).json(&body).send().await });
    soon(upstream.until(|activity| activity.received == 2)).await;
    waiting.abort();
    let seen = soon(upstream.until(|activity| activity.cancelled == 2)).await;
    assert_eq!((seen.open, seen.completed), (0, 0));
}

#[tokio::test]
async fn requests_are_kept_as_they_came() {
    let upstream = start(UpstreamOptions { keep: 2, ..UpstreamOptions::default() }).await;
    let mut stream = TcpStream::connect(upstream.url().trim_start_matches("http://")).await.unwrap();
    let body = chat("hi").to_string();
    for turn in ["one", "two", "three"] {
        let head = format!(
            "POST /v1/chat/completions?turn={turn} HTTP/1.1\r\nHost: a\r\nX-Custom-CASE: 1\r\nx-custom-case:  2 \r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.windows(7).any(|it| it == b"\"usage\"") {
            assert_ne!(soon(stream.read_buf(&mut answer)).await.unwrap(), 0);
        }
        soon(upstream.until(|activity| activity.open == 0)).await;
    }
    let kept = upstream.requests();
    assert_eq!(
        kept.iter().map(|it| it.target.as_str()).collect::<Vec<_>>(),
        ["/v1/chat/completions?turn=two", "/v1/chat/completions?turn=three"]
    );
    let last = upstream.last_request().unwrap();
    assert_eq!((last.method.as_str(), last.json()), ("POST", Some(chat("hi"))));
    let names: Vec<_> = last.headers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["Host", "X-Custom-CASE", "x-custom-case", "Content-Length"]);
    assert_eq!(
        (last.header_values("x-custom-case"), last.header("host"), last.header("x-custom-case")),
        (vec!["1", "2"], Some("a"), None)
    );
    let shown = format!("{last:?} {upstream:?}");
    assert!(!shown.contains("hi\""), "no prompt in {shown}");
}

#[tokio::test]
async fn it_is_gone_when_dropped() {
    let upstream = upstream().await;
    let mut endless =
        post(&upstream, "/v1/chat/completions", with_model(streamed(chat("hi")), "gpt-4o+endless+gap=1")).await;
    let url = upstream.url().to_owned();
    drop(upstream);
    while let Ok(Some(_)) = soon(endless.chunk()).await {}
    assert!(soon(Client::new().get(url).send()).await.is_err());
}

#[tokio::test]
async fn only_loopback_will_do() {
    let listen = "0.0.0.0:0".parse().unwrap();
    let refused = DevUpstream::start(UpstreamOptions { listen, ..UpstreamOptions::default() }).await;
    assert!(matches!(refused, Err(DevError::NotLoopback(_))));
}

#[test]
fn a_behaviour_is_read_or_refused() {
    let all: Behaviour = "delay=1+gap=2+cut=3+endless+no-usage+no-cost+status=500".parse().unwrap();
    let fail = Some(Failure { status: StatusCode::INTERNAL_SERVER_ERROR, retry_after: None });
    let (delay, gap) = (Duration::from_millis(1), Duration::from_millis(2));
    assert_eq!(all, Behaviour { delay, gap, cut_after: Some(3), endless: true, no_usage: true, no_cost: true, fail });
    for text in ["", "cut", "cut=x", "status=7", "status=99", "retry-after=2", "endless=1", "delay=-1", "what"] {
        assert!(text.parse::<Behaviour>().is_err(), "{text:?}");
    }
}
