//! The two dashboards of the former control plane, of the operator and of an account's admins: their calls one after
//! another as their pages make them, and what they read in the answers.

use std::collections::BTreeMap;

use http::Method;
use serde_json::{Value, json};

mod fields;

use fields::{ACCOUNT, ADMIN, LISTS, MODEL_GRANT};

use crate::common::{Client, Person, backends};
use crate::provision::Setting;
use crate::text;

/// Checks that a client finds these fields.
#[track_caller]
fn reads(row: &Value, fields: &[&str]) {
    let missing: Vec<_> = fields.iter().filter(|field| row.get(**field).is_none()).collect();
    assert!(missing.is_empty(), "{missing:?} in {row}");
}

/// Checks that a client can reckon with these fields.
#[track_caller]
fn reckons(row: &Value, fields: &[&str]) {
    let odd: Vec<_> = fields.iter().filter(|field| !row[**field].is_number()).collect();
    assert!(odd.is_empty(), "no numbers: {odd:?} in {row}");
}

/// The page of an account's admins.
struct Page {
    admin: Client,
    /// What was loaded last, by the path.
    loaded: BTreeMap<&'static str, Vec<Value>>,
    /// Ids that later forms choose from.
    org: String,
    team: String,
    user: String,
}

impl Page {
    /// Loads everything anew, as it does when it is opened and after every form; what cannot be loaded fails the whole
    /// page.
    async fn refresh(&mut self) {
        let context = self.admin.get("/v1/me/context").await.ok();
        let six = ["account_id", "is_super_admin", "auth_provider", "roles", "scopes", "product_domains_allowed"];
        reads(&context, &six);
        for (path, fields) in LISTS {
            let answer = self.admin.get(&format!("/v1{path}")).await.ok();
            let items = answer["items"].as_array().unwrap_or_else(|| panic!("{path}: {answer}")).clone();
            items.iter().for_each(|row| reads(row, fields));
            self.loaded.insert(*path, items);
        }
        let terms = self.admin.get("/v1/budgets/copilot/account-allocation").await.ok();
        reckons(&terms, &["monthly_credits", "overflow_limit", "credit_factor"]);
        let active = self.admin.get("/v1/budgets/copilot/plans/active").await.ok();
        if let Some(plan) = active["item"]["id"].as_str() {
            reads(
                &active["item"],
                &["account_id", "name", "cycle", "status", "created_by", "created_at", "updated_at"],
            );
            let path = format!("/v1/budgets/copilot/effective-allocation?plan_id={plan}");
            let effective = self.admin.get(&path).await.ok();
            reads(&effective, &["plan_id", "account_id", "items"]);
            let sums = ["monthly_credits", "distributed", "unallocated", "credit_factor", "overflow_limit"];
            reckons(&effective, &sums);
            for row in effective["items"].as_array().unwrap() {
                reads(row, &["scope_type", "scope_id", "override_applied", "overflow_cap"]);
                reckons(row, &["base_allocated", "effective_allocated"]);
            }
        }
    }

    /// Sends a form, and loads everything anew.
    async fn submit(&mut self, path: &str, body: Value) -> Value {
        let answer = self.admin.post(&format!("/v1{path}"), body).await.ok();
        self.refresh().await;
        answer
    }

    async fn made(&mut self, path: &str, body: Value) -> String {
        text(&self.submit(path, body).await["item"]["id"])
    }

    /// The rows of a list as it was loaded last.
    fn rows(&self, path: &str) -> &[Value] {
        self.loaded.iter().find(|(list, _)| list.split('?').next() == Some(path)).unwrap().1
    }
}

#[tokio::test]
async fn the_dashboards_find_what_they_read() {
    for backend in backends().await {
        let setting = Setting::new(backend).await;
        let (account, admin) = onboarding(&setting).await;
        operating(&setting, &account).await;
        let mut page =
            Page { admin, loaded: BTreeMap::new(), org: String::new(), team: String::new(), user: String::new() };
        page.refresh().await;
        directory(&mut page).await;
        budgets(&mut page).await;
        let agent = agents(&mut page).await;
        let connection = connections(&mut page).await;
        guardrails(&mut page).await;
        models(&mut page).await;
        features(&mut page).await;
        let listing = marketplace(&mut page, &agent).await;
        alerts(&mut page, &agent, &connection).await;
        audit(&page);
        let empty: Vec<_> = page.loaded.iter().filter(|(_, rows)| rows.is_empty()).map(|(path, _)| path).collect();
        assert!(empty.is_empty(), "nothing was read in {empty:?}");
        for path in [
            format!("/v1/copilot/marketplace/{listing}"),
            format!("/v1/copilot/connections/{connection}"),
            format!("/v1/copilot/agents/{agent}"),
        ] {
            assert_eq!(page.admin.delete(&path).await.ok(), json!({"deleted": true}));
            page.refresh().await;
        }
        leaving(&setting, &account, &page.admin).await;
    }
}

