//! A gate between the socket and hyper.
//!
//! hyper accepts some requests that another parser on the way may read as two:
//! bare line feeds, both length headers, repeated or padded lengths, transfer
//! codings in front of `chunked`, fragments and raw non-ASCII bytes in the target.
//! Others it refuses with an empty 400, where a client deserves to be told why.
//! [`GatedIo`] looks at every request head of an HTTP/1 connection before hyper
//! does and, in place of one that it refuses, hands hyper a request for a path
//! that [`refusal`] knows. Nothing after that head is ever read.
//!
//! 1. Bodies are followed, never buffered: clean bytes stay where they were read.
//! 2. Only an unfinished head is held back, at most 32 KiB of it.
//! 3. A malformed chunked body ends the connection with an error.
//! 4. A connection that starts with the HTTP/2 preface passes untouched, and one whose first request is answered with 101
//!    (a web socket's) from there on.
//!
//! The rules are those of RFC 9112, sections 2.2, 3.2, 5.2, 6.1 to 6.3 and 7.1.

mod framing;

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::problem::Problem;
pub(super) use framing::is_token;
use framing::{Framing, Stop, Verdict};

/// What stands before the name of the refusal in the path that hyper is given.
const REFUSED: &str = "/.alchemi/refused/";

/// How much is read at a time while a head is incomplete.
const PIECE: usize = 4096;

/// How much of a refused connection is read away, so that the client gets to see
/// the answer before the reset.
const DRAIN: usize = 64 * 1024;

/// Longest head of a request, in bytes.
pub const MAX_HEAD: usize = 32 * 1024;

/// Why a request head is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// A line that ends without a carriage return.
    BareLineFeed,
    /// A first line that is not a method, a target and HTTP/1.0 or HTTP/1.1.
    RequestLine,
    /// A field without a name of token characters before its colon, or with a control character in its value.
    Field,
    /// A field value continued on the next line.
    ObsoleteFold,
    /// A `Content-Length` that is repeated, a list, or not the shortest decimal.
    ContentLength,
    /// Both `Content-Length` and `Transfer-Encoding`.
    LengthConflict,
    /// A `Transfer-Encoding` other than one `chunked` in HTTP/1.1.
    TransferEncoding,
    /// A request target that is none, or has a fragment or a raw non-ASCII byte.
    Target,
    /// A head over 32 KiB.
    HeadTooLarge,
    /// More than 100 header fields.
    TooManyFields,
}

impl Refusal {
    const ALL: [Self; 10] = [
        Self::BareLineFeed,
        Self::RequestLine,
        Self::Field,
        Self::ObsoleteFold,
        Self::ContentLength,
        Self::LengthConflict,
        Self::TransferEncoding,
        Self::Target,
        Self::HeadTooLarge,
        Self::TooManyFields,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::BareLineFeed => "bare-line-feed",
            Self::RequestLine => "request-line",
            Self::Field => "field",
            Self::ObsoleteFold => "obsolete-fold",
            Self::ContentLength => "content-length",
            Self::LengthConflict => "length-conflict",
            Self::TransferEncoding => "transfer-encoding",
            Self::Target => "target",
            Self::HeadTooLarge => "head-too-large",
            Self::TooManyFields => "too-many-fields",
        }
    }

    const fn detail(self) -> &'static str {
        match self {
            Self::BareLineFeed => "A line of the request head ends without a carriage return",
            Self::RequestLine => "The first line must be a method, a target and HTTP/1.1, with one space between them",
            Self::Field => {
                "A header must be a name, a colon without a space before it, and a value without control characters"
            }
            Self::ObsoleteFold => "A header value is continued on the next line; send it on one line",
            Self::ContentLength => "Content-Length must occur once, as a decimal number without sign or leading zeros",
            Self::LengthConflict => "Send either Content-Length or Transfer-Encoding, not both",
            Self::TransferEncoding => "Transfer-Encoding must be exactly one `chunked`, in HTTP/1.1",
            Self::Target => {
                "The request target must be a path or an address, in ASCII and without a fragment; percent-encode other characters"
            }
            Self::HeadTooLarge => "The request head is larger than 32 KiB",
            Self::TooManyFields => "The request has more than 100 header fields",
        }
    }

    /// What hyper reads in place of the refused head.
    fn stand_in(self) -> String {
        format!("GET {REFUSED}{} HTTP/1.1\r\nHost: refused.invalid\r\nConnection: close\r\n\r\n", self.name())
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::HeadTooLarge | Refusal::TooManyFields => {
                Self::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "header_fields_too_large", refusal.detail())
            }
            Refusal::Target => Self::bad_request("invalid_path", refusal.detail()),
            _ => Self::bad_request("malformed_request", refusal.detail()),
        }
    }
}

/// The answer to a request whose path says that the gate refused it.
///
/// Ask this before anything else is done with a request. A client that asks for
/// such a path by itself gets the same answer, and nothing else.
///
/// ```
/// use alchemi::proxy::wire::refusal;
///
/// assert_eq!(refusal("/.alchemi/refused/bare-line-feed").unwrap().status(), 400);
/// assert!(refusal("/v1/chat/completions").is_none());
/// ```
pub fn refusal(path: &str) -> Option<Problem> {
    let name = path.strip_prefix(REFUSED)?;
    let known = Refusal::ALL.into_iter().find(|r| r.name() == name);
    Some(known.map_or_else(|| Problem::bad_request("malformed_request", "The request is malformed"), Problem::from))
}

