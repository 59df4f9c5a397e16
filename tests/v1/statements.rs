//! No answer asks the database again for each of its rows: with forty of everything, every GET sends as many statements
//! as with two.

use std::collections::BTreeMap;

use alchemi::clock::Clock as _;
use alchemi::id::Id;
use alchemi::model::accounts::Account;
use alchemi::v1::App;
use alchemi::v1::models::Catalogue;
use http::Method;
use serde_json::{Value, json};

use crate::common::gateway::SECRET_KEY;
use crate::gateway::{Client, EIGHT, Gateway, ISSUER, gateways_at_rest, issued, keyed};
use crate::operations::{Operation, operations};

const FEW: usize = 2;
const MANY: usize = 40;

/// What is not measured, and why.
const EXCEPT: &[&str] = &[
    // The whole chain, in runs of so many events.
    "/v1/accounts/{account_id}/audit/export",
    "/v1/accounts/{account_id}/audit/verify",
    "/v1/audit/export",
    "/v1/audit/verify",
    // Asks Zitadel.
    "/v1/accounts/{account_id}/zitadel/provision/drift",
];

/// Lists without pages, which must have grown as well.
const WHOLE: &[&str] = &["/v1/copilot/guardrails/effective", "/v1/me/features", "/v1/me/models"];

/// An account that grows.
struct Tenant<'a> {
    gateway: &'a Gateway,
    account: Id<Account>,
    admin: Client,
    /// A user of both domains.
    ada: Client,
    /// What the operations' parameters are, by domain and name.
    known: BTreeMap<(&'static str, &'static str), String>,
}

fn shape(app: App) -> App {
    keyed(issued(app), SECRET_KEY).with_catalogue(Catalogue::new(|| (0..MANY).map(|n| format!("model-{n}")).collect()))
}

impl<'a> Tenant<'a> {
    async fn of(gateway: &'a Gateway) -> Self {
        let account = gateway.account("Acme").await;
        let (admin, ada) = (gateway.as_operator(Some(&account)), gateway.as_member_of(&account, "ada", None).await);
        let mut known = BTreeMap::new();
        for domain in ["console", "copilot"] {
            let org = admin.made(&format!("/{domain}/orgs"), json!({"name": "first"})).await;
            let team = admin.made(&format!("/{domain}/teams"), json!({"org_id": org, "name": "first"})).await;
            let user = json!({"identity_user_id": "ada", "team_ids": [team]});
            let user = admin.made(&format!("/{domain}/users"), user).await;
            known.extend([((domain, "org_id"), org), ((domain, "team_id"), team), ((domain, "user_id"), user)]);
        }
        let plan = admin.made("/budgets/copilot/plans", json!({"name": "in force"})).await;
        let shared = admin.made("/copilot/connections/mcp", json!({"name": "shared"})).await;
        let preset = admin.made("/copilot/guardrails/presets", json!({"code": "shared", "name": "shared"})).await;
        let agent = json!({"name": "shared", "guardrail_preset_ids": [preset]});
        let agent = admin.made("/copilot/agents", agent).await;
        let webhook = json!({"url": "https://hooks.example.com", "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"});
        admin.put("/budgets/copilot/alerts/webhook", webhook).await.ok();
        let listing = json!({"entity_type": "connection", "entity_id": shared, "title": "shared"});
        let listing = admin.made("/copilot/marketplace", listing).await;
        let shared = [
            ("plan_id", plan),
            ("connection_id", shared),
            ("preset_id", preset),
            ("agent_id", agent),
            ("marketplace_id", listing),
        ];
        known.extend(shared.map(|(name, id)| (("copilot", name), id)));
        let tenant = Self { gateway, account, admin, ada, known };
        let whole = tenant.scope("user", tenant.id("copilot", "user_id"), json!({}));
        tenant.post(&format!("/copilot/marketplace/{}/grants", tenant.id("copilot", "marketplace_id")), whole).await;
        tenant
    }

    fn id(&self, domain: &'static str, name: &'static str) -> &str {
        &self.known[&(domain, name)]
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        self.admin.post(path, body).await.ok()
    }

    /// A body about a scope.
    fn scope(&self, kind: &str, id: &str, mut body: Value) -> Value {
        body["scope_type"] = json!(kind);
        body["scope_id"] = json!(id);
        body
    }

