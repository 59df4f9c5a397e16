//! One strict pass over a JSON body.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{DeserializeSeed as _, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::references;
use super::splice::{Edits, Insertion, Limit, UsageEdit};
use super::{AskError, AskRules, MAX_FALLBACKS, ParsedAsk, agreed_model, answers_asked, max_output, one_model, shown};
use crate::metering::count::{Measure, TextSize};
use crate::model::usage::RouteKind;
use crate::policy::{Ask, AskSize};

/// No API has nearly so many members; more would only slow the search for doubles.
const MAX_MEMBERS: usize = 256;

/// How deep lists and objects may stand in each other, as serde_json has it.
const MAX_DEPTH: usize = 127;

pub(super) fn read(
    kind: RouteKind,
    path_model: Option<&str>,
    body: &[u8],
    rules: &AskRules,
) -> Result<ParsedAsk, AskError> {
    let text = std::str::from_utf8(body).map_err(|_| AskError::InvalidUtf8)?;
    let fields = Fields::scan(text, rules)?;

    let model = fields.model.map(|raw| string("model", raw)).transpose()?.flatten();
    let model = agreed_model(path_model, model)?;
    if let Some(raw) = fields.metadata {
        check_metadata(raw.get(), rules)?;
    }
    check_inside("prompt", fields.prompt, rules)?;
    check_inside("tools", fields.tools, rules)?;
    check_inside("moderation", fields.moderation, rules)?;
    references::check(kind, text, fields.tools, rules)?;
    let mut fallbacks = Vec::new();
    for raw in fields.fallbacks.into_iter().flatten() {
        let value: Value = serde_json::from_str(raw.get()).map_err(|e| invalid_json(&e))?;
        collect_models(&value, rules, &mut fallbacks)?;
    }
    let stream = match fields.stream.map(RawValue::get) {
        None | Some("null" | "false") => false,
        Some("true") => true,
        Some(_) => return Err(AskError::InvalidField { field: "stream", expected: "must be true or false" }),
    };
    let (usage, usage_asked) = fields.stream_options.map_or(Ok((UsageEdit::Options, false)), |raw| usage(raw, text))?;
    let limits = fields.limits(kind, text)?;
    let mut answers = 1;
    for (field, raw) in [("n", fields.n), ("best_of", fields.best_of)] {
        let asked = raw.map_or(Ok(None), |raw| integer(field, raw))?;
        answers = asked.map_or(Ok(answers), |asked| answers_asked(field, asked)).map(|asked| asked.max(answers))?;
    }
    let answers = answers.saturating_mul(prompts(kind, fields.prompt));
    let tools = rules.count.tokens(fields.raw_bytes);
    let most_input = rules.count.most(&fields.text).saturating_add(fields.raw_bytes);
    let size = AskSize {
        // Whatever reaches the model stands in the body.
        most_input: if fields.text.media == 0 { most_input.max(text.len() as u64) } else { most_input },
        characters: fields.text.bytes,
        seconds: 0,
        media: fields.text.media,
        input_tokens: rules.count.input(&fields.text).saturating_add(tools),
        max_output: max_output(kind, limits.iter().filter_map(|limit| limit.tokens).max()),
        answers,
        priority: fields.service_tier.is_some_and(|tier| !PLAIN_TIERS.contains(&tier.get())),
    };
    let previous_response =
        fields.previous_response.map(|raw| string("previous_response_id", raw)).transpose()?.flatten();
    let open = text.find('{').map_or(0, |at| at + 1);
    Ok(ParsedAsk {
        ask: Ask { kind, model: Some(model), fallbacks, stream, size },
        usage_asked,
        previous_response,
        edits: Edits {
            members: Some(Insertion { at: open, empty: fields.names.is_empty() }),
            usage,
            limits,
            limit_name: limit_names(kind).first().copied(),
        },
        fields: None,
    })
}

