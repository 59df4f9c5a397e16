//! `GET /v1/models`: the upstream's list, cut to what the caller may use.

use axum::body::Body;
use http::request::Parts;
use http::{HeaderValue, Request, Response, header};
use http_body_util::{BodyExt, Limited};
use serde_json::{Map, Value};

use super::caller::Caller;
use super::forward::{Deadlined, Outgoing};
use super::headers::{self, Decision};
use super::routes::Governed;
use super::{Exchange, Gateway};
use crate::layer::headers::RequestHeaders;
use crate::problem::Problem;

/// Largest list that is filtered, in bytes.
const MAX_LISTING: usize = 16 << 20;

impl Gateway {
    pub(super) async fn listing(
        &self,
        mut head: Parts,
        exchange: &Exchange,
        route: &Governed<'_>,
        caller: &Caller,
        asked: &RequestHeaders,
    ) -> Result<Response<Body>, Problem> {
        let own = &self.0.parts;
        self.set_context(&mut head, exchange, caller, asked, false);
        let answered = own.behind.send(Request::from_parts(head, Outgoing::empty()), Some(&caller.context)).await?;
        own.metrics.decided(Some(route.kind), "allow");
        let (mut answer, body) = answered.into_parts();
        let until = exchange.received + own.config.total_timeout;
        let body = Deadlined::new(body, own.config.idle_timeout, until.into());
        let body = Limited::new(body, MAX_LISTING).collect().await.map_err(|_| unreadable())?.to_bytes();
        headers::answer(&mut answer.headers, &own.config.leaks, &exchange.id, Decision::Allow);
        if !answer.status.is_success() || route.item.is_some() {
            return Ok(Response::from_parts(answer, Body::from(body)));
        }
        let mut list: Map<String, Value> = serde_json::from_slice(&body).map_err(|_| unreadable())?;
        if let Some(Value::Array(models)) = list.get_mut("data") {
            let allowed = |id: &str| caller.rules.models.resolve(id).allowed;
            models.retain(|model| model.get("id").and_then(Value::as_str).is_some_and(allowed));
        }
        let filtered = serde_json::to_vec(&list).map_err(|_| unreadable())?;
        answer.headers.remove(header::CONTENT_LENGTH);
        answer.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(Response::from_parts(answer, Body::from(filtered)))
    }
}

fn unreadable() -> Problem {
    Problem::new(http::StatusCode::BAD_GATEWAY, "upstream_unreadable", "The upstream's list of models cannot be read")
}
