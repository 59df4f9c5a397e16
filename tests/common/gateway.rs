//! The gateway itself, with an issuer and an upstream of its own.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use alchemi::config::Config;
use alchemi::dev::upstream::{Model, Recorded};
use alchemi::dev::{DevIssuer, DevKey, DevUpstream, DevUser, Org, UpstreamOptions};
use alchemi::server::{Server, Stopped, Surroundings};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::client::Client;
use super::database::{Backend, Database, Row};

/// One key for the issuers of this process: making one takes longer than many a test.
pub(crate) fn issuer_key() -> DevKey {
    static KEY: OnceLock<DevKey> = OnceLock::new();
    KEY.get_or_init(|| DevKey::generate().unwrap()).clone()
}

/// The operator's key.
pub(crate) const MASTER_KEY: &str = "operator-key-of-the-tests-0123456789";

/// What secrets are sealed under.
pub(crate) const SECRET_KEY: &str = "tests:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

/// The upstream's key, which only the gateway has.
pub(crate) const UPSTREAM_KEY: &str = "sk-upstream-key-of-the-tests";

/// How long a token is valid.
const LIFETIME: Duration = Duration::from_secs(3600);

/// How long anything may take that a test waits for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A running gateway. Dropped, it is gone without ceremony; [`stop`](Self::stop) ends it as a signal would.
#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) server: Option<Server>,
    pub(crate) issuer: Arc<DevIssuer>,
    pub(crate) upstream: Arc<DevUpstream>,
    pub(crate) database: Database,
    url: String,
    database_url: String,
    anybody: Client,
    folder: Arc<TempDir>,
    _data: TempDir,
}

/// Whom a token speaks of.
#[derive(Clone, Debug)]
pub(crate) struct Person {
    subject: String,
    email: Option<String>,
    home: Org,
    roles: Vec<String>,
    claims: serde_json::Map<String, Value>,
}

impl Person {
    /// `subject` of `account`, without a role.
    pub(crate) fn of(account: &str, subject: &str) -> Self {
        let home = Org {
            id: format!("org-of-{account}"),
            name: format!("Org of {account}"),
            domain: "acme.localhost".to_owned(),
        };
        let claims = serde_json::Map::from_iter([("alchemi:account_id".to_owned(), json!(account))]);
        Self { subject: subject.to_owned(), email: None, home, roles: Vec::new(), claims }
    }

    /// Of this organisation, which grants the roles too.
    pub(crate) fn of_org(mut self, org: &str) -> Self {
        self.home.id = org.to_owned();
        self
    }

    pub(crate) fn role(mut self, role: &str) -> Self {
        self.roles.push(role.to_owned());
        self
    }

    pub(crate) fn email(mut self, email: &str) -> Self {
        self.email = Some(email.to_owned());
        self
    }

    pub(crate) fn claim(mut self, name: &str, value: Value) -> Self {
        self.claims.insert(name.to_owned(), value);
        self
    }

    /// Limited to these product domains.
    pub(crate) fn domains(self, domains: &[&str]) -> Self {
        self.claim("product_domains_allowed", json!(domains))
    }
}

impl Gateway {
    /// With everything as it is by default.
    pub(crate) async fn start(backend: Backend) -> Self {
        Self::start_with(backend, |_| {}).await
    }

    /// With other settings.
    pub(crate) async fn start_with(backend: Backend, configure: impl FnOnce(&mut Config)) -> Self {
        Self::start_in(backend, Surroundings::default(), configure).await
    }

    /// With other settings, and with a clock, ids and guardrails of the test's own. The issuer has the same clock.
    pub(crate) async fn start_in(
        backend: Backend,
        surroundings: Surroundings,
        configure: impl FnOnce(&mut Config),
    ) -> Self {
        let loopback = "127.0.0.1:0".parse().unwrap();
        let (clock, ids) = (Arc::clone(&surroundings.clock), Arc::clone(&surroundings.ids));
        let issuer = Arc::new(DevIssuer::start_with(loopback, clock, ids, issuer_key()).await.unwrap());
        let upstream = Arc::new(DevUpstream::start(upstream_options()).await.unwrap());
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let database_url = backend.url(folder.path());
        Self::assemble(issuer, upstream, folder, database_url, surroundings, configure).await
    }

