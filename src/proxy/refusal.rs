//! Refusals in the shape that the client's SDK parses.
//!
//! The OpenAI SDK reads `error.message`, `error.code` and `error.type`; Anthropic's
//! reads `error.type` and `error.message`; everything else gets problem+json.

use axum::body::Body;
use http::{HeaderValue, Response, StatusCode, header};
use serde::Serialize;

use super::headers::{Decision, stamp};
use super::ingress::RequestId;
use crate::id::Id;
use crate::model::accounts::Account;
use crate::model::usage::RouteKind;
use crate::problem::{Members, Problem};

/// A line for each refusal, on whichever side of the gateway; nothing of what was asked.
pub(super) fn log(problem: &Problem, kind: &str, id: &RequestId, account: Option<&Id<Account>>) {
    tracing::info!(
        request_id = id.as_str(),
        correlation_id = id.correlation(),
        account = account.map(Id::as_str),
        kind,
        status = problem.status(),
        code = problem.code(),
        "refused"
    );
}

#[derive(Serialize)]
struct OpenAi<'a> {
    error: OpenAiError<'a>,
}

#[derive(Serialize)]
struct OpenAiError<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    code: &'static str,
    param: Option<&'static str>,
    request_id: &'a str,
    #[serde(flatten)]
    members: &'a Members,
}

#[derive(Serialize)]
struct Anthropic<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    error: AnthropicError<'a>,
    request_id: &'a str,
}

#[derive(Serialize)]
struct AnthropicError<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    message: &'a str,
    code: &'static str,
    #[serde(flatten)]
    members: &'a Members,
}

/// The answer to a request of `kind`; of no governed kind, problem+json.
pub fn refuse(problem: Problem, kind: Option<RouteKind>, request_id: &RequestId) -> Response<Body> {
    let id = request_id.as_str();
    let code = problem.code();
    let mut response = match kind.and_then(|kind| body(&problem, kind, id).ok()) {
        Some(body) => {
            let mut response = Response::new(Body::from(body));
            *response.status_mut() = problem.status_code();
            *response.headers_mut() = problem.headers().clone();
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }
        None => problem.into_http(Some(id)),
    };
    stamp(response.headers_mut(), request_id, Decision::Deny(code));
    response
}

fn body(problem: &Problem, kind: RouteKind, request_id: &str) -> serde_json::Result<Vec<u8>> {
    let (message, code, members) = (problem.detail(), problem.code(), problem.members());
    match kind {
        RouteKind::Messages | RouteKind::CountTokens => serde_json::to_vec(&Anthropic {
            kind: "error",
            error: AnthropicError { kind: anthropic_type(problem.status_code()), message, code, members },
            request_id,
        }),
        _ => serde_json::to_vec(&OpenAi {
            error: OpenAiError {
                message,
                kind: openai_type(problem.status_code()),
                code,
                param: None,
                request_id,
                members,
            },
        }),
    }
}

/// The refusal of a stream under way, as the last event that the client's SDK raises.
pub fn event(problem: &Problem, kind: RouteKind, request_id: &RequestId) -> Vec<u8> {
    let name: &[u8] = match kind {
        RouteKind::Chat | RouteKind::Completion => b"data: ",
        _ => b"event: error\ndata: ",
    };
    let mut event = name.to_vec();
    // What cannot be written ends the stream all the same.
    event.extend(body(problem, kind, request_id.as_str()).unwrap_or_default());
    event.extend_from_slice(b"\n\n");
    event
}

fn openai_type(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        402 => "insufficient_quota",
        403 => "permission_error",
        404 => "not_found_error",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        _ => "api_error",
    }
}

fn anthropic_type(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        402 => "billing_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        _ => "api_error",
    }
}
