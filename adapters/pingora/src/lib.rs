//! alchemi inside of a gateway that is built with [pingora](https://docs.rs/pingora) 0.9.
//!
//! [`Governed`] answers requests of a [`Session`] by a service of alchemi's: the pipeline of a
//! [`GovernLayer`](alchemi::GovernLayer), with the control plane if it has one. A gateway calls it in `request_filter`,
//! and goes on by itself with what is not alchemi's. [`Gate`] puts alchemi's checks of request heads between pingora's
//! listener and its parser. `examples/gateway.rs` is a whole program.
//!
//! ```toml
//! [dependencies]
//! alchemi = { git = "…", default-features = false, features = ["postgres"] }
//! alchemi-pingora = { git = "…", default-features = false, features = ["postgres"] }
//! pingora-core = { version = "0.9.1", features = ["rustls"] }
//! pingora-proxy = "0.9.1"
//! ```
//!
//! It is a package of its own because pingora builds C code with CMake, which nobody else of alchemi's needs.
//!
//! # What the gateway sees to
//!
//! * **Jobs**: [`alchemi::jobs`], and the settler, run on a runtime that outlives pingora's. pingora's `daemon` forks and
//!   loses every thread that was there before.
//! * **The end**: `Server::run` instead of `run_forever`, which exits under what is not settled yet; then the jobs are
//!   aborted and the settler is waited for. Upon SIGTERM, what is under way goes on for `grace_period_seconds` (300 unless
//!   said), and is cut then.
//! * **Slow clients**: pingora has no timeout for an idle connection, nor for a client that reads nothing, unless
//!   `set_keepalive` and `set_write_timeout` of the session say so.
//! * **Its own paths**: what is not alchemi's goes on as the client sent it, with whatever `x-alchemi-…` headers it has.
//!   An upstream of one's own must not believe them.
#![forbid(unsafe_code)]

mod body;
mod gate;

pub use gate::Gate;

use std::convert::Infallible;
use std::net::SocketAddr;

use alchemi::proxy::ingress::{Peer, normalise};
use alchemi::proxy::routes::{Route, route};
use alchemi::proxy::wire;
use axum::body::Body;
use axum::response::IntoResponse as _;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use http_body_util::BodyExt as _;
use pingora_core::modules::http::compression::ResponseCompression;
use pingora_core::protocols::http::ServerSession;
use pingora_core::{Error, ErrorType, Result};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;
use tower::{Service, ServiceExt as _};

use body::{Upload, unwritten};

/// Answers requests of pingora's sessions by a service of alchemi's.
///
/// ```
/// use alchemi::Govern;
/// use alchemi_pingora::Governed;
/// use async_trait::async_trait;
/// use pingora_core::Result;
/// use pingora_core::upstreams::peer::HttpPeer;
/// use pingora_proxy::{ProxyHttp, Session};
///
/// /// Governed routes and the control plane are alchemi's, everything else goes to a server of one's own.
/// struct Front {
///     governed: Governed<Govern>,
/// }
///
/// #[async_trait]
/// impl ProxyHttp for Front {
///     type CTX = ();
///
///     fn new_ctx(&self) {}
///
///     async fn request_filter(&self, session: &mut Session, _: &mut ()) -> Result<bool> {
///         self.governed.answer(session).await
///     }
///
///     async fn upstream_peer(&self, _: &mut Session, _: &mut ()) -> Result<Box<HttpPeer>> {
///         Ok(Box::new(HttpPeer::new("127.0.0.1:8000", false, String::new())))
///     }
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Governed<S> {
    service: S,
}

