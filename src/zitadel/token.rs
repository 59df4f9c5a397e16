//! The token that calls are made with: fetched once for all, and anew before it expires.

use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tokio::sync::Mutex;

use super::config::Credential;
use super::error::Error;
use super::metrics::Operation;
use super::transport::{Answer, Wire};
use crate::clock::{SharedClock, Timestamp};
use crate::secret::SecretString;

/// A token is fetched anew when this much of its life is left, or a fifth of it if that is less.
const AHEAD: Duration = Duration::from_secs(60);

/// Before the next attempt at another token, while the one that there is still holds.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// What a lifetime that is not told is taken for.
const UNTOLD: u64 = 300;

const JWT_BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";

#[derive(Debug)]
pub(super) struct TokenSource {
    credential: Credential,
    scope: String,
    clock: SharedClock,
    /// Held while a token is fetched, so that one is enough.
    current: Mutex<Option<Token>>,
}

#[derive(Debug)]
struct Token {
    text: SecretString,
    fresh_until: Timestamp,
    holds_until: Timestamp,
}

/// The fields of a form.
type Form = Vec<(&'static str, String)>;

/// Name and password of HTTP's Basic scheme.
pub(super) type Basic = (String, SecretString);

#[derive(Deserialize)]
struct Issued {
    access_token: SecretString,
    #[serde(default)]
    expires_in: Option<u64>,
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    token_endpoint: String,
}

impl TokenSource {
    pub(super) fn new(credential: Credential, scope: String, clock: SharedClock) -> Self {
        Self { credential, scope, clock, current: Mutex::default() }
    }

    /// The token to use now.
    pub(super) async fn token(&self, wire: &Wire) -> Result<SecretString, Error> {
        if let Credential::Token(token) = &self.credential {
            return Ok(token.clone());
        }
        let mut current = self.current.lock().await;
        if let Some(token) = current.as_ref().filter(|token| self.clock.now() < token.fresh_until) {
            return Ok(token.text.clone());
        }
        let issued = match self.fetch(wire).await {
            Ok(issued) => issued,
            Err(error) => {
                let now = self.clock.now();
                let held = current.as_mut().filter(|held| error.is_transient() && now < held.holds_until);
                let Some(held) = held else { return Err(error) };
                let rest = error.retry_after().unwrap_or_default().max(TRY_AGAIN);
                held.fresh_until = now.plus(rest).min(held.holds_until);
                return Ok(held.text.clone());
            }
        };
        let (now, life) = (self.clock.now(), Duration::from_secs(issued.expires_in.unwrap_or(UNTOLD)));
        let (fresh_until, holds_until) = (now.plus(life.saturating_sub(AHEAD.min(life / 5))), now.plus(life));
        let text = issued.access_token;
        *current = Some(Token { text: text.clone(), fresh_until, holds_until });
        Ok(text)
    }

    /// Forgets a token that was refused; whether another one may be had.
    pub(super) async fn refused(&self, used: &SecretString) -> bool {
        let mut current = self.current.lock().await;
        if current.as_ref().is_some_and(|token| token.text == *used) {
            *current = None;
        }
        !matches!(self.credential, Credential::Token(_))
    }

    async fn fetch(&self, wire: &Wire) -> Result<Issued, Error> {
        let discovery = read::<Discovery>(&wire.get("/.well-known/openid-configuration").await?)?;
        // Only the path: the credential stays with the address that the operator has set.
        let endpoint = url::Url::parse(&discovery.token_endpoint).map_err(|_| Error::Malformed)?;
        let (form, basic) = self.form(&discovery.issuer)?;
        let answer = wire.form(Operation::Token, endpoint.path(), &form, basic).await?;
        match answer.status.as_u16() {
            400..=403 => Err(Error::of_token(&answer.body)),
            _ => read(&answer),
        }
    }

    fn form(&self, issuer: &str) -> Result<(Form, Option<Basic>), Error> {
        let scope = ("scope", self.scope.clone());
        match &self.credential {
            Credential::KeyFile(key) => {
                let assertion = key.assertion(issuer, self.clock.now()).ok_or(Error::Malformed)?;
                Ok((vec![("grant_type", JWT_BEARER.to_owned()), ("assertion", assertion), scope], None))
            }
            Credential::Client { id, secret } => {
                // Both parts form-encoded (RFC 6749 section 2.3.1).
                let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
                let basic = (encode(id), encode(secret.expose()).into());
                Ok((vec![("grant_type", "client_credentials".to_owned()), scope], Some(basic)))
            }
            Credential::Token(_) => Err(Error::NotConfigured),
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(answer: &Answer) -> Result<T, Error> {
    match answer.status.as_u16() {
        200..=299 => serde_json::from_slice(&answer.body).map_err(|_| Error::Malformed),
        429 => Err(Error::Throttled(answer.retry_after)),
        status => Err(Error::Failed { status, retry_after: answer.retry_after }),
    }
}
