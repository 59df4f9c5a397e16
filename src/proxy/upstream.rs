//! The client towards upstreams: connections, and who drives them.
//!
//! An HTTP/1.1 connection belongs to the request that uses it: polled along with the
//! response that it waits for, then along with the response's body, in the task of the
//! client's connection. A pool whose connections are tasks of their own, as hyper-util's
//! is, hands every request and every piece of an answer from one task to another, which
//! costs a fifth of a bare proxy (`benches/README.md`).
//!
//! 1. The newest idle connection is taken first, after a look whether it still stands.
//! 2. One that turns out to be closed before the request was written is replaced; the
//!    request goes to the next.
//! 3. At the end of the answer the connection is idle again, for `keep_alive`.
//! 4. Dropped before that, it closes: so HTTP/1.1 cancels a request.
//!
//! HTTP/2, where many requests share a connection, is left to hyper-util's pool.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tower::ServiceExt;

use super::forward::{ForwardError, Outgoing, Target, UpstreamConfig, UpstreamError};

/// Idle connections kept for each upstream.
const IDLE_CONNECTIONS: usize = 1024;

type Connector = HttpsConnector<HttpConnector>;

/// The client for all upstreams.
#[derive(Debug, Clone)]
pub struct Upstream {
    connector: Connector,
    keep_alive: Duration,
    response_timeout: Duration,
    http2: Option<Client<Connector, Outgoing>>,
}

impl Upstream {
    /// A client for these targets. The system's trust store is read only if one needs TLS.
    ///
    /// # Errors
    /// [`UpstreamError::Tls`] if there is no usable trust store.
    pub fn new(config: &UpstreamConfig, targets: &[Target]) -> Result<Self, UpstreamError> {
        let connector = |http2| {
            let mut tcp = HttpConnector::new();
            tcp.set_nodelay(true);
            tcp.enforce_http(false);
            tcp.set_connect_timeout(Some(config.connect_timeout));
            let tls = tls_builder(targets.iter().any(Target::is_https)).map_err(UpstreamError::Tls)?.https_or_http();
            Ok(if http2 {
                tls.enable_all_versions().wrap_connector(tcp)
            } else {
                tls.enable_http1().wrap_connector(tcp)
            })
        };
        let pooled = |connector| {
            Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .timer(TokioTimer::new())
                .pool_idle_timeout(config.keep_alive)
                .pool_max_idle_per_host(IDLE_CONNECTIONS)
                .build(connector)
        };
        Ok(Self {
            connector: connector(false)?,
            keep_alive: config.keep_alive,
            response_timeout: config.response_timeout,
            http2: config.http2.then(|| connector(true).map(pooled)).transpose()?,
        })
    }

    /// Sends a request whose URI is a path, and waits for the head of the response.
    ///
    /// Dropping the future, or the response's body, cancels the exchange.
    ///
    /// # Errors
    /// [`ForwardError`]; after anything but [`ForwardError::is_unsent`] the upstream may
    /// have acted on the request.
    pub async fn send(
        &self,
        target: &Target,
        mut request: Request<Outgoing>,
    ) -> Result<Response<UpstreamBody>, ForwardError> {
        target.aim(&mut request)?;
        let answered = async {
            match &self.http2 {
                Some(client) if target.is_https() => Box::pin(shared(client, target, request)).await,
                _ => self.exchange(target, request).await,
            }
        };
        let answer = timeout(self.response_timeout, answered).await;
        let answer = answer.unwrap_or(Err(ForwardError::Timeout(self.response_timeout)))?;
        // Nobody is asked to switch protocols: `Upgrade` never gets here.
        if answer.status().is_informational() { Err(ForwardError::Switched) } else { Ok(answer) }
    }

    /// Over an idle connection, or else over a new one.
    async fn exchange(
        &self,
        target: &Target,
        mut request: Request<Outgoing>,
    ) -> Result<Response<UpstreamBody>, ForwardError> {
        while let Some(connection) = target.idle.take(self.keep_alive).await {
            match connection.send(request, &target.idle).await {
                Err(Failed::Unsent(_, unsent)) => request = *unsent,
                Err(Failed::Sent(error)) => return Err(ForwardError::Broken(error.into())),
                Ok(answer) => return Ok(answer),
            }
        }
        // Rare and large: it must not make every request's future large.
        let connection = Box::pin(self.connect(target.uri("/".parse().map_err(|_| ForwardError::Target)?)?)).await?;
        connection.send(request, &target.idle).await.map_err(|failed| match failed {
            Failed::Unsent(error, _) => ForwardError::Unreachable(error.into()),
            Failed::Sent(error) => ForwardError::Broken(error.into()),
        })
    }

    async fn connect(&self, uri: Uri) -> Result<Box<Connection>, ForwardError> {
        let stream = self.connector.clone().oneshot(uri).await.map_err(ForwardError::Unreachable)?;
        let shaken = http1::handshake(stream).await;
        let (sender, driver) = shaken.map_err(|error| ForwardError::Unreachable(error.into()))?;
        Ok(Box::new(Connection { sender, driver: Some(driver) }))
    }

