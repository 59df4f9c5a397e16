//! Reading bodies: requests, usage, streams, prices, charges.

mod ask;
mod charge;
mod fixture;
mod json;
mod multipart;
mod price;
mod sse;