    /// One more row of everything.
    async fn grow(&mut self, n: usize) {
        self.grow_platform(n).await;
        for domain in ["console", "copilot"] {
            self.grow_directory(domain, n).await;
        }
        let user = json!({"identity_user_id": format!("user-{n}"), "team_ids": [self.id("copilot", "team_id")]});
        let user = self.admin.made("/copilot/users", user).await;
        self.grow_agents(&user, n).await;
        self.grow_marketplace(&user, n).await;
        self.grow_budgets(&user, n).await;
    }

    async fn grow_platform(&self, n: usize) {
        let other = self.gateway.account(&format!("Account {n}")).await;
        let operator = self.gateway.as_operator(None);
        let allocation = json!({"account_id": other.as_str(), "monthly_credits": 1});
        operator.post("/budgets/account-allocation", allocation).await.ok();
        operator.post("/auth/revocations", json!({"issuer": ISSUER, "subject": format!("subject {n}")})).await.ok();
        for account in [&self.account, &other] {
            let admin = json!({"user_email": format!("admin{n}@acme.com")});
            operator.post(&format!("/accounts/{account}/admins"), admin).await.ok();
        }
    }

    async fn grow_directory(&mut self, domain: &'static str, n: usize) {
        self.post(&format!("/{domain}/orgs"), json!({"name": format!("org {n}")})).await;
        let team = json!({"org_id": self.id(domain, "org_id"), "name": format!("team {n}")});
        self.post(&format!("/{domain}/teams"), team).await;
        let user = json!({"email": format!("user{n}@acme.com"), "team_ids": [self.id(domain, "team_id")]});
        self.post(&format!("/{domain}/users"), user).await;
        let grant = json!({"model_name": format!("model-{n}"), "access_mode": "allow"});
        let grant = self.scope("account", self.account.as_str(), grant);
        let grant = self.admin.made(&format!("/{domain}/models/grants"), grant).await;
        let feature = json!({"domain": domain, "feature_code": format!("feature-{n}")});
        let feature = self.scope("account", self.account.as_str(), feature);
        let feature = self.admin.made("/features/entitlements", feature).await;
        self.known.extend([((domain, "grant_id"), grant), ((domain, "entitlement_id"), feature)]);
    }

    async fn grow_agents(&mut self, user: &str, n: usize) {
        let code = format!("preset-{n}");
        let preset = self.admin.made("/copilot/guardrails/presets", json!({"code": code, "name": code})).await;
        let assignment = self.scope("account", self.account.as_str(), json!({"preset_id": preset}));
        self.post("/copilot/guardrails/assignments", assignment).await;
        let pattern = |preset: &str| {
            json!({"guard_type": "pii", "preset_id": preset, "pattern_name": format!("P{n}"), "pattern_regex": "x+",
                "pattern_type": "detect"})
        };
        self.post("/copilot/guardrails/patterns", pattern(&preset)).await;
        let shared = pattern(self.id("copilot", "preset_id"));
        let pattern = self.admin.made("/copilot/guardrails/patterns", shared).await;
        self.known.insert(("copilot", "pattern_id"), pattern);
        let ada = self.scope("user", self.id("copilot", "user_id"), json!({}));
        let agent = json!({"name": code, "guardrail_preset_ids": [preset], "grants": [ada]});
        self.post("/copilot/agents", agent).await;
        let grants = format!("/copilot/agents/{}/grants", self.id("copilot", "agent_id"));
        self.post(&grants, self.scope("user", user, json!({}))).await;
    }

    async fn grow_marketplace(&self, user: &str, n: usize) {
        let name = json!({"name": format!("connection {n}")});
        let connection = self.admin.made("/copilot/connections/openapi", name).await;
        let listing = json!({"entity_type": "connection", "entity_id": connection, "title": format!("listing {n}")});
        self.post("/copilot/marketplace", listing).await;
        let shared = format!("/copilot/connections/{}/grants", self.id("copilot", "connection_id"));
        let listing = format!("/copilot/marketplace/{}", self.id("copilot", "marketplace_id"));
        for path in [shared, format!("{listing}/grants"), format!("{listing}/install")] {
            self.post(&path, self.scope("user", user, json!({}))).await;
        }
    }

