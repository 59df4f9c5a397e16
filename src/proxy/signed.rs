//! `x-alchemi-context`: who is calling, as a short-lived signed JWT (RFC 7519, HS256), so
//! that an upstream that shares the key can tell that it was alchemi that said so.

use std::fmt;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use super::headers::ContextHeaders;

/// How long a token is good for, in seconds.
const LIFETIME: i64 = 60;

/// `{"alg":"HS256","typ":"JWT"}`
const HEADER: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9";

/// The key that context tokens are signed with.
#[derive(Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct ContextSigner(hmac::Key);

/// The text is no signing key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("context.signing_key must be at least 32 bytes in base64; `alchemi keygen secret` makes one")]
pub struct WeakSigningKey;

impl TryFrom<String> for ContextSigner {
    type Error = WeakSigningKey;

    fn try_from(text: String) -> Result<Self, WeakSigningKey> {
        let key = STANDARD.decode(text.trim()).ok().filter(|key| key.len() >= 32).ok_or(WeakSigningKey)?;
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &key)))
    }
}

impl fmt::Debug for ContextSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ContextSigner(redacted)")
    }
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'static str,
    iat: i64,
    exp: i64,
    jti: &'a str,
    account_id: &'a str,
    sub: &'a str,
    roles: &'a [String],
    scopes: &'a [String],
    domain: &'static str,
    org_id: Option<&'a str>,
    team_id: Option<&'a str>,
    user_id: Option<&'a str>,
    agent_id: Option<&'a str>,
}

impl ContextSigner {
    /// The token of one request.
    pub fn sign(&self, context: &ContextHeaders<'_>) -> String {
        let iat = context.now.as_secs();
        let facts = &context.facts;
        let claims = Claims {
            iss: "alchemi",
            iat,
            exp: iat + LIFETIME,
            jti: context.request_id.as_str(),
            account_id: facts.account_id,
            sub: facts.subject,
            roles: facts.roles,
            scopes: facts.scopes,
            domain: facts.domain.as_str(),
            org_id: facts.org_id,
            team_id: facts.team_id,
            user_id: facts.user_id,
            agent_id: context.agent_id,
        };
        let claims = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&claims).unwrap_or_default());
        let signed = format!("{HEADER}.{claims}");
        let signature = URL_SAFE_NO_PAD.encode(hmac::sign(&self.0, signed.as_bytes()));
        format!("{signed}.{signature}")
    }
}
