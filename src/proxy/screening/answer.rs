//! The texts of an answer: noted, or refused and masked as prompts are
//! (`guardrails.response`).
//!
//! Kinds that answer in words are screened, where presets hold for the caller. A JSON
//! answer is read to its end first, so that a refusal can still have its status; a
//! stream passes through [a window](super::stream), and its refusal is an event.

use std::borrow::Cow;

use axum::body::Body;
use bytes::Bytes;
use http::{Response, StatusCode, header, response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::Value;

use super::stream::{Refusal, StreamScreen, masked};
use super::texts::{forget_tokens, replace, said};
use super::{AT_ONCE, blocked};
use crate::metering::meter::Meter;
use crate::model::usage::RouteKind;
use crate::policy::guardrails::{Finding, Guardrails, Passage};
use crate::problem::Problem;
use crate::proxy::Gateway;
use crate::proxy::caller::Caller;
use crate::proxy::config::ResponseScreening;
use crate::proxy::forward::BoxError;
use crate::proxy::ingress::RequestId;
use crate::proxy::refusal::event;

/// The largest answer that is read as a whole, in bytes.
const MAX_READ: usize = 32 << 20;

/// How an answer is screened.
pub(in crate::proxy) enum Screening {
    /// As a whole.
    Whole(Whole),
    /// While it passes.
    Stream(Box<Streamed>),
}

/// What an answer is screened by as a whole.
pub(in crate::proxy) struct Whole {
    guardrails: Guardrails,
    json: bool,
    refuses: bool,
}

/// A stream that is screened, and in whose words it is refused.
#[derive(Debug)]
pub(in crate::proxy) struct Streamed {
    screen: StreamScreen,
    holds: bool,
    kind: RouteKind,
    id: RequestId,
    /// The refusal was said.
    refused: bool,
}

impl Gateway {
    /// How the answer with this head is screened; `None` for one that passes unread.
    pub(in crate::proxy) fn screening(
        &self,
        caller: &Caller,
        kind: RouteKind,
        id: &RequestId,
        head: &response::Parts,
    ) -> Option<Screening> {
        let config = self.0.parts.config.guardrails;
        let guardrails = &caller.rules.guardrails;
        let unread = guardrails.is_empty() || config.response == ResponseScreening::Off || !head.status.is_success();
        if unread || !answers_in_words(kind) {
            return None;
        }
        let refuses = config.response == ResponseScreening::Block;
        let content_type = head.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let guardrails = guardrails.clone();
        if content_type.starts_with("text/event-stream") {
            let screen = StreamScreen::new(guardrails, config.stream_window, refuses);
            let streamed = Streamed { screen, holds: refuses, kind, id: id.clone(), refused: false };
            return Some(Screening::Stream(Box::new(streamed)));
        }
        let json = content_type.starts_with("application/json");
        (json || content_type.starts_with("text/")).then_some(Screening::Whole(Whole { guardrails, json, refuses }))
    }

    /// Reads an answer to its end, settles it, and gives what the client gets of it.
    ///
    /// # Errors
    /// 403 `guardrail_blocked`; 502 when it breaks off or is too large to be read.
    pub(in crate::proxy) async fn judged<B>(
        &self,
        mut head: response::Parts,
        body: B,
        mut meter: Option<Meter>,
        screen: Whole,
    ) -> Result<Response<Body>, Problem>
    where
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>>,
    {
        let body = Limited::new(body, MAX_READ).collect().await.map_err(|error| unreadable(&error))?.to_bytes();
        if let Some(meter) = &mut meter {
            meter.push(body.clone());
        }
        let judged = if body.len() <= AT_ONCE {
            screen.judge(&body)
        } else {
            let judging = tokio::task::spawn_blocking(move || screen.judge(&body));
            judging.await.map_err(|_| Problem::internal())?
        };
        if let Some(mut meter) = meter {
            if let Some(code) = &judged.code {
                meter.found_by(code);
            }
            meter.finish(true);
        }
        let body = judged.body.map_err(|Refusal { code, pattern }| answer_blocked(code, pattern))?;
        head.headers.insert(header::CONTENT_LENGTH, body.len().into());
        Ok(Response::from_parts(head, Body::from(body)))
    }
}

/// Kinds whose answers are words of a model.
const fn answers_in_words(kind: RouteKind) -> bool {
    matches!(
        kind,
        RouteKind::Chat
            | RouteKind::Completion
            | RouteKind::Responses
            | RouteKind::ResponseItem
            | RouteKind::Messages
            | RouteKind::Transcription
    )
}

fn answer_blocked(code: String, pattern: String) -> Problem {
    let detail = format!("Guardrail `{code}` blocks the answer (pattern `{pattern}`): ask for something else");
    blocked(detail, code, pattern)
}

fn unreadable(error: &BoxError) -> Problem {
    let detail = if error.is::<LengthLimitError>() {
        "Guardrails hold for you, and the answer is too large for them to be read"
    } else {
        "The upstream broke its answer off"
    };
    Problem::new(StatusCode::BAD_GATEWAY, "upstream_unreadable", detail)
}

/// What screening makes of a whole answer.
struct Judged {
    body: Result<Bytes, Refusal>,
    code: Option<String>,
}

impl Whole {
    fn judge(&self, body: &Bytes) -> Judged {
        let parsed = if self.json { serde_json::from_slice::<Value>(body).ok() } else { None };
        match parsed {
            Some(answer) => self.judge_json(body, answer),
            None => self.judge_text(body),
        }
    }

    fn judge_json(&self, body: &Bytes, mut answer: Value) -> Judged {
        let texts = said(&answer);
        let mut channels: Vec<(&str, Vec<usize>)> = Vec::new();
        for (n, text) in texts.iter().enumerate() {
            match channels.iter_mut().find(|(channel, _)| *channel == text.channel) {
                Some((_, parts)) => parts.push(n),
                None => channels.push((&text.channel, vec![n])),
            }
        }
        let part = |n: &usize| texts.get(*n).map_or(Cow::Borrowed(""), |text| Cow::Borrowed(text.text.as_str()));
        let passages: Vec<_> =
            channels.iter().map(|(_, parts)| Passage { parts: parts.iter().map(part).collect() }).collect();
        let finding = self.guardrails.screen(&passages);
        self.decide(body, finding, |masks| {
            for masks in masks.chunk_by(|a, b| (a.passage, a.part) == (b.passage, b.part)) {
                let place = masks.first().and_then(|first| channels.get(first.passage)?.1.get(first.part));
                let Some(text) = place.and_then(|n| texts.get(*n)) else { continue };
                let masks: Vec<_> = masks.iter().map(|mask| (mask.at.clone(), mask.text.clone())).collect();
                replace(&mut answer, &text.pointer, masked(&text.text, 0, &masks));
            }
            forget_tokens(&mut answer);
            serde_json::to_vec(&answer).unwrap_or_default().into()
        })
    }

    fn judge_text(&self, body: &Bytes) -> Judged {
        let text = String::from_utf8_lossy(body);
        let finding = self.guardrails.screen_text(&text, |_| true);
        self.decide(body, finding, |masks| {
            let masks: Vec<_> = masks.into_iter().map(|mask| (mask.at, mask.text)).collect();
            masked(&text, 0, &masks).into()
        })
    }

    fn decide(
        &self,
        body: &Bytes,
        finding: Finding,
        mask: impl FnOnce(Vec<crate::policy::guardrails::Mask>) -> Bytes,
    ) -> Judged {
        let (code, changed) = match finding {
            Finding::Clean => (None, Ok(body.clone())),
            Finding::Detected { code } => (Some(code), Ok(body.clone())),
            Finding::Masked { code, masks } if self.refuses => (Some(code), Ok(mask(masks))),
            Finding::Blocked { code, pattern } if self.refuses => (Some(code.clone()), Err(Refusal { code, pattern })),
            Finding::Masked { code, .. } | Finding::Blocked { code, .. } => (Some(code), Ok(body.clone())),
        };
        Judged { body: changed, code }
    }
}

impl Streamed {
    /// Whether other bytes may go out than came in.
    pub(in crate::proxy) fn changes(&self) -> bool {
        self.holds
    }

    /// The guardrail that found something so far.
    pub(in crate::proxy) fn code(&self) -> Option<&str> {
        self.screen.code.as_deref()
    }

    /// Whether the stream is refused, and nothing more of it passes.
    pub(in crate::proxy) fn is_refused(&self) -> bool {
        self.screen.refusal.is_some()
    }

    /// Takes the next bytes, and gives those that may pass.
    pub(in crate::proxy) fn push(&mut self, chunk: Bytes) -> Bytes {
        self.screen.push(chunk)
    }

    /// Takes the last bytes, and gives what has waited, or the refusal.
    pub(in crate::proxy) fn finish(&mut self, rest: Bytes) -> Bytes {
        let mut out = Vec::from(self.screen.push(rest));
        out.extend_from_slice(&self.screen.finish());
        if let (Some(Refusal { code, pattern }), false) = (&self.screen.refusal, self.refused) {
            self.refused = true;
            out.extend_from_slice(&event(&answer_blocked(code.clone(), pattern.clone()), self.kind, &self.id));
        }
        out.into()
    }
}
