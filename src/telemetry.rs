//! Logs, metrics and traces.

use std::fmt::Write;
use std::io::IsTerminal;
use std::sync::Arc;

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use crate::alerts::AlertCounts;
use crate::allocation::Allocations;
use crate::allocation::rules::RuleBook;
use crate::config::{LogConfig, LogFormat, TelemetryConfig};
use crate::identity::Identity;
use crate::journal::{Counts, Journal};
use crate::metering::settler::SettlerCounts;
use crate::proxy::balance::Balancer;
use crate::proxy::metrics::GatewayMetrics;
use crate::store::Store;
use crate::store::conservation::{Check, LastCheck};
use crate::zitadel::ManagementMetrics;

mod otlp;

use otlp::Tracer;
pub(crate) use otlp::{adopt, push_metrics};

/// What sends spans until the process ends.
#[derive(Debug)]
#[must_use = "spans that wait are sent by `stop`"]
pub struct Tracing(Option<Tracer>);

impl Tracing {
    /// Sends the spans that wait; takes some seconds when the collector is away.
    pub fn stop(self) {
        if let Some(tracer) = self.0 {
            tracer.stop();
        }
    }
}

/// Which log lines are written.
///
/// # Errors
/// When the filter cannot be read.
pub(crate) fn filter(config: &LogConfig) -> Result<EnvFilter, String> {
    let filter = if config.filter.is_empty() { "info" } else { config.filter.as_str() };
    filter.parse().map_err(|error| format!("log.filter (RUST_LOG) = {filter:?} is no filter: {error}"))
}

/// Sends log lines to standard error, in the form that the configuration says, and spans
/// to the collector, if it names one. A process that has a subscriber already keeps it.
///
/// # Errors
/// When the filter cannot be read, or the collector's address is none.
pub fn start(config: &LogConfig, telemetry: &TelemetryConfig) -> Result<Tracing, String> {
    let filter = filter(config)?;
    // Colours are for people: a file or a collector gets none.
    let colours = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt::layer().with_ansi(colours).with_writer(std::io::stderr);
    let lines = match config.format {
        LogFormat::Text => lines.with_filter(filter).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_filter(filter).boxed(),
    };
    let tracer = Tracer::new(telemetry)?;
    let traces = tracer.as_ref().map(Tracer::layer);
    let _ = tracing_subscriber::registry().with(lines).with(traces).try_init();
    Ok(Tracing(tracer))
}

/// Everything that `/metrics` shows.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    identity: Identity,
    rules: RuleBook,
    allocations: Allocations,
    settler: Arc<SettlerCounts>,
    alerts: Arc<AlertCounts>,
    balancer: Arc<Balancer>,
    store: Store,
    journal: Option<Journal>,
    books: LastCheck,
}

impl Metrics {
    /// The gateway's metrics, and counts that the parts keep themselves.
    pub fn new(
        gateway: &GatewayMetrics,
        identity: Identity,
        rules: RuleBook,
        allocations: Allocations,
        settler: Arc<SettlerCounts>,
        balancer: Arc<Balancer>,
        store: Store,
    ) -> Self {
        let mut registry = Registry::with_prefix("alchemi");
        gateway.register(&mut registry);
        let (alerts, journal, books) = (Arc::default(), None, LastCheck::default());
        Self { registry, identity, rules, allocations, settler, alerts, balancer, store, journal, books }
    }

    /// With the journal's.
    #[must_use]
    pub fn with_journal(self, journal: Option<Journal>) -> Self {
        Self { journal, ..self }
    }

    /// With what checks of the ledger find.
    #[must_use]
    pub fn with_books(self, books: LastCheck) -> Self {
        Self { books, ..self }
    }

    /// With what becomes of alerts.
    #[must_use]
    pub fn with_alerts(self, alerts: Arc<AlertCounts>) -> Self {
        Self { alerts, ..self }
    }

    /// With calls of Zitadel's management API.
    #[must_use]
    pub fn with_management(mut self, management: &ManagementMetrics) -> Self {
        management.register(&mut self.registry);
        self
    }

    /// The text format of OpenMetrics.
    pub fn text(&self) -> String {
        let mut text = String::with_capacity(8 * 1024);
        // Writing into a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        let end = text.rfind("# EOF").unwrap_or(text.len());
        text.truncate(end);
        for (name, help, value) in self.counters() {
            let _ = writeln!(
                text,
                "# HELP alchemi_{name} {help}.\n# TYPE alchemi_{name} counter\nalchemi_{name}_total {value}"
            );
        }
        for (name, help, value) in self.gauges() {
            let _ =
                writeln!(text, "# HELP alchemi_{name} {help}.\n# TYPE alchemi_{name} gauge\nalchemi_{name} {value}");
        }
        text.push_str("# EOF\n");
        text
    }

