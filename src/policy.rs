//! The verdict: a pure function of who asks, what for, and which rules hold.

use crate::model::usage::RouteKind;

pub mod models;

pub mod budget;

/// What a governed request asks for, read from its route and body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// The kind of route.
    pub kind: RouteKind,
    /// The model it names; `None` only for kinds that name none.
    pub model: Option<String>,
    /// Models the upstream may fall back to; each must pass the model policy too.
    pub fallbacks: Vec<String>,
    /// Whether the answer is to be streamed.
    pub stream: bool,
    /// What the estimate is made from.
    pub size: AskSize,
}

/// What an estimate is made from (spec: allocations, section 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AskSize {
    /// Estimated input tokens.
    pub input_tokens: u64,
    /// `max_tokens`, `max_completion_tokens` or `max_output_tokens`, if sent.
    pub max_output: Option<u64>,
    /// `n`, the number of answers asked for; at least 1.
    pub answers: u64,
}
