//! The control plane, through its routes, on each database.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "the helpers of tests may panic"
)]

#[path = "../common/postgres.rs"]
mod postgres;

mod accounts;
mod admins;
mod audit;
mod budgets;
mod context;
mod directory;
mod gateway;
mod models;
mod policies;
mod revocations;
mod usage;
