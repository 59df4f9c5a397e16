//! `/v1/accounts`: the tenants, by the operator.

use serde::{Deserialize, Deserializer, Serialize};

use super::admins::{NoPassword, add_admin};
use super::answer::{Answer, Halt, Item, Items, Outcome, Refusals, or_404, taken};
use super::call::{Call, IfMatch, SuperAdmin};
use super::input::{Body, PageParams, Paging, Path, Query};
use crate::context::{Domain, Tenant};
use crate::credits::Usd;
use crate::id::Id;
use crate::model::accounts::{Account, AccountBundle, AccountStatus, AdminRole, JsonText};
use crate::model::audit::{Action, Label};
use crate::model::budgets::zone_of;
use crate::model::directory::Org;
use crate::model::field::Field;
use crate::model::text::{HostName, Name, PathEmail, blank_is_none};
use crate::problem::Problem;
use crate::store::accounts::AccountFilter;
use crate::store::audit::Entry;
use crate::store::{StoreError, Tx};

/// A new account.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewAccount {
    account_name: Name,
    #[serde(default, deserialize_with = "blank_is_none")]
    account_alias: Option<Name>,
    /// The e-mail domain that belongs to it.
    #[serde(default, deserialize_with = "blank_is_none")]
    domain: Option<HostName>,
    #[serde(default)]
    max_budget: Option<Usd>,
    /// The operator's notes; `timezone` in it is read by budgets.
    #[serde(default)]
    #[schema(value_type = Option<Object>, example = json!({"timezone": "Europe/Berlin"}))]
    metadata: Option<JsonText>,
    /// Its first admin.
    #[serde(default, deserialize_with = "blank_is_none")]
    admin_email: Option<PathEmail>,
    /// Must be empty: Zitadel owns passwords.
    #[serde(default, rename = "admin_password")]
    #[schema(value_type = Option<String>, max_length = 0, example = json!(null))]
    _admin_password: NoPassword,
}

/// A change of an account.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AccountChange {
    #[serde(default)]
    #[schema(value_type = Option<Name>)]
    account_name: Field<Name>,
    #[serde(default, deserialize_with = "blank_clears")]
    #[schema(value_type = Option<Name>)]
    account_alias: Field<Name>,
    #[serde(default, deserialize_with = "blank_clears")]
    #[schema(value_type = Option<HostName>)]
    domain: Field<HostName>,
    #[serde(default)]
    #[schema(value_type = Option<AccountStatus>)]
    status: Field<String>,
    #[serde(default)]
    #[schema(value_type = Option<Usd>)]
    max_budget: Field<Usd>,
    /// Replaces the operator's notes; the account's settings are not among them.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    metadata: Field<JsonText>,
}

/// Reads `""` as `null`.
fn blank_clears<'de, D, T>(deserializer: D) -> Result<Field<T>, D::Error>
where
    D: Deserializer<'de>,
    T: std::str::FromStr<Err = &'static str>,
{
    blank_is_none(deserializer).map(|value| value.map_or(Field::Clear, Field::Set))
}

/// The status that an account is to have.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StatusChange {
    #[schema(value_type = AccountStatus)]
    status: String,
}

/// Which accounts to list.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct AccountParams {
    /// Only `active` or only `suspended` ones.
    #[param(value_type = Option<AccountStatus>, inline)]
    status: Option<String>,
    /// Only the one of this name.
    account_name: Option<String>,
    /// Only the one with this e-mail domain.
    domain: Option<String>,
}

/// How to remove an account.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct AccountRemoval {
    /// Remove the account's rows for good; without it, the account is suspended.
    #[serde(default)]
    hard_delete: bool,
    /// The account's name, letter by letter, when `hard_delete` is set.
    confirm_name: Option<String>,
}

/// The account of the path.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Path)]
pub struct AtAccount {
    /// The account.
    #[param(value_type = String)]
    pub(super) account_id: Id<Account>,
}

/// What a new account was made of.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct AccountCreated {
    account_id: Id<Account>,
    #[schema(example = "created")]
    status: &'static str,
    item: AccountBundle,
}

/// What has become of an account.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct AccountRemoved {
    /// `suspended` or `deleted`.
    #[schema(example = "suspended")]
    status: &'static str,
    account_id: Id<Account>,
}

pub(super) const ACCOUNT_NOT_FOUND: &str = "Account not found";

fn account_entry(action: Action, account: &Account) -> Entry<'_> {
    Entry { action, table: "Alchemi_AccountTable", id: account.account_id.as_str(), label: Label::Iam }
}

fn account_taken(error: StoreError) -> Halt {
    if error.is_unique("domain") {
        return taken("domain", "Domain already assigned to another account")(error);
    }
    taken("account_name", "Account already exists")(error)
}

fn checked_budget(budget: Usd) -> Result<Usd, Problem> {
    if budget.is_negative() { Err(Problem::invalid("/max_budget", "must be at least 0")) } else { Ok(budget) }
}

/// The account of `tx`, held until the commit.
pub(super) async fn held_account(tx: &mut Tx<Tenant>) -> Result<Account, Halt> {
    Ok(or_404(tx.hold_account().await?, ACCOUNT_NOT_FOUND)?)
}

