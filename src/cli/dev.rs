//! `alchemi dev`: everything in one process, on loopback, with something to try.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::serve::{farewell, start_failure, stop_signal};
use super::{Failure, block_on, say};
use crate::clock::SystemClock;
use crate::config::{Config, LogConfig, TelemetryConfig};
use crate::dev::{DevIssuer, DevUpstream, UpstreamOptions};
use crate::id::RandomIds;
use crate::server::{Server, StartError, Surroundings};
use crate::telemetry;

mod seed;

/// How long the printed tokens are good for.
const TOKEN_LIFETIME: Duration = Duration::from_secs(12 * 3600);

/// The built-in upstream's key.
const UPSTREAM_KEY: &str = "sk-dev-upstream";

/// Options of `alchemi dev`.
#[derive(Debug, Args)]
pub(super) struct DevOptions {
    /// Port of the gateway on 127.0.0.1; 0 takes a free one
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// A real LiteLLM (or other upstream) in place of the built-in one
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
    /// Its key
    #[arg(long, value_name = "KEY", env = "ALCHEMI_UPSTREAM_API_KEY", hide_env_values = true)]
    upstream_key: Option<String>,
    /// Folder of the embedded database and of the printed tokens
    #[arg(long, value_name = "DIR", default_value = "./data/dev")]
    data_dir: PathBuf,
    /// What is logged: `info` adds a line for each refusal
    #[arg(long, value_name = "FILTER", env = "RUST_LOG", default_value = "warn")]
    log: String,
}

pub(super) fn dev(options: DevOptions) -> Result<(), Failure> {
    let log = LogConfig { filter: options.log.clone(), ..LogConfig::default() };
    let tracing = telemetry::start(&log, &TelemetryConfig::default()).map_err(Failure::misconfigured)?;
    let ended = block_on(run(options));
    tracing.stop();
    ended
}

async fn run(options: DevOptions) -> Result<(), Failure> {
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let issuer = DevIssuer::start(loopback, Arc::new(SystemClock), Arc::new(RandomIds)).await;
    let issuer = issuer.map_err(Failure::failed)?;
    let (upstream, built_in) = match options.upstream.clone() {
        Some(url) => (url, None),
        None => {
            let made = UpstreamOptions { api_key: Some(UPSTREAM_KEY.to_owned()), ..UpstreamOptions::default() };
            let started = DevUpstream::start(made).await.map_err(Failure::failed)?;
            (started.url().to_owned(), Some(started))
        }
    };
    let key = match &built_in {
        Some(_) => Some(UPSTREAM_KEY.to_owned()),
        None => options.upstream_key.clone(),
    };
    let master_key = crate::id::hex(&super::maintenance::random_key()?);
    let config = configuration(&options, &issuer, &upstream, key.as_deref(), &master_key)?;
    let server = Server::start(&config, Surroundings::default()).await.map_err(in_words_of_dev)?;
    let gateway = format!("http://{}", server.address());
    let models = seed::models(&upstream, key.as_deref()).await?;
    let world = seed::plant(&gateway, &master_key, &issuer, &models).await?;
    // Lines to paste in any folder.
    let folder = std::path::absolute(&options.data_dir).map_err(Failure::failed)?;
    let tokens = write_tokens(&folder, &issuer, &master_key)?;
    say(&introduction(&gateway, &upstream, issuer.url(), &world, &tokens))?;
    if world.found {
        say(&format!("This goes on from an earlier start. Remove {} to begin anew.", quoted(&folder)))?;
    }
    say("Ctrl-C stops it.")?;
    stop_signal().await;
    say("")?;
    say(&farewell(server.stop().await))
}

/// `dev` reads no file and none of the gateway's variables: it names its own options.
fn in_words_of_dev(error: StartError) -> Failure {
    match error {
        StartError::Listen { address, reason, .. } => Failure::misconfigured(format!(
            "--port {}: {reason}; choose another one, or 0 for any that is free",
            address.port()
        )),
        StartError::Journal(error) => Failure::misconfigured(format!("--data-dir: {error}")),
        other => start_failure(other),
    }
}

