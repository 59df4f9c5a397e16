//! Reservations with a row in the database whose requests are under way here.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::context::{Granted, Tenant};
use crate::policy::budget::Link;
use crate::store::{Store, StoreError};

/// Reservations with a row whose requests this process has: they are renewed.
#[derive(Debug, Default)]
pub(super) struct LiveRows(Mutex<HashSet<Arc<str>>>);

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct LiveRow {
    request_id: Arc<str>,
    rows: Arc<LiveRows>,
}

impl LiveRows {
    pub(super) fn insert(self: &Arc<Self>, request_id: &Arc<str>) -> LiveRow {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(Arc::clone(request_id));
        LiveRow { request_id: Arc::clone(request_id), rows: Arc::clone(self) }
    }

    /// None: this process has it already.
    pub(super) fn claim(self: &Arc<Self>, request_id: &str) -> Option<LiveRow> {
        let request_id: Arc<str> = Arc::from(request_id);
        let new = self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(Arc::clone(&request_id));
        new.then(|| LiveRow { request_id, rows: Arc::clone(self) })
    }

    pub(super) fn ids(&self) -> Vec<Arc<str>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

impl Drop for LiveRow {
    fn drop(&mut self) {
        self.rows.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.request_id);
    }
}

/// Pauses before attempts to undo a reservation whose commit was interrupted: it may still come to its end.
const UNDO_AFTER_SECONDS: [u64; 6] = [1, 5, 15, 60, 300, 900];

/// Gives back a reservation of which nobody knows whether it was made.
pub(super) async fn undo(store: Store, granted: Granted<Tenant>, request_id: Arc<str>, links: Vec<Link>) {
    let attempt = async || {
        let mut tx = store.begin(&granted).await?;
        let was_there = tx.unreserve(&request_id, &links).await?;
        tx.commit().await.map(|()| was_there)
    };
    for pause in UNDO_AFTER_SECONDS {
        tokio::time::sleep(Duration::from_secs(pause)).await;
        match attempt().await {
            // It may still come; what comes after the last look is charged as abandoned.
            Ok(false) | Err(StoreError::Unavailable(_) | StoreError::ReadOnly(_)) => {}
            Ok(true) | Err(_) => return,
        }
    }
}
