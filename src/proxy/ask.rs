//! The body of a governed request, read once: what it asks for, and where its
//! bytes may be changed.
//!
//! The gateway decides on the model, the upstream runs it; so both must read the
//! same model out of the same bytes, whatever the sender wrote. Rules:
//! 1. JSON is a strict UTF-8 object without a byte order mark; no member of the
//!    outer object may stand twice, however its name is escaped.
//! 2. A multipart form is the plain form of RFC 7578 that every parser reads alike;
//!    a field that decides may not stand twice nor be a file.
//! 3. Every model that the upstream might run is named in [`Ask`]: `model` and all
//!    fallbacks. What steers the upstream in another way is refused.
//! 4. The body is never written anew: a change is spliced into the caller's bytes.

mod forbidden;
mod json;
mod multipart;
mod references;
mod splice;
mod texts;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use self::forbidden::ForbiddenFields;
pub use self::splice::{Splice, splice};
pub use self::texts::Texts;
use crate::metering::count::CountRules;
use crate::model::usage::RouteKind;
use crate::policy::Ask;
use crate::problem::Problem;

/// The longest name of a model, in bytes.
pub const MAX_MODEL: usize = 256;
/// The most models that a request may name beside its own.
pub const MAX_FALLBACKS: usize = 32;

/// Most answers that one request may ask for; no API gives more.
pub const MAX_ANSWERS: u64 = 128;

/// `n` or `best_of`, within bounds.
fn answers_asked(field: &'static str, asked: u64) -> Result<u64, AskError> {
    if asked <= MAX_ANSWERS {
        Ok(asked)
    } else {
        Err(AskError::InvalidField { field, expected: "must be at most 128" })
    }
}

/// What a body may hold and how its size is counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AskRules {
    /// Members that are refused wherever they would steer the upstream around the
    /// policy.
    pub forbidden_fields: ForbiddenFields,
    /// How text becomes tokens.
    pub count: CountRules,
}

/// A request's body, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedAsk {
    /// What the policy decides on.
    pub ask: Ask,
    /// Whether the client itself asked for usage in the stream.
    pub usage_asked: bool,
    /// The stored response that a Responses request continues; it must be the caller's.
    pub previous_response: Option<String>,
    edits: splice::Edits,
    /// Where the texts of a form stand.
    fields: Option<Vec<std::ops::Range<usize>>>,
}

impl ParsedAsk {
    /// The ask of a route that has no body.
    pub fn without_body(kind: RouteKind, model: Option<&str>) -> Self {
        let ask = Ask {
            kind,
            model: model.map(str::to_owned),
            fallbacks: Vec::new(),
            stream: false,
            size: crate::policy::AskSize::default(),
        };
        Self { ask, usage_asked: false, previous_response: None, edits: splice::Edits::default(), fields: None }
    }

    /// Whether the stream's usage chunk is to be withheld from the client, because
    /// [`forwarded`](Self::forwarded) asks for it and the client did not.
    pub fn withholds_usage(&self) -> bool {
        self.ask.stream && !self.usage_asked && matches!(self.ask.kind, RouteKind::Chat | RouteKind::Completion)
    }

    /// The changes that make the upstream report usage, and with `max_output` bound
    /// every answer to so many tokens.
    pub fn splices(&self, max_output: Option<u64>) -> Vec<Splice> {
        let mut splices = Vec::new();
        if self.withholds_usage() {
            splices.extend(self.edits.include_usage());
        }
        if let Some(bound) = max_output {
            splices.extend(self.edits.bound_output(bound));
        }
        splices
    }

    /// Where the texts of a form stand in its body; `None` for JSON.
    pub fn fields(&self) -> Option<&[std::ops::Range<usize>]> {
        self.fields.as_deref()
    }

    /// The body to forward: the caller's bytes with those changes. The same
    /// [`Bytes`], uncopied, when nothing changes. `body` is the one that was read.
    pub fn forwarded(&self, body: &Bytes, max_output: Option<u64>) -> Bytes {
        splice(body, self.splices(max_output))
    }
}

