//! Subjects and sessions whose tokens were cut off before they expire.

use serde::Serialize;

use crate::clock::Timestamp;
use crate::id::Id;

/// Every token of a subject that was issued before a moment is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Revocation {
    /// Its id.
    pub id: Id<Revocation>,
    /// The issuer of the tokens.
    #[schema(example = "https://login.example.com")]
    pub issuer: String,
    /// Their subject.
    #[schema(example = "259242039378444290")]
    pub subject: String,
    /// Tokens issued before this are refused.
    pub issued_before: Timestamp,
    /// Why.
    #[schema(example = "laptop lost")]
    pub reason: Option<String>,
    /// Who cut the subject off first.
    pub created_by: Option<String>,
    /// When the subject was first cut off.
    pub created_at: Timestamp,
}

/// What a logout token of an issuer says (OpenID Connect Back-Channel Logout 1.0).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Logout {
    /// The issuer, whose own tokens it ends.
    pub issuer: String,
    /// The `jti` of the logout token: it is taken once.
    pub token_id: String,
    /// Who signed out. Zitadel's access tokens name no session, so all of the
    /// subject's tokens end.
    pub subject: Option<String>,
    /// The session that ended.
    pub session: Option<String>,
    /// Tokens of the subject that were issued before this end.
    pub issued_before: Timestamp,
    /// When every token that it ends has expired.
    pub until: Timestamp,
}
