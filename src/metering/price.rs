//! What a unit of a model costs: the upstream's `/model/info`, overridden by
//! configuration.
//!
//! Prices are exact decimals from the bytes they were written in; a sum is
//! computed in units of 1e-18 dollars and rounded once. A model that several
//! deployments serve costs what the dearest of them costs, part by part, because
//! an estimate must not be low. A special price (cached, reasoning, audio) that
//! is not known is the plain input or output price. Prices that grow with the
//! length of the context (`…_above_200k_tokens`), or with how long a cache is
//! kept, count in what a request [may cost at most](PriceBook::ceiling) alone:
//! of an answer, the cost that the upstream reports is the true one.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};
use serde_json::value::RawValue;

use super::count::output_bound;
use super::json::{Reported, count};
use crate::credits::{UnitPrice, Usd, usd_from_atto};
use crate::model::usage::Tokens;
use crate::policy::AskSize;

/// `/model/info` made no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the model list of the upstream is not of the form {{\"data\":[{{\"model_name\":…,\"model_info\":{{…}}}}]}}")]
pub struct PriceBookError;

/// Prices of one model in US dollars, under LiteLLM's own names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelPrice {
    /// One input token.
    #[serde(rename = "input_cost_per_token", deserialize_with = "configured")]
    pub input: Option<UnitPrice>,
    /// One output token.
    #[serde(rename = "output_cost_per_token", deserialize_with = "configured")]
    pub output: Option<UnitPrice>,
    /// One input token read from the cache.
    #[serde(rename = "cache_read_input_token_cost", deserialize_with = "configured")]
    pub cached: Option<UnitPrice>,
    /// One input token written to the cache.
    #[serde(rename = "cache_creation_input_token_cost", deserialize_with = "configured")]
    pub cache_creation: Option<UnitPrice>,
    /// One output token of reasoning.
    #[serde(rename = "output_cost_per_reasoning_token", deserialize_with = "configured")]
    pub reasoning: Option<UnitPrice>,
    /// One input token of audio.
    #[serde(rename = "input_cost_per_audio_token", deserialize_with = "configured")]
    pub audio_input: Option<UnitPrice>,
    /// One output token of audio.
    #[serde(rename = "output_cost_per_audio_token", deserialize_with = "configured")]
    pub audio_output: Option<UnitPrice>,
    /// One input token of a request with a dearer `service_tier`.
    #[serde(rename = "input_cost_per_token_priority", deserialize_with = "configured")]
    pub priority_input: Option<UnitPrice>,
    /// One output token of such a request.
    #[serde(rename = "output_cost_per_token_priority", deserialize_with = "configured")]
    pub priority_output: Option<UnitPrice>,
    /// One input token where the context is long.
    #[serde(
        rename = "input_cost_per_token_above_200k_tokens",
        alias = "input_cost_per_token_above_128k_tokens",
        deserialize_with = "configured"
    )]
    pub long_input: Option<UnitPrice>,
    /// One output token where the context is long.
    #[serde(
        rename = "output_cost_per_token_above_200k_tokens",
        alias = "output_cost_per_token_above_128k_tokens",
        deserialize_with = "configured"
    )]
    pub long_output: Option<UnitPrice>,
    /// One input token written to a cache that is kept for an hour.
    #[serde(rename = "cache_creation_input_token_cost_above_1hr", deserialize_with = "configured")]
    pub cache_creation_hour: Option<UnitPrice>,
    /// One second of audio: `input_cost_per_second`, or `output_cost_per_second`.
    #[serde(rename = "input_cost_per_second", alias = "output_cost_per_second", deserialize_with = "configured")]
    pub second: Option<UnitPrice>,
    /// One image: `output_cost_per_image`, or `input_cost_per_image`, as LiteLLM calls the
    /// price of one made with some models.
    #[serde(rename = "output_cost_per_image", alias = "input_cost_per_image", deserialize_with = "configured")]
    pub image: Option<UnitPrice>,
    /// One character to be spoken.
    #[serde(rename = "input_cost_per_character", deserialize_with = "configured")]
    pub character: Option<UnitPrice>,
    /// One search (rerank).
    #[serde(rename = "input_cost_per_query", deserialize_with = "configured")]
    pub query: Option<UnitPrice>,
    /// The most output tokens that the model can make.
    #[serde(rename = "max_output_tokens")]
    pub max_output: Option<u64>,
}

