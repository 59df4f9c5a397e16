//! A gateway as a process, set up by variables, with an account and somebody who uses it.

use std::sync::Arc;
use std::time::Duration;

use alchemi::clock::SystemClock;
use alchemi::dev::{DevIssuer, DevUpstream, DevUser, Org, UpstreamOptions};
use alchemi::id::RandomIds;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::process::{Place, Running};
use crate::running::{address, client};

pub(crate) const MASTER_KEY: &str = "operator-key-of-the-tests-0123456789";
pub(crate) const UPSTREAM_KEY: &str = "sk-upstream-key";
pub(crate) const CHAT: &str = "/v1/chat/completions";

/// How long an attack may last that nobody ends.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A gateway as a process, with an account and somebody who uses it.
pub(crate) struct Target {
    pub(crate) serve: Running,
    place: Place,
    pub(crate) url: String,
    pub(crate) token: String,
    pub(crate) account: String,
    _issuer: DevIssuer,
    pub(crate) upstream: DevUpstream,
}

impl Target {
    pub(crate) async fn start(variables: &[(&str, &str)]) -> Self {
        Self::with("", variables).await
    }

    /// The same with a file of settings too.
    pub(crate) async fn with(settings: &str, variables: &[(&str, &str)]) -> Self {
        let loopback = ([127, 0, 0, 1], 0).into();
        let issuer = DevIssuer::start(loopback, Arc::new(SystemClock), Arc::new(RandomIds)).await.unwrap();
        let options =
            UpstreamOptions { api_key: Some(UPSTREAM_KEY.to_owned()), keep: 64, ..UpstreamOptions::default() };
        let upstream = DevUpstream::start(options).await.unwrap();
        let mut place = Place::new();
        let file = place.file("alchemi.toml", settings);
        for (name, value) in [
            ("ALCHEMI_CONFIG", file.as_str()),
            ("ALCHEMI_LISTEN", "127.0.0.1:0"),
            ("ALCHEMI_MASTER_KEY", MASTER_KEY),
            ("ALCHEMI_UPSTREAM_URL", upstream.url()),
            ("ALCHEMI_UPSTREAM_API_KEY", UPSTREAM_KEY),
            ("ZITADEL_ISSUER", issuer.url()),
            ("ZITADEL_PROJECT_ID", issuer.project_id()),
        ]
        .iter()
        .chain(variables)
        {
            place = place.with(name, value);
        }
        let mut serve = place.start(&["serve"]);
        let url = address(&serve.says("alchemi listens"));
        let account = operate(&url, None, "/v1/accounts", json!({"account_name": "Acme"})).await;
        let account = account["account_id"].as_str().unwrap().to_owned();
        let credits = json!({"account_id": account, "monthly_credits": 100_000});
        operate(&url, None, "/v1/budgets/account-allocation", credits).await;
        let grant = json!({"model_name": "*", "scope_type": "account", "scope_id": account});
        operate(&url, Some(&account), "/v1/copilot/models/grants", grant).await;
        issuer.add_user(DevUser {
            subject: "ada".to_owned(),
            email: None,
            name: "Ada".to_owned(),
            organization: Org { id: "7".to_owned(), name: "Acme".to_owned(), domain: "acme.localhost".to_owned() },
            roles: Vec::new(),
            claims: [("alchemi:account_id".to_owned(), account.clone().into())].into_iter().collect(),
        });
        let token = issuer.mint("ada", Duration::from_secs(3600)).unwrap();
        Self { serve, place, url, token, account, _issuer: issuer, upstream }
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.url.trim_start_matches("http://")).await.unwrap()
    }

    /// What an honest caller is answered.
    pub(crate) async fn serves(&self) {
        let body = json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]});
        let request = client().post(format!("{}{CHAT}", self.url)).bearer_auth(&self.token).json(&body);
        let answer = request.timeout(PATIENCE).send().await.unwrap();
        assert_eq!(answer.status(), 200);
    }

    /// Resident memory in MiB.
    pub(crate) fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.serve.id())).unwrap_or_default();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        resident.and_then(|text| text.trim().split(' ').next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
    }

    /// Ends it, and checks its books; gives how many rows they have.
    pub(crate) fn end(mut self) -> String {
        self.serve.signal("TERM");
        assert!(self.serve.wait().success(), "{}", self.serve.err());
        let books = self.place.run(&["ledger", "verify"]);
        assert_eq!(books.status, 0, "{books:?}");
        assert!(books.out.contains(" 0 open reservations"), "{books:?}");
        books.out
    }
}

pub(crate) async fn operate(url: &str, account: Option<&str>, path: &str, body: Value) -> Value {
    let mut request = client().post(format!("{url}{path}")).bearer_auth(MASTER_KEY).json(&body);
    if let Some(account) = account {
        request = request.header("x-account-id", account);
    }
    let answer = request.send().await.unwrap();
    assert!(answer.status().is_success(), "{path}: {}", answer.status());
    answer.json().await.unwrap()
}
