//! An OpenID issuer in Zitadel's shape, for development only.
//!
//! Discovery, keys, `client_credentials` and introspection answer as Zitadel v4
//! does, down to what it leaves out: a JWT access token has no `scope`, a service
//! user gets no audience and no roles unless its scopes ask for both, and every
//! problem with a token introspects as `{"active": false}`. There is no sign-in
//! page: [`DevIssuer::mint`] makes the token of a person.

mod claims;
mod endpoints;
mod keys;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use serde_json::{Map, Value};

pub use self::claims::{DevUser, Org};
use self::claims::{Session, sign_in_scope};
pub use self::keys::DevKey;
use self::keys::{KeyRing, SigningKey};
use super::DevError;
use super::listener::{self, Serving};
use crate::clock::SharedClock;
use crate::id::IdSource;

/// Zitadel's default lifetime of an access token.
pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(12 * 60 * 60);

/// The running issuer; dropping it stops it.
///
/// ```
/// # use std::{sync::Arc, time::Duration};
/// # use alchemi::{clock::SystemClock, dev::{DevIssuer, DevUser, Org}, id::RandomIds};
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let listen = "127.0.0.1:0".parse()?;
/// let issuer = DevIssuer::start(listen, Arc::new(SystemClock), Arc::new(RandomIds)).await?;
/// let org = Org { id: "7001".into(), name: "Acme".into(), domain: "acme.localhost".into() };
/// issuer.add_user(DevUser {
///     subject: "8001".into(),
///     email: Some("ada@acme.localhost".into()),
///     name: "Ada".into(),
///     organization: org.clone(),
///     roles: vec![("account_admin".into(), org)],
///     claims: Default::default(),
/// });
/// let token = issuer.mint("8001", Duration::from_secs(900))?;
/// assert_eq!(token.split('.').count(), 3);
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct DevIssuer {
    state: Arc<State>,
    _serving: Serving,
}

/// The credentials of an API application of the project, for introspection.
#[derive(Clone)]
pub struct ApiClient {
    /// Its client id.
    pub id: String,
    /// Its secret.
    pub secret: String,
}

impl std::fmt::Debug for ApiClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiClient").field("id", &self.id).finish_non_exhaustive()
    }
}

struct State {
    url: String,
    project: String,
    app: String,
    api: ApiClient,
    clock: SharedClock,
    ids: Arc<dyn IdSource>,
    desk: Mutex<Desk>,
}

/// What changes while the issuer runs.
#[derive(Default)]
struct Desk {
    keys: KeyRing,
    users: HashMap<String, DevUser>,
    services: HashMap<String, Service>,
    /// By `jti`.
    sessions: HashMap<String, Session>,
    /// By the token's text.
    opaque: HashMap<String, Session>,
}

struct Service {
    subject: String,
    secret: String,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("url", &self.url).field("project", &self.project).finish_non_exhaustive()
    }
}

impl DevIssuer {
    /// Makes an RSA and a P-256 key and listens on `listen` (port 0: a free one).
    ///
    /// # Errors
    /// [`DevError::NotLoopback`] for any other address, [`DevError::Listen`] when
    /// it is taken, [`DevError::Signing`] when no key can be made.
    pub async fn start(listen: SocketAddr, clock: SharedClock, ids: Arc<dyn IdSource>) -> Result<Self, DevError> {
        Self::start_with(listen, clock, ids, DevKey::generate()?).await
    }

    /// The same with an RSA key that is there already.
    ///
    /// # Errors
    /// As [`DevIssuer::start`].
    pub async fn start_with(
        listen: SocketAddr,
        clock: SharedClock,
        ids: Arc<dyn IdSource>,
        key: DevKey,
    ) -> Result<Self, DevError> {
        let (listener, bound) = listener::bind(listen).await?;
        let state = Arc::new(State {
            url: format!("http://{bound}"),
            project: snowflake(&clock, &ids),
            app: snowflake(&clock, &ids),
            api: ApiClient { id: snowflake(&clock, &ids), secret: secret(&clock, &ids) },
            clock,
            ids,
            desk: Mutex::default(),
        });
        state.rotate_to(key)?;
        let serving = Serving::start(listener, endpoints::router(Arc::clone(&state)));
        Ok(Self { state, _serving: serving })
    }

    /// The issuer, as in `iss`: no path, no trailing slash.
    pub fn url(&self) -> &str {
        &self.state.url
    }

    /// The project whose roles the tokens carry, which is also their audience.
    pub fn project_id(&self) -> &str {
        &self.state.project
    }

    /// Who may introspect.
    pub fn api_client(&self) -> &ApiClient {
        &self.state.api
    }

    /// The issuer's routes, to be called without a socket.
    pub fn router(&self) -> axum::Router {
        endpoints::router(Arc::clone(&self.state))
    }

    /// Adds a user, or replaces the one with the same subject.
    pub fn add_user(&self, user: DevUser) {
        self.state.desk().users.insert(user.subject.clone(), user);
    }

