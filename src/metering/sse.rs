//! Usage out of a stream of server-sent events, while its bytes pass through.
//!
//! Rules:
//! 1. Bytes are passed on as they came. The only ones ever cut out are those of a
//!    usage chunk that the gateway asked for and the client did not.
//! 2. Without that need nothing is held back: what comes in goes out, uncopied.
//!    With it, only the event that is not yet complete is held.
//! 3. The result does not depend on where the stream was cut into chunks.
//! 4. An event above [`MAX_EVENT`] passes through unread.
//!
//! Event framing is that of the HTML standard, section 9.2: lines end in LF, CR
//! or CRLF, an empty line ends an event, several `data` lines are one payload.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};
use memchr::{memchr2, memchr2_iter};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use serde_json::value::RawValue;

use super::count::{CountRules, TextSize};
use super::json::{Reported, Usage};
use crate::model::usage::{RouteKind, Tokens};

/// The largest event that is read, in bytes.
pub const MAX_EVENT: usize = 1 << 20;

/// What a stream told about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StreamReport {
    /// The usage that holds for the whole stream; empty if it never came.
    pub reported: Reported,
    /// What the first event said of the input (Anthropic `message_start`); see
    /// [`counted`](Self::counted).
    pub started: Option<Tokens>,
    /// Whether the stream came to its own end: `[DONE]`, `message_stop` or a
    /// terminal `response.*` event.
    pub complete: bool,
    /// Whether an event said that the upstream failed.
    pub failed: bool,
    /// Bytes of output text that passed, tool arguments and reasoning included.
    pub output_bytes: u64,
    /// Events with a payload.
    pub events: u64,
    /// Events too large to be read.
    pub oversized: u64,
    /// The id of the response (Responses API).
    pub response_id: Option<String>,
    /// Bytes that were still held back and are to be sent before the end.
    pub rest: Bytes,
}

impl StreamReport {
    /// What to charge for when nothing was reported: the input as the stream's
    /// start told it, else as estimated; the output as it passed.
    pub fn counted(&self, estimated_input: u64, rules: &CountRules) -> Tokens {
        let started = self.started.filter(|tokens| tokens.input > 0);
        let input = started.unwrap_or(Tokens { input: estimated_input, ..Tokens::default() });
        Tokens { output: rules.tokens(self.output_bytes), ..input }
    }
}

/// Reads a stream as it passes.
///
/// ```
/// use alchemi::{metering::sse::SseMeter, model::usage::RouteKind};
/// use bytes::Bytes;
///
/// let mut meter = SseMeter::new(RouteKind::Chat, true);
/// let chunk = Bytes::from("data: {\"choices\":[{\"delta\":{\"content\":\"hi\"}}]}\n\n");
/// assert_eq!(meter.push(chunk.clone()), chunk);
/// let usage = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":1}}\n\n";
/// assert!(meter.push(Bytes::from(usage)).is_empty(), "withheld");
/// let report = meter.finish();
/// assert_eq!(report.reported.tokens.map(|t| (t.input, t.output)), Some((3, 1)));
/// assert_eq!(report.output_bytes, 2);
/// ```
#[derive(Debug)]
pub struct SseMeter {
    kind: RouteKind,
    withhold: bool,
    framing: Framing,
    /// The bytes of the event that is not complete yet.
    partial: BytesMut,
    /// The current event is too large to be read.
    oversized: bool,
    /// The last complete event was cut out.
    cut: bool,
    started: Option<Usage>,
    /// What was said of usage so far.
    last: Option<Usage>,
    report: StreamReport,
}

impl SseMeter {
    /// `withhold_usage_chunk`: usage was asked for by us, not by the client.
    pub fn new(kind: RouteKind, withhold_usage_chunk: bool) -> Self {
        Self {
            kind,
            withhold: withhold_usage_chunk,
            framing: Framing::default(),
            partial: BytesMut::new(),
            oversized: false,
            cut: false,
            started: None,
            last: None,
            report: StreamReport::default(),
        }
    }

