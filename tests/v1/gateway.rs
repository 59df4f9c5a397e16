//! The routes over a fresh database, and callers with tokens of a development issuer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use alchemi::clock::{Clock, ManualClock, SharedClock, SystemClock, Timestamp};
use alchemi::context::{AskedPlace, Context, RequestInfo};
use alchemi::dev::{DevIssuer, DevUser, Org};
use alchemi::id::{Id, RandomIds};
use alchemi::identity::{AccountBinding, Identity, IdentityConfig, IssuerConfig, context, master_key_context};
use alchemi::model::accounts::{Account, AccountStatus};
use alchemi::store::{DatabaseConfig, Store, migrate};
use alchemi::v1::{App, router};
use axum::Router;
use axum::body::{Body, to_bytes};
use http::{HeaderMap, Method, Request};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, SqliteConnection};
use tower::ServiceExt as _;

use crate::common::issuer_key;

pub(crate) struct Gateway {
    pub(crate) store: Store,
    router: Router,
    issuer: DevIssuer,
    identity: Identity,
    url: String,
    _folder: tempfile::TempDir,
}

/// A caller.
pub(crate) struct Client {
    router: Router,
    context: Option<Context>,
    headers: HeaderMap,
}

pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) json: Value,
    pub(crate) headers: HeaderMap,
}

/// An issuer whose tokens are accepted.
pub(crate) const ISSUER: &str = "https://login.example.com";

/// The routes of a gateway that has these secret keys.
pub(crate) fn keyed(app: App, keys: &str) -> App {
    app.with_secrets(keys.parse().unwrap())
}

/// The routes of a gateway that accepts tokens of [`ISSUER`].
pub(crate) fn issued(app: App) -> App {
    app.with_issuers([ISSUER.to_owned()])
}

/// The gateway on each database that is there.
pub(crate) async fn gateways(shape: impl Fn(App) -> App) -> Vec<Gateway> {
    let started = started(|| Arc::new(SystemClock), shape).await;
    started.into_iter().map(|(gateway, _)| gateway).collect()
}

/// Where the clock of [`gateways_at_rest`] stands.
pub(crate) const EIGHT: Timestamp = Timestamp::from_secs(1_800_000_000); // 2027-01-15T08:00:00Z

/// The gateway on each database that is there, with a clock that the test moves.
pub(crate) async fn gateways_at_rest(shape: impl Fn(App) -> App) -> Vec<(Gateway, Arc<ManualClock>)> {
    started(|| Arc::new(ManualClock::at(EIGHT)), shape).await
}

async fn started<C: Clock>(clock: impl Fn() -> Arc<C>, shape: impl Fn(App) -> App) -> Vec<(Gateway, Arc<C>)> {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = format!("sqlite:{}", folder.path().join("alchemi.db").display());
    let one = clock();
    let mut gateways = vec![(Gateway::start(sqlite, folder, one.clone(), &shape).await, one)];
    if let Some(url) = crate::common::database::migrated_database().await {
        let one = clock();
        gateways.push((Gateway::start(url, tempfile::tempdir().unwrap(), one.clone(), &shape).await, one));
    }
    gateways
}

impl Gateway {
    async fn start(url: String, folder: tempfile::TempDir, clock: SharedClock, shape: impl Fn(App) -> App) -> Self {
        let database = DatabaseConfig { url: url.clone(), max_connections: 8, ..DatabaseConfig::default() };
        let store = Store::open(&database, Arc::clone(&clock), Arc::new(RandomIds)).await.unwrap();
        migrate::apply(&store).await.unwrap();
        let listen = "127.0.0.1:0".parse().unwrap();
        let issuer =
            DevIssuer::start_with(listen, Arc::clone(&clock), Arc::new(RandomIds), issuer_key()).await.unwrap();
        let config = IdentityConfig {
            issuers: vec![IssuerConfig::at(issuer.url())],
            project_id: Some(issuer.project_id().to_owned()),
            account_id_claims: vec!["alchemi:account_id".to_owned()],
            ..IdentityConfig::default()
        };
        let identity = Identity::new(&config, clock).unwrap();
        let router = router(shape(App::new(store.clone())));
        Self { store, router, issuer, identity, url, _folder: folder }
    }

