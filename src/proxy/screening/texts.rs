//! The texts of an answer, whole or an event of a stream, and how they are replaced in it.
//!
//! What a model says stands below few members, whatever the API; everything else in an
//! answer is the API's own. An answer is parsed and, where something is replaced, written
//! anew: nobody signs it, and it steers nothing.

use serde_json::Value;

/// Members that hold what the model says.
const SAID: &[&str] = &[
    "content",
    "text",
    "delta",
    "refusal",
    "reasoning",
    "reasoning_content",
    "thinking",
    "arguments",
    "partial_json",
    "input",
    "summary",
    "output_text",
    "transcript",
];

/// Members that a model makes up the content of.
const MADE_UP: &[&str] = &["arguments", "input"];

/// Members below [`SAID`] that hold an identifier of the API.
const IDENTIFYING: &[&str] = &[
    "id",
    "name",
    "type",
    "role",
    "model",
    "call_id",
    "tool_call_id",
    "tool_use_id",
    "item_id",
    "status",
    "signature",
    "encrypted_content",
    "data",
    "finish_reason",
    "logprobs",
];

/// Members that tell one of several texts that come at once from another.
const NUMBERING: &[&str] = &["index", "output_index", "content_index", "summary_index", "item_id"];

/// A text of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Said {
    /// Where it stands (RFC 6901).
    pub(super) pointer: String,
    /// Texts of one channel are read one after the other.
    pub(super) channel: String,
    pub(super) text: String,
}

/// The texts of an answer in their order.
pub(super) fn said(answer: &Value) -> Vec<Said> {
    let mut out = Vec::new();
    let place = Place { pointer: String::new(), channel: String::new(), said: false, made_up: false };
    walk(answer, &place, &mut out);
    out
}

#[derive(Clone)]
struct Place {
    pointer: String,
    channel: String,
    said: bool,
    made_up: bool,
}

fn walk(value: &Value, place: &Place, out: &mut Vec<Said>) {
    match value {
        Value::String(text) if place.said && !text.is_empty() => {
            out.push(Said { pointer: place.pointer.clone(), channel: place.channel.clone(), text: text.clone() });
        }
        // Of a number that a model makes up, the digits are what it says.
        Value::Number(number) if place.said && place.made_up => {
            out.push(Said { pointer: place.pointer.clone(), channel: place.channel.clone(), text: number.to_string() });
        }
        Value::Array(items) => {
            for (n, item) in items.iter().enumerate() {
                walk(item, &Place { pointer: format!("{}/{n}", place.pointer), ..place.clone() }, out);
            }
        }
        Value::Object(members) => {
            let mut channel = place.channel.clone();
            for number in NUMBERING.iter().filter_map(|name| members.get(*name)) {
                channel.push_str(&format!("#{number}"));
            }
            for (name, member) in members {
                if !place.made_up && IDENTIFYING.contains(&name.as_str()) {
                    continue;
                }
                let step = name.replace('~', "~0").replace('/', "~1");
                let place = Place {
                    pointer: format!("{}/{step}", place.pointer),
                    channel: format!("{channel}/{step}"),
                    said: place.said || SAID.contains(&name.as_str()),
                    made_up: place.made_up || (MADE_UP.contains(&name.as_str()) && member.is_object()),
                };
                walk(member, &place, out);
            }
        }
        _ => {}
    }
}

/// Puts a text in the place of another.
pub(super) fn replace(answer: &mut Value, pointer: &str, text: String) {
    if let Some(place) = answer.pointer_mut(pointer) {
        *place = Value::String(text);
    }
}

/// Takes the tokens out that an answer repeats its text in.
pub(super) fn forget_tokens(answer: &mut Value) {
    let choices = answer.get_mut("choices").and_then(Value::as_array_mut);
    for choice in choices.into_iter().flatten() {
        if let Some(tokens) = choice.get_mut("logprobs") {
            *tokens = Value::Null;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn texts(answer: &Value) -> Vec<(String, String)> {
        said(answer).into_iter().map(|said| (said.channel, said.text)).collect()
    }

    fn pair(channel: &str, text: &str) -> (String, String) {
        (channel.to_owned(), text.to_owned())
    }

    #[test]
    fn what_a_model_says_is_found_in_every_api() {
        let chat = json!({"id": "chatcmpl-4111111111111111", "object": "chat.completion", "created": 1_700_000_000, "model": "m",
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "a", "refusal": null,
                "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{\"x\":1}"}}]}}],
            "usage": {"prompt_tokens": 12_345_678, "cost": 0.000_015_45}});
        assert_eq!(
            texts(&chat),
            [
                pair("/choices#0/message/content", "a"),
                pair("/choices#0/message/tool_calls/function/arguments", "{\"x\":1}")
            ]
        );
        let messages = json!({"id": "msg_1", "type": "message", "role": "assistant", "content": [
            {"type": "thinking", "thinking": "t", "signature": "c2lnbmVk"}, {"type": "text", "text": "b"},
            {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"id": "c", "n": 4_111_111_111_111_111_u64}}]});
        assert_eq!(
            texts(&messages),
            [
                pair("/content/thinking", "t"),
                pair("/content/text", "b"),
                pair("/content/input/id", "c"),
                pair("/content/input/n", "4111111111111111")
            ]
        );
        let responses = json!({"id": "resp_1", "instructions": "from the caller", "output": [{"type": "message", "id": "msg_1",
            "content": [{"type": "output_text", "text": "d", "annotations": []}]}], "metadata": {"k": "v"}});
        assert_eq!(texts(&responses), [pair("/output/content/text", "d")]);
    }

    #[test]
    fn events_of_one_text_share_a_channel() {
        let chat = |index: u64, text: &str| json!({"choices": [{"index": index, "delta": {"content": text}}]});
        assert_eq!(texts(&chat(0, "a"))[0].0, texts(&chat(0, "b"))[0].0);
        assert_ne!(texts(&chat(0, "a"))[0].0, texts(&chat(1, "b"))[0].0);
        let claude = json!({"type": "content_block_delta", "index": 2, "delta": {"type": "text_delta", "text": "x"}});
        assert_eq!(texts(&claude), [pair("#2/delta/text", "x")]);
        let responses = json!({"type": "response.output_text.delta", "item_id": "i", "output_index": 0, "content_index": 1,
            "delta": "x"});
        assert_eq!(texts(&responses), [pair("#0#1#\"i\"/delta", "x")]);
    }

    #[test]
    fn a_text_is_replaced_where_it_stands() {
        let mut answer = json!({"content": [{"a/b": {"text": "x"}}]});
        let found = said(&answer);
        replace(&mut answer, &found[0].pointer, "y".to_owned());
        assert_eq!(answer, json!({"content": [{"a/b": {"text": "y"}}]}));
    }
}
