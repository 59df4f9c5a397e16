//! The HTTP edge of the proxy, through real sockets where there is a socket.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "what is missing fails the test, in its helpers too"
)]

mod balance;
mod forward;
mod framing;
mod headers;
mod ingress;
mod raw;
mod routes;
mod server;
mod upstream;
