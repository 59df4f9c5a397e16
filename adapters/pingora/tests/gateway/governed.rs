//! Requests through the whole pipeline, from pingora's session to a service and back.

use std::convert::Infallible;
use std::time::Duration;

use alchemi::credits::Credits;
use alchemi::proxy::forward::Outgoing;
use axum::body::{Body, to_bytes};
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tower::service_fn;

use super::raw::{PATIENCE, exchange, statuses};
use super::server::{serve, serve_beside};
use super::tower_stack::{Stack, parrot};

type Client = http1::SendRequest<Body>;

async fn connect(address: std::net::SocketAddr) -> Client {
    let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (client, connection) = http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn send(client: &mut Client, request: Request<Body>) -> (StatusCode, Value) {
    timeout(PATIENCE, client.ready()).await.unwrap().expect("the connection is kept");
    let answer = timeout(PATIENCE, client.send_request(request)).await.unwrap().unwrap();
    let status = answer.status();
    (status, serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap())
}

/// Waits until the ledger says so.
async fn spends(stack: &Stack, credits: &str) {
    let mut spent = String::new();
    for _ in 0..PATIENCE.as_millis() / 20 {
        spent = stack.spent().await.unwrap().to_string();
        if spent == credits {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(spent, credits);
}

#[tokio::test]
async fn who_may_is_answered_and_pays_and_who_may_not_is_told_why() {
    let stack = Stack::over(service_fn(parrot), "0.03").await.unwrap();
    let address = serve(stack.service.clone()).await;
    // One connection for all of them: a refusal does not cost the client its connection.
    let mut client = connect(address).await;
    let mut answers = Vec::new();
    for model in ["raven", "parrot", "parrot", "parrot"] {
        answers.push(send(&mut client, stack.question(model).unwrap()).await);
    }
    let statuses: Vec<_> = answers.iter().map(|(status, _)| status.as_u16()).collect();
    assert_eq!(statuses, [403, 200, 200, 402], "{answers:?}");
    assert_eq!(answers[0].1["error"]["code"], "model_denied");
    assert_eq!(answers[1].1["choices"][0]["message"]["content"], "Pretty Polly");
    assert_eq!(answers[1].1["user"], "ada");
    assert_eq!(answers[3].1["error"]["code"], "allocation_exhausted");
    spends(&stack, "0.024").await;
    // The control plane is beside it.
    let context = Request::get("/v1/me/context").header(header::HOST, "h");
    let context = context.header(header::AUTHORIZATION, format!("Bearer {}", stack.token)).body(Body::empty()).unwrap();
    let (status, context) = send(&mut client, context).await;
    assert_eq!((status.as_u16(), &context["auth_provider"]), (200, &json!("zitadel")), "{context}");

    let mut forged = stack.question("parrot").unwrap();
    forged.headers_mut().insert(header::AUTHORIZATION, "Bearer a.b.c".parse().unwrap());
    let answer = timeout(PATIENCE, client.send_request(forged)).await.unwrap().unwrap();
    assert_eq!(answer.status(), 401);
    assert!(answer.headers().contains_key(header::WWW_AUTHENTICATE));
}

#[tokio::test]
async fn http2_is_governed_alike() {
    let stack = Stack::over(service_fn(parrot), "0.03").await.unwrap();
    let address = serve(stack.service.clone()).await;
    let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (mut client, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    for (model, status) in [("parrot", 200), ("raven", 403), ("parrot", 200), ("parrot", 402)] {
        let mut request = stack.question(model).unwrap();
        *request.uri_mut() = "http://gateway.example/v1/chat/completions".parse().unwrap();
        request.headers_mut().remove(header::HOST);
        assert_eq!(client.send_request(request).await.unwrap().status(), status, "{model}");
    }
    spends(&stack, "0.024").await;
}

#[tokio::test]
async fn context_headers_of_the_client_do_not_pass() {
    let seen = |request: Request<Outgoing>| async move {
        let named: Vec<_> = request.headers().iter().filter(|(name, _)| name.as_str().contains("subject")).collect();
        let text = format!("{named:?}");
        Ok::<_, Infallible>(Response::new(Body::from(json!({"seen": text, "usage": {}}).to_string())))
    };
    let stack = Stack::over(service_fn(seen), "0.03").await.unwrap();
    let mut client = connect(serve(stack.service.clone()).await).await;
    let mut request = stack.question("parrot").unwrap();
    for name in ["x-alchemi-subject", "x_alchemi_subject", "x.alchemi-subject"] {
        request.headers_mut().insert(name, "evil".parse().unwrap());
    }
    request.headers_mut().insert(header::CONNECTION, "x-alchemi-subject".parse().unwrap());
    let (status, body) = send(&mut client, request).await;
    assert_eq!(status, 200, "{body}");
    let seen = body["seen"].as_str().unwrap();
    assert!(seen == r#"[("x-alchemi-subject", "ada")]"#, "{body}");
}

/// Streams that a test feeds, one for each request.
type Feed = mpsc::Sender<Result<Frame<Bytes>, Infallible>>;

/// A stack over a service whose answers are event streams; whoever asks is given what feeds the next one.
async fn streams() -> (Stack, mpsc::Receiver<Feed>) {
    let (feeds, asked) = mpsc::channel(4);
    let answer = move |_: Request<Outgoing>| {
        let (feed, mut frames) = mpsc::channel(1);
        feeds.try_send(feed).unwrap();
        let body = Body::new(StreamBody::new(futures_util::stream::poll_fn(move |cx| frames.poll_recv(cx))));
        let answer = Response::builder().header(header::CONTENT_TYPE, "text/event-stream").body(body);
        std::future::ready(Ok::<_, Infallible>(answer.unwrap()))
    };
    (Stack::over(service_fn(answer), "0.03").await.unwrap(), asked)
}

fn event(value: &Value) -> Result<Frame<Bytes>, Infallible> {
    Ok(Frame::data(Bytes::from(format!("data: {value}\n\n"))))
}

fn streamed(stack: &Stack) -> Request<Body> {
    let asked = json!({"model": "parrot", "max_tokens": 4, "stream": true, "messages": [{"role": "user", "content": "Pretty Polly"}]});
    let (parts, _) = stack.question("parrot").unwrap().into_parts();
    Request::from_parts(parts, Body::from(asked.to_string()))
}

#[tokio::test]
async fn events_pass_as_they_come_and_are_paid() {
    let (stack, mut asked) = streams().await;
    let mut client = connect(serve(stack.service.clone()).await).await;
    for _ in 0..2 {
        let answer = timeout(PATIENCE, client.send_request(streamed(&stack))).await.unwrap().unwrap();
        assert_eq!(answer.status(), 200);
        let feed = asked.recv().await.unwrap();
        let mut body = answer.into_body();
        // Each is read before the next one is made.
        for word in ["Pretty", "Polly"] {
            feed.send(event(&json!({"choices": [{"index": 0, "delta": {"content": word}}]}))).await.unwrap();
            let frame = timeout(PATIENCE, body.frame()).await.unwrap().unwrap().unwrap();
            assert!(String::from_utf8_lossy(frame.data_ref().unwrap()).contains(word));
        }
        feed.send(event(&json!({"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 2}}))).await.unwrap();
        feed.send(Ok(Frame::data(Bytes::from_static(b"data: [DONE]\n\n")))).await.unwrap();
        drop(feed);
        let rest = timeout(PATIENCE, body.collect()).await.unwrap().unwrap().to_bytes();
        assert!(rest.ends_with(b"data: [DONE]\n\n"), "{rest:?}");
    }
    spends(&stack, "0.016").await;
}

#[tokio::test]
async fn who_leaves_in_a_stream_stops_it_and_pays_for_what_came() {
    let (stack, mut asked) = streams().await;
    let mut client = connect(serve(stack.service.clone()).await).await;
    let answer = timeout(PATIENCE, client.send_request(streamed(&stack))).await.unwrap().unwrap();
    let feed = asked.recv().await.unwrap();
    let mut body = answer.into_body();
    feed.send(event(&json!({"choices": [{"index": 0, "delta": {"content": "Pretty"}}]}))).await.unwrap();
    timeout(PATIENCE, body.frame()).await.unwrap().unwrap().unwrap();
    drop((body, client));
    // Nobody has to write for the end to be seen.
    timeout(PATIENCE, feed.closed()).await.expect("the stream is stopped");
    let free = Credits::ZERO;
    let mut spent = free;
    for _ in 0..PATIENCE.as_millis() / 20 {
        spent = stack.spent().await.unwrap();
        if spent > free {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(spent > free, "what came is paid");
}

#[tokio::test]
async fn who_leaves_before_the_answer_stops_the_service() {
    /// Tells when it is dropped.
    struct Told(Option<oneshot::Sender<()>>);
    impl Drop for Told {
        fn drop(&mut self) {
            let _ = self.0.take().unwrap().send(());
        }
    }
    let (calls, mut called) = mpsc::channel(1);
    let never = move |_: Request<Outgoing>| {
        let calls = calls.clone();
        async move {
            let (gone, dropped) = oneshot::channel();
            let _told = Told(Some(gone));
            calls.send(dropped).await.unwrap();
            std::future::pending::<Result<Response<Body>, Infallible>>().await
        }
    };
    let stack = Stack::over(service_fn(never), "0.03").await.unwrap();
    let address = serve(stack.service.clone()).await;
    let mut client = connect(address).await;
    let asking = tokio::spawn(client.send_request(stack.question("parrot").unwrap()));
    let dropped = timeout(PATIENCE, called.recv()).await.unwrap().unwrap();
    asking.abort();
    drop(client);
    timeout(PATIENCE, dropped).await.expect("the service is stopped").unwrap();
}

fn long_question(bytes: usize) -> String {
    json!({"model": "parrot", "max_tokens": 4, "messages": [{"role": "user", "content": "x".repeat(bytes)}]})
        .to_string()
}

#[tokio::test]
async fn long_bodies_arrive_whole_however_they_come() {
    let measured = |request: Request<Outgoing>| async move {
        let bytes = to_bytes(Body::new(request.into_body()), 1 << 24).await.unwrap();
        let asked: Value = serde_json::from_slice(&bytes).unwrap();
        let length = asked["messages"][0]["content"].as_str().unwrap().len();
        Ok::<_, Infallible>(Response::new(Body::from(json!({"length": length, "usage": {}}).to_string())))
    };
    let stack = Stack::over(service_fn(measured), "1000000").await.unwrap();
    let mut client = connect(serve(stack.service.clone()).await).await;
    let pieces = |text: String| {
        let pieces: Vec<_> = text.into_bytes().chunks(10_000).map(Bytes::copy_from_slice).collect();
        StreamBody::new(futures_util::stream::iter(
            pieces.into_iter().map(|piece| Ok::<_, Infallible>(Frame::data(piece))),
        ))
    };
    for (length, expects) in [(0, false), (2_000_000, false), (2_000_000, true)] {
        let text = long_question(length);
        for body in [Body::from(text.clone()), Body::new(pieces(text))] {
            assert!(body.size_hint().exact().is_none_or(|exact| exact > length as u64));
            let (mut parts, _) = stack.question("parrot").unwrap().into_parts();
            if expects {
                parts.headers.insert(header::EXPECT, "100-continue".parse().unwrap());
            }
            let (status, answer) = send(&mut client, Request::from_parts(parts, body)).await;
            assert_eq!((status.as_u16(), &answer["length"]), (200, &json!(length)), "{answer}");
        }
    }
}

#[tokio::test]
async fn a_refusal_does_not_wait_for_the_body_nor_read_it_as_a_request() {
    let stack = Stack::over(service_fn(parrot), "0.03").await.unwrap();
    let address = serve(stack.service.clone()).await;
    let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n";
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let mut start = [0; 12];
    timeout(PATIENCE, socket.read_exact(&mut start)).await.unwrap().unwrap();
    assert_eq!(&start, b"HTTP/1.1 401");
    // The connection may be closed already.
    let _ = socket.write_all(b"GET /v1/models HTTP/1.1\r\nHost: h\r\n\r\n").await;
    let _ = timeout(PATIENCE, socket.read_to_end(&mut answer)).await.expect("the server closes");
    assert!(!String::from_utf8_lossy(&answer).contains("HTTP/1.1 "), "{}", String::from_utf8_lossy(&answer));
}

/// A request of Ada's as bytes, with whatever stands behind it.
fn raw(stack: &Stack, version: &str, more: &str, behind: &str) -> Vec<u8> {
    let body = r#"{"model": "parrot", "max_tokens": 4, "messages": [{"role": "user", "content": "Pretty Polly"}]}"#;
    format!(
        "POST /v1/chat/completions {version}\r\nHost: h\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n\
         {more}Content-Length: {}\r\n\r\n{body}{behind}",
        stack.token,
        body.len(),
    )
    .into_bytes()
}

#[tokio::test]
async fn what_comes_behind_a_request_costs_it_nothing() {
    let stack = Stack::over(service_fn(parrot), "100").await.unwrap();
    let address = serve(stack.service.clone()).await;
    let next = "GET /v1/models HTTP/1.1\r\nHost: h\r\n\r\n";
    let bad = "GET /x HTTP/1.1\nHost: h\n\n";
    for (behind, expected) in [("", vec![200]), (next, vec![200, 401]), (bad, vec![200, 400])] {
        for split in [false, true] {
            let bytes = raw(&stack, "HTTP/1.1", "", behind);
            let (first, second) = bytes.split_at(if split { bytes.len() - behind.len() } else { 0 });
            let answer = ask(address, &[first, second], expected.len()).await;
            assert_eq!(statuses(&answer), expected, "{answer}");
        }
    }
}

/// What is answered to bytes behind which the client waits, so far as there are `answers` of it or it ends.
async fn ask(address: std::net::SocketAddr, pieces: &[&[u8]], answers: usize) -> String {
    let mut socket = TcpStream::connect(address).await.unwrap();
    for piece in pieces {
        socket.write_all(piece).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut answer = String::new();
    loop {
        let mut piece = [0; 4096];
        let read = timeout(PATIENCE, socket.read(&mut piece)).await.expect("an answer, or an end").unwrap();
        answer.push_str(&String::from_utf8_lossy(&piece[..read]));
        if read == 0 || statuses(&answer).len() >= answers {
            return answer;
        }
    }
}

#[tokio::test]
async fn nothing_but_the_answer_is_said() {
    let stack = Stack::over(service_fn(parrot), "100").await.unwrap();
    let address = serve(stack.service.clone()).await;
    // HTTP/1.0 knows no 100, and ends with the answer.
    let expecting = raw(&stack, "HTTP/1.0", "Expect: 100-continue\r\n", "");
    let answer = ask(address, &[&expecting], usize::MAX).await;
    assert_eq!(statuses(&answer), [200], "{answer}");
    // A body that breaks.
    let whole = String::from_utf8(raw(&stack, "HTTP/1.1", "", "")).unwrap();
    let (head, _) = whole.split_once("Content-Length").unwrap();
    let broken = format!("{head}Transfer-Encoding: chunked\r\n\r\n5\r\n{{\"mod\r\nz\r\n");
    let answer = ask(address, &[broken.as_bytes()], usize::MAX).await;
    assert_eq!(statuses(&answer), [400], "{answer}");
    assert!(answer.contains("Connection: close"), "{answer}");
    let head = b"HEAD /v1/models HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    let answer = ask(address, &[head], usize::MAX).await;
    assert!(answer.ends_with("\r\n\r\n") && statuses(&answer).len() == 1, "{answer}");
}

#[tokio::test]
async fn an_answer_is_of_the_version_that_was_asked_in() {
    for version in [http::Version::HTTP_10, http::Version::HTTP_11, http::Version::HTTP_2] {
        let answering = move |request: Request<Outgoing>| async move {
            let mut answer = parrot(request).await?;
            *answer.version_mut() = version;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(answer)
        };
        let stack = Stack::over(service_fn(answering), "1").await.unwrap();
        let address = serve(stack.service.clone()).await;
        let answer = ask(address, &[&raw(&stack, "HTTP/1.1", "", "")], 1).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("Pretty Polly"), "{version:?}: {answer}");
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_does_not_look_whole() {
    let (feeds, mut asked) = mpsc::channel::<mpsc::Sender<std::result::Result<Frame<Bytes>, std::io::Error>>>(4);
    let breaking = move |_: Request<Outgoing>| {
        let (feed, mut frames) = mpsc::channel(1);
        feeds.try_send(feed).unwrap();
        let body = Body::new(StreamBody::new(futures_util::stream::poll_fn(move |cx| frames.poll_recv(cx))));
        std::future::ready(Ok::<_, Infallible>(Response::new(body)))
    };
    let stack = Stack::over(service_fn(breaking), "0.03").await.unwrap();
    let mut client = connect(serve(stack.service.clone()).await).await;
    let answer = timeout(PATIENCE, client.send_request(streamed(&stack))).await.unwrap().unwrap();
    let feed = asked.recv().await.unwrap();
    feed.send(Ok(Frame::data(Bytes::from_static(b"data: {}\n\n")))).await.unwrap();
    feed.send(Err(std::io::Error::other("gone"))).await.unwrap();
    assert!(timeout(PATIENCE, answer.into_body().collect()).await.unwrap().is_err());
}

/// HTTP/2: nobody reads the body of a request that was answered, and yet it is seen that the client has gone.
#[tokio::test]
async fn a_stream_of_http2_that_is_reset_is_stopped() {
    let (stack, mut asked) = streams().await;
    let address = serve(stack.service.clone()).await;
    let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (mut client, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let (mut parts, body) = streamed(&stack).into_parts();
    parts.uri = "http://gateway.example/v1/chat/completions".parse().unwrap();
    parts.headers.remove(header::HOST);
    let text = body.collect().await.unwrap().to_bytes();
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-sum", "1".parse().unwrap());
    let frames = [Frame::data(text), Frame::trailers(trailers)].map(Ok::<_, Infallible>);
    let body = Body::new(StreamBody::new(futures_util::stream::iter(frames)));
    let answer = timeout(PATIENCE, client.send_request(Request::from_parts(parts, body))).await.unwrap().unwrap();
    let feed = timeout(PATIENCE, asked.recv()).await.unwrap().unwrap();
    drop(answer);
    timeout(PATIENCE, feed.closed()).await.expect("the stream is stopped");
}

/// A server that switches to another protocol when it is asked to, and else says what it was asked; with the lines that
/// requests began with.
async fn own_upstream() -> (std::net::SocketAddr, mpsc::UnboundedReceiver<String>) {
    let (lines, seen) = mpsc::unbounded_channel();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let lines = lines.clone();
            tokio::spawn(async move {
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") {
                    let Ok(byte) = socket.read_u8().await else { return };
                    head.push(char::from(byte));
                }
                let _ = lines.send(head.lines().next().unwrap_or_default().to_owned());
                if !head.to_ascii_lowercase().contains("upgrade:") {
                    let _ = socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nmine").await;
                    return;
                }
                let switched = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
                socket.write_all(switched).await.unwrap();
                let (mut read, mut write) = socket.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    (address, seen)
}

#[tokio::test]
async fn a_tunnel_of_ones_own_passes_the_gate() {
    let stack = Stack::over(service_fn(parrot), "100").await.unwrap();
    let (upstream, _seen) = own_upstream().await;
    let address = serve_beside(stack.service.clone(), Some(upstream)).await;
    let mut socket = TcpStream::connect(address).await.unwrap();
    let head = b"GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    socket.write_all(head).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(timeout(PATIENCE, socket.read_u8()).await.unwrap().unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&answer));
    // Neither of them could be a head, nor be waited with until there is a line.
    for frame in [&b"\x81\x85abcdhello"[..], b"ab\ncd\n\n", b"GET / HTTP/1.1\nHost: h\n\n"] {
        socket.write_all(frame).await.unwrap();
        let mut echo = vec![0; frame.len()];
        timeout(PATIENCE, socket.read_exact(&mut echo)).await.unwrap().unwrap();
        assert_eq!(echo, frame);
    }
}

#[tokio::test]
async fn what_another_reader_could_take_for_a_governed_path_goes_to_no_one() {
    let stack = Stack::over(service_fn(parrot), "100").await.unwrap();
    let (upstream, mut seen) = own_upstream().await;
    let address = serve_beside(stack.service.clone(), Some(upstream)).await;
    for (target, status) in [
        ("/hello", 200),
        // Read as /v1/models by those who unescape first: so it is, and wants a token.
        ("/%76%31/models", 401),
        ("/v1/models", 401),
        ("/models", 401),
        ("/engines/gpt/chat/completions", 405),
        ("//v1/models", 400),
        ("/x/../v1/models", 400),
        ("/x/%2e%2e/v1/models", 400),
        ("/v1%2fmodels", 400),
        ("/v1;a=b/models", 400),
        ("/v1\\models", 400),
    ] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, socket.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert_eq!(statuses(&answer), [status], "{target}: {answer}");
    }
    // Nor does a path of one's own bring past the gate what it refuses.
    for head in ["GET /hello HTTP/1.1\nHost: h\n\n", "GET /hello HTTP/1.1\r\nHost: h\r\nContent-Length: 01\r\n\r\n0"] {
        let answer = exchange(address, [head.as_bytes()]).await;
        assert_eq!(statuses(&answer), [400], "{answer}");
    }
    let mut lines = Vec::new();
    while let Ok(line) = seen.try_recv() {
        lines.push(line);
    }
    assert_eq!(lines, ["GET /hello HTTP/1.1"]);
}
