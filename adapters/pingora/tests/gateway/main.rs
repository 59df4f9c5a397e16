//! alchemi inside of a gateway that is built with pingora, over real sockets.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "what is missing fails the test, in its helpers too"
)]

mod example;
/// What the gate makes of raw requests: the same cases as behind hyper's parser.
#[path = "../../../../tests/wire/framing.rs"]
mod framing;
mod governed;
#[path = "../../../../tests/wire/raw.rs"]
mod raw;
mod server;
#[expect(dead_code, unreachable_pub, reason = "an example is a program of its own")]
#[path = "../../../../examples/tower_stack.rs"]
mod tower_stack;
