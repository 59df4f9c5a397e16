//! A stand-in for Zitadel: the v2 Connect services, `/management/v1`, and an issuer whose tokens say what is granted there,
//! over real HTTP.
//!
//! [`Zitadel::start`] listens on loopback; [`Zitadel::world`] is what it holds (organisations, projects, users, grants),
//! to be set up and looked at by a test; [`Zitadel::knobs`] is how it misbehaves; [`Zitadel::requests`] is what it was
//! asked, with bodies, for contract checks. Nothing here refers to the rest of the tests, so that the file can be the
//! whole of a program as well:
//!
//! ```ignore
//! let zitadel = Zitadel::start("127.0.0.1:0".parse().unwrap()).await;
//! let (owner, tenant) = (zitadel.org("Platform"), zitadel.org("Acme"));
//! let project = zitadel.project(&owner, "gateway");
//! let ada = zitadel.user(&tenant, "ada@acme.com");
//! zitadel.knobs(|knobs| knobs.lag = Duration::from_millis(300));
//! // Credentials that it takes: `TOKEN`, `CLIENT` (client credentials), `zitadel.key_file()` (private-key JWT), and for
//! // introspection `API`. What Ada signs in with: `zitadel.token_of(&ada, &project)`.
//! ```
//!
//! It does as Zitadel v4 does, by what spec and protos say: unknown fields and missing values are refused, a duplicate is
//! a 409 without an id, an update replaces all roles, v1 refuses an update that changes nothing and v2 does not, lists
//! lag behind writes, roles must exist in the project (and, in another organisation, in the project grant).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use aws_lc_rs::rsa::{KeyPair, KeySize};
use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use http::{HeaderMap, Method, StatusCode, Uri, header};
use serde_json::{Value, json};

#[path = "zitadel/management.rs"]
mod management;
#[path = "zitadel/tokens.rs"]
mod tokens;
#[path = "zitadel/world.rs"]
mod world;

pub(crate) use tokens::API;
pub(crate) use world::{Grant, ProjectGrant, World};

/// A personal access token that is accepted.
pub(crate) const TOKEN: &str = "pat-of-the-stand-in-0123456789";
/// A service user's login name and secret.
pub(crate) const CLIENT: (&str, &str) = ("provisioner", "secret+of/the provisioner");
/// The id of the service user, whose key file [`Zitadel::key_file`] gives.
const SERVICE_USER: &str = "900000000000000001";
const KEY_ID: &str = "900000000000000002";

/// How it misbehaves; by default, not at all.
#[derive(Clone, Debug, Default)]
pub(crate) struct Knobs {
    /// How long lists do not show what was written.
    pub(crate) lag: Duration,
    /// Answers the v2 project and authorization services with 404, as versions before them do.
    pub(crate) without_v2: bool,
    /// Answers everything with 503.
    pub(crate) down: bool,
    /// Gives no tokens, by 503.
    pub(crate) no_tokens: bool,
    /// Fails one call in so many: in turn before it was done (503), and after it was done (the answer is lost: 500).
    pub(crate) fail_one_in: Option<u64>,
    /// Answers so many calls with 429 and `Retry-After: 1`.
    pub(crate) throttle: u32,
    /// Says 409 to a new grant of this user although no list ever shows one.
    pub(crate) ghost_of: Option<String>,
    /// Fails with 503 whatever would grant this user something.
    pub(crate) fail_grants_of: Option<String>,
    /// Answers nobody any more, from a call on: that one it does, later ones it does not.
    pub(crate) stall: Option<Stall>,
    /// Lifetime of access tokens in seconds; an hour, if 0.
    pub(crate) token_seconds: u64,
}

/// Which call is the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stall {
    /// The so-manieth that it was ever asked.
    Call(usize),
    /// The next whose path ends like this.
    Path(&'static str),
}

/// What it was asked.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) organization: Option<String>,
    pub(crate) body: Value,
    pub(crate) status: u16,
    pub(crate) answer: Value,
}

impl Asked {
    /// As JSON, for judges in other languages.
    pub(crate) fn told(&self) -> Value {
        let Self { method, path, organization, body, status, answer } = self;
        json!({
            "method": method, "path": path, "organization": organization, "request": body, "status": status,
            "answer": answer,
        })
    }
}

/// The running stand-in; dropped, it is gone.
#[derive(Debug)]
pub(crate) struct Zitadel {
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    url: String,
    world: Mutex<World>,
    knobs: Mutex<Knobs>,
    asked: Mutex<Vec<Asked>>,
    tokens: Mutex<BTreeMap<String, Instant>>,
    /// Opaque tokens of people: whose, for which project, since when.
    sessions: Mutex<BTreeMap<String, (String, String, u64)>>,
    calls: Mutex<u64>,
    key: KeyPair,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}

