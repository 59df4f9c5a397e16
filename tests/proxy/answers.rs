//! What guardrails do about answers: `guardrails.response`.

use alchemi::proxy::config::ResponseScreening;
use serde_json::{Value, json};

use crate::common::{Backend, Reply, backends};
use crate::{Stage, chat, int, text, with};

/// Every answer of the upstream says it; no question does.
const SAID: &str = "development upstream";

fn questions() -> Vec<(&'static str, Value)> {
    vec![
        ("/v1/chat/completions", chat("gpt-4o")),
        ("/v1/completions", json!({"model": "gpt-4o-mini", "prompt": "Hello"})),
        ("/v1/responses", json!({"model": "gpt-4o-mini", "input": "Hello"})),
        (
            "/v1/messages",
            json!({"model": "claude-sonnet-4-5", "max_tokens": 64, "messages": [{"role": "user", "content": "Hello"}]}),
        ),
    ]
}

impl Stage {
    async fn screening(backend: Backend, response: ResponseScreening, action: &str) -> Self {
        let stage = Self::with(backend, |config| config.guardrails.response = response).await;
        let preset = stage.own_preset("house", SAID, action).await;
        stage.assign(&preset, ("account", &stage.account)).await;
        stage
    }
}

/// The text of an answer, whole or in pieces.
fn said(reply: &Reply) -> String {
    fn walk(value: &Value, out: &mut String) {
        match value {
            Value::Object(members) => {
                for (name, member) in members {
                    match member {
                        Value::String(text) if ["content", "text", "delta"].contains(&name.as_str()) => {
                            out.push_str(text)
                        }
                        other => walk(other, out),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| walk(item, out)),
            _ => {}
        }
    }
    let mut out = String::new();
    match serde_json::from_slice::<Value>(&reply.body) {
        Ok(whole) => walk(&whole, &mut out),
        // The Responses API says its text once more at the end.
        Err(_) => reply.json_events().iter().for_each(|event| match event["type"].as_str() {
            Some(name) if name.starts_with("response.") && !name.ends_with(".delta") => {}
            _ => walk(event, &mut out),
        }),
    }
    out
}

#[tokio::test]
async fn what_is_found_in_an_answer_is_noted_and_the_answer_passes() {
    for backend in backends().await {
        let stage = Stage::screening(backend, ResponseScreening::Detect, "block").await;
        let mut requests = 0;
        for (path, question) in questions() {
            for stream in [false, true] {
                let reply = stage.ada.post(path, with(question.clone(), "stream", json!(stream))).await;
                assert_eq!(reply.status, 200, "{path}: {}", reply.text());
                assert!(said(&reply).contains(SAID), "{path} {stream}: {}", reply.text());
                requests += 1;
            }
        }
        for row in stage.settled(requests).await {
            assert_eq!((text(&row, "guardrail_code"), text(&row, "marks")), ("house", ""), "{row:?}");
        }
    }
}

#[tokio::test]
async fn a_blocked_answer_is_refused_in_the_words_of_the_sdk_and_paid() {
    for backend in backends().await {
        let stage = Stage::screening(backend, ResponseScreening::Block, "block").await;
        let mut requests = 0;
        for (path, question) in questions() {
            let reply = stage.ada.post(path, question.clone()).await;
            assert_eq!((reply.status.as_u16(), reply.code().as_str()), (403, "guardrail_blocked"), "{path}");
            assert_eq!(reply.header("x-alchemi-decision"), "deny;code=guardrail_blocked");
            assert!(!reply.text().contains(SAID) && reply.text().contains("house"), "{}", reply.text());

            let reply = stage.ada.post(path, with(question, "stream", json!(true))).await;
            assert_eq!(reply.status, 200, "{path}");
            let events = reply.json_events();
            let last = events.last().unwrap();
            assert_eq!(last["error"]["code"], "guardrail_blocked", "{path}: {}", reply.text());
            assert!(last["error"]["message"].as_str().unwrap().contains("house"), "{last}");
            assert_eq!(last["type"] == "error", path == "/v1/messages", "{last}");
            assert!(!reply.text().contains("[DONE]") && !said(&reply).contains(SAID), "{}", reply.text());
            requests += 2;
        }
        for row in stage.settled(requests).await {
            assert_eq!(text(&row, "guardrail_code"), "house", "{row:?}");
            assert!(int(&row, "credits_incurred") > 0, "the upstream has worked: {row:?}");
        }
        assert_eq!(stage.rested().await.1, 0, "nothing is held");
        assert_eq!(stage.gateway.verify_books().await.differences, []);
    }
}

#[tokio::test]
async fn a_masked_answer_is_whole_but_for_what_was_found() {
    let stage = Stage::screening(Backend::Sqlite, ResponseScreening::Block, "mask").await;
    let open = Stage::set().await;
    for (path, question) in questions() {
        for stream in [false, true] {
            let question = with(question.clone(), "stream", json!(stream));
            let (masked, plain) = (stage.ada.post(path, question.clone()).await, open.ada.post(path, question).await);
            assert_eq!(said(&masked), said(&plain).replace(SAID, "[own]"), "{path} {stream}: {}", masked.text());
            assert!(!masked.text().contains(SAID), "{path} {stream}: {}", masked.text());
        }
    }
    for row in stage.settled(8).await {
        assert_eq!((text(&row, "guardrail_code"), text(&row, "marks")), ("house", ""), "{row:?}");
    }
}

#[tokio::test]
async fn a_tools_arguments_are_part_of_an_answer() {
    let stage = Stage::with(Backend::Sqlite, |config| config.guardrails.response = ResponseScreening::Block).await;
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    let tool = json!({"type": "function", "function": {"name": "weather", "parameters": parameters}});
    let asked = with(with(chat("gpt-4o"), "tools", json!([tool])), "tool_choice", json!("required"));
    let free = stage.ada.post("/v1/chat/completions", asked.clone()).await.ok();
    let arguments = &free["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"];
    assert!(arguments.as_str().unwrap().starts_with("{\"city\":"), "{arguments}");
    let preset = stage.own_preset("tools", "\\{\"city\":", "block").await;
    stage.assign(&preset, ("account", &stage.account)).await;
    for stream in [false, true] {
        let reply = stage.ada.post("/v1/chat/completions", with(asked.clone(), "stream", json!(stream))).await;
        assert!(reply.text().contains("guardrail_blocked"), "{stream}: {}", reply.text());
    }
}

#[tokio::test]
async fn answers_of_those_whom_nothing_holds_for_pass_unread() {
    let stage = Stage::screening(Backend::Sqlite, ResponseScreening::Off, "block").await;
    for stream in [false, true] {
        let reply = stage.ada.post("/v1/chat/completions", with(chat("gpt-4o"), "stream", json!(stream))).await;
        assert!(said(&reply).contains(SAID), "{}", reply.text());
    }
    assert!(stage.settled(2).await.iter().all(|row| row["guardrail_code"].is_null()));
    // An answer of the upstream that is an error is its own.
    let blocking = Stage::screening(Backend::Sqlite, ResponseScreening::Block, "block").await;
    let reply = blocking.ada.post("/v1/chat/completions", chat("gpt-4o+status=400")).await;
    assert!(reply.status == 400 && reply.text().contains(SAID), "{}", reply.text());
}
