//! What the upstream says: one canned reply, whichever API asks.

use serde_json::{Map, Value, json};

/// Most bytes of the caller's text that the reply repeats.
const ECHO: usize = 2_000;

/// The reply to a conversation, with its deterministic token counts.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Reply {
    /// The text; empty when a tool is called.
    pub(super) text: String,
    pub(super) tool: Option<ToolCall>,
    /// The caller's token limit cut the text.
    pub(super) cut_short: bool,
    pub(super) input: u64,
    pub(super) output: u64,
}

/// A tool to call and its arguments.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ToolCall {
    pub(super) name: String,
    pub(super) arguments: Value,
}

/// A token per four bytes, rounded up.
pub(super) fn tokens(bytes: usize) -> u64 {
    bytes.div_ceil(4) as u64
}

/// Every text in a message, a list of them, or a part of one.
pub(super) fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(text_of).collect(),
        Value::Object(fields) => {
            let inner = ["text", "content", "output"].into_iter().filter_map(|field| fields.get(field));
            inner.map(text_of).collect()
        }
        _ => String::new(),
    }
}

impl Reply {
    /// The reply to `messages` (a text, or a list of messages or input items),
    /// after `system`, with the tools and the token limit of `body`.
    pub(super) fn to(body: &Value, system: &Value, messages: &Value) -> Self {
        let tools = body.get("tools").filter(|tools| tools.as_array().is_some_and(|tools| !tools.is_empty()));
        let read = text_of(system).len() + text_of(messages).len() + tools.map_or(0, |tools| tools.to_string().len());
        let input = tokens(read);
        let said = said(messages);
        let answered = tool_answer(messages);
        let tool = tools.filter(|_| answered.is_none()).and_then(|tools| called(tools, body.get("tool_choice"), &said));
        if let Some(tool) = tool {
            let output = tokens(tool.name.len() + tool.arguments.to_string().len());
            return Self { text: String::new(), tool: Some(tool), cut_short: false, input, output };
        }
        let text = match answered {
            Some(answer) => format!("The tool says: {}", clipped(&answer, ECHO)),
            None => format!(
                "Hello! You said: \"{}\". I am the development upstream, so this answer is made up.",
                clipped(&said, ECHO)
            ),
        };
        let limit =
            ["max_completion_tokens", "max_tokens", "max_output_tokens"].iter().find_map(|it| body.get(*it)?.as_u64());
        let room = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX).saturating_mul(4));
        let kept = clipped(&text, room);
        Self {
            cut_short: kept.len() < text.len(),
            output: tokens(kept.len()),
            text: kept.to_owned(),
            tool: None,
            input,
        }
    }

    /// What it costs, in LiteLLM's units.
    pub(super) fn units(&self) -> [(&'static str, u64); 2] {
        [("input_cost_per_token", self.input), ("output_cost_per_token", self.output)]
    }
}

/// The text of the last user message.
fn said(messages: &Value) -> String {
    match messages {
        Value::Array(items) => {
            let of_user = |item: &&Value| item.get("role").and_then(Value::as_str) == Some("user");
            items.iter().rev().find(of_user).map(text_of).unwrap_or_default()
        }
        other => text_of(other),
    }
}

/// What a tool returned, when that is the last thing in the conversation.
fn tool_answer(messages: &Value) -> Option<String> {
    let last = messages.as_array()?.last()?;
    let is = |item: &Value, kind: &str| item.get("type").and_then(Value::as_str) == Some(kind);
    let blocks = last.get("content").and_then(Value::as_array);
    let answers = last.get("role").and_then(Value::as_str) == Some("tool")
        || is(last, "function_call_output")
        || blocks.is_some_and(|blocks| blocks.iter().any(|block| is(block, "tool_result")));
    answers.then(|| text_of(last))
}

/// The tool that the caller forces, or that the message asks for by its name or
/// by the word "tool".
fn called(tools: &Value, choice: Option<&Value>, said: &str) -> Option<ToolCall> {
    let tools = tools.as_array()?.iter().map(|tool| tool.get("function").unwrap_or(tool));
    let named = |tool: &&Value, name: &str| tool.get("name").and_then(Value::as_str) == Some(name);
    let mode = choice.and_then(|choice| choice.as_str().or_else(|| choice.get("type")?.as_str()));
    let forced = choice.and_then(|choice| choice.get("function").unwrap_or(choice).get("name")?.as_str());
    let said = said.to_lowercase();
    let mentioned = |tool: &&Value| {
        tool.get("name").and_then(Value::as_str).is_some_and(|name| said.contains(&name.to_lowercase()))
    };
    let mut tools = tools;
    let tool = match (mode, forced) {
        (Some("none"), _) => None,
        (_, Some(name)) => tools.find(|tool| named(tool, name)),
        (Some("required" | "any"), None) => tools.next(),
        _ => tools.clone().find(mentioned).or_else(|| if said.contains("tool") { tools.next() } else { None }),
    }?;
    let schema = tool.get("parameters").or_else(|| tool.get("input_schema")).unwrap_or(&Value::Null);
    Some(ToolCall { name: tool.get("name")?.as_str()?.to_owned(), arguments: example(schema) })
}

/// A value that a simple JSON schema accepts.
fn example(schema: &Value) -> Value {
    if let Some(first) = schema.get("enum").and_then(Value::as_array).and_then(|values| values.first()) {
        return first.clone();
    }
    match schema.get("type").and_then(Value::as_str) {
        Some("string") => json!("example"),
        Some("integer" | "number") => json!(1),
        Some("boolean") => json!(true),
        Some("array") => json!([]),
        Some("null") => Value::Null,
        _ => {
            let required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
            let fields = required.filter_map(|name| {
                let name = name.as_str()?;
                Some((name.to_owned(), example(schema.get("properties")?.get(name)?)))
            });
            Value::Object(fields.collect::<Map<_, _>>())
        }
    }
}

/// The longest prefix of at most `bytes` bytes.
fn clipped(text: &str, bytes: usize) -> &str {
    text.get(..text.floor_char_boundary(bytes)).unwrap_or_default()
}
