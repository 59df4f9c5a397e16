//! One account to try things with, made through the control plane as an operator would.

use reqwest::{Client, Method};
use serde_json::{Value, json};

use super::super::Failure;
use crate::dev::{DevIssuer, DevUser, Org};

/// Zitadel's ids of the people, the same at every start.
pub(super) const ADMIN: &str = "310716200000000001";
pub(super) const ADA: &str = "310716200000000002";
pub(super) const GRACE: &str = "310716200000000003";

pub(super) const ORGANIZATION: &str = "310716100000000001";
const ACCOUNT_NAME: &str = "Acme (dev)";

/// What was planted.
pub(super) struct World {
    pub(super) account_id: String,
    pub(super) account_name: &'static str,
    pub(super) allowed: String,
    pub(super) refused: String,
    /// It was there before this start, with what was spent and changed since it was made.
    pub(super) found: bool,
}

/// A model to grant and one to refuse, of those that the upstream lists.
pub(super) async fn models(upstream: &str, key: Option<&str>) -> Result<(String, String), Failure> {
    let mut request = Client::new().get(format!("{}/v1/models", upstream.trim_end_matches('/')));
    if let Some(key) = key {
        request = request.bearer_auth(key);
    }
    let unreachable = |e: reqwest::Error| {
        Failure::misconfigured(format!("--upstream {upstream} cannot be asked for its models: {e}; is it running?"))
    };
    let answer = request.send().await.map_err(unreachable)?;
    if !answer.status().is_success() {
        let status = answer.status();
        return Err(Failure::misconfigured(format!(
            "--upstream {upstream} answers {status} to GET /v1/models: give its key with --upstream-key"
        )));
    }
    let listing: Value = answer.json().await.map_err(unreachable)?;
    let listed = listing.get("data").and_then(Value::as_array).into_iter().flatten();
    let names: Vec<_> = listed.filter_map(|model| model.get("id").and_then(Value::as_str)).map(str::to_owned).collect();
    let chat = chat_models(upstream, key).await;
    let first = names.iter().find(|name| chat.contains(name)).or(names.first()).cloned();
    let allowed = first.unwrap_or_else(|| "gpt-4o-mini".to_owned());
    let mut others = names.iter().filter(|name| **name != allowed);
    let refused = others.clone().find(|name| chat.contains(name)).or_else(|| others.next()).cloned();
    Ok((allowed, refused.unwrap_or_else(|| "another-model".to_owned())))
}

/// Of LiteLLM's models, those that chat; of another upstream, none is known to.
async fn chat_models(upstream: &str, key: Option<&str>) -> Vec<String> {
    let mut request = Client::new().get(format!("{}/model/info", upstream.trim_end_matches('/')));
    if let Some(key) = key {
        request = request.bearer_auth(key);
    }
    let Ok(answer) = request.send().await else { return Vec::new() };
    let info: Value = answer.json().await.unwrap_or_default();
    let deployments = info.get("data").and_then(Value::as_array).into_iter().flatten();
    let chats = deployments.filter(|one| one.pointer("/model_info/mode").and_then(Value::as_str) == Some("chat"));
    chats.filter_map(|one| one.get("model_name").and_then(Value::as_str)).map(str::to_owned).collect()
}

/// Makes account, directory, budget and grants, or finds those of an earlier start.
pub(super) async fn plant(
    gateway: &str,
    master_key: &str,
    issuer: &DevIssuer,
    (allowed, refused): &(String, String),
) -> Result<World, Failure> {
    people(issuer);
    let operator = Operator { client: Client::new(), gateway, master_key, account: None };
    let known = operator.call(Method::GET, "/v1/accounts?limit=1000", None).await?;
    let accounts = known.get("items").and_then(Value::as_array);
    let found = accounts.into_iter().flatten().find(|a| text(a, "account_name") == ACCOUNT_NAME);
    let account_id = match found {
        Some(account) => text(account, "account_id"),
        None => account(&operator).await?,
    };
    let operator = Operator { account: Some(account_id.clone()), ..operator };
    if found.is_none() {
        divisions(&operator, &account_id).await?;
    }
    let grant = json!({"model_name": allowed, "scope_type": "account", "scope_id": account_id});
    operator.call(Method::POST, "/v1/copilot/models/grants", Some(grant)).await?;
    Ok(World {
        account_id,
        account_name: ACCOUNT_NAME,
        allowed: allowed.clone(),
        refused: refused.clone(),
        found: found.is_some(),
    })
}

