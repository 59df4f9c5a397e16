//! Accounts: the tenants, their admins, and the settings that only an operator changes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::budgets::AccountAllocation;
use super::sso::SsoConfig;
use crate::clock::Timestamp;
use crate::credits::Usd;
use crate::id::Id;
use crate::outbound::is_loopback;
use crate::problem::Problem;

/// Whether an account may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AccountStatus {
    /// In use.
    Active,
    /// Refused everywhere until restored.
    Suspended,
}

impl AccountStatus {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Active, Self::Suspended];

    /// The name in JSON and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Suspended => "suspended",
        }
    }

    /// Reads a status, whatever its case.
    ///
    /// # Errors
    /// 400 with the reference's text.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let text = text.trim().to_lowercase();
        Self::ALL
            .into_iter()
            .find(|s| s.as_str() == text)
            .ok_or_else(|| Problem::bad_request("invalid_status", "status must be active or suspended"))
    }
}

/// A tenant.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Account {
    /// Its id.
    pub account_id: Id<Account>,
    /// Its name, unique in the installation.
    #[schema(example = "Acme")]
    pub account_name: String,
    /// A shorter name.
    pub account_alias: Option<String>,
    /// The e-mail domain that belongs to it, unique in the installation.
    #[schema(example = "acme.com")]
    pub domain: Option<String>,
    /// Whether it may be used.
    pub status: AccountStatus,
    /// The caller's own notes, a JSON object; `timezone` in it is read by budgets.
    #[schema(value_type = Object)]
    pub metadata: JsonText,
    /// A figure for the operator's own planning, in US dollars; budgets are in credits.
    pub max_budget: Option<Usd>,
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

impl Account {
    /// A new account, active and at its first version.
    pub fn new(account_id: Id<Account>, account_name: String, created_by: Option<String>, now: Timestamp) -> Self {
        Self {
            account_id,
            account_name,
            account_alias: None,
            domain: None,
            status: AccountStatus::Active,
            metadata: JsonText::empty_object(),
            max_budget: None,
            created_by,
            created_at: now,
            updated_at: now,
            version: 1,
        }
    }

    /// Checks what a caller sends as `metadata`: an object, no deeper than JSON
    /// readers follow, whose `timezone`, if it has one, is known.
    ///
    /// # Errors
    /// 422 at `/metadata` or `/metadata/timezone`.
    pub fn checked_metadata(metadata: JsonText) -> Result<JsonText, Problem> {
        use serde_json::{Map, Value};
        let notes: Map<String, Value> = metadata
            .read()
            .map_err(|_| Problem::invalid("/metadata", "must be a JSON object, nested less than 128 deep"))?;
        match notes.get("timezone") {
            None | Some(Value::Null) => Ok(metadata),
            Some(Value::String(name)) if jiff::tz::TimeZone::get(name).is_ok() => Ok(metadata),
            Some(_) => Err(Problem::invalid("/metadata/timezone", "must be an IANA time zone such as Europe/Berlin")),
        }
    }
}

/// An account with everything that an operator keeps about it.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct AccountBundle {
    /// The account itself.
    #[serde(flatten)]
    pub account: Account,
    /// What its requests have cost so far, in US dollars.
    pub spend: Usd,
    /// Its admins, newest first.
    pub admins: Vec<AccountAdmin>,
    /// Its sign-on settings; `null` while there are none.
    pub sso_config: Option<SsoConfig>,
    /// Its credits; `null` while none are allocated.
    pub allocation: Option<AccountAllocation>,
    /// What is switched on for it.
    pub feature_pack: FeaturePack,
    /// Which models its console may use.
    pub console_model_policy: ConsoleModelPolicy,
    /// How it is bound to Zitadel; `{}` while it is not.
    #[serde(serialize_with = "or_empty_object")]
    #[schema(value_type = ZitadelConfig)]
    pub zitadel_config: Option<ZitadelConfig>,
}

/// Shows what is absent as `{}`.
///
/// # Errors
/// Those of `serializer`.
pub fn or_empty_object<T: Serialize, S: serde::Serializer>(
    value: &Option<T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => value.serialize(serializer),
        None => serializer.collect_map(std::iter::empty::<((), ())>()),
    }
}

/// JSON kept as the text it came in.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JsonText(pub Box<RawValue>);

impl JsonText {
    /// The JSON of `value`.
    pub fn of(value: &impl Serialize) -> Self {
        Self(serde_json::value::to_raw_value(value).unwrap_or_default())
    }

    /// The text.
    pub fn get(&self) -> &str {
        self.0.get()
    }

    /// An empty object.
    pub fn empty_object() -> Self {
        Self::of(&serde_json::Map::new())
    }

    /// Reads the text as a `T`.
    ///
    /// # Errors
    /// When it is not one.
    pub fn read<T: serde::de::DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(self.get())
    }
}

