//! An LLM upstream in LiteLLM's shape, for development and tests.
//!
//! It answers every governed route, in JSON and as a stream, with a short canned
//! text, counts a token per four bytes, and prices its [`Model`]s exactly. Headers,
//! error envelopes, `/model/info` and the usage chunk of a stream are those of
//! LiteLLM 1.106: the cost of a stream is in no header, and the usage chunk has a
//! choice, not an empty list.
//!
//! A [`Behaviour`] makes it slow, broken or endless, for the whole upstream or for
//! one request by its model's name (`gpt-4o-mini+status=429`). What it received is
//! kept, header names as they came, and a request whose client hung up is counted,
//! so that a test can see the disconnect arrive.

mod answer;
mod anthropic;
mod behaviour;
mod call;
mod catalogue;
mod openai;
mod recorder;
mod responses;
mod single;
mod stream;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::request::Parts;
use http::{StatusCode, header};
use serde_json::json;
use subtle::ConstantTimeEq as _;

pub use self::behaviour::{Behaviour, Failure, NotABehaviour};
use self::call::LiteLlmError;
pub use self::catalogue::{Model, Price};
use self::recorder::Recorder;
pub use self::recorder::{Activity, Recorded};
use super::DevError;
use super::listener::{self, Serving, Wire};
use crate::clock::{SharedClock, SystemClock};
use crate::id::{IdSource, RandomIds};

/// Largest request body.
const MAX_BODY: usize = 64 << 20;

/// How to start a [`DevUpstream`].
#[derive(Clone)]
pub struct UpstreamOptions {
    /// A loopback address; port 0, the default, takes a free one.
    pub listen: SocketAddr,
    /// When set, a request must bring it as its bearer token.
    pub api_key: Option<String>,
    /// What it knows; [`Model::catalogue`] by default.
    pub models: Vec<Model>,
    /// How it behaves from the start.
    pub behaviour: Behaviour,
    /// How many received requests are kept: the latest, 256 by default.
    pub keep: usize,
    /// Where its times come from.
    pub clock: SharedClock,
    /// Where its ids come from.
    pub ids: Arc<dyn IdSource>,
}

impl Default for UpstreamOptions {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            api_key: None,
            models: Model::catalogue(),
            behaviour: Behaviour::default(),
            keep: 256,
            clock: Arc::new(SystemClock),
            ids: Arc::new(RandomIds),
        }
    }
}

impl std::fmt::Debug for UpstreamOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UpstreamOptions")
            .field("listen", &self.listen)
            .field("api_key", &self.api_key.is_some())
            .field("behaviour", &self.behaviour)
            .finish_non_exhaustive()
    }
}

/// The running upstream; dropping it stops it and breaks its connections.
#[derive(Debug)]
pub struct DevUpstream {
    url: String,
    shared: Arc<Shared>,
    _serving: Serving,
}

/// What every request sees.
struct Shared {
    api_key: Option<String>,
    models: Vec<Model>,
    behaviour: Mutex<Behaviour>,
    recorder: Arc<Recorder>,
    responses: responses::Shelf,
    clock: SharedClock,
    ids: Arc<dyn IdSource>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("recorder", &self.recorder).finish_non_exhaustive()
    }
}

impl DevUpstream {
    /// Starts it.
    ///
    /// # Errors
    /// [`DevError::NotLoopback`] and [`DevError::Listen`].
    pub async fn start(options: UpstreamOptions) -> Result<Self, DevError> {
        let (listener, bound) = listener::bind(options.listen).await?;
        let shared = Arc::new(Shared {
            api_key: options.api_key,
            models: options.models,
            behaviour: Mutex::new(options.behaviour),
            recorder: Arc::new(Recorder::new(options.keep)),
            responses: responses::Shelf::default(),
            clock: options.clock,
            ids: options.ids,
        });
        let serving = Serving::start(listener, router(Arc::clone(&shared)));
        Ok(Self { url: format!("http://{bound}"), shared, _serving: serving })
    }

    /// Where it listens, without a trailing slash.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Changes how it behaves towards requests that come from now on.
    pub fn behave(&self, behaviour: Behaviour) {
        *self.shared.behaviour.lock().unwrap_or_else(PoisonError::into_inner) = behaviour;
    }

    /// The requests received, oldest first.
    pub fn requests(&self) -> Vec<Recorded> {
        self.shared.recorder.requests()
    }

