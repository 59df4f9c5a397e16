//! A request that was understood, and the shape of every answer to it.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts as _, RawPathParams, Request};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde_json::{Map, Value, json};

use super::behaviour::{Behaviour, Failure};
use super::catalogue::{Model, python};
use super::stream::Script;
use super::{MAX_BODY, Shared};
use crate::credits::Usd;

const CALL_ID: HeaderName = HeaderName::from_static("x-litellm-call-id");
const MODEL_ID: HeaderName = HeaderName::from_static("x-litellm-model-id");
const MODEL_NAME: HeaderName = HeaderName::from_static("x-litellm-model-name");
const MODEL_GROUP: HeaderName = HeaderName::from_static("x-litellm-model-group");
const VERSION: HeaderName = HeaderName::from_static("x-litellm-version");
const COST: HeaderName = HeaderName::from_static("x-litellm-response-cost");
const COST_ORIGINAL: HeaderName = HeaderName::from_static("x-litellm-response-cost-original");
const KEY_SPEND: HeaderName = HeaderName::from_static("x-litellm-key-spend");
const PROVIDER_RETRY_AFTER: HeaderName = HeaderName::from_static("llm_provider-retry-after");

/// A POST whose body and model are known and that is not to fail.
pub(super) struct Call {
    pub(super) shared: Arc<Shared>,
    /// The JSON body; of a multipart one, its fields, with files as their length.
    pub(super) body: Value,
    pub(super) model: Model,
    /// The model as the request named it, which the answer repeats.
    pub(super) alias: String,
    pub(super) behaviour: Behaviour,
    route: String,
    call_id: String,
}

impl FromRequest<Arc<Shared>> for Call {
    type Rejection = LiteLlmError;

    async fn from_request(request: Request, shared: &Arc<Shared>) -> Result<Self, LiteLlmError> {
        let (mut parts, body) = request.into_parts();
        let in_path = RawPathParams::from_request_parts(&mut parts, shared).await.ok();
        let in_path = in_path.and_then(|params| Some(params.iter().find(|(name, _)| *name == "model")?.1.to_owned()));
        let body = axum::body::to_bytes(body, MAX_BODY).await.unwrap_or_default();
        let body = fields(&parts.headers, body).await?;
        let route = parts.uri.path().to_owned();
        let sent_id = parts.headers.get(CALL_ID).and_then(|value| value.to_str().ok());
        let call_id = sent_id.map_or_else(|| shared.fresh("call-"), str::to_owned);

        let alias = in_path.or_else(|| body.get("model")?.as_str().map(str::to_owned));
        let (model, own) = alias
            .as_deref()
            .and_then(|alias| named(&shared.models, alias))
            .ok_or_else(|| LiteLlmError::unknown_model(&route, alias.as_deref()).of(&call_id))?;
        let behaviour = own.unwrap_or_else(|| shared.behaviour());
        if !behaviour.delay.is_zero() {
            tokio::time::sleep(behaviour.delay).await;
        }
        if let Some(failure) = behaviour.fail {
            return Err(LiteLlmError::failure(failure, model).of(&call_id));
        }
        let alias = alias.unwrap_or_default();
        Ok(Self { shared: Arc::clone(shared), body, model: model.clone(), alias, behaviour, route, call_id })
    }
}

/// The model and, behind a `+`, the behaviour that the request asks for.
fn named<'a>(models: &'a [Model], alias: &str) -> Option<(&'a Model, Option<Behaviour>)> {
    let (name, behaviour) = alias.split_once('+').map_or((alias, None), |(name, rest)| (name, Some(rest)));
    let model = models.iter().find(|model| model.name == name)?;
    Some((model, behaviour.map(str::parse).transpose().ok()?))
}

async fn fields(headers: &HeaderMap, body: Bytes) -> Result<Value, LiteLlmError> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let malformed = |error: &dyn std::fmt::Display, kind: &str| {
        let message = format!("Invalid {kind} payload: {error}");
        LiteLlmError { param: json!("request_body"), ..LiteLlmError::invalid(StatusCode::BAD_REQUEST, &message) }
    };
    let Ok(boundary) = multer::parse_boundary(content_type) else {
        return serde_json::from_slice(&body).map_err(|error| malformed(&error, "JSON"));
    };
    let whole = futures_util::stream::once(std::future::ready(Ok::<_, std::convert::Infallible>(body)));
    let mut parts = multer::Multipart::new(whole, boundary);
    let mut fields = Map::new();
    while let Some(part) = parts.next_field().await.map_err(|error| malformed(&error, "multipart"))? {
        let (name, is_file) = (part.name().unwrap_or_default().to_owned(), part.file_name().is_some());
        let bytes = part.bytes().await.map_err(|error| malformed(&error, "multipart"))?;
        let value = if is_file { json!(bytes.len()) } else { json!(String::from_utf8_lossy(&bytes)) };
        fields.insert(name, value);
    }
    Ok(Value::Object(fields))
}

