//! Where requests that are over wait for the settler, and what they keep until they are in the ledger.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;

use super::Bill;
use super::ticket::Ticket;
use crate::clock::Timestamp;
use crate::journal::Entry;
use crate::store::ledger::Settlement;

/// The near end of the queue that the settler drains.
#[derive(Debug, Clone)]
pub struct Outbox {
    sender: mpsc::UnboundedSender<Finished>,
    pub(super) waiting: Arc<AtomicUsize>,
}

impl Outbox {
    /// The two ends, and what counts the requests that are not in the ledger: whoever drains
    /// the queue takes from it what is written.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Finished>, Arc<AtomicUsize>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        (Self { sender, waiting: Arc::clone(&waiting) }, receiver, waiting)
    }

    pub(super) fn send(&self, finished: Finished) -> bool {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let sent = self.sender.send(finished).is_ok();
        if !sent {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        sent
    }
}

/// A request that is over. What the ledger needs is worked out by the settler, off
/// the path of requests.
#[derive(Debug)]
pub struct Finished(pub(super) How);

#[derive(Debug)]
pub(super) enum How {
    Settled { ticket: Box<Ticket>, bill: Bill, at: Timestamp },
    Abandoned(Box<Settlement>),
}

/// What a finished request keeps until it is in the ledger: its entry in the journal, and its
/// reservation's row from being taken for abandoned.
#[derive(Debug, Default)]
pub struct Receipt {
    /// To be released then.
    pub entry: Entry,
    pub(super) _row: Option<LiveRow>,
}

impl Finished {
    /// What is written for it.
    pub fn settlement(self) -> (Settlement, Receipt) {
        match self.0 {
            How::Settled { ticket, bill, at } => ticket.settlement(bill, at),
            How::Abandoned(settlement) => (*settlement, Receipt::default()),
        }
    }
}

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

    pub(super) fn ids(&self) -> Vec<Arc<str>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

impl Drop for LiveRow {
    fn drop(&mut self) {
        self.rows.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.request_id);
    }
}
