//! What the upstream offers and what it costs: its `/model/info`, kept as a snapshot.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{HeaderValue, Request, header};
use http_body_util::{BodyExt, Limited};

use super::balance::Balancer;
use super::forward::Outgoing;
use crate::metering::price::{ModelPrice, PriceBook};

/// Largest `/model/info` that is read, in bytes.
const MAX_LISTING: usize = 64 << 20;

/// Pause before the next attempt while there is no book at all.
const FIRST_ATTEMPTS: Duration = Duration::from_secs(2);

/// Longest wait for a listing.
const PATIENCE: Duration = Duration::from_secs(30);

/// The price book in force; the last good one is kept while the upstream is away.
#[derive(Debug)]
pub struct Catalogue {
    book: ArcSwap<PriceBook>,
    prices: BTreeMap<String, ModelPrice>,
    path: String,
    interval: Duration,
}

/// No prices at all.
impl Default for Catalogue {
    fn default() -> Self {
        Self::of(BTreeMap::new())
    }
}

impl Catalogue {
    /// These prices, and nobody to ask for others.
    pub fn of(prices: BTreeMap<String, ModelPrice>) -> Self {
        Self::new(prices, "/".to_owned(), Duration::MAX)
    }

    /// Configured prices alone, until the first [`refresh`](Self::refresh).
    pub fn new(prices: BTreeMap<String, ModelPrice>, path: String, interval: Duration) -> Self {
        let book = PriceBook::default().with_overrides(&prices);
        Self { book: ArcSwap::from_pointee(book), prices, path, interval }
    }

    /// The price book in force.
    pub fn book(&self) -> Arc<PriceBook> {
        self.book.load_full()
    }

    /// The models that it knows.
    pub fn models(&self) -> Vec<String> {
        self.book.load().models().map(str::to_owned).collect()
    }

    /// Asks the upstream anew; whether it answered with a listing, in time.
    pub async fn refresh(&self, balancer: &Balancer, credential: Option<&HeaderValue>) -> bool {
        let asked = tokio::time::timeout(PATIENCE.min(self.interval), self.ask(balancer, credential)).await;
        asked.unwrap_or_else(|_| {
            tracing::warn!(path = self.path, "the upstream does not tell its prices in time");
            false
        })
    }

    async fn ask(&self, balancer: &Balancer, credential: Option<&HeaderValue>) -> bool {
        let mut request = Request::get(self.path.as_str()).header(header::ACCEPT, "application/json");
        if let Some(credential) = credential {
            request = request.header(header::AUTHORIZATION, credential.clone());
        }
        let Ok(request) = request.body(Outgoing::empty()) else { return false };
        let Ok(response) = balancer.send(request).await else { return false };
        if !response.status().is_success() {
            tracing::warn!(
                status = response.status().as_u16(),
                path = self.path,
                "the upstream's prices cannot be read"
            );
            return false;
        }
        let Ok(body) = Limited::new(response.into_body(), MAX_LISTING).collect().await else { return false };
        match PriceBook::from_model_info(&body.to_bytes()) {
            Ok(book) => {
                self.book.store(Arc::new(book.with_overrides(&self.prices)));
                true
            }
            Err(error) => {
                tracing::warn!(%error, path = self.path, "the upstream's prices cannot be read");
                false
            }
        }
    }

    /// Refreshes for ever; to be spawned, and aborted at shutdown. `known` says whether
    /// there is a listing already.
    pub async fn watch(&self, balancer: &Balancer, credential: Option<&HeaderValue>, mut known: bool) {
        loop {
            tokio::time::sleep(if known { self.interval } else { FIRST_ATTEMPTS.min(self.interval) }).await;
            known |= self.refresh(balancer, credential).await;
        }
    }
}
