//! What an account may spend in a calendar month.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::credits::{Credits, Factor};
use crate::id::Id;
use crate::model::accounts::Account;
use crate::model::audit::{Action, Label};
use crate::model::budgets::{AccountAllocation, Enforcement};
use crate::model::field::Field;
use crate::store::audit::Entry;
use crate::v1::answer::{Answer, Item, Items, Outcome, Refusals, StatusOk, or_404};
use crate::v1::call::{Call, CopilotAdmin, SuperAdmin};
use crate::v1::input::{Body, PageParams, Paging, Query, require};
use crate::v1::trial::{Trial, Tried};

/// What an account may spend from now on.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewAccountAllocation {
    account_id: Id<Account>,
    /// Credits for each calendar month of the account's time zone; absent or null: as it was, at first 0.
    #[serde(default)]
    #[schema(example = 1000)]
    monthly_credits: Option<Credits>,
    /// Credits that may be spent beyond them; absent or null: as it was, at first 0.
    #[serde(default)]
    #[schema(example = 100)]
    overflow_limit: Option<Credits>,
    /// Credits for each US dollar that the upstream charges; absent or null: as it was, at first 1.
    #[serde(default)]
    #[schema(example = 1)]
    credit_factor: Option<Factor>,
    /// What happens to a request that does not fit: `hard` refuses it, `soft` lets it through
    /// and marks its answer and its ledger row, `shadow` lets it through and marks the row
    /// alone, `off` holds nothing. Null: what the gateway's configuration says; absent: as it was.
    #[serde(default)]
    #[schema(value_type = Option<Enforcement>, example = "hard")]
    enforcement: Field<Enforcement>,
}

/// Whose allocation.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct OfAccount {
    /// One account; without it, a page of all.
    #[param(value_type = Option<String>)]
    account_id: Option<Id<Account>>,
}

/// `{"item": …}` with `account_id`, `{"items": …}` without.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum AccountAllocations {
    /// One account's; `null` when it has none.
    One(Item<Option<AccountAllocation>>),
    /// A page, the one that was last set first.
    Page(Items<AccountAllocation>),
}

/// What the caller's account may spend.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Terms {
    /// Whether the account itself has a limit: while nothing was set, 0 credits are none.
    is_capped: bool,
    /// Credits for each month.
    monthly_credits: Credits,
    /// Credits that may be spent beyond them.
    overflow_limit: Credits,
    /// Credits for each US dollar.
    credit_factor: Factor,
    /// What happens to a request that does not fit.
    enforcement: Enforcement,
    /// Since when; absent while nothing was set.
    #[serde(skip_serializing_if = "Option::is_none")]
    effective_from: Option<Timestamp>,
    /// When last set; absent while nothing was set.
    #[serde(skip_serializing_if = "Option::is_none")]
    updated_at: Option<Timestamp>,
}

impl Terms {
    /// With what holds where the account does not say it.
    fn new(allocation: Option<AccountAllocation>, enforcement: Enforcement) -> Self {
        Self {
            is_capped: allocation.is_some(),
            enforcement: allocation.as_ref().and_then(|a| a.enforcement).unwrap_or(enforcement),
            monthly_credits: allocation.as_ref().map(|a| a.monthly_credits).unwrap_or_default(),
            overflow_limit: allocation.as_ref().map(|a| a.overflow_limit).unwrap_or_default(),
            credit_factor: allocation.as_ref().map_or(Factor::ONE, |a| a.credit_factor),
            effective_from: allocation.as_ref().map(|a| a.effective_from),
            updated_at: allocation.as_ref().map(|a| a.updated_at),
        }
    }
}

/// Set what an account may spend
///
/// Holds from now on, for requests that are admitted from now on. A plan that
/// forbids over-commitment does not stand in the operator's way.
#[utoipa::path(post, path = "/v1/budgets/account-allocation", tag = "budgets", params(Trial), request_body = NewAccountAllocation,
    responses((status = 200, description = "Set", body = Tried<StatusOk>), Refusals))]
pub async fn set_account_allocation(
    call: Call<SuperAdmin>,
    Query(trial): Query<Trial>,
    Body(new): Body<NewAccountAllocation>,
) -> Outcome {
    let not_negative = |credits: Option<Credits>| !credits.is_some_and(Credits::is_negative);
    require(not_negative(new.monthly_credits), "/monthly_credits", "cannot be negative")?;
    require(not_negative(new.overflow_limit), "/overflow_limit", "cannot be negative")?;
    require(new.credit_factor.is_none_or(|factor| factor.nanos() > 0), "/credit_factor", "must be above 0")?;
    call.app.store.roll_over(&new.account_id).await?;
    let mut tx = call.begin_or_try(&trial).await?.within(new.account_id.clone());
    or_404(tx.this_account().await?, "Account not found")?;
    let before = tx.account_allocation().await?;
    let allocation = AccountAllocation {
        account_id: new.account_id,
        monthly_credits: new.monthly_credits.or(before.as_ref().map(|a| a.monthly_credits)).unwrap_or_default(),
        overflow_limit: new.overflow_limit.or(before.as_ref().map(|a| a.overflow_limit)).unwrap_or_default(),
        credit_factor: new.credit_factor.or(before.as_ref().map(|a| a.credit_factor)).unwrap_or(Factor::ONE),
        enforcement: new.enforcement.over(before.as_ref().and_then(|a| a.enforcement)),
        effective_from: tx.now(),
        updated_by: super::acting(&tx),
        created_at: tx.now(),
        updated_at: tx.now(),
        version: 1,
    };
    let after = tx.put_account_allocation(&allocation).await?;
    let id = after.account_id.clone();
    let entry = Entry {
        action: Action::Upsert,
        table: "Alchemi_AccountAllocationTable",
        id: id.as_str(),
        label: Label::Billing,
    };
    tx.audit(entry, before.as_ref(), &after).await?;
    call.done(tx, &StatusOk::OK).await
}

/// Show what an account may spend, or what each account may
#[utoipa::path(get, path = "/v1/budgets/account-allocation", tag = "budgets", params(OfAccount, PageParams),
    responses((status = 200, description = "One account's, or a page of all", body = AccountAllocations), Refusals))]
pub async fn list_account_allocations(
    call: Call<SuperAdmin>,
    Query(of): Query<OfAccount>,
    Paging(slice): Paging<100>,
) -> Outcome {
    let mut tx = call.read().await?;
    let Some(account) = of.account_id else {
        let page = tx.account_allocations(&slice).await?;
        return Ok(Answer::of(&AccountAllocations::Page(page.into())));
    };
    let item = tx.within(account).account_allocation().await?;
    let version = item.as_ref().map(|a| a.version);
    let answer = Answer::of(&AccountAllocations::One(Item { item }));
    Ok(version.into_iter().fold(answer, Answer::tagged))
}

/// Show what the caller's account may spend
#[utoipa::path(get, path = "/v1/budgets/copilot/account-allocation", tag = "budgets",
    responses((status = 200, description = "Zeros and a factor of 1 while nothing was set", body = Terms), Refusals))]
pub async fn get_account_allocation(call: Call<CopilotAdmin>) -> Outcome {
    let allocation = call.read().await?.account_allocation().await?;
    Ok(Answer::of(&Terms::new(allocation, call.app.allocation.enforcement)))
}
