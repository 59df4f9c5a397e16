//! Nouns and their rules, without I/O. A resource has the same name here, in
//! [`store`](crate::store) and in [`v1`](crate::v1).

pub mod accounts;
pub mod agents;
pub mod alerts;
pub mod audit;
pub mod budgets;
pub mod connections;
pub mod directory;
pub mod domain;
pub mod features;
pub mod field;
pub mod guardrails;
pub mod marketplace;
pub mod models;
pub mod provision;
pub mod revocations;
pub mod scope;
pub mod sso;
pub mod text;
pub mod usage;
