//! The texts of a request's body, and how they are replaced in it.
//!
//! Everything that might reach a model is text: each string below the members that hold
//! a prompt or that nobody knows, names of nested members, long numbers, and the fields
//! of a form. What only steers is left out, and so are pictures and sound. The strings
//! of one message are one passage, because a model reads them as one.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;

use super::{Splice, splice};
use crate::policy::guardrails::{Mask, Passage};

/// Members of the outer object that hold no prompt.
const STEERING: &[&str] = &[
    "model",
    "user",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
    "stream_options",
    "fallbacks",
    "context_window_fallbacks",
    "content_policy_fallbacks",
    "previous_response_id",
    "service_tier",
    "encoding_format",
    "modalities",
    "include",
    "tool_choice",
    "voice",
    "size",
    "quality",
    "style",
    "output_format",
    "reasoning_effort",
];

/// Nested members that hold an identifier of the API.
const IDENTIFYING: &[&str] = &[
    "id",
    "type",
    "role",
    "model",
    "call_id",
    "tool_call_id",
    "tool_use_id",
    "media_type",
    "mime_type",
    "detail",
    "status",
];

/// Nested members whose content a caller or a tool makes up: no name in it is the API's.
const MADE_UP: &[&str] = &["input", "arguments", "parameters", "input_schema", "schema"];

/// Members that hold sound or a picture as `data`.
const MEDIA: &[&str] = &["input_audio", "inline_data", "inlineData"];

/// Members that may hold a `data:` URL.
const LINKING: &[&str] = &["url", "image_url", "data", "file_data"];

/// Members whose strings are read one after the other.
const READ_ON: &[&str] = &["text", "content", "input", "data"];

/// The shortest number that is looked at, in digits.
const LONG_NUMBER: usize = 8;
/// The shortest string that may be taken for encoded bytes.
const ENCODED: usize = 64;

/// How a text is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Written {
    /// Between the quotes of JSON.
    Quoted,
    /// As a number of JSON.
    Number,
    /// As it is.
    Plain,
}

/// A text of the body.
#[derive(Debug)]
struct Place {
    at: Range<usize>,
    written: Written,
}

/// The texts of a body.
#[derive(Debug, Default)]
pub struct Texts<'t> {
    /// What they say, for screening.
    pub passages: Vec<Passage<'t>>,
    /// A prompt is given as numbers of tokens, which nobody here can read.
    pub tokens: bool,
    places: Vec<Vec<Place>>,
}

impl<'t> Texts<'t> {
    /// The texts of a JSON body that was read before.
    pub fn of_json(body: &'t str) -> Self {
        let mut scan = Scan { body, at: 0, frames: Vec::new(), texts: Self::default(), open: None };
        while scan.step().is_some() {}
        scan.texts
    }

    /// The fields of a form that stand at `fields`.
    pub fn of_fields(body: &'t [u8], fields: &[Range<usize>]) -> Self {
        let mut texts = Self::default();
        for at in fields {
            if let Some(text) = body.get(at.clone()).and_then(|bytes| std::str::from_utf8(bytes).ok()) {
                texts.alone(Cow::Borrowed(text), Place { at: at.clone(), written: Written::Plain });
            }
        }
        texts
    }

    fn alone(&mut self, text: Cow<'t, str>, place: Place) {
        self.passages.push(Passage { parts: vec![text] });
        self.places.push(vec![place]);
    }

    fn read_on(&mut self, passage: usize, text: Cow<'t, str>, place: Place) {
        if let (Some(passage), Some(places)) = (self.passages.get_mut(passage), self.places.get_mut(passage)) {
            passage.parts.push(text);
            places.push(place);
        }
    }

    /// The body with the masks in their places, and nothing else changed.
    pub fn masked(&self, body: &Bytes, masks: &[Mask]) -> Bytes {
        let mut splices = Vec::new();
        for masks in masks.chunk_by(|a, b| (a.passage, a.part) == (b.passage, b.part)) {
            let Some(first) = masks.first() else { continue };
            let place = self.places.get(first.passage).and_then(|places| places.get(first.part));
            let text = self.passages.get(first.passage).and_then(|passage| passage.parts.get(first.part));
            if let (Some(place), Some(text)) = (place, text) {
                replace(place, text, matches!(text, Cow::Borrowed(_)), masks, &mut splices);
            }
        }
        splice(body, splices)
    }
}

