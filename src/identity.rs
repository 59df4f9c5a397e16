//! From a bearer token to a [`Verified`] identity.
//!
//! A JWT is verified here, against the keys of the issuer that it names; any other
//! token is opaque, and its issuer is asked. Every rule that RFC 8725 leaves to the
//! application is applied in [`jwt`] and [`jwks`]; the cryptography is AWS-LC.
//! [`context`] then says what the identity means for an account.

mod claims;
mod config;
mod error;
mod fetch;
mod introspection;
mod issuer;
mod json;
pub mod jwks;
pub mod jwt;
mod logout;
mod revalidation;
mod revocation;
mod verified;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Map, Value};
use tokio::runtime::Handle;

pub use self::claims::{
    AccountBinding, ClaimRules, ContextError, MIN_MASTER_KEY_CHARS, MasterKey, WeakMasterKey, context,
    master_key_context,
};
pub use self::config::{IdentityConfig, IdentityConfigError, IssuerConfig, RevalidateConfig, ScopesSource};
pub use self::error::{Flaw, IdentityError};
pub use self::fetch::FetchError;
pub use self::issuer::IssuerStatus;
pub use self::logout::logout_refused;
pub use self::revocation::{Revocation, Revocations, Seen};
pub use self::verified::{Source, Verified};

use self::claims::sha256;
use self::introspection::Introspector;
use self::issuer::Issuer;
use self::jwt::{Claims, Jws, TimeLimits, Typ};
use self::revalidation::{LastAsked, Revalidation};
use self::verified::{Reading, Registered};
use crate::clock::{SharedClock, Timestamp};
use crate::secret::SecretString;

type Digest = [u8; 32];

/// Verifies tokens. Clones share keys, caches and counters.
#[derive(Clone)]
pub struct Identity(Arc<Inner>);

struct Inner {
    issuers: Vec<Arc<Issuer>>,
    /// One for each issuer that can be asked. Opaque tokens do not say whose they are, and an issuer
    /// that is shown another's could use it: they are the first issuer's.
    introspectors: Vec<Introspector>,
    introspect_all: bool,
    reading: Arc<Reading>,
    limits: TimeLimits,
    max_token_bytes: usize,
    allowed_client_ids: Vec<String>,
    /// Clients whose logout tokens are meant for us.
    logout_clients: Vec<String>,
    allow_delegation: bool,
    claim_rules: ClaimRules,
    cache: moka::sync::Cache<Digest, Arc<Entry>, foldhash::fast::RandomState>,
    revocations: Revocations,
    revalidation: Option<Revalidation>,
    counters: Counters,
    clock: SharedClock,
}

/// A verified token under the hash of all of its bytes. It holds no longer than the
/// token itself, and no longer than its key is published.
struct Entry {
    verified: Arc<Verified>,
    until: Timestamp,
    key: Option<KeyUsed>,
    revalidated: LastAsked,
}

struct KeyUsed {
    issuer: Arc<Issuer>,
    kid: Box<str>,
    fingerprint: [u8; 32],
}

#[derive(Debug, Default)]
struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    signatures: AtomicU64,
}

/// How often what happened since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IdentityCounts {
    /// Tokens answered from the cache.
    pub cache_hits: u64,
    /// Tokens that were not.
    pub cache_misses: u64,
    /// Key sets asked for.
    pub key_fetches: u64,
    /// Signatures checked.
    pub signature_checks: u64,
    /// Introspection requests sent.
    pub introspections: u64,
    /// Signed tokens that the issuer was asked about again.
    pub revalidations: u64,
    /// Those that it had ended.
    pub revalidations_ended: u64,
}

/// Which keys an entry of the cache may rest on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keys {
    Fresh,
    Usable,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("issuers", &self.0.issuers).finish_non_exhaustive()
    }
}

