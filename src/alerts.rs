//! Alerts that are pushed: who looks at budgets, and who delivers what was found.
//!
//! Looking and delivering are two steps with a table between them. Any number of
//! gateways do both; the database sees to it that each threshold of each budget is
//! written down once in each window, and that one gateway at a time tries a message.
//! A message is signed as [Standard Webhooks](https://www.standardwebhooks.com) says,
//! and has the same id in every attempt: it arrives at least once, and the receiver
//! knows it again.
//!
//! Looking goes by what counters hold, not by events: what happened while no gateway
//! ran is found by the next one. A window that has ended is looked at for a day more,
//! because what was admitted in it may settle later.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;

use crate::clock::{SharedClock, Timestamp};
use crate::context::Granted;
use crate::outbound::{self, Lookup, OutboundRules};
use crate::secret::KeyRing;
use crate::store::changes::ChangeKind;
use crate::store::{Store, StoreError};

mod delivery;
mod observer;

/// How alerts are found and delivered. Durations are milliseconds.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AlertConfig {
    /// How often counters that have changed are looked at.
    pub observe_ms: u64,
    /// How often messages that are due are looked for.
    pub deliver_ms: u64,
    /// How long a receiver may take to answer.
    pub timeout_ms: u64,
    /// How often a message is tried.
    pub attempts: u32,
    /// The pause after the first attempt; each further one is twice as long.
    pub retry_ms: u64,
    /// The longest pause.
    pub longest_retry_ms: u64,
    /// For how many days messages are kept that are done with.
    pub keep_days: u64,
}

impl Default for AlertConfig {
    fn default() -> Self {
        Self {
            observe_ms: 5_000,
            deliver_ms: 1_000,
            timeout_ms: 10_000,
            attempts: 16,
            retry_ms: 5_000,
            longest_retry_ms: 4 * 3_600_000,
            keep_days: 30,
        }
    }
}

/// How often it is asked whether there is a webhook, whatever the change feed says.
const ASK_EVERY: Duration = Duration::from_secs(60);

/// How often it is looked for messages to forget.
const FORGET_EVERY: Duration = Duration::from_secs(3_600);

/// What was done, for metrics.
#[derive(Debug, Default)]
pub struct AlertCounts {
    reached: AtomicU64,
    delivered: AtomicU64,
    failures: AtomicU64,
    given_up: AtomicU64,
}

impl AlertCounts {
    /// Thresholds that this process found reached.
    pub fn reached(&self) -> u64 {
        self.reached.load(Ordering::Relaxed)
    }

    /// Messages that it delivered.
    pub fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    /// Its attempts that failed.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Messages that it gave up.
    pub fn given_up(&self) -> u64 {
        self.given_up.load(Ordering::Relaxed)
    }
}

/// Finds alerts and delivers them.
pub struct Alerts {
    store: Store,
    clock: SharedClock,
    keys: KeyRing,
    rules: OutboundRules,
    client: reqwest::Client,
    config: AlertConfig,
    counts: Arc<AlertCounts>,
    /// Whether an account has a webhook.
    needed: AtomicBool,
    /// That may have changed.
    changed: Arc<Notify>,
}

impl fmt::Debug for Alerts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Alerts").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Alerts {
    /// Alerts of `store`, whose secrets are under `keys`, sent to where `rules` allow.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(
        store: Store,
        clock: SharedClock,
        keys: KeyRing,
        rules: OutboundRules,
        config: AlertConfig,
    ) -> Result<Self, reqwest::Error> {
        let patience = Duration::from_millis(config.timeout_ms.max(1));
        let client = outbound::client(rules.clone(), Lookup::system())
            .timeout(patience)
            .user_agent(concat!("alchemi/", env!("CARGO_PKG_VERSION")))
            .build()?;
        let changed = Arc::new(Notify::new());
        let told = Arc::clone(&changed);
        store.on_change(move |change| {
            if matches!(change.kind, ChangeKind::Alerts | ChangeKind::Everything) {
                told.notify_one();
            }
        });
        let (counts, needed) = (Arc::default(), AtomicBool::new(false));
        Ok(Self { store, clock, keys, rules, client, config, counts, needed, changed })
    }

    /// What was done, for metrics.
    pub fn counts(&self) -> Arc<AlertCounts> {
        Arc::clone(&self.counts)
    }

    /// Looks and delivers until it is dropped; while no account has a webhook, it does neither.
    pub async fn run(self) {
        let forget = u64::try_from(FORGET_EVERY.as_millis()).unwrap_or(u64::MAX);
        // Side by side: a receiver that does not answer keeps nobody from looking.
        tokio::join!(
            self.know_whether_to(),
            self.repeat(self.config.observe_ms, || self.observe(), "budgets cannot be looked at for alerts"),
            self.repeat(self.config.deliver_ms, || self.deliver(), "alerts cannot be delivered"),
            self.repeat(forget, || self.forget(), "old alerts cannot be forgotten"),
        );
    }

    /// Finds out whether there is a webhook, whenever that may have changed.
    async fn know_whether_to(&self) {
        loop {
            let any = async { self.store.read(&Granted::system()).await?.has_alert_webhooks().await };
            match any.await {
                Ok(any) => self.needed.store(any, Ordering::Relaxed),
                Err(error) => report(&error, "it cannot be found out whether there are alert webhooks"),
            }
            let _ = tokio::time::timeout(ASK_EVERY, self.changed.notified()).await;
        }
    }

    async fn repeat<F>(&self, every_ms: u64, what: impl Fn() -> F, failed: &'static str)
    where
        F: Future<Output = Result<(), StoreError>>,
    {
        let mut tick = tokio::time::interval(Duration::from_millis(every_ms.max(1)));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if self.needed.load(Ordering::Relaxed)
                && let Err(error) = what().await
            {
                report(&error, failed);
            }
        }
    }

    async fn forget(&self) -> Result<(), StoreError> {
        let days = Duration::from_secs(self.config.keep_days.saturating_mul(24 * 3_600));
        let mut tx = self.store.begin(&Granted::system()).await?;
        let before: Timestamp = tx.now().minus(days);
        tx.forget_alert_deliveries(before).await?;
        tx.commit().await
    }
}

fn report(error: &StoreError, what: &'static str) {
    tracing::warn!(error = error as &dyn std::error::Error, "{what}; trying again");
}
