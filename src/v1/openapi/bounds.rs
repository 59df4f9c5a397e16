//! What a parameter's text may hold, where its type does not say it.

use utoipa::openapi::path::{Operation, Parameter, ParameterIn};
use utoipa::openapi::schema::{Object, SchemaType, Type};
use utoipa::openapi::{RefOr, Schema};

/// A part of a path: what the gateway's path rules let through.
const IN_PATH: &str = r"^[^\x00-\x20/\\%;?#\x7f]{1,255}$";
/// An id in a query.
const ID: &str = "^[!-~]{1,255}$";
/// A header that is one value: an id without a comma.
const ONE_VALUE: &str = r"^[!-+\--~]{1,255}$";
/// Any text of the caller's.
const VISIBLE: &str = "^[ -~]{1,255}$";

/// Bounds the parameters of `operation`.
pub(super) fn bound(operation: &mut Operation) {
    for parameter in operation.parameters.iter_mut().flatten() {
        if let RefOr::T(Parameter { name, parameter_in, schema: Some(RefOr::T(Schema::Object(schema))), .. }) =
            parameter
        {
            schema.schema_type = without_null(&schema.schema_type);
            bound_text(name, parameter_in, schema);
            bound_count(schema);
        }
    }
}

/// A parameter is sent or left out: it is never null.
fn without_null(kind: &SchemaType) -> SchemaType {
    let SchemaType::Array(kinds) = kind else { return kind.clone() };
    let mut rest = kinds.iter().filter(|kind| **kind != Type::Null);
    match (rest.next(), rest.next()) {
        (Some(one), None) => SchemaType::Type(one.clone()),
        _ => kind.clone(),
    }
}

fn bound_text(name: &str, place: &ParameterIn, schema: &mut Object) {
    let free = schema.pattern.is_none() && schema.format.is_none() && schema.enum_values.is_none();
    if !free || schema.schema_type != SchemaType::Type(Type::String) {
        return;
    }
    let pattern = match place {
        ParameterIn::Path => IN_PATH,
        // An empty `scope_id` is none.
        ParameterIn::Query if name.ends_with("_id") && name != "scope_id" => ID,
        ParameterIn::Header if name == "x-account-id" || name.starts_with("x-alchemi-") => ONE_VALUE,
        ParameterIn::Header if name == "idempotency-key" => VISIBLE,
        _ => return,
    };
    schema.pattern = Some(pattern.to_owned());
}

/// A format of signed integers is too narrow for what cannot be negative.
fn bound_count(schema: &mut Object) {
    let counts = schema.schema_type == SchemaType::Type(Type::Integer) && schema.minimum.is_some();
    if counts && schema.maximum.is_none() {
        schema.format = None;
    }
}
