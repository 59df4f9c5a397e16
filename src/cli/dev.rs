//! `alchemi dev`.

use std::path::PathBuf;

use clap::Args;

use super::Failure;

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
    /// Where the embedded database lives; a temporary folder unless said
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

pub(super) fn dev(_: DevOptions) -> Result<(), Failure> {
    Err(Failure::failed("soon"))
}
