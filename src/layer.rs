//! The published tower layers, over plain `http` types.
//!
//! [`Authenticator`] turns a request's credential into a [`Context`](crate::context::Context); the proxy and
//! the control plane use it directly, and an embedder puts [`AuthenticateLayer`]
//! in front of services of their own, where [`CallerContext`] finds it.

pub mod authenticate;
pub mod caller;
pub mod headers;

pub use authenticate::{Authenticate, AuthenticateLayer, Authenticator, Credential};
pub use caller::CallerContext;