impl Call {
    /// A field of the body that must be there.
    pub(super) fn required(&self, field: &str) -> Result<&Value, LiteLlmError> {
        self.body.get(field).filter(|value| !value.is_null()).ok_or_else(|| {
            let message = format!("{}: Missing required parameter: '{field}'.", self.route);
            LiteLlmError { param: json!(field), ..LiteLlmError::invalid(StatusCode::BAD_REQUEST, &message) }
                .of(&self.call_id)
        })
    }

    /// A flag of the body.
    pub(super) fn flag(&self, pointer: &str) -> bool {
        self.body.pointer(pointer).and_then(Value::as_bool).unwrap_or(false)
    }

    /// What so many units cost, unless the model or the behaviour says nothing.
    pub(super) fn cost(&self, units: &[(&str, u64)]) -> Option<Usd> {
        if self.behaviour.no_usage || self.behaviour.no_cost { None } else { self.model.cost(units) }
    }

    /// A complete answer, with its cost in the headers.
    pub(super) fn json(&self, mut body: Value, units: &[(&str, u64)]) -> Response {
        if let (true, Some(body)) = (self.behaviour.no_usage, body.as_object_mut()) {
            body.remove("usage");
        }
        self.complete(Json(body), units)
    }

    /// As [`json`](Self::json), for any body.
    pub(super) fn complete(&self, body: impl IntoResponse, units: &[(&str, u64)]) -> Response {
        let mut headers = self.headers();
        if let Some(cost) = self.cost(units) {
            for name in [COST, COST_ORIGINAL, KEY_SPEND] {
                headers.insert(name, text(&python(cost)));
            }
        }
        (headers, body).into_response()
    }

    /// A stream: LiteLLM cannot know its cost yet and says zero under another name.
    pub(super) fn stream(&self, script: Script) -> Response {
        let mut headers = self.headers();
        headers.insert(COST_ORIGINAL, HeaderValue::from_static("0.0"));
        headers.insert(KEY_SPEND, HeaderValue::from_static("0.0"));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        (headers, script.play(&self.behaviour)).into_response()
    }

    fn headers(&self) -> HeaderMap {
        HeaderMap::from_iter([
            (CALL_ID, text(&self.call_id)),
            (MODEL_ID, text(&self.model.deployment())),
            (MODEL_NAME, text(&self.model.provider_name())),
            (MODEL_GROUP, text(&self.alias)),
            (VERSION, HeaderValue::from_static("1.106.2")),
        ])
    }
}

fn text(value: &str) -> HeaderValue {
    HeaderValue::from_str(value).unwrap_or(HeaderValue::from_static(""))
}

/// An error in LiteLLM's envelope, whose `code` is the status as text.
#[derive(Debug)]
pub(super) struct LiteLlmError {
    status: StatusCode,
    kind: &'static str,
    message: String,
    param: Value,
    retry_after: Option<u32>,
    call_id: Option<String>,
}

impl LiteLlmError {
    pub(super) fn invalid(status: StatusCode, message: &str) -> Self {
        Self::new(status, "invalid_request_error", message.to_owned())
    }

    pub(super) fn unauthenticated(kind: &'static str, why: &str, param: &str) -> Self {
        let message = format!("Authentication Error, {why}");
        Self { param: json!(param), ..Self::new(StatusCode::UNAUTHORIZED, kind, message) }
    }

    fn new(status: StatusCode, kind: &'static str, message: String) -> Self {
        Self { status, kind, message, param: Value::Null, retry_after: None, call_id: None }
    }

    /// 400, not 404.
    fn unknown_model(route: &str, model: Option<&str>) -> Self {
        let model = model.unwrap_or("None");
        let message = format!(
            "{route}: Invalid model name passed in model={model}. Call `/v1/models` to view available models for your key."
        );
        Self::invalid(StatusCode::BAD_REQUEST, &message)
    }

    fn failure(failure: Failure, model: &Model) -> Self {
        let (kind, class) = match failure.status {
            StatusCode::TOO_MANY_REQUESTS => ("throttling_error", "RateLimitError"),
            status if status.is_server_error() => ("internal_server_error", "InternalServerError"),
            _ => ("invalid_request_error", "BadRequestError"),
        };
        let message =
            format!("litellm.{class}: {class}: the development upstream was asked to fail for {}", model.name);
        Self { retry_after: failure.retry_after, ..Self::new(failure.status, kind, message) }
    }

    /// The error of a call that had an id already.
    fn of(mut self, call_id: &str) -> Self {
        self.call_id = Some(call_id.to_owned());
        self
    }
}

impl IntoResponse for LiteLlmError {
    fn into_response(self) -> Response {
        let mut headers = HeaderMap::new();
        if let Some(call_id) = &self.call_id {
            headers.insert(CALL_ID, text(call_id));
            headers.insert(COST, HeaderValue::from_static("0"));
            headers.insert(KEY_SPEND, HeaderValue::from_static("0.0"));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
            headers.insert(PROVIDER_RETRY_AFTER, seconds.into());
        }
        let code = self.status.as_str();
        let error = json!({"message": self.message, "type": self.kind, "param": self.param, "code": code});
        (self.status, headers, Json(json!({"error": error}))).into_response()
    }
}
