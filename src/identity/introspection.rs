//! Opaque tokens: the issuer is asked (RFC 7662), once per token and minute.
//!
//! `active` alone admits nobody: Zitadel calls any service user's personal access
//! token active. What counts is the roles, which the context reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value};
use tokio::sync::Semaphore;

use super::config::{Asker, IdentityConfig, IdentityConfigError};
use super::error::{Flaw, IdentityError};
use super::fetch::{FetchError, TIMEOUT};
use super::issuer::Issuer;
use super::jwt::{self, TimeLimits};
use super::verified::{Reading, Registered, Source, Verified};
use crate::clock::{SharedClock, Timestamp};
use crate::secret::{KeyFile, SecretString};

/// How long a token that was not active is refused without asking.
const INACTIVE_FOR: Duration = Duration::from_secs(10);
/// Most questions to the issuer at a time.
const MAX_CONCURRENT: usize = 64;
/// Largest answer that is read.
const MAX_ANSWER_BYTES: usize = 256 * 1024;

/// An answer, and until when it is believed.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub outcome: Result<Arc<Verified>, IdentityError>,
    pub until: Timestamp,
}

/// Asks the issuer about tokens.
#[derive(Debug)]
pub(super) struct Introspector {
    pub issuer: Arc<Issuer>,
    client: ClientAuth,
    reading: Arc<Reading>,
    limits: TimeLimits,
    ttl: Duration,
    clock: SharedClock,
    answers: moka::future::Cache<[u8; 32], Answer, foldhash::fast::RandomState>,
    permits: Semaphore,
    pub asked: AtomicU64,
}

impl Introspector {
    /// `None` when the settings name no client to ask this issuer with.
    pub(super) fn new(
        config: &IdentityConfig,
        asker: Asker<'_>,
        issuer: Arc<Issuer>,
        reading: Arc<Reading>,
        clock: SharedClock,
    ) -> Result<Option<Self>, IdentityConfigError> {
        let Some(client) = ClientAuth::new(asker)? else { return Ok(None) };
        Ok(Some(Self {
            issuer,
            client,
            reading,
            limits: config.time_limits(),
            ttl: Duration::from_secs(config.introspection_cache_seconds),
            clock,
            answers: moka::future::Cache::builder()
                .max_capacity(config.cache_capacity)
                .build_with_hasher(foldhash::fast::RandomState::default()),
            permits: Semaphore::new(MAX_CONCURRENT),
            asked: AtomicU64::new(0),
        }))
    }

    /// What the issuer says about the token, now or at most a minute ago. Many
    /// callers with one token ask once.
    pub(super) async fn ask(&self, token: &str, digest: [u8; 32]) -> Result<Answer, IdentityError> {
        let known = self.answers.get(&digest).await;
        if known.is_some_and(|answer| answer.until <= self.clock.now()) {
            self.answers.invalidate(&digest).await;
        }
        let answer = self.answers.try_get_with(digest, self.exchange(token)).await;
        answer.map_err(|error: Arc<FetchError>| {
            tracing::warn!(issuer = %self.issuer.url, %error, "identity: introspection failed");
            match *error {
                FetchError::ClientRefused(_) => IdentityError::ClientRefused,
                _ => IdentityError::Unavailable,
            }
        })
    }

    /// Whether the issuer accepts our client and answers.
    pub(super) async fn probe(&self) -> Result<(), FetchError> {
        let asked = tokio::time::timeout(TIMEOUT, self.post("alchemi-asks-whether-it-may-ask"));
        let body = asked.await.unwrap_or(Err(FetchError::Timeout))?;
        match super::json::object(&body).and_then(|claims| claims.get("active").and_then(Value::as_bool)) {
            Some(_) => Ok(()),
            None => Err(FetchError::Malformed),
        }
    }