    /// Takes the next bytes of the stream and answers with those to pass on,
    /// possibly none.
    pub fn push(&mut self, chunk: Bytes) -> Bytes {
        let mut out = Passed::default();
        let mut event_start = 0;
        let mut at = self.framing.line_feed_of_last_line(&chunk);
        if at > 0 && self.framing.between_events {
            out.keep_or_cut(&chunk, 0..at, self.cut);
            event_start = at;
        }
        while let Some(end) = self.framing.event_end(&chunk, at) {
            self.cut = self.complete_event(&chunk, event_start..end, &mut out);
            (event_start, at) = (end, end);
        }
        self.keep_partial(&chunk, event_start, &mut out);
        if self.withhold { out.into_bytes(chunk) } else { chunk }
    }

    /// Ends the stream, whether it came to its end or was cut.
    pub fn finish(mut self) -> StreamReport {
        let partial = std::mem::take(&mut self.partial).freeze();
        let withheld = !self.oversized && self.read_event(&partial, false);
        if self.withhold && !withheld {
            self.report.rest = partial;
        }
        self.report.started = self.started.and_then(|usage| usage.reported(self.kind).tokens);
        self.report
    }

    /// Reads the event that ends in this chunk; true if it is to be cut out.
    fn complete_event(&mut self, chunk: &Bytes, range: std::ops::Range<usize>, out: &mut Passed) -> bool {
        let tail = chunk.get(range.clone()).unwrap_or_default();
        let large = self.partial.len() + tail.len() > MAX_EVENT;
        if std::mem::take(&mut self.oversized) || large {
            self.report.oversized += 1;
            out.prepend(&mut self.partial);
            out.keep_or_cut(chunk, range, false);
            return false;
        }
        if self.partial.is_empty() {
            let cut = self.read_event(tail, true);
            out.keep_or_cut(chunk, range, cut);
            return cut;
        }
        let mut event = std::mem::take(&mut self.partial);
        let held = event.len();
        event.extend_from_slice(tail);
        let cut = self.read_event(&event, true);
        event.truncate(held);
        if !cut {
            out.prepend(&mut event);
        }
        event.clear();
        self.partial = event; // keeps its capacity
        out.keep_or_cut(chunk, range, cut);
        cut
    }

    /// Holds the beginning of an event, unless it has grown too large.
    fn keep_partial(&mut self, chunk: &Bytes, start: usize, out: &mut Passed) {
        let head = chunk.get(start..).unwrap_or_default();
        if head.is_empty() {
            return;
        }
        if self.oversized || self.partial.len() + head.len() > MAX_EVENT {
            self.oversized = true;
            out.prepend(&mut self.partial);
            out.keep_or_cut(chunk, start..chunk.len(), false);
        } else {
            self.partial.extend_from_slice(head);
            out.keep_or_cut(chunk, start..chunk.len(), true);
        }
    }

    /// Learns what an event says, which `ended` with an empty line or with the stream; true if it is to be cut out.
    fn read_event(&mut self, event: &[u8], ended: bool) -> bool {
        let Some(payload) = payload(event) else { return false };
        self.report.events += 1;
        if payload.trim_ascii() == b"[DONE]" {
            self.report.complete = true;
            return false;
        }
        let Ok(event) = serde_json::from_slice::<Event<'_>>(&payload) else {
            // The client may read what cannot be read here. An event that broke off nobody reads.
            if !ended {
                return false;
            }
            self.report.output_bytes = self.report.output_bytes.saturating_add(payload.len() as u64);
            return false;
        };
        self.learn(&event);
        self.withhold && event.usage.is_some() && says_nothing_else(&payload)
    }

    fn learn(&mut self, event: &Event<'_>) {
        let name = event.name.as_deref().unwrap_or_default();
        let mut text = event.choices.bytes;
        if name.ends_with("delta") && name != "message_delta" && !name.contains("audio.delta") {
            text = text.saturating_add(event.delta.bytes);
        }
        self.report.output_bytes = self.report.output_bytes.saturating_add(text);
        self.report.failed |= event.error.is_some() || matches!(name, "error" | "response.failed");
        self.report.complete |= matches!(
            name,
            "message_stop"
                | "response.completed"
                | "response.incomplete"
                | "response.failed"
                | "transcript.text.done"
                | "speech.audio.done"
                | "image_generation.completed"
                | "image_edit.completed"
        );
        if self.report.response_id.is_none() {
            self.report.response_id = event.response.and_then(|raw| super::json::response_id(raw.get().as_bytes()));
        }
        let usage = match name {
            "message_start" => {
                self.started = event.message.and_then(nested_usage);
                return;
            }
            "response.completed" | "response.incomplete" | "response.failed" => event.response.and_then(nested_usage),
            _ => event.usage.and_then(Usage::parse),
        };
        if let Some(usage) = usage {
            let whole = self.last.or(self.started).map_or(usage, |earlier| usage.merge(earlier));
            self.last = Some(whole);
            self.report.reported = whole.reported(self.kind);
        }
    }
}