/// The members of the outer object that are read.
#[derive(Default)]
struct Fields<'a> {
    names: Vec<Cow<'a, str>>,
    model: Option<&'a RawValue>,
    stream: Option<&'a RawValue>,
    stream_options: Option<&'a RawValue>,
    metadata: Option<&'a RawValue>,
    max_tokens: Option<&'a RawValue>,
    max_completion_tokens: Option<&'a RawValue>,
    max_output_tokens: Option<&'a RawValue>,
    n: Option<&'a RawValue>,
    best_of: Option<&'a RawValue>,
    previous_response: Option<&'a RawValue>,
    service_tier: Option<&'a RawValue>,
    fallbacks: [Option<&'a RawValue>; 3],
    prompt: Option<&'a RawValue>,
    tools: Option<&'a RawValue>,
    moderation: Option<&'a RawValue>,
    text: TextSize,
    /// Bytes of members that reach the model as they are written: tools and schemas.
    raw_bytes: u64,
}

/// A name or string, borrowed where no escape forbids it.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a> Fields<'a> {
    fn scan(text: &'a str, rules: &AskRules) -> Result<Self, AskError> {
        let mut scan = Scan { rules, fields: Fields::default(), refusal: None };
        let mut json = serde_json::Deserializer::from_str(text);
        let outcome = json.deserialize_any(&mut scan).and_then(|()| json.end());
        match (scan.refusal, outcome) {
            (Some(refusal), _) => Err(refusal),
            (None, Err(error)) if error.is_data() => Err(AskError::NotAnObject),
            (None, Err(error)) => Err(invalid_json(&error)),
            (None, Ok(())) => Ok(scan.fields),
        }
    }

    fn limits(&self, kind: RouteKind, text: &str) -> Result<Vec<Limit>, AskError> {
        let names = limit_names(kind);
        let all = [
            ("max_tokens", self.max_tokens),
            ("max_completion_tokens", self.max_completion_tokens),
            ("max_output_tokens", self.max_output_tokens),
        ];
        let set = all.into_iter().filter_map(|(name, raw)| Some((name, raw?))).filter(|_| !names.is_empty());
        // Another API's name without a value limits nothing.
        let set = set.filter(|(name, raw)| names.contains(name) || raw.get() != "null");
        set.map(|(name, raw)| {
            // LiteLLM hands what it does not know on to providers, some of which take it for their limit.
            if !names.contains(&name) {
                return Err(AskError::FieldNotAllowed(name.into()));
            }
            Ok(Limit { at: range_of(raw.get(), text), tokens: integer(name, raw)? })
        })
        .collect()
    }
}

/// How many prompts a completion has, each of which is answered: a list holds several,
/// unless it is one of token ids.
fn prompts(kind: RouteKind, prompt: Option<&RawValue>) -> u64 {
    let list = prompt.filter(|_| kind == RouteKind::Completion);
    let items = list.and_then(|raw| serde_json::from_str::<Vec<&RawValue>>(raw.get()).ok()).unwrap_or_default();
    let several = items.iter().filter(|item| item.get().starts_with(['"', '['])).count();
    u64::try_from(several).unwrap_or(u64::MAX).max(1)
}

/// Values of `service_tier` that cost no more than none.
const PLAIN_TIERS: [&str; 5] = ["null", "\"auto\"", "\"default\"", "\"flex\"", "\"standard_only\""];

/// The members that limit output on this kind of route; the first is the one to add.
const fn limit_names(kind: RouteKind) -> &'static [&'static str] {
    match kind {
        RouteKind::Chat => &["max_tokens", "max_completion_tokens"],
        RouteKind::Completion | RouteKind::Messages => &["max_tokens"],
        RouteKind::Responses => &["max_output_tokens"],
        _ => &[],
    }
}

struct Scan<'a, 'r> {
    rules: &'r AskRules,
    fields: Fields<'a>,
    refusal: Option<AskError>,
}

