//! Where settings come from: the file, the environment, and what is said of a wrong one.

use std::path::Path;

use figment::error::Kind;
use figment::providers::{Format, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};

use super::shown::is_secret;
use super::{ConfigError, DEFAULTS};

pub(super) fn figment(
    file: Option<&Path>,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Figment, ConfigError> {
    let mut figment = Figment::from(Toml::string(DEFAULTS));
    if let Some(path) = file {
        if !path.is_file() {
            return Err(ConfigError(format!("{}: no such file", path.display())));
        }
        figment = figment.merge(Toml::file_exact(path));
    }
    Ok(figment.merge(Environment(dict_of(environment)?)))
}

/// How a variable's text becomes a value.
#[derive(Debug, Clone, Copy)]
pub(super) enum Read {
    Text,
    List,
    /// A comma-separated list of issuers.
    Issuers,
}

/// The variables and the keys that they override.
pub(super) const VARIABLES: &[(&str, &str, Read)] = &[
    ("ALCHEMI_LISTEN", "listen", Read::Text),
    ("ALCHEMI_ADMIN_LISTEN", "admin_listen", Read::Text),
    ("ALCHEMI_DATA_DIR", "data_dir", Read::Text),
    ("ALCHEMI_MASTER_KEY", "master_key", Read::Text),
    ("ALCHEMI_PASSTHROUGH", "passthrough", Read::Text),
    ("ALCHEMI_DOMAIN_DEFAULT", "domain_default", Read::Text),
    ("ALCHEMI_TRUSTED_PROXIES", "trusted_proxies", Read::List),
    ("ALCHEMI_CORS_ORIGINS", "cors_origins", Read::List),
    ("DATABASE_URL", "database.url", Read::Text),
    ("ALCHEMI_SECRET_KEY", "secrets.keys", Read::List),
    ("ALCHEMI_UPSTREAM_URL", "upstream.urls", Read::List),
    ("ALCHEMI_UPSTREAM_API_KEY", "upstream.api_key", Read::Text),
    ("ALCHEMI_ENFORCEMENT", "allocation.enforcement", Read::Text),
    ("ALCHEMI_TLS_CERT", "tls.cert", Read::Text),
    ("ALCHEMI_TLS_KEY", "tls.key", Read::Text),
    ("ALCHEMI_LOG_FORMAT", "log.format", Read::Text),
    ("RUST_LOG", "log.filter", Read::Text),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "telemetry.otlp_endpoint", Read::Text),
    ("OTEL_EXPORTER_OTLP_HEADERS", "telemetry.otlp_headers", Read::Text),
    ("ZITADEL_ISSUER", "identity.issuers", Read::Issuers),
    ("ZITADEL_ISSUER_URL", "identity.issuers", Read::Issuers),
    ("ZITADEL_PROJECT_ID", "identity.project_id", Read::Text),
    ("ZITADEL_AUDIENCE", "identity.audiences", Read::List),
    ("ZITADEL_INTROSPECTION_CLIENT_ID", "identity.introspection_client_id", Read::Text),
    ("ZITADEL_INTROSPECTION_CLIENT_SECRET", "identity.introspection_client_secret", Read::Text),
    ("ZITADEL_INTROSPECTION_KEY_FILE", "identity.introspection_key_file", Read::Text),
    ("ZITADEL_ACCOUNT_ID_CLAIMS", "identity.account_id_claims", Read::List),
    ("ZITADEL_SUPER_ADMIN_ROLES", "identity.super_admin_roles", Read::List),
    ("ZITADEL_SUPER_ADMIN_ORG_ID", "identity.super_admin_org_id", Read::Text),
    ("ZITADEL_LOGOUT_CLIENT_IDS", "identity.logout_client_ids", Read::List),
    ("ZITADEL_MGMT_API_BASE_URL", "zitadel.url", Read::Text),
    ("ZITADEL_MGMT_API_TOKEN", "zitadel.token", Read::Text),
    ("ZITADEL_KEY_FILE", "zitadel.key_file", Read::Text),
    ("ZITADEL_CLIENT_ID", "zitadel.client_id", Read::Text),
    ("ZITADEL_CLIENT_SECRET", "zitadel.client_secret", Read::Text),
    ("ZITADEL_MGMT_SCOPE", "zitadel.scope", Read::Text),
];

/// Variables that say more about the issuers of `ZITADEL_ISSUER`.
pub(super) const ISSUER_VARIABLES: &[(&str, &str)] =
    &[("ZITADEL_JWKS_URI", "jwks_uri"), ("ZITADEL_INTERNAL_URL", "internal_url")];

