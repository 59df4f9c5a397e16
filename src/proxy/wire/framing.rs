//! Where one HTTP/1 message ends and the next begins, as strictly as RFC 9112 allows.
//!
//! Pure: bytes in, verdict out. It knows just enough of the grammar to find the
//! boundaries in everything that hyper accepts, and refuses what two parsers may
//! read differently. What hyper itself refuses is left to hyper.

use memchr::memchr;

use super::{MAX_HEAD, Refusal};

/// Most header fields of a request: hyper's own limit, which it would answer without a word.
const MAX_FIELDS: usize = 100;

/// Client connection preface of HTTP/2 (RFC 9113 section 3.4).
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What may be read on, and why no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Leading bytes that may be read on; the rest belongs to an unfinished head.
    pub(super) clear: usize,
    /// Set when nothing of this connection may be read after them.
    pub(super) stop: Option<Stop>,
}

/// Why a connection is read no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// A head must be answered with a refusal.
    Refused(Refusal),
    /// A chunked body is malformed; its request is already being served.
    Broken,
}

/// Follows one connection from message to message.
#[derive(Debug, Default)]
pub(super) struct Framing {
    state: State,
    switch: Switch,
}

/// Whether a connection changes its protocol. Only its first answer can say so: of later ones, the gate could not tell
/// where a head begins.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Switch {
    #[default]
    NothingAsked,
    Asked,
    Settled,
}

#[derive(Debug, Default)]
enum State {
    /// Nothing read yet: HTTP/1, or the preface of HTTP/2.
    #[default]
    Start,
    Head(Head),
    Sized(u64),
    Chunked(Chunked),
    /// HTTP/2, or what a connection was switched to, which have their own framing.
    Opaque,
}

impl Framing {
    /// Whether the rest of the connection is none of our business.
    pub(super) fn is_opaque(&self) -> bool {
        matches!(self.state, State::Opaque)
    }

    /// Notes the beginning of an answer; true if the connection speaks another protocol from here on, as its first
    /// request asked.
    pub(super) fn answered(&mut self, bytes: &[u8]) -> bool {
        let asked = std::mem::replace(&mut self.switch, Switch::Settled) == Switch::Asked;
        let switches = asked && bytes.starts_with(b"HTTP/1.1 101 ");
        if switches {
            self.state = State::Opaque;
        }
        switches
    }

    /// Looks at `bytes`, which begin with what the last verdict did not clear.
    pub(super) fn inspect(&mut self, bytes: &[u8]) -> Verdict {
        let mut clear = 0;
        loop {
            let rest = bytes.get(clear..).unwrap_or_default();
            if rest.is_empty() {
                return Verdict { clear, stop: None };
            }
            match &mut self.state {
                State::Opaque => return Verdict { clear: bytes.len(), stop: None },
                State::Start if rest.starts_with(H2_PREFACE) => self.state = State::Opaque,
                State::Start if H2_PREFACE.starts_with(rest) => return Verdict { clear, stop: None },
                State::Start => self.state = State::Head(Head::default()),
                State::Head(head) => match head.scan(rest) {
                    Ok(None) => return Verdict { clear, stop: None },
                    Ok(Some((length, next))) => {
                        clear += length;
                        self.switch = match self.switch {
                            Switch::NothingAsked if head.upgrade => Switch::Asked,
                            _ => Switch::Settled,
                        };
                        self.state = next;
                    }
                    Err(why) => return Verdict { clear, stop: Some(Stop::Refused(why)) },
                },
                State::Sized(left) => {
                    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    clear += taken;
                    *left -= taken as u64;
                    if *left == 0 {
                        self.state = State::Head(Head::default());
                    }
                }
                State::Chunked(chunked) => {
                    let (taken, step) = chunked.advance(rest);
                    clear += taken;
                    match step {
                        Step::More => return Verdict { clear, stop: None },
                        Step::Done => self.state = State::Head(Head::default()),
                        Step::Broken => return Verdict { clear, stop: Some(Stop::Broken) },
                    }
                }
            }
        }
    }
}