fn people(issuer: &DevIssuer) {
    let organization =
        Org { id: ORGANIZATION.to_owned(), name: "Acme".to_owned(), domain: "acme.localhost".to_owned() };
    for (subject, name, role) in
        [(ADMIN, "Alan", "account_admin"), (ADA, "Ada", "end_user"), (GRACE, "Grace", "end_user")]
    {
        issuer.add_user(DevUser {
            subject: subject.to_owned(),
            email: Some(format!("{}@acme.example", name.to_lowercase())),
            name: name.to_owned(),
            organization: organization.clone(),
            roles: vec![(role.to_owned(), organization.clone())],
            claims: serde_json::Map::new(),
        });
    }
}

async fn account(operator: &Operator<'_>) -> Result<String, Failure> {
    let new = json!({"account_name": ACCOUNT_NAME, "admin_email": "alan@acme.example"});
    let account_id = text(&operator.call(Method::POST, "/v1/accounts", Some(new)).await?, "account_id");
    let binding = json!({"organization_id": ORGANIZATION});
    operator.call(Method::PUT, &format!("/v1/accounts/{account_id}/zitadel/config"), Some(binding)).await?;
    let credits = json!({"account_id": account_id, "monthly_credits": 100, "credit_factor": 1});
    operator.call(Method::POST, "/v1/budgets/account-allocation", Some(credits)).await?;
    Ok(account_id)
}

/// An org with a team of two; one has credits, the other has as good as none.
async fn divisions(operator: &Operator<'_>, account_id: &str) -> Result<(), Failure> {
    let made = async |path: &str, body: Value| {
        Ok::<_, Failure>(item_id(&operator.call(Method::POST, path, Some(body)).await?))
    };
    let org = made("/v1/copilot/orgs", json!({"name": "Laboratory"})).await?;
    let team = made("/v1/copilot/teams", json!({"org_id": org, "name": "Research"})).await?;
    let user = async |subject: &str, name: &str| {
        made("/v1/copilot/users", json!({"identity_user_id": subject, "display_name": name, "team_ids": [team]})).await
    };
    let (ada, grace) = (user(ADA, "Ada").await?, user(GRACE, "Grace").await?);
    let plan = made("/v1/budgets/copilot/plans", json!({"name": "Trial", "cycle": "monthly"})).await?;
    for (kind, id, credits) in
        [("org", &org, "50"), ("team", &team, "20"), ("user", &ada, "10"), ("user", &grace, "0.000000001")]
    {
        let share = json!({"plan_id": plan, "scope_type": kind, "scope_id": id, "allocated_credits": credits});
        operator.call(Method::POST, "/v1/budgets/copilot/allocations/upsert", Some(share)).await?;
    }
    tracing::debug!(account_id, "planted");
    Ok(())
}

struct Operator<'a> {
    client: Client,
    gateway: &'a str,
    master_key: &'a str,
    account: Option<String>,
}

impl Operator<'_> {
    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value, Failure> {
        let mut request = self.client.request(method, format!("{}{path}", self.gateway)).bearer_auth(self.master_key);
        if let Some(account) = &self.account {
            request = request.header("x-account-id", account);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.map_err(Failure::failed)?;
        let status = answer.status();
        let body: Value = answer.json().await.map_err(Failure::failed)?;
        if status.is_success() { Ok(body) } else { Err(Failure::failed(format!("{path}: {status} {body}"))) }
    }
}

fn text(value: &Value, field: &str) -> String {
    value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn item_id(answer: &Value) -> String {
    answer.get("item").map(|item| text(item, "id")).unwrap_or_default()
}
