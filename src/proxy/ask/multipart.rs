//! A strict reader of multipart forms (RFC 7578), over a body that is all there.
//!
//! The form is forwarded as it came, so any spelling that two parsers might read
//! differently is refused: a preamble, padding after a boundary, folded headers,
//! escapes or extended parameters in a field's name, a second disposition.

use memchr::memmem;

use super::json::check_metadata;
use super::splice::Edits;
use super::{AskError, AskRules, ParsedAsk, agreed_model, answers_asked, max_output, shown};
use crate::metering::count::TextSize;
use crate::model::usage::RouteKind;
use crate::policy::{Ask, AskSize};
use crate::proxy::wire::is_token;

/// The most parts of a form.
const MAX_PARTS: usize = 128;
/// The most bytes of the headers of a part.
const MAX_HEADERS: usize = 8 << 10;

/// Whether this can be a boundary (RFC 2046, section 5.1.1) that needs no quoting rules.
pub(super) fn is_boundary(text: &str) -> bool {
    (1..=70).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"'()+_,-./:=?".contains(&b))
}

pub(super) fn read(
    kind: RouteKind,
    path_model: Option<&str>,
    boundary: &str,
    body: &[u8],
    rules: &AskRules,
) -> Result<ParsedAsk, AskError> {
    let mut seen: Vec<&str> = Vec::new();
    let mut model = None;
    let mut stream = false;
    let mut answers = 1;
    let (mut text, mut file_bytes) = (TextSize::default(), 0_u64);
    let mut fields = Vec::new();
    for part in parts(boundary, body)? {
        // LiteLLM reads `name[]` as `name`.
        let name = part.name.strip_suffix("[]").unwrap_or(part.name);
        // It also reads `metadata[name]` as a member of `metadata`; others may do so with any name.
        let outer = name.split('[').next().unwrap_or(name);
        let inside = outer != name && matches!(outer, "metadata" | "model" | "stream" | "n" | "prompt");
        if rules.forbidden_fields.hold(outer) || outer.ends_with("fallbacks") || inside {
            return Err(AskError::FieldNotAllowed(shown(name)));
        }
        // What is no text would be forwarded without having been screened.
        if !part.file && std::str::from_utf8(part.value).is_err() {
            return Err(AskError::InvalidUtf8);
        }
        if !part.file && !matches!(name, "model" | "stream" | "n" | "metadata") {
            let start = part.value.as_ptr().addr().saturating_sub(body.as_ptr().addr());
            fields.push(start..start + part.value.len());
        }
        if !matches!(name, "model" | "stream" | "n" | "prompt" | "metadata") {
            if part.file {
                text.media += 1;
                file_bytes += part.value.len() as u64;
            }
            continue;
        }
        if seen.contains(&name) {
            return Err(AskError::duplicate(name));
        }
        seen.push(name);
        if part.file || name != part.name {
            return Err(AskError::InvalidForm("a field of the request is sent as a file or a list"));
        }
        let value = std::str::from_utf8(part.value).map_err(|_| AskError::InvalidUtf8)?;
        match name {
            "model" => model = Some(value.to_owned()),
            "stream" => stream = boolean(value)?,
            "n" => answers = answers_asked("n", count(value)?)?,
            "prompt" => text.bytes += value.len() as u64,
            _ => check_metadata(value, rules)?,
        }
    }
    let size = AskSize {
        input_tokens: rules.count.input(&text),
        most_input: rules.count.most(&text),
        characters: text.bytes,
        media: text.media,
        seconds: rules.count.seconds(file_bytes),
        max_output: max_output(kind, None),
        answers,
        priority: false,
    };
    Ok(ParsedAsk {
        ask: Ask { kind, model: Some(agreed_model(path_model, model)?), fallbacks: Vec::new(), stream, size },
        usage_asked: false,
        previous_response: None,
        edits: Edits::default(),
        fields: Some(fields),
    })
}

fn boolean(text: &str) -> Result<bool, AskError> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" => Ok(true),
        "false" | "0" | "" => Ok(false),
        _ => Err(AskError::InvalidField { field: "stream", expected: "must be true or false" }),
    }
}

fn count(text: &str) -> Result<u64, AskError> {
    let count: u64 =
        text.parse().map_err(|_| AskError::InvalidField { field: "n", expected: "must be a whole number" })?;
    Ok(count.max(1))
}

