//! `alchemi zitadel …`: the operator's view of what is between the gateway and Zitadel.
//!
//! Planning and making are the operations of `/v1`, called in this process with the
//! operator's own right.

use std::io::Read as _;
use std::sync::Arc;

use axum::body::Body;
use clap::{Args, Subcommand};
use http::{Method, Request, header};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::{ConfigFile, Failure, block_on, load, say};
use crate::clock::{Clock as _, SharedClock, SystemClock};
use crate::config::Config;
use crate::context::RequestInfo;
use crate::id::{IdSource, RandomIds};
use crate::identity::{Identity, master_key_context};
use crate::provision::Provisioner;
use crate::store::{Store, StoreError};
use crate::v1::{self, App};
use crate::zitadel::Error;

mod why;

#[derive(Debug, Subcommand)]
pub(super) enum ZitadelCommand {
    /// Show issuers, management API, and how far provisioning is
    ///
    /// Exit status 1 when an issuer or the management API cannot be used.
    Status {
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Show what a bootstrap would make for an account
    ///
    /// Exit status 1 when Zitadel cannot be asked although there are credentials for it.
    Plan {
        #[command(flatten)]
        of: OfAccount,
    },
    /// Bind an account, and make its roles and its admins' grants
    Bootstrap {
        #[command(flatten)]
        of: OfAccount,
        /// The project, if not the account's
        #[arg(long, value_name = "ID")]
        project: Option<String>,
        /// The organisation, if not the account's
        #[arg(long, value_name = "ID")]
        organization: Option<String>,
        /// What stands before the canonical role names
        #[arg(long, value_name = "TEXT")]
        role_prefix: Option<String>,
        /// Only say what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// Show how what is wanted for an account differs from what Zitadel holds
    ///
    /// Exit status 1 when it differs, or cannot be told.
    Drift {
        #[command(flatten)]
        of: OfAccount,
    },
    /// Say, check by check, what becomes of a token
    ///
    /// Exit status 1 when it is refused.
    #[command(after_help = "The token is checked and never printed. Give `-` to read it from standard input, which \
        keeps it out of the shell's history.")]
    Why {
        #[command(flatten)]
        file: ConfigFile,
        /// The access token, or `-`
        token: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct OfAccount {
    #[command(flatten)]
    file: ConfigFile,
    /// The account
    #[arg(long, value_name = "ID")]
    account: String,
    /// Print the whole answer as JSON
    #[arg(long)]
    json: bool,
}

/// The parts that the commands work with.
struct Parts {
    config: Config,
    store: Store,
    identity: Identity,
    provisioner: Provisioner,
}

pub(super) fn zitadel(command: ZitadelCommand) -> Result<(), Failure> {
    block_on(async {
        match command {
            ZitadelCommand::Status { file } => status(&open(&file).await?).await,
            ZitadelCommand::Plan { of } => plan(&of).await,
            ZitadelCommand::Bootstrap { of, project, organization, role_prefix, dry_run } => {
                let body = json!({
                    "project_id": project, "organization_id": organization, "role_prefix": role_prefix,
                    "resolve_user_ids_from_zitadel": true, "dry_run": dry_run,
                });
                bootstrap(&of, body).await
            }
            ZitadelCommand::Drift { of } => drift(&of).await,
            ZitadelCommand::Why { file, token } => {
                let token = if token == "-" { from_input()? } else { token };
                // As it stands in a header.
                let token = token.trim().trim_start_matches("Bearer ").trim();
                if token.is_empty() {
                    return Err(Failure::misconfigured(
                        "there is no token: give it, or `-` and the token on standard input",
                    ));
                }
                why::why(&open(&file).await?, token).await
            }
        }
    })
}

fn from_input() -> Result<String, Failure> {
    let mut text = String::new();
    std::io::stdin().take(64 * 1024).read_to_string(&mut text).map_err(Failure::failed)?;
    Ok(text)
}

async fn open(file: &ConfigFile) -> Result<Parts, Failure> {
    let config = load(file)?;
    let clock: SharedClock = Arc::new(SystemClock);
    let store = Store::open_existing(&config.database, Arc::clone(&clock), Arc::new(RandomIds)).await;
    let store = store.map_err(unusable)?;
    let pending = crate::store::migrate::pending(&store).await.map_err(unusable)?;
    if let Some(first) = pending.first() {
        return Err(Failure::misconfigured(format!(
            "the database lacks migration {:04}_{}: run `alchemi migrate`",
            first.version, first.name
        )));
    }
    let identity = Identity::new(&config.identity, Arc::clone(&clock)).map_err(Failure::misconfigured)?;
    let provisioner = crate::server::provisioner(&config, &store, &identity, &clock).map_err(Failure::misconfigured)?;
    Ok(Parts { config, store, identity, provisioner })
}

fn unusable(error: StoreError) -> Failure {
    match error {
        StoreError::Setup(_) => Failure::misconfigured(error),
        other => Failure::failed(other),
    }
}

/// Calls an operation as the operator; a refusal is its own sentence.
async fn call(of: &OfAccount, method: Method, rest: &str, body: Option<Value>) -> Result<Value, Failure> {
    let parts = open(&of.file).await?;
    let router = v1::router(App::new(parts.store.clone()).with_provisioner(parts.provisioner.clone()));
    let id = RandomIds.uuid(SystemClock.now()).to_string();
    let uri = format!("/v1/accounts/{}/zitadel/provision/{rest}", of.account);
    let mut request = Request::builder().method(method).uri(uri).header(header::CONTENT_TYPE, "application/json");
    if let Some(extensions) = request.extensions_mut() {
        extensions.insert(master_key_context(None));
        extensions.insert(RequestInfo { id: id.into(), client_ip: None });
    }
    let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
    let request = request.body(body).map_err(|_| Failure::misconfigured("--account is no account's id"))?;
    let answer = match router.oneshot(request).await {
        Ok(answer) => answer,
        Err(never) => match never {},
    };
    let (status, body) = (answer.status(), axum::body::to_bytes(answer.into_body(), usize::MAX).await);
    let body: Value = serde_json::from_slice(&body.map_err(Failure::failed)?).map_err(Failure::failed)?;
    parts.store.close().await;
    if status.is_success() {
        return Ok(body);
    }
    let detail = body.get("detail").and_then(Value::as_str).unwrap_or("refused").to_owned();
    Err(match word(&body, "code") {
        "zitadel_not_configured" if status == 400 => {
            let half = parts.config.zitadel.warnings();
            Failure::misconfigured(half.into_iter().fold(detail, |said, half| format!("{said}; {half}")))
        }
        "project_id_missing" => Failure::failed("no project: name it by --project, or bind the account to one"),
        _ => Failure::failed(detail),
    })
}

fn pretty(value: &Value) -> Result<(), Failure> {
    say(&serde_json::to_string_pretty(value).map_err(Failure::failed)?)
}

fn word<'a>(value: &'a Value, key: &str) -> &'a str {
    at(value, key).as_str().unwrap_or("-")
}

/// A member, or `null`.
fn at<'a>(value: &'a Value, key: &str) -> &'a Value {
    value.get(key).unwrap_or(&Value::Null)
}

