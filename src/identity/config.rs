//! Settings of the section `[identity]`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use url::Url;

use super::claims::ClaimRules;
use super::jwt::{Audiences, TimeLimits};
use crate::outbound::is_loopback;
use crate::secret::SecretString;

/// Whose tokens are believed, and what is read from them.
///
/// ```
/// use alchemi::identity::{IdentityConfig, IssuerConfig};
///
/// let mut config = IdentityConfig { issuers: vec![IssuerConfig::at("https://login.example.com")], ..Default::default() };
/// assert!(config.check().unwrap_err().to_string().contains("project_id"));
/// config.project_id = Some("310716".to_owned());
/// assert_eq!(config.check(), Ok(()));
/// ```
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IdentityConfig {
    /// Trusted issuers. With none, no token is accepted.
    pub issuers: Vec<IssuerConfig>,
    /// The Zitadel project whose roles count; also an accepted audience.
    pub project_id: Option<String>,
    /// Accepted audiences besides the project; `*` accepts any.
    pub audiences: Vec<String>,
    /// When not empty, only tokens issued to these clients are accepted.
    pub allowed_client_ids: Vec<String>,
    /// Clients of ours that the identity provider logs people out of, besides those
    /// of `allowed_client_ids`: the audience of Zitadel's logout tokens.
    pub logout_client_ids: Vec<String>,
    /// Whether tokens with `act` (token exchange, impersonation) are accepted.
    pub allow_delegation: bool,
    /// Client that asks the first issuer about opaque tokens (RFC 7662).
    pub introspection_client_id: Option<String>,
    /// Its secret.
    pub introspection_client_secret: Option<SecretString>,
    /// Or its key file, as Zitadel hands it out for an application of type API.
    pub introspection_key_file: Option<PathBuf>,
    /// Claims that may name the account, tried in order.
    pub account_id_claims: Vec<String>,
    /// Project roles that make a super admin.
    pub super_admin_roles: Vec<String>,
    /// When set, those roles count only if this organisation granted them.
    pub super_admin_org_id: Option<String>,
    /// Domains of a token that names none: `console`, `copilot` or `all`.
    pub default_product_domains: Vec<String>,
    /// Where scopes come from: `roles`, `introspection` or `claim:<name>`.
    pub scopes_source: ScopesSource,
    /// Tolerated clock difference in seconds, at most 30.
    pub leeway_seconds: u64,
    /// Longest accepted `exp - iat` in seconds.
    pub max_lifetime_seconds: u64,
    /// Longest accepted token in bytes.
    pub max_token_bytes: usize,
    /// Age in seconds at which an issuer's keys are fetched again.
    pub jwks_ttl_seconds: u64,
    /// Age in seconds up to which keys serve while the issuer is unreachable.
    pub jwks_max_stale_seconds: u64,
    /// Verified tokens that are kept.
    pub cache_capacity: u64,
    /// How long an introspection answer is believed, in seconds, at most 60.
    pub introspection_cache_seconds: u64,
    /// Which signed tokens the issuer is asked about again.
    pub revalidate: RevalidateConfig,
}

/// Signed tokens that the issuer is asked about again (RFC 7662), beside the request.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RevalidateConfig {
    /// The share of their uses that makes the gateway ask, 0 to 1; 0 switches it off.
    pub probability: f64,
    /// How old a token is before it is asked about, and how long it then rests, in seconds.
    pub min_age_seconds: u64,
}

impl Default for RevalidateConfig {
    fn default() -> Self {
        Self { probability: 0.0, min_age_seconds: 300 }
    }
}

