//! What a request uses: kinds of governed routes, tokens, and how a cost is known.

use serde::{Deserialize, Serialize};

use super::accounts::{Account, JsonText};
use super::domain::Domain;
use super::scope::Scope;
use crate::clock::Timestamp;
use crate::credits::{Credits, Factor, Usd};
use crate::id::Id;

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

/// Whether a ledger row is a request's own, or corrects one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// A request, or usage recorded through the API.
    Usage,
    /// A later correction.
    Adjustment,
    /// The undoing of a row.
    Reversal,
}

impl EntryKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Usage, Self::Adjustment, Self::Reversal];

    /// The name in JSON and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::Adjustment => "adjustment",
            Self::Reversal => "reversal",
        }
    }
}

/// Whom and what usage is counted for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Dimensions {
    /// The org.
    pub org_id: Option<String>,
    /// The team.
    pub team_id: Option<String>,
    /// The user.
    pub user_id: Option<String>,
    /// The token's subject.
    pub subject: Option<String>,
    /// The agent.
    pub agent_id: Option<String>,
    /// The model, by its public name.
    #[schema(example = "gpt-4o-mini")]
    pub model_name: Option<String>,
    /// The connection.
    pub connection_id: Option<String>,
    /// The guardrail that acted.
    pub guardrail_code: Option<String>,
}

/// A counter that usage was added to: a scope in one of its windows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CounterKey {
    /// The scope.
    #[serde(flatten)]
    pub scope: Scope,
    /// The window's first moment, in microseconds.
    pub window_start: i64,
}

/// One row of the ledger. Sums of the ledger are sums of rows: every amount was
/// rounded once, when its row was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerRow {
    /// The request's id; a second row with it changes nothing.
    pub request_id: String,
    /// The account that pays.
    pub account_id: Id<Account>,
    /// What kind of request it was.
    pub kind: RouteKind,
    /// Usage, or a correction.
    pub entry: EntryKind,
    /// The product domain.
    pub domain: Domain,
    /// Whom and what it is counted for.
    pub dimensions: Dimensions,
    /// Tokens by kind.
    pub tokens: Tokens,
    /// What the upstream charges.
    pub raw_cost: Usd,
    /// Credits for each dollar, frozen.
    pub credit_factor: Factor,
    /// What the account pays.
    pub credits: Credits,
    /// How the cost is known.
    pub cost_source: CostSource,
    /// Comma-separated remarks: `over_cap`, `cut`, ….
    pub marks: String,
    /// The upstream's id of the call.
    pub upstream_call_id: Option<String>,
    /// The upstream's status; 0 when it never answered.
    pub status: u16,
    /// From admission to the last byte, in microseconds.
    pub duration_us: i64,
    /// The plan in force at admission.
    pub plan_id: Option<String>,
    /// The plan's window at admission, in microseconds.
    pub cycle_start: Option<i64>,
    /// The caller's notes on recorded usage, a JSON object's text.
    pub metadata: String,
    /// The day it counts for, in the account's time zone.
    pub day: String,
    /// When it settled.
    pub created_at: Timestamp,
}

/// Marks as a list, which are kept separated by commas.
fn listed<S: serde::Serializer>(marks: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(marks.split(',').filter(|mark| !mark.is_empty()))
}

/// A row of the ledger as it is shown.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct UsageEntry {
    /// The request's id.
    pub id: String,
    /// The account that pays.
    pub account_id: Id<Account>,
    /// What kind of request it was.
    pub kind: RouteKind,
    /// Usage, or a correction.
    pub entry: EntryKind,
    /// The product domain.
    pub domain: Domain,
    /// The org.
    pub org_id: Option<String>,
    /// The team.
    pub team_id: Option<String>,
    /// The user.
    pub user_id: Option<String>,
    /// The agent.
    pub agent_id: Option<String>,
    /// The model, by its public name.
    #[schema(example = "gpt-4o-mini")]
    pub model_name: Option<String>,
    /// The connection.
    pub connection_id: Option<String>,
    /// The guardrail that acted.
    pub guardrail_code: Option<String>,
    /// Input tokens.
    pub input_tokens: i64,
    /// Output tokens.
    pub output_tokens: i64,
    /// What the upstream charges.
    pub raw_cost: Usd,
    /// Credits for each dollar, frozen.
    pub credit_factor: Factor,
    /// What the account pays.
    pub credits_incurred: Credits,
    /// How the cost is known.
    pub cost_source: CostSource,
    /// Remarks: `over_cap`, `would_refuse`, `cut`, `not_forwarded`, `unsettled`, `late`, `lost_lease`.
    #[serde(serialize_with = "listed")]
    #[schema(value_type = Vec<String>)]
    pub marks: String,
    /// The upstream's status; 0 when it never answered, or was not asked.
    pub status: i64,
    /// The caller's notes on recorded usage.
    #[schema(value_type = Object)]
    pub metadata: JsonText,
    /// When it settled.
    pub created_at: Timestamp,
}

impl From<LedgerRow> for UsageEntry {
    fn from(row: LedgerRow) -> Self {
        let count = |tokens: u64| i64::try_from(tokens).unwrap_or(i64::MAX);
        Self {
            id: row.request_id,
            account_id: row.account_id,
            kind: row.kind,
            entry: row.entry,
            domain: row.domain,
            org_id: row.dimensions.org_id,
            team_id: row.dimensions.team_id,
            user_id: row.dimensions.user_id,
            agent_id: row.dimensions.agent_id,
            model_name: row.dimensions.model_name,
            connection_id: row.dimensions.connection_id,
            guardrail_code: row.dimensions.guardrail_code,
            input_tokens: count(row.tokens.input),
            output_tokens: count(row.tokens.output),
            raw_cost: row.raw_cost,
            credit_factor: row.credit_factor,
            credits_incurred: row.credits,
            cost_source: row.cost_source,
            marks: row.marks,
            status: i64::from(row.status),
            metadata: serde_json::from_str(&row.metadata).unwrap_or_else(|_| JsonText::empty_object()),
            created_at: row.created_at,
        }
    }
}

/// What costs can be broken down by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CostDimension {
    /// By agent.
    Agent,
    /// By model.
    Llm,
    /// By connection.
    Connection,
    /// By guardrail.
    Guardrail,
    /// By org.
    Org,
    /// By team.
    Team,
    /// By user.
    User,
    /// By day of the account's time zone.
    Day,
}

impl CostDimension {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::Agent, Self::Llm, Self::Connection, Self::Guardrail, Self::Org, Self::Team, Self::User, Self::Day];

    /// The name in a query.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Llm => "llm",
            Self::Connection => "connection",
            Self::Guardrail => "guardrail",
            Self::Org => "org",
            Self::Team => "team",
            Self::User => "user",
            Self::Day => "day",
        }
    }

    /// The name in answers and in the database.
    pub const fn column(self) -> &'static str {
        match self {
            Self::Agent => "agent_id",
            Self::Llm => "model_name",
            Self::Connection => "connection_id",
            Self::Guardrail => "guardrail_code",
            Self::Org => "org_id",
            Self::Team => "team_id",
            Self::User => "user_id",
            Self::Day => "day",
        }
    }
}
