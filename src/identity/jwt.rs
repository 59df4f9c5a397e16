//! Compact JWS (RFC 7515) behind a header gate (RFC 8725), and the claims of an
//! access token (RFC 7519, RFC 9068) read strictly.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::error::{Flaw, IdentityError};
use super::json;
use super::jwks::{Algorithm, Key, NotVerified};
use crate::clock::Timestamp;

/// Longest `kid` that is looked up.
pub const MAX_KID_BYTES: usize = 256;

/// Header parameters that change how a token is to be read or where its key
/// comes from. None is supported, so none may be present.
const REFUSED_PARAMETERS: [&str; 9] = ["crit", "b64", "zip", "enc", "cty", "jku", "jwk", "x5u", "x5c"];

/// What the header's `typ` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Typ {
    /// `JWT`, as Zitadel sends for every kind of token, or no `typ`.
    Plain,
    /// `at+jwt` (RFC 9068 section 2.1).
    AccessToken,
    /// `logout+jwt` (OpenID Connect Back-Channel Logout 1.0 section 2.4).
    LogoutToken,
}

/// A compact JWS, taken apart but not yet believed.
#[derive(Debug)]
pub struct Jws<'t> {
    algorithm: Algorithm,
    kid: Option<String>,
    typ: Typ,
    signing_input: &'t [u8],
    payload: Vec<u8>,
    signature: Vec<u8>,
}

impl<'t> Jws<'t> {
    /// Takes a token apart and lets its header through the gate.
    ///
    /// The caller caps the length first: this decodes all of it.
    ///
    /// # Errors
    /// [`Flaw::Malformed`], [`Flaw::Header`], [`Flaw::Algorithm`] or [`Flaw::UnknownKey`].
    pub fn parse(token: &'t str) -> Result<Self, Flaw> {
        let (signing_input, signature) = token.rsplit_once('.').ok_or(Flaw::Malformed)?;
        let (header, payload) = signing_input.split_once('.').ok_or(Flaw::Malformed)?;
        let header = json::object(&decode(header)?).ok_or(Flaw::Malformed)?;
        if REFUSED_PARAMETERS.iter().any(|name| header.contains_key(*name)) {
            return Err(Flaw::Header);
        }
        let kid = match header.get("kid") {
            None => None,
            Some(Value::String(kid)) if kid.len() <= MAX_KID_BYTES => Some(kid.clone()),
            Some(_) => return Err(Flaw::UnknownKey),
        };
        Ok(Self {
            algorithm: header
                .get("alg")
                .and_then(Value::as_str)
                .and_then(Algorithm::from_name)
                .ok_or(Flaw::Algorithm)?,
            kid,
            typ: typ(header.get("typ"))?,
            signing_input: signing_input.as_bytes(),
            payload: decode(payload)?,
            signature: decode(signature)?,
        })
    }

    /// The header's `kid`.
    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// The header's `typ`.
    pub fn typ(&self) -> Typ {
        self.typ
    }

    /// The payload, for finding the issuer whose key is needed. Not verified.
    pub fn unverified_payload(&self) -> &[u8] {
        &self.payload
    }

    /// Checks the signature with `key`.
    ///
    /// # Errors
    /// [`Flaw::Algorithm`] when the key is not for the token's `alg`, else [`Flaw::Signature`].
    pub fn verify(&self, key: &Key) -> Result<(), Flaw> {
        key.verify(self.algorithm, self.signing_input, &self.signature).map_err(|error| match error {
            NotVerified::Algorithm => Flaw::Algorithm,
            NotVerified::Signature => Flaw::Signature,
        })
    }
}

/// Base64url without padding, canonical: no whitespace, no unused bits set.
fn decode(part: &str) -> Result<Vec<u8>, Flaw> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| Flaw::Malformed)
}

fn typ(value: Option<&Value>) -> Result<Typ, Flaw> {
    let Some(value) = value else { return Ok(Typ::Plain) };
    let text = value.as_str().ok_or(Flaw::Header)?;
    // Media types compare without case; `application/` may be left out (RFC 7515 section 4.1.9).
    let lower = text.to_ascii_lowercase();
    match lower.strip_prefix("application/").unwrap_or(&lower) {
        "jwt" => Ok(Typ::Plain),
        "at+jwt" => Ok(Typ::AccessToken),
        "logout+jwt" => Ok(Typ::LogoutToken),
        _ => Err(Flaw::Header),
    }
}

/// Claims that only ID tokens or logout tokens have; Zitadel gives all kinds the
/// same issuer, keys and `typ`, and overlapping audiences.
const NOT_ACCESS_TOKEN_CLAIMS: [&str; 6] = ["at_hash", "c_hash", "nonce", "azp", "sid", "events"];

