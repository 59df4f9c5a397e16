//! The configuration as it may be shown: without its secrets.

use url::Url;

/// What stands for a secret.
const MASK: &str = "********";

/// Whether what stands under this key is never shown.
pub(super) fn is_secret(key: &str) -> bool {
    key == "keys" || ["secret", "_key", "token", "otlp_headers"].iter().any(|end| key.ends_with(end))
}

pub(super) fn mask(key: &str, value: &mut toml::Value) {
    match value {
        toml::Value::Table(inner) => inner.iter_mut().for_each(|(key, value)| mask(key, value)),
        toml::Value::Array(items) => items.iter_mut().for_each(|item| mask(key, item)),
        // What is empty is no secret, and must not look as if it were set.
        toml::Value::String(text) if is_secret(key) && !text.is_empty() => *text = MASK.to_owned(),
        toml::Value::String(text) => *text = without_credentials(text),
        _ => {}
    }
}

/// A URL without its user, password and `password` parameters; any other text as it is.
pub(super) fn without_credentials(text: &str) -> String {
    let secret = |name: &str| name.to_ascii_lowercase().contains("password");
    let Ok(mut url) = Url::parse(text) else {
        // Not a URL because of what stands in the password, perhaps.
        return if text.contains("://") && text.contains('@') { MASK.to_owned() } else { text.to_owned() };
    };
    let (user, password) = (!url.username().is_empty(), url.password().is_some());
    let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
    let parameter = pairs.iter().any(|(name, _)| secret(name));
    // Both fail only for URLs that cannot hold a user.
    if user {
        let _ = url.set_username(MASK);
    }
    if password {
        let _ = url.set_password(Some(MASK));
    }
    if parameter {
        let masked = pairs.iter().map(|(name, value)| (name, if secret(name) { MASK } else { value.as_str() }));
        url.query_pairs_mut().clear().extend_pairs(masked);
    }
    if user || password || parameter { url.into() } else { text.to_owned() }
}
