//! The binary: its commands, what it says of wrong settings, and its exit status.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod commands;
mod killed;
mod process;
mod running;
mod settings;
