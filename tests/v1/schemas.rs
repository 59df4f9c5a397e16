//! What the description says that bodies look like, held against bodies.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::operations::operations;

/// The schemas of the description.
pub(crate) struct Schemas(Value);

impl Schemas {
    pub(crate) fn of_the_description() -> Self {
        Self(serde_json::to_value(alchemi::v1::description()).unwrap()["components"].clone())
    }

    /// What about `value` does not fit `schema`; nothing, if it does.
    pub(crate) fn misfits(&self, schema: &Value, value: &Value) -> Vec<String> {
        let document = json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "allOf": [schema],
            "components": self.0,
        });
        let validator = jsonschema::options().should_validate_formats(true).build(&document).unwrap();
        validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect()
    }
}

#[test]
fn examples_fit_their_schemas() {
    let schemas = Schemas::of_the_description();
    let (mut broken, mut seen) = (String::new(), 0);
    for operation in operations() {
        let bodies = [&operation.described["requestBody"], &operation.described["responses"]["200"]];
        for (kind, content) in bodies.iter().filter_map(|body| body["content"].as_object()).flatten() {
            for misfit in schemas.misfits(&content["schema"], &content["example"]) {
                writeln!(broken, "{}, {kind}: {misfit}", operation.name()).unwrap();
            }
            seen += 1;
        }
    }
    assert!(broken.is_empty(), "\n{broken}");
    assert!(seen > 200, "{seen}");
}

#[test]
fn what_does_not_fit_is_found() {
    let schemas = Schemas::of_the_description();
    let org = json!({"$ref": "#/components/schemas/Org"});
    let whole = json!({"id": "a", "account_id": "b", "domain": "copilot", "name": "c", "is_default_global": false,
        "created_at": "2026-01-31T08:00:00Z", "updated_at": "2026-01-31T08:00:00Z"});
    assert_eq!(schemas.misfits(&org, &whole), [""; 0]);
    for (field, wrong) in [("name", json!(1)), ("domain", json!("sales")), ("created_at", json!("yesterday"))] {
        let mut broken = whole.clone();
        broken[field] = wrong;
        assert_eq!(schemas.misfits(&org, &broken).len(), 1, "{field}");
    }
    assert_eq!(schemas.misfits(&org, &json!({})).len(), 7);
}
