//! The calls themselves, in both styles. Field names are those of Zitadel's protos; a field that is not known is
//! refused, so that a misspelt one does not pass unnoticed.

use std::time::Instant;

use serde_json::{Map, Value, json};

use super::world::{Grant, ProjectGrant, World};
use super::{Code, Refusal, refuse};

const DATE: &str = "2026-01-15T12:00:00.000000Z";

/// A body, of which every field must be asked for.
struct Body<'a> {
    fields: &'a Map<String, Value>,
}

impl<'a> Body<'a> {
    fn of(value: &'a Value, known: &[&str]) -> Result<Self, Refusal> {
        let Some(fields) = value.as_object() else {
            return refuse(Code::InvalidArgument, "CONNECT-1", "not a JSON object");
        };
        match fields.keys().find(|key| !known.contains(&key.as_str())) {
            Some(unknown) => refuse(Code::InvalidArgument, "CONNECT-2", format!("unknown field \"{unknown}\"")),
            None => Ok(Self { fields }),
        }
    }

    fn text(&self, name: &str) -> Result<&'a str, Refusal> {
        match self.fields.get(name).and_then(Value::as_str) {
            Some(text) if !text.is_empty() && text.len() <= 200 => Ok(text),
            _ => refuse(Code::InvalidArgument, "VALID-1", format!("{name}: value length must be 1 to 200 runes")),
        }
    }

    fn texts(&self, name: &str) -> Result<Vec<String>, Refusal> {
        let Some(items) = self.fields.get(name) else { return Ok(Vec::new()) };
        let texts: Option<Vec<String>> =
            items.as_array().map(|items| items.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect());
        let texts = texts.unwrap_or_default();
        let unique: std::collections::BTreeSet<_> = texts.iter().collect();
        if unique.len() == texts.len() && texts.iter().all(|text| !text.is_empty()) {
            return Ok(texts);
        }
        refuse(Code::InvalidArgument, "VALID-2", format!("{name}: must be unique and not empty"))
    }

    fn optional(&self, name: &str) -> &'a str {
        self.fields.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    fn list(&self, name: &str) -> &'a [Value] {
        self.fields.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }
}

/// The one member of a filter, with its value.
fn filter(value: &Value) -> Result<(&str, &Value), Refusal> {
    match value.as_object().map(|fields| fields.iter().collect::<Vec<_>>()).as_deref() {
        Some([(name, value)]) => Ok((name.as_str(), *value)),
        _ => refuse(Code::InvalidArgument, "VALID-3", "filter: value is required"),
    }
}

/// A page: offset and limit may be numbers or strings, as uint64 is in JSON.
fn page<T>(items: Vec<T>, paging: &Value) -> Result<(usize, Vec<T>), Refusal> {
    if !paging.is_null() {
        Body::of(paging, &["offset", "limit", "asc"]).map(|_| ())?;
    }
    let number = |name: &str| {
        let value = &paging[name];
        value.as_u64().or_else(|| value.as_str()?.parse().ok()).map(|n| usize::try_from(n).unwrap())
    };
    let limit = number("limit").unwrap_or(100);
    if limit > 1_000 {
        return refuse(Code::InvalidArgument, "QUERY-4M0fs", "limit is larger than 1000");
    }
    let total = items.len();
    Ok((total, items.into_iter().skip(number("offset").unwrap_or(0)).take(limit).collect()))
}

fn paged(total: usize) -> Value {
    json!({"totalResult": total.to_string(), "appliedLimit": "100"})
}

fn listed(total: usize) -> Value {
    json!({"totalResult": total.to_string(), "processedSequence": "1", "viewTimestamp": DATE})
}

/// A v2 Connect call.
pub(super) fn connect(world: &mut World, path: &str, body: &Value) -> Result<Value, Refusal> {
    match path.trim_start_matches('/').split_once('/') {
        Some(("zitadel.project.v2.ProjectService", method)) => projects(world, method, body),
        Some(("zitadel.authorization.v2.AuthorizationService", method)) => authorizations(world, method, body),
        Some(("zitadel.user.v2.UserService", "ListUsers")) => users(world, body, None),
        _ => refuse(Code::Unimplemented, "CONNECT-3", "no such method"),
    }
}

