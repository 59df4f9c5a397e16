//! The ledger against a model of it: any sequence of what gateways, clocks and admins do leaves the rows that the
//! model says, caps that held at every admission, and books that balance after every step.
//!
//! `PROPTEST_CASES=2000 cargo test --test store ledger` for a longer run. A failure is shortened to the steps that
//! matter; its seed is kept in `tests/proptest-regressions` and is run first from then on.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use alchemi::clock::{Clock, ManualClock, Timestamp};
use alchemi::context::Domain;
use alchemi::credits::{Credits, Factor, Usd};
use alchemi::id::{Id, RandomIds};
use alchemi::model::accounts::Account;
use alchemi::model::usage::{CostSource, CounterKey, Dimensions, EntryKind, LedgerRow, RouteKind, Tokens};
use alchemi::policy::budget::Link;
use alchemi::store::leases::{Lease, LostLease, Taken};
use alchemi::store::ledger::{Hold, Settlement};
use alchemi::store::{DatabaseConfig, Store, StoreError, conservation, migrate};
use proptest::test_runner::{Config, TestRunner};
use proptest_state_machine::ReferenceStateMachine;

use crate::{Place, operator, places};

mod model;
use model::{ABANDONED_AFTER, ACCOUNTS, Action, Answer, GIVEN_UP_AFTER, Model, REMEMBERED, START};

/// Cases on SQLite, a fourth of them on PostgreSQL, and steps of each.
const CASES: u32 = 24;
const STEPS: std::ops::Range<usize> = 1..50;

#[test]
fn the_ledger_does_what_its_model_does() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for place in runtime.block_on(places()) {
        let mut config = Config { max_shrink_iters: 2_000, source_file: Some(file!()), ..Config::default() };
        // As proptest reads it, but for another default.
        if std::env::var_os("PROPTEST_CASES").is_none() {
            config.cases = if place.is_postgres() { CASES / 4 } else { CASES };
        }
        let books = runtime.block_on(Books::open(&place));
        let steps = Model::sequential_strategy(STEPS);
        let outcome = TestRunner::new(config).run(&steps, |(mut model, steps, seen)| {
            runtime.block_on(books.reset(&model));
            for step in steps {
                if let Some(seen) = &seen {
                    seen.fetch_add(1, Ordering::SeqCst);
                }
                runtime.block_on(books.step(&mut model, &step));
            }
            for step in model.ending() {
                runtime.block_on(books.step(&mut model, &step));
            }
            assert!(!model.rows().iter().any(|row| row.starts_with("reservation") || row.starts_with("lease")), "I5");
            Ok(())
        });
        if let Err(failure) = outcome {
            panic!("on {}: {failure}", place.kind());
        }
    }
}

/// The system under test.
struct Books<'a> {
    place: &'a Place,
    store: Store,
    clock: Arc<ManualClock>,
}

impl<'a> Books<'a> {
    async fn open(place: &'a Place) -> Self {
        let clock = Arc::new(ManualClock::at(at(0)));
        let config = DatabaseConfig { url: place.url.clone(), max_connections: 4, ..DatabaseConfig::default() };
        let store = Store::open(&config, Arc::<ManualClock>::clone(&clock), Arc::new(RandomIds)).await.unwrap();
        migrate::apply(&store).await.unwrap();
        Self { place, store, clock }
    }

