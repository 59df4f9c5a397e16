//! What the upstream received, and what became of it.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http::request::Parts;
use http_body::{Body as _, Frame, SizeHint};
use serde_json::Value;
use tokio::sync::watch;

/// A request as it came over the wire.
#[derive(Clone, PartialEq, Eq)]
pub struct Recorded {
    /// The method.
    pub method: String,
    /// The request target: path and query, not decoded.
    pub target: String,
    /// The header lines in order, each name in the case in which it was sent.
    pub headers: Vec<(String, String)>,
    /// The body, without its framing.
    pub body: Bytes,
}

impl Recorded {
    /// From the bytes of the head; from the parsed request where there are none.
    pub(super) fn new(parts: &Parts, head: &[u8], body: Bytes) -> Self {
        let text = String::from_utf8_lossy(head);
        let mut lines = text.split("\r\n");
        let start = lines.next().unwrap_or_default();
        let mut words = start.split(' ');
        let (Some(method), Some(target), Some(_version)) = (words.next(), words.next(), words.next()) else {
            return Self::parsed(parts, body);
        };
        let headers = lines.filter_map(|line| line.split_once(':'));
        Self {
            method: method.to_owned(),
            target: target.to_owned(),
            headers: headers.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect(),
            body,
        }
    }

    fn parsed(parts: &Parts, body: Bytes) -> Self {
        let value = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        Self {
            method: parts.method.to_string(),
            target: parts.uri.to_string(),
            headers: parts.headers.iter().map(|(name, it)| (name.to_string(), value(it))).collect(),
            body,
        }
    }

    /// The values of a header, whatever its case.
    pub fn header_values(&self, name: &str) -> Vec<&str> {
        let named = self.headers.iter().filter(|(header, _)| header.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str()).collect()
    }

    /// The value of a header that came exactly once.
    pub fn header(&self, name: &str) -> Option<&str> {
        match self.header_values(name).as_slice() {
            [value] => Some(value),
            _ => None,
        }
    }

    /// The body as JSON.
    pub fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.body).ok()
    }
}

/// Names only: values may be credentials, and the body a prompt.
impl std::fmt::Debug for Recorded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Recorded")
            .field("method", &self.method)
            .field("target", &self.target)
            .field("headers", &names)
            .field("body_bytes", &self.body.len())
            .finish()
    }
}

/// Counts of requests since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Activity {
    /// Received in full.
    pub received: u64,
    /// Begun, not yet answered in full.
    pub open: u64,
    /// Answered to the end, or cut by the upstream itself.
    pub completed: u64,
    /// Given up by the client before the answer's end.
    pub cancelled: u64,
}

#[derive(Debug)]
pub(super) struct Recorder {
    keep: usize,
    requests: Mutex<VecDeque<Recorded>>,
    activity: watch::Sender<Activity>,
}

impl Recorder {
    pub(super) fn new(keep: usize) -> Self {
        Self { keep, requests: Mutex::default(), activity: watch::Sender::default() }
    }

    pub(super) fn requests(&self) -> Vec<Recorded> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    pub(super) fn activity(&self) -> Activity {
        *self.activity.borrow()
    }

    pub(super) async fn until(&self, wanted: impl FnMut(&Activity) -> bool) -> Activity {
        // The sender lives as long as `self`, so the wait cannot fail.
        self.activity.subscribe().wait_for(wanted).await.map_or_else(|_| self.activity(), |seen| *seen)
    }

    /// Begins to watch a request.
    pub(super) fn open(self: &Arc<Self>) -> Watch {
        self.activity.send_modify(|activity| activity.open += 1);
        Watch { recorder: Arc::clone(self), completed: false }
    }
}

/// A request in progress; dropped before its end, it was cancelled.
pub(super) struct Watch {
    recorder: Arc<Recorder>,
    completed: bool,
}

impl Watch {
    /// The request is here in full.
    pub(super) fn received(&mut self, request: Recorded) {
        let mut requests = self.recorder.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.push_back(request);
        while requests.len() > self.recorder.keep {
            requests.pop_front();
        }
        drop(requests);
        self.recorder.activity.send_modify(|activity| activity.received += 1);
    }

    /// `body`, at the end of which the request is completed.
    pub(super) fn over(mut self, body: Body) -> Body {
        self.completed = body.is_end_stream();
        Body::new(Watched { body, watch: self })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.recorder.activity.send_modify(|activity| {
            activity.open = activity.open.saturating_sub(1);
            if self.completed {
                activity.completed += 1;
            } else {
                activity.cancelled += 1;
            }
        });
    }
}

struct Watched {
    body: Body,
    watch: Watch,
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        let last = match &polled {
            Poll::Ready(None | Some(Err(_))) => true,
            Poll::Ready(Some(Ok(_))) => self.body.is_end_stream(),
            Poll::Pending => false,
        };
        self.watch.completed |= last;
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
