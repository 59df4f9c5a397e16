//! Several upstreams as one: in turn, without those that fail.
//!
//! 1. Requests go round; an upstream that is down or ejected is left out.
//! 2. Down: the first health check failed, or later two in a row, until one succeeds.
//! 3. Ejected: so many requests in a row found no connection, broke, or came back
//!    502, 503 or 504; for a while.
//! 4. When none is left, all are tried as if nothing were known: a wrong guess about
//!    health must not refuse what an upstream might still serve.
//! 5. A request goes to another upstream only if it certainly was not sent.
//!
//! Picking takes no lock.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Limited};
use serde::Serialize;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::forward::{ForwardError, Outgoing, Target, UpstreamConfig, UpstreamError};
use super::upstream::{Upstream, UpstreamBody};
use crate::clock::SharedClock;

/// Failed health checks in a row after which an upstream is down.
const MISSES_UNTIL_DOWN: u32 = 2;

/// How often idle connections are looked at where there are no health checks.
const TIDY: Duration = Duration::from_secs(5);

/// Most that is read of a health check's answer.
const MAX_HEALTH_BODY: usize = 64 * 1024;

/// The upstreams, their health, and the client towards them.
#[derive(Debug)]
pub struct Balancer {
    upstream: Upstream,
    endpoints: Box<[Endpoint]>,
    next: AtomicUsize,
    clock: SharedClock,
    health: Option<HealthCheck>,
    eject_after: u32,
    eject_for: Duration,
}

#[derive(Debug)]
struct HealthCheck {
    path: Uri,
    interval: Duration,
    timeout: Duration,
}

#[derive(Debug)]
struct Endpoint {
    target: Target,
    up: AtomicBool,
    misses: AtomicU32,
    failures: AtomicU32,
    /// Microseconds since the epoch; 0 when not ejected.
    ejected_until: AtomicI64,
}

/// What is known about one upstream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EndpointStatus {
    /// Its address.
    pub url: String,
    /// Whether health checks find it.
    pub up: bool,
    /// Whether requests failed so often that it is left out for a while.
    pub ejected: bool,
    /// Requests that failed in a row.
    pub failures: u32,
}

impl EndpointStatus {
    /// Whether requests are sent to it.
    pub const fn is_available(&self) -> bool {
        self.up && !self.ejected
    }
}

impl Balancer {
    /// Makes the client for the configured upstreams; all count as healthy until they are checked.
    ///
    /// # Errors
    /// [`UpstreamError`] names the key that is wrong.
    pub fn new(config: &UpstreamConfig, clock: SharedClock) -> Result<Self, UpstreamError> {
        let targets = config.targets()?;
        let upstream = Upstream::new(config, &targets)?;
        let path: Uri = config.health_path.parse().map_err(|_| UpstreamError::HealthPath)?;
        let health = (!config.health_interval.is_zero()).then_some(HealthCheck {
            path,
            interval: config.health_interval,
            timeout: config.connect_timeout,
        });
        Ok(Self {
            upstream,
            endpoints: targets.into_iter().map(Endpoint::new).collect(),
            next: AtomicUsize::new(0),
            clock,
            health,
            eject_after: config.eject_after.max(1),
            eject_for: config.eject_for,
        })
    }

    /// Sends a request, whose URI is a path, to the next healthy upstream.
    ///
    /// If that one cannot be reached and the body is still whole, another is tried.
    ///
    /// # Errors
    /// The last upstream's [`ForwardError`].
    pub async fn send(&self, mut request: Request<Outgoing>) -> Result<Response<UpstreamBody>, ForwardError> {
        let order = self.order();
        let mut endpoints = order.iter().peekable();
        while let Some(endpoint) = endpoints.next() {
            let copy = if endpoints.peek().is_some() { again(&request) } else { None };
            let answered = self.upstream.send(&endpoint.target, request).await;
            self.judge(endpoint, &answered);
            match (answered, copy) {
                (Err(error), Some(copy)) if error.is_unsent() => request = copy,
                (answered, _) => return answered,
            }
        }
        Err(ForwardError::Target)
    }