async fn bundle_of(tx: &mut Tx<Tenant>, account: Account) -> Result<AccountBundle, Halt> {
    Ok(or_404(tx.bundle(account).await?, ACCOUNT_NOT_FOUND)?)
}

/// List accounts
#[utoipa::path(get, path = "/v1/accounts", tag = "accounts", params(AccountParams, PageParams),
    responses((status = 200, description = "A page of accounts, newest first", body = Items<AccountBundle>), Refusals))]
pub async fn list_accounts(
    call: Call<SuperAdmin>,
    Query(params): Query<AccountParams>,
    Paging(slice): Paging<100>,
) -> Outcome {
    let filter = AccountFilter {
        status: params.status.as_deref().map(AccountStatus::parse).transpose()?,
        account_name: params.account_name,
        domain: params.domain.map(|d| d.trim().to_lowercase()),
    };
    let mut tx = call.read().await?;
    let page = tx.accounts(&filter, &slice).await?;
    let next_cursor = page.next.map(|c| c.encode());
    Ok(Answer::of(&Items { items: tx.bundles(page.items).await?, next_cursor }))
}

/// Make an account
///
/// One transaction makes the account, its first admin, the copilot org `global` and the
/// guardrail presets `pii`, `toxic` and `jailbreak`.
/// People and their passwords are in Zitadel: an admin signs in there.
#[utoipa::path(post, path = "/v1/accounts", tag = "accounts", request_body = NewAccount,
    responses((status = 200, description = "The new account", body = AccountCreated), Refusals))]
pub async fn create_account(call: Call<SuperAdmin>, Body(new): Body<NewAccount>) -> Outcome {
    let max_budget = new.max_budget.map(checked_budget).transpose()?;
    let metadata = new.metadata.map(Account::checked_metadata).transpose()?;
    let mut tx = call.begin().await?;
    let account = Account {
        account_alias: new.account_alias.map(Name::into_string),
        domain: new.domain.map(HostName::into_string),
        max_budget,
        metadata: metadata.unwrap_or_else(JsonText::empty_object),
        ..Account::new(
            tx.new_id(),
            new.account_name.into_string(),
            Some(tx.acting().actor.subject.to_string()),
            tx.now(),
        )
    };
    let (account_id, version) = (account.account_id.clone(), account.version);
    tx.insert_account(&account).await.map_err(account_taken)?;
    let mut tx = tx.within(account_id.clone());
    tx.audit(account_entry(Action::Create, &account), None::<&()>, &account).await?;
    if let Some(email) = new.admin_email {
        add_admin(&mut tx, email, AdminRole::default()).await?;
    }
    add_global_org(&mut tx).await?;
    tx.insert_system_presets().await?;
    let item = bundle_of(&mut tx, account).await?;
    call.done_tagged(tx, &AccountCreated { account_id, status: "created", item }, version).await
}

/// The copilot org that every account has from its start.
async fn add_global_org(tx: &mut Tx<Tenant>) -> Result<(), Halt> {
    let org = Org {
        id: tx.new_id(),
        account_id: tx.account().clone(),
        domain: Domain::Copilot,
        name: "global".to_owned(),
        description: Some("Default global organization".to_owned()),
        is_default_global: true,
        created_by: Some(tx.acting().actor.subject.to_string()),
        created_at: tx.now(),
        updated_at: tx.now(),
        version: 1,
    };
    tx.insert_org(&org).await?;
    let entry =
        Entry { action: Action::Create, table: "Alchemi_OrgTable", id: org.id.as_str(), label: Domain::Copilot.into() };
    Ok(tx.audit(entry, None::<&()>, &org).await?)
}

/// Show an account
#[utoipa::path(get, path = "/v1/accounts/{account_id}", tag = "accounts", params(AtAccount),
    responses((status = 200, description = "The account", body = Item<AccountBundle>), Refusals))]
pub async fn get_account(call: Call<SuperAdmin>, Path(AtAccount { account_id: id }): Path<AtAccount>) -> Outcome {
    let mut tx = call.read().await?.within(id);
    let account = or_404(tx.this_account().await?, ACCOUNT_NOT_FOUND)?;
    let version = account.version;
    let item = bundle_of(&mut tx, account).await?;
    Ok(Answer::of(&Item { item }).tagged(version))
}

/// Change an account
#[utoipa::path(patch, path = "/v1/accounts/{account_id}", tag = "accounts", params(AtAccount, IfMatch),
    request_body = AccountChange,
    responses((status = 200, description = "The changed account", body = Item<AccountBundle>), Refusals))]
pub async fn update_account(
    call: Call<SuperAdmin>,
    Path(AtAccount { account_id: id }): Path<AtAccount>,
    Body(change): Body<AccountChange>,
) -> Outcome {
    let change = change.checked()?;
    call.app.store.roll_over(&id).await?;
    let mut tx = call.begin().await?.within(id);
    let before = held_account(&mut tx).await?;
    call.expects(before.version)?;
    let after = change.over(before.clone())?;
    let zone = zone_of(&after.metadata);
    if zone_of(&before.metadata) != zone && !tx.change_zone(zone).await? {
        let detail = "The account's time zone was changed too often: each change may move the end of a budget's window";
        return Err(Problem::conflict("too_many_time_zones", detail).into());
    }
    store_change(&call, tx, &before, after).await
}

