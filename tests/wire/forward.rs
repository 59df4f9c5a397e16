//! The client towards the upstream, over real sockets.

use std::time::Duration;

use alchemi::problem::Problem;
use alchemi::proxy::forward::{Deadlined, ForwardError, Outgoing, StreamError, Target, UpstreamConfig, bearer_value};
use alchemi::proxy::upstream::{Upstream, UpstreamBody};
use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::Instant;

use super::raw::PATIENCE;
use super::server::{nowhere, upstream};

fn client(config: &UpstreamConfig, url: &str) -> (Upstream, Target) {
    let target = Target::parse(url).unwrap();
    (Upstream::new(config, std::slice::from_ref(&target)).unwrap(), target)
}

fn get(path: &str) -> Request<Outgoing> {
    Request::get(path).body(Outgoing::empty()).unwrap()
}

async fn text(response: Response<UpstreamBody>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// Tells what it was asked.
async fn echo(request: Request<Incoming>) -> Response<Full<Bytes>> {
    let host = request.headers()["host"].to_str().unwrap().to_owned();
    let length = request.headers().get("content-length").cloned();
    let head = format!("{} {} {host} {length:?} ", request.method(), request.uri());
    let body = request.into_body().collect().await.unwrap();
    let trailers = body.trailers().is_some();
    Response::new(Full::new(Bytes::from(format!("{head}{:?} {trailers}", body.to_bytes()))))
}

#[tokio::test]
async fn requests_arrive_as_they_are_at_the_configured_address() {
    let address = upstream(echo).await;
    let (client, target) = client(&UpstreamConfig::default(), &format!("http://{address}/litellm/"));
    let mut request =
        Request::post("/v1/chat/completions?a=b").body(Outgoing::from(Bytes::from_static(b"{}"))).unwrap();
    request.headers_mut().insert("host", "evil".parse().unwrap());
    let said = text(client.send(&target, request).await.unwrap()).await;
    assert_eq!(said, format!("POST /litellm/v1/chat/completions?a=b {address} Some(\"2\") b\"{{}}\" false"));
}

#[tokio::test]
async fn streamed_bodies_arrive_without_their_trailers() {
    let address = upstream(echo).await;
    let (client, target) = client(&UpstreamConfig::default(), &format!("http://{address}"));
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-account-id", "evil".parse().unwrap());
    let frames =
        [Frame::data(Bytes::from_static(b"ab")), Frame::data(Bytes::from_static(b"c")), Frame::trailers(trailers)];
    let body = StreamBody::new(futures_util::stream::iter(frames.map(Ok::<_, std::io::Error>)));
    let request = Request::post("/a").header("trailer", "x-account-id").body(Outgoing::stream(body)).unwrap();
    let said = text(client.send(&target, request).await.unwrap()).await;
    assert_eq!(said, format!("POST /a {address} None b\"abc\" false"));
}

#[tokio::test]
async fn an_upstream_that_is_not_there_is_a_502() {
    let address = nowhere().await;
    let (client, target) = client(&UpstreamConfig::default(), &format!("http://{address}"));
    let error = client.send(&target, get("/a")).await.unwrap_err();
    assert!(error.is_unsent() && matches!(error, ForwardError::Unreachable(_)));
    let problem = Problem::from(error);
    assert_eq!((problem.status(), problem.code()), (502, "upstream_unreachable"));
    assert_eq!(problem.headers()["retry-after"], "1");
    assert!(!problem.headers().contains_key("x-should-retry"));
    assert!(!problem.detail().contains(&address.port().to_string()));
}

#[tokio::test]
async fn an_upstream_that_hangs_up_is_a_502_that_was_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let _ = socket.read(&mut [0; 1024]).await;
    });
    let (client, target) = client(&UpstreamConfig::default(), &format!("http://{address}"));
    let error = client.send(&target, get("/a")).await.unwrap_err();
    assert!(matches!(error, ForwardError::Broken(_)) && !error.is_unsent());
    assert_eq!(Problem::from(error).status(), 502);
}

#[tokio::test]
async fn an_upstream_that_says_nothing_is_a_504() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = UpstreamConfig { response_timeout: Duration::from_millis(50), ..UpstreamConfig::default() };
    let (client, target) = client(&config, &format!("http://{}", listener.local_addr().unwrap()));
    let error = client.send(&target, get("/a")).await.unwrap_err();
    assert!(!error.is_unsent());
    let problem = Problem::from(error);
    assert_eq!((problem.status(), problem.code()), (504, "upstream_timeout"));
}

#[tokio::test]
async fn dropping_a_response_ends_the_exchange() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let gone = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let _ = socket.read(&mut [0; 1024]).await;
        let _ = socket.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n").await;
        // Ends when the other side has gone.
        while matches!(socket.read(&mut [0; 64]).await, Ok(n) if n > 0) {}
    });
    let (client, target) = client(&UpstreamConfig::default(), &format!("http://{address}"));
    let response = client.send(&target, get("/a")).await.unwrap();
    drop(response);
    tokio::time::timeout(PATIENCE, gone).await.expect("the upstream sees it").unwrap();
}

