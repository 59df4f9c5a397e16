//! The first reading of a request's headers.
//!
//! [`RequestHeaders::take`] strips what no client may send and reads the little that
//! clients may ask for. It comes before anything else looks at a header.
//!
//! Names are compared as an upstream might fold them: in lower case, `_` and `.`
//! as `-`. A name in such a disguise is only ever dropped, never read.

use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::context::Domain;
use crate::id::MAX_ID_BYTES;
use crate::problem::Problem;

/// What a client asked for in headers that never reach the upstream.
#[derive(Debug, Default)]
pub struct RequestHeaders {
    /// `x-alchemi-domain`
    pub domain: Option<Domain>,
    /// `x-alchemi-team-id`
    pub team_id: Option<Box<str>>,
    /// `x-alchemi-agent-id`
    pub agent_id: Option<Box<str>>,
    /// `x-alchemi-connection-id`
    pub connection_id: Option<Box<str>>,
    /// `x-account-id`
    pub account_id: Option<Box<str>>,
    /// `x-alchemi-explain: 1`
    pub explain: bool,
    /// The credential, if a well-formed one came.
    pub bearer: Option<Bearer>,
    /// Present headers that only a pass-through request keeps.
    callers_own: Vec<HeaderName>,
}

/// A caller's token. Its `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Bearer {
    value: HeaderValue,
    start: usize,
}

impl Bearer {
    /// The token itself.
    pub fn token(&self) -> &str {
        let token = self.value.as_bytes().get(self.start..).unwrap_or_default();
        std::str::from_utf8(token).unwrap_or_default()
    }

    /// Visible ASCII without spaces, after the scheme if the header has one (RFC 6750 section 2.1).
    fn read(value: &HeaderValue, with_scheme: bool) -> Option<Self> {
        let bytes = value.as_bytes();
        let token = if with_scheme {
            let (scheme, rest) = bytes.split_at_checked(memchr::memchr(b' ', bytes)?)?;
            let spaces = rest.iter().take_while(|byte| **byte == b' ').count();
            scheme.eq_ignore_ascii_case(b"bearer").then(|| rest.get(spaces..))??
        } else {
            bytes
        };
        // To the end, whatever is found: many bytes at a time. A token has a thousand.
        let visible = token.iter().fold(true, |visible, byte| visible & byte.is_ascii_graphic());
        (visible && !token.is_empty()).then(|| Self { value: value.clone(), start: bytes.len() - token.len() })
    }
}

impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bearer(…)")
    }
}

/// What a request header is to us.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// None of our business.
    Pass,
    /// Never passed on.
    Strip,
    /// Passed on only when the caller's own credential is.
    CallersOwn,
    /// A place for a token: 0 is `authorization`, then in order of precedence.
    Token(u8),
    /// Names further headers to strip.
    Connection,
    Ask(Ask),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ask {
    Domain,
    Team,
    Agent,
    Connection,
    Account,
    Explain,
}

fn classify(name: &str) -> Class {
    if let Some(rest) = name.strip_prefix("x-") {
        return classify_extension(rest);
    }
    match name {
        "authorization" => Class::Token(0),
        "api-key" => Class::Token(2),
        "connection" => Class::Connection,
        // Hop by hop (RFC 9110 section 7.6.1), framing, and what we have answered ourselves.
        "host"
        | "content-length"
        | "transfer-encoding"
        | "te"
        | "trailer"
        | "upgrade"
        | "keep-alive"
        | "expect"
        | "proxy-connection"
        | "proxy-authorization"
        | "proxy-authenticate"
        | "http2-settings"
        | "forwarded"
        | "baggage" => Class::Strip,
        // Other places where LiteLLM finds credentials or whom to charge, and what asks for less
        // than the whole answer, or for one in which usage could not be read.
        "cookie"
        | "accept-encoding"
        | "accept-charset"
        | "range"
        | "if-range"
        | "if-match"
        | "if-none-match"
        | "if-modified-since"
        | "if-unmodified-since"
        | "ocp-apim-subscription-key"
        | "openai-organization"
        | "openai-project" => Class::CallersOwn,
        // What the upstream would take for settings of its own.
        _ if ["litellm-", "llm-provider-", "langfuse-"].iter().any(|prefix| name.starts_with(prefix)) => Class::Strip,
        _ => Class::Pass,
    }
}

fn classify_extension(rest: &str) -> Class {
    match rest {
        "api-key" => Class::Token(1),
        "goog-api-key" => Class::CallersOwn,
        "request-id" | "real-ip" | "original-url" | "rewrite-url" | "user-id" => Class::Strip,
        "account-id" => Class::Ask(Ask::Account),
        "alchemi-domain" => Class::Ask(Ask::Domain),
        "alchemi-team-id" => Class::Ask(Ask::Team),
        "alchemi-agent-id" => Class::Ask(Ask::Agent),
        "alchemi-connection-id" => Class::Ask(Ask::Connection),
        "alchemi-explain" => Class::Ask(Ask::Explain),
        _ if ["alchemi-", "account", "litellm-", "forwarded", "mcp-", "pass-"]
            .iter()
            .any(|prefix| rest.starts_with(prefix)) =>
        {
            Class::Strip
        }
        _ => Class::Pass,
    }
}

