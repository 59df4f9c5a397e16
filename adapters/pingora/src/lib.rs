//! alchemi inside of a gateway that is built with [pingora](https://docs.rs/pingora).
//!
//! [`Governed`] answers requests of a [`Session`] by any service of alchemi's: the pipeline of
//! [`GovernLayer`](alchemi::GovernLayer), the control plane's router, or both in one axum router. A gateway calls it in
//! `request_filter` for the paths that are alchemi's, and goes on by itself with others. [`Gate`] puts alchemi's checks
//! of request heads between pingora's listener and its parser.
//!
//! `examples/gateway.rs` is a whole program. This is a package of its own because pingora builds C code with CMake, which
//! nobody else of alchemi's needs.
#![forbid(unsafe_code)]

mod body;
mod gate;

pub use gate::Gate;

use std::convert::Infallible;
use std::net::SocketAddr;

use alchemi::proxy::ingress::Peer;
use alchemi::proxy::wire;
use axum::body::Body;
use axum::response::IntoResponse as _;
use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use pingora_core::{Error, ErrorType, Result};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;
use tower::{Service, ServiceExt as _};

use body::Upload;

/// Answers requests of pingora's sessions by a service of alchemi's.
///
/// ```
/// use alchemi_pingora::Governed;
/// use async_trait::async_trait;
/// use axum::Router;
/// use pingora_core::Result;
/// use pingora_core::upstreams::peer::HttpPeer;
/// use pingora_proxy::{ProxyHttp, Session};
///
/// /// `/v1/…` is alchemi's, everything else goes to a server of one's own.
/// struct Front {
///     governed: Governed<Router>,
/// }
///
/// #[async_trait]
/// impl ProxyHttp for Front {
///     type CTX = ();
///
///     fn new_ctx(&self) {}
///
///     async fn request_filter(&self, session: &mut Session, _: &mut ()) -> Result<bool> {
///         self.governed.answer(session, |path| path.starts_with("/v1/")).await
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

impl<S> Governed<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone,
{
    /// Answers by `service`, which is cloned for each request.
    pub fn new(service: S) -> Self {
        Self { service }
    }

    /// Answers a request whose path is `ours`, and every one that a [`Gate`] has refused; whether it did is what
    /// `request_filter` gives.
    ///
    /// Body and answer pass as they come. When the client leaves, the service's future or the answer's body is
    /// dropped: alchemi stops the upstream and settles then.
    ///
    /// A client that sends its next request before the answer is over is cut off, unless the gateway has switched
    /// pipelining on (`set_pipelining_enabled`, in `early_request_filter`). pingora closes a connection whose request
    /// was answered before its body was read, and one that was told to go on (`Expect: 100-continue`).
    ///
    /// # Errors
    /// When the client has left, or the answer broke off; a head that was sent is then all there will be.
    pub async fn answer(&self, session: &mut Session, ours: impl Fn(&str) -> bool) -> Result<bool> {
        let head = session.req_header();
        let path = head.uri.path();
        if let Some(problem) = wire::refusal(path) {
            session.set_keepalive(None);
            let (_, mut nothing) = Upload::of(session);
            send(session, problem.into_response(), &mut nothing).await?;
            return Ok(true);
        }
        if !ours(path) {
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
async fn send(session: &mut Session, response: Response<Body>, upload: &mut Upload) -> Result<()> {
    let (mut parts, mut body) = response.into_parts();
    let is_bodiless = session.req_header().method == http::Method::HEAD
        || parts.status == StatusCode::NO_CONTENT
        || parts.status == StatusCode::NOT_MODIFIED;
    // pingora frames by what the head says.
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
    session.write_response_header(Box::new(ResponseHeader::from(parts)), is_over).await?;
    if is_over {
        return session.write_response_body(None, true).await;
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
                let frame =
                    frame.map_err(|error| Error::because(ErrorType::InternalError, "the answer broke off", error))?;
                if let Ok(bytes) = frame.into_data() {
                    session.write_response_body(Some(bytes), false).await?;
                }
            }
            None => return session.write_response_body(None, true).await,
        }
    }
}