/// An estimate of what a request will use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Estimate {
    /// Input as counted, output at its bound.
    pub tokens: Tokens,
    /// What that costs; `None` if the model has no price.
    pub cost: Option<Usd>,
}

/// From more tokens of input on a context may count as long.
const LONG_CONTEXT: u64 = 128_000;

/// A request that could cost more than books can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the request could cost more than any budget holds")]
pub struct TooDear;

/// The prices of all models: an immutable snapshot.
#[derive(Debug, Clone, Default)]
pub struct PriceBook {
    models: HashMap<Box<str>, ModelPrice, foldhash::fast::RandomState>,
    /// Those of its names that end in `*`, the longest first.
    wildcards: Vec<Box<str>>,
}

impl PriceBook {
    /// Reads the answer of LiteLLM's `GET /model/info`. A price that is not a
    /// decimal, or negative, is as if absent.
    ///
    /// # Errors
    /// [`PriceBookError`] when the whole is not of that form.
    pub fn from_model_info(body: &[u8]) -> Result<Self, PriceBookError> {
        let listing: Listing<'_> = serde_json::from_slice(body).map_err(|_| PriceBookError)?;
        let mut book = Self::default();
        for deployment in listing.data {
            let price = deployment.model_info.map(|info| info.price()).unwrap_or_default();
            book.models
                .entry(deployment.model_name.into())
                .and_modify(|known| *known = known.dearer(&price))
                .or_insert(price);
        }
        Ok(book.indexed())
    }

    /// The book with configured prices, which win field by field.
    #[must_use]
    pub fn with_overrides(mut self, prices: &BTreeMap<String, ModelPrice>) -> Self {
        for (model, price) in prices {
            let entry = self.models.entry(model.as_str().into()).or_default();
            *entry = price.or(entry);
        }
        self.indexed()
    }

    fn indexed(mut self) -> Self {
        self.wildcards = self.models.keys().filter(|name| name.ends_with('*')).cloned().collect();
        self.wildcards.sort_by_key(|name| std::cmp::Reverse(name.len()));
        let unpriced = self.models.iter().filter(|(name, price)| !name.ends_with('*') && !price.is_known());
        let unpriced: Vec<Box<str>> = unpriced.map(|(name, _)| name.clone()).collect();
        for name in unpriced {
            if let Some(price) = self.wildcard(&name).copied()
                && let Some(own) = self.models.get_mut(&name)
            {
                *own = own.or(&price);
            }
        }
        self
    }

    fn wildcard(&self, model: &str) -> Option<&ModelPrice> {
        let begins = |name: &str| name.strip_suffix('*').is_some_and(|start| model.starts_with(start));
        self.models.get(self.wildcards.iter().find(|name| begins(name))?)
    }

    /// Whether nothing is known of any model.
    pub fn is_empty(&self) -> bool {
        self.models.is_empty()
    }

    /// The models that have an entry, in no order.
    pub fn models(&self) -> impl Iterator<Item = &str> {
        self.models.keys().map(AsRef::as_ref)
    }

    /// The prices of a model, if any is known: its own, or if it has none those of the longest
    /// `name*` that it begins with.
    pub fn get(&self, model: &str) -> Option<&ModelPrice> {
        self.models.get(model).or_else(|| self.wildcard(model))
    }

    /// What was used, at this book's prices; `None` if a price is missing. Tokens
    /// count first; seconds, images, characters and searches where tokens cost nothing.
    ///
    /// ```
    /// use alchemi::{metering::price::PriceBook, model::usage::Tokens};
    ///
    /// let info = br#"{"data":[{"model_name":"m","model_info":{"input_cost_per_token":1.5e-7,"output_cost_per_token":6e-7}}]}"#;
    /// let book = PriceBook::from_model_info(info)?;
    /// let used = Tokens { input: 19, output: 21, ..Tokens::default() };
    /// assert_eq!(book.price("m", &used.into()).map(|usd| usd.nanos()), Some(15_450));
    /// # Ok::<(), alchemi::metering::price::PriceBookError>(())
    /// ```
    pub fn price(&self, model: &str, used: &Reported) -> Option<Usd> {
        self.get(model)?.cost(used).ok().flatten()
    }

    /// The most output tokens that the model can make, if known.
    pub fn max_output(&self, model: &str) -> Option<u64> {
        self.get(model)?.max_output
    }

