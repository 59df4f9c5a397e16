//! A reservation over a chain of four capped scopes, and its settlement, on each database.
//!
//! PostgreSQL is measured when `ALCHEMI_TEST_POSTGRES_URL` names one.
#![expect(clippy::expect_used, clippy::disallowed_methods, reason = "a benchmark that cannot run says why and ends")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use alchemi::allocation::{Admission, AllocationConfig, Allocations, Bill};
use alchemi::clock::{Clock, SystemClock};
use alchemi::context::Domain;
use alchemi::credits::{Credits, Factor, Usd};
use alchemi::id::{Id, RandomIds};
use alchemi::identity::master_key_context;
use alchemi::metering::settler::Settler;
use alchemi::model::accounts::{Account, JsonText};
use alchemi::model::budgets::{AccountAllocation, Cycle, EffectiveAllocation, OverCommit, Plan, PlanStatus};
use alchemi::model::directory::Placement;
use alchemi::model::models::AccessMode;
use alchemi::model::scope::{Scope, ScopeType};
use alchemi::model::usage::{CostSource, RouteKind, Tokens};
use alchemi::policy::budget::BudgetRules;
use alchemi::policy::guardrails::Guardrails;
use alchemi::policy::models::ModelRules;
use alchemi::policy::{Ask, AskSize, Companions, Rules, decide};
use alchemi::store::{DatabaseConfig, Store, migrate};
use criterion::{Criterion, criterion_group, criterion_main};

fn id<T>(text: &str) -> Id<T> {
    text.parse().expect("the benchmark's ids are ids")
}

/// An account in the store, and rules under which four scopes are capped.
async fn prepare(url: String) -> (Store, Rules) {
    let config = DatabaseConfig { url, ..DatabaseConfig::default() };
    let store = Store::open(&config, Arc::new(SystemClock), Arc::new(RandomIds)).await.expect("the database opens");
    migrate::apply(&store).await.expect("migrations apply");
    let operator = master_key_context(None).super_admin().expect("the master key is the operator's");
    let mut tx = store.begin(&operator).await.expect("the database answers");
    let (account_id, now) = (tx.new_id::<Account>(), SystemClock.now());
    let mut account = Account::new(account_id.clone(), format!("bench {account_id}"), None, now);
    account.metadata = JsonText::empty_object();
    tx.insert_account(&account).await.expect("the account is new");
    tx.commit().await.expect("the database answers");
    let placement =
        Placement { user: Some(id("user")), team: Some(id("team")), org: Some(id("org")), ..Placement::default() };
    let much = Credits::from_units(1_000_000_000);
    let allocations = [(ScopeType::Org, "org"), (ScopeType::Team, "team"), (ScopeType::User, "user")];
    let plan = Plan {
        id: id("plan"),
        account_id: account_id.clone(),
        name: "bench".to_owned(),
        cycle: Cycle::Monthly,
        status: PlanStatus::Active,
        over_commit: OverCommit::Allow,
        created_by: None,
        created_at: now,
        updated_at: now,
        version: 1,
    };
    let allocation = AccountAllocation {
        account_id: account_id.clone(),
        monthly_credits: much,
        overflow_limit: Credits::ZERO,
        credit_factor: Factor::ONE,
        effective_from: now,
        updated_by: None,
        created_at: now,
        updated_at: now,
        version: 1,
    };
    let budget = BudgetRules {
        zone: jiff::tz::TimeZone::UTC,
        account: Some(allocation),
        plan: Some(plan),
        allocations: allocations
            .map(|(kind, scope)| EffectiveAllocation {
                scope: Scope::new(kind, scope),
                base: much,
                effective: much,
                overridden: false,
                overflow_cap: None,
            })
            .to_vec(),
    };
    let rules = Rules {
        chain: budget.kept_chain(&account_id, Domain::Copilot, &placement, now),
        budget,
        models: ModelRules::new(Domain::Copilot, &[], Vec::new(), None, AccessMode::Allow),
        account: account_id,
        account_name: "Acme".to_owned(),
        account_suspended: false,
        domain: Domain::Copilot,
        placement,
        factor: Factor::ONE,
        agent: None,
        guardrails: Guardrails::default(),
        allocation_required: false,
    };
    (store, rules)
}

fn reservations(c: &mut Criterion) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut databases = vec![("sqlite", format!("sqlite:{}", folder.path().join("bench.db").display()))];
    databases.extend(std::env::var("ALCHEMI_TEST_POSTGRES_URL").ok().map(|url| ("postgres", url)));
    let mut group = c.benchmark_group("reserve and settle, chain of four");
    group.sample_size(20);
    for (name, url) in databases {
        let (store, rules) = runtime.block_on(prepare(url));
        let rules = Arc::new(rules);
        let (settler, outbox) = Settler::new(store.clone());
        let allocations = Allocations::new(store, Arc::new(SystemClock), &AllocationConfig::default(), outbox);
        let settling = runtime.spawn(settler.run());
        let context = master_key_context(None);
        let ask = Ask {
            kind: RouteKind::Chat,
            model: Some("m".to_owned()),
            fallbacks: Vec::new(),
            stream: false,
            size: AskSize::default(),
        };
        let next = AtomicU64::new(0);
        group.bench_function(name, |b| {
            b.to_async(&runtime).iter(|| async {
                let permit = decide(&context, &ask, Companions::default(), &rules, SystemClock.now());
                let request_id = format!("{}-{}", rules.account, next.fetch_add(1, Ordering::Relaxed));
                let admission = Admission {
                    permit: permit.expect("the model is allowed"),
                    request_id: request_id.into(),
                    kind: RouteKind::Chat,
                    subject: "bench".into(),
                    model: "m".into(),
                    guardrail: None,
                    estimate: Some(Usd::from_nanos(1_000)),
                    estimated_tokens: Tokens::default(),
                };
                let reservation = allocations.reserve(admission).await.expect("there are credits");
                reservation.settle(Bill {
                    cost: Usd::from_nanos(900),
                    source: Some(CostSource::Header),
                    ..Bill::default()
                });
            });
        });
        drop(allocations);
        runtime.block_on(settling).expect("the settler ends");
    }
    group.finish();
}

criterion_group!(benches, reservations);
criterion_main!(benches);
