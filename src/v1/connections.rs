//! `/v1/copilot/connections`: what agents reach outside, and who may use it.
//!
//! Secrets go in and never come out: they are sealed before they are stored, and
//! answers show their names.

use serde::{Deserialize, Serialize};

use super::answer::{Answer, Deleted, Halt, Item, Items, Outcome, Refusals, or_404};
use super::call::{Call, CopilotAdmin, IfMatch};
use super::directory::hold_scope;
use super::input::{Body, PageParams, Paging, Path, Query};
use super::trial::{Trial, Tried};
use crate::context::{Domain, Tenant};
use crate::id::Id;
use crate::model::audit::{Action, Label};
use crate::model::connections::{Connection, ConnectionGrant, ConnectionType, CredentialVisibility, Masked, Settings};
use crate::model::field::Field;
use crate::model::scope::{MemberType, Scope, ScopeType};
use crate::model::text::{Description, Name};
use crate::problem::Problem;
use crate::secret::SecretObject;
use crate::store::Tx;
use crate::store::audit::Entry;

/// A new connection.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "name": "Tickets",
    "config_json": {"server_url": "https://mcp.example.com/sse"},
    "secret_json": {"api_key": "the key"}
}))]
pub struct NewConnection {
    name: Name,
    #[serde(default)]
    description: Option<Description>,
    /// `use_only` unless said.
    #[serde(default)]
    #[schema(value_type = Option<CredentialVisibility>)]
    credential_visibility: Option<String>,
    #[serde(default)]
    allow_user_self_manage: bool,
    /// Settings, none of them secret. For `composio`, `auth_mode` is `oauth` or `api_key`.
    /// URLs are `https` and lead outside.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    config_json: Option<Settings>,
    /// Secrets, kept sealed and never shown.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    secret_json: Option<SecretObject>,
}

/// A change of a connection.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"description": "Tickets of the help desk", "secret_json": {"api_key": "another key"}}))]
pub struct ConnectionChange {
    #[serde(default)]
    #[schema(value_type = Option<Name>)]
    name: Field<Name>,
    #[serde(default)]
    #[schema(value_type = Option<Description>)]
    description: Field<Description>,
    #[serde(default)]
    #[schema(value_type = Option<CredentialVisibility>)]
    credential_visibility: Field<String>,
    #[serde(default)]
    #[schema(value_type = Option<bool>)]
    allow_user_self_manage: Field<bool>,
    /// Replaces the settings.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    config_json: Field<Settings>,
    /// Merges with the secrets: `null` removes one; a blank text, `{"masked": true}` or a
    /// mask keeps it. `null` or an empty object keeps all.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    secret_json: Field<SecretObject>,
}

/// Which connections are wanted.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ConnectionFilter {
    /// Only of this kind: `openapi`, `mcp` or `composio`.
    #[param(value_type = Option<ConnectionType>, inline)]
    connection_type: Option<String>,
}

/// The connection of the path.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Path)]
pub struct AtConnection {
    /// The connection.
    #[param(value_type = String)]
    connection_id: Id<Connection>,
}

/// The grant of the path.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Path)]
pub struct AtConnectionGrant {
    /// The connection.
    #[param(value_type = String)]
    connection_id: Id<Connection>,
    /// The grant.
    #[param(value_type = String)]
    grant_id: Id<ConnectionGrant>,
}

/// A grant, or a change of the one to the same scope.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "scope_type": "team",
    "scope_id": "019a3c5e-7d10-7c3a-9b1e-2f6d8a4c0b11",
    "can_manage": false
}))]
pub struct NewConnectionGrant {
    /// `org`, `team` or `user`.
    #[schema(value_type = MemberType, example = "team")]
    scope_type: String,
    #[schema(example = "019a3c5e-7d10-7c3a-9b1e-2f6d8a4c0b11")]
    scope_id: String,
    #[serde(default)]
    can_manage: bool,
}

/// A connection as the audit keeps it.
#[derive(Serialize)]
struct Audited<'a> {
    #[serde(flatten)]
    connection: &'a Connection,
    secret_changed: bool,
}

const CONNECTION_NOT_FOUND: &str = "Connection not found";
const GRANT_NOT_FOUND: &str = "Connection grant not found";

fn entry(action: Action, connection: &Connection) -> Entry<'_> {
    Entry { action, table: Connection::TABLE, id: connection.id.as_str(), label: Label::Copilot }
}

fn grant_entry(action: Action, grant: &ConnectionGrant) -> Entry<'_> {
    Entry { action, table: "Alchemi_CopilotConnectionGrantTable", id: grant.id.as_str(), label: Label::Copilot }
}

async fn held(tx: &mut Tx<Tenant>, id: &Id<Connection>) -> Result<Connection, Halt> {
    Ok(or_404(tx.hold_connection(id).await?, CONNECTION_NOT_FOUND)?)
}

