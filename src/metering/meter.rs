//! One admitted request on its way: reads what it uses while its answer passes, and
//! settles its reservation exactly once, at the last byte or when it is dropped.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};

use super::charge::{ChargeInputs, Outcome, Unpriced, charge};
use super::count::{CountRules, output_bound};
use super::json::{Reported, read_usage, response_id, text_bytes};
use super::price::PriceBook;
use super::sse::{SseMeter, StreamReport};
use crate::allocation::{Bill, Reservation};
use crate::model::usage::{RouteKind, Tokens};
use crate::policy::AskSize;

/// Most bytes of a JSON answer that are kept to read its usage; a longer one is
/// charged from its cost header, or as counted.
const MAX_READ: usize = 32 << 20;

/// What a meter needs to know of the request.
#[derive(Debug, Clone)]
pub struct Metered {
    /// The kind of route.
    pub kind: RouteKind,
    /// The model that was asked for.
    pub model: Arc<str>,
    /// What it asks for.
    pub size: AskSize,
    /// Whether the usage chunk of a stream was asked for by us alone.
    pub withhold_usage: bool,
    /// The prices in force at admission.
    pub prices: Arc<PriceBook>,
    /// What holds for a model without a price.
    pub unpriced: Unpriced,
    /// How text becomes tokens.
    pub count: CountRules,
    /// The header that the upstream writes the cost into.
    pub cost_header: http::HeaderName,
}

/// How far the request has come.
#[derive(Debug)]
enum Stage {
    NotSent,
    Sent,
    Body { status: u16, kept: Vec<Bytes>, length: usize, json: bool },
    Stream { status: u16, sse: Box<SseMeter> },
    Streamed { status: u16, report: Box<StreamReport> },
    Over,
}

/// Reads an answer as it passes.
#[derive(Debug)]
pub struct Meter {
    reservation: Option<Reservation>,
    /// Boxed, so that what a request carries along stays small.
    metered: Box<Metered>,
    stage: Stage,
    header_cost: Option<String>,
    call_id: Option<String>,
    guardrail: Option<String>,
}

impl Meter {
    /// Takes over the reservation.
    pub fn new(reservation: Reservation, metered: Metered) -> Self {
        Self {
            reservation: Some(reservation),
            metered: Box::new(metered),
            stage: Stage::NotSent,
            header_cost: None,
            call_id: None,
            guardrail: None,
        }
    }

    /// Whether part of the answer may be kept from the client.
    pub fn withholds(&self) -> bool {
        self.metered.withhold_usage && matches!(self.stage, Stage::Stream { .. })
    }

    /// Whether the reservation was made over a cap, and the client is to be told.
    pub fn is_over_cap(&self) -> bool {
        self.reservation.as_ref().is_some_and(Reservation::is_over_cap)
    }

    /// The request is about to leave: from here on it is charged, whatever comes.
    pub fn sent(&mut self) {
        self.stage = Stage::Sent;
    }

    /// It did not leave after all.
    pub fn not_sent(&mut self) {
        self.stage = Stage::NotSent;
    }

    /// The answer begins.
    pub fn answered(&mut self, status: u16, headers: &HeaderMap) {
        // Two costs are none.
        let text = |name: &http::HeaderName| {
            let mut lines = headers.get_all(name).iter();
            let line = lines.next().filter(|_| lines.next().is_none())?;
            line.to_str().ok().map(str::to_owned)
        };
        self.header_cost = text(&self.metered.cost_header);
        self.call_id = text(&http::HeaderName::from_static("x-litellm-call-id"));
        let content_type = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        self.stage = if content_type.starts_with("text/event-stream") {
            let sse = Box::new(SseMeter::new(self.metered.kind, self.metered.withhold_usage));
            Stage::Stream { status, sse }
        } else {
            let json = content_type.starts_with("application/json");
            Stage::Body { status, kept: Vec::new(), length: 0, json }
        };
    }

    /// Takes the next bytes of the answer and gives those to pass on.
    pub fn push(&mut self, chunk: Bytes) -> Bytes {
        match &mut self.stage {
            Stage::Stream { sse, .. } => sse.push(chunk),
            Stage::Body { kept, length, json, .. } => {
                *length += chunk.len();
                if !*json {
                    return chunk;
                }
                if *length <= MAX_READ {
                    kept.push(chunk.clone());
                } else {
                    kept.clear();
                }
                chunk
            }
            _ => chunk,
        }
    }

