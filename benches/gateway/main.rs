//! What a request costs through alchemi, a bare hyper proxy and nginx, against the same upstream in one run.
//!
//! `cargo bench --bench gateway` prints, for each mode, the CPU time that each proxy's process used per request (by the
//! operating system's accounting), requests per second and latencies, as medians over interleaved rounds. Every party is
//! a process of its own: the proxies on the first core, load and upstream on the second. This executable starts itself
//! again for the parts that are its own. `benches/README.md` tells how to read the figures.
#![expect(clippy::print_stdout, reason = "the report, and the roles' answers to their parent")]

mod bare;
mod issuer;
mod load;
mod process;
mod report;
mod tenant;
mod upstream;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand, ValueEnum};

use load::{Load, Measured};
use process::Proxies;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[derive(Parser)]
#[command(about = "Compares alchemi with a bare hyper proxy and nginx", long_about = None)]
struct Arguments {
    /// Rounds; in each, every target runs every mode once.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of a measurement, after half a second of warming up.
    #[arg(long, default_value_t = 1.5)]
    secs: f64,
    /// Requests of a measurement with cold tokens: one token each.
    #[arg(long, default_value_t = 5_000)]
    cold_requests: usize,
    /// Connections, each with one request at a time.
    #[arg(long, default_value_t = 32)]
    connections: usize,
    /// Requests per second that every target is sent; 0: as many as it answers.
    #[arg(long, default_value_t = 0.0)]
    rate: f64,
    /// What to measure.
    #[arg(long, value_delimiter = ',', default_values_t = Target::value_variants().to_vec())]
    targets: Vec<Target>,
    /// How to measure it.
    #[arg(long, value_delimiter = ',', default_values_t = Mode::value_variants().to_vec())]
    modes: Vec<Mode>,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    role: Option<Role>,
}

/// A part that runs as a process of its own.
#[derive(Subcommand)]
#[command(hide = true)]
enum Role {
    Upstream,
    Bare { upstream: SocketAddr },
    Issuer { keys: String },
    Load(Load),
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Target {
    /// The floor: hyper's server and client, nothing between them.
    Bare,
    /// nginx as a reverse proxy, when it is installed.
    Nginx,
    /// alchemi with everything on but `allocation.enforcement`: no reservation, yet every request is settled.
    AlchemiUnenforced,
    /// alchemi with everything on: caps on user, team, org and account, reserved in the database.
    Alchemi,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// A token that has been seen before.
    Warm,
    /// A token never seen before, for each request.
    Cold,
    /// A stream of 20 events, with a warm token.
    Stream,
}

impl Target {
    fn is_alchemi(self) -> bool {
        matches!(self, Self::Alchemi | Self::AlchemiUnenforced)
    }
}

macro_rules! shown_as_its_argument {
    ($($name:ty),*) => {$(
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.to_possible_value().as_ref().map_or("", |value| value.get_name()))
            }
        }
    )*};
}
shown_as_its_argument!(Target, Mode);

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match &arguments.role {
        None => compare(&arguments),
        Some(Role::Upstream) => on_one_thread(upstream::run()),
        Some(Role::Bare { upstream }) => on_one_thread(bare::run(*upstream)),
        Some(Role::Issuer { keys }) => on_one_thread(issuer::run(keys)),
        Some(Role::Load(load)) => {
            let measured = on_one_thread(load.run())?;
            println!("{}", serde_json::to_string(&measured)?);
            Ok(())
        }
    }
}

fn on_one_thread<T>(task: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(task)
}

fn compare(arguments: &Arguments) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let proxies = Proxies::start(&arguments.targets, folder.path())?;
    let mut report = report::Report::default();
    for round in 0..arguments.rounds {
        for &mode in &arguments.modes {
            let minted = mint(arguments, mode, &proxies, &folder.path().join(format!("tokens-{round}-{mode}")))?;
            for proxy in &proxies.running {
                eprintln!("round {} of {}: {mode}, {}", round + 1, arguments.rounds, proxy.target);
                let tokens = minted.join(proxy.tenant);
                let measured = measure(arguments, mode, proxy, &tokens)?;
                report.add(mode, proxy.target, measured);
            }
        }
    }
    print!("{report}");
    Ok(())
}

/// Writes the tokens of one round: for each tenant one that stays, and for [`Mode::Cold`] as many as there are requests.
fn mint(arguments: &Arguments, mode: Mode, proxies: &Proxies, folder: &Path) -> Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let cold = if mode == Mode::Cold { arguments.cold_requests } else { 0 };
    for tenant in &proxies.tenants {
        let lines = tenant.tokens(1 + cold)?.join("\n");
        fs::write(folder.join(tenant.name()), lines)?;
    }
    Ok(folder.to_owned())
}

fn measure(arguments: &Arguments, mode: Mode, proxy: &process::Proxy, tokens: &Path) -> Result<Measured> {
    let load = Load {
        address: proxy.address,
        pid: proxy.process.id(),
        connections: arguments.connections,
        secs: arguments.secs,
        stream: mode == Mode::Stream,
        rate: arguments.rate,
        tokens: tokens.to_owned(),
    };
    let line = process::load(&load).map_err(|error| format!("{} ({mode}): {error}", proxy.target))?;
    Ok(serde_json::from_str(&line)?)
}
