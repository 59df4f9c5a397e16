//! Settings of the section `[zitadel]`.

use std::path::PathBuf;

use http::HeaderValue;
use serde::Deserialize;
use url::Url;

use crate::model::accounts::ServiceUrl;
use crate::secret::{KeyFile, SecretString};

/// Which of Zitadel's APIs is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Surface {
    /// v2 where it is there.
    #[default]
    Auto,
    /// The v2 Connect services.
    V2,
    /// `/management/v1`.
    V1,
}

impl std::fmt::Display for Surface {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Auto => "API v2 or v1",
            Self::V2 => "API v2",
            Self::V1 => "API v1",
        })
    }
}

/// How Zitadel's management API is reached.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ManagementConfig {
    /// Its address; the first issuer's unless said.
    pub url: Option<String>,
    /// A personal access token of a service user.
    pub token: Option<SecretString>,
    /// Or the key file of a service user.
    pub key_file: Option<PathBuf>,
    /// Or a service user's name,
    pub client_id: Option<String>,
    /// and secret.
    pub client_secret: Option<SecretString>,
    /// The scopes of the token that the key file or the secret is exchanged for.
    pub scope: String,
    /// Which API is called.
    pub api: Surface,
    /// Most calls in a second.
    pub requests_per_second: u32,
    /// How long one call may take, in seconds.
    pub timeout_seconds: u64,
}

impl Default for ManagementConfig {
    fn default() -> Self {
        Self {
            url: None,
            token: None,
            key_file: None,
            client_id: None,
            client_secret: None,
            scope: "openid urn:zitadel:iam:org:project:id:zitadel:aud".to_owned(),
            api: Surface::Auto,
            requests_per_second: 20,
            timeout_seconds: 20,
        }
    }
}

/// What is wrong with the settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManagementConfigError {
    /// The address cannot be one.
    #[error("zitadel.url (ZITADEL_MGMT_API_BASE_URL) = {0:?} {1}")]
    Url(String, &'static str),
    /// There are credentials and nobody to show them to.
    #[error(
        "[zitadel] has credentials and no address: set zitadel.url (ZITADEL_MGMT_API_BASE_URL) or an issuer (ZITADEL_ISSUER)"
    )]
    NoUrl,
    /// The key file cannot be used.
    #[error("zitadel.key_file (ZITADEL_KEY_FILE) = {0:?}: {1}")]
    KeyFile(String, String),
    /// A limit makes no sense.
    #[error("zitadel.{0} must be at least 1")]
    Zero(&'static str),
    /// The system has no TLS roots.
    #[error("TLS: {0}")]
    Tls(String),
}

/// Where calls go.
#[derive(Debug, Clone)]
pub(super) struct Address {
    pub(super) base: Url,
    /// Which instance is meant, where the address does not say it.
    pub(super) host: Option<HeaderValue>,
}

/// What is shown there.
#[derive(Debug)]
pub(super) enum Credential {
    Token(SecretString),
    KeyFile(KeyFile),
    Client { id: String, secret: SecretString },
}

impl ManagementConfig {
    /// Checks what no type can say.
    ///
    /// # Errors
    /// [`ManagementConfigError`].
    pub fn check(&self) -> Result<(), ManagementConfigError> {
        if self.requests_per_second == 0 {
            return Err(ManagementConfigError::Zero("requests_per_second"));
        }
        if self.timeout_seconds == 0 {
            return Err(ManagementConfigError::Zero("timeout_seconds"));
        }
        self.url.as_deref().map(own_url).transpose().map(drop)
    }

    /// The first that there is of: token, key file, secret. A name without a secret is
    /// the one that people sign in with, which is not ours to use.
    pub(super) fn credential(&self) -> Result<Option<Credential>, ManagementConfigError> {
        if let Some(token) = &self.token {
            return Ok(Some(Credential::Token(token.clone())));
        }
        if let Some(path) = &self.key_file {
            let failed = |why: String| ManagementConfigError::KeyFile(path.display().to_string(), why);
            let file = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
            let key = KeyFile::of_service_user(&file).map_err(|why| failed(why.to_owned()))?;
            return Ok(Some(Credential::KeyFile(key)));
        }
        Ok(match (&self.client_id, &self.client_secret) {
            (Some(id), Some(secret)) => Some(Credential::Client { id: id.clone(), secret: secret.clone() }),
            _ => None,
        })
    }

    /// What is allowed and yet no use: half of a credential.
    pub fn warnings(&self) -> Vec<&'static str> {
        if self.token.is_some() || self.key_file.is_some() {
            return Vec::new();
        }
        match (&self.client_id, &self.client_secret) {
            (Some(_), None) => vec![
                "zitadel: client_id (ZITADEL_CLIENT_ID) without client_secret (ZITADEL_CLIENT_SECRET) is no credential: nothing is provisioned",
            ],
            (None, Some(_)) => vec![
                "zitadel: client_secret (ZITADEL_CLIENT_SECRET) without client_id (ZITADEL_CLIENT_ID) is no credential: nothing is provisioned",
            ],
            _ => Vec::new(),
        }
    }

    pub(super) fn address(
        &self,
        issuer: Option<(&str, Option<&str>)>,
    ) -> Result<Option<Address>, ManagementConfigError> {
        if let Some(text) = &self.url {
            return Ok(Some(Address { base: own_url(text)?, host: None }));
        }
        let Some((issuer, internal)) = issuer else { return Ok(None) };
        let issuer = parsed(issuer)?;
        Ok(Some(match internal {
            // The operator's own word for where the issuer is reached, checked with the issuers.
            Some(internal) => Address { base: parsed(internal)?, host: HeaderValue::from_str(issuer.authority()).ok() },
            None => Address { base: issuer, host: None },
        }))
    }
}

/// `https`, or `http` on this machine: the credential goes there.
fn own_url(text: &str) -> Result<Url, ManagementConfigError> {
    let checked: Result<ServiceUrl, _> = text.parse();
    let url = checked.map_err(|why| ManagementConfigError::Url(text.to_owned(), why))?;
    parsed(&url.into_string())
}

fn parsed(text: &str) -> Result<Url, ManagementConfigError> {
    Url::parse(text.trim()).map_err(|_| ManagementConfigError::Url(text.to_owned(), "is no URL"))
}
