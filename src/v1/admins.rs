//! `/v1/accounts/{account_id}/admins`: who may administer an account.
//!
//! An entry says whom the operator wants as an admin; their role is granted, and
//! their password kept, in Zitadel.

use serde::{Deserialize, Deserializer, Serialize};

use super::accounts::{AtAccount, held_account};
use super::answer::{Answer, Halt, Items, Outcome, Refusals, StatusOk, or_404, taken};
use super::call::{Call, IfMatch, SuperAdmin};
use super::input::{Body, PageParams, Paging, Path};
use super::provision::follow_admin;
use crate::context::Tenant;
use crate::id::Id;
use crate::model::accounts::{Account, AccountAdmin, AdminRole};
use crate::model::audit::{Action, Label};
use crate::model::field::Field;
use crate::model::text::PathEmail;
use crate::store::Tx;
use crate::store::audit::Entry;

/// A password, which is never taken: leave it out, or send `null` or an empty text.
#[derive(Debug, Default)]
pub struct NoPassword;

impl<'de> Deserialize<'de> for NoPassword {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Whatever its type, it is not repeated.
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::Null => Ok(Self),
            serde_json::Value::String(text) if text.is_empty() => Ok(Self),
            _ => Err(serde::de::Error::custom("must be empty: Zitadel owns passwords, and people set theirs there")),
        }
    }
}

/// Someone who is to be an admin.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewAdmin {
    user_email: PathEmail,
    #[serde(default)]
    #[schema(value_type = Option<AdminRole>)]
    role: AdminRole,
    /// Must be empty: Zitadel owns passwords.
    #[serde(default, rename = "password")]
    #[schema(value_type = Option<String>, max_length = 0, example = json!(null))]
    _password: NoPassword,
}

/// A change of an admin.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AdminChange {
    #[serde(default)]
    #[schema(value_type = Option<PathEmail>)]
    new_email: Field<PathEmail>,
    #[serde(default)]
    #[schema(value_type = Option<AdminRole>)]
    role: Field<AdminRole>,
    /// Must be empty: Zitadel owns passwords.
    #[serde(default, rename = "password")]
    #[schema(value_type = Option<String>, max_length = 0, example = json!(null))]
    _password: NoPassword,
}

/// The admin of the path.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Path)]
pub struct AtAdmin {
    /// The account.
    #[param(value_type = String)]
    account_id: Id<Account>,
    /// Their e-mail address.
    #[param(example = "ada@acme.com")]
    email: String,
}

/// `{"status": "ok", "item": …}`
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct AdminStored {
    #[serde(flatten)]
    status: StatusOk,
    item: AccountAdmin,
}

const ADMIN_NOT_FOUND: &str = "Admin not found";

fn admin_entry(action: Action, admin: &AccountAdmin) -> Entry<'_> {
    Entry { action, table: "Alchemi_AccountAdminTable", id: admin.id.as_str(), label: Label::Iam }
}

/// Makes an admin, or changes the role of the one with this address; audits it.
pub(super) async fn add_admin(tx: &mut Tx<Tenant>, email: PathEmail, role: AdminRole) -> Result<AccountAdmin, Halt> {
    let before = tx.admin_by_email(email.as_str()).await?;
    let admin = AccountAdmin {
        id: tx.new_id(),
        account_id: tx.account().clone(),
        user_email: email.into_string(),
        role: role.as_str().to_owned(),
        created_by: Some(tx.acting().actor.subject.to_string()),
        created_at: tx.now(),
        updated_at: tx.now(),
        version: 1,
    };
    let admin = tx.upsert_admin(&admin).await?;
    tx.audit(admin_entry(Action::Upsert, &admin), before.as_ref(), &admin).await?;
    Ok(admin)
}

/// The admin of the path, in an account held until the commit.
async fn held_admin(tx: &mut Tx<Tenant>, email: &str) -> Result<AccountAdmin, Halt> {
    or_404(tx.hold_account().await?, ADMIN_NOT_FOUND)?;
    Ok(or_404(tx.admin_by_email(&email.trim().to_lowercase()).await?, ADMIN_NOT_FOUND)?)
}

