//! A guardrail of one's own in the gateway: `alchemi serve`, but nobody asks a model for more than a quota of characters,
//! and whoever writes a project's code name has it replaced before it leaves. Settings are those of `alchemi serve`:
//!
//! ```sh
//! ZITADEL_ISSUER=https://id.example.com ZITADEL_PROJECT_ID=310716200000000001 cargo run --example plugin
//! ```
#![expect(clippy::print_stdout, reason = "it says where it listens")]

use std::error::Error;
use std::sync::Arc;

use alchemi::config::Config;
use alchemi::context::Context;
use alchemi::plugin::{Guardrail, Screened};
use alchemi::policy::{Ask, Permit};
use alchemi::server::{Server, Surroundings};
use bytes::Bytes;

/// Keeps a code name from every model, and long questions from all but admins.
#[derive(Debug)]
pub struct HouseRules {
    /// What must not leave.
    pub code_name: &'static str,
    /// The most bytes of a question, for those who are no admins.
    pub longest: usize,
}

impl Guardrail for HouseRules {
    fn screen(&self, caller: &Context, _: &Ask, _: &Permit, body: &Bytes) -> Screened {
        if body.len() > self.longest && caller.account_admin().is_err() {
            return Screened::Blocked { code: "house".to_owned(), pattern: "too long a question".to_owned() };
        }
        // The body is the caller's JSON; a name without quotation marks in it can be replaced in the text.
        match std::str::from_utf8(body) {
            Ok(text) if text.contains(self.code_name) => {
                Screened::Masked { code: "house".to_owned(), body: text.replace(self.code_name, "[project]").into() }
            }
            _ => Screened::Passed,
        }
    }
}

/// The gateway with the house's rules.
///
/// # Errors
/// As [`Server::start`].
pub async fn start(config: &Config) -> Result<Server, Box<dyn Error + Send + Sync>> {
    let rules = HouseRules { code_name: "Bluebird", longest: 100_000 };
    let surroundings = Surroundings { guardrails: vec![Arc::new(rules)], ..Surroundings::default() };
    Ok(Server::start(config, surroundings).await?)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let server = start(&Config::load(None)?).await?;
    println!("http://{}", server.address());
    tokio::signal::ctrl_c().await?;
    server.stop().await;
    Ok(())
}
