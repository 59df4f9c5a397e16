//! Three gateways, a database, an issuer and an upstream, with proxies between them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU16, Ordering};
use std::time::{Duration, Instant};

use alchemi::clock::SystemClock;
use alchemi::dev::{DevIssuer, DevUser, Org};
use alchemi::id::RandomIds;
use http::Method;
use jsonwebtoken::Algorithm;
use serde_json::json;
use tempfile::TempDir;

use crate::cluster::Cluster;
use crate::common::Client;
use crate::common::gateway::MASTER_KEY;
use crate::load::question;
use crate::process::Process;
use crate::seed::Dice;
use crate::upstream::{PRICES, Upstream};
use crate::wire::{Target, Wire};

/// Gateways of a run.
const GATEWAYS: usize = 3;

/// After how long a gateway charges what nobody settled; longer than a request may take.
pub(crate) const ABANDON_AFTER: Duration = Duration::from_secs(4);

/// After how long without a word a gateway's leases are lost; the shortest that there is.
pub(crate) const LEASE: Duration = Duration::from_secs(10);

/// What the scarce account gets at a time: some thirty requests' worth.
const SCARCE: i64 = 4;

/// How long anything may take that is not measured.
const PATIENCE: Duration = Duration::from_secs(30);

/// An account, what it may spend, and somebody of it.
#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) id: String,
    /// In nano-credits; it is only ever raised.
    pub(crate) cap: Arc<AtomicI64>,
    pub(crate) person: Client,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) gateways: Vec<Process>,
    pub(crate) to_upstream: Wire,
    pub(crate) to_database: Wire,
    pub(crate) upstream: Upstream,
    pub(crate) cluster: Cluster,
    /// Whether each gateway's data folder is a small disk of its own.
    pub(crate) small_disks: bool,
    /// One with plenty, one whose credits run out under the load.
    pub(crate) accounts: Vec<Account>,
    issuer: DevIssuer,
    mounts: Vec<Mount>,
    folder: TempDir,
}

impl World {
    /// None where there is no PostgreSQL.
    pub(crate) async fn build(dice: &Dice) -> Option<Self> {
        let cluster = Cluster::fresh().await?;
        let loopback = "127.0.0.1:0".parse().unwrap();
        let issuer = DevIssuer::start(loopback, Arc::new(SystemClock), Arc::new(RandomIds)).await.unwrap();
        let upstream = Upstream::start(dice.fork()).await;
        let to_upstream = Wire::start(Target::Tcp(upstream.address.clone()), dice.fork()).await;
        let to_database = Wire::start(cluster.target.clone(), dice.fork()).await;
        let folder = tempfile::tempdir().unwrap();
        let mut mounts = Vec::new();
        let mut gateways = Vec::new();
        for n in 0..GATEWAYS {
            let home = folder.path().join(n.to_string());
            std::fs::create_dir_all(home.join("data")).unwrap();
            mounts.extend(Mount::small(&home.join("data")));
            let port = free_port();
            let config = config(
                port,
                &home.join("data"),
                &cluster.url_through(&to_database.address),
                &issuer,
                &to_upstream.address,
            );
            std::fs::write(home.join("alchemi.toml"), config).unwrap();
            gateways.push(Process::new(home, port));
        }
        let small_disks = mounts.len() == GATEWAYS;
        let mut world = Self {
            gateways,
            to_upstream,
            to_database,
            upstream,
            cluster,
            small_disks,
            accounts: Vec::new(),
            issuer,
            mounts,
            folder,
        };
        for gateway in &mut world.gateways {
            gateway.set_clock(0);
            gateway.start();
        }
        world.ready().await;
        world.populate().await;
        Some(world)
    }

    /// The data folder of a gateway.
    pub(crate) fn data(&self, gateway: usize) -> PathBuf {
        self.folder.path().join(gateway.to_string()).join("data")
    }

