//! What a verified token says.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::config::{IdentityConfig, ScopesSource};
use crate::clock::Timestamp;
use crate::id::MAX_ID_BYTES;

/// The claim with the home organisation of a user.
pub(super) const RESOURCE_OWNER: &str = "urn:zitadel:iam:user:resourceowner:id";

/// Claims that may list product domains, tried in order.
const PRODUCT_DOMAIN_CLAIMS: [&str; 3] =
    ["product_domains_allowed", "alchemi:product_domains_allowed", "product_domains"];

/// How a token was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// Its signature, here.
    Signature,
    /// The issuer said so (RFC 7662).
    Introspection,
}

/// The facts of a token that has been verified; only this module makes one.
#[derive(Clone, PartialEq, Eq)]
pub struct Verified {
    issuer: Arc<str>,
    subject: Arc<str>,
    client_id: Option<String>,
    token_id: Option<String>,
    session: Option<Box<str>>,
    issued_at: Option<Timestamp>,
    expires_at: Timestamp,
    email: Option<Arc<str>>,
    actor: Option<String>,
    roles: BTreeMap<String, Vec<String>>,
    resource_owner: Option<String>,
    account_candidates: Vec<String>,
    scopes: Vec<String>,
    product_domains: Option<Vec<String>>,
    source: Source,
}

/// Neither the token nor personal data is shown.
impl fmt::Debug for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verified")
            .field("issuer", &self.issuer)
            .field("subject", &self.subject)
            .field("client_id", &self.client_id)
            .field("expires_at", &self.expires_at)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

impl Verified {
    /// The token's `iss`.
    pub fn issuer(&self) -> &Arc<str> {
        &self.issuer
    }
    /// The token's `sub`; with the issuer, the identity of the caller.
    pub fn subject(&self) -> &Arc<str> {
        &self.subject
    }
    /// The client that the token was issued to.
    pub fn client_id(&self) -> Option<&str> {
        self.client_id.as_deref()
    }
    /// The token's `jti`; always there when the signature was checked here.
    pub fn token_id(&self) -> Option<&str> {
        self.token_id.as_deref()
    }
    /// The token's `iat`; always there when the signature was checked here.
    pub fn issued_at(&self) -> Option<Timestamp> {
        self.issued_at
    }
    /// The token's `exp`; [`Timestamp`]'s maximum for a personal access token without one.
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }
    /// The e-mail address, only if the issuer says that it is verified.
    pub fn email(&self) -> Option<&Arc<str>> {
        self.email.as_ref()
    }
    /// Who acts for the subject (RFC 8693 section 4.1), by `sub`; empty if not named.
    pub fn actor(&self) -> Option<&str> {
        self.actor.as_deref()
    }
    /// Roles of the configured project, each with the organisations that granted it.
    pub fn roles(&self) -> &BTreeMap<String, Vec<String>> {
        &self.roles
    }
    /// The subject's home organisation, where the token names it.
    pub fn resource_owner(&self) -> Option<&str> {
        self.resource_owner.as_deref()
    }
    /// Values of the configured account claims, in the configured order.
    pub fn account_candidates(&self) -> &[String] {
        &self.account_candidates
    }
    /// Scopes from the configured source; empty when roles are the source.
    pub fn scopes(&self) -> &[String] {
        &self.scopes
    }
    /// Product domains that the token allows, if it says.
    pub fn product_domains(&self) -> Option<&[String]> {
        self.product_domains.as_deref()
    }
    /// The session (`sid`), where an introspection answer names one; signed access
    /// tokens never do.
    pub fn session(&self) -> Option<&str> {
        self.session.as_deref()
    }
    /// How the token was checked.
    pub fn source(&self) -> Source {
        self.source
    }

    /// Whether `organization` granted any role of the project.
    pub fn has_role_from(&self, organization: &str) -> bool {
        self.roles.values().any(|grants| grants.iter().any(|org| org == organization))
    }

    pub(super) fn with_scopes_of(mut self, other: &Self) -> Self {
        self.scopes.clone_from(&other.scopes);
        self
    }
}

/// The registered claims, read and checked by the caller.
pub(super) struct Registered<'m> {
    pub issuer: Arc<str>,
    pub subject: &'m str,
    pub token_id: Option<&'m str>,
    pub issued_at: Option<Timestamp>,
    pub expires_at: Timestamp,
    pub source: Source,
}

/// Which claims are read.
#[derive(Debug)]
pub(super) struct Reading {
    roles_claim: Option<String>,
    account_id_claims: Vec<String>,
    scopes: ScopesSource,
}

impl Reading {
    pub(super) fn new(config: &IdentityConfig) -> Self {
        Self {
            // Never the generic claim: it holds the roles of the client's own project.
            roles_claim: config
                .project_id
                .as_ref()
                .filter(|id| !id.is_empty())
                .map(|id| format!("urn:zitadel:iam:org:project:{id}:roles")),
            account_id_claims: config.account_id_claims.clone(),
            scopes: config.scopes_source.clone(),
        }
    }

    pub(super) fn verified(&self, base: Registered<'_>, claims: &Map<String, Value>) -> Verified {
        let text = |name: &str| claims.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        let email_is_verified = claims.get("email_verified") == Some(&Value::Bool(true));
        let scopes = match (&self.scopes, base.source) {
            (ScopesSource::Roles, _) | (ScopesSource::Introspection, Source::Signature) => Vec::new(),
            (ScopesSource::Introspection, Source::Introspection) => words(claims.get("scope")).unwrap_or_default(),
            (ScopesSource::Claim(name), _) => words(claims.get(name)).unwrap_or_default(),
        };
        Verified {
            issuer: base.issuer,
            subject: base.subject.into(),
            client_id: text("client_id").map(str::to_owned),
            token_id: base.token_id.map(str::to_owned),
            session: text("sid").map(Into::into),
            issued_at: base.issued_at,
            expires_at: base.expires_at,
            email: text("email").filter(|_| email_is_verified).map(Into::into),
            actor: claims.get("act").map(|act| act.get("sub").and_then(Value::as_str).unwrap_or_default().to_owned()),
            roles: self.roles(claims),
            resource_owner: text(RESOURCE_OWNER).map(str::to_owned),
            account_candidates: self
                .account_id_claims
                .iter()
                .filter_map(|name| text(name))
                .filter(|id| id.len() <= MAX_ID_BYTES && id.bytes().all(|b| b.is_ascii_graphic()))
                .map(str::to_owned)
                .collect(),
            scopes,
            product_domains: PRODUCT_DOMAIN_CLAIMS.iter().find_map(|name| words(claims.get(*name))),
            source: base.source,
        }
    }

    /// `{role: {organisation id: domain}}`; anything of another form grants nothing.
    fn roles(&self, claims: &Map<String, Value>) -> BTreeMap<String, Vec<String>> {
        let claimed = self.roles_claim.as_ref().and_then(|name| claims.get(name)).and_then(Value::as_object);
        claimed
            .into_iter()
            .flatten()
            .filter_map(|(role, grants)| Some((role.clone(), grants.as_object()?.keys().cloned().collect())))
            .collect()
    }
}

/// A list of strings, or a string split at commas and white space.
fn words(value: Option<&Value>) -> Option<Vec<String>> {
    let split = |text: &str| -> Vec<String> {
        text.split([',', ' ', '\t', '\n', '\r']).filter(|word| !word.is_empty()).map(str::to_owned).collect()
    };
    match value? {
        Value::String(text) => Some(split(text)),
        Value::Array(items) => Some(items.iter().filter_map(Value::as_str).map(str::to_owned).collect()),
        _ => None,
    }
}