    /// Texts that a query gives, behind the gateway's back.
    pub(crate) async fn texts(&self, sql: &str) -> Vec<String> {
        let sql = AssertSqlSafe(sql.to_owned());
        if self.url.starts_with("sqlite:") {
            let mut connection = SqliteConnection::connect(&self.url).await.unwrap();
            sqlx::query_scalar(sql).fetch_all(&mut connection).await.unwrap()
        } else {
            let mut connection = PgConnection::connect(&self.url).await.unwrap();
            sqlx::query_scalar(sql).fetch_all(&mut connection).await.unwrap()
        }
    }

    /// The same routes over the same data, shaped otherwise.
    pub(crate) fn shaped(&self, shape: impl Fn(App) -> App) -> Client {
        Client { router: router(shape(App::new(self.store.clone()))), ..self.as_nobody() }
    }

    /// Runs a statement behind the gateway's back.
    pub(crate) async fn execute(&self, sql: &str) {
        let sql = AssertSqlSafe(sql.to_owned());
        if self.url.starts_with("sqlite:") {
            SqliteConnection::connect(&self.url).await.unwrap().execute(sql).await.unwrap();
        } else {
            PgConnection::connect(&self.url).await.unwrap().execute(sql).await.unwrap();
        }
    }

    /// A new account, as the operator makes it.
    pub(crate) async fn created_account(&self, name: &str) -> Id<Account> {
        let made = self.as_operator(None).post("/accounts", json!({ "account_name": name })).await.ok();
        made["account_id"].as_str().unwrap().parse().unwrap()
    }

    /// Nobody who is signed in.
    pub(crate) fn as_nobody(&self) -> Client {
        Client { router: self.router.clone(), context: None, headers: HeaderMap::new() }
    }

    /// Whether the account is suspended, as the store has it.
    async fn suspended(&self, account: &Id<Account>) -> bool {
        let granted = master_key_context(None).super_admin().unwrap().over(account.clone());
        let row = self.store.read(&granted).await.unwrap().this_account().await.unwrap();
        row.is_some_and(|row| row.status == AccountStatus::Suspended)
    }

    /// A new account, alone in its table.
    pub(crate) async fn account(&self, name: &str) -> Id<Account> {
        let granted = master_key_context(None).super_admin().unwrap();
        let mut tx = self.store.begin(&granted).await.unwrap();
        let account = Account::new(tx.new_id(), name.to_owned(), None, tx.now());
        tx.insert_account(&account).await.unwrap();
        let mut tx = tx.within(account.account_id.clone());
        tx.insert_system_presets().await.unwrap();
        tx.commit().await.unwrap();
        account.account_id
    }

    /// The operator, within an account if one is named.
    pub(crate) fn as_operator(&self, account: Option<&Id<Account>>) -> Client {
        let binding = account.map(|account| binding(account, false));
        Client { context: Some(master_key_context(binding.as_ref())), ..self.as_nobody() }
    }

    /// An admin of both domains of `account`.
    pub(crate) async fn as_admin_of(&self, account: &Id<Account>) -> Client {
        self.as_subject(account, "admin", None, &["account_admin"], json!({})).await
    }

    /// A subject of `account` without any admin role.
    pub(crate) async fn as_member_of(&self, account: &Id<Account>, subject: &str, email: Option<&str>) -> Client {
        self.as_subject(account, subject, email, &["end_user"], json!({})).await
    }

    /// A subject with these roles and more claims.
    pub(crate) async fn as_subject(
        &self,
        account: &Id<Account>,
        subject: &str,
        email: Option<&str>,
        roles: &[&str],
        claims: Value,
    ) -> Client {
        let org = Org { id: "7001".to_owned(), name: "Acme".to_owned(), domain: "acme.localhost".to_owned() };
        let claims = claims.as_object().cloned().unwrap_or_default();
        self.issuer.add_user(DevUser {
            subject: subject.to_owned(),
            email: email.map(str::to_owned),
            name: subject.to_owned(),
            organization: org.clone(),
            roles: roles.iter().map(|role| ((*role).to_owned(), org.clone())).collect(),
            claims,
        });
        let token = self.issuer.mint(subject, Duration::from_secs(600)).unwrap();
        let verified = self.identity.verify(&token).await.unwrap();
        let binding = binding(account, self.suspended(account).await);
        let context = context(&verified, Some(&binding), false, self.identity.claim_rules()).unwrap();
        Client { context: Some(context), ..self.as_nobody() }
    }
}