    /// Closes what has been idle for too long.
    pub(super) fn tidy<'t>(&self, targets: impl Iterator<Item = &'t Target>) {
        targets.for_each(|target| target.idle.expire(self.keep_alive));
    }
}

async fn shared(
    client: &Client<Connector, Outgoing>,
    target: &Target,
    mut request: Request<Outgoing>,
) -> Result<Response<UpstreamBody>, ForwardError> {
    let path = request.uri().path_and_query().cloned().ok_or(ForwardError::Target)?;
    *request.uri_mut() = target.uri(path)?;
    Ok(client.request(request).await?.map(|body| UpstreamBody { body, held: None }))
}

fn tls_builder(needed: bool) -> io::Result<HttpsConnectorBuilder<hyper_rustls::builderstates::WantsSchemes>> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    if needed {
        return HttpsConnectorBuilder::new().with_provider_and_platform_verifier(provider);
    }
    let config = rustls::ClientConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    Ok(HttpsConnectorBuilder::new().with_tls_config(config))
}

/// A connection, and what drives it: nothing happens on it unless the driver is polled.
#[derive(Debug)]
struct Connection {
    sender: http1::SendRequest<Outgoing>,
    /// None: it is over. Dropping it hands back a request that was not written.
    driver: Option<http1::Connection<MaybeHttpsStream<TokioIo<TcpStream>>, Outgoing>>,
}

/// Why there is no answer over a connection.
enum Failed {
    /// It was closed before the request was written.
    Unsent(hyper::Error, Box<Request<Outgoing>>),
    /// The upstream may have acted on the request.
    Sent(hyper::Error),
}

impl Connection {
    /// Drives it on; true when it is over.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> bool {
        if self.driver.as_mut().is_some_and(|driver| Pin::new(driver).poll(cx).is_ready()) {
            self.driver = None;
        }
        self.driver.is_none()
    }

    /// Sends a request and drives the connection until the head of the answer is there.
    async fn send(
        mut self: Box<Self>,
        request: Request<Outgoing>,
        home: &Arc<Idle>,
    ) -> Result<Response<UpstreamBody>, Failed> {
        let mut answered = pin!(self.sender.try_send_request(request));
        let answer = poll_fn(|cx| {
            self.poll_over(cx);
            // Only the driver makes the answer ready: no wake-up but its own is needed.
            answered.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        })
        .await;
        match answer {
            Ok(answer) => Ok(answer.map(|body| UpstreamBody::over(body, self, home))),
            Err(mut failed) => Err(match failed.take_message() {
                Some(request) => Failed::Unsent(failed.into_error(), Box::new(request)),
                None => Failed::Sent(failed.into_error()),
            }),
        }
    }
}

/// Idle connections to one upstream, the newest last.
#[derive(Debug, Default)]
pub(super) struct Idle(Mutex<VecDeque<(Instant, Box<Connection>)>>);

impl Idle {
    /// The newest one that still stands.
    async fn take(&self, keep_alive: Duration) -> Option<Box<Connection>> {
        loop {
            let (since, mut connection) = self.lock().pop_back()?;
            if since.elapsed() > keep_alive {
                // The others are older.
                self.lock().clear();
                return None;
            }
            let over = poll_fn(|cx| Poll::Ready(connection.poll_over(cx))).await;
            if !over && connection.sender.is_ready() {
                return Some(connection);
            }
        }
    }

    fn put(&self, connection: Box<Connection>) {
        let mut idle = self.lock();
        if idle.len() < IDLE_CONNECTIONS {
            idle.push_back((Instant::now(), connection));
        }
    }

    fn expire(&self, keep_alive: Duration) {
        let mut idle = self.lock();
        let fresh = idle.iter().position(|(since, _)| since.elapsed() <= keep_alive).unwrap_or(idle.len());
        let old: Vec<_> = idle.drain(..fresh).collect();
        // Closing sockets needs no lock.
        drop(idle);
        drop(old);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<(Instant, Box<Connection>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An answer's body, which drives the connection that it comes over.
#[derive(Debug)]
pub struct UpstreamBody {
    body: Incoming,
    held: Option<(Box<Connection>, Arc<Idle>)>,
}

impl UpstreamBody {
    fn over(body: Incoming, connection: Box<Connection>, home: &Arc<Idle>) -> Self {
        let mut this = Self { body, held: Some((connection, Arc::clone(home))) };
        if this.body.is_end_stream() {
            this.give_back();
        }
        this
    }

    fn give_back(&mut self) {
        if let Some((connection, home)) = self.held.take() {
            home.put(connection);
        }
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let mut frame = Pin::new(&mut this.body).poll_frame(cx);
        if frame.is_pending()
            && let Some((connection, _)) = &mut this.held
        {
            if connection.poll_over(cx) {
                this.held = None;
            }
            frame = Pin::new(&mut this.body).poll_frame(cx);
        }
        match &frame {
            // What broke is not used again.
            Poll::Ready(Some(Err(_))) => this.held = None,
            Poll::Ready(None) => this.give_back(),
            Poll::Ready(Some(Ok(_))) if this.body.is_end_stream() => this.give_back(),
            _ => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
