//! References inside of a body to what the upstream keeps, of whichever tenant: files, containers,
//! items of stored responses. It keeps all of them under the one credential of the gateway, so that
//! an id would be enough to read another tenant's.

use std::sync::LazyLock;

use memchr::memmem::Finder;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::json::invalid_json;
use super::{AskError, AskRules};
use crate::model::usage::RouteKind;

/// What of a body holds contents.
#[derive(Deserialize)]
struct Contents {
    #[serde(default)]
    messages: Value,
    #[serde(default)]
    input: Value,
}

/// Refuses references that `forbidden_fields` names: `file_id`, `item_reference`, and with `container`
/// those of tools.
///
/// # Errors
/// [`AskError::FieldNotAllowed`].
pub(super) fn check(kind: RouteKind, body: &str, tools: Option<&RawValue>, rules: &AskRules) -> Result<(), AskError> {
    if let Some(tools) =
        tools.filter(|tools| may_name_a_container(tools.get()) && rules.forbidden_fields.hold("container"))
    {
        check_containers(&parsed(tools.get())?)?;
    }
    if !may_refer(kind, body) {
        return Ok(());
    }
    let Contents { messages, input } = parsed(body)?;
    if kind == RouteKind::Responses && rules.forbidden_fields.hold("item_reference") {
        let items = input.as_array().map(Vec::as_slice).unwrap_or_default();
        if items.iter().any(is_item_reference) {
            return Err(AskError::FieldNotAllowed("input.item_reference".into()));
        }
    }
    if rules.forbidden_fields.hold("file_id") && (names_a_file("", &messages) || names_a_file("", &input)) {
        return Err(AskError::FieldNotAllowed("file_id".into()));
    }
    Ok(())
}

/// What cannot be read here may be read by the upstream: numbers that are too large, halves of characters.
fn parsed<'a, T: Deserialize<'a>>(json: &'a str) -> Result<T, AskError> {
    serde_json::from_str(json).map_err(|error| invalid_json(&error))
}

/// Most bodies hold nothing of the kind, and are read once alone. A name may be written with escapes;
/// an item of a response is a reference also if it says nothing but its id.
fn may_refer(kind: RouteKind, body: &str) -> bool {
    static SIGNS: LazyLock<[Finder<'static>; 3]> = LazyLock::new(|| ["file_id", "\\u00", "\"id\""].map(Finder::new));
    let [file, escape, id] = &*SIGNS;
    let holds = |sign: &Finder<'_>| sign.find(body.as_bytes()).is_some();
    holds(file) || holds(escape) || (kind == RouteKind::Responses && holds(id))
}

fn may_name_a_container(tools: &str) -> bool {
    tools.contains("container") || tools.contains("\\u00")
}

/// A container of one's own is made by the way; one that is named is somebody's.
fn check_containers(tools: &Value) -> Result<(), AskError> {
    for tool in tools.as_array().into_iter().flatten() {
        match tool.get("container") {
            Some(Value::String(_)) => return Err(AskError::FieldNotAllowed("tools.container".into())),
            Some(Value::Object(own)) if own.contains_key("file_ids") => {
                return Err(AskError::FieldNotAllowed("tools.container.file_ids".into()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// `{"type": "item_reference", "id": …}`, of which the type may be left out.
fn is_item_reference(item: &Value) -> bool {
    match item.get("type") {
        Some(Value::String(kind)) => kind == "item_reference",
        None | Some(Value::Null) => item.get("id").is_some() && item.get("role").is_none(),
        Some(_) => true,
    }
}

/// Whether a part of a content is a file by its id. What a model asked a tool for may have any names.
fn names_a_file(place: &str, value: &Value) -> bool {
    match value {
        Value::Array(items) => items.iter().any(|item| names_a_file(place, item)),
        Value::Object(members) => {
            let kind = members.get("type").and_then(Value::as_str).unwrap_or_default();
            let is_file = matches!(place, "file" | "source" | "image_file")
                || matches!(kind, "input_file" | "input_image" | "file" | "image_file" | "container_upload");
            if is_file && members.contains_key("file_id") {
                return true;
            }
            let is_call = kind.ends_with("tool_use") || kind.ends_with("_call");
            members.iter().any(|(name, member)| !(is_call && name == "input") && names_a_file(name, member))
        }
        _ => false,
    }
}
