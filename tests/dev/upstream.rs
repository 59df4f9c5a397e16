use std::sync::Arc;

use alchemi::clock::{ManualClock, Timestamp};
use alchemi::dev::upstream::Model;
use alchemi::dev::{DevUpstream, UpstreamOptions};
use alchemi::id::CountingIds;
use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};

use super::soon;

pub(crate) async fn upstream() -> DevUpstream {
    start(UpstreamOptions::default()).await
}

pub(crate) async fn start(options: UpstreamOptions) -> DevUpstream {
    let clock = Arc::new(ManualClock::at(Timestamp::from_secs(1_760_000_000)));
    DevUpstream::start(UpstreamOptions { clock, ids: Arc::new(CountingIds::default()), ..options })
        .await
        .expect("starts")
}

pub(crate) async fn post(upstream: &DevUpstream, path: &str, body: Value) -> Response {
    soon(Client::new().post(format!("{}{path}", upstream.url())).json(&body).send()).await.expect("answers")
}

pub(crate) async fn get(upstream: &DevUpstream, path: &str) -> (u16, Value) {
    let answer = soon(Client::new().get(format!("{}{path}", upstream.url())).send()).await.expect("answers");
    (answer.status().as_u16(), answer.json().await.expect("JSON"))
}

pub(crate) fn header<'a>(answer: &'a Response, name: &str) -> Option<&'a str> {
    answer.headers().get(name).map(|value| value.to_str().expect("text"))
}

pub(crate) fn chat(content: &str) -> Value {
    json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": content}]})
}

pub(crate) fn streamed(mut body: Value) -> Value {
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    body
}

pub(crate) fn with_model(mut body: Value, model: &str) -> Value {
    body["model"] = json!(model);
    body
}

/// The `data` of every event, `[DONE]` as null; checks that names match types.
pub(crate) async fn events(answer: Response) -> Vec<Value> {
    assert_eq!(header(&answer, "content-type"), Some("text/event-stream; charset=utf-8"));
    assert_eq!(header(&answer, "x-litellm-response-cost"), None, "the cost of a stream is in no header");
    assert_eq!(header(&answer, "x-litellm-response-cost-original"), Some("0.0"));
    let text = soon(answer.text()).await.expect("a whole stream");
    let event = |block: &str| {
        let mut lines = block.lines().rev();
        let data = lines.next().and_then(|line| line.strip_prefix("data: ")).expect("data");
        let data = if data == "[DONE]" { Value::Null } else { serde_json::from_str(data).expect("JSON") };
        if let Some(name) = lines.next() {
            assert_eq!(name, format!("event: {}", data["type"].as_str().expect("type")));
        }
        data
    };
    text.split_terminator("\n\n").map(event).collect()
}

const HELLO: &str = "Hello! You said: \"hi there\". I am the development upstream, so this answer is made up.";

#[tokio::test]
async fn chat_answers_with_exact_cost() {
    let upstream = upstream().await;
    let request =
        Client::new().post(format!("{}/v1/chat/completions", upstream.url())).header("x-litellm-call-id", "mine");
    let answer = request.json(&chat("hi there")).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(header(&answer, "x-litellm-call-id"), Some("mine"), "echoed");
    assert_eq!(header(&answer, "x-litellm-model-id"), Some("dev-gpt-4o-mini"));
    // 2 tokens at 1.5e-7 and 22 at 6e-7.
    assert_eq!(header(&answer, "x-litellm-response-cost"), Some("1.35e-05"));
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body["object"], "chat.completion");
    assert_eq!((&body["model"], &body["created"]), (&json!("gpt-4o-mini"), &json!(1_760_000_000)));
    assert_eq!(body["choices"][0]["message"], json!({"role": "assistant", "content": HELLO}));
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    let usage = &body["usage"];
    assert_eq!(
        (&usage["prompt_tokens"], &usage["completion_tokens"], &usage["total_tokens"]),
        (&json!(2), &json!(22), &json!(24))
    );
}

