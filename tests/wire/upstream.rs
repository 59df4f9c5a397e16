//! Connections towards the upstream: used again, replaced, closed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use alchemi::proxy::forward::{ForwardError, Outgoing, Target, UpstreamConfig};
use alchemi::proxy::upstream::{Upstream, UpstreamBody};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::raw::PATIENCE;

/// What an upstream does on a connection, again and again; false ends the connection.
#[derive(Clone, Copy)]
enum Manners {
    /// Answers for as long as it is asked.
    Patient,
    /// Closes after each answer, without saying so.
    Abrupt,
    /// Says that it closes after each answer.
    Closing,
    /// Ends its answers by closing.
    Unmeasured,
    /// Answers in pieces, of which the second waits for [`Server::go_on`].
    Slow,
}

/// A server that counts connections.
struct Server {
    url: String,
    accepted: Arc<AtomicUsize>,
    ended: Arc<AtomicUsize>,
    go_on: Arc<tokio::sync::Notify>,
}

impl Server {
    async fn start(manners: Manners) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            url: format!("http://{}", listener.local_addr().unwrap()),
            accepted: Arc::default(),
            ended: Arc::default(),
            go_on: Arc::default(),
        };
        let (accepted, ended, go_on) =
            (Arc::clone(&server.accepted), Arc::clone(&server.ended), Arc::clone(&server.go_on));
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                accepted.fetch_add(1, Ordering::SeqCst);
                let (ended, go_on) = (Arc::clone(&ended), Arc::clone(&go_on));
                tokio::spawn(async move {
                    serve(socket, manners, &go_on).await;
                    ended.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        server
    }

    fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    async fn until_ended(&self, count: usize) {
        let ended = async {
            while self.ended.load(Ordering::SeqCst) < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, ended).await.expect("the connection ends");
    }
}

async fn serve(mut socket: TcpStream, manners: Manners, go_on: &tokio::sync::Notify) {
    loop {
        if !read_request(&mut socket).await {
            return;
        }
        let answer: &[u8] = match manners {
            Manners::Patient | Manners::Abrupt => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab",
            Manners::Closing => b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nab",
            Manners::Unmeasured => b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nab",
            Manners::Slow => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n",
        };
        if socket.write_all(answer).await.is_err() {
            return;
        }
        match manners {
            Manners::Patient => {}
            Manners::Abrupt | Manners::Closing | Manners::Unmeasured => return,
            Manners::Slow => {
                go_on.notified().await;
                if socket.write_all(b"1\r\nb\r\n0\r\n\r\n").await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Reads one request without a body; false at the end of the connection.
async fn read_request(socket: &mut TcpStream) -> bool {
    let mut seen = Vec::new();
    let mut byte = [0];
    while !seen.ends_with(b"\r\n\r\n") {
        match socket.read(&mut byte).await {
            Ok(1) => seen.push(byte[0]),
            _ => return false,
        }
    }
    true
}

fn client(server: &Server, keep_alive: Duration) -> (Upstream, Target) {
    let target = Target::parse(&server.url).unwrap();
    let config = UpstreamConfig { keep_alive, ..UpstreamConfig::default() };
    (Upstream::new(&config, std::slice::from_ref(&target)).unwrap(), target)
}

async fn get(client: &Upstream, target: &Target) -> Result<Response<UpstreamBody>, ForwardError> {
    client.send(target, Request::get("/a").body(Outgoing::empty()).unwrap()).await
}

async fn text(response: Response<UpstreamBody>) -> Bytes {
    tokio::time::timeout(PATIENCE, response.into_body().collect()).await.expect("it ends").unwrap().to_bytes()
}

#[tokio::test]
async fn a_connection_is_used_again() {
    let server = Server::start(Manners::Patient).await;
    let (client, target) = client(&server, PATIENCE);
    for _ in 0..20 {
        assert_eq!(text(get(&client, &target).await.unwrap()).await, "ab");
    }
    assert_eq!(server.accepted(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_once_each_request_has_its_own() {
    let server = Server::start(Manners::Patient).await;
    let (client, target) = client(&server, PATIENCE);
    for _ in 0..5 {
        let requests = (0..16).map(|_| {
            let (client, target) = (client.clone(), target.clone());
            tokio::spawn(async move { text(get(&client, &target).await.unwrap()).await })
        });
        for answer in futures_util::future::join_all(requests).await {
            assert_eq!(answer.unwrap(), "ab");
        }
    }
    assert!((1..=16).contains(&server.accepted()), "{}", server.accepted());
}

#[tokio::test]
async fn one_that_was_closed_is_replaced() {
    for manners in [Manners::Abrupt, Manners::Closing, Manners::Unmeasured] {
        let server = Server::start(manners).await;
        let (client, target) = client(&server, PATIENCE);
        for round in 1..=5 {
            assert_eq!(text(get(&client, &target).await.unwrap()).await, "ab");
            server.until_ended(round).await;
        }
        assert_eq!(server.accepted(), 5);
    }
}

#[tokio::test]
async fn one_that_was_idle_for_too_long_is_closed() {
    let server = Server::start(Manners::Patient).await;
    let (client, target) = client(&server, Duration::from_millis(1));
    for _ in 0..3 {
        assert_eq!(text(get(&client, &target).await.unwrap()).await, "ab");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(server.accepted(), 3);
    server.until_ended(2).await;
}

#[tokio::test]
async fn an_answer_is_streamed_and_its_connection_used_again() {
    let server = Server::start(Manners::Slow).await;
    let (client, target) = client(&server, PATIENCE);
    for _ in 0..3 {
        let mut body = get(&client, &target).await.unwrap().into_body();
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(first, "a", "before the rest is there");
        server.go_on.notify_one();
        assert_eq!(body.collect().await.unwrap().to_bytes(), "b");
    }
    assert_eq!(server.accepted(), 1);
}

#[tokio::test]
async fn an_answer_that_is_left_closes_its_connection() {
    let server = Server::start(Manners::Slow).await;
    let (client, target) = client(&server, PATIENCE);
    let mut body = get(&client, &target).await.unwrap().into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "a");
    drop(body);
    // The server sees it when it goes on.
    server.go_on.notify_one();
    server.until_ended(1).await;
    drop(get(&client, &target).await.unwrap());
    assert_eq!(server.accepted(), 2);
}
