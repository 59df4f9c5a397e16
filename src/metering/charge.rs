//! What a finished request is charged, and how that is known. One pure function, [`charge`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::json::{MOST_USD, Reported, dollars};
use super::price::PriceBook;
use crate::credits::Usd;
use crate::model::usage::{CostSource, Tokens};

/// What happens with a model that has no price.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Unpriced {
    /// Admit it, charge nothing, mark the row.
    #[default]
    Allow,
    /// Refuse it before it is sent.
    Deny,
    /// Charge this much for each request.
    Flat(Usd),
}

impl Unpriced {
    /// What a request without a known price costs.
    pub const fn cost(self) -> Usd {
        match self {
            Self::Allow | Self::Deny => Usd::ZERO,
            Self::Flat(cost) => cost,
        }
    }
}

/// Not `allow`, `deny` or `flat:<usd>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be `allow`, `deny` or `flat:` and an amount in US dollars, such as `flat:0.01`")]
pub struct UnpricedError;

impl FromStr for Unpriced {
    type Err = UnpricedError;

    fn from_str(text: &str) -> Result<Self, UnpricedError> {
        match text {
            "allow" => Ok(Self::Allow),
            "deny" => Ok(Self::Deny),
            _ => {
                let cost: Usd = text.strip_prefix("flat:").and_then(|usd| usd.parse().ok()).ok_or(UnpricedError)?;
                if cost.is_negative() { Err(UnpricedError) } else { Ok(Self::Flat(cost)) }
            }
        }
    }
}

impl TryFrom<String> for Unpriced {
    type Error = UnpricedError;

    fn try_from(text: String) -> Result<Self, UnpricedError> {
        text.parse()
    }
}

impl From<Unpriced> for String {
    fn from(unpriced: Unpriced) -> Self {
        unpriced.to_string()
    }
}

impl fmt::Display for Unpriced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allow => f.write_str("allow"),
            Self::Deny => f.write_str("deny"),
            Self::Flat(cost) => write!(f, "flat:{cost}"),
        }
    }
}

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The request was never sent, or no connection to the upstream came about.
    NotSent,
    /// It was sent, and the client left or the wait ended before an answer began.
    NoAnswer,
    /// A whole body, or one that was cut short, with this status.
    Body(u16),
    /// An event stream with this status; `failed` if an event in it said so.
    Stream {
        /// The HTTP status.
        status: u16,
        /// An event said that the upstream failed.
        failed: bool,
    },
}

/// All that is known of a finished request.
#[derive(Debug, Clone, Copy)]
pub struct ChargeInputs<'a> {
    /// The model that was asked for.
    pub model: &'a str,
    /// How it ended.
    pub outcome: Outcome,
    /// The upstream's cost header.
    pub header_cost: Option<&'a str>,
    /// What body or stream reported.
    pub reported: &'a Reported,
    /// What the request asked for and the output as counted, for want of a report.
    pub counted: Reported,
    /// The prices in force.
    pub prices: &'a PriceBook,
    /// What holds for a model without a price.
    pub unpriced: Unpriced,
}

/// What a request is charged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Charge {
    /// The raw cost.
    pub cost: Usd,
    /// The tokens for the ledger.
    pub tokens: Tokens,
    /// How the cost is known.
    pub source: CostSource,
}

impl Charge {
    /// Nothing used, nothing charged.
    pub const FREE: Self = Self {
        cost: Usd::ZERO,
        tokens: Tokens {
            input: 0,
            output: 0,
            cached: 0,
            cache_creation: 0,
            reasoning: 0,
            audio_input: 0,
            audio_output: 0,
        },
        source: CostSource::Free,
    };
}

/// Decides what a request is charged. First that holds:
///
/// 1. an answer that failed and reports no use is free;
/// 2. the cost header, though never of a stream (its head is written before the cost is known);
/// 3. `usage.cost`;
/// 4. what was reported, at the price book's prices;
/// 5. what was asked for (input as estimated, images, characters, seconds of audio) and output
///    as counted, at the price book's prices.
///
/// A header that is no amount counts as absent. An answer failed if its status is
/// 400 or more, or if a stream said so before any output. Everything else that was
/// sent is charged, above all a stream that was cut.
pub fn charge(inputs: &ChargeInputs<'_>) -> Charge {
    let reported = inputs.reported;
    let tokens = reported.tokens.unwrap_or_default();
    let header = match inputs.outcome {
        Outcome::Body(_) => inputs.header_cost.and_then(dollars),
        _ => None,
    };
    if failed(inputs) && reported.is_empty() && header.is_none_or(|cost| cost == Usd::ZERO) {
        return Charge::FREE;
    }
    if let Some(cost) = header {
        return Charge { cost, tokens, source: CostSource::Header };
    }
    if let Some(cost) = reported.cost {
        return Charge { cost, tokens, source: CostSource::Body };
    }
    let (used, source) =
        if reported.is_empty() { (inputs.counted, CostSource::Estimated) } else { (*reported, CostSource::Priced) };
    let tokens = used.tokens.unwrap_or_default();
    match inputs.prices.price(inputs.model, &used) {
        Some(cost) => Charge { cost: cost.min(MOST_USD), tokens, source },
        None => Charge { cost: inputs.unpriced.cost(), tokens, source: CostSource::Unpriced },
    }
}

fn failed(inputs: &ChargeInputs<'_>) -> bool {
    match inputs.outcome {
        Outcome::NotSent => true,
        Outcome::NoAnswer => false,
        Outcome::Body(status) => status >= 400,
        Outcome::Stream { status, failed } => {
            status >= 400 || (failed && inputs.counted.tokens.unwrap_or_default().output == 0)
        }
    }
}
