//! What Zitadel says when it says no.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::GeneralPurpose;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use http::StatusCode;
use serde_json::Value;

/// Why Zitadel refuses, by the gRPC code that every style of its API carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The request is not valid.
    InvalidArgument,
    /// What it names is not there, or not to be seen with these credentials.
    NotFound,
    /// It is there already.
    AlreadyExists,
    /// The credentials do not allow it.
    PermissionDenied,
    /// The credentials are not valid.
    Unauthenticated,
    /// The state does not allow it.
    FailedPrecondition,
    /// There is no such method.
    Unimplemented,
    /// Any other.
    Other,
}

impl Code {
    /// The name, as Connect writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid_argument",
            Self::NotFound => "not_found",
            Self::AlreadyExists => "already_exists",
            Self::PermissionDenied => "permission_denied",
            Self::Unauthenticated => "unauthenticated",
            Self::FailedPrecondition => "failed_precondition",
            Self::Unimplemented => "unimplemented",
            Self::Other => "refused",
        }
    }

    fn of_name(name: &str) -> Self {
        const ALL: [Code; 7] = [
            Code::InvalidArgument,
            Code::NotFound,
            Code::AlreadyExists,
            Code::PermissionDenied,
            Code::Unauthenticated,
            Code::FailedPrecondition,
            Code::Unimplemented,
        ];
        ALL.into_iter().find(|code| code.as_str() == name).unwrap_or(Self::Other)
    }

    fn of_number(number: u64) -> Self {
        match number {
            3 => Self::InvalidArgument,
            5 => Self::NotFound,
            6 => Self::AlreadyExists,
            7 => Self::PermissionDenied,
            9 => Self::FailedPrecondition,
            12 => Self::Unimplemented,
            16 => Self::Unauthenticated,
            _ => Self::Other,
        }
    }

    fn of_status(status: StatusCode) -> Self {
        match status.as_u16() {
            400 => Self::InvalidArgument,
            401 => Self::Unauthenticated,
            403 => Self::PermissionDenied,
            404 | 405 | 501 => Self::Unimplemented,
            409 => Self::AlreadyExists,
            _ => Self::Other,
        }
    }
}

/// Why a call came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There are no credentials.
    #[error("Zitadel management client is not configured")]
    NotConfigured,
    /// Zitadel takes the credentials for no token.
    #[error("Zitadel does not accept the credentials of [zitadel] ({0})")]
    Credential(TokenRefusal),
    /// Zitadel refuses the call.
    #[error("Zitadel refused: {code}{id}", code = .code.as_str())]
    Refused {
        /// Why.
        code: Code,
        /// Zitadel's own id of the reason.
        id: ErrorId,
    },
    /// Too many calls.
    #[error("Zitadel asks for fewer calls")]
    Throttled(Option<Duration>),
    /// Zitadel failed.
    #[error("Zitadel failed with status {status}")]
    Failed {
        /// The status.
        status: u16,
        /// How long it asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// No connection, or it broke.
    #[error("Zitadel cannot be reached")]
    Unreachable,
    /// Too slow.
    #[error("Zitadel did not answer in time")]
    Timeout,
    /// The answer cannot be read.
    #[error("Zitadel answered what cannot be read")]
    Malformed,
    /// The answer is larger than is read, and would be so again.
    #[error("Zitadel answered more than is read")]
    TooLarge,
}

/// What the token endpoint says (RFC 6749 section 5.2), if it is a word of that kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRefusal(String);

/// Zitadel's id of an error, such as `V3-DKcYh`, or a slug such as `user.already_exists`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ErrorId(Option<Box<str>>);

impl fmt::Display for TokenRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ErrorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |id| write!(f, " ({id})"))
    }
}

impl ErrorId {
    /// The id, if there is one and it is short and plain: it comes from outside.
    fn checked(text: &str) -> Self {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
        Self(((1..=64).contains(&text.len()) && text.bytes().all(plain)).then(|| text.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or_default()
    }
}

/// That what was asked for is so already: v1 refuses an update that changes nothing.
const NOT_CHANGED: [&str; 4] = ["COMMAND-Rs8fy", "COMMAND-5M0cs", "COMMAND-0o0pL", "PROJECT-0o0pL"];

impl Error {
    /// Whether what was to be made is there.
    pub fn already_exists(&self) -> bool {
        self.is(Code::AlreadyExists)
    }

    /// Whether what was named is not there.
    pub fn not_found(&self) -> bool {
        self.is(Code::NotFound)
    }

    /// What is no id names nothing.
    pub(super) fn no_such_id() -> Self {
        Self::Refused { code: Code::NotFound, id: ErrorId::default() }
    }

    fn is(&self, wanted: Code) -> bool {
        matches!(self, Self::Refused { code, .. } if *code == wanted)
    }

    pub(super) fn not_changed(&self) -> bool {
        matches!(self, Self::Refused { id, .. } if NOT_CHANGED.contains(&id.as_str()))
    }

    /// Whether the same call may succeed later, with nothing changed by anybody.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Throttled(_) | Self::Failed { .. } | Self::Unreachable | Self::Timeout | Self::Malformed)
    }

    /// Whether a write may have been done all the same: its answer is lost. What Zitadel itself
    /// says that it has failed at, the next look tells.
    pub const fn is_ambiguous(&self) -> bool {
        matches!(
            self,
            Self::Unreachable
                | Self::Timeout
                | Self::Malformed
                | Self::TooLarge
                | Self::Failed { status: 502 | 504, .. }
        )
    }

    /// How long Zitadel asks to be left alone.
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Throttled(pause) | Self::Failed { retry_after: pause, .. } => *pause,
            _ => None,
        }
    }

    /// A stable word for programs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotConfigured => "zitadel_not_configured",
            Self::Credential(_) => "zitadel_credential_refused",
            Self::Refused { code, .. } => code.as_str(),
            Self::Throttled(_) => "zitadel_throttled",
            Self::Failed { .. } | Self::Unreachable | Self::Timeout | Self::Malformed | Self::TooLarge => {
                "zitadel_unavailable"
            }
        }
    }

    /// Reads a refusal in either style: `{"code":6,"details":[{"id":…}]}` of v1 and REST,
    /// `{"code":"already_exists","details":[{"value":…,"debug":{…}}]}` of Connect.
    pub(super) fn read(status: StatusCode, retry_after: Option<Duration>, body: &[u8]) -> Self {
        if status == StatusCode::TOO_MANY_REQUESTS {
            return Self::Throttled(retry_after);
        }
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let code = match body.get("code") {
            Some(Value::String(name)) => Code::of_name(name),
            Some(Value::Number(number)) => Code::of_number(number.as_u64().unwrap_or_default()),
            _ => Code::of_status(status),
        };
        if status.is_server_error() && code != Code::Unimplemented {
            return Self::Failed { status: status.as_u16(), retry_after };
        }
        let details = body.get("details").and_then(Value::as_array).into_iter().flatten();
        let id = details.filter_map(detail_id).next().map(|id| ErrorId::checked(&id)).unwrap_or_default();
        Self::Refused { code, id }
    }

    pub(super) fn of_token(body: &[u8]) -> Self {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let word = body.get("error").and_then(Value::as_str).unwrap_or_default();
        let plain = word.len() <= 64 && !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        Self::Credential(TokenRefusal(if plain { word } else { "refused" }.to_owned()))
    }
}

