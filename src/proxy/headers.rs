//! What goes on and out of header blocks.
//!
//! 1. [`RequestHeaders::take`] has stripped what no client may send and read the little
//!    that clients may ask for.
//! 2. [`ContextHeaders::set`] comes last before the upstream: it swaps the caller's
//!    credential for ours and tells, once, who is calling.
//! 3. [`answer`] strips what no client should learn from the upstream.

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::Deserialize;

use super::ingress::RequestId;
use super::signed::ContextSigner;
use crate::clock::Timestamp;
use crate::context::Domain;
use crate::layer::headers::{RequestHeaders, nominated};

/// Everything but letters, digits and common punctuation; `%` itself, so that
/// decoding is exact; `,` and `;`, so that lists stay lists.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'%').add(b',').add(b';').add(b'"').add(b'\\');

/// Who is calling, as the upstream is told: the same on each of their requests.
#[derive(Debug, Clone, Copy)]
pub struct CallerFacts<'a> {
    /// The account.
    pub account_id: &'a str,
    /// The token's subject.
    pub subject: &'a str,
    /// Roles that count.
    pub roles: &'a [String],
    /// Scopes of the token.
    pub scopes: &'a [String],
    /// Domains that the token allows.
    pub product_domains: &'a [String],
    /// The domain that they call for.
    pub domain: Domain,
    /// The org of the team.
    pub org_id: Option<&'a str>,
    /// The team that they call for.
    pub team_id: Option<&'a str>,
    /// The subject's user row.
    pub user_id: Option<&'a str>,
}

/// The headers that follow from [`CallerFacts`], written once and copied into each request.
#[derive(Debug, Clone)]
pub struct CallerHeaders(Vec<(HeaderName, HeaderValue)>);

impl CallerFacts<'_> {
    /// Writes the headers; with `litellm`, also whom LiteLLM is to book the request on.
    pub fn headers(&self, litellm: bool) -> CallerHeaders {
        let mut block = Block { text: BytesMut::with_capacity(768), headers: Vec::with_capacity(11) };
        block.set("x-alchemi-account-id", |text| encode(text, self.account_id));
        block.set("x-alchemi-subject", |text| encode(text, self.subject));
        block.set("x-alchemi-roles", |text| encode_list(text, self.roles));
        block.set("x-alchemi-scopes", |text| encode_list(text, self.scopes));
        block.set("x-alchemi-product-domains", |text| encode_list(text, self.product_domains));
        block.set("x-alchemi-domain", |text| encode(text, self.domain.as_str()));
        let places = [
            ("x-alchemi-org-id", self.org_id),
            ("x-alchemi-team-id", self.team_id),
            ("x-alchemi-user-id", self.user_id),
        ];
        for (name, value) in places.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            block.set(name, |text| encode(text, value));
        }
        if litellm {
            // LiteLLM books on the customer id before anything in the body.
            block.set(LITELLM_CUSTOMER, |text| {
                encode(text, self.account_id);
                text.put_u8(b':');
                encode(text, self.user_id.unwrap_or(self.subject));
            });
            block.set(LITELLM_TAGS, |text| self.write_tags(text));
        }
        CallerHeaders(block.headers)
    }

    fn write_tags(&self, text: &mut BytesMut) {
        text.put_slice(b"account:");
        encode(text, self.account_id);
        text.put_slice(b",domain:");
        text.put_slice(self.domain.as_str().as_bytes());
        let more = [(",org:", self.org_id), (",team:", self.team_id)];
        for (key, value) in more.into_iter().filter_map(|(key, value)| Some((key, value?))) {
            text.put_slice(key.as_bytes());
            encode(text, value);
        }
    }
}

