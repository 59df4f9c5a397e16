//! Settings of the data plane.

use std::collections::BTreeMap;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use serde::Deserialize;

use super::ask::AskRules;
use super::headers::Leaks;
use super::signed::ContextSigner;
use crate::context::Domain;
use crate::credits::Usd;
use crate::metering::charge::Unpriced;
use crate::metering::price::{ModelPrice, PriceBook};
use crate::model::usage::Tokens;
use crate::policy::{Ask, AskSize, Denial};
use crate::problem::Problem;

/// What the gateway needs to know, put together from the sections of the configuration.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// Whether the upstream's own keys pass.
    pub passthrough: bool,
    /// The domain of a request that names none.
    pub domain_default: Domain,
    /// How bodies are read.
    pub ask: AskRules,
    /// How use is measured.
    pub metering: MeteringConfig,
    /// How answers are screened.
    pub guardrails: GuardrailsConfig,
    /// Largest body, in bytes.
    pub max_body: u64,
    /// Until a body has arrived.
    pub body_timeout: Duration,
    /// Between two pieces of an answer.
    pub idle_timeout: Duration,
    /// For the whole exchange.
    pub total_timeout: Duration,
    /// `authorization` towards the upstream on governed routes.
    pub credential: Option<HeaderValue>,
    /// Signs the context for upstreams that want proof.
    pub signer: Option<ContextSigner>,
    /// Whether to tell LiteLLM whom and what to book on.
    pub litellm: bool,
    /// Response headers that clients do not get to see.
    pub leaks: Leaks,
    /// Whether a caller whom the directory does not know is given a row.
    pub jit: bool,
    /// How many callers are kept ready.
    pub callers_capacity: u64,
    /// For how long, without a word from the change feed.
    pub callers_ttl: Duration,
}

/// What `examples/alchemi.toml` says, without LiteLLM behind it or a credential for what is.
impl Default for GatewayConfig {
    fn default() -> Self {
        let limits = LimitsConfig::default();
        Self {
            passthrough: false,
            domain_default: Domain::Copilot,
            ask: AskRules::default(),
            metering: MeteringConfig::default(),
            guardrails: GuardrailsConfig::default(),
            max_body: limits.body_bytes,
            body_timeout: Duration::from_secs(limits.body_seconds),
            idle_timeout: Duration::from_secs(300),
            total_timeout: Duration::from_secs(3600),
            credential: None,
            signer: None,
            litellm: false,
            leaks: Leaks::default(),
            jit: false,
            callers_capacity: 100_000,
            callers_ttl: Duration::from_secs(60),
        }
    }
}

impl GatewayConfig {
    pub(super) fn body_too_large(&self) -> Problem {
        Problem::new(
            http::StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            format!("The body is larger than {} bytes (limits.body_bytes)", self.max_body),
        )
    }
}

/// How use is measured and priced.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MeteringConfig {
    /// The header that the upstream writes a response's cost into.
    pub cost_header: CostHeader,
    /// What holds for a model without a price: `allow`, `deny` or `flat:<usd>`.
    pub unpriced: Unpriced,
    /// Output tokens that a request without a limit is estimated at.
    pub default_max_output: u64,
    /// Whether to force the estimate's output limit into the request, and to hold the most
    /// that it can cost then, so that no answer costs more than was held for it.
    pub strict: bool,
    /// Where the upstream lists its models and prices.
    pub model_info_path: String,
    /// How often it is asked, in seconds.
    pub model_info_seconds: u64,
    /// Prices by model, over those of the upstream.
    pub prices: BTreeMap<String, ModelPrice>,
}

impl Default for MeteringConfig {
    fn default() -> Self {
        Self {
            cost_header: CostHeader(HeaderName::from_static("x-litellm-response-cost")),
            unpriced: Unpriced::Allow,
            default_max_output: 1024,
            strict: false,
            model_info_path: "/model/info".to_owned(),
            model_info_seconds: 300,
            prices: BTreeMap::new(),
        }
    }
}

impl MeteringConfig {
    /// What is allowed and leaves less bounded than it says.
    pub fn warning(&self) -> Option<&'static str> {
        let free = self.strict && self.unpriced == Unpriced::Allow;
        free.then_some("metering: strict bounds nothing for a model without a price; unpriced = \"deny\" refuses those")
    }

    /// What a request for `model` is expected to use, and to cost: by its price, else by
    /// what holds for a model without one.
    ///
    /// # Errors
    /// [`Denial::ModelUnpriced`], [`Denial::EstimateTooLarge`].
    pub fn expected(&self, prices: &PriceBook, model: &str, size: &AskSize) -> Result<(Tokens, Usd), Denial> {
        let estimate = prices.estimate(model, size, self.default_max_output).map_err(|_| Denial::EstimateTooLarge)?;
        match (estimate.cost, self.unpriced) {
            (Some(cost), _) => Ok((estimate.tokens, cost)),
            (None, Unpriced::Deny) => Err(Denial::ModelUnpriced { model: model.to_owned() }),
            (None, other) => Ok((estimate.tokens, other.cost())),
        }
    }

    /// What is held for a request: what it is expected to use and to cost; where metering is
    /// strict, the most that it can cost with its own model or one that the upstream may fall
    /// back to.
    ///
    /// # Errors
    /// As [`expected`](Self::expected).
    pub fn held(&self, prices: &PriceBook, ask: &Ask, model: &str) -> Result<(Tokens, Usd), Denial> {
        let (tokens, mut cost) = self.expected(prices, model, &ask.size)?;
        if self.strict {
            let bound = tokens.output / ask.size.answers.max(1);
            for model in std::iter::once(model).chain(ask.fallbacks.iter().map(String::as_str)) {
                let ceiling = prices.ceiling(model, &ask.size, bound).map_err(|_| Denial::EstimateTooLarge)?;
                cost = ceiling.unwrap_or(self.unpriced.cost()).max(cost);
            }
        }
        Ok((tokens, cost))
    }
}

/// What becomes of what the presets that hold for a caller find in answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GuardrailsConfig {
    /// `off`, `detect` or `block`.
    pub response: ResponseScreening,
    /// Under `block`, so many bytes of a stream's text wait until what follows them is
    /// read: no match that is shorter gets past.
    pub stream_window: usize,
}

impl Default for GuardrailsConfig {
    fn default() -> Self {
        Self { response: ResponseScreening::Detect, stream_window: 256 }
    }
}

/// How answers are screened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResponseScreening {
    /// Not at all.
    Off,
    /// What is found is noted in the ledger.
    #[default]
    Detect,
    /// As prompts are: refused, masked or noted, as the pattern says.
    Block,
}

/// The name of a header, read from the configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct CostHeader(pub HeaderName);

impl TryFrom<String> for CostHeader {
    type Error = String;
    fn try_from(name: String) -> Result<Self, String> {
        name.parse().map(Self).map_err(|_| format!("{name:?} is not the name of a header"))
    }
}

/// Limits on requests.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Largest body of a governed request, in bytes.
    pub body_bytes: u64,
    /// Until a request's head has arrived, in seconds.
    pub head_seconds: u64,
    /// Until its body has arrived, in seconds.
    pub body_seconds: u64,
    /// Most connections at once; more wait to be accepted.
    pub connections: usize,
    /// Most HTTP/2 streams on a connection.
    pub streams: u32,
    /// How long requests under way may take after a stop signal, in seconds.
    pub drain_seconds: u64,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            body_bytes: 25 << 20,
            head_seconds: 15,
            body_seconds: 60,
            connections: 10_000,
            streams: 100,
            drain_seconds: 30,
        }
    }
}
