//! Where requests that are over wait for the settler, and what they keep until they are in the ledger.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc;

use super::Bill;
use super::live::LiveRow;
use super::ticket::Ticket;
use crate::clock::Timestamp;
use crate::journal::Entry;
use crate::store::ledger::Settlement;

/// The near end of the queue that the settler drains.
#[derive(Debug, Clone)]
pub struct Outbox {
    sender: mpsc::UnboundedSender<Finished>,
    waiting: Arc<AtomicUsize>,
}

impl Outbox {
    /// The two ends, and what counts the requests that are not in the ledger: whoever drains
    /// the queue takes from it what is written.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Finished>, Arc<AtomicUsize>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        (Self { sender, waiting: Arc::clone(&waiting) }, receiver, waiting)
    }

    /// How many requests are over and not in the ledger.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
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
pub struct Finished(How);

#[derive(Debug)]
enum How {
    Settled { ticket: Box<Ticket>, bill: Bill, at: Timestamp },
    Abandoned(Box<(Settlement, LiveRow)>),
}

/// What a finished request keeps until it is in the ledger: its entry in the journal, and its
/// reservation's row from being taken for abandoned.
#[derive(Debug, Default)]
pub struct Receipt {
    /// To be released then.
    pub entry: Entry,
    _row: Option<LiveRow>,
}

impl Receipt {
    pub(super) fn new(entry: Entry, row: Option<LiveRow>) -> Self {
        Self { entry, _row: row }
    }
}

impl Finished {
    pub(super) fn settled(ticket: Box<Ticket>, bill: Bill, at: Timestamp) -> Self {
        Self(How::Settled { ticket, bill, at })
    }

    pub(super) fn abandoned(settlement: Settlement, row: LiveRow) -> Self {
        Self(How::Abandoned(Box::new((settlement, row))))
    }

    /// What is written for it.
    pub fn settlement(self) -> (Settlement, Receipt) {
        match self.0 {
            How::Settled { ticket, bill, at } => ticket.settlement(bill, at),
            How::Abandoned(abandoned) => {
                let (settlement, row) = *abandoned;
                (settlement, Receipt::new(Entry::default(), Some(row)))
            }
        }
    }
}