    async fn grow_budgets(&self, user: &str, n: usize) {
        self.post("/budgets/copilot/plans", json!({"name": format!("plan {n}")})).await;
        let (year, month) = (2007 + n / 12, n % 12 + 1);
        let (next_year, next_month) = (2007 + (n + 1) / 12, (n + 1) % 12 + 1);
        let cycle = json!({
            "cycle_start": format!("{year}-{month:02}-01T00:00:00Z"),
            "cycle_end": format!("{next_year}-{next_month:02}-01T00:00:00Z"),
        });
        self.post("/budgets/copilot/cycles/renew", cycle).await;
        self.post("/budgets/copilot/alerts/webhook/test", json!({})).await;
        let plan = self.id("copilot", "plan_id");
        self.post(&format!("/budgets/copilot/plans/{plan}/activate"), json!({})).await;
        let share = self.scope("user", user, json!({"plan_id": plan, "allocated_credits": 1}));
        self.post("/budgets/copilot/allocations/upsert", share).await;
        let exception = self.scope("user", user, json!({"plan_id": plan, "override_credits": 1}));
        self.post("/budgets/copilot/overrides", exception).await;
        for user in [user, self.id("copilot", "user_id")] {
            let usage = json!({"raw_cost": 1, "user_id": user, "model_name": format!("model-{n}"),
                "agent_id": format!("agent-{n}")});
            self.post("/budgets/copilot/usage/record", usage).await;
        }
    }

    /// The value of a parameter, if it is to be sent.
    fn value(&self, operation: &Operation, name: &str) -> Option<String> {
        match name {
            "limit" => Some("100".to_owned()),
            "include_grants" => Some("true".to_owned()),
            // A page of the whole plan; a subject's chain is what `/v1/me/allocation` answers.
            "org_id" | "team_id" | "user_id" if operation.path.ends_with("/effective-allocation") => None,
            "model_name" if operation.path.ends_with("/effective") => Some("model-0".to_owned()),
            "feature_code" if operation.path.ends_with("/effective") => Some("feature-0".to_owned()),
            "account_id" if operation.path.contains("{account_id}") => Some(self.account.as_str().to_owned()),
            _ => {
                self.known.iter().find(|((of, n), _)| (*of, *n) == (operation.domain(), name)).map(|(_, id)| id.clone())
            }
        }
    }

    /// The number of statements and of items of every measured operation's answer.
    async fn measure(&self) -> BTreeMap<String, (u64, usize)> {
        let mut measured = BTreeMap::new();
        for operation in operations() {
            if operation.method != Method::GET || EXCEPT.contains(&operation.path.as_str()) {
                continue;
            }
            let asked = operation.ask(|name| self.value(&operation, name)).path;
            let own = operation.path.starts_with("/v1/me/") || operation.path.ends_with("/rating");
            let client = if own { &self.ada } else { &self.admin };
            let before = self.gateway.store.statements();
            let reply = client.get(asked.trim_start_matches("/v1")).await;
            let statements = self.gateway.store.statements() - before;
            assert_eq!(reply.status, 200, "{asked}: {}", reply.json);
            let items = ["items", "models", "features"].iter().find_map(|name| reply.json[*name].as_array());
            measured.insert(operation.path, (statements, items.map_or(0, Vec::len)));
        }
        measured
    }
}

#[tokio::test]
async fn an_answer_takes_as_many_statements_with_many_rows_as_with_few() {
    let paged = |operation: &Operation| operation.parameters("query").any(|parameter| parameter["name"] == "limit");
    let lists: Vec<String> = operations().iter().filter(|o| paged(o)).map(|o| o.path.clone()).collect();
    for (gateway, clock) in gateways_at_rest(shape).await {
        assert_eq!(clock.now(), EIGHT);
        let mut tenant = Tenant::of(&gateway).await;
        for n in 0..FEW {
            tenant.grow(n).await;
        }
        let few = tenant.measure().await;
        for n in FEW..MANY {
            tenant.grow(n).await;
        }
        let many = tenant.measure().await;
        let mut wrong = Vec::new();
        for (path, (statements, items)) in &many {
            if *statements != few[path].0 {
                wrong.push(format!("{path}: {} statements, then {statements}", few[path].0));
            }
            let list = lists.contains(path) || WHOLE.contains(&path.as_str());
            if list && *items < MANY {
                wrong.push(format!("{path}: {items} items, which prove nothing"));
            }
        }
        assert!(wrong.is_empty(), "{}: {wrong:#?}", gateway.store.backend());
    }
}