#[tokio::test]
async fn chat_streams_with_usage_when_asked() {
    let upstream = upstream().await;
    let chunks = events(post(&upstream, "/v1/chat/completions", streamed(chat("hi there"))).await).await;
    let text: String = chunks.iter().filter_map(|it| it["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, HELLO);
    let [.., stop, usage, done] = chunks.as_slice() else { panic!("too few: {chunks:?}") };
    assert_eq!(stop["choices"][0]["finish_reason"], "stop");
    assert_eq!(usage["choices"], json!([{"index": 0, "delta": {}}]), "a choice, as LiteLLM has it");
    assert_eq!(
        (&usage["usage"]["total_tokens"], usage["usage"]["cost"].to_string()),
        (&json!(24), "0.0000135".to_owned())
    );
    assert!(done.is_null());

    let mut silent = chat("hi there");
    silent["stream"] = json!(true);
    let chunks = events(post(&upstream, "/v1/chat/completions", silent).await).await;
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
}

#[tokio::test]
async fn the_token_limit_cuts_the_text() {
    let upstream = upstream().await;
    let mut body = chat("hi there");
    body["max_tokens"] = json!(3);
    let body: Value = post(&upstream, "/v1/chat/completions", body).await.json().await.unwrap();
    assert_eq!(body["choices"][0]["message"]["content"], "Hello! You s");
    assert_eq!(
        (&body["choices"][0]["finish_reason"], &body["usage"]["completion_tokens"]),
        (&json!("length"), &json!(3))
    );
}

#[tokio::test]
async fn tools_are_called_and_their_answer_is_told() {
    let upstream = upstream().await;
    let schema = json!({
        "type": "object", "required": ["city", "unit"],
        "properties": {"city": {"type": "string"}, "unit": {"enum": ["C", "F"]}, "days": {"type": "integer"}},
    });
    let arguments = json!({"city": "example", "unit": "C"});
    let function = json!({"name": "get_weather", "parameters": schema});

    let mut body = chat("Call get_weather, please");
    body["tools"] = json!([{"type": "function", "function": function}]);
    let answer: Value = post(&upstream, "/v1/chat/completions", body.clone()).await.json().await.unwrap();
    let call = answer["choices"][0]["message"]["tool_calls"][0].clone();
    assert_eq!((&call["function"]["name"], &call["type"]), (&json!("get_weather"), &json!("function")));
    assert_eq!(call["function"]["arguments"].as_str().unwrap().parse::<Value>().unwrap(), arguments);
    assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");
    let chunks = events(post(&upstream, "/v1/chat/completions", streamed(body.clone())).await).await;
    assert!(chunks.iter().any(|it| it["choices"][0]["delta"]["tool_calls"][0]["function"]["name"] == "get_weather"));

    let mut quiet = body.clone();
    quiet["messages"][0]["content"] = json!("What is the weather?");
    let answer: Value = post(&upstream, "/v1/chat/completions", quiet.clone()).await.json().await.unwrap();
    assert_eq!(answer["choices"][0]["finish_reason"], "stop", "nobody asked for it");
    quiet["tool_choice"] = json!({"type": "function", "function": {"name": "get_weather"}});
    let answer: Value = post(&upstream, "/v1/chat/completions", quiet).await.json().await.unwrap();
    assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls", "it is forced");

    body["messages"]
        .as_array_mut()
        .unwrap()
        .push(json!({"role": "tool", "tool_call_id": call["id"], "content": "21 degrees"}));
    let answer: Value = post(&upstream, "/v1/chat/completions", body).await.json().await.unwrap();
    assert_eq!(answer["choices"][0]["message"]["content"], "The tool says: 21 degrees");

    let messages = json!({
        "model": "claude-sonnet-4-5", "max_tokens": 100, "messages": [{"role": "user", "content": "use the tool"}],
        "tools": [{"name": "get_weather", "input_schema": schema}],
    });
    let answer: Value = post(&upstream, "/v1/messages", messages.clone()).await.json().await.unwrap();
    assert_eq!((&answer["stop_reason"], &answer["content"][0]["input"]), (&json!("tool_use"), &arguments));
    let stream = events(post(&upstream, "/v1/messages", streamed(messages)).await).await;
    assert!(stream.iter().any(|it| it["delta"]["type"] == "input_json_delta"));

    let responses = json!({
        "model": "gpt-4o", "input": "use get_weather",
        "tools": [{"type": "function", "name": "get_weather", "parameters": schema}],
    });
    let answer: Value = post(&upstream, "/v1/responses", responses.clone()).await.json().await.unwrap();
    assert_eq!(
        (&answer["output"][0]["type"], &answer["output"][0]["name"]),
        (&json!("function_call"), &json!("get_weather"))
    );
    let stream = events(post(&upstream, "/v1/responses", streamed(responses)).await).await;
    assert!(stream.iter().any(|it| it["type"] == "response.function_call_arguments.done"));
}

#[tokio::test]
async fn completions_answer_both_ways() {
    let upstream = upstream().await;
    let ask = json!({"model": "gpt-4o-mini", "prompt": "hi there"});
    let body: Value = post(&upstream, "/v1/completions", ask.clone()).await.json().await.unwrap();
    assert_eq!((&body["object"], &body["choices"][0]["text"]), (&json!("text_completion"), &json!(HELLO)));
    let chunks = events(post(&upstream, "/completions", streamed(ask)).await).await;
    let text: String = chunks.iter().filter_map(|it| it["choices"][0]["text"].as_str()).collect();
    assert_eq!(text, HELLO);
    assert_eq!(chunks[chunks.len() - 2]["usage"], {
        let mut usage = body["usage"].clone();
        usage["cost"] = json!(1.35e-5);
        usage
    });
}

#[tokio::test]
async fn responses_answer_both_ways_and_are_kept() {
    let upstream = upstream().await;
    let input = json!([{"role": "user", "content": [{"type": "input_text", "text": "hi there"}]}]);
    let ask = json!({"model": "gpt-4o-mini", "input": input, "instructions": "Be kind."});
    let answer = post(&upstream, "/v1/responses", ask.clone()).await;
    assert_eq!(header(&answer, "x-litellm-response-cost"), Some("1.38e-05"));
    let body: Value = answer.json().await.unwrap();
    assert_eq!((&body["object"], &body["status"]), (&json!("response"), &json!("completed")));
    assert_eq!(body["output"][0]["content"][0]["text"], HELLO);
    assert_eq!((&body["usage"]["input_tokens"], &body["usage"]["output_tokens"]), (&json!(4), &json!(22)));

    let path = format!("/v1/responses/{}", body["id"].as_str().unwrap());
    assert_eq!(get(&upstream, &path).await, (200, body.clone()));
    let deleted = Client::new().delete(format!("{}{path}", upstream.url())).send().await.unwrap();
    assert_eq!(deleted.json::<Value>().await.unwrap()["deleted"], true);
    assert_eq!(get(&upstream, &path).await.0, 404);

    let stream = events(post(&upstream, "/v1/responses", streamed(ask)).await).await;
    let kinds: Vec<_> = stream.iter().map(|it| it["type"].as_str().unwrap()).collect();
    assert_eq!(kinds[..3], ["response.created", "response.in_progress", "response.output_item.added"]);
    assert_eq!(kinds.last(), Some(&"response.completed"));
    let numbers: Vec<_> = stream.iter().map(|it| it["sequence_number"].as_u64().unwrap()).collect();
    assert!(numbers.iter().copied().eq(0..numbers.len() as u64));
    let text: String = stream
        .iter()
        .filter(|it| it["type"] == "response.output_text.delta")
        .filter_map(|it| it["delta"].as_str())
        .collect();
    assert_eq!(text, HELLO);
    assert_eq!(stream.last().unwrap()["response"]["usage"], body["usage"]);
}

#[tokio::test]
async fn messages_answer_both_ways() {
    let upstream = upstream().await;
    let ask =
        json!({"model": "claude-sonnet-4-5", "max_tokens": 100, "messages": [{"role": "user", "content": "hi there"}]});
    let answer = post(&upstream, "/v1/messages", ask.clone()).await;
    assert_eq!(header(&answer, "x-litellm-response-cost"), Some("0.000336"));
    let body: Value = answer.json().await.unwrap();
    assert_eq!((&body["type"], &body["stop_reason"]), (&json!("message"), &json!("end_turn")));
    assert_eq!(body["content"], json!([{"type": "text", "text": HELLO}]));
    assert_eq!((&body["usage"]["input_tokens"], &body["usage"]["output_tokens"]), (&json!(2), &json!(22)));

    let stream = events(post(&upstream, "/v1/messages", streamed(ask.clone())).await).await;
    let kinds: Vec<_> = stream.iter().map(|it| it["type"].as_str().unwrap()).collect();
    assert_eq!(kinds[..3], ["message_start", "content_block_start", "ping"]);
    assert_eq!(kinds[kinds.len() - 3..], ["content_block_stop", "message_delta", "message_stop"]);
    assert_eq!(stream[0]["message"]["usage"]["input_tokens"], 2);
    assert_eq!(stream[stream.len() - 2]["usage"]["output_tokens"], 22);
    let text: String = stream.iter().filter_map(|it| it["delta"]["text"].as_str()).collect();
    assert_eq!(text, HELLO);

    let count = post(&upstream, "/v1/messages/count_tokens", ask).await;
    assert_eq!(header(&count, "x-litellm-response-cost"), None);
    assert_eq!(count.json::<Value>().await.unwrap()["input_tokens"], 2);
}

#[tokio::test]
async fn embeddings_are_unit_vectors_of_their_text() {
    let upstream = upstream().await;
    let ask = json!({"model": "text-embedding-3-small", "input": ["hi", "hi", "there"], "dimensions": 8});
    let answer = post(&upstream, "/v1/embeddings", ask.clone()).await;
    assert_eq!(header(&answer, "x-litellm-response-cost"), Some("8e-08"));
    let body: Value = answer.json().await.unwrap();
    let vector =
        |index: usize| -> Vec<f64> { serde_json::from_value(body["data"][index]["embedding"].clone()).unwrap() };
    assert_eq!((vector(0).len(), body["usage"]["prompt_tokens"].as_u64()), (8, Some(4)));
    assert_eq!(vector(0), vector(1));
    assert_ne!(vector(0), vector(2));
    assert!((vector(0).iter().map(|it| it * it).sum::<f64>() - 1.0).abs() < 1e-5);

    let packed =
        json!({"model": "text-embedding-3-small", "input": "hi", "dimensions": 8, "encoding_format": "base64"});
    let body: Value = post(&upstream, "/v1/embeddings", packed).await.json().await.unwrap();
    assert_eq!(body["data"][0]["embedding"].as_str().unwrap().len(), 44, "32 bytes");
}

#[tokio::test]
async fn images_speech_moderations_and_reranking_answer() {
    let upstream = upstream().await;
    let images =
        post(&upstream, "/v1/images/generations", json!({"model": "dall-e-3", "prompt": "a cat", "n": 2})).await;
    assert_eq!(header(&images, "x-litellm-response-cost"), Some("0.08"));
    assert_eq!(images.json::<Value>().await.unwrap()["data"].as_array().unwrap().len(), 2);

    let speech =
        post(&upstream, "/v1/audio/speech", json!({"model": "tts-1", "input": "ten chars!", "voice": "alloy"})).await;
    assert_eq!(header(&speech, "x-litellm-response-cost"), Some("0.00015"));
    assert_eq!(header(&speech, "content-type"), Some("audio/mpeg"));
    assert!(!speech.bytes().await.unwrap().is_empty());

    let judged =
        post(&upstream, "/v1/moderations", json!({"model": "omni-moderation-latest", "input": ["peace", "Attack!"]}))
            .await;
    assert_eq!(header(&judged, "x-litellm-response-cost"), Some("0.0"));
    let judged: Value = judged.json().await.unwrap();
    assert_eq!((&judged["results"][0]["flagged"], &judged["results"][1]["flagged"]), (&json!(false), &json!(true)));

    let ask = json!({"model": "rerank-v3.5", "query": "red fox", "documents": ["a dog", "a red fox", {"text": "the fox"}], "top_n": 2});
    let ranked = post(&upstream, "/v1/rerank", ask).await;
    assert_eq!(header(&ranked, "x-litellm-response-cost"), Some("0.002"));
    let ranked: Value = ranked.json().await.unwrap();
    assert_eq!(ranked["results"], json!([{"index": 1, "relevance_score": 1.0}, {"index": 2, "relevance_score": 0.5}]));
}

#[tokio::test]
async fn a_transcription_reads_its_multipart_form() {
    let upstream = upstream().await;
    let part = |disposition: &str, body: &str| {
        format!("--XX\r\ncontent-disposition: form-data; {disposition}\r\n\r\n{body}\r\n")
    };
    let form = part("name=\"model\"", "whisper-1")
        + &part("name=\"file\"; filename=\"a.wav\"", &"x".repeat(16_001))
        + "--XX--\r\n";
    let request = Client::new().post(format!("{}/v1/audio/transcriptions", upstream.url()));
    let answer = request.header("content-type", "multipart/form-data; boundary=XX").body(form).send().await.unwrap();
    assert_eq!(header(&answer, "x-litellm-response-cost"), Some("0.0002"));
    assert_eq!(answer.json::<Value>().await.unwrap()["usage"], json!({"type": "duration", "seconds": 2}));
}

#[tokio::test]
async fn models_show_their_exact_prices() {
    let upstream = upstream().await;
    let (_, models) = get(&upstream, "/v1/models").await;
    let ids: Vec<_> = models["data"].as_array().unwrap().iter().map(|it| it["id"].as_str().unwrap()).collect();
    assert_eq!(ids[..4], ["gpt-4o-mini", "gpt-4o", "claude-sonnet-4-5", "text-embedding-3-small"]);
    assert_eq!(get(&upstream, "/v1/models/gpt-4o").await.1["id"], "gpt-4o");
    assert_eq!(get(&upstream, "/v1/models/nope").await.0, 404);

    let (_, info) = get(&upstream, "/model/info").await;
    assert_eq!(info, get(&upstream, "/v1/model/info").await.1);
    let mini = &info["data"][0];
    assert_eq!(
        (&mini["model_name"], &mini["litellm_params"]["model"]),
        (&json!("gpt-4o-mini"), &json!("openai/gpt-4o-mini"))
    );
    let price = |name: &str| mini["model_info"][name].to_string();
    let shown = [
        "input_cost_per_token",
        "output_cost_per_token",
        "cache_read_input_token_cost",
        "cache_creation_input_token_cost",
    ];
    assert_eq!(shown.map(price), ["1.5e-7", "6e-7", "7.5e-8", "null"]);
}

#[tokio::test]
async fn a_model_without_a_price_answers_without_a_cost() {
    let models = vec![Model::unpriced("local")];
    let upstream = start(UpstreamOptions { models, ..UpstreamOptions::default() }).await;
    let answer = post(&upstream, "/v1/chat/completions", with_model(chat("hi"), "local")).await;
    assert_eq!((answer.status(), header(&answer, "x-litellm-response-cost")), (StatusCode::OK, None));
    assert!(answer.json::<Value>().await.unwrap()["usage"].is_object());
}

#[tokio::test]
async fn the_path_may_name_the_model() {
    let upstream = upstream().await;
    for path in ["/openai/deployments/gpt-4o/chat/completions?api-version=1", "/engines/gpt-4o/chat/completions"] {
        let body: Value = post(&upstream, path, chat("hi")).await.json().await.unwrap();
        assert_eq!(body["model"], "gpt-4o", "{path}");
    }
    assert_eq!(post(&upstream, "/openai/chat/completions", chat("hi")).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn errors_have_litellms_envelope() {
    let upstream = upstream().await;
    let refused = async |path: &str, body: &str| {
        let answer =
            Client::new().post(format!("{}{path}", upstream.url())).body(body.to_owned()).send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap()["error"].clone())
    };
    let message = "/chat/completions: Invalid model name passed in model=nope. Call `/v1/models` to view available models for your key.";
    let unknown = json!({"message": message, "type": "invalid_request_error", "param": null, "code": "400"});
    assert_eq!(refused("/v1/chat/completions", r#"{"model": "nope"}"#).await, (400, unknown));
    let missing = json!({"message": "/chat/completions: Missing required parameter: 'messages'.", "type": "invalid_request_error", "param": "messages", "code": "400"});
    assert_eq!(refused("/v1/chat/completions", r#"{"model": "gpt-4o"}"#).await, (400, missing));
    let (status, malformed) = refused("/v1/chat/completions", "{not json").await;
    assert_eq!((status, &malformed["param"]), (400, &json!("request_body")));
    assert_eq!(get(&upstream, "/v1/nope").await, (404, json!({"detail": "Not Found"})));
    assert_eq!(get(&upstream, "/v1/chat/completions").await, (405, json!({"detail": "Method Not Allowed"})));
}

#[tokio::test]
async fn the_key_is_needed_everywhere_but_for_health() {
    let upstream = start(UpstreamOptions { api_key: Some("sk-up".to_owned()), ..UpstreamOptions::default() }).await;
    let missing = json!({"error": {"message": "Authentication Error, No api key passed in.", "type": "auth_error", "param": "None", "code": "401"}});
    assert_eq!(get(&upstream, "/v1/models").await, (401, missing));
    let asked = |key: &str| Client::new().get(format!("{}/v1/models", upstream.url())).bearer_auth(key).send();
    assert_eq!(asked("sk-no").await.unwrap().status(), StatusCode::UNAUTHORIZED);
    assert_eq!(asked("sk-up").await.unwrap().status(), StatusCode::OK);
    assert_eq!(get(&upstream, "/health/liveliness").await, (200, json!("I'm alive!")));
    assert_eq!(get(&upstream, "/health/readiness").await, (200, json!({"status": "healthy", "db": "Not connected"})));
}
