//! The command line.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::config::{self, Config};

mod dev;
mod maintenance;
mod serve;
mod zitadel;

/// Exit status for what the operator has to put right.
const MISCONFIGURED: u8 = 2;

/// Who may use which model, on whose budget: identity, tenancy, policy, budgets and
/// metering in front of an LLM proxy.
#[derive(Debug, Parser)]
#[command(name = "alchemi", version, propagate_version = true, max_term_width = 100)]
#[command(after_help = "Start with `alchemi dev`: a gateway with a database, an issuer and an upstream of its own, \
    and curl lines to try. Then `alchemi serve --config alchemi.toml` in front of LiteLLM.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct ConfigFile {
    /// Configuration in TOML; examples/alchemi.toml explains every key
    #[arg(short, long, value_name = "FILE", env = "ALCHEMI_CONFIG")]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway and the control plane
    ///
    /// Ends on SIGTERM or Ctrl-C: accepts nothing more, lets requests under way finish,
    /// settles them, and says how many.
    Serve(ConfigFile),
    /// Try it out: gateway, database, issuer and upstream in one process, on loopback
    ///
    /// Prints curl lines that work when pasted: a chat that is allowed, one that is
    /// streamed, one refused for its model and one refused for its budget.
    Dev(dev::DevOptions),
    /// Apply the database migrations, or print them
    #[command(after_help = "Only objects named Alchemi_* are created, so the database may be LiteLLM's own.")]
    Migrate {
        #[command(flatten)]
        file: ConfigFile,
        /// Print plain SQL that may be run twice, and touch nothing
        #[arg(long, value_name = "DATABASE")]
        print: Option<Backend>,
    },
    /// Check the configuration, and the files that it names, and print what is in force, secrets masked
    #[command(after_help = "Every key with its default and meaning is in examples/alchemi.toml, \
        which `alchemi check-config --example` prints. Environment variables override the file.")]
    CheckConfig {
        #[command(flatten)]
        file: ConfigFile,
        /// Print the example configuration and check nothing
        #[arg(long)]
        example: bool,
    },
    /// Print the OpenAPI description of /v1 as JSON
    Openapi,
    /// Print a fresh key
    Keygen {
        /// What it is for
        #[arg(value_enum, default_value = "master")]
        kind: KeyKind,
    },
    /// Check the audit
    Audit {
        #[command(subcommand)]
        command: AuditCommand,
    },
    /// Check the ledger
    Ledger {
        #[command(subcommand)]
        command: LedgerCommand,
    },
    /// Look after the secrets in the database
    Secrets {
        #[command(subcommand)]
        command: SecretsCommand,
    },
    /// Look at, and set up, what is between the gateway and Zitadel
    Zitadel {
        #[command(subcommand)]
        command: zitadel::ZitadelCommand,
    },
    /// Ask a running gateway whether it is ready; for containers
    Healthcheck {
        #[command(flatten)]
        file: ConfigFile,
        /// What to ask [default: /readyz on the address of the configuration]
        #[arg(long)]
        url: Option<String>,
    },
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Backend {
    Sqlite,
    Postgres,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum KeyKind {
    /// For ALCHEMI_MASTER_KEY: 64 hexadecimal digits
    Master,
    /// For ALCHEMI_SECRET_KEY and context.signing_key: 32 bytes in base64
    Secret,
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// Recompute the hash chain of every account, or of one
    Verify {
        #[command(flatten)]
        file: ConfigFile,
        /// Only this account
        #[arg(long, value_name = "ID")]
        account: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
enum LedgerCommand {
    /// Add up the ledger and compare it with every counter and roll-up
    Verify {
        #[command(flatten)]
        file: ConfigFile,
    },
}

#[derive(Debug, Subcommand)]
enum SecretsCommand {
    /// Say how many secrets are sealed under which key
    Status {
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Seal anew, under the first key, what is sealed under another
    ///
    /// May be stopped at any moment and run again, beside gateways that are at work.
    /// Afterwards, `alchemi secrets status` says which keys are in use no more.
    Rotate {
        #[command(flatten)]
        file: ConfigFile,
        /// Secrets in one transaction
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        batch: u32,
    },
}

/// A sentence for the operator, and the exit status that goes with it.
struct Failure {
    text: String,
    status: u8,
}

impl Failure {
    fn misconfigured(text: impl std::fmt::Display) -> Self {
        Self { text: text.to_string(), status: MISCONFIGURED }
    }

    fn failed(text: impl std::fmt::Display) -> Self {
        Self { text: text.to_string(), status: 1 }
    }
}

/// Reads the arguments, does what they say, and gives the exit status: 0 done, 1
/// failed, 2 to be put right by the operator.
pub fn run() -> ExitCode {
    match execute(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { text, status }) => {
            let _ = writeln!(std::io::stderr(), "alchemi: {text}");
            ExitCode::from(status)
        }
    }
}

fn execute(command: Command) -> Result<(), Failure> {
    match command {
        Command::Serve(file) => serve::serve(&load(&file)?),
        Command::Dev(options) => dev::dev(options),
        Command::Migrate { print: Some(backend), .. } => maintenance::print_migrations(backend),
        Command::Migrate { file, print: None } => maintenance::migrate(&load_for_database(&file)?),
        Command::CheckConfig { example: true, .. } => say(config::DEFAULTS.trim_end()),
        Command::CheckConfig { file, .. } => check_config(&file),
        Command::Openapi => say(&crate::v1::description().to_pretty_json().map_err(Failure::failed)?),
        Command::Keygen { kind } => maintenance::keygen(kind),
        Command::Audit { command: AuditCommand::Verify { file, account } } => {
            maintenance::verify_audit(&load_for_database(&file)?, account.as_deref())
        }
        Command::Ledger { command: LedgerCommand::Verify { file } } => {
            maintenance::verify_ledger(&load_for_database(&file)?)
        }
        Command::Secrets { command: SecretsCommand::Status { file } } => {
            maintenance::secrets_status(&load_for_database(&file)?)
        }
        Command::Secrets { command: SecretsCommand::Rotate { file, batch } } => {
            maintenance::rotate_secrets(&load_for_database(&file)?, batch)
        }
        Command::Zitadel { command } => zitadel::zitadel(command),
        Command::Healthcheck { url: Some(url), .. } => maintenance::healthcheck(&url, false),
        Command::Healthcheck { file, url: None } => {
            maintenance::healthcheck(&maintenance::readiness_url(&load_for_database(&file)?), true)
        }
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "alchemi", &mut text);
            say(String::from_utf8_lossy(&text).trim_end())
        }
    }
}

/// Checks what `serve` would before it listens; what is allowed but open goes to standard error.
fn check_config(file: &ConfigFile) -> Result<(), Failure> {
    let config = load(file)?;
    crate::server::check(&config).map_err(serve::start_failure)?;
    for warning in config.warnings().into_iter().chain(config::unknown_variables()) {
        let _ = writeln!(std::io::stderr(), "alchemi: warning: {warning}");
    }
    say(config::show(file.config.as_deref()).map_err(Failure::misconfigured)?.trim_end())
}

fn load(file: &ConfigFile) -> Result<Config, Failure> {
    Config::load(file.config.as_deref()).map_err(Failure::misconfigured)
}

fn load_for_database(file: &ConfigFile) -> Result<Config, Failure> {
    Config::load_for_database(file.config.as_deref()).map_err(Failure::misconfigured)
}

/// Prints a line to standard output; a reader that went away is no failure of ours.
fn say(text: &str) -> Result<(), Failure> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::failed(error)),
        _ => Ok(()),
    }
}

/// A runtime for as long as `work` takes.
fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::failed)?.block_on(work)
}