impl<S, B> Governed<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error = Infallible> + Clone,
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// Answers by `service`, which is cloned for each request. Who is at the other end is in a request's extensions, as a
    /// [`Peer`]; proxies whose word on that is believed are those of
    /// [`GovernLayer::with_trusted_proxies`](alchemi::GovernLayer::with_trusted_proxies).
    pub fn new(service: S) -> Self {
        Self { service }
    }

    /// Answers a request for a governed route or the control plane, as
    /// [`answer_if`](Self::answer_if) does.
    ///
    /// # Errors
    /// See there.
    pub async fn answer(&self, session: &mut Session) -> Result<bool> {
        let method = session.req_header().method.clone();
        self.answer_if(session, |path| !matches!(route(&method, path), Route::Ungoverned)).await
    }

    /// Answers a request whose path is `ours`, and every one that a [`Gate`] has refused; whether it did is what
    /// `request_filter` gives. The path is as alchemi reads it, with what need not be escaped unescaped. One that two
    /// readers could read differently (`//`, `..`, `%2f`) goes to the service, too, which refuses it.
    ///
    /// Body and answer pass as they come, without trailers; pingora's compression is off for event streams. When the
    /// client leaves, the service's future or the answer's body is dropped: alchemi stops the upstream and settles then.
    /// One that ends what it sends (half-closes) has left. On HTTP/1 that is seen when it happens, once the body was
    /// read and unless a next request has come already; else when something cannot be written.
    ///
    /// Pipelining is switched on for the connection: without it, pingora drops an answer when the client's next request
    /// comes before its end. pingora closes a connection whose request was answered before its body was read.
    ///
    /// # Errors
    /// `ConnectionClosed`, of downstream, when the client has left; `InternalError`, of our own, when the answer broke
    /// off; what pingora says of an answer that it cannot write. A head that was sent is then all there will be.
    pub async fn answer_if(&self, session: &mut Session, ours: impl FnOnce(&str) -> bool) -> Result<bool> {
        let head = session.req_header();
        if let Some(problem) = wire::refusal(head.uri.path()) {
            session.set_keepalive(None);
            let (_, mut nothing) = Upload::of(session);
            send(session, problem.into_response(), &mut nothing).await?;
            return Ok(true);
        }
        if normalise(head.uri.path()).is_ok_and(|path| !ours(&path)) {
            return Ok(false);
        }
        let mut request = Request::new(Body::empty());
        *request.method_mut() = head.method.clone();
        *request.uri_mut() = head.uri.clone();
        *request.version_mut() = head.version;
        *request.headers_mut() = head.headers.clone();
        if let Some(peer) = peer(session) {
            request.extensions_mut().insert(peer);
        }
        if let ServerSession::H1(session) = session.as_downstream_mut() {
            session.set_pipelining_enabled(true);
        }
        let (body, mut upload) = Upload::of(session);
        *request.body_mut() = body;
        let response = {
            let mut answer = std::pin::pin!(self.service.clone().oneshot(request));
            loop {
                tokio::select! {
                    biased;
                    response = &mut answer => break response.unwrap_or_else(|never| match never {}),
                    done = upload.go_on(session) => done?,
                }
            }
        };
        send(session, response, &mut upload).await?;
        if !upload.is_done() {
            // Whatever the client still sends is not read as another request.
            session.set_keepalive(None);
        }
        Ok(true)
    }
}

/// Who is at the other end, as alchemi's trusted proxies are judged by.
fn peer(session: &Session) -> Option<Peer> {
    let ip = session.client_addr()?.as_inet().map(SocketAddr::ip)?;
    let tls = session.digest().is_some_and(|digest| digest.ssl_digest.is_some());
    Some(Peer { ip, tls })
}

/// Sends an answer, while the rest of the request may still come in.
async fn send<B>(session: &mut Session, response: Response<B>, upload: &mut Upload) -> Result<()>
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (mut parts, mut body) = response.into_parts();
    let media_type = parts.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    if media_type.starts_with(b"text/event-stream")
        && let Some(compression) = session.downstream_modules_ctx.get_mut::<ResponseCompression>()
    {
        // It would keep events back until it has a block of them.
        compression.adjust_level(0);
    }
    let is_bodiless = session.req_header().method == http::Method::HEAD
        || parts.status == StatusCode::NO_CONTENT
        || parts.status == StatusCode::NOT_MODIFIED;
    // pingora writes no other version's, and frames by what the head says.
    parts.version = Version::HTTP_11;
    parts.headers.remove(header::TRANSFER_ENCODING);
    if !is_bodiless
        && !parts.headers.contains_key(header::CONTENT_LENGTH)
        && session.req_header().version < Version::HTTP_2
    {
        match body.size_hint().exact() {
            Some(length) => parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length)),
            None if session.req_header().version == Version::HTTP_11 => {
                parts.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"))
            }
            None => {
                session.set_keepalive(None);
                None
            }
        };
    }
    let is_over = is_bodiless || body.is_end_stream();
    session.write_response_header(Box::new(ResponseHeader::from(parts)), is_over).await.map_err(unwritten)?;
    if is_over {
        return session.write_response_body(None, true).await.map_err(unwritten);
    }
    loop {
        let frame = tokio::select! {
            biased;
            frame = body.frame() => frame,
            done = upload.go_on(session) => {
                done?;
                continue;
            }
        };
        match frame {
            Some(frame) => {
                let frame = frame.map_err(|error| {
                    Error::because(ErrorType::InternalError, "the answer broke off", error).into_in()
                })?;
                if let Ok(bytes) = frame.into_data() {
                    session.write_response_body(Some(bytes), false).await.map_err(unwritten)?;
                }
            }
            None => return session.write_response_body(None, true).await.map_err(unwritten),
        }
    }
}
