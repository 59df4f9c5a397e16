//! The database goes away while requests come, and comes back.

use std::path::{Path, PathBuf};
use std::time::Duration;

use alchemi::allocation::Enforcement;
use alchemi::dev::Behaviour;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::common::database::Database;
use crate::common::gateway::PATIENCE;
use crate::common::{Backend, Client, Reply, backends};
use crate::{Stage, chat, open, streamed};

/// The way to PostgreSQL, which can be cut.
struct Cable {
    folder: TempDir,
    server: Server,
    carrying: Option<JoinHandle<()>>,
}

#[derive(Clone)]
enum Server {
    Socket(PathBuf),
    Address(String),
}

impl Cable {
    /// A cable to the database with this URL, and the URL at its near end.
    fn to(url: &str) -> (Self, String) {
        let mut url: url::Url = url.parse().unwrap();
        let port = url.port().unwrap_or(5432);
        let folder = tempfile::tempdir().unwrap();
        let host = url.query_pairs().find(|(name, _)| name == "host").map(|(_, host)| host.into_owned());
        let server = match host {
            Some(host) if host.starts_with('/') => Server::Socket(Path::new(&host).join(format!(".s.PGSQL.{port}"))),
            host => Server::Address(format!("{}:{port}", host.as_deref().or(url.host_str()).unwrap())),
        };
        url.set_port(Some(5432)).unwrap();
        url.query_pairs_mut().clear().append_pair("host", folder.path().to_str().unwrap());
        let mut cable = Self { folder, server, carrying: None };
        cable.mend();
        (cable, url.into())
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join(".s.PGSQL.5432")
    }

    fn mend(&mut self) {
        let listener = UnixListener::bind(self.socket()).unwrap();
        let server = self.server.clone();
        self.carrying = Some(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                let server = server.clone();
                connections.spawn(async move {
                    let _ = match server {
                        Server::Socket(path) => {
                            let mut far = UnixStream::connect(path).await.unwrap();
                            tokio::io::copy_bidirectional(&mut near, &mut far).await
                        }
                        Server::Address(address) => {
                            let mut far = TcpStream::connect(address).await.unwrap();
                            tokio::io::copy_bidirectional(&mut near, &mut far).await
                        }
                    };
                });
            }
        }));
    }

    /// Breaks every connection; nobody gets a new one.
    async fn cut(&mut self) {
        let carrying = self.carrying.take().unwrap();
        carrying.abort();
        let _ = carrying.await;
        std::fs::remove_file(self.socket()).unwrap();
    }
}

#[track_caller]
fn unavailable(reply: &Reply) {
    assert_eq!((reply.status.as_u16(), reply.code().as_str()), (503, "store_unavailable"), "{}", reply.text());
    assert!(reply.header("retry-after").parse::<u32>().unwrap() > 0);
}

/// What `/readyz` says of the database.
fn database_of(reply: &Reply) -> Value {
    let checks = reply.json()["checks"].clone();
    checks.as_array().unwrap().iter().find(|check| check["name"] == "database").unwrap().clone()
}

async fn ask(client: &Client) -> Reply {
    client.post("/v1/chat/completions", chat("gpt-4o")).await
}

/// Asks until it is answered again.
async fn recovered(client: &Client) {
    let recovery = async {
        while ask(client).await.status != 200 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, recovery).await.expect("it recovers by itself");
}

#[tokio::test]
async fn requests_are_refused_while_postgres_is_away_and_served_when_it_is_back() {
    for backend in backends().await {
        let Backend::Postgres(url) = backend else { continue };
        let (mut cable, url) = Cable::to(&url);
        let stage = Stage::with(Backend::Postgres(url), |config| config.database.acquire_timeout_ms = 5_000).await;
        let anybody = stage.gateway.anybody();
        ask(&stage.ada).await.ok();
        stage.gateway.upstream.behave(Behaviour { gap: Duration::from_millis(20), ..Behaviour::default() });
        let mut answer = open(&stage.ada, "/v1/chat/completions", &streamed("gpt-4o")).await;
        answer.chunk().await.unwrap().unwrap();

        cable.cut().await;
        unavailable(&ask(&stage.ada).await);
        unavailable(&stage.gateway.operator().get("/v1/accounts").await);
        let ready = anybody.get("/readyz").await;
        assert_eq!((ready.status.as_u16(), &database_of(&ready)["status"]), (503, &Value::from("down")));
        assert_eq!(anybody.get("/healthz").await.status, 200);
        // What was admitted before is answered to its end, and settled later.
        let mut rest = Vec::new();
        while let Some(chunk) = answer.chunk().await.unwrap() {
            rest.extend_from_slice(&chunk);
        }
        assert!(String::from_utf8(rest).unwrap().ends_with("data: [DONE]\n\n"));

        cable.mend();
        stage.gateway.upstream.behave(Behaviour::default());
        recovered(&stage.ada).await;
        assert_eq!(anybody.get("/readyz").await.status, 200);
        let rows = stage.settled(3).await;
        assert!(rows.iter().all(|row| row["marks"] == "" && row["raw_cost"].as_i64() > Some(0)), "{rows:?}");
        let idle = async {
            while stage.counter().await.1 != 0 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, idle).await.expect("what is idle goes back");
        assert_eq!(stage.gateway.verify_books().await.differences, []);
        // Changes still reach it.
        stage.gateway.allocate(&stage.account, "0").await;
        assert_eq!(ask(&stage.ada).await.status, 402);
    }
}

