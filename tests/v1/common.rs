//! A gateway's control plane on a fresh database, and callers of it.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use http::{HeaderMap, Method, Request};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, Executor};
use tower::ServiceExt;

use crate::clock::{ManualClock, Timestamp};
use crate::context::{
    AccountStanding, Actor, AuthProvider, Context, ContextFacts, Granted, ProductDomains, RequestInfo,
};
use crate::id::RandomIds;
use crate::store::{DatabaseConfig, Store, migrate};
use crate::v1::{App, router};

pub(crate) const ISSUER: &str = "https://login.example.com";

#[derive(Debug, Clone)]
pub(crate) enum Backend {
    Sqlite,
    Postgres(String),
}

/// SQLite, and PostgreSQL where `ALCHEMI_TEST_POSTGRES_URL` names a server.
pub(crate) fn backends() -> Vec<Backend> {
    #[expect(clippy::disallowed_methods, reason = "tests read no configuration")]
    let url = std::env::var("ALCHEMI_TEST_POSTGRES_URL").ok();
    [Backend::Sqlite].into_iter().chain(url.map(Backend::Postgres)).collect()
}

pub(crate) struct Gateway {
    pub(crate) clock: Arc<ManualClock>,
    store: Store,
    router: Router,
    url: String,
    _folder: tempfile::TempDir,
}

impl Gateway {
    pub(crate) async fn start(backend: Backend) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = match backend {
            Backend::Sqlite => format!("sqlite:{}", folder.path().join("alchemi.db").display()),
            Backend::Postgres(server) => {
                let name = format!("alchemi_{}", uuid::Uuid::new_v7(uuid::Timestamp::now(uuid::NoContext)).simple());
                let mut connection = sqlx::PgConnection::connect(&server).await.unwrap();
                connection.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.unwrap();
                let mut url = url::Url::parse(&server).unwrap();
                url.set_path(&name);
                url.into()
            }
        };
        let clock = Arc::new(ManualClock::at(Timestamp::from_secs(1_800_000_000)));
        let config = DatabaseConfig { url: url.clone(), ..DatabaseConfig::default() };
        let store = Store::open(&config, Arc::clone(&clock) as _, Arc::new(RandomIds)).await.unwrap();
        migrate::apply(&store).await.unwrap();
        let router = router(App::new(store.clone()).with_issuers([ISSUER.to_owned()]));
        Self { clock, store, router, url, _folder: folder }
    }

    /// Runs a statement behind the gateway's back.
    pub(crate) async fn execute(&self, sql: &str) {
        let sql = AssertSqlSafe(sql.to_owned());
        if self.url.starts_with("sqlite") {
            sqlx::SqliteConnection::connect(&self.url).await.unwrap().execute(sql).await.unwrap();
        } else {
            sqlx::PgConnection::connect(&self.url).await.unwrap().execute(sql).await.unwrap();
        }
    }

    pub(crate) fn statements(&self) -> u64 {
        self.store.statements()
    }

    pub(crate) fn changes(&self) -> tokio::sync::broadcast::Receiver<crate::store::changes::Change> {
        self.store.changes()
    }

    fn caller(&self, subject: &'static str) -> Client<'_> {
        Client {
            gateway: self,
            account: None,
            subject: Some(subject),
            roles: Vec::new(),
            super_admin: false,
            headers: HeaderMap::new(),
        }
    }

    pub(crate) fn as_nobody(&self) -> Client<'_> {
        Client { subject: None, ..self.caller("") }
    }

    pub(crate) fn as_operator(&self) -> Client<'_> {
        Client { super_admin: true, roles: vec!["super_admin".to_owned()], ..self.caller("operator") }
    }

    pub(crate) fn as_operator_in(&self, account: &str) -> Client<'_> {
        Client { account: Some(account.to_owned()), ..self.as_operator() }
    }

    pub(crate) fn as_admin_of(&self, account: &str) -> Client<'_> {
        Client { account: Some(account.to_owned()), roles: vec!["account_admin".to_owned()], ..self.caller("ada") }
    }

    pub(crate) fn as_member_of(&self, account: &str) -> Client<'_> {
        Client { account: Some(account.to_owned()), ..self.caller("bob") }
    }

    /// Makes an account and gives its id.
    pub(crate) async fn account(&self, name: &str) -> String {
        let (status, body, _) =
            self.as_operator().post("/v1/accounts", serde_json::json!({ "account_name": name })).await;
        assert_eq!(status, 200, "{body}");
        body["account_id"].as_str().unwrap().to_owned()
    }
}

#[derive(Clone)]
pub(crate) struct Client<'a> {
    gateway: &'a Gateway,
    account: Option<String>,
    subject: Option<&'static str>,
    roles: Vec<String>,
    super_admin: bool,
    headers: HeaderMap,
}

pub(crate) type Answered = (u16, Value, HeaderMap);

impl Client<'_> {
    pub(crate) fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.insert(name, value.parse().unwrap());
        self
    }

    pub(crate) async fn get(&self, path: &str) -> Answered {
        self.send(Method::GET, path, None).await
    }
    pub(crate) async fn post(&self, path: &str, body: Value) -> Answered {
        self.send(Method::POST, path, Some(body)).await
    }
    pub(crate) async fn put(&self, path: &str, body: Value) -> Answered {
        self.send(Method::PUT, path, Some(body)).await
    }
    pub(crate) async fn patch(&self, path: &str, body: Value) -> Answered {
        self.send(Method::PATCH, path, Some(body)).await
    }
    pub(crate) async fn delete(&self, path: &str) -> Answered {
        self.send(Method::DELETE, path, None).await
    }

    async fn send(&self, method: Method, path: &str, body: Option<Value>) -> Answered {
        let (status, text, headers) = self.text(method, path, body.map(|b| b.to_string())).await;
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)), headers)
    }

    pub(crate) async fn text(&self, method: Method, path: &str, body: Option<String>) -> (u16, String, HeaderMap) {
        let mut request = Request::builder().method(method).uri(path);
        *request.headers_mut().unwrap() = self.headers.clone();
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let mut request = request.body(Body::from(body.unwrap_or_default())).unwrap();
        request.extensions_mut().insert(RequestInfo { id: "req-1".into(), client_ip: Some([192, 0, 2, 1].into()) });
        if let Some(context) = self.context().await {
            request.extensions_mut().insert(context);
        }
        let response = self.gateway.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        (parts.status.as_u16(), String::from_utf8(bytes.to_vec()).unwrap(), parts.headers)
    }

    async fn context(&self) -> Option<Context> {
        let subject = self.subject?;
        let account = match &self.account {
            Some(id) => {
                let granted = Granted::system().over(id.parse().unwrap());
                let account = self.gateway.store.read(&granted).await.unwrap().this_account().await.unwrap();
                account.map(|a| AccountStanding { id: a.account_id, suspended: a.status.as_str() == "suspended" })
            }
            None => None,
        };
        Some(Context::establish(ContextFacts {
            account,
            actor: Actor {
                issuer: ISSUER.into(),
                subject: subject.into(),
                email: Some(format!("{subject}@example.com").into()),
            },
            provider: AuthProvider::Zitadel,
            roles: self.roles.clone(),
            scopes: vec!["openid".to_owned()],
            product_domains: ProductDomains::new(vec!["copilot".to_owned()]),
            super_admin: self.super_admin,
        }))
    }
}
