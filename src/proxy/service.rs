//! The whole pipeline as a tower layer, over any service that answers like an LLM upstream.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use tower::{Layer, Service, ServiceExt as _};
use tracing::Instrument as _;

use super::behind::Behind;
use super::forward::{BoxError, Outgoing};
use super::ingress::{self, Peer, RequestId, TrustedProxies};
use super::routes::{Route, method_not_allowed, route};
use super::{Exchange, Gateway, GatewayParts, refusal, wire};
use crate::context::RequestInfo;
use crate::id::{IdSource, RandomIds};
use crate::problem::Problem;

/// Puts identity, context, policy, guardrails, budget and metering in front of a service:
/// what `alchemi serve` does with an upstream, for a gateway of one's own.
///
/// The service gets the [governed](super::routes) requests that were let through, with
/// the caller's credential taken out and the context headers set, and its answers are
/// metered. Every refusal is answered here, in the shape of the client's SDK. Any other
/// path is 404 `route_not_governed`: route what is yours beside it.
///
/// Beside its requests, a gateway has the [jobs](crate::jobs) of every one.
/// `examples/tower_stack.rs` is a whole program.
#[derive(Debug, Clone)]
pub struct GovernLayer {
    parts: GatewayParts,
    trusted: TrustedProxies,
    control: Option<Router>,
    ids: Arc<dyn IdSource>,
}

impl GovernLayer {
    /// A layer of these parts, whose [`behind`](GatewayParts::behind) is what it is put around.
    pub fn new(parts: GatewayParts) -> Self {
        Self { parts, trusted: TrustedProxies::default(), control: None, ids: Arc::new(RandomIds) }
    }

    /// With networks whose forwarding headers are believed. Of the connection, the
    /// request's extensions tell by a [`Peer`].
    #[must_use]
    pub fn with_trusted_proxies(self, trusted: TrustedProxies) -> Self {
        Self { trusted, ..self }
    }

    /// With the control plane: requests under `/v1` that are not governed go to `router`, a
    /// [`v1::router`](crate::v1::router) behind an [`AuthenticateLayer`](crate::AuthenticateLayer), which finds a
    /// [`RequestInfo`] in their extensions.
    #[must_use]
    pub fn with_control_plane(self, router: Router) -> Self {
        Self { control: Some(router), ..self }
    }

    /// With another source of request ids.
    #[must_use]
    pub fn with_ids(self, ids: Arc<dyn IdSource>) -> Self {
        Self { ids, ..self }
    }
}

impl<S> Layer<S> for GovernLayer
where
    S: Service<Request<Outgoing>, Response = Response<Body>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    type Service = Govern;

    fn layer(&self, inner: S) -> Govern {
        let parts = GatewayParts { behind: Behind::service(inner), ..self.parts.clone() };
        Govern {
            gateway: Gateway::new(parts),
            trusted: self.trusted.clone(),
            control: self.control.clone(),
            ids: Arc::clone(&self.ids),
        }
    }
}

/// What a [`GovernLayer`] makes: requests of any body in, whole answers out, refusals among them; it never fails. Of the
/// connection it is told by a [`Peer`] in the request's extensions; without one, the client is at no address.
#[derive(Debug, Clone)]
pub struct Govern {
    gateway: Gateway,
    trusted: TrustedProxies,
    control: Option<Router>,
    ids: Arc<dyn IdSource>,
}

impl<B> Service<Request<B>> for Govern
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { Ok(this.answer(request).await) })
    }
}

impl Govern {
    async fn answer<B>(&self, mut request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let (received, gateway) = (Instant::now(), &self.gateway);
        let id = RequestId::new(&*self.ids, gateway.now());
        if let Some(problem) = wire::refusal(request.uri().path()) {
            return gateway.refused(problem, None, &id, None);
        }
        let unknown = || Peer { ip: IpAddr::V4(Ipv4Addr::UNSPECIFIED), tls: false };
        let peer = request.extensions().get::<Peer>().copied().unwrap_or_else(unknown);
        let arrival = match ingress::admit(&mut request, peer, &self.trusted) {
            Ok(arrival) => arrival,
            Err(problem) => {
                let kind = route(request.method(), request.uri().path()).kind();
                return gateway.refused(problem, kind, &id, None);
            }
        };
        let exchange = Exchange::new(id, arrival, received);
        let uri = request.uri().clone();
        match (route(request.method(), uri.path()), &self.control) {
            (Route::Governed(governed), _) => gateway.govern(request, &exchange, governed).await,
            (Route::MethodNotAllowed { kind, allow }, _) => {
                gateway.refused(method_not_allowed(allow), Some(kind), &exchange.id, None)
            }
            (Route::ControlPlane, Some(router)) => control(router.clone(), request.map(Body::new), &exchange).await,
            (Route::ControlPlane | Route::Ungoverned, _) => gateway.pass_through(request, &exchange).await,
        }
    }
}

/// The control plane's answer, which is told who asks, and from where.
pub(crate) async fn control(router: Router, mut request: Request<Body>, exchange: &Exchange) -> Response<Body> {
    let info = RequestInfo { id: exchange.id.text(), client_ip: Some(exchange.arrival.client_ip) };
    request.extensions_mut().insert(info);
    let mut response = match router.oneshot(request).instrument(exchange.span().clone()).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    exchange.answered("control", "answered", response.status());
    if let Some(problem) = response.extensions().get::<Problem>() {
        refusal::log(problem, "control", &exchange.id, None);
    }
    exchange.id.set(response.headers_mut());
    response
}
