//! The binary: its commands, what it says of wrong settings, and its exit status.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "../common/mod.rs"]
mod common;

mod books;
mod commands;
mod hostile;
mod killed;
mod process;
mod running;
mod settings;
mod target;
mod telemetry;
