//! The description of `/v1`: complete, consistent, and changed only on purpose.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use serde_json::{Map, Value};

const METHODS: &[&str] = &["get", "post", "put", "patch", "delete"];

/// What only the copilot has.
const COPILOT_ONLY: &[&str] = &["agents", "connections", "guardrails", "marketplace"];

/// Operations that anybody may call.
const ANONYMOUS: &[&str] =
    &["GET /v1/me/context", "GET /v1/auth/zitadel/status", "POST /v1/auth/zitadel/backchannel-logout"];

/// Operations whose body is a form in which others may send more.
const FORMS: &[&str] = &["POST /v1/auth/zitadel/backchannel-logout"];

fn description() -> Value {
    serde_json::to_value(alchemi::v1::description()).unwrap()
}

/// Every operation, by method and path.
fn operations(description: &Value) -> BTreeMap<String, Value> {
    let paths = description["paths"].as_object().unwrap();
    let of = |(path, item): (&String, &Value)| {
        let item = item.as_object().unwrap().clone();
        let path = path.clone();
        METHODS.iter().filter_map(move |method| {
            Some((format!("{} {path}", method.to_ascii_uppercase()), item.get(*method)?.clone()))
        })
    };
    paths.iter().flat_map(of).collect()
}

fn parameters(operation: &Value) -> impl Iterator<Item = &Value> {
    operation["parameters"].as_array().into_iter().flatten()
}

#[test]
fn the_description_is_the_one_that_was_agreed_on() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openapi.json");
    let found = alchemi::v1::description().to_pretty_json().unwrap() + "\n";
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&path, &found).unwrap();
    }
    let agreed = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = agreed.lines().zip(found.lines()).position(|(agreed, found)| agreed != found);
    assert!(
        agreed == found,
        "the description has changed, first in line {}: look at it, then `UPDATE_SNAPSHOTS=1 cargo test --test openapi`",
        differs.unwrap_or_else(|| agreed.lines().count().min(found.lines().count())) + 1,
    );
}

#[cfg(feature = "server")]
#[test]
fn the_command_line_prints_it() {
    let printed = std::process::Command::new(env!("CARGO_BIN_EXE_alchemi")).arg("openapi").output().unwrap();
    assert!(printed.status.success());
    assert_eq!(serde_json::from_slice::<Value>(&printed.stdout).unwrap(), description());
}

#[test]
fn it_is_openapi_3_1_with_one_scheme() {
    let description = description();
    assert!(description["openapi"].as_str().unwrap().starts_with("3.1."), "{}", description["openapi"]);
    assert_eq!(description["info"]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(description["components"]["securitySchemes"]["bearer"]["scheme"], "bearer");
    assert_eq!(description["security"][0], serde_json::json!({"bearer": []}));
}

#[test]
fn operations_say_everything() {
    let description = description();
    let tags: BTreeSet<&str> =
        description["tags"].as_array().unwrap().iter().map(|tag| tag["name"].as_str().unwrap()).collect();
    let (mut broken, mut ids) = (String::new(), BTreeSet::new());
    for (name, operation) in operations(&description) {
        for lack in lacks(&name, &operation, &tags) {
            writeln!(broken, "{name}: {lack}").unwrap();
        }
        let id = operation["operationId"].as_str().unwrap_or_default().to_owned();
        if id.is_empty() || !ids.insert(id.clone()) {
            writeln!(broken, "{name}: the operation id {id:?} is not its own").unwrap();
        }
    }
    assert!(broken.is_empty(), "\n{broken}");
}

/// What an operation does not say.
fn lacks(name: &str, operation: &Value, tags: &BTreeSet<&str>) -> Vec<String> {
    let mut lacks = Vec::new();
    let mut need = |holds: bool, what: &str| {
        if !holds {
            lacks.push(what.to_owned());
        }
    };
    need(
        operation["summary"].as_str().is_some_and(|s| !s.is_empty() && !s.ends_with('.')),
        "a summary without a full stop",
    );
    need(
        operation["tags"].as_array().is_some_and(|t| t.len() == 1 && tags.contains(t[0].as_str().unwrap())),
        "one known tag",
    );
    let responses = operation["responses"].as_object().unwrap();
    let told = |content: &Value| {
        content
            .as_object()
            .is_some_and(|kinds| kinds.values().all(|kind| !kind["schema"].is_null() && !kind["example"].is_null()))
    };
    need(told(&responses["200"]["content"]), "schema and example of its answer");
    for status in ["401", "403", "422", "503"] {
        need(responses.contains_key(status), &format!("the refusal {status}"));
    }
    let body = &operation["requestBody"];
    if !body.is_null() {
        need(told(&body["content"]), "schema and example of its body");
        need(["408", "413", "415"].iter().all(|status| responses.contains_key(*status)), "the refusals of a body");
    }
    let anonymous = operation["security"].as_array().is_some_and(|all| all.contains(&Value::Object(Map::new())));
    need(anonymous == ANONYMOUS.contains(&name), "who may call it");
    for parameter in parameters(operation) {
        need(parameter["description"].is_string(), &format!("what {} is", parameter["name"]));
    }
    let in_path: BTreeSet<&str> = name.split('{').skip(1).map(|rest| rest.split('}').next().unwrap()).collect();
    let described: BTreeSet<&str> =
        parameters(operation).filter(|p| p["in"] == "path").map(|p| p["name"].as_str().unwrap()).collect();
    need(in_path == described, "the parameters of its path");
    lacks
}

#[test]
fn references_lead_somewhere() {
    fn walk(value: &Value, description: &Value, broken: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                if let Some(Value::String(to)) = fields.get("$ref")
                    && description.pointer(to.trim_start_matches('#')).is_none()
                {
                    broken.push(to.clone());
                }
                fields.values().for_each(|value| walk(value, description, broken));
            }
            Value::Array(items) => items.iter().for_each(|value| walk(value, description, broken)),
            _ => {}
        }
    }
    let description = description();
    let mut broken = Vec::new();
    walk(&description, &description, &mut broken);
    assert!(broken.is_empty(), "{broken:#?}");
}

/// Clients of both domains are written once.
#[test]
fn both_domains_have_the_same_operations() {
    let all = operations(&description());
    let of = |domain: &str| -> BTreeSet<String> {
        let prefix = format!(" /v1/{domain}/");
        let common = |name: &str| {
            let kind = name.split(&prefix).nth(1).and_then(|rest| rest.split('/').next());
            kind.is_some_and(|kind| !COPILOT_ONLY.contains(&kind))
        };
        all.keys().filter(|name| common(name)).map(|name| name.replace(&prefix, " /v1/…/")).collect()
    };
    assert_eq!(of("console"), of("copilot"));
    assert!(!of("console").is_empty());
}

#[test]
fn bodies_admit_no_unknown_field() {
    let description = description();
    for (name, operation) in operations(&description) {
        if FORMS.contains(&&*name) {
            continue;
        }
        let Some(at) = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].as_str() else {
            assert!(operation["requestBody"].is_null(), "{name}");
            continue;
        };
        let schema = description.pointer(at.trim_start_matches('#')).expect("a schema");
        assert_eq!(schema["additionalProperties"], false, "{name}: {at}");
    }
}
