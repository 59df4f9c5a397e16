//! Commands that run until they are told to end, and what looks after their database.

use std::path::Path;
use std::process::{Command, Stdio};

use alchemi::dev::{DevUpstream, UpstreamOptions};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, SqliteConnection};

use crate::process::{Place, Running};

const MASTER_KEY: &str = "operator-key-of-the-tests-0123456789";

/// The first `http://127.0.0.1:port` of a text.
pub(crate) fn address(text: &str) -> String {
    let at = text.find("127.0.0.1:").unwrap();
    let end = text[at + 10..].find(|c: char| !c.is_ascii_digit()).map_or(text.len(), |end| at + 10 + end);
    format!("http://{}", &text[at..end])
}

pub(crate) fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

async fn post(gateway: &str, path: &str, token: &str, body: Value) -> (u16, String) {
    let request = client().post(format!("{gateway}{path}")).bearer_auth(token).json(&body);
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

/// Ends a process as a terminal or a supervisor would; gives its last line.
fn end(mut running: Running, signal: &str) -> String {
    running.signal(signal);
    let status = running.wait();
    assert!(status.success(), "{status}: {}", running.err());
    let out = running.out();
    out.trim_end().lines().last().unwrap_or_default().to_owned()
}

/// The curl lines of a text, each with those that go on from it.
fn commands(text: &str) -> Vec<String> {
    let mut commands: Vec<String> = Vec::new();
    let mut goes_on = false;
    for line in text.lines() {
        match commands.last_mut().filter(|_| goes_on) {
            Some(last) => *last = format!("{last}\n{line}"),
            None if line.trim().starts_with("curl ") => commands.push(line.to_owned()),
            None => continue,
        }
        goes_on = line.ends_with('\\');
    }
    commands
}

/// Whether the printed lines can be run as they are.
fn curl_is_there() -> bool {
    let there = Command::new("curl").arg("--version").stdout(Stdio::null()).status().is_ok_and(|s| s.success());
    assert!(there || std::env::var_os("CI").is_none(), "curl is missing: the printed lines cannot be pasted");
    there
}

#[tokio::test]
async fn dev_prints_what_works_and_ends_with_what_it_settled() {
    let place = Place::new();
    let started = ["dev", "--port", "0", "--data-dir", "it's here", "--log", "info"];
    let mut dev = place.start(&started);
    dev.says("Ctrl-C stops it.");
    let gateway = address(&dev.says("gateway"));
    let printed = dev.out();
    assert!(printed.contains(&gateway) && !printed.contains("earlier start"), "{printed}");
    let expected = [
        "\"content\":\"Hello!",
        "data: [DONE]",
        "model_denied",
        "allocation_exhausted",
        "remaining",
        "scope_type",
        "Acme (dev)",
    ];
    let commands = commands(&printed);
    assert_eq!(commands.len(), expected.len(), "{printed}");
    // Who starts it twice is told which options are dev's own.
    let port = gateway.rsplit(':').next().unwrap();
    let beside = place.run(&["dev", "--port", port, "--data-dir", "elsewhere"]);
    assert!(beside.status == 2 && beside.err.contains(&format!("--port {port}: ")), "{beside:?}");
    let beside = place.run(&["dev", "--port", "0", "--data-dir", "it's here"]);
    assert!(beside.status == 2 && beside.err.contains("--data-dir: the journal in"), "{beside:?}");
    if curl_is_there() {
        for (command, says) in commands.iter().zip(expected) {
            let pasted = Command::new("sh").args(["-c", command]).current_dir("/").output().unwrap();
            let answer = String::from_utf8_lossy(&pasted.stdout).into_owned();
            assert!(pasted.status.success() && answer.contains(says), "{command}\n{says}: {answer}");
        }
        dev.says("model_denied");
    } else {
        let token = std::fs::read_to_string(place.path().join("it's here/ada.token")).unwrap();
        let body = json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]});
        for _ in 0..2 {
            post(&gateway, "/v1/chat/completions", &token, body.clone()).await;
        }
    }
    assert_eq!(end(dev, "INT"), "alchemi has stopped: 2 requests settled, every connection ended");
    // Once more on what the first one left.
    let mut again = place.start(&started);
    again.says("This goes on from an earlier start");
    again.says("Ctrl-C stops it.");
    end(again, "TERM");
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_stands_in_front_of_an_upstream_of_ones_own() {
    let options = UpstreamOptions { api_key: Some("sk-of-ones-own".to_owned()), ..UpstreamOptions::default() };
    let upstream = DevUpstream::start(options).await.unwrap();
    let place = Place::new();
    let asked = |key| ["dev", "--port", "0", "--upstream", upstream.url(), "--upstream-key", key];
    let wrong = place.run(&asked("sk-wrong"));
    assert!(wrong.status == 2 && wrong.err.contains("--upstream-key"), "{wrong:?}");
    let mut dev = place.start(&asked("sk-of-ones-own"));
    dev.says("Ctrl-C stops it.");
    let gateway = address(&dev.says("gateway"));
    let token = std::fs::read_to_string(place.path().join("data/dev/ada.token")).unwrap();
    let body = json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]});
    let (status, answer) = post(&gateway, "/v1/chat/completions", &token, body).await;
    assert_eq!(status, 200, "{answer}");
    let seen = upstream.requests().into_iter().find(|request| request.target == "/v1/chat/completions").unwrap();
    assert_eq!(seen.header("authorization"), Some("Bearer sk-of-ones-own"));
    assert_eq!(end(dev, "INT"), "alchemi has stopped: 1 request settled, every connection ended");
}