/// An account is made and bound to its organisation in Zitadel, with a prefix to the roles; gives its first admin,
/// signed in with the role that they were granted there.
async fn onboarding(setting: &Setting) -> (String, Client) {
    let operator = setting.operator();
    operator.get("/v1/accounts").await.ok();
    let status = operator.get("/v1/auth/zitadel/status").await.ok();
    reads(&status, &["enabled", "auth_provider", "account_id", "roles", "scopes", "product_domains_allowed"]);
    assert_eq!(status["zitadel_configured"], true);
    let ada = setting.zitadel.user(&setting.org, "ada@globex.com");
    let new = json!({"account_name": "Globex", "domain": "globex.com", "max_budget": 500,
        "admin_email": "ada@globex.com"});
    let made = operator.post("/v1/accounts", new).await.ok();
    assert_eq!(made["status"], "created");
    reads(&made["item"], ACCOUNT);
    let account = text(&made["account_id"]);

    let provision = format!("/v1/accounts/{account}/zitadel");
    let roles = [
        "account_admin",
        "console_org_admin",
        "console_team_admin",
        "copilot_org_admin",
        "copilot_team_admin",
        "end_user",
    ];
    let mappings: BTreeMap<_, _> = roles.iter().map(|role| (*role, format!("glx_{role}"))).collect();
    let config = json!({"enabled": true, "issuer": status["issuer"], "audience": null, "project_id": setting.project,
        "organization_id": setting.org, "account_id_claim": "alchemi:account_id",
        "product_domains_claim": "product_domains_allowed", "role_mappings": mappings});
    let stored = operator.put(&format!("{provision}/config"), config).await.ok();
    assert_eq!((&stored["status"], &stored["zitadel_config"]["enabled"]), (&json!("ok"), &json!(true)));
    let mut ask = json!({"project_id": setting.project, "organization_id": setting.org, "role_prefix": "glx_",
        "apply_default_role_mappings": true, "create_project_roles": true, "grant_existing_account_admins": true,
        "resolve_user_ids_from_zitadel": true, "default_role_keys": [], "user_id_by_email": {}, "dry_run": true,
        "skip_existing": true});
    for dry_run in [true, false] {
        ask["dry_run"] = json!(dry_run);
        let summary =
            operator.post(&format!("{provision}/provision/bootstrap"), ask.clone()).await.ok()["summary"].clone();
        reads(&summary, &["account_id", "project_id", "organization_id", "config_updated"]);
        assert_eq!((&summary["dry_run"], &summary["unresolved_admins"]), (&json!(dry_run), &json!([])), "{summary}");
        for part in ["role_sync_summary", "admin_grant_summary"] {
            reckons(&summary[part], &["created", "exists", "skipped", "failed"]);
        }
        assert_eq!(summary["role_sync_summary"]["created"], if dry_run { 0 } else { 6 }, "{summary}");
    }
    let grant = json!({"user_id": ada, "role_keys": ["glx_end_user"], "project_id": null, "organization_id": null});
    let granted = operator.post(&format!("{provision}/provision/user-grant"), grant).await.ok();
    assert_eq!(granted["status"], "ok");
    let role = json!({"key": "glx_reviewer", "display_name": "Reviewer", "group": null, "project_id": null});
    let made = operator.post(&format!("{provision}/provision/project-role"), role).await.ok();
    assert_eq!(made["status"], "ok");

    assert_eq!(setting.roles_of(&ada), ["glx_account_admin", "glx_end_user"]);
    let person = Person::of(&account, &ada).email("ada@globex.com").of_org(&setting.org);
    let admin = setting.gateway.sign_in(&person.role("glx_account_admin").role("glx_end_user"));
    let context = admin.get("/v1/me/context").await.ok();
    assert_eq!(context["roles"], json!(["account_admin", "end_user"]), "{context}");
    (account, admin)
}

