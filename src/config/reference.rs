//! `docs/configuration.md`, held to the example that is every key's default, and the
//! example to the variables that are read.

use std::fmt::Write as _;

use figment::value::Value;

use super::sources::{ISSUER_VARIABLES, VARIABLES, figment};
use super::{Config, DEFAULTS};

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");

const HEAD: &str = "\
# Configuration

Defaults, then a TOML file (`alchemi serve --config FILE`, or `ALCHEMI_CONFIG`), then the environment: a variable overrides its key. The
defaults are [`examples/alchemi.toml`](../examples/alchemi.toml), which `alchemi check-config --example` prints; `alchemi check-config` says what is
in force. A list in a variable is separated by commas. Where there is no default, the key is unset.

This page follows from the example; `UPDATE_SNAPSHOTS=1 cargo test --lib reference` writes it anew.
";

/// One key of the example.
#[derive(Debug)]
struct Key {
    section: String,
    name: String,
    /// As TOML; none for a key that is unset unless somebody sets it.
    default: Option<String>,
    /// What a key without a default may look like.
    example: String,
    meaning: String,
}

impl Key {
    fn path(&self) -> String {
        if self.section.is_empty() { self.name.clone() } else { format!("{}.{}", self.section, self.name) }
    }

    fn variables(&self) -> Vec<&'static str> {
        let path = self.path();
        let issuer = path.strip_prefix("identity.issuers[].");
        let of_issuer = ISSUER_VARIABLES.iter().filter(|(_, key)| Some(*key) == issuer).map(|(variable, _)| *variable);
        VARIABLES.iter().filter(|(_, key, _)| *key == path).map(|(variable, ..)| *variable).chain(of_issuer).collect()
    }
}

/// The keys of the example in their order.
fn keys() -> Vec<Key> {
    let (mut keys, mut section) = (Vec::<Key>::new(), String::new());
    let mut open = false;
    for line in DEFAULTS.lines() {
        let (written, bare) = (line.trim(), line.trim_start_matches("# "));
        if open {
            open = written != "]";
            let last = keys.last_mut().unwrap();
            last.default.as_mut().unwrap().push_str(written.split(" #").next().unwrap());
            continue;
        }
        if let Some(comment) = line.strip_prefix(' ') {
            let last = keys.last_mut().unwrap();
            last.meaning.push(' ');
            last.meaning.push_str(comment.trim().trim_start_matches('#').trim());
            continue;
        }
        if let Some(name) = bare.strip_prefix("[[").and_then(|rest| rest.strip_suffix("]]")) {
            section = format!("{name}[]");
        } else if let Some((name, _)) = bare.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            name.clone_into(&mut section);
        } else if let Some((name, rest)) = bare.split_once(" = ").filter(|(name, _)| !name.trim().contains(' ')) {
            let (value, meaning) = rest.split_once(" #").or_else(|| rest.split_once("# ")).unwrap_or((rest, ""));
            let value = value.trim();
            open = value == "[";
            let default = (!line.starts_with('#')).then(|| value.to_owned());
            let (section, name, meaning) = (section.clone(), name.trim().to_owned(), meaning.trim().to_owned());
            keys.push(Key { section, name, default, example: value.to_owned(), meaning });
        }
    }
    keys
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn reference() -> String {
    let mut out = HEAD.to_owned();
    let mut section = None;
    for key in keys() {
        if section.as_ref() != Some(&key.section) {
            let title = if key.section.is_empty() { "The gateway".to_owned() } else { format!("`[{}]`", key.section) };
            let _ = writeln!(out, "\n## {title}\n\n| key | variable | default | meaning |\n|---|---|---|---|");
            section = Some(key.section.clone());
        }
        let variables = key.variables().iter().map(|v| format!("`{v}`")).collect::<Vec<_>>().join(", ");
        let mut meaning = key.meaning.as_str();
        for variable in key.variables() {
            meaning = meaning.strip_prefix(variable).unwrap_or(meaning);
        }
        let meaning = meaning.trim_start_matches([':', ',', ' ']);
        let default = key.default.as_deref().map(|text| {
            // Long lists are in the example.
            if text.len() > 100 { "(see the example)".to_owned() } else { format!("`{text}`") }
        });
        let default = default.unwrap_or_default();
        let _ = writeln!(out, "| `{}` | {variables} | {} | {} |", key.name, cell(&default), cell(meaning));
    }
    out
}

#[test]
fn every_key_is_explained() {
    let unexplained: Vec<_> = keys().into_iter().filter(|key| key.meaning.is_empty()).map(|key| key.path()).collect();
    assert_eq!(unexplained, [] as [String; 0]);
}

#[test]
fn the_page_is_what_the_example_says() {
    let reference = reference();
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(PATH, &reference).unwrap();
    }
    let written = std::fs::read_to_string(PATH).unwrap_or_default();
    assert!(written == reference, "docs/configuration.md is not what the example says: see its head");
}

#[test]
fn every_variable_stands_with_its_key() {
    let keys = keys();
    let named: Vec<_> = keys.iter().flat_map(|key| key.variables().into_iter().map(move |v| (v, key))).collect();
    let all = VARIABLES.iter().map(|(variable, ..)| *variable).chain(ISSUER_VARIABLES.iter().map(|(v, _)| *v));
    for variable in all {
        // Another name for the one before.
        if variable == "ZITADEL_ISSUER_URL" {
            continue;
        }
        let key = named.iter().find(|(name, _)| *name == variable).map(|(_, key)| key);
        let key = key.unwrap_or_else(|| panic!("the example has no key for {variable}"));
        assert!(key.meaning.contains(variable), "{} is not explained by {variable}: {}", key.path(), key.meaning);
    }
    // And every key that is unset is one that can be set.
    for key in keys.iter().filter(|key| key.default.is_none() && !key.section.contains("[]")) {
        if key.section == "metering.prices" || key.section == "features.required" {
            continue;
        }
        let text = format!("{} = {}", key.path(), key.example);
        let error = Config::from_toml(&text).map(drop).unwrap_err().to_string();
        assert!(!error.contains("unknown field"), "{text}: {error}");
    }
}

