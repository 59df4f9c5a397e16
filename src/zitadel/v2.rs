//! The v2 Connect services, and `/v2/users`.
//!
//! Shapes: `zitadel/project/v2`, `zitadel/authorization/v2` and `zitadel/user/v2` of
//! Zitadel's protos. Connect is JSON over POST.

use http::Method;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Value, json};

use super::error::Error;
use super::transport::{Ask, Transport};
use super::{FoundUser, NewGrant, Operation, ProjectGrant, ProjectRole, UserGrant};

const PROJECTS: &str = "/zitadel.project.v2.ProjectService/";
const AUTHORIZATIONS: &str = "/zitadel.authorization.v2.AuthorizationService/";

/// Items on a page; Zitadel allows a thousand.
pub(super) const PAGE: usize = 500;
/// Most pages of a list.
pub(super) const PAGES: usize = 200;

async fn post<T: DeserializeOwned>(
    at: &Transport,
    operation: Operation,
    service: &str,
    method: &str,
    body: Value,
) -> Result<T, Error> {
    let path = format!("{service}{method}");
    at.call(Ask { operation, method: Method::POST, path, organization: None, body: Some(body) }).await
}

/// Every page of a list, in the order of its making, which writes do not shift.
async fn all<T: DeserializeOwned>(
    at: &Transport,
    operation: Operation,
    service: &str,
    method: &str,
    mut body: Value,
    items: impl Fn(T) -> Vec<Value>,
) -> Result<Vec<Value>, Error> {
    let mut found = Vec::new();
    for _ in 0..PAGES {
        let pagination = json!({"offset": found.len().to_string(), "limit": PAGE, "asc": true});
        if let Some(body) = body.as_object_mut() {
            body.insert("pagination".to_owned(), pagination);
        }
        let page = items(post(at, operation, service, method, body.clone()).await?);
        let last = page.len() < PAGE;
        found.extend(page);
        if last {
            break;
        }
    }
    Ok(found)
}

fn each<T: DeserializeOwned>(items: Vec<Value>) -> Result<Vec<T>, Error> {
    items.into_iter().map(|item| serde_json::from_value(item).map_err(|_| Error::Malformed)).collect()
}

