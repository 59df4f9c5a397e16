//! The data plane over real HTTP: from a token to the row in the ledger.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "../common/mod.rs"]
mod common;

mod allowed;
mod shape;
mod stop;