/// Gives `connection` its secrets, checks both, and seals them.
fn complete(call: &Call<CopilotAdmin>, connection: &mut Connection, secrets: &SecretObject) -> Result<(), Problem> {
    connection.secret_keys = secrets.names();
    connection.check(&call.app.outbound)?;
    let composio = connection.connection_type == ConnectionType::Composio;
    if composio && secrets.expose("api_key").is_some_and(|key| !key.is_string()) {
        return Err(Problem::invalid("/secret_json/api_key", "must be a text"));
    }
    Ok(connection.set_secrets(secrets, &call.app.secrets)?)
}

/// List connections
#[utoipa::path(get, path = "/v1/copilot/connections", tag = "connections", params(ConnectionFilter, PageParams),
    responses((status = 200, description = "A page of connections, newest first", body = Items<Connection>), Refusals))]
pub async fn list_connections(
    call: Call<CopilotAdmin>,
    Query(filter): Query<ConnectionFilter>,
    Paging(slice): Paging<1000>,
) -> Outcome {
    let kind = filter.connection_type.as_deref().map(ConnectionType::parse).transpose()?;
    let connections = call.read().await?.connections(kind, &slice).await?;
    Ok(Answer::of(&Items::from(connections)))
}

/// Make a connection
///
/// The secrets are sealed under the operator's key; without one, a connection that has
/// secrets is refused with 503 `secrets_not_configured`.
#[utoipa::path(post, path = "/v1/copilot/connections/{connection_id}", tag = "connections",
    params(("connection_type" = ConnectionType, Path, description = "Its kind; `integration` is `composio`")),
    request_body = NewConnection,
    responses((status = 200, description = "The new connection", body = Item<Connection>), Refusals))]
pub async fn create_connection(
    call: Call<CopilotAdmin>,
    Path(kind): Path<String>,
    Body(new): Body<NewConnection>,
) -> Outcome {
    let connection_type = ConnectionType::parse(&kind)?;
    let credential_visibility = match &new.credential_visibility {
        Some(text) => CredentialVisibility::parse(text)?,
        None => CredentialVisibility::UseOnly,
    };
    let sent = new.secret_json.unwrap_or_default();
    if sent.is_masked() {
        return Err(Problem::invalid("/secret_json/masked", "stands for secrets, and none are stored yet").into());
    }
    let secrets = SecretObject::default().merged(sent, "/secret_json")?;
    let mut tx = call.begin().await?;
    let mut connection = Connection {
        id: tx.new_id(),
        account_id: tx.account().clone(),
        connection_type,
        name: new.name.into_string(),
        description: new.description.map(Description::into_string),
        credential_visibility,
        allow_user_self_manage: new.allow_user_self_manage,
        config_json: new.config_json.unwrap_or_default().0,
        secret_json: Masked::MASKED,
        secret_keys: Vec::new(),
        created_by: Some(tx.acting().actor.subject.to_string()),
        created_at: tx.now(),
        updated_at: tx.now(),
        version: 1,
        sealed: None,
    };
    complete(&call, &mut connection, &secrets)?;
    tx.insert_connection(&connection).await?;
    tx.audit(entry(Action::Create, &connection), None::<&()>, &connection).await?;
    call.done_tagged(tx, &Item { item: &connection }, connection.version).await
}

/// Show a connection
#[utoipa::path(get, path = "/v1/copilot/connections/{connection_id}", tag = "connections", params(AtConnection),
    responses((status = 200, description = "The connection", body = Item<Connection>), Refusals))]
pub async fn get_connection(
    call: Call<CopilotAdmin>,
    Path(AtConnection { connection_id: id }): Path<AtConnection>,
) -> Outcome {
    let connection = or_404(call.read().await?.connection(&id).await?, CONNECTION_NOT_FOUND)?;
    Ok(Answer::of(&Item { item: &connection }).tagged(connection.version))
}

/// Change a connection
///
/// Its kind never changes. What was read can be sent back: masks keep the secrets.
#[utoipa::path(patch, path = "/v1/copilot/connections/{connection_id}", tag = "connections",
    params(AtConnection, IfMatch), request_body = ConnectionChange,
    responses((status = 200, description = "The changed connection", body = Item<Connection>), Refusals))]
pub async fn update_connection(
    call: Call<CopilotAdmin>,
    Path(AtConnection { connection_id: id }): Path<AtConnection>,
    Body(change): Body<ConnectionChange>,
) -> Outcome {
    let mut tx = call.begin().await?;
    let before = held(&mut tx, &id).await?;
    call.expects(before.version)?;
    let visibility = before.credential_visibility.as_str().to_owned();
    let visibility = change.credential_visibility.over_required(visibility, "/credential_visibility")?;
    let self_manage = before.allow_user_self_manage;
    let mut after = Connection {
        name: change.name.map(Name::into_string).over_required(before.name.clone(), "/name")?,
        description: change.description.map(Description::into_string).over(before.description.clone()),
        credential_visibility: CredentialVisibility::parse(&visibility)?,
        allow_user_self_manage: change.allow_user_self_manage.over_required(self_manage, "/allow_user_self_manage")?,
        config_json: change.config_json.map(|s| s.0).over(Some(before.config_json.clone())).unwrap_or_default(),
        ..before.clone()
    };
    let secret_changed = match change.secret_json {
        Field::Set(sent) if !sent.keeps_all() => {
            let secrets = before.secrets(&call.app.secrets).map_err(Problem::from)?;
            complete(&call, &mut after, &secrets.merged(sent, "/secret_json")?)?;
            true
        }
        _ => {
            // What stood there before a rule came is not in the way of another change.
            if after.config_json != before.config_json {
                after.check(&call.app.outbound)?;
            }
            false
        }
    };
    let after = tx.update_connection(&after).await?;
    let told = Audited { connection: &after, secret_changed };
    tx.audit(entry(Action::Update, &after), Some(&before), &told).await?;
    call.done_tagged(tx, &Item { item: &after }, after.version).await
}