    /// Notes the guardrail that found something in the answer.
    pub fn found_by(&mut self, guardrail: &str) {
        if self.guardrail.as_deref() != Some(guardrail) {
            self.guardrail = Some(guardrail.to_owned());
        }
    }

    /// Nothing more comes: gives bytes that are still to be passed on.
    pub fn rest(&mut self) -> Bytes {
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Stream { status, sse } => {
                let mut report = Box::new(sse.finish());
                let rest = std::mem::take(&mut report.rest);
                self.stage = Stage::Streamed { status, report };
                rest
            }
            stage => {
                self.stage = stage;
                Bytes::new()
            }
        }
    }

    /// The answer is over: settles. `whole` is false when the client or the upstream
    /// broke off.
    pub fn finish(&mut self, whole: bool) {
        self.rest();
        let stage = std::mem::replace(&mut self.stage, Stage::Over);
        let Some(reservation) = self.reservation.take() else { return };
        let (size, input) = (&self.metered.size, self.metered.size.input_tokens);
        let asked = |tokens| Reported::expected(size, tokens);
        let estimated = asked(Tokens { input, ..Tokens::default() });
        let (outcome, status, reported, counted, complete) = match stage {
            // Dropping it gives the reservation back.
            Stage::NotSent | Stage::Over | Stage::Stream { .. } => return,
            Stage::Sent => (Outcome::NoAnswer, 0, Reported::default(), estimated, false),
            Stage::Body { status, kept, length, json } => {
                let body = joined(kept);
                let reported = if json { read_usage(self.metered.kind, &body) } else { Reported::default() };
                if self.metered.kind == RouteKind::Responses {
                    self.call_id = response_id(&body).or(self.call_id.take());
                }
                // Who reads most of an answer and leaves before its usage pays for what they have got, and an
                // answer that says nothing of its use is paid by its text.
                let bytes = u64::try_from(length).unwrap_or(u64::MAX);
                let text = writes_text(self.metered.kind);
                let got = match (whole, json) {
                    (true, _) if !text || !reported.is_empty() => 0,
                    (true, true) => text_bytes(&body).unwrap_or(bytes),
                    (false, false) if !text => 0,
                    _ => bytes,
                };
                // Not all of it is text: no more than was asked for.
                let output = self.metered.count.tokens(got).min(output_bound(size, u64::MAX, None));
                let counted = asked(Tokens { input, output, ..Tokens::default() });
                (Outcome::Body(status), status, reported, counted, whole)
            }
            Stage::Streamed { status, mut report } => {
                self.call_id = report.response_id.take().or(self.call_id.take());
                let counted = asked(report.counted(input, &self.metered.count));
                let outcome = Outcome::Stream { status, failed: report.failed };
                (outcome, status, report.reported, counted, whole && report.complete)
            }
        };
        let charged = charge(&ChargeInputs {
            model: &self.metered.model,
            outcome,
            header_cost: self.header_cost.as_deref(),
            reported: &reported,
            counted,
            prices: &self.metered.prices,
            unpriced: self.metered.unpriced,
        });
        reservation.settle(Bill {
            tokens: charged.tokens,
            cost: charged.cost,
            source: Some(charged.source),
            marks: if complete || status >= 400 { Vec::new() } else { vec!["cut"] },
            upstream_call_id: self.call_id.take(),
            status,
            guardrail: self.guardrail.take(),
        });
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.finish(false);
    }
}

/// Whether the answer is text that a model writes, and its length what it costs.
const fn writes_text(kind: RouteKind) -> bool {
    matches!(kind, RouteKind::Chat | RouteKind::Completion | RouteKind::Messages | RouteKind::Responses)
}

/// The whole body; not copied when it came in one piece.
fn joined(mut kept: Vec<Bytes>) -> Bytes {
    if kept.len() == 1 {
        return kept.pop().unwrap_or_default();
    }
    let mut whole = BytesMut::with_capacity(kept.iter().map(Bytes::len).sum());
    for chunk in kept {
        whole.extend_from_slice(&chunk);
    }
    whole.freeze()
}