/// How long the database is away under load: two seconds, or as many as `ALCHEMI_OUTAGE_SECONDS` says.
fn outage() -> Duration {
    let seconds = std::env::var_os("ALCHEMI_OUTAGE_SECONDS").and_then(|text| text.into_string().ok());
    Duration::from_secs(seconds.map_or(2, |seconds| seconds.parse().expect("a number of seconds")))
}

#[tokio::test]
async fn requests_within_leases_go_on_while_postgres_is_away() {
    for backend in backends().await {
        let Backend::Postgres(direct) = backend else { continue };
        let (mut cable, url) = Cable::to(&direct);
        let beside = Database::at(&direct);
        let stage = Stage::with(Backend::Postgres(url), |config| {
            config.database.acquire_timeout_ms = 10_000;
            config.metering.unpriced = "flat:0.01".parse().unwrap();
            // What is known of callers has to be asked for again during it.
            config.allocation.rules_ttl_seconds = 1;
        })
        .await;
        let ask = async || stage.ada.post("/v1/chat/completions", chat("free-for-all")).await;
        // Every admitted request holds one hundredth: so many fit into what is leased, and is not given back.
        let (mut asked, mut within) = (0, 0);
        while within <= 10 {
            let replies = futures_util::future::join_all((0..40).map(|_| ask())).await;
            assert!(replies.iter().all(|reply| reply.status == 200));
            asked += 40;
            stage.settled(asked).await;
            within = open_leases(&beside).await / 10_000_000;
        }
        cable.cut().await;
        let within = open_leases(&beside).await / 10_000_000;
        assert!(within > 0);
        let begun = tokio::time::Instant::now();
        let mut admitted = 0;
        let pause = outage() / (2 * within as u32);
        while begun.elapsed() < outage() || admitted < within {
            let reply = ask().await;
            if reply.status == 200 {
                admitted += 1;
            } else {
                assert_eq!(admitted, within, "no lease lasts for longer than its credits, or for less");
                unavailable(&reply);
            }
            tokio::time::sleep(pause).await;
        }
        unavailable(&ask().await);
        assert_eq!(admitted, within);

        cable.mend();
        let recovery = async {
            while ask().await.status != 200 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, recovery).await.expect("it recovers by itself");
        let rows = stage.settled(asked + within + 1).await;
        assert!(rows.iter().all(|row| row["raw_cost"] == 10_000_000), "{rows:?}");
        assert_eq!(stage.gateway.verify_books().await.differences, []);
    }
}

/// What is open in all leases together.
async fn open_leases(database: &Database) -> usize {
    let sql = r#"SELECT amount FROM "Alchemi_AllocationLeaseTable" WHERE state = 'open'"#;
    let leased = database.rows(sql, &[]).await;
    leased.iter().map(|row| crate::int(row, "amount")).sum::<i64>().try_into().unwrap()
}