/// Variables that look like settings and are none, a sentence each: a misspelt one changes nothing.
pub(super) fn unknown(variables: impl Iterator<Item = String>) -> Vec<String> {
    let is_known = |name: &str| {
        name == "ALCHEMI_CONFIG"
            || name.starts_with("ALCHEMI_TEST_")
            // What Kubernetes tells of services of these names.
            || ["_SERVICE_HOST", "_SERVICE_PORT", "_PORT"].iter().any(|end| name.ends_with(end))
            || ["_SERVICE_PORT_", "_TCP", "_UDP"].iter().any(|part| name.contains(part))
            || VARIABLES.iter().any(|(known, ..)| *known == name)
            || ISSUER_VARIABLES.iter().any(|(known, _)| *known == name)
    };
    variables
        .filter(|name| name.starts_with("ALCHEMI_") || name.starts_with("ZITADEL_"))
        .filter(|name| !is_known(name))
        .map(|name| format!("{name} is no variable that is read here, and changes nothing"))
        .collect()
}

/// What the environment says, as a layer of the configuration.
struct Environment(Dict);

impl Provider for Environment {
    fn metadata(&self) -> Metadata {
        Metadata::named("the environment")
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Map::from([(Profile::Default, self.0.clone())]))
    }
}

fn dict_of(environment: &dyn Fn(&str) -> Option<String>) -> Result<Dict, ConfigError> {
    let mut dict = Dict::new();
    for (variable, key, read) in VARIABLES {
        let Some(text) = environment(variable) else { continue };
        let value = match read {
            Read::Text => Value::from(text),
            Read::List => Value::from(items(&text).map(str::to_owned).collect::<Vec<_>>()),
            Read::Issuers => issuers(&text, environment)?,
        };
        put(&mut dict, key, value);
    }
    Ok(dict)
}

fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

fn issuers(text: &str, environment: &dyn Fn(&str) -> Option<String>) -> Result<Value, ConfigError> {
    let urls: Vec<&str> = items(text).collect();
    let mut list = Vec::new();
    for url in &urls {
        let mut issuer = Dict::from([("url".to_owned(), Value::from(*url))]);
        for (variable, key) in ISSUER_VARIABLES {
            let Some(value) = environment(variable) else { continue };
            if urls.len() > 1 {
                return Err(ConfigError(format!(
                    "{variable} says something about one issuer, and ZITADEL_ISSUER names {}: use [[identity.issuers]] in \
                     the file",
                    urls.len()
                )));
            }
            issuer.insert((*key).to_owned(), Value::from(value));
        }
        list.push(Value::from(issuer));
    }
    Ok(Value::from(list))
}

fn put(dict: &mut Dict, key: &str, value: Value) {
    match key.split_once('.') {
        None => _ = dict.insert(key.to_owned(), value),
        Some((section, rest)) => {
            let entry = dict.entry(section.to_owned()).or_insert_with(|| Value::from(Dict::new()));
            if let Value::Dict(_, inner) = entry {
                put(inner, rest, value);
            }
        }
    }
}

/// What is wrong with a setting, in one sentence that names the key, the variable if it
/// has one, and the value unless it is a secret.
pub(super) fn sentence(figment: &Figment, error: &figment::Error) -> String {
    let key = error.path.join(".");
    let source = error.metadata.as_ref().and_then(|metadata| metadata.source.as_ref());
    let source = source.map_or_else(String::new, |source| format!("{source}: "));
    let variable = VARIABLES.iter().find(|(_, path, _)| *path == key).map(|(name, ..)| *name);
    // Only figment's own messages say what was found.
    let own = !matches!(error.kind, Kind::Message(_));
    let value = figment.find_value(&key).ok().filter(|_| !own && !key.is_empty() && !key.split('.').any(is_secret));
    let value = value.as_ref().and_then(Value::as_str).map_or_else(String::new, |text| format!(" = {text:?}"));
    let place = match (key.is_empty(), variable) {
        (true, _) => String::new(),
        (false, Some(variable)) => format!("{key} ({variable}){value}: "),
        (false, None) => format!("{key}{value}: "),
    };
    format!("{source}{place}{}; `alchemi check-config --help` says where every key is explained", reason(error))
}

/// On one line, without the picture that the TOML parser draws of where it stands.
fn reason(error: &figment::Error) -> String {
    let text = error.kind.to_string();
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.contains('|'));
    lines.collect::<Vec<_>>().join(": ")
}