fn configuration(
    options: &DevOptions,
    issuer: &DevIssuer,
    upstream: &str,
    upstream_key: Option<&str>,
    master_key: &str,
) -> Result<Config, Failure> {
    let text = |text: &str| toml::Value::from(text).to_string();
    let key = upstream_key.map_or_else(String::new, |key| format!("api_key = {}", text(key)));
    // A mock model of a real LiteLLM has no price, and without one no budget can be tried.
    Config::from_toml(&format!(
        "listen = \"127.0.0.1:{port}\"\n\
         data_dir = {folder}\n\
         master_key = {master_key}\n\
         [secrets]\n\
         keys = [{secret_key}]\n\
         [outbound]\n\
         allow_loopback = true\n\
         [identity]\n\
         issuers = [{{ url = {issuer} }}]\n\
         project_id = {project}\n\
         super_admin_org_id = {organization}\n\
         [upstream]\n\
         urls = [{upstream}]\n\
         {key}\n\
         [metering]\n\
         unpriced = \"flat:0.001\"\n",
        port = options.port,
        folder = text(&options.data_dir.display().to_string()),
        master_key = text(master_key),
        secret_key = text(&kept_secret_key(&options.data_dir)?),
        issuer = text(issuer.url()),
        project = text(issuer.project_id()),
        organization = text(seed::ORGANIZATION),
        upstream = text(upstream),
    ))
    .map_err(Failure::misconfigured)
}

/// The key that the folder's database is sealed under; made with the folder.
fn kept_secret_key(folder: &Path) -> Result<String, Failure> {
    let path = folder.join("secret.key");
    if let Ok(key) = std::fs::read_to_string(&path) {
        return Ok(key);
    }
    let key = super::maintenance::secret_key()?;
    write_private(&path, &key).map_err(|e| Failure::failed(format!("{}: {e}", path.display())))?;
    Ok(key)
}

/// Writes a file that only its owner can read, in a folder of which the same is true
/// when it is made here.
fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    let (mut folder, mut file) = (std::fs::DirBuilder::new(), std::fs::OpenOptions::new());
    file.write(true).create(true).truncate(true);
    #[cfg(unix)]
    {
        std::os::unix::fs::DirBuilderExt::mode(&mut folder, 0o700);
        std::os::unix::fs::OpenOptionsExt::mode(&mut file, 0o600);
    }
    if let Some(parent) = path.parent() {
        folder.recursive(true).create(parent)?;
    }
    file.open(path)?.write_all(text.as_bytes())
}

/// The printed tokens, each in a file, so that the lines to paste stay short.
struct Tokens {
    ada: PathBuf,
    grace: PathBuf,
    admin: PathBuf,
    operator: PathBuf,
}

fn write_tokens(folder: &Path, issuer: &DevIssuer, master_key: &str) -> Result<Tokens, Failure> {
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        write_private(&path, text).map_err(|e| Failure::failed(format!("{}: {e}", path.display())))?;
        Ok(path)
    };
    let token = |subject: &str| issuer.mint(subject, TOKEN_LIFETIME).map_err(Failure::failed);
    Ok(Tokens {
        ada: write("ada.token", &token(seed::ADA)?)?,
        grace: write("grace.token", &token(seed::GRACE)?)?,
        admin: write("admin.token", &token(seed::ADMIN)?)?,
        operator: write("master.key", master_key)?,
    })
}

fn introduction(gateway: &str, upstream: &str, issuer: &str, world: &seed::World, tokens: &Tokens) -> String {
    let chat = |token: &Path, model: &str, extra: &str| {
        format!(
            "  curl -sN {gateway}/v1/chat/completions -H \"Authorization: Bearer $(cat {})\" \\\n    \
             -H 'Content-Type: application/json' \\\n    \
             -d '{{\"model\":\"{model}\",{extra}\"max_tokens\":64,\"messages\":[{{\"role\":\"user\",\"content\":\"Say hello\"}}]}}'",
            quoted(token)
        )
    };
    let seed::World { allowed, refused, .. } = world;
    format!(
        "\nalchemi dev: for trying out on this machine alone\n\n\
         \u{20} gateway   {gateway}    /docs shows the control plane\n\
         \u{20} upstream  {upstream}\n\
         \u{20} issuer    {issuer}    Zitadel-shaped, development only\n\
         \u{20} account   {} ({}): team Research with Ada and Grace\n\n\
         1. A chat that is allowed\n{}\n\n\
         2. The same, streamed\n{}\n\n\
         3. Refused: nobody granted this model\n{}\n\n\
         4. Refused: Grace has no credits left\n{}\n\n\
         What Ada may spend, and what the admin and the operator see\n\
         \u{20} curl -s {gateway}/v1/me/allocation -H \"Authorization: Bearer $(cat {})\"\n\
         \u{20} curl -s {gateway}/v1/budgets/copilot/usage-by-scope -H \"Authorization: Bearer $(cat {})\"\n\
         \u{20} curl -s {gateway}/v1/accounts -H \"Authorization: Bearer $(cat {})\"\n",
        world.account_name,
        world.account_id,
        chat(&tokens.ada, allowed, ""),
        chat(&tokens.ada, allowed, "\"stream\":true,"),
        chat(&tokens.ada, refused, ""),
        chat(&tokens.grace, allowed, ""),
        quoted(&tokens.ada),
        quoted(&tokens.admin),
        quoted(&tokens.operator),
    )
}

/// A path as a shell reads it back.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@%:,".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}
