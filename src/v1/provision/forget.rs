//! What cannot be had is wanted no more.

use super::super::answer::Deleted;
use super::*;
use crate::model::provision::ItemState;

/// The item of the path.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Path)]
pub struct AtItem {
    /// The account.
    #[param(value_type = String)]
    account_id: Id<Account>,
    /// The item, as `drift` shows it.
    #[param(value_type = String)]
    item_id: Id<ProvisionItem>,
}

/// Want no more what cannot be had
///
/// Forgets an item that `failed` or is in `conflict`: it is not tried again, and `drift` does
/// not show it. What Zitadel holds stays as it is. To have a grant taken back, remove the admin.
#[utoipa::path(delete, path = "/v1/accounts/{account_id}/zitadel/provision/items/{item_id}", tag = "accounts",
    params(AtItem),
    responses((status = 200, description = "Forgotten", body = Deleted), Refusals))]
pub async fn forget_zitadel_item(
    call: Call<SuperAdmin>,
    Path(AtItem { account_id: id, item_id }): Path<AtItem>,
) -> super::super::answer::Outcome {
    let mut tx = call.begin().await?.within(id);
    held_account(&mut tx).await?;
    let item = or_404(tx.provision_item(&item_id).await?, "Item not found")?;
    if !matches!(item.state, ItemState::Failed | ItemState::Conflict) {
        let detail = "Only what failed or is in conflict can be forgotten; remove the admin to take a grant back";
        return Err(Problem::conflict("item_not_failed", detail).with("state", item.state).into());
    }
    let deleted = tx.forget_item(&item.id).await?;
    let former = serde_json::json!({
        "kind": item.kind, "project_id": item.project_id, "organization_id": item.organization_id,
        "target": item.target, "role_keys": item.role_keys, "retired_keys": item.retired_keys, "state": item.state,
        "reason": item.reason,
    });
    let entry =
        Entry { action: Action::Delete, table: "Alchemi_ZitadelItemTable", id: item.id.as_str(), label: Label::Iam };
    tx.audit(entry, Some(&former), &serde_json::json!({})).await?;
    call.done(tx, &Deleted { deleted }).await
}
