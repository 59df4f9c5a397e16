//! One issuer: where its keys are, and the last good set of them.
//!
//! Readers take the set without a lock. Fetches are single-flight and run in a task of
//! their own, so that no caller's disconnect wastes one. Those for the age of the set
//! are at least a cooldown apart, whether they succeed or fail, and so are those for an
//! unknown `kid`; the two do not wait for each other, so that a key that is used as soon
//! as it is published is found though the set is young.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwapOption, Guard};
use serde_json::{Map, Value};
use tokio::sync::watch;
use url::Url;

use super::config::{IdentityConfig, IdentityConfigError, IssuerConfig, internal_url, issuer_url, jwks_uri};
use super::error::{Flaw, IdentityError};
use super::fetch::{FetchError, Fetcher, TIMEOUT};
use super::json;
use super::jwks::{KeySet, KeySetFlaw, MAX_KEY_SET_BYTES};
use super::jwt::Audiences;
use crate::clock::{SharedClock, Timestamp};

/// Least time between the end of one fetch and the start of the next for the same reason.
const COOLDOWN: Duration = Duration::from_secs(30);
/// A set that is younger than this is not fetched again for a `kid` that it lacks.
const SETTLED: Duration = Duration::from_secs(1);
/// How long a `kid` that a fetch did not find causes no other fetch.
const ABSENT_FOR: Duration = Duration::from_secs(60);
/// Most such `kid`s that are remembered.
const MAX_ABSENT: usize = 1024;
/// Largest discovery document that is read.
const MAX_DISCOVERY_BYTES: usize = 64 * 1024;

/// A key set and when it was fetched.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub keys: KeySet,
    fetched_at: Timestamp,
}

/// How one issuer fares, for readiness and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerStatus {
    /// Its `iss`.
    pub issuer: String,
    /// Usable keys; none means that no token of it can be verified.
    pub keys: usize,
    /// Keys that were dropped from the last good set.
    pub dropped_keys: usize,
    /// When keys were last fetched.
    pub last_success: Option<Timestamp>,
    /// What went wrong since.
    pub last_error: Option<FetchError>,
    /// Since when the keys in use are older than their time to live.
    pub stale_since: Option<Timestamp>,
}

/// Why keys are fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    /// There is no set, or it grows old.
    Age,
    /// A token names a `kid` that the set lacks.
    UnknownKey,
}

/// The addresses that discovery gave.
#[derive(Debug)]
struct Endpoints {
    keys: Option<Url>,
    introspection: Option<Url>,
}

#[derive(Debug, Default)]
struct Fetching {
    in_flight: Option<watch::Receiver<()>>,
    last_attempt: Option<Timestamp>,
    /// When a fetch for an unknown `kid` last began.
    last_search: Option<Timestamp>,
    last_error: Option<FetchError>,
    absent: HashMap<String, Timestamp>,
}

#[derive(Debug)]
pub(super) struct Issuer {
    pub url: Arc<str>,
    pub audiences: Audiences,
    pub fetcher: Fetcher,
    jwks_uri: Option<Url>,
    ttl: Duration,
    max_stale: Duration,
    clock: SharedClock,
    snapshot: ArcSwapOption<Snapshot>,
    endpoints: ArcSwapOption<Endpoints>,
    fetching: Mutex<Fetching>,
    pub fetches: AtomicU64,
}

impl Issuer {
    pub(super) fn new(
        config: &IdentityConfig,
        issuer: &IssuerConfig,
        clock: SharedClock,
    ) -> Result<Self, IdentityConfigError> {
        Ok(Self {
            url: issuer.url.as_str().into(),
            audiences: config.audiences_of(issuer),
            fetcher: Fetcher::new(issuer_url(issuer)?, internal_url(issuer)?)?,
            jwks_uri: jwks_uri(issuer)?,
            ttl: Duration::from_secs(config.jwks_ttl_seconds),
            max_stale: Duration::from_secs(config.jwks_max_stale_seconds),
            clock,
            snapshot: ArcSwapOption::empty(),
            endpoints: ArcSwapOption::empty(),
            fetching: Mutex::default(),
            fetches: AtomicU64::new(0),
        })
    }

    /// The keys, while they need no attention: the fast path.
    pub(super) fn fresh(&self, now: Timestamp) -> Option<Guard<Option<Arc<Snapshot>>>> {
        // A clock that went back says nothing about the age.
        self.younger_than(self.early(), now).filter(|guard| guard.as_ref().is_some_and(|s| s.fetched_at <= now))
    }

    /// The keys, while they may be used at all.
    pub(super) fn usable(&self, now: Timestamp) -> Option<Guard<Option<Arc<Snapshot>>>> {
        self.younger_than(self.max_stale, now)
    }