/// List an account's admins
///
/// An account that does not exist has none.
#[utoipa::path(get, path = "/v1/accounts/{account_id}/admins", tag = "accounts", params(AtAccount, PageParams),
    responses((status = 200, description = "A page of admins, newest first", body = Items<AccountAdmin>), Refusals))]
pub async fn list_account_admins(
    call: Call<SuperAdmin>,
    Path(AtAccount { account_id: id }): Path<AtAccount>,
    Paging(slice): Paging<1000>,
) -> Outcome {
    let admins = call.read().await?.within(id).admins(&slice).await?;
    Ok(Answer::of(&Items::from(admins)))
}

/// Add an admin, or change the role of the one with this e-mail address
#[utoipa::path(post, path = "/v1/accounts/{account_id}/admins", tag = "accounts", params(AtAccount),
    request_body = NewAdmin,
    responses((status = 200, description = "The admin", body = AdminStored), Refusals))]
pub async fn put_account_admin(
    call: Call<SuperAdmin>,
    Path(AtAccount { account_id: id }): Path<AtAccount>,
    Body(new): Body<NewAdmin>,
) -> Outcome {
    let mut tx = call.begin().await?.within(id);
    held_account(&mut tx).await?;
    let before = tx.admin_by_email(new.user_email.as_str()).await?;
    let item = add_admin(&mut tx, new.user_email, new.role).await?;
    let cut = follow_admin(&call.app.provisioner, &mut tx, before.as_ref(), Some(&item)).await?;
    let version = item.version;
    let answer = call.done_tagged(tx, &AdminStored { status: StatusOk::OK, item }, version).await?;
    cut.told(&call.app.provisioner);
    Ok(answer)
}

/// Change an admin
///
/// The tokens that still show a former role are refused from now on, on every gateway.
#[utoipa::path(patch, path = "/v1/accounts/{account_id}/admins/{email}", tag = "accounts", params(AtAdmin, IfMatch),
    request_body = AdminChange,
    responses((status = 200, description = "The changed admin", body = AdminStored), Refusals))]
pub async fn update_account_admin(
    call: Call<SuperAdmin>,
    Path(AtAdmin { account_id: id, email }): Path<AtAdmin>,
    Body(change): Body<AdminChange>,
) -> Outcome {
    let mut tx = call.begin().await?.within(id);
    let before = held_admin(&mut tx, &email).await?;
    call.expects(before.version)?;
    let mut admin = before.clone();
    admin.user_email = change.new_email.map(PathEmail::into_string).over_required(admin.user_email, "/new_email")?;
    admin.role = change.role.map(|r| r.as_str().to_owned()).over_required(admin.role, "/role")?;
    tx.update_admin(&admin).await.map_err(taken("user_email", "new_email already exists for this account"))?;
    let item = held_admin(&mut tx, &admin.user_email).await?;
    tx.audit(admin_entry(Action::Update, &item), Some(&before), &item).await?;
    let cut = follow_admin(&call.app.provisioner, &mut tx, Some(&before), Some(&item)).await?;
    let version = item.version;
    let answer = call.done_tagged(tx, &AdminStored { status: StatusOk::OK, item }, version).await?;
    cut.told(&call.app.provisioner);
    Ok(answer)
}

/// Remove an admin
///
/// The tokens that still show their roles are refused from now on, on every gateway. In an
/// account that is bound to Zitadel the roles are taken back there.
#[utoipa::path(delete, path = "/v1/accounts/{account_id}/admins/{email}", tag = "accounts", params(AtAdmin, IfMatch),
    responses((status = 200, description = "Removed", body = StatusOk), Refusals))]
pub async fn delete_account_admin(
    call: Call<SuperAdmin>,
    Path(AtAdmin { account_id: id, email }): Path<AtAdmin>,
) -> Outcome {
    let mut tx = call.begin().await?.within(id);
    let admin = held_admin(&mut tx, &email).await?;
    call.expects(admin.version)?;
    tx.delete_admin(&admin.id).await?;
    tx.audit(admin_entry(Action::Delete, &admin), Some(&admin), &serde_json::json!({})).await?;
    let cut = follow_admin(&call.app.provisioner, &mut tx, Some(&admin), None).await?;
    let answer = call.done(tx, &StatusOk::OK).await?;
    cut.told(&call.app.provisioner);
    Ok(answer)
}
