//! The binary, set up by variables alone, while somebody attacks its listener: others are served, its memory stays,
//! and what was admitted is settled. Linux tells a process's memory; elsewhere it is not looked at.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::running::client;
use crate::target::{CHAT, MASTER_KEY, PATIENCE, Target, UPSTREAM_KEY, operate};

/// HTTP/2 by hand (RFC 9113 section 4.1).
mod frames {
    pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PING: u8 = 6;
    pub(super) const GOAWAY: u8 = 7;
    pub(super) const CONTINUATION: u8 = 9;
    pub(super) const END_HEADERS: u8 = 4;

    pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend_from_slice(payload);
        frame
    }

    /// Literal fields without indexing (RFC 7541 section 6.2.2).
    pub(super) fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
        fn text(out: &mut Vec<u8>, text: &str) {
            let length = text.len();
            if length < 127 {
                out.push(u8::try_from(length).unwrap());
            } else {
                out.push(127);
                let mut rest = length - 127;
                while rest >= 128 {
                    out.push(u8::try_from(rest % 128).unwrap() | 128);
                    rest /= 128;
                }
                out.push(u8::try_from(rest).unwrap());
            }
            out.extend_from_slice(text.as_bytes());
        }
        let mut out = Vec::new();
        for (name, value) in fields {
            out.push(0);
            text(&mut out, name);
            text(&mut out, value);
        }
        out
    }
}

impl Target {
    fn request_headers(&self) -> Vec<u8> {
        let bearer = format!("Bearer {}", self.token);
        frames::fields(&[
            (":method", "POST"),
            (":scheme", "http"),
            (":path", CHAT),
            (":authority", "gateway.example"),
            ("authorization", &bearer),
            ("content-type", "application/json"),
        ])
    }