fn detail_id(detail: &Value) -> Option<String> {
    let places = ["/slug", "/id", "/debug/slug", "/debug/id"];
    let named = places.into_iter().find_map(|place| detail.pointer(place)?.as_str().map(str::to_owned));
    named.or_else(|| first_text(detail.get("value")?.as_str()?))
}

/// The first field of a protobuf message in base64, if it is a short text: id and slug are.
fn first_text(value: &str) -> Option<String> {
    const LENIENT: GeneralPurpose = STANDARD_NO_PAD;
    let bytes = LENIENT.decode(value.trim_end_matches('=')).ok()?;
    let (tag, length) = (*bytes.first()?, usize::from(*bytes.get(1)?));
    let text = bytes.get(2..length.checked_add(2)?)?;
    (tag == 0x0a && length < 0x80).then(|| String::from_utf8(text.to_vec()).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(status: u16, body: &str) -> Error {
        Error::read(StatusCode::from_u16(status).unwrap(), None, body.as_bytes())
    }

    fn failed(status: u16) -> Error {
        Error::Failed { status, retry_after: None }
    }

    fn refused(code: Code, id: &str) -> Error {
        Error::Refused { code, id: ErrorId::checked(id) }
    }

    #[test]
    fn codes_and_ids_are_read_in_each_style() {
        let v1 = r#"{"code":5,"message":"User grant not found (QUERY-wIPkA)","details":[{"@type":"type.googleapis.com/zitadel.v1.ErrorDetail","id":"QUERY-wIPkA","message":"User grant not found"}]}"#;
        assert_eq!(read(404, v1), refused(Code::NotFound, "QUERY-wIPkA"));
        let debug = r#"{"code":"already_exists","message":"x","details":[{"type":"zitadel.v1.ErrorDetail","debug":{"id":"V3-DKcYh"}}]}"#;
        assert_eq!(read(409, debug), refused(Code::AlreadyExists, "V3-DKcYh"));
        // Without `debug`, which is for people: field 1 of the message.
        let value =
            r#"{"code":"already_exists","details":[{"type":"zitadel.v1.ErrorDetail","value":"CghWMy1ES2NZaBIBeA"}]}"#;
        assert_eq!(read(409, value), refused(Code::AlreadyExists, "V3-DKcYh"));
        let slug = r#"{"code":"already_exists","details":[{"debug":{"slug":"user.already_exists"}}]}"#;
        assert_eq!(read(409, slug), refused(Code::AlreadyExists, "user.already_exists"));
        assert_eq!(read(400, r#"{"code":9}"#), refused(Code::FailedPrecondition, ""));
        assert_eq!(read(404, "404 page not found"), refused(Code::Unimplemented, ""));
        assert_eq!(read(404, r#"{"code":"not_found"}"#), refused(Code::NotFound, ""));
        assert_eq!(read(500, r#"{"code":13}"#), failed(500));
        assert_eq!(read(501, r#"{"code":"unimplemented"}"#), refused(Code::Unimplemented, ""));
        assert_eq!(read(429, "slow"), Error::Throttled(None));
    }

    #[test]
    fn a_lost_answer_is_no_refusal() {
        for lost in [Error::Unreachable, Error::Timeout, Error::Malformed, failed(502), failed(504)] {
            assert!(lost.is_ambiguous() && lost.is_transient(), "{lost}");
        }
        assert!(Error::TooLarge.is_ambiguous() && !Error::TooLarge.is_transient());
        let refusals = [refused(Code::FailedPrecondition, ""), Error::Throttled(None), failed(503)];
        for said in refusals.into_iter().chain([Error::NotConfigured, Error::of_token(b"{}")]) {
            assert!(!said.is_ambiguous(), "{said}");
        }
    }

    #[test]
    fn texts_of_others_are_not_passed_on() {
        let body = r#"{"code":6,"message":"secret <b>","details":[{"id":"<script>"}]}"#;
        assert_eq!(read(409, body).to_string(), "Zitadel refused: already_exists");
        assert_eq!(Error::of_token(br#"{"error":"Bearer abc"}"#).to_string().matches("abc").count(), 0);
    }
}
