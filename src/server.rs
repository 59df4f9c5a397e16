//! The composition root: from a configuration to a running process.
//!
//! [`Server::start`] opens the store, puts the parts together and begins to listen;
//! [`Server::stop`] lets requests under way finish, settles what waits and closes.

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::Router;
use futures_util::future::BoxFuture;
use http::{Method, header};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tower_http::cors::{AllowOrigin, CorsLayer};
use utoipa_swagger_ui::SwaggerUi;

use crate::alerts::Alerts;
use crate::allocation::Allocations;
use crate::allocation::lease::Leases;
use crate::allocation::rules::RuleBook;
use crate::clock::{SharedClock, SystemClock};
use crate::config::{Config, ConfigError};
use crate::id::{IdSource, RandomIds};
use crate::identity::{Identity, MasterKey, Revocation, logout_refused};
use crate::jobs;
use crate::journal::OpenError;
use crate::layer::{AuthenticateLayer, Authenticator};
use crate::metering::settler::Settler;
use crate::model::revocations::Logout;
use crate::plugin::Guardrail;
use crate::problem::Problem;
use crate::provision::Provisioner;
use crate::proxy::balance::Balancer;
use crate::proxy::behind::Behind;
use crate::proxy::catalogue::Catalogue;
use crate::proxy::ingress;
use crate::proxy::metrics::GatewayMetrics;
use crate::proxy::{Gateway, GatewayParts};
use crate::store::conservation::LastCheck;
use crate::store::{Store, StoreError, migrate};
use crate::telemetry::{self, Metrics};
use crate::v1;
use crate::zitadel::Management;

mod background;
mod front;
pub mod identities;
mod ledger;
mod listener;
mod operations;
mod tls;

use front::{Front, FrontParts};
use ledger::{Ledger, RunningLedger, open_journal};
use listener::Listener;
use operations::{AdminFront, Operations};
use tls::Tls;

/// How long the start waits for the upstream's prices; without them, requests would be admitted as free.
const FIRST_PRICES: Duration = Duration::from_secs(2);

/// How long the end waits for the ledger to take what has finished.
const LAST_SETTLEMENTS: Duration = Duration::from_secs(10);

/// What stands outside of the configuration: time, identifiers, guardrails.
#[derive(Debug)]
pub struct Surroundings {
    /// The time.
    pub clock: SharedClock,
    /// Where identifiers come from.
    pub ids: Arc<dyn IdSource>,
    /// Run in this order on every permitted request.
    pub guardrails: Vec<Arc<dyn Guardrail>>,
}

impl Default for Surroundings {
    fn default() -> Self {
        Self { clock: Arc::new(SystemClock), ids: Arc::new(RandomIds), guardrails: Vec::new() }
    }
}

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The database cannot be used.
    #[error("database: {0}")]
    Store(#[from] StoreError),
    /// An address cannot be listened on.
    #[error("{key} = {address}: {reason}")]
    Listen {
        /// The configuration's key.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system says.
        reason: std::io::Error,
    },
    /// The journal cannot be kept.
    #[error("data_dir (ALCHEMI_DATA_DIR): {0}")]
    Journal(#[from] OpenError),
    /// The system has no thread for the settler.
    #[error("no thread for the settler: {0}")]
    Thread(std::io::Error),
}

/// A running process.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    admin_address: Option<SocketAddr>,
    store: Store,
    stop: watch::Sender<bool>,
    listeners: Vec<JoinHandle<bool>>,
    background: JoinSet<()>,
    ledger: RunningLedger,
}

/// What a server did at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped {
    /// Requests settled since the start.
    pub settled: u64,
    /// Whether every connection ended in time.
    pub drained: bool,
}

