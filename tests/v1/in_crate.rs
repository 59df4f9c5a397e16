//! Runs the tests of this folder inside the crate, on a stand-in for the gateway that
//! makes contexts itself instead of reading tokens.

mod accounts;
mod admins;
mod audit;
pub(crate) mod common;
mod context;
mod policies;
mod revocations;