/// An accepted socket whose HTTP/1 request heads are checked before they are read. Whoever writes to it begins an answer's
/// head with its whole status line.
#[derive(Debug)]
pub struct GatedIo<T> {
    io: T,
    framing: Framing,
    /// An unfinished head, or what is to be read before the socket.
    held: BytesMut,
    /// How much of `held` may be read.
    clear: usize,
    end: End,
}

/// Whether and how reading has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    /// After a refusal; counts what may still be read away.
    Hidden(usize),
    Broken,
}

impl<T> GatedIo<T> {
    /// Wraps a socket before its first byte is read (after TLS, if any).
    pub fn new(io: T) -> Self {
        Self { io, framing: Framing::default(), held: BytesMut::new(), clear: 0, end: End::Open }
    }

    /// The wrapped socket.
    pub fn get_ref(&self) -> &T {
        &self.io
    }

    /// The wrapped socket, before its first byte is read.
    pub fn get_mut(&mut self) -> &mut T {
        &mut self.io
    }

    /// Notes what is written. Whoever waits for a read of what becomes clear here reads again after their answer.
    fn answered(&mut self, bytes: &[u8]) {
        if bytes.is_empty() || !self.framing.answered(bytes) {
            return;
        }
        if self.end == End::Open {
            self.clear = self.held.len();
        } else {
            // What came before the 101 was refused for a head: there is no way back to it.
            self.held.clear();
            (self.clear, self.end) = (0, End::Broken);
        }
    }

    /// Gives out what is clear of the held bytes.
    fn give(&mut self, buf: &mut ReadBuf<'_>) {
        let n = self.clear.min(buf.remaining());
        buf.put_slice(self.held.get(..n).unwrap_or_default());
        self.held.advance(n);
        self.clear -= n;
    }

    /// Notes a verdict about bytes of which only the cleared ones are kept.
    fn stop(&mut self, stop: Option<Stop>) {
        match stop {
            None => {}
            Some(Stop::Broken) => self.end = End::Broken,
            Some(Stop::Refused(why)) => {
                self.held.extend_from_slice(why.stand_in().as_bytes());
                self.clear = self.held.len();
                self.end = End::Hidden(DRAIN);
            }
        }
    }
}

impl<T: AsyncRead + Unpin> GatedIo<T> {
    /// Reads into the caller's buffer and takes back what is not clear.
    fn read_in_place(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<bool>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        let fresh = buf.filled().get(before..).unwrap_or_default();
        if fresh.is_empty() {
            return Poll::Ready(Ok(true));
        }
        let Verdict { clear, stop } = self.framing.inspect(fresh);
        if stop.is_none() && clear < fresh.len() {
            self.held.extend_from_slice(fresh.get(clear..).unwrap_or_default());
        }
        buf.set_filled(before + clear);
        self.stop(stop);
        Poll::Ready(Ok(clear > 0))
    }

    /// Reads more of the head that is held back; true at the end of the stream.
    fn read_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let start = self.held.len();
        self.held.resize(start + PIECE, 0);
        let mut piece = ReadBuf::new(self.held.get_mut(start..).unwrap_or_default());
        let polled = Pin::new(&mut self.io).poll_read(cx, &mut piece);
        let read = piece.filled().len();
        self.held.truncate(start + read);
        ready!(polled)?;
        if read == 0 {
            // A head that never ends is none; what there is of it is not read on.
            self.held.clear();
            return Poll::Ready(Ok(true));
        }
        let Verdict { clear, stop } = self.framing.inspect(&self.held);
        self.clear = clear;
        if stop.is_some() {
            self.held.truncate(clear);
        }
        self.stop(stop);
        Poll::Ready(Ok(false))
    }

    /// Reads away what follows a refused head, without ever telling of it.
    fn drain(&mut self, cx: &mut Context<'_>, mut left: usize) {
        let mut scratch = [0; PIECE];
        while left > 0 {
            let mut piece = ReadBuf::new(&mut scratch);
            match Pin::new(&mut self.io).poll_read(cx, &mut piece) {
                Poll::Ready(Ok(())) if !piece.filled().is_empty() => left = left.saturating_sub(piece.filled().len()),
                Poll::Ready(_) => left = 0,
                Poll::Pending => break,
            }
        }
        self.end = End::Hidden(left);
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for GatedIo<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if this.clear > 0 {
                this.give(buf);
                return Poll::Ready(Ok(()));
            }
            match this.end {
                End::Open => {}
                End::Hidden(left) => {
                    this.drain(cx, left);
                    return Poll::Pending;
                }
                End::Broken => {
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "malformed chunk, or data before a 101",
                    )));
                }
            }
            let done = if !this.held.is_empty() {
                ready!(this.read_held(cx))?
            } else if this.framing.is_opaque() {
                return Pin::new(&mut this.io).poll_read(cx, buf);
            } else {
                ready!(this.read_in_place(cx, buf))?
            };
            if done {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for GatedIo<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.answered(bytes);
        Pin::new(&mut this.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.answered(bytes.iter().find(|part| !part.is_empty()).map_or(&[], |part| &**part));
        Pin::new(&mut this.io).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
        if let End::Hidden(left) = this.end {
            this.drain(cx, left);
        }
        Poll::Ready(Ok(()))
    }
}