/// A head so far; offsets count from its first byte, so that a head which arrives
/// in pieces is scanned once.
#[derive(Debug, Default)]
struct Head {
    /// Start of the unfinished line.
    line: usize,
    /// Up to here there is no further line end.
    seen: usize,
    past_request_line: bool,
    fields: usize,
    http10: bool,
    content_length: Option<u64>,
    chunked: bool,
    upgrade: bool,
}

impl Head {
    /// The length of the whole head and what follows it, or `None` if it is unfinished.
    fn scan(&mut self, bytes: &[u8]) -> Result<Option<(usize, State)>, Refusal> {
        while let Some(at) = memchr(b'\n', bytes.get(self.seen..).unwrap_or_default()) {
            let end = self.seen + at;
            let line = bytes.get(self.line..end).unwrap_or_default();
            let line = line.strip_suffix(b"\r").ok_or(Refusal::BareLineFeed)?;
            self.line = end + 1;
            self.seen = self.line;
            if self.line > MAX_HEAD {
                return Err(Refusal::HeadTooLarge);
            }
            match (line.is_empty(), self.past_request_line) {
                // RFC 9112 section 2.2: empty lines before a request are skipped.
                (true, false) => {}
                (true, true) => return Ok(Some((self.line, self.body()?))),
                (false, false) => self.request_line(line)?,
                (false, true) => self.field(line)?,
            }
        }
        self.seen = bytes.len();
        if bytes.len() > MAX_HEAD { Err(Refusal::HeadTooLarge) } else { Ok(None) }
    }

    fn request_line(&mut self, line: &[u8]) -> Result<(), Refusal> {
        self.past_request_line = true;
        let mut parts = line.splitn(3, |byte| *byte == b' ');
        let (Some(method), Some(target), Some(version)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(Refusal::RequestLine);
        };
        if !is_token(method) || !matches!(version, b"HTTP/1.0" | b"HTTP/1.1") {
            return Err(Refusal::RequestLine);
        }
        self.http10 = version == b"HTTP/1.0";
        let is_usual = |byte: &u8| byte.is_ascii_alphanumeric() || b"/-._~%?=&+:".contains(byte);
        if target.starts_with(b"/") && target.iter().all(is_usual) {
            return Ok(());
        }
        let is_target = target.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'#');
        if is_target && http::Uri::try_from(target).is_ok() { Ok(()) } else { Err(Refusal::Target) }
    }

    fn field(&mut self, line: &[u8]) -> Result<(), Refusal> {
        self.fields += 1;
        if self.fields > MAX_FIELDS {
            return Err(Refusal::TooManyFields);
        }
        if let Some(b' ' | b'\t') = line.first() {
            return Err(Refusal::ObsoleteFold);
        }
        let (name, value) = memchr(b':', line).and_then(|at| line.split_at_checked(at)).ok_or(Refusal::Field)?;
        // To the end, whatever is found: many bytes at a time.
        let controls = value.iter().fold(false, |any, byte| any | (byte.is_ascii_control() & (*byte != b'\t')));
        if controls || !is_token(name) {
            return Err(Refusal::Field);
        }
        match name.first().map(u8::to_ascii_lowercase) {
            Some(b'c') => value_of(line, b"content-length:").map_or(Ok(()), |v| self.content_length(v)),
            Some(b'u') => {
                self.upgrade |= value_of(line, b"upgrade:").is_some();
                Ok(())
            }
            Some(b't') => value_of(line, b"transfer-encoding:").map_or(Ok(()), |v| self.transfer_encoding(v)),
            _ => Ok(()),
        }
    }

    fn content_length(&mut self, value: &[u8]) -> Result<(), Refusal> {
        let canonical = value.iter().all(u8::is_ascii_digit) && (value.first() != Some(&b'0') || value.len() == 1);
        let length = std::str::from_utf8(value).ok().filter(|_| canonical).and_then(|text| text.parse().ok());
        match (length, self.content_length) {
            (Some(length), None) => {
                self.content_length = Some(length);
                Ok(())
            }
            _ => Err(Refusal::ContentLength),
        }
    }

    fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), Refusal> {
        if self.http10 || self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
            return Err(Refusal::TransferEncoding);
        }
        self.chunked = true;
        Ok(())
    }

    fn body(&self) -> Result<State, Refusal> {
        match (self.content_length, self.chunked) {
            (Some(_), true) => Err(Refusal::LengthConflict),
            (None, true) => Ok(State::Chunked(Chunked::default())),
            (None | Some(0), false) => Ok(State::Head(Head::default())),
            (Some(length), false) => Ok(State::Sized(length)),
        }
    }
}

