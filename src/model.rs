//! Nouns and their rules, without I/O. A resource has the same name here, in
//! [`store`](crate::store) and in [`v1`](crate::v1).

pub mod accounts;
pub mod audit;
pub mod budgets;
pub mod directory;
pub mod domain;
pub mod field;
pub mod models;
pub mod provision;
pub mod revocations;
pub mod scope;
pub mod text;
pub mod usage;
