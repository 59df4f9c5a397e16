//! The verdict alone: `policy::decide` for a subject with grants on every scope of its chain.

use std::hint::black_box;
use std::sync::Arc;

use alchemi::clock::Timestamp;
use alchemi::context::Domain;
use alchemi::credits::Factor;
use alchemi::id::Id;
use alchemi::identity::master_key_context;
use alchemi::model::accounts::Account;
use alchemi::model::budgets::{Calendar, Enforcement};
use alchemi::model::directory::Placement;
use alchemi::model::models::{AccessMode, ModelGrant};
use alchemi::model::usage::RouteKind;
use alchemi::policy::budget::BudgetRules;
use alchemi::policy::guardrails::Guardrails;
use alchemi::policy::models::ModelRules;
use alchemi::policy::{Ask, AskSize, Companions, Rules, decide};
use criterion::{Criterion, criterion_group, criterion_main};

fn id<T>(text: &str) -> Id<T> {
    text.parse().unwrap_or_else(|_| unreachable!("the benchmark's ids are ids"))
}

fn rules(grants_on_each_scope: usize) -> Rules {
    let account: Id<Account> = id("account");
    let placement =
        Placement { user: Some(id("user")), team: Some(id("team")), org: Some(id("org")), ..Placement::default() };
    let scopes = placement.scopes(&account);
    let at = Timestamp::from_secs(1_700_000_000);
    let grants = scopes.iter().flat_map(|scope| {
        (0..grants_on_each_scope).map(|n| ModelGrant {
            id: id(&format!("grant-{n}")),
            account_id: id("account"),
            domain: Domain::Copilot,
            model_name: if n % 5 == 0 { format!("family-{n}-*") } else { format!("model-{n}") },
            scope_type: scope.scope_type,
            scope_id: scope.scope_id.clone(),
            access_mode: AccessMode::Allow,
            created_by: None,
            created_at: at,
            updated_at: at,
            version: 1,
        })
    });
    let budget = BudgetRules { calendar: Calendar::default(), account: None, plan: None, allocations: Vec::new() };
    Rules {
        chain: budget.kept_chain(&account, Domain::Copilot, &placement, at),
        budget,
        models: ModelRules::new(Domain::Copilot, &scopes, grants.collect(), None, AccessMode::Deny),
        account,
        account_name: "Acme".to_owned(),
        account_suspended: false,
        domain: Domain::Copilot,
        placement,
        factor: Factor::ONE,
        features: Vec::new(),
        enforcement: Enforcement::Hard,
        agent: None,
        connection: None,
        guardrails: Guardrails::default(),
        allocation_required: false,
    }
}

fn decisions(c: &mut Criterion) {
    let context = master_key_context(None);
    let now = Timestamp::from_secs(1_700_000_000);
    let ask = |model: &str| Ask {
        kind: RouteKind::Chat,
        model: Some(model.to_owned()),
        fallbacks: Vec::new(),
        stream: false,
        size: AskSize { input_tokens: 100, max_output: Some(64), answers: 1, ..AskSize::default() },
    };
    let mut group = c.benchmark_group("decide");
    for grants in [1, 10, 100] {
        let rules = Arc::new(rules(grants));
        for (name, model) in [("granted on the user", "model-1"), ("granted nowhere", "elsewhere")] {
            let ask = ask(model);
            group.bench_function(format!("{name}, {grants} grants a scope"), |b| {
                b.iter(|| decide(black_box(&context), black_box(&ask), Companions::default(), &rules, now));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, decisions);
criterion_main!(benches);