impl Drop for Zitadel {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Zitadel {
    /// Listens on a loopback address.
    pub(crate) async fn start(address: SocketAddr) -> Self {
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        let shared = Arc::new(Shared {
            url: format!("http://{}", listener.local_addr().unwrap()),
            world: Mutex::default(),
            knobs: Mutex::default(),
            asked: Mutex::default(),
            tokens: Mutex::default(),
            sessions: Mutex::default(),
            calls: Mutex::default(),
            key: KeyPair::generate(KeySize::Rsa2048).unwrap(),
        });
        let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { shared, task }
    }

    /// Its address, without a slash at the end.
    pub(crate) fn url(&self) -> &str {
        &self.shared.url
    }

    /// Changes how it misbehaves.
    pub(crate) fn knobs(&self, turn: impl FnOnce(&mut Knobs)) {
        turn(&mut lock(&self.shared.knobs));
    }

    /// What it holds. Not to be kept over an await.
    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        lock(&self.shared.world)
    }

    /// A new organisation; gives its id.
    pub(crate) fn org(&self, name: &str) -> String {
        self.world().add_org(name)
    }

    /// A new project of an organisation; gives its id.
    pub(crate) fn project(&self, org: &str, name: &str) -> String {
        self.world().add_project(org, name)
    }

    /// A new user of an organisation; gives their id.
    pub(crate) fn user(&self, org: &str, email: &str) -> String {
        self.world().add_user(org, email)
    }

    /// What it was asked so far, but for tokens.
    pub(crate) fn requests(&self) -> Vec<Asked> {
        lock(&self.shared.asked).clone()
    }

    /// Whether it has answered its last call.
    pub(crate) fn has_stalled(&self) -> bool {
        self.shared.has_stalled()
    }

    /// How many access tokens it has given out.
    pub(crate) fn tokens_given(&self) -> usize {
        lock(&self.shared.tokens).len()
    }

    /// Makes every access token invalid.
    pub(crate) fn forget_tokens(&self) {
        for until in lock(&self.shared.tokens).values_mut() {
            *until = Instant::now();
        }
    }

    /// The key file of the service user, as the console offers it for download.
    pub(crate) fn key_file(&self) -> Value {
        let der = aws_lc_rs::encoding::AsDer::<aws_lc_rs::encoding::Pkcs8V1Der<'_>>::as_der(&self.shared.key).unwrap();
        let text = STANDARD.encode(der.as_ref());
        let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n"));
        json!({
            "type": "serviceaccount", "keyId": KEY_ID, "key": pem, "userId": SERVICE_USER,
            "expirationDate": "2050-01-01T00:00:00Z",
        })
    }
}

/// Why a call is refused, by the gRPC code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    InvalidArgument,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Unimplemented,
    Internal,
    Unavailable,
    Unauthenticated,
}

impl Code {
    fn parts(self) -> (u16, &'static str, u16) {
        match self {
            Self::InvalidArgument => (3, "invalid_argument", 400),
            Self::NotFound => (5, "not_found", 404),
            Self::AlreadyExists => (6, "already_exists", 409),
            Self::PermissionDenied => (7, "permission_denied", 403),
            Self::ResourceExhausted => (8, "resource_exhausted", 429),
            Self::FailedPrecondition => (9, "failed_precondition", 400),
            Self::Unimplemented => (12, "unimplemented", 501),
            Self::Internal => (13, "internal", 500),
            Self::Unavailable => (14, "unavailable", 503),
            Self::Unauthenticated => (16, "unauthenticated", 401),
        }
    }
}

/// A refusal: its code, Zitadel's id of it, and the text that nobody should rely on.
#[derive(Clone, Debug)]
pub(crate) struct Refusal(pub(crate) Code, pub(crate) &'static str, pub(crate) String);

pub(crate) fn refuse<T>(code: Code, id: &'static str, text: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal(code, id, text.into()))
}

/// Which of the two styles a call is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Rest,
    Connect,
}

impl Refusal {
    fn answer(&self, style: Style) -> Response {
        let Self(code, id, text) = self;
        let (number, name, status) = code.parts();
        let message = format!("{text} ({id})");
        let body = match style {
            Style::Rest => json!({
                "code": number, "message": message,
                "details": [{"@type": "type.googleapis.com/zitadel.v1.ErrorDetail", "id": id, "message": text}],
            }),
            Style::Connect => json!({
                "code": name, "message": message,
                "details": [{
                    "type": "zitadel.v1.ErrorDetail", "value": STANDARD_NO_PAD.encode(error_detail(id, text)),
                    "debug": {"id": id, "message": text},
                }],
            }),
        };
        // Connect has its own idea of two of them.
        let status = match (style, code) {
            (Style::Connect, Code::Unimplemented) => 501,
            _ => status,
        };
        (StatusCode::from_u16(status).unwrap(), Json(body)).into_response()
    }
}

