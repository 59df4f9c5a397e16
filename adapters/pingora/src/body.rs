//! The body of a request, from pingora's session to a service.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http::header;
use http_body::{Frame, SizeHint};
use pingora_core::{BError, Result};
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
        let expects = text(header::EXPECT).is_some_and(|what| what.eq_ignore_ascii_case("100-continue"));
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
            return session.read_body_or_idle(true).await.map(drop);
        }
        let Some(to) = self.to.clone() else { return std::future::pending().await };
        let Ok(room) = to.reserve().await else {
            self.to = None;
            return Ok(());
        };
        if std::mem::take(&mut self.expects) {
            session.write_continue_response().await?;
        }
        let piece = session.read_body_or_idle(false).await;
        self.done = piece.is_ok() && session.is_body_done();
        if self.done || piece.is_err() {
            self.to = None;
        }
        if let Some(piece) = piece.transpose() {
            room.send(piece);
        }
        Ok(())
    }
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
