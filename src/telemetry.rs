//! Logs and metrics.

use std::fmt::Write;
use std::io::IsTerminal;
use std::sync::Arc;

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tracing_subscriber::EnvFilter;

use crate::allocation::Allocations;
use crate::allocation::rules::RuleBook;
use crate::config::{LogConfig, LogFormat};
use crate::identity::Identity;
use crate::metering::settler::SettlerCounts;
use crate::proxy::balance::Balancer;
use crate::proxy::metrics::GatewayMetrics;
use crate::store::Store;
use crate::zitadel::ManagementMetrics;

/// Sends log lines to standard error, in the form that the configuration says. A
/// process that has a subscriber already keeps it.
///
/// # Errors
/// When the filter cannot be read.
pub fn log_to_stderr(config: &LogConfig) -> Result<(), String> {
    let filter = if config.filter.is_empty() { "info" } else { config.filter.as_str() };
    let filter: EnvFilter =
        filter.parse().map_err(|error| format!("log.filter (RUST_LOG) = {filter:?} is no filter: {error}"))?;
    // Colours are for people: a file or a collector gets none.
    let colours = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr);
    let _ = match config.format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    Ok(())
}

/// Everything that `/metrics` shows.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    identity: Identity,
    rules: RuleBook,
    allocations: Allocations,
    settler: Arc<SettlerCounts>,
    balancer: Arc<Balancer>,
    store: Store,
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
        Self { registry, identity, rules, allocations, settler, balancer, store }
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

    fn counters(&self) -> [(&'static str, &'static str, u64); 15] {
        let identity = self.identity.counts();
        let (reserved, exhausted) = self.allocations.counts();
        let (drawn, refills) = self.allocations.lease_counts();
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
            ("reservations_leased", "Reservations drawn from leases", drawn),
            ("lease_refills", "Times that leases were filled", refills),
            ("settlements", "Requests settled", self.settler.settled()),
            ("settlement_failures", "Attempts to settle that failed", self.settler.failures()),
            ("statements", "Statements sent to the database", self.store.statements()),
        ]
    }

    fn gauges(&self) -> [(&'static str, &'static str, u64); 4] {
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let issuers = self.identity.status();
        let upstreams = self.balancer.status();
        [
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