/// Whether it is a token (RFC 9110 section 5.6.2).
pub(in crate::proxy) fn is_token(bytes: &[u8]) -> bool {
    let is_part = |byte: &u8| TOKEN.get(usize::from(*byte)) == Some(&true);
    !bytes.is_empty() && bytes.iter().all(is_part)
}

/// Which bytes are part of one.
static TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        #[expect(clippy::indexing_slicing, reason = "evaluated at compile time")]
        {
            table[byte] = matches!(
                byte as u8,
                b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'0'..=b'9' | b'A'..=b'Z' | b'^'..=b'z' | b'|' | b'~'
            );
        }
        byte += 1;
    }
    table
};

/// The value of a field line if it has this name (lower case, with its colon).
fn value_of<'l>(line: &'l [u8], name: &[u8]) -> Option<&'l [u8]> {
    let (start, value) = line.split_at_checked(name.len())?;
    start.eq_ignore_ascii_case(name).then(|| value.trim_ascii())
}

/// A chunked body so far (RFC 9112 section 7.1).
#[derive(Debug, Default, Clone, Copy)]
enum Chunked {
    /// Before the first digit of a size.
    #[default]
    Start,
    Size(u64),
    /// White space or an extension after the size.
    Extension(u64),
    SizeLf(u64),
    Data(u64),
    DataCr,
    DataLf,
    /// At the start of a trailer line, or of the last empty one.
    TrailerStart,
    Trailer,
    TrailerLf,
    EndLf,
}

enum Step {
    More,
    Done,
    Broken,
}

impl Chunked {
    /// How many bytes were taken, and what came of it.
    fn advance(&mut self, bytes: &[u8]) -> (usize, Step) {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            if let Self::Data(left) = *self {
                let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len() - at);
                at += taken;
                let left = left - taken as u64;
                *self = if left == 0 { Self::DataCr } else { Self::Data(left) };
                continue;
            }
            let Some(next) = self.step(byte) else { return (at, Step::Broken) };
            at += 1;
            if matches!((*self, byte), (Self::EndLf, b'\n')) {
                return (at, Step::Done);
            }
            *self = next;
        }
        (at, Step::More)
    }

    fn step(self, byte: u8) -> Option<Self> {
        Some(match (self, byte) {
            (Self::Start, _) => Self::Size(hex(byte)?),
            (Self::Size(size) | Self::Extension(size), b'\r') => Self::SizeLf(size),
            (Self::Size(size), b';' | b' ' | b'\t') => Self::Extension(size),
            (Self::Size(size), _) => Self::Size(size.checked_mul(16)?.checked_add(hex(byte)?)?),
            (Self::TrailerStart, b'\r') => Self::EndLf,
            (Self::Trailer, b'\r') => Self::TrailerLf,
            // A line ends with both its bytes, and another parser may take a NUL for an end.
            (Self::Extension(_) | Self::Trailer | Self::TrailerStart, 0..=8 | 10..=31 | 127) => return None,
            (Self::Extension(size), _) => Self::Extension(size),
            (Self::SizeLf(0), b'\n') | (Self::TrailerLf, b'\n') => Self::TrailerStart,
            (Self::SizeLf(size), b'\n') => Self::Data(size),
            (Self::DataCr, b'\r') => Self::DataLf,
            (Self::DataLf, b'\n') => Self::Start,
            (Self::TrailerStart | Self::Trailer, _) => Self::Trailer,
            (Self::EndLf, b'\n') => Self::EndLf,
            _ => return None,
        })
    }
}

fn hex(byte: u8) -> Option<u64> {
    char::from(byte).to_digit(16).map(u64::from)
}