/// Limits on times.
#[derive(Debug, Clone, Copy)]
pub(super) struct TimeLimits {
    pub leeway: Duration,
    pub max_lifetime: Duration,
}

impl TimeLimits {
    /// Checks the times of a signed token, of whatever kind; gives `iat` and `exp`.
    pub(super) fn check(
        &self,
        map: &Map<String, Value>,
        now: Timestamp,
    ) -> Result<(Timestamp, Timestamp), IdentityError> {
        let required = |name| moment(map, name)?.ok_or(Flaw::Claim(name));
        let (issued_at, expires_at) = (required("iat")?, required("exp")?);
        self.check_expiry(expires_at, now)?;
        self.check_start(moment(map, "nbf")?, Some(issued_at), now)?;
        if expires_at > issued_at.plus(self.max_lifetime) {
            return Err(Flaw::Lifetime.into());
        }
        Ok((issued_at, expires_at))
    }

    pub(super) fn check_expiry(&self, expires_at: Timestamp, now: Timestamp) -> Result<(), IdentityError> {
        if now >= expires_at.plus(self.leeway) { Err(IdentityError::Expired) } else { Ok(()) }
    }

    pub(super) fn check_start(
        &self,
        not_before: Option<Timestamp>,
        issued_at: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<(), Flaw> {
        let latest = now.plus(self.leeway);
        if not_before.is_some_and(|at| at > latest) {
            return Err(Flaw::NotYetValid);
        }
        if issued_at.is_some_and(|at| at > latest) {
            return Err(Flaw::IssuedAhead);
        }
        Ok(())
    }
}

/// The registered claims of a signed token whose signature has been verified.
#[derive(Debug)]
pub(super) struct Claims<'m> {
    pub subject: &'m str,
    pub issued_at: Timestamp,
    pub expires_at: Timestamp,
    pub token_id: &'m str,
}

impl<'m> Claims<'m> {
    /// Reads the claims that every access token needs and checks its times.
    pub(super) fn read(map: &'m Map<String, Value>, limits: TimeLimits, now: Timestamp) -> Result<Self, IdentityError> {
        let (issued_at, expires_at) = limits.check(map, now)?;
        Ok(Self { subject: text(map, "sub")?, issued_at, expires_at, token_id: text(map, "jti")? })
    }
}

/// Refuses what only another kind of token shows.
///
/// Zitadel's ID tokens lack `jti`, and its access tokens have it.
pub(super) fn check_access_token(typ: Typ, map: &Map<String, Value>) -> Result<(), Flaw> {
    let foreign = NOT_ACCESS_TOKEN_CLAIMS.iter().any(|name| map.contains_key(*name));
    if typ == Typ::LogoutToken || foreign || !map.contains_key("jti") {
        return Err(Flaw::NotAnAccessToken);
    }
    Ok(())
}

/// A claim that must be a non-empty string.
pub(super) fn text<'m>(map: &'m Map<String, Value>, name: &'static str) -> Result<&'m str, Flaw> {
    map.get(name).and_then(Value::as_str).filter(|text| !text.is_empty()).ok_or(Flaw::Claim(name))
}

/// A `NumericDate` in whole seconds, as Zitadel writes it, if present.
pub(super) fn moment(map: &Map<String, Value>, name: &'static str) -> Result<Option<Timestamp>, Flaw> {
    match map.get(name) {
        None => Ok(None),
        Some(value) => value.as_i64().map(|secs| Some(Timestamp::from_secs(secs))).ok_or(Flaw::Claim(name)),
    }
}

/// Whether `aud`, a string or an array of strings, names one of `accepted`.
pub(super) fn check_audience(map: &Map<String, Value>, accepted: &Audiences) -> Result<(), Flaw> {
    let matches = |value: &Value| value.as_str().map(|name| accepted.contain(name)).ok_or(Flaw::Claim("aud"));
    let found = match map.get("aud") {
        Some(one @ Value::String(_)) => matches(one)?,
        Some(Value::Array(many)) if !many.is_empty() => {
            many.iter().try_fold(false, |found, one| Ok::<_, Flaw>(matches(one)? || found))?
        }
        _ => return Err(Flaw::Claim("aud")),
    };
    if found { Ok(()) } else { Err(Flaw::Audience) }
}

/// The audiences that are us.
#[derive(Debug, Clone)]
pub(super) enum Audiences {
    Any,
    These(Vec<String>),
}

impl Audiences {
    fn contain(&self, name: &str) -> bool {
        match self {
            Self::Any => true,
            Self::These(names) => names.iter().any(|own| own == name),
        }
    }
}
