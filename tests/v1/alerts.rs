//! Alerts that are pushed: found once, signed, tried until they arrive.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alchemi::clock::{ManualClock, Timestamp};
use alchemi::config::Config;
use alchemi::server::Surroundings;
use aws_lc_rs::hmac;
use axum::extract::State;
use axum::routing::post;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, StatusCode, header};
use serde_json::{Value, json};

use crate::common::database::migrated_database;
use crate::common::gateway::PATIENCE;
use crate::common::{Backend, Client, Gateway, backends};
use crate::{invalid, refusal};

const BASE: &str = "/v1/budgets/copilot";
const HOOK: &str = "/v1/budgets/copilot/alerts/webhook";
const KEY: &[u8] = b"0123456789abcdef0123456789abcdef";

fn secret() -> String {
    format!("whsec_{}", STANDARD.encode(KEY))
}

/// A message as it arrived, with the status that it was answered with.
#[derive(Debug, Clone)]
struct Arrived {
    id: String,
    body: Value,
    answered: u16,
}

#[derive(Default)]
struct Inbox {
    /// What is answered next; 200 behind them.
    statuses: VecDeque<u16>,
    arrived: Vec<Arrived>,
}

/// Somebody who receives webhooks, and checks every signature.
struct Receiver {
    address: SocketAddr,
    inbox: Arc<Mutex<Inbox>>,
}

async fn receive(State(inbox): State<Arc<Mutex<Inbox>>>, headers: HeaderMap, body: String) -> (StatusCode, HeaderMap) {
    let header = |name: &str| headers[name].to_str().unwrap().to_owned();
    let (id, at) = (header("webhook-id"), header("webhook-timestamp"));
    let signed = header("webhook-signature");
    let tag = STANDARD.decode(signed.strip_prefix("v1,").unwrap()).unwrap();
    let key = hmac::Key::new(hmac::HMAC_SHA256, KEY);
    hmac::verify(&key, format!("{id}.{at}.{body}").as_bytes(), &tag).unwrap();
    assert_eq!(headers[header::CONTENT_TYPE], "application/json");
    let mut inbox = inbox.lock().unwrap();
    let answered = inbox.statuses.pop_front().unwrap_or(200);
    inbox.arrived.push(Arrived { id, body: serde_json::from_str(&body).unwrap(), answered });
    let elsewhere = HeaderMap::from_iter([(header::LOCATION, "/elsewhere".parse().unwrap())]);
    (StatusCode::from_u16(answered).unwrap(), elsewhere)
}

impl Receiver {
    async fn new() -> Self {
        let inbox = Arc::new(Mutex::new(Inbox::default()));
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let router = axum::Router::new()
            .route("/hook", post(receive))
            .route("/elsewhere", post(receive).get(receive))
            .with_state(Arc::clone(&inbox));
        tokio::spawn(async move { axum::serve(socket, router).await });
        Self { address, inbox }
    }

    fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    fn answer(&self, statuses: impl IntoIterator<Item = u16>) {
        self.inbox.lock().unwrap().statuses.extend(statuses);
    }

    fn arrived(&self) -> Vec<Arrived> {
        self.inbox.lock().unwrap().arrived.clone()
    }