/// What the upstream is told about a request. Set once, last.
#[derive(Debug, Clone, Copy)]
pub struct ContextHeaders<'a> {
    /// Who calls.
    pub facts: CallerFacts<'a>,
    /// The same, as headers.
    pub written: &'a CallerHeaders,
    /// The agent of this request.
    pub agent_id: Option<&'a str>,
    /// Whether a reservation pays for it; its id is the request's.
    pub reserved: bool,
    /// Signs the same as a token, if configured.
    pub signer: Option<&'a ContextSigner>,
    /// The time, for that token.
    pub now: Timestamp,
    /// The request.
    pub request_id: &'a RequestId,
    /// The value of `authorization` towards the upstream.
    pub credential: Option<&'a HeaderValue>,
    /// Whether to tell LiteLLM whom and what to book it on.
    pub litellm: bool,
}

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const LITELLM_CUSTOMER: &str = "x-litellm-customer-id";
const LITELLM_TAGS: &str = "x-litellm-tags";

impl ContextHeaders<'_> {
    /// Sets the context headers, the request id, `traceparent` and our credential, and
    /// removes what was the caller's own.
    ///
    /// A valid `traceparent` (W3C Trace Context) is kept; otherwise one is made from the
    /// request id, so that trace and request are found by each other.
    pub fn set(&self, headers: &mut HeaderMap, caller: &RequestHeaders) {
        for name in caller.callers_own() {
            headers.remove(name);
        }
        headers.reserve(20);
        if let Some(credential) = self.credential {
            headers.insert(header::AUTHORIZATION, credential.clone());
        }
        for (name, value) in &self.written.0 {
            headers.insert(name.clone(), value.clone());
        }
        let id = self.request_id.header_value();
        if self.litellm {
            // LiteLLM uses our id as its call id.
            headers.insert(HeaderName::from_static("x-litellm-call-id"), id.clone());
        }
        if self.reserved {
            headers.insert(HeaderName::from_static("x-alchemi-reservation-id"), id);
        }
        self.request_id.set(headers);
        self.set_rare(headers);
        self.set_trace(headers);
    }

    /// What few requests have.
    fn set_rare(&self, headers: &mut HeaderMap) {
        if let Some(signer) = self.signer
            && let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(signer.sign(self)))
        {
            headers.insert(HeaderName::from_static("x-alchemi-context"), value);
        }
        let Some(agent) = self.agent_id else { return };
        let mut block = Block { text: BytesMut::new(), headers: Vec::new() };
        block.set("x-alchemi-agent-id", |text| encode(text, agent));
        if self.litellm {
            block.set(LITELLM_TAGS, |text| {
                self.facts.write_tags(text);
                text.put_slice(b",agent:");
                encode(text, agent);
            });
        }
        for (name, value) in block.headers {
            headers.insert(name, value);
        }
    }

    fn set_trace(&self, headers: &mut HeaderMap) {
        let mut sent = headers.get_all(TRACEPARENT).iter();
        if let (Some(one), None) = (sent.next(), sent.next())
            && is_traceparent(one.as_bytes())
        {
            return;
        }
        headers.remove(TRACESTATE);
        if let Ok(value) = HeaderValue::from_bytes(&self.request_id.traceparent()) {
            headers.insert(TRACEPARENT, value);
        }
    }
}

/// Header values written one after another into one allocation.
struct Block {
    text: BytesMut,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Block {
    fn set(&mut self, name: &'static str, write: impl FnOnce(&mut BytesMut)) {
        write(&mut self.text);
        // What `encode` writes is always a header value.
        if let Ok(value) = HeaderValue::from_maybe_shared(self.text.split().freeze()) {
            self.headers.push((HeaderName::from_static(name), value));
        }
    }
}

fn encode(text: &mut BytesMut, value: &str) {
    for piece in utf8_percent_encode(value, ENCODED) {
        text.put_slice(piece.as_bytes());
    }
}

fn encode_list(text: &mut BytesMut, values: &[String]) {
    for (n, value) in values.iter().enumerate() {
        if n > 0 {
            text.put_u8(b',');
        }
        encode(text, value);
    }
}

/// W3C Trace Context, section 3.2: version, trace id, parent id, flags.
fn is_traceparent(value: &[u8]) -> bool {
    let mut fields = value.split(|byte| *byte == b'-');
    let mut field = |length: usize| {
        let lower_hex = |b: &u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        fields.next().filter(|text| text.len() == length && text.iter().all(lower_hex))
    };
    let (Some(version), Some(trace), Some(parent), Some(_)) = (field(2), field(32), field(16), field(2)) else {
        return false;
    };
    let some = |id: &[u8]| id.iter().any(|b| *b != b'0');
    version != b"ff" && some(trace) && some(parent) && (version != b"00" || value.len() == 55)
}

/// Response headers of the upstream that clients do not get to see.
///
/// Names in lower case; one that ends in `*` stands for all that start so.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Leaks(Vec<String>);

impl Leaks {
    /// These names.
    pub const fn new(names: Vec<String>) -> Self {
        Self(names)
    }

