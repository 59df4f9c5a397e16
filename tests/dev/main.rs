//! The development issuer and upstream, over real HTTP.
#![cfg(feature = "server")]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "what is missing fails the test, in its helpers too"
)]

mod faults;
mod issuer;
mod upstream;

use std::time::Duration;

/// What hangs fails, however slow the machine is.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("it hangs")
}
