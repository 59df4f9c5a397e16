//! The description: what the route table and the handlers do not say themselves.

use std::collections::BTreeMap;

use http::Method;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{HttpMethod, Operation, Parameter, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{OpenApi, Ref, RefOr, Required, Response};

use crate::context::Domain;

mod bounds;
mod examples;

use examples::Examples;

/// The id in examples.
const EXAMPLE_ID: &str = "019a3c5e-7d10-7c3a-9b1e-2f6d8a4c0b11";

#[derive(utoipa::OpenApi)]
#[openapi(
    info(title = "alchemi control plane", license(name = "Apache-2.0 OR MIT", identifier = "Apache-2.0 OR MIT")),
    security(("bearer" = [])),
    components(schemas(crate::problem::ProblemBody, crate::problem::FieldError)),
    tags(
        (name = "context", description = "Who is calling"),
        (name = "revocations", description = "Tokens cut off before they expire"),
        (name = "accounts", description = "Tenants, their admins and the operator's settings for them"),
        (name = "directory", description = "Orgs, teams, users and memberships of both product domains"),
        (name = "budgets", description = "Credits: account allocation, plans, allocations, overrides, usage, cycles"),
        (name = "agents", description = "Agents of the copilot and whom they are granted to"),
        (name = "guardrails", description = "What prompts are screened by: presets, patterns, assignments"),
        (name = "connections", description = "What agents reach outside, with sealed secrets"),
        (name = "models", description = "Who may use which model"),
        (name = "policy", description = "What the gateway would say to a request, and why"),
        (name = "features", description = "Who has which feature of the product"),
        (name = "marketplace", description = "Agents and connections, listed for the account's users"),
        (name = "audit", description = "Who changed what, chained by hash"),
        (name = "costs", description = "What was spent, from sums kept at settlement"),
        (name = "self-service", description = "What holds for the caller"),
    )
)]
pub(super) struct Base;

/// What holds for every operation and is not said at each: the paths of both domains,
/// headers, refusals, whole examples, the security scheme.
pub(super) fn complete(mut description: OpenApi) -> OpenApi {
    description.info.version = env!("CARGO_PKG_VERSION").to_owned();
    let mut components = description.components.take().unwrap_or_default();
    let examples = Examples::of(&components);
    let mut refusals = Refused::default();
    let paths = std::mem::take(&mut description.paths.paths);
    for (path, item) in paths.into_iter().flat_map(|(path, item)| by_parameter(path, item)) {
        for (path, mut item, domain) in expanded(path, item) {
            // A DELETE that names a row in its query says nothing of the list.
            let of_one = item.delete.iter().filter(|_| path.contains('{'));
            let mut writes = item.put.iter().chain(&item.patch).chain(&item.post).chain(of_one);
            let tagged = writes.any(takes_if_match);
            for (method, operation) in operations(&mut item) {
                add_headers(operation, &method, tagged);
                bounds::bound(operation);
                refusals.share(operation, &method, &path);
                examples.complete(operation, domain);
            }
            description.paths.paths.insert(path, item);
        }
    }
    components.responses.append(&mut refusals.0);
    let bearer = SecurityScheme::Http(
        Http::builder()
            .scheme(HttpAuthScheme::Bearer)
            .bearer_format("JWT")
            .description(Some("A Zitadel access token, or the operator's master key"))
            .build(),
    );
    components.security_schemes.insert("bearer".to_owned(), bearer.into());
    description.components = Some(components);
    description
}

/// The router knows one name for a part of a path. A POST that calls it otherwise is
/// described under a path of its own.
fn by_parameter(path: String, mut item: PathItem) -> Vec<(String, PathItem)> {
    let in_path = |p: &RefOr<Parameter>| match p {
        RefOr::T(p) if p.parameter_in == ParameterIn::Path => Some(p.name.clone()),
        _ => None,
    };
    let names: Vec<String> = item.post.iter().flat_map(|o| o.parameters.iter().flatten()).filter_map(in_path).collect();
    let own = names.iter().find(|name| !path.contains(&format!("{{{name}}}")));
    let (Some(own), Some(start)) = (own, path.rfind('{')) else { return vec![(path, item)] };
    let renamed = format!("{}{{{own}}}", path.get(..start).unwrap_or_default());
    let post = item.post.take().map(|mut operation| {
        let kept = |p: &RefOr<Parameter>| in_path(p).is_none_or(|name| renamed.contains(&format!("{{{name}}}")));
        operation.parameters.iter_mut().for_each(|all| all.retain(kept));
        (renamed.clone(), PathItem::new(HttpMethod::Post, operation))
    });
    std::iter::once((path, item)).chain(post).collect()
}

