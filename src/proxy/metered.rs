//! A response body that passes while its usage is read.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::metrics::InFlight;
use crate::metering::meter::Meter;

/// Passes frames on untouched but for a usage chunk that only we asked for. Dropped
/// before its end, it drops the upstream's body, which ends the call there, and the
/// meter, which settles.
#[derive(Debug)]
pub struct MeteredBody<B> {
    body: B,
    meter: Option<Meter>,
    over: bool,
    _in_flight: InFlight,
}

impl<B> MeteredBody<B> {
    pub(super) fn new(body: B, meter: Option<Meter>, in_flight: InFlight) -> Self {
        Self { body, meter, over: false, _in_flight: in_flight }
    }

    /// Whether fewer bytes may go out than came in.
    pub(super) fn may_shrink(&self) -> bool {
        self.meter.as_ref().is_some_and(Meter::withholds)
    }

    /// Settles, and gives what is still to be sent.
    fn end(&mut self, whole: bool) -> Bytes {
        self.over = true;
        self.meter.take().map_or_else(Bytes::new, |mut meter| meter.finish(whole))
    }
}

impl<B> Body for MeteredBody<B>
where
    B: Body<Data = Bytes> + Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        if this.over {
            return Poll::Ready(None);
        }
        loop {
            let frame = match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                None => {
                    let rest = this.end(true);
                    return Poll::Ready((!rest.is_empty()).then(|| Ok(Frame::data(rest))));
                }
                Some(Err(error)) => {
                    this.end(false);
                    return Poll::Ready(Some(Err(error)));
                }
                Some(Ok(frame)) => frame,
            };
            let Ok(chunk) = frame.into_data() else { continue };
            let mut out = match &mut this.meter {
                Some(meter) => meter.push(chunk),
                None => chunk,
            };
            // A body of known length is not polled past its last byte.
            if this.body.is_end_stream() {
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
        self.over
    }

    fn size_hint(&self) -> SizeHint {
        if self.over {
            SizeHint::with_exact(0)
        } else if self.may_shrink() {
            SizeHint::default()
        } else {
            self.body.size_hint()
        }
    }
}
