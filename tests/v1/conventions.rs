//! What holds for every operation: how bodies are read, and how refusals look.

use std::collections::BTreeSet;
use std::fmt::Write;

use http::{Method, StatusCode, header};
use serde_json::{Value, json};

use crate::common::{Client, Gateway, backends};
use crate::operations::{LOGOUT, Operation, operations};
use crate::{invalid, refusal, with_the_issuer_of_examples};

#[tokio::test]
async fn examples_of_the_description_are_accepted() {
    for backend in backends().await {
        let gateway = with_the_issuer_of_examples(backend).await;
        let account = gateway.account("Other than the example's").await;
        let operator = gateway.operator_for(&account);
        for operation in operations().into_iter().filter(|operation| operation.name() != LOGOUT) {
            let reply = operation.call(&operator, &operation.ask(|_| None)).await;
            // The ids are nobody's; what is taken was made by an example before.
            let status = reply.status.as_u16();
            assert!(matches!(status, 200 | 404 | 409), "{}: {status} {}", operation.name(), reply.text());
            let known = operation.described["responses"].as_object().unwrap().contains_key(&status.to_string());
            assert!(known, "{}: {status} is not described", operation.name());
            // Its answer has two shapes, of which the example shows one.
            let one_shape = operation.path != "/v1/budgets/account-allocation";
            if status == 200 && one_shape && reply.header("content-type") == "application/json" {
                let content = &operation.described["responses"]["200"]["content"]["application/json"];
                shaped(&reply.json(), &content["example"], &operation.name());
            }
        }
    }
}

/// An answer has no field that its example lacks.
pub(crate) fn shaped(found: &Value, example: &Value, at: &str) {
    match (found, example) {
        // Maps of the caller's own.
        (Value::Object(_), Value::Object(example)) if example.is_empty() => {}
        (Value::Object(found), Value::Object(example)) => {
            for (name, value) in found {
                let example = example.get(name).unwrap_or_else(|| panic!("{at}: {name} is not described"));
                shaped(value, example, &format!("{at}/{name}"));
            }
        }
        (Value::Array(found), Value::Array(example)) => {
            for item in found {
                shaped(item, &example[0], at);
            }
        }
        _ => {}
    }
}

/// The types that a schema admits.
fn kinds(schema: &Value, description: &Value) -> BTreeSet<String> {
    if let Some(at) = schema["$ref"].as_str() {
        return kinds(description.pointer(at.trim_start_matches('#')).unwrap(), description);
    }
    let parts = ["oneOf", "anyOf", "allOf"].iter().filter_map(|key| schema[*key].as_array()).flatten();
    let own = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        kind => Vec::from_iter(kind.as_str()),
    };
    own.into_iter().map(str::to_owned).chain(parts.flat_map(|part| kinds(part, description))).collect()
}

/// Pointers to the objects of a body that have fields of ours and no others.
fn closed(body: &Value, schema: &Value, description: &Value, at: &str) -> Vec<String> {
    if let Some(to) = schema["$ref"].as_str() {
        return closed(body, description.pointer(to.trim_start_matches('#')).unwrap(), description, at);
    }
    let parts = ["oneOf", "anyOf"].iter().filter_map(|key| schema[*key].as_array()).flatten();
    let mut found: Vec<String> = parts.flat_map(|part| closed(body, part, description, at)).collect();
    if schema["additionalProperties"] == false {
        found.push(at.to_owned());
    }
    match body {
        Value::Object(fields) => fields.iter().for_each(|(name, field)| {
            found.extend(closed(field, &schema["properties"][name], description, &format!("{at}/{name}")));
        }),
        Value::Array(items) => items.iter().enumerate().for_each(|(number, item)| {
            found.extend(closed(item, &schema["items"], description, &format!("{at}/{number}")));
        }),
        _ => {}
    }
    found
}

