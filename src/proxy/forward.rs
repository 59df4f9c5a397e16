//! What is forwarded: to which address, with which body and deadlines, and what can go wrong.
//!
//! Nothing here adds a credential: [`ContextHeaders`](super::headers::ContextHeaders)
//! does, for governed routes alone.

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Request, StatusCode, Uri, Version, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper_util::client::legacy;
use serde::{Deserialize, Deserializer};
use tokio::time::{Instant, Sleep, sleep_until};

use super::upstream::Idle;
use crate::problem::Problem;

/// What a body or a service fails with.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// The LLM proxy behind us. Durations are seconds in the configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UpstreamConfig {
    /// `http` or `https` addresses; several are balanced. A list, or comma separated.
    #[serde(deserialize_with = "urls")]
    pub urls: Vec<String>,
    /// The credential for governed routes, as the value of `authorization`.
    #[serde(deserialize_with = "bearer")]
    pub api_key: Option<HeaderValue>,
    /// HTTP/2 towards `https` upstreams that offer it.
    pub http2: bool,
    /// Until a connection stands.
    #[serde(deserialize_with = "seconds")]
    pub connect_timeout: Duration,
    /// From sending the request to the head of the response.
    #[serde(deserialize_with = "seconds")]
    pub response_timeout: Duration,
    /// Between two pieces of a response body.
    #[serde(deserialize_with = "seconds")]
    pub idle_timeout: Duration,
    /// For the whole exchange.
    #[serde(deserialize_with = "seconds")]
    pub total_timeout: Duration,
    /// How long an idle connection is kept; shorter than the upstream keeps it
    /// (5 s for uvicorn, which serves LiteLLM), so that no request meets its end.
    #[serde(deserialize_with = "seconds")]
    pub keep_alive: Duration,
    /// What the health check asks for; any 2xx is healthy.
    pub health_path: String,
    /// Between two health checks; 0 switches them off.
    #[serde(deserialize_with = "seconds_or_off")]
    pub health_interval: Duration,
    /// Failures in a row after which an upstream is left out.
    pub eject_after: u32,
    /// For how long it is left out.
    #[serde(deserialize_with = "seconds")]
    pub eject_for: Duration,
}

impl Default for UpstreamConfig {
    fn default() -> Self {
        Self {
            urls: vec!["http://127.0.0.1:4000".to_owned()],
            api_key: None,
            http2: false,
            connect_timeout: Duration::from_secs(5),
            response_timeout: Duration::from_secs(600),
            idle_timeout: Duration::from_secs(300),
            total_timeout: Duration::from_secs(3600),
            keep_alive: Duration::from_secs(4),
            health_path: "/health/liveliness".to_owned(),
            health_interval: Duration::from_secs(5),
            eject_after: 5,
            eject_for: Duration::from_secs(10),
        }
    }
}

impl UpstreamConfig {
    /// The addresses, read.
    ///
    /// # Errors
    /// [`UpstreamError`] names the key that is wrong.
    pub fn targets(&self) -> Result<Vec<Target>, UpstreamError> {
        if self.urls.is_empty() {
            return Err(UpstreamError::NoUrl);
        }
        if !self.health_path.starts_with('/') || self.health_path.parse::<Uri>().is_err() {
            return Err(UpstreamError::HealthPath);
        }
        let read = |(n, url): (usize, &String)| Target::parse(url).ok_or(UpstreamError::Url(n + 1));
        self.urls.iter().enumerate().map(read).collect()
    }
}

/// The value of `authorization` for an upstream key, hidden from `Debug` and from HPACK tables.
///
/// # Errors
/// When the key is empty or holds something other than visible ASCII.
pub fn bearer_value(key: &str) -> Result<HeaderValue, UpstreamError> {
    if key.is_empty() || !key.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(UpstreamError::ApiKey);
    }
    let mut value = HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| UpstreamError::ApiKey)?;
    value.set_sensitive(true);
    Ok(value)
}

fn bearer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<HeaderValue>, D::Error> {
    let key = Option::<String>::deserialize(deserializer)?.filter(|key| !key.is_empty());
    key.map(|key| bearer_value(&key)).transpose().map_err(serde::de::Error::custom)
}

fn urls<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Urls {
        Text(String),
        List(Vec<String>),
    }
    Ok(match Urls::deserialize(deserializer)? {
        Urls::List(list) => list,
        Urls::Text(text) => text.split(',').map(str::trim).filter(|url| !url.is_empty()).map(str::to_owned).collect(),
    })
}

fn seconds_or_off<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let wrong = |_| serde::de::Error::custom("expected a number of seconds, at least 0");
    Duration::try_from_secs_f64(f64::deserialize(deserializer)?).map_err(wrong)
}

fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let duration = seconds_or_off(deserializer)?;
    if duration.is_zero() {
        return Err(serde::de::Error::custom("expected a number of seconds above 0"));
    }
    Ok(duration)
}

/// Why the configured upstream cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// No address at all.
    #[error("urls: at least one upstream address is needed, such as http://127.0.0.1:4000")]
    NoUrl,
    /// An address that is none; it is not repeated, because it may hold a password.
    #[error("urls: address {0} must be http://host:port or https://host, without user, query or fragment")]
    Url(usize),
    /// A health path that is none.
    #[error("health_path: must start with `/`, such as /health/liveliness")]
    HealthPath,
    /// A key that cannot stand in a header.
    #[error("the upstream's key must be visible ASCII characters without spaces")]
    ApiKey,
    /// TLS towards the upstream cannot be set up.
    #[error("TLS towards the upstream: {0}")]
    Tls(#[source] io::Error),
}

/// One upstream's address.
#[derive(Debug, Clone)]
pub struct Target {
    scheme: Scheme,
    authority: Authority,
    host: HeaderValue,
    /// Path in front of every request's path; empty or without trailing slash.
    prefix: String,
    /// Connections to it that no request holds.
    pub(super) idle: Arc<Idle>,
}

impl Target {
    /// Reads an address: scheme, host, port and perhaps a path.
    pub fn parse(url: &str) -> Option<Self> {
        if url.contains(['#', '?']) {
            return None;
        }
        let uri: Uri = url.trim().parse().ok()?;
        let scheme = uri.scheme().filter(|s| [Scheme::HTTP, Scheme::HTTPS].contains(s))?.clone();
        let authority = uri.authority().filter(|a| !a.as_str().contains('@') && !a.host().is_empty())?.clone();
        let host = HeaderValue::from_str(authority.as_str()).ok()?;
        let prefix = uri.path().trim_end_matches('/').to_owned();
        Some(Self { scheme, host, prefix, authority, idle: Arc::default() })
    }

    /// Whether it speaks TLS.
    pub fn is_https(&self) -> bool {
        self.scheme == Scheme::HTTPS
    }

    /// Points a request, whose URI is a path, at this upstream; the URI stays a path.
    pub(super) fn aim<B>(&self, request: &mut Request<B>) -> Result<(), ForwardError> {
        let path = request.uri().path_and_query().ok_or(ForwardError::Target)?;
        if !self.prefix.is_empty() {
            let path = PathAndQuery::try_from(format!("{}{path}", self.prefix)).map_err(|_| ForwardError::Target)?;
            *request.uri_mut() = Uri::from(path);
        } else if request.uri().authority().is_some() {
            *request.uri_mut() = Uri::from(path.clone());
        }
        *request.version_mut() = Version::HTTP_11;
        request.headers_mut().insert(header::HOST, self.host.clone());
        Ok(())
    }

    /// The whole address of a path there.
    pub(super) fn uri(&self, path: PathAndQuery) -> Result<Uri, ForwardError> {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = Some(path);
        Uri::from_parts(parts).map_err(|_| ForwardError::Target)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme, self.authority, self.prefix)
    }
}

/// A request body on its way to the upstream.
///
/// Trailers are dropped: they could repeat a header that was stripped.
#[derive(Debug)]
pub struct Outgoing(Content);

#[derive(Debug)]
enum Content {
    Whole(Bytes),
    Stream(UnsyncBoxBody<Bytes, BoxError>),
}

impl Outgoing {
    /// No body.
    pub const fn empty() -> Self {
        Self(Content::Whole(Bytes::new()))
    }

    /// A body that is read while it is sent.
    pub fn stream<B>(body: B) -> Self
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        Self(Content::Stream(body.map_err(Into::into).boxed_unsync()))
    }

    /// The same body once more, if it is still there as a whole.
    pub fn again(&self) -> Option<Self> {
        match &self.0 {
            Content::Whole(bytes) => Some(Self(Content::Whole(bytes.clone()))),
            Content::Stream(_) => None,
        }
    }
}

