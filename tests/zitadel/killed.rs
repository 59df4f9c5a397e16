//! A gateway that is killed, over and over, while it makes so in Zitadel what is wanted there.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Method;
use serde_json::json;

use crate::common::database::Database;
use crate::common::fifty::{ADMINS, Fifty};
use crate::common::process::{Place, Running};
use crate::common::zitadel::{Knobs, Stall, TOKEN, Zitadel};
use crate::common::{Client, MASTER_KEY, backends};

/// Each kind of call is the last of a life, before so many calls are. The first of them comes when what is wanted is
/// written down: before, whoever asked has to ask again.
const STEPS: [Stall; 9] = [
    Stall::Path("/ListProjectRoles"),
    Stall::Path("/ListAuthorizations"),
    Stall::Path("/GetProject"),
    Stall::Path("/AddProjectRole"),
    Stall::Path("/ListProjectGrants"),
    Stall::Path("/UpdateProjectGrant"),
    Stall::Path("/users"),
    Stall::Path("/CreateAuthorization"),
    Stall::Path("/UpdateAuthorization"),
];

/// `alchemi serve` on a database.
struct Process {
    running: Running,
    operator: Client,
}

impl Process {
    fn start(place: &Place) -> Self {
        let mut running = place.start(&["serve", "--config", "alchemi.toml"]);
        let line = running.says(r#""address":""#);
        let address = line.split(r#""address":""#).nth(1).and_then(|rest| rest.split('"').next()).unwrap();
        let operator = Client::new(&format!("http://{address}")).with_token(MASTER_KEY);
        Self { running, operator }
    }
}

/// Where each of its lives begins.
fn place(database_url: &str, zitadel: &Zitadel) -> Place {
    let place = Place::new()
        .with("ALCHEMI_LISTEN", "127.0.0.1:0")
        .with("ALCHEMI_DATA_DIR", ".")
        .with("ALCHEMI_LOG_FORMAT", "json")
        .with("ALCHEMI_MASTER_KEY", MASTER_KEY)
        .with("DATABASE_URL", database_url)
        .with("ZITADEL_MGMT_API_BASE_URL", zitadel.url())
        .with("ZITADEL_MGMT_API_TOKEN", TOKEN);
    place.file("alchemi.toml", "[zitadel]\nrequests_per_second = 5000\n");
    place
}

/// A call of each life is the last: it is done in Zitadel, its answer is never read, and the process is killed.
/// One call in five fails by itself. In the end all is as wanted, nobody else's roles are touched, and a second
/// bootstrap changes nothing.
#[tokio::test]
async fn a_bootstrap_of_fifty_whose_process_is_killed_at_every_step_converges() {
    for backend in backends().await {
        let folder = tempfile::tempdir().unwrap();
        let database_url = backend.url(folder.path());
        let scene = Fifty::new().await;
        let zitadel = &scene.zitadel;
        let place = place(&database_url, zitadel);
        let mut process = Process::start(&place);
        let operator = process.operator.clone();
        let made = operator.post("/v1/accounts", json!({"account_name": "Acme"})).await.ok();
        let account = made["account_id"].as_str().unwrap().to_owned();
        scene.admit(&operator, &account).await;
        zitadel.knobs(|knobs| {
            (knobs.fail_one_in, knobs.lag, knobs.stall) = (Some(5), Duration::from_millis(20), Some(STEPS[0]));
        });
        let path = format!("/v1/accounts/{account}/zitadel/provision/bootstrap");
        let (asking, request) = (operator.clone(), operator.request(Method::POST, &path).json(&scene.bootstrap()));
        let asked = tokio::spawn(async move { asking.try_send(request).await });

        let database = Database::at(&database_url);
        let mut killed_at: BTreeMap<String, u32> = BTreeMap::new();
        let mut lives = 0;
        while stalled_or_done(zitadel, &database).await {
            process.running.kill();
            let last = zitadel.requests().pop().unwrap();
            *killed_at.entry(last.path.rsplit('/').next().unwrap().to_owned()).or_default() += 1;
            lives += 1;
            assert!(lives < 600, "it does not converge: {killed_at:?}");
            // The lease of the dead runs out.
            database.execute(r#"DELETE FROM "Alchemi_ZitadelLeaseTable""#).await;
            let next = STEPS.get(lives).copied();
            let next = next.unwrap_or_else(|| Stall::Call(zitadel.requests().len() + 1 + 7 * lives % 41));
            zitadel.knobs(|knobs| knobs.stall = Some(next));
            process = Process::start(&place);
        }
        println!("{lives} lives, {} calls, killed at {killed_at:?}", zitadel.requests().len());
        assert!(asked.await.unwrap().is_err(), "whoever asked was cut off, too");
        assert!(killed_at.len() >= STEPS.len() && lives > 20, "killed at {killed_at:?} only");
        scene.check();

        zitadel.knobs(|knobs| *knobs = Knobs::default());
        let writes = zitadel.world().writes;
        let again = process.operator.post(&path, scene.bootstrap()).await.ok();
        assert_eq!(zitadel.world().writes, writes, "the second bootstrap changes nothing");
        assert_eq!(again["summary"]["admin_grant_summary"]["exists"], ADMINS, "{}", again["summary"]);
        scene.check();
        process.running.kill();
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
