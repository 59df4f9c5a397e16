//! The client of Zitadel's management API against a stand-in over real HTTP, and the command line on top of it.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "../common/mod.rs"]
mod common;

mod client;
mod command;
mod killed;
mod wire;
