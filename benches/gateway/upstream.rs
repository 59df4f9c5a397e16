//! The upstream: LiteLLM's answers, canned, with what a gateway reads for its prices.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};

use crate::{Result, process};

/// The only model.
pub(crate) const MODEL: &str = "gpt-4o-mini";
const EVENTS: usize = 20;

const CHAT: &str = r#"{"id":"chatcmpl-fake0001","object":"chat.completion","created":1760000000,"model":"gpt-4o-mini","choices":[{"index":0,"message":{"role":"assistant","content":"Hello! This is a canned answer from the fake upstream, long enough to look like a short real reply.","refusal":null,"annotations":[]},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":19,"completion_tokens":21,"total_tokens":40,"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0}},"service_tier":"default","system_fingerprint":"fp_fake"}"#;
const MODEL_INFO: &str = r#"{"data":[{"model_name":"gpt-4o-mini","litellm_params":{"model":"openai/gpt-4o-mini"},"model_info":{"id":"m1","mode":"chat","max_output_tokens":16384,"input_cost_per_token":1.5e-07,"output_cost_per_token":6e-07}}]}"#;
const HEALTH: &str = r#"{"status":"healthy"}"#;

type Body = UnsyncBoxBody<Bytes, Infallible>;

pub(crate) async fn run() -> Result<()> {
    process::serve(answer).await
}

async fn answer(request: Request<Incoming>) -> std::result::Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    Ok(match path.as_str() {
        "/v1/model/info" | "/model/info" => json(MODEL_INFO),
        path if path.starts_with("/health") => json(HEALTH),
        _ if memchr::memmem::find(&body, br#""stream":true"#).is_some() => {
            events(memchr::memmem::find(&body, b"include_usage").is_some())
        }
        _ => json(CHAT),
    })
}

fn json(body: &'static str) -> Response<Body> {
    let mut answer = Response::new(Full::new(Bytes::from_static(body.as_bytes())).boxed_unsync());
    set(&mut answer, "content-type", "application/json");
    set(&mut answer, "x-litellm-response-cost", "1.545e-05");
    answer
}

/// The stream, one write for each event as LiteLLM has it.
fn events(with_usage: bool) -> Response<Body> {
    const HEAD: &str = r#"data: {"id":"chatcmpl-fake0002","object":"chat.completion.chunk","created":1760000000,"model":"gpt-4o-mini","choices":[{"index":0,"delta":"#;
    let word = format!("{HEAD}{{\"content\":\" word\"}},\"finish_reason\":null}}]}}\n\n");
    let stop = format!("{HEAD}{{}},\"finish_reason\":\"stop\"}}]}}\n\n");
    let usage = format!(
        "{HEAD}{{}}}}],\"usage\":{{\"prompt_tokens\":19,\"completion_tokens\":21,\"total_tokens\":40,\"cost\":0.00001545}}}}\n\n"
    );
    let mut frames: Vec<Bytes> = vec![Bytes::from(word); EVENTS];
    frames.push(stop.into());
    if with_usage {
        frames.push(usage.into());
    }
    frames.push(Bytes::from_static(b"data: [DONE]\n\n"));
    let one_by_one = stream::iter(frames).then(|frame| async {
        tokio::task::yield_now().await;
        Ok(Frame::data(frame))
    });
    let mut answer = Response::new(StreamBody::new(one_by_one).boxed_unsync());
    set(&mut answer, "content-type", "text/event-stream; charset=utf-8");
    set(&mut answer, "x-accel-buffering", "no");
    answer
}

fn set(answer: &mut Response<Body>, name: &'static str, value: &'static str) {
    answer.headers_mut().insert(name, HeaderValue::from_static(value));
}