struct Part<'a> {
    name: &'a str,
    /// It has a file name.
    file: bool,
    value: &'a [u8],
}

fn parts<'a>(boundary: &str, body: &'a [u8]) -> Result<Vec<Part<'a>>, AskError> {
    let delimiter = format!("\r\n--{boundary}");
    let finder = memmem::Finder::new(delimiter.as_bytes());
    let first = delimiter.trim_start().as_bytes();
    let mut rest = body.strip_prefix(first).ok_or(AskError::InvalidForm("it must start with its boundary"))?;
    let mut parts = Vec::new();
    loop {
        if let Some(end) = rest.strip_prefix(b"--") {
            return match end {
                b"" | b"\r\n" => Ok(parts),
                _ => Err(AskError::InvalidForm("something follows its end")),
            };
        }
        let part =
            rest.strip_prefix(b"\r\n").ok_or(AskError::InvalidForm("a boundary is not followed by a line end"))?;
        let head = memmem::find(part.get(..part.len().min(MAX_HEADERS)).unwrap_or_default(), b"\r\n\r\n")
            .ok_or(AskError::InvalidForm("a part has no end of headers, or more than 8 KiB of them"))?;
        let (headers, content) = part.split_at(head);
        let content = content.get(4..).unwrap_or_default();
        let end = finder.find(content).ok_or(AskError::InvalidForm("a part has no end"))?;
        let (value, after) = content.split_at(end);
        if parts.len() == MAX_PARTS {
            return Err(AskError::InvalidForm("it has more than 128 parts"));
        }
        let (name, file) = disposition(headers)?;
        parts.push(Part { name, file, value });
        rest = after.get(delimiter.len()..).unwrap_or_default();
    }
}

/// The field's name and whether it has a file name.
fn disposition(headers: &[u8]) -> Result<(&str, bool), AskError> {
    let malformed = AskError::InvalidForm("a part has malformed headers");
    let headers = std::str::from_utf8(headers).map_err(|_| malformed.clone())?;
    let mut found = None;
    for line in headers.split("\r\n") {
        let (name, value) = line.split_once(':').ok_or_else(|| malformed.clone())?;
        if name.is_empty()
            || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            || value.bytes().any(|b| b.is_ascii_control() && b != b'\t')
        {
            return Err(malformed);
        }
        let value = value.trim_matches([' ', '\t']);
        if name.eq_ignore_ascii_case("content-disposition") {
            if found.replace(form_data(value)?).is_some() {
                return Err(malformed);
            }
        } else if name.eq_ignore_ascii_case("content-transfer-encoding")
            && !["binary", "8bit", "7bit"].iter().any(|plain| value.eq_ignore_ascii_case(plain))
        {
            return Err(AskError::InvalidForm("a part is encoded for transfer"));
        }
    }
    found.ok_or(malformed)
}

/// `form-data; name="…"[; filename="…"]`. What is not quoted is a token (RFC 9110 section 5.6.2):
/// of spaces and angle brackets around it, some parsers make nothing.
fn form_data(value: &str) -> Result<(&str, bool), AskError> {
    let malformed = || AskError::InvalidForm("a part has a malformed Content-Disposition");
    let mut rest = value.strip_prefix("form-data").ok_or_else(malformed)?.trim_start();
    let (mut name, mut file) = (None, false);
    while !rest.is_empty() {
        let parameter = rest.strip_prefix(';').ok_or_else(malformed)?.trim_start();
        let (key, after) = parameter.split_once('=').ok_or_else(malformed)?;
        let (text, after) = if let Some(quoted) = after.strip_prefix('"') {
            quoted.split_once('"').ok_or_else(malformed)?
        } else {
            let (token, after) = after.split_at(after.find(';').unwrap_or(after.len()));
            if !is_token(token.as_bytes()) {
                return Err(malformed());
            }
            (token, after)
        };
        if text.contains('\\') {
            return Err(malformed());
        }
        match key.to_ascii_lowercase().as_str() {
            "name" if name.is_none() => name = Some(text),
            "filename" | "filename*" => file = true,
            _ => return Err(malformed()),
        }
        rest = after.trim_start();
    }
    Ok((name.ok_or_else(malformed)?, file))
}