    /// Another gateway on the same database, issuer and upstream.
    pub(crate) async fn beside(&self, configure: impl FnOnce(&mut Config)) -> Self {
        self.beside_in(Surroundings::default(), configure).await
    }

    /// The same with a clock, ids and guardrails of the test's own.
    pub(crate) async fn beside_in(&self, surroundings: Surroundings, configure: impl FnOnce(&mut Config)) -> Self {
        let (issuer, upstream) = (Arc::clone(&self.issuer), Arc::clone(&self.upstream));
        let (folder, url) = (Arc::clone(&self.folder), self.database_url.clone());
        Self::assemble(issuer, upstream, folder, url, surroundings, configure).await
    }

    async fn assemble(
        issuer: Arc<DevIssuer>,
        upstream: Arc<DevUpstream>,
        folder: Arc<TempDir>,
        database_url: String,
        surroundings: Surroundings,
        configure: impl FnOnce(&mut Config),
    ) -> Self {
        // A gateway has its journal to itself.
        let data = tempfile::tempdir_in(folder.path()).unwrap();
        let mut config = Config::from_toml(&format!(
            "listen = '127.0.0.1:0'\n\
             data_dir = '{folder}'\n\
             master_key = '{MASTER_KEY}'\n\
             [secrets]\nkeys = ['{SECRET_KEY}']\n\
             [database]\nurl = '{database_url}'\n\
             [identity]\nproject_id = '{project}'\nissuers = [{{ url = '{issuer}' }}]\n\
             [upstream]\nurls = ['{upstream}']\napi_key = '{UPSTREAM_KEY}'\nhealth_interval = 0\n",
            folder = data.path().display(),
            project = issuer.project_id(),
            issuer = issuer.url(),
            upstream = upstream.url(),
        ))
        .unwrap();
        configure(&mut config);
        let server = Server::start(&config, surroundings).await.unwrap();
        let url = format!("http://{}", server.address());
        let (anybody, database) = (Client::new(&url), Database::at(&database_url));
        Self { server: Some(server), issuer, upstream, database, url, database_url, anybody, folder, _data: data }
    }

    /// The database that it shares with those [`beside`](Self::beside) it.
    pub(crate) fn database_url(&self) -> &str {
        &self.database_url
    }

    /// Where it listens, without a slash at the end.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Ends it as a signal would.
    pub(crate) async fn stop(&mut self) -> Stopped {
        self.server.take().expect("it is stopped once").stop().await
    }

    /// Whether the books balance.
    pub(crate) async fn verify_books(&self) -> alchemi::store::conservation::Report {
        let store = self.server.as_ref().expect("it runs").store();
        alchemi::store::conservation::verify(store).await.unwrap()
    }
}

/// The default models, one without a price, and room for every request of a test.
pub(crate) fn upstream_options() -> UpstreamOptions {
    let mut models = Model::catalogue();
    models.push(Model::unpriced("free-for-all"));
    UpstreamOptions { api_key: Some(UPSTREAM_KEY.to_owned()), models, keep: 4_096, ..UpstreamOptions::default() }
}

/// Who calls.
impl Gateway {
    /// Somebody without a credential.
    pub(crate) fn anybody(&self) -> Client {
        self.anybody.clone()
    }

    /// The operator, by the master key, in no account.
    pub(crate) fn operator(&self) -> Client {
        self.anybody.with_token(MASTER_KEY)
    }

    /// The operator in an account.
    pub(crate) fn operator_for(&self, account: &str) -> Client {
        self.operator().within(account)
    }

