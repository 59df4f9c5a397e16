//! Connections and their grants.

use super::changes::ChangeKind;
use super::page::{Page, Slice};
use super::policies::{json, read};
use super::secrets::sealed;
use super::{Result, StoreError, Tx, columns, find, from_columns, hold, list, on, remove, run};
use crate::clock::Timestamp;
use crate::context::Tenant;
use crate::id::Id;
use crate::model::accounts::Account;
use crate::model::connections::{Connection, ConnectionGrant, ConnectionType, CredentialVisibility, Masked};
use crate::model::scope::Scope;

columns::stored_as_name!(ConnectionType, CredentialVisibility);

struct ConnectionRow {
    account_id: Id<Account>,
    id: Id<Connection>,
    connection_type: ConnectionType,
    name: String,
    description: Option<String>,
    credential_visibility: CredentialVisibility,
    allow_user_self_manage: bool,
    config_json: String,
    secret_json: Option<String>,
    secret_key_id: Option<String>,
    secret_keys: String,
    created_by: Option<String>,
    created_at: Timestamp,
    updated_at: Timestamp,
    version: i64,
}

from_columns! {
    ConnectionRow {
        account_id, id, connection_type, name, description, credential_visibility, allow_user_self_manage, config_json,
        secret_json, secret_key_id, secret_keys, created_by, created_at, updated_at, version,
    }
    ConnectionGrant {
        id, account_id, connection_id, scope_type, scope_id, can_manage, created_by, created_at, updated_at, version,
    }
}

impl TryFrom<ConnectionRow> for Connection {
    type Error = StoreError;

    fn try_from(row: ConnectionRow) -> Result<Self> {
        Ok(Self {
            id: row.id,
            account_id: row.account_id,
            connection_type: row.connection_type,
            name: row.name,
            description: row.description,
            credential_visibility: row.credential_visibility,
            allow_user_self_manage: row.allow_user_self_manage,
            config_json: read(Self::TABLE, &row.config_json)?,
            secret_json: Masked::MASKED,
            secret_keys: read(Self::TABLE, &row.secret_keys)?,
            created_by: row.created_by,
            created_at: row.created_at,
            updated_at: row.updated_at,
            version: row.version,
            sealed: sealed(row.secret_key_id, row.secret_json),
        })
    }
}

