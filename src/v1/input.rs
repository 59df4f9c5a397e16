//! What handlers read: bodies, queries, paths and pages, each with its own refusal.

use std::time::Duration;

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{StatusCode, header};
use serde::de::DeserializeOwned;

use super::App;
use crate::problem::{FieldError, Problem};
use crate::store::page::{Cursor, Slice};

/// Largest body of a control-plane request, in bytes.
pub const MAX_BODY: usize = 1024 * 1024;

/// A JSON body; unknown fields, wrong types and bad values are a 422 that names the field.
#[derive(Debug)]
pub struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<App> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        let json = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).is_some_and(is_json);
        if !json {
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                "Send the body as Content-Type: application/json",
            ));
        }
        if request.headers().get(header::CONTENT_ENCODING).is_some_and(|v| v.as_bytes() != b"identity") {
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_content_encoding",
                "Send the body without Content-Encoding",
            ));
        }
        let bytes = read_body(request.into_body(), app.body_timeout).await?;
        parse(&bytes).map(Self)
    }
}

/// 422 at `pointer` unless `holds`.
pub(super) fn require(holds: bool, pointer: &str, detail: &str) -> Result<(), Problem> {
    if holds { Ok(()) } else { Err(Problem::invalid(pointer, detail)) }
}

/// The whole body, under the limits.
///
/// # Errors
/// 413 `body_too_large`, 408 `body_timeout`, 400 when the client ended early.
pub(super) async fn read_body(body: axum::body::Body, timeout: Duration) -> Result<axum::body::Bytes, Problem> {
    let late = |_| {
        let detail = "The body did not arrive in time; send it again";
        Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", detail)
    };
    let too_large = || Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "The body is larger than 1 MiB");
    // What says that it is too large is not waited for.
    if http_body::Body::size_hint(&body).lower() > MAX_BODY as u64 {
        return Err(too_large());
    }
    let read = tokio::time::timeout(timeout, axum::body::to_bytes(body, MAX_BODY)).await.map_err(late)?;
    read.map_err(|error| {
        let beyond = std::error::Error::source(&error).is_some_and(|e| e.is::<http_body_util::LengthLimitError>());
        if beyond { too_large() } else { Problem::bad_request("incomplete_body", "The body ended early") }
    })
}

fn is_json(content_type: &str) -> bool {
    let mut parts = content_type.split(';').map(str::trim);
    let essence = parts.next().unwrap_or_default();
    let utf8 = parts.all(|p| match p.split_once('=') {
        Some((name, value)) if name.eq_ignore_ascii_case("charset") => {
            value.trim_matches('"').eq_ignore_ascii_case("utf-8")
        }
        _ => true,
    });
    let essence = essence.to_ascii_lowercase();
    utf8 && (essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json")))
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    // serde would read an array as a struct's fields in order.
    if bytes.trim_ascii_start().starts_with(b"[") {
        return Err(Problem::invalid("", "must be a JSON object"));
    }
    if holds_nul(bytes) {
        return Err(Problem::invalid("", "cannot hold the character U+0000 in any text"));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let pointer = pointer(error.path());
        let inner = error.into_inner();
        // A number where a choice belongs is no data error to serde_json, though the body is JSON.
        if inner.is_data() || is_whole(bytes) {
            Problem::invalid_fields(vec![FieldError { pointer: field_of(pointer, &inner), detail: reason(&inner) }])
        } else {
            Problem::bad_request("invalid_json", format!("The body is not JSON: {inner}"))
        }
    })?;
    json.end().map_err(|e| Problem::bad_request("invalid_json", format!("The body is not JSON: {e}")))?;
    Ok(value)
}

/// Whether a text of a JSON document has U+0000, which no database keeps: it can only stand there
/// as an escape.
fn holds_nul(json: &[u8]) -> bool {
    memchr::memmem::find_iter(json, br"\u0000").any(|at| {
        let before = json.get(..at).unwrap_or_default();
        // An escaped backslash is none.
        before.iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 0
    })
}

/// Whether the bytes are JSON, whatever is in it.
fn is_whole(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(|text| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok())
}

/// RFC 6901.
fn pointer(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    path.iter()
        .filter_map(|segment| match segment {
            Segment::Seq { index } => Some(format!("/{index}")),
            Segment::Map { key } => Some(format!("/{}", key.replace('~', "~0").replace('/', "~1"))),
            Segment::Enum { variant } => Some(format!("/{variant}")),
            Segment::Unknown => None,
        })
        .collect()
}

/// A field that is missing or given twice is reported at its parent; the message names it between
/// backquotes.
fn field_of(pointer: String, error: &serde_json::Error) -> String {
    let text = error.to_string();
    let named = text.strip_prefix("missing field `").or_else(|| text.strip_prefix("duplicate field `"));
    match named.and_then(|rest| rest.split_once('`')) {
        Some((field, _)) => format!("{pointer}/{field}"),
        None => pointer,
    }
}

