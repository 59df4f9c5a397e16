//! Reading bodies: requests, usage, streams, prices, charges.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

mod ask;
mod charge;
mod fixture;
mod json;
mod multipart;
mod price;
mod sse;