/// Why a body is refused. No message holds a value out of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// No JSON or multipart form, or one in a form that parsers could read differently.
    #[error("Send application/json in UTF-8, or multipart/form-data where the API takes files")]
    UnsupportedMediaType,
    /// Not JSON (RFC 8259) in UTF-8 from the first byte to the last.
    #[error("The body is not valid JSON at line {line}, column {column}")]
    InvalidJson {
        /// Counted from 1; 0 if unknown.
        line: usize,
        /// Counted from 1; 0 if unknown.
        column: usize,
    },
    /// Not UTF-8.
    #[error("The body is not valid UTF-8")]
    InvalidUtf8,
    /// JSON, but no object.
    #[error("The body must be a JSON object")]
    NotAnObject,
    /// Not a form that every parser reads alike.
    #[error("The multipart form is malformed: {0}")]
    InvalidForm(&'static str),
    /// A member that stands twice.
    #[error("Field `{0}` is given more than once; send it once")]
    DuplicateField(Box<str>),
    /// More members than any API has.
    #[error("The body has more than 256 fields; send fewer")]
    TooManyFields,
    /// A member that would steer the upstream around the policy.
    #[error("Field `{0}` is not allowed through this gateway; leave it out")]
    FieldNotAllowed(Box<str>),
    /// A member with a value that makes no sense.
    #[error("Field `{field}` {expected}")]
    InvalidField {
        /// Its name.
        field: &'static str,
        /// What it must be.
        expected: &'static str,
    },
    /// No model anywhere.
    #[error("Field `model` is required and must not be empty")]
    ModelRequired,
    /// Path and body name different models.
    #[error("The model in the path and field `model` differ; name one")]
    ModelMismatch,
}

impl AskError {
    /// The stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::InvalidJson { .. } | Self::InvalidUtf8 | Self::NotAnObject => "invalid_json",
            Self::InvalidForm(_) => "invalid_form",
            Self::DuplicateField(_) => "duplicate_field",
            Self::FieldNotAllowed(_) => "field_not_allowed",
            Self::InvalidField { .. } | Self::TooManyFields => "invalid_field",
            Self::ModelRequired => "model_required",
            Self::ModelMismatch => "model_mismatch",
        }
    }

    fn duplicate(field: &str) -> Self {
        Self::DuplicateField(shown(field))
    }
}

/// A name that a caller made up, short enough for a message.
fn shown(name: &str) -> Box<str> {
    name.chars().filter(|c| !c.is_control()).take(64).collect()
}

impl From<AskError> for Problem {
    fn from(error: AskError) -> Self {
        let status = match error {
            AskError::UnsupportedMediaType => http::StatusCode::UNSUPPORTED_MEDIA_TYPE,
            _ => http::StatusCode::BAD_REQUEST,
        };
        let problem = Self::new(status, error.code(), error.to_string());
        match &error {
            AskError::DuplicateField(field) | AskError::FieldNotAllowed(field) => problem.with("field", field),
            AskError::InvalidField { field, .. } => problem.with("field", field),
            AskError::ModelRequired | AskError::ModelMismatch => problem.with("field", "model"),
            _ => problem,
        }
    }
}

/// Reads the body of a governed request.
///
/// `path_model` is the model that the path names (`/engines/{model}`,
/// `/openai/deployments/{model}`), decoded. A body without a content type is JSON.
///
/// # Errors
/// [`AskError`], which becomes a [`Problem`] with status 400 or 415.
///
/// # Examples
/// ```
/// use alchemi::{model::usage::RouteKind, proxy::ask::{AskRules, read}};
///
/// let rules = AskRules::default();
/// let body = br#"{"model":"gpt-4o","messages":[{"role":"user","content":"hi"}],"max_tokens":9}"#;
/// let parsed = read(RouteKind::Chat, None, Some("application/json"), body, &rules)?;
/// assert_eq!(parsed.ask.model.as_deref(), Some("gpt-4o"));
/// assert_eq!((parsed.ask.size.input_tokens, parsed.ask.size.max_output), (5, Some(9)));
///
/// let twice = br#"{"model":"cheap","mod\u0065l":"dear"}"#;
/// assert_eq!(read(RouteKind::Chat, None, None, twice, &rules).unwrap_err().code(), "duplicate_field");
/// # Ok::<(), alchemi::proxy::ask::AskError>(())
/// ```
pub fn read(
    kind: RouteKind,
    path_model: Option<&str>,
    content_type: Option<&str>,
    body: &[u8],
    rules: &AskRules,
) -> Result<ParsedAsk, AskError> {
    match content_type.map_or(Ok(Form::Json), Form::of)? {
        Form::Json => read_json(kind, path_model, body, rules),
        Form::Multipart(boundary) if matches!(kind, RouteKind::Transcription | RouteKind::Images) => {
            read_multipart(kind, path_model, boundary, body, rules)
        }
        Form::Multipart(_) => Err(AskError::UnsupportedMediaType),
    }
}

