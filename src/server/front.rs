//! The main listener: what each request is, and who answers it.

use std::sync::{Arc, LazyLock};
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use http::{HeaderValue, Request, Response, Version, header};
use hyper::body::Incoming;
use tower::ServiceExt;

use super::listener::Answer;
use super::operations::{Operations, OperatorRoute};
use crate::clock::SharedClock;
use crate::context::Context;
use crate::id::IdSource;
use crate::layer::Authenticator;
use crate::layer::headers::{Bearer, RequestHeaders};
use crate::problem::Problem;
use crate::proxy::ingress::{self, Peer, RequestId, TrustedProxies};
use crate::proxy::routes::{Route, method_not_allowed, route};
use crate::proxy::service::control;
use crate::proxy::{Exchange, Gateway, wire};
use crate::telemetry;

/// Answers every request of the main listener.
#[derive(Clone)]
pub(super) struct Front(pub(super) Arc<FrontParts>);

pub(super) struct FrontParts {
    pub(super) gateway: Gateway,
    pub(super) control: Router,
    /// Made for the first who reads it: that takes longer than the rest of the start.
    pub(super) documentation: LazyLock<Router>,
    pub(super) operations: Operations,
    pub(super) authenticator: Authenticator,
    /// Whether `/metrics` has an address of its own and needs no credential there.
    pub(super) metrics_elsewhere: bool,
    pub(super) trusted: TrustedProxies,
    pub(super) clock: SharedClock,
    pub(super) ids: Arc<dyn IdSource>,
}

/// A refused body of more than this is not read to its end to keep the connection.
const DRAINED_BODY: u64 = 4 * 1024;

impl Answer for Front {
    async fn answer(&self, request: Request<Incoming>, peer: Peer) -> Response<Body> {
        // hyper closes a connection whose body was not read; the client must hear of it.
        let body = http_body::Body::size_hint(request.body());
        let large = body.upper().is_none_or(|bytes| bytes > DRAINED_BODY) && request.version() < Version::HTTP_2;
        let mut response = self.respond(request, peer).await;
        if large && response.status().is_client_error() {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

impl Front {
    async fn respond(&self, mut request: Request<Incoming>, peer: Peer) -> Response<Body> {
        let received = Instant::now();
        let own = &*self.0;
        let id = RequestId::new(&*own.ids, own.clock.now());
        if let Some(problem) = wire::refusal(request.uri().path()) {
            return own.gateway.refused(problem, None, &id, None);
        }
        let arrival = match ingress::admit(&mut request, peer, &own.trusted) {
            Ok(arrival) => arrival,
            Err(problem) => {
                let kind = route(request.method(), request.uri().path()).kind();
                return own.gateway.refused(problem, kind, &id, None);
            }
        };
        let exchange = Exchange::new(id, arrival, received);
        telemetry::adopt(exchange.span(), request.headers_mut());
        // The path is borrowed from a clone of the URI, which shares its bytes.
        let uri = request.uri().clone();
        match route(request.method(), uri.path()) {
            Route::Governed(governed) => own.gateway.govern(request, &exchange, governed).await,
            Route::MethodNotAllowed { kind, allow } => {
                own.gateway.refused(method_not_allowed(allow), Some(kind), &exchange.id, None)
            }
            // Boxed, as the governed pipeline is: hyper moves a request's future about.
            Route::ControlPlane => Box::pin(control(own.control.clone(), request.map(Body::new), &exchange)).await,
            Route::Ungoverned => Box::pin(self.ungoverned(request, &exchange)).await,
        }
    }

    /// What is neither governed nor under `/v1`.
    async fn ungoverned(&self, request: Request<Incoming>, exchange: &Exchange) -> Response<Body> {
        match self.own(&request, exchange).await {
            Some(response) => response,
            None if is_documentation(request.uri().path()) => self.documentation(request, exchange).await,
            None => self.0.gateway.pass_through(request, exchange).await,
        }
    }

    async fn documentation(&self, request: Request<Incoming>, exchange: &Exchange) -> Response<Body> {
        let mut response = infallible(self.0.documentation.clone().oneshot(request.map(Body::new)).await);
        match response.extensions_mut().remove::<Problem>() {
            Some(problem) => self.0.gateway.refused(problem, None, &exchange.id, None),
            None => response,
        }
    }

    /// `/healthz`, `/readyz` and `/metrics` on the main address.
    async fn own(&self, request: &Request<Incoming>, exchange: &Exchange) -> Option<Response<Body>> {
        let own = &*self.0;
        let route = match OperatorRoute::of(request)? {
            Ok(OperatorRoute::Metrics) if own.metrics_elsewhere => {
                Err(Problem::not_found("Metrics are on the address of admin_listen"))
            }
            Ok(route @ (OperatorRoute::Metrics | OperatorRoute::Verbose)) => {
                self.is_operator(request).await.map(|()| route)
            }
            other => other,
        };
        Some(match route {
            Ok(route) => route.answer(&own.operations).await,
            Err(problem) => own.gateway.refused(problem, None, &exchange.id, None),
        })
    }

    async fn is_operator(&self, request: &Request<Incoming>) -> Result<(), Problem> {
        let asked = RequestHeaders::take(&mut request.headers().clone())?;
        let presented = asked.bearer.as_ref().map(Bearer::token);
        let credential = self.0.authenticator.credential(presented).await?;
        let context: Context = self.0.authenticator.establish(&credential, None).await?.context;
        context.super_admin().map(drop)
    }
}

fn infallible<T>(result: Result<T, std::convert::Infallible>) -> T {
    match result {
        Ok(value) => value,
    }
}

fn is_documentation(path: &str) -> bool {
    path == "/openapi.json" || path == "/docs" || path.starts_with("/docs/")
}