/// What each variable may be set to.
const SAMPLES: &[(&str, &str)] = &[
    ("ALCHEMI_LISTEN", "127.0.0.1:9"),
    ("ALCHEMI_ADMIN_LISTEN", "127.0.0.1:10"),
    ("ALCHEMI_DATA_DIR", "/var/lib/alchemi"),
    ("ALCHEMI_MASTER_KEY", "another-operator-key-0123456789abcdef"),
    ("ALCHEMI_PASSTHROUGH", "off"),
    ("ALCHEMI_DOMAIN_DEFAULT", "console"),
    ("ALCHEMI_TRUSTED_PROXIES", "10.0.0.0/8,192.0.2.1/32"),
    ("ALCHEMI_CORS_ORIGINS", "https://a.example.com,https://b.example.com"),
    ("DATABASE_URL", "postgres://u:p@h/d"),
    ("ALCHEMI_SECRET_KEY", "a:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="),
    ("ALCHEMI_UPSTREAM_URL", "http://a:1, http://b:2"),
    ("ALCHEMI_UPSTREAM_API_KEY", "sk-upstream"),
    ("ALCHEMI_ENFORCEMENT", "soft"),
    ("ALCHEMI_TLS_CERT", "/cert.pem"),
    ("ALCHEMI_TLS_KEY", "/key.pem"),
    ("ALCHEMI_LOG_FORMAT", "json"),
    ("RUST_LOG", "warn"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318"),
    ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x,tenant=7"),
    ("ZITADEL_ISSUER", "https://id.example.com,https://other.example.com"),
    ("ZITADEL_ISSUER_URL", "https://id.example.com"),
    ("ZITADEL_JWKS_URI", "https://id.example.com/keys"),
    ("ZITADEL_INTERNAL_URL", "http://zitadel:8080"),
    ("ZITADEL_PROJECT_ID", "31"),
    ("ZITADEL_AUDIENCE", "31,32"),
    ("ZITADEL_INTROSPECTION_CLIENT_ID", "client"),
    ("ZITADEL_INTROSPECTION_CLIENT_SECRET", "secret"),
    ("ZITADEL_INTROSPECTION_KEY_FILE", "/introspection.json"),
    ("ZITADEL_ACCOUNT_ID_CLAIMS", "one,two"),
    ("ZITADEL_SUPER_ADMIN_ROLES", "root"),
    ("ZITADEL_SUPER_ADMIN_ORG_ID", "7"),
    ("ZITADEL_LOGOUT_CLIENT_IDS", "app"),
    ("ZITADEL_MGMT_API_BASE_URL", "https://login.example.com"),
    ("ZITADEL_MGMT_API_TOKEN", "pat"),
    ("ZITADEL_KEY_FILE", "/provisioner.json"),
    ("ZITADEL_CLIENT_ID", "provisioner"),
    ("ZITADEL_CLIENT_SECRET", "secret"),
    ("ZITADEL_MGMT_SCOPE", "openid"),
];

/// The configuration with these variables, before it is asked whether a gateway could run with it.
fn with(set: &[(&str, &str)]) -> (figment::Figment, String) {
    let lookup = |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
    let figment = figment(None, &lookup).unwrap();
    let config = Config::extract(&figment).unwrap_or_else(|error| panic!("{set:?}: {error}"));
    (figment, format!("{config:?}"))
}

#[test]
fn every_variable_reaches_its_key() {
    for (variable, key) in VARIABLES.iter().map(|(v, key, _)| (*v, *key)).chain(ISSUER_VARIABLES.iter().copied()) {
        let sample = SAMPLES.iter().find(|(name, _)| *name == variable);
        let sample = sample.unwrap_or_else(|| panic!("no sample of {variable}"));
        // Halves of a pair need the other half.
        let mut around = match variable {
            "ALCHEMI_TLS_CERT" => vec![("ALCHEMI_TLS_KEY", "/key.pem")],
            "ALCHEMI_TLS_KEY" => vec![("ALCHEMI_TLS_CERT", "/other.pem")],
            "ZITADEL_JWKS_URI" | "ZITADEL_INTERNAL_URL" => vec![("ZITADEL_ISSUER", "https://id.example.com")],
            _ => Vec::new(),
        };
        let without = if variable.starts_with("ALCHEMI_TLS") { with(&[]).1 } else { with(&around).1 };
        around.push(*sample);
        let (figment, found) = with(&around);
        assert_ne!(found, without, "{variable} changes nothing");
        if let Ok(value) = figment.find_value(key) {
            let first = match &value {
                Value::Array(_, items) => items.first().and_then(Value::as_str),
                other => other.as_str(),
            };
            let told = first.is_none_or(|first| sample.1.starts_with(first));
            assert!(told, "{key} is {value:?} and not what {variable} says");
        }
    }
    assert_eq!(SAMPLES.len(), VARIABLES.len() + ISSUER_VARIABLES.len(), "every sample is of a variable");
}
