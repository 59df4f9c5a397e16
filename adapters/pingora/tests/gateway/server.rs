//! pingora's HTTP server behind alchemi's gate.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use alchemi::proxy::ingress::{Peer, TrustedProxies, admit};
use alchemi_pingora::{Gate, Governed};
use async_trait::async_trait;
use axum::body::{Body, to_bytes};
use axum::response::IntoResponse as _;
use http::{Request, Response, StatusCode};
use pingora_core::Result;
use pingora_core::apps::{HttpServerOptions, ServerApp as _};
use pingora_core::modules::http::HttpModules;
use pingora_core::modules::http::compression::ResponseCompressionBuilder;
use pingora_core::protocols::l4::stream::Stream;
use pingora_core::protocols::{GetSocketDigest as _, SocketDigest};
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_proxy::{ProxyHttp, Session, http_proxy};
use tokio::net::TcpListener;
use tower::Service;

/// A gateway.
struct Front<S> {
    governed: Governed<S>,
    /// Where goes what is not alchemi's; none: everything is.
    upstream: Option<SocketAddr>,
}

#[async_trait]
impl<S> ProxyHttp for Front<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    type CTX = ();

    fn new_ctx(&self) {}

    fn init_downstream_modules(&self, modules: &mut HttpModules) {
        modules.add_module(ResponseCompressionBuilder::enable(6));
    }

    async fn request_filter(&self, session: &mut Session, _: &mut ()) -> Result<bool> {
        match self.upstream {
            None => self.governed.answer_if(session, |_| true).await,
            Some(_) => self.governed.answer(session).await,
        }
    }

    async fn upstream_peer(&self, _: &mut Session, _: &mut ()) -> Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.upstream.unwrap(), false, String::new())))
    }
}

/// Serves every connection as pingora would, behind the gate; all paths are the service's.
pub(crate) async fn serve<S>(service: S) -> SocketAddr
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    serve_beside(service, None).await
}

/// The same, where `upstream` has what is not alchemi's.
pub(crate) async fn serve_beside<S>(service: S, upstream: Option<SocketAddr>) -> SocketAddr
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = |h2c: bool| {
        let front = Front { governed: Governed::new(service.clone()), upstream };
        let mut proxy = http_proxy(&Arc::new(ServerConf::default()), front);
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
                // pingora's own look waits for more bytes than the shortest requests have.
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

/// Whether the answer refuses: with a problem, or as pingora does what it cannot parse.
pub(crate) fn is_refusal(answer: &str) -> bool {
    answer.contains("Content-Type: application/problem+json") || answer.contains("\r\nServer: Pingora\r\n")
}