/// What the operator sets for an account.
async fn operating(setting: &Setting, account: &str) {
    let operator = setting.operator();
    let path = format!("/v1/accounts/{account}");
    let change =
        json!({"account_name": "Globex AG", "account_alias": "globex", "domain": "globex.com", "max_budget": null});
    reads(&operator.patch(&path, change).await.ok()["item"], ACCOUNT);

    let admins = format!("{path}/admins");
    assert_eq!(operator.post(&admins, json!({"user_email": "bob@globex.com"})).await.ok()["status"], "ok");
    let bob = format!("{admins}/bob%40globex.com");
    let changed = operator.patch(&bob, json!({"new_email": "rob@globex.com"})).await.ok();
    assert_eq!(changed["status"], "ok");
    reads(&changed["item"], ADMIN);
    assert_eq!(operator.delete(&format!("{admins}/rob%40globex.com")).await.ok()["status"], "ok");

    let sso = format!("{path}/sso");
    let fields = ["id", "account_id", "sso_provider", "enabled", "sso_settings"];
    reads(&operator.get(&sso).await.ok(), &fields);
    let save = json!({"sso_provider": "google", "enabled": true,
        "sso_settings": {"google_client_id": "i", "google_client_secret": "s"}});
    assert_eq!(operator.post(&sso, save).await.ok(), json!({"status": "ok"}));
    let shown = operator.get(&sso).await.ok();
    assert_eq!((&shown["sso_provider"], &shown["enabled"]), (&json!("google"), &json!(true)));
    // The form sends back what it was shown.
    let echo = json!({"sso_provider": "google", "enabled": false, "sso_settings": shown["sso_settings"]});
    operator.post(&sso, echo).await.ok();
    assert_eq!(operator.get(&sso).await.ok()["sso_settings"], shown["sso_settings"]);
    assert_eq!(operator.delete(&sso).await.ok(), json!({"status": "ok", "deleted": true}));
    reads(&operator.get(&sso).await.ok(), &fields);

    let pack = json!({"features": ["create_agents", "model_access_controls"], "config": {"max": 3}});
    let stored = operator.put(&format!("{path}/feature-pack"), pack.clone()).await.ok();
    assert_eq!(stored, json!({"status": "ok", "feature_pack": pack}));
    let policy = json!({"allow_models": ["gpt-4o"], "deny_models": []});
    let stored = operator.put(&format!("{path}/console-model-policy"), policy.clone()).await.ok();
    assert_eq!(stored, json!({"status": "ok", "console_model_policy": policy}));
    let terms = json!({"account_id": account, "monthly_credits": 1000, "overflow_limit": 100, "credit_factor": 2});
    assert_eq!(operator.post("/v1/budgets/account-allocation", terms).await.ok(), json!({"status": "ok"}));

    let item = operator.get(&path).await.ok()["item"].clone();
    let list = operator.get("/v1/accounts").await.ok();
    let listed = list["items"].as_array().unwrap().iter().find(|row| row["account_id"] == account).unwrap();
    assert_eq!(*listed, item, "a row of the list is the whole bundle");
    reads(&item, ACCOUNT);
    reckons(&item, &["spend"]);
    reads(&item["admins"][0], ADMIN);
    reckons(&item["allocation"], &["monthly_credits", "overflow_limit", "credit_factor"]);
    reads(&item["allocation"], &["effective_from", "updated_at"]);
    assert_eq!((&item["feature_pack"], &item["console_model_policy"]), (&pack, &policy));
    let binding =
        ["enabled", "issuer", "audience", "project_id", "organization_id", "account_id_claim", "product_domains_claim"];
    reads(&item["zitadel_config"], &binding);
    assert_eq!(item["zitadel_config"]["role_mappings"]["end_user"], "glx_end_user");
}

async fn directory(page: &mut Page) {
    assert_eq!(page.rows("/copilot/orgs")[0]["name"], "global", "there from the start");
    page.org = page.made("/copilot/orgs", json!({"name": "Research"})).await;
    page.team =
        page.made("/copilot/teams", json!({"org_id": page.org, "name": "Language", "description": "NLP"})).await;
    let user = json!({"email": "eve@globex.com", "display_name": "Eve", "team_ids": [page.team]});
    page.user = page.made("/copilot/users", user).await;
    let counts = ["/copilot/orgs", "/copilot/teams", "/copilot/users"].map(|path| page.rows(path).len());
    assert_eq!(counts, [2, 1, 1]);
}

