//! Commands that look after the database, and small ones.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use super::{Backend, Failure, KeyKind, block_on, say};
use crate::clock::SystemClock;
use crate::config::Config;
use crate::context::Granted;
use crate::id::RandomIds;
use crate::store::secrets::{Rotation, SealedCount, Unopened, rotate};
use crate::store::{Store, StoreError, migrate};

pub(super) fn print_migrations(backend: Backend) -> Result<(), Failure> {
    let name = match backend {
        Backend::Sqlite => "sqlite",
        Backend::Postgres => "postgres",
    };
    say(migrate::print(name).map_err(Failure::misconfigured)?.trim_end())
}

pub(super) fn migrate(config: &Config) -> Result<(), Failure> {
    block_on(async {
        let store = Store::open(&config.database, Arc::new(SystemClock), Arc::new(RandomIds)).await;
        let store = store.map_err(store_failure)?;
        let applied = migrate::apply(&store).await.map_err(store_failure)?;
        for migration in &applied {
            say(&format!("applied {:04}_{}", migration.version, migration.name))?;
        }
        if applied.is_empty() {
            say("nothing to apply")?;
        }
        store.close().await;
        Ok(())
    })
}

pub(super) fn keygen(kind: KeyKind) -> Result<(), Failure> {
    match kind {
        KeyKind::Master => say(&crate::id::hex(&random_key()?)),
        KeyKind::Secret => say(&secret_key()?),
    }
}

/// A fresh key for `secrets.keys`.
pub(super) fn secret_key() -> Result<String, Failure> {
    use base64::Engine;
    Ok(base64::engine::general_purpose::STANDARD.encode(random_key()?))
}

/// 32 bytes that nobody can guess.
pub(super) fn random_key() -> Result<[u8; 32], Failure> {
    let mut key = [0_u8; 32];
    aws_lc_rs::rand::fill(&mut key).map_err(|_| Failure::failed("the system gives no randomness"))?;
    Ok(key)
}

pub(super) fn verify_audit(config: &Config, only: Option<&str>) -> Result<(), Failure> {
    block_on(async {
        let store = open(config).await?;
        let system = Granted::system();
        let mut chains = store.read(&system).await.map_err(store_failure)?.audited().await.map_err(store_failure)?;
        if let Some(only) = only {
            chains.retain(|account| account.as_str() == only);
            if chains.is_empty() {
                return Err(Failure::failed(format!("nothing was ever audited of an account {only}")));
            }
        }
        if chains.is_empty() {
            say("nothing was ever audited")?;
        }
        let mut broken = 0;
        for account in &chains {
            let mut tx = store.read(&system.over(account.clone())).await.map_err(store_failure)?;
            let verdict = tx.verify_audit().await.map_err(store_failure)?;
            match (verdict.broken_at_seq, verdict.reason) {
                (Some(seq), Some(reason)) => {
                    broken += 1;
                    say(&format!("{account}: broken at event {seq}: {reason}"))?;
                }
                _ => say(&format!("{account}: {} events, intact", verdict.events))?,
            }
        }
        if broken > 0 {
            Err(Failure::failed(format!("{broken} of {} chains are broken", chains.len())))
        } else {
            Ok(())
        }
    })
}

pub(super) fn verify_ledger(config: &Config) -> Result<(), Failure> {
    block_on(async {
        let store = open(config).await?;
        let report = crate::store::conservation::verify(&store).await.map_err(store_failure)?;
        for difference in &report.differences {
            say(&difference.to_string())?;
        }
        say(&format!(
            "{} rows, {} counters, {} open reservations, {} leases, {} accounts",
            report.rows, report.counters, report.reservations, report.leases, report.accounts
        ))?;
        if report.more_differences > 0 {
            say(&format!("and {} more", report.more_differences))?;
        }
        match report.differing() {
            0 => say("the books balance"),
            n => Err(Failure::failed(format!("{n} differences: the books do not balance"))),
        }
    })
}