    /// What has arrived, as soon as it is so much.
    async fn wait(&self, count: usize) -> Vec<Arrived> {
        let began = std::time::Instant::now();
        while self.arrived().len() < count {
            assert!(began.elapsed() < PATIENCE, "{count} wanted: {:#?}", self.arrived());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.arrived()
    }
}

/// Quick, and allowed to send to this machine.
fn quick(config: &mut Config) {
    config.outbound.allow_loopback = true;
    config.alerts.observe_ms = 20;
    config.alerts.deliver_ms = 10;
    config.alerts.retry_ms = 10;
    config.alerts.attempts = 4;
}

async fn hook(admin: &Client, url: &str) -> Value {
    admin.put(HOOK, json!({"url": url, "secret": secret(), "enabled": true})).await.ok()["item"].clone()
}

async fn use_up(admin: &Client, cost: i64, place: Value) {
    let mut body = json!({"raw_cost": cost});
    body.as_object_mut().unwrap().extend(place.as_object().unwrap().clone());
    admin.post(&format!("{BASE}/usage/record"), body).await.ok();
}

/// The deliveries as soon as none is pending.
async fn settled(admin: &Client) -> Vec<Value> {
    let began = std::time::Instant::now();
    loop {
        let all = admin.get(&format!("{BASE}/alerts/deliveries")).await.ok();
        let all = all["items"].as_array().unwrap().clone();
        if !all.is_empty() && all.iter().all(|delivery| delivery["state"] != "pending") {
            return all;
        }
        assert!(began.elapsed() < PATIENCE, "{all:#?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_webhook_is_set_shown_changed_and_removed() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let admin = gateway.as_account_admin(&account);
        assert_eq!(admin.get(HOOK).await.ok(), json!({"item": null}));
        refusal(&admin.post(&format!("{HOOK}/test"), json!({})).await, 404, "not_found");
        assert_eq!(admin.delete(HOOK).await.ok(), json!({"deleted": false}));
        let body = json!({"url": "https://hooks.example.com/a", "secret": secret()});
        let made = admin.put(HOOK, body.clone()).await;
        assert_eq!(made.header("etag"), "\"1\"");
        let item = made.ok()["item"].clone();
        assert_eq!((&item["thresholds"], &item["enabled"]), (&json!([80, 90, 100]), &json!(true)));
        assert!(item.get("secret").is_none() && !item.to_string().contains("whsec_"), "{item}");
        assert_eq!(admin.get(HOOK).await.ok()["item"], item);

        // Without a secret, the one that is there stays.
        let sealed = async || {
            let sql = r#"SELECT secret_json FROM "Alchemi_AlertWebhookTable""#;
            gateway.database.rows(sql, &[]).await[0]["secret_json"].clone()
        };
        let before = sealed().await;
        let other = json!({"url": "https://hooks.example.com/b", "thresholds": [100, 50], "enabled": false});
        let changed = admin.put(HOOK, other).await.ok()["item"].clone();
        assert_eq!((&changed["thresholds"], &changed["id"]), (&json!([50, 100]), &item["id"]));
        assert_eq!(sealed().await, before);
        let late = admin.request(http::Method::PUT, HOOK).header("if-match", "\"1\"").json(&body);
        refusal(&admin.send(late).await, 412, "version_mismatch");
        let kept = admin.put(HOOK, json!({"url": "https://hooks.example.com/c"})).await.ok()["item"].clone();
        assert_eq!((&kept["thresholds"], &kept["enabled"]), (&json!([50, 100]), &json!(false)), "as they were");
        admin.put(HOOK, body.clone()).await.ok();
        assert_ne!(sealed().await, before, "sealed anew");

        for (field, wrong) in [
            ("url", json!("http://hooks.example.com")),
            ("url", json!("https://127.0.0.1/hook")),
            ("url", json!("https://hooks.example.com/?room=7&access_token=hunter2")),
            ("url", json!("https://metadata.google.internal/")),
            ("secret", json!("hunter2hunter2hunter2hunter2hunter2")),
            ("secret", json!("whsec_c2hvcnQ=")),
            ("thresholds", json!([])),
            ("thresholds", json!([0])),
            ("thresholds", json!([80, 80])),
            ("thresholds", json!([1001])),
            ("enabled", json!("yes")),
        ] {
            let mut body = body.clone();
            body[field] = wrong;
            invalid(&admin.put(HOOK, body).await, &format!("/{field}"));
        }
        let other = gateway.as_account_admin(&gateway.account("Beta").await);
        invalid(&other.put(HOOK, json!({"url": "https://hooks.example.com"})).await, "/secret");
        assert_eq!(other.get(HOOK).await.ok(), json!({"item": null}));

        assert_eq!(admin.delete(HOOK).await.ok(), json!({"deleted": true}));
        let audit = admin.get("/v1/audit?resource=Alchemi_AlertWebhookTable").await.ok();
        let actions: Vec<_> =
            audit["items"].as_array().unwrap().iter().map(|e| e["action"].as_str().unwrap()).collect();
        assert_eq!(actions, ["delete", "upsert", "upsert", "upsert", "upsert"]);
        assert!(!audit.to_string().contains("whsec_"));
    }
}

#[tokio::test]
async fn each_threshold_is_told_once_in_each_window_by_any_number_of_gateways() {
    for backend in backends().await {
        let gateway = Gateway::start_with(backend, quick).await;
        let other = gateway.beside(quick).await;
        let receiver = Receiver::new().await;
        let account = gateway.account("Acme").await;
        gateway.allocate(&account, "1000").await;
        let org = gateway.org(&account, "copilot", "Research").await;
        let plan = gateway.plan(&account).await;
        gateway.allot(&account, &plan, ("org", &org), "100").await;
        let admin = gateway.as_account_admin(&account);
        hook(&admin, &receiver.url()).await;
        use_up(&admin, 79, json!({"org_id": org})).await;
        tokio::time::sleep(Duration::from_millis(150)).await;
        assert!(receiver.arrived().is_empty(), "79 of 100");
        use_up(&admin, 1, json!({"org_id": org})).await;
        let first = receiver.wait(1).await.remove(0).body;
        assert_eq!(first["type"], "budget.threshold_reached");
        let data = &first["data"];
        assert_eq!((&data["entity_name"], &data["entity_type"]), (&json!("Research"), &json!("ORG")));
        assert_eq!((&data["entity_id"], &data["account_id"]), (&json!(org), &json!(account)));
        assert_eq!((&data["threshold"], &data["alert_level"]), (&json!(80), &json!("warning")));
        assert_eq!((&data["used"], &data["allocated_credits"]), (&json!(80), &json!(100)));
        assert_eq!(data["usage_percentage"], json!(80.0));
        assert!(data["window"]["start"].is_string() && data["window"]["end"].is_string());

        // Two at once, by recorded usage and by a request that settles.
        use_up(&admin, 25, json!({"org_id": org})).await;
        receiver.wait(3).await;
        // Less allocated is as good as more used; nobody has used anything meanwhile.
        gateway.allocate(&account, "125").await;
        other.allocate(&account, "125").await;
        let sql = r#"UPDATE "Alchemi_AlertWebhookTable" SET observed_at = 0"#;
        gateway.database.rows(sql, &[]).await;
        receiver.wait(4).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let told: BTreeSet<_> = receiver
            .arrived()
            .iter()
            .map(|a| (a.body["data"]["entity_type"].to_string(), a.body["data"]["threshold"].as_i64().unwrap()))
            .collect();
        let expected = [("\"ACCOUNT\"", 80), ("\"ORG\"", 80), ("\"ORG\"", 90), ("\"ORG\"", 100)];
        assert_eq!(told, expected.map(|(kind, threshold)| (kind.to_owned(), threshold)).into());
        let ids: BTreeSet<_> = receiver.arrived().into_iter().map(|arrived| arrived.id).collect();
        assert_eq!(ids.len(), 4, "once each");
        let deliveries = settled(&admin).await;
        assert!(deliveries.iter().all(|d| d["state"] == "delivered" && d["last_status"] == 200), "{deliveries:#?}");
        let of_org: BTreeSet<_> =
            deliveries.iter().filter(|d| d["scope_id"] == json!(org)).map(|d| d["threshold"].as_i64()).collect();
        assert_eq!(of_org, [Some(80), Some(90), Some(100)].into());
        let counted = gateway.metric("alerts_delivered_total").await + other.metric("alerts_delivered_total").await;
        assert!(counted >= 4, "{counted}");
    }
}

/// A request through the gateway counts as usage does, and what it uses under `soft` is told beyond the cap.
#[tokio::test]
async fn requests_that_settle_are_told_of() {
    for backend in backends().await {
        let gateway = Gateway::start_with(backend, quick).await;
        let receiver = Receiver::new().await;
        let account = gateway.account("Acme").await;
        gateway.open_models(&account).await;
        let terms = json!({"account_id": account, "monthly_credits": json!("0.000000001"), "enforcement": "soft"});
        gateway.operator().post("/v1/budgets/account-allocation", terms).await.ok();
        hook(&gateway.as_account_admin(&account), &receiver.url()).await;
        let body = json!({"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello"}]});
        gateway.as_end_user(&account, "ada").post("/v1/chat/completions", body).await.ok();
        let levels: BTreeSet<_> =
            receiver.wait(3).await.iter().map(|a| a.body["data"]["alert_level"].as_str().unwrap().to_owned()).collect();
        assert_eq!(levels, ["critical", "exceeded", "warning"].map(str::to_owned).into());
    }
}

