//! `/management/v1`, for instances without the v2 services.
//!
//! An organisation is chosen by the header `x-zitadel-orgid`; without it, the service
//! user's own is meant.

use http::Method;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Value, json};

use super::error::Error;
use super::transport::{Ask, Transport};
use super::v2::{CANDIDATES, PAGE, PAGES, Role, Users, email_query, with_email};
use super::{FoundUser, NewGrant, Operation, ProjectGrant, ProjectRole, UserGrant};

/// What stands for itself in a segment of a path (RFC 3986 section 2.3).
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

fn path(segments: &[&str]) -> String {
    let mut path = "/management/v1".to_owned();
    for segment in segments {
        path.push('/');
        path.extend(utf8_percent_encode(segment, SEGMENT));
    }
    path
}

async fn call<T: DeserializeOwned>(
    at: &Transport,
    operation: Operation,
    method: Method,
    segments: &[&str],
    organization: Option<&str>,
    body: Option<Value>,
) -> Result<T, Error> {
    // A URL resolves these, however they are written: they would name another resource.
    if segments.iter().any(|segment| matches!(*segment, "" | "." | "..")) {
        return Err(Error::no_such_id());
    }
    at.call(Ask { operation, method, path: path(segments), organization, body }).await
}

async fn all<T: DeserializeOwned>(
    at: &Transport,
    operation: Operation,
    segments: &[&str],
    organization: &str,
    queries: Vec<Value>,
) -> Result<Vec<T>, Error> {
    #[derive(Deserialize)]
    #[serde(bound = "T: DeserializeOwned")]
    struct Listed<T> {
        #[serde(default = "Vec::new")]
        result: Vec<T>,
    }
    let mut found = Vec::new();
    for _ in 0..PAGES {
        let query = json!({"offset": found.len().to_string(), "limit": PAGE, "asc": true});
        let body = json!({"query": query, "queries": queries});
        let page: Listed<T> = call(at, operation, Method::POST, segments, Some(organization), Some(body)).await?;
        let last = page.result.len() < PAGE;
        found.extend(page.result);
        if last {
            break;
        }
    }
    Ok(found)
}

/// Zitadel's way of saying that all is as it should be.
fn changed(outcome: Result<IgnoredAny, Error>) -> Result<(), Error> {
    match outcome {
        Err(error) if !error.not_changed() => Err(error),
        _ => Ok(()),
    }
}

pub(super) async fn project_owner(at: &Transport, project: &str, hint: Option<&str>) -> Result<String, Error> {
    #[derive(Deserialize)]
    struct Got {
        project: Project,
    }
    #[derive(Deserialize)]
    struct Project {
        details: Details,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Details {
        resource_owner: String,
    }
    let segments = ["projects", project];
    let mut got: Result<Got, _> = call(at, Operation::GetProject, Method::GET, &segments, None, None).await;
    if hint.is_some() && got.as_ref().is_err_and(Error::not_found) {
        got = call(at, Operation::GetProject, Method::GET, &segments, hint, None).await;
    }
    Ok(got?.project.details.resource_owner)
}

pub(super) async fn roles(at: &Transport, project: &str, owner: &str) -> Result<Vec<ProjectRole>, Error> {
    let segments = ["projects", project, "roles", "_search"];
    let roles: Vec<Role> = all(at, Operation::ListRoles, &segments, owner, Vec::new()).await?;
    Ok(roles.into_iter().map(ProjectRole::from).collect())
}

pub(super) async fn add_role(at: &Transport, project: &str, owner: &str, role: &ProjectRole) -> Result<(), Error> {
    let mut body = json!({"roleKey": role.key, "displayName": role.display_name});
    if let (Some(body), Some(group)) = (body.as_object_mut(), &role.group) {
        body.insert("group".to_owned(), json!(group));
    }
    let segments = ["projects", project, "roles"];
    call::<IgnoredAny>(at, Operation::AddRole, Method::POST, &segments, Some(owner), Some(body)).await.map(drop)
}

pub(super) async fn project_grants(at: &Transport, project: &str, owner: &str) -> Result<Vec<ProjectGrant>, Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Grant {
        grant_id: String,
        granted_org_id: String,
        #[serde(default)]
        granted_role_keys: Vec<String>,
    }
    let segments = ["projects", project, "grants", "_search"];
    let grants: Vec<Grant> = all(at, Operation::ListProjectGrants, &segments, owner, Vec::new()).await?;
    let read = |grant: Grant| ProjectGrant {
        id: Some(grant.grant_id),
        organization: grant.granted_org_id,
        role_keys: grant.granted_role_keys,
    };
    Ok(grants.into_iter().map(read).collect())
}

