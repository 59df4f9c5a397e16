use std::sync::Arc;

use super::ledger::{Hold, Settlement};
use super::{DatabaseConfig, Store, migrate};
use crate::clock::{ManualClock, Timestamp};
use crate::context::{Domain, Granted};
use crate::credits::{Credits, Factor, Usd};
use crate::id::{Id, RandomIds};
use crate::model::accounts::Account;
use crate::model::budgets::Window;
use crate::model::scope::{Scope, ScopeType};
use crate::model::usage::{CostSource, CounterKey, Dimensions, EntryKind, LedgerRow, RouteKind, Tokens};
use crate::policy::budget::Link;

/// A fresh database, with a clock of its own.
pub(crate) struct Fresh {
    pub(crate) store: Store,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) config: DatabaseConfig,
    _folder: tempfile::TempDir,
}

/// One of each kind that there is and that this build knows.
pub(crate) async fn databases() -> Vec<Fresh> {
    let mut all: Vec<Fresh> = Vec::new();
    #[cfg(feature = "sqlite")]
    all.extend([sqlite().await]);
    #[cfg(feature = "postgres")]
    if let Some(url) = super::postgres::database().await {
        all.push(open(url, tempfile::tempdir().unwrap()).await);
    }
    all
}

pub(crate) async fn sqlite() -> Fresh {
    let folder = tempfile::tempdir().unwrap();
    open(format!("sqlite:{}", folder.path().join("alchemi.db").display()), folder).await
}

async fn open(url: String, folder: tempfile::TempDir) -> Fresh {
    let config = DatabaseConfig { url, acquire_timeout_ms: 10_000, ..DatabaseConfig::default() };
    let clock = Arc::new(ManualClock::at(Timestamp::from_secs(1_800_000_000)));
    let store = Store::open(&config, Arc::<ManualClock>::clone(&clock), Arc::new(RandomIds)).await.unwrap();
    migrate::apply(&store).await.unwrap();
    Fresh { store, clock, config, _folder: folder }
}

impl Fresh {
    pub(crate) async fn account(&self, name: &str) -> Id<Account> {
        let mut tx = self.store.begin(&Granted::system()).await.unwrap();
        let account = Account::new(tx.new_id(), name.to_owned(), None, tx.now());
        tx.insert_account(&account).await.unwrap();
        tx.commit().await.unwrap();
        account.account_id
    }

    pub(crate) async fn remove(&self, account: &Id<Account>) {
        let mut tx = self.store.begin(&Granted::system().over(account.clone())).await.unwrap();
        assert!(tx.delete_account().await.unwrap());
        tx.commit().await.unwrap();
    }

    /// Changes the database behind everybody's back.
    pub(crate) async fn spoil(&self, sql: &'static str) {
        let mut tx = self.store.begin(&Granted::system()).await.unwrap();
        super::run!(tx, sql).unwrap();
        tx.commit().await.unwrap();
    }

    /// Holds `credits` on the account for an hour.
    pub(crate) async fn reserve(&self, account: &Id<Account>, request_id: &str, credits: i64) {
        let counter = counter(account);
        let window = Window { start: Timestamp::from_micros(counter.window_start), end: None };
        let links = [Link { scope: counter.scope.clone(), cap: Some(Credits::MAX), window }];
        let detail = serde_json::json!({
            "kind": "chat", "domain": "copilot", "dimensions": Dimensions::default(),
            "counters": [counter], "held": [counter], "over_cap": false, "factor": Factor::from_nanos(1000 * NANO),
            "estimate": Usd::from_nanos(credits * NANO / 1000), "estimated_tokens": Tokens::default(),
            "plan_id": null, "cycle_start": null, "zone": "UTC",
        });
        let mut tx = self.store.begin(&Granted::system().over(account.clone())).await.unwrap();
        let hold = Hold {
            request_id,
            links: &links,
            amount: Credits::from_nanos(credits * NANO),
            over_cap: false,
            detail: &detail.to_string(),
            expires_at: tx.now().plus(std::time::Duration::from_secs(3600)),
        };
        assert!(tx.reserve(&hold).await.unwrap());
        tx.commit().await.unwrap();
    }
}

const NANO: i64 = 1_000_000_000;

fn counter(account: &Id<Account>) -> CounterKey {
    CounterKey { scope: Scope::new(ScopeType::Account, account.as_str()), window_start: 0 }
}

/// A request of `account` that held nothing.
pub(crate) fn settlement(account: &Id<Account>, request_id: &str, credits: i64) -> Settlement {
    let row = LedgerRow {
        request_id: request_id.to_owned(),
        account_id: account.clone(),
        kind: RouteKind::Chat,
        entry: EntryKind::Usage,
        domain: Domain::Copilot,
        dimensions: Dimensions { model_name: Some("gpt-4o-mini".to_owned()), ..Dimensions::default() },
        tokens: Tokens { input: 10, output: 20, ..Tokens::default() },
        raw_cost: Usd::from_nanos(credits * NANO / 1000),
        credit_factor: Factor::from_nanos(1000 * NANO),
        credits: Credits::from_nanos(credits * NANO),
        cost_source: CostSource::Header,
        marks: String::new(),
        upstream_call_id: None,
        status: 200,
        duration_us: 1,
        plan_id: None,
        cycle_start: None,
        metadata: "{}".to_owned(),
        day: "2027-01-15".to_owned(),
        created_at: Timestamp::from_secs(1_800_000_000),
    };
    Settlement {
        row,
        counters: vec![counter(account)],
        held: Vec::new(),
        hold: Credits::ZERO,
        lease: None,
        reserved: true,
    }
}

impl crate::store::Tx<crate::context::Platform> {
    /// `(request_id, cost_source, credits in nanos)` of the whole ledger.
    pub(crate) async fn ledger(&mut self) -> Vec<(String, CostSource, i64)> {
        super::on!(self, |c| sqlx::query_as(
            r#"SELECT request_id, cost_source, credits_incurred FROM "Alchemi_UsageLedgerTable" ORDER BY request_id"#
        )
        .fetch_all(c)
        .await)
        .unwrap()
    }
}
