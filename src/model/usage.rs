//! What a request uses: kinds of governed routes, tokens, and how a cost is known.

use serde::{Deserialize, Serialize};

/// The kind of a governed route. Every kind goes through the same pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RouteKind {
    /// `POST /v1/chat/completions`
    Chat,
    /// `POST /v1/completions`
    Completion,
    /// `POST /v1/responses`
    Responses,
    /// `GET` and `DELETE /v1/responses/{id}`: no model, no estimate.
    ResponseItem,
    /// `POST /v1/messages`
    Messages,
    /// `POST /v1/messages/count_tokens`: free.
    CountTokens,
    /// `POST /v1/embeddings`
    Embeddings,
    /// `POST /v1/images/generations` and `/v1/images/edits`
    Images,
    /// `POST /v1/audio/speech`
    Speech,
    /// `POST /v1/audio/transcriptions`
    Transcription,
    /// `POST /v1/moderations`
    Moderations,
    /// `POST /v1/rerank`
    Rerank,
    /// `GET /v1/models` and `/v1/models/{id}`: answered by filtering, free.
    Models,
}

impl RouteKind {
    /// All of them, in a fixed order.
    pub const ALL: [Self; 13] = [
        Self::Chat,
        Self::Completion,
        Self::Responses,
        Self::ResponseItem,
        Self::Messages,
        Self::CountTokens,
        Self::Embeddings,
        Self::Images,
        Self::Speech,
        Self::Transcription,
        Self::Moderations,
        Self::Rerank,
        Self::Models,
    ];

    /// The name in metrics, logs and configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completion => "completion",
            Self::Responses => "responses",
            Self::ResponseItem => "response_item",
            Self::Messages => "messages",
            Self::CountTokens => "count_tokens",
            Self::Embeddings => "embeddings",
            Self::Images => "images",
            Self::Speech => "speech",
            Self::Transcription => "transcription",
            Self::Moderations => "moderations",
            Self::Rerank => "rerank",
            Self::Models => "models",
        }
    }

    /// Whether a request of this kind names a model and costs something.
    pub const fn is_metered(self) -> bool {
        !matches!(self, Self::ResponseItem | Self::CountTokens | Self::Models)
    }
}

/// Tokens of one request, by kind. The finer counts are parts of `input` and `output`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Tokens {
    /// All input tokens, cached ones included.
    pub input: u64,
    /// All output tokens, reasoning included.
    pub output: u64,
    /// Input read from the provider's cache.
    pub cached: u64,
    /// Input written to the provider's cache.
    pub cache_creation: u64,
    /// Output spent on reasoning.
    pub reasoning: u64,
    /// Audio in the input.
    pub audio_input: u64,
    /// Audio in the output.
    pub audio_output: u64,
}

/// How the cost of a request is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CostSource {
    /// The upstream's cost header.
    Header,
    /// `usage.cost` in the body or in the stream.
    Body,
    /// Reported tokens times the price book.
    Priced,
    /// Counted from what passed through, because no usage was reported.
    Estimated,
    /// Tokens are known, no price is.
    Unpriced,
    /// The hold, because the process ended before it settled.
    Unsettled,
    /// Recorded through the API.
    Recorded,
    /// No cost: refused by the upstream, or free.
    Free,
}

impl CostSource {
    /// All of them, in a fixed order.
    pub const ALL: [Self; 8] = [
        Self::Header,
        Self::Body,
        Self::Priced,
        Self::Estimated,
        Self::Unpriced,
        Self::Unsettled,
        Self::Recorded,
        Self::Free,
    ];

    /// The name in the ledger.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::Body => "body",
            Self::Priced => "priced",
            Self::Estimated => "estimated",
            Self::Unpriced => "unpriced",
            Self::Unsettled => "unsettled",
            Self::Recorded => "recorded",
            Self::Free => "free",
        }
    }
}
