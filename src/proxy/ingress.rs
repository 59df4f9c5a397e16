//! The first look at a request: its path, its host, its id, and where it came from.
//!
//! 1. [`normalise`] decodes the path exactly once; what could mean something else
//!    to the next reader is refused. The same bytes are routed and sent upstream.
//! 2. Exactly one `Host`, a plain authority, equal to that of the target if it has one.
//! 3. The request id is ours; the client's own is kept beside it.
//! 4. Forwarding headers are believed from trusted proxies alone.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version, header};
use ipnet::IpNet;

use crate::clock::Timestamp;
use crate::id::IdSource;
use crate::problem::Problem;

/// `x-request-id`: the client's on the way in, ours on the way out.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(super) const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(super) const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(super) const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Longest path and query, in bytes.
pub const MAX_TARGET: usize = 16 * 1024;

/// Longest correlation id that is kept, in bytes.
pub const MAX_CORRELATION_ID: usize = 128;

/// `x-correlation-id`: the client's own `x-request-id`, on the way out.
pub const CORRELATION_ID: HeaderName = HeaderName::from_static("x-correlation-id");

/// The id of one request: UUIDv7 text, and beside it the client's own.
#[derive(Clone, PartialEq, Eq)]
pub struct RequestId {
    uuid: uuid::Uuid,
    text: Arc<str>,
    value: HeaderValue,
    correlation: Option<HeaderValue>,
}

impl RequestId {
    /// A fresh one.
    pub fn new(ids: &dyn IdSource, now: Timestamp) -> Self {
        let mut buffer = uuid::Uuid::encode_buffer();
        let uuid = ids.uuid(now);
        let text: &str = uuid.hyphenated().encode_lower(&mut buffer);
        let value = HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("-"));
        Self { uuid, text: Arc::from(text), value, correlation: None }
    }

    /// With the id that the client gave it.
    #[must_use]
    pub fn correlated(self, correlation: Option<HeaderValue>) -> Self {
        Self { correlation, ..self }
    }

    /// The client's own id.
    pub fn correlation(&self) -> Option<&str> {
        self.correlation.as_ref().and_then(|value| value.to_str().ok())
    }

    /// Sets both ids, of an answer or of what is forwarded.
    pub fn set(&self, headers: &mut HeaderMap) {
        headers.insert(REQUEST_ID, self.value.clone());
        if let Some(correlation) = &self.correlation {
            headers.insert(CORRELATION_ID, correlation.clone());
        }
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Its text, shared.
    pub fn text(&self) -> Arc<str> {
        Arc::clone(&self.text)
    }

    /// As a `traceparent` (W3C Trace Context, section 3.2): the trace id is this id, the parent id its second half.
    pub(super) fn traceparent(&self) -> [u8; 55] {
        let mut value = *b"00-tttttttttttttttttttttttttttttttt-pppppppppppppppp-00";
        self.uuid.simple().encode_lower(&mut value[3..35]);
        value.copy_within(19..35, 36);
        value
    }

    /// As the value of `x-request-id`.
    pub fn header_value(&self) -> HeaderValue {
        self.value.clone()
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its address.
    pub ip: IpAddr,
    /// Whether our listener speaks TLS with it.
    pub tls: bool,
}

/// Where a request came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// The client's address; behind trusted proxies, the first one that is none of them.
    pub client_ip: IpAddr,
    /// Whether the client used TLS.
    pub https: bool,
    /// The authority that the client asked.
    pub host: HeaderValue,
    /// The client's own `x-request-id`, if it is at most 128 visible ASCII characters.
    pub correlation_id: Option<HeaderValue>,
}

impl Arrival {
    /// Tells the upstream where the request came from, in `x-forwarded-*`.
    pub fn forward(&self, headers: &mut HeaderMap) {
        if let Ok(ip) = HeaderValue::from_str(&self.client_ip.to_string()) {
            headers.insert(FORWARDED_FOR, ip);
        }
        let proto = HeaderValue::from_static(if self.https { "https" } else { "http" });
        headers.insert(FORWARDED_PROTO, proto);
        headers.insert(FORWARDED_HOST, self.host.clone());
    }
}

