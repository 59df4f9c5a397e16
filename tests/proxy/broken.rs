//! Whoever leaves early: clients, upstreams, and the gateway itself.

use std::time::Duration;

use alchemi::dev::upstream::Failure;
use alchemi::dev::{Behaviour, DevUpstream};
use alchemi::metering::price::ModelPrice;
use http::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::common::gateway::{PATIENCE, upstream_options};
use crate::common::{Backend, backends};
use crate::{Stage, chat, int, open, streamed, text, with};

const NEVER: Duration = Duration::from_secs(3_600);

/// An address where nobody listens.
async fn nobody() -> String {
    let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", socket.local_addr().unwrap())
}

/// A price that needs no upstream to tell it.
fn price() -> (String, ModelPrice) {
    let price = json!({"input_cost_per_token": "0.000001", "output_cost_per_token": "0.00001"});
    ("gpt-4o".to_owned(), serde_json::from_value(price).unwrap())
}

#[tokio::test]
async fn a_client_that_hangs_up_ends_the_upstreams_work_and_pays_for_what_was_done() {
    for backend in backends().await {
        let stage = Stage::on(backend).await;
        stage.gateway.upstream.behave(Behaviour {
            endless: true,
            gap: Duration::from_millis(1),
            ..Behaviour::default()
        });
        let paths = [
            ("/v1/chat/completions", streamed("gpt-4o")),
            ("/v1/responses", json!({"model": "gpt-4o", "input": "x", "stream": true})),
            (
                "/v1/messages",
                json!({"model": "gpt-4o", "max_tokens": 1000, "stream": true,
                "messages": [{"role": "user", "content": "x"}]}),
            ),
        ];
        for (n, (path, body)) in paths.iter().enumerate() {
            let mut answer = open(&stage.ada, path, body).await;
            let mut read = 0;
            while read < 3_000 {
                read += answer.chunk().await.unwrap().unwrap().len();
            }
            drop(answer);
            let gone = stage.gateway.upstream.until(|activity| activity.cancelled > n as u64 && activity.open == 0);
            tokio::time::timeout(PATIENCE, gone).await.expect("the upstream's work is cancelled");
            let row = stage.settled(n + 1).await.pop().unwrap();
            assert_eq!((text(&row, "marks"), int(&row, "status")), ("cut", 200), "{path}");
            assert!(["estimated", "priced"].contains(&text(&row, "cost_source")), "{path}: {row:?}");
            assert!(int(&row, "raw_cost") > 0 && int(&row, "output_tokens") > 1, "{path}: {row:?}");
        }
        assert_eq!(stage.counter().await.1, 0);
        assert_eq!(stage.gateway.verify_books().await.differences, []);
    }
}

#[tokio::test]
async fn a_client_that_does_not_wait_pays_for_its_question() {
    let stage = Stage::set().await;
    stage.gateway.upstream.behave(Behaviour { delay: NEVER, ..Behaviour::default() });
    let ada = stage.ada.clone();
    let waiting = tokio::spawn(async move { ada.post("/v1/chat/completions", chat("gpt-4o")).await });
    let arrived = stage.gateway.upstream.until(|activity| activity.open == 1);
    tokio::time::timeout(PATIENCE, arrived).await.unwrap();
    waiting.abort();
    let gone = stage.gateway.upstream.until(|activity| activity.cancelled == 1);
    tokio::time::timeout(PATIENCE, gone).await.expect("the upstream's work is cancelled");
    let row = &stage.settled(1).await[0];
    assert_eq!((text(row, "marks"), text(row, "cost_source"), int(row, "status")), ("cut", "estimated", 0));
    assert!(int(row, "raw_cost") > 0 && int(row, "output_tokens") == 0, "{row:?}");
    assert_eq!(stage.counter().await.1, 0);
}

#[tokio::test]
async fn a_stream_that_the_upstream_cuts_is_cut_for_the_client_and_paid_as_far_as_it_came() {
    let stage = Stage::set().await;
    stage.gateway.upstream.behave(Behaviour { cut_after: Some(6), ..Behaviour::default() });
    let mut answer = open(&stage.ada, "/v1/chat/completions", &streamed("gpt-4o")).await;
    assert_eq!(answer.status(), 200);
    let mut text_read = String::new();
    let error = loop {
        match answer.chunk().await {
            Ok(Some(chunk)) => text_read.push_str(&String::from_utf8_lossy(&chunk)),
            Ok(None) => panic!("the end looks whole: {text_read}"),
            Err(error) => break error,
        }
    };
    assert!(error.is_body() || error.is_decode() || error.is_request(), "{error:?}");
    assert!(text_read.contains("Hello") && !text_read.contains("[DONE]"), "{text_read}");
    let row = &stage.settled(1).await[0];
    assert_eq!((text(row, "marks"), text(row, "cost_source")), ("cut", "estimated"));
    assert!(int(row, "raw_cost") > 0 && int(row, "output_tokens") > 0, "{row:?}");
}

