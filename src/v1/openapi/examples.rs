//! Whole examples of bodies, put together from what the schemas say of their fields.

use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::openapi::path::Operation;
use utoipa::openapi::{Components, Content, RefOr};

use super::EXAMPLE_ID;
use crate::context::Domain;

/// Deeper than any body: a schema that holds itself ends here.
const MAX_DEPTH: u8 = 16;

/// The schemas that examples are made of.
pub(super) struct Examples(Map<String, Value>);

impl Examples {
    pub(super) fn of(components: &Components) -> Self {
        match as_json(&components.schemas) {
            Value::Object(schemas) => Self(schemas),
            _ => Self(Map::new()),
        }
    }

    /// Gives an example to every body that has none, in `domain` if the path is.
    pub(super) fn complete(&self, operation: &mut Operation, domain: Option<Domain>) {
        let body = match &mut operation.request_body {
            Some(RefOr::T(body)) => Some(body.content.values_mut()),
            _ => None,
        };
        let answers = operation.responses.responses.values_mut().filter_map(|response| match response {
            RefOr::T(response) => Some(response.content.values_mut()),
            RefOr::Ref(_) => None,
        });
        for content in body.into_iter().flatten().chain(answers.flatten()) {
            if let RefOr::T(content @ Content { example: None, .. }) = content {
                let Some(schema) = &content.schema else { continue };
                let mut example = self.value(&as_json(schema), "", MAX_DEPTH);
                if let Some(domain) = domain {
                    set_domain(&mut example, domain);
                }
                content.example = Some(example);
            }
        }
    }

    /// What a field called `name` could hold.
    fn value(&self, schema: &Value, name: &str, depth: u8) -> Value {
        let Some(depth) = depth.checked_sub(1) else { return Value::Null };
        if let Some(own) = own_example(schema) {
            return own;
        }
        if let Some(of) = schema["$ref"].as_str().and_then(|at| at.rsplit('/').next()) {
            return self.0.get(of).map_or(Value::Null, |schema| self.value(schema, name, depth));
        }
        let first = schema["oneOf"].as_array().or_else(|| schema["anyOf"].as_array()).and_then(|all| all.first());
        if let Some(first) = first {
            return self.value(first, name, depth);
        }
        if let Some(parts) = schema["allOf"].as_array() {
            let objects = parts.iter().map(|part| self.value(part, name, depth));
            return objects.filter_map(|object| object.as_object().cloned()).flatten().collect::<Map<_, _>>().into();
        }
        let (kind, nullable) = match &schema["type"] {
            Value::Array(kinds) => (kinds.first().and_then(Value::as_str), true),
            kind => (kind.as_str(), false),
        };
        match kind {
            Some("object") => {
                let fields = schema["properties"].as_object().into_iter().flatten();
                fields
                    .map(|(field, schema)| (field.clone(), self.value(schema, field, depth)))
                    .collect::<Map<_, _>>()
                    .into()
            }
            Some("array") => json!([self.value(&schema["items"], name, depth)]),
            Some("string") if name == "id" || name.ends_with("_id") || name.ends_with("_ids") => json!(EXAMPLE_ID),
            _ if nullable => Value::Null,
            Some("string") => json!("text"),
            Some("boolean") => json!(true),
            Some("integer" | "number") => json!(1),
            _ => Value::Null,
        }
    }
}

/// The example, default or first choice that a schema names itself.
fn own_example(schema: &Value) -> Option<Value> {
    let first = |key: &str| schema[key].as_array().and_then(|all| all.first());
    schema
        .get("example")
        .or_else(|| first("examples"))
        .or_else(|| schema.get("default"))
        .or_else(|| first("enum"))
        .cloned()
}

/// An example below `/v1/copilot` is one of copilot.
fn set_domain(example: &mut Value, domain: Domain) {
    match example {
        Value::Object(fields) => fields.iter_mut().for_each(|(name, value)| match value {
            Value::String(text) if name == "domain" && text.parse::<Domain>().is_ok() => {
                *text = domain.as_str().to_owned();
            }
            value => set_domain(value, domain),
        }),
        Value::Array(items) => items.iter_mut().for_each(|item| set_domain(item, domain)),
        _ => {}
    }
}

/// What cannot be written as JSON has no example.
fn as_json(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}
