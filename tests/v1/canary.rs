//! Secrets go in by every door that takes one, and by doors that do not, through the real process with everything
//! logged; then nothing that comes out, and nothing that stays, holds one.

use std::path::Path;
use std::process::Command;

use http::{Method, header};
use serde_json::{Value, json};

use crate::common::database::Database;
use crate::common::gateway::{MASTER_KEY, SECRET_KEY};
use crate::common::process::{Running, alchemi};
use crate::common::{Backend, Client, Reply, backends};
use crate::operations::{Asked, operations};

/// What every secret of this test begins with.
const CANARY: &str = "canary-5c1e7a";

/// A secret that is a number.
const NUMBER: u64 = 5_170_774_910_338_107;

/// A signing secret, in base64.
const SIGNING: &str = "Y2FuYXJ5LTVjMWU3YS1jYW5hcnktNWMxZTdhLWNhbmFyeQ==";

const WEBHOOK: &str = "/v1/budgets/copilot/alerts/webhook";

/// What is no secret: where it is not found, the search would find nothing either.
const SPARROW: &str = "sparrow-5c1e7a";

/// The process, and all that it writes.
pub(crate) struct Process {
    running: Running,
    pub(crate) url: String,
}

impl Process {
    pub(crate) fn start(folder: &Path, database: &str, keys: &str) -> Self {
        let mut running = Running::start(command(folder, database, keys).arg("serve"));
        let line = running.says(r#""address":""#);
        let address = line.split(r#""address":""#).nth(1).and_then(|rest| rest.split('"').next()).unwrap();
        Self { url: format!("http://{address}"), running }
    }

    pub(crate) fn stop(self) -> String {
        self.running.kill()
    }
}

/// The binary with its environment, all logged.
pub(crate) fn command(folder: &Path, database: &str, keys: &str) -> Command {
    let mut command = alchemi();
    command
        .env("ALCHEMI_LISTEN", "127.0.0.1:0")
        .env("ALCHEMI_DATA_DIR", folder)
        .env("DATABASE_URL", database)
        .env("ALCHEMI_MASTER_KEY", MASTER_KEY)
        .env("ALCHEMI_SECRET_KEY", keys)
        .env("ALCHEMI_UPSTREAM_API_KEY", format!("{CANARY}-of-the-upstream"))
        .env("ALCHEMI_LOG_FORMAT", "json")
        .env("RUST_LOG", "trace");
    command
}

/// What came out, each with where.
#[derive(Default)]
struct Found(Vec<(String, String)>);

impl Found {
    fn keep(&mut self, place: impl Into<String>, text: impl Into<String>) {
        self.0.push((place.into(), text.into()));
    }

    fn answer(&mut self, place: &str, reply: &Reply) -> u16 {
        self.keep(format!("answer of {place}"), format!("{:?}\n{}", reply.headers, reply.text()));
        reply.status.as_u16()
    }

    #[track_caller]
    fn hold(&self, words: &[&str]) {
        for (place, text) in &self.0 {
            for word in words {
                let hit = text.find(word).map(|at| text.get(at.saturating_sub(200)..at + 60).unwrap_or(word));
                assert!(hit.is_none(), "{place}: …{hit:?}");
            }
        }
    }

    fn has(&self, place: &str) -> bool {
        self.0.iter().any(|(at, text)| at.starts_with(place) && text.contains(SPARROW))
    }
}

/// Sends secrets by every door; gives the connection that was made.
async fn send_secrets(operator: &Client, account: &str, found: &mut Found) -> String {
    let mut number = 0;
    let mut canary = || {
        number += 1;
        format!("{CANARY}-{number}")
    };
    let connections = "/v1/copilot/connections";
    let body = json!({"name": SPARROW, "secret_json": {"api_key": canary(), "deep": {"list": [canary()]}}});
    let request = operator.request(Method::POST, &format!("{connections}/mcp")).header("idempotency-key", "once");
    let made = operator.send(request.json(&body)).await;
    assert_eq!(found.answer("create", &made), 200);
    let id = made.json()["item"]["id"].as_str().unwrap().to_owned();
    let (one, sso, admins) = (
        format!("{connections}/{id}"),
        format!("/v1/accounts/{account}/sso"),
        format!("/v1/accounts/{account}/admins"),
    );
    let settings = |name: &str, secret: Value| json!({"sso_provider": SPARROW, "sso_settings": {name: secret}});
    let composio = json!({"name": "c", "config_json": {"auth_mode": "oauth"}, "secret_json": {"api_key": [canary()]}});
    let signing = format!("whsec_{SIGNING}");
    let hook = |secret: Value| json!({"url": format!("https://{SPARROW}.example.com"), "secret": secret});
    let cases: Vec<(Method, &str, Value, u16)> = vec![
        (
            Method::POST,
            "/v1/copilot/connections/openapi",
            json!({"name": "a", "secret_json": {"token": canary()}}),
            200,
        ),
        (Method::POST, "/v1/copilot/connections/composio", composio, 422),
        (Method::POST, "/v1/copilot/connections/mcp", json!({"name": "a", "secret_json": canary()}), 422),
        (Method::POST, "/v1/copilot/connections/mcp", json!({"name": "a", "secret_json": [canary()]}), 422),
        (Method::POST, "/v1/copilot/connections/mcp", json!({"name": "a", "config_json": canary()}), 422),
        (
            Method::POST,
            "/v1/copilot/connections/mcp",
            json!({"name": "a", "config_json": {"a": {"api_key": canary()}}}),
            422,
        ),
        (
            Method::POST,
            "/v1/copilot/connections/mcp",
            json!({"name": "a", "config_json": {"url": format!("https://u:{}@a.example.com", canary())}}),
            422,
        ),
        (Method::POST, "/v1/copilot/connections/mcp", json!({"name": "a", "api_key": canary()}), 422),
        (Method::POST, "/v1/copilot/connections/ftp", json!({"name": "a", "secret_json": {"api_key": canary()}}), 400),
        (Method::PATCH, &one, json!({"secret_json": {"api_key": canary(), "deep": {"more": canary()}}}), 200),
        (Method::PATCH, &one, json!({"name": null, "secret_json": {"api_key": canary()}}), 422),
        (Method::PATCH, &one, json!({"secret_json": {"a": {"b": {"masked": true}}, "c": canary()}}), 422),
        (Method::PATCH, "/v1/copilot/connections/gone", json!({"secret_json": {"api_key": canary()}}), 404),
        (Method::POST, &sso, settings("google_client_secret", json!(canary())), 200),
        (Method::POST, &sso, settings("generic_client_secret", json!({"a": canary()})), 200),
        (Method::POST, &sso, settings("secret", json!([canary()])), 422),
        (Method::POST, &sso, json!({"sso_settings": canary()}), 422),
        (Method::POST, &sso, json!({"client_secret": canary()}), 422),
        (
            Method::POST,
            "/v1/accounts",
            json!({"account_name": "b", "admin_email": "a@b.example", "admin_password": canary()}),
            422,
        ),
        (Method::POST, &admins, json!({"user_email": "a@b.example", "password": canary()}), 422),
        (Method::POST, &admins, json!({"user_email": "a@b.example", "password": {"is": canary()}}), 422),
        (Method::POST, &admins, json!({"user_email": "a@b.example", "password": NUMBER}), 422),
        (Method::POST, "/v1/copilot/connections/mcp", json!({"name": "a", "secret_json": NUMBER}), 422),
        (Method::PUT, WEBHOOK, hook(json!(signing)), 200),
        (Method::PUT, WEBHOOK, hook(json!(canary())), 422),
        (Method::PUT, WEBHOOK, hook(json!([canary()])), 422),
        (Method::PUT, WEBHOOK, hook(json!({"is": canary()})), 422),
        (Method::PUT, WEBHOOK, hook(json!(NUMBER)), 422),
        (Method::PUT, WEBHOOK, json!({"url": format!("https://u:{}@a.example.com", canary()), "secret": signing}), 422),
        (Method::PUT, WEBHOOK, json!({"url": "https://a.example.com", "signing_secret": canary()}), 422),
        (Method::POST, "/v1/budgets/copilot/alerts/webhook/test", json!({}), 200),
    ];
    for (method, path, body, status) in cases {
        let reply = operator.send(operator.request(method.clone(), path).json(&body)).await;
        let place = format!("{method} {path} {body}").replace(CANARY, "");
        assert_eq!(found.answer(&place, &reply), status, "{place}: {}", reply.text());
    }
    // Nothing that is read as it should be.
    let whole = json!({"name": "a", "secret_json": {"api_key": canary()}}).to_string();
    let long = json!({"name": "a", "secret_json": {"api_key": canary().repeat(100_000)}}).to_string();
    for (kind, text) in [
        ("application/json", &whole[..whole.len() - 2]),
        ("text/plain", &whole),
        ("application/json", &long),
        ("application/json", &whole.replace("name", canary().as_str())),
    ] {
        let request = operator.request(Method::POST, &format!("{connections}/mcp")).header(header::CONTENT_TYPE, kind);
        let reply = operator.send(request.body(text.to_owned())).await;
        let status = reply.status.as_u16();
        if text.contains("name") {
            found.answer("a broken body", &reply);
        }
        assert!((400..500).contains(&status), "{status}");
    }
    let stranger = operator.with_token(&canary()).get(connections).await;
    assert_eq!(found.answer("a bad token", &stranger), 401);
    for status in [200, 422] {
        let again = json!({"name": SPARROW, "secret_json": {"api_key": canary()}});
        let sent = if status == 200 { &body } else { &again };
        let request = operator.request(Method::POST, &format!("{connections}/mcp")).header("idempotency-key", "once");
        assert_eq!(found.answer("a replay", &operator.send(request.json(sent)).await), status);
    }
    let request = operator.request(Method::PATCH, &one).header(header::IF_MATCH, "\"99\"");
    let late = operator.send(request.json(&json!({"secret_json": {"api_key": canary()}}))).await;
    assert_eq!(found.answer("a late change", &late), 412);
    one
}

/// Sends secrets to every operation that takes a body: in a field that it does not know, in a text that ends early, and
/// in place of a body; and asks every one that reads.
async fn knock_everywhere(operator: &Client, account: &str, found: &mut Found) {
    let secret = format!("{CANARY}-everywhere");
    for operation in operations() {
        let asked = operation.ask(|name| (name == "account_id").then(|| account.to_owned()));
        let place = operation.name();
        let Some(body) = &asked.body else {
            if operation.method == Method::GET {
                found.answer(&place, &operation.call(operator, &asked).await);
            }
            continue;
        };
        for name in ["secret_json", "password", "api_key"] {
            let mut body = body.clone();
            body[name] = json!({"token": secret});
            let reply = operation.call(operator, &Asked { body: Some(body), ..asked.clone() }).await;
            found.answer(&place, &reply);
        }
        let early = json!({"password": secret}).to_string();
        for text in [&early[..early.len() - 1], &json!([secret]).to_string()] {
            let request = operator.request(operation.method.clone(), &asked.path);
            let request = request.header(header::CONTENT_TYPE, "application/json").body(text.to_owned());
            let status = found.answer(&place, &operator.send(request).await);
            assert!((400..500).contains(&status), "{place}: {status}");
        }
    }
}

/// Every write fails, at its very end.
async fn fail_everywhere(database: &Database, operator: &Client, account: &str, one: &str, found: &mut Found) {
    let secret = format!("{CANARY}-failing");
    database.execute(r#"ALTER TABLE "Alchemi_AuditTable" RENAME TO "elsewhere""#).await;
    let secrets = [
        (Method::POST, "/v1/copilot/connections/mcp", json!({"name": "a", "secret_json": {"api_key": secret}})),
        (Method::PATCH, one, json!({"secret_json": {"api_key": secret}})),
        (
            Method::POST,
            &*format!("/v1/accounts/{account}/sso"),
            json!({"sso_settings": {"google_client_secret": secret}}),
        ),
    ];
    for (method, path, body) in secrets {
        let request = operator.request(method.clone(), path).header("idempotency-key", "failing");
        let failed = operator.send(request.json(&body)).await;
        assert_eq!(found.answer(&format!("a failing {method} {path}"), &failed), 500);
    }
    let mut failed = 0;
    for operation in operations().into_iter().filter(|operation| operation.method != Method::GET) {
        let asked = operation.ask(|name| (name == "account_id").then(|| account.to_owned()));
        let status = found.answer(&format!("a failing {}", operation.name()), &operation.call(operator, &asked).await);
        failed += usize::from(status == 500);
    }
    assert!(failed > 10, "{failed}");
    database.execute(r#"ALTER TABLE "elsewhere" RENAME TO "Alchemi_AuditTable""#).await;
}

/// Reads what shows anything of it.
async fn read_all(operator: &Client, account: &str, one: &str, found: &mut Found) {
    for path in [
        "/v1/copilot/connections",
        one,
        &format!("/v1/accounts/{account}"),
        &format!("/v1/accounts/{account}/sso"),
        "/v1/accounts",
        WEBHOOK,
        "/v1/budgets/copilot/alerts/deliveries",
        "/v1/audit?limit=1000",
        "/v1/audit/export",
        "/openapi.json",
        "/metrics",
    ] {
        let reply = operator.get(path).await;
        assert_eq!(found.answer(path, &reply), 200, "{path}: {}", reply.text());
    }
    // There is nobody upstream.
    assert_eq!(found.answer("/readyz", &operator.get("/readyz?verbose").await), 503);
}

/// Every row of every table, and on SQLite the bytes of the files.
async fn read_database(url: &str, folder: &Path, found: &mut Found) {
    let database = Database::at(url);
    let tables = match &database {
        Database::Sqlite(_) => "SELECT name FROM sqlite_master WHERE type = 'table'",
        Database::Postgres(_) => "SELECT tablename::TEXT AS name FROM pg_tables WHERE schemaname = 'public'",
    };
    let mut dump = String::new();
    for table in database.rows(tables, &[]).await {
        let rows = database.rows(&format!("SELECT * FROM \"{}\"", table["name"].as_str().unwrap()), &[]).await;
        dump += &serde_json::to_string(&rows).unwrap();
    }
    found.keep("the database", dump);
    for file in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
        let bytes = std::fs::read(&file).unwrap();
        found.keep(format!("the file {}", file.display()), String::from_utf8_lossy(&bytes));
    }
}

#[tokio::test]
async fn no_secret_comes_out_anywhere() {
    for backend in backends().await {
        let folder = tempfile::tempdir().unwrap();
        let url = backend.url(folder.path());
        let mut found = Found::default();
        let process = Process::start(folder.path(), &url, SECRET_KEY);
        let anybody = Client::new(&process.url);
        let operator = anybody.with_token(MASTER_KEY);
        let made = operator.post("/v1/accounts", json!({"account_name": "Acme"})).await.ok();
        let account = made["account_id"].as_str().unwrap().to_owned();
        let operator = operator.within(&account);
        let one = send_secrets(&operator, &account, &mut found).await;
        read_all(&operator, &account, &one, &mut found).await;
        knock_everywhere(&operator, &account, &mut found).await;
        fail_everywhere(&Database::at(&url), &operator, &account, &one, &mut found).await;

        // The table is not there, and then an envelope does not open.
        let database = Database::at(&url);
        let table = r#""Alchemi_CopilotConnectionTable""#;
        let secret = json!({"name": "a", "secret_json": {"api_key": format!("{CANARY}-last")}});
        database.rows(&format!(r#"ALTER TABLE {table} RENAME TO "elsewhere""#), &[]).await;
        let failed = operator.post("/v1/copilot/connections/mcp", secret.clone()).await;
        assert_eq!(found.answer("a failing write", &failed), 500);
        database.rows(&format!(r#"ALTER TABLE "elsewhere" RENAME TO {table}"#), &[]).await;
        database.rows(&format!("UPDATE {table} SET secret_json = secret_json || 'A'"), &[]).await;
        let failed = operator.patch(&one, secret.clone()).await;
        assert_eq!(found.answer("a broken envelope", &failed), 500);
        drop(database);
        found.keep("the log", process.stop());

        // Another key, and none.
        let (_, text) = SECRET_KEY.split_once(':').unwrap();
        for keys in [&*format!("other:{text}"), ""] {
            let process = Process::start(folder.path(), &url, keys);
            let refused = operator.at(&process.url).patch(&one, secret.clone()).await;
            assert_eq!(found.answer("a change without the key", &refused), 503);
            found.answer("/readyz", &operator.at(&process.url).get("/readyz").await);
            found.keep("the log without the key", process.stop());
        }
        for arguments in [&["secrets", "status"][..], &["secrets", "rotate"], &["check-config"], &["audit", "verify"]] {
            let output = command(folder.path(), &url, SECRET_KEY).args(arguments).output().unwrap();
            let text = [output.stdout, output.stderr].concat();
            found.keep(format!("alchemi {}", arguments.join(" ")), String::from_utf8_lossy(&text));
        }
        read_database(&url, folder.path(), &mut found).await;

        for place in ["answer of create", "answer of /v1/audit", "the database"] {
            assert!(found.has(place), "the search finds nothing in {place}");
        }
        assert_eq!(found.has("the file"), matches!(backend, Backend::Sqlite));
        let log = &found.0.iter().find(|(place, _)| place == "the log").unwrap().1;
        assert!(log.len() > 10_000 && log.contains("TRACE"), "everything was logged");
        let (_, key) = SECRET_KEY.split_once(':').unwrap();
        found.hold(&[CANARY, &NUMBER.to_string(), SIGNING, MASTER_KEY, key]);
    }
}
