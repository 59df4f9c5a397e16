//! Configuration: defaults, then a TOML file, then the environment.
//!
//! The defaults are `examples/alchemi.toml`, which explains every key; a test holds
//! it to the `Default` of each section. A key that does not exist, or a value that
//! cannot be, stops the start with one sentence that names it. This is the only
//! module that reads the environment.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use figment::Figment;
use figment::providers::{Format, Toml};
use serde::Deserialize;
use url::Url;

use crate::alerts::AlertConfig;
use crate::allocation::rules::RuleTerms;
use crate::allocation::{AllocationConfig, Enforcement};
use crate::context::Domain;
use crate::identity::{IdentityConfig, MasterKey};
use crate::journal::JournalConfig;
use crate::model::models::AccessMode;
use crate::outbound::OutboundRules;
use crate::policy::features::RequiredFeatures;
use crate::proxy::ask::AskRules;
use crate::proxy::config::{GatewayConfig, GuardrailsConfig, LimitsConfig, MeteringConfig};
use crate::proxy::forward::UpstreamConfig;
use crate::proxy::headers::Leaks;
use crate::proxy::ingress::TrustedProxies;
use crate::proxy::signed::ContextSigner;
use crate::secret::{KeyRing, SecretString};
use crate::store::DatabaseConfig;
use crate::store::conservation::LedgerConfig;
use crate::zitadel::ManagementConfig;

mod shown;
mod sources;
mod values;

use shown::mask;
use sources::{figment, sentence};
use values::{address, collector, is_origin, optional_address, switch};

/// Every key with its default and what it means.
pub const DEFAULTS: &str = include_str!("../examples/alchemi.toml");

/// Least that `journal.max_bytes` may be.
const SMALLEST_JOURNAL: u64 = 1 << 20;

/// Everything that can be configured.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address of the gateway and `/v1`.
    #[serde(deserialize_with = "address")]
    pub listen: SocketAddr,
    /// Address of `/metrics`, `/healthz` and `/readyz` when they are not to be on the main one.
    #[serde(default, deserialize_with = "optional_address")]
    pub admin_listen: Option<SocketAddr>,
    /// Folder of the journal and the embedded database; of one process.
    pub data_dir: PathBuf,
    /// The operator's key.
    #[serde(default)]
    pub master_key: Option<SecretString>,
    /// Whether the upstream's own keys (`sk-…`) pass unmanaged.
    #[serde(deserialize_with = "switch")]
    pub passthrough: bool,
    /// Product domain of a governed request that names none.
    pub domain_default: Domain,
    /// Networks whose forwarding headers are believed.
    pub trusted_proxies: Vec<String>,
    /// Origins of browsers that may call `/v1`.
    pub cors_origins: Vec<String>,
    /// Where the data lives.
    pub database: DatabaseConfig,
    /// What secrets at rest are sealed under.
    pub secrets: SecretsConfig,
    /// Where URLs in settings may lead.
    pub outbound: OutboundRules,
    /// Whose tokens are believed.
    pub identity: IdentityConfig,
    /// Zitadel's management API.
    pub zitadel: ManagementConfig,
    /// The LLM proxy behind us.
    pub upstream: UpstreamConfig,
    /// What the upstream is told and what clients do not see of it.
    pub context: ContextConfig,
    /// How allocations are enforced.
    pub allocation: AllocationConfig,
    /// How admitted requests are written down.
    pub journal: JournalConfig,
    /// How often the books are checked.
    pub ledger: LedgerConfig,
    /// How alerts are found and delivered.
    pub alerts: AlertConfig,
    /// Who gets into the directory.
    pub directory: DirectoryConfig,
    /// How use is measured.
    pub metering: MeteringConfig,
    /// What holds where no grant says anything.
    pub policy: PolicyConfig,
    /// Features that requests require.
    pub features: FeaturesConfig,
    /// What becomes of what guardrails find in answers.
    pub guardrails: GuardrailsConfig,
    /// How bodies are read.
    pub ask: AskRules,
    /// Limits on requests.
    pub limits: LimitsConfig,
    /// What is logged.
    pub log: LogConfig,
    /// Where traces and metrics are sent.
    pub telemetry: TelemetryConfig,
    /// TLS of our listener.
    #[serde(default)]
    pub tls: Option<TlsConfig>,
}

/// What the upstream is told of a request, and what clients do not see of it.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ContextConfig {
    /// Whether to set LiteLLM's attribution headers.
    pub litellm: bool,
    /// Signs `x-alchemi-context`, for upstreams that want proof of who sent a request.
    pub signing_key: Option<ContextSigner>,
    /// Response headers that are taken out; a `*` at the end stands for anything.
    pub hidden_response_headers: Leaks,
}

impl Default for ContextConfig {
    fn default() -> Self {
        Self { litellm: true, signing_key: None, hidden_response_headers: Leaks::default() }
    }
}

/// What secrets at rest are sealed under.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SecretsConfig {
    /// The first one seals, all of them open.
    pub keys: KeyRing,
}

