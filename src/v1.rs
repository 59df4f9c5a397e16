//! The control plane: REST under `/v1`.
//!
//! This file is the route table. A handler's signature says who may call it
//! ([`call::Guard`]), what it reads ([`input`]) and what it answers ([`answer`]);
//! its body is one transaction that reads as a story.
//!
//! Routes of both product domains are written once, as `/v1/{domain}/…`; the
//! description lists them for each domain by its name.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use http::{HeaderMap, Method, header};
use utoipa::OpenApi as _;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::allocation::AllocationConfig;
use crate::allocation::rules::RuleTerms;
use crate::context::{Context, Domain, RequestInfo};
use crate::model::models::AccessMode;
use crate::outbound::OutboundRules;
use crate::problem::Problem;
use crate::provision::Provisioner;
use crate::secret::KeyRing;
use crate::store::Store;
use crate::zitadel::Management;

pub mod accounts;
pub mod adjustments;
pub mod admins;
pub mod agents;
pub mod answer;
pub mod audit;
pub mod budgets;
pub mod call;
pub mod connections;
pub mod context;
pub mod costs;
pub mod directory;
pub mod entries;
pub mod explain;
pub mod features;
pub mod guardrails;
pub mod input;
pub mod logout;
pub mod marketplace;
pub mod models;
mod openapi;
mod parameters;
pub mod policies;
pub mod problems;
pub mod provision;
pub mod revocations;
pub mod sso;
pub mod trial;
pub mod usage;

/// What the routes share.
#[derive(Debug, Clone)]
pub struct App {
    /// The database.
    pub store: Store,
    /// The models that the upstream knows.
    pub catalogue: models::Catalogue,
    /// What the configuration adds to every subject's rules.
    pub terms: RuleTerms,
    /// What the upstream's prices say that a request costs.
    pub estimator: explain::Estimator,
    /// How allocations are enforced.
    pub allocation: AllocationConfig,
    /// The product domain of a self-service request that names none.
    pub default_domain: Domain,
    /// The issuers whose tokens are accepted.
    pub issuers: Arc<[String]>,
    /// Until a body has arrived.
    pub body_timeout: Duration,
    /// What secrets are sealed under; without a key, none are taken.
    pub secrets: KeyRing,
    /// Where URLs in settings may lead.
    pub outbound: OutboundRules,
    /// Told of a revocation before its answer is given.
    pub cut_off: revocations::CutOff,
    sign_out: logout::SharedSignOut,
    /// Makes roles and grants in Zitadel.
    pub provisioner: Provisioner,
    in_flight: call::InFlightSet,
    parameters: parameters::Parameters,
    plan_sums: budgets::sums::PlanSums,
}

impl App {
    /// The control plane over `store`.
    pub fn new(store: Store) -> Self {
        let provisioner = Provisioner::new(store.clone(), Management::unconfigured(), Vec::new());
        let plan_sums = budgets::sums::PlanSums::new(&store);
        Self {
            store,
            provisioner,
            plan_sums,
            issuers: Arc::default(),
            secrets: KeyRing::default(),
            outbound: OutboundRules::default(),
            cut_off: revocations::CutOff::default(),
            sign_out: Arc::new(logout::NoSignOut),
            catalogue: models::Catalogue::default(),
            terms: RuleTerms::default(),
            estimator: explain::Estimator::default(),
            allocation: AllocationConfig::default(),
            default_domain: Domain::Copilot,
            body_timeout: Duration::from_secs(60),
            in_flight: call::InFlightSet::default(),
            parameters: parameters::Parameters::default(),
        }
    }

    /// With the issuers whose tokens are accepted, the usual one first.
    #[must_use]
    pub fn with_issuers(self, issuers: impl IntoIterator<Item = String>) -> Self {
        Self { issuers: issuers.into_iter().collect(), ..self }
    }

    /// With what makes a revocation hold in this process at once; else it holds when
    /// the change feed has brought it.
    #[must_use]
    pub fn with_cut_off(self, cut_off: revocations::CutOff) -> Self {
        Self { cut_off, ..self }
    }