/// The members of an event that are read, whatever the API.
#[derive(Deserialize)]
struct Event<'a> {
    #[serde(rename = "type", borrow, default)]
    name: Option<Cow<'a, str>>,
    #[serde(default)]
    choices: TextSize,
    #[serde(default)]
    delta: TextSize,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
    #[serde(borrow)]
    response: Option<&'a RawValue>,
    #[serde(borrow)]
    message: Option<&'a RawValue>,
    error: Option<IgnoredAny>,
}

fn nested_usage(raw: &RawValue) -> Option<Usage> {
    #[derive(Deserialize)]
    struct Holder<'a> {
        #[serde(borrow)]
        usage: Option<&'a RawValue>,
    }
    serde_json::from_str::<Holder<'_>>(raw.get()).ok()?.usage.and_then(Usage::parse)
}

/// Whether a usage chunk carries nothing that a client would miss. LiteLLM sends
/// `choices: [{"index":0,"delta":{}}]` where OpenAI sends `choices: []`.
fn says_nothing_else(payload: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Choices {
        #[serde(default)]
        choices: Vec<Choice>,
        error: Option<IgnoredAny>,
    }
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Choice {
        delta: Value,
        text: Value,
        finish_reason: Value,
    }
    fn blank(value: &Value) -> bool {
        match value {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Array(items) => items.iter().all(blank),
            Value::Object(members) => members.values().all(blank),
            Value::Bool(_) | Value::Number(_) => false,
        }
    }
    serde_json::from_slice::<Choices>(payload).is_ok_and(|chunk| {
        chunk.error.is_none()
            && chunk.choices.iter().all(|c| blank(&c.delta) && blank(&c.text) && blank(&c.finish_reason))
    })
}

/// The payload of an event: its `data` lines, joined by LF.
pub(crate) fn payload(event: &[u8]) -> Option<Cow<'_, [u8]>> {
    let event = event.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(event);
    let mut payload: Option<Cow<'_, [u8]>> = None;
    let mut start = 0;
    for end in memchr2_iter(b'\n', b'\r', event).chain([event.len()]) {
        let line = event.get(start..end).unwrap_or_default();
        start = end + 1;
        let Some(value) = line.strip_prefix(b"data:") else { continue };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        payload = Some(match payload {
            None => Cow::Borrowed(value),
            Some(former) => {
                let mut joined = former.into_owned();
                joined.push(b'\n');
                joined.extend_from_slice(value);
                Cow::Owned(joined)
            }
        });
    }
    payload
}

/// Cuts a stream into its events, whatever the chunks it comes in.
#[derive(Debug, Default)]
pub(crate) struct Events {
    framing: Framing,
    partial: BytesMut,
}

