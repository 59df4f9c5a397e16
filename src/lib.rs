//! Identity, tenancy, policy, budgets and metering in front of an LLM proxy.
//!
//! alchemi says who may use which model, on whose budget, and proves it afterwards.
//! It stands in front of LiteLLM, or any upstream that speaks OpenAI's or
//! Anthropic's API, in one of three ways: as a process (`alchemi serve`), as a REST
//! control plane under `/v1`, or embedded in a Rust gateway through the types here.
//!
//! # The life of a request
//!
//! Each stage takes the proof of the one before by value, so that no path can leave
//! one out:
//!
//! 1. [`proxy::wire`] and [`proxy::ingress`] refuse what two parsers could read
//!    differently; [`layer::headers`] strips what only we may say.
//! 2. [`Identity`] turns a token into [`Verified`](identity::Verified).
//! 3. [`Authenticator`] finds the account and makes a [`Context`].
//! 4. [`proxy::ask`] reads the body once: an [`Ask`](policy::Ask).
//! 5. [`decide`](policy::decide) is the verdict, a pure function: a
//!    [`Permit`](policy::Permit) or a [`Denial`](policy::Denial).
//! 6. [`Guardrails`](policy::guardrails::Guardrails) that the account assigned, and
//!    [`Guardrail`]s of the embedder, look at the body.
//! 7. [`Allocations`](allocation::Allocations) hold the estimate on every capped
//!    scope: a [`Reservation`](allocation::Reservation).
//! 8. [`Gateway`] forwards, to upstreams or to [a service of one's own](GovernLayer),
//!    and a [`Meter`](metering::meter::Meter) reads usage while the answer passes and
//!    settles the reservation exactly once.
//!
//! # The map
//!
//! | room | what is in it |
//! |---|---|
//! | [`clock`] [`id`] [`credits`] [`outbound`] [`problem`] [`secret`] | vocabulary |
//! | [`model`] [`context`] [`policy`] | nouns, who is calling, the verdict: no I/O |
//! | [`identity`] [`store`] [`allocation`] [`metering`] [`alerts`] [`zitadel`] [`provision`] | capabilities |
//! | [`layer`] [`proxy`] [`v1`] [`plugin`] | surfaces and extension points |
//!
//! # Examples
//!
//! The control plane over an embedded database, as an operator sees it:
//!
//! ```
//! # #[cfg(feature = "sqlite")]
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! use std::sync::Arc;
//!
//! use alchemi::clock::SystemClock;
//! use alchemi::id::RandomIds;
//! use alchemi::store::{DatabaseConfig, Store, migrate};
//! use alchemi::v1::{self, App};
//!
//! let folder = tempfile::tempdir()?;
//! let url = format!("sqlite:{}", folder.path().join("alchemi.db").display());
//! let config = DatabaseConfig { url, ..DatabaseConfig::default() };
//! let store = Store::open(&config, Arc::new(SystemClock), Arc::new(RandomIds)).await?;
//! migrate::apply(&store).await?;
//!
//! // Mount it wherever axum or tower is; put an `AuthenticateLayer` in front.
//! let control_plane: axum::Router = v1::router(App::new(store));
//! # let _ = control_plane;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#[cfg(not(any(feature = "sqlite", feature = "postgres")))]
compile_error!("alchemi keeps what it knows in a database: enable its feature `sqlite`, `postgres`, or both");

pub use context::Context;
pub use identity::Identity;
pub use layer::{AuthenticateLayer, Authenticator, CallerContext};
pub use plugin::Guardrail;
pub use problem::Problem;
pub use proxy::Gateway;
pub use proxy::service::{Govern, GovernLayer};
pub use store::Store;

pub mod clock;
pub mod credits;
pub mod id;
pub mod outbound;
pub mod problem;
pub mod secret;

pub mod context;
pub mod model;
pub mod policy;
pub mod store;

pub mod alerts;
pub mod allocation;
pub mod identity;
pub mod jobs;
pub mod journal;
pub mod layer;
pub mod metering;
pub mod plugin;
pub mod provision;
pub mod proxy;
pub mod v1;
pub mod zitadel;

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