/// Lets a request in, with its target in normal form, or refuses it.
///
/// Afterwards `request.uri().path()` is the path to route by and to send upstream.
///
/// # Errors
/// 400 `invalid_path`, `invalid_host` or `body_not_allowed`; 414 `uri_too_long`.
pub fn admit<B>(request: &mut Request<B>, peer: Peer, trusted: &TrustedProxies) -> Result<Arrival, Problem> {
    if request.method() == Method::CONNECT {
        // Parsers make of its target what they like: an empty path, or `/`.
        return Err(Problem::bad_request("invalid_path", "CONNECT asks for a tunnel, and there are none here"));
    }
    let normal = check_target(request.uri())?;
    if let Some(normal) = normal {
        *request.uri_mut() = normal;
    }
    let host = check_host(request)?;
    check_bodiless(request)?;
    let headers = request.headers();
    let correlation_id = headers.get(REQUEST_ID).filter(|value| is_correlation_id(value.as_bytes())).cloned();
    let direct = Arrival { client_ip: peer.ip.to_canonical(), https: peer.tls, host, correlation_id };
    Ok(if trusted.contains(direct.client_ip) { trusted.look_behind(headers, direct) } else { direct })
}

fn is_correlation_id(value: &[u8]) -> bool {
    (1..=MAX_CORRELATION_ID).contains(&value.len()) && value.iter().all(u8::is_ascii_graphic)
}

/// A request without a use for a body brings none (another parser may not read it).
fn check_bodiless<B>(request: &Request<B>) -> Result<(), Problem> {
    if !matches!(*request.method(), Method::GET | Method::HEAD | Method::TRACE) {
        return Ok(());
    }
    let headers = request.headers();
    let empty = headers.get(header::CONTENT_LENGTH).is_none_or(|length| length == "0");
    if empty && !headers.contains_key(header::TRANSFER_ENCODING) {
        return Ok(());
    }
    Err(Problem::bad_request("body_not_allowed", format!("A {} request takes no body", request.method())))
}

// ---- path

/// Why a path is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Not of the form `/a/b`.
    #[error("The request target must be an absolute path")]
    NotAbsolute,
    /// `//`, `.` or `..`, raw or encoded.
    #[error("The path must not hold empty or dot segments")]
    Segment,
    /// A character that a path cannot hold as it is.
    #[error("The path holds a character that must be percent-encoded or left out, such as `;` or `\\`")]
    Character,
    /// `%` without two hexadecimal digits, or bytes that are not UTF-8.
    #[error("The path is not valid percent-encoded UTF-8")]
    Encoding,
    /// An encoded delimiter or control character.
    #[error("The path must not hold an encoded slash, backslash, percent sign, delimiter or control character")]
    Encoded,
}

impl From<PathError> for Problem {
    fn from(error: PathError) -> Self {
        Self::bad_request("invalid_path", error.to_string())
    }
}

/// The normal form of a target, if it differs from what was sent.
fn check_target(uri: &Uri) -> Result<Option<Uri>, Problem> {
    let target = uri.path_and_query().ok_or(PathError::NotAbsolute)?;
    if target.as_str().len() > MAX_TARGET {
        let detail = format!("The path and query are longer than {MAX_TARGET} bytes");
        return Err(Problem::new(StatusCode::URI_TOO_LONG, "uri_too_long", detail));
    }
    if !target.as_str().is_ascii() {
        return Err(PathError::Character.into());
    }
    let Cow::Owned(path) = normalise(target.path())? else { return Ok(None) };
    let normal = match target.query() {
        Some(query) => format!("{path}?{query}"),
        None => path,
    };
    let normal = PathAndQuery::try_from(normal).map_err(|_| PathError::Character)?;
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(normal);
    Ok(Some(Uri::from_parts(parts).map_err(|_| PathError::Character)?))
}

/// Parameters that the APIs define for governed routes and that decide nothing.
const KNOWN_PARAMETERS: [&str; 5] = ["beta", "include", "include[]", "include%5B%5D", "starting_after"];

/// The target of a governed request without parameters that the policy has not read:
/// LiteLLM takes `?model=` before the body's model. An API version, as Azure's SDK
/// sends it, is dropped like everything else that is not known.
pub fn governed_target(uri: &Uri) -> Option<Uri> {
    let query = uri.query()?;
    let known = |parameter: &&str| KNOWN_PARAMETERS.contains(&parameter.split('=').next().unwrap_or_default());
    let kept: Vec<&str> = query.split('&').filter(known).collect();
    let target = if kept.is_empty() { uri.path().to_owned() } else { format!("{}?{}", uri.path(), kept.join("&")) };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(target).ok()?);
    Uri::from_parts(parts).ok()
}

