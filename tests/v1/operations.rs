//! Every operation, out of the description, and requests for it.

use http::Method;
use serde_json::Value;

use crate::common::{Client, Reply};

/// An id that nothing has.
pub(crate) const NOBODY: &str = "019a3c5e-7d10-7c3a-9b1e-000000000000";

/// Who is signed in does not matter here: the body is the credential, and the example's is no good one.
pub(crate) const LOGOUT: &str = "POST /v1/auth/zitadel/backchannel-logout";

/// An operation of the description.
#[derive(Debug)]
pub(crate) struct Operation {
    pub(crate) method: Method,
    /// With parameters between braces.
    pub(crate) path: String,
    pub(crate) described: Value,
}

/// A request for an operation.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) body: Option<Value>,
    /// The body, where it is a form.
    pub(crate) form: Option<Value>,
}

/// All of them, in the order of their paths.
pub(crate) fn operations() -> Vec<Operation> {
    let description = serde_json::to_value(alchemi::v1::description()).unwrap();
    let methods = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
    let mut all = Vec::new();
    for (path, item) in description["paths"].as_object().unwrap() {
        for method in &methods {
            if let Some(described) = item.get(method.as_str().to_ascii_lowercase()) {
                all.push(Operation { method: method.clone(), path: path.clone(), described: described.clone() });
            }
        }
    }
    all
}

impl Operation {
    /// Method and path.
    pub(crate) fn name(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    /// The product domain of its path, if it is of one.
    pub(crate) fn domain(&self) -> &'static str {
        if self.path.starts_with("/v1/console/") { "console" } else { "copilot" }
    }

    pub(crate) fn parameters(&self, place: &str) -> impl Iterator<Item = &Value> {
        self.described["parameters"].as_array().into_iter().flatten().filter(move |p| p["in"] == place)
    }

    pub(crate) fn takes(&self, header: &str) -> bool {
        self.parameters("header").any(|parameter| parameter["name"] == header)
    }

    /// A request as the description shows it, with what `value` has for the path's and the query's parameters; the
    /// query's only where they are required or `value` gives them.
    pub(crate) fn ask(&self, value: impl Fn(&str) -> Option<String>) -> Asked {
        let mut path = self.path.clone();
        for parameter in self.parameters("path") {
            let name = parameter["name"].as_str().unwrap();
            let value = value(name).unwrap_or_else(|| usual_in_path(name).to_owned());
            path = path.replace(&format!("{{{name}}}"), &value);
        }
        let mut joint = '?';
        for parameter in self.parameters("query") {
            let name = parameter["name"].as_str().unwrap();
            let required = parameter["required"] == true;
            let value = value(name).or_else(|| required.then(|| usual(name)));
            if let Some(value) = value {
                path = format!("{path}{joint}{name}={value}");
                joint = '&';
            }
        }
        let example = |kind: &str| {
            let example = &self.described["requestBody"]["content"][kind]["example"];
            (!example.is_null()).then(|| example.clone())
        };
        Asked { path, body: example("application/json"), form: example("application/x-www-form-urlencoded") }
    }

    /// Sends a request.
    pub(crate) async fn call(&self, client: &Client, asked: &Asked) -> Reply {
        self.call_with(client, asked, &[]).await
    }

    /// Sends a request with headers.
    pub(crate) async fn call_with(&self, client: &Client, asked: &Asked, headers: &[(&str, &str)]) -> Reply {
        let mut request = client.request(self.method.clone(), &asked.path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = &asked.body {
            request = request.json(body);
        }
        if let Some(form) = &asked.form {
            request = request.form(form);
        }
        client.send(request).await
    }
}

fn usual_in_path(name: &str) -> &'static str {
    match name {
        "email" => "a@b.example",
        "connection_type" => "mcp",
        _ => NOBODY,
    }
}

/// A value for a parameter that must be there.
fn usual(name: &str) -> String {
    match name {
        "scope_type" => "team",
        "model_name" => "gpt-4o-mini",
        "domain" => "copilot",
        "feature_code" => "create_agents",
        _ => NOBODY,
    }
    .to_owned()
}
