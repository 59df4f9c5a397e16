//! A response body that passes while its usage is read.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tracing::Span;

use super::metrics::InFlight;
use super::screening::answer::Streamed;
use crate::metering::meter::Meter;

/// Passes frames on untouched but for a usage chunk that only we asked for and what
/// guardrails take out. Dropped before its end, it drops the upstream's body, which ends the call there, and the
/// meter, which settles.
#[derive(Debug)]
pub struct MeteredBody<B: Body> {
    body: B,
    meter: Option<Meter>,
    screening: Option<Box<Streamed>>,
    over: bool,
    /// How it broke off, once what waited has been sent.
    failed: Option<B::Error>,
    /// Counted, and traced, until the last byte.
    _under_way: (InFlight, Span),
}

impl<B: Body> MeteredBody<B> {
    pub(super) fn new(
        body: B,
        meter: Option<Meter>,
        screening: Option<Box<Streamed>>,
        under_way: (InFlight, Span),
    ) -> Self {
        Self { body, meter, screening, over: false, failed: None, _under_way: under_way }
    }

    /// Whether fewer bytes may go out than came in.
    pub(super) fn may_shrink(&self) -> bool {
        self.meter.as_ref().is_some_and(Meter::withholds)
            || self.screening.as_ref().is_some_and(|screening| screening.changes())
    }

    /// Reads the next bytes, and gives those to be sent.
    fn pass(&mut self, chunk: Bytes) -> Bytes {
        let mut out = match &mut self.meter {
            Some(meter) => meter.push(chunk),
            None => chunk,
        };
        if let Some(screening) = &mut self.screening {
            out = screening.push(out);
            self.note();
        }
        out
    }

    fn note(&mut self) {
        if let (Some(code), Some(meter)) = (self.screening.as_ref().and_then(|s| s.code()), &mut self.meter) {
            meter.found_by(code);
        }
    }

    fn is_refused(&self) -> bool {
        self.screening.as_ref().is_some_and(|screening| screening.is_refused())
    }

    /// Settles, and gives what is still to be sent.
    fn end(&mut self, whole: bool) -> Bytes {
        self.over = true;
        let mut rest = self.meter.as_mut().map_or_else(Bytes::new, Meter::rest);
        if let Some(screening) = &mut self.screening {
            rest = screening.finish(rest);
            self.note();
        }
        let whole = whole && !self.is_refused();
        if let Some(mut meter) = self.meter.take() {
            meter.finish(whole);
        }
        rest
    }
}

impl<B> Body for MeteredBody<B>
where
    B: Body<Data = Bytes, Error: Unpin> + Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        if this.over {
            return Poll::Ready(this.failed.take().map(Err));
        }
        loop {
            let frame = match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                None => {
                    let rest = this.end(true);
                    return Poll::Ready((!rest.is_empty()).then(|| Ok(Frame::data(rest))));
                }
                Some(Err(error)) => {
                    let rest = this.end(false);
                    if rest.is_empty() {
                        return Poll::Ready(Some(Err(error)));
                    }
                    this.failed = Some(error);
                    return Poll::Ready(Some(Ok(Frame::data(rest))));
                }
                Some(Ok(frame)) => frame,
            };
            let Ok(chunk) = frame.into_data() else { continue };
            let mut out = this.pass(chunk);
            // A body of known length is not polled past its last byte.
            if this.body.is_end_stream() || this.is_refused() {
                let rest = this.end(true);
                if !rest.is_empty() {
                    out = [out, rest].concat().into();
                }
                return Poll::Ready((!out.is_empty()).then(|| Ok(Frame::data(out))));
            }
            if !out.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(out))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.over && self.failed.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        if self.is_end_stream() {
            SizeHint::with_exact(0)
        } else if self.may_shrink() {
            SizeHint::default()
        } else {
            self.body.size_hint()
        }
    }
}