/// What holds where no grant says anything.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyConfig {
    /// Whether a model without any grant is allowed or denied.
    pub default_model_access: AccessMode,
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self { default_model_access: AccessMode::Deny }
    }
}

/// Features that requests require.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FeaturesConfig {
    /// The code of the feature that a subject must have, by the kind of request.
    pub required: RequiredFeatures,
}

/// Who gets into the directory.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DirectoryConfig {
    /// Whether a subject that the directory does not know is given a user row with the
    /// first request that the account's roles admit.
    pub jit: bool,
}

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For collectors.
    Json,
}

/// What is logged.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// `text` or `json`.
    pub format: LogFormat,
    /// A filter as `RUST_LOG` takes it, such as `info,alchemi=debug`.
    pub filter: String,
}

/// Where traces and metrics are sent.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// A collector that takes OTLP over HTTP; without one, nothing is sent.
    #[serde(deserialize_with = "collector")]
    pub otlp_endpoint: Option<Url>,
    /// Headers of what is sent.
    pub otlp_headers: OtlpHeaders,
    /// How often metrics are sent, in seconds.
    pub metrics_seconds: u64,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self { otlp_endpoint: None, otlp_headers: OtlpHeaders::default(), metrics_seconds: 60 }
    }
}

/// Headers, as `OTEL_EXPORTER_OTLP_HEADERS` has them: `name=value`, separated by commas,
/// values percent-encoded. Their `Debug` shows no value.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct OtlpHeaders(pub Vec<(String, String)>);

impl TryFrom<String> for OtlpHeaders {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let wrong = "expected name=value, separated by commas, with percent-encoded values";
        let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
        let header = |pair: &str| {
            let (name, value) = pair.split_once('=').ok_or(wrong)?;
            let value = percent_encoding::percent_decode_str(value.trim()).decode_utf8().map_err(|_| wrong)?;
            let (name, value) = (name.trim(), value.into_owned());
            let fits =
                http::HeaderName::from_bytes(name.as_bytes()).is_ok() && http::HeaderValue::from_str(&value).is_ok();
            if fits { Ok((name.to_owned(), value)) } else { Err(wrong) }
        };
        pairs.map(header).collect::<Result<_, _>>().map(Self)
    }
}

impl std::fmt::Debug for OtlpHeaders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

/// PEM files of our listener's certificate and key.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The certificate chain.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// What is wrong with the configuration, in one sentence.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

