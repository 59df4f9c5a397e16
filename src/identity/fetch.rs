//! HTTP to the issuer: bounded in time and size, without redirects.

use std::time::Duration;

use http::{HeaderValue, header};
use reqwest::{Client, RequestBuilder, redirect};
use url::Url;

use super::config::{IdentityConfigError, is_secure};
use crate::outbound::{is_loopback, with_trust_store};

/// The most time that one exchange with an issuer may take, discovery included.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);

/// Why the issuer gave no usable answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// No connection, or it broke.
    #[error("unreachable")]
    Unreachable,
    /// Slower than 5 seconds.
    #[error("timeout")]
    Timeout,
    /// Not 200; redirects are not followed.
    #[error("status {0}")]
    Status(u16),
    /// 400, 401 or 403 to a question that shows our own credentials (RFC 6749 section 5.2).
    #[error("the issuer does not accept our client's credentials (status {0})")]
    ClientRefused(u16),
    /// Larger than is read.
    #[error("answer too large")]
    TooLarge,
    /// Not the JSON that was asked for.
    #[error("malformed answer")]
    Malformed,
    /// The discovery document names another issuer (OpenID Connect Discovery 1.0 section 4.3).
    #[error("discovery document of another issuer")]
    IssuerMismatch,
    /// The discovery document points to plain http.
    #[error("endpoint without TLS")]
    Insecure,
    /// The key set has no usable key.
    #[error("no usable key")]
    NoUsableKey,
}

/// A client for one issuer.
#[derive(Debug)]
pub(super) struct Fetcher {
    client: Client,
    issuer: Url,
    internal: Option<(Url, HeaderValue)>,
}

impl Fetcher {
    pub(super) fn new(issuer: Url, internal: Option<Url>) -> Result<Self, IdentityConfigError> {
        let target = internal.as_ref().unwrap_or(&issuer);
        // HTTP/1.1 only, so that the `Host` header says which instance is meant.
        let builder = with_trust_store(Client::builder());
        let mut builder = builder.redirect(redirect::Policy::none()).timeout(TIMEOUT).http1_only();
        if is_loopback(target) {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|error| IdentityConfigError::Tls(error.to_string()))?;
        let internal = internal.and_then(|url| Some((url, HeaderValue::from_str(issuer.authority()).ok()?)));
        Ok(Self { client, issuer, internal })
    }

    /// Gets at most `cap` bytes.
    pub(super) async fn get(&self, url: &Url, cap: usize) -> Result<Vec<u8>, FetchError> {
        let (url, host) = self.locate(url)?;
        read(with_host(self.client.get(url), host), cap).await
    }

    /// Posts a form that shows our client's credentials, and reads at most `cap` bytes.
    pub(super) async fn post(
        &self,
        url: &Url,
        form: &[(&str, &str)],
        basic: Option<(&str, &str)>,
        cap: usize,
    ) -> Result<Vec<u8>, FetchError> {
        let (url, host) = self.locate(url)?;
        let mut request = self.client.post(url).form(form);
        if let Some((user, password)) = basic {
            request = request.basic_auth(user, Some(password));
        }
        read(with_host(request, host), cap).await.map_err(|error| match error {
            FetchError::Status(status @ (400 | 401 | 403)) => FetchError::ClientRefused(status),
            other => other,
        })
    }

    /// The same path at the internal address, if `url` is the issuer's and there is one.
    fn locate(&self, url: &Url) -> Result<(Url, Option<HeaderValue>), FetchError> {
        match &self.internal {
            Some((internal, host)) if url.origin() == self.issuer.origin() => {
                let mut at = internal.clone();
                at.set_path(&format!("{}{}", internal.path().trim_end_matches('/'), url.path()));
                at.set_query(url.query());
                Ok((at, Some(host.clone())))
            }
            _ if is_secure(url) => Ok((url.clone(), None)),
            _ => Err(FetchError::Insecure),
        }
    }
}

fn with_host(request: RequestBuilder, host: Option<HeaderValue>) -> RequestBuilder {
    match host {
        Some(host) => request.header(header::HOST, host),
        None => request,
    }
}

async fn read(request: RequestBuilder, cap: usize) -> Result<Vec<u8>, FetchError> {
    let mut response = request.send().await.map_err(|error| kind(&error))?;
    if response.status() != http::StatusCode::OK {
        return Err(FetchError::Status(response.status().as_u16()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| kind(&error))? {
        if body.len().saturating_add(chunk.len()) > cap {
            return Err(FetchError::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn kind(error: &reqwest::Error) -> FetchError {
    if error.is_timeout() { FetchError::Timeout } else { FetchError::Unreachable }
}