    /// What a request cannot cost more than, where tokens are what costs: its input at a token
    /// a byte, so many output tokens for each answer, and of every kind of token the dearest
    /// that it may turn out to be. Files count as estimated.
    ///
    /// # Errors
    /// [`TooDear`] as [`estimate`](Self::estimate).
    pub fn ceiling(&self, model: &str, size: &AskSize, output: u64) -> Result<Option<Usd>, TooDear> {
        let Some(price) = self.get(model) else { return Ok(None) };
        let answers = size.answers.max(1);
        let (input, output) = (size.most_input.max(size.input_tokens), output.saturating_mul(answers));
        let used = Reported::expected(size, Tokens { input, output, ..Tokens::default() });
        price.asked(size).dearest(size.media > 0, input).cost(&used)
    }

    /// What a request will use at most, as far as can be told: its input, and its
    /// own limit or `default_max_output` for each answer, never above the model's maximum.
    ///
    /// # Errors
    /// [`TooDear`] when the model has a price and the product does not fit.
    pub fn estimate(&self, model: &str, size: &AskSize, default_max_output: u64) -> Result<Estimate, TooDear> {
        let output = output_bound(size, default_max_output, self.max_output(model));
        let tokens = Tokens { input: size.input_tokens, output, ..Tokens::default() };
        let used = Reported::expected(size, tokens);
        let cost = self.get(model).map_or(Ok(None), |price| price.asked(size).cost(&used))?;
        Ok(Estimate { tokens, cost })
    }
}

impl ModelPrice {
    /// Whether it has any price.
    fn is_known(&self) -> bool {
        Self { max_output: None, ..*self } != Self::default()
    }

    /// The cost; `None` if a price is missing.
    fn cost(&self, used: &Reported) -> Result<Option<Usd>, TooDear> {
        self.atto(used)?.map(|atto| usd_from_atto(atto).ok_or(TooDear)).transpose()
    }

    /// The same in units of 1e-18 dollars.
    fn atto(&self, used: &Reported) -> Result<Option<i128>, TooDear> {
        let by_token = match used.tokens {
            Some(tokens) if self.input.is_some() || self.output.is_some() => match self.tokens(&tokens)? {
                Some(0) => Some(0),
                whole => return Ok(whole),
            },
            _ => None,
        };
        let nanos = used.duration.map(|d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX));
        let second = per(self.second, nanos)?.map(|atto| atto / 1_000_000_000);
        let character = per(self.character, used.characters)?;
        let parts = [second, per(self.image, used.images)?, character, per(self.query, used.queries)?];
        let by_unit = parts
            .into_iter()
            .flatten()
            .try_fold(None, |sum: Option<i128>, part| sum.unwrap_or(0).checked_add(part).map(Some))
            .ok_or(TooDear)?;
        Ok(by_unit.or(by_token))
    }

    /// The parts of input and output at their own prices, the rest at the plain one.
    fn tokens(&self, used: &Tokens) -> Result<Option<i128>, TooDear> {
        let cached = used.cached.min(used.input);
        let cache_creation = used.cache_creation.min(used.input - cached);
        let audio_input = used.audio_input.min(used.input - cached - cache_creation);
        let audio_output = used.audio_output.min(used.output);
        let reasoning = used.reasoning.min(used.output - audio_output);
        let parts = [
            (used.input - cached - cache_creation - audio_input, self.input),
            (cached, self.cached.or(self.input)),
            (cache_creation, self.cache_creation.or(self.input)),
            (audio_input, self.audio_input.or(self.input)),
            (used.output - audio_output - reasoning, self.output),
            (reasoning, self.reasoning.or(self.output)),
            (audio_output, self.audio_output.or(self.output)),
        ];
        let mut sum = 0_i128;
        for (count, price) in parts.into_iter().filter(|(count, _)| *count > 0) {
            let Some(part) = per(price, Some(count))? else { return Ok(None) };
            sum = sum.checked_add(part).ok_or(TooDear)?;
        }
        Ok(Some(sum))
    }

    /// Plain tokens at the price of the tier that is asked for.
    fn asked(&self, size: &AskSize) -> Self {
        let dearer = |tier: Option<UnitPrice>, plain| if size.priority { max(tier, plain) } else { plain };
        Self {
            input: dearer(self.priority_input, self.input),
            output: dearer(self.priority_output, self.output),
            ..*self
        }
    }

    /// The same with every token at the price of the dearest kind; of heard audio only with media, and of a
    /// long context only with so much input.
    fn dearest(&self, media: bool, input: u64) -> Self {
        let audio = self.audio_input.filter(|_| media);
        let long = |price: Option<UnitPrice>| price.filter(|_| input > LONG_CONTEXT);
        let cache = [self.cached, self.cache_creation, self.cache_creation_hour];
        Self {
            input: cache.into_iter().chain([audio, long(self.long_input)]).fold(self.input, max),
            output: [self.audio_output, self.reasoning, long(self.long_output)].into_iter().fold(self.output, max),
            ..*self
        }
    }

    /// The dearer of two deployments, part by part.
    fn dearer(&self, other: &Self) -> Self {
        let plain = |mine: Option<UnitPrice>, theirs| max(mine, theirs);
        // A special price is compared with what the other deployment would charge instead.
        let special = |mine: Option<UnitPrice>, base, theirs: Option<UnitPrice>, their_base| {
            (mine.is_some() || theirs.is_some()).then(|| max(mine.or(base), theirs.or(their_base))).flatten()
        };
        Self {
            input: plain(self.input, other.input),
            output: plain(self.output, other.output),
            cached: special(self.cached, self.input, other.cached, other.input),
            cache_creation: special(self.cache_creation, self.input, other.cache_creation, other.input),
            reasoning: special(self.reasoning, self.output, other.reasoning, other.output),
            audio_input: special(self.audio_input, self.input, other.audio_input, other.input),
            audio_output: special(self.audio_output, self.output, other.audio_output, other.output),
            priority_input: special(self.priority_input, self.input, other.priority_input, other.input),
            priority_output: special(self.priority_output, self.output, other.priority_output, other.output),
            long_input: special(self.long_input, self.input, other.long_input, other.input),
            long_output: special(self.long_output, self.output, other.long_output, other.output),
            cache_creation_hour: plain(self.cache_creation_hour, other.cache_creation_hour),
            second: plain(self.second, other.second),
            image: plain(self.image, other.image),
            character: plain(self.character, other.character),
            query: plain(self.query, other.query),
            max_output: self.max_output.max(other.max_output),
        }
    }

    fn or(&self, base: &Self) -> Self {
        Self {
            input: self.input.or(base.input),
            output: self.output.or(base.output),
            cached: self.cached.or(base.cached),
            cache_creation: self.cache_creation.or(base.cache_creation),
            reasoning: self.reasoning.or(base.reasoning),
            audio_input: self.audio_input.or(base.audio_input),
            audio_output: self.audio_output.or(base.audio_output),
            priority_input: self.priority_input.or(base.priority_input),
            priority_output: self.priority_output.or(base.priority_output),
            long_input: self.long_input.or(base.long_input),
            long_output: self.long_output.or(base.long_output),
            cache_creation_hour: self.cache_creation_hour.or(base.cache_creation_hour),
            second: self.second.or(base.second),
            image: self.image.or(base.image),
            character: self.character.or(base.character),
            query: self.query.or(base.query),
            max_output: self.max_output.or(base.max_output),
        }
    }
}

