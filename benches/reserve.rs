//! A reservation over a chain of four capped scopes: in the database with its settlement, out of
//! a lease, and out of a lease with its entry in the journal; and the journal alone.
//!
//! PostgreSQL is measured when `ALCHEMI_TEST_POSTGRES_URL` names one.
#![expect(clippy::expect_used, clippy::disallowed_methods, reason = "a benchmark that cannot run says why and ends")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use alchemi::allocation::lease::{LeaseConfig, Leases};
use alchemi::allocation::{Admission, AllocationConfig, Allocations, Bill, Outbox, record};
use alchemi::clock::{Clock, SystemClock};
use alchemi::context::Domain;
use alchemi::credits::{Credits, Factor, Usd};
use alchemi::id::{Id, RandomIds};
use alchemi::identity::master_key_context;
use alchemi::journal::{Fsync, Journal, JournalConfig};
use alchemi::metering::settler::Settler;
use alchemi::model::accounts::{Account, JsonText};
use alchemi::model::budgets::{
    AccountAllocation, Calendar, Cycle, EffectiveAllocation, Enforcement, OverCommit, Plan, PlanStatus, RolloverMode,
};
use alchemi::model::directory::Placement;
use alchemi::model::models::AccessMode;
use alchemi::model::scope::{Scope, ScopeType};
use alchemi::model::usage::{CostSource, RouteKind, Tokens};
use alchemi::policy::budget::BudgetRules;
use alchemi::policy::guardrails::Guardrails;
use alchemi::policy::models::ModelRules;
use alchemi::policy::{Ask, AskSize, Companions, Rules, decide};
use alchemi::store::{DatabaseConfig, Store, migrate};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures_util::FutureExt;

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
        rollover: RolloverMode::None,
        rollover_cap: None,
        rollover_windows: 1,
        rolled_to: None,
        look_again_at: None,
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
        enforcement: None,
        effective_from: now,
        updated_by: None,
        created_at: now,
        updated_at: now,
        version: 1,
    };
    let budget = BudgetRules {
        calendar: Calendar::default(),
        account: Some(allocation),
        plan: Some(plan),
        allocations: allocations
            .map(|(kind, scope)| EffectiveAllocation {
                scope: Scope::new(kind, scope),
                base: much,
                effective: much,
                overridden: false,
                carried: Credits::ZERO,
                least: much,
                most: much,
                overflow_cap: None,
                until: None,
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
        features: Vec::new(),
        enforcement: Enforcement::Hard,
        agent: None,
        connection: None,
        guardrails: Guardrails::default(),
        allocation_required: false,
    };
    (store, rules)
}

fn admission(rules: &Arc<Rules>, number: u64, nanos: i64) -> Admission {
    let ask = Ask {
        kind: RouteKind::Chat,
        model: Some("m".to_owned()),
        fallbacks: Vec::new(),
        stream: false,
        size: AskSize::default(),
    };
    let permit = decide(&master_key_context(None), &ask, Companions::default(), rules, SystemClock.now());
    Admission {
        permit: permit.expect("the model is allowed"),
        request_id: format!("{}-{number}", rules.account).into(),
        kind: RouteKind::Chat,
        subject: "bench".into(),
        model: "m".into(),
        guardrail: None,
        estimate: Some(Usd::from_nanos(nanos)),
        estimated_tokens: Tokens::default(),
    }
}

/// Allocations that draw on a lease which is larger than any round needs; what is settled goes nowhere.
async fn warm(store: Store, rules: &Arc<Rules>, journal: Option<Journal>) -> Allocations {
    let leases =
        LeaseConfig { enabled: true, heartbeat_ms: 3_600_000, lease_seconds: 36_000, ..LeaseConfig::default() };
    let (leases, keeper) = Leases::new(store.clone(), Arc::new(SystemClock), leases, journal.clone());
    keeper.begin().await.expect("the database answers");
    tokio::spawn(keeper.run());
    let (outbox, mut inbox, waiting) = Outbox::new();
    let (released, config) =
        (journal.clone(), AllocationConfig { max_waiting: usize::MAX, ..AllocationConfig::default() });
    tokio::spawn(async move {
        let mut batch = Vec::new();
        while inbox.recv_many(&mut batch, 1_000).await > 0 {
            waiting.fetch_sub(batch.len(), Ordering::Relaxed);
            let entries = batch.drain(..).map(|finished| finished.settlement().1.entry);
            if let Some(journal) = &released {
                journal.release(entries);
            } else {
                entries.for_each(drop);
            }
        }
    });
    let allocations = Allocations::with(store, Arc::new(SystemClock), &config, outbox, Some(leases), journal);
    let mut number = 1 << 40;
    while allocations.lease_counts().0 < 50 {
        number += 1;
        // Dear ones make a large slice.
        drop(allocations.reserve(admission(rules, number, 1_000_000_000)).await.expect("there are credits"));
    }
    allocations
}

/// How long so many warm reservations take on one thread, made ready before and given back after.
fn draw(allocations: &Allocations, rules: &Arc<Rules>, count: u64, first: u64) -> Duration {
    let mut all = Duration::ZERO;
    for round in 0..count.div_ceil(10_000) {
        let numbers = (round * 10_000..count.min((round + 1) * 10_000)).map(|number| first + number);
        let admissions: Vec<_> = numbers.map(|number| admission(rules, number, 1_000)).collect();
        let mut reservations = Vec::with_capacity(admissions.len());
        let begun = Instant::now();
        for admission in admissions {
            let made = allocations.reserve(admission).now_or_never().expect("it does not wait");
            reservations.push(made.expect("there are credits"));
        }
        all += begun.elapsed();
    }
    all
}

fn leased(c: &mut Criterion) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut group = c.benchmark_group("warm reservation, chain of four");
    for (name, journaled) in [("out of a lease", false), ("and in the journal", true)] {
        let url = format!("sqlite:{}", folder.path().join(format!("{journaled}.db")).display());
        let (store, rules) = runtime.block_on(prepare(url));
        let rules = Arc::new(rules);
        let journal = journaled.then(|| open(&folder.path().join("journal"), Fsync::Group));
        let allocations = runtime.block_on(warm(store, &rules, journal));
        for threads in [1, 2] {
            let (allocations, rules) = (&allocations, &rules);
            let next = AtomicU64::new(0);
            group.throughput(Throughput::Elements(threads));
            group.bench_function(format!("{name}, {threads} threads"), |b| {
                b.iter_custom(|count| {
                    std::thread::scope(|scope| {
                        let running: Vec<_> = (0..threads)
                            .map(|_| {
                                let first = next.fetch_add(count, Ordering::Relaxed);
                                scope.spawn(move || draw(allocations, rules, count, first))
                            })
                            .collect();
                        let times = running.into_iter().map(|thread| thread.join().expect("no panic"));
                        times.max().unwrap_or_default()
                    })
                });
            });
        }
    }
    group.finish();
}

