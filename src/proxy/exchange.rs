//! One request on its way through the gateway.

use std::sync::OnceLock;
use std::time::Instant;

use http::StatusCode;
use tracing::Span;
use tracing::field::Empty;

use super::ingress::{Arrival, RequestId};
use crate::id::Id;
use crate::model::accounts::Account;

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
            decision = Empty,
            status = Empty,
        );
        Self { id, arrival, received, account: OnceLock::new(), span }
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

    pub(super) fn belongs_to(&self, account: &Id<Account>) {
        if self.account.set(account.clone()).is_ok() {
            self.span.record("account", account.as_str());
        }
    }
}