/// Decodes and normalises a path once (RFC 3986 section 6.2.2).
///
/// Encoded unreserved characters are decoded, other escapes get upper-case digits.
/// A path that holds anything which a second reader may decode, merge or cut at is
/// refused instead of being repaired.
///
/// ```
/// use alchemi::proxy::ingress::normalise;
///
/// assert_eq!(normalise("/v1/ch%61t/completions").unwrap(), "/v1/chat/completions");
/// assert_eq!(normalise("/v1/models/caf%c3%a9").unwrap(), "/v1/models/caf%C3%A9");
/// assert!(normalise("/v1//chat").is_err());
/// assert!(normalise("/v1/%2e%2e/key").is_err());
/// assert!(normalise("/v1/a%252fb").is_err());
/// ```
///
/// # Errors
/// [`PathError`] says what is wrong.
pub fn normalise(path: &str) -> Result<Cow<'_, str>, PathError> {
    if !path.starts_with('/') {
        return Err(PathError::NotAbsolute);
    }
    let mut escaped = false;
    let mut suspect = false;
    let mut previous = 0;
    for &byte in path.as_bytes() {
        match CLASS.get(usize::from(byte)) {
            Some(Class::Plain) => {}
            Some(Class::Delimiter) => suspect |= previous == b'/',
            Some(Class::Escape) => escaped = true,
            Some(Class::Refused) | None => return Err(PathError::Character),
        }
        previous = byte;
    }
    let normal = if escaped { Cow::Owned(decode(path)?) } else { Cow::Borrowed(path) };
    if (escaped || suspect) && has_odd_segment(&normal) {
        return Err(PathError::Segment);
    }
    Ok(if *normal == *path { Cow::Borrowed(path) } else { normal })
}

#[derive(Clone, Copy)]
enum Class {
    Plain,
    /// `/` or `.`: harmless unless it follows a `/`.
    Delimiter,
    Escape,
    Refused,
}

/// What each byte is in a path: `pchar` of RFC 3986 without `;`.
static CLASS: [Class; 256] = {
    let mut table = [Class::Refused; 256];
    let mut byte = 0;
    while byte < 256 {
        let class = match byte as u8 {
            b'/' | b'.' => Class::Delimiter,
            b'%' => Class::Escape,
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'~' => Class::Plain,
            b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b'=' | b':' | b'@' => Class::Plain,
            _ => Class::Refused,
        };
        #[expect(clippy::indexing_slicing, reason = "evaluated at compile time")]
        {
            table[byte] = class;
        }
        byte += 1;
    }
    table
};

fn decode(path: &str) -> Result<String, PathError> {
    let mut normal = String::with_capacity(path.len());
    let mut pieces = path.split('%');
    normal.push_str(pieces.next().unwrap_or_default());
    for piece in pieces {
        let (digits, rest) = piece.split_at_checked(2).ok_or(PathError::Encoding)?;
        // `from_str_radix` would take a sign.
        if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(PathError::Encoding);
        }
        match u8::from_str_radix(digits, 16).map_err(|_| PathError::Encoding)? {
            b'/' | b'\\' | b'%' | b';' | b'?' | b'#' | 0..=0x1f | 0x7f => return Err(PathError::Encoded),
            byte if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => normal.push(char::from(byte)),
            _ => {
                normal.push('%');
                normal.push_str(&digits.to_ascii_uppercase());
            }
        }
        normal.push_str(rest);
    }
    let valid = percent_encoding::percent_decode_str(&normal).decode_utf8().is_ok();
    if valid { Ok(normal) } else { Err(PathError::Encoding) }
}

/// Whether a segment is `.` or `..`, or one but the last is empty.
fn has_odd_segment(path: &str) -> bool {
    path.contains("//") || path.split('/').any(|segment| segment == "." || segment == "..")
}

// ---- host

fn invalid_host(detail: &'static str) -> Problem {
    Problem::bad_request("invalid_host", detail)
}

/// The one authority that the client asked (RFC 9112 section 3.2, RFC 9113 section 8.3.1).
fn check_host<B>(request: &Request<B>) -> Result<HeaderValue, Problem> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (host, more) = (hosts.next(), hosts.next());
    if more.is_some() {
        return Err(invalid_host("The request has several Host headers"));
    }
    let authority = request.uri().authority();
    let host = match (host, authority) {
        (Some(host), Some(authority)) if !host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()) => {
            return Err(invalid_host("The Host header differs from the authority of the request target"));
        }
        (Some(host), _) => host.clone(),
        (None, Some(authority)) if request.version() >= Version::HTTP_2 => authority_value(authority)?,
        (None, _) => return Err(invalid_host("The request has no Host header")),
    };
    if is_plain_authority(host.as_bytes()) { Ok(host) } else { Err(invalid_host("The Host is not a plain host:port")) }
}