/// `as_written`: the text stands in the body byte for byte.
fn replace(place: &Place, text: &str, as_written: bool, masks: &[Mask], splices: &mut Vec<Splice>) {
    if as_written && place.written != Written::Number {
        splices.extend(masks.iter().map(|mask| {
            let text = if place.written == Written::Plain { mask.text.clone() } else { escaped(&mask.text) };
            Splice { at: place.at.start + mask.at.start..place.at.start + mask.at.end, text: text.into() }
        }));
        return;
    }
    // With escapes in it, or a number, it is written anew.
    let (mut changed, mut done) = (String::with_capacity(text.len()), 0);
    for mask in masks {
        if let Some(before) = text.get(done..mask.at.start) {
            changed.push_str(before);
            changed.push_str(&mask.text);
            done = mask.at.end;
        }
    }
    changed.push_str(text.get(done..).unwrap_or_default());
    let changed = escaped(&changed);
    let text = if place.written == Written::Number { format!("\"{changed}\"") } else { changed };
    splices.push(Splice { at: place.at.clone(), text: text.into() });
}

/// What stands between the quotes of a JSON string.
fn escaped(text: &str) -> String {
    let quoted = serde_json::to_string(text).unwrap_or_default();
    quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or_default().to_owned()
}

/// An object or a list that is being read.
#[derive(Debug)]
struct Frame<'t> {
    object: bool,
    /// The member that is being read.
    name: Cow<'t, str>,
    awaits_name: bool,
    /// It stands below one of [`MADE_UP`].
    made_up: bool,
    /// How often it has a `type`, and whether the last one is `base64`.
    types: (usize, bool),
    /// What is encoded bytes if its `type` says so, which may stand behind it.
    undecided: Vec<(Cow<'t, str>, Place)>,
}

/// Whether a string is bytes in base64: a picture, sound, a file.
enum Encoded {
    No,
    Yes,
    /// If the `type` beside it is `base64`.
    IfTyped,
}

/// A pass over JSON that is known to be valid: a mistake in it could only overlook a text.
struct Scan<'t> {
    body: &'t str,
    at: usize,
    frames: Vec<Frame<'t>>,
    texts: Texts<'t>,
    /// The passage of the message that is being read.
    open: Option<usize>,
}

impl<'t> Scan<'t> {
    fn step(&mut self) -> Option<()> {
        let byte = *self.body.as_bytes().get(self.at)?;
        match byte {
            b'{' | b'[' => {
                // Each message, or each of several inputs, is a passage of its own.
                if self.frames.len() <= 2 && !self.within_content() {
                    self.open = None;
                }
                self.open_frame(byte == b'{');
                self.at += 1;
            }
            b'}' | b']' => {
                self.close_frame();
                self.at += 1;
            }
            b',' => {
                if let Some(frame) = self.frames.last_mut() {
                    frame.awaits_name = frame.object;
                }
                if self.frames.len() <= 2 && !self.within_content() {
                    self.open = None;
                }
                self.at += 1;
            }
            b'"' => self.string(),
            b'-' | b'0'..=b'9' => self.number(),
            _ => self.at += 1,
        }
        Some(())
    }

    fn open_frame(&mut self, object: bool) {
        let nested = self.frames.len() > 1;
        let made_up = self
            .frames
            .last()
            .is_some_and(|frame| frame.made_up || (nested && frame.object && MADE_UP.contains(&frame.name.as_ref())));
        let name = Cow::Borrowed("");
        self.frames.push(Frame {
            object,
            name,
            awaits_name: object,
            made_up,
            types: (0, false),
            undecided: Vec::new(),
        });
    }

    fn close_frame(&mut self) {
        let Some(frame) = self.frames.last_mut() else { return };
        let texts = std::mem::take(&mut frame.undecided);
        // Of two types, parsers may read either.
        if frame.types != (1, true) {
            for (text, place) in texts {
                self.add(text, place, true);
            }
        }
        self.frames.pop();
    }

    /// Whether this is between the parts of a `system` or the like, which are read as one.
    fn within_content(&self) -> bool {
        self.frames.len() == 2 && matches!(self.outer(), "system" | "instructions") && self.open.is_some()
    }

    /// The member of the outer object that is being read.
    fn outer(&self) -> &str {
        self.frames.first().map_or("", |frame| &frame.name)
    }

    /// The nearest member that is being read.
    fn nearest(&self) -> &str {
        self.frames.iter().rev().find(|frame| frame.object).map_or("", |frame| &frame.name)
    }

    fn skips(&self) -> bool {
        let identifying = || self.frames.last().is_some_and(|frame| !frame.made_up) && self.frames.len() > 1;
        STEERING.contains(&self.outer()) || (identifying() && IDENTIFYING.contains(&self.nearest()))
    }

