//! Anthropic's Messages API: `/messages` and `/messages/count_tokens`.

use axum::Json;
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

use super::answer::Reply;
use super::call::{Call, LiteLlmError};
use super::stream::{Script, event, pieces};

/// `POST /v1/messages`
pub(super) async fn messages(call: Call) -> Result<Response, LiteLlmError> {
    call.required("max_tokens")?;
    let reply = reply(&call)?;
    let id = call.shared.fresh("msg_");
    if call.flag("/stream") {
        return Ok(call.stream(script(&call, &id, &reply)));
    }
    let mut body = message(&call, &id, json!([block(&call, &reply)]), json!(stop(&reply)));
    if let Some(body) = body.as_object_mut() {
        body.insert("usage".to_owned(), usage(&reply, reply.output));
    }
    Ok(call.json(body, &reply.units()))
}

/// `POST /v1/messages/count_tokens`: no model runs, and no cost is told.
pub(super) async fn count_tokens(call: Call) -> Result<Response, LiteLlmError> {
    let input = reply(&call)?.input;
    Ok(Json(json!({"input_tokens": input, "litellm_count_source": "local_estimate"})).into_response())
}

fn reply(call: &Call) -> Result<Reply, LiteLlmError> {
    let system = call.body.get("system").unwrap_or(&Value::Null);
    Ok(Reply::to(&call.body, system, call.required("messages")?))
}

fn message(call: &Call, id: &str, content: Value, stop: Value) -> Value {
    json!({
        "id": id, "type": "message", "role": "assistant", "model": call.alias, "content": content,
        "stop_reason": stop, "stop_sequence": null,
    })
}

fn block(call: &Call, reply: &Reply) -> Value {
    match &reply.tool {
        Some(tool) => {
            json!({"type": "tool_use", "id": call.shared.fresh("toolu_"), "name": tool.name, "input": tool.arguments})
        }
        None => json!({"type": "text", "text": reply.text}),
    }
}

fn stop(reply: &Reply) -> &'static str {
    match (&reply.tool, reply.cut_short) {
        (Some(_), _) => "tool_use",
        (None, true) => "max_tokens",
        (None, false) => "end_turn",
    }
}

fn usage(reply: &Reply, output: u64) -> Value {
    json!({
        "input_tokens": reply.input, "output_tokens": output,
        "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
    })
}

fn script(call: &Call, id: &str, reply: &Reply) -> Script {
    let counted = !call.behaviour.no_usage;
    let mut started = message(call, id, json!([]), Value::Null);
    let mut ended = json!({"type": "message_delta", "delta": {"stop_reason": stop(reply), "stop_sequence": null}});
    if let (true, Some(started), Some(ended)) = (counted, started.as_object_mut(), ended.as_object_mut()) {
        started.insert("usage".to_owned(), usage(reply, 1));
        ended.insert("usage".to_owned(), json!({"output_tokens": reply.output}));
    }
    let mut empty = block(call, reply);
    if let Some(block) = empty.as_object_mut() {
        let (field, nothing) = if reply.tool.is_some() { ("input", json!({})) } else { ("text", json!("")) };
        block.insert(field.to_owned(), nothing);
    }
    let delta = |delta: Value| event(&json!({"type": "content_block_delta", "index": 0, "delta": delta}));
    let text = match &reply.tool {
        Some(tool) => vec![delta(json!({"type": "input_json_delta", "partial_json": tool.arguments.to_string()}))],
        None => pieces(&reply.text).map(|piece| delta(json!({"type": "text_delta", "text": piece}))).collect(),
    };
    Script {
        head: vec![
            event(&json!({"type": "message_start", "message": started})),
            event(&json!({"type": "content_block_start", "index": 0, "content_block": empty})),
            event(&json!({"type": "ping"})),
        ],
        text,
        tail: vec![
            event(&json!({"type": "content_block_stop", "index": 0})),
            event(&ended),
            event(&json!({"type": "message_stop"})),
        ],
    }
}