impl From<Bytes> for Outgoing {
    fn from(bytes: Bytes) -> Self {
        Self(Content::Whole(bytes))
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.get_mut().0 {
            Content::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Content::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Content::Stream(body) => Poll::Ready(match ready!(Pin::new(body).poll_frame(cx)) {
                Some(Ok(frame)) if frame.is_trailers() => None,
                other => other,
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Content::Whole(bytes) => bytes.is_empty(),
            Content::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Content::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Content::Stream(body) => body.size_hint(),
        }
    }
}

/// Why there is no response. The upstream's address is in the source, never in the text.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// No connection: the request was not sent and may go elsewhere.
    #[error("the upstream cannot be reached")]
    Unreachable(#[source] BoxError),
    /// No response in time; the request may have been acted on.
    #[error("the upstream did not answer within {0:?}")]
    Timeout(Duration),
    /// The connection broke; the request may have been acted on.
    #[error("the upstream closed the connection without an answer")]
    Broken(#[source] BoxError),
    /// It answered with another protocol, which nobody asked for.
    #[error("the upstream switched protocols unasked")]
    Switched,
    /// The request has no path that could be asked for.
    #[error("the request target must be a path")]
    Target,
    /// There is no upstream.
    #[error("nothing stands behind the gateway")]
    Nothing,
    /// The embedder's service failed; it may have acted on the request.
    #[error("the service behind the gateway failed")]
    Service(#[source] BoxError),
}

impl ForwardError {
    /// Whether the request certainly did not reach the upstream.
    pub const fn is_unsent(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Target | Self::Nothing)
    }
}

impl From<legacy::Error> for ForwardError {
    fn from(error: legacy::Error) -> Self {
        if error.is_connect() { Self::Unreachable(error.into()) } else { Self::Broken(error.into()) }
    }
}

impl From<ForwardError> for Problem {
    fn from(error: ForwardError) -> Self {
        match error {
            ForwardError::Unreachable(_) | ForwardError::Nothing => {
                Self::new(StatusCode::BAD_GATEWAY, "upstream_unreachable", "The upstream cannot be reached; try again")
                    .with_header(header::RETRY_AFTER, "1")
            }
            ForwardError::Broken(_) | ForwardError::Service(_) => Self::new(
                StatusCode::BAD_GATEWAY,
                "upstream_unreachable",
                "The upstream closed the connection without an answer",
            ),
            ForwardError::Switched => Self::new(
                StatusCode::BAD_GATEWAY,
                "upstream_unreadable",
                "The upstream switched to another protocol unasked",
            ),
            ForwardError::Timeout(after) => Self::new(
                StatusCode::GATEWAY_TIMEOUT,
                "upstream_timeout",
                format!("The upstream did not answer within {} seconds", after.as_secs_f64()),
            ),
            ForwardError::Target => Self::bad_request("invalid_path", "The request target must be an absolute path"),
        }
    }
}

/// Why a response body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// Nothing came for too long.
    #[error("the upstream sent nothing for {0:?}")]
    Idle(Duration),
    /// The whole exchange took too long.
    #[error("the exchange took longer than allowed")]
    Total,
    /// The upstream broke off.
    #[error("the upstream broke off")]
    Broken(#[source] BoxError),
}

/// A response body that ends with an error when nothing comes for too long, or
/// when the exchange as a whole takes too long.
///
/// No timer is armed before the body first has to wait. Trailers are dropped: they
/// could repeat a header that was stripped.
#[derive(Debug)]
pub struct Deadlined<B> {
    body: B,
    idle: Duration,
    until: Instant,
    /// The last frame, or the first wait.
    heard: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl<B> Deadlined<B> {
    /// Wraps a body that may pause for `idle` and must end by `until`.
    pub fn new(body: B, idle: Duration, until: Instant) -> Self {
        Self { body, idle, until, heard: None, sleep: None }
    }

    /// Waits for the nearer deadline; ready with the error when it has passed.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        let heard = *self.heard.get_or_insert_with(Instant::now);
        let deadline = heard.checked_add(self.idle).map_or(self.until, |idle| idle.min(self.until));
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        loop {
            ready!(sleep.as_mut().poll(cx));
            if sleep.deadline() >= deadline {
                let total = deadline >= self.until;
                return Poll::Ready(if total { StreamError::Total } else { StreamError::Idle(self.idle) });
            }
            // Frames came meanwhile: sleep on until their deadline.
            sleep.as_mut().reset(deadline);
        }
    }
}

impl<B> Body for Deadlined<B>
where
    B: Body + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = StreamError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, StreamError>>> {
        let this = self.get_mut();
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            let now = Instant::now();
            // A body that is always ready never gets to the timer.
            if now >= this.until && frame.is_some() {
                return Poll::Ready(Some(Err(StreamError::Total)));
            }
            this.heard = Some(now);
            return Poll::Ready(match frame {
                Some(Ok(frame)) if frame.is_trailers() => None,
                other => other.map(|frame| frame.map_err(|error| StreamError::Broken(error.into()))),
            });
        }
        this.poll_deadline(cx).map(|error| Some(Err(error)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
