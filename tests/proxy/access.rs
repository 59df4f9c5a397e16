//! Access beside the model: features that kinds of requests require, connections, and the
//! order in which everything is asked.

use alchemi::model::usage::RouteKind;
use http::Method;
use serde_json::{Value, json};

use crate::common::{Client, Gateway, Person, Reply, backends};
use crate::{Stage, chat, text, with};

const CHAT: &str = "/v1/chat/completions";

impl Stage {
    async fn entitle(&self, feature: &str, scope: (&str, &str), enabled: bool) -> String {
        let body = json!({"domain": "copilot", "feature_code": feature, "scope_type": scope.0, "scope_id": scope.1,
            "enabled": enabled});
        self.gateway.made(&self.account, "/v1/features/entitlements", body).await
    }
}

fn picture() -> Value {
    json!({"model": "dall-e-3", "prompt": "a retort"})
}

#[tokio::test]
async fn a_kind_that_requires_a_feature_is_for_those_who_have_it() {
    for backend in backends().await {
        let required = [(RouteKind::Images, "image_generation".to_owned()), (RouteKind::Models, "listing".to_owned())];
        let stage = Stage::with(backend, |config| config.features.required = required.into_iter().collect()).await;
        let draw = async || stage.ada.post("/v1/images/generations", picture()).await;
        stage.ada.post(CHAT, chat("gpt-4o")).await.ok();
        let refused = draw().await;
        assert_eq!((refused.status.as_u16(), refused.code().as_str()), (403, "feature_disabled"));
        let error = &refused.json()["error"];
        assert_eq!(error["feature"], "image_generation");
        assert!(error["message"].as_str().unwrap().contains("admin of account Acme"), "{error}");
        assert_eq!(stage.ada.get("/v1/models").await.code(), "feature_disabled");

        // From the account to the user, the nearest decides, and at once.
        stage.entitle("image_generation", ("account", &stage.account), true).await;
        draw().await.ok();
        let org = stage.gateway.org(&stage.account, "copilot", "Research").await;
        let team = stage.gateway.team(&stage.account, "copilot", &org, "Physics").await;
        stage.gateway.user(&stage.account, "copilot", "ada", &[&team]).await;
        let closed = stage.entitle("image_generation", ("team", &team), false).await;
        assert_eq!(draw().await.code(), "feature_disabled");
        let asked = json!({"subject": "ada", "kind": "images", "model": "dall-e-3"});
        let told = stage.gateway.operator_for(&stage.account).post("/v1/policy/explain", asked).await.ok();
        let step = told["rules"].as_array().unwrap().last().unwrap();
        assert_eq!((&told["code"], &step["rule"]), (&json!("feature_disabled"), &json!("feature")));
        assert_eq!((&step["about"], &step["scope"]["scope_type"]), (&json!("image_generation"), &json!("team")));
        stage.gateway.operator_for(&stage.account).delete(&format!("/v1/features/entitlements/{closed}")).await.ok();
        draw().await.ok();
        // What the operator's pack leaves out is off, whatever an entitlement says.
        let pack = json!({"features": ["something_else"], "config": {}});
        let path = format!("/v1/accounts/{}/feature-pack", stage.account);
        stage.gateway.operator().put(&path, pack).await.ok();
        assert_eq!(draw().await.code(), "feature_disabled");
    }
}

async fn through(client: &Client, connection: &str) -> Reply {
    let request = client.request(Method::POST, CHAT).header("x-alchemi-connection-id", connection);
    client.send(request.json(&chat("gpt-4o-mini"))).await
}

