//! Server-sent events, and how they are played.

use std::io;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use serde_json::Value;

use super::behaviour::Behaviour;

/// The frames of a stream. `text` is what an endless one repeats.
#[derive(Debug, Default)]
pub(super) struct Script {
    pub(super) head: Vec<Bytes>,
    pub(super) text: Vec<Bytes>,
    pub(super) tail: Vec<Bytes>,
}

/// An event without a name, as OpenAI's chat streams have them.
pub(super) fn data(value: &Value) -> Bytes {
    format!("data: {value}\n\n").into()
}

/// An event with the name that its `type` is.
pub(super) fn event(value: &Value) -> Bytes {
    let name = value.get("type").and_then(Value::as_str).unwrap_or("message");
    format!("event: {name}\ndata: {value}\n\n").into()
}

/// The end of OpenAI's chat and completion streams.
pub(super) fn done() -> Bytes {
    Bytes::from_static(b"data: [DONE]\n\n")
}

/// `text` in the pieces in which it is streamed: words with their space.
pub(super) fn pieces(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive(' ')
}

impl Script {
    /// The body that plays the frames one at a time.
    pub(super) fn play(self, behaviour: &Behaviour) -> Body {
        let repeated = self.head.len()..self.head.len() + self.text.len();
        let frames: Vec<Bytes> = [self.head, self.text, self.tail].concat();
        let player = Player {
            frames,
            repeat: if behaviour.endless { repeated } else { 0..0 },
            at: 0,
            sent: 0,
            gap: behaviour.gap,
            cut_after: behaviour.cut_after,
        };
        Body::from_stream(futures_util::stream::unfold(player, async |mut player| {
            let frame = player.next().await?;
            Some((frame, player))
        }))
    }
}

struct Player {
    frames: Vec<Bytes>,
    repeat: std::ops::Range<usize>,
    at: usize,
    sent: usize,
    gap: Duration,
    cut_after: Option<usize>,
}

impl Player {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        // Pending between frames lets the connection flush each one, and all of
        // them before it is cut.
        if self.gap.is_zero() {
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(self.gap).await;
        }
        if self.cut_after == Some(self.sent) {
            return Some(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let frame = self.frames.get(self.at)?.clone();
        self.sent += 1;
        self.at += 1;
        if self.at == self.repeat.end {
            self.at = self.repeat.start;
        }
        Some(Ok(frame))
    }
}
