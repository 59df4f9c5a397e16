//! One request on its way through the gateway.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use http::StatusCode;
use tracing::Span;
use tracing::field::Empty;

use super::ingress::{Arrival, RequestId};
use crate::id::Id;
use crate::model::accounts::Account;
use crate::policy::Rules;

/// A request that was let in, with what is known before its headers are read.
#[derive(Debug)]
pub struct Exchange {
    /// Our id of it.
    pub id: RequestId,
    /// Where it came from.
    pub arrival: Arrival,
    /// When its head was complete.
    pub received: Instant,
    /// Whose request it is, once that is known.
    account: OnceLock<Id<Account>>,
    wait: OnceLock<Duration>,
    span: Span,
}

impl Exchange {
    /// A request that was let in; its span is on at the level `debug`.
    pub fn new(id: RequestId, arrival: Arrival, received: Instant) -> Self {
        let id = id.correlated(arrival.correlation_id.clone());
        let span = tracing::debug_span!(
            "request",
            otel.kind = "server",
            otel.status_code = Empty,
            request_id = id.as_str(),
            correlation_id = id.correlation(),
            kind = Empty,
            account = Empty,
            subject = Empty,
            domain = Empty,
            team = Empty,
            decision = Empty,
            status = Empty,
        );
        Self { id, arrival, received, account: OnceLock::new(), wait: OnceLock::new(), span }
    }

    /// Whose request it is, once that is known.
    pub(super) fn account(&self) -> Option<&Id<Account>> {
        self.account.get()
    }

    /// What every event and every call of this request's work is found by.
    pub(crate) fn span(&self) -> &Span {
        &self.span
    }

    /// Notes what became of it.
    pub(crate) fn answered(&self, kind: &str, decision: &str, status: StatusCode) {
        if self.span.is_disabled() {
            return;
        }
        self.span.record("kind", kind).record("decision", decision).record("status", status.as_u16());
        if status.is_server_error() {
            self.span.record("otel.status_code", "ERROR");
        }
    }

    /// Notes whose it is, and for which place there.
    pub(super) fn belongs_to(&self, rules: &Rules, subject: &str) {
        if self.account.set(rules.account.clone()).is_err() || self.span.is_disabled() {
            return;
        }
        self.span.record("account", rules.account.as_str()).record("subject", subject);
        self.span.record("domain", rules.domain.as_str());
        if let Some(team) = &rules.placement.team {
            self.span.record("team", team.as_str());
        }
    }

    /// Notes for how long it has waited for its client's body.
    pub(super) fn waited(&self, wait: Duration) {
        // Set once: a request has one body.
        let _ = self.wait.set(wait);
    }

    /// The time since its head was complete that was the gateway's own.
    pub(super) fn own_time(&self) -> Duration {
        self.received.elapsed().saturating_sub(self.wait.get().copied().unwrap_or_default())
    }
}