#[tokio::test]
async fn an_answer_that_reports_no_usage_is_charged_as_counted() {
    let stage = Stage::set().await;
    stage.gateway.upstream.behave(Behaviour { no_usage: true, ..Behaviour::default() });
    stage.ada.post("/v1/chat/completions", streamed("gpt-4o")).await;
    stage.ada.post("/v1/chat/completions", chat("gpt-4o")).await.ok();
    for row in stage.settled(2).await {
        assert_eq!((text(&row, "marks"), text(&row, "cost_source")), ("", "estimated"));
        assert!(int(&row, "raw_cost") > 0 && int(&row, "output_tokens") > 0, "{row:?}");
    }
}

#[tokio::test]
async fn the_upstreams_errors_pass_untouched_and_free() {
    for backend in backends().await {
        let stage = Stage::on(backend).await;
        let failures = [(429, Some(7)), (500, None), (503, Some(1)), (400, None), (401, None)];
        for (n, (status, retry_after)) in failures.into_iter().enumerate() {
            let status = StatusCode::from_u16(status).unwrap();
            stage
                .gateway
                .upstream
                .behave(Behaviour { fail: Some(Failure { status, retry_after }), ..Behaviour::default() });
            let body = if n % 2 == 0 { chat("gpt-4o") } else { streamed("gpt-4o") };
            let reply = stage.ada.post("/v1/chat/completions", body).await;
            assert_eq!((reply.status, reply.header("x-alchemi-decision")), (status, "allow"));
            assert_eq!(reply.json()["error"]["code"], json!(status.as_str()), "LiteLLM's own body");
            let told = reply.headers.get("retry-after").map(|value| value.to_str().unwrap().to_owned());
            assert_eq!(told, retry_after.map(|seconds: u32| seconds.to_string()));
            let row = stage.settled(n + 1).await.pop().unwrap();
            assert_eq!((int(&row, "raw_cost"), int(&row, "status")), (0, i64::from(status.as_u16())));
            assert_eq!((text(&row, "cost_source"), text(&row, "marks")), ("free", ""));
        }
        assert_eq!(stage.rested().await, (0, 0));
        assert_eq!(stage.gateway.verify_books().await.differences, []);
    }
}

#[tokio::test]
async fn what_was_never_sent_is_given_back() {
    for backend in backends().await {
        let nobody = nobody().await;
        let stage = Stage::with(backend, |config| {
            config.upstream.urls = vec![nobody];
            config.metering.prices.extend([price()]);
        })
        .await;
        let reply = stage.ada.post("/v1/chat/completions", chat("gpt-4o")).await;
        assert_eq!((reply.status.as_u16(), reply.code().as_str()), (502, "upstream_unreachable"));
        assert_eq!(
            (reply.header("retry-after"), reply.header("x-alchemi-decision")),
            ("1", "deny;code=upstream_unreachable")
        );
        let row = &stage.settled(1).await[0];
        assert_eq!((text(row, "marks"), int(row, "raw_cost"), int(row, "status")), ("not_forwarded", 0, 0));
        assert_eq!(stage.counter().await, (0, 0));
        assert_eq!(stage.gateway.verify_books().await.differences, []);
    }
}

#[tokio::test]
async fn an_upstream_that_takes_too_long_is_504_and_the_question_is_paid() {
    let stage = Stage::with(Backend::Sqlite, |config| {
        config.upstream.response_timeout = Duration::from_millis(300);
        // Prices are listed within the same time, or are not.
        config.metering.prices.extend([price()]);
    })
    .await;
    stage.gateway.upstream.behave(Behaviour { delay: NEVER, ..Behaviour::default() });
    let reply = stage.ada.post("/v1/chat/completions", chat("gpt-4o")).await;
    assert_eq!((reply.status.as_u16(), reply.code().as_str()), (504, "upstream_timeout"));
    let row = &stage.settled(1).await[0];
    assert_eq!((text(row, "cost_source"), int(row, "status")), ("estimated", 0));
    assert!(int(row, "raw_cost") > 0);
    let gone = stage.gateway.upstream.until(|activity| activity.open == 0);
    tokio::time::timeout(PATIENCE, gone).await.expect("the upstream is not left at work");
}

#[tokio::test]
async fn a_stream_that_falls_silent_ends() {
    let stage = Stage::with(Backend::Sqlite, |config| config.upstream.idle_timeout = Duration::from_millis(300)).await;
    stage.gateway.upstream.behave(Behaviour { gap: NEVER, ..Behaviour::default() });
    let mut answer = open(&stage.ada, "/v1/chat/completions", &streamed("gpt-4o")).await;
    assert_eq!(answer.status(), 200);
    assert!(answer.chunk().await.is_err());
    assert_eq!(text(&stage.settled(1).await[0], "marks"), "cut");
}

