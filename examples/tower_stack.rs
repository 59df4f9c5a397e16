//! A gateway of one's own, without a proxy: the whole pipeline as a tower layer over a service in the same process, with
//! the control plane beside it. Who calls is known, the model must be granted, a budget is held and drawn, and every
//! answer is in the ledger. It brings an issuer and a database of its own, so `cargo run --example tower_stack` shows it at work.
#![expect(clippy::print_stdout, reason = "it shows what came of each request")]

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use alchemi::allocation::rules::{RuleBook, RuleTerms};
use alchemi::allocation::{AllocationConfig, Allocations};
use alchemi::clock::{SharedClock, SystemClock};
use alchemi::context::Domain;
use alchemi::credits::{Credits, Factor};
use alchemi::dev::{DevIssuer, DevUser, Org};
use alchemi::id::{Id, RandomIds};
use alchemi::identity::{IdentityConfig, IssuerConfig, master_key_context};
use alchemi::layer::CallerContext;
use alchemi::metering::settler::Settler;
use alchemi::model::accounts::Account;
use alchemi::model::budgets::AccountAllocation;
use alchemi::model::models::{AccessMode, ModelGrant};
use alchemi::model::scope::ScopeType;
use alchemi::proxy::GatewayParts;
use alchemi::proxy::catalogue::Catalogue;
use alchemi::proxy::forward::Outgoing;
use alchemi::store::{DatabaseConfig, migrate};
use alchemi::{AuthenticateLayer, Authenticator, Govern, GovernLayer, Identity, Store, jobs, v1};
use axum::body::{Body, to_bytes};
use http::{Request, Response, header};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::{JoinHandle, JoinSet};
use tower::{Service, ServiceBuilder, ServiceExt as _};

type Failure = Box<dyn Error + Send + Sync>;

/// The service at the bottom of the stack: a model that repeats what it is asked. Only requests that were let through
/// get here, and `usage` is what they are charged for.
pub async fn parrot(request: Request<Outgoing>) -> Result<Response<Body>, Failure> {
    let asked: Value = serde_json::from_slice(&to_bytes(Body::new(request.into_body()), 1 << 20).await?)?;
    // Whoever is let through is known down here.
    let caller = CallerContext::current().map(|caller| caller.actor().subject.to_string());
    let answer = json!({
        "object": "chat.completion",
        "user": caller,
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": asked.pointer("/messages/0/content")}}],
        "usage": {"prompt_tokens": 4, "completion_tokens": 4, "total_tokens": 8},
    });
    Ok(Response::builder().header(header::CONTENT_TYPE, "application/json").body(Body::from(answer.to_string()))?)
}

/// An account with credits for a month and a grant of the model `parrot`.
async fn account(store: &Store, credits: Credits) -> Result<Id<Account>, Failure> {
    let operator = master_key_context(None).super_admin()?;
    let mut tx = store.begin(&operator).await?;
    let account = Account::new(tx.new_id(), "Acme".to_owned(), None, tx.now());
    tx.insert_account(&account).await?;
    tx.commit().await?;
    let id = account.account_id;
    let mut tx = store.begin(&operator.over(id.clone())).await?;
    let now = tx.now();
    let allocation = AccountAllocation {
        account_id: id.clone(),
        monthly_credits: credits,
        overflow_limit: Credits::ZERO,
        credit_factor: Factor::ONE,
        enforcement: None,
        effective_from: now,
        updated_by: None,
        created_at: now,
        updated_at: now,
        version: 1,
    };
    tx.put_account_allocation(&allocation).await?;
    let grant = ModelGrant {
        id: tx.new_id(),
        account_id: id.clone(),
        domain: Domain::Copilot,
        model_name: "parrot".to_owned(),
        scope_type: ScopeType::Account,
        scope_id: id.to_string(),
        access_mode: AccessMode::Allow,
        created_by: None,
        created_at: now,
        updated_at: now,
        version: 1,
    };
    tx.upsert_model_grant(&grant).await?;
    tx.commit().await?;
    Ok(id)
}

/// An issuer that knows Ada, who is of the account; and her token.
async fn ada(clock: &SharedClock, account: &Id<Account>) -> Result<(DevIssuer, String), Failure> {
    let issuer = DevIssuer::start(([127, 0, 0, 1], 0).into(), Arc::clone(clock), Arc::new(RandomIds)).await?;
    let claims = [("alchemi:account_id".to_owned(), account.as_str().into())];
    issuer.add_user(DevUser {
        subject: "ada".to_owned(),
        email: None,
        name: "Ada".to_owned(),
        organization: Org { id: "7001".to_owned(), name: "Acme".to_owned(), domain: "acme.localhost".to_owned() },
        roles: Vec::new(),
        claims: claims.into_iter().collect(),
    });
    let token = issuer.mint("ada", Duration::from_secs(600))?;
    Ok((issuer, token))
}

/// The pipeline over a service, and what stands around it.
pub struct Stack {
    /// The service.
    pub service: Govern,
    /// Ada's access token.
    pub token: String,
    account: Id<Account>,
    store: Store,
    settling: JoinHandle<()>,
    jobs: JoinSet<()>,
    // Both go with the stack.
    _issuer: DevIssuer,
    _folder: TempDir,
}