#[tokio::test]
async fn a_connection_is_used_by_those_it_is_granted_to() {
    for backend in backends().await {
        let stage = Stage::on(backend).await;
        let (gateway, account) = (&stage.gateway, &stage.account);
        let operator = gateway.operator_for(account);
        let connection = gateway.made(account, "/v1/copilot/connections/openapi", json!({"name": "Tickets"})).await;
        assert_eq!(through(&stage.ada, &connection).await.code(), "connection_denied", "nobody has it");

        let org = gateway.org(account, "copilot", "Research").await;
        let team = gateway.team(account, "copilot", &org, "Physics").await;
        let grants = format!("/v1/copilot/connections/{connection}/grants");
        let grant = gateway.made(account, &grants, json!({"scope_type": "team", "scope_id": team})).await;
        assert_eq!(through(&stage.ada, &connection).await.code(), "connection_denied", "another team's");
        gateway.user(account, "copilot", "ada", &[&team]).await;
        through(&stage.ada, &connection).await.ok();
        let row = &stage.settled(1).await[0];
        assert_eq!(text(row, "connection_id"), connection);
        let costs = operator.get("/v1/budgets/copilot/cost-breakdown?by=connection").await.ok();
        assert_eq!(costs["items"][0]["key"], connection.as_str(), "{costs}");

        let other = gateway.account("Other").await;
        gateway.open_models(&other).await;
        assert_eq!(through(&gateway.as_end_user(&other, "eve"), &connection).await.code(), "connection_denied");
        assert_eq!(through(&stage.ada, "gone").await.code(), "connection_denied");
        assert_eq!(through(&stage.ada, "two words").await.code(), "invalid_header");
        // What is known of one is not known of another.
        assert_eq!(stage.ada.post(CHAT, chat("gpt-4o-mini")).await.status, 200);
        assert_eq!(text(&stage.settled(2).await[1], "request_id").len(), 36);

        operator.delete(&format!("{grants}/{grant}")).await.ok();
        assert_eq!(through(&stage.ada, &connection).await.code(), "connection_denied", "taken back");
        gateway.made(account, &grants, json!({"scope_type": "org", "scope_id": org})).await;
        through(&stage.ada, &connection).await.ok();
        operator.delete(&format!("/v1/copilot/connections/{connection}")).await.ok();
        assert_eq!(through(&stage.ada, &connection).await.code(), "connection_denied", "removed");
    }
}

/// What a request is that everything speaks against, until one after the other is put right.
struct Everything {
    client: Client,
    agent: bool,
    connection: bool,
    says: &'static str,
}

impl Everything {
    async fn refused(&self) -> String {
        let body = with(chat("gpt-4o-mini"), "messages", json!([{"role": "user", "content": self.says}]));
        let mut request = self.client.request(Method::POST, CHAT).header("x-alchemi-domain", "copilot");
        for (name, present) in [("x-alchemi-agent-id", self.agent), ("x-alchemi-connection-id", self.connection)] {
            if present {
                request = request.header(name, "unknown");
            }
        }
        let reply = self.client.send(request.json(&body)).await;
        if reply.status == 200 { "allow".to_owned() } else { reply.code() }
    }
}

#[tokio::test]
async fn the_first_failure_in_the_order_of_the_checks_answers() {
    for backend in backends().await {
        let required = [(RouteKind::Chat, "chatting".to_owned())];
        let gateway =
            Gateway::start_with(backend, |config| config.features.required = required.into_iter().collect()).await;
        let account = gateway.account("Acme").await;
        let operator = gateway.operator_for(&account);
        gateway.allocate(&account, "0").await;
        let preset = gateway.made(&account, "/v1/copilot/guardrails/presets", json!({"code": "p", "name": "p"})).await;
        let pattern = json!({"guard_type": "pii", "preset_id": preset, "pattern_name": "word",
            "pattern_regex": "forbidden", "pattern_type": "detect", "action": "block"});
        gateway.made(&account, "/v1/copilot/guardrails/patterns", pattern).await;
        let assigned = json!({"preset_id": preset, "scope_type": "account", "scope_id": account});
        gateway.made(&account, "/v1/copilot/guardrails/assignments", assigned).await;
        let suspend = async |status: &str| {
            gateway.operator().post(&format!("/v1/accounts/{account}/status"), json!({"status": status})).await.ok();
        };
        suspend("suspended").await;

        let somebody = gateway.sign_in(&Person::of(&account, "ada").domains(&["console"]));
        let mut asked = Everything { client: somebody, agent: true, connection: true, says: "a forbidden word" };
        assert_eq!(asked.refused().await, "account_suspended");
        suspend("active").await;
        assert_eq!(asked.refused().await, "domain_denied");
        asked.client = gateway.as_end_user(&account, "ada");
        assert_eq!(asked.refused().await, "feature_disabled");
        let entitled = json!({"domain": "copilot", "feature_code": "chatting", "scope_type": "account",
            "scope_id": account, "enabled": true});
        operator.post("/v1/features/entitlements", entitled).await.ok();
        assert_eq!(asked.refused().await, "model_denied");
        gateway.open_models(&account).await;
        assert_eq!(asked.refused().await, "agent_denied");
        asked.agent = false;
        assert_eq!(asked.refused().await, "connection_denied");
        asked.connection = false;
        assert_eq!(asked.refused().await, "guardrail_blocked");
        asked.says = "a word";
        assert_eq!(asked.refused().await, "allocation_exhausted");
        assert_eq!(gateway.forwarded(), [], "nothing of it left");
        gateway.allocate(&account, "1000").await;
        assert_eq!(asked.refused().await, "allow");
    }
}
