//! The control plane: REST under `/v1`.
//!
//! This file is the route table. A handler's signature says who may call it
//! ([`call::Guard`]), what it reads ([`input`]) and what it answers ([`answer`]);
//! its body is one transaction that reads as a story.
//!
//! Routes of both product domains are written once, as `/v1/{domain}/…`; the
//! description lists them for each domain by its name.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::Response;
use http::{HeaderMap, Method};
use utoipa::OpenApi as _;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::context::RequestInfo;
use crate::problem::Problem;
use crate::store::Store;

pub mod accounts;
pub mod admins;
pub mod answer;
pub mod audit;
pub mod call;
pub mod context;
pub mod directory;
pub mod input;
mod openapi;
pub mod policies;
pub mod revocations;

/// What the routes share.
#[derive(Debug, Clone)]
pub struct App {
    /// The database.
    pub store: Store,
    /// The issuers whose tokens are accepted.
    pub issuers: Arc<[String]>,
    in_flight: call::InFlightSet,
}

impl App {
    /// The control plane over `store`.
    pub fn new(store: Store) -> Self {
        Self { store, issuers: Arc::default(), in_flight: call::InFlightSet::default() }
    }

    /// Names the issuers whose tokens are accepted, the usual one first.
    #[must_use]
    pub fn with_issuers(mut self, issuers: impl IntoIterator<Item = String>) -> Self {
        self.issuers = issuers.into_iter().collect();
        self
    }
}

/// The route table.
fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(openapi::Base::openapi())
        // Who calls
        .routes(routes!(context::get_context))
        .routes(routes!(context::get_zitadel_status))
        .routes(routes!(revocations::list_revocations, revocations::create_revocation))
        .routes(routes!(revocations::delete_revocation))
        // Accounts, by the operator
        .routes(routes!(accounts::list_accounts, accounts::create_account))
        .routes(routes!(accounts::get_account, accounts::update_account, accounts::delete_account))
        .routes(routes!(accounts::set_account_status))
        .routes(routes!(admins::list_account_admins, admins::put_account_admin))
        .routes(routes!(admins::update_account_admin, admins::delete_account_admin))
        .routes(routes!(policies::get_feature_pack, policies::put_feature_pack))
        .routes(routes!(policies::get_console_model_policy, policies::put_console_model_policy))
        .routes(routes!(policies::get_zitadel_config, policies::put_zitadel_config))
        .routes(routes!(audit::list_account_audit))
        .routes(routes!(audit::verify_account_audit))
        .routes(routes!(audit::export_account_audit))
        // The account's own audit
        .routes(routes!(audit::list_audit))
        .routes(routes!(audit::verify_audit))
        .routes(routes!(audit::export_audit))
        // Directory, in both domains
        .routes(routes!(directory::list_orgs, directory::create_org))
        .routes(routes!(directory::get_org, directory::update_org, directory::delete_org))
}

/// The routes, ready to be mounted. A layer outside must put a
/// [`Context`](crate::context::Context) of who calls, and a [`RequestInfo`], into
/// the extensions of each request.
pub fn router(app: App) -> Router {
    let (router, _) = routes().split_for_parts();
    router
        .method_not_allowed_fallback(async || method_not_allowed())
        .layer(middleware::from_fn(finish))
        .layer(middleware::from_fn(digest_idempotent))
        .with_state(app)
}

/// The description of every operation, OpenAPI 3.1.
pub fn description() -> OpenApi {
    let (_, description) = routes().split_for_parts();
    openapi::complete(description)
}

fn method_not_allowed() -> Problem {
    Problem::new(http::StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "This path does not take this method")
}

/// Writes the request's id into every refusal.
async fn finish(request: Request, next: Next) -> Response {
    let id = request.extensions().get::<RequestInfo>().map(|info| Arc::clone(&info.id));
    let mut response = next.run(request).await;
    if let (Some(id), Some(problem)) = (id, response.extensions_mut().remove::<Problem>()) {
        let mut told = problem.clone().into_http(Some(&id));
        told.extensions_mut().insert(problem);
        return told;
    }
    response
}

/// Buffers a POST that carries an `Idempotency-Key`, to know it again.
async fn digest_idempotent(request: Request, next: Next) -> Result<Response, Problem> {
    if request.method() != Method::POST || !has_key(request.headers()) {
        return Ok(next.run(request).await);
    }
    let (mut parts, body) = request.into_parts();
    let body = input::read_body(body).await?;
    let mut digest = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    digest.update(parts.uri.query().unwrap_or_default().as_bytes());
    digest.update(b"\n");
    digest.update(&body);
    parts.extensions.insert(call::BodyDigest(crate::id::hex(digest.finish().as_ref())));
    Ok(next.run(Request::from_parts(parts, body.into())).await)
}

fn has_key(headers: &HeaderMap) -> bool {
    headers.contains_key("idempotency-key")
}

// Until the gateway can be started by tests, they run on a stand-in in here.
#[cfg(test)]
#[path = "../tests/v1/in_crate.rs"]
mod tests;