impl Default for IdentityConfig {
    fn default() -> Self {
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
        Self {
            issuers: Vec::new(),
            project_id: None,
            audiences: Vec::new(),
            allowed_client_ids: Vec::new(),
            logout_client_ids: Vec::new(),
            allow_delegation: true,
            introspection_client_id: None,
            introspection_client_secret: None,
            introspection_key_file: None,
            account_id_claims: names(&[
                "alchemi:account_id",
                "account_id",
                super::verified::RESOURCE_OWNER,
                "urn:zitadel:iam:org:id",
            ]),
            super_admin_roles: names(&["super_admin"]),
            super_admin_org_id: None,
            default_product_domains: names(&["console", "copilot"]),
            scopes_source: ScopesSource::Roles,
            leeway_seconds: 30,
            max_lifetime_seconds: 24 * 60 * 60,
            max_token_bytes: 8192,
            jwks_ttl_seconds: 300,
            jwks_max_stale_seconds: 3600,
            cache_capacity: 100_000,
            introspection_cache_seconds: 60,
            revalidate: RevalidateConfig::default(),
        }
    }
}

/// One trusted issuer.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuerConfig {
    /// Exactly what its tokens say in `iss`.
    pub url: String,
    /// Where its keys are, when discovery is not to be used.
    #[serde(default)]
    pub jwks_uri: Option<String>,
    /// Where to reach it when not at its own address; the issuer's `Host` is sent.
    #[serde(default)]
    pub internal_url: Option<String>,
    /// Accepted audiences of this issuer's tokens, in place of the general ones.
    #[serde(default)]
    pub audiences: Vec<String>,
    /// Whether it is the platform's own: its tokens may make super admins, and are for accounts
    /// that are bound to no issuer. Unless said, the first issuer is.
    #[serde(default)]
    pub platform: Option<bool>,
    /// As whom to ask this issuer about tokens (RFC 7662). The first issuer is asked as
    /// [`IdentityConfig::introspection_client_id`] says, unless this does.
    #[serde(default)]
    pub introspection_client_id: Option<String>,
    /// The client's secret.
    #[serde(default)]
    pub introspection_client_secret: Option<SecretString>,
    /// The key file of an application of type API, in place of both.
    #[serde(default)]
    pub introspection_key_file: Option<PathBuf>,
}

impl IssuerConfig {
    /// An issuer with everything taken from discovery.
    pub fn at(url: impl Into<String>) -> Self {
        Self { url: url.into(), ..Self::default() }
    }

    fn asker(&self) -> Asker<'_> {
        Asker {
            client_id: self.introspection_client_id.as_deref(),
            client_secret: self.introspection_client_secret.as_ref(),
            key_file: self.introspection_key_file.as_deref(),
        }
    }
}

/// Where a token's scopes come from. Zitadel's JWT access tokens carry none.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum ScopesSource {
    /// The roles that count for the account are the scopes.
    Roles,
    /// `scope` of the introspection answer; every token is then introspected.
    /// A client chooses the scopes that it asks for.
    Introspection,
    /// A claim, a list or space-separated. An organisation's Action may set it.
    Claim(String),
}

impl TryFrom<String> for ScopesSource {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match (text.as_str(), text.strip_prefix("claim:")) {
            ("roles", _) => Ok(Self::Roles),
            ("introspection", _) => Ok(Self::Introspection),
            (_, Some(name)) if !name.is_empty() => Ok(Self::Claim(name.to_owned())),
            _ => Err(format!("`{text}` is no source of scopes; use `roles`, `introspection` or `claim:<name>`")),
        }
    }
}

