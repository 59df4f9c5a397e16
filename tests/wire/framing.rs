//! Raw HTTP/1 cases: each is refused, or read as exactly as many requests as it holds.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use alchemi::proxy::wire::{GatedIo, refusal};
use proptest::prelude::*;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};

use super::raw::{exchange, statuses};
use super::server::{Gated, is_refusal};

/// What becomes of a case.
#[derive(Debug, Clone, Copy)]
enum Expect {
    /// So many requests are served, and nothing is refused.
    Served(usize),
    /// So many are served, then one is refused with this status.
    Refused(usize, u16),
    /// A request whose body breaks: 400 or closed, and nothing after it is served.
    Broken,
}
use Expect::{Broken, Refused, Served};

/// Head lines without the last empty one, and the rest.
fn post(head: &str, body: &str) -> Vec<u8> {
    format!("POST /a HTTP/1.1\r\nHost: h\r\n{head}\r\n{body}").into_bytes()
}

const NEXT: &str = "GET /b HTTP/1.1\r\nHost: h\r\n\r\n";

#[rustfmt::skip]
fn cases() -> Vec<(&'static str, Vec<u8>, Expect)> {
    let text = |text: &str| text.as_bytes().to_vec();
    let mut huge = b"GET /a HTTP/1.1\r\nHost: h\r\nX: ".to_vec();
    huge.resize(33 * 1024, b'x');
    huge.extend_from_slice(b"\r\n\r\n");
    let many = format!("GET /a HTTP/1.1\r\nHost: h\r\n{}\r\n", "X: y\r\n".repeat(101));
    let mut binary = post("Content-Length: 4\r\n", "");
    binary.extend_from_slice(b"\r\n\n\x00");
    binary.extend_from_slice(NEXT.as_bytes());
    vec![
        // plain
        ("get", text(NEXT), Served(1)),
        ("two pipelined", text(&NEXT.repeat(2)), Served(2)),
        ("five pipelined", text(&NEXT.repeat(5)), Served(5)),
        ("empty line before", text(&format!("\r\n\r\n{NEXT}")), Served(1)),
        ("empty line between", text(&format!("{NEXT}\r\n{NEXT}")), Served(2)),
        ("length then next", post("Content-Length: 5\r\n", &format!("hello{NEXT}")), Served(2)),
        ("length zero then next", post("Content-Length: 0\r\n", NEXT), Served(2)),
        ("no length then next", post("", NEXT), Served(2)),
        ("body of line feeds", binary, Served(2)),
        ("body that looks like a bad head", post("Content-Length: 30\r\n", &format!("GET / HTTP/1.1\nHost: x\nA: b\n\n {NEXT}")), Served(2)),
        ("chunked", post("Transfer-Encoding: chunked\r\n", &format!("5\r\nhello\r\n0\r\n\r\n{NEXT}")), Served(2)),
        ("chunked in capitals", post("TRANSFER-ENCODING: Chunked\r\n", &format!("A\r\n0123456789\r\n0\r\n\r\n{NEXT}")), Served(2)),
        ("chunk extension", post("Transfer-Encoding: chunked\r\n", &format!("5;a=b\r\nhello\r\n0;z\r\n\r\n{NEXT}")), Served(2)),
        ("chunk padded size", post("Transfer-Encoding: chunked\r\n", &format!("005 \r\nhello\r\n000\r\n\r\n{NEXT}")), Served(2)),
        ("chunk of framing bytes", post("Transfer-Encoding: chunked\r\n", &format!("7\r\n0\r\n\r\n\r\n\r\n0\r\n\r\n{NEXT}")), Served(2)),
        ("trailers", post("Transfer-Encoding: chunked\r\n", &format!("0\r\nX: y\r\nZ: a\r\n\r\n{NEXT}")), Served(2)),
        ("padded length value", post("Content-Length:\t 5 \r\n", &format!("hello{NEXT}")), Served(2)),
        ("http 1.0", text("GET /a HTTP/1.0\r\nHost: h\r\n\r\n"), Served(1)),
        ("http 1.0 with a length", text("POST /a HTTP/1.0\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi"), Served(1)),
        ("close, then more", text(&format!("GET /a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n{NEXT}")), Served(1)),
        ("upgrade, then next", text(&format!("GET /a HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n{NEXT}")), Served(2)),
        ("absolute form", text("GET http://h/a HTTP/1.1\r\nHost: h\r\n\r\n"), Served(1)),
        // line ends
        ("bare lf everywhere", text("GET /a HTTP/1.1\nHost: h\n\n"), Refused(0, 400)),
        ("bare lf after request line", text("GET /a HTTP/1.1\nHost: h\r\n\r\n"), Refused(0, 400)),
        ("bare lf splits a value", text("GET /a HTTP/1.1\r\nHost: h\r\nX: y\nX-Account-Id: evil\r\n\r\n"), Refused(0, 400)),
        ("bare lf ends the head", text("GET /a HTTP/1.1\r\nHost: h\r\n\n"), Refused(0, 400)),
        ("bare lf before", text(&format!("\n{NEXT}")), Refused(0, 400)),
        ("bare lf in the second", text(&format!("{NEXT}GET /b HTTP/1.1\nHost: h\r\n\r\n")), Refused(1, 400)),
        ("bare lf after a body", post("Content-Length: 5\r\n", "helloGET /b HTTP/1.1\r\nHost: h\nX: y\r\n\r\n"), Refused(1, 400)),
        ("bare lf after chunks", post("Transfer-Encoding: chunked\r\n", "0\r\n\r\nGET /b HTTP/1.1\r\nHost: h\nX: y\r\n\r\n"), Refused(1, 400)),
        ("bare cr", text("GET /a HTTP/1.1\r\nHost: h\r\nX: a\rb\r\n\r\n"), Refused(0, 400)),
        ("nul", text("GET /a HTTP/1.1\r\nHost: h\r\nX: a\0b\r\n\r\n"), Refused(0, 400)),
        ("obs-fold", text("GET /a HTTP/1.1\r\nHost: h\r\nX: a\r\n b\r\n\r\n"), Refused(0, 400)),
        ("obs-fold with a tab", text("GET /a HTTP/1.1\r\nHost: h\r\nX: a\r\n\tb\r\n\r\n"), Refused(0, 400)),
        ("fold before the first header", text("GET /a HTTP/1.1\r\n Host: h\r\n\r\n"), Refused(0, 400)),
        // lengths
        ("two equal lengths", post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"), Refused(0, 400)),
        ("two differing lengths", post("Content-Length: 5\r\nContent-Length: 6\r\n", "hello"), Refused(0, 400)),
        ("length list", post("Content-Length: 5, 5\r\n", "hello"), Refused(0, 400)),
        ("length with zeros", post("Content-Length: 005\r\n", "hello"), Refused(0, 400)),
        ("length with plus", post("Content-Length: +5\r\n", "hello"), Refused(0, 400)),
        ("length negative", post("Content-Length: -1\r\n", ""), Refused(0, 400)),
        ("length in hex", post("Content-Length: 0x5\r\n", "hello"), Refused(0, 400)),
        ("length of words", post("Content-Length: five\r\n", "hello"), Refused(0, 400)),
        ("length empty", post("Content-Length:\r\n", "hello"), Refused(0, 400)),
        ("length inner space", post("Content-Length: 1 0\r\n", "0123456789"), Refused(0, 400)),
        ("length overflow", post("Content-Length: 18446744073709551616\r\n", ""), Refused(0, 400)),
        ("length in other digits", post("Content-Length: \u{0665}\r\n", "hello"), Refused(0, 400)),
        ("space before colon", post("Content-Length : 5\r\n", "hello"), Refused(0, 400)),
        ("length and chunked", post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), Refused(0, 400)),
        ("chunked and length", post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"), Refused(0, 400)),
        ("chunked and length zero", post("Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", "0\r\n\r\n"), Refused(0, 400)),
        // transfer codings
        ("identity", post("Transfer-Encoding: identity\r\n", ""), Refused(0, 400)),
        ("gzip, chunked", post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"), Refused(0, 400)),
        ("chunked, identity", post("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"), Refused(0, 400)),
        ("chunked, chunked", post("Transfer-Encoding: chunked, chunked\r\n", "0\r\n\r\n"), Refused(0, 400)),
        ("chunked twice", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), Refused(0, 400)),
        ("gzip and chunked on two lines", post("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), Refused(0, 400)),
        ("xchunked", post("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"), Refused(0, 400)),
        ("chunked with parameter", post("Transfer-Encoding: chunked;q=1\r\n", "0\r\n\r\n"), Refused(0, 400)),
        ("chunked quoted", post("Transfer-Encoding: \"chunked\"\r\n", "0\r\n\r\n"), Refused(0, 400)),
        ("vertical tab", post("Transfer-Encoding: \x0bchunked\r\n", "0\r\n\r\n"), Refused(0, 400)),
        ("coding space before colon", post("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"), Refused(0, 400)),
        ("coding empty", post("Transfer-Encoding:\r\n", "0\r\n\r\n"), Refused(0, 400)),
        ("coding in 1.0", text("POST /a HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), Refused(0, 400)),
        // chunks
        ("chunk lf only", post("Transfer-Encoding: chunked\r\n", &format!("5\nhello\n0\n\n{NEXT}")), Broken),
        ("chunk too long for its size", post("Transfer-Encoding: chunked\r\n", &format!("3\r\nhello\r\n0\r\n\r\n{NEXT}")), Broken),
        ("chunk size overflow", post("Transfer-Encoding: chunked\r\n", &format!("10000000000000000\r\n{NEXT}")), Broken),
        ("chunk size 0x", post("Transfer-Encoding: chunked\r\n", &format!("0x1\r\na\r\n0\r\n\r\n{NEXT}")), Broken),
        ("chunk size negative", post("Transfer-Encoding: chunked\r\n", &format!("-1\r\n\r\n{NEXT}")), Broken),
        ("chunk size missing", post("Transfer-Encoding: chunked\r\n", &format!("\r\n\r\n{NEXT}")), Broken),
        ("lf in chunk extension", post("Transfer-Encoding: chunked\r\n", &format!("1;a\nb\r\na\r\n0\r\n\r\n{NEXT}")), Broken),
        ("nul in chunk extension", post("Transfer-Encoding: chunked\r\n", &format!("1;a\0b\r\na\r\n0\r\n\r\n{NEXT}")), Broken),
        ("delete in chunk extension", post("Transfer-Encoding: chunked\r\n", &format!("1;\x7f\r\na\r\n0\r\n\r\n{NEXT}")), Broken),
        ("cr in chunk extension", post("Transfer-Encoding: chunked\r\n", &format!("1;a\rb\r\na\r\n0\r\n\r\n{NEXT}")), Broken),
        ("control begins a trailer", post("Transfer-Encoding: chunked\r\n", &format!("0\r\n\x01X: y\r\n\r\n{NEXT}")), Broken),
        ("cr in trailers", post("Transfer-Encoding: chunked\r\n", &format!("0\r\nX: \ry\r\n\r\n{NEXT}")), Broken),
        ("control in trailers", post("Transfer-Encoding: chunked\r\n", &format!("0\r\nX: \x0by\r\n\r\n{NEXT}")), Broken),
        ("tab in chunk extension", post("Transfer-Encoding: chunked\r\n", &format!("5;a=\tb\r\nhello\r\n0\r\n\r\n{NEXT}")), Served(2)),
        ("lf in trailers", post("Transfer-Encoding: chunked\r\n", &format!("0\r\nX: y\nX-Account-Id: evil\r\n\r\n{NEXT}")), Broken),
        ("lf lf in trailers", post("Transfer-Encoding: chunked\r\n", &format!("0\r\nX: y\n\n{NEXT}")), Broken),
        ("lf instead of trailers", post("Transfer-Encoding: chunked\r\n", &format!("0\r\n\n{NEXT}")), Broken),
        // host
        ("no host", text("GET /a HTTP/1.1\r\n\r\n"), Refused(0, 400)),
        ("two hosts", text("GET /a HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n"), Refused(0, 400)),
        ("empty host", text("GET /a HTTP/1.1\r\nHost:\r\n\r\n"), Refused(0, 400)),
        ("host with path", text("GET /a HTTP/1.1\r\nHost: h/?\r\n\r\n"), Refused(0, 400)),
        ("host with user", text("GET /a HTTP/1.1\r\nHost: u@h\r\n\r\n"), Refused(0, 400)),
        ("authority differs", text("GET http://x/a HTTP/1.1\r\nHost: h\r\n\r\n"), Refused(0, 400)),
        // target and version
        ("fragment", text("GET /a#b HTTP/1.1\r\nHost: h\r\n\r\n"), Refused(0, 400)),
        ("fragment in query", text("GET /a?b#c HTTP/1.1\r\nHost: h\r\n\r\n"), Refused(0, 400)),
        ("raw utf-8 target", text("GET /caf\u{e9} HTTP/1.1\r\nHost: h\r\n\r\n"), Refused(0, 400)),
        ("raw utf-8 query", text("GET /a?q=\u{e9} HTTP/1.1\r\nHost: h\r\n\r\n"), Refused(0, 400)),
        ("raw latin-1 target", b"GET /caf\xe9 HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(), Refused(0, 400)),
        ("space in target", text("GET /a b HTTP/1.1\r\nHost: h\r\n\r\n"), Refused(0, 400)),
        ("no target", text("GET  HTTP/1.1\r\nHost: h\r\n\r\n"), Refused(0, 400)),
        ("bracket in path", text("GET /<a> HTTP/1.1\r\nHost: h\r\n\r\n"), Refused(0, 400)),
        ("back tick in path", text("GET /a` HTTP/1.1\r\nHost: h\r\n\r\n"), Refused(0, 400)),
        ("bracket in query", text("GET /a?q=<x> HTTP/1.1\r\nHost: h\r\n\r\n"), Refused(0, 400)),
        ("relative target", text("GET foo/bar HTTP/1.1\r\nHost: h\r\n\r\n"), Refused(0, 400)),
        ("query alone", text("GET ?x HTTP/1.1\r\nHost: h\r\n\r\n"), Refused(0, 400)),
        ("no authority", text("GET http:///a HTTP/1.1\r\nHost: h\r\n\r\n"), Refused(0, 400)),
        ("two spaces", text("GET  /a HTTP/1.1\r\nHost: h\r\n\r\n"), Refused(0, 400)),
        ("asterisk", text("OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n"), Refused(0, 400)),
        ("connect", text("CONNECT h:80 HTTP/1.1\r\nHost: h:80\r\n\r\n"), Refused(0, 400)),
        ("version 2.0", text("GET /a HTTP/2.0\r\nHost: h\r\n\r\n"), Refused(0, 400)),
        ("version 0.9", text("GET /a\r\n\r\n"), Refused(0, 400)),
        ("version in lower case", text("GET /a http/1.1\r\nHost: h\r\n\r\n"), Refused(0, 400)),
        ("get with a body", text("GET /a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"), Refused(0, 400)),
        ("get with chunks", text("GET /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), Refused(0, 400)),
        ("header without colon", text("GET /a HTTP/1.1\r\nHost: h\r\nnonsense\r\n\r\n"), Refused(0, 400)),
        ("header without name", text("GET /a HTTP/1.1\r\nHost: h\r\n: x\r\n\r\n"), Refused(0, 400)),
        // sizes
        ("101 headers", text(&many), Refused(0, 431)),
        ("33 KiB head", huge, Refused(0, 431)),
        // the gate's own path
        ("own path", text("GET /.alchemi/refused/target HTTP/1.1\r\nHost: h\r\n\r\n"), Refused(0, 400)),
        ("own path, unknown", text("GET /.alchemi/refused/x HTTP/1.1\r\nHost: h\r\n\r\n"), Refused(0, 400)),
        // unfinished
        ("half a head", text("GET /a HTTP/1.1\r\nHost:"), Served(0)),
        ("half a preface", text("PRI * HTTP/2.0\r\n\r\nSM"), Served(0)),
    ]
}

async fn check(server: &Gated, name: &str, bytes: &[u8], split: bool, expect: Expect) {
    let step = if split { 1 } else { bytes.len().max(1) };
    let answer = exchange(server.address, bytes.chunks(step)).await;
    let served = server.take_served();
    let statuses = statuses(&answer);
    let refused: Vec<u16> = statuses.iter().copied().filter(|status| *status != 200).collect();
    let context = format!("{name} (split: {split}): served {served}, answered {statuses:?}");
    match expect {
        Served(n) => assert!(served == n && refused.is_empty(), "{context}"),
        Refused(n, status) => {
            assert!(served == n && refused == [status], "{context}");
            assert!(is_refusal(&answer), "{context}: {answer}");
        }
        Broken => assert!(served == 1 && statuses.iter().all(|status| *status == 400), "{context}"),
    }
    assert!(!answer.contains("evil"), "{context}");
}

#[tokio::test]
async fn every_case_is_refused_or_read_as_what_it_holds() {
    let server = Gated::start().await;
    let cases = cases();
    assert!(cases.len() >= 63);
    for (name, bytes, expect) in &cases {
        check(&server, name, bytes, false, *expect).await;
        if bytes.len() < 4096 {
            check(&server, name, bytes, true, *expect).await;
        }
    }
}

#[tokio::test]
async fn names_are_tokens_and_values_hold_no_control_character() {
    let server = Gated::start().await;
    for byte in 0..=u8::MAX {
        let with = |before: &str, after: &str| [before.as_bytes(), &[byte], after.as_bytes()].concat();
        // A second colon is the value's.
        let in_names = byte == b':' || byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        let named = with("GET / HTTP/1.1\r\nHost: h\r\nX", "y: z\r\n\r\n");
        let answer = exchange(server.address, [&named[..]]).await;
        assert_eq!(answer.starts_with("HTTP/1.1 200 "), in_names, "{byte:#x} in a name: {answer}");
        let in_values = byte == b'\t' || !byte.is_ascii_control();
        let valued = with("GET / HTTP/1.1\r\nHost: h\r\nX: y", "z\r\n\r\n");
        let answer = exchange(server.address, [&valued[..]]).await;
        assert_eq!(answer.starts_with("HTTP/1.1 200 "), in_values, "{byte:#x} in a value: {answer}");
    }
}

#[tokio::test]
async fn a_refusal_is_a_problem_that_says_what_is_wrong() {
    let server = Gated::start().await;
    for (bytes, code, text) in [
        (&b"GET / HTTP/1.1\nHost: h\n\n"[..], "malformed_request", "carriage return"),
        (b"GET /#x HTTP/1.1\r\nHost: h\r\n\r\n", "invalid_path", "fragment"),
        (b"get\t/ HTTP/1.1\r\nHost: h\r\n\r\n", "malformed_request", "a method, a target"),
        (b"GET / HTTP/1.1\r\nHost : h\r\n\r\n", "malformed_request", "a colon without a space"),
        (b"GET / HTTP/1.1\r\nHost: h\r\nX: \x7f\r\n\r\n", "malformed_request", "control characters"),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 05\r\n\r\nhello", "malformed_request", "leading zeros"),
    ] {
        let answer = exchange(server.address, [bytes]).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert!(
            answer.contains("application/problem+json") && answer.contains(code) && answer.contains(text),
            "{answer}"
        );
    }
    for (kibibytes, status) in [(31, "HTTP/1.1 200 "), (33, "HTTP/1.1 431 ")] {
        let long = [b"GET /a HTTP/1.1\r\nHost: h\r\nX: ", &*vec![b'x'; kibibytes * 1024], b"\r\n\r\n"].concat();
        let answer = exchange(server.address, [&long[..]]).await;
        assert!(answer.starts_with(status), "{answer}");
    }
    assert_eq!(refusal("/.alchemi/refused").map(|p| p.status()), None);
}

#[tokio::test]
async fn http2_passes_untouched() {
    let server = Gated::start().await;
    let socket = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let executor = hyper_util::rt::TokioExecutor::new();
    let io = hyper_util::rt::TokioIo::new(socket);
    let (mut client, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..3 {
        let body = http_body_util::Full::new(bytes::Bytes::from_static(b"line\nfeeds\n"));
        let request = http::Request::post("http://h/a").body(body).unwrap();
        assert_eq!(client.send_request(request).await.unwrap().status(), 200);
    }
    assert_eq!(server.take_served(), 3);
}

/// A socket that gives its bytes in given pieces.
struct Pieces {
    bytes: Vec<u8>,
    at: usize,
    sizes: Vec<usize>,
}

impl AsyncRead for Pieces {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // Every other read has to wait, as on a socket.
        match self.sizes.pop() {
            Some(0) => {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            size => {
                let left = self.bytes.len() - self.at;
                let n = size.unwrap_or(left).min(left).min(buf.remaining());
                buf.put_slice(&self.bytes[self.at..self.at + n]);
                self.at += n;
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Everything that can be read through the gate before it ends or hides the rest.
fn through_the_gate(bytes: &[u8], sizes: Vec<usize>, window: usize) -> (Vec<u8>, bool) {
    let mut gate = GatedIo::new(Pieces { bytes: bytes.to_vec(), at: 0, sizes });
    let mut out = Vec::new();
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let mut pending = 0;
    let mut window = vec![0; window];
    loop {
        let mut buf = ReadBuf::new(&mut window);
        match Pin::new(&mut gate).poll_read(&mut cx, &mut buf) {
            Poll::Ready(Ok(())) if buf.filled().is_empty() => return (out, false),
            Poll::Ready(Ok(())) => {
                out.extend_from_slice(buf.filled());
                pending = 0;
            }
            Poll::Ready(Err(_)) => return (out, true),
            // More waits than pieces: it hides the rest.
            Poll::Pending if pending > bytes.len() + 64 => return (out, false),
            Poll::Pending => pending += 1,
        }
    }
}

#[test]
fn no_split_of_any_case_changes_what_is_read() {
    for (name, bytes, _) in cases().into_iter().filter(|(_, bytes, _)| bytes.len() < 4096) {
        let whole = through_the_gate(&bytes, vec![], 1 << 16);
        for at in 1..bytes.len() {
            assert_eq!(through_the_gate(&bytes, vec![at], 1 << 16), whole, "{name} split at {at}");
        }
        assert_eq!(through_the_gate(&bytes, vec![1; bytes.len()], 1 << 16), whole, "{name} byte by byte");
        assert_eq!(through_the_gate(&bytes, vec![], 7), whole, "{name} with a small buffer");
    }
}

#[tokio::test]
async fn clean_bytes_come_out_as_they_went_in() {
    for (name, bytes, expect) in cases() {
        if matches!(expect, Served(n) if n > 0) {
            let mut gate = GatedIo::new(&bytes[..]);
            let mut out = Vec::new();
            gate.read_to_end(&mut out).await.unwrap();
            assert_eq!(out, bytes, "{name}");
        }
    }
}

/// What comes through a gate on whose other side `head` was sent, `answers` were written, and then `later` was sent.
async fn after(head: &[u8], answers: &[&[u8]], later: &[u8]) -> Vec<u8> {
    let (mut client, server) = tokio::io::duplex(1 << 16);
    let mut gate = GatedIo::new(server);
    client.write_all(head).await.unwrap();
    let mut seen = vec![0; head.len()];
    gate.read_exact(&mut seen).await.unwrap();
    assert_eq!(seen, head);
    for answer in answers {
        gate.write_all(answer).await.unwrap();
    }
    client.write_all(later).await.unwrap();
    let mut seen = vec![0; 1 << 12];
    let read = gate.read(&mut seen).await.unwrap();
    seen.truncate(read);
    seen
}

#[tokio::test]
async fn a_connection_that_is_switched_passes_untouched_and_no_other_does() {
    let asking = b"GET /a HTTP/1.1\r\nHost: h\r\nUPGRADE: x\r\nConnection: upgrade\r\n\r\n";
    let plain = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n";
    let twice = [&plain[..], &asking[..]].concat();
    let (switched, ok) =
        (&b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"[..], &b"HTTP/1.1 200 OK\r\n\r\n"[..]);
    let frame = b"\x81\x05a\nbcd";
    assert_eq!(after(asking, &[switched], frame).await, frame);
    // Whatever an answer that is none of that says.
    for (head, answers) in [
        (&asking[..], vec![ok, switched]),
        (&asking[..], vec![b"HTTP/1.1 100 Continue\r\n\r\n", switched]),
        (&plain[..], vec![switched]),
        (&twice[..], vec![switched]),
        (&twice[..], vec![ok, switched]),
    ] {
        let seen = after(head, &answers, frame).await;
        assert!(seen.starts_with(b"GET /.alchemi/refused/"), "{}", String::from_utf8_lossy(&seen));
    }
    // What comes before the 101 is taken for a head: then there is no other protocol to speak.
    let (mut client, server) = tokio::io::duplex(1 << 16);
    let mut gate = GatedIo::new(server);
    client.write_all(&[&asking[..], frame].concat()).await.unwrap();
    let mut seen = vec![0; asking.len() + 20];
    gate.read_exact(&mut seen).await.unwrap();
    assert!(seen.ends_with(b"GET /.alchemi/refuse"), "{}", String::from_utf8_lossy(&seen));
    gate.write_all(switched).await.unwrap();
    assert!(gate.read(&mut seen).await.is_err());
}

/// What messages are made of, whole and broken.
const PARTS: [&[u8]; 17] = [
    b"GET /a HTTP/1.1\r\n",
    b"POST /b HTTP/1.1\r\n",
    b"Host: h\r\n",
    b"\r\n",
    b"\n",
    b"\r",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"abc",
    b"3\r\nabc\r\n",
    b"0\r\n\r\n",
    b"0\r\nX: y\r\n\r\n",
    b"X: y\r\n",
    b" ",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\xff",
    b"#",
];

proptest! {
    /// Whatever comes, in whatever pieces: no panic, and the same bytes as in one piece.
    #[test]
    fn pieces_never_matter(
        parts in prop::collection::vec(prop::sample::select(&PARTS[..]), 0..24),
        sizes in prop::collection::vec(0_usize..40, 0..40),
        window in 1_usize..200,
    ) {
        let bytes = parts.concat();
        prop_assert_eq!(through_the_gate(&bytes, sizes, window), through_the_gate(&bytes, vec![], 1 << 16));
    }
}
