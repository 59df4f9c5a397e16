//! A caller: a base address, a credential, and answers that are read to their end.

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use serde_json::Value;

/// Somebody who calls; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
    token: Option<String>,
    account: Option<String>,
}

/// An answer, whole.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Client {
    /// Somebody without a credential.
    pub(crate) fn new(base: &str) -> Self {
        // Neither a proxy of the environment nor a redirect, and no pool that outlives a stopped server.
        let http = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        Self { http, base: base.to_owned(), token: None, account: None }
    }

    /// The same caller with `token` as `Authorization: Bearer`.
    pub(crate) fn with_token(&self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self.clone() }
    }

    /// The same caller, who asks for `account` by `X-Account-Id`.
    pub(crate) fn within(&self, account: &str) -> Self {
        Self { account: Some(account.to_owned()), ..self.clone() }
    }

    /// The same caller at another gateway.
    pub(crate) fn at(&self, base: &str) -> Self {
        Self { base: base.to_owned(), ..self.clone() }
    }

    /// The caller's token.
    pub(crate) fn token(&self) -> &str {
        self.token.as_deref().unwrap_or_default()
    }

    /// A request with the caller's credential, to be completed and given to [`send`](Self::send).
    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(account) = &self.account {
            request = request.header("x-account-id", account);
        }
        request
    }

    /// Sends a request and reads the answer to its end.
    pub(crate) async fn send(&self, request: reqwest::RequestBuilder) -> Reply {
        self.try_send(request).await.unwrap()
    }

    /// As [`send`](Self::send), where the connection may break.
    pub(crate) async fn try_send(&self, request: reqwest::RequestBuilder) -> reqwest::Result<Reply> {
        let answer = request.send().await?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let reply = Reply { status, headers, body: answer.bytes().await? };
        reply.check_page();
        Ok(reply)
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send(self.request(Method::GET, path)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Reply {
        self.send(self.request(Method::DELETE, path)).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Reply {
        self.send(self.request(Method::POST, path).json(&body)).await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Reply {
        self.send(self.request(Method::PUT, path).json(&body)).await
    }

    pub(crate) async fn patch(&self, path: &str, body: Value) -> Reply {
        self.send(self.request(Method::PATCH, path).json(&body)).await
    }
}

impl Reply {
    /// A problem leads to a page, which knows of its status.
    fn check_page(&self) {
        let is_problem = self.headers.get("content-type").is_some_and(|kind| kind == "application/problem+json");
        // A HEAD has none.
        if is_problem && !self.body.is_empty() {
            let body = self.json();
            let page = body["code"].as_str().and_then(alchemi::problem::pages::find);
            let known = page.is_some_and(|page| page.statuses().any(|status| status == self.status.as_u16()));
            assert!(known, "docs/problems.md does not tell of {body}");
        }
    }

    /// The body as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {} {}", self.status, self.text()))
    }

    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body of an answer that must be a success.
    #[track_caller]
    pub(crate) fn ok(self) -> Value {
        assert!(self.status.is_success(), "{} {}", self.status, self.text());
        self.json()
    }

    /// The header that came exactly once.
    #[track_caller]
    pub(crate) fn header(&self, name: &str) -> &str {
        let mut values = self.headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (Some(value), None) => value.to_str().unwrap(),
            (None, _) => panic!("no header {name} in {:?}", self.headers),
            _ => panic!("several headers {name} in {:?}", self.headers),
        }
    }

    /// The code of a refusal, in whichever shape.
    #[track_caller]
    pub(crate) fn code(&self) -> String {
        let body = self.json();
        let code = body.get("code").or_else(|| body.get("error")?.get("code"));
        code.and_then(Value::as_str).unwrap_or_else(|| panic!("no code in {body}")).to_owned()
    }

    /// The data of the events of a stream, `[DONE]` among them.
    pub(crate) fn events(&self) -> Vec<String> {
        self.text().lines().filter_map(|line| line.strip_prefix("data:")).map(|data| data.trim().to_owned()).collect()
    }

    /// The events that are JSON.
    pub(crate) fn json_events(&self) -> Vec<Value> {
        self.events().iter().filter_map(|data| serde_json::from_str(data).ok()).collect()
    }
}
