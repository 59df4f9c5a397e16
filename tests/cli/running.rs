//! Commands that run until they are told to end, and what looks after their database.

use std::path::Path;

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

#[tokio::test]
async fn dev_prints_what_works_and_ends_with_what_it_settled() {
    let place = Place::new();
    let mut dev = place.start(&["dev", "--port", "0"]);
    dev.says("Ctrl-C stops it.");
    let gateway = address(&dev.says("gateway"));
    let token = |name: &str| std::fs::read_to_string(place.path().join("data/dev").join(name)).unwrap();
    let printed = dev.out();
    let bodies: Vec<Value> = printed
        .lines()
        .filter_map(|line| line.trim().strip_prefix("-d '")?.strip_suffix('\'').map(str::to_owned))
        .map(|body| serde_json::from_str(&body).unwrap())
        .collect();
    assert_eq!(bodies.len(), 4, "{printed}");
    let expected = [
        ("ada.token", 200, "Hello"),
        ("ada.token", 200, "[DONE]"),
        ("ada.token", 403, "model_denied"),
        ("grace.token", 402, "allocation_exhausted"),
    ];
    for (body, (who, status, says)) in bodies.into_iter().zip(expected) {
        let (answered, text) = post(&gateway, "/v1/chat/completions", &token(who), body).await;
        assert!(answered == status && text.contains(says), "{who} {status} {says}: {answered} {text}");
    }
    for (path, who) in [
        ("/v1/me/allocation", "ada.token"),
        ("/v1/budgets/copilot/usage-by-scope", "admin.token"),
        ("/v1/accounts", "master.key"),
    ] {
        assert!(printed.contains(path), "{path}");
        let answer = client().get(format!("{gateway}{path}")).bearer_auth(token(who)).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
    }
    assert_eq!(end(dev, "INT"), "alchemi has stopped: 2 requests settled, every connection ended");
    // Once more on what the first one left.
    let mut again = place.start(&["dev", "--port", "0"]);
    again.says("Ctrl-C stops it.");
    end(again, "TERM");
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
    // Nobody upstream: two health checks say so.
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