/// Bodies that are wrong in one place, with the place.
fn wrong_bodies(operation: &Operation, description: &Value) -> Vec<(Value, String)> {
    let content = &operation.described["requestBody"]["content"]["application/json"];
    let at = content["schema"]["$ref"].as_str().unwrap();
    let (schema, example) = (description.pointer(at.trim_start_matches('#')).unwrap(), &content["example"]);
    let mut wrong = Vec::new();
    for place in closed(example, schema, description, "") {
        let mut body = example.clone();
        body.pointer_mut(&place).unwrap()["colour"] = json!("red");
        wrong.push((body, format!("{place}/colour")));
    }
    for (name, field) in schema["properties"].as_object().unwrap() {
        let kinds = kinds(field, description);
        let of_another_type = match kinds.iter().find(|kind| *kind != "null").map(String::as_str) {
            Some("string") => json!(7),
            Some("boolean") => json!("true"),
            // Amounts are read out of a text, too.
            Some("number") => json!(true),
            Some("integer") => json!("1"),
            Some("array") => json!({"0": "a"}),
            Some("object") => json!("{}"),
            kind => panic!("{}: {name} is of {kind:?}", operation.name()),
        };
        let null = (!kinds.contains("null")).then_some(Value::Null);
        for value in [of_another_type].into_iter().chain(null) {
            let mut body = example.clone();
            body[name] = value;
            wrong.push((body, format!("/{name}")));
        }
    }
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        let mut body = example.clone();
        body.as_object_mut().unwrap().remove(name);
        // What a client must send, but is told of in the words of the former API.
        if name != "guardrail_preset_ids" {
            wrong.push((body, format!("/{name}")));
        }
    }
    wrong
}

#[tokio::test]
async fn every_body_is_read_strictly() {
    let description = serde_json::to_value(alchemi::v1::description()).unwrap();
    for backend in backends().await {
        let gateway = with_the_issuer_of_examples(backend).await;
        let account = gateway.account("Acme").await;
        let operator = gateway.operator_for(&account);
        let (mut broken, mut sent) = (String::new(), 0);
        for operation in operations() {
            let mut asked = operation.ask(|_| None);
            if asked.body.is_none() {
                continue;
            }
            for (body, pointer) in wrong_bodies(&operation, &description) {
                asked.body = Some(body);
                let reply = operation.call(&operator, &asked).await;
                let found = serde_json::from_slice::<Value>(&reply.body).unwrap_or_default();
                if reply.status != StatusCode::UNPROCESSABLE_ENTITY || found["errors"][0]["pointer"] != pointer {
                    writeln!(broken, "{} at {pointer}: {} {}", operation.name(), reply.status, reply.text()).unwrap();
                }
                sent += 1;
            }
        }
        assert!(broken.is_empty(), "\n{broken}");
        assert!(sent > 300, "{sent}");
    }
}

async fn with_org(gateway: &Gateway) -> (Client, String) {
    let account = gateway.account("Acme").await;
    let org = gateway.org(&account, "copilot", "Research").await;
    (gateway.as_account_admin(&account), format!("/v1/copilot/orgs/{org}"))
}

#[tokio::test]
async fn bodies_are_read_strictly() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let (admin, org) = with_org(&gateway).await;
        let orgs = "/v1/copilot/orgs";

        invalid(&admin.post(orgs, json!({"name": "a", "colour": "red"})).await, "/colour");
        invalid(&admin.post(orgs, json!({"name": 1})).await, "/name");
        invalid(&admin.post(orgs, json!({})).await, "/name");
        invalid(&admin.post(orgs, json!({"name": null})).await, "/name");
        invalid(&admin.post(orgs, json!([])).await, "");
        invalid(&admin.post(orgs, json!("name")).await, "");
        invalid(&admin.post(orgs, json!({"name": "  "})).await, "/name");
        invalid(&admin.post(orgs, json!({"name": "\u{200b}\u{2060}"})).await, "/name");
        invalid(&admin.post(orgs, json!({"name": "abc\u{202e}cba"})).await, "/name");
        invalid(&admin.post(orgs, json!({"name": "a\u{7}"})).await, "/name");
        invalid(&admin.post(orgs, json!({"name": "a".repeat(256)})).await, "/name");
        invalid(&admin.patch(&org, json!({"name": null})).await, "/name");
        invalid(&admin.patch(&org, json!({"description": "a".repeat(4097)})).await, "/description");
        let renewal = json!({"cycle_start": "2026-01-01T00:00:00Z", "cycle_end": "2026-02-01T00:00:00Z"});
        let renew = |field: &str, value: Value| {
            let mut body = renewal.clone();
            body[field] = value;
            admin.post("/v1/budgets/copilot/cycles/renew", body)
        };
        invalid(&renew("copy_overrides", json!("true")).await, "/copy_overrides");
        invalid(&renew("copy_overrides", json!(1)).await, "/copy_overrides");
        invalid(&renew("cycle_start", json!("yesterday")).await, "/cycle_start");
        invalid(&renew("cycle_start", json!(1_768_478_400)).await, "/cycle_start");
        let user = json!({"email": "ada@acme.com", "team_ids": [crate::operations::NOBODY, 7]});
        invalid(&admin.post("/v1/copilot/users", user).await, "/team_ids/1");

        let name = admin.post(orgs, json!({"name": "  Blue team \n"})).await.ok();
        assert_eq!(name["item"]["name"], "Blue team");
        let name = admin.post(orgs, json!({"name": "é".repeat(255)})).await.ok();
        assert_eq!(name["item"]["name"], "é".repeat(255));
    }
}