    fn encoded(&self, text: &str) -> Encoded {
        let Some(frame) = self.frames.last().filter(|frame| !frame.made_up) else { return Encoded::No };
        if LINKING.contains(&self.nearest()) && is_data_url(text) {
            return Encoded::Yes;
        }
        if !frame.object || text.len() < ENCODED || !is_base64(text) {
            return Encoded::No;
        }
        let within = self.frames.iter().rev().nth(1).filter(|frame| frame.object);
        match frame.name.as_ref() {
            "file_data" | "b64_json" => Encoded::Yes,
            "data" if within.is_some_and(|frame| MEDIA.contains(&frame.name.as_ref())) => Encoded::Yes,
            "data" => Encoded::IfTyped,
            _ => Encoded::No,
        }
    }

    fn string(&mut self) {
        let start = self.at + 1;
        let (end, plain) = end_of_string(self.body.as_bytes(), start);
        self.at = end + 1;
        let Some(raw) = self.body.get(start..end) else { return };
        let text = if plain {
            Cow::Borrowed(raw)
        } else {
            let quoted = self.body.get(start - 1..end + 1).unwrap_or_default();
            Cow::Owned(serde_json::from_str(quoted).unwrap_or_default())
        };
        let place = Place { at: start..end, written: Written::Quoted };
        let nested = self.frames.len() > 1;
        if let Some(frame) = self.frames.last_mut().filter(|frame| frame.awaits_name) {
            frame.awaits_name = false;
            frame.name = text.clone();
            frame.types.0 += usize::from(text == "type");
            // The names that an API gives say nothing.
            let ours = text.len() <= 32 && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
            if nested && !ours && !STEERING.contains(&self.outer()) {
                self.texts.alone(text, place);
            }
            return;
        }
        if let Some(frame) = self.frames.last_mut().filter(|frame| frame.object && frame.name == "type") {
            frame.types.1 = text == "base64";
        }
        if self.skips() || text.is_empty() {
            return;
        }
        let read_on = READ_ON.contains(&self.nearest()) || (self.frames.len() == 2 && self.outer() == "system");
        match (self.encoded(&text), self.frames.last_mut()) {
            (Encoded::Yes, _) => {}
            (Encoded::IfTyped, Some(frame)) => frame.undecided.push((text, place)),
            _ => self.add(text, place, read_on),
        }
    }

    /// `read_on`: it belongs to the message that is being read.
    fn add(&mut self, text: Cow<'t, str>, place: Place, read_on: bool) {
        if !read_on {
            self.texts.alone(text, place);
            return;
        }
        match self.open {
            Some(passage) if self.frames.len() > 1 => self.texts.read_on(passage, text, place),
            _ => {
                let opens = self.frames.len() > 2 || matches!(self.outer(), "system" | "instructions");
                self.open = opens.then_some(self.texts.passages.len());
                self.texts.alone(text, place);
            }
        }
    }

    fn number(&mut self) {
        let rest = self.body.as_bytes().get(self.at..).unwrap_or_default();
        let length = rest.iter().take_while(|b| matches!(b, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9')).count();
        let at = self.at..self.at + length;
        self.at = at.end;
        let only_lists = self.frames.iter().skip(1).all(|frame| !frame.object);
        if matches!(self.outer(), "prompt" | "input") && self.frames.len() > 1 && only_lists {
            self.texts.tokens = true;
        }
        if length >= LONG_NUMBER && self.frames.len() > 1 && !self.skips() {
            let text = Cow::Borrowed(self.body.get(at.clone()).unwrap_or_default());
            self.texts.alone(text, Place { at, written: Written::Number });
        }
    }
}

/// Where a string ends that starts here, and whether it has no escapes.
fn end_of_string(bytes: &[u8], start: usize) -> (usize, bool) {
    let (mut at, mut plain) = (start, true);
    loop {
        let rest = bytes.get(at..).unwrap_or_default();
        match memchr::memchr2(b'"', b'\\', rest) {
            None => return (bytes.len(), plain),
            Some(found) if rest.get(found) == Some(&b'"') => return (at + found, plain),
            Some(found) => (at, plain) = (at + found + 2, false),
        }
    }
}

/// `data:`, a media type, `;base64,` and bytes (RFC 2397).
fn is_data_url(text: &str) -> bool {
    let Some((kind, bytes)) = text.strip_prefix("data:").and_then(|rest| rest.split_once(";base64,")) else {
        return false;
    };
    let named = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b".+/;=-".contains(&b);
    (1..=100).contains(&kind.len()) && kind.bytes().all(named) && is_base64(bytes)
}

/// Base64 in the standard alphabet on one line, padded or not (RFC 4648, section 4), and
/// not empty.
fn is_base64(text: &str) -> bool {
    let signs = text.trim_end_matches('=');
    let whole = match text.len() - signs.len() {
        0 => signs.len() % 4 != 1,
        1 | 2 => text.len().is_multiple_of(4),
        _ => false,
    };
    whole && !signs.is_empty() && signs.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/')
}

#[cfg(test)]
mod tests;
