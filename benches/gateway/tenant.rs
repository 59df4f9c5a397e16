//! The accounts that are measured: with a key to sign their tokens, and seeded through `/v1` as an operator would.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::Result;
use crate::issuer::{PROJECT, Signer};
use crate::upstream::MODEL;

/// At least 32 characters.
pub(crate) const MASTER_KEY: &str = "master-key-of-the-gateway-benchmark";
const ORGANIZATION: &str = "286399320075272000";
const SUBJECT: &str = "286399320075272196";
const ENOUGH: &str = "1000000";

/// An account with one user.
pub(crate) struct Tenant {
    name: &'static str,
    account: String,
    issuer: String,
    signer: Arc<Signer>,
}

impl Tenant {
    /// Tokens for a proxy that does not read them.
    pub(crate) fn unseeded(issuer: String, signer: Arc<Signer>) -> Self {
        Self { name: "any", account: "00000000-0000-7000-8000-000000000000".into(), issuer, signer }
    }

    /// Creates the account, its org, team, user and grants in a gateway.
    pub(crate) async fn seed(gateway: &str, issuer: String, signer: Arc<Signer>, name: &'static str) -> Result<Self> {
        let operator = Control { gateway, account: None, http: reqwest::Client::new() };
        let account = operator.post("/accounts", json!({"account_name": name})).await?;
        let account = text(&account, "/account_id")?;

        let admin = Control { account: Some(account.clone()), ..operator };
        let org = admin.create("/copilot/orgs", json!({"name": "research"})).await?;
        let team = admin.create("/copilot/teams", json!({"org_id": org, "name": "assistants"})).await?;
        let person = json!({"identity_user_id": SUBJECT, "email": format!("{name}@tenant.test"), "team_ids": [team]});
        let user = admin.create("/copilot/users", person).await?;
        let grant = json!({"domain": "copilot", "model_name": MODEL, "scope_type": "team", "scope_id": team, "access_mode": "allow"});
        admin.create("/copilot/models/grants", grant).await?;
        let allocation =
            json!({"account_id": account, "monthly_credits": ENOUGH, "overflow_limit": 0, "credit_factor": 1});
        admin.post("/budgets/account-allocation", allocation).await?;
        let plan = admin.create("/budgets/copilot/plans", json!({"name": "bench", "cycle": "monthly"})).await?;
        for (scope_type, scope_id) in [("org", &org), ("team", &team), ("user", &user)] {
            let allocation =
                json!({"plan_id": plan, "scope_type": scope_type, "scope_id": scope_id, "allocated_credits": ENOUGH});
            admin.create("/budgets/copilot/allocations/upsert", allocation).await?;
        }
        Ok(Self { name, account, issuer, signer })
    }

    /// What its files are called.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Tokens of its user, each with an id of its own.
    pub(crate) fn tokens(&self, count: usize) -> Result<Vec<String>> {
        #[expect(clippy::disallowed_methods, reason = "the time of issue has to be the real one")]
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let (iat, batch) = (now.as_secs(), now.as_nanos());
        self.signer.tokens(count, |number| self.claims(iat, &format!("V2_{batch}-at_{number}")))
    }

    /// Zitadel's access token; with its roles about 1 KB once signed.
    fn claims(&self, iat: u64, jti: &str) -> Value {
        let organizations = json!({ORGANIZATION: "tenant.localhost"});
        json!({
            "iss": self.issuer,
            "sub": SUBJECT,
            "aud": [PROJECT],
            "exp": iat + 43_200,
            "iat": iat,
            "nbf": iat,
            "client_id": "294645919545032999@bench",
            "jti": jti,
            format!("urn:zitadel:iam:org:project:{PROJECT}:roles"): {"end_user": organizations},
            "urn:zitadel:iam:user:resourceowner:id": ORGANIZATION,
            "urn:zitadel:iam:user:resourceowner:name": "tenant",
            "alchemi:account_id": self.account,
        })
    }
}

fn text(answer: &Value, pointer: &str) -> Result<String> {
    let found = answer.pointer(pointer).and_then(Value::as_str);
    Ok(found.ok_or_else(|| format!("{pointer} is missing in {answer}"))?.to_owned())
}

/// Calls `/v1` with the master key.
struct Control<'a> {
    gateway: &'a str,
    account: Option<String>,
    http: reqwest::Client,
}

impl Control<'_> {
    async fn post(&self, path: &str, body: Value) -> Result<Value> {
        let request = self.http.post(format!("{}/v1{path}", self.gateway)).bearer_auth(MASTER_KEY).json(&body);
        let request = self.account.iter().fold(request, |request, account| request.header("x-account-id", account));
        let answer = request.send().await?;
        let (status, body) = (answer.status(), answer.text().await?);
        if !status.is_success() {
            return Err(format!("POST /v1{path}: {status} {body}").into());
        }
        Ok(serde_json::from_str(&body)?)
    }

    /// Posts, and gives the id of what was made.
    async fn create(&self, path: &str, body: Value) -> Result<String> {
        text(&self.post(path, body).await?, "/item/id")
    }
}