/// Remove a connection
///
/// Its secrets and grants go with it.
#[utoipa::path(delete, path = "/v1/copilot/connections/{connection_id}", tag = "connections",
    params(AtConnection, IfMatch),
    responses((status = 200, description = "Removed", body = Deleted), Refusals))]
pub async fn delete_connection(
    call: Call<CopilotAdmin>,
    Path(AtConnection { connection_id: id }): Path<AtConnection>,
) -> Outcome {
    let mut tx = call.begin().await?;
    let connection = held(&mut tx, &id).await?;
    call.expects(connection.version)?;
    let deleted = tx.delete_connection(&id).await?;
    tx.audit(entry(Action::Delete, &connection), Some(&connection), &serde_json::json!({})).await?;
    call.done(tx, &Deleted { deleted }).await
}

/// List who may use a connection
#[utoipa::path(get, path = "/v1/copilot/connections/{connection_id}/grants", tag = "connections",
    params(AtConnection, PageParams),
    responses((status = 200, description = "A page of grants, newest first", body = Items<ConnectionGrant>), Refusals))]
pub async fn list_connection_grants(
    call: Call<CopilotAdmin>,
    Path(AtConnection { connection_id: id }): Path<AtConnection>,
    Paging(slice): Paging<1000>,
) -> Outcome {
    let mut tx = call.read().await?;
    or_404(tx.connection(&id).await?, CONNECTION_NOT_FOUND)?;
    Ok(Answer::of(&Items::from(tx.connection_grants(&id, &slice).await?)))
}

/// Let a scope use a connection
///
/// Posted again for the same scope, `can_manage` is changed. With `dry_run=true` the
/// answer is the effect, and nothing is written.
#[utoipa::path(post, path = "/v1/copilot/connections/{connection_id}/grants", tag = "connections",
    params(AtConnection, Trial), request_body = NewConnectionGrant,
    responses((status = 200, description = "The grant", body = Tried<Item<ConnectionGrant>>), Refusals))]
pub async fn create_connection_grant(
    call: Call<CopilotAdmin>,
    Path(AtConnection { connection_id }): Path<AtConnection>,
    Query(trial): Query<Trial>,
    Body(new): Body<NewConnectionGrant>,
) -> Outcome {
    let scope = Scope::new(ScopeType::parse(&new.scope_type, ScopeType::MEMBERS)?, new.scope_id);
    let mut tx = call.begin_or_try(&trial).await?;
    hold_scope(&mut tx, Domain::Copilot, &scope).await?;
    held(&mut tx, &connection_id).await?;
    let before = tx.connection_grant_to(&connection_id, &scope).await?;
    let grant = ConnectionGrant {
        id: tx.new_id(),
        account_id: tx.account().clone(),
        connection_id,
        scope_type: scope.scope_type,
        scope_id: scope.scope_id,
        can_manage: new.can_manage,
        created_by: Some(tx.acting().actor.subject.to_string()),
        created_at: tx.now(),
        updated_at: tx.now(),
        version: 1,
    };
    let grant = tx.upsert_connection_grant(&grant).await?;
    tx.audit(grant_entry(Action::Upsert, &grant), before.as_ref(), &grant).await?;
    call.done_tagged(tx, &Item { item: &grant }, grant.version).await
}

/// Take a connection from a scope
///
/// With `dry_run=true` the answer is the effect, and nothing is removed.
#[utoipa::path(delete, path = "/v1/copilot/connections/{connection_id}/grants/{grant_id}", tag = "connections",
    params(AtConnectionGrant, Trial, IfMatch),
    responses((status = 200, description = "Removed", body = Tried<Deleted>), Refusals))]
pub async fn delete_connection_grant(
    call: Call<CopilotAdmin>,
    Path(AtConnectionGrant { connection_id, grant_id }): Path<AtConnectionGrant>,
    Query(trial): Query<Trial>,
) -> Outcome {
    let mut tx = call.begin_or_try(&trial).await?;
    held(&mut tx, &connection_id).await?;
    let grant = or_404(tx.connection_grant(&connection_id, &grant_id).await?, GRANT_NOT_FOUND)?;
    call.expects(grant.version)?;
    let deleted = tx.delete_connection_grant(&grant_id).await?;
    tx.audit(grant_entry(Action::Delete, &grant), Some(&grant), &serde_json::json!({})).await?;
    call.done(tx, &Deleted { deleted }).await
}