    /// With who judges logout tokens; without, none is accepted.
    #[must_use]
    pub fn with_sign_out(self, sign_out: impl logout::SignOut + 'static) -> Self {
        Self { sign_out: Arc::new(sign_out), ..self }
    }

    /// With the keys that secrets are sealed under.
    #[must_use]
    pub fn with_secrets(self, secrets: KeyRing) -> Self {
        Self { secrets, ..self }
    }

    /// With where URLs in settings may lead; only outside unless said.
    #[must_use]
    pub fn with_outbound(self, outbound: OutboundRules) -> Self {
        Self { outbound, ..self }
    }

    /// With what makes roles and grants in Zitadel; without it, they are only planned.
    #[must_use]
    pub fn with_provisioner(self, provisioner: Provisioner) -> Self {
        Self { provisioner, ..self }
    }

    /// With the models that the upstream knows.
    #[must_use]
    pub fn with_catalogue(self, catalogue: models::Catalogue) -> Self {
        Self { catalogue, ..self }
    }

    /// With what holds for a model that no grant mentions; `deny` unless said.
    #[must_use]
    pub fn with_default_model_access(self, default_access: AccessMode) -> Self {
        Self { terms: RuleTerms { default_access, ..self.terms }, ..self }
    }

    /// With what the configuration adds to the rules that the data plane decides by.
    #[must_use]
    pub fn with_rule_terms(self, terms: RuleTerms) -> Self {
        Self { terms, ..self }
    }

    /// With what the upstream's prices say that a request costs, for
    /// [`explain`](explain::explain_policy); else nothing has a price.
    #[must_use]
    pub fn with_estimator(self, estimator: explain::Estimator) -> Self {
        Self { estimator, ..self }
    }

    /// With how the data plane enforces allocations; hard unless said.
    #[must_use]
    pub fn with_allocation(self, allocation: AllocationConfig) -> Self {
        Self { allocation, ..self }
    }

    /// With the product domain of a self-service request that names none; `copilot` unless said.
    #[must_use]
    pub fn with_default_domain(self, default_domain: Domain) -> Self {
        Self { default_domain, ..self }
    }