impl Server {
    /// Opens the store, applies migrations, and listens.
    ///
    /// # Errors
    /// [`StartError`], one sentence that names the key and the remedy.
    pub async fn start(config: &Config, surroundings: Surroundings) -> Result<Self, StartError> {
        let Surroundings { clock, ids, guardrails } = surroundings;
        let store = Store::open(&config.database, Arc::clone(&clock), Arc::clone(&ids)).await?;
        for migration in migrate::at_start(&store, config.database.migrate).await? {
            tracing::info!(version = migration.version, name = migration.name, "migration applied");
        }
        let wrong = |text: String| StartError::Config(ConfigError(text));
        let identity = Identity::new(&config.identity, Arc::clone(&clock)).map_err(|e| wrong(e.to_string()))?;
        for warning in config.warnings() {
            tracing::warn!("{warning}");
        }
        let master_key = config.master_key.clone().map(MasterKey::new).transpose().map_err(|e| wrong(e.to_string()))?;
        let rules = RuleBook::new(store.clone(), &config.allocation, config.rule_terms());
        let authenticator = Authenticator::new(identity.clone(), master_key, rules.clone());
        let journal = open_journal(config, &store, &clock).await?;
        let (settler, outbox) = Settler::new(store.clone());
        let settler = settler.with_journal(journal.clone());
        let (leases, keeper) =
            Leases::new(store.clone(), Arc::clone(&clock), config.allocation.leases.clone(), journal.clone());
        keeper.begin().await?;
        let (time, lease) = (Arc::clone(&clock), Some(leases.clone()));
        let allocations = Allocations::with(store.clone(), time, &config.allocation, outbox, lease, journal.clone());
        let balancer =
            Arc::new(Balancer::new(&config.upstream, Arc::clone(&clock)).map_err(|e| wrong(format!("upstream: {e}")))?);
        let catalogue = Arc::new(Catalogue::new(
            config.metering.prices.clone(),
            config.metering.model_info_path.clone(),
            Duration::from_secs(config.metering.model_info_seconds.max(1)),
        ));
        let gateway_metrics = GatewayMetrics::default();
        let provisioner = provisioner(config, &store, &identity, &clock)?;
        let books = LastCheck::default();
        let (keys, outbound) = (config.secrets.keys.clone(), config.outbound.clone());
        let alerts = Alerts::new(store.clone(), Arc::clone(&clock), keys, outbound, config.alerts.clone())
            .map_err(|e| wrong(format!("TLS towards alert webhooks: {e}")))?;
        let metrics = Metrics::new(
            &gateway_metrics,
            identity.clone(),
            rules.clone(),
            allocations.clone(),
            settler.counts(),
            Arc::clone(&balancer),
            store.clone(),
        )
        .with_journal(journal.clone())
        .with_management(&provisioner.management().metrics())
        .with_books(books.clone())
        .with_alerts(alerts.counts());
        let metrics = Arc::new(metrics);
        let gateway = Gateway::new(GatewayParts {
            authenticator: authenticator.clone(),
            allocations: allocations.clone(),
            behind: Behind::Upstreams(Arc::clone(&balancer)),
            catalogue: Arc::clone(&catalogue),
            guardrails,
            metrics: gateway_metrics,
            config: config.gateway(),
            clock: Arc::clone(&clock),
        });
        let following = jobs::follow_revocations(store.clone(), identity.clone()).await?;
        background::look_for_lost_keys(&store, &config.secrets.keys).await?;
        let operations = Operations {
            store: store.clone(),
            identity: identity.clone(),
            balancer: Arc::clone(&balancer),
            metrics,
            secrets: config.secrets.keys.clone(),
            books: books.clone(),
            warnings: config.warnings().into(),
        };
        let mut background = JoinSet::new();
        let (told, every) = (Arc::clone(&operations.metrics), config.telemetry.clone());
        background.spawn(telemetry::push_metrics(told, every, Arc::clone(&clock)));
        let front = Front(Arc::new(FrontParts {
            gateway,
            control: control_plane(config, &store, &authenticator, &catalogue, provisioner.clone()),
            documentation: LazyLock::new(documentation),
            operations: operations.clone(),
            authenticator,
            metrics_elsewhere: config.admin_listen.is_some(),
            trusted: config.trusted()?,
            clock,
            ids,
        }));
        background.spawn(following);
        background.spawn(jobs::keep_reservations(allocations));
        background.spawn(keeper.run());
        if config.ledger.verify_seconds > 0 {
            let every = Duration::from_secs(config.ledger.verify_seconds);
            background.spawn(background::verify_ledger(store.clone(), every, books));
        }
        background.spawn(alerts.run());
        if provisioner.management().is_configured() {
            let (changes, people) = (store.changes(), provisioner.management().clone());
            background.spawn(identities::keep_resolving(changes, store.clone(), people));
        }
        background.spawn(provisioner.run());
        let (watched, listed, credential) = (Arc::clone(&balancer), catalogue, config.upstream.api_key.clone());
        background.spawn(async move { watched.watch().await });
        // The first request finds prices, if the upstream is there to tell them.
        let first = tokio::time::timeout(FIRST_PRICES, listed.refresh(&balancer, credential.as_ref())).await;
        background.spawn(async move { listed.watch(&balancer, credential.as_ref(), first.unwrap_or(false)).await });
        background.spawn(async move { identity.warm().await });
        let ledger = Ledger { settler, leases, journal };
        Self::listen(config, store, front, operations, background, ledger).await
    }

