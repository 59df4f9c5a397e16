//! Usage and cost out of a response body, for every kind of route.

use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::count::TextSize;
use crate::credits::Usd;
use crate::model::usage::{RouteKind, Tokens};
use crate::policy::AskSize;

/// What an upstream says a request used. A reported zero is `Some`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reported {
    /// Tokens by kind.
    pub tokens: Option<Tokens>,
    /// `usage.cost`: what the upstream says it cost, never negative.
    pub cost: Option<Usd>,
    /// Length of the audio.
    pub duration: Option<Duration>,
    /// Images made.
    pub images: Option<u64>,
    /// Searches billed (rerank).
    pub queries: Option<u64>,
    /// Characters spoken; of a request, the bytes of its text.
    pub characters: Option<u64>,
}

impl Reported {
    /// What a request is expected to use: so many tokens, and of what is billed otherwise what
    /// it asks for.
    pub fn expected(size: &AskSize, tokens: Tokens) -> Self {
        Self {
            tokens: Some(tokens),
            cost: None,
            duration: (size.seconds > 0).then(|| Duration::from_secs(size.seconds)),
            images: Some(size.answers.max(1)),
            queries: Some(1),
            characters: Some(size.characters),
        }
    }

    /// Whether nothing was said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl From<Tokens> for Reported {
    fn from(tokens: Tokens) -> Self {
        Self { tokens: Some(tokens), ..Self::default() }
    }
}

/// Reads what a whole response body reports. A body that is no JSON, or says
/// nothing, reports nothing; a part that makes no sense is as if absent.
///
/// ```
/// use alchemi::{metering::json::read_usage, model::usage::RouteKind};
///
/// let body = br#"{"usage":{"prompt_tokens":19,"completion_tokens":21,"cost":1.545e-05}}"#;
/// let reported = read_usage(RouteKind::Chat, body);
/// assert_eq!(reported.tokens.map(|t| (t.input, t.output)), Some((19, 21)));
/// assert_eq!(reported.cost.map(|c| c.nanos()), Some(15_450));
/// ```
pub fn read_usage(kind: RouteKind, body: &[u8]) -> Reported {
    // Text is not checked again for each value in it. What is no text is read as far as it is JSON.
    let read = match std::str::from_utf8(body) {
        Ok(text) => serde_json::from_str::<Body<'_>>(text),
        Err(_) => serde_json::from_slice(body),
    };
    let Ok(body) = read else { return Reported::default() };
    let mut reported = body.usage.and_then(Usage::parse).map(|usage| usage.reported(kind)).unwrap_or_default();
    match kind {
        RouteKind::Images => {
            reported.images = body.data.and_then(|raw| serde_json::from_str::<Elements>(raw.get()).ok()).map(|e| e.0);
        }
        RouteKind::Rerank => {
            let units = body.meta.and_then(|raw| serde_json::from_str::<Meta>(raw.get()).ok()).unwrap_or_default();
            reported.queries = units.billed_units.search_units;
            if reported.tokens.is_none() {
                reported.tokens = units.billed_units.tokens().or_else(|| units.tokens.tokens());
            }
        }
        RouteKind::Transcription if reported.duration.is_none() => {
            reported.duration = body.duration.and_then(|raw| seconds(raw.get()));
        }
        _ => {}
    }
    reported
}

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
    #[serde(borrow)]
    meta: Option<&'a RawValue>,
    #[serde(borrow)]
    duration: Option<&'a RawValue>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Meta {
    billed_units: Units,
    tokens: Units,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Units {
    #[serde(deserialize_with = "lenient")]
    search_units: Option<u64>,
    #[serde(deserialize_with = "lenient")]
    input_tokens: Option<u64>,
    #[serde(deserialize_with = "lenient")]
    output_tokens: Option<u64>,
    #[serde(deserialize_with = "lenient")]
    total_tokens: Option<u64>,
}

impl Units {
    fn tokens(&self) -> Option<Tokens> {
        let input = self.input_tokens.or(self.total_tokens)?;
        Some(Tokens { input, output: self.output_tokens.unwrap_or(0), ..Tokens::default() })
    }
}