pub(super) fn secrets_status(config: &Config) -> Result<(), Failure> {
    let keys: Vec<&str> = config.secrets.keys.ids().collect();
    match keys.split_first() {
        None => say("no keys: secrets.keys (ALCHEMI_SECRET_KEY) is empty")?,
        Some((first, rest)) => {
            say(&format!("key {first}: seals"))?;
            rest.iter().try_for_each(|key| say(&format!("key {key}: opens")))?;
        }
    }
    block_on(async {
        let store = open(config).await?;
        let counts = store.read(&Granted::system()).await.map_err(store_failure)?.sealed_counts().await;
        let (mut lost, mut waiting) = (0, 0);
        for count in counts.map_err(store_failure)? {
            let SealedCount { table, key_id, secrets } = count;
            let note = match keys.iter().position(|key| *key == key_id) {
                Some(0) => "",
                Some(_) => {
                    waiting += secrets;
                    ": waiting for `alchemi secrets rotate`"
                }
                None => {
                    lost += secrets;
                    ": this key is not configured"
                }
            };
            say(&format!("{table}: {secrets} under {key_id}{note}"))?;
        }
        match (lost, waiting) {
            (0, 0) if keys.is_empty() => Ok(()),
            (0, 0) => say("every secret is under the first key; the others may go"),
            (0, _) => Ok(()),
            (lost, _) => Err(Failure::failed(format!("{lost} secrets are under keys that are not configured"))),
        }
    })
}

pub(super) fn rotate_secrets(config: &Config, batch: u32) -> Result<(), Failure> {
    block_on(async {
        let store = open(config).await?;
        let tell = |so_far: &Rotation| {
            // Who reads it may have gone away: the work goes on.
            let _ = say(&format!("{} sealed anew", so_far.resealed));
        };
        let done = rotate(&store, &config.secrets.keys, batch, tell).await.map_err(store_failure)?;
        for Unopened { table, account, id, reason } in &done.failed {
            say(&format!("{table} {id} of account {account}: {reason}"))?;
        }
        let Rotation { resealed, skipped, failed } = done;
        say(&format!("done: {resealed} sealed anew, {skipped} changed meanwhile, {} failed", failed.len()))?;
        match failed.len() {
            0 => Ok(()),
            n => Err(Failure::failed(format!("{n} secrets do not open"))),
        }
    })
}

/// Where a gateway of this configuration on this machine says whether it is ready.
pub(super) fn readiness_url(config: &Config) -> String {
    let mut address = config.admin_listen.unwrap_or(config.listen);
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
    }
    let is_tls = config.tls.is_some() && config.admin_listen.is_none();
    format!("{}://{address}/readyz", if is_tls { "https" } else { "http" })
}

/// Asks a gateway whether it is ready. One of this machine's `own` is asked directly, and its
/// certificate may be for the name that clients use.
pub(super) fn healthcheck(url: &str, own: bool) -> Result<(), Failure> {
    block_on(async {
        let client = reqwest::Client::builder().timeout(Duration::from_secs(5));
        let client = if own { client.no_proxy().danger_accept_invalid_certs(true) } else { client };
        let answer = client.build().map_err(Failure::failed)?.get(url).send().await;
        let answer = answer.map_err(|error| Failure::failed(format!("{url}: {}", root_cause(&error))))?;
        let (ready, status) = (answer.status().is_success(), answer.status());
        let text = answer.text().await.unwrap_or_default();
        if ready { say(text.trim_end()) } else { Err(Failure::failed(format!("{url}: {status} {text}"))) }
    })
}

/// What is behind all that an error says: reqwest itself repeats the address alone.
fn root_cause(error: &reqwest::Error) -> String {
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    causes.last().map_or_else(|| error.to_string(), ToString::to_string)
}

async fn open(config: &Config) -> Result<Store, Failure> {
    Store::open_existing(&config.database, Arc::new(SystemClock), Arc::new(RandomIds)).await.map_err(store_failure)
}

fn store_failure(error: StoreError) -> Failure {
    match error {
        StoreError::Setup(_) => Failure::misconfigured(error),
        other => Failure::failed(other),
    }
}