/// Its leases are charged meanwhile, and nothing of them has gone back: when it hears of that, all does.
#[tokio::test]
async fn what_a_gateway_was_charged_while_postgres_was_away_for_it_comes_back() {
    for backend in backends().await {
        let Backend::Postgres(direct) = backend else { continue };
        let (mut cable, url) = Cable::to(&direct);
        let beside = Database::at(&direct);
        let configure = |config: &mut alchemi::config::Config| {
            config.database.acquire_timeout_ms = 2_000;
            config.metering.unpriced = "flat:0.01".parse().unwrap();
            config.allocation.leases.heartbeat_ms = 1_000;
        };
        let stage = Stage::with(Backend::Postgres(url), configure).await;
        let mut asked = 0;
        while asked == 0 || open_leases(&beside).await == 0 {
            let replies = (0..40).map(|_| stage.ada.post("/v1/chat/completions", chat("free-for-all")));
            assert!(futures_util::future::join_all(replies).await.iter().all(|reply| reply.status == 200));
            asked += 40;
            stage.settled(asked).await;
        }
        cable.cut().await;
        let open = open_leases(&beside).await;
        assert!(open > 0);
        beside.execute(r#"UPDATE "Alchemi_LeaseHolderTable" SET fenced = 1"#).await;
        // Whoever comes next ends what fenced ones have.
        let second = stage.gateway.beside(|config| {
            configure(config);
            config.database.url.clone_from(&direct);
        });
        let second = second.await;
        assert_eq!(open_leases(&beside).await, 0);
        let sql = r#"SELECT used, leased FROM "Alchemi_AllocationCounterTable" WHERE scope_type = 'account'"#;
        let counter = async || {
            let rows = beside.rows(sql, &[]).await;
            (crate::int(&rows[0], "used") as usize, crate::int(&rows[0], "leased"))
        };
        assert_eq!(counter().await, (asked * 10_000_000 + open, 0));
        // A beat or two of which nothing comes.
        tokio::time::sleep(Duration::from_secs(4)).await;
        cable.mend();
        let taken_back = async {
            while counter().await != (asked * 10_000_000, 0) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, taken_back).await.expect("its charge is taken back");
        assert_eq!(second.verify_books().await.differences, []);
    }
}

#[tokio::test]
async fn rules_are_believed_for_so_long_without_the_database_and_no_longer() {
    for backend in backends().await {
        let Backend::Postgres(url) = backend else { continue };
        let (mut cable, url) = Cable::to(&url);
        let stage = Stage::with(Backend::Postgres(url), |config| {
            config.database.acquire_timeout_ms = 5_000;
            // Nothing is held, so that rules are all that is needed.
            config.allocation.enforcement = Enforcement::Off;
            config.allocation.rules_ttl_seconds = 1;
            config.allocation.rules_stale_seconds = 10;
        })
        .await;
        let (ada, bob) = (&stage.ada, stage.gateway.as_end_user(&stage.account, "bob"));
        ask(ada).await.ok();
        cable.cut().await;
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        ask(ada).await.ok();
        // Of whom nothing is known, nothing is believed.
        unavailable(&ask(&bob).await);
        let refused = async {
            while ask(ada).await.status == 200 {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(PATIENCE, refused).await.expect("not for ever");
        unavailable(&ask(ada).await);
        cable.mend();
        recovered(ada).await;
        recovered(&bob).await;
        // Changes hold again.
        let body = serde_json::json!({"status": "suspended"});
        stage.gateway.operator().post(&format!("/v1/accounts/{}/status", stage.account), body).await.ok();
        assert_eq!(ask(ada).await.status, 403);
    }
}

#[tokio::test]
async fn requests_are_refused_while_sqlite_is_locked() {
    let stage = Stage::with(Backend::Sqlite, |config| config.database.acquire_timeout_ms = 3_000).await;
    ask(&stage.ada).await.ok();
    let Database::Sqlite(pool) = &stage.gateway.database else { panic!("it is SQLite") };
    let mut other = pool.acquire().await.unwrap();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut *other).await.unwrap();
    unavailable(&ask(&stage.ada).await);
    // Others may write: that is no reason to take the gateway out of service.
    assert_eq!(stage.gateway.anybody().get("/readyz").await.status, 200);
    sqlx::query("ROLLBACK").execute(&mut *other).await.unwrap();
    recovered(&stage.ada).await;
    stage.settled(2).await;
}

/// A standby that was promoted elsewhere, say.
#[tokio::test]
async fn a_postgres_that_can_only_be_read_is_not_ready() {
    for backend in backends().await {
        if backend == Backend::Sqlite {
            continue;
        }
        let stage = Stage::on(backend).await;
        ask(&stage.ada).await.ok();
        let database = &stage.gateway.database;
        let name = database.rows("SELECT CAST(current_database() AS TEXT) AS name", &[]).await;
        let name = name[0]["name"].as_str().unwrap().to_owned();
        let turn = async |setting: &str| {
            database.rows(&format!("ALTER DATABASE {name} {setting}"), &[]).await;
            let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                       WHERE datname = current_database() AND application_name = 'alchemi'";
            database.rows(sql, &[]).await;
        };
        turn("SET default_transaction_read_only = on").await;
        let anybody = stage.gateway.anybody();
        let ready = anybody.get("/readyz").await;
        assert_eq!(ready.status, 503);
        assert!(database_of(&ready)["detail"].as_str().unwrap().contains("only be read"), "{}", ready.text());
        unavailable(&ask(&stage.ada).await);
        turn("RESET default_transaction_read_only").await;
        recovered(&stage.ada).await;
        assert_eq!(anybody.get("/readyz").await.status, 200);
    }
}
