//! The routes over a fresh database, and callers with tokens of a development issuer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use alchemi::clock::{SharedClock, SystemClock};
use alchemi::context::Context;
use alchemi::dev::{DevIssuer, DevUser, Org};
use alchemi::id::{Id, RandomIds};
use alchemi::identity::{AccountBinding, Identity, IdentityConfig, IssuerConfig, context, master_key_context};
use alchemi::model::accounts::Account;
use alchemi::store::{DatabaseConfig, Store, migrate};
use alchemi::v1::{App, router};
use axum::Router;
use axum::body::{Body, to_bytes};
use http::{HeaderMap, Method, Request};
use serde_json::{Value, json};
use tower::ServiceExt as _;

pub(crate) struct Gateway {
    pub(crate) store: Store,
    router: Router,
    issuer: DevIssuer,
    identity: Identity,
    _folder: tempfile::TempDir,
}

/// A caller.
pub(crate) struct Client {
    router: Router,
    context: Context,
    headers: HeaderMap,
}

pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) json: Value,
    pub(crate) headers: HeaderMap,
}

/// The gateway on each database that is there.
pub(crate) async fn gateways(shape: impl Fn(App) -> App) -> Vec<Gateway> {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = format!("sqlite:{}", folder.path().join("alchemi.db").display());
    let mut gateways = vec![Gateway::start(sqlite, folder, &shape).await];
    if let Some(url) = crate::postgres::database().await {
        gateways.push(Gateway::start(url, tempfile::tempdir().unwrap(), &shape).await);
    }
    gateways
}

impl Gateway {
    async fn start(url: String, folder: tempfile::TempDir, shape: impl Fn(App) -> App) -> Self {
        let clock: SharedClock = Arc::new(SystemClock);
        let database = DatabaseConfig { url, max_connections: 8, ..DatabaseConfig::default() };
        let store = Store::open(&database, Arc::clone(&clock), Arc::new(RandomIds)).await.unwrap();
        migrate::apply(&store).await.unwrap();
        let listen = "127.0.0.1:0".parse().unwrap();
        let issuer = DevIssuer::start(listen, Arc::clone(&clock), Arc::new(RandomIds)).await.unwrap();
        let config = IdentityConfig {
            issuers: vec![IssuerConfig::at(issuer.url())],
            project_id: Some(issuer.project_id().to_owned()),
            account_id_claims: vec!["alchemi:account_id".to_owned()],
            ..IdentityConfig::default()
        };
        let identity = Identity::new(&config, clock).unwrap();
        let router = router(shape(App::new(store.clone())));
        Self { store, router, issuer, identity, _folder: folder }
    }

    /// A new account.
    pub(crate) async fn account(&self, name: &str) -> Id<Account> {
        let granted = master_key_context(None).super_admin().unwrap();
        let mut tx = self.store.begin(&granted).await.unwrap();
        let account = Account::new(tx.new_id(), name.to_owned(), None, tx.now());
        tx.insert_account(&account).await.unwrap();
        tx.commit().await.unwrap();
        account.account_id
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
        let binding = AccountBinding {
            id: account.clone(),
            suspended: false,
            organization_id: None,
            role_prefix: None,
            role_mappings: BTreeMap::new(),
        };
        let context = context(&verified, Some(&binding), false, self.identity.claim_rules()).unwrap();
        Client { router: self.router.clone(), context, headers: HeaderMap::new() }
    }
}

impl Client {
    /// The same caller, who sends a header too.
    pub(crate) fn with(&self, name: &'static str, value: &str) -> Self {
        let mut headers = self.headers.clone();
        headers.insert(name, value.parse().unwrap());
        Self { router: self.router.clone(), context: self.context.clone(), headers }
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Reply {
        self.send(Method::POST, path, Some(body)).await
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
        let mut request = Request::builder().method(method).uri(format!("/v1{path}"));
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let mut request = request.body(body.map_or_else(Body::empty, |b| Body::from(b.to_string()))).unwrap();
        request.headers_mut().extend(self.headers.clone());
        request.extensions_mut().insert(self.context.clone());
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = to_bytes(body, usize::MAX).await.unwrap();
        let json = serde_json::from_slice(&bytes).unwrap_or_default();
        Reply { status: parts.status.as_u16(), json, headers: parts.headers }
    }
}

impl Reply {
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
