//! pingora's HTTP server behind alchemi's gate, and raw exchanges with it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use alchemi::proxy::ingress::{Peer, TrustedProxies, admit};
use alchemi_pingora::{Gate, Governed};
use async_trait::async_trait;
use axum::body::{Body, to_bytes};
use axum::response::IntoResponse as _;
use http::{Request, Response, StatusCode};
use pingora_core::apps::{HttpServerOptions, ServerApp as _};
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::l4::stream::Stream;
use pingora_core::protocols::{GetSocketDigest as _, SocketDigest};
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorType, Result};
use pingora_proxy::{ProxyHttp, Session, http_proxy};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tower::Service;

/// Longest that any exchange may take before the test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// A gateway whose every path is alchemi's.
pub(crate) struct Front<S>(pub(crate) Governed<S>);

#[async_trait]
impl<S> ProxyHttp for Front<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    type CTX = ();

    fn new_ctx(&self) {}

    async fn early_request_filter(&self, session: &mut Session, _: &mut ()) -> Result<()> {
        if let ServerSession::H1(session) = session.as_downstream_mut() {
            session.set_pipelining_enabled(true);
        }
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, _: &mut ()) -> Result<bool> {
        self.0.answer(session, |_| true).await
    }

    async fn upstream_peer(&self, _: &mut Session, _: &mut ()) -> Result<Box<HttpPeer>> {
        Err(Error::explain(ErrorType::InternalError, "nothing goes further"))
    }
}

/// Serves every connection as pingora would, behind the gate; HTTP/2 is told by its preface, as TLS would tell it.
pub(crate) async fn serve<S>(service: S) -> SocketAddr
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let configuration = Arc::new(ServerConf::default());
    let app = |h2c: bool| {
        let mut proxy = http_proxy(&configuration, Front(Governed::new(service.clone())));
        let mut options = HttpServerOptions::default();
        options.h2c = h2c;
        options.allow_connect_method_proxying = true;
        proxy.server_options = Some(options);
        Arc::new(Gate::new(proxy))
    };
    let (http1, http2) = (app(false), app(true));
    let (stopping, shutdown) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        let _stopping = stopping;
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let (http1, http2, shutdown) = (Arc::clone(&http1), Arc::clone(&http2), shutdown.clone());
            tokio::spawn(async move {
                let mut start = [0; 3];
                let app = match socket.peek(&mut start).await {
                    Ok(3) if start == *b"PRI" => http2,
                    _ => http1,
                };
                let mut stream = Stream::from(socket);
                let digest = SocketDigest::from_raw_fd(stream.as_raw_fd());
                stream.set_socket_digest(digest);
                let mut stream: pingora_core::protocols::Stream = Box::new(stream);
                while let Some(again) = app.process_new(stream, &shutdown).await {
                    stream = again;
                }
            });
        }
    });
    address
}

/// A server behind the gate; counts the requests that are let in.
pub(crate) struct Gated {
    pub(crate) address: SocketAddr,
    served: Arc<AtomicUsize>,
}

impl Gated {
    pub(crate) async fn start() -> Self {
        let served = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&served);
        let service = tower::service_fn(move |request| answer(request, Arc::clone(&counter)));
        Self { address: serve(service).await, served }
    }

    pub(crate) fn take_served(&self) -> usize {
        self.served.swap(0, Ordering::SeqCst)
    }

    /// Sends the pieces one after another and reads until the server closes.
    pub(crate) async fn exchange(&self, pieces: impl IntoIterator<Item = &[u8]>) -> String {
        let socket = TcpStream::connect(self.address).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let (mut read, mut write) = socket.into_split();
        let reader = tokio::spawn(async move {
            let mut answer = Vec::new();
            let _ = read.read_to_end(&mut answer).await;
            answer
        });
        for piece in pieces {
            if write.write_all(piece).await.is_err() {
                break;
            }
            // Lets the server see this piece alone, most of the time.
            tokio::task::yield_now().await;
        }
        let _ = write.shutdown().await;
        let answer = tokio::time::timeout(PATIENCE, reader).await.expect("the server closes").unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }
}

async fn answer(mut request: Request<Body>, served: Arc<AtomicUsize>) -> Result<Response<Body>, Infallible> {
    let peer = *request.extensions().get::<Peer>().expect("who is at the other end");
    if let Err(problem) = admit(&mut request, peer, &TrustedProxies::default()) {
        return Ok(problem.into_response());
    }
    served.fetch_add(1, Ordering::SeqCst);
    let host = format!("{:?}", request.headers().get("x-account-id"));
    Ok(match to_bytes(request.into_body(), 1 << 20).await {
        Ok(body) => Response::new(Body::from(format!("{} {host}", String::from_utf8_lossy(&body)))),
        Err(_) => (StatusCode::BAD_REQUEST, "the body broke off").into_response(),
    })
}

/// The statuses of the responses in a raw answer, in order.
pub(crate) fn statuses(answer: &str) -> Vec<u16> {
    let heads = answer.match_indices("HTTP/1.");
    heads.filter_map(|(at, _)| answer.get(at + 9..at + 12)?.parse().ok()).collect()
}

/// Whether the answer refuses: with a problem, or as pingora does what it cannot parse.
pub(crate) fn is_refusal(answer: &str) -> bool {
    answer.contains("Content-Type: application/problem+json") || answer.contains("\r\nServer: Pingora\r\n")
}