impl<'a> Scan<'a, '_> {
    fn admit(&self, name: &str) -> Result<(), AskError> {
        if self.rules.forbidden_fields.hold(name) {
            return Err(AskError::FieldNotAllowed(shown(name)));
        }
        if self.fields.names.iter().any(|known| known == name) {
            return Err(AskError::duplicate(name));
        }
        if self.fields.names.len() == MAX_MEMBERS {
            return Err(AskError::TooManyFields);
        }
        Ok(())
    }

    fn value<A: MapAccess<'a>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        let fields = &mut self.fields;
        let slot = match name {
            "model" => &mut fields.model,
            "stream" => &mut fields.stream,
            "stream_options" => &mut fields.stream_options,
            "metadata" => &mut fields.metadata,
            "max_tokens" => &mut fields.max_tokens,
            "max_completion_tokens" => &mut fields.max_completion_tokens,
            "max_output_tokens" => &mut fields.max_output_tokens,
            "n" => &mut fields.n,
            "best_of" => &mut fields.best_of,
            "previous_response_id" => &mut fields.previous_response,
            "service_tier" => &mut fields.service_tier,
            "moderation" => &mut fields.moderation,
            "fallbacks" | "context_window_fallbacks" | "content_policy_fallbacks" => {
                let [a, b, c] = &mut fields.fallbacks;
                match name {
                    "fallbacks" => a,
                    "context_window_fallbacks" => b,
                    _ => c,
                }
            }
            "messages" | "input" | "suffix" | "system" | "instructions" | "query" | "documents" => {
                return map.next_value_seed(Measure::of(&mut fields.text));
            }
            "prompt" => {
                let raw: &RawValue = map.next_value()?;
                fields.prompt = Some(raw);
                let mut json = serde_json::Deserializer::from_str(raw.get());
                return Measure::of(&mut fields.text).deserialize(&mut json).map_err(A::Error::custom);
            }
            "tools" | "functions" | "response_format" | "text" => {
                let raw = bounded(map.next_value()?)?;
                fields.raw_bytes = fields.raw_bytes.saturating_add(raw.get().len() as u64);
                if name == "tools" {
                    fields.tools = Some(raw);
                }
                return Ok(());
            }
            _ => return bounded(map.next_value()?).map(drop),
        };
        *slot = Some(bounded(map.next_value()?)?);
        Ok(())
    }
}

impl<'a> Visitor<'a> for &mut Scan<'a, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(Text(name)) = map.next_key()? {
            if let Err(refusal) = self.admit(&name) {
                self.refusal = Some(refusal);
                return Err(A::Error::custom("refused"));
            }
            self.value(&name, &mut map)?;
            self.fields.names.push(name);
        }
        Ok(())
    }
}

/// A value that is not nested deeper than parsers of JSON read; serde skips any depth.
fn bounded<E: serde::de::Error>(value: &RawValue) -> Result<&RawValue, E> {
    if is_too_deep(value.get().as_bytes()) { Err(E::custom("recursion limit exceeded")) } else { Ok(value) }
}

fn is_too_deep(json: &[u8]) -> bool {
    // A level takes two bytes at least.
    if json.len() <= 2 * MAX_DEPTH {
        return false;
    }
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(byte) = json.get(at) {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            b'"' => {
                at += 1;
                while let Some(found) = memchr::memchr2(b'"', b'\\', json.get(at..).unwrap_or_default()) {
                    at += found;
                    if json.get(at) == Some(&b'"') {
                        break;
                    }
                    at += 2;
                }
            }
            _ => {}
        }
        if depth > MAX_DEPTH {
            return true;
        }
        at += 1;
    }
    false
}

/// Refuses what is forbidden in `metadata`. LiteLLM reads a string as JSON, so only
/// an object may stand there.
pub(super) fn check_metadata(json: &str, rules: &AskRules) -> Result<(), AskError> {
    if json == "null" {
        return Ok(());
    }
    let names = names(json).ok_or(AskError::InvalidField { field: "metadata", expected: "must be an object" })?;
    check_names("metadata", &names, rules)
}

/// Refuses what is forbidden in an object, or in the objects of a list.
fn check_inside(outer: &'static str, value: Option<&RawValue>, rules: &AskRules) -> Result<(), AskError> {
    let Some(value) = value.filter(|_| rules.forbidden_fields.reach_into(outer)) else { return Ok(()) };
    let items = serde_json::from_str(value.get()).unwrap_or_else(|_| vec![value]);
    items.into_iter().filter(|item| item.get().starts_with('{')).try_for_each(|item| {
        // A name that is no text to us may be one to the upstream, and what is beside it is read there.
        let names =
            names(item.get()).ok_or(AskError::InvalidField { field: outer, expected: "has a name that is no text" })?;
        check_names(outer, &names, rules)
    })
}

