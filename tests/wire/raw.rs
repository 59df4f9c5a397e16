//! Raw bytes to a server, and what it says.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest that any exchange may take before the test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Sends the pieces one after another and reads until the server closes.
///
/// Writes may fail once the server has refused; what it said still counts.
pub(crate) async fn exchange(address: SocketAddr, pieces: impl IntoIterator<Item = &[u8]>) -> String {
    let socket = TcpStream::connect(address).await.unwrap();
    socket.set_nodelay(true).unwrap();
    let (mut read, mut write) = socket.into_split();
    let reader = tokio::spawn(async move {
        let mut answer = Vec::new();
        let _ = read.read_to_end(&mut answer).await;
        answer
    });
    for piece in pieces {
        if write.write_all(piece).await.is_err() {
            break;
        }
        // Lets the server see this piece alone, most of the time.
        tokio::task::yield_now().await;
    }
    let _ = write.shutdown().await;
    let answer = tokio::time::timeout(PATIENCE, reader).await.expect("the server closes").unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// The statuses of the responses in a raw answer, in order.
pub(crate) fn statuses(answer: &str) -> Vec<u16> {
    let heads = answer.match_indices("HTTP/1.");
    heads.filter_map(|(at, _)| answer.get(at + 9..at + 12)?.parse().ok()).collect()
}
