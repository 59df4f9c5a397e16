//! An upstream that writes down what it was asked and what that cost: the truth that the ledger is compared with.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::{HeaderMap, StatusCode, header};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::seed::Dice;

/// Tokens of every question, whatever it says; the gateway's estimate of it is higher.
const INPUT: i64 = 8;

/// Tokens of a whole answer; less than every request allows, and not less than four bytes each would make.
const OUTPUT: i64 = 10;

/// Tokens of an answer that does not keep to what the request allows.
const DEAR_OUTPUT: i64 = 25;

/// What a question says whose answer is dearer than anybody could estimate.
pub(crate) const AT_LENGTH: &str = "Tell all that you know of lead.";

/// Tokens that every question allows.
pub(crate) const ALLOWED: i64 = 12;

/// Nano-dollars for each token, as [`PRICES`] says.
const INPUT_PRICE: i64 = 1_000_000;
const OUTPUT_PRICE: i64 = 10_000_000;

/// The same, for the gateway's configuration.
pub(crate) const PRICES: &str = r#"{ input_cost_per_token = "0.001", output_cost_per_token = "0.01" }"#;

/// What a request can be made to hold, and some: above every estimate of the load.
pub(crate) const MOST_HELD: i64 = 20 * INPUT_PRICE + ALLOWED * OUTPUT_PRICE;

/// Less than any request holds.
pub(crate) const LEAST_HELD: i64 = ALLOWED * OUTPUT_PRICE;

/// A request as it arrived.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked {
    /// How often a request with this id arrived.
    pub(crate) times: u32,
    /// What has been earned with it, in nano-dollars.
    pub(crate) cost: i64,
    /// The fault that was on when it arrived.
    pub(crate) during: usize,
    /// Whose credits it is on.
    pub(crate) account: String,
}

impl Asked {
    /// What it cost beyond anything that could have been held for it.
    pub(crate) fn excess(&self) -> i64 {
        (self.cost - LEAST_HELD).max(0)
    }
}

/// What it knows.
#[derive(Debug)]
pub(crate) struct Shared {
    log: Mutex<HashMap<String, Asked>>,
    during: Mutex<usize>,
    dice: Dice,
}

#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) address: String,
    pub(crate) shared: Arc<Shared>,
    serving: JoinHandle<()>,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Upstream {
    pub(crate) async fn start(dice: Dice) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared { log: Mutex::default(), during: Mutex::default(), dice });
        let router = Router::new()
            .route("/v1/chat/completions", post(chat))
            .route("/model/info", get(async || axum::Json(json!({"data": []}))))
            .with_state(Arc::clone(&shared));
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, shared, serving }
    }

    /// From here on requests are noted as having come during `episode`.
    pub(crate) fn enter(&self, episode: usize) {
        *self.shared.during.lock().unwrap_or_else(PoisonError::into_inner) = episode;
    }

    /// What was asked, by request id.
    pub(crate) fn log(&self) -> HashMap<String, Asked> {
        self.shared.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Shared {
    /// What the answers on an account's credits have cost beyond what was held for them, so far.
    pub(crate) fn excess(&self, account: &str) -> i64 {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.values().filter(|asked| asked.account == account).map(Asked::excess).sum()
    }

    fn arrived(&self, id: &str, account: &str) {
        let during = *self.during.lock().unwrap_or_else(PoisonError::into_inner);
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = log.entry(id.to_owned()).or_insert(Asked { during, ..Asked::default() });
        asked.times += 1;
        account.clone_into(&mut asked.account);
        asked.cost += INPUT * INPUT_PRICE;
    }

    fn earned(&self, id: &str, tokens: i64) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.entry(id.to_owned()).or_default().cost += tokens * OUTPUT_PRICE;
    }
}

async fn chat(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    let text = |name| headers.get(name).and_then(|text| text.to_str().ok()).map(str::to_owned);
    let (id, account) = (text("x-request-id"), text("x-alchemi-account-id"));
    let (Some(id), Some(account), Ok(body)) = (id, account, serde_json::from_slice::<Value>(&body)) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    shared.arrived(&id, &account);
    tokio::time::sleep(shared.dice.millis(1..60)).await;
    let tokens = if body["messages"][0]["content"] == json!(AT_LENGTH) { DEAR_OUTPUT } else { OUTPUT };
    if body["stream"] == json!(true) {
        return stream(shared, id, tokens);
    }
    shared.earned(&id, tokens);
    let text = json!({
        "id": id, "object": "chat.completion", "created": 1, "model": body["model"],
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "x"}}],
        "usage": {"prompt_tokens": INPUT, "completion_tokens": tokens, "total_tokens": INPUT + tokens},
    });
    let cost = format!("0.{:09}", INPUT * INPUT_PRICE + tokens * OUTPUT_PRICE);
    (
        [
            (header::CONTENT_TYPE, "application/json"),
            (header::HeaderName::from_static("x-litellm-response-cost"), &cost),
        ],
        text.to_string(),
    )
        .into_response()
}

fn stream(shared: Arc<Shared>, id: String, tokens: i64) -> Response {
    let event = |mut event: Value, id: &str| {
        event["id"] = json!(id);
        event["object"] = json!("chat.completion.chunk");
        Bytes::from(format!("data: {event}\n\n"))
    };
    let frames = futures_util::stream::unfold(0, move |n| {
        let (shared, id) = (Arc::clone(&shared), id.clone());
        async move {
            tokio::time::sleep(shared.dice.millis(1..12)).await;
            let frame = match n - tokens {
                ..0 => {
                    shared.earned(&id, 1);
                    event(json!({"choices": [{"index": 0, "delta": {"content": "oh "}}]}), &id)
                }
                0 => event(json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}), &id),
                1 => {
                    let usage =
                        json!({"prompt_tokens": INPUT, "completion_tokens": tokens, "total_tokens": INPUT + tokens});
                    event(json!({"choices": [], "usage": usage}), &id)
                }
                2 => Bytes::from_static(b"data: [DONE]\n\n"),
                _ => return None,
            };
            Some((Ok::<_, std::io::Error>(frame), n + 1))
        }
    });
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(frames)).into_response()
}