impl Tx<Tenant> {
    /// Connections, or those of one kind, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn connections(&mut self, kind: Option<ConnectionType>, slice: &Slice) -> Result<Page<Connection>> {
        let rows: Result<Page<ConnectionRow>> =
            list!(self, slice, ConnectionRow in "Alchemi_CopilotConnectionTable"; connection_type = kind);
        rows?.try_map(Connection::try_from)
    }

    /// One connection.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn connection(&mut self, id: &Id<Connection>) -> Result<Option<Connection>> {
        let row: Option<ConnectionRow> = find!(self, "Alchemi_CopilotConnectionTable", id = id)?;
        row.map(Connection::try_from).transpose()
    }

    /// A connection that is about to be changed, removed or granted, kept from everybody
    /// else until the end of the transaction.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn hold_connection(&mut self, id: &Id<Connection>) -> Result<Option<Connection>> {
        let row: Option<ConnectionRow> = hold!(self, "Alchemi_CopilotConnectionTable", id = id)?;
        row.map(Connection::try_from).transpose()
    }

    /// Makes a connection.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn insert_connection(&mut self, connection: &Connection) -> Result<()> {
        let account = self.account.clone();
        let (config, names) = (json(&connection.config_json), json(&connection.secret_keys));
        let sealed = connection.sealed.as_ref();
        run!(
            self,
            r#"INSERT INTO "Alchemi_CopilotConnectionTable" (account_id, id, connection_type, name, description,
               credential_visibility, allow_user_self_manage, config_json, secret_json, secret_key_id, secret_keys,
               created_by, created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $13)"#,
            &account,
            &connection.id,
            connection.connection_type,
            &connection.name,
            &connection.description,
            connection.credential_visibility,
            connection.allow_user_self_manage,
            &config,
            sealed.map(|s| s.envelope.as_str()),
            sealed.map(|s| s.key_id.as_str()),
            &names,
            &connection.created_by,
            connection.created_at
        )?;
        Ok(())
    }

    /// Writes every changeable column of a held connection; gives the new row.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn update_connection(&mut self, connection: &Connection) -> Result<Connection> {
        let (account, now) = (self.account.clone(), self.now);
        let (config, names) = (json(&connection.config_json), json(&connection.secret_keys));
        let sealed = connection.sealed.as_ref();
        let row: ConnectionRow = on!(self, |c| sqlx::query_as(
            r#"UPDATE "Alchemi_CopilotConnectionTable" SET name = $3, description = $4, credential_visibility = $5,
               allow_user_self_manage = $6, config_json = $7, secret_json = $8, secret_key_id = $9, secret_keys = $10,
               updated_at = $11, version = version + 1 WHERE account_id = $1 AND id = $2 RETURNING *"#
        )
        .bind(&account)
        .bind(&connection.id)
        .bind(&connection.name)
        .bind(&connection.description)
        .bind(connection.credential_visibility)
        .bind(connection.allow_user_self_manage)
        .bind(&config)
        .bind(sealed.map(|s| s.envelope.as_str()))
        .bind(sealed.map(|s| s.key_id.as_str()))
        .bind(&names)
        .bind(now)
        .fetch_one(c)
        .await)?;
        row.try_into()
    }

    /// Removes a connection and its grants.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn delete_connection(&mut self, id: &Id<Connection>) -> Result<bool> {
        let gone = remove!(self, "Alchemi_CopilotConnectionTable", id = id)?;
        self.changed(ChangeKind::Connections);
        Ok(gone)
    }

    /// Grants of a connection, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn connection_grants(
        &mut self,
        connection: &Id<Connection>,
        slice: &Slice,
    ) -> Result<Page<ConnectionGrant>> {
        list!(self, slice, ConnectionGrant in "Alchemi_CopilotConnectionGrantTable", connection_id = connection)
    }

    /// Grants of a connection to some of `scopes`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn connection_grants_for(
        &mut self,
        connection: &Id<Connection>,
        scopes: &[Scope],
    ) -> Result<Vec<ConnectionGrant>> {
        let account = self.account.clone();
        on!(self, |c| {
            let mut q =
                sqlx::QueryBuilder::new(r#"SELECT * FROM "Alchemi_CopilotConnectionGrantTable" WHERE account_id = "#);
            q.push_bind(&account).push(" AND connection_id = ").push_bind(connection).push(" AND (1 = 0");
            for scope in scopes {
                q.push(" OR (scope_type = ").push_bind(scope.scope_type);
                q.push(" AND scope_id = ").push_bind(&scope.scope_id).push(")");
            }
            q.push(")").build_query_as().fetch_all(c).await
        })
    }

    /// One grant of a connection.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn connection_grant(
        &mut self,
        connection: &Id<Connection>,
        id: &Id<ConnectionGrant>,
    ) -> Result<Option<ConnectionGrant>> {
        find!(self, "Alchemi_CopilotConnectionGrantTable", connection_id = connection, id = id)
    }

    /// The grant of a connection to this scope.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn connection_grant_to(
        &mut self,
        connection: &Id<Connection>,
        scope: &Scope,
    ) -> Result<Option<ConnectionGrant>> {
        find!(
            self,
            "Alchemi_CopilotConnectionGrantTable",
            connection_id = connection,
            scope_type = scope.scope_type,
            scope_id = &scope.scope_id
        )
    }

    /// Makes a grant, or changes what the one to the same scope lets it do.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn upsert_connection_grant(&mut self, grant: &ConnectionGrant) -> Result<ConnectionGrant> {
        let (account, now) = (self.account.clone(), self.now);
        self.changed(ChangeKind::Connections);
        on!(self, |c| {
            sqlx::query_as(
            r#"INSERT INTO "Alchemi_CopilotConnectionGrantTable" (account_id, id, connection_id, scope_type, scope_id,
               can_manage, created_by, created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8)
               ON CONFLICT (account_id, connection_id, scope_type, scope_id)
               DO UPDATE SET can_manage = excluded.can_manage, updated_at = excluded.updated_at,
               version = "Alchemi_CopilotConnectionGrantTable".version + 1 RETURNING *"#
        )
        .bind(&account)
        .bind(&grant.id)
        .bind(&grant.connection_id)
        .bind(grant.scope_type)
        .bind(&grant.scope_id)
        .bind(grant.can_manage)
        .bind(&grant.created_by)
        .bind(now)
        .fetch_one(c)
        .await
        })
    }

    /// Removes a grant.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn delete_connection_grant(&mut self, id: &Id<ConnectionGrant>) -> Result<bool> {
        let gone = remove!(self, "Alchemi_CopilotConnectionGrantTable", id = id)?;
        self.changed(ChangeKind::Connections);
        Ok(gone)
    }
}
