//! Which parameters an operation takes: those that its description lists, and no other. A
//! misspelt filter would else be a filter that silently is not there, and a version that
//! nothing is compared with would look as if it had fitted.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use axum::extract::MatchedPath;
use http::request::Parts;
use http::{Method, StatusCode};
use utoipa::openapi::path::{Operation, Parameter, ParameterIn};
use utoipa::openapi::{OpenApi, RefOr};

use super::openapi;
use crate::problem::Problem;

/// Every operation's parameters, by method and path.
#[derive(Debug, Clone, Default)]
pub(super) struct Parameters(Arc<HashMap<(Method, String), Known>>);

#[derive(Debug)]
struct Known {
    /// Names in the query.
    query: BTreeSet<String>,
    /// Whether it compares `If-Match` with a version.
    versioned: bool,
}

impl Parameters {
    /// Those of the routes that `description` describes.
    pub(super) fn of(description: &OpenApi) -> Self {
        let paths = description.paths.paths.iter();
        let operations = paths.flat_map(|(path, item)| {
            openapi::operations(&mut item.clone())
                .map(|(method, operation)| ((method, path.clone()), Known::of(operation)))
                .collect::<Vec<_>>()
        });
        Self(Arc::new(operations.collect()))
    }

    /// Refuses a query with a name that the request's operation does not know, and a change
    /// of what has no versions under the condition that it has one.
    ///
    /// # Errors
    /// 422 at the name, 412.
    pub(super) fn check(&self, parts: &Parts, if_match: Option<&str>) -> Result<(), Problem> {
        let Some(path) = parts.extensions.get::<MatchedPath>() else { return Ok(()) };
        // Where an embedder mounts the routes is no part of their description.
        let path = path.as_str();
        let path = path.rfind("/v1/").and_then(|at| path.get(at..)).unwrap_or(path);
        let method = if parts.method == Method::HEAD { Method::GET } else { parts.method.clone() };
        let changes = method != Method::GET && method != Method::POST;
        let Some(known) = self.0.get(&(method, path.to_owned())) else { return Ok(()) };
        if changes && !known.versioned && if_match.is_some_and(|tag| tag.trim() != "*") {
            return Err(unversioned());
        }
        let mut query = url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes());
        let unknown = query.find(|(name, _)| !known.query.contains(&**name));
        unknown.map_or(Ok(()), |(name, _)| Err(refusal(&name, &known.query)))
    }
}

impl Known {
    fn of(operation: &Operation) -> Self {
        let in_query = |parameter: &RefOr<_>| match parameter {
            RefOr::T(Parameter { name, parameter_in: ParameterIn::Query, .. }) => Some(name.clone()),
            _ => None,
        };
        let query = operation.parameters.iter().flatten().filter_map(in_query).collect();
        Self { query, versioned: openapi::takes_if_match(operation) }
    }
}

fn unversioned() -> Problem {
    let detail = "This has no versions that If-Match could be compared with: send the request without it";
    Problem::new(StatusCode::PRECONDITION_FAILED, "version_mismatch", detail)
}

fn refusal(name: &str, known: &BTreeSet<String>) -> Problem {
    let takes = match known.len() {
        0 => "it takes none".to_owned(),
        _ => format!("it takes {}", known.iter().map(String::as_str).collect::<Vec<_>>().join(", ")),
    };
    Problem::invalid(name, format!("is no query parameter of this operation: {takes}"))
}