    fn younger_than(&self, age: Duration, now: Timestamp) -> Option<Guard<Option<Arc<Snapshot>>>> {
        let guard = self.snapshot.load();
        let young = guard.as_ref().is_some_and(|snapshot| now.since(snapshot.fetched_at) < age);
        young.then_some(guard)
    }

    /// Keys are fetched again at four fifths of their time, so that nobody waits for it.
    fn early(&self) -> Duration {
        self.ttl / 5 * 4
    }

    /// Sees to it that the keys are as fresh as they can be.
    ///
    /// Waits only when it must: for the first set, for a set that is too old to be
    /// used, and once the time to live is over unless the issuer is known to fail.
    pub(super) async fn freshen(self: &Arc<Self>) {
        let now = self.clock.now();
        if self.fresh(now).is_some() {
            return;
        }
        let Some(done) = self.refresh(Reason::Age) else { return };
        let failing = self.fetching().last_error.is_some();
        let may_go_on = if failing { self.usable(now) } else { self.younger_than(self.ttl, now) };
        if may_go_on.is_none() {
            wait(done).await;
        }
    }

    /// A set that has `kid`, fetched again if need be.
    pub(super) async fn keys_with(self: &Arc<Self>, kid: &str) -> Result<Arc<Snapshot>, IdentityError> {
        match self.lookup(kid)? {
            Some(found) => return Ok(found),
            None if self.is_absent(kid) => return Err(Flaw::UnknownKey.into()),
            None => {}
        }
        let searched = match self.refresh(Reason::UnknownKey) {
            Some(done) => {
                wait(done).await;
                true
            }
            None => false,
        };
        // Also without a fetch of ours: one may have ended since the first look.
        match self.lookup(kid)? {
            Some(found) => Ok(found),
            None => Err(self.unknown_key(kid, searched)),
        }
    }

    fn lookup(&self, kid: &str) -> Result<Option<Arc<Snapshot>>, IdentityError> {
        let usable = self.usable(self.clock.now()).ok_or(IdentityError::Unavailable)?;
        Ok(usable.as_ref().filter(|snapshot| snapshot.keys.get(kid).is_some()).cloned())
    }

    /// What is said of a `kid` that is not among the keys. That it is wrong, only a set can say
    /// that was asked for since it was seen: while the issuer fails, or has been asked for
    /// another one a moment ago, it may be the new key of a good token. So whoever sends made-up
    /// ones can make a new key wait for the next search, but nobody's token wrong.
    fn unknown_key(&self, kid: &str, searched: bool) -> IdentityError {
        let now = self.clock.now();
        let settled = self.younger_than(SETTLED, now).is_some();
        let (last_error, last_search) = {
            let fetching = self.fetching();
            (fetching.last_error, fetching.last_search)
        };
        if last_error.is_some() {
            return IdentityError::Unavailable;
        }
        if searched {
            self.note_absent(kid);
        }
        if searched || settled {
            return Flaw::UnknownKey.into();
        }
        let left = COOLDOWN.saturating_sub(last_search.map_or(COOLDOWN, |at| now.since(at)));
        let seconds = left.as_millis().div_ceil(1_000).max(1);
        IdentityError::KeyPending { retry_after: u32::try_from(seconds).unwrap_or(u32::MAX) }
    }

    fn is_absent(&self, kid: &str) -> bool {
        let now = self.clock.now();
        self.fetching().absent.get(kid).is_some_and(|at| !due(now, *at, ABSENT_FOR))
    }

    fn note_absent(&self, kid: &str) {
        let now = self.clock.now();
        let absent = &mut self.fetching().absent;
        if absent.len() >= MAX_ABSENT {
            absent.retain(|_, at| !due(now, *at, ABSENT_FOR));
        }
        if absent.len() < MAX_ABSENT {
            absent.insert(kid.to_owned(), now);
        }
    }

    /// Joins the fetch under way, or starts one if the cooldown is over.
    fn refresh(self: &Arc<Self>, reason: Reason) -> Option<watch::Receiver<()>> {
        let now = self.clock.now();
        let settled = self.younger_than(SETTLED, now).is_none();
        let mut fetching = self.fetching();
        if let Some(done) = fetching.in_flight.as_ref().filter(|done| done.has_changed().is_ok()) {
            return Some(done.clone());
        }
        let over = |last: Option<Timestamp>| last.is_none_or(|at| due(now, at, COOLDOWN));
        let may = match reason {
            Reason::Age => over(fetching.last_attempt),
            // An issuer that fails is left alone for whatever reason.
            Reason::UnknownKey if fetching.last_error.is_some() => over(fetching.last_attempt),
            Reason::UnknownKey => settled && over(fetching.last_search),
        };
        if !may {
            return None;
        }
        if reason == Reason::UnknownKey {
            fetching.last_search = Some(now);
        }
        let (finished, done) = watch::channel(());
        fetching.last_attempt = Some(now);
        fetching.in_flight = Some(done.clone());
        drop(fetching);
        let issuer = Arc::clone(self);
        tokio::spawn(async move {
            issuer.fetches.fetch_add(1, Ordering::Relaxed);
            let outcome = tokio::time::timeout(TIMEOUT, issuer.fetch()).await.unwrap_or(Err(FetchError::Timeout));
            issuer.settle(outcome);
            drop(finished);
        });
        Some(done)
    }