/// A `usage` object as any of the upstream's formats write it.
#[derive(Debug, Deserialize, Default, Clone, Copy)]
#[serde(default)]
pub(crate) struct Usage {
    #[serde(deserialize_with = "lenient")]
    prompt_tokens: Option<u64>,
    #[serde(deserialize_with = "lenient")]
    completion_tokens: Option<u64>,
    #[serde(deserialize_with = "lenient")]
    input_tokens: Option<u64>,
    #[serde(deserialize_with = "lenient")]
    output_tokens: Option<u64>,
    #[serde(deserialize_with = "lenient")]
    total_tokens: Option<u64>,
    #[serde(deserialize_with = "lenient")]
    cache_read_input_tokens: Option<u64>,
    #[serde(deserialize_with = "lenient")]
    cache_creation_input_tokens: Option<u64>,
    #[serde(deserialize_with = "details")]
    prompt_tokens_details: Details,
    #[serde(deserialize_with = "details")]
    completion_tokens_details: Details,
    // Some upstreams write both spellings.
    #[serde(alias = "input_token_details", deserialize_with = "details")]
    input_tokens_details: Details,
    #[serde(alias = "output_token_details", deserialize_with = "details")]
    output_tokens_details: Details,
    #[serde(deserialize_with = "cost")]
    cost: Option<Usd>,
    #[serde(deserialize_with = "duration")]
    seconds: Option<Duration>,
}

#[derive(Debug, Deserialize, Default, Clone, Copy)]
#[serde(default)]
struct Details {
    #[serde(deserialize_with = "lenient")]
    cached_tokens: Option<u64>,
    #[serde(deserialize_with = "lenient")]
    cache_creation_tokens: Option<u64>,
    #[serde(deserialize_with = "lenient")]
    audio_tokens: Option<u64>,
    #[serde(deserialize_with = "lenient")]
    reasoning_tokens: Option<u64>,
}

impl Details {
    fn or(self, other: Self) -> Self {
        Self {
            cached_tokens: self.cached_tokens.or(other.cached_tokens),
            cache_creation_tokens: self.cache_creation_tokens.or(other.cache_creation_tokens),
            audio_tokens: self.audio_tokens.or(other.audio_tokens),
            reasoning_tokens: self.reasoning_tokens.or(other.reasoning_tokens),
        }
    }
}

impl Usage {
    pub(crate) fn parse(raw: &RawValue) -> Option<Self> {
        object(raw)
    }

    /// What both say, the larger where they differ: stream usage is cumulative.
    pub(crate) fn merge(self, earlier: Self) -> Self {
        Self {
            prompt_tokens: self.prompt_tokens.max(earlier.prompt_tokens),
            completion_tokens: self.completion_tokens.max(earlier.completion_tokens),
            input_tokens: self.input_tokens.max(earlier.input_tokens),
            output_tokens: self.output_tokens.max(earlier.output_tokens),
            total_tokens: self.total_tokens.max(earlier.total_tokens),
            cache_read_input_tokens: self.cache_read_input_tokens.max(earlier.cache_read_input_tokens),
            cache_creation_input_tokens: self.cache_creation_input_tokens.max(earlier.cache_creation_input_tokens),
            // LiteLLM computes the cost of a stream's last usage from that usage alone: without
            // the input tokens in it, the input was not charged.
            cost: self.cost.filter(|_| self.input_tokens.or(self.prompt_tokens).is_some()),
            prompt_tokens_details: self.prompt_tokens_details.or(earlier.prompt_tokens_details),
            completion_tokens_details: self.completion_tokens_details.or(earlier.completion_tokens_details),
            input_tokens_details: self.input_tokens_details.or(earlier.input_tokens_details),
            output_tokens_details: self.output_tokens_details.or(earlier.output_tokens_details),
            ..self
        }
    }

    pub(crate) fn reported(&self, kind: RouteKind) -> Reported {
        Reported { tokens: self.tokens(kind), cost: self.cost, duration: self.seconds, ..Reported::default() }
    }

