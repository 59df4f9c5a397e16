//! What belongs to another account does not exist.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use serde_json::{Value, json};

use crate::common::{Gateway, Reply, Row, backends};
use crate::operations::{Asked, NOBODY, Operation, operations};

/// An account with one of everything.
pub(crate) struct Tenant {
    pub(crate) account: String,
    /// By product domain and the name of the parameter.
    ids: BTreeMap<(&'static str, &'static str), String>,
}

impl Tenant {
    pub(crate) async fn new(gateway: &Gateway, name: &str) -> Self {
        let account = gateway.account(name).await;
        gateway.allocate(&account, "1000").await;
        let mut ids = BTreeMap::new();
        for domain in ["console", "copilot"] {
            let org = gateway.org(&account, domain, "Research").await;
            let team = gateway.team(&account, domain, &org, "Language").await;
            let user = gateway.user(&account, domain, &format!("{name}-ada"), &[&team]).await;
            let grant = gateway.grant(&account, domain, "gpt-4o*", ("team", &team), "allow").await;
            ids.extend([
                ((domain, "org_id"), org),
                ((domain, "team_id"), team),
                ((domain, "user_id"), user),
                ((domain, "grant_id"), grant),
            ]);
        }
        let plan = gateway.plan(&account).await;
        let team = ids[&("copilot", "team_id")].clone();
        gateway.allot(&account, &plan, ("team", &team), "100").await;
        let over = json!({"plan_id": plan, "scope_type": "team", "scope_id": &team, "override_credits": 50});
        let over = gateway.operator_for(&account).post("/v1/budgets/copilot/overrides", over).await.ok();
        ids.insert(("copilot", "override_id"), over["item"]["id"].as_str().unwrap().to_owned());
        ids.insert(("copilot", "plan_id"), plan);
        let operator = gateway.operator_for(&account);
        let body = json!({"name": "Tickets", "secret_json": {"api_key": "the key"}});
        let made = operator.post("/v1/copilot/connections/mcp", body).await.ok();
        let connection = made["item"]["id"].as_str().unwrap().to_owned();
        let grants = format!("/v1/copilot/connections/{connection}/grants");
        let granted = operator.post(&grants, json!({"scope_type": "team", "scope_id": team})).await.ok();
        let listing = json!({"entity_type": "connection", "entity_id": connection, "title": "Tickets"});
        let listing = operator.post("/v1/copilot/marketplace", listing).await.ok();
        let listing = listing["item"]["id"].as_str().unwrap().to_owned();
        let of_team = json!({"scope_type": "team", "scope_id": team});
        for (what, body) in [("grants", &of_team), ("install", &of_team), ("rating", &json!({"rating": 4}))] {
            operator.post(&format!("/v1/copilot/marketplace/{listing}/{what}"), body.clone()).await.ok();
        }
        let used = json!({"raw_cost": 1, "team_id": team});
        let used = operator.post("/v1/budgets/copilot/usage/record", used).await.ok();
        ids.insert(("copilot", "reverses"), used["item"]["id"].as_str().unwrap().to_owned());
        ids.insert(("copilot", "marketplace_id"), listing);
        ids.insert(("copilot", "connection_id"), connection);
        ids.insert(("copilot", "connection_grant_id"), granted["item"]["id"].as_str().unwrap().to_owned());
        let admin = json!({"user_email": "ada@acme.com"});
        operator.post(&format!("/v1/accounts/{account}/admins"), admin).await.ok();
        let sso = json!({"sso_provider": "google", "sso_settings": {"google_client_secret": "the secret"}});
        operator.post(&format!("/v1/accounts/{account}/sso"), sso).await.ok();
        let webhook = json!({"url": "https://hooks.example.com", "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "enabled": false});
        operator.put("/v1/budgets/copilot/alerts/webhook", webhook).await.ok();
        let feature = json!({"domain": "copilot", "feature_code": "agents", "scope_type": "team", "scope_id": team});
        let feature = gateway.operator_for(&account).post("/v1/features/entitlements", feature).await.ok();
        ids.insert(("copilot", "entitlement_id"), feature["item"]["id"].as_str().unwrap().to_owned());
        let preset = json!({"code": "own", "name": "Own"});
        let preset = gateway.made(&account, "/v1/copilot/guardrails/presets", preset).await;
        let pattern = json!({"guard_type": "pii", "preset_id": preset, "pattern_name": "own", "pattern_regex": "own",
            "pattern_type": "detect"});
        let pattern = gateway.made(&account, "/v1/copilot/guardrails/patterns", pattern).await;
        let assignment = json!({"preset_id": preset, "scope_type": "account", "scope_id": account});
        let assignment = gateway.made(&account, "/v1/copilot/guardrails/assignments", assignment).await;
        let system = gateway.operator_for(&account).get("/v1/copilot/guardrails/presets?offset=1&limit=1").await.ok();
        let agent = json!({"name": "Desk", "guardrail_preset_ids": [system["items"][0]["id"]], "grants": [of_team]});
        let agent = gateway.made(&account, "/v1/copilot/agents", agent).await;
        ids.extend([
            (("copilot", "preset_id"), preset),
            (("copilot", "pattern_id"), pattern),
            (("copilot", "assignment_id"), assignment),
            (("copilot", "agent_id"), agent),
        ]);
        Self { account, ids }
    }

    /// The id that a parameter of an operation asks for; `scope_id` by the kind of scope.
    pub(crate) fn id(&self, domain: &'static str, name: &str, kind: &str) -> Option<String> {
        let name = match (name, kind) {
            ("account_id", _) | ("scope_id" | "scope_ids", "account") => return Some(self.account.clone()),
            ("scope_id" | "scope_ids", "org") => "org_id",
            ("scope_id" | "scope_ids", "user") => "user_id",
            ("scope_id" | "scope_ids", _) => "team_id",
            ("team_ids", _) => "team_id",
            ("guardrail_preset_ids", _) => "preset_id",
            ("entity_id", _) => "connection_id",
            (name, _) => name,
        };
        self.ids.iter().find(|((d, n), _)| *d == domain && *n == name).map(|(_, id)| id.clone())
    }

    /// The id of what it has one of in the copilot domain.
    pub(crate) fn known(&self, name: &str) -> String {
        self.id("copilot", name, "team").unwrap()
    }

    /// As [`id`](Self::id), for an operation: the grant of a connection is another than that of a model.
    pub(crate) fn id_for(&self, operation: &Operation, name: &str, kind: &str) -> Option<String> {
        let of_connection = name == "grant_id" && operation.path.contains("/connections/");
        self.id(operation.domain(), if of_connection { "connection_grant_id" } else { name }, kind)
    }

    /// Every row of the account, table by table.
    pub(crate) async fn rows(&self, gateway: &Gateway) -> Vec<(String, Vec<Row>)> {
        let tables = match &gateway.database {
            crate::common::database::Database::Sqlite(_) => {
                r#"SELECT m.name AS name FROM sqlite_master m JOIN pragma_table_info(m.name) c ON c.name = 'account_id' WHERE m.type = 'table' ORDER BY 1"#
            }
            crate::common::database::Database::Postgres(_) => {
                "SELECT table_name::TEXT AS name FROM information_schema.columns WHERE column_name = 'account_id' ORDER BY 1"
            }
        };
        let mut all = Vec::new();
        for table in gateway.database.rows(tables, &[]).await {
            let table = table["name"].as_str().unwrap().to_owned();
            let sql = format!(r#"SELECT * FROM "{table}" WHERE account_id = $1"#);
            let mut rows = gateway.database.rows(&sql, &[&self.account]).await;
            rows.sort_by_cached_key(|row| serde_json::to_string(row).unwrap());
            all.push((table, rows));
        }
        assert!(all.len() > 5);
        all
    }
}

/// Replaces what `value` has something for, at every depth; in a list, all of it by that one.
pub(crate) fn fill(body: &mut Value, value: &impl Fn(&str, &Value) -> Option<Value>) {
    match body {
        Value::Object(fields) => fields.iter_mut().for_each(|(name, field)| match value(name, field) {
            Some(new) => *field = if field.is_array() { json!([new]) } else { new },
            None => fill(field, value),
        }),
        Value::Array(items) => items.iter_mut().for_each(|item| fill(item, value)),
        _ => {}
    }
}

/// The names of the fields of a body, at every depth.
fn fields(body: &Value) -> BTreeSet<String> {
    match body {
        Value::Object(fields_of) => {
            fields_of.iter().flat_map(|(name, field)| fields(field).into_iter().chain([name.clone()])).collect()
        }
        Value::Array(items) => items.iter().flat_map(fields).collect(),
        _ => BTreeSet::new(),
    }
}

/// Where a request names something by its id.
#[derive(Clone, Debug)]
enum Slot {
    /// A parameter of the path or of the query.
    Parameter(String),
    /// A field of the body, at whatever depth.
    Field(String),
}

const NAMES: &[&str] = &[
    "org_id",
    "team_id",
    "user_id",
    "grant_id",
    "connection_id",
    "plan_id",
    "override_id",
    "entitlement_id",
    "agent_id",
    "preset_id",
    "pattern_id",
    "assignment_id",
    "guardrail_preset_ids",
    "marketplace_id",
    "reverses",
    "entity_id",
    "scope_id",
    "team_ids",
    "scope_ids",
];

/// Ids that are nobody's row.
const NO_ROWS: &[&str] = &["identity_user_id"];

/// Whether an operation is the operator's, who reaches every account.
fn of_operators(operation: &Operation) -> bool {
    let paths = ["/v1/accounts", "/v1/auth/", "/v1/budgets/account-allocation"];
    paths.iter().any(|path| operation.path.starts_with(path))
}

#[test]
fn every_id_of_every_operation_is_tried() {
    for operation in operations().iter().filter(|operation| !of_operators(operation)) {
        let parameters = operation.parameters("path").chain(operation.parameters("query"));
        let parameters = parameters.filter_map(|p| p["name"].as_str().map(str::to_owned));
        let fields = fields(&operation.ask(|_| None).body.unwrap_or_default());
        for name in parameters.chain(fields).filter(|name| name.ends_with("_id") || name.ends_with("_ids")) {
            let known = NAMES.contains(&name.as_str()) || NO_ROWS.contains(&name.as_str());
            assert!(known, "no line in NAMES for {name} of {}", operation.name());
        }
    }
}

fn slots(operation: &Operation) -> Vec<Slot> {
    let named = |p: &Value| p["name"].as_str().filter(|name| NAMES.contains(name)).map(str::to_owned);
    let parameters = operation.parameters("path").chain(operation.parameters("query")).filter_map(named);
    let fields = fields(&operation.ask(|_| None).body.unwrap_or_default());
    let fields = fields.into_iter().filter(|name| NAMES.contains(&name.as_str()));
    // Of a recorded use it is only a label.
    let fields = fields.filter(|name| !matches!(name.as_str(), "agent_id" | "connection_id"));
    // What a listing is about cannot be changed, to whatever.
    let fields = fields.filter(|name| name != "entity_id" || operation.method != http::Method::PATCH);
    parameters.map(Slot::Parameter).chain(fields.map(Slot::Field)).collect()
}

/// A request of `own` in which only `slot` is `id`.
fn ask(operation: &Operation, own: &Tenant, slot: &Slot, kind: &str, id: &str) -> Asked {
    let required = |name: &str| {
        operation
            .parameters("path")
            .chain(operation.parameters("query"))
            .any(|p| p["name"] == name && p["required"] == true)
    };
    let mut asked = operation.ask(|name| match slot {
        Slot::Parameter(slot) if slot == name => Some(id.to_owned()),
        _ if name == "scope_type" => Some(kind.to_owned()),
        _ => required(name).then(|| own.id_for(operation, name, kind)).flatten(),
    });
    let body = asked.body.iter_mut();
    body.for_each(|body| {
        fill(body, &|name, _| match slot {
            _ if name == "scope_type" => Some(json!(kind)),
            Slot::Field(slot) if slot == name => Some(json!(id)),
            _ => NAMES.contains(&name).then(|| json!(own.id_for(operation, name, kind).unwrap())),
        });
    });
    asked
}

/// An answer without what tells one request from another.
fn told(reply: &Reply, ids: [&str; 2]) -> (u16, String) {
    let mut body: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    if let Some(body) = body.as_object_mut() {
        body.remove("request_id");
    }
    let text = ids.iter().fold(body.to_string(), |text, id| text.replace(id, "ID"));
    (reply.status.as_u16(), text)
}

#[tokio::test]
async fn the_ids_of_another_account_answer_as_missing_ones() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let (own, other) = (Tenant::new(&gateway, "Own").await, Tenant::new(&gateway, "Other").await);
        let (admin, operator) = (gateway.as_account_admin(&own.account), gateway.operator_for(&own.account));
        let before = (own.rows(&gateway).await, other.rows(&gateway).await);

        let (mut broken, mut asked) = (String::new(), 0);
        for operation in operations().into_iter().filter(|operation| !of_operators(operation)) {
            for slot in slots(&operation) {
                for kind in ["account", "org", "team", "user"] {
                    let (Slot::Parameter(name) | Slot::Field(name)) = &slot;
                    let theirs = other.id_for(&operation, name, kind).unwrap();
                    // Within an account that they name, operators reach no other either.
                    let caller = if operation.path.ends_with("/adjustments") { &operator } else { &admin };
                    let foreign = operation.call(caller, &ask(&operation, &own, &slot, kind, &theirs)).await;
                    let missing = operation.call(caller, &ask(&operation, &own, &slot, kind, NOBODY)).await;
                    let ids = [theirs.as_str(), NOBODY];
                    let (foreign, missing) = (told(&foreign, ids), told(&missing, ids));
                    let idle = ["/allocations", "/agents/{agent_id}/grants", "/{marketplace_id}/grants", "/install"];
                    let idle = idle.iter().any(|path| operation.path.ends_with(path));
                    let idle = idle && operation.method == http::Method::DELETE;
                    let reads = operation.method == http::Method::GET || idle;
                    let refused = matches!(foreign.0, 400 | 404) || (reads && foreign.0 == 200);
                    if foreign != missing || !refused {
                        let name = operation.name();
                        writeln!(broken, "{name} {slot:?} of a {kind}:\n  {foreign:?}\n  {missing:?}").unwrap();
                    }
                    asked += 1;
                }
            }
        }
        assert!(broken.is_empty(), "\n{broken}");
        assert!(asked > 200, "{asked}");
        assert_eq!((own.rows(&gateway).await, other.rows(&gateway).await), before, "nothing was written");
    }
}

#[tokio::test]
async fn the_team_header_of_another_account_answers_as_a_missing_one() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let (own, other) = (Tenant::new(&gateway, "Own").await, Tenant::new(&gateway, "Other").await);
        let ada = gateway.as_end_user(&own.account, "Own-ada");
        let theirs = other.id("copilot", "team_id", "").unwrap();
        let own = ["agents", "allocation", "features", "marketplace", "models", "usage"];
        for path in own.map(|what| format!("/v1/me/{what}")) {
            let path = path.as_str();
            let ask = |team: &str| ada.send(ada.request(http::Method::GET, path).header("x-alchemi-team-id", team));
            let (foreign, missing) = (ask(&theirs).await, ask(NOBODY).await);
            let ids = [theirs.as_str(), NOBODY];
            assert_eq!(told(&foreign, ids), told(&missing, ids), "{path}");
            assert_eq!(foreign.status.as_u16(), 403, "{}", foreign.text());
        }
    }
}

/// A domain's tree is its own, within one account too.
#[tokio::test]
async fn the_ids_of_the_other_domain_answer_as_missing_ones() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let own = Tenant::new(&gateway, "Own").await;
        let admin = gateway.as_account_admin(&own.account);
        for (domain, other) in [("console", "copilot"), ("copilot", "console")] {
            for (kind, name) in
                [("orgs", "org_id"), ("teams", "team_id"), ("users", "user_id"), ("models/grants", "grant_id")]
            {
                let id = own.id(other, name, "").unwrap();
                let foreign = admin.get(&format!("/v1/{domain}/{kind}/{id}")).await;
                let missing = admin.get(&format!("/v1/{domain}/{kind}/{NOBODY}")).await;
                assert_eq!(told(&foreign, [&id, NOBODY]), told(&missing, [&id, NOBODY]));
                assert_eq!(foreign.status.as_u16(), 404);
            }
        }
    }
}
