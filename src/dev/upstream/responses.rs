//! OpenAI's Responses API: `/responses` and the ones it keeps.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Json;
use axum::extract::{Path, State};
use axum::response::Response;
use http::StatusCode;
use serde_json::{Value, json};

use super::Shared;
use super::answer::Reply;
use super::call::{Call, LiteLlmError};
use super::stream::{Script, event, pieces};

/// How many responses can be read again.
const KEPT: usize = 256;

/// The latest responses by id.
#[derive(Debug, Default)]
pub(super) struct Shelf(Mutex<VecDeque<(String, Value)>>);

impl Shelf {
    fn open(&self) -> MutexGuard<'_, VecDeque<(String, Value)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, id: &str, response: &Value) {
        let mut kept = self.open();
        kept.push_back((id.to_owned(), response.clone()));
        while kept.len() > KEPT {
            kept.pop_front();
        }
    }
}

/// `POST /v1/responses`
pub(super) async fn create(call: Call) -> Result<Response, LiteLlmError> {
    let system = call.body.get("instructions").unwrap_or(&Value::Null);
    let reply = Reply::to(&call.body, system, call.required("input")?);
    let id = call.shared.fresh("resp_");
    let item = item(&call, &reply);
    let finished = response(&call, &id, Some((&reply, &item)));
    if call.body.get("store") != Some(&Value::Bool(false)) {
        call.shared.responses.keep(&id, &finished);
    }
    if call.flag("/stream") {
        let started = response(&call, &id, None);
        return Ok(call.stream(script(&started, &item, &reply, finished)));
    }
    Ok(call.json(finished, &reply.units()))
}

/// `GET /v1/responses/{id}`
pub(super) async fn read(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, LiteLlmError> {
    let kept = shared.responses.open();
    kept.iter().find(|(kept, _)| *kept == id).map(|(_, response)| Json(response.clone())).ok_or_else(|| missing(&id))
}

/// `DELETE /v1/responses/{id}`
pub(super) async fn delete(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, LiteLlmError> {
    let mut kept = shared.responses.open();
    let before = kept.len();
    kept.retain(|(kept, _)| *kept != id);
    if kept.len() == before {
        return Err(missing(&id));
    }
    Ok(Json(json!({"id": id, "object": "response", "deleted": true})))
}

fn missing(id: &str) -> LiteLlmError {
    LiteLlmError::invalid(StatusCode::NOT_FOUND, &format!("Response with id '{id}' not found."))
}

fn item(call: &Call, reply: &Reply) -> Value {
    match &reply.tool {
        Some(tool) => json!({
            "id": call.shared.fresh("fc_"), "type": "function_call", "status": "completed",
            "call_id": call.shared.fresh("call_"), "name": tool.name, "arguments": tool.arguments.to_string(),
        }),
        None => json!({
            "id": call.shared.fresh("msg_"), "type": "message", "status": "completed", "role": "assistant",
            "content": [{"type": "output_text", "text": reply.text, "annotations": []}],
        }),
    }
}

/// The response object: in progress without a reply, with usage once it is there.
fn response(call: &Call, id: &str, finished: Option<(&Reply, &Value)>) -> Value {
    let status = match finished {
        None => "in_progress",
        Some((reply, _)) if reply.cut_short => "incomplete",
        Some(_) => "completed",
    };
    let cut = (status == "incomplete").then(|| json!({"reason": "max_output_tokens"}));
    let output: Vec<&Value> = finished.iter().map(|(_, item)| *item).collect();
    let usage = finished.filter(|_| !call.behaviour.no_usage).map(|(reply, _)| {
        json!({
            "input_tokens": reply.input, "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": reply.output, "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": reply.input + reply.output, "cost": null,
        })
    });
    json!({
        "id": id, "object": "response", "created_at": call.shared.now(), "status": status, "model": call.alias,
        "error": null, "incomplete_details": cut, "instructions": call.body.get("instructions"),
        "max_output_tokens": call.body.get("max_output_tokens"), "output": output, "parallel_tool_calls": true,
        "previous_response_id": call.body.get("previous_response_id"), "temperature": 1.0, "top_p": 1.0,
        "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [], "truncation": "disabled",
        "usage": usage, "metadata": {},
    })
}

fn script(started: &Value, item: &Value, reply: &Reply, finished: Value) -> Script {
    let item_id = item.get("id");
    let last = if reply.cut_short { "response.incomplete" } else { "response.completed" };
    let mut sequence = 0_u64;
    let mut numbered = |mut value: Value| {
        if let Some(fields) = value.as_object_mut() {
            fields.insert("sequence_number".to_owned(), json!(sequence));
        }
        sequence += 1;
        event(&value)
    };
    let head = vec![
        numbered(json!({"type": "response.created", "response": started})),
        numbered(json!({"type": "response.in_progress", "response": started})),
        numbered(json!({"type": "response.output_item.added", "output_index": 0, "item": item})),
    ];
    let mut of_text = |kind: &str, name: &str, value: Value| {
        numbered(json!({"type": kind, "item_id": item_id, "output_index": 0, "content_index": 0, name: value}))
    };
    let (text, ends) = match &reply.tool {
        Some(tool) => {
            let arguments = tool.arguments.to_string();
            let delta = of_text("response.function_call_arguments.delta", "delta", json!(arguments));
            (vec![delta], vec![of_text("response.function_call_arguments.done", "arguments", json!(arguments))])
        }
        None => {
            let deltas = pieces(&reply.text).map(|piece| of_text("response.output_text.delta", "delta", json!(piece)));
            (deltas.collect(), vec![of_text("response.output_text.done", "text", json!(reply.text))])
        }
    };
    let mut tail = ends;
    tail.push(numbered(json!({"type": "response.output_item.done", "output_index": 0, "item": item})));
    tail.push(numbered(json!({"type": last, "response": finished})));
    Script { head, text, tail }
}
