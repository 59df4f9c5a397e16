//! A JSON object whose values are secrets: read from callers, merged, sealed; shown
//! by its names alone.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use url::Url;
use zeroize::Zeroizing;

use super::{KeyRing, Place, SealError, Sealed};
use crate::problem::Problem;

/// What stands for a secret text in answers, and keeps it when it is sent back.
pub const MASK: &str = "\u{2022}\u{2022}\u{2022}\u{2022}\u{2022}\u{2022}\u{2022}\u{2022}";

/// Names that end so, case and separators aside, hold secrets.
const SECRET_NAMES: [&str; 25] = [
    "password",
    "passwords",
    "passwd",
    "passphrase",
    "pwd",
    "secret",
    "secrets",
    "token",
    "jwt",
    "cookie",
    "apikey",
    "apikeys",
    "authkey",
    "privatekey",
    "accesskey",
    "secretkey",
    "signingkey",
    "clientkey",
    "subscriptionkey",
    "encryptionkey",
    "sharedkey",
    "credential",
    "credentials",
    "authorization",
    "xauth",
];

/// Whether a member of this name holds a secret, by how the name ends.
pub fn names_a_secret(name: &str) -> bool {
    let name: String = name.chars().filter(|c| c.is_alphanumeric()).collect::<String>().to_lowercase();
    SECRET_NAMES.iter().any(|end| name.ends_with(end))
}

/// What parameters of addresses that hold secrets are called beside [`SECRET_NAMES`].
const SECRET_PARAMETERS: [&str; 5] = ["key", "sig", "signature", "code", "auth"];

/// The name of a parameter in an address's query or fragment that holds a secret, by what it is
/// called.
pub fn secret_in_query(url: &Url) -> Option<String> {
    let secret = |name: &String| names_a_secret(name) || SECRET_PARAMETERS.contains(&&*name.to_lowercase());
    let fragment = url::form_urlencoded::parse(url.fragment().unwrap_or_default().as_bytes());
    url.query_pairs().chain(fragment).map(|(name, _)| name.into_owned()).find(secret)
}

/// Whether a text is a secret by what stands in it: a private key (RFC 7468), an address with a
/// password (RFC 3986 section 3.2.1), an argument or variable that gives a value to a secret's name
/// (`--api-key=…`, `API_KEY=…`), or what `Authorization` would carry (RFC 9110 section 11.6.2): a scheme and a token, for `Basic` a name
/// and a password in base64 (RFC 7617 section 2). Words are none.
pub fn is_credentials(text: &str) -> bool {
    let text = text.trim();
    if text.contains("PRIVATE KEY-----") {
        return true;
    }
    if Url::parse(text).is_ok_and(|url| url.password().is_some_and(|password| !password.is_empty())) {
        return true;
    }
    let given = text.split_once('=').filter(|(name, value)| !value.is_empty() && !name.contains(char::is_whitespace));
    if given.is_some_and(|(name, _)| !name.contains(['/', '?', '&']) && names_a_secret(name)) {
        return true;
    }
    let text = match text.split_once(':') {
        Some((name, value)) if names_a_secret(name) => value.trim(),
        _ => text,
    };
    let Some((scheme, rest)) = text.split_once(char::is_whitespace) else { return false };
    let rest = rest.trim_start();
    let token = || rest.len() >= 16 || (rest.len() >= 8 && rest.contains(|c: char| c.is_ascii_digit()));
    let basic = || {
        let decoded = STANDARD_NO_PAD.decode(rest.trim_end_matches('='));
        decoded.is_ok_and(|bytes| bytes.contains(&b':'))
    };
    !rest.contains(char::is_whitespace)
        && match scheme.to_ascii_lowercase().as_str() {
            "bearer" | "token" | "apikey" | "dpop" => token(),
            "basic" => basic(),
            _ => false,
        }
}

/// An object of secrets. It has no `Serialize`; its `Debug` shows names.
#[derive(Clone, Default, PartialEq)]
pub struct SecretObject(Map<String, Value>);

impl SecretObject {
    /// An object of these members.
    pub fn new(members: Map<String, Value>) -> Self {
        Self(members)
    }

    fn to_json(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(serde_json::to_vec(&self.0).unwrap_or_default())
    }

    /// Seals it for `place`; nothing when it is empty.
    ///
    /// # Errors
    /// [`SealError::NoKey`].
    pub fn sealed(&self, place: Place<'_>, keys: &KeyRing) -> Result<Option<Sealed>, SealError> {
        if self.is_empty() { Ok(None) } else { keys.seal(&self.to_json(), place).map(Some) }
    }