#[test]
fn dev_says_what_it_lacks() {
    let place = Place::new();
    let ended = place.run(&["dev", "--port", "0", "--upstream", "http://127.0.0.1:1"]);
    assert_eq!(ended.status, 2, "{ended:?}");
    assert!(ended.err.contains("--upstream http://127.0.0.1:1") && ended.err.contains("is it running?"), "{ended:?}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let ended = place.run(&["dev", "--port", &port]);
    assert!(ended.status == 2 && ended.err.contains(&port), "{ended:?}");
}

async fn behind_its_back(folder: &Path, sql: &str) {
    let url = format!("sqlite:{}", folder.join("data/alchemi.db").display());
    let mut connection = SqliteConnection::connect(&url).await.unwrap();
    let changed = connection.execute(AssertSqlSafe(sql.to_owned())).await.unwrap();
    assert!(changed.rows_affected() > 0, "{sql}");
}

#[tokio::test]
async fn serve_ends_on_a_signal_and_leaves_chains_and_books_that_are_checked() {
    let place = Place::new()
        .with("ALCHEMI_MASTER_KEY", MASTER_KEY)
        .with("ALCHEMI_LISTEN", "127.0.0.1:0")
        .with("ALCHEMI_UPSTREAM_URL", "http://127.0.0.1:1")
        .with("ALCHEMI_LOG_FORMAT", "json");
    let mut serve = place.start(&["serve"]);
    let line = serve.says("alchemi listens");
    let logged: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
    let gateway = address(&logged.to_string());
    let (status, made) = post(&gateway, "/v1/accounts", MASTER_KEY, json!({"account_name": "Acme"})).await;
    assert_eq!(status, 200, "{made}");
    let account: Value = serde_json::from_str(&made).unwrap();
    let account = account["account_id"].as_str().unwrap();
    let allocation = json!({"account_id": account, "monthly_credits": 10});
    assert_eq!(post(&gateway, "/v1/budgets/account-allocation", MASTER_KEY, allocation).await.0, 200);

    let healthy = place.run(&["healthcheck", "--url", &format!("{gateway}/healthz")]);
    assert_eq!((healthy.status, healthy.out.as_str()), (0, "ok\n"), "{healthy:?}");
    // Nobody upstream: the first health check says so.
    let mut ready = place.run(&["healthcheck", "--url", &format!("{gateway}/readyz")]);
    for _ in 0..60 {
        if ready.status == 1 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(500));
        ready = place.run(&["healthcheck", "--url", &format!("{gateway}/readyz")]);
    }
    assert!(ready.status == 1 && ready.err.contains("503") && ready.err.contains("not ready"), "{ready:?}");

    // The checks run beside it.
    let intact = place.run(&["audit", "verify"]);
    assert_eq!((intact.status, intact.out.contains(&format!("{account}: 3 events, intact"))), (0, true), "{intact:?}");
    let balanced = place.run(&["ledger", "verify"]);
    assert_eq!((balanced.status, balanced.out.starts_with("0 rows, ")), (0, true), "{balanced:?}");
    assert_eq!(end(serve, "TERM"), "alchemi has stopped: 0 requests settled, every connection ended");

    let one = place.run(&["audit", "verify", "--account", account]);
    assert_eq!((one.status, one.out), (0, format!("{account}: 3 events, intact\n")));
    behind_its_back(place.path(), r#"UPDATE "Alchemi_AuditTable" SET actor_subject = 'mallory' WHERE seq = 1"#).await;
    let broken = place.run(&["audit", "verify"]);
    assert_eq!(broken.status, 1, "{broken:?}");
    assert!(broken.out.contains(&format!("{account}: broken at event 1")), "{broken:?}");
    assert!(broken.err.starts_with("alchemi: 1 of ") && broken.err.contains("broken"), "{broken:?}");

    let counter = format!(
        r#"INSERT INTO "Alchemi_AllocationCounterTable" (account_id, scope_type, scope_id, window_start, used, leased, cap, updated_at)
           VALUES ('{account}', 'account', '{account}', 0, 5, 0, 10, 0)"#
    );
    behind_its_back(place.path(), &counter).await;
    let unbalanced = place.run(&["ledger", "verify"]);
    assert_eq!(unbalanced.status, 1, "{unbalanced:?}");
    assert!(unbalanced.err.contains("1 differences: the books do not balance"), "{unbalanced:?}");
}