impl Identity {
    /// Checks the settings and reads the key file, if there is one. No network: keys
    /// are fetched when the first token needs them, or by [`warm`](Self::warm).
    ///
    /// # Errors
    /// [`IdentityConfigError`], one sentence for the operator.
    pub fn new(config: &IdentityConfig, clock: SharedClock) -> Result<Self, IdentityConfigError> {
        config.check()?;
        let issuers = config
            .issuers
            .iter()
            .map(|issuer| Issuer::new(config, issuer, Arc::clone(&clock)).map(Arc::new))
            .collect::<Result<Vec<_>, _>>()?;
        let reading = Arc::new(Reading::new(config));
        let introspectors = issuers.iter().enumerate().map(|(n, issuer)| {
            let (reading, clock) = (Arc::clone(&reading), Arc::clone(&clock));
            Introspector::new(config, config.asker(n), Arc::clone(issuer), reading, clock)
        });
        let introspectors = introspectors.filter_map(Result::transpose).collect::<Result<Vec<_>, _>>()?;
        Ok(Self(Arc::new(Inner {
            issuers,
            introspectors,
            introspect_all: config.scopes_source == ScopesSource::Introspection,
            reading,
            limits: config.time_limits(),
            max_token_bytes: config.max_token_bytes,
            allowed_client_ids: config.allowed_client_ids.clone(),
            logout_clients: [&*config.logout_client_ids, &*config.allowed_client_ids].concat(),
            allow_delegation: config.allow_delegation,
            claim_rules: config.claim_rules(),
            cache: moka::sync::Cache::builder()
                .max_capacity(config.cache_capacity)
                .build_with_hasher(foldhash::fast::RandomState::default()),
            revocations: Revocations::new(config.time_limits().leeway),
            revalidation: Revalidation::new(config),
            counters: Counters::default(),
            clock,
        })))
    }

    /// Fetches the keys of every issuer that lacks them, and waits for it.
    pub async fn warm(&self) {
        for issuer in &self.0.issuers {
            issuer.freshen().await;
        }
    }

    /// Verifies an access token: the credential alone, without `Bearer`.
    ///
    /// # Errors
    /// [`IdentityError`]: 401 for what is wrong with the token, 503 when its issuer
    /// cannot be reached and nothing recent enough is known.
    pub async fn verify(&self, token: &str) -> Result<Arc<Verified>, IdentityError> {
        let inner = &*self.0;
        let digest = inner.digest(token)?;
        let entry = match inner.cached(&digest, Keys::Fresh) {
            Some(entry) => entry,
            None => match token.bytes().filter(|byte| *byte == b'.').count() {
                2 => inner.verify_jwt(token, digest).await?,
                4 => return Err(Flaw::Encrypted.into()),
                _ => inner.verify_opaque(token, digest).await?,
            },
        };
        self.admit(token, digest, &entry)
    }

    /// The verdict on a token that was verified before, without waiting: `None` means
    /// that [`verify`](Self::verify) has to look.
    pub fn verify_cached(&self, token: &str) -> Option<Result<Arc<Verified>, IdentityError>> {
        let digest = match self.0.digest(token) {
            Ok(digest) => digest,
            Err(error) => return Some(Err(error)),
        };
        let entry = self.0.cached(&digest, Keys::Fresh)?;
        Some(self.admit(token, digest, &entry))
    }

    /// The last look at a good token: whether it was cut off since.
    fn admit(&self, token: &str, digest: Digest, entry: &Entry) -> Result<Arc<Verified>, IdentityError> {
        if self.0.revocations.revoked(&entry.verified) {
            return Err(IdentityError::Revoked);
        }
        self.revalidate(token, digest, entry);
        Ok(Arc::clone(&entry.verified))
    }

    /// Asks the issuer about a signed token again, if it is its turn, beside the
    /// request and never in its way.
    fn revalidate(&self, token: &str, digest: Digest, entry: &Entry) {
        let inner = &self.0;
        let Some(revalidation) = &inner.revalidation else { return };
        if inner.introspector_of(entry.verified.issuer()).is_none() {
            return;
        }
        let now = inner.clock.now();
        let Some(permit) = revalidation.turn(&entry.verified, &entry.revalidated, now) else { return };
        let Ok(runtime) = Handle::try_current() else { return };
        let (inner, token) = (Arc::clone(inner), SecretString::from(token));
        let verified = Arc::clone(&entry.verified);
        runtime.spawn(async move {
            inner.ask_again(&token, digest, verified.issuer()).await;
            drop(permit);
        });
    }

    /// Whether the issuers that can be asked answer questions about tokens: they are asked about
    /// one that nobody has. `None` when there is no client to ask with.
    ///
    /// # Errors
    /// Why the first that does not, does not.
    pub async fn probe_introspection(&self) -> Option<Result<(), FetchError>> {
        let mut probed = None;
        for introspector in &self.0.introspectors {
            let outcome = introspector.probe().await;
            if outcome.is_err() {
                return Some(outcome);
            }
            probed = Some(outcome);
        }
        probed
    }