/// What is wrong with the settings, in one sentence that says what to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityConfigError {
    /// Tokens could be meant for anybody.
    #[error(
        "identity: nothing says which tokens are meant for this service; set project_id (ZITADEL_PROJECT_ID), or audiences (ZITADEL_AUDIENCE), or accept every audience with audiences = [\"*\"]"
    )]
    NoAudience,
    /// A URL that cannot be used.
    #[error("identity: {key} = `{value}`: {problem}")]
    Url {
        /// The setting.
        key: &'static str,
        /// What it says.
        value: String,
        /// What would be accepted.
        problem: &'static str,
    },
    /// A number out of range.
    #[error("identity: {key} = {value} is out of range; {accepted}")]
    Range {
        /// The setting.
        key: &'static str,
        /// What it says.
        value: u64,
        /// What would be accepted.
        accepted: &'static str,
    },
    /// Introspection is half configured.
    #[error("identity: {0}")]
    Introspection(&'static str),
    /// The key file cannot be read or is of the wrong kind.
    #[error("identity: introspection_key_file `{path}`: {problem}")]
    KeyFile {
        /// Where it should be.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// The HTTP client cannot be built.
    #[error("identity: the TLS client cannot start: {0}")]
    Tls(String),
}

impl IdentityConfig {
    /// Checks what can be checked without touching files or the network.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), IdentityConfigError> {
        for issuer in &self.issuers {
            issuer_url(issuer)?;
            internal_url(issuer)?;
            jwks_uri(issuer)?;
            if matches!(self.audiences_of(issuer), Audiences::These(names) if names.is_empty()) {
                return Err(IdentityConfigError::NoAudience);
            }
        }
        self.check_introspection()?;
        in_range("leeway_seconds", self.leeway_seconds, 0, 30, "use 0 to 30")?;
        in_range("max_lifetime_seconds", self.max_lifetime_seconds, 60, 31_536_000, "use 60 to 31536000 (a year)")?;
        in_range("max_token_bytes", self.max_token_bytes as u64, 512, 65_536, "use 512 to 65536")?;
        in_range("jwks_ttl_seconds", self.jwks_ttl_seconds, 30, 86_400, "use 30 to 86400")?;
        in_range("introspection_cache_seconds", self.introspection_cache_seconds, 0, 60, "use 0 to 60")?;
        if self.jwks_max_stale_seconds < self.jwks_ttl_seconds {
            return Err(IdentityConfigError::Range {
                key: "jwks_max_stale_seconds",
                value: self.jwks_max_stale_seconds,
                accepted: "use at least jwks_ttl_seconds",
            });
        }
        Ok(())
    }

    fn check_introspection(&self) -> Result<(), IdentityConfigError> {
        if !(0.0..=1.0).contains(&self.revalidate.probability) {
            return Err(IdentityConfigError::Introspection("revalidate.probability must be 0 to 1"));
        }
        if self.issuers.is_empty() && !self.general_asker().is_nobody() {
            return Err(IdentityConfigError::Introspection("introspection needs an issuer (ZITADEL_ISSUER)"));
        }
        let askers: Vec<_> = (0..self.issuers.len()).map(|n| self.asker(n)).collect();
        if let Some(flaw) = askers.iter().find_map(Asker::flaw) {
            return Err(IdentityConfigError::Introspection(flaw));
        }
        let first_says = self.issuers.first().is_some_and(|issuer| !issuer.asker().is_nobody());
        if first_says && !self.general_asker().is_nobody() {
            return Err(IdentityConfigError::Introspection(
                "introspection_client_id and the like say as whom the first issuer is asked, and so do its own: set \
                 one of both",
            ));
        }
        let everybody = !askers.is_empty() && askers.iter().all(|asker| !asker.is_nobody());
        let somebody = askers.iter().any(|asker| !asker.is_nobody());
        let flaw = if self.scopes_source == ScopesSource::Introspection && !everybody {
            "scopes_source = \"introspection\" needs introspection_client_id and introspection_client_secret, or \
             introspection_key_file; of several issuers, those of each (issuers.introspection_client_id)"
        } else if self.revalidate.probability > 0.0 && !somebody {
            "revalidate needs introspection_client_id and introspection_client_secret, or introspection_key_file"
        } else {
            return Ok(());
        };
        Err(IdentityConfigError::Introspection(flaw))
    }

    /// As whom an issuer is asked about tokens: as it says itself, the first one else as is
    /// said in general.
    pub(super) fn asker(&self, issuer: usize) -> Asker<'_> {
        match self.issuers.get(issuer).map(IssuerConfig::asker).filter(|asker| !asker.is_nobody()) {
            Some(own) => own,
            None if issuer == 0 => self.general_asker(),
            None => Asker::default(),
        }
    }

    /// Whether opaque tokens can be asked about: they are the first issuer's.
    pub fn introspects(&self) -> bool {
        !self.issuers.is_empty() && !self.asker(0).is_nobody()
    }

    fn general_asker(&self) -> Asker<'_> {
        Asker {
            client_id: self.introspection_client_id.as_deref(),
            client_secret: self.introspection_client_secret.as_ref(),
            key_file: self.introspection_key_file.as_deref(),
        }
    }

    /// What is allowed and yet worth a warning at every start.
    pub fn warnings(&self) -> Vec<&'static str> {
        let mut warnings = Vec::new();
        if self.issuers.iter().any(|issuer| matches!(self.audiences_of(issuer), Audiences::Any)) {
            warnings.push("identity: audiences = [\"*\"] accepts tokens that were issued for other services");
        }
        if !self.issuers.is_empty() && self.project_id.is_none() {
            warnings.push("identity: without project_id no role of any token counts");
        }
        if !self.issuers.is_empty() && self.super_admin_org_id.is_none() && !self.super_admin_roles.is_empty() {
            warnings.push("identity: without super_admin_org_id any organisation that may grant the super-admin role can make super admins");
        }
        if !self.issuers.is_empty() && self.platform_issuers().next().is_none() {
            warnings.push(
                "identity: no issuer is the platform's own: nobody is a super admin, and accounts that are bound to no \
                 issuer let nobody in; issuers.platform says it for each",
            );
        }
        if self.issuers.len() > 1 && self.issuers.iter().all(|issuer| issuer.platform.is_none()) {
            warnings.push(
                "identity: of several issuers, the first alone makes super admins and is for accounts that are bound to no \
                 issuer; issuers.platform says it for each",
            );
        }
        if matches!(self.scopes_source, ScopesSource::Claim(_)) {
            warnings.push("identity: scopes are read from a claim, which an organisation's own Actions may set");
        }
        if self.scopes_source == ScopesSource::Introspection {
            warnings.push("identity: scopes are read from introspection, where they are what the client asked for");
        }
        warnings
    }

    /// The rules by which claims become a context.
    pub fn claim_rules(&self) -> ClaimRules {
        ClaimRules {
            super_admin_roles: self.super_admin_roles.clone(),
            platform_issuers: self.platform_issuers().map(str::to_owned).collect(),
            super_admin_org_id: self.super_admin_org_id.clone(),
            default_product_domains: self.default_product_domains.clone(),
            scopes_from_roles: self.scopes_source == ScopesSource::Roles,
        }
    }

    /// The platform's own issuers: who signs for one of them can be anybody of any organisation,
    /// so that another installation's are not among them unasked.
    pub(crate) fn platform_issuers(&self) -> impl Iterator<Item = &str> {
        let own = |(n, issuer): &(usize, &IssuerConfig)| issuer.platform.unwrap_or(*n == 0);
        self.issuers.iter().enumerate().filter(own).map(|(_, issuer)| issuer.url.as_str())
    }

    pub(super) fn audiences_of(&self, issuer: &IssuerConfig) -> Audiences {
        let named = if issuer.audiences.is_empty() { &self.audiences } else { &issuer.audiences };
        if named.iter().any(|name| name == "*") {
            return Audiences::Any;
        }
        Audiences::These(named.iter().chain(&self.project_id).filter(|name| !name.is_empty()).cloned().collect())
    }

    pub(super) fn time_limits(&self) -> TimeLimits {
        TimeLimits {
            leeway: Duration::from_secs(self.leeway_seconds),
            max_lifetime: Duration::from_secs(self.max_lifetime_seconds),
        }
    }
}

