//! The data plane over real HTTP: from a token to the row in the ledger.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "../common/mod.rs"]
mod common;

mod access;
mod allowed;
mod answers;
mod books;
mod broken;
mod concurrency;
mod context;
mod embedding;
mod enrolment;
mod given_up;
mod guardrails;
mod hostile;
mod leases;
mod ledger_job;
mod listener;
mod metrics;
mod opaque;
mod outage;
mod refused;
mod settings;
mod shape;
mod steering;
mod stop;
mod tokens;
mod warm;

use alchemi::config::Config;
use alchemi::credits::Usd;
use http::Method;
use serde_json::{Value, json};

use common::{Backend, Client, Gateway, Row};

/// A gateway with one account, `Acme`, that may use every model and has plenty of credits.
struct Stage {
    gateway: Gateway,
    account: String,
    /// Somebody of the account, without a role.
    ada: Client,
}

impl Stage {
    async fn on(backend: Backend) -> Self {
        Self::with(backend, |_| {}).await
    }

    /// On SQLite, for what does not depend on the database.
    async fn set() -> Self {
        Self::on(Backend::Sqlite).await
    }

    async fn with(backend: Backend, configure: impl FnOnce(&mut Config)) -> Self {
        let gateway = Gateway::start_with(backend, configure).await;
        let account = gateway.account("Acme").await;
        gateway.open_models(&account).await;
        gateway.allocate(&account, "1000").await;
        let ada = gateway.as_end_user(&account, "ada");
        Self { gateway, account, ada }
    }

    /// The rows of so many requests.
    async fn settled(&self, count: usize) -> Vec<Row> {
        self.gateway.settled(&self.account, count).await
    }

    /// What the account has used and holds, in nano-credits.
    async fn counter(&self) -> (i64, i64) {
        let counters = self.gateway.counters(&self.account).await;
        counters.get(&("account".to_owned(), self.account.clone())).copied().unwrap_or_default()
    }

    /// The same, once idle leases have gone back.
    async fn rested(&self) -> (i64, i64) {
        for _ in 0..1_000 {
            let counter = self.counter().await;
            if counter.1 == 0 {
                return counter;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        self.counter().await
    }
}

/// A question for a chat model.
fn chat(model: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": "Tell me about alchemy."}]})
}

/// The same, answered as a stream.
fn streamed(model: &str) -> Value {
    with(chat(model), "stream", json!(true))
}

fn with(mut body: Value, field: &str, value: Value) -> Value {
    body.as_object_mut().unwrap().insert(field.to_owned(), value);
    body
}

/// An amount in dollars, in nano-dollars.
#[track_caller]
fn nanos(amount: &str) -> i64 {
    Usd::rounded(amount).unwrap().nanos()
}

fn int(row: &Row, column: &str) -> i64 {
    row[column].as_i64().unwrap_or_else(|| panic!("{column} is {}", row[column]))
}

fn text<'a>(row: &'a Row, column: &str) -> &'a str {
    row[column].as_str().unwrap_or_else(|| panic!("{column} is {}", row[column]))
}

/// A request whose answer is read piece by piece.
async fn open(client: &Client, path: &str, body: &Value) -> reqwest::Response {
    client.request(Method::POST, path).json(body).send().await.unwrap()
}