/// `zitadel.v1.ErrorDetail { string id = 1; string message = 2; }`
fn error_detail(id: &str, message: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (tag, text) in [(0x0a, id), (0x12, message)] {
        bytes.push(tag);
        let mut length = text.len();
        while length > 0x7f {
            bytes.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
            length >>= 7;
        }
        bytes.push(u8::try_from(length).unwrap());
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes
}

impl Shared {
    /// Ends, unless it has stalled.
    async fn answers(&self) {
        if self.has_stalled() {
            std::future::pending::<()>().await;
        }
    }

    fn has_stalled(&self) -> bool {
        let mut knobs = lock(&self.knobs);
        let asked = lock(&self.asked);
        if let (Some(Stall::Path(end)), Some(last)) = (knobs.stall, asked.last())
            && last.path.ends_with(end)
        {
            knobs.stall = Some(Stall::Call(asked.len()));
        }
        matches!(knobs.stall, Some(Stall::Call(last)) if asked.len() >= last)
    }
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let path = uri.path().to_owned();
    match path.as_str() {
        "/.well-known/openid-configuration" => return Json(tokens::discovery(&shared.url)).into_response(),
        "/oauth/v2/keys" => return tokens::keys(&shared),
        "/oauth/v2/token" => return tokens::token(&shared, &headers, &body),
        "/oauth/v2/introspect" => return tokens::introspection(&shared, &headers, &body),
        _ => {}
    }
    let style = if path.starts_with("/zitadel.") { Style::Connect } else { Style::Rest };
    let organization = headers.get("x-zitadel-orgid").map(|value| value.to_str().unwrap().to_owned());
    shared.answers().await;
    let parsed = if body.is_empty() { Ok(json!({})) } else { serde_json::from_slice::<Value>(&body) };
    let parsed_body = parsed.unwrap_or(Value::Null);
    let response = judge(&shared, style, &method, &path, &headers, organization.as_deref(), &parsed_body);
    let (head, answer) = response.into_parts();
    let answer = axum::body::to_bytes(answer, usize::MAX).await.unwrap();
    lock(&shared.asked).push(Asked {
        method: method.to_string(),
        path,
        organization,
        body: parsed_body,
        status: head.status.as_u16(),
        answer: serde_json::from_slice(&answer).unwrap_or_default(),
    });
    shared.answers().await;
    Response::from_parts(head, answer.into())
}

fn judge(
    shared: &Shared,
    style: Style,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
    organization: Option<&str>,
    body: &Value,
) -> Response {
    let mut knobs = lock(&shared.knobs);
    if knobs.down {
        return Refusal(Code::Unavailable, "TEST-down0", "down".to_owned()).answer(style);
    }
    if knobs.throttle > 0 {
        knobs.throttle -= 1;
        let refusal = Refusal(Code::ResourceExhausted, "TEST-slow0", "too many requests".to_owned());
        return ([(header::RETRY_AFTER, "1")], refusal.answer(style)).into_response();
    }
    if !admitted(shared, headers) {
        return Refusal(Code::Unauthenticated, "AUTH-7fs1e", "invalid token".to_owned()).answer(style);
    }
    let knobs = knobs.clone();
    let v2 = path.starts_with("/zitadel.project.v2.") || path.starts_with("/zitadel.authorization.v2.");
    if v2 && knobs.without_v2 {
        return (StatusCode::NOT_FOUND, "404 page not found\n").into_response();
    }
    let fault = fault(shared, &knobs);
    if fault == Some(false) {
        return Refusal(Code::Unavailable, "TEST-fault", "fails before".to_owned()).answer(style);
    }
    if grants(method, path, body).is_some_and(|user| knobs.fail_grants_of.as_ref() == Some(&user)) {
        return Refusal(Code::Unavailable, "TEST-user0", "fails for this user".to_owned()).answer(style);
    }
    let mut world = lock(&shared.world);
    world.lag = knobs.lag;
    world.ghost_of = knobs.ghost_of;
    let outcome = match style {
        Style::Connect => management::connect(&mut world, path, body),
        Style::Rest => management::rest(&mut world, method.as_str(), path, organization, body),
    };
    if fault == Some(true) {
        return Refusal(Code::Internal, "TEST-fault", "fails after".to_owned()).answer(style);
    }
    match outcome {
        Ok(value) => Json(value).into_response(),
        Err(refusal) => refusal.answer(style),
    }
}

/// Whom a call grants something anew.
fn grants(method: &Method, path: &str, body: &Value) -> Option<String> {
    match path.strip_prefix("/management/v1/users/").and_then(|rest| rest.strip_suffix("/grants")) {
        Some(user) if method == Method::POST => Some(user.to_owned()),
        _ if path.ends_with("/CreateAuthorization") => body["userId"].as_str().map(str::to_owned),
        _ => None,
    }
}

/// Whether this call fails, and if so, whether after it was done.
fn fault(shared: &Shared, knobs: &Knobs) -> Option<bool> {
    let one_in = knobs.fail_one_in?;
    let mut calls = lock(&shared.calls);
    *calls += 1;
    calls.is_multiple_of(one_in).then(|| (*calls / one_in).is_multiple_of(2))
}

fn admitted(shared: &Shared, headers: &HeaderMap) -> bool {
    let presented = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    presented.is_some_and(|token| {
        token == TOKEN || lock(&shared.tokens).get(token).is_some_and(|until| *until > Instant::now())
    })
}
