//! Stand-ins for development and tests: an OpenID issuer that speaks like
//! Zitadel and an LLM upstream that speaks like LiteLLM.
//!
//! `alchemi dev` starts both, so that a first request needs nothing installed.
//! `alchemi serve` cannot reach them: no configuration names these types, and
//! both refuse to listen anywhere but on loopback, since a development issuer
//! hands out any identity and a development upstream answers without a bill.

mod listener;

pub mod issuer;
pub mod upstream;

use std::net::SocketAddr;

pub use issuer::{DevIssuer, DevKey, DevUser, Org};
pub use upstream::{Behaviour, DevUpstream, UpstreamOptions};

/// Why a stand-in did not start or could not answer its owner.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    /// The address is reachable from other machines.
    #[error("{0} is not a loopback address: the development issuer and upstream listen on 127.0.0.1 or ::1 only")]
    NotLoopback(SocketAddr),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// A key could not be made or did not sign.
    #[error("cannot sign with the development key: {0}")]
    Signing(String),
    /// No user has this subject.
    #[error("no development user has the subject `{0}`")]
    UnknownSubject(String),
}
