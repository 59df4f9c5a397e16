//! A gateway that is killed, and what the next one makes of its journal.

use std::path::Path;

use serde_json::{Value, json};
use sqlx::{Connection as _, Row as _, SqliteConnection};

use crate::process::{Place, Running};
use crate::running::{address, client};

/// Requests that are answered before the kill.
const ANSWERED: usize = 40;

struct Gateway {
    running: Running,
    url: String,
    token: String,
    admin: String,
}

fn start(place: &Place) -> Gateway {
    let mut running = place.start(&["dev", "--port", "0"]);
    running.says("Ctrl-C stops it.");
    let url = address(&running.says("gateway"));
    let token = |whose: &str| std::fs::read_to_string(place.path().join("data/dev").join(whose)).unwrap();
    Gateway { running, url, token: token("ada.token"), admin: token("admin.token") }
}

impl Gateway {
    async fn ask(&self, body: &Value) -> reqwest::Response {
        let request = client().post(format!("{}/v1/chat/completions", self.url)).bearer_auth(&self.token).json(body);
        request.send().await.unwrap()
    }

    /// Lets everyone of the account use `model`.
    async fn grant(&self, model: &str) {
        let context =
            client().get(format!("{}/v1/me/context", self.url)).bearer_auth(&self.admin).send().await.unwrap();
        let context: Value = context.json().await.unwrap();
        let grant = json!({"model_name": model, "scope_type": "account", "scope_id": context["account_id"]});
        let request = client().post(format!("{}/v1/copilot/models/grants", self.url)).bearer_auth(&self.admin);
        let answer = request.json(&grant).send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    }
}

async fn ledger(folder: &Path) -> Vec<(String, String, String)> {
    let url = format!("sqlite:{}", folder.join("data/dev/alchemi.db").display());
    let mut connection = SqliteConnection::connect(&url).await.unwrap();
    let rows = sqlx::query(r#"SELECT request_id, cost_source, marks FROM "Alchemi_UsageLedgerTable""#);
    let rows = rows.fetch_all(&mut connection).await.unwrap();
    // Now, and not some time later: it removes files, and the next step moves them.
    connection.close().await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

/// A number that a log line has as `name=…`.
fn logged(line: &str, name: &str) -> usize {
    let at = line.find(&format!("{name}=")).expect("the line has the number");
    line[at + name.len() + 1..].chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
}

#[tokio::test]
async fn kill_9_loses_no_request_and_charges_each_once() {
    let place = Place::new().with("DATABASE_URL", "sqlite:data/dev/alchemi.db");
    let gateway = start(&place);
    let whole = json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8});
    let mut answered = Vec::new();
    for _ in 0..ANSWERED {
        let answer = gateway.ask(&whole).await;
        assert_eq!(answer.status(), 200);
        answered.push(answer.headers()["x-request-id"].to_str().unwrap().to_owned());
        answer.bytes().await.unwrap();
    }
    // One is under way, and has no end.
    let endless = "gpt-4o-mini+endless+gap=5";
    gateway.grant(endless).await;
    let mut streamed = whole.clone();
    streamed["model"] = json!(endless);
    streamed["stream"] = json!(true);
    let under_way = gateway.ask(&streamed).await;
    assert_eq!(under_way.status(), 200);
    let under_way_id = under_way.headers()["x-request-id"].to_str().unwrap().to_owned();
    // A finishing record waits for 5 ms at most.
    std::thread::sleep(std::time::Duration::from_millis(15));
    gateway.running.signal("KILL");
    drop((under_way, gateway));
    let before = ledger(place.path()).await;
    assert!(before.len() < ANSWERED + 1, "the stream without an end has one: {before:?}");

    let mut next = start(&place);
    let line = next.running.says("the journal of an earlier process is in the ledger");
    assert_eq!(logged(&line, "failed"), 0, "{line}");
    assert!(logged(&line, "finished") + logged(&line, "unsettled") >= ANSWERED + 1 - before.len(), "{line}");
    next.running.signal("TERM");
    assert!(next.running.wait().success());
    let rows = ledger(place.path()).await;
    for id in &answered {
        let own: Vec<_> = rows.iter().filter(|(row, ..)| row == id).collect();
        assert!(matches!(own[..], [(_, source, _)] if source != "unsettled"), "{id}: {own:?}");
    }
    assert_eq!(rows.iter().filter(|(row, ..)| *row == under_way_id).count(), 1);
    assert!(rows.iter().all(|(.., marks)| marks != "lost_lease"), "{rows:?}");
    let balanced = place.run(&["ledger", "verify"]);
    assert_eq!(balanced.status, 0, "{balanced:?}");
    // Everything is in the ledger: the folder holds no segment.
    let left =
        std::fs::read_dir(place.path().join("data/dev/journal")).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(left.collect::<Vec<_>>(), ["lock"]);
}

/// Moves a database out of the way of another one, or back.
fn move_database(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.file_name().is_some_and(|name| name.to_string_lossy().starts_with("alchemi.db")) {
            std::fs::rename(&entry, to.join(entry.file_name().unwrap())).unwrap();
        }
    }
}

#[tokio::test]
async fn a_journal_waits_for_the_database_that_it_was_written_for() {
    let place = Place::new().with("DATABASE_URL", "sqlite:data/dev/alchemi.db");
    let (ours, aside) = (place.path().join("data/dev"), place.path().join("aside"));
    let gateway = start(&place);
    let endless = "gpt-4o-mini+endless+gap=5";
    gateway.grant(endless).await;
    let asked = json!({
        "model": endless, "stream": true, "max_tokens": 8, "messages": [{"role": "user", "content": "Hello"}],
    });
    let under_way = gateway.ask(&asked).await;
    assert_eq!(under_way.status(), 200);
    let id = under_way.headers()["x-request-id"].to_str().unwrap().to_owned();
    gateway.running.signal("KILL");
    drop((under_way, gateway));

    // Somebody starts a gateway with another database on the same folder.
    move_database(&ours, &aside);
    let mut other = start(&place);
    other.running.says("a segment of the journal was written for another database and stays");
    let whole = json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8});
    assert_eq!(other.ask(&whole).await.status(), 200);
    other.running.signal("TERM");
    assert!(other.running.wait().success());
    let rows = ledger(place.path()).await;
    assert!(rows.len() == 1 && rows[0].0 != id, "{rows:?}");

    // The first one is back, and finds what was under way.
    move_database(&ours, &place.path().join("others"));
    move_database(&aside, &ours);
    let mut back = start(&place);
    let line = back.running.says("the journal of an earlier process is in the ledger");
    assert_eq!(logged(&line, "unsettled"), 1, "{line}");
    back.running.signal("TERM");
    assert!(back.running.wait().success());
    let rows = ledger(place.path()).await;
    assert!(matches!(&rows[..], [(row, source, _)] if *row == id && source == "unsettled"), "{rows:?}");
    let balanced = place.run(&["ledger", "verify"]);
    assert_eq!(balanced.status, 0, "{balanced:?}");
}

#[test]
fn a_second_gateway_in_one_folder_is_told_whose_it_is() {
    let place = Place::new();
    let first = start(&place);
    let second = place.run(&["dev", "--port", "0"]);
    assert_eq!(second.status, 2, "{second:?}");
    assert!(second.err.contains("--data-dir") && second.err.contains("in use by process"), "{second:?}");
    drop(first);
}