impl Events {
    /// The events that end in this chunk, each with the empty line behind it.
    pub(crate) fn push(&mut self, chunk: &Bytes) -> Vec<Bytes> {
        let (mut events, mut start) = (Vec::new(), 0);
        let mut at = self.framing.line_feed_of_last_line(chunk);
        while let Some(end) = self.framing.event_end(chunk, at) {
            let tail = chunk.slice(start..end);
            events.push(if self.partial.is_empty() {
                tail
            } else {
                self.partial.extend_from_slice(&tail);
                self.partial.split().freeze()
            });
            (start, at) = (end, end);
        }
        self.partial.extend_from_slice(chunk.get(start..).unwrap_or_default());
        events
    }

    /// How many bytes of an event have come that is not complete.
    pub(crate) fn waiting(&self) -> usize {
        self.partial.len()
    }

    /// What has come of an event that will not be completed.
    pub(crate) fn rest(&mut self) -> Bytes {
        self.partial.split().freeze()
    }
}

/// The event with this payload in place of its own.
pub(crate) fn with_payload(event: &[u8], payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(event.len() + payload.len());
    for line in event.split(|byte| matches!(byte, b'\n' | b'\r')) {
        if !line.is_empty() && !line.starts_with(b"data") {
            out.extend_from_slice(line);
            out.extend_from_slice(b"\n");
        }
    }
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(payload);
    out.extend_from_slice(b"\n\n");
    out.freeze()
}

/// Where events end, across chunks.
#[derive(Debug)]
struct Framing {
    /// The current line has no bytes so far.
    line_empty: bool,
    /// The last byte seen was a CR; an LF that follows belongs to the same line end.
    after_cr: bool,
    /// The last byte seen ended an event.
    between_events: bool,
}

impl Default for Framing {
    fn default() -> Self {
        Self { line_empty: true, after_cr: false, between_events: true }
    }
}

impl Framing {
    /// How many bytes of the chunk complete the CRLF that the last one began: 0 or 1.
    fn line_feed_of_last_line(&mut self, chunk: &[u8]) -> usize {
        if chunk.is_empty() {
            return 0;
        }
        usize::from(std::mem::take(&mut self.after_cr) && chunk.first() == Some(&b'\n'))
    }

    /// The end of the event that goes on at `at`, if it is in these bytes.
    fn event_end(&mut self, bytes: &[u8], mut at: usize) -> Option<usize> {
        loop {
            let rest = bytes.get(at..).filter(|rest| !rest.is_empty())?;
            self.between_events = false;
            let Some(length) = memchr2(b'\n', b'\r', rest) else {
                self.line_empty = false;
                return None;
            };
            let was_empty = std::mem::replace(&mut self.line_empty, true) && length == 0;
            at += length + 1;
            if rest.get(length) == Some(&b'\r') {
                match bytes.get(at) {
                    Some(b'\n') => at += 1,
                    Some(_) => {}
                    None => self.after_cr = true,
                }
            }
            if was_empty {
                self.between_events = true;
                return Some(at);
            }
        }
    }
}

/// The bytes of a chunk that are passed on: one slice of it where possible.
#[derive(Default)]
struct Passed {
    /// What cannot be a slice of the chunk: bytes held before, or a run before a cut.
    copied: BytesMut,
    run: std::ops::Range<usize>,
}

impl Passed {
    /// Bytes of former chunks that go out before the run that follows.
    fn prepend(&mut self, held: &mut BytesMut) {
        // Held bytes belong to the first event of a chunk: no run is open yet.
        self.copied.extend_from_slice(held);
        held.clear();
    }

    fn keep_or_cut(&mut self, chunk: &Bytes, range: std::ops::Range<usize>, cut: bool) {
        if cut || range.is_empty() {
            return;
        }
        if self.run.is_empty() {
            self.run = range;
        } else if self.run.end == range.start {
            self.run.end = range.end;
        } else {
            self.copied.extend_from_slice(chunk.get(self.run.clone()).unwrap_or_default());
            self.run = range;
        }
    }

    fn into_bytes(mut self, chunk: Bytes) -> Bytes {
        let run = chunk.slice(self.run);
        if self.copied.is_empty() {
            return run;
        }
        self.copied.extend_from_slice(&run);
        self.copied.freeze()
    }
}