/// The cost of `quantity` units; `None` when either is unknown.
fn per(price: Option<UnitPrice>, quantity: Option<u64>) -> Result<Option<i128>, TooDear> {
    match (price, quantity) {
        (Some(price), Some(quantity)) => price.times(quantity).map(Some).ok_or(TooDear),
        _ => Ok(None),
    }
}

fn max(a: Option<UnitPrice>, b: Option<UnitPrice>) -> Option<UnitPrice> {
    match (a, b) {
        (Some(a), Some(b)) if b.times(1) > a.times(1) => Some(b),
        (a, b) => a.or(b),
    }
}

#[derive(Deserialize)]
struct Listing<'a> {
    #[serde(borrow)]
    data: Vec<Deployment<'a>>,
}

#[derive(Deserialize)]
struct Deployment<'a> {
    model_name: String,
    #[serde(borrow)]
    model_info: Option<Info<'a>>,
}

#[derive(Deserialize)]
#[serde(bound(deserialize = "'de: 'a"))]
struct Info<'a> {
    input_cost_per_token: Option<&'a RawValue>,
    output_cost_per_token: Option<&'a RawValue>,
    cache_read_input_token_cost: Option<&'a RawValue>,
    cache_creation_input_token_cost: Option<&'a RawValue>,
    output_cost_per_reasoning_token: Option<&'a RawValue>,
    input_cost_per_audio_token: Option<&'a RawValue>,
    output_cost_per_audio_token: Option<&'a RawValue>,
    input_cost_per_token_priority: Option<&'a RawValue>,
    output_cost_per_token_priority: Option<&'a RawValue>,
    input_cost_per_token_above_128k_tokens: Option<&'a RawValue>,
    output_cost_per_token_above_128k_tokens: Option<&'a RawValue>,
    input_cost_per_token_above_200k_tokens: Option<&'a RawValue>,
    output_cost_per_token_above_200k_tokens: Option<&'a RawValue>,
    cache_creation_input_token_cost_above_200k_tokens: Option<&'a RawValue>,
    cache_creation_input_token_cost_above_1hr: Option<&'a RawValue>,
    cache_creation_input_token_cost_above_1hr_above_200k_tokens: Option<&'a RawValue>,
    input_cost_per_second: Option<&'a RawValue>,
    output_cost_per_second: Option<&'a RawValue>,
    input_cost_per_image: Option<&'a RawValue>,
    output_cost_per_image: Option<&'a RawValue>,
    input_cost_per_character: Option<&'a RawValue>,
    input_cost_per_query: Option<&'a RawValue>,
    max_output_tokens: Option<&'a RawValue>,
    max_tokens: Option<&'a RawValue>,
}