impl Config {
    /// Reads the file, if there is one, and the process's environment.
    ///
    /// # Errors
    /// [`ConfigError`] that names the key, what is wrong with it and what would be accepted.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        Self::from_figment(&figment(file, &environment)?)
    }

    /// Reads the same without asking whether a gateway could run with it, for commands
    /// that only look after the database.
    ///
    /// # Errors
    /// When the file cannot be read or a value is of the wrong type.
    pub fn load_for_database(file: Option<&Path>) -> Result<Self, ConfigError> {
        Self::extract(&figment(file, &environment)?)
    }

    /// Reads TOML text over the defaults; for tests and embedders.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        Self::from_figment(&Figment::from(Toml::string(DEFAULTS)).merge(Toml::string(text)))
    }

    fn from_figment(figment: &Figment) -> Result<Self, ConfigError> {
        let config = Self::extract(figment)?;
        config.check()?;
        Ok(config)
    }

    fn extract(figment: &Figment) -> Result<Self, ConfigError> {
        let mut config: Self = figment.extract().map_err(|error| ConfigError(sentence(figment, &error)))?;
        if config.database.url.is_empty() {
            config.database.url = format!("sqlite:{}", config.data_dir.join("alchemi.db").display());
        }
        Ok(config)
    }

    /// What no type can say.
    fn check(&self) -> Result<(), ConfigError> {
        let wrong = |text: String| Err(ConfigError(text));
        if let Err(error) = self.identity.check() {
            return wrong(error.to_string());
        }
        if let Err(error) = self.upstream.targets() {
            return wrong(format!("upstream: {error}"));
        }
        if let Err(error) = self.zitadel.check() {
            return wrong(error.to_string());
        }
        if let Some(key) = &self.master_key
            && let Err(error) = MasterKey::new(key.clone())
        {
            return wrong(error.to_string());
        }
        if self.identity.issuers.is_empty() && self.master_key.is_none() {
            return wrong(
                "identity.issuers (ZITADEL_ISSUER) is empty and there is no master_key (ALCHEMI_MASTER_KEY): nobody \
                 could call this gateway; set one of them, or try it out with `alchemi dev`"
                    .to_owned(),
            );
        }
        let leases = &self.allocation.leases;
        if leases.enabled && leases.heartbeat_ms.saturating_mul(9) > leases.lease_seconds.max(10).saturating_mul(1_000)
        {
            return wrong(
                "allocation.leases: heartbeat_ms is too long for lease_seconds: a gateway has to be heard of nine times in \
                 a lease's time"
                    .to_owned(),
            );
        }
        if self.cors_origins.iter().any(|origin| origin == "*") {
            return wrong("cors_origins (ALCHEMI_CORS_ORIGINS) holds `*`: name the origins".to_owned());
        }
        if let Some(origin) = self.cors_origins.iter().find(|origin| !is_origin(origin)) {
            return wrong(format!(
                "cors_origins (ALCHEMI_CORS_ORIGINS) holds {origin:?}: write an origin as browsers send it, such as \
                 https://console.example.com"
            ));
        }
        if let Some((kind, _)) = self.features.required.iter().find(|(_, code)| code.trim().is_empty()) {
            let kind = kind.as_str();
            return wrong(format!(
                "features.required.{kind} is empty: name the feature that requests of this kind require, or leave the \
                 key out"
            ));
        }
        self.trusted()?;
        if self.journal.max_bytes < SMALLEST_JOURNAL {
            return wrong(format!(
                "journal.max_bytes = {} must be {SMALLEST_JOURNAL} or more: less is full after a few requests",
                self.journal.max_bytes
            ));
        }
        let abandoned = self.allocation.abandon_after_seconds;
        let limits =
            [("total_timeout", self.upstream.total_timeout), ("response_timeout", self.upstream.response_timeout)];
        if let Some((key, limit)) = limits.iter().find(|(_, limit)| Duration::from_secs(abandoned) <= *limit) {
            return wrong(format!(
                "allocation.abandon_after_seconds = {abandoned} must be more than upstream.{key} = {}: a request under \
                 way would be charged as abandoned",
                limit.as_secs()
            ));
        }
        Ok(())
    }

    /// What is allowed but should be looked after, a sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let sections = self.identity.warnings().into_iter().chain(self.zitadel.warnings());
        let mut warnings: Vec<String> = sections.map(str::to_owned).collect();
        match self.allocation.enforcement {
            Enforcement::Hard => {}
            Enforcement::Soft => {
                warnings.push("allocation: enforcement = \"soft\" lets requests over their budget".to_owned())
            }
            Enforcement::Shadow => {
                warnings.push("allocation: enforcement = \"shadow\" lets requests over their budget untold".to_owned())
            }
            Enforcement::Off => warnings.push("allocation: enforcement = \"off\" holds nobody to a budget".to_owned()),
        }
        warnings.extend(self.metering.warning().map(str::to_owned));
        if self.passthrough {
            warnings.push(
                "passthrough: whoever has a key of the upstream's own (sk-…) uses it on every route, past policy and budgets"
                    .to_owned(),
            );
        }
        if self.upstream.api_key.is_none() {
            warnings.push("upstream: without api_key the upstream lets everybody in who reaches it".to_owned());
        }
        warnings
    }

    /// The networks whose forwarding headers are believed.
    ///
    /// # Errors
    /// [`ConfigError`] for one that is no network.
    pub fn trusted(&self) -> Result<TrustedProxies, ConfigError> {
        self.trusted_proxies
            .join(",")
            .parse()
            .map_err(|error| ConfigError(format!("trusted_proxies (ALCHEMI_TRUSTED_PROXIES): {error}")))
    }

    /// What is added to every subject's rules.
    pub fn rule_terms(&self) -> RuleTerms {
        RuleTerms {
            default_access: self.policy.default_model_access,
            allocation_required: self.allocation.require,
            required_features: self.features.required.clone(),
            enforcement: self.allocation.enforcement,
        }
    }

    /// The part that the gateway is made with.
    pub fn gateway(&self) -> GatewayConfig {
        GatewayConfig {
            passthrough: self.passthrough,
            domain_default: self.domain_default,
            ask: self.ask.clone(),
            metering: self.metering.clone(),
            guardrails: self.guardrails,
            max_body: self.limits.body_bytes,
            body_timeout: Duration::from_secs(self.limits.body_seconds),
            idle_timeout: self.upstream.idle_timeout,
            total_timeout: self.upstream.total_timeout,
            credential: self.upstream.api_key.clone(),
            litellm: self.context.litellm,
            signer: self.context.signing_key.clone(),
            leaks: self.context.hidden_response_headers.clone(),
            jit: self.directory.jit,
            callers_capacity: self.allocation.rules_capacity,
            callers_ttl: Duration::from_secs(self.allocation.rules_ttl_seconds.max(1)),
        }
    }
}

/// What is in force, as TOML with every secret masked.
///
/// # Errors
/// As [`Config::load`].
pub fn show(file: Option<&Path>) -> Result<String, ConfigError> {
    let figment = figment(file, &environment)?;
    Config::from_figment(&figment)?;
    let mut tree: toml::Table = figment.extract().map_err(|error| ConfigError(sentence(&figment, &error)))?;
    tree.iter_mut().for_each(|(key, value)| mask(key, value));
    toml::to_string_pretty(&tree).map_err(|error| ConfigError(error.to_string()))
}

/// A variable, if it is set to something.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Variables of the environment that look like settings and are none, a sentence each: a
/// misspelt one changes nothing.
pub fn unknown_variables() -> Vec<String> {
    sources::unknown(std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()))
}

#[cfg(test)]
mod reference;

#[cfg(test)]
mod tests;
