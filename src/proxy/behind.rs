//! What stands behind the gateway: upstreams that it calls, or a service of the embedder's.

use std::fmt;
use std::sync::Arc;

use axum::body::Body;
use http::{Request, Response};
use http_body_util::Either;
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceExt};

use super::balance::Balancer;
use super::forward::{BoxError, ForwardError, Outgoing};
use super::upstream::UpstreamBody;
use crate::context::Context;
use crate::layer::CallerContext;

/// The body of an answer from behind.
pub type Answer = Either<UpstreamBody, Body>;

/// Where permitted requests go.
#[derive(Debug, Clone, Default)]
pub enum Behind {
    /// Nowhere yet.
    #[default]
    Nothing,
    /// Upstreams over HTTP.
    Upstreams(Arc<Balancer>),
    /// A service in this process.
    Service(InnerService),
}

impl Behind {
    /// A service in this process, which gets each permitted request with its context headers,
    /// and its caller as [`AuthenticateLayer`](crate::layer::AuthenticateLayer) gives it: the
    /// [`Context`] in the extensions, and [`CallerContext::current`].
    pub fn service<S>(service: S) -> Self
    where
        S: Service<Request<Outgoing>, Response = Response<Body>> + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send + 'static,
    {
        Self::Service(InnerService(BoxCloneSyncService::new(service.map_err(Into::into))))
    }

    /// Sends a request, whose URI is a path, on behalf of `caller`, if it is ours to tell.
    ///
    /// # Errors
    /// [`ForwardError`].
    pub async fn send(
        &self,
        mut request: Request<Outgoing>,
        caller: Option<&Context>,
    ) -> Result<Response<Answer>, ForwardError> {
        match self {
            Self::Nothing => Err(ForwardError::Nothing),
            Self::Upstreams(balancer) => Ok(balancer.send(request).await?.map(Either::Left)),
            Self::Service(InnerService(service)) => {
                let answered = match caller.cloned() {
                    Some(caller) => {
                        request.extensions_mut().insert(caller.clone());
                        Box::pin(CallerContext::scope(caller, service.clone().oneshot(request))).await
                    }
                    None => Box::pin(service.clone().oneshot(request)).await,
                };
                Ok(answered.map_err(ForwardError::Service)?.map(Either::Right))
            }
        }
    }
}

/// See [`Behind::service`].
#[derive(Clone)]
pub struct InnerService(BoxCloneSyncService<Request<Outgoing>, Response<Body>, BoxError>);

impl fmt::Debug for InnerService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InnerService")
    }
}
