//! Which parameters an operation takes in its query: those that its description lists,
//! and no other. A misspelt filter would else be a filter that silently is not there.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use axum::extract::MatchedPath;
use http::Method;
use http::request::Parts;
use utoipa::openapi::path::{Operation, ParameterIn};
use utoipa::openapi::{OpenApi, RefOr};

use super::openapi;
use crate::problem::Problem;

/// The names of every operation's parameters, by method and path.
#[derive(Debug, Clone, Default)]
pub(super) struct Parameters(Arc<HashMap<(Method, String), BTreeSet<String>>>);

impl Parameters {
    /// Those of the routes that `description` describes.
    pub(super) fn of(description: &OpenApi) -> Self {
        let paths = description.paths.paths.iter();
        let operations = paths.flat_map(|(path, item)| {
            openapi::operations(&mut item.clone())
                .map(|(method, operation)| ((method, path.clone()), names(operation)))
                .collect::<Vec<_>>()
        });
        Self(Arc::new(operations.collect()))
    }

    /// Refuses a query with a name that the request's operation does not know.
    ///
    /// # Errors
    /// 422 at the name.
    pub(super) fn check(&self, parts: &Parts) -> Result<(), Problem> {
        let (Some(query), Some(path)) = (parts.uri.query(), parts.extensions.get::<MatchedPath>()) else {
            return Ok(());
        };
        // Where an embedder mounts the routes is no part of their description.
        let path = path.as_str();
        let path = path.rfind("/v1/").and_then(|at| path.get(at..)).unwrap_or(path);
        let method = if parts.method == Method::HEAD { Method::GET } else { parts.method.clone() };
        let Some(known) = self.0.get(&(method, path.to_owned())) else { return Ok(()) };
        let unknown = url::form_urlencoded::parse(query.as_bytes()).find(|(name, _)| !known.contains(&**name));
        unknown.map_or(Ok(()), |(name, _)| Err(refusal(&name, known)))
    }
}

fn names(operation: &Operation) -> BTreeSet<String> {
    let in_query = |parameter: &RefOr<_>| match parameter {
        RefOr::T(utoipa::openapi::path::Parameter { name, parameter_in: ParameterIn::Query, .. }) => Some(name.clone()),
        _ => None,
    };
    operation.parameters.iter().flatten().filter_map(in_query).collect()
}

fn refusal(name: &str, known: &BTreeSet<String>) -> Problem {
    let takes = match known.len() {
        0 => "it takes none".to_owned(),
        _ => format!("it takes {}", known.iter().map(String::as_str).collect::<Vec<_>>().join(", ")),
    };
    Problem::invalid(name, format!("is no query parameter of this operation: {takes}"))
}
