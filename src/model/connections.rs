//! Connections: what agents reach outside, with sealed credentials, and who may use them.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::accounts::Account;
use super::scope::ScopeType;
use crate::clock::Timestamp;
use crate::id::Id;
use crate::outbound::OutboundRules;
use crate::problem::{FieldError, Problem};
use crate::secret::{KeyRing, Place, SealError, Sealed, SecretObject, is_credentials, names_a_secret, secret_in_query};

/// The kind of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ConnectionType {
    /// An HTTP API that an OpenAPI document describes.
    Openapi,
    /// A server of the Model Context Protocol.
    Mcp,
    /// A tool kit of Composio; `integration` is another name for it.
    Composio,
}

impl ConnectionType {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Openapi, Self::Mcp, Self::Composio];

    /// The name in JSON and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Openapi => "openapi",
            Self::Mcp => "mcp",
            Self::Composio => "composio",
        }
    }

    /// Reads a kind, whatever its case; `integration` is `composio`.
    ///
    /// # Errors
    /// 400 that lists them.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let text = text.trim().to_lowercase();
        let text = if text == "integration" { "composio" } else { &text };
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| {
            Problem::bad_request("invalid_connection_type", "connection_type must be openapi|mcp|composio")
        })
    }
}

/// Whose credentials a connection uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CredentialVisibility {
    /// The admin's, which users use and never see.
    UseOnly,
    /// Each user's own.
    SelfManaged,
}

impl CredentialVisibility {
    /// Both.
    pub const ALL: [Self; 2] = [Self::UseOnly, Self::SelfManaged];

    /// The name in JSON and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UseOnly => "use_only",
            Self::SelfManaged => "self_managed",
        }
    }

    /// Reads one.
    ///
    /// # Errors
    /// 400 that lists them.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        Self::ALL.into_iter().find(|visibility| visibility.as_str() == text).ok_or_else(|| {
            Problem::bad_request("invalid_credential_visibility", "credential_visibility must be use_only|self_managed")
        })
    }
}

/// `{"masked": true}`: what answers show in place of an object of secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Masked {
    /// Always true.
    #[schema(example = true)]
    masked: bool,
}

impl Masked {
    /// The only one there is.
    pub const MASKED: Self = Self { masked: true };
}

/// What agents reach outside.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Connection {
    /// Its id.
    pub id: Id<Connection>,
    /// The account.
    pub account_id: Id<Account>,
    /// Its kind; never changes.
    pub connection_type: ConnectionType,
    /// Its name.
    #[schema(example = "Tickets")]
    pub name: String,
    /// What it is for.
    pub description: Option<String>,
    /// Whose credentials it uses.
    pub credential_visibility: CredentialVisibility,
    /// Whether users may manage their own use of it.
    pub allow_user_self_manage: bool,
    /// Its settings, none of them secret.
    #[schema(value_type = Object)]
    pub config_json: Map<String, Value>,
    /// Its secrets, which are never shown.
    pub secret_json: Masked,
    /// The names of its secrets.
    #[schema(example = json!(["api_key"]))]
    pub secret_keys: Vec<String>,
    /// Who made it.
    pub created_by: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// Counts changes; the `ETag`.
    #[serde(skip)]
    pub version: i64,
    /// Its secrets, sealed; none when it has none.
    #[serde(skip)]
    pub sealed: Option<Sealed>,
}

impl Connection {
    /// The table.
    pub const TABLE: &'static str = "Alchemi_CopilotConnectionTable";

    /// Where its secrets stand.
    pub fn place(&self) -> Place<'_> {
        Place { account: self.account_id.as_str(), table: Self::TABLE, row: self.id.as_str(), column: "secret_json" }
    }

    /// Opens its secrets.
    ///
    /// # Errors
    /// [`SealError`]; never when it has none.
    pub fn secrets(&self, keys: &KeyRing) -> Result<SecretObject, SealError> {
        SecretObject::opened(self.sealed.as_ref(), self.place(), keys)
    }

    /// Gives it these secrets, sealed.
    ///
    /// # Errors
    /// [`SealError::NoKey`]; never when there are none.
    pub fn set_secrets(&mut self, secrets: &SecretObject, keys: &KeyRing) -> Result<(), SealError> {
        self.sealed = secrets.sealed(self.place(), keys)?;
        Ok(())
    }

    /// Checks settings against `rules`, and both against what the kind asks for.
    /// `secret_keys` must be up to date.
    ///
    /// # Errors
    /// 400 in the words that clients know, 422 below `/config_json`.
    pub fn check(&self, rules: &OutboundRules) -> Result<(), Problem> {
        let mut errors = Vec::new();
        check_settings(&self.config_json, "/config_json", rules, &mut errors);
        if !errors.is_empty() {
            return Err(Problem::invalid_fields(errors));
        }
        if self.connection_type != ConnectionType::Composio {
            return Ok(());
        }
        let mode = self.config_json.get("auth_mode").and_then(Value::as_str).unwrap_or_default();
        match mode.trim().to_lowercase().as_str() {
            "oauth" => Ok(()),
            "api_key" if self.secret_keys.iter().any(|name| name == "api_key") => Ok(()),
            "api_key" => Err(Problem::bad_request(
                "composio_api_key_missing",
                "composio api_key mode requires secret_json.api_key",
            )),
            _ => Err(Problem::bad_request("invalid_auth_mode", "composio config_json.auth_mode must be oauth|api_key")),
        }
    }
}