fn binding(account: &Id<Account>, suspended: bool) -> AccountBinding {
    AccountBinding {
        id: account.clone(),
        suspended,
        issuer: None,
        organization_id: None,
        role_prefix: None,
        role_mappings: BTreeMap::new(),
    }
}

impl Client {
    /// The same caller at other routes.
    pub(crate) fn at(&self, other: &Self) -> Self {
        Self { router: other.router.clone(), context: self.context.clone(), headers: self.headers.clone() }
    }

    /// The same caller, who sends a header too.
    pub(crate) fn with(&self, name: &'static str, value: &str) -> Self {
        let mut headers = self.headers.clone();
        headers.insert(name, value.parse().unwrap());
        Self { router: self.router.clone(), context: self.context.clone(), headers }
    }

    /// The same caller, who sends another line of a header.
    pub(crate) fn with_another(&self, name: &'static str, value: &str) -> Self {
        let mut headers = self.headers.clone();
        headers.append(name, value.parse().unwrap());
        Self { router: self.router.clone(), context: self.context.clone(), headers }
    }

    /// The refusal of a POST whose body never arrives.
    pub(crate) async fn post_silence(&self, path: &str) -> u16 {
        let silence = Body::from_stream(futures_util::stream::pending::<Result<axum::body::Bytes, std::io::Error>>());
        let mut request = Request::post(format!("/v1{path}")).body(silence).unwrap();
        request.headers_mut().extend(self.headers.clone());
        if let Some(context) = &self.context {
            request.extensions_mut().insert(context.clone());
        }
        self.router.clone().oneshot(request).await.unwrap().status().as_u16()
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Reply {
        self.send(Method::POST, path, Some(body)).await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Reply {
        self.send(Method::PUT, path, Some(body)).await
    }

    pub(crate) async fn patch(&self, path: &str, body: Value) -> Reply {
        self.send(Method::PATCH, path, Some(body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Reply {
        self.send(Method::DELETE, path, None).await
    }

    /// The id of what a POST makes.
    pub(crate) async fn made(&self, path: &str, body: Value) -> String {
        let reply = self.post(path, body).await.ok();
        reply["item"]["id"].as_str().unwrap().to_owned()
    }

    async fn send(&self, method: Method, path: &str, body: Option<Value>) -> Reply {
        let (status, text, headers) = self.text(method, path, body.map(|b| b.to_string())).await;
        Reply { status, json: serde_json::from_str(&text).unwrap_or_default(), headers }
    }

    /// Sends a body, and gives the answer's, as they are.
    pub(crate) async fn text(&self, method: Method, path: &str, body: Option<String>) -> (u16, String, HeaderMap) {
        let mut request = Request::builder().method(method).uri(format!("/v1{path}"));
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let mut request = request.body(body.map_or_else(Body::empty, Body::from)).unwrap();
        request.headers_mut().extend(self.headers.clone());
        request.extensions_mut().insert(RequestInfo { id: "req-1".into(), client_ip: Some([192, 0, 2, 1].into()) });
        let asked = |name: &str| self.headers.get(name).map(|value| value.to_str().unwrap());
        request.extensions_mut().insert(AskedPlace {
            domain: asked("x-alchemi-domain").map(|domain| domain.parse().unwrap()),
            team: asked("x-alchemi-team-id").map(Box::from),
        });
        if let Some(context) = &self.context {
            request.extensions_mut().insert(context.clone());
        }
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = to_bytes(body, usize::MAX).await.unwrap();
        (parts.status.as_u16(), String::from_utf8(bytes.to_vec()).unwrap(), parts.headers)
    }
}

impl Reply {
    /// Status, body and headers.
    pub(crate) fn parts(self) -> (u16, Value, HeaderMap) {
        (self.status, self.json, self.headers)
    }

    /// The body of a 200.
    #[track_caller]
    pub(crate) fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{}", self.json);
        self.json
    }

    /// The `detail` of a refusal with this status.
    #[track_caller]
    pub(crate) fn refused(self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", self.json);
        self.json["detail"].as_str().unwrap().to_owned()
    }

    /// One member of each item of a list.
    #[track_caller]
    pub(crate) fn column(self, name: &str) -> Vec<String> {
        let json = self.ok();
        let items = json["items"].as_array().unwrap();
        items.iter().map(|item| item[name].as_str().unwrap_or_default().to_owned()).collect()
    }
}