/// In the words of who reads them, not of a parser.
#[tokio::test]
async fn what_is_wrong_with_a_body_is_said_in_plain_words() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let (admin, org) = with_org(&gateway).await;
        let team = json!({"org_id": org.rsplit('/').next(), "name": "a"});
        let with = |field: &str, value: Value| {
            let mut body = team.clone();
            body[field] = value;
            admin.post("/v1/copilot/teams", body)
        };
        for (answer, pointer, words) in [
            (admin.post("/v1/copilot/teams", json!({"name": "a"})).await, "/org_id", "is required"),
            (with("name", json!(7)).await, "/name", "must be a string, not integer 7"),
            (with("colour", json!("red")).await, "/colour", "is no field here; there are: "),
            (
                admin.post("/v1/budgets/copilot/cycles/renew", json!({"copy_overrides": 1})).await,
                "/copy_overrides",
                "must be a boolean, not integer 1",
            ),
            (
                admin.post("/v1/budgets/copilot/plans", json!({"name": "a", "cycle": "hourly"})).await,
                "/cycle",
                "must be one of: ",
            ),
        ] {
            invalid(&answer, pointer);
            let detail = answer.json()["errors"][0]["detail"].as_str().unwrap().to_owned();
            assert!(detail.starts_with(words) && !detail.contains('`'), "{pointer}: {detail}");
        }
        let orgs = "/v1/copilot/orgs";
        let twice = admin.request(Method::POST, orgs).header(header::CONTENT_TYPE, "application/json");
        let answer = admin.send(twice.body(r#"{"name": "a", "name": "b"}"#.to_owned())).await;
        invalid(&answer, "/name");
        assert!(answer.text().contains("is given twice"), "{}", answer.text());
    }
}

#[tokio::test]
async fn amounts_are_exact_and_bounded() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        let path = "/v1/budgets/account-allocation";
        let send = async |amount: &str| {
            let body = format!(r#"{{"account_id": "{account}", "monthly_credits": {amount}}}"#);
            let request = gateway.operator().request(Method::POST, path);
            gateway.operator().send(request.header(header::CONTENT_TYPE, "application/json").body(body)).await
        };
        for wrong in [
            "-1",
            "-0.000000001",
            "0.0000000001",
            "9000000000.000000001",
            "9000000001",
            "\"NaN\"",
            "\"\"",
            "\"1,5\"",
            "true",
            "[]",
            "{}",
        ] {
            invalid(&send(wrong).await, "/monthly_credits");
        }
        assert_eq!(refusal(&send("NaN").await, 400, "invalid_json")["status"], 400);
        for (sent, kept) in [
            ("0.1", "0.1"),
            ("\"0.1\"", "0.1"),
            ("1e2", "100"),
            ("12345678.123456789", "12345678.123456789"),
            ("9000000000", "9000000000"),
            ("0", "0"),
            ("-0", "0"),
        ] {
            assert_eq!(send(sent).await.status, StatusCode::OK, "{sent}");
            let text = gateway.operator().get(&format!("{path}?account_id={account}")).await.text();
            assert!(text.contains(&format!(r#""monthly_credits":{kept},"#)), "{sent}: {text}");
        }
    }
}

#[tokio::test]
async fn patches_have_three_states() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let (admin, org) = with_org(&gateway).await;
        let patch = async |body: Value| admin.patch(&org, body).await.ok()["item"].clone();

        assert_eq!(patch(json!({"description": "What for"})).await["description"], "What for");
        let renamed = patch(json!({"name": "Science"})).await;
        assert_eq!(
            (&renamed["name"], &renamed["description"]),
            (&json!("Science"), &json!("What for")),
            "absent keeps"
        );
        let cleared = patch(json!({"description": null})).await;
        assert_eq!((&cleared["name"], &cleared["description"]), (&json!("Science"), &json!(null)), "null clears");
        assert_eq!(patch(json!({})).await["name"], "Science");
    }
}

