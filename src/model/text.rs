//! Text that callers send, checked and normalised where it is read.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::openapi::schema::{ObjectBuilder, Type};

use super::field::Field;

macro_rules! checked_text {
    ($(#[$doc:meta])* $name:ident, $check:ident, $schema:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// The text, normalised.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The text, normalised.
            pub fn into_string(self) -> String {
                self.0
            }
        }
        impl std::str::FromStr for $name {
            type Err = &'static str;
            fn from_str(text: &str) -> Result<Self, &'static str> {
                $check(text).map(Self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                $schema.schema_type(Type::String).into()
            }
        }
        impl utoipa::ToSchema for $name {}
    };
}

checked_text! {
    /// A name: trimmed, 1 to 255 characters of which one can be seen, no control characters.
    Name, name, ObjectBuilder::new().min_length(Some(1)).max_length(Some(255)).examples([serde_json::json!("Research")])
}
checked_text! {
    /// Free text: trimmed, up to 4096 characters, no control characters but line ends and tabs.
    Description, description, ObjectBuilder::new().max_length(Some(4096)).examples([serde_json::json!("What it is for")])
}
checked_text! {
    /// An e-mail address, lower-cased.
    Email, email, ObjectBuilder::new().max_length(Some(254)).examples([serde_json::json!("ada@example.com")])
}
checked_text! {
    /// An e-mail address that names something in a path, lower-cased: without `/`, `\\`, `%`, `?` and `#`.
    PathEmail, path_email, ObjectBuilder::new().max_length(Some(254)).examples([serde_json::json!("ada@example.com")])
}
checked_text! {
    /// A host name such as the part of an e-mail address behind the `@`, lower-cased.
    HostName, host_name, ObjectBuilder::new().max_length(Some(253)).examples([serde_json::json!("example.com")])
}
checked_text! {
    /// A model's public name, or a prefix of it with `*` at the end.
    ModelPattern, model_pattern, ObjectBuilder::new().min_length(Some(1)).max_length(Some(255)).examples([serde_json::json!("gpt-4o*")])
}

fn name(text: &str) -> Result<String, &'static str> {
    let text = text.trim();
    if text.chars().all(is_invisible) {
        return Err("is required and cannot be blank");
    }
    if text.chars().count() > 255 || text.chars().any(|c| c.is_control() || turns_text_round(c)) {
        return Err("must have at most 255 characters and no control characters");
    }
    Ok(text.to_owned())
}

/// White space, and what has no width: a name of nothing else looks like none.
fn is_invisible(c: char) -> bool {
    c.is_whitespace()
        || matches!(c, '\u{ad}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2060}'..='\u{2064}' | '\u{2800}' | '\u{3164}' | '\u{feff}')
}

/// What makes a name read as another: the overrides and isolates of writing direction.
fn turns_text_round(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn description(text: &str) -> Result<String, &'static str> {
    let text = text.trim();
    let odd = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t');
    if text.chars().count() > 4096 || text.chars().any(odd) {
        return Err("must have at most 4096 characters and no control characters");
    }
    Ok(text.to_owned())
}

fn email(text: &str) -> Result<String, &'static str> {
    let text = text.trim().to_lowercase();
    if email_address::EmailAddress::is_valid(&text) && text.is_ascii() {
        Ok(text)
    } else {
        Err("must be an e-mail address")
    }
}

fn path_email(text: &str) -> Result<String, &'static str> {
    let text = email(text)?;
    if text.contains(['/', '\\', '%', '?', '#']) { Err("cannot hold any of / \\ % ? #") } else { Ok(text) }
}

fn host_name(text: &str) -> Result<String, &'static str> {
    let text = text.trim().to_lowercase();
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    if text.len() <= 253 && text.split('.').all(label) {
        Ok(text)
    } else {
        Err("must be a host name such as example.com")
    }
}

fn model_pattern(text: &str) -> Result<String, &'static str> {
    let text = name(text)?;
    let stars = text.matches('*').count();
    if stars == 0 || (stars == 1 && text.ends_with('*')) { Ok(text) } else { Err("may hold one * and only at its end") }
}

/// Reads `null` and `""` as [`Field::Clear`]: an empty text clears a field that may be empty.
///
/// # Errors
/// What `T` says of a text that is not blank.
pub fn blank_clears<'de, D, T>(deserializer: D) -> Result<Field<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: std::str::FromStr<Err = &'static str>,
{
    blank_is_none(deserializer).map(|text| text.map_or(Field::Clear, Field::Set))
}

/// Reads `""` as none: an empty text clears a field that may be empty.
///
/// # Errors
/// What `T` says of a text that is not blank.
pub fn blank_is_none<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: std::str::FromStr<Err = &'static str>,
{
    match Option::<std::borrow::Cow<'de, str>>::deserialize(deserializer)? {
        Some(text) if !text.trim().is_empty() => text.parse().map(Some).map_err(serde::de::Error::custom),
        _ => Ok(None),
    }
}