    /// A person's claims, known to the issuer from here on, to be bent before they are signed.
    pub(crate) fn claims(&self, person: &Person) -> serde_json::Map<String, Value> {
        let roles = person.roles.iter().map(|role| (role.clone(), person.home.clone())).collect();
        self.issuer.add_user(DevUser {
            subject: person.subject.clone(),
            email: person.email.clone(),
            name: person.subject.clone(),
            organization: person.home.clone(),
            roles,
            claims: person.claims.clone(),
        });
        self.issuer.claims(&person.subject, LIFETIME).unwrap()
    }

    /// A token of a person.
    pub(crate) fn token(&self, person: &Person) -> String {
        self.claims(person);
        self.issuer.mint(&person.subject, LIFETIME).unwrap()
    }

    /// A person, signed in.
    pub(crate) fn sign_in(&self, person: &Person) -> Client {
        self.anybody.with_token(&self.token(person))
    }

    /// An operator by role, who is not the master key.
    pub(crate) fn as_super_admin(&self, account: &str) -> Client {
        self.sign_in(&Person::of(account, "super").role("super_admin"))
    }

    /// An admin of a whole account.
    pub(crate) fn as_account_admin(&self, account: &str) -> Client {
        self.sign_in(&Person::of(account, "admin").role("account_admin"))
    }

    /// An admin of one product domain of an account, and limited to it.
    pub(crate) fn as_domain_admin(&self, account: &str, domain: &str) -> Client {
        let person = Person::of(account, &format!("{domain}-admin"));
        self.sign_in(&person.role(&format!("{domain}_org_admin")).domains(&[domain]))
    }

    /// Somebody of an account without any role.
    pub(crate) fn as_end_user(&self, account: &str, subject: &str) -> Client {
        self.sign_in(&Person::of(account, subject))
    }
}

/// What there is before a test begins, made by the operator through the API.
impl Gateway {
    /// An account; gives its id.
    pub(crate) async fn account(&self, name: &str) -> String {
        let made = self.operator().post("/v1/accounts", json!({"account_name": name})).await.ok();
        text(&made["account_id"])
    }

    /// An org; gives its id.
    pub(crate) async fn org(&self, account: &str, domain: &str, name: &str) -> String {
        self.make(account, &format!("/v1/{domain}/orgs"), json!({"name": name})).await
    }

    /// A team of an org; gives its id.
    pub(crate) async fn team(&self, account: &str, domain: &str, org: &str, name: &str) -> String {
        self.make(account, &format!("/v1/{domain}/teams"), json!({"org_id": org, "name": name})).await
    }

    /// A user with the subject of their tokens, in teams; gives its id.
    pub(crate) async fn user(&self, account: &str, domain: &str, subject: &str, teams: &[&str]) -> String {
        let body = json!({"identity_user_id": subject, "display_name": subject, "team_ids": teams});
        self.make(account, &format!("/v1/{domain}/users"), body).await
    }

    /// Lets or forbids a scope a model; gives the grant's id.
    pub(crate) async fn grant(
        &self,
        account: &str,
        domain: &str,
        model: &str,
        scope: (&str, &str),
        mode: &str,
    ) -> String {
        let body = json!({"model_name": model, "scope_type": scope.0, "scope_id": scope.1, "access_mode": mode});
        self.make(account, &format!("/v1/{domain}/models/grants"), body).await
    }

    /// Lets a whole account use every model in both domains.
    pub(crate) async fn open_models(&self, account: &str) {
        for domain in ["console", "copilot"] {
            self.grant(account, domain, "*", ("account", account), "allow").await;
        }
    }

    /// What an account may spend in a month, in credits at one for each dollar.
    pub(crate) async fn allocate(&self, account: &str, credits: &str) {
        let body = json!({"account_id": account, "monthly_credits": number(credits)});
        self.operator().post("/v1/budgets/account-allocation", body).await.ok();
    }