    /// None: for requests under the caller's own upstream credential.
    pub const fn none() -> Self {
        Self(Vec::new())
    }

    fn hold(&self, name: &str) -> bool {
        self.0.iter().any(|leak| match leak.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => name == leak,
        })
    }
}

/// LiteLLM's: where its providers are, and what our own key has spent and may spend.
impl Default for Leaks {
    fn default() -> Self {
        let names = [
            "x-litellm-model-api-base",
            "x-litellm-key-*",
            "llm_provider-set-cookie",
            "llm_provider-openai-organization",
            "llm_provider-openai-project",
            "set-cookie",
            "access-control-*",
        ];
        Self(names.map(str::to_owned).to_vec())
    }
}

/// What was decided about a request, as `x-alchemi-decision` says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// `allow`
    Allow,
    /// `allow;code=over_cap`: a budget's cap was passed, and `soft` enforcement lets it.
    OverCap,
    /// `allow;code=passthrough`: by nobody here; the caller's key is the upstream's to judge.
    PassThrough,
    /// `deny;code=…`
    Deny(&'static str),
}

impl Decision {
    /// The name of the header.
    pub const HEADER: HeaderName = HeaderName::from_static("x-alchemi-decision");

    /// Its value.
    pub fn header_value(self) -> HeaderValue {
        match self {
            Self::Allow => HeaderValue::from_static("allow"),
            Self::OverCap => HeaderValue::from_static("allow;code=over_cap"),
            Self::PassThrough => HeaderValue::from_static("allow;code=passthrough"),
            Self::Deny(code) => {
                HeaderValue::from_str(&format!("deny;code={code}")).unwrap_or_else(|_| HeaderValue::from_static("deny"))
            }
        }
    }
}

/// Makes the headers of an upstream's response those of our answer.
pub fn answer(headers: &mut HeaderMap, leaks: &Leaks, request_id: &RequestId, decision: Decision) {
    let mut doomed = Vec::new();
    for (name, value) in &*headers {
        match name.as_str() {
            "connection" => {
                doomed.push(name.clone());
                nominated(value, &mut doomed);
            }
            "keep-alive" | "proxy-authenticate" | "proxy-connection" | "te" | "trailer" | "transfer-encoding"
            | "upgrade" => doomed.push(name.clone()),
            text if text.starts_with("x-alchemi-") || leaks.hold(text) => doomed.push(name.clone()),
            _ => {}
        }
    }
    for name in doomed {
        headers.remove(name);
    }
    stamp(headers, request_id, decision);
}

/// Says what decided, one rule behind the other, as far as a header can.
pub fn explain(headers: &mut HeaderMap, trace: &[String]) {
    let text = trace.join("; ");
    let text = utf8_percent_encode(&text, CONTROLS).to_string();
    if let Ok(value) = HeaderValue::from_str(&text) {
        headers.insert(HeaderName::from_static("x-alchemi-trace"), value);
    }
}

/// Sets what every answer carries, refusals included.
pub fn stamp(headers: &mut HeaderMap, request_id: &RequestId, decision: Decision) {
    request_id.set(headers);
    headers.insert(Decision::HEADER, decision.header_value());
}