    /// Opens what [`SecretObject::sealed`] gave for `place`.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn opened(sealed: Option<&Sealed>, place: Place<'_>, keys: &KeyRing) -> Result<Self, SealError> {
        let Some(sealed) = sealed else { return Ok(Self::default()) };
        let json = keys.open(&sealed.envelope, place)?;
        serde_json::from_slice(&json).map(Self).map_err(|_| SealError::Broken)
    }

    /// Whether there are no members.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The names of the members.
    pub fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    /// One member, for the one check that needs it.
    pub fn expose(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// Whether this is, or holds, what answers show in place of a whole object.
    pub fn is_masked(&self) -> bool {
        self.0.get("masked") == Some(&Value::Bool(true))
    }

    /// Whether, as a change, it keeps everything.
    pub fn keeps_all(&self) -> bool {
        self.0.iter().all(|(name, value)| name == "masked" && *value == Value::Bool(true))
    }

    /// What is stored after `change`, by JSON Merge Patch (RFC 7396) with one more
    /// rule: members merge, `null` removes, and what stands for a secret (a mask, or
    /// a blank text) keeps what is there.
    ///
    /// # Errors
    /// 422 below `pointer` for a mask where there is nothing to keep.
    pub fn merged(self, mut change: Self, pointer: &str) -> Result<Self, Problem> {
        if change.is_masked() {
            change.0.remove("masked");
        }
        merge(self.0, change.0, pointer).map(Self)
    }
}

fn merge(mut stored: Map<String, Value>, change: Map<String, Value>, at: &str) -> Result<Map<String, Value>, Problem> {
    for (name, new) in change {
        let old = stored.remove(&name);
        let at = format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"));
        let new = match (new, old) {
            (Value::Null, _) => continue,
            (new, Some(old)) if keeps(&new) => old,
            (new, None) if is_mask(&new) => {
                return Err(Problem::invalid(at, "stands for a secret, and none is stored under this name"));
            }
            (new, None) if keeps(&new) => continue,
            (Value::Object(new), Some(Value::Object(old))) => Value::Object(merge(old, new, &at)?),
            (Value::Object(new), _) => Value::Object(merge(Map::new(), new, &at)?),
            (new, _) => new,
        };
        stored.insert(name, new);
    }
    Ok(stored)
}

/// `{"masked": true}`, or the mask of a text.
fn is_mask(value: &Value) -> bool {
    match value {
        Value::Object(members) => members.len() == 1 && members.get("masked") == Some(&Value::Bool(true)),
        Value::String(text) => text == MASK,
        _ => false,
    }
}

/// A form that was left alone sends a blank text, which is no secret.
fn keeps(value: &Value) -> bool {
    is_mask(value) || matches!(value, Value::String(text) if text.trim().is_empty())
}

impl fmt::Debug for SecretObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SecretObject").field(&self.names()).finish()
    }
}

/// No error repeats what was there.
impl<'de> Deserialize<'de> for SecretObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Object(members) => Ok(Self(members)),
            _ => Err(serde::de::Error::custom("must be a JSON object")),
        }
    }
}

impl utoipa::PartialSchema for SecretObject {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new().schema_type(utoipa::openapi::schema::Type::Object).into()
    }
}
impl utoipa::ToSchema for SecretObject {}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> SecretObject {
        serde_json::from_value(value).unwrap()
    }

    fn merged(stored: Value, change: Value) -> Value {
        Value::Object(object(stored).merged(object(change), "/s").unwrap().0)
    }

    #[test]
    fn members_merge_null_removes_and_masks_keep() {
        let stored = json!({"api_key": "k", "oauth": {"id": "i", "secret": "s"}, "list": [1]});
        for (change, after) in [
            (json!({}), stored.clone()),
            (json!({"masked": true}), stored.clone()),
            (
                json!({"masked": true, "list": 7}),
                json!({"api_key": "k", "oauth": {"id": "i", "secret": "s"}, "list": 7}),
            ),
            (json!({"masked": {"masked": true}}), Value::Null),
            (json!({"api_key": {"masked": true}, "oauth": {"masked": true}}), stored.clone()),
            (json!({"api_key": MASK, "list": ""}), stored.clone()),
            (json!({"api_key": null}), json!({"oauth": {"id": "i", "secret": "s"}, "list": [1]})),
            (
                json!({"oauth": {"secret": "t"}}),
                json!({"api_key": "k", "oauth": {"id": "i", "secret": "t"}, "list": [1]}),
            ),
            (
                json!({"oauth": {"id": null, "secret": MASK}}),
                json!({"api_key": "k", "oauth": {"secret": "s"}, "list": [1]}),
            ),
            (
                json!({"api_key": {"v": 1, "w": null}}),
                json!({"api_key": {"v": 1}, "oauth": {"id": "i", "secret": "s"}, "list": [1]}),
            ),
            (
                json!({"new": "n", "blank": " "}),
                json!({"api_key": "k", "oauth": {"id": "i", "secret": "s"}, "list": [1], "new": "n"}),
            ),
        ] {
            if after.is_null() {
                let error = object(stored.clone()).merged(object(change), "/s").unwrap_err();
                assert_eq!((error.status(), error.detail().contains("/s/masked")), (422, true));
            } else {
                assert_eq!(merged(stored.clone(), change.clone()), after, "{change}");
            }
        }
    }

    #[test]
    fn nothing_prints_it() {
        let secret = object(json!({"api_key": "hunter2"}));
        assert_eq!(format!("{secret:?}"), r#"SecretObject(["api_key"])"#);
        for wrong in [json!("hunter2"), json!(["hunter2"]), json!(4711)] {
            let error = serde_json::from_value::<SecretObject>(wrong).unwrap_err().to_string();
            assert_eq!(error, "must be a JSON object");
        }
    }
}