/// As whom an issuer is asked about tokens.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Asker<'a> {
    pub client_id: Option<&'a str>,
    pub client_secret: Option<&'a SecretString>,
    pub key_file: Option<&'a Path>,
}

impl Asker<'_> {
    /// Nothing is said: the issuer is not asked.
    pub(super) fn is_nobody(&self) -> bool {
        self.client_id.is_none() && self.client_secret.is_none() && self.key_file.is_none()
    }

    fn flaw(&self) -> Option<&'static str> {
        match (self.client_id, self.client_secret, self.key_file) {
            (Some(_), None, None) => Some(
                "introspection_client_id needs introspection_client_secret, or introspection_key_file in place of both",
            ),
            (None, Some(_), _) => Some("introspection_client_secret needs introspection_client_id"),
            (Some(_), _, Some(_)) => Some(
                "introspection_key_file names its own client; remove introspection_client_id and introspection_client_secret",
            ),
            _ => None,
        }
    }
}

fn in_range(
    key: &'static str,
    value: u64,
    min: u64,
    max: u64,
    accepted: &'static str,
) -> Result<(), IdentityConfigError> {
    if (min..=max).contains(&value) { Ok(()) } else { Err(IdentityConfigError::Range { key, value, accepted }) }
}

/// The issuer as a URL; its exact text stays what `iss` is compared with.
pub(super) fn issuer_url(issuer: &IssuerConfig) -> Result<Url, IdentityConfigError> {
    let url = http_url("issuers.url (ZITADEL_ISSUER)", &issuer.url)?;
    if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() || url.password().is_some() {
        return Err(url_error("issuers.url (ZITADEL_ISSUER)", &issuer.url, "an issuer has no query, fragment or user"));
    }
    let authority = issuer.url.split("://").nth(1).and_then(|rest| rest.split('/').next()).unwrap_or_default();
    if url.port().is_none() && (authority.ends_with(":443") || authority.ends_with(":80")) {
        let problem =
            "Zitadel's issuer leaves the usual port out, and `iss` is compared letter by letter; leave it out";
        return Err(url_error("issuers.url (ZITADEL_ISSUER)", &issuer.url, problem));
    }
    if issuer.url.ends_with('/') {
        let problem = "Zitadel's issuer has no slash at the end, and `iss` is compared letter by letter; leave it out";
        return Err(url_error("issuers.url (ZITADEL_ISSUER)", &issuer.url, problem));
    }
    secure("issuers.url (ZITADEL_ISSUER)", &issuer.url, url)
}