fn projects(world: &mut World, method: &str, body: &Value) -> Result<Value, Refusal> {
    match method {
        "GetProject" => {
            let id = Body::of(body, &["projectId"])?.text("projectId")?;
            let project = world.project(id)?;
            Ok(json!({"project": {
                "projectId": id, "organizationId": project.org, "name": project.name, "creationDate": DATE,
                "changeDate": DATE, "state": "PROJECT_STATE_ACTIVE",
            }}))
        }
        "AddProjectRole" => {
            let body = Body::of(body, &["projectId", "roleKey", "displayName", "group"])?;
            let (key, display) = (body.text("roleKey")?, body.text("displayName")?);
            world.add_role(body.text("projectId")?, key, display, body.optional("group"))?;
            Ok(json!({"creationDate": DATE}))
        }
        "ListProjectRoles" => {
            let parts = Body::of(body, &["projectId", "pagination", "sortingColumn", "filters"])?;
            let id = parts.text("projectId")?;
            let (total, roles) = page(role_list(world, id)?, &body["pagination"])?;
            let roles: Vec<Value> = roles
                .into_iter()
                .map(|(key, name, group)| {
                    json!({"projectId": id, "key": key, "displayName": name, "group": group, "creationDate": DATE})
                })
                .collect();
            Ok(json!({"pagination": paged(total), "projectRoles": roles}))
        }
        "CreateProjectGrant" => {
            let body = Body::of(body, &["projectId", "grantedOrganizationId", "roleKeys"])?;
            let org = body.text("grantedOrganizationId")?;
            world.add_project_grant(body.text("projectId")?, org, body.texts("roleKeys")?)?;
            Ok(json!({"creationDate": DATE}))
        }
        "UpdateProjectGrant" => {
            let body = Body::of(body, &["projectId", "grantedOrganizationId", "roleKeys"])?;
            let org = body.text("grantedOrganizationId")?;
            world.set_project_grant(body.text("projectId")?, org, body.texts("roleKeys")?)?;
            Ok(json!({"changeDate": DATE}))
        }
        "ListProjectGrants" => {
            let parts = Body::of(body, &["pagination", "sortingColumn", "filters"])?;
            let mut grants = project_grant_list(world);
            for one in parts.list("filters") {
                match filter(one)? {
                    ("inProjectIdsFilter", value) => {
                        let ids = Body::of(value, &["ids"])?.texts("ids")?;
                        grants.retain(|grant| ids.contains(&grant.project));
                    }
                    ("grantedOrganizationIdFilter", value) => {
                        let id = Body::of(value, &["id"])?.text("id")?;
                        grants.retain(|grant| grant.org == id);
                    }
                    (other, _) => return refuse(Code::InvalidArgument, "CONNECT-2", format!("unknown field {other}")),
                }
            }
            let (total, grants) = page(grants, &body["pagination"])?;
            let shown: Vec<Value> = grants
                .into_iter()
                .map(|grant| {
                    json!({
                        "organizationId": world.projects[&grant.project].org, "grantedOrganizationId": grant.org,
                        "projectId": grant.project, "grantedRoleKeys": grant.roles,
                        "state": "PROJECT_GRANT_STATE_ACTIVE",
                    })
                })
                .collect();
            Ok(json!({"pagination": paged(total), "projectGrants": shown}))
        }
        _ => refuse(Code::Unimplemented, "CONNECT-3", "no such method"),
    }
}

fn role_list(world: &World, project: &str) -> Result<Vec<(String, String, String)>, Refusal> {
    let now = Instant::now();
    let roles = &world.project(project)?.roles;
    let shown = roles.iter().filter(|(_, (_, _, from))| *from <= now);
    Ok(shown.map(|(key, (name, group, _))| (key.clone(), name.clone(), group.clone())).collect())
}

fn project_grant_list(world: &World) -> Vec<ProjectGrant> {
    let now = Instant::now();
    let shown = |grant: &ProjectGrant| match grant.shown_from <= now {
        true => Some(grant.clone()),
        false => Some(ProjectGrant { roles: grant.before.clone()?, ..grant.clone() }),
    };
    world.project_grants.iter().filter_map(shown).collect()
}