impl AccountChange {
    /// Checks what needs no look at the account.
    fn checked(self) -> Result<Self, Problem> {
        let metadata = match self.metadata {
            Field::Set(metadata) => Field::Set(Account::checked_metadata(metadata)?),
            other => other,
        };
        Ok(Self { metadata, ..self })
    }

    fn over(self, old: Account) -> Result<Account, Problem> {
        let empty = self.account_name.is_keep()
            && self.account_alias.is_keep()
            && self.domain.is_keep()
            && self.status.is_keep()
            && self.max_budget.is_keep()
            && self.metadata.is_keep();
        if empty {
            return Err(Problem::bad_request("no_update_fields", "No update fields provided"));
        }
        let status = self.status.over_required(old.status.as_str().to_owned(), "/status")?;
        let metadata = match self.metadata {
            Field::Keep => old.metadata,
            Field::Clear => JsonText::empty_object(),
            Field::Set(metadata) => metadata,
        };
        Ok(Account {
            account_name: self.account_name.map(Name::into_string).over_required(old.account_name, "/account_name")?,
            account_alias: self.account_alias.map(Name::into_string).over(old.account_alias),
            domain: self.domain.map(HostName::into_string).over(old.domain),
            status: AccountStatus::parse(&status)?,
            max_budget: self.max_budget.over(old.max_budget).map(checked_budget).transpose()?,
            metadata,
            ..old
        })
    }
}

/// Writes and audits a changed account, and answers with what it is now.
async fn store_change(call: &Call<SuperAdmin>, mut tx: Tx<Tenant>, before: &Account, after: Account) -> Outcome {
    tx.update_account(&after).await.map_err(account_taken)?;
    if before.status != after.status {
        tx.review_grants().await?;
    }
    let account = held_account(&mut tx).await?;
    tx.audit(account_entry(Action::Update, &account), Some(before), &account).await?;
    let version = account.version;
    let item = bundle_of(&mut tx, account).await?;
    let answer = call.done_tagged(tx, &Item { item }, version).await?;
    call.app.provisioner.wake();
    Ok(answer)
}

/// Suspend or restore an account
///
/// Callers of a suspended account are refused everywhere but at `/v1/me/context`. What was
/// granted for it in Zitadel is taken back until it is restored.
#[utoipa::path(post, path = "/v1/accounts/{account_id}/status", tag = "accounts", params(AtAccount, IfMatch),
    request_body = StatusChange,
    responses((status = 200, description = "The account", body = Item<AccountBundle>), Refusals))]
pub async fn set_account_status(
    call: Call<SuperAdmin>,
    Path(AtAccount { account_id: id }): Path<AtAccount>,
    Body(change): Body<StatusChange>,
) -> Outcome {
    let status = AccountStatus::parse(&change.status)?;
    let mut tx = call.begin().await?.within(id);
    let before = held_account(&mut tx).await?;
    call.expects(before.version)?;
    let after = Account { status, ..before.clone() };
    store_change(&call, tx, &before, after).await
}

/// Suspend an account, or remove it for good
///
/// With `hard_delete=true` every row of the account goes in one transaction. Its audit
/// stays, to be read at `/v1/accounts/{account_id}/audit`, and so do the ledger's totals.
#[utoipa::path(delete, path = "/v1/accounts/{account_id}", tag = "accounts", params(AtAccount, AccountRemoval, IfMatch),
    responses((status = 200, description = "Suspended or deleted", body = AccountRemoved), Refusals))]
pub async fn delete_account(
    call: Call<SuperAdmin>,
    Path(AtAccount { account_id: id }): Path<AtAccount>,
    Query(removal): Query<AccountRemoval>,
) -> Outcome {
    let mut tx = call.begin().await?.within(id.clone());
    let before = held_account(&mut tx).await?;
    call.expects(before.version)?;
    if !removal.hard_delete {
        tx.update_account(&Account { status: AccountStatus::Suspended, ..before.clone() }).await?;
        tx.review_grants().await?;
        let account = held_account(&mut tx).await?;
        tx.audit(account_entry(Action::Update, &account), Some(&before), &account).await?;
        let answer = call.done(tx, &AccountRemoved { status: "suspended", account_id: id }).await?;
        call.app.provisioner.wake();
        return Ok(answer);
    }
    if removal.confirm_name.as_deref() != Some(before.account_name.as_str()) {
        return Err(Problem::bad_request(
            "confirm_name_mismatch",
            "confirm_name must match account_name for hard delete",
        )
        .into());
    }
    tx.retire_grants().await?;
    tx.delete_account().await?;
    let gone = serde_json::json!({ "hard_delete": true });
    tx.audit(account_entry(Action::Delete, &before), Some(&before), &gone).await?;
    let answer = call.done(tx, &AccountRemoved { status: "deleted", account_id: id }).await?;
    call.app.provisioner.wake();
    Ok(answer)
}
