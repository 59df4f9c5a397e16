//! Accepting connections: TCP or TLS, gated, with limits, and drained at the end.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::tls::Tls;
use crate::proxy::config::LimitsConfig;
use crate::proxy::ingress::Peer;
use crate::proxy::wire::{GatedIo, MAX_HEAD};

/// Answers requests, whatever the connection.
pub(super) trait Answer: Clone + Send + Sync + 'static {
    fn answer(&self, request: Request<Incoming>, peer: Peer) -> impl Future<Output = Response<Body>> + Send;
}

/// One listening socket.
pub(super) struct Listener<A> {
    pub(super) socket: TcpListener,
    pub(super) tls: Option<Tls>,
    pub(super) answer: A,
    pub(super) limits: LimitsConfig,
}

impl<A: Answer> Listener<A> {
    /// Accepts until `stop` changes, then waits for the connections under way and cuts
    /// those that take too long; gives whether all of them ended in time.
    pub(super) async fn run(self, mut stop: watch::Receiver<bool>) -> bool {
        let graceful = GracefulShutdown::new();
        let mut connections = JoinSet::new();
        let permits = Arc::new(Semaphore::new(self.limits.connections));
        let builder = Arc::new(self.builder());
        let first_head = Duration::from_secs(self.limits.head_seconds);
        loop {
            let accept = async {
                let permit = Arc::clone(&permits).acquire_owned().await.map_err(std::io::Error::other)?;
                let (stream, address) = self.socket.accept().await?;
                Ok::<_, std::io::Error>((permit, stream, address))
            };
            let accepted = tokio::select! {
                accepted = accept => accepted,
                // Those that have ended are let go of.
                Some(_) = connections.join_next() => continue,
                _ = stop.wait_for(|stop| *stop) => break,
            };
            let (permit, stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, most likely: wait for some to be freed.
                    tracing::warn!(%error, "a connection cannot be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            // Only a delay is lost without it.
            let _ = stream.set_nodelay(true);
            let (answer, builder, watcher) = (self.answer.clone(), Arc::clone(&builder), graceful.watcher());
            match self.tls.clone() {
                None => {
                    connections.spawn(async move {
                        serve(stream, peer(address, false), &builder, watcher, answer, first_head).await;
                        drop(permit);
                    });
                }
                Some(tls) => {
                    connections.spawn(async move {
                        if let Ok(Ok(stream)) = tokio::time::timeout(first_head, tls.accept(stream)).await {
                            serve(stream, peer(address, true), &builder, watcher, answer, first_head).await;
                        }
                        drop(permit);
                    });
                }
            }
        }
        drop(self.socket);
        let limit = Duration::from_secs(self.limits.drain_seconds);
        let drained = tokio::time::timeout(limit, graceful.shutdown()).await.is_ok();
        // What a cut connection was doing is dropped, and so settled, before this returns.
        connections.shutdown().await;
        drained
    }

    fn builder(&self) -> auto::Builder<TokioExecutor> {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(Duration::from_secs(self.limits.head_seconds))
            .max_buf_size(MAX_HEAD * 2);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.limits.streams)
            .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
            .keep_alive_interval(Duration::from_secs(30));
        builder
    }
}

fn peer(address: SocketAddr, tls: bool) -> Peer {
    Peer { ip: address.ip(), tls }
}

async fn serve<A: Answer, S>(
    stream: S,
    peer: Peer,
    builder: &auto::Builder<TokioExecutor>,
    watcher: hyper_util::server::graceful::Watcher,
    answer: A,
    first_head: Duration,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let asked = Arc::new(AtomicBool::new(false));
    let first = Arc::clone(&asked);
    let service = service_fn(move |request| {
        first.store(true, Ordering::Relaxed);
        let answer = answer.clone();
        async move { Ok::<_, Infallible>(answer.answer(request, peer).await) }
    });
    let connection = builder.serve_connection(TokioIo::new(GatedIo::new(stream)), service);
    let mut connection = std::pin::pin!(watcher.watch(connection.into_owned()));
    // hyper's own limit starts only once it knows the protocol: until the first head is
    // whole, nothing that trickles in keeps a connection.
    let outcome = tokio::select! {
        outcome = &mut connection => outcome,
        () = tokio::time::sleep(first_head) => {
            if !asked.load(Ordering::Relaxed) {
                return;
            }
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(error = &*error, "a connection ended early");
    }
}