    /// The latest request received.
    pub fn last_request(&self) -> Option<Recorded> {
        self.requests().pop()
    }

    /// The counts at this moment.
    pub fn activity(&self) -> Activity {
        self.shared.recorder.activity()
    }

    /// Waits until the counts are as `wanted`, without polling. To be used under a
    /// timeout, since it waits for ever when they never are.
    pub async fn until(&self, wanted: impl FnMut(&Activity) -> bool) -> Activity {
        self.shared.recorder.until(wanted).await
    }
}

fn router(shared: Arc<Shared>) -> Router {
    let every = Router::new()
        .merge(model_routes())
        .route("/responses", post(responses::create))
        .route("/responses/{id}", get(responses::read).delete(responses::delete))
        .route("/messages", post(anthropic::messages))
        .route("/messages/count_tokens", post(anthropic::count_tokens))
        .route("/moderations", post(single::moderations))
        .route("/rerank", post(single::rerank))
        .route("/models", get(catalogue::list))
        .route("/models/{id}", get(catalogue::read))
        .route("/model/info", get(catalogue::info));
    Router::new()
        .merge(every.clone())
        .nest("/v1", every.clone())
        .nest("/openai", every.clone())
        .nest("/openai/v1", every)
        .route("/v2/rerank", post(single::rerank))
        .nest("/engines/{model}", model_routes())
        .nest("/openai/deployments/{model}", model_routes())
        .route("/health/liveliness", get(async || axum::Json("I'm alive!")))
        .route("/health/readiness", get(async || axum::Json(json!({"status": "healthy", "db": "Not connected"}))))
        .fallback(async || (StatusCode::NOT_FOUND, axum::Json(json!({"detail": "Not Found"}))))
        .method_not_allowed_fallback(async || {
            (StatusCode::METHOD_NOT_ALLOWED, axum::Json(json!({"detail": "Method Not Allowed"})))
        })
        .layer(from_fn_with_state(Arc::clone(&shared), receive))
        .with_state(shared)
}

/// The routes that LiteLLM also serves with the model in the path.
fn model_routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/chat/completions", post(openai::chat))
        .route("/completions", post(openai::completions))
        .route("/embeddings", post(single::embeddings))
        .route("/images/generations", post(single::images))
        .route("/images/edits", post(single::images))
        .route("/audio/speech", post(single::speech))
        .route("/audio/transcriptions", post(single::transcriptions))
}

/// Reads and records the request, asks for the key, and watches the answer.
async fn receive(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let mut watch = shared.recorder.open();
    let (mut parts, body) = request.into_parts();
    let wire = parts.extensions.remove::<Wire>();
    let Ok(body) = axum::body::to_bytes(body, MAX_BODY).await else {
        return LiteLlmError::invalid(StatusCode::PAYLOAD_TOO_LARGE, "Request body too large or cut off.")
            .into_response();
    };
    let head = wire.map(|wire| wire.take()).unwrap_or_default();
    watch.received(Recorded::new(&parts, &head, body.clone()));
    let response = match shared.admit(&parts) {
        Ok(()) => next.run(Request::from_parts(parts, body.into())).await,
        Err(refused) => refused.into_response(),
    };
    response.map(|body| watch.over(body))
}

impl Shared {
    fn admit(&self, parts: &Parts) -> Result<(), LiteLlmError> {
        let Some(key) = &self.api_key else { return Ok(()) };
        if parts.uri.path().starts_with("/health/") {
            return Ok(());
        }
        let given = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        match given.map(|value| value.strip_prefix("Bearer ").unwrap_or(value)) {
            None => Err(LiteLlmError::unauthenticated("auth_error", "No api key passed in.", "None")),
            Some(given) if given.as_bytes().ct_eq(key.as_bytes()).into() => Ok(()),
            Some(_) => Err(LiteLlmError::unauthenticated(
                "token_not_found_in_db",
                "Invalid proxy server token passed. Unable to find token in cache or `LiteLLM_VerificationTable`",
                "key",
            )),
        }
    }

    fn behaviour(&self) -> Behaviour {
        self.behaviour.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A fresh id with the prefix that its kind has.
    fn fresh(&self, prefix: &str) -> String {
        format!("{prefix}{}", self.ids.uuid(self.clock.now()).simple())
    }

    /// The present, in seconds.
    fn now(&self) -> i64 {
        self.clock.now().as_secs()
    }
}