async fn budgets(page: &mut Page) {
    let plan = page.made("/budgets/copilot/plans", json!({"name": "2026", "cycle": "quarterly"})).await;
    let shares = json!({"plan_id": plan, "scope_type": "team", "scope_ids": [page.team], "total_credits": 100});
    let done = page.submit("/budgets/copilot/distribute/equal", shares).await;
    reads(&done, &["status", "per_scope", "allocation_ids"]);
    let over = json!({"plan_id": plan, "scope_type": "team", "scope_id": page.team, "override_credits": 50,
        "reason": "pilot"});
    let over = page.submit("/budgets/copilot/overrides", over).await;
    let fields = [
        "id",
        "account_id",
        "plan_id",
        "scope_type",
        "scope_id",
        "override_credits",
        "reason",
        "created_by",
        "created_at",
    ];
    reads(&over["item"], &fields);
    assert_eq!(page.rows("/budgets/copilot/usage-by-scope")[0]["allocated_credits"], 50, "what holds");
}

async fn agents(page: &mut Page) -> String {
    let presets: Vec<_> = page.rows("/copilot/guardrails/presets").iter().map(|preset| preset["id"].clone()).collect();
    let none = json!({"name": "Desk", "definition_json": {}, "grants": [], "guardrail_preset_ids": []});
    let refused = page.admin.post("/v1/copilot/agents", none).await;
    let told = "At least one guardrail preset is required for agent creation/update";
    assert_eq!((refused.status.as_u16(), &refused.json()["detail"]), (400, &json!(told)));
    let body = json!({"name": "Desk", "description": "Answers", "definition_json": {"system_prompt": "Be kind"},
        "grants": [], "guardrail_preset_ids": presets});
    let agent = page.made("/copilot/agents", body).await;
    let row = &page.rows("/copilot/agents")[0];
    assert_eq!(row["mandatory_guardrail_preset_ids"].as_array().unwrap().len(), presets.len());
    let grant = page.submit(&format!("/copilot/agents/{agent}/grants"), scope("team", &page.team.clone())).await;
    reads(&grant["item"], &["id", "account_id", "agent_id", "scope_type", "scope_id", "created_by", "created_at"]);
    agent
}

async fn connections(page: &mut Page) -> String {
    let body = json!({"name": "Tickets", "credential_visibility": "use_only", "allow_user_self_manage": false,
        "config_json": {}, "secret_json": {"api_key": "k"}});
    let connection = page.made("/copilot/connections/openapi", body).await;
    assert_eq!(page.rows("/copilot/connections")[0]["secret_json"], json!({"masked": true}));
    let mut grant = scope("user", &page.user);
    grant["can_manage"] = json!(true);
    let grant = page.submit(&format!("/copilot/connections/{connection}/grants"), grant).await;
    let fields = ["id", "connection_id", "scope_type", "scope_id", "can_manage", "created_by", "created_at"];
    reads(&grant["item"], &fields);
    connection
}

async fn guardrails(page: &mut Page) {
    // The form proposes the code of a system preset.
    let own = json!({"code": "pii", "name": "Personal data", "preset_json": {"threshold": 0.8}});
    let preset = page.made("/copilot/guardrails/presets", own).await;
    assert!(!page.rows("/copilot/guardrails/patterns").is_empty(), "its patterns stay");
    let mut assignment = scope("org", &page.org);
    assignment["preset_id"] = json!(preset);
    page.submit("/copilot/guardrails/assignments", assignment).await;
    let pattern = json!({"guard_type": "pii", "pattern_name": "customer", "pattern_regex": "C-[0-9]{8}",
        "pattern_type": "detect", "enabled": true});
    let pattern = page.made("/copilot/guardrails/patterns", pattern).await;
    assert!(page.rows("/copilot/guardrails/patterns").iter().any(|row| row["id"] == pattern));
}

async fn models(page: &mut Page) {
    let mut grant = scope("team", &page.team);
    (grant["domain"], grant["model_name"], grant["access_mode"]) = (json!("copilot"), json!("gpt-4o"), json!("allow"));
    reads(&page.submit("/copilot/models/grants", grant.clone()).await["item"], MODEL_GRANT);
    let account = text(&page.rows("/copilot/models/grants")[0]["account_id"]);
    (grant["domain"], grant["access_mode"]) = (json!("console"), json!("deny"));
    (grant["scope_type"], grant["scope_id"]) = (json!("account"), json!(account));
    page.submit("/console/models/grants", grant).await;
}