#[tokio::test]
async fn requests_find_an_upstream_that_lives() {
    let second = DevUpstream::start(upstream_options()).await.unwrap();
    let dead = nobody().await;
    let stage = Stage::with(Backend::Sqlite, |config| {
        config.upstream.urls = vec![dead, config.upstream.urls[0].clone(), second.url().to_owned()];
    })
    .await;
    for _ in 0..12 {
        stage.ada.post("/v1/chat/completions", chat("gpt-4o-mini")).await.ok();
    }
    let chats =
        |requests: Vec<alchemi::dev::upstream::Recorded>| requests.iter().filter(|r| r.method == "POST").count();
    let (first, second) = (chats(stage.gateway.forwarded()), chats(second.requests()));
    assert_eq!(first + second, 12, "each is sent once");
    assert!(first >= 3 && second >= 3, "{first} and {second}");
    let rows = stage.settled(12).await;
    assert!(rows.iter().all(|row| text(row, "marks").is_empty() && int(row, "raw_cost") > 0));
}

#[tokio::test]
async fn a_stop_lets_a_stream_finish_and_settles_it() {
    for backend in backends().await {
        let mut stage = Stage::on(backend).await;
        stage.gateway.upstream.behave(Behaviour { gap: Duration::from_millis(20), ..Behaviour::default() });
        let mut answer = open(&stage.ada, "/v1/chat/completions", &streamed("gpt-4o")).await;
        let mut read = answer.chunk().await.unwrap().unwrap().to_vec();
        let address = stage.gateway.url().trim_start_matches("http://").to_owned();
        let server = stage.gateway.server.take().unwrap();
        let stopping = tokio::spawn(server.stop());
        // It takes no more connections as soon as it stops.
        let refused = async {
            while tokio::net::TcpStream::connect(&address).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, refused).await.expect("nobody new is let in");
        while let Some(chunk) = answer.chunk().await.unwrap() {
            read.extend_from_slice(&chunk);
        }
        assert!(String::from_utf8(read).unwrap().ends_with("data: [DONE]\n\n"));
        drop(answer);
        let stopped = tokio::time::timeout(PATIENCE, stopping).await.unwrap().unwrap();
        assert_eq!((stopped.settled, stopped.drained), (1, true));
        let rows = stage.gateway.ledger(&stage.account).await;
        assert_eq!((rows.len(), text(&rows[0], "marks")), (1, ""));
        assert!(int(&rows[0], "raw_cost") > 0);
    }
}

#[tokio::test]
async fn a_stop_does_not_wait_for_ever() {
    let mut stage = Stage::with(Backend::Sqlite, |config| config.limits.drain_seconds = 1).await;
    stage.gateway.upstream.behave(Behaviour { endless: true, gap: Duration::from_millis(5), ..Behaviour::default() });
    let mut answer = open(&stage.ada, "/v1/chat/completions", &streamed("gpt-4o")).await;
    answer.chunk().await.unwrap();
    let stopped = tokio::time::timeout(PATIENCE, stage.gateway.stop()).await.unwrap();
    assert!(!stopped.drained);
    // It is cut, and still paid.
    while answer.chunk().await.is_ok_and(|chunk| chunk.is_some()) {}
    assert_eq!(stopped.settled, 1);
    let rows = stage.gateway.ledger(&stage.account).await;
    assert_eq!((rows.len(), text(&rows[0], "marks")), (1, "cut"));
}

#[tokio::test]
async fn reservations_that_a_crash_left_behind_are_charged_at_their_estimate() {
    for backend in backends().await {
        let stage = Stage::on(backend).await;
        stage.gateway.upstream.behave(Behaviour { delay: NEVER, ..Behaviour::default() });
        let ada = stage.ada.clone();
        let waiting = tokio::spawn(async move { ada.post("/v1/chat/completions", chat("gpt-4o")).await });
        let arrived = stage.gateway.upstream.until(|activity| activity.open == 1);
        tokio::time::timeout(PATIENCE, arrived).await.unwrap();
        let held = stage.counter().await;
        assert!(held.0 == 0 && held.1 > 0, "{held:?}");
        // The reservation is as old as if nobody had been there for long; another process finds it.
        let sql = r#"UPDATE "Alchemi_AllocationReservationTable" SET expires_at = 0 RETURNING request_id"#;
        assert_eq!(stage.gateway.database.rows(sql, &[]).await.len(), 1);
        let second = stage.gateway.beside(|_| {}).await;
        let row = stage.settled(1).await.pop().unwrap();
        assert_eq!((text(&row, "cost_source"), text(&row, "marks")), ("unsettled", "unsettled"));
        assert_eq!((int(&row, "raw_cost"), stage.counter().await), (held.1, (held.1, 0)));
        // The first one comes back to it too late: it is paid once, at what is known by then.
        waiting.abort();
        let gone = stage.gateway.upstream.until(|activity| activity.open == 0);
        tokio::time::timeout(PATIENCE, gone).await.unwrap();
        let rows = stage.settled(2).await;
        assert!(rows.contains(&row), "what is written is never changed");
        let late = rows.iter().find(|row| text(row, "marks") == "late").unwrap();
        let adjusted = int(late, "credits_incurred");
        assert!(text(late, "entry") == "adjustment" && -held.1 < adjusted && adjusted < 0, "{late:?}");
        assert_eq!(stage.counter().await, (held.1 + adjusted, 0));
        assert_eq!(second.verify_books().await.differences, []);
    }
}

