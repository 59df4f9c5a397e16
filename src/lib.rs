//! Identity, tenancy, policy, budgets and metering in front of an LLM proxy.

pub mod clock;
pub mod credits;
pub mod id;
pub mod problem;
pub mod secret;

pub mod context;
pub mod model;
pub mod policy;
pub mod store;

pub mod allocation;
pub mod identity;
pub mod layer;
pub mod metering;
pub mod plugin;
pub mod proxy;
pub mod v1;

#[cfg(feature = "server")]
pub mod cli;
#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "server")]
pub mod dev;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
pub mod telemetry;
