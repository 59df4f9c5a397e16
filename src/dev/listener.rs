//! A loopback listener that owns its connections and keeps what came over the
//! wire: header names in the case and order in which the client sent them, which
//! no HTTP library shows once a request is parsed.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tower::ServiceExt as _;

use super::DevError;

/// Longest request head that is kept.
const MAX_HEAD: usize = 1 << 20;
/// Rest after a failed accept, which is nearly always a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Listens on `address`, which must be loopback; port 0 takes a free one.
pub(super) async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), DevError> {
    if !address.ip().is_loopback() {
        return Err(DevError::NotLoopback(address));
    }
    let refused = |source| DevError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(refused)?;
    let bound = listener.local_addr().map_err(refused)?;
    Ok((listener, bound))
}

/// A running listener; dropping it closes the listener and every connection.
#[derive(Debug)]
pub(super) struct Serving(JoinHandle<()>);

impl Serving {
    /// Serves `router` over HTTP/1.1.
    pub(super) fn start(listener: TcpListener, router: Router) -> Self {
        Self(tokio::spawn(accept(listener, router)))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn accept(listener: TcpListener, router: Router) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => { connections.spawn(connection(stream, router.clone())); }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
        }
    }
}

async fn connection(stream: TcpStream, router: Router) {
    // Without it, small frames of a stream wait for each other.
    let _ = stream.set_nodelay(true);
    let wire = Wire::default();
    let io = TokioIo::new(Tee { stream, wire: wire.clone() });
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(wire.clone());
        router.clone().oneshot(request)
    });
    // A client that hangs up is an error here and the whole point of the tests.
    let _ = http1::Builder::new().serve_connection(io, service).await;
}

/// The head of the request that a connection is answering, byte for byte.
#[derive(Debug, Clone, Default)]
pub(super) struct Wire(Arc<Mutex<Head>>);

#[derive(Debug, Default)]
struct Head {
    bytes: Vec<u8>,
    complete: bool,
}

impl Wire {
    /// The head, and from now on the next one is kept. To be called when the
    /// request's body is read: what follows is then the next request (a client
    /// that pipelines is not supported).
    pub(super) fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).bytes
    }

    fn saw(&self, bytes: &[u8]) {
        let mut head = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if head.complete || bytes.is_empty() {
            return;
        }
        head.bytes.extend_from_slice(bytes);
        if let Some(end) = memchr::memmem::find(&head.bytes, b"\r\n\r\n") {
            head.bytes.truncate(end);
            head.complete = true;
        } else if head.bytes.len() > MAX_HEAD {
            head.complete = true;
        }
    }
}

/// A connection whose incoming bytes are shown to a [`Wire`].
struct Tee {
    stream: TcpStream,
    wire: Wire,
}

impl AsyncRead for Tee {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.wire.saw(buf.filled().get(before..).unwrap_or_default());
        polled
    }
}

impl AsyncWrite for Tee {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
