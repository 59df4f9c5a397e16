//! Why a token is not believed, and what the caller hears about it.

use crate::problem::Problem;

/// Why no identity came out of a token. Nothing in here repeats the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// There is no token.
    #[error("Send an access token as `Authorization: Bearer <token>`")]
    Missing,
    /// The token cannot be accepted, now or later.
    #[error("{0}")]
    Invalid(Flaw),
    /// The token was good once.
    #[error("The access token has expired; request a new one")]
    Expired,
    /// The token's subject was cut off after it was issued.
    #[error("The access token has been revoked; sign in again")]
    Revoked,
    /// Nobody can tell: the issuer cannot be reached and nothing usable is cached.
    #[error("The identity provider cannot be reached to check the access token; retry shortly")]
    Unavailable,
    /// The `kid` is not among the keys, and the issuer may not be asked yet whether it is a new one.
    #[error(
        "The token is signed with a key that is not known here yet; its issuer is asked again in {retry_after} seconds"
    )]
    KeyPending {
        /// Seconds until it may be asked.
        retry_after: u32,
    },
    /// The issuer does not answer this service's questions about tokens.
    #[error(
        "The access token cannot be checked: the identity provider does not accept this service's own credentials; its operator has to put that right"
    )]
    ClientRefused,
}

/// What is wrong with a token, in one sentence that says what to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// Longer than the configured cap.
    #[error("The access token is longer than this service accepts")]
    TooLong,
    /// Not a token of any accepted form.
    #[error("The access token is malformed; send it exactly as the identity provider issued it")]
    Malformed,
    /// A JWE.
    #[error("Encrypted tokens are not accepted; request a signed JWT or an opaque token")]
    Encrypted,
    /// A JWS header that asks for something this verifier does not do.
    #[error("The token's header has a parameter or type that is not accepted for access tokens")]
    Header,
    /// `alg` is not in the allow-list, or not the key's.
    #[error(
        "The token's signature algorithm is not accepted; accepted are RS256, RS384, RS512, ES256, ES384 and EdDSA, as the issuer's key says"
    )]
    Algorithm,
    /// `kid` is missing or names no key of the issuer.
    #[error("The token is signed with a key that its issuer does not publish; request a new token")]
    UnknownKey,
    /// The signature does not fit.
    #[error("The token's signature is wrong")]
    Signature,
    /// `iss` is no configured issuer.
    #[error("The token comes from an issuer that this service does not trust")]
    Issuer,
    /// `aud` names none of ours.
    #[error(
        "The token is meant for another audience; request it with this service's project or client in its audience"
    )]
    Audience,
    /// `client_id` is not in the allow-list.
    #[error("The token was issued to a client that this service does not admit")]
    Client,
    /// `nbf` lies ahead.
    #[error("The token is not valid yet; check the clocks of issuer and service")]
    NotYetValid,
    /// `iat` lies ahead.
    #[error("The token was issued in the future; check the clocks of issuer and service")]
    IssuedAhead,
    /// `exp` lies further from `iat` than is allowed.
    #[error("The token lives longer than this service allows; shorten the lifetime at the identity provider")]
    Lifetime,
    /// An ID token or a logout token.
    #[error("This is not an access token; send the access token, not the ID token")]
    NotAnAccessToken,
    /// A required claim is missing or of the wrong type.
    #[error("The token's claim `{0}` is missing or has the wrong type")]
    Claim(&'static str),
    /// A logout token names a session alone, and no access token that is accepted here names one.
    #[error(
        "The logout token names a session (`sid`) alone, and signed access tokens name none, so that it ends nothing; have the identity provider put `sub` into its logout tokens"
    )]
    SessionAlone,
    /// `act` is present and delegation is forbidden.
    #[error("Delegated tokens (claim `act`) are not accepted here")]
    Delegated,
    /// An opaque token, and no introspection.
    #[error(
        "This is neither a signed JWT nor the operator's key, and opaque tokens are not accepted here because introspection is not configured; set the application's token type to JWT"
    )]
    OpaqueNotAccepted,
    /// The issuer says that the token is not active.
    #[error("The identity provider says that the token is not active; request a new one")]
    Inactive,
}

impl From<Flaw> for IdentityError {
    fn from(flaw: Flaw) -> Self {
        Self::Invalid(flaw)
    }
}

/// Seconds after which a caller may ask again: the cooldown of the key fetch.
const RETRY_AFTER: u32 = 30;

impl From<IdentityError> for Problem {
    fn from(error: IdentityError) -> Self {
        let detail = error.to_string();
        match error {
            IdentityError::Missing => Self::unauthenticated("token_missing", detail),
            IdentityError::Invalid(_) => Self::unauthenticated("token_invalid", detail),
            IdentityError::Expired => Self::unauthenticated("token_expired", detail),
            IdentityError::Revoked => Self::unauthenticated("token_revoked", detail),
            IdentityError::KeyPending { retry_after } => Self::unavailable("identity_unavailable", detail, retry_after),
            IdentityError::Unavailable | IdentityError::ClientRefused => {
                Self::unavailable("identity_unavailable", detail, RETRY_AFTER)
            }
        }
    }
}
