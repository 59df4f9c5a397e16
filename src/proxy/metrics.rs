//! What the gateway counts, with labels of bounded cardinality: kinds of routes,
//! codes of decisions, classes of statuses. Never a model, an account or a user.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::model::usage::RouteKind;

/// A decision on a kind of route.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Decided {
    kind: &'static str,
    code: &'static str,
}

/// An upstream's answer on a kind of route.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    kind: &'static str,
    status: u16,
}

/// The gateway's own metrics.
#[derive(Debug, Clone)]
pub struct GatewayMetrics {
    requests: Family<Decided, Counter>,
    upstream: Family<Answered, Counter>,
    own_time: Histogram,
    upstream_time: Histogram,
    in_flight: Gauge,
}

/// Seconds; from a tenth of a millisecond.
const OWN: [f64; 10] = [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.25, 1.0];
const UPSTREAM: [f64; 11] = [0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0];

impl Default for GatewayMetrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            upstream: Family::default(),
            own_time: Histogram::new(OWN),
            upstream_time: Histogram::new(UPSTREAM),
            in_flight: Gauge::default(),
        }
    }
}

impl GatewayMetrics {
    /// Registers all of them under `alchemi_`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("requests", "Requests by kind of route and code of the decision", self.requests.clone());
        registry.register(
            "upstream_responses",
            "Answers of the upstream by kind of route and status",
            self.upstream.clone(),
        );
        registry.register(
            "gateway_seconds",
            "Time from a request's head to its forwarding, in seconds",
            self.own_time.clone(),
        );
        registry.register(
            "upstream_seconds",
            "Time from forwarding to the head of the answer, in seconds",
            self.upstream_time.clone(),
        );
        registry.register(
            "requests_in_flight",
            "Governed requests that are not answered to the end",
            self.in_flight.clone(),
        );
    }

    pub(super) fn decided(&self, kind: Option<RouteKind>, code: &'static str) {
        self.requests.get_or_create(&Decided { kind: kind.map_or("other", RouteKind::as_str), code }).inc();
    }

    pub(super) fn forwarded(&self, after: Duration) {
        self.own_time.observe(after.as_secs_f64());
    }

    pub(super) fn answered(&self, kind: RouteKind, status: u16, after: Duration) {
        self.upstream.get_or_create(&Answered { kind: kind.as_str(), status }).inc();
        self.upstream_time.observe(after.as_secs_f64());
    }

    pub(super) fn enter(&self) -> InFlight {
        self.in_flight.inc();
        InFlight(self.in_flight.clone())
    }
}

/// Counts a request as in flight until it is dropped.
#[derive(Debug)]
pub(super) struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}
