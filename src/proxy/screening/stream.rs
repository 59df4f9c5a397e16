//! A stream of events, screened while it passes.
//!
//! The texts of a channel are read as one, through a window: a match is decided once
//! something stands behind it, for an expression may look one character ahead. When
//! answers are only looked at, nothing waits. When they may be refused, an event waits
//! until so many bytes of its channel's text as the window has are read behind it: no
//! match that is shorter than the window gets past, wherever the stream is cut.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use serde_json::Value;

use super::texts::{Said, forget_tokens, replace, said};
use crate::metering::sse::{Events, payload, with_payload};
use crate::policy::guardrails::{Finding, Guardrails};

/// The largest event that is read, in bytes.
const MAX_EVENT: usize = 32 << 20;
/// The most texts of one stream.
const MAX_CHANNELS: usize = 4_096;

/// What a stream was found to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: String,
    pub(super) pattern: String,
}

/// Reads a stream as it passes.
#[derive(Debug)]
pub(super) struct StreamScreen {
    guardrails: Guardrails,
    window: usize,
    /// Whether events wait, to be refused or masked.
    holds: bool,
    events: Events,
    channels: HashMap<String, Channel>,
    held: VecDeque<Held>,
    /// The guardrail that found something; a mask counts for more than a note.
    pub(super) code: Option<String>,
    masked: bool,
    pub(super) refusal: Option<Refusal>,
}

/// The text of a channel: the end of what has passed, and what waits.
#[derive(Debug, Default)]
struct Channel {
    text: String,
    /// Where `text` begins in all that the channel has said.
    from: usize,
    /// Matches that end before this are decided.
    read: usize,
    /// What ends by here waits for nothing more.
    free: usize,
    masks: Vec<(Range<usize>, String)>,
}

#[derive(Debug)]
struct Held {
    event: Bytes,
    /// Its texts, and where they stand in their channels; of a text that is whole, no place.
    texts: Vec<(Said, Range<usize>)>,
    value: Value,
    rewritten: bool,
}

impl Channel {
    fn end(&self) -> usize {
        self.from + self.text.len()
    }

    /// Forgets what stands before `at`, but for a window's length.
    fn forget(&mut self, at: usize, window: usize) {
        let mut keep = at.saturating_sub(window).saturating_sub(self.from).min(self.text.len());
        while !self.text.is_char_boundary(keep) {
            keep -= 1;
        }
        self.text.drain(..keep);
        self.from += keep;
        let from = self.from;
        self.masks.retain(|(at, _)| at.end > from);
    }

    /// Adds a mask; one that goes on where another was is one with it.
    fn mask(&mut self, at: Range<usize>, name: String) {
        match self.masks.last_mut() {
            Some((last, _)) if at.start < last.end => last.end = last.end.max(at.end),
            _ => self.masks.push((at, name)),
        }
    }
}

impl StreamScreen {
    pub(super) fn new(guardrails: Guardrails, window: usize, holds: bool) -> Self {
        Self {
            guardrails,
            window: window.max(1),
            holds,
            events: Events::default(),
            channels: HashMap::new(),
            held: VecDeque::new(),
            code: None,
            masked: false,
            refusal: None,
        }
    }

    /// Takes the next bytes, and gives those that may pass.
    pub(super) fn push(&mut self, chunk: Bytes) -> Bytes {
        if self.is_over() {
            return if self.holds { Bytes::new() } else { chunk };
        }
        for event in self.events.push(&chunk) {
            self.take(event);
        }
        if self.events.waiting() > MAX_EVENT || self.channels.len() > MAX_CHANNELS {
            self.give_up();
        }
        if !self.holds {
            return chunk;
        }
        self.released(false)
    }

    /// The stream is over: gives what has waited and may pass.
    pub(super) fn finish(&mut self) -> Bytes {
        if self.is_over() {
            return Bytes::new();
        }
        let rest = self.events.rest();
        if !rest.is_empty() {
            self.take(rest);
        }
        self.judge_all(true);
        if self.holds { self.released(true) } else { Bytes::new() }
    }

    /// Whether nothing more can come of reading on.
    fn is_over(&self) -> bool {
        self.refusal.is_some() || (!self.holds && self.code.is_some())
    }

    /// What cannot be read is not let through where it could be refused.
    fn give_up(&mut self) {
        if self.holds {
            self.refusal = Some(Refusal { code: "answer".to_owned(), pattern: "too large to be read".to_owned() });
        }
        self.events.rest();
        self.channels.clear();
    }

    fn take(&mut self, event: Bytes) {
        let mut held = Held { value: value_of(&event), event, texts: Vec::new(), rewritten: false };
        let name = held.value.get("type").and_then(Value::as_str).unwrap_or_default();
        let goes_on = !name.starts_with("response.") || name.ends_with(".delta");
        let ends_a_text = name == "content_block_stop" || name.ends_with(".done");
        let texts = if name.ends_with("audio.delta") { Vec::new() } else { said(&held.value) };
        for text in texts {
            if goes_on {
                let channel = self.channels.entry(text.channel.clone()).or_default();
                let at = channel.end();
                channel.text.push_str(&text.text);
                let place = at..channel.end();
                held.texts.push((text, place));
            } else {
                // The whole text once more, behind its pieces.
                self.judge_whole(&text, &mut held);
            }
        }
        if self.holds {
            self.held.push_back(held);
        }
        self.judge_all(ends_a_text);
        if ends_a_text {
            self.channels.values_mut().for_each(|channel| channel.free = channel.end());
        }
    }