impl utoipa::PartialSchema for JsonText {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new().schema_type(utoipa::openapi::schema::Type::Object).into()
    }
}
impl utoipa::ToSchema for JsonText {}

/// Someone who may administer an account; the role is granted in Zitadel.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct AccountAdmin {
    /// Its id.
    pub id: Id<AccountAdmin>,
    /// The account.
    pub account_id: Id<Account>,
    /// Their e-mail address.
    #[schema(example = "ada@example.com")]
    pub user_email: String,
    /// A role of [`ADMIN_ROLES`].
    #[schema(example = "account_admin")]
    pub role: String,
    /// Who added them.
    pub created_by: Option<String>,
    /// When.
    pub created_at: Timestamp,
    /// When last changed.
    pub updated_at: Timestamp,
    /// Counts changes; the `ETag`.
    #[serde(skip)]
    pub version: i64,
}

/// The roles of the product, by their canonical names.
pub const ADMIN_ROLES: [&str; 6] =
    ["account_admin", "console_org_admin", "console_team_admin", "copilot_org_admin", "copilot_team_admin", "end_user"];

/// One of [`ADMIN_ROLES`]; `account_admin` unless said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct AdminRole(&'static str);

impl AdminRole {
    /// The canonical name.
    pub const fn as_str(self) -> &'static str {
        self.0
    }
}

impl Default for AdminRole {
    fn default() -> Self {
        Self("account_admin")
    }
}

impl std::str::FromStr for AdminRole {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        ADMIN_ROLES
            .into_iter()
            .find(|role| *role == text)
            .map(Self)
            .ok_or_else(|| format!("must be one of: {}", ADMIN_ROLES.join(", ")))
    }
}

impl<'de> Deserialize<'de> for AdminRole {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl utoipa::PartialSchema for AdminRole {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .enum_values(Some(ADMIN_ROLES))
            .into()
    }
}
impl utoipa::ToSchema for AdminRole {}

/// What the operator has switched on for an account.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FeaturePack {
    /// Codes of features.
    #[schema(example = json!(["create_agents"]))]
    pub features: Vec<String>,
    /// Settings of features, by code.
    #[schema(value_type = Object)]
    pub config: serde_json::Map<String, serde_json::Value>,
}

/// Which models an account's console may use before any grant is asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConsoleModelPolicy {
    /// When not empty, only these; a name may end in `*`.
    #[serde(default)]
    pub allow_models: Vec<super::text::ModelPattern>,
    /// Never these; a name may end in `*`.
    #[serde(default)]
    pub deny_models: Vec<super::text::ModelPattern>,
}

/// How an account is bound to Zitadel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct ZitadelConfig {
    /// Whether the binding is in use; absent where there is none. While it is not, no token but
    /// an operator's acts for the account, and nobody is granted anything in Zitadel.
    #[schema(required = false)]
    pub enabled: bool,
    /// The issuer: tokens of another one are not for the account.
    pub issuer: Option<String>,
    /// The audience, for reference.
    pub audience: Option<String>,
    /// The project whose roles are provisioned.
    pub project_id: Option<String>,
    /// The organisation that the account is: only roles that it granted count.
    pub organization_id: Option<String>,
    /// What stands before the canonical role in the project's role keys.
    pub role_prefix: Option<String>,
    /// Canonical role to the project's role key; absent where there is no binding.
    #[schema(required = false)]
    pub role_mappings: BTreeMap<String, String>,
    /// The claim that names the account.
    pub account_id_claim: Option<String>,
    /// The claim that names the product domains.
    pub product_domains_claim: Option<String>,
}

impl ZitadelConfig {
    /// What an account has that was never bound to anything.
    pub const fn unbound() -> Self {
        Self {
            enabled: true,
            issuer: None,
            audience: None,
            project_id: None,
            organization_id: None,
            role_prefix: None,
            role_mappings: BTreeMap::new(),
            account_id_claim: None,
            product_domains_claim: None,
        }
    }
}

/// The URL of a service outside: `https`, or `http` on this machine; no
/// credentials, query or fragment. The text is kept as it came, because issuers are
/// compared letter by letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceUrl(String);

impl ServiceUrl {
    /// The text.
    pub fn into_string(self) -> String {
        self.0
    }
}

impl std::str::FromStr for ServiceUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let text = text.trim();
        let wanted = "must be an https:// URL (http:// on a loopback host) without credentials, query or fragment";
        let url = url::Url::parse(text).map_err(|_| wanted)?;
        let loopback = is_loopback(&url);
        let plain = url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none()
            && text.len() <= 2048;
        let safe = url.scheme() == "https" || (url.scheme() == "http" && loopback);
        if plain && safe { Ok(Self(text.to_owned())) } else { Err(wanted) }
    }
}
