//! One call: rate-limited, bounded in time and size, tried again where that may help.

use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{HeaderValue, Method, StatusCode, header};
use reqwest::{Client, RequestBuilder, redirect};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;
use tokio::time::Instant;
use url::Url;

use super::config::{Address, ManagementConfig, ManagementConfigError, Surface};
use super::error::{Code, Error};
use super::metrics::{ManagementMetrics, Operation};
use super::token::{Basic, TokenSource};
use crate::clock::{SharedClock, Timestamp};
use crate::outbound::{is_loopback, with_trust_store};

/// Largest answer that is read: a page of a thousand users.
const MAX_ANSWER: usize = 8 * 1024 * 1024;
/// How often a call is tried at most.
const ATTEMPTS: u32 = 4;
/// The first pause between attempts; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(150);
/// A pause that Zitadel asks for is waited for up to this; beyond, calls fail and are for later.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The longest time that Zitadel is left alone, however long it asks for.
const LONGEST_REST: Duration = Duration::from_secs(3_600);
/// How long an instance without v2 is believed to be one.
const PROBE_AGAIN: Duration = Duration::from_secs(3_600);

/// What is called: a path, perhaps for an organisation, with a body.
#[derive(Debug)]
pub(super) struct Ask<'a> {
    pub(super) operation: Operation,
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) organization: Option<&'a str>,
    pub(super) body: Option<Value>,
}

/// HTTP to the one address, without a token.
#[derive(Debug)]
pub(super) struct Wire {
    client: Client,
    address: Address,
    metrics: ManagementMetrics,
    clock: SharedClock,
}

#[derive(Debug)]
pub(super) struct Transport {
    pub(super) metrics: ManagementMetrics,
    wire: Wire,
    tokens: TokenSource,
    limit: RateLimit,
    wanted: Surface,
    probed: tokio::sync::Mutex<Option<(Surface, Instant)>>,
    pauses: Jitter,
}

impl Wire {
    async fn send(&self, operation: Operation, request: RequestBuilder) -> Result<Answer, Error> {
        let begun = Instant::now();
        let request = match &self.address.host {
            Some(host) => request.header(header::HOST, host),
            None => request,
        };
        let answer = read(request, self.clock.now()).await;
        let outcome = match &answer {
            Ok(answer) if answer.status.is_success() => "ok",
            Ok(answer) => Error::read(answer.status, None, &answer.body).code(),
            Err(error) => error.code(),
        };
        self.metrics.called(operation, outcome, begun.elapsed());
        answer
    }

    fn url(&self, path: &str) -> Url {
        let mut url = self.address.base.clone();
        url.set_path(&format!("{}{path}", self.address.base.path().trim_end_matches('/')));
        url.set_query(None);
        url
    }

    pub(super) async fn get(&self, path: &str) -> Result<Answer, Error> {
        self.send(Operation::Token, self.client.get(self.url(path))).await
    }

    pub(super) async fn form(
        &self,
        operation: Operation,
        path: &str,
        form: &[(&'static str, String)],
        basic: Option<Basic>,
    ) -> Result<Answer, Error> {
        let mut request = self.client.post(self.url(path)).form(form);
        if let Some((user, password)) = &basic {
            request = request.basic_auth(user, Some(password.expose()));
        }
        self.send(operation, request).await
    }
}

pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) retry_after: Option<Duration>,
    pub(super) body: Vec<u8>,
}

/// Seconds, or a date (RFC 9110 section 10.2.3).
fn retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(value.trim()).ok()?;
    Some(Timestamp::from_micros(date.as_microsecond()).since(now))
}