    /// Waits until every gateway says that it is ready.
    pub(crate) async fn ready(&mut self) {
        let until = Instant::now() + PATIENCE;
        for gateway in &mut self.gateways {
            let client = Client::new(&gateway.url);
            let ready = async || {
                let request = client.request(Method::GET, "/readyz").timeout(Duration::from_secs(1));
                client.try_send(request).await.is_ok_and(|reply| reply.status.is_success())
            };
            while !ready().await {
                let ended = gateway.ended();
                assert!(
                    ended.is_none() && Instant::now() < until,
                    "a gateway is not ready ({ended:?}): {}",
                    gateway.last_words()
                );
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    async fn populate(&mut self) {
        let operator = Client::new(&self.gateways[0].url).with_token(MASTER_KEY);
        for (name, credits) in [("plenty", 100_000), ("scarce", SCARCE)] {
            let made = operator.post("/v1/accounts", json!({"account_name": name})).await.ok();
            let id = made["account_id"].as_str().unwrap().to_owned();
            let allocation = json!({"account_id": id, "monthly_credits": credits});
            operator.post("/v1/budgets/account-allocation", allocation).await.ok();
            let person = Client::new(&self.gateways[0].url).with_token(&self.token(&id));
            self.accounts.push(Account { id, cap: Arc::new(AtomicI64::new(credits * 1_000_000_000)), person });
        }
        self.divide(&operator).await;
    }

    /// Gives the rich account a plan, so that a request draws on a chain of scopes.
    async fn divide(&self, operator: &Client) {
        let operator = operator.within(&self.accounts[0].id);
        let id = |made: &serde_json::Value| made["item"]["id"].as_str().unwrap().to_owned();
        let org = id(&operator.post("/v1/copilot/orgs", json!({"name": "Research"})).await.ok());
        let team = id(&operator.post("/v1/copilot/teams", json!({"org_id": org, "name": "Physics"})).await.ok());
        let user = json!({"identity_user_id": "ada", "display_name": "Ada", "team_ids": [team]});
        let user = id(&operator.post("/v1/copilot/users", user).await.ok());
        let plan = id(&operator.post("/v1/budgets/copilot/plans", json!({"name": "plan"})).await.ok());
        operator.post(&format!("/v1/budgets/copilot/plans/{plan}/activate"), json!({})).await.ok();
        for (scope, id) in [("org", &org), ("team", &team), ("user", &user)] {
            let share = json!({"plan_id": plan, "scope_type": scope, "scope_id": id, "allocated_credits": 10_000});
            operator.post("/v1/budgets/copilot/allocations/upsert", share).await.ok();
        }
    }

    /// More credits for the account whose credits run out.
    pub(crate) async fn top_up(&self) {
        let scarce = &self.accounts[1];
        let cap = scarce.cap.fetch_add(SCARCE * 1_000_000_000, Ordering::SeqCst) + SCARCE * 1_000_000_000;
        let allocation = json!({"account_id": scarce.id, "monthly_credits": cap / 1_000_000_000});
        let operator = Client::new(&self.gateways[0].url).with_token(MASTER_KEY);
        let until = Instant::now() + PATIENCE;
        loop {
            let request = operator.request(Method::POST, "/v1/budgets/account-allocation").json(&allocation);
            match operator.try_send(request).await {
                Ok(reply) if reply.status.is_success() => return,
                // Connections that a fault has broken may be tried yet.
                other => assert!(Instant::now() < until, "no credits are given: {other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// A token that is good on a clock which is hours off.
    fn token(&self, account: &str) -> String {
        let home =
            Org { id: format!("org-of-{account}"), name: "Home".to_owned(), domain: "acme.localhost".to_owned() };
        self.issuer.add_user(DevUser {
            subject: "ada".to_owned(),
            email: None,
            name: "ada".to_owned(),
            organization: home,
            roles: Default::default(),
            claims: serde_json::Map::from_iter([("alchemi:account_id".to_owned(), json!(account))]),
        });
        let mut claims = self.issuer.claims("ada", Duration::from_secs(8 * 3600)).unwrap();
        let hours_ago = claims["iat"].as_i64().unwrap() - 3 * 3600;
        for name in ["iat", "nbf", "auth_time"] {
            if let Some(claim) = claims.get_mut(name) {
                *claim = json!(hours_ago);
            }
        }
        self.issuer.sign(Algorithm::RS256, &claims).unwrap()
    }

    /// Until each gateway has answered a fresh request.
    pub(crate) async fn recovery(&self) -> Duration {
        let begun = Instant::now();
        for gateway in &self.gateways {
            let person = self.accounts[0].person.at(&gateway.url);
            let answered = async || {
                let request = person.request(Method::POST, "/v1/chat/completions").json(&question(false));
                let reply = person.try_send(request.timeout(Duration::from_secs(1))).await;
                reply.is_ok_and(|reply| reply.status.is_success())
            };
            while !answered().await && begun.elapsed() < PATIENCE {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        begun.elapsed()
    }
}

fn config(port: u16, data: &Path, database: &str, issuer: &DevIssuer, upstream: &str) -> String {
    format!(
        "listen = '127.0.0.1:{port}'\n\
         data_dir = '{data}'\n\
         master_key = '{MASTER_KEY}'\n\
         [database]\nurl = '{database}'\nacquire_timeout_ms = 2000\n\
         [identity]\nproject_id = '{project}'\nissuers = [{{ url = '{issuer}' }}]\n\
         [upstream]\nurls = ['http://{upstream}']\napi_key = 'sk-upstream'\nhealth_interval = 0\n\
         connect_timeout = 1\nresponse_timeout = 3\nidle_timeout = 3\ntotal_timeout = 3\n\
         [allocation]\nabandon_after_seconds = {abandon}\n\
         [allocation.leases]\nlease_seconds = {lease}\n\
         [metering.prices]\n\"m\" = {PRICES}\n\
         [policy]\ndefault_model_access = 'allow'\n\
         [limits]\ndrain_seconds = 5\n",
        data = data.display(),
        project = issuer.project_id(),
        issuer = issuer.url(),
        abandon = ABANDON_AFTER.as_secs(),
        lease = LEASE.as_secs(),
    )
}

/// A port that nobody listens on, outside of those that the system gives to others meanwhile: a gateway that is started
/// again has to be where it was.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = std::process::id() % 12_000;
    let mut ports = std::iter::repeat_with(|| NEXT.fetch_add(1, Ordering::Relaxed))
        .map(|n| 20_000 + u16::try_from((first + u32::from(n)) % 12_000).unwrap());
    ports.find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}

/// A disk of 8 MiB.
#[derive(Debug)]
struct Mount(PathBuf);

impl Mount {
    fn small(at: &Path) -> Option<Self> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"]).arg(at).stderr(std::process::Stdio::null());
        mount.status().is_ok_and(|status| status.success()).then(|| Self(at.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.gateways.iter_mut().for_each(Process::kill);
        self.mounts.clear();
    }
}