#[tokio::test]
async fn a_message_is_tried_until_it_arrives_or_has_failed_too_often() {
    for backend in backends().await {
        let gateway = Gateway::start_with(backend, quick).await;
        let receiver = Receiver::new().await;
        let account = gateway.account("Acme").await;
        let admin = gateway.as_account_admin(&account);
        hook(&admin, &receiver.url()).await;
        let test = async || admin.post(&format!("{HOOK}/test"), json!({})).await.ok()["item"].clone();
        receiver.answer([500, 302, 410]);
        let made = test().await;
        assert_eq!((&made["event"], &made["state"], &made["attempts"]), (&json!("test"), &json!("pending"), &json!(0)));
        let arrived = receiver.wait(4).await;
        assert!(arrived.iter().all(|a| a.id == made["id"].as_str().unwrap() && a.body["type"] == "webhook.test"));
        assert_eq!(
            arrived.iter().map(|a| a.answered).collect::<Vec<_>>(),
            [500, 302, 410, 200],
            "no redirect is followed"
        );
        let done = settled(&admin).await.remove(0);
        assert_eq!(
            (&done["state"], &done["attempts"], &done["last_status"]),
            (&json!("delivered"), &json!(4), &json!(200))
        );
        assert!(done["delivered_at"].is_string() && done["last_error"].is_null());

        receiver.answer([503; 4]);
        test().await;
        let failed = settled(&admin).await.remove(0);
        assert_eq!((&failed["state"], &failed["attempts"]), (&json!("failed"), &json!(4)));
        assert_eq!(failed["last_error"], "the receiver answered with status 503");
        let only = admin.get(&format!("{BASE}/alerts/deliveries?state=failed")).await.ok();
        assert_eq!(only["items"].as_array().unwrap().len(), 1);
        invalid(&admin.get(&format!("{BASE}/alerts/deliveries?state=lost")).await, "state");
        assert_eq!(gateway.metric("alerts_given_up_total").await, 1);
        assert_eq!(gateway.metric("alert_failures_total").await, 3 + 4);
    }
}

