//! Values that are written in a form of their own.

use std::net::SocketAddr;

use serde::Deserialize;
use url::Url;

/// Whether this is an origin as browsers write it (RFC 6454 section 6.2).
pub(super) fn is_origin(text: &str) -> bool {
    let Ok(url) = Url::parse(text) else { return false };
    let port = url.port().map_or_else(String::new, |port| format!(":{port}"));
    url.host_str().is_some_and(|host| text == format!("{}://{host}{port}", url.scheme()))
}

pub(super) fn address<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let wrong = |_| serde::de::Error::custom("expected an IP address and a port, such as 127.0.0.1:8080");
    String::deserialize(deserializer)?.parse().map_err(wrong)
}

pub(super) fn optional_address<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<SocketAddr>, D::Error> {
    address(deserializer).map(Some)
}

pub(super) fn collector<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Url>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)?.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let url = Url::parse(&text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    let wrong = || serde::de::Error::custom("expected the URL of a collector, such as http://127.0.0.1:4318");
    url.map(Some).ok_or_else(wrong)
}

/// `on`, `off`, or a boolean.
pub(super) fn switch<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Switch {
        Bool(bool),
        Text(String),
    }
    match Switch::deserialize(deserializer)? {
        Switch::Bool(on) => Ok(on),
        Switch::Text(text) => match text.as_str() {
            "on" | "true" | "1" => Ok(true),
            "off" | "false" | "0" => Ok(false),
            other => Err(serde::de::Error::custom(format!("expected on or off, found {other:?}"))),
        },
    }
}