    /// An active monthly plan; gives its id.
    pub(crate) async fn plan(&self, account: &str) -> String {
        let id = self.make(account, "/v1/budgets/copilot/plans", json!({"name": "plan"})).await;
        let path = format!("/v1/budgets/copilot/plans/{id}/activate");
        self.operator_for(account).post(&path, json!({})).await.ok();
        id
    }

    /// What a scope has in a plan.
    pub(crate) async fn allot(&self, account: &str, plan: &str, scope: (&str, &str), credits: &str) {
        let body = json!({
            "plan_id": plan, "scope_type": scope.0, "scope_id": scope.1, "allocated_credits": number(credits),
        });
        self.operator_for(account).post("/v1/budgets/copilot/allocations/upsert", body).await.ok();
    }

    /// What a POST of the operator makes in an account; gives its id.
    pub(crate) async fn made(&self, account: &str, path: &str, body: Value) -> String {
        self.make(account, path, body).await
    }

    async fn make(&self, account: &str, path: &str, body: Value) -> String {
        text(&self.operator_for(account).post(path, body).await.ok()["item"]["id"])
    }
}

/// An amount as the JSON number that it is.
pub(crate) fn number(amount: &str) -> Value {
    amount.parse().unwrap()
}

#[track_caller]
fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("expected text, found {value}")).to_owned()
}

/// What the gateway did.
impl Gateway {
    /// What reached the upstream, but for the gateway's own questions.
    pub(crate) fn forwarded(&self) -> Vec<Recorded> {
        let own = |request: &Recorded| request.target == "/model/info" || request.target.starts_with("/health/");
        self.upstream.requests().into_iter().filter(|request| !own(request)).collect()
    }

    /// The latest of [`forwarded`](Self::forwarded).
    #[track_caller]
    pub(crate) fn last_forwarded(&self) -> Recorded {
        self.forwarded().pop().expect("something reached the upstream")
    }

    /// The account's ledger, oldest first.
    pub(crate) async fn ledger(&self, account: &str) -> Vec<Row> {
        let sql = r#"SELECT * FROM "Alchemi_UsageLedgerTable" WHERE account_id = $1 ORDER BY request_id"#;
        self.database.rows(sql, &[account]).await
    }

    /// The account's ledger as soon as it has `count` rows.
    pub(crate) async fn settled(&self, account: &str, count: usize) -> Vec<Row> {
        let mut rows = Vec::new();
        for _ in 0..1_000 {
            rows = self.ledger(account).await;
            if rows.len() >= count {
                assert_eq!(rows.len(), count, "more rows than requests: {rows:#?}");
                return rows;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{} of {count} requests are settled: {rows:#?}", rows.len());
    }

    /// The account's counters, by kind and id of the scope: used and leased, in nano-credits.
    pub(crate) async fn counters(&self, account: &str) -> BTreeMap<(String, String), (i64, i64)> {
        let sql =
            r#"SELECT scope_type, scope_id, used, leased FROM "Alchemi_AllocationCounterTable" WHERE account_id = $1"#;
        let rows = self.database.rows(sql, &[account]).await;
        let entry = |row: Row| {
            let scope = (text(&row["scope_type"]), text(&row["scope_id"]));
            (scope, (row["used"].as_i64().unwrap(), row["leased"].as_i64().unwrap()))
        };
        rows.into_iter().map(entry).collect()
    }

    /// The value of a metric without labels, as `alchemi_{name}`.
    pub(crate) async fn metric(&self, name: &str) -> u64 {
        let text = self.operator().get("/metrics").await.text();
        let prefix = format!("alchemi_{name} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&prefix));
        value.unwrap_or_else(|| panic!("no {prefix}in {text}")).parse().unwrap()
    }

    /// Sends bytes as they are, over a connection of their own, and gives all that comes back.
    pub(crate) async fn raw(&self, request: String) -> String {
        let mut stream = tokio::net::TcpStream::connect(self.url.trim_start_matches("http://")).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }
}
