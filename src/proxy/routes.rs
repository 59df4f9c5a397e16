//! The governed route table: which requests run under our credential.
//!
//! Only what stands here is ever sent upstream with the gateway's own key. The
//! match is exact, on a path that [`ingress`](super::ingress) has normalised;
//! whatever else an upstream may make of a path, it is not governed.

use std::borrow::Cow;

use http::{Method, StatusCode, header};
use percent_encoding::percent_decode_str;

use crate::model::usage::RouteKind;
use crate::problem::Problem;

/// Prefixes of our own API, never forwarded, known path or not.
pub const CONTROL_PLANE: [&str; 11] = [
    "/v1/me",
    "/v1/accounts",
    "/v1/auth",
    "/v1/copilot",
    "/v1/console",
    "/v1/budgets",
    "/v1/features",
    "/v1/policy",
    "/v1/audit",
    "/v1/costs",
    "/.alchemi",
];

/// One line of the governed route table.
#[derive(Debug)]
pub struct Endpoint {
    /// What follows the prefix.
    pub tail: Tail,
    /// Methods that are governed.
    pub methods: &'static [Method],
    /// What is asked for.
    pub kind: RouteKind,
    /// Spellings beside `/{tail}` and `/v1/{tail}`.
    pub also: &'static [Prefix],
}

/// What follows the prefix of a governed path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// Exactly this.
    Is(&'static str),
    /// This, a slash, and the id of one thing; the id is one segment.
    Item(&'static str),
    /// This, a slash, and an id that may hold slashes, as names of models do.
    ItemPath(&'static str),
}

/// Prefixes of governed paths, as LiteLLM has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prefix {
    /// `/`
    Root,
    /// `/v1/`
    V1,
    /// `/v2/`
    V2,
    /// `/openai/v1/`; the rest of `/openai/` is LiteLLM's way around its own model list.
    OpenAiV1,
    /// `/engines/{model}/`; the model may hold slashes.
    Engines,
    /// `/openai/deployments/{model}/`; the model may hold slashes.
    Deployments,
}

const POST: &[Method] = &[Method::POST];
const GET: &[Method] = &[Method::GET];
const ITEM: &[Method] = &[Method::GET, Method::DELETE];
const NAMED: &[Prefix] = &[Prefix::Engines, Prefix::Deployments];

/// The table. Of two tails that fit, the longer one holds.
pub static ENDPOINTS: [Endpoint; 15] = [
    endpoint(POST, Tail::Is("chat/completions"), RouteKind::Chat, NAMED),
    endpoint(POST, Tail::Is("completions"), RouteKind::Completion, NAMED),
    endpoint(POST, Tail::Is("responses"), RouteKind::Responses, &[Prefix::OpenAiV1]),
    endpoint(ITEM, Tail::Item("responses"), RouteKind::ResponseItem, &[Prefix::OpenAiV1]),
    endpoint(POST, Tail::Is("messages"), RouteKind::Messages, &[]),
    endpoint(POST, Tail::Is("messages/count_tokens"), RouteKind::CountTokens, &[]),
    endpoint(POST, Tail::Is("embeddings"), RouteKind::Embeddings, NAMED),
    endpoint(POST, Tail::Is("images/generations"), RouteKind::Images, &[Prefix::Deployments]),
    endpoint(POST, Tail::Is("images/edits"), RouteKind::Images, &[Prefix::Deployments]),
    endpoint(POST, Tail::Is("audio/speech"), RouteKind::Speech, &[]),
    endpoint(POST, Tail::Is("audio/transcriptions"), RouteKind::Transcription, &[]),
    endpoint(POST, Tail::Is("moderations"), RouteKind::Moderations, &[]),
    endpoint(POST, Tail::Is("rerank"), RouteKind::Rerank, &[Prefix::V2]),
    endpoint(GET, Tail::Is("models"), RouteKind::Models, &[]),
    endpoint(GET, Tail::ItemPath("models"), RouteKind::Models, &[]),
];

const fn endpoint(methods: &'static [Method], tail: Tail, kind: RouteKind, also: &'static [Prefix]) -> Endpoint {
    Endpoint { tail, methods, kind, also }
}

/// Where a request belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route<'p> {
    /// Under our credential, after the whole pipeline.
    Governed(Governed<'p>),
    /// A governed path with a method that it does not have.
    MethodNotAllowed {
        /// What is asked for there.
        kind: RouteKind,
        /// The methods that it has.
        allow: &'static [Method],
    },
    /// Ours to answer; never forwarded.
    ControlPlane,
    /// Nothing of ours: only with the caller's own upstream credential.
    Ungoverned,
}

impl Route<'_> {
    /// What is asked for on a governed path, whatever the method.
    pub fn kind(&self) -> Option<RouteKind> {
        match self {
            Self::Governed(governed) => Some(governed.kind),
            Self::MethodNotAllowed { kind, .. } => Some(*kind),
            Self::ControlPlane | Self::Ungoverned => None,
        }
    }
}