    /// An empty ledger, and the model's accounts.
    async fn reset(&self, model: &Model) {
        let tables = ["AllocationLease", "LeaseHolder", "AllocationReservation", "AllocationCounter", "UsageLedger"];
        let deletes = tables.iter().chain(&["UsageRollup", "UsageTotal", "Account"]);
        let sql: Vec<_> = deletes.map(|table| format!(r#"DELETE FROM "Alchemi_{table}Table";"#)).collect();
        self.place.run(&sql.concat()).await;
        self.clock.set(at(0));
        for n in 0..ACCOUNTS {
            self.insert(&model.account(n)).await;
        }
    }

    async fn insert(&self, account: &str) {
        let mut tx = self.store.begin(&operator()).await.unwrap();
        let account = Account::new(account.parse().unwrap(), account.to_owned(), None, tx.now());
        tx.insert_account(&account).await.unwrap();
        tx.commit().await.unwrap();
    }

    /// One step, on both, and everything compared.
    async fn step(&self, model: &mut Model, step: &model::Step) {
        let action = model.resolve(step);
        let expected = model.perform(&action);
        let answer = self.perform(&action).await;
        assert_eq!(answer, expected, "{action:?}");
        assert_eq!(self.rows().await, model.rows(), "{action:?}");
        assert_eq!(model.violations(), [] as [String; 0], "{action:?}");
        let report = conservation::verify(&self.store).await.unwrap();
        assert_eq!(report.differences, [], "{action:?}");
    }

    async fn perform(&self, action: &Action) -> Answer {
        match action {
            Action::Nothing => Answer::Nothing,
            Action::Reserve { request, links, soft } => Answer::Yes(self.reserve(request, links, *soft).await),
            Action::Take { lease, amount } => {
                let mut tx = self.store.begin(&operator().over(id(&lease.account))).await.unwrap();
                match tx.take_lease(&slice(lease, *amount)).await.unwrap() {
                    Taken::Yes => {
                        tx.commit().await.unwrap();
                        Answer::Taken("yes")
                    }
                    Taken::Short => Answer::Taken("short"),
                    Taken::Fenced => Answer::Taken("fenced"),
                }
            }
            Action::Return { lease, amount } => Answer::Yes(self.give_back(lease, *amount).await),
            Action::Close { lease } => {
                if lease.free > 0 {
                    self.give_back(lease, lease.free).await;
                }
                let mut tx = self.store.begin(&operator().over(id(&lease.account))).await.unwrap();
                if tx.close_leases(&[slice(lease, 0)]).await.unwrap().is_empty() {
                    tx.reverse_lost_lease(&lease.id).await.unwrap();
                }
                tx.commit().await.unwrap();
                Answer::Nothing
            }
            Action::Settle { batch } => self.settle(batch).await,
            Action::ChargeAbandoned => self.charge_abandoned().await,
            Action::Sweep { charge } => self.sweep(if *charge { LostLease::Charge } else { LostLease::Release }).await,
            Action::Fence { .. } | Action::Renew { .. } | Action::Begin { .. } | Action::Forget => {
                self.look_after_holders(action).await
            }
            Action::Record { id: key, account, links, amount } => {
                let mut tx = self.store.begin(&operator().over(id(account))).await.unwrap();
                let mut row = row(key, account, *amount, tx.now());
                row.entry = if *amount < 0 { EntryKind::Adjustment } else { EntryKind::Usage };
                let recorded = tx.record(&row, links).await.unwrap();
                tx.commit().await.unwrap();
                Answer::Yes(recorded)
            }
            Action::Pass { seconds } => {
                self.clock.advance(Duration::from_secs(*seconds));
                Answer::Nothing
            }
            Action::Remove { account, next } => {
                let mut tx = self.store.begin(&operator().over(id(account))).await.unwrap();
                let removed = tx.delete_account().await.unwrap();
                tx.commit().await.unwrap();
                self.insert(next).await;
                Answer::Yes(removed)
            }
        }
    }

    async fn reserve(&self, request: &model::Request, links: &[Link], soft: bool) -> bool {
        let mut tx = self.store.begin(&operator().over(id(&request.account))).await.unwrap();
        let detail = serde_json::json!({"counters": request.counters, "held": request.held}).to_string();
        let hold = Hold {
            request_id: &request.id,
            links,
            amount: Credits::from_nanos(request.hold),
            over_cap: soft,
            detail: &detail,
            expires_at: tx.now().plus(Duration::from_secs(ABANDONED_AFTER)),
        };
        let held = tx.reserve(&hold).await.unwrap();
        if held {
            tx.commit().await.unwrap();
        }
        held
    }

    async fn give_back(&self, lease: &model::Lease, amount: i64) -> bool {
        let mut tx = self.store.begin(&operator().over(id(&lease.account))).await.unwrap();
        let open = tx.return_lease(&slice(lease, amount)).await.unwrap();
        tx.commit().await.unwrap();
        open
    }

    /// As a settler does: all together, or, where an account is gone, each alone.
    async fn settle(&self, batch: &[(model::Request, i64)]) -> Answer {
        let batch: Vec<_> = batch.iter().map(|(request, cost)| settlement(request, *cost, self.clock.now())).collect();
        let mut tx = self.store.begin(&operator()).await.unwrap();
        match tx.settle(&batch).await {
            Ok(fresh) => {
                tx.commit().await.unwrap();
                return Answer::Settled(fresh, 0);
            }
            Err(StoreError::ForeignKey) => drop(tx),
            Err(error) => panic!("{error}"),
        }
        let (mut fresh, mut orphans) = (0, 0);
        for one in batch.chunks(1) {
            let mut tx = self.store.begin(&operator()).await.unwrap();
            match tx.settle(one).await {
                Ok(new) => fresh += new,
                Err(StoreError::ForeignKey) => {
                    drop(tx);
                    tx = self.store.begin(&operator()).await.unwrap();
                    let new = tx.settle_orphans(one).await.unwrap();
                    (fresh, orphans) = (fresh + new, orphans + new);
                }
                Err(error) => panic!("{error}"),
            }
            tx.commit().await.unwrap();
        }
        Answer::Settled(fresh, orphans)
    }

    /// Reservations that nobody settled are charged at what they hold.
    async fn charge_abandoned(&self) -> Answer {
        let mut tx = self.store.begin(&operator()).await.unwrap();
        let abandoned = tx.abandoned(1_000).await.unwrap();
        let settlements = abandoned.iter().map(|row| {
            #[derive(serde::Deserialize)]
            struct Detail {
                counters: Vec<CounterKey>,
                held: Vec<CounterKey>,
            }
            let Detail { counters, held } = serde_json::from_str(&row.detail).unwrap();
            let written = self::row(&row.request_id, row.account_id.as_str(), row.amount.nanos(), tx.now());
            Settlement { row: written, counters, held, hold: row.amount, lease: None, reserved: true }
        });
        let settlements: Vec<_> = settlements.collect();
        assert_eq!(tx.settle(&settlements).await.unwrap(), settlements.len());
        tx.commit().await.unwrap();
        let mut ids: Vec<_> = abandoned.into_iter().map(|row| row.request_id).collect();
        ids.sort();
        Answer::Abandoned(ids)
    }

    async fn sweep(&self, lost: LostLease) -> Answer {
        let mut tx = self.store.begin(&operator()).await.unwrap();
        for holder in tx.lease_holders().await.unwrap() {
            tx.fence_silent_lease_holder(&holder).await.unwrap();
        }
        let mut ended = Vec::new();
        for orphan in tx.orphaned_leases(None, 1_000).await.unwrap() {
            let charged = tx.end_orphan(&orphan, lost).await.unwrap().expect("nobody else ends it");
            assert_eq!(tx.end_orphan(&orphan, lost).await.unwrap(), None, "once");
            ended.push((orphan.lease_id, charged.nanos()));
        }
        tx.commit().await.unwrap();
        ended.sort();
        Answer::Swept(ended)
    }

    async fn look_after_holders(&self, action: &Action) -> Answer {
        let mut tx = self.store.begin(&operator()).await.unwrap();
        let until = tx.now().plus(Duration::from_secs(GIVEN_UP_AFTER));
        let before = tx.now().minus(Duration::from_secs(REMEMBERED));
        let answer = match action {
            Action::Fence { holder } => tx.fence_lease_holder(holder).await.map(|()| Answer::Nothing),
            Action::Renew { holder } => tx.renew_lease_holder(holder, until).await.map(Answer::Yes),
            Action::Begin { holder } => tx.insert_lease_holder(holder, until).await.map(|()| Answer::Nothing),
            _ => tx.forget_lost_leases(before).await.map(|()| Answer::Nothing),
        };
        tx.commit().await.unwrap();
        answer.unwrap()
    }

    /// Every row, as the model tells them.
    async fn rows(&self) -> Vec<String> {
        let sql = r#"
            SELECT 'counter ' || account_id || ' ' || scope_type || ' ' || scope_id || ' ' || window_start || ': '
                   || used || ' ' || leased || ' of ' || cap FROM "Alchemi_AllocationCounterTable"
            UNION ALL SELECT 'row ' || request_id || ': ' || credits_incurred FROM "Alchemi_UsageLedgerTable"
            UNION ALL SELECT 'reservation ' || request_id || ': ' || amount FROM "Alchemi_AllocationReservationTable"
            UNION ALL SELECT 'lease ' || lease_id || ': ' || amount FROM "Alchemi_AllocationLeaseTable"
                      WHERE state = 'open'"#;
        let mut rows = self.place.texts(sql).await;
        // What comes back late has an id that the store makes.
        for row in &mut rows {
            if let Some((lease, rest)) = row.split_once(":returned:") {
                *row = format!("{lease}:returned: {}", rest.rsplit(' ').next().unwrap());
            }
        }
        rows.sort();
        rows
    }
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_secs(i64::try_from(START).unwrap() + seconds)
}

fn id(account: &str) -> Id<Account> {
    account.parse().unwrap()
}

fn slice(lease: &model::Lease, amount: i64) -> Lease<'_> {
    let amount = Credits::from_nanos(amount);
    Lease { id: &lease.id, holder: &lease.holder, domain: Domain::Copilot, links: &lease.links, amount }
}

fn settlement(request: &model::Request, cost: i64, now: Timestamp) -> Settlement {
    Settlement {
        row: row(&request.id, &request.account, cost, now),
        counters: request.counters.clone(),
        held: request.held.clone(),
        hold: Credits::from_nanos(request.hold),
        lease: request.lease.as_deref().map(Arc::from),
        reserved: request.lease.is_none(),
    }
}

fn row(request_id: &str, account: &str, credits: i64, now: Timestamp) -> LedgerRow {
    LedgerRow {
        request_id: request_id.to_owned(),
        account_id: id(account),
        kind: RouteKind::Chat,
        entry: EntryKind::Usage,
        domain: Domain::Copilot,
        dimensions: Dimensions::default(),
        tokens: Tokens { input: 1, output: 2, ..Tokens::default() },
        raw_cost: Usd::from_nanos(credits),
        credit_factor: Factor::ONE,
        credits: Credits::from_nanos(credits),
        cost_source: CostSource::Header,
        marks: String::new(),
        upstream_call_id: None,
        status: 200,
        duration_us: 1,
        plan_id: None,
        cycle_start: None,
        metadata: "{}".to_owned(),
        day: now.to_string()[..10].to_owned(),
        created_at: now,
    }
}