    fn tokens(&self, kind: RouteKind) -> Option<Tokens> {
        let input_details = self.prompt_tokens_details.or(self.input_tokens_details);
        let output_details = self.completion_tokens_details.or(self.output_tokens_details);
        let cached = input_details.cached_tokens.or(self.cache_read_input_tokens).unwrap_or(0);
        let cache_creation = input_details.cache_creation_tokens.or(self.cache_creation_input_tokens).unwrap_or(0);
        let told = self.prompt_tokens.or(match (kind, self.input_tokens) {
            // Anthropic counts what it read from and wrote to its cache apart from `input_tokens`.
            (RouteKind::Messages, Some(fresh)) => Some(fresh.saturating_add(cached).saturating_add(cache_creation)),
            (_, input) => input,
        });
        // Of two and their sum, the one that is not said; a sum alone is input, as embeddings have it.
        let rest = |of: Option<u64>| self.total_tokens.map(|total| total.saturating_sub(of.unwrap_or(0)));
        let output = self.completion_tokens.or(self.output_tokens);
        let (input, output) = (told.or_else(|| rest(output)), output.or_else(|| told.and(rest(told))));
        if input.is_none() && output.is_none() {
            return None;
        }
        Some(Tokens {
            input: input.unwrap_or(0),
            output: output.unwrap_or(0),
            cached,
            cache_creation,
            reasoning: output_details.reasoning_tokens.unwrap_or(0),
            audio_input: input_details.audio_tokens.unwrap_or(0),
            audio_output: output_details.audio_tokens.unwrap_or(0),
        })
    }
}

/// How many elements an array has.
struct Elements(u64);

impl<'de> Deserialize<'de> for Elements {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Count;
        impl<'de> Visitor<'de> for Count {
            type Value = Elements;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an array")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Elements, A::Error> {
                let mut count = 0;
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Elements(count))
            }
        }
        deserializer.deserialize_seq(Count)
    }
}

/// A count as integer or integral float; anything else is as if absent.
fn lenient<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let raw = <&RawValue>::deserialize(deserializer)?;
    Ok(count(raw.get()))
}

/// More than this of anything nobody has used: such a count is as if absent.
const MOST: u64 = 1_000_000_000;

/// No request costs more: such an amount is as if absent.
pub(super) const MOST_USD: Usd = Usd::from_nanos(100_000 * 1_000_000_000);

pub(crate) fn count(text: &str) -> Option<u64> {
    /// Integers above this are not exact in a float.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let count = text.parse::<u64>().ok().or_else(|| {
        let float = text.parse::<f64>().ok()?;
        ((0.0..=EXACT).contains(&float) && float.fract() == 0.0).then_some(float as u64)
    });
    count.filter(|count| *count <= MOST)
}

/// An object of this shape; anything else is as if absent.
fn object<'a, T: Deserialize<'a>>(raw: &'a RawValue) -> Option<T> {
    // A list would be read as the members in their order.
    raw.get().starts_with('{').then(|| serde_json::from_str(raw.get()).ok())?
}

fn details<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Details, D::Error> {
    Ok(object(<&RawValue>::deserialize(deserializer)?).unwrap_or_default())
}

fn cost<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Usd>, D::Error> {
    let raw = <&RawValue>::deserialize(deserializer)?;
    Ok(dollars(raw.get()))
}

/// A cost that an upstream wrote. A negative one is no cost: it would hand out credit.
pub(crate) fn dollars(text: &str) -> Option<Usd> {
    Usd::rounded(text.trim()).ok().filter(|cost| !cost.is_negative() && *cost <= MOST_USD)
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let raw = <&RawValue>::deserialize(deserializer)?;
    Ok(seconds(raw.get()))
}

/// Seconds as a number, or as a number in a string.
fn seconds(text: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(text.trim_matches('"').parse().ok()?).ok()
}

/// Bytes of the text that an answer gives in JSON, whatever the API. None: it cannot be read.
pub(crate) fn text_bytes(body: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        choices: TextSize,
        #[serde(default)]
        content: TextSize,
        #[serde(default)]
        output: TextSize,
    }
    let Answer { choices, content, output } = serde_json::from_slice(body).ok()?;
    Some(choices.bytes.saturating_add(content.bytes).saturating_add(output.bytes))
}

/// The id of a stored response, by which its owner may ask for it again.
pub(crate) fn response_id(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Identified {
        id: String,
    }
    serde_json::from_slice::<Identified>(body).ok().map(|response| response.id)
}