/// An object of settings as a caller sends it; no error repeats what was there.
#[derive(Debug, Clone, Default)]
pub struct Settings(pub Map<String, Value>);

impl<'de> Deserialize<'de> for Settings {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Object(members) => Ok(Self(members)),
            _ => Err(serde::de::Error::custom("must be a JSON object")),
        }
    }
}

/// How a setting's value is looked at, by its name.
#[derive(Clone, Copy)]
enum Holds {
    Secret,
    Url,
    /// Where an API description sends requests.
    Servers,
    Anything,
}

impl Holds {
    fn of(name: &str) -> Self {
        let lower = name.to_lowercase();
        if names_a_secret(name) {
            Self::Secret
        } else if ["url", "urls", "endpoint", "endpoints"].iter().any(|end| lower.ends_with(end)) {
            Self::Url
        } else {
            Self::Anything
        }
    }

    /// How a member of an object under this name is looked at.
    fn member(self, name: &str) -> Self {
        match self {
            Self::Secret => Self::Secret,
            // May be relative to where the description is.
            Self::Servers if name == "url" => Self::Anything,
            Self::Servers | Self::Url | Self::Anything => Self::of(name),
        }
    }
}

/// The members of an API description that hold examples, links and names of the API's own,
/// by the version of the format; nobody sends a request to what they say.
///
/// <https://spec.openapis.org/oas/v3.1.0#openapi-object>,
/// <https://spec.openapis.org/oas/v2.0#swagger-object>
fn told_by_a_description(settings: &Map<String, Value>) -> &'static [&'static str] {
    let version = |name| settings.get(name).is_some_and(Value::is_string);
    if version("openapi") {
        &["info", "paths", "webhooks", "components", "security", "tags", "externalDocs"]
    } else if version("swagger") {
        &[
            "info",
            "paths",
            "definitions",
            "parameters",
            "responses",
            "securityDefinitions",
            "security",
            "tags",
            "externalDocs",
        ]
    } else {
        &[]
    }
}

/// Checks every setting, however deep: a text under a name of a secret belongs
/// elsewhere, and a URL must not lead inside.
pub(super) fn check_settings(
    settings: &Map<String, Value>,
    at: &str,
    rules: &OutboundRules,
    errors: &mut Vec<FieldError>,
) {
    check_members(settings, at, Holds::Anything, rules, errors);
}

fn check_members(
    members: &Map<String, Value>,
    at: &str,
    within: Holds,
    rules: &OutboundRules,
    errors: &mut Vec<FieldError>,
) {
    let told = if matches!(within, Holds::Secret) { &[] } else { told_by_a_description(members) };
    // As lists of headers and variables are written: a name beside its value.
    let named = ["name", "key", "header"].iter().find_map(|name| members.get(*name)?.as_str());
    let names_secret = named.is_some_and(names_a_secret);
    let described = !told.is_empty();
    for (name, value) in members.iter().filter(|(name, _)| !told.contains(&name.as_str())) {
        let at = format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"));
        let holds = match &**name {
            "servers" if described => Holds::Servers,
            "value" if names_secret => Holds::Secret,
            _ => within.member(name),
        };
        check_value(value, &at, holds, rules, errors);
    }
}

fn check_value(value: &Value, at: &str, holds: Holds, rules: &OutboundRules, errors: &mut Vec<FieldError>) {
    match value {
        Value::Object(members) => check_members(members, at, holds, rules, errors),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                check_value(item, &format!("{at}/{index}"), holds, rules, errors);
            }
        }
        Value::String(text) => check_text(text, at, holds, rules, errors),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn check_text(text: &str, at: &str, holds: Holds, rules: &OutboundRules, errors: &mut Vec<FieldError>) {
    let text = text.trim();
    let mut wrong = |detail: String| errors.push(FieldError { pointer: at.to_owned(), detail });
    match holds {
        _ if text.is_empty() => {}
        Holds::Secret => wrong("holds a secret by its name: secrets belong in secret_json".to_owned()),
        _ if is_credentials(text) => wrong("holds credentials, and would be shown".to_owned()),
        Holds::Servers | Holds::Anything if !is_web_address(text) => {}
        Holds::Url | Holds::Servers | Holds::Anything => match rules.check(text) {
            Err(refused) => wrong(refused.to_string()),
            Ok(url) => {
                if let Some(name) = secret_in_query(&url) {
                    wrong(format!("holds a secret in its query, `{name}`, and would be shown"));
                }
            }
        },
    }
}