#[tokio::test]
async fn bodies_that_are_not_json_are_refused() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let (admin, _) = with_org(&gateway).await;
        let send = async |kind: Option<&str>, body: Vec<u8>| {
            let request = admin.request(Method::POST, "/v1/copilot/orgs").body(body);
            let request = kind.into_iter().fold(request, |r, kind| r.header(header::CONTENT_TYPE, kind));
            admin.send(request).await
        };
        let body = |name: &str| json!({"name": name}).to_string().into_bytes();

        for kind in [
            None,
            Some("text/plain"),
            Some("application/x-www-form-urlencoded"),
            Some("application/json; charset=latin1"),
        ] {
            refusal(&send(kind, body("a")).await, 415, "unsupported_media_type");
        }
        for (kind, name) in
            [("application/json; charset=utf-8", "b"), ("Application/JSON", "c"), ("application/merge-patch+json", "d")]
        {
            assert_eq!(send(Some(kind), body(name)).await.status, StatusCode::OK, "{kind}");
        }
        for broken in [&b"{"[..], b"", b"{\"name\": \"e\"} {}", b"\xff\xfe", b"{\"name\": \"\xff\"}", b"{'name': 'e'}"]
        {
            refusal(&send(Some("application/json"), broken.to_vec()).await, 400, "invalid_json");
        }
        let mut large = body("f");
        large.resize(1024 * 1024 + 1, b' ');
        refusal(&send(Some("application/json"), large.clone()).await, 413, "body_too_large");
        large.truncate(1024 * 1024);
        assert_eq!(send(Some("application/json"), large).await.status, StatusCode::OK);
        let twice = br#"{"name": "g", "name": "h"}"#.to_vec();
        assert_eq!(send(Some("application/json"), twice).await.status, StatusCode::UNPROCESSABLE_ENTITY);
        let in_order = br#"["i", null]"#.to_vec();
        refusal(&send(Some("application/json"), in_order).await, 422, "validation_failed");
    }
}

#[tokio::test]
async fn what_does_not_exist_says_so() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let (admin, org) = with_org(&gateway).await;
        for path in [
            "/v1/copilot/orgs/a/b",
            "/v1/copilot/orgs/",
            "/v1/copilot",
            "/v1/accounts/a/b",
            "/v1/budgets/copilot/nothing",
        ] {
            refusal(&admin.get(path).await, 404, "not_found");
            refusal(&gateway.anybody().get(path).await, 404, "not_found");
        }
        // Not ours: the upstream could have it, but not for everybody.
        refusal(&admin.get("/v1/nothing").await, 404, "route_not_governed");
        for path in ["/v1/sales/orgs", "/v1/Copilot/orgs", "/v1/copilot/orgs/%20", "/v1/copilot/orgs/a%00b"] {
            let reply = admin.get(path).await;
            assert!(matches!(reply.status.as_u16(), 400 | 404), "{path}: {}", reply.text());
        }
        for (method, path) in [
            (Method::PUT, &*org),
            (Method::POST, &*org),
            (Method::DELETE, "/v1/copilot/orgs"),
            (Method::PATCH, "/v1/me/context"),
        ] {
            let reply = admin.send(admin.request(method, path)).await;
            refusal(&reply, 405, "method_not_allowed");
            assert!(reply.header("allow").contains("GET"), "{}", reply.header("allow"));
        }
    }
}