    /// The deny-list.
    pub fn revocations(&self) -> &Revocations {
        &self.0.revocations
    }

    /// The rules for [`context`].
    pub fn claim_rules(&self) -> &ClaimRules {
        &self.0.claim_rules
    }

    /// How each issuer fares.
    pub fn status(&self) -> Vec<IssuerStatus> {
        self.0.issuers.iter().map(|issuer| issuer.status()).collect()
    }

    /// Counts since the start.
    pub fn counts(&self) -> IdentityCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let inner = &*self.0;
        IdentityCounts {
            cache_hits: read(&inner.counters.hits),
            cache_misses: read(&inner.counters.misses),
            key_fetches: inner.issuers.iter().map(|issuer| read(&issuer.fetches)).sum(),
            signature_checks: read(&inner.counters.signatures),
            introspections: inner.introspectors.iter().map(|introspector| read(&introspector.asked)).sum(),
            revalidations: inner.revalidation.as_ref().map_or(0, |revalidation| read(&revalidation.asked)),
            revalidations_ended: inner.revalidation.as_ref().map_or(0, |revalidation| read(&revalidation.ended)),
        }
    }
}

/// A payload whose signature has been verified.
struct Signed {
    issuer: Arc<Issuer>,
    typ: Typ,
    claims: Map<String, Value>,
    key: KeyUsed,
}

impl Inner {
    /// The name of a token in the caches: all of its bytes, never a part of them.
    fn digest(&self, token: &str) -> Result<Digest, IdentityError> {
        match token.len() {
            0 => Err(IdentityError::Missing),
            len if len > self.max_token_bytes => Err(Flaw::TooLong.into()),
            _ => Ok(sha256(token)),
        }
    }

    /// Who asks this issuer: another calls its tokens inactive.
    fn introspector_of(&self, issuer: &str) -> Option<&Introspector> {
        self.introspectors.iter().find(|introspector| &*introspector.issuer.url == issuer)
    }

    fn cached(&self, digest: &Digest, keys: Keys) -> Option<Arc<Entry>> {
        let entry = self.cache.get(digest)?;
        let now = self.clock.now();
        if entry.until <= now || !entry.key.as_ref().is_none_or(|used| used.is_published(keys, now)) {
            return None;
        }
        self.counters.hits.fetch_add(1, Ordering::Relaxed);
        Some(entry)
    }

    async fn verify_jwt(&self, token: &str, digest: Digest) -> Result<Arc<Entry>, IdentityError> {
        if let Some(known) = self.cache.get(&digest)
            && let Some(used) = &known.key
        {
            used.issuer.freshen().await;
            if let Some(entry) = self.cached(&digest, Keys::Usable) {
                return Ok(entry);
            }
        }
        self.counters.misses.fetch_add(1, Ordering::Relaxed);
        let signed = self.verify_signature(token).await?;
        let verified = self.access_token(&signed)?;
        let (verified, until) = if self.introspect_all {
            let introspector = self.introspector_of(&signed.issuer.url).ok_or(IdentityError::Unavailable)?;
            let answer = introspector.ask(token, digest).await?;
            let until = answer.until.min(verified.expires_at());
            (verified.with_scopes_of(&*answer.outcome?), until)
        } else {
            let until = verified.expires_at();
            (verified, until)
        };
        let entry = self.remember(digest, Arc::new(verified), until, Some(signed.key));
        // After it was remembered, so that an end that came meanwhile is not missed.
        if self.revalidation.as_ref().is_some_and(|revalidation| revalidation.has_ended(&digest)) {
            self.cache.invalidate(&digest);
            return Err(IdentityError::Revoked);
        }
        Ok(entry)
    }

    async fn verify_opaque(&self, token: &str, digest: Digest) -> Result<Arc<Entry>, IdentityError> {
        self.counters.misses.fetch_add(1, Ordering::Relaxed);
        let first = self.issuers.first().and_then(|issuer| self.introspector_of(&issuer.url));
        let introspector = first.ok_or(Flaw::OpaqueNotAccepted)?;
        if !is_credential(token) {
            return Err(Flaw::Malformed.into());
        }
        let answer = introspector.ask(token, digest).await?;
        let verified = answer.outcome?;
        self.check_client(&verified)?;
        Ok(self.remember(digest, verified, answer.until, None))
    }

