//! Servers on loopback.

use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use alchemi::proxy::ingress::{Peer, TrustedProxies, admit};
use alchemi::proxy::wire::{GatedIo, refusal};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;

pub(crate) const LOCAL: Peer = Peer { ip: IpAddr::V4(Ipv4Addr::LOCALHOST), tls: false };

/// A server behind the gate; counts the requests that are let in.
pub(crate) struct Gated {
    pub(crate) address: SocketAddr,
    served: Arc<AtomicUsize>,
}

impl Gated {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&served);
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let counter = Arc::clone(&counter);
                tokio::spawn(async move {
                    let io = TokioIo::new(GatedIo::new(socket));
                    let service = service_fn(move |request| serve(request, Arc::clone(&counter)));
                    let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(io, service).await;
                });
            }
        });
        Self { address, served }
    }

    pub(crate) fn take_served(&self) -> usize {
        self.served.swap(0, Ordering::SeqCst)
    }
}

async fn serve(mut request: Request<Incoming>, served: Arc<AtomicUsize>) -> Result<Response<Full<Bytes>>, Infallible> {
    if let Some(problem) = refusal(request.uri().path()) {
        return Ok(problem.into_http::<Vec<u8>>(None).map(|body| Full::new(Bytes::from(body))));
    }
    if let Err(problem) = admit(&mut request, LOCAL, &TrustedProxies::default()) {
        return Ok(problem.into_http::<Vec<u8>>(None).map(|body| Full::new(Bytes::from(body))));
    }
    served.fetch_add(1, Ordering::SeqCst);
    let host = format!("{:?}", request.headers().get("x-account-id"));
    Ok(match request.into_body().collect().await {
        Ok(body) => {
            let text = format!("{} {host}", String::from_utf8_lossy(&body.to_bytes()));
            Response::new(Full::new(Bytes::from(text)))
        }
        Err(_) => {
            let mut response = Response::new(Full::default());
            *response.status_mut() = StatusCode::BAD_REQUEST;
            response
        }
    })
}

/// Whether the answer refuses with a problem.
pub(crate) fn is_refusal(answer: &str) -> bool {
    answer.contains("content-type: application/problem+json")
}

/// An upstream that answers every request with `answer`.
pub(crate) async fn upstream<F, R>(answer: F) -> SocketAddr
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
    R: Future<Output = Response<Full<Bytes>>> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let answer = answer.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let answer = answer.clone();
                    async move { Ok::<_, Infallible>(answer(request).await) }
                });
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
            });
        }
    });
    address
}

/// An address where nothing listens.
pub(crate) async fn nowhere() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}
