//! Just-in-time rows in the directory (`directory.jit`).

use serde_json::{Value, json};

use crate::common::{Client, Person, backends};
use crate::{Stage, chat};

async fn users(stage: &Stage, domain: &str) -> Vec<Value> {
    let list = stage.gateway.operator_for(&stage.account).get(&format!("/v1/{domain}/users")).await.ok();
    list["items"].as_array().unwrap().clone()
}

async fn ask(client: &Client) -> u16 {
    client.post("/v1/chat/completions", chat("gpt-4o-mini")).await.status.as_u16()
}

#[tokio::test]
async fn a_caller_whom_the_directory_does_not_know_gets_a_row() {
    for backend in backends().await {
        let stage = Stage::with(backend, |config| config.directory.jit = true).await;
        let bob = Person::of(&stage.account, "bob").email("Bob@Acme.com").claim("email_verified", json!(true));
        let bob = stage.gateway.sign_in(&bob);
        let answers = futures_util::future::join_all((0..8).map(|_| ask(&bob))).await;
        assert_eq!(answers, [200; 8]);
        let made = users(&stage, "copilot").await;
        assert_eq!(made.len(), 1, "{made:#?}");
        assert_eq!(
            (&made[0]["identity_user_id"], &made[0]["email"], &made[0]["created_by"]),
            (&json!("bob"), &json!("bob@acme.com"), &json!("bob"))
        );
        assert!(users(&stage, "console").await.is_empty());
        assert_eq!(ask(&bob).await, 200);
        let booked = stage.settled(9).await.iter().filter(|row| row["user_id"] == made[0]["id"]).count();
        assert!(booked >= 2, "the request that made it and what follows are booked on it: {booked}");
        let audit = stage.gateway.operator_for(&stage.account).get("/v1/audit?action=create").await.ok();
        let entry = &audit["items"][0];
        assert_eq!(
            (&entry["table_name"], &entry["changed_by"]),
            (&json!("Alchemi_UserTable"), &json!("bob")),
            "{entry}"
        );

        // An address that is another's stays with them; somebody who is known stays who they are.
        let eve = Person::of(&stage.account, "eve").email("bob@acme.com").claim("email_verified", json!(true));
        assert_eq!(ask(&stage.gateway.sign_in(&eve)).await, 200);
        stage.gateway.user(&stage.account, "copilot", "ada", &[]).await;
        assert_eq!(ask(&stage.ada).await, 200);
        let emails: Vec<Value> = users(&stage, "copilot").await.iter().map(|user| user["email"].clone()).collect();
        assert_eq!(emails, [json!(null), json!(null), json!("bob@acme.com")]);
    }
}

#[tokio::test]
async fn a_row_with_the_address_alone_is_found_however_the_token_spells_it() {
    for backend in backends().await {
        let stage = Stage::on(backend).await;
        let operator = stage.gateway.operator_for(&stage.account);
        operator.post("/v1/copilot/users", json!({"email": "cleo@acme.com"})).await.ok();
        let row = users(&stage, "copilot").await.remove(0);
        let cleo = Person::of(&stage.account, "cleo").email("Cleo@ACME.com").claim("email_verified", json!(true));
        assert_eq!(ask(&stage.gateway.sign_in(&cleo)).await, 200);
        assert_eq!(stage.settled(1).await[0]["user_id"], row["id"]);
    }
}

#[tokio::test]
async fn nobody_else_gets_a_row() {
    for backend in backends().await {
        let off = Stage::on(backend).await;
        assert_eq!(ask(&off.ada).await, 200);
        assert!(users(&off, "copilot").await.is_empty(), "unless it is switched on");
    }
    for backend in backends().await {
        let stage = Stage::with(backend, |config| config.directory.jit = true).await;
        let gateway = &stage.gateway;
        let other = gateway.account("Other").await;
        assert_eq!(ask(&gateway.operator_for(&stage.account)).await, 200);
        let visiting = gateway.as_super_admin(&other).within(&stage.account);
        assert_eq!(ask(&visiting).await, 200);
        let console = Person::of(&stage.account, "con").domains(&["console"]);
        let console = gateway.sign_in(&console);
        let request = console.request(http::Method::POST, "/v1/chat/completions").header("x-alchemi-domain", "copilot");
        assert_eq!(console.send(request.json(&chat("gpt-4o-mini"))).await.status.as_u16(), 403);
        let suspended = json!({"status": "suspended"});
        gateway.operator().post(&format!("/v1/accounts/{}/status", stage.account), suspended).await.ok();
        assert_eq!(ask(&stage.ada).await, 403);
        assert!(users(&stage, "copilot").await.is_empty());
    }
}
