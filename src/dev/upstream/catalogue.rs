//! The models that the upstream knows, what they cost, and the routes that say so.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde_json::{Map, Value, json};

use super::Shared;
use super::call::LiteLlmError;
use crate::credits::Usd;

/// What one unit costs, under LiteLLM's name for it (`input_cost_per_token`).
pub type Price = (&'static str, Usd);

/// A model of the upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// The public name.
    pub name: String,
    /// Its provider in LiteLLM's terms.
    pub provider: &'static str,
    /// LiteLLM's mode: `chat`, `embedding`, `image_generation`, …
    pub mode: &'static str,
    /// Most tokens it reads.
    pub max_input_tokens: u32,
    /// Most tokens it writes.
    pub max_output_tokens: u32,
    /// Its prices; none, and it answers without a cost.
    pub prices: Vec<Price>,
}

/// When every model was made, as LiteLLM says it.
const CREATED: i64 = 1_677_610_602;

impl Model {
    /// A model without a price.
    pub fn unpriced(name: &str) -> Self {
        Self::new(name, "openai", "chat", (128_000, 16_384), &[])
    }

    /// The models known by default, at their public list prices.
    pub fn catalogue() -> Vec<Self> {
        let chat = |input, cached, output| {
            [
                ("input_cost_per_token", input),
                ("cache_read_input_token_cost", cached),
                ("output_cost_per_token", output),
            ]
        };
        vec![
            Self::new("gpt-4o-mini", "openai", "chat", (128_000, 16_384), &chat(150, 75, 600)),
            Self::new("gpt-4o", "openai", "chat", (128_000, 16_384), &chat(2_500, 1_250, 10_000)),
            Self::new("claude-sonnet-4-5", "anthropic", "chat", (200_000, 64_000), &chat(3_000, 300, 15_000)),
            Self::new(
                "text-embedding-3-small",
                "openai",
                "embedding",
                (8_191, 0),
                &[("input_cost_per_token", 20), ("output_cost_per_token", 0)],
            ),
            Self::new("dall-e-3", "openai", "image_generation", (0, 0), &[("input_cost_per_image", 40_000_000)]),
            Self::new("tts-1", "openai", "audio_speech", (0, 0), &[("input_cost_per_character", 15_000)]),
            Self::new("whisper-1", "openai", "audio_transcription", (0, 0), &[("input_cost_per_second", 100_000)]),
            Self::new("omni-moderation-latest", "openai", "moderation", (32_768, 0), &[("input_cost_per_token", 0)]),
            Self::new("rerank-v3.5", "cohere", "rerank", (4_096, 4_096), &[("input_cost_per_query", 2_000_000)]),
        ]
    }

    fn new(
        name: &str,
        provider: &'static str,
        mode: &'static str,
        (max_input_tokens, max_output_tokens): (u32, u32),
        nanos: &[(&'static str, i64)],
    ) -> Self {
        let prices = nanos.iter().map(|(unit, nanos)| (*unit, Usd::from_nanos(*nanos))).collect();
        Self { name: name.to_owned(), provider, mode, max_input_tokens, max_output_tokens, prices }
    }

    /// The cost of so many units of each kind: exact, since every price is a whole
    /// number of nano-dollars. None when the model has no price.
    pub(super) fn cost(&self, units: &[(&str, u64)]) -> Option<Usd> {
        if self.prices.is_empty() {
            return None;
        }
        units.iter().try_fold(Usd::ZERO, |sum, (unit, quantity)| {
            let price = self.prices.iter().find(|(name, _)| name == unit).map_or(0, |(_, price)| price.nanos());
            sum.checked_add(Usd::from_nanos(price.checked_mul(i64::try_from(*quantity).ok()?)?))
        })
    }

    /// LiteLLM's id of the deployment.
    pub(super) fn deployment(&self) -> String {
        format!("dev-{}", self.name)
    }

    /// LiteLLM's name of the model at its provider.
    pub(super) fn provider_name(&self) -> String {
        format!("{}/{}", self.provider, self.name)
    }

    fn listed(&self) -> Value {
        json!({
            "id": self.name, "object": "model", "created": CREATED, "owned_by": "openai", "mode": self.mode,
            "max_input_tokens": self.max_input_tokens, "max_output_tokens": self.max_output_tokens,
        })
    }

    fn info(&self) -> Value {
        let mut info = Map::from_iter([
            ("id".to_owned(), json!(self.deployment())),
            ("key".to_owned(), json!(self.name)),
            ("db_model".to_owned(), json!(false)),
            ("litellm_provider".to_owned(), json!(self.provider)),
            ("mode".to_owned(), json!(self.mode)),
            ("max_tokens".to_owned(), json!(self.max_output_tokens)),
            ("max_input_tokens".to_owned(), json!(self.max_input_tokens)),
            ("max_output_tokens".to_owned(), json!(self.max_output_tokens)),
            ("supports_function_calling".to_owned(), json!(self.mode == "chat")),
            ("input_cost_per_token".to_owned(), Value::Null),
            ("output_cost_per_token".to_owned(), Value::Null),
            ("cache_creation_input_token_cost".to_owned(), Value::Null),
            ("cache_read_input_token_cost".to_owned(), Value::Null),
        ]);
        info.extend(self.prices.iter().map(|(unit, price)| ((*unit).to_owned(), number(*price))));
        json!({"model_name": self.name, "litellm_params": {"model": self.provider_name()}, "model_info": info})
    }
}

/// An amount as a JSON number: the shortest text of its double, which is the
/// amount itself at up to 15 digits.
pub(super) fn number(amount: Usd) -> Value {
    amount.to_string().parse().unwrap_or(Value::Null)
}

/// An amount as Python writes a float, which is how it stands in LiteLLM's
/// headers: `0.04`, `1.545e-05`, `0.0`.
pub(super) fn python(amount: Usd) -> String {
    let nanos = amount.nanos();
    if nanos != 0 && nanos.unsigned_abs() < 100_000 {
        let text = format!("{nanos:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let exponent = 9_u32.saturating_sub(exponent.parse().unwrap_or(0));
        return format!("{digits}e-{exponent:02}");
    }
    let text = amount.to_string();
    if text.contains('.') { text } else { text + ".0" }
}

pub(super) async fn list(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let data: Vec<Value> = shared.models.iter().map(Model::listed).collect();
    Json(json!({"data": data, "object": "list"}))
}

pub(super) async fn read(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Response {
    match shared.models.iter().find(|model| model.name == id) {
        Some(model) => Json(model.listed()).into_response(),
        None => {
            LiteLlmError::invalid(StatusCode::NOT_FOUND, &format!("The model `{id}` does not exist")).into_response()
        }
    }
}

pub(super) async fn info(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let data: Vec<Value> = shared.models.iter().map(Model::info).collect();
    Json(json!({"data": data}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_amounts_as_python_does() {
        let shown = [
            (0, "0.0"),
            (15_450, "1.545e-05"),
            (40, "4e-08"),
            (99_999, "9.9999e-05"),
            (100_000, "0.0001"),
            (40_000_000, "0.04"),
            (2_000_000_000, "2.0"),
        ];
        for (nanos, text) in shown {
            assert_eq!(python(Usd::from_nanos(nanos)), text);
            assert_eq!(Usd::rounded(text).map(Usd::nanos), Ok(nanos));
        }
    }
}