/// What is written down outlives whoever wrote it; what is paused waits, and what is removed is not sent.
#[tokio::test]
async fn messages_survive_a_restart_a_pause_and_an_outage() {
    for backend in backends().await {
        let patient = |config: &mut Config| {
            quick(config);
            // What somebody had taken who was stopped is left to them for 20 s more than a receiver has.
            (config.alerts.attempts, config.alerts.timeout_ms) = (1_000, 1_000);
        };
        let mut gateway = Gateway::start_with(backend, patient).await;
        let account = gateway.account("Acme").await;
        let admin = gateway.as_account_admin(&account);
        // Nobody listens there.
        hook(&admin, "http://127.0.0.1:1/hook").await;
        admin.post(&format!("{HOOK}/test"), json!({})).await.ok();
        let error = async || {
            let all = admin.get(&format!("{BASE}/alerts/deliveries?state=pending")).await.ok();
            all["items"][0]["last_error"].as_str().unwrap_or_default().to_owned()
        };
        while error().await != "the receiver cannot be reached" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        gateway.stop().await;
        let again = gateway.beside(patient).await;
        let receiver = Receiver::new().await;
        let admin = admin.at(again.url());
        let paused = json!({"url": receiver.url(), "secret": secret(), "enabled": false});
        admin.put(HOOK, paused).await.ok();
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(receiver.arrived().is_empty(), "it waits");
        hook(&admin, &receiver.url()).await;
        assert_eq!(receiver.wait(1).await[0].body["type"], "webhook.test");
        assert_eq!(settled(&admin).await[0]["state"], "delivered");

        hook(&admin, "http://127.0.0.1:1/hook").await;
        admin.post(&format!("{HOOK}/test"), json!({})).await.ok();
        admin.delete(HOOK).await.ok();
        let removed = settled(&admin).await.remove(0);
        assert_eq!((&removed["state"], &removed["last_error"]), (&json!("failed"), &json!("the webhook was removed")));
    }
}