/// Reads a JSON body; see [`read`].
///
/// # Errors
/// [`AskError`] for a body that breaks a rule of this module.
pub fn read_json(
    kind: RouteKind,
    path_model: Option<&str>,
    body: &[u8],
    rules: &AskRules,
) -> Result<ParsedAsk, AskError> {
    json::read(kind, path_model, body, rules)
}

/// Reads a multipart form with this boundary; see [`read`]. Its bytes are only
/// looked at: the form is forwarded as it came.
///
/// # Errors
/// [`AskError`] for a form that breaks a rule of this module.
pub fn read_multipart(
    kind: RouteKind,
    path_model: Option<&str>,
    boundary: &str,
    body: &[u8],
    rules: &AskRules,
) -> Result<ParsedAsk, AskError> {
    multipart::read(kind, path_model, boundary, body, rules)
}

/// How a body is written.
#[derive(Debug, PartialEq, Eq)]
enum Form<'a> {
    Json,
    Multipart(&'a str),
}

impl<'a> Form<'a> {
    /// Only types and parameters that leave one way to read the bytes: LiteLLM takes
    /// any type that contains `form` for a form, and decodes fields by `charset`.
    fn of(content_type: &'a str) -> Result<Self, AskError> {
        let mut parts = content_type.split(';').map(str::trim);
        let media_type = parts.next().unwrap_or_default();
        let multipart = media_type.eq_ignore_ascii_case("multipart/form-data");
        if !multipart && !media_type.eq_ignore_ascii_case("application/json") {
            return Err(AskError::UnsupportedMediaType);
        }
        let mut boundary = None;
        for parameter in parts {
            let (name, value) = parameter.split_once('=').ok_or(AskError::UnsupportedMediaType)?;
            let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
            if name.eq_ignore_ascii_case("charset") && value.eq_ignore_ascii_case("utf-8") {
                continue;
            }
            let first = multipart && name.eq_ignore_ascii_case("boundary") && boundary.is_none();
            if !first || !multipart::is_boundary(value) {
                return Err(AskError::UnsupportedMediaType);
            }
            boundary = Some(value);
        }
        match (multipart, boundary) {
            (false, _) => Ok(Self::Json),
            (true, Some(boundary)) => Ok(Self::Multipart(boundary)),
            (true, None) => Err(AskError::UnsupportedMediaType),
        }
    }
}

/// The model that path and body agree on.
fn agreed_model(path: Option<&str>, body: Option<String>) -> Result<String, AskError> {
    let model = match (path, body) {
        (Some(path), Some(body)) if path != body => return Err(AskError::ModelMismatch),
        (Some(path), _) => path.to_owned(),
        (None, Some(body)) => body,
        (None, None) => return Err(AskError::ModelRequired),
    };
    if model.is_empty() {
        return Err(AskError::ModelRequired);
    }
    one_model("model", model)
}

/// A name that the upstream takes for exactly one model: LiteLLM runs every part
/// of a list with commas.
fn one_model(field: &'static str, name: String) -> Result<String, AskError> {
    let invalid = |expected| Err(AskError::InvalidField { field, expected });
    if name.is_empty() || name.len() > MAX_MODEL {
        return invalid("must name a model in at most 256 bytes");
    }
    if name.contains(',') || name.chars().any(char::is_control) {
        return invalid("must name one model, without commas or control characters");
    }
    Ok(name)
}

/// The output that counts as asked for: kinds that answer with no text make none.
fn max_output(kind: RouteKind, asked: Option<u64>) -> Option<u64> {
    match kind {
        RouteKind::Embeddings | RouteKind::Moderations | RouteKind::Rerank | RouteKind::CountTokens => Some(0),
        _ => asked,
    }
}