impl Info<'_> {
    fn price(&self) -> ModelPrice {
        let price = |raw: Option<&RawValue>| raw.and_then(|raw| unit_price(raw.get().trim_matches('"')));
        let limit = |raw: Option<&RawValue>| raw.and_then(|raw| count(raw.get())).filter(|limit| *limit > 0);
        ModelPrice {
            input: price(self.input_cost_per_token),
            output: price(self.output_cost_per_token),
            cached: price(self.cache_read_input_token_cost),
            cache_creation: price(self.cache_creation_input_token_cost),
            reasoning: price(self.output_cost_per_reasoning_token),
            audio_input: price(self.input_cost_per_audio_token),
            audio_output: price(self.output_cost_per_audio_token),
            priority_input: price(self.input_cost_per_token_priority),
            priority_output: price(self.output_cost_per_token_priority),
            // Also what is written to a cache.
            long_input: [
                self.input_cost_per_token_above_200k_tokens,
                self.cache_creation_input_token_cost_above_200k_tokens,
                self.cache_creation_input_token_cost_above_1hr_above_200k_tokens,
            ]
            .into_iter()
            .fold(price(self.input_cost_per_token_above_128k_tokens), |dearest, other| max(dearest, price(other))),
            long_output: max(
                price(self.output_cost_per_token_above_128k_tokens),
                price(self.output_cost_per_token_above_200k_tokens),
            ),
            cache_creation_hour: price(self.cache_creation_input_token_cost_above_1hr),
            // Which of the two counts depends on the kind of model: the dearer one, because an estimate must not be low.
            second: max(price(self.input_cost_per_second), price(self.output_cost_per_second)),
            image: max(price(self.output_cost_per_image), price(self.input_cost_per_image)),
            character: price(self.input_cost_per_character),
            query: price(self.input_cost_per_query),
            max_output: limit(self.max_output_tokens).or_else(|| limit(self.max_tokens)),
        }
    }
}

/// A price from its text; digits behind the 18th place, which only arithmetic on
/// floats leaves (`1.4999999999999998e-07`), are rounded to the nearest.
fn unit_price(text: &str) -> Option<UnitPrice> {
    if text.starts_with('-') {
        return None;
    }
    text.parse().ok().or_else(|| {
        let (number, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let places = i64::try_from(fraction.len()).ok()?.checked_sub(exponent.parse().ok()?)?;
        let excess = u32::try_from(places.checked_sub(18)?).ok()?;
        let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
        let unit = 10_u128.checked_pow(excess)?;
        format!("{}e-18", digits.checked_add(unit / 2)? / unit).parse().ok()
    })
}

/// A price from configuration: a decimal in a string, or a number, whose shortest
/// decimal form is what was written.
fn configured<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<UnitPrice>, D::Error> {
    struct Price;
    impl Visitor<'_> for Price {
        type Value = UnitPrice;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a price in US dollars per unit, such as \"1.5e-7\"")
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<UnitPrice, E> {
            unit_price(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
        }
        fn visit_f64<E: de::Error>(self, number: f64) -> Result<UnitPrice, E> {
            self.visit_str(&format!("{number:e}"))
        }
        fn visit_u64<E: de::Error>(self, number: u64) -> Result<UnitPrice, E> {
            self.visit_str(&number.to_string())
        }
        fn visit_i64<E: de::Error>(self, number: i64) -> Result<UnitPrice, E> {
            self.visit_str(&number.to_string())
        }
    }
    deserializer.deserialize_any(Price).map(Some)
}
