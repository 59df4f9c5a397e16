//! What operators ask a running process: is it alive, is it ready, what has it counted.

use std::sync::Arc;

use axum::body::Body;
use axum::response::IntoResponse;
use http::{Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use serde::Serialize;

use super::listener::Answer;
use crate::context::Granted;
use crate::identity::{Identity, IssuerStatus};
use crate::problem::Problem;
use crate::proxy::balance::Balancer;
use crate::proxy::ingress::Peer;
use crate::proxy::routes::method_not_allowed;
use crate::secret::KeyRing;
use crate::store::Store;
use crate::store::conservation::LastCheck;
use crate::telemetry::Metrics;

/// What is to be said of how accounts are bound to organisations and issuers.
fn loosely_bound(accounts: &[(Option<String>, i64, i64)], issuers: &[IssuerStatus]) -> Vec<String> {
    const BIND: &str = "(PUT /v1/accounts/{account_id}/zitadel/config)";
    let mut warnings = Vec::new();
    let unbound: i64 = accounts.iter().map(|(_, _, unbound)| unbound).sum();
    if unbound > 0 {
        warnings.push(format!(
            "{unbound} accounts are bound to no Zitadel organisation {BIND}: roles of the project count there, \
             whichever organisation granted them"
        ));
    }
    for (bound, count, _) in accounts {
        match bound {
            Some(issuer) if !issuers.iter().any(|known| known.issuer == *issuer) => warnings.push(format!(
                "{count} accounts are bound to the issuer {issuer}, which is none of identity.issuers {BIND}: nobody \
                 of theirs is let in"
            )),
            _ => {}
        }
    }
    warnings
}

/// The dependencies that readiness looks at.
#[derive(Debug, Clone)]
pub(super) struct Operations {
    /// The database.
    pub(super) store: Store,
    /// The issuers.
    pub(super) identity: Identity,
    /// The upstreams.
    pub(super) balancer: Arc<Balancer>,
    /// The counts.
    pub(super) metrics: Arc<Metrics>,
    /// What secrets are sealed under.
    pub(super) secrets: KeyRing,
    /// What the last check of the ledger has found.
    pub(super) books: LastCheck,
    /// What the configuration leaves open, a sentence each.
    pub(super) warnings: Arc<[String]>,
}

/// The answer of `/readyz`.
#[derive(Debug, Serialize)]
pub(super) struct Readiness {
    status: &'static str,
    checks: Vec<Check>,
    /// What works but should not stay so; told to who asks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    warnings: Option<Vec<String>>,
}

/// One dependency.
#[derive(Debug, Serialize)]
pub(super) struct Check {
    name: String,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

impl Check {
    fn new(name: impl Into<String>, ready: bool, detail: Option<String>) -> Self {
        Self { name: name.into(), status: if ready { "ok" } else { "down" }, detail }
    }
}

impl Operations {
    /// Asks every dependency; 503 when one that requests need is down. With `verbose`,
    /// also says what an operator should look after.
    pub(super) async fn readiness(&self, verbose: bool) -> (StatusCode, Readiness) {
        let mut checks = Vec::new();
        let database = self.store.ping().await;
        checks.push(Check::new("database", database.is_ok(), database.err().map(|error| error.to_string())));
        let upstreams = self.balancer.status();
        for (n, upstream) in upstreams.iter().enumerate() {
            checks.push(Check::new(format!("upstream {}", n + 1), upstream.up, None));
        }
        for (n, issuer) in self.identity.status().iter().enumerate() {
            // An issuer whose keys have never been needed is not down.
            let ready = issuer.last_error.is_none() || issuer.keys > 0;
            let detail = issuer.stale_since.map(|since| format!("keys are stale since {since}"));
            checks.push(Check::new(format!("issuer {}", n + 1), ready, detail));
        }
        checks.push(self.secret_keys());
        let required = |check: &Check| check.status != "missing" && !check.name.starts_with("upstream");
        // Looked at before the ledger's check is told: books that do not balance are no reason to take no requests.
        let ready = checks.iter().filter(|c| required(c)).all(|c| c.status == "ok") && self.balancer.is_ready();
        let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let warnings = if verbose {
            checks.extend(self.ledger());
            Some(self.warnings().await)
        } else {
            None
        };
        (status, Readiness { status: if ready { "ready" } else { "not ready" }, checks, warnings })
    }

    async fn warnings(&self) -> Vec<String> {
        let mut warnings = self.warnings.to_vec();
        let bound = async { self.store.read(&Granted::system()).await?.accounts_by_issuer().await };
        match bound.await {
            Ok(accounts) => warnings.extend(loosely_bound(&accounts, &self.identity.status())),
            Err(error) => tracing::debug!(%error, "accounts cannot be counted"),
        }
        if let Some(last) = self.books.last().filter(|last| last.differences > 0) {
            warnings.push(format!(
                "the books do not balance in {} sums; `alchemi ledger verify` says which",
                last.differences
            ));
        }
        for upstream in self.balancer.status().iter().filter(|upstream| upstream.ejected) {
            warnings
                .push(format!("requests to the upstream {} kept failing: it is left out for a while", upstream.url));
        }
        for issuer in self.identity.status() {
            if let Some(error) = issuer.last_error {
                warnings.push(format!("the keys of an issuer could not be fetched: {error}"));
            }
        }
        warnings
    }

    /// A note: what the last check of the ledger has found, if there was one.
    fn ledger(&self) -> Option<Check> {
        let last = self.books.last()?;
        let mut detail = format!("{} rows verified at {}", last.ledger_rows, last.finished_at);
        if last.differences > 0 {
            detail = format!("{detail}: {} sums do not fit, such as: {}", last.differences, last.first_difference);
        }
        let status = if last.differences == 0 { "ok" } else { "unbalanced" };
        Some(Check { name: "ledger".to_owned(), status, detail: Some(detail) })
    }

    /// A note: without a key, only what has secrets is refused.
    fn secret_keys(&self) -> Check {
        let mut check = Check::new("secret keys", true, None);
        if self.secrets.is_empty() {
            check.status = "missing";
            let detail =
                "no secrets.keys (ALCHEMI_SECRET_KEY): connections and sign-on settings with secrets are refused";
            check.detail = Some(detail.to_owned());
        }
        check
    }
}

/// Answers every request of the operators' own listener.
#[derive(Clone)]
pub(super) struct AdminFront(pub(super) Operations);

impl Answer for AdminFront {
    async fn answer(&self, request: Request<Incoming>, _: Peer) -> Response<Body> {
        let unknown = || Problem::not_found("This address has /healthz, /readyz and /metrics");
        match OperatorRoute::of(&request).ok_or_else(unknown).flatten() {
            Ok(route) => route.answer(&self.0).await,
            Err(problem) => problem.into_http(None),
        }
    }
}

/// What operators read, on either address.
#[derive(Clone, Copy)]
pub(super) enum OperatorRoute {
    Health,
    Readiness,
    /// Readiness with what only operators are to know.
    Verbose,
    Metrics,
}

impl OperatorRoute {
    /// The route of a request, if its path is one; a 405 when the method does not read.
    pub(super) fn of(request: &Request<Incoming>) -> Option<Result<Self, Problem>> {
        let route = match request.uri().path() {
            "/healthz" => Self::Health,
            "/readyz" if is_verbose(request.uri().query()) => Self::Verbose,
            "/readyz" => Self::Readiness,
            "/metrics" => Self::Metrics,
            _ => return None,
        };
        let reads = [Method::GET, Method::HEAD];
        Some(if reads.contains(request.method()) { Ok(route) } else { Err(method_not_allowed(&reads)) })
    }

    pub(super) async fn answer(self, operations: &Operations) -> Response<Body> {
        match self {
            Self::Health => (StatusCode::OK, "ok\n").into_response(),
            Self::Readiness | Self::Verbose => {
                let (status, readiness) = operations.readiness(matches!(self, Self::Verbose)).await;
                (status, axum::Json(readiness)).into_response()
            }
            Self::Metrics => {
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                ([(header::CONTENT_TYPE, kind)], operations.metrics.text()).into_response()
            }
        }
    }
}

/// Whether a query has `verbose`, with or without a value.
fn is_verbose(query: Option<&str>) -> bool {
    query.is_some_and(|query| query.split('&').any(|pair| pair.split('=').next() == Some("verbose")))
}