fn check_names(outer: &str, names: &[Cow<'_, str>], rules: &AskRules) -> Result<(), AskError> {
    match names.iter().find(|name| rules.forbidden_fields.hold_inside(outer, name)) {
        Some(name) => Err(AskError::FieldNotAllowed(format!("{outer}.{}", shown(name)).into())),
        None => Ok(()),
    }
}

fn names(json: &str) -> Option<Vec<Cow<'_, str>>> {
    struct Names;
    impl<'de> Visitor<'de> for Names {
        type Value = Vec<Cow<'de, str>>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut names = Vec::new();
            while let Some((Text(name), IgnoredAny)) = map.next_entry()? {
                names.push(name);
            }
            Ok(names)
        }
    }
    serde_json::Deserializer::from_str(json).deserialize_map(Names).ok()
}

/// Every model that a fallback names, in any of LiteLLM's forms: `"a"`,
/// `{"model":"a", …}`, `{"for":["a", …]}`, nested in one another. What is no list
/// of models but might be taken for one is read as one.
fn collect_models(value: &Value, rules: &AskRules, models: &mut Vec<String>) -> Result<(), AskError> {
    match value {
        Value::Null => Ok(()),
        Value::String(name) => {
            if models.len() == MAX_FALLBACKS {
                return Err(AskError::InvalidField { field: "fallbacks", expected: "may name at most 32 models" });
            }
            models.push(one_model("fallbacks", name.clone())?);
            Ok(())
        }
        Value::Array(items) => items.iter().try_for_each(|item| collect_models(item, rules, models)),
        Value::Object(members) => members.iter().try_for_each(|(name, member)| {
            // A prompt or a tool in a fallback would pass unseen by estimate and guardrails.
            if rules.forbidden_fields.hold(name) || matches!(name.as_str(), "messages" | "input" | "prompt" | "tools") {
                return Err(AskError::FieldNotAllowed(format!("fallbacks.{}", shown(name)).into()));
            }
            match (name.as_str(), member) {
                ("model", _) | (_, Value::Array(_) | Value::Object(_)) => collect_models(member, rules, models),
                _ => Ok(()),
            }
        }),
        Value::Bool(_) | Value::Number(_) => {
            Err(AskError::InvalidField { field: "fallbacks", expected: "must be names of models" })
        }
    }
}

/// Where `include_usage` is or belongs, and whether it is asked for.
fn usage(raw: &RawValue, text: &str) -> Result<(UsageEdit, bool), AskError> {
    let whole = range_of(raw.get(), text);
    if raw.get() == "null" {
        return Ok((UsageEdit::Null(whole), false));
    }
    let options = serde_json::Deserializer::from_str(raw.get())
        .deserialize_map(Options::default())
        .map_err(|_| AskError::InvalidField { field: "stream_options", expected: "must be an object" })?;
    match options.include_usage {
        None => Ok((UsageEdit::Member(Insertion { at: whole.start + 1, empty: options.empty }), false)),
        Some(_) if options.twice => Err(AskError::duplicate("stream_options.include_usage")),
        Some(value) => match value.get() {
            "true" => Ok((UsageEdit::Options, true)),
            "false" | "null" => Ok((UsageEdit::Value(range_of(value.get(), text)), false)),
            _ => {
                Err(AskError::InvalidField { field: "stream_options.include_usage", expected: "must be true or false" })
            }
        },
    }
}

struct Options<'a> {
    include_usage: Option<&'a RawValue>,
    twice: bool,
    empty: bool,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self { include_usage: None, twice: false, empty: true }
    }
}

impl<'a> Visitor<'a> for Options<'a> {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(mut self, mut map: A) -> Result<Self, A::Error> {
        while let Some(Text(name)) = map.next_key()? {
            self.empty = false;
            if name == "include_usage" {
                self.twice |= self.include_usage.replace(map.next_value()?).is_some();
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(self)
    }
}

/// Where a part of a text stands in it.
fn range_of(part: &str, text: &str) -> Range<usize> {
    let start = part.as_ptr().addr().saturating_sub(text.as_ptr().addr());
    start..start + part.len()
}

fn string(field: &'static str, raw: &RawValue) -> Result<Option<String>, AskError> {
    serde_json::from_str(raw.get()).map_err(|_| AskError::InvalidField { field, expected: "must be a string" })
}

fn integer(field: &'static str, raw: &RawValue) -> Result<Option<u64>, AskError> {
    serde_json::from_str(raw.get())
        .map_err(|_| AskError::InvalidField { field, expected: "must be a whole number, at least 0" })
}

pub(super) fn invalid_json(error: &serde_json::Error) -> AskError {
    AskError::InvalidJson { line: error.line(), column: error.column() }
}