    async fn listen(
        config: &Config,
        store: Store,
        front: Front,
        operations: Operations,
        mut background: JoinSet<()>,
        ledger: Ledger,
    ) -> Result<Self, StartError> {
        let tls = config.tls.as_ref().map(Tls::open).transpose().map_err(|e| StartError::Config(ConfigError(e)))?;
        if let (Some(tls), Some(files)) = (tls.clone(), config.tls.clone()) {
            background.spawn(tls.follow(files));
        }
        let (stop, stopped) = watch::channel(false);
        let socket = bind("listen (ALCHEMI_LISTEN)", config.listen).await?;
        let address = socket.local_addr().unwrap_or(config.listen);
        let mut listeners = Vec::new();
        let mut admin_address = None;
        if let Some(admin) = config.admin_listen {
            let socket = bind("admin_listen (ALCHEMI_ADMIN_LISTEN)", admin).await?;
            admin_address = socket.local_addr().ok();
            let limits = config.limits.clone();
            listeners.push(tokio::spawn(
                Listener { socket, tls: None, answer: AdminFront(operations), limits }.run(stopped.clone()),
            ));
        }
        let limits = config.limits.clone();
        listeners.push(tokio::spawn(Listener { socket, tls, answer: front, limits }.run(stopped)));
        let ledger = ledger.start().map_err(StartError::Thread)?;
        Ok(Self { address, admin_address, store, stop, listeners, background, ledger })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it answers operators, when that is an address of its own.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin_address
    }

    /// The store, for jobs that run beside the server.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Accepts nothing more, lets requests under way finish for as long as
    /// `limits.drain_seconds` says, cuts the others, settles them all, and closes the store.
    pub async fn stop(mut self) -> Stopped {
        let _ = self.stop.send(true);
        let mut drained = true;
        for listener in self.listeners {
            drained &= listener.await.unwrap_or(false);
        }
        // What holds the settler's other end goes with the listeners and the jobs.
        self.background.shutdown().await;
        let settled = self.ledger.stop(LAST_SETTLEMENTS).await;
        self.store.close().await;
        Stopped { settled, drained }
    }
}

async fn bind(key: &'static str, address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|reason| StartError::Listen { key, address, reason })
}

/// Checks what a configuration names outside of itself, key files and certificates, as the
/// start would, and asks nobody.
///
/// # Errors
/// [`StartError`], as [`Server::start`].
pub fn check(config: &Config) -> Result<(), StartError> {
    let (clock, wrong): (SharedClock, _) = (Arc::new(SystemClock), |text| StartError::Config(ConfigError(text)));
    Identity::new(&config.identity, Arc::clone(&clock)).map_err(|error| wrong(error.to_string()))?;
    management(config, &clock)?;
    Store::check(&config.database)?;
    telemetry::filter(&config.log).map_err(wrong)?;
    config.tls.as_ref().map(Tls::open).transpose().map_err(wrong)?;
    Ok(())
}