async fn features(page: &mut Page) {
    let mut entitlement = scope("org", &page.org);
    entitlement["domain"] = json!("copilot");
    entitlement["feature_code"] = json!("create_agents");
    (entitlement["enabled"], entitlement["config_json"]) = (json!(true), json!({"max": 2}));
    page.submit("/features/entitlements", entitlement).await;
    assert_eq!(page.rows("/features/entitlements")[0]["enabled"], true);
}

async fn marketplace(page: &mut Page, agent: &str) -> String {
    let body = json!({"entity_type": "agent", "entity_id": agent, "title": "Desk", "is_published": false});
    let listing = page.made("/copilot/marketplace", body).await;
    let one = format!("/v1/copilot/marketplace/{listing}");
    let grant = page.submit(&format!("/copilot/marketplace/{listing}/grants"), scope("team", &page.team.clone())).await;
    let fields =
        ["id", "account_id", "marketplace_id", "scope_type", "scope_id", "created_by", "created_at", "updated_at"];
    reads(&grant["item"], &fields);
    for publish in [true, false, true] {
        // A POST that says it is JSON, and is empty.
        let path = format!("{one}/publish?publish={publish}");
        let request = page.admin.request(Method::POST, &path).header("content-type", "application/json");
        assert_eq!(page.admin.send(request).await.ok()["item"]["is_published"], publish);
        page.refresh().await;
    }
    assert_eq!(page.rows("/copilot/marketplace")[0]["grants"], json!([scope("team", &page.team)]));
    listing
}

async fn alerts(page: &mut Page, agent: &str, connection: &str) {
    for (cost, level) in [("20.5", "warning"), ("2", "critical"), ("3", "exceeded")] {
        let usage = json!({"user_id": page.user, "raw_cost": cost, "agent_id": agent, "connection_id": connection,
            "model_name": "gpt-4o", "guardrail_code": "pii"});
        reads(&page.submit("/budgets/copilot/usage/record", usage).await["item"], &["id", "credits_incurred"]);
        let alert = &page.rows("/budgets/copilot/alerts")[0];
        assert_eq!((&alert["entity_name"], &alert["alert_level"]), (&json!("Language"), &json!(level)));
        assert_eq!(alert["budget"], json!({"entity_type": "TEAM", "entity_id": page.team}));
        reckons(alert, &["usage_percentage"]);
    }
    let cost = &page.rows("/costs/breakdown")[0];
    assert_eq!((&cost["raw_cost"], &cost["credits_incurred"]), (&json!(25.5), &json!(51)));
    let scope = &page.rows("/budgets/copilot/usage-by-scope")[0];
    assert_eq!(
        (&scope["used"], &scope["overflow_used"], &scope["usage_percentage"]),
        (&json!(51), &json!(1), &json!(102.0))
    );
}

fn audit(page: &Page) {
    let rows = page.rows("/audit");
    for table in ["Alchemi_CopilotAgentTable", "Alchemi_CopilotConnectionTable", "Alchemi_CopilotMarketplaceTable"] {
        assert!(rows.iter().any(|row| row["table_name"] == table && row["object_id"].is_string()), "{table}");
    }
    assert!(rows.windows(2).all(|pair| text(&pair[0]["updated_at"]) >= text(&pair[1]["updated_at"])), "newest first");
}

/// The account is suspended, restored, and removed for good.
async fn leaving(setting: &Setting, account: &str, admin: &Client) {
    let (operator, path) = (setting.operator(), format!("/v1/accounts/{account}"));
    let turn = async |status: &str| {
        let turned = operator.post(&format!("{path}/status"), json!({"status": status})).await.ok();
        assert_eq!(turned["item"]["status"], status);
    };
    turn("suspended").await;
    let refused = admin.get("/v1/copilot/orgs").await;
    // Where the roles have been taken back already, the token was too.
    assert!(matches!(refused.code().as_str(), "account_suspended" | "token_revoked"), "{}", refused.text());
    turn("active").await;
    let gone = operator.delete(&format!("{path}?hard_delete=true&confirm_name=Globex%20AG")).await.ok();
    assert_eq!(gone, json!({"status": "deleted", "account_id": account}));
}

fn scope(kind: &str, id: &str) -> Value {
    json!({"scope_type": kind, "scope_id": id})
}
