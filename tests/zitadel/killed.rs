//! A gateway that is killed, over and over, while it makes so in Zitadel what is wanted there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::common::database::Database;
use crate::common::zitadel::{Knobs, Stall, TOKEN, Zitadel};
use crate::common::{Client, MASTER_KEY, backends};

const ADMINS: usize = 50;
/// Of them, those who hold a role of somebody else's before.
const REVIEWERS: usize = 10;

/// Each kind of call is the last of a life, before so many calls are.
const STEPS: [Stall; 9] = [
    Stall::Path("/ListAuthorizations"),
    Stall::Path("/GetProject"),
    Stall::Path("/ListProjectRoles"),
    Stall::Path("/AddProjectRole"),
    Stall::Path("/ListProjectGrants"),
    Stall::Path("/UpdateProjectGrant"),
    Stall::Path("/users"),
    Stall::Path("/CreateAuthorization"),
    Stall::Path("/UpdateAuthorization"),
];

/// `alchemi serve` on a database.
struct Process {
    child: Child,
    address: SocketAddr,
    client: Client,
}

impl Process {
    async fn start(folder: &Path, database_url: &str, zitadel: &Zitadel) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let file = folder.join("alchemi.toml");
        std::fs::write(&file, "[zitadel]\nrequests_per_second = 5000\n").unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_alchemi"))
            .args(["serve", "--config", file.to_str().unwrap()])
            .current_dir(folder)
            .env_clear()
            .env("ALCHEMI_LISTEN", address.to_string())
            .env("ALCHEMI_DATA_DIR", folder)
            .env("ALCHEMI_MASTER_KEY", MASTER_KEY)
            .env("DATABASE_URL", database_url)
            .env("ZITADEL_MGMT_API_BASE_URL", zitadel.url())
            .env("ZITADEL_MGMT_API_TOKEN", TOKEN)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let client = Client::new(&format!("http://{address}")).with_token(MASTER_KEY);
        Self { child, address, client }
    }

    /// Once it answers.
    async fn ready(&self) -> &Client {
        for _ in 0..1_200 {
            if tokio::net::TcpStream::connect(self.address).await.is_ok() {
                return &self.client;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("it does not listen");
    }

    /// `kill -9`.
    async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }
}

/// What is there before: an organisation with users, another one's project, and somebody else's role.
struct Place {
    zitadel: Zitadel,
    project: String,
    org: String,
    users: Vec<String>,
    eve: String,
}

impl Place {
    async fn new() -> Self {
        let zitadel = Zitadel::start("127.0.0.1:0".parse().unwrap()).await;
        let (owner, org) = (zitadel.org("Platform"), zitadel.org("Acme"));
        let project = zitadel.project(&owner, "gateway");
        let users: Vec<String> = (0..ADMINS).map(|n| zitadel.user(&org, &format!("admin{n}@acme.com"))).collect();
        let eve = zitadel.user(&org, "eve@acme.com");
        {
            let mut world = zitadel.world();
            world.put_role(&project, "reviewer");
            world.add_project_grant_of(&project, &org, &["reviewer"]);
            for user in users.iter().take(REVIEWERS).chain([&eve]) {
                world.put_grant(user, &project, &org, &["reviewer"]);
            }
        }
        Self { zitadel, project, org, users, eve }
    }

    fn bootstrap(&self) -> Value {
        json!({
            "project_id": self.project, "organization_id": self.org, "resolve_user_ids_from_zitadel": true,
        })
    }

    fn check(&self) {
        let world = self.zitadel.world();
        for (n, user) in self.users.iter().enumerate() {
            let held: Vec<String> = world.roles_of(user, &self.project).into_iter().collect();
            let wanted: &[&str] =
                if n < REVIEWERS { &["copilot_org_admin", "reviewer"] } else { &["copilot_org_admin"] };
            assert_eq!(held, wanted, "admin{n}");
        }
        let granted: Vec<&String> = world.live_grants().map(|grant| &grant.user).collect();
        let once: BTreeSet<&&String> = granted.iter().collect();
        assert_eq!((granted.len(), once.len()), (ADMINS + 1, ADMINS + 1), "one grant for each");
        assert_eq!(world.roles_of(&self.eve, &self.project).into_iter().collect::<Vec<_>>(), ["reviewer"]);
        assert_eq!(world.role_keys(&self.project).len(), 7);
    }
}

