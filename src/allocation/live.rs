//! Reservations with a row in the database whose requests are under way here.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

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