    fn counters(&self) -> [(&'static str, &'static str, u64); 26] {
        let identity = self.identity.counts();
        let (reserved, exhausted) = self.allocations.counts();
        let (over_cap, would_refuse) = self.allocations.over_cap_counts();
        let (drawn, refills) = self.allocations.lease_counts();
        let journal = self.journal_counts();
        [
            ("token_cache_hits", "Tokens answered from the cache", identity.cache_hits),
            ("token_cache_misses", "Tokens that were not", identity.cache_misses),
            ("signature_checks", "Signatures checked", identity.signature_checks),
            ("jwks_fetches", "Key sets asked for", identity.key_fetches),
            ("introspections", "Introspection requests sent", identity.introspections),
            ("token_revalidations", "Signed tokens that the issuer was asked about again", identity.revalidations),
            ("token_revalidations_ended", "Those of them that it had ended", identity.revalidations_ended),
            ("rule_loads", "Reads of effective rules from the database", self.rules.loads()),
            ("reservations", "Reservations made", reserved),
            ("reservations_refused", "Reservations refused for want of credits", exhausted),
            ("reservations_over_cap", "Reservations made over a cap under soft enforcement", over_cap),
            ("reservations_shadowed", "Reservations made that hard enforcement would have refused", would_refuse),
            ("reservations_leased", "Reservations drawn from leases", drawn),
            ("lease_refills", "Times that leases were filled", refills),
            ("alerts_reached", "Thresholds of budgets found reached", self.alerts.reached()),
            ("alerts_delivered", "Messages to alert webhooks delivered", self.alerts.delivered()),
            ("alert_failures", "Attempts to deliver one that failed", self.alerts.failures()),
            ("alerts_given_up", "Messages to alert webhooks given up", self.alerts.given_up()),
            ("settlements", "Requests settled", self.settler.settled()),
            ("settlements_unpriced", "Requests settled whose model has no price", self.settler.unpriced()),
            ("settlement_failures", "Attempts to settle that failed", self.settler.failures()),
            ("journal_entries_begun", "Requests written down before they were sent", journal.begun),
            ("journal_errors", "Writes and syncs of the journal that failed", journal.errors),
            ("journal_syncs", "Times that the disk was told to keep the journal", journal.syncs),
            ("journal_sync_microseconds", "How long that took altogether", journal.sync_micros),
            ("statements", "Statements sent to the database", self.store.statements()),
        ]
    }

    fn journal_counts(&self) -> Counts {
        self.journal.as_ref().map(Journal::counts).unwrap_or_default()
    }

    fn gauges(&self) -> [(&'static str, &'static str, u64); 13] {
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let issuers = self.identity.status();
        let upstreams = self.balancer.status();
        let journal = self.journal_counts();
        let oldest = u64::try_from(self.settler.oldest_waits().as_millis()).unwrap_or(u64::MAX);
        let books = self.books.last();
        let of_books =
            |what: fn(&Check) -> i64| books.as_ref().map_or(0, |last| u64::try_from(what(last)).unwrap_or(0));
        [
            ("settlements_oldest_milliseconds", "How long the oldest of them has been tried", oldest),
            ("journal_bytes", "Bytes of the journal on the disk", journal.bytes),
            ("journal_segments", "Files of the journal", journal.segments),
            ("journal_entries", "Requests in it that are not in the ledger yet", journal.entries),
            (
                "journal_segments_left",
                "Files of an earlier process that could not be read into the ledger",
                journal.left,
            ),
            ("journal_slowest_sync_microseconds", "The longest of the last syncs", journal.slowest_sync_micros),
            (
                "ledger_differences",
                "Sums that did not fit when the ledger was last verified",
                of_books(|c| c.differences),
            ),
            ("ledger_rows_verified", "Rows of the ledger when it was last verified", of_books(|c| c.ledger_rows)),
            (
                "ledger_verified_timestamp_seconds",
                "When the ledger was last verified; 0 when it never was",
                of_books(|c| c.finished_at.as_micros() / 1_000_000),
            ),
            ("settlements_waiting", "Finished requests that are not in the ledger yet", self.settler.waiting()),
            ("jwks_keys", "Usable keys of all issuers", count(issuers.iter().map(|i| i.keys).sum())),
            (
                "jwks_stale_issuers",
                "Issuers whose keys are older than they should be",
                count(issuers.iter().filter(|i| i.stale_since.is_some()).count()),
            ),
            (
                "upstreams_available",
                "Upstreams that requests are sent to",
                count(upstreams.iter().filter(|u| u.is_available()).count()),
            ),
        ]
    }
}