fn is_web_address(text: &str) -> bool {
    let scheme = text.split_once(':').map_or("", |(scheme, _)| scheme);
    (scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https")) && !text.contains(char::is_whitespace)
}

/// Lets a scope use a connection.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct ConnectionGrant {
    /// Its id.
    pub id: Id<ConnectionGrant>,
    /// The account.
    pub account_id: Id<Account>,
    /// The connection.
    pub connection_id: Id<Connection>,
    /// The kind of scope.
    #[schema(example = "team")]
    pub scope_type: ScopeType,
    /// The scope.
    pub scope_id: String,
    /// Whether the scope may manage the connection, too.
    pub can_manage: bool,
    /// Who made it.
    pub created_by: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// Counts changes; the `ETag`.
    #[serde(skip)]
    pub version: i64,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pointers(settings: Value) -> Vec<String> {
        let mut errors = Vec::new();
        let settings = settings.as_object().cloned().unwrap();
        check_settings(&settings, "", &OutboundRules::default(), &mut errors);
        errors.into_iter().map(|error| error.pointer).collect()
    }

    #[test]
    fn settings_lead_nowhere_inside_and_hold_no_secrets() {
        let fine = json!({
            "server_url": "https://mcp.example.com/sse", "base_url": "", "timeout": 5, "urls": ["https://a.example.com"],
            "note": "see http://10.0.0.1/ and more", "transport": "sse", "auth": {"type": "bearer"},
            "openapi_spec": {
                "openapi": "3.1.0", "servers": [{"url": "/v1"}, {"url": "https://api.example.com"}],
                "info": {"license": {"url": "http://www.apache.org/licenses/LICENSE-2.0"}},
                "components": {"examples": {"login": {"value": {"password": "example"}}}},
            },
        });
        assert_eq!(pointers(fine), [""; 0]);
        let older = json!({
            "swagger": "2.0", "host": "api.example.com", "security": [{"session_token": ["read"]}],
            "definitions": {"User": {"properties": {"password": {"type": "string"}}}},
            "securityDefinitions": {"oauth": {"tokenUrl": "http://example.com"}},
        });
        assert_eq!(pointers(older), [""; 0]);
        let wrong = json!({
            "server_url": "mcp.example.com", "auth": {"token_endpoint": "http://example.com", "client_secret": "s"},
            "host": "http://2130706433/", "urls": ["https://a.example.com", "https://[::1]"], "api_key": "k",
            "spec": {"openapi": "3.1.0", "servers": [{"url": "https://10.0.0.1"}]},
        });
        let mut found = pointers(wrong);
        found.sort_unstable();
        assert_eq!(
            found,
            [
                "/api_key",
                "/auth/client_secret",
                "/auth/token_endpoint",
                "/host",
                "/server_url",
                "/spec/servers/0/url",
                "/urls/1"
            ]
        );
    }

    /// Only the parts of an API description that tell of the API are left alone.
    #[test]
    fn a_description_covers_for_nothing_beside_it() {
        for version in ["openapi", "swagger"] {
            let mut settings = json!({
                "api_key": "k", "server_url": "http://10.0.0.1", "host": "http://[::1]/",
                "paths": {"/login": {"password": "example"}}, "info": {"contact": {"url": "http://10.0.0.1"}},
                "servers": [{"url": "/v1", "variables": {"port": {"default": "8443"}}, "x-token": "t"}],
            });
            settings[version] = json!("3.1.0");
            let mut found = pointers(settings.clone());
            found.sort_unstable();
            assert_eq!(found, ["/api_key", "/host", "/server_url", "/servers/0/x-token"]);
            // What is no version makes no description.
            settings[version] = json!(true);
            assert!(pointers(settings).iter().any(|at| at == "/paths/~1login/password"));
        }
        let inner = json!({"openapi": {"openapi": "3.1.0", "paths": {"/a": {"token": "t"}}}, "client_secret": "s"});
        assert_eq!(pointers(inner), ["/client_secret"]);
    }

    #[test]
    fn what_is_below_a_secret_is_secret() {
        let settings = json!({
            "credentials": {"user": "ada", "openapi": "3.1.0", "paths": "p", "attempts": 3, "none": null, "empty": ""},
            "tokens": {"kept": "x"}, "access_token": [{"value": ["t"]}], "auth": {"secret": {"deep": {"er": "s"}}},
        });
        let mut found = pointers(settings);
        found.sort_unstable();
        assert_eq!(
            found,
            [
                "/access_token/0/value/0",
                "/auth/secret/deep/er",
                "/credentials/openapi",
                "/credentials/paths",
                "/credentials/user"
            ]
        );
    }
}