    async fn exchange(&self, token: &str) -> Result<Answer, FetchError> {
        let body = tokio::time::timeout(TIMEOUT, self.post(token)).await.unwrap_or(Err(FetchError::Timeout))?;
        let claims = super::json::object(&body).ok_or(FetchError::Malformed)?;
        let now = self.clock.now();
        let (outcome, until) = match claims.get("active") {
            Some(Value::Bool(true)) => match self.read(&claims, now) {
                Ok(verified) => {
                    let until = verified.expires_at().min(now.plus(self.ttl));
                    (Ok(Arc::new(verified)), until)
                }
                Err(error) => (Err(error), now.plus(INACTIVE_FOR)),
            },
            Some(Value::Bool(false)) => (Err(Flaw::Inactive.into()), now.plus(INACTIVE_FOR)),
            _ => return Err(FetchError::Malformed),
        };
        Ok(Answer { outcome, until })
    }

    async fn post(&self, token: &str) -> Result<Vec<u8>, FetchError> {
        let _permit = self.permits.acquire().await.map_err(|_| FetchError::Unreachable)?;
        self.asked.fetch_add(1, Ordering::Relaxed);
        let endpoint = self.issuer.introspection_endpoint().await?;
        let fetcher = &self.issuer.fetcher;
        match &self.client {
            ClientAuth::Basic { id, secret } => {
                let form = [("token", token)];
                fetcher.post(&endpoint, &form, Some((id, secret.expose())), MAX_ANSWER_BYTES).await
            }
            ClientAuth::KeyFile(key) => {
                let assertion = key.assertion(&self.issuer.url, self.clock.now()).ok_or(FetchError::Malformed)?;
                let form = [
                    ("token", token),
                    ("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"),
                    ("client_assertion", &assertion),
                ];
                fetcher.post(&endpoint, &form, None, MAX_ANSWER_BYTES).await
            }
        }
    }

    fn read(&self, claims: &Map<String, Value>, now: Timestamp) -> Result<Verified, IdentityError> {
        if claims.get("iss").is_some_and(|iss| iss.as_str() != Some(&*self.issuer.url)) {
            return Err(Flaw::Issuer.into());
        }
        if claims.contains_key("aud") {
            jwt::check_audience(claims, &self.issuer.audiences)?;
        }
        let issued_at = jwt::moment(claims, "iat")?;
        let expires_at = jwt::moment(claims, "exp")?.unwrap_or(Timestamp::from_micros(i64::MAX));
        self.limits.check_expiry(expires_at, now)?;
        self.limits.check_start(jwt::moment(claims, "nbf")?, issued_at, now)?;
        let base = Registered {
            issuer: Arc::clone(&self.issuer.url),
            subject: jwt::text(claims, "sub")?,
            token_id: claims.get("jti").and_then(Value::as_str),
            issued_at,
            expires_at,
            source: Source::Introspection,
        };
        Ok(self.reading.verified(base, claims))
    }
}

/// How this service authenticates at the introspection endpoint.
#[derive(Debug)]
enum ClientAuth {
    /// HTTP Basic, both parts form-encoded (RFC 6749 section 2.3.1).
    Basic { id: String, secret: SecretString },
    /// `private_key_jwt` (RFC 7523 section 2.2).
    KeyFile(KeyFile),
}

impl ClientAuth {
    fn new(asker: Asker<'_>) -> Result<Option<Self>, IdentityConfigError> {
        if let Some(path) = asker.key_file {
            let failed = |problem: String| IdentityConfigError::KeyFile { path: path.display().to_string(), problem };
            let file = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
            return KeyFile::of_application(&file)
                .map(|key| Some(Self::KeyFile(key)))
                .map_err(|why| failed(why.to_owned()));
        }
        let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        match (asker.client_id, asker.client_secret) {
            (Some(id), Some(secret)) => {
                Ok(Some(Self::Basic { id: encode(id), secret: encode(secret.expose()).into() }))
            }
            _ => Ok(None),
        }
    }
}
