//! An axum application of one's own with alchemi inside: whoever calls it is known, and the control plane is mounted
//! beside its own routes. Settings are those of `alchemi serve`:
//!
//! ```sh
//! ZITADEL_ISSUER=https://id.example.com ZITADEL_PROJECT_ID=310716200000000001 cargo run --example axum_embed
//! ```
#![expect(clippy::print_stdout, reason = "it says where it listens")]

use std::error::Error;
use std::sync::Arc;

use alchemi::allocation::rules::RuleBook;
use alchemi::clock::{SharedClock, SystemClock};
use alchemi::config::Config;
use alchemi::context::Domain;
use alchemi::id::RandomIds;
use alchemi::identity::MasterKey;
use alchemi::store::migrate;
use alchemi::{AuthenticateLayer, Authenticator, CallerContext, Identity, Problem, Store, jobs, v1};
use axum::Router;
use axum::routing::get;

/// The application: `/hello` and `/report` are its own, `/v1/…` is alchemi's.
///
/// # Errors
/// When the database or a setting cannot be used.
pub async fn application(config: &Config) -> Result<Router, Box<dyn Error + Send + Sync>> {
    let clock: SharedClock = Arc::new(SystemClock);
    let store = Store::open(&config.database, Arc::clone(&clock), Arc::new(RandomIds)).await?;
    migrate::apply(&store).await?;
    let identity = Identity::new(&config.identity, clock)?;
    let master_key = config.master_key.clone().map(MasterKey::new).transpose()?;
    // Subjects are cut off on every gateway that reads the deny-list.
    tokio::spawn(jobs::follow_revocations(store.clone(), identity.clone()).await?);
    let rules = RuleBook::new(store.clone(), &config.allocation, config.rule_terms());
    let authenticate = AuthenticateLayer::new(Authenticator::new(identity, master_key, rules));
    Ok(Router::new()
        .route("/hello", get(hello))
        .route("/report", get(report))
        .merge(v1::router(v1::App::new(store)))
        .layer(authenticate))
}

/// For anybody: the context is there when a good token came.
async fn hello(caller: Option<CallerContext>) -> String {
    caller.map_or_else(|| "Hello".to_owned(), |CallerContext(caller)| format!("Hello {}", caller.actor().subject))
}

/// For admins of one product domain: the guards of the control plane, on a route of one's own.
async fn report(CallerContext(caller): CallerContext) -> Result<String, Problem> {
    let granted = caller.domain_admin(Domain::Copilot)?;
    Ok(format!("Report of {} for {}", granted.account(), who()))
}

/// Code that never sees the request knows the caller too.
fn who() -> String {
    CallerContext::current().map_or_else(|| "nobody".to_owned(), |caller| caller.actor().subject.to_string())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let config = Config::load(None)?;
    let listener = tokio::net::TcpListener::bind(config.listen).await?;
    println!("http://{}/hello", listener.local_addr()?);
    axum::serve(listener, application(&config).await?).await?;
    Ok(())
}
