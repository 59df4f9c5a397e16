//! Identity, through its public surface, against a real issuer on the loopback.

mod claims;
mod config;
mod introspection;
mod issuer;
mod keys;
mod tokens;
mod wycheproof;
