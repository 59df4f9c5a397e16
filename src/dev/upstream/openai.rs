//! `/chat/completions` and `/completions`.

use axum::response::Response;
use serde_json::{Value, json};

use super::answer::{Reply, ToolCall, text_of};
use super::call::{Call, LiteLlmError};
use super::catalogue::number;
use super::stream::{Script, data, done, pieces};

/// `POST /v1/chat/completions`
pub(super) async fn chat(call: Call) -> Result<Response, LiteLlmError> {
    let reply = Reply::to(&call.body, &Value::Null, call.required("messages")?);
    let envelope = Envelope { id: call.shared.fresh("chatcmpl-"), created: call.shared.now(), call: &call };
    if call.flag("/stream") {
        return Ok(call.stream(envelope.chat_stream(&reply)));
    }
    let mut message = json!({"role": "assistant", "content": reply.text});
    if let Some(tool) = &reply.tool {
        message = json!({"role": "assistant", "content": null, "tool_calls": [envelope.tool_call(tool)]});
    }
    let choice = json!({"finish_reason": finish(&reply), "index": 0, "message": message});
    let mut body = envelope.wrap("chat.completion", choice);
    set(&mut body, "usage", usage(&reply));
    Ok(call.json(body, &reply.units()))
}

/// `POST /v1/completions`
pub(super) async fn completions(call: Call) -> Result<Response, LiteLlmError> {
    let prompt = Value::String(text_of(call.required("prompt")?));
    let reply = Reply::to(&call.body, &Value::Null, &prompt);
    let envelope = Envelope { id: call.shared.fresh("cmpl-"), created: call.shared.now(), call: &call };
    let choice =
        |text: &str, finish: Value| json!({"text": text, "index": 0, "logprobs": null, "finish_reason": finish});
    if !call.flag("/stream") {
        let mut body = envelope.wrap("text_completion", choice(&reply.text, json!(finish(&reply))));
        set(&mut body, "usage", usage(&reply));
        return Ok(call.json(body, &reply.units()));
    }
    let frame = |choice: Value| data(&envelope.wrap("text_completion", choice));
    let mut tail = vec![frame(choice("", json!(finish(&reply))))];
    tail.extend(envelope.usage_chunk("text_completion", choice("", Value::Null), &reply).map(|chunk| data(&chunk)));
    tail.push(done());
    let text = pieces(&reply.text).map(|piece| frame(choice(piece, Value::Null))).collect();
    Ok(call.stream(Script { text, tail, ..Script::default() }))
}

/// What all chunks of an answer have in common.
struct Envelope<'a> {
    id: String,
    created: i64,
    call: &'a Call,
}

impl Envelope<'_> {
    fn wrap(&self, object: &str, choice: Value) -> Value {
        json!({"id": self.id, "created": self.created, "model": self.call.alias, "object": object, "choices": [choice]})
    }

    fn tool_call(&self, tool: &ToolCall) -> Value {
        let function = json!({"name": tool.name, "arguments": tool.arguments.to_string()});
        json!({"id": format!("call_{}", self.id), "type": "function", "function": function})
    }

    fn chat_stream(&self, reply: &Reply) -> Script {
        const OBJECT: &str = "chat.completion.chunk";
        let frame = |delta: Value| data(&self.wrap(OBJECT, json!({"index": 0, "delta": delta})));
        let head = vec![frame(json!({"role": "assistant", "content": ""}))];
        let mut text: Vec<_> = pieces(&reply.text).map(|piece| frame(json!({"content": piece}))).collect();
        if let Some(tool) = &reply.tool {
            let mut call = self.tool_call(tool);
            set(&mut call, "index", json!(0));
            text.push(frame(json!({"tool_calls": [call]})));
        }
        let last = json!({"finish_reason": finish(reply), "index": 0, "delta": {}});
        let mut tail = vec![data(&self.wrap(OBJECT, last))];
        // One choice, where OpenAI sends an empty list.
        let choice = json!({"index": 0, "delta": {}});
        tail.extend(self.usage_chunk(OBJECT, choice, reply).map(|chunk| data(&chunk)));
        tail.push(done());
        Script { head, text, tail }
    }

    /// The chunk that `stream_options.include_usage` asks for; it bears the cost.
    fn usage_chunk(&self, object: &str, choice: Value, reply: &Reply) -> Option<Value> {
        if self.call.behaviour.no_usage || !self.call.flag("/stream_options/include_usage") {
            return None;
        }
        let mut usage = usage(reply);
        if let Some(cost) = self.call.cost(&reply.units()) {
            set(&mut usage, "cost", number(cost));
        }
        let mut chunk = self.wrap(object, choice);
        set(&mut chunk, "usage", usage);
        Some(chunk)
    }
}

fn finish(reply: &Reply) -> &'static str {
    match (&reply.tool, reply.cut_short) {
        (Some(_), _) => "tool_calls",
        (None, true) => "length",
        (None, false) => "stop",
    }
}

fn usage(reply: &Reply) -> Value {
    json!({
        "prompt_tokens": reply.input,
        "completion_tokens": reply.output,
        "total_tokens": reply.input + reply.output,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "text_tokens": reply.output},
    })
}

fn set(object: &mut Value, field: &str, value: Value) {
    if let Some(object) = object.as_object_mut() {
        object.insert(field.to_owned(), value);
    }
}
