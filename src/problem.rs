//! The one error that leaves the process: RFC 9457 `application/problem+json`.
//!
//! Inside, every module has its own typed error; each has one `From` into
//! [`Problem`], where status, stable `code` and the sentence for the reader are
//! decided. `detail` is always a string, because existing clients read it.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;

pub mod pages;

/// One field of a request that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct FieldError {
    /// JSON pointer (RFC 6901) into the body, or the name of a query parameter.
    #[schema(example = "/allocated_credits")]
    pub pointer: String,
    /// What is wrong and what would be accepted.
    #[schema(example = "must be at least 0")]
    pub detail: String,
}

/// Members beside `code`, kept as text so that amounts keep every digit.
pub type Members = std::collections::BTreeMap<String, Box<serde_json::value::RawValue>>;

/// A refusal or failure, ready to be sent.
///
/// ```
/// use alchemi::problem::Problem;
///
/// let problem = Problem::not_found("Account not found");
/// assert_eq!(problem.status(), 404);
/// assert_eq!(problem.code(), "not_found");
/// ```
#[derive(Debug, Clone)]
pub struct Problem(Box<Told>);

#[derive(Debug, Clone)]
struct Told {
    status: StatusCode,
    code: &'static str,
    detail: Cow<'static, str>,
    errors: Vec<FieldError>,
    members: Members,
    headers: HeaderMap,
}

/// The JSON form of a [`Problem`].
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
#[schema(as = Problem)]
pub struct ProblemBody {
    /// Stable path of the page that explains `code`.
    #[serde(rename = "type")]
    #[schema(example = "/docs/problems/not_found")]
    pub kind: String,
    /// The status in words.
    #[schema(example = "Not Found")]
    pub title: String,
    /// The HTTP status.
    #[schema(example = 404)]
    pub status: u16,
    /// What happened and what to do about it.
    #[schema(example = "Account not found")]
    pub detail: String,
    /// Stable code for programs.
    #[schema(example = "not_found")]
    pub code: String,
    /// The id of the request in logs and audit; also the header `x-request-id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Which fields are wrong; only with status 422.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    pub errors: Vec<FieldError>,
    /// Members that belong to `code`, such as `remaining_credits`.
    #[serde(flatten)]
    #[schema(ignore)]
    pub members: Members,
}

impl Problem {
    /// A problem with its status, stable code and text.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Told {
            status,
            code,
            detail: detail.into(),
            errors: Vec::new(),
            members: Members::new(),
            headers: HeaderMap::new(),
        }))
    }

    /// 400: the request makes no sense.
    pub fn bad_request(code: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    /// 401 with the challenge of RFC 6750 section 3.
    pub fn unauthenticated(code: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        let detail = detail.into();
        let challenge = match code {
            "token_missing" => "Bearer".to_owned(),
            _ => format!("Bearer error=\"invalid_token\", error_description=\"{}\"", quotable(&detail)),
        };
        Self::new(StatusCode::UNAUTHORIZED, code, detail).with_header(header::WWW_AUTHENTICATE, &challenge)
    }

    /// 403: the caller is known and may not.
    pub fn forbidden(code: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::FORBIDDEN, code, detail)
    }

    /// 404: absent, or another account's.
    pub fn not_found(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", detail)
    }

    /// 409: the state does not allow it.
    pub fn conflict(code: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::CONFLICT, code, detail)
    }

    /// 422 for one field.
    pub fn invalid(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::invalid_fields(vec![FieldError { pointer: pointer.into(), detail: detail.into() }])
    }

    /// 422 for several fields; `detail` names the first.
    pub fn invalid_fields(errors: Vec<FieldError>) -> Self {
        let detail = errors
            .first()
            .map_or_else(|| "The request is invalid".to_owned(), |e| format!("{}: {}", e.pointer, e.detail));
        let mut problem = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "validation_failed", detail);
        problem.0.errors = errors;
        problem
    }

    /// 503 with `Retry-After` in seconds.
    pub fn unavailable(code: &'static str, detail: impl Into<Cow<'static, str>>, retry_after: u32) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail)
            .with_header(header::RETRY_AFTER, &retry_after.to_string())
    }

    /// 500: a defect of ours. The cause belongs in the log, never in the answer.
    pub fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal_error",
            "The server failed; the request id finds the cause in its log",
        )
    }

    /// Adds a member beside `code`.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Serialize) -> Self {
        if let Ok(value) = serde_json::value::to_raw_value(&value) {
            self.0.members.insert(name.to_owned(), value);
        }
        self
    }

    /// Adds a header; one that cannot be a header value is left out.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.0.headers.insert(name, value);
        }
        self
    }

    /// The HTTP status as a number.
    pub fn status(&self) -> u16 {
        self.0.status.as_u16()
    }

    /// The HTTP status.
    pub fn status_code(&self) -> StatusCode {
        self.0.status
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        self.0.code
    }

    /// The sentence for the reader.
    pub fn detail(&self) -> &str {
        &self.0.detail
    }

    /// Members beside `code`.
    pub fn members(&self) -> &Members {
        &self.0.members
    }

    /// Headers that go with the answer.
    pub fn headers(&self) -> &HeaderMap {
        &self.0.headers
    }

    /// The JSON form, with the request's id.
    pub fn body(&self, request_id: Option<&str>) -> ProblemBody {
        ProblemBody {
            kind: format!("{}/{}", pages::PATH, self.0.code),
            title: self.0.status.canonical_reason().unwrap_or("Error").to_owned(),
            status: self.status(),
            detail: self.0.detail.clone().into_owned(),
            code: self.0.code.to_owned(),
            request_id: request_id.map(str::to_owned),
            errors: self.0.errors.clone(),
            members: self.0.members.clone(),
        }
    }

    /// The whole answer as `application/problem+json`.
    pub fn into_http<B: From<Vec<u8>>>(self, request_id: Option<&str>) -> http::Response<B> {
        let body = serde_json::to_vec(&self.body(request_id)).unwrap_or_default();
        let mut response = http::Response::new(B::from(body));
        *response.status_mut() = self.0.status;
        *response.headers_mut() = self.0.headers;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        response
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}: {}", self.status(), self.0.code, self.0.detail)
    }
}

impl std::error::Error for Problem {}

/// Text that may stand in a quoted string of a header (RFC 6750 section 3).
fn quotable(text: &str) -> String {
    text.chars().map(|c| if (c == ' ' || c.is_ascii_graphic()) && c != '"' && c != '\\' { c } else { '\'' }).collect()
}