/// The class of a name as it is spelled: disguises are stripped, not read.
fn class_of(name: &HeaderName) -> Class {
    let name = name.as_str();
    if !name.bytes().any(|byte| matches!(byte, b'_' | b'.')) {
        return classify(name);
    }
    let folded = name.replace(['_', '.'], "-");
    match classify(&folded) {
        Class::Ask(_) | Class::Connection => Class::Strip,
        Class::Token(_) => Class::CallersOwn,
        // What says how to read the body, the gateway has read in its own spelling alone.
        Class::Pass if folded.starts_with("content-") => Class::Strip,
        class => class,
    }
}

impl RequestHeaders {
    /// Strips and reads the headers of a request, in one pass.
    ///
    /// Removed from every request: context headers, `x-litellm-*`, `x-account*`,
    /// forwarding headers, and hop-by-hop headers with those that `Connection` names.
    /// The caller's credentials and cookies stay until the upstream's are set, because a
    /// pass-through request keeps them. Cookies are never read.
    ///
    /// # Errors
    /// 400 `invalid_header` for one of ours that is repeated, a list, or malformed;
    /// 400 `ambiguous_credentials` for tokens that differ.
    pub fn take(headers: &mut HeaderMap) -> Result<Self, Problem> {
        let mut taken = Self::default();
        let mut doomed = Vec::new();
        let mut precedence = u8::MAX;
        for (name, value) in &*headers {
            let class = class_of(name);
            match class {
                Class::Pass => continue,
                Class::CallersOwn => taken.callers_own.push(name.clone()),
                Class::Strip => doomed.push(name.clone()),
                Class::Connection => {
                    doomed.push(name.clone());
                    nominated(value, &mut doomed);
                }
                Class::Token(rank) => {
                    taken.callers_own.push(name.clone());
                    taken.offer(rank, value, &mut precedence)?;
                }
                Class::Ask(ask) => {
                    doomed.push(name.clone());
                    taken.read(ask, name, value)?;
                }
            }
        }
        for name in doomed {
            headers.remove(name);
        }
        Ok(taken)
    }

    /// Present headers that only a pass-through request keeps.
    pub(crate) fn callers_own(&self) -> &[HeaderName] {
        &self.callers_own
    }

    fn offer(&mut self, rank: u8, value: &HeaderValue, precedence: &mut u8) -> Result<(), Problem> {
        let Some(offered) = Bearer::read(value, rank == 0) else { return Ok(()) };
        if self.bearer.as_ref().is_some_and(|bearer| bearer.token() != offered.token()) {
            return Err(Problem::bad_request(
                "ambiguous_credentials",
                "The request brings several tokens that differ; send one, as Authorization: Bearer, x-api-key or api-key",
            ));
        }
        if rank < *precedence {
            *precedence = rank;
            self.bearer = Some(offered);
        }
        Ok(())
    }

    fn read(&mut self, ask: Ask, name: &HeaderName, value: &HeaderValue) -> Result<(), Problem> {
        let invalid = |expected: &str| Problem::bad_request("invalid_header", format!("Header {name} {expected}"));
        let text = value.to_str().unwrap_or_default();
        let one = (1..=MAX_ID_BYTES).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic() && b != b',');
        if !one {
            return Err(invalid("must be one value of 1 to 255 visible ASCII characters"));
        }
        let slot = match ask {
            Ask::Domain => {
                let domain = text.parse().map_err(|()| invalid("must be console or copilot"))?;
                return if self.domain.replace(domain).is_none() {
                    Ok(())
                } else {
                    Err(invalid("must not be repeated"))
                };
            }
            Ask::Explain => {
                self.explain = text == "1" || text.eq_ignore_ascii_case("true");
                return Ok(());
            }
            Ask::Team => &mut self.team_id,
            Ask::Agent => &mut self.agent_id,
            Ask::Connection => &mut self.connection_id,
            Ask::Account => &mut self.account_id,
        };
        if slot.replace(Box::from(text)).is_none() { Ok(()) } else { Err(invalid("must not be repeated")) }
    }
}

/// Adds the names that a `Connection` value nominates (RFC 9110 section 7.6.1).
pub(crate) fn nominated(value: &HeaderValue, doomed: &mut Vec<HeaderName>) {
    let value = value.as_bytes();
    if value.eq_ignore_ascii_case(b"keep-alive") || value.eq_ignore_ascii_case(b"close") {
        return;
    }
    let names = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    doomed.extend(names.filter_map(|name| HeaderName::from_bytes(name).ok()));
}
