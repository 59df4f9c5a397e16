//! The load: a closed loop over raw sockets, as light as it can be, and the reading of the proxy's CPU time.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};
use std::{fs, io};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Interval, interval_at};

use crate::Result;
use crate::upstream::MODEL;

const WARM_UP: Duration = Duration::from_millis(500);

/// One measurement of one proxy.
#[derive(clap::Args)]
pub(crate) struct Load {
    /// The proxy.
    pub(crate) address: SocketAddr,
    /// Its process, for the CPU time.
    pub(crate) pid: u32,
    /// Connections, each with one request at a time.
    pub(crate) connections: usize,
    /// How long, when one token serves for all.
    pub(crate) secs: f64,
    /// A file with a token a line. The first is for warming up, and for everything when it is alone; of the others each
    /// is sent once, and then the measurement ends.
    pub(crate) tokens: PathBuf,
    /// Ask for a stream.
    #[arg(long)]
    pub(crate) stream: bool,
    /// Requests per second over all connections; 0 sends the next as soon as an answer is there.
    #[arg(long, default_value_t = 0.0)]
    pub(crate) rate: f64,
}

/// What came of it. Latencies are in microseconds.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) cpu_per_request: f64,
    /// Of it, off the requests' path: on the threads that settle and that run the embedded database's statements.
    pub(crate) books_per_request: f64,
    pub(crate) per_second: f64,
    pub(crate) percentiles: [u64; 4],
    pub(crate) rss_mb: f64,
}

/// Of [`Measured::percentiles`].
pub(crate) const PERCENTILES: [f64; 4] = [50.0, 90.0, 99.0, 99.9];

struct Progress {
    tokens: Vec<String>,
    next: Cell<usize>,
    done: Cell<u64>,
    latencies: RefCell<Histogram<u64>>,
    starts: Instant,
    ends: Instant,
}

impl Load {
    pub(crate) fn arguments(&self) -> Vec<std::ffi::OsString> {
        let mut arguments = vec![
            self.address.to_string().into(),
            self.pid.to_string().into(),
            self.connections.to_string().into(),
            self.secs.to_string().into(),
            self.tokens.clone().into(),
        ];
        arguments.extend(self.stream.then(|| "--stream".into()));
        arguments.extend(["--rate".into(), self.rate.to_string().into()]);
        arguments
    }

    pub(crate) async fn run(&self) -> Result<Measured> {
        LocalSet::new().run_until(self.measure()).await
    }

    async fn measure(&self) -> Result<Measured> {
        let starts = Instant::now() + WARM_UP;
        let progress = Rc::new(Progress {
            tokens: fs::read_to_string(&self.tokens)?.lines().map(str::to_owned).collect(),
            next: Cell::new(1),
            done: Cell::new(0),
            latencies: RefCell::new(Histogram::new_with_bounds(1, 60_000_000, 3)?),
            starts,
            ends: starts + Duration::from_secs_f64(self.secs),
        });
        let mut connections = JoinSet::new();
        let opens = Instant::now();
        let pause = (self.rate > 0.0).then(|| Duration::from_secs_f64(self.connections as f64 / self.rate));
        for n in 0..self.connections {
            let connection = Connection::open(self.address, self.stream).await?;
            // Evenly spread: were all to take their turns at once, they would be answered in one go.
            let turns = pause.map(|pause| {
                let share = n as f64 / self.connections as f64;
                interval_at((opens + pause.mul_f64(share)).into(), pause)
            });
            connections.spawn_local(connection.run(Rc::clone(&progress), turns));
        }
        tokio::time::sleep_until(starts.into()).await;
        let (began, before) = (Instant::now(), cpu_time(self.pid)?);
        while let Some(ended) = connections.join_next().await {
            ended??;
        }
        let (elapsed, after) = (began.elapsed(), cpu_time(self.pid)?);
        let used = |wanted: &dyn Fn(&Thread) -> bool| {
            let of = |(id, thread): (_, &Thread)| thread.ns - before.get(id).map_or(0, |earlier: &Thread| earlier.ns);
            after.iter().filter(|(_, thread)| wanted(thread)).map(of).sum::<u64>()
        };
        let (requests, latencies) = (progress.done.get() as f64, progress.latencies.borrow());
        Ok(Measured {
            cpu_per_request: used(&|_| true) as f64 / 1e3 / requests,
            books_per_request: used(&|thread| thread.books) as f64 / 1e3 / requests,
            per_second: requests / elapsed.as_secs_f64(),
            percentiles: PERCENTILES.map(|percentile| latencies.value_at_percentile(percentile)),
            rss_mb: resident(self.pid)?,
        })
    }
}