pub(super) async fn project_owner(at: &Transport, project: &str) -> Result<String, Error> {
    #[derive(Deserialize)]
    struct Got {
        project: Project,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Project {
        organization_id: String,
    }
    let got: Got = post(at, Operation::GetProject, PROJECTS, "GetProject", json!({"projectId": project})).await?;
    Ok(got.project.organization_id)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Role {
    key: String,
    #[serde(default)]
    display_name: String,
    #[serde(default)]
    group: Option<String>,
}

impl From<Role> for ProjectRole {
    fn from(role: Role) -> Self {
        Self { key: role.key, display_name: role.display_name, group: role.group.filter(|group| !group.is_empty()) }
    }
}

pub(super) async fn roles(at: &Transport, project: &str) -> Result<Vec<ProjectRole>, Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Listed {
        #[serde(default)]
        project_roles: Vec<Value>,
    }
    let body = json!({"projectId": project});
    let items = |page: Listed| page.project_roles;
    let roles = all(at, Operation::ListRoles, PROJECTS, "ListProjectRoles", body, items).await?;
    Ok(each::<Role>(roles)?.into_iter().map(ProjectRole::from).collect())
}

pub(super) async fn add_role(at: &Transport, project: &str, role: &ProjectRole) -> Result<(), Error> {
    let mut body = json!({"projectId": project, "roleKey": role.key, "displayName": role.display_name});
    if let (Some(body), Some(group)) = (body.as_object_mut(), &role.group) {
        body.insert("group".to_owned(), json!(group));
    }
    post::<IgnoredAny>(at, Operation::AddRole, PROJECTS, "AddProjectRole", body).await.map(drop)
}

pub(super) async fn project_grants(
    at: &Transport,
    project: &str,
    organization: &str,
) -> Result<Vec<ProjectGrant>, Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Listed {
        #[serde(default)]
        project_grants: Vec<Value>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Grant {
        project_id: String,
        granted_organization_id: String,
        #[serde(default)]
        granted_role_keys: Vec<String>,
    }
    let body = json!({"filters": [
        {"inProjectIdsFilter": {"ids": [project]}},
        {"grantedOrganizationIdFilter": {"id": organization}},
    ]});
    let items = |page: Listed| page.project_grants;
    let grants = all(at, Operation::ListProjectGrants, PROJECTS, "ListProjectGrants", body, items).await?;
    let grants = each::<Grant>(grants)?.into_iter().filter(|grant| grant.project_id == project);
    let read = |grant: Grant| ProjectGrant {
        id: None,
        organization: grant.granted_organization_id,
        role_keys: grant.granted_role_keys,
    };
    Ok(grants.map(read).collect())
}

fn granted(project: &str, organization: &str, role_keys: &[String]) -> Value {
    json!({"projectId": project, "grantedOrganizationId": organization, "roleKeys": role_keys})
}

pub(super) async fn add_project_grant(
    at: &Transport,
    project: &str,
    organization: &str,
    role_keys: &[String],
) -> Result<(), Error> {
    let body = granted(project, organization, role_keys);
    post::<IgnoredAny>(at, Operation::AddProjectGrant, PROJECTS, "CreateProjectGrant", body).await.map(drop)
}

pub(super) async fn set_project_grant(
    at: &Transport,
    project: &str,
    grant: &ProjectGrant,
    role_keys: &[String],
) -> Result<(), Error> {
    let body = granted(project, &grant.organization, role_keys);
    post::<IgnoredAny>(at, Operation::UpdateProjectGrant, PROJECTS, "UpdateProjectGrant", body).await.map(drop)
}

pub(super) async fn grants(
    at: &Transport,
    project: &str,
    organization: &str,
    user: Option<&str>,
) -> Result<Vec<UserGrant>, Error> {
    #[derive(Deserialize)]
    struct Listed {
        #[serde(default)]
        authorizations: Vec<Value>,
    }
    #[derive(Deserialize)]
    struct Named {
        id: String,
    }
    #[derive(Deserialize)]
    struct Keyed {
        key: String,
    }
    #[derive(Deserialize)]
    struct Authorization {
        id: String,
        project: Named,
        organization: Named,
        user: Named,
        #[serde(default)]
        state: String,
        #[serde(default)]
        roles: Vec<Keyed>,
    }
    let mut filters = vec![json!({"projectId": {"id": project}}), json!({"organizationId": {"id": organization}})];
    if let Some(user) = user {
        filters.push(json!({"inUserIds": {"ids": [user]}}));
    }
    let body = json!({"filters": filters});
    let items = |page: Listed| page.authorizations;
    let found = all(at, Operation::ListGrants, AUTHORIZATIONS, "ListAuthorizations", body, items).await?;
    let read = |grant: Authorization| UserGrant {
        id: grant.id,
        user: grant.user.id,
        project: grant.project.id,
        organization: grant.organization.id,
        role_keys: grant.roles.into_iter().map(|role| role.key).collect(),
        active: grant.state != "STATE_INACTIVE",
    };
    Ok(each::<Authorization>(found)?.into_iter().map(read).collect())
}

pub(super) async fn add_grant(at: &Transport, grant: &NewGrant<'_>) -> Result<String, Error> {
    #[derive(Deserialize)]
    struct Created {
        id: String,
    }
    let body = json!({
        "userId": grant.user, "projectId": grant.project, "organizationId": grant.organization,
        "roleKeys": grant.role_keys,
    });
    let created: Created = post(at, Operation::AddGrant, AUTHORIZATIONS, "CreateAuthorization", body).await?;
    Ok(created.id)
}

pub(super) async fn set_grant(at: &Transport, grant: &UserGrant, role_keys: &[String]) -> Result<(), Error> {
    let body = json!({"id": grant.id, "roleKeys": role_keys});
    post::<IgnoredAny>(at, Operation::UpdateGrant, AUTHORIZATIONS, "UpdateAuthorization", body).await.map(drop)
}

pub(super) async fn remove_grant(at: &Transport, grant: &UserGrant) -> Result<(), Error> {
    let body = json!({"id": grant.id});
    let gone: Result<IgnoredAny, _> =
        post(at, Operation::RemoveGrant, AUTHORIZATIONS, "DeleteAuthorization", body).await;
    match gone {
        Err(error) if !error.not_found() => Err(error),
        _ => Ok(()),
    }
}

/// A user as v2 and v1 list them, which differ in names alone.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct User {
    #[serde(alias = "id")]
    user_id: String,
    #[serde(default)]
    state: String,
    #[serde(default)]
    details: Owned,
    #[serde(default)]
    preferred_login_name: String,
    #[serde(default)]
    human: Option<Human>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Owned {
    #[serde(default)]
    resource_owner: String,
}

#[derive(Deserialize)]
struct Human {
    #[serde(default)]
    email: Mail,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Mail {
    #[serde(default)]
    email: String,
    #[serde(default, alias = "isEmailVerified")]
    is_verified: bool,
}

/// People with this very address who may sign in.
pub(super) fn with_email(users: Vec<User>, email: &str) -> Vec<FoundUser> {
    let read = |user: User| {
        let mail = user.human?.email;
        let may = user.state != "USER_STATE_INACTIVE" && user.state != "USER_STATE_DELETED";
        (may && mail.email.eq_ignore_ascii_case(email)).then_some(FoundUser {
            user_id: user.user_id,
            organization_id: user.details.resource_owner,
            login_name: user.preferred_login_name,
            email_verified: mail.is_verified,
        })
    };
    users.into_iter().filter_map(read).collect()
}

pub(super) fn email_query(email: &str) -> Value {
    json!({"emailQuery": {"emailAddress": email, "method": "TEXT_QUERY_METHOD_EQUALS_IGNORE_CASE"}})
}

/// As lists of users come.
#[derive(Deserialize)]
pub(super) struct Users {
    #[serde(default)]
    pub(super) result: Vec<User>,
}

/// More people than this with one address are told as these.
pub(super) const CANDIDATES: usize = 20;

pub(super) async fn users_with_email(
    at: &Transport,
    email: &str,
    organization: Option<&str>,
) -> Result<Vec<FoundUser>, Error> {
    let mut queries = vec![email_query(email)];
    queries.extend(organization.map(|id| json!({"organizationIdQuery": {"organizationId": id}})));
    let body = json!({"query": {"limit": CANDIDATES, "asc": true}, "queries": queries});
    let users: Users = post(at, Operation::FindUsers, "/v2/", "users", body).await?;
    Ok(with_email(users.result, email))
}