async fn read(request: RequestBuilder, now: Timestamp) -> Result<Answer, Error> {
    let kind = |error: reqwest::Error| if error.is_timeout() { Error::Timeout } else { Error::Unreachable };
    let mut response = request.send().await.map_err(kind)?;
    let asked = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
    let (status, retry_after) = (response.status(), asked.and_then(|value| retry_after(value, now)));
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(kind)? {
        if body.len().saturating_add(chunk.len()) > MAX_ANSWER {
            return Err(Error::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Answer { status, retry_after, body })
}

impl Transport {
    /// `None` without credentials.
    pub(super) fn new(
        config: &ManagementConfig,
        issuer: Option<(&str, Option<&str>)>,
        clock: SharedClock,
    ) -> Result<Option<Self>, ManagementConfigError> {
        config.check()?;
        let Some(credential) = config.credential()? else { return Ok(None) };
        let address = config.address(issuer)?.ok_or(ManagementConfigError::NoUrl)?;
        // No redirects: the token stays with the address. HTTP/1.1, so that `Host` says which instance is meant.
        let mut builder = with_trust_store(Client::builder())
            .redirect(redirect::Policy::none())
            .timeout(Duration::from_secs(config.timeout_seconds))
            .http1_only();
        if is_loopback(&address.base) {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|error| ManagementConfigError::Tls(error.to_string()))?;
        let metrics = ManagementMetrics::default();
        Ok(Some(Self {
            wire: Wire { client, address, metrics: metrics.clone(), clock: Arc::clone(&clock) },
            metrics,
            tokens: TokenSource::new(credential, config.scope.clone(), clock),
            limit: RateLimit::new(config.requests_per_second),
            wanted: config.api,
            probed: tokio::sync::Mutex::default(),
            pauses: Jitter::default(),
        }))
    }

    /// Which API this instance has: what the settings say, or what it answers.
    pub(super) async fn surface(&self) -> Result<Surface, Error> {
        if self.wanted != Surface::Auto {
            return Ok(self.wanted);
        }
        let mut probed = self.probed.lock().await;
        match *probed {
            Some((Surface::V2, _)) => return Ok(Surface::V2),
            Some((surface, at)) if at.elapsed() < PROBE_AGAIN => return Ok(surface),
            _ => {}
        }
        let surface = match self.call::<IgnoredAny>(smallest(Surface::V2)).await {
            Err(Error::Refused { code: Code::Unimplemented, .. }) => Surface::V1,
            Err(error) if error.is_transient() || matches!(error, Error::Credential(_)) => return Err(error),
            // A refusal comes from somebody who is there.
            Ok(_) | Err(_) => Surface::V2,
        };
        tracing::info!(?surface, "zitadel: this instance's management API");
        *probed = Some((surface, Instant::now()));
        Ok(surface)
    }

    /// Whether the credentials may look at all.
    pub(super) async fn probe(&self) -> Result<Surface, Error> {
        let surface = self.surface().await?;
        self.call::<IgnoredAny>(smallest(surface)).await?;
        Ok(surface)
    }

    /// Calls, and reads the answer.
    pub(super) async fn call<T: DeserializeOwned>(&self, ask: Ask<'_>) -> Result<T, Error> {
        let mut attempt = 0;
        let mut another_token = true;
        // A lost answer to a write stays unknown, whatever Zitadel says of having no time afterwards.
        let mut lost = None;
        loop {
            attempt += 1;
            let error = match self.attempt(&ask, &mut another_token).await {
                Ok(body) => {
                    let body: &[u8] = if body.is_empty() { b"{}" } else { &body };
                    return serde_json::from_slice(body).map_err(|_| Error::Malformed);
                }
                Err(error) => error,
            };
            let asked_for = error.retry_after();
            if error.is_ambiguous() {
                lost = Some(error.clone());
            }
            if let Some(pause) = asked_for {
                self.limit.pause(pause);
            }
            if attempt >= ATTEMPTS || !error.is_transient() || asked_for.is_some_and(|pause| pause > LONGEST_PAUSE) {
                let says_nothing_of_it = error.is_transient() && !error.is_ambiguous();
                return Err(lost.filter(|_| says_nothing_of_it).unwrap_or(error));
            }
            tokio::time::sleep(asked_for.unwrap_or_default() + self.pauses.pause(attempt)).await;
        }
    }

    /// One attempt; a token that is refused is replaced once.
    async fn attempt(&self, ask: &Ask<'_>, another_token: &mut bool) -> Result<Vec<u8>, Error> {
        loop {
            self.limit.wait().await?;
            let token = self.tokens.token(&self.wire).await?;
            let mut request = self.wire.client.request(ask.method.clone(), self.wire.url(&ask.path));
            request = request.bearer_auth(token.expose()).header(header::ACCEPT, "application/json");
            if let Some(organization) = ask.organization.and_then(|id| HeaderValue::from_str(id).ok()) {
                request = request.header("x-zitadel-orgid", organization);
            }
            if let Some(body) = &ask.body {
                request = request.json(body);
            }
            let answer = self.wire.send(ask.operation, request).await?;
            if answer.status.is_success() {
                return Ok(answer.body);
            }
            let error = Error::read(answer.status, answer.retry_after, &answer.body);
            let unauthenticated = matches!(error, Error::Refused { code: Code::Unauthenticated, .. });
            if !(unauthenticated && std::mem::take(another_token) && self.tokens.refused(&token).await) {
                return Err(error);
            }
        }
    }
}

/// The least that can be asked: who holds roles, one of them.
fn smallest(surface: Surface) -> Ask<'static> {
    let limit = serde_json::json!({"limit": 1});
    let (path, body) = match surface {
        Surface::V1 => ("/management/v1/users/grants/_search", serde_json::json!({"query": limit})),
        _ => (
            "/zitadel.authorization.v2.AuthorizationService/ListAuthorizations",
            serde_json::json!({"pagination": limit}),
        ),
    };
    let (operation, method, path) = (Operation::Probe, Method::POST, path.to_owned());
    Ask { operation, method, path, organization: None, body: Some(body) }
}

/// At most so many calls in a second, evenly, and none while Zitadel asks to be left alone:
/// all callers share what is throttled.
#[derive(Debug)]
struct RateLimit {
    every: Duration,
    turns: Mutex<Turns>,
}

#[derive(Debug, Default)]
struct Turns {
    next: Option<Instant>,
    rest_until: Option<Instant>,
}

impl RateLimit {
    fn new(in_a_second: u32) -> Self {
        Self { every: Duration::from_secs(1) / in_a_second.max(1), turns: Mutex::default() }
    }

    /// Waits for a turn; where that is long because of a pause, fails at once.
    async fn wait(&self) -> Result<(), Error> {
        loop {
            tokio::time::sleep_until(self.turn()?).await;
            // A pause may have been asked for meanwhile.
            if self.turns().rest_until.is_none_or(|until| until <= Instant::now()) {
                return Ok(());
            }
        }
    }

    fn turn(&self) -> Result<Instant, Error> {
        let mut turns = self.turns();
        let now = Instant::now();
        let rested = turns.rest_until.map_or(now, |until| until.max(now));
        if rested - now > LONGEST_PAUSE {
            return Err(Error::Throttled(Some(rested - now)));
        }
        let turn = turns.next.map_or(rested, |next| next.max(rested));
        turns.next = Some(turn + self.every);
        Ok(turn)
    }

    /// Nobody calls for a while.
    fn pause(&self, pause: Duration) {
        let mut turns = self.turns();
        let until = Instant::now() + pause.min(LONGEST_REST);
        turns.rest_until = Some(turns.rest_until.map_or(until, |rest| rest.max(until)));
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Pauses that differ, so that gateways do not come back together. Not for secrets.
#[derive(Debug, Default)]
struct Jitter {
    seed: foldhash::fast::RandomState,
    drawn: AtomicU64,
}

impl Jitter {
    /// Between half of the attempt's pause and the whole of it.
    fn pause(&self, attempt: u32) -> Duration {
        let full = FIRST_PAUSE * 2_u32.saturating_pow(attempt.saturating_sub(1));
        let drawn = self.seed.hash_one(self.drawn.fetch_add(1, Ordering::Relaxed)) % 1_000;
        full / 2 + full.mul_f64(drawn as f64 / 2_000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_differ() {
        let pauses = Jitter::default();
        for (attempt, full) in [(1, 150), (2, 300), (3, 600)] {
            let full = Duration::from_millis(full);
            let drawn: Vec<Duration> = (0..100).map(|_| pauses.pause(attempt)).collect();
            assert!(drawn.iter().all(|pause| (full / 2..=full).contains(pause)), "{drawn:?}");
            let spread = drawn.iter().max().unwrap().saturating_sub(*drawn.iter().min().unwrap());
            assert!(spread > full / 4, "they come back together: {drawn:?}");
        }
        // Two gateways draw other ones.
        let other = Jitter::default();
        assert!((0..20).any(|_| pauses.pause(3) != other.pause(3)));
    }

    #[test]
    fn a_pause_is_asked_for_in_seconds_or_by_a_date() {
        let now = Timestamp::from_secs(784_111_777); // Sun, 06 Nov 1994 08:49:37 GMT
        let asked = |text: &str| retry_after(text, now);
        assert_eq!(asked("120"), Some(Duration::from_secs(120)));
        assert_eq!(asked("Sun, 06 Nov 1994 08:50:07 GMT"), Some(Duration::from_secs(30)));
        assert_eq!(asked("Sun, 06 Nov 1994 08:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(asked("soon"), None);
        assert_eq!(asked("-5"), None);
    }
}