/// A `{domain}` path for each domain; any other as it is.
fn expanded(path: String, item: PathItem) -> Vec<(String, PathItem, Option<Domain>)> {
    if !path.contains("/{domain}/") {
        return vec![(path, item, None)];
    }
    let of = |domain: Domain| {
        (path.replace("/{domain}/", &format!("/{domain}/")), for_domain(item.clone(), domain), Some(domain))
    };
    Domain::ALL.map(of).into()
}

fn for_domain(mut item: PathItem, domain: Domain) -> PathItem {
    for (_, operation) in operations(&mut item) {
        if let Some(id) = &mut operation.operation_id {
            // list_orgs -> list_copilot_orgs
            let (verb, rest) = id.split_once('_').unwrap_or((id, ""));
            *id = format!("{verb}_{domain}_{rest}");
        }
    }
    item
}

pub(super) fn operations(item: &mut PathItem) -> impl Iterator<Item = (Method, &mut Operation)> {
    let PathItem { get, post, put, patch, delete, .. } = item;
    [(Method::GET, get), (Method::POST, post), (Method::PUT, put), (Method::PATCH, patch), (Method::DELETE, delete)]
        .into_iter()
        .filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

pub(super) fn takes_if_match(operation: &Operation) -> bool {
    let named = |p: &RefOr<Parameter>| matches!(p, RefOr::T(p) if p.name == "if-match");
    operation.parameters.iter().flatten().any(named)
}

/// Headers that belong to a method or a kind of resource. `tagged`: the path's resource
/// has versions.
fn add_headers(operation: &mut Operation, method: &Method, tagged: bool) {
    let operators_own = operation.tags.iter().flatten().any(|tag| tag == "accounts" || tag == "revocations");
    let anonymous = SecurityRequirement::default();
    let signed_in = operation.security.as_deref().is_none_or(|schemes| schemes != [anonymous]);
    let mut headers = Vec::new();
    if *method == Method::POST && signed_in {
        headers.push(header(
            "idempotency-key",
            "Any text of yours: the same request sent again gets the first answer",
            "a81bc81b-dead-4e5d-abff-90865d1e13b1",
        ));
    }
    if !operators_own {
        headers.push(header("x-account-id", "For operators alone: the account to act in", EXAMPLE_ID));
    }
    operation.parameters.get_or_insert_default().extend(headers);
    let shows_version = match *method {
        Method::GET => tagged,
        Method::DELETE => false,
        _ => takes_if_match(operation),
    };
    if shows_version && let Some(RefOr::T(answer)) = operation.responses.responses.get_mut("200") {
        let text = ObjectBuilder::new().schema_type(Type::String).examples([serde_json::json!("\"3\"")]);
        let version = HeaderBuilder::new().schema(Some(text)).description(Some("The version, for `if-match`"));
        answer.headers.insert("etag".to_owned(), version.build().into());
    }
}

fn header(name: &str, description: &str, example: &str) -> RefOr<Parameter> {
    let text = ObjectBuilder::new().schema_type(Type::String).examples([serde_json::json!(example)]);
    let header = ParameterBuilder::new().name(name).parameter_in(ParameterIn::Header).required(Required::False);
    header.description(Some(description)).schema(Some(text)).build().into()
}

/// Refusals, written once for all operations.
#[derive(Default)]
struct Refused(BTreeMap<String, RefOr<Response>>);

impl Refused {
    /// Drops the refusals that `operation` cannot give, and refers to the others.
    fn share(&mut self, operation: &mut Operation, method: &Method, path: &str) {
        let (reads, bodiless) = (*method == Method::GET, operation.request_body.is_none());
        let unversioned = matches!(*method, Method::GET | Method::POST) && !takes_if_match(operation);
        operation.responses.responses.retain(|status, _| match status.as_str() {
            "409" => !reads,
            "408" | "413" | "415" => !bodiless,
            "412" => !unversioned,
            "502" => path.contains("/zitadel/provision/"),
            _ => true,
        });
        for (status, response) in &mut operation.responses.responses {
            if !status.starts_with('2') {
                let name = format!("Problem{status}");
                let full = std::mem::replace(response, RefOr::Ref(Ref::from_response_name(&name)));
                self.0.entry(name).or_insert(full);
            }
        }
    }
}
