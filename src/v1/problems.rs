//! `/docs/problems`: the pages that the `type` of a problem leads to.

use axum::Router;
use axum::response::{Html, IntoResponse};
use axum::routing::get;
use http::header;

use super::input::Path;
use crate::problem::{Problem, pages};

/// The pages, for whoever serves the control plane: without them, the `type` of a problem
/// leads nowhere.
pub fn router() -> Router {
    Router::new()
        .route(pages::PATH, get(async || page(pages::index())))
        .route(&format!("{}/{{code}}", pages::PATH), get(show))
        .method_not_allowed_fallback(async || super::method_not_allowed())
}

async fn show(Path(code): Path<String>) -> Result<impl IntoResponse, Problem> {
    let found = pages::find(&code).map(pages::ProblemPage::html);
    found.map(page).ok_or_else(|| Problem::not_found("There is no such problem; /docs/problems lists all of them"))
}

/// It loads and runs nothing.
fn page(html: String) -> impl IntoResponse {
    ([(header::CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'")], Html(html))
}