/// An upstream that stands still in the middle of its first list of prices.
async fn hesitant() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut lists, mut chats) = (0, 0);
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.windows(4).any(|end| end == b"\r\n\r\n") && stream.read_buf(&mut head).await.unwrap_or(0) > 0 {}
            let is_list = head.starts_with(b"GET /model/info");
            lists += i32::from(is_list);
            chats += i32::from(head.starts_with(b"POST"));
            let body = if is_list {
                json!({"data": [{"model_name": "m", "model_info": {"input_cost_per_token": 1e-3, "output_cost_per_token": 1e-3}}]})
            } else {
                json!({"object": "chat.completion", "usage": {"prompt_tokens": 1, "completion_tokens": 1}})
            };
            // Nor is the next one whole before somebody has asked without it.
            let (body, whole) = (body.to_string(), !is_list || (lists > 1 && chats > 0));
            let sent = if whole { &*body } else { &body[..9] };
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close";
            let answer = format!("{head}\r\ncontent-length: {}\r\n\r\n{sent}", body.len());
            let _ = stream.write_all(answer.as_bytes()).await;
            if !whole {
                tokio::spawn(async move {
                    std::future::pending::<()>().await;
                    drop(stream);
                });
            }
        }
    });
    url
}

#[tokio::test]
async fn a_list_of_prices_that_does_not_end_is_asked_for_again() {
    let url = hesitant().await;
    let stage = Stage::with(Backend::Sqlite, |config| {
        config.upstream.urls = vec![url];
        config.upstream.health_interval = Duration::ZERO;
        config.metering.model_info_seconds = 1;
    })
    .await;
    let priced = async {
        for n in 1.. {
            stage.ada.post("/v1/chat/completions", chat("m")).await.ok();
            if stage.settled(n).await.iter().any(|row| int(row, "raw_cost") == 2_000_000) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(PATIENCE, priced).await.expect("the prices are known in the end");
    assert!(stage.gateway.metric("settlements_unpriced_total").await > 0, "what came before them is counted");
}

/// An upstream whose answers to questions stop before they say what they used.
async fn breathless() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.windows(4).any(|end| end == b"\r\n\r\n")
                    && stream.read_buf(&mut head).await.unwrap_or(0) > 0
                {}
                // One request for each connection: a second one would wait for ever.
                let is_question = head.starts_with(b"POST");
                let answer = if is_question {
                    let begun = format!(r#"{{"choices":[{{"message":{{"content":"{}"#, "x".repeat(8_000));
                    format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9000\r\n\r\n{begun}")
                } else {
                    "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned()
                };
                let _ = stream.write_all(answer.as_bytes()).await;
                if is_question {
                    std::future::pending::<()>().await;
                }
            });
        }
    });
    url
}

#[tokio::test]
async fn who_leaves_in_the_middle_of_an_answer_pays_for_what_came() {
    let url = breathless().await;
    let stage = Stage::with(Backend::Sqlite, |config| {
        config.upstream.urls = vec![url];
        config.upstream.health_interval = Duration::ZERO;
        config.metering.prices.extend([price()]);
    })
    .await;
    let leave = async |body: Value| {
        let mut answer = open(&stage.ada, "/v1/chat/completions", &body).await;
        let mut got = 0;
        while got < 8_000 {
            got += answer.chunk().await.unwrap().unwrap().len();
        }
    };
    leave(chat("gpt-4o")).await;
    let row = &stage.settled(1).await[0];
    assert_eq!((text(row, "cost_source"), text(row, "marks")), ("estimated", "cut"));
    assert!(int(row, "output_tokens") >= 2_000 && int(row, "raw_cost") >= 20_000_000, "{row:?}");
    // And for no more than was asked for, whatever stands around it.
    leave(with(with(chat("gpt-4o"), "max_tokens", json!(300)), "n", json!(2))).await;
    let rows = stage.settled(2).await;
    assert!(rows.iter().any(|row| int(row, "output_tokens") == 600), "{rows:?}");
}