fn authorizations(world: &mut World, method: &str, body: &Value) -> Result<Value, Refusal> {
    match method {
        "CreateAuthorization" => {
            let body = Body::of(body, &["userId", "projectId", "organizationId", "roleKeys"])?;
            let (user, project, org) = (body.text("userId")?, body.text("projectId")?, body.text("organizationId")?);
            let id = world.add_grant(user, project, org, body.texts("roleKeys")?)?;
            Ok(json!({"id": id, "creationDate": DATE}))
        }
        "UpdateAuthorization" => {
            let body = Body::of(body, &["id", "roleKeys"])?;
            world.set_grant(body.text("id")?, body.texts("roleKeys")?)?;
            Ok(json!({"changeDate": DATE}))
        }
        "DeleteAuthorization" => {
            let id = Body::of(body, &["id"])?.text("id")?;
            // What is gone is gone already.
            Ok(world.remove_grant(id).map_or_else(|_| json!({}), |()| json!({"deletionDate": DATE})))
        }
        "ListAuthorizations" => {
            let parts = Body::of(body, &["pagination", "sortingColumn", "filters"])?;
            let mut grants = world.listed_grants();
            for one in parts.list("filters") {
                match filter(one)? {
                    ("inUserIds", value) => {
                        let ids = Body::of(value, &["ids"])?.texts("ids")?;
                        grants.retain(|grant| ids.contains(&grant.user));
                    }
                    ("projectId", value) => {
                        let id = Body::of(value, &["id"])?.text("id")?;
                        grants.retain(|grant| grant.project == id);
                    }
                    ("organizationId", value) => {
                        let id = Body::of(value, &["id"])?.text("id")?;
                        grants.retain(|grant| grant.org == id);
                    }
                    (other, _) => return refuse(Code::InvalidArgument, "CONNECT-2", format!("unknown field {other}")),
                }
            }
            let (total, grants) = page(grants, &body["pagination"])?;
            let shown: Vec<Value> = grants.iter().map(|grant| authorization(world, grant)).collect();
            Ok(json!({"pagination": paged(total), "authorizations": shown}))
        }
        _ => refuse(Code::Unimplemented, "CONNECT-3", "no such method"),
    }
}

fn authorization(world: &World, grant: &Grant) -> Value {
    let project = &world.projects[&grant.project];
    let roles: Vec<Value> = grant.roles.iter().map(|key| json!({"key": key, "displayName": key})).collect();
    let org = world.orgs.get(&grant.org).cloned().unwrap_or_default();
    json!({
        "id": grant.id, "creationDate": DATE, "changeDate": DATE,
        "project": {"id": grant.project, "name": project.name, "organizationId": project.org},
        "organization": {"id": grant.org, "name": org},
        "user": {"id": grant.user, "preferredLoginName": world.users.get(&grant.user).map(|u| u.email.clone())},
        "state": if grant.active { "STATE_ACTIVE" } else { "STATE_INACTIVE" },
        "roles": roles,
    })
}

/// `/v2/users`, `ListUsers`, and `/management/v1/users/_search`, which is one of an organisation.
fn users(world: &World, body: &Value, organization: Option<&str>) -> Result<Value, Refusal> {
    let parts = Body::of(body, &["query", "sortingColumn", "queries"])?;
    let mut found: Vec<_> =
        world.users.iter().filter(|(_, user)| organization.is_none_or(|org| user.org == org)).collect();
    for one in parts.list("queries") {
        match filter(one)? {
            ("emailQuery", value) => {
                let query = Body::of(value, &["emailAddress", "method"])?;
                let (address, method) = (query.text("emailAddress")?, query.optional("method"));
                // The first of an enum is left out of JSON.
                if !["", "TEXT_QUERY_METHOD_EQUALS", "TEXT_QUERY_METHOD_EQUALS_IGNORE_CASE"].contains(&method) {
                    return refuse(Code::InvalidArgument, "VALID-4", "the stand-in knows equality alone");
                }
                let ignore = method.ends_with("IGNORE_CASE");
                let equal = |e: &str| if ignore { e.eq_ignore_ascii_case(address) } else { e == address };
                found.retain(|(_, user)| equal(&user.email));
            }
            ("organizationIdQuery", value) if organization.is_none() => {
                let id = Body::of(value, &["organizationId"])?.text("organizationId")?;
                found.retain(|(_, user)| user.org == id);
            }
            (other, _) => return refuse(Code::InvalidArgument, "CONNECT-2", format!("unknown field {other}")),
        }
    }
    let (total, found) = page(found, &body["query"])?;
    let shown: Vec<Value> = found
        .into_iter()
        .map(|(id, user)| {
            let state = if user.active { "USER_STATE_ACTIVE" } else { "USER_STATE_INACTIVE" };
            let verified = if organization.is_some() { "isEmailVerified" } else { "isVerified" };
            let human = json!({"email": {"email": user.email, verified: user.verified}});
            let details = json!({"resourceOwner": user.org});
            let key = if organization.is_some() { "id" } else { "userId" };
            let mut shown = json!({
                "state": state, "details": details, "preferredLoginName": user.email, "loginNames": [user.email],
                "human": human,
            });
            shown[key] = json!(id);
            shown[if organization.is_some() { "userName" } else { "username" }] = json!(user.email);
            shown
        })
        .collect();
    let mut details = listed(total);
    if organization.is_none() {
        details = json!({"totalResult": total.to_string(), "processedSequence": "1", "timestamp": DATE});
    }
    Ok(json!({"details": details, "result": shown}))
}

