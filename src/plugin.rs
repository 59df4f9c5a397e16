//! Extension points: what an embedder can add to the pipeline.

use std::fmt;

use bytes::Bytes;

use crate::context::Context;
use crate::policy::{Ask, Permit};

/// Looks at a permitted request's body before anything is reserved or forwarded.
///
/// Guardrails run in their order, after the policy and the presets that the account has
/// assigned, and before the reservation; the first that blocks answers with 403
/// `guardrail_blocked`. One that masks hands the changed body to the next.
///
/// ```
/// use alchemi::context::Context;
/// use alchemi::plugin::{Guardrail, Screened};
/// use alchemi::policy::{Ask, Permit};
/// use bytes::Bytes;
///
/// #[derive(Debug)]
/// struct NoSecrets;
///
/// impl Guardrail for NoSecrets {
///     fn screen(&self, _: &Context, _: &Ask, _: &Permit, body: &Bytes) -> Screened {
///         if body.windows(7).any(|w| w == b"BEGIN R") {
///             return Screened::Blocked { code: "secrets".into(), pattern: "private key".into() };
///         }
///         Screened::Passed
///     }
/// }
/// ```
pub trait Guardrail: fmt::Debug + Send + Sync + 'static {
    /// What is to become of the request.
    fn screen(&self, context: &Context, ask: &Ask, permit: &Permit, body: &Bytes) -> Screened;
}

/// A guardrail's finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Screened {
    /// Nothing found.
    Passed,
    /// Something was found that is only noted.
    Detected {
        /// The guardrail, for the ledger.
        code: String,
    },
    /// Something was replaced; this is the body to forward.
    Masked {
        /// The guardrail, for the ledger.
        code: String,
        /// The changed body.
        body: Bytes,
    },
    /// The request is refused.
    Blocked {
        /// The guardrail, for the ledger and the answer.
        code: String,
        /// The pattern, never the text that it matched.
        pattern: String,
    },
}
