//! The caller's context, for code behind [`AuthenticateLayer`](super::AuthenticateLayer).

use axum::extract::{FromRequestParts, OptionalFromRequestParts};
use http::request::Parts;

use crate::context::Context;
use crate::problem::Problem;

tokio::task_local! {
    static CALLER: Context;
}

/// Who is calling: an axum extractor, and for code that does not see the request, what
/// [`current`](Self::current) gives.
///
/// Extracting it refuses an anonymous request with 401 `token_missing`; `Option<CallerContext>`
/// lets it in.
///
/// ```
/// use alchemi::layer::CallerContext;
/// use axum::{Router, routing::get};
///
/// async fn greet(CallerContext(caller): CallerContext) -> String {
///     format!("Hello {}", caller.actor().subject)
/// }
/// let app: Router = Router::new().route("/hello", get(greet));
/// # let _ = app;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallerContext(pub Context);

impl CallerContext {
    /// The caller of the request that this task is serving, until its answer's head is ready;
    /// `None` outside of one, and for an anonymous caller. A task that is spawned has none:
    /// give it what it needs.
    pub fn current() -> Option<Context> {
        CALLER.try_with(Clone::clone).ok()
    }

    /// Runs `work` as on behalf of `caller`, so that it finds it by [`current`](Self::current).
    pub async fn scope<W: Future>(caller: Context, work: W) -> W::Output {
        CALLER.scope(caller, work).await
    }
}

impl<S: Sync> FromRequestParts<S> for CallerContext {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let known = parts.extensions.get::<Context>().cloned();
        known.map(Self).ok_or_else(|| crate::identity::IdentityError::Missing.into())
    }
}

impl<S: Sync> OptionalFromRequestParts<S> for CallerContext {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Self::Rejection> {
        Ok(parts.extensions.get::<Context>().cloned().map(Self))
    }
}