fn words(value: &Value) -> String {
    let items = value.as_array().into_iter().flatten().filter_map(Value::as_str);
    items.collect::<Vec<_>>().join(", ")
}

fn each(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

async fn plan(of: &OfAccount) -> Result<(), Failure> {
    let plan = call(of, Method::GET, "plan", None).await?;
    let problem = at(&plan, "remote_problem");
    if of.json {
        pretty(&plan)?;
        return told(problem);
    }
    let config = at(&plan, "zitadel_config");
    say(&format!(
        "project {}, organisation {}; what Zitadel holds is {}",
        word(config, "project_id"),
        word(config, "organization_id"),
        at(problem, "detail").as_str().map_or_else(|| "known".to_owned(), |why| format!("unknown: {why}"))
    ))?;
    for role in each(at(&plan, "standard_roles")) {
        say(&format!("role   {:<28} {}", word(role, "key"), word(role, "remote")))?;
    }
    for admin in each(at(&plan, "account_admins")) {
        let keys = words(at(admin, "resolved_role_keys"));
        let keys = if keys.is_empty() { word(admin, "problem").to_owned() } else { keys };
        say(&format!("admin  {:<28} {keys}", word(admin, "user_email")))?;
    }
    told(problem)
}

/// Why it cannot be told what Zitadel holds: a failure, unless it was never to be asked.
fn told(problem: &Value) -> Result<(), Failure> {
    let detail = word(problem, "detail");
    match word(problem, "reason") {
        "-" | "project_id_missing" | "zitadel_not_configured" => Ok(()),
        _ => Err(Failure::failed(format!("what Zitadel holds cannot be told: {detail}"))),
    }
}

async fn bootstrap(of: &OfAccount, body: Value) -> Result<(), Failure> {
    let made = call(of, Method::POST, "bootstrap", Some(body)).await?;
    let summary = at(&made, "summary");
    if of.json {
        pretty(&made)?;
        return told(at(summary, "remote_problem"));
    }
    let line = |kind: &str, name: &str, result: &Value| {
        let state = if at(result, "status") == "skipped" { word(result, "remote") } else { word(result, "status") };
        let why = at(result, "message").as_str().filter(|_| state != "exists");
        let why = why.map(|why| format!(": {why}")).unwrap_or_default();
        say(&format!("{kind:<8} {name:<28} {state}{why}"))
    };
    let result = at(&made, "result");
    for role in each(at(at(result, "roles"), "results")) {
        line("role", word(role, "key"), role)?;
    }
    if at(result, "project_grant").is_object() {
        line("project", "grant to the organisation", at(result, "project_grant"))?;
    }
    for grant in each(at(at(result, "admin_grants"), "grants")) {
        line("admin", word(grant, "email"), grant)?;
    }
    for admin in each(at(at(&made, "summary"), "unresolved_admins")) {
        say(&format!("{:<8} {:<28} unresolved: {}", "admin", word(admin, "email"), word(admin, "reason")))?;
        for candidate in each(at(admin, "candidates")) {
            say(&format!("{:<8} {:<28} could be {}", "", word(candidate, "login_name"), word(candidate, "user_id")))?;
        }
    }
    told(at(summary, "remote_problem"))?;
    let open = |of: &Value| at(of, "failed").as_u64().unwrap_or(0) + at(of, "pending").as_u64().unwrap_or(0);
    let granting = matches!(word(at(result, "project_grant"), "status"), "failed" | "pending");
    let unresolved = each(at(summary, "unresolved_admins")).count() as u64;
    let open = open(at(summary, "role_sync_summary")) + open(at(summary, "admin_grant_summary")) + u64::from(granting);
    match (open, unresolved) {
        (0, 0) => Ok(()),
        (0, n) => Err(Failure::failed(format!("{n} admins are granted nothing; see above"))),
        (n, _) => Err(Failure::failed(format!("{n} are not as they should be; a running gateway tries them again"))),
    }
}

async fn drift(of: &OfAccount) -> Result<(), Failure> {
    let drift = call(of, Method::GET, "drift", None).await?;
    if of.json {
        pretty(&drift)?;
    } else {
        for item in each(at(&drift, "items")) {
            let why = at(item, "detail").as_str().map(|why| format!(": {why}")).unwrap_or_default();
            let (kind, target) = (word(item, "kind"), word(item, "target"));
            say(&format!("{kind:<14} {target:<28} {:<9} {}{why}", word(item, "state"), word(item, "remote")))?;
            for (keys, what) in [("missing_keys", "not held"), ("surplus_keys", "still held")] {
                match words(at(item, keys)) {
                    none if none.is_empty() => {}
                    keys => say(&format!("{:<14} {:<28} {what}: {keys}", "", ""))?,
                }
            }
        }
        for grant in each(at(&drift, "unexpected")) {
            let keys = words(at(grant, "role_keys"));
            say(&format!("{:<14} {:<28} unexpected: {keys}", "user_grant", word(grant, "user_id")))?;
        }
    }
    if at(&drift, "in_sync") == true {
        return if of.json { Ok(()) } else { say("Zitadel holds what is wanted") };
    }
    let nothing = at(&drift, "items").as_array().is_none_or(Vec::is_empty);
    if let (false, Some(problem)) = (nothing, each(at(&drift, "remote_problems")).next()) {
        let (project, why) = (word(problem, "project_id"), word(problem, "detail"));
        return Err(Failure::failed(format!("what Zitadel holds of project {project} cannot be told: {why}")));
    }
    let bootstrap = format!("`alchemi zitadel bootstrap --account {}`", of.account);
    Err(Failure::failed(if nothing {
        format!("nothing is provisioned for this account yet: {bootstrap}")
    } else if at(&drift, "enabled") == false {
        "the account's binding is switched off: nothing is granted until `enabled` is set in its zitadel/config"
            .to_owned()
    } else if each(at(&drift, "items")).any(|item| matches!(word(item, "state"), "failed" | "conflict")) {
        "Zitadel does not hold what is wanted; what stands in its way is said above".to_owned()
    } else {
        format!("Zitadel does not hold what is wanted: {bootstrap} puts it right")
    }))
}

async fn status(parts: &Parts) -> Result<(), Failure> {
    parts.identity.warm().await;
    let mut useless = false;
    for issuer in parts.identity.status() {
        let keys = match issuer.keys {
            0 => {
                useless = true;
                "publishes no key that can be had".to_owned()
            }
            n => format!("publishes {n} usable keys"),
        };
        say(&format!("issuer      {} {keys}", issuer.issuer))?;
    }
    let project = parts.config.identity.project_id.as_deref().unwrap_or("not set: no roles are read");
    say(&format!("project     {project}"))?;
    if let Some(answer) = parts.identity.probe_introspection().await {
        useless |= answer.is_err();
        let said = answer.map_or_else(|error| error.to_string(), |()| "answers".to_owned());
        say(&format!("introspect  {said}"))?;
    }
    let management = parts.provisioner.management();
    let half = parts.config.zitadel.warnings();
    let said = match management.probe().await {
        Ok(surface) => format!("answers, {surface}"),
        Err(Error::NotConfigured) => match half.first() {
            Some(half) => half.trim_start_matches("zitadel: ").to_owned(),
            None => "no credentials: accounts are planned for, and nothing is made".to_owned(),
        },
        Err(error) => {
            useless = true;
            error.to_string()
        }
    };
    say(&format!("management  {said}"))?;
    let system = crate::context::Granted::system();
    let counts = parts.store.read(&system).await.map_err(unusable)?.provision_counts().await.map_err(unusable)?;
    for (state, count) in &counts {
        say(&format!("items       {count} {state}"))?;
    }
    if counts.is_empty() {
        say("items       none: no account is provisioned")?;
    }
    parts.store.close().await;
    if useless { Err(Failure::failed("not all of it can be used")) } else { Ok(()) }
}
