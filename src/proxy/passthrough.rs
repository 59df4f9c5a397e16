//! What passes under the caller's own upstream key, where that is allowed: nothing of it is injected or metered.

use axum::body::Body;
use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response, StatusCode};

use super::forward::{BoxError, Deadlined, Outgoing};
use super::headers::{self, Decision, Leaks};
use super::{Exchange, Gateway};
use crate::layer::Credential;
use crate::layer::headers::{Bearer, RequestHeaders};
use crate::problem::Problem;

impl Gateway {
    /// Answers a path that is not governed: with the upstream's own key it passes as
    /// it came; with anything else there is nothing here.
    pub async fn pass_through<B>(&self, request: Request<B>, exchange: &Exchange) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        match self.ungoverned(request, exchange).await {
            Ok(response) => response,
            Err(problem) => self.refused(problem, None, &exchange.id, None),
        }
    }

    async fn ungoverned<B>(&self, request: Request<B>, exchange: &Exchange) -> Result<Response<Body>, Problem>
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let (mut head, body) = request.into_parts();
        let asked = RequestHeaders::take(&mut head.headers)?;
        let presented = asked.bearer.as_ref().map(Bearer::token);
        match self.0.parts.authenticator.credential(presented).await? {
            Credential::Upstream => self.unmanaged(head, Outgoing::stream(body), exchange).await,
            Credential::Operator | Credential::Token(_) => Err(Problem::new(
                StatusCode::NOT_FOUND,
                "route_not_governed",
                "This path is neither governed nor part of the control plane; \
                 only the upstream's own key reaches the upstream's other routes",
            )),
        }
    }

    /// Under the caller's own upstream credential, if `passthrough` is on: nothing is injected or metered.
    pub(super) async fn unmanaged(
        &self,
        mut head: Parts,
        body: Outgoing,
        exchange: &Exchange,
    ) -> Result<Response<Body>, Problem> {
        let own = &self.0.parts;
        if !own.config.passthrough {
            return Err(Problem::unauthenticated(
                "token_invalid",
                "Keys of the upstream are not accepted here; send a Zitadel access token as Authorization: Bearer …",
            ));
        }
        exchange.id.set(&mut head.headers);
        exchange.arrival.forward(&mut head.headers);
        let (mut answer, body) = own.behind.send(Request::from_parts(head, body), None).await?.into_parts();
        headers::answer(&mut answer.headers, &Leaks::none(), &exchange.id, Decision::PassThrough);
        own.metrics.decided(None, "passthrough");
        tracing::debug!(
            request_id = exchange.id.as_str(),
            status = answer.status.as_u16(),
            decision = "passthrough",
            "forwarded under the upstream's own key"
        );
        let until = (exchange.received + own.config.total_timeout).into();
        Ok(Response::from_parts(answer, Body::new(Deadlined::new(body, own.config.idle_timeout, until))))
    }
}