#[tokio::test]
async fn queries_are_read_strictly() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let (admin, org) = with_org(&gateway).await;
        let lists: Vec<Operation> =
            operations().into_iter().filter(|o| o.parameters("query").any(|p| p["name"] == "limit")).collect();
        assert!(lists.len() > 15);
        let account = gateway.account("Listed").await;
        let operator = gateway.operator_for(&account);
        for list in &lists {
            let path = list.ask(|_| None).path;
            let path = format!("{path}{}", if path.contains('?') { '&' } else { '?' });
            for wrong in ["0", "-1", "x", "1.5", "", "4294967296"] {
                let reply = operator.get(&format!("{path}limit={wrong}")).await;
                invalid(&reply, "limit");
            }
            let most =
                if list.path.ends_with("-breakdown") || list.path.ends_with("/breakdown") { 10_000 } else { 1_000 };
            invalid(&operator.get(&format!("{path}limit={}", most + 1)).await, "limit");
            let reply = operator.get(&format!("{path}limit={most}")).await;
            assert!(matches!(reply.status.as_u16(), 200 | 404), "{}: {}", list.name(), reply.text());
            if list.parameters("query").any(|p| p["name"] == "cursor") {
                for wrong in ["x", "", "MTpi%20", "%C3%A9"] {
                    invalid(&operator.get(&format!("{path}cursor={wrong}")).await, "cursor");
                }
            }
        }
        invalid(&admin.delete(&format!("{org}?cascade=yes")).await, "cascade");
        invalid(&admin.get("/v1/copilot/models/effective").await, "model_name");
        invalid(&admin.get("/v1/audit?from=yesterday").await, "from");
        invalid(&admin.get("/v1/audit?domain=sales").await, "domain");
        invalid(&admin.get("/v1/costs/breakdown?domain=sales").await, "domain");
        invalid(&admin.get("/v1/budgets/copilot/alerts?threshold=high").await, "threshold");
        invalid(&admin.get("/v1/budgets/copilot/alerts?threshold=-1").await, "threshold");
        invalid(&admin.get("/v1/budgets/copilot/alerts?threshold=NaN").await, "threshold");
    }
}

/// A misspelt filter is not a filter that silently is not there.
#[tokio::test]
async fn unknown_parameters_are_refused_by_name() {
    for backend in backends().await {
        let gateway = with_the_issuer_of_examples(backend).await;
        let account = gateway.account("Acme").await;
        let operator = gateway.operator_for(&account);
        // Identity providers call with whatever they please.
        for operation in operations().into_iter().filter(|operation| operation.name() != LOGOUT) {
            let mut asked = operation.ask(|_| None);
            let joint = if asked.path.contains('?') { '&' } else { '?' };
            asked.path = format!("{}{joint}Limit=1", asked.path);
            let reply = operation.call(&operator, &asked).await;
            invalid(&reply, "Limit");
        }
        let reply = operator.get("/v1/copilot/orgs?limit=1&colour=red").await;
        let detail = "is no query parameter of this operation: it takes cursor, limit, offset";
        assert_eq!(reply.json()["errors"][0], json!({"pointer": "colour", "detail": detail}));
        assert_eq!(operator.get("/v1/copilot/orgs?").await.status, StatusCode::OK);
        assert_eq!(
            operator.send(operator.request(Method::HEAD, "/v1/copilot/orgs?limit=1")).await.status,
            StatusCode::OK
        );
        // Whoever may not call learns nothing about what could be asked.
        assert_eq!(gateway.anybody().get("/v1/copilot/orgs?colour=red").await.status, StatusCode::UNAUTHORIZED);
        let eve = gateway.as_end_user(&account, "eve");
        assert_eq!(eve.get("/v1/copilot/orgs?colour=red").await.status, StatusCode::FORBIDDEN);
    }
}

#[tokio::test]
async fn answers_are_json_that_nobody_keeps() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let (admin, org) = with_org(&gateway).await;
        let reply = admin.get(&org).await;
        assert_eq!(reply.header("content-type"), "application/json");
        assert_eq!(reply.header("cache-control"), "no-store");
        assert!(!reply.header("x-request-id").is_empty());
    }
}
