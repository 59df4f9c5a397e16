//! Answers and refusals, in the envelopes that clients know.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

use crate::problem::{Problem, ProblemBody};
use crate::store::StoreError;
use crate::store::idempotency::GivenAnswer;
use crate::store::page::Page;

/// `{"item": …}`
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Item<T> {
    /// The resource, or `null` where the route says so.
    pub item: T,
}

/// `{"items": […], "next_cursor": …}`
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Items<T> {
    /// The page, newest first.
    pub items: Vec<T>,
    /// Where the next page starts: send it as `cursor`. `null` at the end.
    pub next_cursor: Option<String>,
}

/// `{"status": "ok"}`
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct StatusOk {
    #[schema(example = "ok")]
    status: &'static str,
}

/// `{"deleted": true}`
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Deleted {
    /// Whether there was something to delete.
    pub deleted: bool,
}

impl StatusOk {
    /// The only one there is.
    pub const OK: Self = Self { status: "ok" };
}

impl<T> From<Page<T>> for Items<T> {
    fn from(page: Page<T>) -> Self {
        Self { items: page.items, next_cursor: page.next.map(|c| c.encode()) }
    }
}

/// A successful answer: JSON with status 200, perhaps with an `ETag`.
#[derive(Debug)]
pub struct Answer {
    json: String,
    etag: Option<String>,
    replayed: bool,
}

impl Answer {
    /// An answer of `body`.
    pub fn of(body: &impl Serialize) -> Self {
        Self { json: serde_json::to_string(body).unwrap_or_default(), etag: None, replayed: false }
    }

    /// With the `ETag` of a version.
    #[must_use]
    pub fn tagged(mut self, version: i64) -> Self {
        self.etag = Some(format!("\"{version}\""));
        self
    }

    pub(super) fn replayed(given: GivenAnswer) -> Self {
        Self { json: given.answer, etag: given.etag, replayed: true }
    }

    pub(super) fn text(&self) -> &str {
        &self.json
    }

    pub(super) fn etag(&self) -> Option<&str> {
        self.etag.as_deref()
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let mut response = Response::new(self.json.into());
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(etag) = self.etag.and_then(|e| HeaderValue::from_str(&e).ok()) {
            headers.insert(header::ETAG, etag);
        }
        if self.replayed {
            headers.insert("idempotency-replayed", HeaderValue::from_static("true"));
        }
        response
    }
}

/// Why a handler ends before its end.
#[derive(Debug)]
pub enum Halt {
    /// A refusal or failure.
    Problem(Box<Problem>),
    /// The answer that was given before.
    Replay(Answer),
}

impl From<Problem> for Halt {
    fn from(problem: Problem) -> Self {
        Self::Problem(Box::new(problem))
    }
}

impl From<StoreError> for Halt {
    fn from(error: StoreError) -> Self {
        Problem::from(error).into()
    }
}

impl IntoResponse for Halt {
    fn into_response(self) -> Response {
        match self {
            Self::Problem(problem) => problem.into_response(),
            Self::Replay(answer) => answer.into_response(),
        }
    }
}

// The problem stays in the extensions, so that an outer layer can say more: the
// request's id in the body, the code in a metric.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.clone().into_http(None);
        response.extensions_mut().insert(self);
        response
    }
}

/// What a handler gives.
pub type Outcome = Result<Answer, Halt>;

/// The refusals that every operation may answer with.
#[derive(Debug, utoipa::IntoResponses)]
pub enum Refusals {
    /// The request makes no sense.
    #[response(status = 400, content_type = "application/problem+json")]
    BadRequest(ProblemBody),
    /// No token, or one that is not valid.
    #[response(status = 401, content_type = "application/problem+json", headers(("www-authenticate", description = "RFC 6750 challenge")))]
    Unauthenticated(ProblemBody),
    /// The caller may not.
    #[response(status = 403, content_type = "application/problem+json")]
    Forbidden(ProblemBody),
    /// Absent, or another account's.
    #[response(status = 404, content_type = "application/problem+json")]
    NotFound(ProblemBody),
    /// The state does not allow it.
    #[response(status = 409, content_type = "application/problem+json")]
    Conflict(ProblemBody),
    /// `If-Match` does not fit.
    #[response(status = 412, content_type = "application/problem+json")]
    VersionMismatch(ProblemBody),
    /// The body did not arrive in time.
    #[response(status = 408, content_type = "application/problem+json")]
    Late(ProblemBody),
    /// The body is too large.
    #[response(status = 413, content_type = "application/problem+json")]
    TooLarge(ProblemBody),
    /// The body is not `application/json`.
    #[response(status = 415, content_type = "application/problem+json")]
    NotJson(ProblemBody),
    /// A field is invalid; `errors` names it.
    #[response(status = 422, content_type = "application/problem+json")]
    Invalid(ProblemBody),
    /// Zitadel refused, or cannot be asked.
    #[response(status = 502, content_type = "application/problem+json")]
    ZitadelFailed(ProblemBody),
    /// A dependency is down.
    #[response(status = 503, content_type = "application/problem+json", headers(("retry-after", description = "Seconds")))]
    Unavailable(ProblemBody),
}

/// 404 for an absent row.
pub fn or_404<T>(found: Option<T>, detail: &'static str) -> Result<T, Problem> {
    found.ok_or_else(|| Problem::not_found(detail))
}

/// Turns a unique violation on `column` into a 409 that says what is taken.
pub fn taken(column: &'static str, detail: &'static str) -> impl Fn(StoreError) -> Halt {
    move |error| {
        if error.is_unique(column) {
            Problem::new(StatusCode::CONFLICT, "already_exists", detail).with("field", column).into()
        } else {
            error.into()
        }
    }
}