/// serde's message without the position, which the pointer replaces.
fn reason(error: &serde_json::Error) -> String {
    if !error.is_data() {
        return "is of the wrong type".to_owned();
    }
    let text = error.to_string();
    let text = text.rfind(" at line ").and_then(|end| text.get(..end)).unwrap_or(&text);
    if text.starts_with("missing field ") {
        return "is required".to_owned();
    }
    if text.starts_with("duplicate field ") {
        return "is given twice, perhaps once by its other name".to_owned();
    }
    if let Some((_, expected)) = text.strip_prefix("unknown field ").and_then(|rest| rest.rsplit_once(", expected ")) {
        return format!("is no field here; there are: {}", choices(expected));
    }
    if let Some((_, expected)) = text.strip_prefix("unknown variant ").and_then(|rest| rest.rsplit_once(", expected "))
    {
        return format!("must be one of: {}", choices(expected));
    }
    let of_type = text.strip_prefix("invalid type: ").or_else(|| text.strip_prefix("invalid value: "));
    match of_type.and_then(|rest| rest.rsplit_once(", expected ")) {
        Some((found, expected)) => format!("must be {}, not {}", kind(expected), found.replace('`', "")),
        None => text.to_owned(),
    }
}

/// The names between backquotes.
fn choices(expected: &str) -> String {
    let names: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
    names.join(", ")
}

/// What a type of ours is in JSON.
fn kind(expected: &str) -> &str {
    match expected {
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "u64" | "usize" | "i32" | "i64" => "a whole number",
        "f32" | "f64" => "a number",
        "a sequence" => "a list",
        "a map" => "an object",
        _ if expected.starts_with("struct ") => "an object",
        _ if expected.starts_with("tuple ") => "a list",
        other => other,
    }
}

/// A query string.
#[derive(Debug)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let pairs = || url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes());
        if let Some((name, _)) = pairs().find(|(name, value)| name.contains('\0') || value.contains('\0')) {
            return Err(Problem::invalid(name.replace('\0', ""), "cannot hold the character U+0000"));
        }
        axum::extract::Query::try_from_uri(&parts.uri).map(|axum::extract::Query(value)| Self(value)).map_err(|e| {
            let text = e.body_text();
            let text = text.split_once(": ").map_or(text.as_str(), |(_, rest)| rest);
            let named = |what: &str| text.strip_prefix(what)?.split_once('`').map(|(name, _)| name.to_owned());
            if let Some(name) = named("missing field `") {
                return Problem::invalid(name, "is required");
            }
            if let Some(name) = named("duplicate field `") {
                return Problem::invalid(name, "is given twice");
            }
            match text.split_once(": ") {
                Some((name, reason)) if reason.contains("invalid digit") || reason.contains("number too large") => {
                    Problem::invalid(name, "must be a whole number of 0 or more, and not too large")
                }
                Some((name, reason)) => Problem::invalid(name, reason),
                None => Problem::invalid("", text),
            }
        })
    }
}

/// The path's parameters; what cannot be an id is as absent as an unknown one.
#[derive(Debug)]
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        axum::extract::Path::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Path(value)| Self(value))
            .map_err(|_| Problem::not_found("Not found").into_response())
    }
}

/// Which page of a list; `DEFAULT` items unless `limit` says otherwise.
#[derive(Debug)]
pub struct Paging<const DEFAULT: u32>(pub Slice);

/// The parameters of a list.
#[derive(Debug, serde::Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PageParams {
    /// How many items at most.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// Items to skip; `cursor` is the better way.
    offset: Option<u32>,
}

impl<const DEFAULT: u32, S: Send + Sync> FromRequestParts<S> for Paging<DEFAULT> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Query(params) = Query::<PageParams>::from_request_parts(parts, state).await?;
        let limit = params.limit.unwrap_or(DEFAULT);
        if !(1..=1000).contains(&limit) {
            return Err(Problem::invalid("limit", "must be 1 to 1000"));
        }
        let after = params
            .cursor
            .map(|text| {
                Cursor::decode(&text).ok_or_else(|| Problem::invalid("cursor", "is not a next_cursor of this list"))
            })
            .transpose()?;
        Ok(Self(Slice { limit, after, offset: u64::from(params.offset.unwrap_or(0)) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_arrive_is_not_waited_for() {
        let silent = futures_util::stream::pending::<Result<axum::body::Bytes, std::io::Error>>();
        let body = axum::body::Body::from_stream(silent);
        let late = read_body(body, Duration::from_secs(60)).await.unwrap_err();
        assert_eq!((late.status(), late.code()), (408, "body_timeout"));
    }
}
