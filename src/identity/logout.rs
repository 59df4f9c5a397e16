//! Logout tokens (OpenID Connect Back-Channel Logout 1.0).

use std::time::Duration;

use serde_json::Value;

use super::Identity;
use super::error::{Flaw, IdentityError};
use super::jwt::{self, Audiences, Typ};
use crate::model::revocations::Logout;
use crate::problem::Problem;

/// What a logout token's `events` must name (section 2.4).
const EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";

impl Identity {
    /// Verifies a logout token (section 2.6) and says whom it cuts off. The caller
    /// refuses one that it has taken before, stores the others and
    /// [inserts](super::Revocations::insert_logout) them.
    ///
    /// # Errors
    /// [`IdentityError`] as for [`verify`](Self::verify); [`Flaw::Claim`] for `sub` when
    /// the token names neither a subject nor a session; [`Flaw::SessionAlone`] when it names a
    /// session alone and its issuer is not introspected: no other token can name its session.
    pub async fn verify_logout(&self, token: &str) -> Result<Logout, IdentityError> {
        let inner = &*self.0;
        inner.digest(token)?;
        let signed = inner.verify_signature(token).await?;
        let map = &signed.claims;
        let is_logout = map.get("events").and_then(|events| events.get(EVENT)).is_some_and(Value::is_object);
        if signed.typ == Typ::AccessToken || map.contains_key("nonce") || !is_logout {
            return Err(Flaw::Claim("events").into());
        }
        let (issued_at, _) = inner.limits.check(map, inner.clock.now())?;
        let named = |name: &'static str| match map.get(name) {
            None => Ok(None),
            Some(_) => jwt::text(map, name).map(|text| Some(text.to_owned())),
        };
        let (subject, session) = (named("sub")?, named("sid")?);
        if subject.is_none() && session.is_none() {
            return Err(Flaw::Claim("sub").into());
        }
        let introspected = inner.introspector_of(&signed.issuer.url).is_some();
        if subject.is_none() && !introspected {
            return Err(Flaw::SessionAlone.into());
        }
        // Zitadel names the client alone in `aud`, without the project.
        let clients = Audiences::These(inner.logout_clients.clone());
        jwt::check_audience(map, &signed.issuer.audiences).or_else(|_| jwt::check_audience(map, &clients))?;
        // `iat` counts whole seconds, so the second of the logout goes too.
        let issued_before = issued_at.plus(Duration::from_secs(1));
        Ok(Logout {
            issuer: signed.issuer.url.to_string(),
            token_id: jwt::text(map, "jti")?.to_owned(),
            subject,
            session,
            issued_before,
            until: issued_before.plus(inner.limits.max_lifetime).plus(inner.limits.leeway),
        })
    }
}

/// What the sender of a logout token hears: 400 with the members of RFC 6749 section 5.2
/// (section 2.8), or 503 when its keys cannot be fetched, so that it tries again.
pub fn logout_refused(error: IdentityError) -> Problem {
    let detail = match error {
        IdentityError::Unavailable | IdentityError::KeyPending { .. } => return error.into(),
        IdentityError::Invalid(Flaw::Audience) => {
            "The logout token is meant for another client; name its client in identity.logout_client_ids \
             (ZITADEL_LOGOUT_CLIENT_IDS) if it is one of this service's"
                .to_owned()
        }
        other => format!("The logout token is not accepted: {other}"),
    };
    Problem::bad_request("logout_token_invalid", detail.clone())
        .with("error", "invalid_request")
        .with("error_description", detail)
}