    /// Checks the health of all upstreams, and closes connections to them that have been
    /// idle for too long, for ever; to be spawned, and aborted at shutdown.
    pub async fn watch(&self) {
        let mut ticks = interval(self.health.as_ref().map_or(TIDY, |check| check.interval));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.upstream.tidy(self.endpoints.iter().map(|e| &e.target));
            if let Some(check) = &self.health {
                futures_util::future::join_all(self.endpoints.iter().map(|e| self.check(check, e))).await;
            }
        }
    }

    /// What is known about each upstream, for `/readyz` and metrics.
    pub fn status(&self) -> Vec<EndpointStatus> {
        let of = |e: &Endpoint| EndpointStatus {
            url: e.target.to_string(),
            up: e.up.load(Ordering::Relaxed),
            ejected: self.is_ejected(e),
            failures: e.failures.load(Ordering::Relaxed),
        };
        self.endpoints.iter().map(of).collect()
    }

    /// Whether health checks find any upstream. Ejection does not count: what a
    /// provider behind the upstream answers must not take this gateway out of service.
    pub fn is_ready(&self) -> bool {
        self.endpoints.iter().any(|e| e.up.load(Ordering::Relaxed))
    }

    /// The available endpoints in turn, then the others in turn.
    fn order(&self) -> Vec<&Endpoint> {
        if self.endpoints.len() == 1 {
            return self.endpoints.iter().collect();
        }
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let (mut order, mut others): (Vec<_>, Vec<_>) = self.endpoints.iter().partition(|e| self.is_available(e));
        for group in [&mut order, &mut others] {
            let by = turn.checked_rem(group.len()).unwrap_or(0);
            group.rotate_left(by);
        }
        order.append(&mut others);
        order
    }

    fn is_available(&self, endpoint: &Endpoint) -> bool {
        endpoint.up.load(Ordering::Relaxed) && !self.is_ejected(endpoint)
    }

    fn is_ejected(&self, endpoint: &Endpoint) -> bool {
        let until = endpoint.ejected_until.load(Ordering::Relaxed);
        until != 0 && self.clock.now().as_micros() < until
    }

    /// Learns from what became of a request. A slow answer says nothing about the
    /// upstream's health: some models think for minutes.
    fn judge(&self, endpoint: &Endpoint, answered: &Result<Response<UpstreamBody>, ForwardError>) {
        let failed = match answered {
            Ok(response) => matches!(
                response.status(),
                StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
            ),
            Err(ForwardError::Unreachable(_) | ForwardError::Broken(_)) => true,
            Err(_) => return,
        };
        if !failed {
            if endpoint.failures.load(Ordering::Relaxed) != 0 {
                endpoint.failures.store(0, Ordering::Relaxed);
            }
            return;
        }
        let failures = endpoint.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if failures >= self.eject_after {
            endpoint.failures.store(0, Ordering::Relaxed);
            endpoint.ejected_until.store(self.clock.now().plus(self.eject_for).as_micros(), Ordering::Relaxed);
            tracing::warn!(upstream = %endpoint.target, failures, "upstream ejected");
        }
    }

    async fn check(&self, check: &HealthCheck, endpoint: &Endpoint) {
        let healthy = timeout(check.timeout, self.probe(check, endpoint)).await.unwrap_or(false);
        if healthy {
            endpoint.misses.store(0, Ordering::Relaxed);
            if !endpoint.up.swap(true, Ordering::Relaxed) {
                tracing::info!(upstream = %endpoint.target, "upstream is up");
            }
            return;
        }
        let misses = endpoint.misses.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if misses >= MISSES_UNTIL_DOWN && endpoint.up.swap(false, Ordering::Relaxed) {
            tracing::warn!(upstream = %endpoint.target, misses, "upstream is down");
        }
    }

    async fn probe(&self, check: &HealthCheck, endpoint: &Endpoint) -> bool {
        let mut request = Request::new(Outgoing::empty());
        *request.uri_mut() = check.path.clone();
        let Ok(response) = self.upstream.send(&endpoint.target, request).await else { return false };
        let healthy = response.status().is_success();
        // Read to its end, so that the connection can be used again.
        healthy && Limited::new(response.into_body(), MAX_HEALTH_BODY).collect().await.is_ok()
    }
}

impl Endpoint {
    const fn new(target: Target) -> Self {
        Self {
            target,
            up: AtomicBool::new(true),
            // Nothing speaks for it yet.
            misses: AtomicU32::new(MISSES_UNTIL_DOWN - 1),
            failures: AtomicU32::new(0),
            ejected_until: AtomicI64::new(0),
        }
    }
}

/// The same request once more, if its body is still whole.
fn again(request: &Request<Outgoing>) -> Option<Request<Outgoing>> {
    let mut copy = Request::new(request.body().again()?);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}
