//! A proxy that spoils connections.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::seed::Dice;

/// What happens to bytes under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spoil {
    /// They come late.
    Delay,
    /// The connection is reset.
    Reset,
    /// One direction ends, the other goes on.
    HalfClose,
    /// They wait until it is over.
    Stall,
    /// The first byte of what was read at once is another. It breaks the framing of either protocol; an amount in the
    /// middle of a plain message that turns into another amount could be noticed by TLS alone.
    Corrupt,
}

impl Spoil {
    pub(crate) const ALL: [Self; 5] = [Self::Delay, Self::Reset, Self::HalfClose, Self::Stall, Self::Corrupt];
}

/// Where the bytes go.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    Tcp(String),
    Unix(String),
}

#[derive(Debug)]
struct Shared {
    target: Target,
    spoil: watch::Receiver<Option<Spoil>>,
    dice: Dice,
}

#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) address: String,
    spoil: watch::Sender<Option<Spoil>>,
    serving: JoinHandle<()>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Wire {
    pub(crate) async fn start(target: Target, dice: Dice) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (spoil, receiver) = watch::channel(None);
        let shared = Arc::new(Shared { target, spoil: receiver, dice });
        let serving = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                connections.spawn(connection(near, Arc::clone(&shared)));
            }
        });
        Self { address, spoil, serving }
    }

    pub(crate) fn spoil(&self, spoil: Option<Spoil>) {
        self.spoil.send_replace(spoil);
    }
}

/// How a direction came to its end.
enum End {
    /// Its sender had no more.
    Closed,
    /// Both are to be cut.
    Cut,
}

async fn connection(mut near: TcpStream, shared: Arc<Shared>) {
    let _ = near.set_nodelay(true);
    let end = match &shared.target {
        Target::Tcp(address) => {
            let Ok(mut far) = TcpStream::connect(address).await else { return };
            let _ = far.set_nodelay(true);
            let end = join(near.split(), far.split(), &shared).await;
            if matches!(end, End::Cut) {
                let _ = far.set_zero_linger();
            }
            end
        }
        Target::Unix(path) => {
            let Ok(mut far) = UnixStream::connect(path).await else { return };
            join(near.split(), far.split(), &shared).await
        }
    };
    // What was cut is to be seen as a reset.
    if matches!(end, End::Cut) {
        let _ = near.set_zero_linger();
    }
}

async fn join<R, W, S, X>((near_read, near_write): (R, W), (far_read, far_write): (S, X), shared: &Shared) -> End
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
    S: AsyncRead + Unpin,
    X: AsyncWrite + Unpin,
{
    let there = pump(near_read, far_write, shared);
    let back = pump(far_read, near_write, shared);
    tokio::pin!(there, back);
    // An end that is an end lets the other direction go on.
    tokio::select! {
        end = &mut there => if matches!(end, End::Closed) { back.await } else { end },
        end = &mut back => if matches!(end, End::Closed) { there.await } else { end },
    }
}

async fn pump(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, shared: &Shared) -> End {
    let mut spoil = shared.spoil.clone();
    let mut buffer = vec![0_u8; 64 * 1024];
    loop {
        let length = match from.read(&mut buffer).await {
            Ok(0) => break,
            Ok(length) => length,
            Err(_) => return End::Cut,
        };
        let now = *spoil.borrow_and_update();
        match now {
            None => {}
            Some(Spoil::Delay) => tokio::time::sleep(shared.dice.millis(5..150)).await,
            Some(Spoil::Stall) => _ = spoil.wait_for(|spoil| *spoil != Some(Spoil::Stall)).await,
            // Not each time, so that some get through the first step and break at the next.
            Some(_) if shared.dice.below(3) > 0 => {}
            Some(Spoil::Reset) => return End::Cut,
            Some(Spoil::HalfClose) => break,
            Some(Spoil::Corrupt) => buffer[0] ^= 0x80,
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return End::Cut;
        }
    }
    let _ = to.shutdown().await;
    End::Closed
}