impl Stack {
    /// Over `bottom`, with an account that has `credits` for a month; the model `parrot` costs 0.001 for each token in and 0.002 for
    /// each token out.
    ///
    /// # Errors
    /// When the example cannot set up what it needs.
    pub async fn over<S>(bottom: S, credits: &str) -> Result<Self, Failure>
    where
        S: Service<Request<Outgoing>, Response = Response<Body>> + Clone + Send + Sync + 'static,
        S::Error: Into<Failure>,
        S::Future: Send + 'static,
    {
        let (clock, folder): (SharedClock, _) = (Arc::new(SystemClock), tempfile::tempdir()?);
        let url = format!("sqlite:{}", folder.path().join("alchemi.db").display());
        let database = DatabaseConfig { url, ..DatabaseConfig::default() };
        let store = Store::open(&database, Arc::clone(&clock), Arc::new(RandomIds)).await?;
        migrate::apply(&store).await?;
        let account = account(&store, credits.parse()?).await?;
        let (issuer, token) = ada(&clock, &account).await?;

        // Whose tokens are believed, and what holds for their subjects.
        let config = IdentityConfig {
            issuers: vec![IssuerConfig::at(issuer.url())],
            project_id: Some(issuer.project_id().to_owned()),
            ..IdentityConfig::default()
        };
        let settings = AllocationConfig::default();
        let identity = Identity::new(&config, Arc::clone(&clock))?;
        let rules = RuleBook::new(store.clone(), &settings, RuleTerms::default());
        let authenticator = Authenticator::new(identity.clone(), None, rules);
        // What holds credits before a request, and what writes the ledger behind it.
        let (settler, outbox) = Settler::new(store.clone());
        // It blocks its thread while a batch gathers.
        let runtime = tokio::runtime::Handle::current();
        let settling = tokio::task::spawn_blocking(move || {
            runtime.block_on(settler.run());
        });
        let allocations = Allocations::new(store.clone(), Arc::clone(&clock), &settings, outbox);
        // Subjects are cut off, and what a crash left behind is charged.
        let mut jobs = JoinSet::new();
        jobs.spawn(jobs::follow_revocations(store.clone(), identity).await?);
        jobs.spawn(jobs::keep_reservations(allocations.clone()));
        // Who administers, and what callers may see of themselves.
        let control = v1::router(v1::App::new(store.clone())).layer(AuthenticateLayer::new(authenticator.clone()));
        let price = r#"{"input_cost_per_token": "0.001", "output_cost_per_token": "0.002"}"#;
        let prices = BTreeMap::from([("parrot".to_owned(), serde_json::from_str(price)?)]);
        let parts = GatewayParts {
            catalogue: Arc::new(Catalogue::of(prices)),
            ..GatewayParts::new(authenticator, allocations, clock)
        };
        let layer = GovernLayer::new(parts).with_control_plane(control);
        let service = ServiceBuilder::new().layer(layer).service(bottom);
        Ok(Self { service, token, account, store, settling, jobs, _issuer: issuer, _folder: folder })
    }

    /// A question to `model`, of Ada's.
    ///
    /// # Errors
    /// When there is no such request.
    pub fn question(&self, model: &str) -> Result<Request<Body>, Failure> {
        let asked = json!({"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": "Pretty Polly"}]});
        let request = Request::post("/v1/chat/completions")
            .header(header::HOST, "gateway.example")
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token))
            .header(header::CONTENT_TYPE, "application/json");
        Ok(request.body(Body::from(asked.to_string()))?)
    }

    /// What the account has spent, as far as it is in the ledger.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn spent(&self) -> Result<Credits, Failure> {
        spent(&self.store, self.account.clone()).await
    }

    /// What it has spent when everything is in the ledger: with the last part of the gateway gone, the settler has
    /// nothing more to come.
    ///
    /// # Errors
    /// When the settler broke, or the database cannot be read.
    pub async fn settle(self) -> Result<Credits, Failure> {
        let Self { service, store, account, settling, mut jobs, .. } = self;
        jobs.shutdown().await;
        drop(service);
        settling.await?;
        spent(&store, account).await
    }
}

async fn spent(store: &Store, account: Id<Account>) -> Result<Credits, Failure> {
    let operator = master_key_context(None).super_admin()?;
    Ok(store.read(&operator.over(account)).await?.booked().await?.credits_incurred)
}

/// Status and body of what Ada is answered: twice by the parrot, which takes her credits; then by the budget; and by
/// the policy for a model that nobody granted. With what the account has spent in the end.
///
/// # Errors
/// When the example cannot set up what it needs.
pub async fn show() -> Result<(Vec<(u16, Value)>, Credits), Failure> {
    let stack = Stack::over(tower::service_fn(parrot), "0.03").await?;
    let mut answers = Vec::new();
    for model in ["parrot", "parrot", "parrot", "raven"] {
        let answer = stack.service.clone().oneshot(stack.question(model)?).await?;
        let status = answer.status().as_u16();
        answers.push((status, serde_json::from_slice(&to_bytes(answer.into_body(), 1 << 20).await?)?));
    }
    Ok((answers, stack.settle().await?))
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let (answers, spent) = show().await?;
    for (status, body) in answers {
        println!("{status} {body}");
    }
    println!("the account has spent {spent} credits");
    Ok(())
}