fn authority_value(authority: &Authority) -> Result<HeaderValue, Problem> {
    HeaderValue::from_str(authority.as_str()).map_err(|_| invalid_host("The authority is not a plain host:port"))
}

/// `host[:port]` without user information: a name, an IPv4 or a bracketed IPv6 address.
fn is_plain_authority(text: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(text) else { return false };
    let end = if text.starts_with('[') { text.find(']').map(|at| at + 1) } else { text.find(':') };
    let (host, port) = text.split_at(end.unwrap_or(text.len()));
    let is_port = |port: &str| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok();
    is_host(host) && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
}

fn is_host(text: &str) -> bool {
    match text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)),
    }
}

// ---- proxies in front of us

/// The networks whose forwarding headers are believed. Empty: nobody's are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<IpNet>);

/// The text is not a list of networks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a network to trust; expected CIDRs such as 10.0.0.0/8, and never the whole internet")]
pub struct NotANetwork(String);

impl FromStr for TrustedProxies {
    type Err = NotANetwork;

    /// Networks or single addresses, comma separated.
    fn from_str(text: &str) -> Result<Self, NotANetwork> {
        let listed = text.split(',').map(str::trim).filter(|net| !net.is_empty());
        listed.map(network).collect::<Result<_, _>>().map(Self)
    }
}

fn network(text: &str) -> Result<IpNet, NotANetwork> {
    let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    net.ok().filter(|net| net.prefix_len() > 0).ok_or_else(|| NotANetwork(text.to_owned()))
}

impl TrustedProxies {
    /// Whether an address belongs to one of our proxies.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.0.iter().any(|net| net.contains(&ip))
    }

    /// What the proxies say about the client: from the right, the first address that
    /// is none of ours; whatever stands to the left of it anybody may have written.
    fn look_behind(&self, headers: &HeaderMap, direct: Arrival) -> Arrival {
        let hops = if headers.contains_key(FORWARDED_FOR) {
            listed(headers, &FORWARDED_FOR).map(hop_address).collect()
        } else {
            listed(headers, &header::FORWARDED)
                .map(|hop| parameter(hop, "for").and_then(hop_address))
                .collect::<Vec<_>>()
        };
        let mut client_ip = direct.client_ip;
        for hop in hops.into_iter().rev() {
            let Some(ip) = hop else { break };
            client_ip = ip;
            if !self.contains(ip) {
                break;
            }
        }
        let nearest = listed(headers, &header::FORWARDED).last();
        let said = |name: &HeaderName, key| {
            listed(headers, name).last().or_else(|| nearest.and_then(|hop| parameter(hop, key)))
        };
        let https = match said(&FORWARDED_PROTO, "proto") {
            Some(proto) => proto.eq_ignore_ascii_case("https"),
            None => direct.https,
        };
        let host = said(&FORWARDED_HOST, "host").filter(|host| is_plain_authority(host.as_bytes()));
        let host = host.and_then(|host| HeaderValue::from_str(host).ok()).unwrap_or(direct.host);
        Arrival { client_ip, https, host, correlation_id: direct.correlation_id }
    }
}

/// The elements of a list header, over all its lines.
fn listed<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> {
    let lines = headers.get_all(name).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim)
}

/// A parameter of a `Forwarded` element (RFC 7239 section 4), unquoted.
fn parameter<'h>(element: &'h str, key: &str) -> Option<&'h str> {
    let pairs = element.split(';').filter_map(|pair| pair.trim().split_once('='));
    let (_, value) = pairs.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(key))?;
    Some(value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value))
}

/// An address with or without a port.
fn hop_address(text: &str) -> Option<IpAddr> {
    let bracketed = text.strip_prefix('[').and_then(|rest| rest.split_once(']')).map(|(address, _)| address);
    let ip = text.parse::<IpAddr>().ok();
    let ip =
        ip.or_else(|| bracketed?.parse().ok()).or_else(|| text.parse::<std::net::SocketAddr>().ok().map(|a| a.ip()));
    ip.map(|ip| ip.to_canonical())
}