impl Progress {
    /// The token of the next request; `None` when it is over.
    fn token(&self) -> Option<&str> {
        let now = Instant::now();
        if self.tokens.len() == 1 || now < self.starts {
            return self.tokens.first().filter(|_| now < self.ends).map(String::as_str);
        }
        let next = self.next.replace(self.next.get() + 1);
        self.tokens.get(next).map(String::as_str)
    }
}

struct Connection {
    stream: TcpStream,
    head: String,
    tail: String,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Connection {
    async fn open(address: SocketAddr, stream: bool) -> Result<Self> {
        let text = "Say something short about proxies, budgets and tokens. ".repeat(3);
        let asked = if stream { r#","stream":true"# } else { "" };
        let body = format!(
            r#"{{"model":"{MODEL}","messages":[{{"role":"user","content":"{text}"}}],"max_tokens":64{asked}}}"#
        );
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        Ok(Self {
            stream: socket,
            head: format!(
                "POST /v1/chat/completions HTTP/1.1\r\nhost: {address}\r\naccept: application/json\r\nauthorization: Bearer "
            ),
            tail: format!("\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len()),
            request: Vec::new(),
            answer: Vec::with_capacity(64 * 1024),
        })
    }

    async fn run(mut self, progress: Rc<Progress>, mut turns: Option<Interval>) -> Result<()> {
        loop {
            if let Some(turns) = &mut turns {
                turns.tick().await;
            }
            let Some(token) = progress.token() else { break };
            self.request.clear();
            for part in [&self.head, token, &self.tail] {
                self.request.extend_from_slice(part.as_bytes());
            }
            let sent = Instant::now();
            self.exchange().await?;
            if sent >= progress.starts {
                progress.done.set(progress.done.get() + 1);
                progress.latencies.borrow_mut().record(sent.elapsed().as_micros().max(1).try_into()?)?;
            }
        }
        Ok(())
    }

    /// Sends the request and reads the whole answer, which has to be a 200.
    async fn exchange(&mut self) -> Result<()> {
        self.stream.write_all(&self.request).await?;
        self.answer.clear();
        let mut end = End::Unknown;
        loop {
            if self.stream.read_buf(&mut self.answer).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            if matches!(end, End::Unknown) {
                end = End::of(&self.answer)?;
            }
            if end.reached(&self.answer) {
                break;
            }
        }
        if !self.answer.starts_with(b"HTTP/1.1 200 ") {
            return Err(String::from_utf8_lossy(&self.answer).into());
        }
        Ok(())
    }
}

/// Where an answer ends.
enum End {
    Unknown,
    At(usize),
    LastChunk,
}

impl End {
    fn of(answer: &[u8]) -> Result<Self> {
        let Some(head) = memchr::memmem::find(answer, b"\r\n\r\n") else { return Ok(Self::Unknown) };
        let text = std::str::from_utf8(answer.get(..head).unwrap_or_default())?.to_ascii_lowercase();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length:"));
        Ok(match length {
            Some(length) => Self::At(head + 4 + length.trim().parse::<usize>()?),
            None => Self::LastChunk,
        })
    }

    fn reached(&self, answer: &[u8]) -> bool {
        match self {
            Self::Unknown => false,
            Self::At(end) => answer.len() >= *end,
            Self::LastChunk => answer.ends_with(b"\r\n0\r\n\r\n"),
        }
    }
}

/// A thread of the measured process.
struct Thread {
    /// On a CPU so far.
    ns: u64,
    /// Whether it settles or runs SQLite's statements.
    books: bool,
}

/// Time on a CPU of each thread of a process, by the scheduler's accounting.
fn cpu_time(pid: u32) -> Result<HashMap<std::ffi::OsString, Thread>> {
    let mut threads = HashMap::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let thread = thread?;
        let statistics = fs::read_to_string(thread.path().join("schedstat"))?;
        let on_cpu = statistics.split(' ').next().ok_or("schedstat is empty")?;
        let name = fs::read_to_string(thread.path().join("comm"))?;
        let books = name.starts_with("sqlx-sqlite") || matches!(name.trim(), "settler" | "journal");
        threads.insert(thread.file_name(), Thread { ns: on_cpu.parse()?, books });
    }
    Ok(threads)
}

/// Memory of a process in MB.
fn resident(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kilobytes =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")).and_then(|line| line.split_whitespace().next());
    Ok(kilobytes.ok_or("no VmRSS")?.parse::<f64>()? / 1024.0)
}