    async fn fetch(&self) -> Result<KeySet, FetchError> {
        let uri = match &self.jwks_uri {
            Some(uri) => uri.clone(),
            None => self.endpoints().await?.keys.clone().ok_or(FetchError::Malformed)?,
        };
        let document = self.fetcher.get(&uri, MAX_KEY_SET_BYTES).await?;
        KeySet::parse(&document).map_err(|flaw| match flaw {
            KeySetFlaw::NotAKeySet => FetchError::Malformed,
            KeySetFlaw::NoUsableKey => FetchError::NoUsableKey,
        })
    }

    /// Where to introspect, from discovery.
    pub(super) async fn introspection_endpoint(&self) -> Result<Url, FetchError> {
        self.endpoints().await?.introspection.clone().ok_or(FetchError::Malformed)
    }

    async fn endpoints(&self) -> Result<Arc<Endpoints>, FetchError> {
        if let Some(known) = self.endpoints.load_full() {
            return Ok(known);
        }
        let at = format!("{}/.well-known/openid-configuration", self.url.trim_end_matches('/'));
        let at = Url::parse(&at).map_err(|_| FetchError::Malformed)?;
        let document = json::object(&self.fetcher.get(&at, MAX_DISCOVERY_BYTES).await?).ok_or(FetchError::Malformed)?;
        if document.get("issuer").and_then(Value::as_str) != Some(&*self.url) {
            return Err(FetchError::IssuerMismatch);
        }
        let endpoints = Arc::new(Endpoints {
            keys: address(&document, "jwks_uri")?,
            introspection: address(&document, "introspection_endpoint")?,
        });
        self.endpoints.store(Some(Arc::clone(&endpoints)));
        Ok(endpoints)
    }

    /// Puts a good set in the place of the old one; a bad one changes nothing.
    fn settle(&self, outcome: Result<KeySet, FetchError>) {
        let now = self.clock.now();
        let mut fetching = self.fetching();
        fetching.last_attempt = Some(now);
        fetching.in_flight = None;
        match outcome {
            Ok(keys) => {
                let before = self.snapshot.load();
                let known = before.as_ref().is_some_and(|old| old.keys.dropped() == keys.dropped());
                if !known && !keys.dropped().is_empty() {
                    tracing::warn!(
                        issuer = %self.url, usable = keys.len(), dropped = ?keys.dropped(),
                        "identity: the issuer publishes keys that cannot be used"
                    );
                }
                fetching.last_error = None;
                fetching.absent.retain(|kid, _| keys.get(kid).is_none());
                // What it publishes no more needs no search.
                let withdrawn = before.iter().flat_map(|old| old.keys.kids()).filter(|kid| keys.get(kid).is_none());
                fetching.absent.extend(withdrawn.map(|kid| (kid.to_owned(), now)));
                self.snapshot.store(Some(Arc::new(Snapshot { keys, fetched_at: now })));
            }
            Err(error) => {
                fetching.last_error = Some(error);
                // The addresses may be what changed.
                self.endpoints.store(None);
                tracing::warn!(issuer = %self.url, %error, "identity: the issuer's keys could not be fetched");
            }
        }
    }

    pub(super) fn status(&self) -> IssuerStatus {
        let now = self.clock.now();
        let snapshot = self.snapshot.load();
        let snapshot = snapshot.as_ref();
        IssuerStatus {
            issuer: self.url.to_string(),
            keys: snapshot.filter(|s| now.since(s.fetched_at) < self.max_stale).map_or(0, |s| s.keys.len()),
            dropped_keys: snapshot.map_or(0, |s| s.keys.dropped().values().sum()),
            last_success: snapshot.map(|s| s.fetched_at),
            last_error: self.fetching().last_error,
            stale_since: snapshot.map(|s| s.fetched_at.plus(self.ttl)).filter(|at| *at <= now),
        }
    }

    fn fetching(&self) -> MutexGuard<'_, Fetching> {
        self.fetching.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn address(document: &Map<String, Value>, name: &str) -> Result<Option<Url>, FetchError> {
    let text = document.get(name).and_then(Value::as_str);
    text.map(|text| Url::parse(text).map_err(|_| FetchError::Malformed)).transpose()
}

/// Whether `period` has passed; a clock that went back counts as passed.
fn due(now: Timestamp, since: Timestamp, period: Duration) -> bool {
    now < since || now.since(since) >= period
}

/// Until the fetching task has ended, however it ended.
async fn wait(mut done: watch::Receiver<()>) {
    while done.changed().await.is_ok() {}
}