    fn judge_whole(&mut self, text: &Said, held: &mut Held) {
        let finding = self.guardrails.screen_text(&text.text, |_| true);
        if let Some(masks) = self.note(finding) {
            let masked = masked(&text.text, 0, &masks);
            replace(&mut held.value, &text.pointer, masked);
            held.rewritten = true;
        }
    }

    /// Decides on what can be decided; `over`: nothing follows.
    fn judge_all(&mut self, over: bool) {
        let step = self.window.div_ceil(4);
        let mut channels = std::mem::take(&mut self.channels);
        for channel in channels.values_mut() {
            let (from, read, end) = (channel.from, channel.read, channel.end());
            // At the end, a match that nothing follows is decided too.
            if !over && end.saturating_sub(read) < step {
                continue;
            }
            let undecided = |at: &Range<usize>| from + at.end >= read && (over || from + at.end < end);
            let finding = self.guardrails.screen_text(&channel.text, undecided);
            for (at, name) in self.note(finding).unwrap_or_default() {
                channel.mask(from + at.start..from + at.end, name);
            }
            channel.read = end;
            if !self.holds {
                channel.forget(end, self.window);
            }
        }
        self.channels = channels;
    }

    /// Remembers a finding; gives the masks where they are wanted.
    fn note(&mut self, finding: Finding) -> Option<Vec<(Range<usize>, String)>> {
        match finding {
            Finding::Clean => None,
            Finding::Detected { code } => {
                self.code.get_or_insert(code);
                None
            }
            Finding::Masked { code, masks } => {
                if !std::mem::replace(&mut self.masked, true) {
                    self.code = Some(code);
                }
                self.holds.then(|| masks.into_iter().map(|mask| (mask.at, mask.text)).collect())
            }
            Finding::Blocked { code, pattern } => {
                self.code = Some(code.clone());
                if self.holds {
                    self.refusal = Some(Refusal { code, pattern });
                }
                None
            }
        }
    }

    /// The events that need not wait any longer.
    fn released(&mut self, all: bool) -> Bytes {
        let mut out = BytesMut::new();
        while self.refusal.is_none()
            && let Some(next) = self.held.front()
            && (all || next.texts.iter().all(|(text, at)| self.may_pass(text, at)))
            && let Some(next) = self.held.pop_front()
        {
            out.extend_from_slice(&self.passed(next));
        }
        out.freeze()
    }

    fn may_pass(&self, text: &Said, at: &Range<usize>) -> bool {
        let decided = |channel: &Channel| channel.free.max(channel.read.saturating_sub(self.window));
        self.channels.get(&text.channel).is_none_or(|channel| decided(channel) >= at.end)
    }

    /// The event as it is sent, with its masks.
    fn passed(&mut self, mut held: Held) -> Bytes {
        for (text, at) in std::mem::take(&mut held.texts) {
            let Some(channel) = self.channels.get_mut(&text.channel) else { continue };
            let touching = |(mask, _): &&(Range<usize>, String)| mask.start < at.end && mask.end > at.start;
            let masks: Vec<_> = channel.masks.iter().filter(touching).cloned().collect();
            if !masks.is_empty() {
                replace(&mut held.value, &text.pointer, masked(&text.text, at.start, &masks));
                held.rewritten = true;
            }
            channel.forget(at.end, self.window);
        }
        if !held.rewritten {
            return held.event;
        }
        forget_tokens(&mut held.value);
        with_payload(&held.event, &serde_json::to_vec(&held.value).unwrap_or_default())
    }
}

/// What an event says; what is no JSON says its text.
fn value_of(event: &Bytes) -> Value {
    match payload(event) {
        None => Value::Null,
        Some(payload) if payload.trim_ascii() == b"[DONE]" => Value::Null,
        Some(payload) => serde_json::from_slice(&payload)
            .unwrap_or_else(|_| serde_json::json!({"text": String::from_utf8_lossy(&payload)})),
    }
}

/// The text, which stands at `start`, with the masks in their places: a name where its
/// match begins, and nothing where it goes on.
pub(super) fn masked(text: &str, start: usize, masks: &[(Range<usize>, String)]) -> String {
    let (mut out, mut done) = (String::with_capacity(text.len()), 0);
    for (at, name) in masks {
        let (from, to) = (at.start.max(start) - start, at.end.saturating_sub(start).min(text.len()));
        if from < done || to < from {
            continue;
        }
        out.push_str(text.get(done..from).unwrap_or_default());
        if at.start >= start {
            out.push_str(name);
        }
        done = to;
    }
    out.push_str(text.get(done..).unwrap_or_default());
    out
}

#[cfg(test)]
mod tests;