/// Who has taken a message when its webhook is paused does not send it, and does not keep it.
#[tokio::test]
async fn what_was_taken_when_it_is_paused_waits_too() {
    let Some(url) = migrated_database().await else { return };
    let database = sqlx::PgPool::connect(&url).await.unwrap();
    let gateway = Gateway::start_with(Backend::Postgres(url), |config| {
        quick(config);
        (config.alerts.attempts, config.alerts.longest_retry_ms) = (1_000_000, 10);
    })
    .await;
    let account = gateway.account("Acme").await;
    let admin = gateway.as_account_admin(&account);
    // Nobody listens there.
    hook(&admin, "http://127.0.0.1:1/hook").await;
    admin.post(&format!("{HOOK}/test"), json!({})).await.ok();
    // Stops who takes it behind their look for webhooks that are on, and nobody who notes how it went.
    let waiting = async || -> Option<bool> {
        let sql = "SELECT query LIKE '%attempts = attempts + 1%' FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
        sqlx::query_scalar(sql).fetch_optional(&database).await.unwrap()
    };
    let began = std::time::Instant::now();
    let held = loop {
        let mut held = database.begin().await.unwrap();
        sqlx::query(r#"SELECT 1 FROM "Alchemi_AlertDeliveryTable" FOR UPDATE"#).execute(&mut *held).await.unwrap();
        let takes = loop {
            assert!(began.elapsed() < PATIENCE, "nobody takes the message");
            match waiting().await {
                Some(takes) => break takes,
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        if takes {
            break held;
        }
        held.rollback().await.unwrap();
    };
    let receiver = Receiver::new().await;
    admin.put(HOOK, json!({"url": receiver.url(), "secret": secret(), "enabled": false})).await.ok();
    held.rollback().await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(receiver.arrived().is_empty(), "it waits");
    hook(&admin, &receiver.url()).await;
    assert_eq!(receiver.wait(1).await[0].body["type"], "webhook.test");
}

/// Nobody looked before the window was over.
#[tokio::test]
async fn what_was_reached_at_the_end_of_a_window_is_told_afterwards() {
    for backend in backends().await {
        let clock = Arc::new(ManualClock::at(Timestamp::from_secs(crate::MID_JANUARY)));
        let surroundings = || Surroundings { clock: clock.clone(), ..Surroundings::default() };
        let idle = |config: &mut Config| {
            quick(config);
            (config.alerts.observe_ms, config.alerts.deliver_ms) = (86_400_000, 86_400_000);
        };
        let gateway = Gateway::start_in(backend, surroundings(), idle).await;
        let account = gateway.account("Acme").await;
        gateway.allocate(&account, "100").await;
        let receiver = Receiver::new().await;
        let admin = gateway.as_account_admin(&account);
        admin.put(HOOK, json!({"url": "https://hooks.example.com", "secret": secret(), "enabled": false})).await.ok();
        use_up(&admin, 90, json!({})).await;
        clock.advance(Duration::from_secs(17 * 24 * 3600 - 12 * 3600));
        // Another gateway, which looks from now on.
        let other = gateway.beside_in(surroundings(), quick).await;
        let sql = format!(
            r#"UPDATE "Alchemi_AlertWebhookTable" SET url = '{}', enabled = TRUE, observed_at = 1"#,
            receiver.url()
        );
        gateway.database.rows(&sql, &[]).await;
        for arrived in receiver.wait(2).await {
            assert_eq!(arrived.body["data"]["window"]["end"], "2026-02-01T00:00:00Z");
        }
        // In the new window the same thresholds are told again.
        let admin = other.as_account_admin(&account);
        use_up(&admin, 100, json!({})).await;
        let all = receiver.wait(5).await;
        let february = all.iter().filter(|a| a.body["data"]["window"]["start"] == "2026-02-01T00:00:00Z").count();
        assert_eq!((february, all.len()), (3, 5));
    }
}

#[tokio::test]
async fn rules_that_have_become_stricter_hold_for_what_is_stored() {
    for backend in backends().await {
        let mut gateway = Gateway::start_with(backend, quick).await;
        let receiver = Receiver::new().await;
        let account = gateway.account("Acme").await;
        let admin = gateway.as_account_admin(&account);
        let body = json!({"url": receiver.url(), "secret": secret(), "enabled": false});
        admin.put(HOOK, body).await.ok();
        gateway.stop().await;
        let strict = gateway
            .beside(|config| {
                quick(config);
                config.outbound.allow_loopback = false;
                config.alerts.attempts = 1;
            })
            .await;
        gateway.database.rows(r#"UPDATE "Alchemi_AlertWebhookTable" SET enabled = TRUE"#, &[]).await;
        let admin = admin.at(strict.url());
        admin.post(&format!("{HOOK}/test"), json!({})).await.ok();
        let failed = settled(&admin).await.remove(0);
        assert_eq!((&failed["state"], &failed["last_status"]), (&json!("failed"), &Value::Null));
        assert!(receiver.arrived().is_empty());
    }
}
