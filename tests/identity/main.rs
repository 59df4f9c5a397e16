//! Identity, through its public surface, against a real issuer on the loopback.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "the helpers of tests may panic, and say what they classified"
)]

mod claims;
mod config;
mod introspection;
mod issuer;
mod keys;
mod logout;
mod revalidation;
mod tokens;
mod wycheproof;