#[tokio::test]
async fn tls_is_spoken_to_https_upstreams() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let first = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut byte = [0];
        socket.read_exact(&mut byte).await.unwrap();
        byte[0]
    });
    let target = Target::parse(&format!("https://{address}")).unwrap();
    assert!(target.is_https());
    let Ok(client) = Upstream::new(&UpstreamConfig::default(), std::slice::from_ref(&target)) else {
        return; // this system has no trust store
    };
    let error = client.send(&target, get("/a")).await.unwrap_err();
    assert!(error.is_unsent(), "a failed handshake has sent nothing");
    assert_eq!(first.await.unwrap(), 0x16, "a TLS handshake record");
}

type Frames = futures_util::stream::BoxStream<'static, Result<Frame<Bytes>, std::io::Error>>;

/// A body of frames that come after the given pauses, then never ends.
fn paced(pauses: Vec<u64>) -> StreamBody<Frames> {
    use futures_util::StreamExt;
    let paused = futures_util::stream::iter(pauses).then(|pause| async move {
        tokio::time::sleep(Duration::from_secs(pause)).await;
        Ok(Frame::data(Bytes::from_static(b"x")))
    });
    StreamBody::new(paused.chain(futures_util::stream::pending()).boxed())
}

async fn read<B>(mut body: Deadlined<B>) -> (usize, Option<StreamError>)
where
    B: http_body::Body<Data = Bytes, Error = std::io::Error> + Unpin,
{
    let mut frames = 0;
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(_) => frames += 1,
            Err(error) => return (frames, Some(error)),
        }
    }
    (frames, None)
}

#[tokio::test(start_paused = true)]
async fn a_body_that_falls_silent_ends() {
    let start = Instant::now();
    let body = Deadlined::new(paced(vec![0, 5, 9, 9]), Duration::from_secs(10), start + Duration::from_secs(1000));
    let (frames, error) = read(body).await;
    assert_eq!(frames, 4);
    assert!(matches!(error, Some(StreamError::Idle(_))));
    assert_eq!(start.elapsed().as_secs(), 33);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_ends_ends() {
    let start = Instant::now();
    let body = Deadlined::new(paced(vec![5; 1000]), Duration::from_secs(10), start + Duration::from_secs(62));
    let (frames, error) = read(body).await;
    assert_eq!(frames, 12);
    assert!(matches!(error, Some(StreamError::Total)));
    assert_eq!(start.elapsed().as_secs(), 62);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_pauses_ends() {
    let endless = futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(b"x"))));
    let until = Instant::now() + Duration::from_secs(1);
    let mut body = Deadlined::new(StreamBody::new(endless), Duration::from_secs(10), until);
    assert!(body.frame().await.unwrap().is_ok());
    tokio::time::advance(Duration::from_secs(2)).await;
    assert!(matches!(body.frame().await, Some(Err(StreamError::Total))));
}

#[tokio::test]
async fn a_body_that_ends_in_time_is_unchanged() {
    let body = Deadlined::new(
        Full::new(Bytes::from_static(b"abc")),
        Duration::from_secs(1),
        Instant::now() + Duration::from_secs(1),
    );
    assert_eq!(http_body::Body::size_hint(&body).exact(), Some(3));
    assert_eq!(body.collect().await.unwrap().to_bytes(), "abc");
}

#[tokio::test]
async fn trailers_of_a_response_stay_behind() {
    let frames = [Frame::data(Bytes::from_static(b"abc")), Frame::trailers(http::HeaderMap::new())];
    let body = StreamBody::new(futures_util::stream::iter(frames.map(Ok::<_, std::io::Error>)));
    let until = Instant::now() + Duration::from_secs(1);
    let body = Deadlined::new(body, Duration::from_secs(1), until).collect().await.unwrap();
    assert!(body.trailers().is_none());
    assert_eq!(body.to_bytes(), "abc");
}

#[test]
fn addresses_are_plain() {
    for good in
        ["http://h", "http://h:4000", "https://api.example.com/litellm/", "http://[::1]:4000", "http://127.0.0.1:1"]
    {
        assert!(Target::parse(good).is_some(), "{good}");
    }
    for bad in ["", "h", "h:4000", "ftp://h", "http://", "http://u:p@h", "http://h?x", "http://h#x", "/a", "unix:/a"] {
        assert!(Target::parse(bad).is_none(), "{bad}");
    }
}

#[test]
fn configuration_is_checked_and_its_key_hidden() {
    let config: UpstreamConfig = serde_json::from_str(
        r#"{"urls": "http://a, http://b", "api_key": "sk-canary", "connect_timeout": 0.5, "health_interval": 0}"#,
    )
    .unwrap();
    assert_eq!(config.urls, ["http://a", "http://b"]);
    assert_eq!(config.connect_timeout, Duration::from_millis(500));
    assert_eq!(config.api_key.as_ref().unwrap(), "Bearer sk-canary");
    assert!(!format!("{config:?}").contains("canary"));
    for bad in [
        r#"{"url": "http://a"}"#,
        r#"{"connect_timeout": 0}"#,
        r#"{"idle_timeout": -1}"#,
        r#"{"total_timeout": 1e300}"#,
        r#"{"api_key": "two words"}"#,
        r#"{"urls": 7}"#,
    ] {
        assert!(serde_json::from_str::<UpstreamConfig>(bad).is_err(), "{bad}");
    }
    assert!(bearer_value("").is_err() && bearer_value("a\nb").is_err());
}
