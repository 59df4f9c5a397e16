//! The tests' stand-in for Zitadel's management side as a program, for clients in other languages.
//!
//! It prints one line of JSON: where it is, what it holds and who may call. Then it answers each line of its input with
//! a line: `exchanges` with what it was asked and what it said since the last time. It ends with its input.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a program of the tests: it fails by panicking"
)]
#![allow(dead_code, unused_imports, reason = "it uses its own part of the stand-in")]

#[path = "../common/zitadel.rs"]
mod zitadel;

use serde_json::{Value, json};
use zitadel::{Asked, CLIENT, TOKEN, Zitadel};

#[tokio::main]
async fn main() {
    let zitadel = Zitadel::start("127.0.0.1:0".parse().unwrap()).await;
    let (owner, tenant) = (zitadel.org("Platform"), zitadel.org("Acme"));
    let project = zitadel.project(&owner, "gateway");
    let (ada, bob) = (zitadel.user(&tenant, "ada@acme.com"), zitadel.user(&owner, "bob@platform.com"));
    let held = json!({
        "url": zitadel.url(), "token": TOKEN, "client": [CLIENT.0, CLIENT.1], "key_file": zitadel.key_file(),
        "owner": owner, "tenant": tenant, "project": project, "ada": ada, "bob": bob,
    });
    println!("{held}");
    let mut told = 0;
    let (lines, mut asked) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || std::io::stdin().lines().map_while(Result::ok).try_for_each(|line| lines.send(line)));
    while let Some(line) = asked.recv().await {
        assert_eq!(line, "exchanges");
        let all = zitadel.requests();
        println!("{}", all.iter().skip(told).map(exchange).collect::<Value>());
        told = all.len();
    }
}

fn exchange(asked: &Asked) -> Value {
    json!({
        "method": asked.method, "path": asked.path, "organization": asked.organization, "request": asked.body,
        "status": asked.status, "answer": asked.answer,
    })
}
