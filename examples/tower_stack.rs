//! The layer and the policy over plain `http` types, without axum: any tower service, whatever speaks HTTP around it.
//! It brings an issuer and a database of its own, so `cargo run --example tower_stack` shows it at work.
#![expect(clippy::print_stdout, reason = "it shows what came of each request")]

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use alchemi::allocation::AllocationConfig;
use alchemi::allocation::rules::{RuleBook, Subject};
use alchemi::clock::{Clock as _, SharedClock, SystemClock};
use alchemi::context::{Context, Domain};
use alchemi::dev::{DevIssuer, DevUser, Org};
use alchemi::id::RandomIds;
use alchemi::identity::{IdentityConfig, IssuerConfig, MasterKey, master_key_context};
use alchemi::model::accounts::Account;
use alchemi::model::models::AccessMode;
use alchemi::model::usage::RouteKind;
use alchemi::policy::{Ask, AskSize, Companions, decide};
use alchemi::store::{DatabaseConfig, migrate};
use alchemi::{AuthenticateLayer, Authenticator, CallerContext, Identity, Problem, Store};
use http::{Request, Response};
use tower::{ServiceBuilder, ServiceExt};

type Failure = Box<dyn Error + Send + Sync>;

/// Asks the policy whether the caller may have an answer of `model`: the verdict of the proxy, without the proxy.
async fn may_use(caller: &Context, book: &RuleBook, model: &str) -> Result<(), Problem> {
    let account = caller.member()?.account().clone();
    let subject = Subject { account, domain: Domain::Copilot, actor: caller.actor().clone(), team: None, agent: None };
    let rules = book.rules(&subject).await?;
    let ask = Ask {
        kind: RouteKind::Chat,
        model: Some(model.to_owned()),
        fallbacks: Vec::new(),
        stream: false,
        size: AskSize::default(),
    };
    decide(caller, &ask, Companions::default(), &rules, SystemClock.now()).map(drop).map_err(Problem::from)
}

/// The service at the bottom of the stack: answers with the caller's name, if they may use the model in the path.
async fn answer(request: Request<Vec<u8>>, book: RuleBook) -> Result<Response<Vec<u8>>, Failure> {
    let Some(caller) = CallerContext::current() else {
        return Ok(Problem::unauthenticated("token_missing", "Send a token").into_http(None));
    };
    let model = request.uri().path().trim_start_matches('/');
    Ok(match may_use(&caller, &book, model).await {
        Ok(()) => Response::new(format!("{model} for {}", caller.actor().subject).into_bytes()),
        Err(refusal) => refusal.into_http(None),
    })
}

/// Status and body of a request by somebody of an account without a grant, and of an anonymous one, where models
/// without a grant are allowed or denied.
///
/// # Errors
/// When the example cannot set up what it needs.
pub async fn show(ungranted: AccessMode) -> Result<[(u16, String); 2], Failure> {
    let (clock, folder): (SharedClock, _) = (Arc::new(SystemClock), tempfile::tempdir()?);
    let url = format!("sqlite:{}", folder.path().join("alchemi.db").display());
    let database = DatabaseConfig { url, ..DatabaseConfig::default() };
    let store = Store::open(&database, Arc::clone(&clock), Arc::new(RandomIds)).await?;
    migrate::apply(&store).await?;
    let issuer = DevIssuer::start(([127, 0, 0, 1], 0).into(), Arc::clone(&clock), Arc::new(RandomIds)).await?;

    // An account, and one of its people with a token.
    let operator = master_key_context(None).super_admin()?;
    let mut tx = store.begin(&operator).await?;
    let account = Account::new(tx.new_id(), "Acme".to_owned(), None, tx.now());
    tx.insert_account(&account).await?;
    tx.commit().await?;
    let home = Org { id: "7001".to_owned(), name: "Acme".to_owned(), domain: "acme.localhost".to_owned() };
    let claims = [("alchemi:account_id".to_owned(), account.account_id.as_str().into())];
    issuer.add_user(DevUser {
        subject: "ada".to_owned(),
        email: None,
        name: "Ada".to_owned(),
        organization: home,
        roles: Vec::new(),
        claims: claims.into_iter().collect(),
    });
    let token = issuer.mint("ada", Duration::from_secs(600))?;

    let config = IdentityConfig {
        issuers: vec![IssuerConfig::at(issuer.url())],
        project_id: Some(issuer.project_id().to_owned()),
        ..IdentityConfig::default()
    };
    let identity = Identity::new(&config, clock)?;
    let book = RuleBook::new(store, &AllocationConfig::default(), ungranted);
    let master_key = MasterKey::new("a key for operators, of 32 or more".into())?;
    let layer = AuthenticateLayer::new(Authenticator::new(identity, Some(master_key), book.clone()));
    let stack =
        ServiceBuilder::new().layer(layer).service_fn(move |request: Request<Vec<u8>>| answer(request, book.clone()));

    let known = Request::get("/gpt-4o").header("authorization", format!("Bearer {token}")).body(Vec::new())?;
    let known = stack.clone().oneshot(known).await?;
    let anonymous = stack.oneshot(Request::get("/gpt-4o").body(Vec::new())?).await?;
    let read = |answer: Response<Vec<u8>>| {
        let status = answer.status().as_u16();
        Ok::<_, Failure>((status, String::from_utf8(answer.into_body())?))
    };
    Ok([read(known)?, read(anonymous)?])
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    for ungranted in [AccessMode::Allow, AccessMode::Deny] {
        for (status, body) in show(ungranted).await? {
            println!("{status} {body}");
        }
    }
    Ok(())
}