    fn remember(&self, digest: Digest, verified: Arc<Verified>, until: Timestamp, key: Option<KeyUsed>) -> Arc<Entry> {
        let entry = Arc::new(Entry { verified, until, key, revalidated: LastAsked::default() });
        self.cache.insert(digest, Arc::clone(&entry));
        entry
    }

    /// Asks the issuer whether a signed token is still active; one that is not is
    /// refused from then on.
    async fn ask_again(&self, token: &SecretString, digest: Digest, issuer: &str) {
        let (Some(revalidation), Some(introspector)) = (&self.revalidation, self.introspector_of(issuer)) else {
            return;
        };
        revalidation.asked.fetch_add(1, Ordering::Relaxed);
        // An issuer that cannot be reached has ended nothing; it is logged there.
        let Ok(answer) = introspector.ask(token.expose(), digest).await else { return };
        match answer.outcome {
            Ok(_) => {}
            Err(IdentityError::Invalid(Flaw::Inactive) | IdentityError::Expired) => {
                revalidation.end(digest);
                self.cache.invalidate(&digest);
                tracing::info!("identity: the issuer has ended a token before it expires");
            }
            Err(error) => {
                tracing::warn!(%error, "identity: the introspection answer about a signed token cannot be used")
            }
        }
    }

    async fn verify_signature(&self, token: &str) -> Result<Signed, IdentityError> {
        let jws = Jws::parse(token)?;
        let kid = jws.kid().ok_or(Flaw::UnknownKey)?;
        let claims = json::object(jws.unverified_payload()).ok_or(Flaw::Malformed)?;
        let iss = jwt::text(&claims, "iss")?;
        let issuer = self.issuers.iter().find(|issuer| &*issuer.url == iss).ok_or(Flaw::Issuer)?;
        issuer.freshen().await;
        let snapshot = issuer.keys_with(kid).await?;
        let key = snapshot.keys.get(kid).ok_or(Flaw::UnknownKey)?;
        self.counters.signatures.fetch_add(1, Ordering::Relaxed);
        jws.verify(key)?;
        let key = KeyUsed { issuer: Arc::clone(issuer), kid: kid.into(), fingerprint: *key.fingerprint() };
        Ok(Signed { issuer: Arc::clone(issuer), typ: jws.typ(), claims, key })
    }

    fn access_token(&self, signed: &Signed) -> Result<Verified, IdentityError> {
        let map = &signed.claims;
        jwt::check_access_token(signed.typ, map)?;
        let claims = Claims::read(map, self.limits, self.clock.now())?;
        jwt::check_audience(map, &signed.issuer.audiences)?;
        let base = Registered {
            issuer: Arc::clone(&signed.issuer.url),
            subject: claims.subject,
            token_id: Some(claims.token_id),
            issued_at: Some(claims.issued_at),
            expires_at: claims.expires_at,
            source: Source::Signature,
        };
        let verified = self.reading.verified(base, map);
        self.check_client(&verified)?;
        Ok(verified)
    }

    fn check_client(&self, verified: &Verified) -> Result<(), Flaw> {
        let allowed = &self.allowed_client_ids;
        if !allowed.is_empty() && !verified.client_id().is_some_and(|id| allowed.iter().any(|own| own == id)) {
            return Err(Flaw::Client);
        }
        if verified.actor().is_some() && !self.allow_delegation {
            return Err(Flaw::Delegated);
        }
        Ok(())
    }
}

impl KeyUsed {
    /// Whether the issuer still publishes this very key.
    fn is_published(&self, keys: Keys, now: Timestamp) -> bool {
        let snapshot = match keys {
            Keys::Fresh => self.issuer.fresh(now),
            Keys::Usable => self.issuer.usable(now),
        };
        snapshot
            .as_ref()
            .and_then(|guard| guard.as_ref()?.keys.get(&self.kid))
            .is_some_and(|key| *key.fingerprint() == self.fingerprint)
    }
}

/// `b64token` of RFC 6750 section 2.1, so that nothing else travels to the issuer.
fn is_credential(token: &str) -> bool {
    let body = token.trim_end_matches('=');
    !body.is_empty() && body.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~+/".contains(&b))
}