    /// With how long a body may take to arrive; a minute unless said.
    #[must_use]
    pub fn with_body_timeout(self, body_timeout: Duration) -> Self {
        Self { body_timeout, ..self }
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
        .routes(routes!(logout::receive_logout))
        // Accounts, by the operator
        .routes(routes!(accounts::list_accounts, accounts::create_account))
        .routes(routes!(accounts::get_account, accounts::update_account, accounts::delete_account))
        .routes(routes!(accounts::set_account_status))
        .routes(routes!(admins::list_account_admins, admins::put_account_admin))
        .routes(routes!(admins::update_account_admin, admins::delete_account_admin))
        .routes(routes!(sso::get_account_sso, sso::put_account_sso, sso::delete_account_sso))
        .routes(routes!(policies::get_feature_pack, policies::put_feature_pack))
        .routes(routes!(policies::get_console_model_policy, policies::put_console_model_policy))
        .routes(routes!(policies::get_zitadel_config, policies::put_zitadel_config))
        .routes(routes!(provision::get_zitadel_plan))
        .routes(routes!(provision::get_zitadel_drift))
        .routes(routes!(provision::provision_user_grant))
        .routes(routes!(provision::provision_project_role))
        .routes(routes!(provision::sync_zitadel_roles))
        .routes(routes!(provision::sync_zitadel_admin_grants))
        .routes(routes!(provision::bootstrap_zitadel))
        .routes(routes!(provision::forget_zitadel_item))
        .routes(routes!(audit::list_account_audit))
        .routes(routes!(audit::verify_account_audit))
        .routes(routes!(audit::export_account_audit))
        // The account's own audit
        .routes(routes!(audit::list_audit))
        .routes(routes!(audit::verify_audit))
        .routes(routes!(audit::export_audit))
        // Directory, in both domains
        .routes(routes!(directory::orgs::list_orgs, directory::orgs::create_org))
        .routes(routes!(directory::orgs::get_org, directory::orgs::update_org, directory::orgs::delete_org))
        .routes(routes!(directory::teams::list_teams, directory::teams::create_team))
        .routes(routes!(directory::teams::get_team, directory::teams::update_team, directory::teams::delete_team))
        .routes(routes!(directory::teams::list_team_members, directory::teams::add_team_member))
        .routes(routes!(directory::teams::update_team_member, directory::teams::remove_team_member))
        .routes(routes!(directory::users::list_users, directory::users::create_user))
        .routes(routes!(directory::users::get_user, directory::users::update_user, directory::users::delete_user))
        // Model access, in both domains and for the caller
        .routes(routes!(models::list_model_grants, models::create_model_grant))
        .routes(routes!(models::get_model_grant, models::delete_model_grant))
        .routes(routes!(models::get_effective_model))
        .routes(routes!(models::list_my_models))
        // Connections; the type of a new one stands where the id of another does
        .routes(routes!(connections::list_connections))
        .routes(routes!(
            connections::create_connection,
            connections::get_connection,
            connections::update_connection,
            connections::delete_connection
        ))
        .routes(routes!(connections::list_connection_grants, connections::create_connection_grant))
        .routes(routes!(connections::delete_connection_grant))
        // Features
        .routes(routes!(features::list_feature_entitlements, features::create_feature_entitlement))
        .routes(routes!(features::get_feature_entitlement, features::delete_feature_entitlement))
        .routes(routes!(features::get_effective_feature))
        .routes(routes!(features::list_my_features))
        // Agents, of the copilot and for the caller
        .routes(routes!(agents::list_agents, agents::create_agent))
        .routes(routes!(agents::get_agent, agents::update_agent, agents::delete_agent))
        .routes(routes!(agents::list_agent_grants, agents::create_agent_grant, agents::delete_agent_grant))
        .routes(routes!(agents::list_my_agents))
        // Guardrails
        .routes(routes!(guardrails::presets::list_guardrail_presets, guardrails::presets::create_guardrail_preset))
        .routes(routes!(guardrails::presets::get_guardrail_preset, guardrails::presets::delete_guardrail_preset))
        .routes(routes!(guardrails::patterns::list_guardrail_patterns, guardrails::patterns::create_guardrail_pattern))
        .routes(routes!(
            guardrails::patterns::get_guardrail_pattern,
            guardrails::patterns::update_guardrail_pattern,
            guardrails::patterns::delete_guardrail_pattern
        ))
        .routes(routes!(
            guardrails::assignments::list_guardrail_assignments,
            guardrails::assignments::create_guardrail_assignment
        ))
        .routes(routes!(guardrails::assignments::delete_guardrail_assignment))
        .routes(routes!(guardrails::get_effective_guardrails))
        // Marketplace
        .routes(routes!(marketplace::list_marketplace, marketplace::create_marketplace_listing))
        .routes(routes!(marketplace::discover::discover_marketplace))
        .routes(routes!(
            marketplace::get_marketplace_listing,
            marketplace::update_marketplace_listing,
            marketplace::delete_marketplace_listing
        ))
        .routes(routes!(marketplace::publish_marketplace_listing))
        .routes(routes!(
            marketplace::grants::list_marketplace_grants,
            marketplace::grants::create_marketplace_grant,
            marketplace::grants::delete_marketplace_grants
        ))
        .routes(routes!(
            marketplace::installs::list_marketplace_installations,
            marketplace::installs::install_marketplace_listing,
            marketplace::installs::uninstall_marketplace_listing
        ))
        .routes(routes!(
            marketplace::installs::get_marketplace_rating,
            marketplace::installs::rate_marketplace_listing,
            marketplace::installs::delete_marketplace_rating
        ))
        .routes(routes!(marketplace::discover::list_my_marketplace))
        // What the gateway would say, and why
        .routes(routes!(explain::explain_policy))
        // Budgets
        .routes(routes!(budgets::account::list_account_allocations, budgets::account::set_account_allocation))
        .routes(routes!(budgets::account::get_account_allocation))
        .routes(routes!(budgets::plans::list_budget_plans, budgets::plans::create_budget_plan))
        .routes(routes!(budgets::plans::get_active_budget_plan))
        .routes(routes!(budgets::plans::get_budget_plan, budgets::plans::update_budget_plan))
        .routes(routes!(budgets::plans::activate_budget_plan))
        .routes(routes!(budgets::allocations::list_budget_allocations, budgets::allocations::delete_budget_allocation))
        .routes(routes!(budgets::allocations::upsert_budget_allocation))
        .routes(routes!(budgets::allocations::distribute_equally))
        .routes(routes!(budgets::overrides::list_budget_overrides, budgets::overrides::create_budget_override))
        .routes(routes!(budgets::overrides::delete_budget_override))
        .routes(routes!(budgets::cycles::renew_budget_cycle))
        .routes(routes!(budgets::cycles::list_budget_cycles))
        .routes(routes!(budgets::effective::get_effective_allocation))
        .routes(routes!(budgets::effective::get_own_allocation))
        // Usage and costs
        .routes(routes!(usage::get_usage_by_scope))
        .routes(routes!(usage::list_budget_alerts))
        .routes(routes!(
            budgets::alerts::get_alert_webhook,
            budgets::alerts::put_alert_webhook,
            budgets::alerts::delete_alert_webhook
        ))
        .routes(routes!(budgets::alerts::test_alert_webhook))
        .routes(routes!(budgets::alerts::list_alert_deliveries))
        .routes(routes!(usage::record_usage))
        .routes(routes!(adjustments::adjust_usage))
        .routes(routes!(usage::get_own_usage))
        .routes(routes!(costs::get_budget_cost_breakdown))
        .routes(routes!(costs::get_cost_breakdown))
        .routes(routes!(entries::list_ledger_entries))
}

/// The routes, ready to be mounted. A layer outside must put a
/// [`Context`] of who calls, and a [`RequestInfo`], into
/// the extensions of each request; for self-service in another place than the caller's
/// usual one, an [`AskedPlace`](crate::context::AskedPlace) too.
pub fn router(app: App) -> Router {
    let (router, description) = routes().split_for_parts();
    let app = App { parameters: parameters::Parameters::of(&description), ..app };
    router
        .fallback(async || Problem::not_found("There is no such route; /openapi.json lists all of them"))
        .method_not_allowed_fallback(async || method_not_allowed())
        .layer(middleware::from_fn(finish))
        .layer(middleware::from_fn_with_state(app.clone(), digest_idempotent))
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
    let response = next.run(request).await;
    match (id, response.extensions().get::<Problem>().cloned()) {
        (Some(id), Some(problem)) => {
            // The head stays: it may hold more than the problem does, such as `Allow`.
            let (mut head, _) = response.into_parts();
            head.headers.remove(header::CONTENT_LENGTH);
            Response::from_parts(head, problem.into_http(Some(&id)).into_body())
        }
        _ => response,
    }
}

/// Buffers a POST that carries an `Idempotency-Key`, to know it again. Nothing is
/// read for nobody: the guard refuses them.
async fn digest_idempotent(State(app): State<App>, request: Request, next: Next) -> Result<Response, Problem> {
    let signed_in = request.extensions().get::<Context>().is_some();
    if !signed_in || request.method() != Method::POST || !has_key(request.headers()) {
        return Ok(next.run(request).await);
    }
    let (mut parts, body) = request.into_parts();
    let body = input::read_body(body, app.body_timeout).await?;
    // The body may hold secrets: what is kept of it must not let them be guessed.
    let whole = [parts.uri.query().unwrap_or_default().as_bytes(), b"\n", &body].concat();
    parts.extensions.insert(call::BodyDigest(app.secrets.fingerprint(&whole)));
    Ok(next.run(Request::from_parts(parts, body.into())).await)
}

fn has_key(headers: &HeaderMap) -> bool {
    headers.contains_key("idempotency-key")
}