/// A REST call; without the header, the organisation is the first one, which is the service user's own.
pub(super) fn rest(
    world: &mut World,
    method: &str,
    path: &str,
    organization: Option<&str>,
    body: &Value,
) -> Result<Value, Refusal> {
    let own = world.orgs.keys().next().cloned().unwrap_or_default();
    let org = organization.unwrap_or(&own).to_owned();
    let decoded = percent_encoding::percent_decode_str(path.trim_start_matches('/')).decode_utf8_lossy().into_owned();
    let parts: Vec<&str> = decoded.split('/').collect();
    match (method, parts.as_slice()) {
        ("POST", ["v2", "users"]) => users(world, body, None),
        ("POST", ["management", "v1", "users", "_search"]) => users(world, body, Some(&org)),
        (_, ["management", "v1", "projects", id, rest @ ..]) => v1_projects(world, method, id, rest, &org, body),
        ("POST", ["management", "v1", "users", "grants", "_search"]) => v1_grants(world, &org, body),
        (_, ["management", "v1", "users", user, "grants", rest @ ..]) => {
            v1_grant(world, method, user, rest, &org, body)
        }
        _ => refuse(Code::NotFound, "HTTP-404", "Not Found"),
    }
}

fn v1_projects(
    world: &mut World,
    method: &str,
    id: &str,
    rest: &[&str],
    org: &str,
    body: &Value,
) -> Result<Value, Refusal> {
    // v1 sees the projects of one organisation.
    if world.project(id)?.org != org {
        return refuse(Code::NotFound, "QUERY-fk2fs", "Project could not be found");
    }
    match (method, rest) {
        ("GET", []) => {
            let project = world.project(id)?;
            Ok(json!({"project": {"id": id, "name": project.name, "details": {"resourceOwner": project.org}}}))
        }
        ("POST", ["roles"]) => {
            let body = Body::of(body, &["roleKey", "displayName", "group"])?;
            world.add_role(id, body.text("roleKey")?, body.text("displayName")?, body.optional("group"))?;
            Ok(json!({"details": {"resourceOwner": org}}))
        }
        ("POST", ["roles", "_search"]) => {
            Body::of(body, &["query", "queries"]).map(|_| ())?;
            let (total, roles) = page(role_list(world, id)?, &body["query"])?;
            let roles: Vec<Value> = roles
                .into_iter()
                .map(|(key, name, group)| json!({"key": key, "displayName": name, "group": group}))
                .collect();
            Ok(json!({"details": listed(total), "result": roles}))
        }
        ("POST", ["grants"]) => {
            let body = Body::of(body, &["grantedOrgId", "roleKeys"])?;
            let grant = world.add_project_grant(id, body.text("grantedOrgId")?, body.texts("roleKeys")?)?;
            Ok(json!({"grantId": grant, "details": {"resourceOwner": org}}))
        }
        ("PUT", ["grants", grant]) => {
            let roles = Body::of(body, &["roleKeys"])?.texts("roleKeys")?;
            let Some(found) = world.project_grants.iter().find(|g| g.id == *grant).map(|g| g.org.clone()) else {
                return refuse(Code::NotFound, "PROJECT-4m9ds", "Project grant not found");
            };
            if world.set_project_grant(id, &found, roles)? {
                return Ok(json!({"details": {"resourceOwner": org}}));
            }
            refuse(Code::FailedPrecondition, "PROJECT-0o0pL", "Project grant not changed")
        }
        ("POST", ["grants", "_search"]) => {
            Body::of(body, &["query", "queries"]).map(|_| ())?;
            let grants: Vec<_> = project_grant_list(world).into_iter().filter(|grant| grant.project == id).collect();
            let (total, grants) = page(grants, &body["query"])?;
            let shown: Vec<Value> = grants
                .into_iter()
                .map(|grant| {
                    json!({
                        "grantId": grant.id, "grantedOrgId": grant.org, "grantedRoleKeys": grant.roles,
                        "projectId": grant.project, "state": "PROJECT_GRANT_STATE_ACTIVE",
                    })
                })
                .collect();
            Ok(json!({"details": listed(total), "result": shown}))
        }
        _ => refuse(Code::NotFound, "HTTP-404", "Not Found"),
    }
}