fn open(folder: &std::path::Path, fsync: Fsync) -> Journal {
    let config = JournalConfig { fsync, max_bytes: 4 << 30, ..JournalConfig::default() };
    Journal::open(folder, &config, record::VERSION).expect("the folder is ours").0
}

/// Entries of 450 bytes, begun, finished and released.
fn journal(c: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (begun, finished) = ([7_u8; 450], [7_u8; 100]);
    let mut group = c.benchmark_group("journal, 450 + 100 bytes");
    for (name, fsync) in [("append, no fsync", Fsync::Off), ("append, group commit", Fsync::Group)] {
        let journal = open(&folder.path().join(name), fsync);
        group.bench_function(name, |b| {
            b.iter(|| {
                let entry = journal.begin(|out| out.extend_from_slice(&begun)).expect("the disk takes it");
                journal.finish(&entry, |out| out.extend_from_slice(&finished));
                journal.release([entry]);
            });
        });
    }
    let journal = open(&folder.path().join("always"), Fsync::Always);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    for together in [1, 64] {
        group.throughput(Throughput::Elements(together));
        group.bench_function(format!("on the disk before it returns, {together} at once"), |b| {
            b.to_async(&runtime).iter(|| async {
                let entry = async || {
                    let entry = journal.begin(|out| out.extend_from_slice(&begun)).expect("the disk takes it");
                    journal.synced(&entry).await.expect("the disk keeps it");
                    entry
                };
                let entries = futures_util::future::join_all((0..together).map(|_| entry())).await;
                journal.release(entries);
            });
        });
    }
    group.finish();
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
        // As in the gateway: it blocks the thread that it runs on.
        let handle = runtime.handle().clone();
        let settling = std::thread::spawn(move || handle.block_on(settler.run()));
        let next = AtomicU64::new(0);
        group.bench_function(name, |b| {
            b.to_async(&runtime).iter(|| async {
                let admission = admission(&rules, next.fetch_add(1, Ordering::Relaxed), 1_000);
                let reservation = allocations.reserve(admission).await.expect("there are credits");
                reservation.settle(Bill {
                    cost: Usd::from_nanos(900),
                    source: Some(CostSource::Header),
                    ..Bill::default()
                });
            });
        });
        drop(allocations);
        settling.join().expect("the settler ends");
    }
    group.finish();
}

criterion_group!(benches, leased, journal, reservations);
criterion_main!(benches);