fn management(config: &Config, clock: &SharedClock) -> Result<Management, StartError> {
    let issuer = config.identity.issuers.first();
    let address = issuer.map(|issuer| (issuer.url.as_str(), issuer.internal_url.as_deref()));
    Management::new(&config.zitadel, address, Arc::clone(clock))
        .map_err(|error| StartError::Config(ConfigError(error.to_string())))
}

/// What makes roles and grants in Zitadel, and cuts off in this process whoever loses one.
pub(crate) fn provisioner(
    config: &Config,
    store: &Store,
    identity: &Identity,
    clock: &SharedClock,
) -> Result<Provisioner, StartError> {
    let management = management(config, clock)?;
    let identity = identity.clone();
    let issuers = config.identity.platform_issuers().map(str::to_owned).collect();
    Ok(Provisioner::new(store.clone(), management, issuers).with_cut_off(move |issuer, subject, issued_before| {
        let (issuer, subject) = (issuer.to_owned(), subject.to_owned());
        identity.revocations().insert(&Revocation { issuer, subject, issued_before });
    }))
}

/// `/v1`, behind authentication, for the origins that the configuration names.
fn control_plane(
    config: &Config,
    store: &Store,
    authenticator: &Authenticator,
    catalogue: &Arc<Catalogue>,
    provisioner: Provisioner,
) -> Router {
    let (models, identity) = (Arc::clone(catalogue), authenticator.identity().clone());
    let (prices, metering) = (Arc::clone(catalogue), config.metering.clone());
    let app = v1::App::new(store.clone())
        .with_cut_off(v1::revocations::CutOff::new(move |issuer, subject, issued_before| {
            let (issuer, subject) = (issuer.to_owned(), subject.to_owned());
            identity.revocations().insert(&Revocation { issuer, subject, issued_before });
        }))
        .with_sign_out(authenticator.identity().clone())
        .with_secrets(config.secrets.keys.clone())
        .with_outbound(config.outbound.clone())
        .with_provisioner(provisioner)
        .with_catalogue(v1::models::Catalogue::new(move || models.models()))
        .with_issuers(config.identity.issuers.iter().map(|issuer| issuer.url.clone()))
        .with_estimator(v1::explain::Estimator::new(move |ask, model| {
            metering.held(&prices.book(), ask, model).map(|(_, cost)| cost)
        }))
        .with_allocation(config.allocation.clone())
        .with_rule_terms(config.rule_terms())
        .with_default_domain(config.domain_default)
        .with_body_timeout(Duration::from_secs(config.limits.body_seconds));
    let origins = config.cors_origins.iter().filter_map(|origin| origin.parse().ok()).collect::<Vec<_>>();
    let cors = CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        .allow_headers([
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            header::IF_MATCH,
            http::HeaderName::from_static("idempotency-key"),
            http::HeaderName::from_static("x-account-id"),
        ])
        .expose_headers([header::ETAG, ingress::REQUEST_ID, ingress::CORRELATION_ID]);
    v1::router(app).layer(AuthenticateLayer::new(authenticator.clone())).layer(cors)
}

impl v1::logout::SignOut for Identity {
    fn verify(&self, token: String) -> BoxFuture<'_, Result<Logout, Problem>> {
        Box::pin(async move { self.verify_logout(&token).await.map_err(logout_refused) })
    }

    fn cut_off(&self, logout: &Logout) {
        self.revocations().insert_logout(logout);
    }
}

fn documentation() -> Router {
    let operations = SwaggerUi::new("/docs").url("/openapi.json", v1::description());
    Router::new().merge(operations).merge(v1::problems::router())
}
