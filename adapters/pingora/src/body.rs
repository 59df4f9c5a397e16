//! The body of a request, from pingora's session to a service.

use std::future::pending;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http::{Version, header};
use http_body::{Frame, SizeHint};
use pingora_core::{BError, Error, ErrorType, Result};
use pingora_proxy::Session;
use tokio::sync::mpsc;

/// What reads a request's body out of a session as fast as the service takes it, and hears of it when the client
/// leaves.
pub(crate) struct Upload {
    /// None: nothing is to be read, or nobody reads it.
    to: Option<mpsc::Sender<Result<Bytes>>>,
    expects: bool,
    done: bool,
}

/// The same as the service sees it.
struct Incoming {
    from: mpsc::Receiver<Result<Bytes>>,
    left: Option<u64>,
}

impl Upload {
    /// Of the session's request, with the body that the service gets.
    pub(crate) fn of(session: &mut Session) -> (Body, Self) {
        if session.is_body_empty() {
            return (Body::empty(), Self { to: None, expects: false, done: true });
        }
        let headers = &session.req_header().headers;
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let left = text(header::CONTENT_LENGTH).and_then(|length| length.trim().parse().ok());
        let expects = session.req_header().version == Version::HTTP_11
            && text(header::EXPECT).is_some_and(|what| what.eq_ignore_ascii_case("100-continue"));
        let (to, from) = mpsc::channel(1);
        (Body::new(Incoming { from, left }), Self { to: Some(to), expects, done: false })
    }

    pub(crate) fn is_done(&self) -> bool {
        self.done
    }

    /// Reads one piece, or waits for the client to leave. Whatever else happens first, nothing of it is lost.
    ///
    /// A body that breaks is the service's to answer.
    ///
    /// # Errors
    /// When the client has left.
    pub(crate) async fn go_on(&mut self, session: &mut Session) -> Result<()> {
        if self.done {
            return session.read_body_or_idle(true).await.map(drop).map_err(left);
        }
        let Some(to) = self.to.clone() else { return unread(session).await };
        let Ok(room) = to.reserve().await else {
            self.to = None;
            return Ok(());
        };
        if std::mem::take(&mut self.expects) {
            // It is few bytes, and the first of the answer: that the service answers in the middle of them needs a client
            // that does not read what it pipelined for. pingora would close the connection for it.
            let kept = session.get_keepalive();
            session.write_continue_response().await.map_err(left)?;
            session.set_keepalive(kept);
        }
        let piece = session.read_body_or_idle(false).await;
        match &piece {
            // Trailers, if any, are nobody's.
            Ok(piece) => self.done = piece.is_none() || session.is_body_done(),
            Err(_) => session.set_keepalive(None),
        }
        if self.done || piece.is_err() {
            self.to = None;
        }
        if let Some(piece) = piece.transpose() {
            room.send(piece);
        }
        Ok(())
    }
}

/// Waits for the client to leave, where that can be seen without reading on.
async fn unread(session: &mut Session) -> Result<()> {
    match session.watch_h2_stream_close() {
        Some(close) => Err(left(match close.await {
            Ok(reason) => Error::explain(ErrorType::ConnectionClosed, format!("the stream is closed: {reason}")),
            Err(error) => error,
        })),
        None => pending().await,
    }
}

/// What pingora says of an answer that was not written, most of all because the client has left.
pub(crate) fn unwritten(error: BError) -> BError {
    match error.etype {
        ErrorType::WriteError | ErrorType::WriteTimedout | ErrorType::ConnectionClosed | ErrorType::H2Error => {
            left(error)
        }
        _ => error,
    }
}

/// What pingora says of a client that is gone, so that it is not taken for a fault of ours.
fn left(error: BError) -> BError {
    let closed = Error::because(ErrorType::ConnectionClosed, "the client has left", error);
    closed.into_down()
}

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = BError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>>>> {
        let polled = self.from.poll_recv(cx);
        if let (Poll::Ready(Some(Ok(bytes))), Some(left)) = (&polled, &mut self.left) {
            *left = left.saturating_sub(bytes.len() as u64);
        }
        polled.map(|piece| piece.map(|bytes| bytes.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.left == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