    /// Adds a service user that gets its tokens by `client_credentials`, with
    /// `username` as its client id as in Zitadel.
    pub fn add_service_user(&self, user: DevUser, username: &str, secret: &str) {
        let service = Service { subject: user.subject.clone(), secret: secret.to_owned() };
        self.add_user(user);
        self.state.desk().services.insert(username.to_owned(), service);
    }

    /// Removes a user: its tokens introspect as inactive, though a JWT still
    /// verifies against the keys until it expires.
    pub fn remove_user(&self, subject: &str) {
        self.state.desk().users.remove(subject);
    }

    /// A JWT access token (RS256) of a person who signed in to the project's
    /// application and asked for roles and resource owner.
    ///
    /// # Errors
    /// [`DevError::UnknownSubject`].
    pub fn mint(&self, subject: &str, lifetime: Duration) -> Result<String, DevError> {
        let claims = self.claims(subject, lifetime)?;
        self.sign(Algorithm::RS256, &claims)
    }

    /// The claims that [`mint`](Self::mint) signs, for tests that bend them first.
    ///
    /// # Errors
    /// [`DevError::UnknownSubject`].
    pub fn claims(&self, subject: &str, lifetime: Duration) -> Result<Map<String, Value>, DevError> {
        let session = self.state.sign_in(subject, lifetime)?;
        let mut desk = self.state.desk();
        let user = desk.users.get(subject).ok_or_else(|| DevError::UnknownSubject(subject.to_owned()))?;
        let claims = session.access_token(&self.state.url, &self.state.project, user, true);
        desk.sessions.insert(session.token_id.clone(), session);
        Ok(claims)
    }

    /// Any claims, signed by the active key of `algorithm` (RS256 or ES256).
    ///
    /// # Errors
    /// [`DevError::Signing`] for another algorithm.
    pub fn sign(&self, algorithm: Algorithm, claims: &Map<String, Value>) -> Result<String, DevError> {
        self.state.desk().keys.sign(algorithm, claims)
    }

    /// An opaque access token of the same session as [`mint`](Self::mint) makes,
    /// valid for [`DEFAULT_LIFETIME`]: only introspection tells what it says.
    ///
    /// # Errors
    /// [`DevError::UnknownSubject`].
    pub fn opaque(&self, subject: &str) -> Result<String, DevError> {
        let session = self.state.sign_in(subject, DEFAULT_LIFETIME)?;
        let token = secret(&self.state.clock, &self.state.ids);
        self.state.desk().opaque.insert(token.clone(), session);
        Ok(token)
    }

    /// Makes new keys, which sign from now on; the former stay published.
    ///
    /// # Errors
    /// [`DevError::Signing`] when no key can be made.
    pub fn rotate(&self) -> Result<(), DevError> {
        self.state.rotate_to(DevKey::generate()?)
    }

    /// Withdraws the keys that no longer sign: their tokens stop verifying.
    pub fn withdraw_inactive_keys(&self) {
        self.state.desk().keys.withdraw_inactive();
    }
}

impl State {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rotate_to(&self, key: DevKey) -> Result<(), DevError> {
        let rsa = SigningKey::rsa(self.snowflake(), key)?;
        let ec = SigningKey::ec(self.snowflake())?;
        let mut desk = self.desk();
        desk.keys.activate(rsa);
        desk.keys.activate(ec);
        Ok(())
    }

    fn snowflake(&self) -> String {
        snowflake(&self.clock, &self.ids)
    }

    fn sign_in(&self, subject: &str, lifetime: Duration) -> Result<Session, DevError> {
        if !self.desk().users.contains_key(subject) {
            return Err(DevError::UnknownSubject(subject.to_owned()));
        }
        let audience = vec![self.app.clone(), self.project.clone()];
        Ok(self.session(subject, &self.app, audience, sign_in_scope(&self.project), lifetime))
    }

    /// A new session; those that have expired are forgotten by the way.
    fn session(
        &self,
        subject: &str,
        client: &str,
        audience: Vec<String>,
        scope: String,
        lifetime: Duration,
    ) -> Session {
        let now = self.clock.now();
        let mut desk = self.desk();
        desk.sessions.retain(|_, session| session.expires_at > now.as_secs());
        desk.opaque.retain(|_, session| session.expires_at > now.as_secs());
        drop(desk);
        Session {
            token_id: format!("V2_{}-at_{}", self.snowflake(), self.snowflake()),
            subject: subject.to_owned(),
            client_id: client.to_owned(),
            audience,
            scope,
            issued_at: now.as_secs(),
            expires_at: now.plus(lifetime).as_secs(),
        }
    }
}

/// 18 digits, as Zitadel's ids.
fn snowflake(clock: &SharedClock, ids: &Arc<dyn IdSource>) -> String {
    let low = ids.uuid(clock.now()).as_u128() & ((1 << 58) - 1);
    (300_000_000_000_000_000 + low).to_string()
}

/// Unguessable text without a dot, so that nobody takes it for a JWT.
fn secret(clock: &SharedClock, ids: &Arc<dyn IdSource>) -> String {
    let halves = [ids.uuid(clock.now()), ids.uuid(clock.now())];
    URL_SAFE_NO_PAD.encode(halves.map(uuid::Uuid::into_bytes).concat())
}