pub(super) async fn add_project_grant(
    at: &Transport,
    project: &str,
    owner: &str,
    organization: &str,
    role_keys: &[String],
) -> Result<(), Error> {
    let body = json!({"grantedOrgId": organization, "roleKeys": role_keys});
    let segments = ["projects", project, "grants"];
    let operation = Operation::AddProjectGrant;
    call::<IgnoredAny>(at, operation, Method::POST, &segments, Some(owner), Some(body)).await.map(drop)
}

pub(super) async fn set_project_grant(
    at: &Transport,
    project: &str,
    owner: &str,
    grant: &ProjectGrant,
    role_keys: &[String],
) -> Result<(), Error> {
    let id = grant.id.as_deref().ok_or(Error::Malformed)?;
    let segments = ["projects", project, "grants", id];
    let body = json!({"roleKeys": role_keys});
    changed(call(at, Operation::UpdateProjectGrant, Method::PUT, &segments, Some(owner), Some(body)).await)
}

pub(super) async fn grants(
    at: &Transport,
    project: &str,
    organization: &str,
    user: Option<&str>,
) -> Result<Vec<UserGrant>, Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Grant {
        id: String,
        user_id: String,
        project_id: String,
        org_id: String,
        #[serde(default)]
        role_keys: Vec<String>,
        #[serde(default)]
        state: String,
    }
    let mut queries = vec![json!({"projectIdQuery": {"projectId": project}})];
    queries.extend(user.map(|user| json!({"userIdQuery": {"userId": user}})));
    let segments = ["users", "grants", "_search"];
    let found: Vec<Grant> = all(at, Operation::ListGrants, &segments, organization, queries).await?;
    let read = |grant: Grant| UserGrant {
        id: grant.id,
        user: grant.user_id,
        project: grant.project_id,
        organization: grant.org_id,
        role_keys: grant.role_keys,
        active: grant.state != "USER_GRANT_STATE_INACTIVE",
    };
    Ok(found.into_iter().map(read).collect())
}

pub(super) async fn add_grant(
    at: &Transport,
    grant: &NewGrant<'_>,
    project_grant: Option<&str>,
) -> Result<String, Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Created {
        user_grant_id: String,
    }
    let mut body = json!({"projectId": grant.project, "roleKeys": grant.role_keys});
    if let (Some(body), Some(id)) = (body.as_object_mut(), project_grant) {
        body.insert("projectGrantId".to_owned(), json!(id));
    }
    let segments = ["users", grant.user, "grants"];
    let (method, org) = (Method::POST, Some(grant.organization));
    let created: Created = call(at, Operation::AddGrant, method, &segments, org, Some(body)).await?;
    Ok(created.user_grant_id)
}

pub(super) async fn set_grant(at: &Transport, grant: &UserGrant, role_keys: &[String]) -> Result<(), Error> {
    let segments = ["users", &grant.user, "grants", &grant.id];
    let (body, org) = (json!({"roleKeys": role_keys}), Some(grant.organization.as_str()));
    changed(call(at, Operation::UpdateGrant, Method::PUT, &segments, org, Some(body)).await)
}

pub(super) async fn remove_grant(at: &Transport, grant: &UserGrant) -> Result<(), Error> {
    let segments = ["users", &grant.user, "grants", &grant.id];
    let org = Some(grant.organization.as_str());
    let gone: Result<IgnoredAny, _> = call(at, Operation::RemoveGrant, Method::DELETE, &segments, org, None).await;
    match gone {
        Err(error) if !error.not_found() => Err(error),
        _ => Ok(()),
    }
}

pub(super) async fn users_with_email(
    at: &Transport,
    email: &str,
    organization: Option<&str>,
) -> Result<Vec<FoundUser>, Error> {
    let body = json!({"query": {"limit": CANDIDATES, "asc": true}, "queries": [email_query(email)]});
    let segments = ["users", "_search"];
    let users: Users = call(at, Operation::FindUsers, Method::POST, &segments, organization, Some(body)).await?;
    Ok(with_email(users.result, email))
}
