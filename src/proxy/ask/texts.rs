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
                replace(place, text, masks, &mut splices);
            }
        }
        splice(body, splices)
    }
}

fn replace(place: &Place, text: &Cow<'_, str>, masks: &[Mask], splices: &mut Vec<Splice>) {
    let direct = matches!(text, Cow::Borrowed(_)) && place.written != Written::Number;
    if direct {
        splices.extend(masks.iter().map(|mask| {
            let text = if place.written == Written::Plain { mask.text.clone() } else { escaped(&mask.text) };
            Splice { at: place.at.start + mask.at.start..place.at.start + mask.at.end, text: text.into() }
        }));
        return;
    }
    // With escapes in it, or a number, it is written anew.
    let mut changed = text.clone().into_owned();
    for mask in masks.iter().rev() {
        if changed.get(mask.at.clone()).is_some() {
            changed.replace_range(mask.at.clone(), &mask.text);
        }
    }
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
                let object = byte == b'{';
                self.frames.push(Frame { object, name: Cow::Borrowed(""), awaits_name: object });
                self.at += 1;
            }
            b'}' | b']' => {
                self.frames.pop();
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
        STEERING.contains(&self.outer()) || (self.frames.len() > 1 && IDENTIFYING.contains(&self.nearest()))
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
            // The names that an API gives say nothing.
            let ours = text.len() <= 32 && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
            if nested && !ours && !STEERING.contains(&self.outer()) {
                self.texts.alone(text, place);
            }
            return;
        }
        if self.skips() || text.is_empty() || is_encoded(self.nearest(), &text) {
            return;
        }
        if !READ_ON.contains(&self.nearest()) && !(self.frames.len() == 2 && self.outer() == "system") {
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

/// Whether a string is bytes in base64: a picture, sound, a file.
fn is_encoded(name: &str, text: &str) -> bool {
    let base64 = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=-_\r\n".contains(&b));
    if let Some((_, encoded)) = text.strip_prefix("data:").and_then(|rest| rest.split_once(";base64,")) {
        return base64(encoded);
    }
    matches!(name, "data" | "file_data" | "b64_json") && text.len() >= ENCODED && base64(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(body: &str) -> Vec<Vec<String>> {
        serde_json::from_str::<serde_json::Value>(body).unwrap();
        let texts = Texts::of_json(body);
        texts.passages.iter().map(|p| p.parts.iter().map(|t| t.clone().into_owned()).collect()).collect()
    }

    #[test]
    fn every_text_is_found_and_messages_are_read_as_one() {
        assert_eq!(
            parts(
                r#"{"model":"m","messages":[{"role":"system","content":"s1"},
                {"role":"user","content":[{"type":"text","text":"a \"b\""},{"type":"image_url","image_url":{"url":"https://h/x"}},{"type":"text","text":"c"}]},
                {"role":"assistant","tool_calls":[{"id":"call_1","type":"function","function":{"name":"pay","arguments":"{\"card\":1}"}}]}],
                "user":"u","temperature":0.5,"tools":[{"type":"function","function":{"name":"f","description":"d"}}]}"#
            ),
            [
                vec!["s1"],
                vec!["a \"b\"", "c"],
                vec!["https://h/x"],
                vec!["pay"],
                vec!["{\"card\":1}"],
                vec!["f"],
                vec!["d"]
            ]
        );
        assert_eq!(
            parts(
                r#"{"model":"m","system":[{"type":"text","text":"one"},{"type":"text","text":"two"}],"messages":[{"role":"user","content":"three"}]}"#
            ),
            [vec!["one", "two"], vec!["three"]]
        );
        assert_eq!(parts(r#"{"input":["a","b"],"model":"m"}"#), [["a"], ["b"]]);
        assert_eq!(parts(r#"{"prompt":"a","suffix":"b"}"#), [["a"], ["b"]]);
        assert_eq!(parts(r#"{"input":"x","instructions":"y"}"#), [["x"], ["y"]]);
        assert_eq!(
            parts(
                r#"{"messages":[{"role":"user","content":[{"type":"tool_use","id":"t","input":{"Card No":4111111111111111,"n":7}}]}]}"#
            ),
            [["Card No"], ["4111111111111111"]]
        );
        assert_eq!(parts(r#"{"unknown":{"deep":["x"]},"metadata":{"user_id":"no"}}"#), [["x"]]);
    }

    #[test]
    fn encoded_bytes_are_no_text_but_a_document_is() {
        let picture = "iVBORw0KGgo".repeat(10);
        assert!(parts(&format!(r#"{{"input":[{{"image_url":"data:image/png;base64,{picture}"}}]}}"#)).is_empty());
        assert!(parts(&format!(r#"{{"messages":[{{"content":[{{"source":{{"data":"{picture}"}}}}]}}]}}"#)).is_empty());
        let document = r#"{"messages":[{"content":[{"source":{"type":"text","data":"a letter, which is no picture at all, however long it may become"}}]}]}"#;
        assert_eq!(parts(document).len(), 1);
    }

    #[test]
    fn prompts_of_tokens_are_noticed() {
        for (body, tokens) in [
            (r#"{"prompt":[1,2,3]}"#, true),
            (r#"{"input":[[1],[2]]}"#, true),
            (r#"{"input":["a"],"dimensions":3}"#, false),
            (r#"{"input":[{"type":"message","n":3}]}"#, false),
            (r#"{"max_tokens":12345678}"#, false),
        ] {
            assert_eq!(Texts::of_json(body).tokens, tokens, "{body}");
        }
    }

    #[test]
    fn masks_change_nothing_else() {
        let body =
            r#"{ "x":"a\u0040b \"q\" c", "messages":[{"content":[ {"text":"plain a@b text"},{"n":41111111}] }] }"#;
        let texts = Texts::of_json(body);
        let at = |text: &str, part: &str| part.find(text).unwrap()..part.find(text).unwrap() + text.len();
        let mask = |passage: usize, text: &str, with: &str| {
            let part = &texts.passages[passage].parts[0];
            Mask { passage, part: 0, at: at(text, part), text: with.to_owned() }
        };
        let masks = [mask(0, "a@b", "[\"m\"]"), mask(1, "a@b", "[m]"), mask(2, "41111111", "[n]")];
        let masked = texts.masked(&Bytes::copy_from_slice(body.as_bytes()), &masks);
        assert_eq!(
            std::str::from_utf8(&masked).unwrap(),
            r#"{ "x":"[\"m\"] \"q\" c", "messages":[{"content":[ {"text":"plain [m] text"},{"n":"[n]"}] }] }"#
        );
        serde_json::from_slice::<serde_json::Value>(&masked).unwrap();
        let form = b"a@b and more";
        let texts = Texts::of_fields(form, &[0..3]);
        let masks = [Mask { passage: 0, part: 0, at: 0..3, text: "[m]".to_owned() }];
        assert_eq!(texts.masked(&Bytes::from_static(form), &masks), "[m] and more");
    }

    proptest::proptest! {
        /// Whatever JSON comes, no text is cut, and masking all of it leaves JSON.
        #[test]
        fn any_json_stays_json(value in json(4)) {
            let body = serde_json::json!({"messages": [value]}).to_string();
            let texts = Texts::of_json(&body);
            let masks: Vec<Mask> = texts.passages.iter().enumerate().flat_map(|(passage, p)| {
                p.parts.iter().enumerate().map(move |(part, text)| Mask { passage, part, at: 0..text.len(), text: "[\"m\"]".to_owned() })
            }).collect();
            let masked = texts.masked(&Bytes::from(body.clone()), &masks);
            proptest::prop_assert!(serde_json::from_slice::<serde_json::Value>(&masked).is_ok(), "{}", body);
        }
    }

    fn json(depth: u32) -> impl proptest::strategy::Strategy<Value = serde_json::Value> {
        use proptest::prelude::*;
        let leaf = proptest::prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(serde_json::Value::from),
            any::<i64>().prop_map(serde_json::Value::from),
            "\\PC{0,8}|[\"\\\\\n]{1,3}".prop_map(serde_json::Value::from),
        ];
        leaf.prop_recursive(depth, 32, 4, |inner| {
            proptest::prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
                proptest::collection::hash_map("text|content|type|\\PC{0,6}", inner, 0..4)
                    .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
            ]
        })
    }
}