pub(super) fn internal_url(issuer: &IssuerConfig) -> Result<Option<Url>, IdentityConfigError> {
    let key = "issuers.internal_url (ZITADEL_INTERNAL_URL)";
    issuer.internal_url.as_deref().map(|text| http_url(key, text)).transpose()
}

pub(super) fn jwks_uri(issuer: &IssuerConfig) -> Result<Option<Url>, IdentityConfigError> {
    let key = "issuers.jwks_uri (ZITADEL_JWKS_URI)";
    let Some(text) = issuer.jwks_uri.as_deref() else { return Ok(None) };
    let url = http_url(key, text)?;
    if internal_url(issuer)?.is_some() { Ok(Some(url)) } else { secure(key, text, url).map(Some) }
}

fn http_url(key: &'static str, text: &str) -> Result<Url, IdentityConfigError> {
    match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.host().is_some() => Ok(url),
        _ => Err(url_error(key, text, "expected a URL such as https://login.example.com")),
    }
}

fn secure(key: &'static str, text: &str, url: Url) -> Result<Url, IdentityConfigError> {
    if is_secure(&url) {
        return Ok(url);
    }
    Err(url_error(key, text, "http is accepted for loopback hosts only; use https"))
}

/// Whether what comes from `url` cannot be changed on the way.
pub(super) fn is_secure(url: &Url) -> bool {
    url.scheme() == "https" || is_loopback(url)
}

fn url_error(key: &'static str, value: &str, problem: &'static str) -> IdentityConfigError {
    IdentityConfigError::Url { key, value: value.to_owned(), problem }
}
