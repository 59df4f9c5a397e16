//! Five hundred requests of every kind and end, and books that balance to the nano.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use http::Method;
use serde_json::json;

use crate::common::{Client, Gateway, backends};
use crate::{Stage, chat, int, nanos, streamed, text, with};

const REQUESTS: usize = 500;

/// What a request's client learnt of its cost, in nano-dollars; none if it did not wait, or was told nothing.
async fn one(client: &Client, n: usize) -> Option<(String, i64)> {
    let asked = |model: &str| with(streamed(model), "stream_options", json!({"include_usage": true}));
    let (path, body) = match n % 10 {
        0 => ("/v1/chat/completions", chat("gpt-4o-mini")),
        1 => ("/v1/chat/completions", asked("gpt-4o")),
        2 => ("/v1/embeddings", json!({"model": "text-embedding-3-small", "input": "x".repeat(n)})),
        3 => ("/v1/chat/completions", chat("gpt-4o-mini+status=429")),
        4 => ("/v1/chat/completions", streamed("gpt-4o-mini+cut=5")),
        5 => ("/v1/responses", json!({"model": "gpt-4o", "input": "x", "stream": true})),
        6 => return hang_up(client, streamed("gpt-4o-mini+endless+gap=1"), n).await,
        7 => return hang_up(client, chat("gpt-4o+delay=20"), n).await,
        8 => ("/v1/chat/completions", chat("gpt-4o+status=500")),
        _ => ("/v1/rerank", json!({"model": "rerank-v3.5", "query": "a", "documents": ["a", "b"]})),
    };
    let reply = client.try_send(client.request(Method::POST, path).json(&body)).await.ok()?;
    let id = reply.header("x-request-id").to_owned();
    let told = match n % 10 {
        1 => reply.json_events().into_iter().find_map(|event| Some(event.get("usage")?["cost"].to_string()))?,
        5 => return None,
        _ => reply.header("x-litellm-response-cost").to_owned(),
    };
    Some((id, nanos(&told)))
}

/// Leaves at some point: before, during or after the answer.
async fn hang_up(client: &Client, body: serde_json::Value, n: usize) -> Option<(String, i64)> {
    let request = client.request(Method::POST, "/v1/chat/completions").json(&body);
    let patience = Duration::from_micros((n as u64 * 7919) % 30_000);
    let answered = tokio::time::timeout(patience, client.try_send(request)).await;
    let reply = answered.ok()?.ok()?;
    Some((reply.header("x-request-id").to_owned(), nanos(reply.header("x-litellm-response-cost"))))
}

/// Until nobody is being served, nothing waits to be settled and nothing is held.
async fn quiet(gateway: &Gateway) {
    let mut seen = String::new();
    for _ in 0..1_000 {
        let open = gateway.database.rows(r#"SELECT request_id FROM "Alchemi_AllocationReservationTable""#, &[]).await;
        let leases = gateway.database.rows(r#"SELECT lease_id FROM "Alchemi_AllocationLeaseTable""#, &[]).await;
        let busy = gateway.metric("requests_in_flight").await;
        let (made, settled) = (gateway.metric("reservations_total").await, gateway.metric("settlements_total").await);
        if open.is_empty() && leases.is_empty() && busy == 0 && made == settled {
            return;
        }
        seen = format!("{busy} in flight, {made} reserved, {settled} settled, held: {open:?}, leased: {leases:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it does not come to rest: {seen}");
}

#[tokio::test]
async fn every_request_is_in_the_ledger_once_and_all_sums_agree() {
    for backend in backends().await {
        let stage = Stage::on(backend).await;
        let (gateway, account) = (&stage.gateway, &stage.account);
        let org = gateway.org(account, "copilot", "Research").await;
        let team = gateway.team(account, "copilot", &org, "Physics").await;
        let plan = gateway.plan(account).await;
        let mut people = Vec::new();
        for n in 0..5 {
            let user = gateway.user(account, "copilot", &format!("subject-{n}"), &[&team]).await;
            gateway.allot(account, &plan, ("user", &user), "100").await;
            people.push(gateway.as_end_user(account, &format!("subject-{n}")));
        }
        let people = &people;
        let told: Vec<_> =
            stream::iter(0..REQUESTS).map(|n| one(&people[n / 10 % 5], n)).buffer_unordered(24).collect().await;
        quiet(gateway).await;

        let report = gateway.verify_books().await;
        assert_eq!(report.differences, [], "ledger, counters, roll-ups and reservations agree");
        assert_eq!(report.reservations, 0);
        let rows = gateway.ledger(account).await;
        let sum = |rows: &[crate::Row]| rows.iter().map(|row| int(row, "raw_cost")).sum::<i64>();
        let (mut expected, mut found) = (0, 0);
        for (id, cost) in told.into_iter().flatten() {
            let row = rows.iter().find(|row| text(row, "request_id") == id).expect("every answer has a row");
            assert_eq!(int(row, "raw_cost"), cost, "{row:?}");
            expected += cost;
            found += int(row, "raw_cost");
        }
        assert!(expected > 0 && expected == found);
        let counters = gateway.counters(account).await;
        assert_eq!(counters[&("account".to_owned(), account.clone())], (sum(&rows), 0));
        let of_users = counters.iter().filter(|((kind, _), _)| kind == "user").map(|(_, (used, _))| used).sum::<i64>();
        assert_eq!(of_users, sum(&rows));
        for row in &rows {
            let failed = int(row, "status") >= 400;
            let unsent = text(row, "marks") == "not_forwarded";
            let free = text(row, "cost_source") == "free";
            assert_eq!(failed || unsent, free, "{row:?}");
        }
        let usage = gateway.operator_for(account).get("/v1/budgets/copilot/usage-by-scope").await.ok();
        let shown = usage["items"].as_array().unwrap().iter().map(|item| nanos(&item["used"].to_string()));
        assert_eq!(shown.sum::<i64>(), sum(&rows), "what admins see is what the ledger says");
    }
}

/// Whoever leaves while their credits are being held does not leave the hold behind.
#[tokio::test]
async fn nobody_leaves_a_reservation_behind() {
    let (with, without) = (backends().await, backends().await);
    for (backend, leased) in with.into_iter().map(|b| (b, true)).chain(without.into_iter().map(|b| (b, false))) {
        let stage = Stage::with(backend, |config| config.allocation.leases.enabled = leased).await;
        stage.ada.post("/v1/chat/completions", chat("gpt-4o")).await.ok();
        let (ada, body) = (&stage.ada, chat("gpt-4o+delay=50"));
        let leave = async |n: u64| {
            let request = ada.request(Method::POST, "/v1/chat/completions").json(&body);
            // From before the request is read until it is on its way to the upstream.
            let patience = Duration::from_micros(500 + n * 37 % 9_000);
            assert!(tokio::time::timeout(patience, ada.try_send(request)).await.is_err(), "it takes 50 ms");
        };
        stream::iter(0..400).map(leave).buffer_unordered(4).collect::<Vec<()>>().await;
        quiet(&stage.gateway).await;
        assert_eq!(stage.gateway.verify_books().await.differences, []);
    }
}