/// A governed request, as far as its path tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Governed<'p> {
    /// What is asked for.
    pub kind: RouteKind,
    /// The model that the path names. For LiteLLM it outranks the body's: a body
    /// that names another must be refused.
    pub model: Option<Cow<'p, str>>,
    /// The id of the response or model that the path names.
    pub item: Option<Cow<'p, str>>,
}

/// Finds the route of a request.
///
/// `path` must be normalised ([`normalise`](super::ingress::normalise)).
///
/// ```
/// use alchemi::proxy::routes::{Route, route};
/// use http::Method;
///
/// assert!(matches!(route(&Method::POST, "/v1/chat/completions"), Route::Governed(_)));
/// assert!(matches!(route(&Method::GET, "/v1/accounts/7/nowhere"), Route::ControlPlane));
/// assert!(matches!(route(&Method::POST, "/key/generate"), Route::Ungoverned));
/// ```
pub fn route<'p>(method: &Method, path: &'p str) -> Route<'p> {
    let governed = match split(path) {
        Some((prefix @ (Prefix::Engines | Prefix::Deployments), rest)) => named(method, prefix, rest),
        Some((prefix, tail)) => plain(method, prefix, tail),
        None => None,
    };
    governed.unwrap_or_else(|| if is_control_plane(path) { Route::ControlPlane } else { Route::Ungoverned })
}

/// 405 with the methods that the path has.
pub fn method_not_allowed(allow: &[Method]) -> Problem {
    let allow = allow.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
    let detail = format!("This path takes {allow}");
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail).with_header(header::ALLOW, &allow)
}

fn split(path: &str) -> Option<(Prefix, &str)> {
    let rest = path.strip_prefix('/')?;
    if let Some(tail) = rest.strip_prefix("v1/") {
        return Some((Prefix::V1, tail));
    }
    let prefixes = [
        ("openai/deployments/", Prefix::Deployments),
        ("engines/", Prefix::Engines),
        ("openai/v1/", Prefix::OpenAiV1),
        ("v2/", Prefix::V2),
    ];
    let found = prefixes.into_iter().find_map(|(text, prefix)| Some((prefix, rest.strip_prefix(text)?)));
    Some(found.unwrap_or((Prefix::Root, rest)))
}

impl Endpoint {
    fn has(&self, prefix: Prefix) -> bool {
        matches!(prefix, Prefix::Root | Prefix::V1) || self.also.contains(&prefix)
    }
}

/// A path whose prefix names no model.
fn plain<'p>(method: &Method, prefix: Prefix, tail: &'p str) -> Option<Route<'p>> {
    for endpoint in ENDPOINTS.iter().filter(|e| e.has(prefix)) {
        let item = match endpoint.tail {
            Tail::Is(text) if text == tail => None,
            Tail::Is(_) => continue,
            Tail::Item(text) | Tail::ItemPath(text) => match item(tail, text) {
                Some(id) if matches!(endpoint.tail, Tail::ItemPath(_)) || !id.contains('/') => Some(id),
                _ => continue,
            },
        };
        if endpoint.methods.contains(method) {
            return Some(Route::Governed(Governed { kind: endpoint.kind, model: None, item: decoded(item)? }));
        }
        // Beside an item, LiteLLM has paths of other methods that are not governed.
        return item.is_none().then_some(Route::MethodNotAllowed { kind: endpoint.kind, allow: endpoint.methods });
    }
    None
}

/// A path with a model between its prefix and its tail.
fn named<'p>(method: &Method, prefix: Prefix, rest: &'p str) -> Option<Route<'p>> {
    let (endpoint, model) = ENDPOINTS
        .iter()
        .filter(|e| e.has(prefix))
        .filter_map(|e| match e.tail {
            Tail::Is(text) => Some((
                e,
                rest.strip_suffix(text)?
                    .strip_suffix('/')
                    .filter(|model| !model.is_empty() && !model.starts_with('/'))?,
            )),
            Tail::Item(_) | Tail::ItemPath(_) => None,
        })
        .min_by_key(|(_, model)| model.len())?;
    if !endpoint.methods.contains(method) {
        return Some(Route::MethodNotAllowed { kind: endpoint.kind, allow: endpoint.methods });
    }
    Some(Route::Governed(Governed { kind: endpoint.kind, model: decoded(Some(model))?, item: None }))
}

fn item<'p>(tail: &'p str, collection: &str) -> Option<&'p str> {
    tail.strip_prefix(collection)?.strip_prefix('/').filter(|id| !id.is_empty() && !id.ends_with('/'))
}

/// The text that the upstream decodes from this part of the path.
fn decoded(part: Option<&str>) -> Option<Option<Cow<'_, str>>> {
    part.map(|text| percent_decode_str(text).decode_utf8().ok()).map_or(Some(None), |text| text.map(Some))
}

fn is_control_plane(path: &str) -> bool {
    CONTROL_PLANE.iter().any(|prefix| {
        path.split_at_checked(prefix.len()).is_some_and(|(start, rest)| {
            start.eq_ignore_ascii_case(prefix) && (rest.is_empty() || rest.starts_with('/'))
        })
    })
}