/// A call of each life is the last: it is done in Zitadel, its answer is never read, and the process is killed.
/// One call in five fails by itself. In the end all is as wanted, nobody else's roles are touched, and a second
/// bootstrap changes nothing.
#[tokio::test]
async fn a_bootstrap_of_fifty_whose_process_is_killed_at_every_step_converges() {
    for backend in backends().await {
        let folder = tempfile::tempdir().unwrap();
        let database_url = backend.url(folder.path());
        let place = Place::new().await;
        let zitadel = &place.zitadel;
        let mut process = Process::start(folder.path(), &database_url, zitadel).await;
        let operator = process.ready().await;
        let made = operator.post("/v1/accounts", json!({"account_name": "Acme"})).await.ok();
        let account = made["account_id"].as_str().unwrap().to_owned();
        for n in 0..ADMINS {
            let body = json!({"user_email": format!("admin{n}@acme.com"), "role": "copilot_org_admin"});
            operator.post(&format!("/v1/accounts/{account}/admins"), body).await.ok();
        }
        zitadel.knobs(|knobs| {
            (knobs.fail_one_in, knobs.lag, knobs.stall) = (Some(5), Duration::from_millis(20), Some(STEPS[0]));
        });
        let path = format!("/v1/accounts/{account}/zitadel/provision/bootstrap");
        let (asking, request) = (operator.clone(), operator.request(Method::POST, &path).json(&place.bootstrap()));
        let asked = tokio::spawn(async move { asking.try_send(request).await });

        let database = Database::at(&database_url);
        let mut killed_at: BTreeMap<String, u32> = BTreeMap::new();
        let mut lives = 0;
        while stalled_or_done(zitadel, &database).await {
            process.kill().await;
            let last = zitadel.requests().pop().unwrap();
            *killed_at.entry(last.path.rsplit('/').next().unwrap().to_owned()).or_default() += 1;
            lives += 1;
            assert!(lives < 600, "it does not converge: {killed_at:?}");
            // The lease of the dead runs out.
            database.execute(r#"DELETE FROM "Alchemi_ZitadelLeaseTable""#).await;
            let next = STEPS.get(lives).copied();
            let next = next.unwrap_or_else(|| Stall::Call(zitadel.requests().len() + 1 + 7 * lives % 41));
            zitadel.knobs(|knobs| knobs.stall = Some(next));
            process = Process::start(folder.path(), &database_url, zitadel).await;
        }
        println!("{lives} lives, {} calls, killed at {killed_at:?}", zitadel.requests().len());
        assert!(asked.await.unwrap().is_err(), "whoever asked was cut off, too");
        assert!(killed_at.len() >= STEPS.len() && lives > 20, "killed at {killed_at:?} only");
        place.check();

        zitadel.knobs(|knobs| *knobs = Knobs::default());
        let writes = zitadel.world().writes;
        let again = process.ready().await.post(&path, place.bootstrap()).await.ok();
        assert_eq!(zitadel.world().writes, writes, "the second bootstrap changes nothing");
        assert_eq!(again["summary"]["admin_grant_summary"]["exists"], ADMINS, "{}", again["summary"]);
        place.check();
        process.kill().await;
    }
}

/// Waits until Zitadel answers no more, or until there is nothing left to be made so; whether it is the former.
async fn stalled_or_done(zitadel: &Zitadel, database: &Database) -> bool {
    for _ in 0..1_200 {
        let states = database.rows(r#"SELECT state FROM "Alchemi_ZitadelItemTable""#, &[]).await;
        if zitadel.has_stalled() {
            return true;
        }
        if !states.is_empty() && states.iter().all(|row| row["state"] == "applied") {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("neither a call nor an end");
}
