//! Zitadel's management API: project roles, project grants and who holds which role.
//!
//! The v2 Connect services are used where they are there, `/management/v1` otherwise;
//! which of them is asked once and remembered. Calls are rate-limited here, tried again
//! on 429, on 5xx and when the connection breaks, and fail with an [`Error`] that is read
//! from codes, never from texts. Nothing of an answer's body reaches callers but the ids
//! that they asked for.
//!
//! A write whose answer was lost may have been done: whoever writes looks first and
//! takes [`Error::already_exists`] for what it is.

mod calls;
mod config;
mod error;
mod metrics;
mod token;
mod transport;
mod v1;
mod v2;

use std::sync::Arc;

pub use self::config::{ManagementConfig, ManagementConfigError, Surface};
pub use self::error::{Code, Error};
pub use self::metrics::ManagementMetrics;
use self::metrics::Operation;
use self::transport::Transport;
use crate::clock::SharedClock;

/// A client of one Zitadel instance. Clones share connections, token and limits.
///
/// ```
/// use std::sync::Arc;
/// use alchemi::clock::SystemClock;
/// use alchemi::zitadel::{Management, ManagementConfig};
///
/// let config = ManagementConfig { token: Some("a personal access token".into()), ..Default::default() };
/// let management = Management::new(&config, Some(("https://login.example.com", None)), Arc::new(SystemClock));
/// assert!(management.is_ok_and(|management| management.is_configured()));
/// ```
#[derive(Debug, Clone)]
pub struct Management(Option<Arc<Transport>>);

/// A role of a project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectRole {
    /// Its key, which tokens carry.
    pub key: String,
    /// For people.
    pub display_name: String,
    /// For people.
    pub group: Option<String>,
}

/// A project that another organisation may grant roles of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectGrant {
    /// Its id; v2 knows it by its organisation alone.
    pub id: Option<String>,
    /// The organisation.
    pub organization: String,
    /// The roles that it may grant.
    pub role_keys: Vec<String>,
}

/// The roles of a user in a project, granted by one organisation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserGrant {
    /// Its id.
    pub id: String,
    /// Who.
    pub user: String,
    /// Where.
    pub project: String,
    /// By whom.
    pub organization: String,
    /// The roles.
    pub role_keys: Vec<String>,
    /// Whether it counts.
    pub active: bool,
}

/// A grant to be made.
#[derive(Debug, Clone, Copy)]
pub struct NewGrant<'a> {
    /// Who.
    pub user: &'a str,
    /// Where.
    pub project: &'a str,
    /// By whom.
    pub organization: &'a str,
    /// The roles.
    pub role_keys: &'a [String],
}

/// A user whose e-mail address was asked for.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct FoundUser {
    /// Their id, which is `sub` in tokens.
    pub user_id: String,
    /// The organisation that they are of.
    pub organization_id: String,
    /// How they sign in.
    pub login_name: String,
    /// Whether they have shown that the address is theirs.
    pub email_verified: bool,
}

impl Management {
    /// A client with the credentials of `config`, which may have none. `issuer` is the
    /// first issuer with its internal address, where `config` names no address. No
    /// network.
    ///
    /// # Errors
    /// [`ManagementConfigError`], one sentence for the operator.
    pub fn new(
        config: &ManagementConfig,
        issuer: Option<(&str, Option<&str>)>,
        clock: SharedClock,
    ) -> Result<Self, ManagementConfigError> {
        Ok(Self(Transport::new(config, issuer, clock)?.map(Arc::new)))
    }

    /// A client that can call nobody.
    pub fn unconfigured() -> Self {
        Self(None)
    }

    /// Whether there are credentials and somebody to show them to.
    pub fn is_configured(&self) -> bool {
        self.0.is_some()
    }

    /// What it counts.
    pub fn metrics(&self) -> ManagementMetrics {
        self.0.as_ref().map(|transport| transport.metrics.clone()).unwrap_or_default()
    }

    fn transport(&self) -> Result<&Transport, Error> {
        self.0.as_deref().ok_or(Error::NotConfigured)
    }
}