    /// Sends frames until the gateway ends the connection, or all are sent; whether it said or showed that it is enough.
    async fn flood(&self, frames: impl Iterator<Item = Vec<u8>>) -> bool {
        let (mut read, mut write) = self.connect().await.into_split();
        let reading = tokio::spawn(async move {
            let (mut answer, mut piece) = (Vec::new(), [0; 16 * 1024]);
            while let Ok(length @ 1..) = read.read(&mut piece).await {
                // Only the end is looked at: acknowledgements are many.
                answer.extend_from_slice(&piece[..length]);
                let keep = answer.len().saturating_sub(64 * 1024);
                answer.drain(..keep);
            }
            answer.windows(9).any(|head| head[3] == frames::GOAWAY && head[5..9] == [0; 4])
        });
        let opening = [frames::PREFACE, &frames::frame(frames::SETTINGS, 0, 0, &[])].concat();
        let writing = async {
            write.write_all(&opening).await?;
            for frame in frames {
                write.write_all(&frame).await?;
            }
            write.flush().await
        };
        let refused = match tokio::time::timeout(PATIENCE, writing).await {
            Ok(sent) => sent.is_err(),
            // It has stopped reading, which is one way to bound what it keeps.
            Err(_) => true,
        };
        drop(write);
        let said = tokio::time::timeout(PATIENCE, reading).await;
        refused || said.is_ok_and(|said| said.unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_http2_frames_end_their_connection_and_hurt_nobody_else() {
    use frames::{CONTINUATION, DATA, END_HEADERS, HEADERS, PING, RST_STREAM, SETTINGS, frame};
    let target = Target::start(&[]).await;
    target.serves().await;
    let before = target.memory();
    let headers = target.request_headers();
    let streams = || (0..50_000_u32).map(|n| n * 2 + 1);

    let resets = streams()
        .map(|id| [frame(HEADERS, END_HEADERS, id, &headers), frame(RST_STREAM, 0, id, &[0, 0, 0, 8])].concat());
    assert!(target.flood(resets).await, "rapid reset");
    target.serves().await;

    let endless = std::iter::once(frame(HEADERS, 0, 1, &headers)).chain(
        (0..20_000).map(|n| frame(CONTINUATION, 0, 1, &frames::fields(&[("x-flood", &"x".repeat(100 + n % 7))]))),
    );
    assert!(target.flood(endless).await, "headers without an end");
    target.serves().await;

    let huge = std::iter::once(frame(HEADERS, 0, 1, &headers))
        .chain((0..4_000).map(|_| frame(CONTINUATION, 0, 1, &frames::fields(&[("x-flood", &"y".repeat(15_000))]))));
    assert!(target.flood(huge).await, "60 MB of headers");
    target.serves().await;

    // What the protocol allows without end costs nothing but time.
    for (name, one) in [("pings", frame(PING, 0, 0, &[7; 8])), ("settings", frame(SETTINGS, 0, 0, &[]))] {
        target.flood((0..100_000).map(|_| one.clone())).await;
        target.serves().await;
        let grown = target.memory().saturating_sub(before);
        assert!(grown < 96, "{name}: {grown} MiB more");
    }
    let empty =
        std::iter::once(frame(HEADERS, END_HEADERS, 1, &headers)).chain((0..100_000).map(|_| frame(DATA, 0, 1, &[])));
    target.flood(empty).await;
    target.serves().await;

    let grown = target.memory().saturating_sub(before);
    assert!(grown < 96, "{grown} MiB more than before");
    let books = target.end();
    // The honest ones, and of the reset ones none that was not sent.
    assert!(books.contains(" rows"), "{books}");
}

/// Streams that are asked for in earnest, and reset while they are answered.
#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_reset_are_settled() {
    use frames::{DATA, END_HEADERS, HEADERS, RST_STREAM, SETTINGS, frame};
    let target = Target::start(&[]).await;
    let body = json!({"model": "gpt-4o-mini+endless+gap=5", "stream": true, "messages": [{"role": "user", "content": "hello"}]});
    let headers = target.request_headers();
    let mut socket = target.connect().await;
    socket.write_all(&[frames::PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
    for id in (0..10_u32).map(|n| n * 2 + 1) {
        socket.write_all(&frame(HEADERS, END_HEADERS, id, &headers)).await.unwrap();
        socket.write_all(&frame(DATA, 1, id, body.to_string().as_bytes())).await.unwrap();
    }
    // Until answers come.
    let (mut seen, mut piece) = (0, [0; 4096]);
    while seen < 4_000 {
        seen += tokio::time::timeout(PATIENCE, socket.read(&mut piece)).await.unwrap().unwrap();
    }
    for id in (0..10_u32).map(|n| n * 2 + 1) {
        socket.write_all(&frame(RST_STREAM, 0, id, &[0, 0, 0, 8])).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    target.serves().await;
    let books = target.end();
    assert!(books.starts_with("11 rows"), "ten that were reset, and one: {books}");
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_do_not_slow_others() {
    let target = Target::start(&[]).await;
    target.serves().await;
    let before = target.memory();
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\n", target.token);
    let mut slow = Vec::new();
    for n in 0..300 {
        let mut socket = target.connect().await;
        let sent = match n % 12 {
            // A head that does not end, a body that does not come, an answer that is not read.
            0..6 => head.clone(),
            6..11 => format!("{head}content-type: application/json\r\ncontent-length: 1000000\r\n\r\n{{"),
            _ => {
                let body = json!({"model": "gpt-4o-mini+endless", "stream": true, "messages": [{"role": "user", "content": "hello"}]}).to_string();
                format!("{head}content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len())
            }
        };
        socket.write_all(sent.as_bytes()).await.unwrap();
        slow.push(socket);
    }
    for _ in 0..20 {
        target.serves().await;
        // One more byte of each head.
        for socket in slow.iter_mut().step_by(12) {
            let _ = socket.write_all(b"x").await;
        }
    }
    let grown = target.memory().saturating_sub(before);
    assert!(grown < 192, "{grown} MiB more with 25 streams that nobody reads");
    drop(slow);
    tokio::time::sleep(Duration::from_secs(1)).await;
    target.serves().await;
    target.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn bombs_and_monsters_are_refused_unread() {
    let target = Target::start(&[("RUST_LOG", "debug")]).await;
    let before = target.memory();
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\n", target.token);
    let json = "content-type: application/json\r\n";
    let monster = "k".repeat(1 << 20);
    let cases = [
        (format!("{head}{json}content-encoding: gzip\r\ncontent-length: 10000000\r\n\r\n"), "415"),
        (format!("{head}{json}content-encoding: gzip, identity\r\ncontent-length: 2\r\n\r\n{{}}"), "415"),
        (format!("{head}{json}content-encoding: br\r\ncontent-length: 2\r\n\r\n{{}}"), "415"),
        (format!("{head}{json}content-length: 99999999999\r\n\r\n{{"), "413"),
        // A token whose `kid` has a mebibyte, and whatever else has that much in a head.
        (format!("POST {CHAT} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {monster}.e30.e30\r\n\r\n"), "431"),
        (format!("GET /v1/models?{monster} HTTP/1.1\r\nhost: a\r\n\r\n"), "4"),
    ];
    for (request, status) in cases {
        let mut socket = target.connect().await;
        // It may close before it has read everything.
        let _ = tokio::time::timeout(PATIENCE, socket.write_all(request.as_bytes())).await;
        let mut answer = vec![0; 1024];
        let read = tokio::time::timeout(PATIENCE, socket.read(&mut answer)).await.unwrap();
        let answer = String::from_utf8_lossy(&answer[..read.unwrap_or(0)]).into_owned();
        let shown: String = request.chars().take(200).collect();
        assert!(answer.is_empty() || answer.starts_with(&format!("HTTP/1.1 {status}")), "{shown}: {answer}");
        assert!(!answer.is_empty() || request.len() > 1 << 19, "{shown}");
    }
    let grown = target.memory().saturating_sub(before);
    assert!(grown < 64, "{grown} MiB more");

    // Text that would forge or colour a line of the log.
    let forged = "x\u{1b}[31m\r\n2026-01-01T00:00:00Z  INFO alchemi: refused account=\"forged\"";
    operate(&target.url, None, "/v1/accounts", json!({"account_name": "Plain"})).await;
    for (path, body) in
        [("/v1/accounts", json!({"account_name": forged})), (CHAT, json!({"model": forged, "messages": []}))]
    {
        let request = client().post(format!("{}{path}", target.url)).bearer_auth(MASTER_KEY).json(&body);
        request.header("x-request-id", "not ours").send().await.unwrap();
    }
    target.serves().await;
    let log = target.serve.err();
    assert!(log.contains("refused") && !log.contains('\u{1b}') && !log.contains('\r'), "{log}");
    assert!(!log.lines().any(|line| line.contains("forged") && line.starts_with("2026-01-01T00:00:00Z")), "{log}");
    for secret in [MASTER_KEY, UPSTREAM_KEY, target.token.as_str()] {
        assert!(!log.contains(secret), "a secret is in the log");
    }
    target.end();
}