fn v1_grants(world: &World, org: &str, body: &Value) -> Result<Value, Refusal> {
    let parts = Body::of(body, &["query", "queries"])?;
    let mut grants: Vec<_> = world.listed_grants().into_iter().filter(|grant| grant.org == org).collect();
    for one in parts.list("queries") {
        match filter(one)? {
            ("userIdQuery", value) => {
                let id = Body::of(value, &["userId"])?.text("userId")?;
                grants.retain(|grant| grant.user == id);
            }
            ("projectIdQuery", value) => {
                let id = Body::of(value, &["projectId"])?.text("projectId")?;
                grants.retain(|grant| grant.project == id);
            }
            (other, _) => return refuse(Code::InvalidArgument, "CONNECT-2", format!("unknown field {other}")),
        }
    }
    let (total, grants) = page(grants, &body["query"])?;
    let shown: Vec<Value> = grants
        .into_iter()
        .map(|grant| {
            json!({
                "id": grant.id, "userId": grant.user, "projectId": grant.project, "orgId": grant.org,
                "roleKeys": grant.roles, "details": {"resourceOwner": grant.org},
                "state": if grant.active { "USER_GRANT_STATE_ACTIVE" } else { "USER_GRANT_STATE_INACTIVE" },
            })
        })
        .collect();
    Ok(json!({"details": listed(total), "result": shown}))
}

fn v1_grant(
    world: &mut World,
    method: &str,
    user: &str,
    rest: &[&str],
    org: &str,
    body: &Value,
) -> Result<Value, Refusal> {
    let details = json!({"details": {"resourceOwner": org}});
    match (method, rest) {
        ("POST", []) => {
            let body = Body::of(body, &["projectId", "projectGrantId", "roleKeys"])?;
            let project = body.text("projectId")?;
            if world.project(project)?.org != org {
                // In another organisation, v1 wants to know by which project grant.
                let grant = body.text("projectGrantId")?;
                if !world.project_grants.iter().any(|g| g.id == grant && g.project == project && g.org == org) {
                    return refuse(Code::FailedPrecondition, "COMMAND-4m9Vs", "Project grant not found");
                }
            }
            let id = world.add_grant(user, project, org, body.texts("roleKeys")?)?;
            Ok(json!({"userGrantId": id, "details": {"resourceOwner": org}}))
        }
        ("PUT", [grant]) => {
            let roles = Body::of(body, &["roleKeys"])?.texts("roleKeys")?;
            let found = world.live_grant(grant)?;
            if found.user != user || found.org != org {
                return refuse(Code::NotFound, "QUERY-wIPkA", "User grant not found");
            }
            if world.set_grant(grant, roles)? {
                return Ok(details);
            }
            refuse(Code::FailedPrecondition, "COMMAND-Rs8fy", "User grant has not been changed")
        }
        ("DELETE", [grant]) => {
            world.remove_grant(grant)?;
            Ok(details)
        }
        _ => refuse(Code::NotFound, "HTTP-404", "Not Found"),
    }
}
