//! `/v1/budgets/copilot/adjustments`: corrections of the ledger, each a row of its own.

use serde::Deserialize;

use super::answer::{Halt, Item, Outcome, Refusals, or_404};
use super::call::{AccountOperator, Call};
use super::directory::ChainQuery;
use super::input::{Body, Query, require};
use super::trial::{Trial, Tried};
use crate::context::{Domain, Tenant};
use crate::credits::{Credits, Factor, MAX_UNITS, Usd};
use crate::id::Id;
use crate::model::audit::{Action, Label};
use crate::model::directory::{Org, Team, User};
use crate::model::text::Description;
use crate::model::usage::{CostSource, CounterKey, Dimensions, EntryKind, LedgerRow, RouteKind, Tokens, UsageEntry};
use crate::policy::budget::Link;
use crate::problem::Problem;
use crate::store::Tx;
use crate::store::audit::Entry;
use crate::store::ledger::Booked;

/// A correction: of one row of the ledger, by `reverses`, or of an amount, by `credits`.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "reverses": "019a3c5e-7d10-7c3a-9b1e-2f6d8a4c0b11",
    "reason": "Recorded twice"
}))]
pub struct NewAdjustment {
    /// The row whose cost is given back, in the windows that it was counted in; once.
    #[serde(default)]
    #[schema(example = "019a3c5e-7d10-7c3a-9b1e-2f6d8a4c0b11")]
    reverses: Option<String>,
    /// Credits to charge in the current window; negative ones are given back.
    #[serde(default)]
    credits: Option<Credits>,
    /// Whose, with `credits`.
    #[serde(default)]
    org_id: Option<Id<Org>>,
    /// Brings its org along.
    #[serde(default)]
    team_id: Option<Id<Team>>,
    /// Without a team and an org: in the team that they joined first.
    #[serde(default)]
    user_id: Option<Id<User>>,
    /// Why; it is kept with the row.
    reason: Description,
}

impl NewAdjustment {
    /// What the row keeps of the request.
    fn metadata(&self) -> String {
        let mut kept = serde_json::json!({"reason": self.reason.as_str()});
        if let (Some(id), Some(kept)) = (&self.reverses, kept.as_object_mut()) {
            kept.insert("reverses".to_owned(), id.as_str().into());
        }
        kept.to_string()
    }
}

/// Correct the ledger
///
/// With `reverses`, what a row cost is given back to every scope and window that it was
/// counted in, once; tokens stay counted. With `credits`, that many are charged or given back
/// now, to the account and to whom the request names: what is given back makes room, also beyond
/// what was used. Either way the correction is a row of
/// its own: what was settled never changes. For operators, in the account that `X-Account-Id`
/// names: it moves what counts towards the limit that they have set for the account.
#[utoipa::path(post, path = "/v1/budgets/copilot/adjustments", tag = "budgets", params(Trial),
    request_body = NewAdjustment,
    responses((status = 200, description = "The correction's row", body = Tried<Item<UsageEntry>>), Refusals))]
pub async fn adjust_usage(
    call: Call<AccountOperator>,
    Query(trial): Query<Trial>,
    Body(new): Body<NewAdjustment>,
) -> Outcome {
    require(!new.reason.as_str().trim().is_empty(), "/reason", "cannot be empty")?;
    let mut tx = call.begin_or_try(&trial).await?;
    let (row, counters) = match (&new.reverses, new.credits) {
        (Some(id), None) => reversal(&mut tx, id, &new).await?,
        (None, Some(credits)) => adjustment(&mut tx, credits, &new).await?,
        _ => return Err(Problem::invalid("/credits", "send either credits, or reverses").into()),
    };
    if !tx.book(&row, counters).await? {
        return Err(Problem::conflict("already_reversed", "The row was reversed before").into());
    }
    if row.credits.is_negative() && tx.booked().await?.credits_incurred.is_negative() {
        let detail = "It would take the account's books below 0: what the row charged was given back in another way";
        return Err(Problem::conflict("not_reversible", detail).into());
    }
    let item = UsageEntry::from(row);
    let entry =
        Entry { action: Action::Create, table: "Alchemi_UsageLedgerTable", id: &item.id, label: Label::Copilot };
    tx.audit(entry, None::<&()>, &item).await?;
    call.done(tx, &Item { item: &item }).await
}

/// What undoes a row.
async fn reversal(tx: &mut Tx<Tenant>, id: &str, new: &NewAdjustment) -> Result<(LedgerRow, Vec<CounterKey>), Halt> {
    let named = new.org_id.is_some() || new.team_id.is_some() || new.user_id.is_some();
    require(!named, "/reverses", "names a row, which says whose it is: leave org_id, team_id and user_id out")?;
    let booked = or_404(tx.booked_row(Domain::Copilot, id).await?, "Usage not found")?;
    if booked.entry == EntryKind::Reversal {
        return Err(Problem::conflict("not_reversible", "The row is a reversal itself").into());
    }
    let lost = booked.request_id.strip_suffix(":lost").filter(|_| booked.entry == EntryKind::Adjustment);
    let credits = match lost {
        // Requests of a lost lease that settle late take their part of the charge back themselves.
        Some(lease) => tx.end_lost_charge(lease).await?.ok_or_else(|| {
            let detail = "The lease is too old for its late requests to be known: give credits back with credits";
            Problem::conflict("not_reversible", detail)
        })?,
        None => booked.credits,
    };
    let Booked { request_id, kind, dimensions, raw_cost, credit_factor, plan_id, cycle_start, counters, .. } = booked;
    let row = LedgerRow {
        kind,
        entry: EntryKind::Reversal,
        dimensions,
        raw_cost: Usd::ZERO.saturating_sub(raw_cost),
        credit_factor,
        plan_id,
        cycle_start,
        day: booked.day,
        ..correction(tx, format!("{request_id}:reversed"), Credits::ZERO.saturating_sub(credits), new)
    };
    Ok((row, counters))
}

/// What charges an amount, or gives it back, in the current window.
async fn adjustment(
    tx: &mut Tx<Tenant>,
    credits: Credits,
    new: &NewAdjustment,
) -> Result<(LedgerRow, Vec<CounterKey>), Halt> {
    require(credits != Credits::ZERO, "/credits", "cannot be 0")?;
    let (org_id, team_id, user_id) = (new.org_id.clone(), new.team_id.clone(), new.user_id.clone());
    let place = ChainQuery { org_id, team_id, user_id }.placement(tx, Domain::Copilot).await?;
    let rules = tx.budget_rules(Some(&place)).await?;
    let books = tx.booked().await?.credits_incurred.saturating_add(credits);
    let within = !books.is_negative() && books <= Credits::from_units(MAX_UNITS);
    require(within, "/credits", "would take the account's books below 0 or above 9000000000")?;
    let links = rules.chain(tx.account(), Domain::Copilot, &place, tx.now());
    let id = tx.new_id::<LedgerRow>().to_string();
    let row = LedgerRow {
        dimensions: Dimensions {
            org_id: place.org.map(|id| id.to_string()),
            team_id: place.team.map(|id| id.to_string()),
            user_id: place.user.map(|id| id.to_string()),
            ..Dimensions::default()
        },
        credit_factor: rules.account.as_ref().map_or(Factor::ONE, |a| a.credit_factor),
        plan_id: rules.plan.as_ref().map(|p| p.id.to_string()),
        cycle_start: rules.plan.as_ref().map(|p| p.window(tx.now(), &rules.calendar).start.as_micros()),
        day: rules.calendar.day_of(tx.now()),
        ..correction(tx, id, credits, new)
    };
    Ok((row, links.iter().map(Link::counter).collect()))
}

/// A correction of nothing in particular.
fn correction(tx: &Tx<Tenant>, request_id: String, credits: Credits, new: &NewAdjustment) -> LedgerRow {
    LedgerRow {
        request_id,
        account_id: tx.account().clone(),
        kind: RouteKind::Chat,
        entry: EntryKind::Adjustment,
        domain: Domain::Copilot,
        dimensions: Dimensions::default(),
        tokens: Tokens::default(),
        raw_cost: Usd::ZERO,
        credit_factor: Factor::ONE,
        credits,
        cost_source: CostSource::Recorded,
        marks: String::new(),
        upstream_call_id: None,
        status: 0,
        duration_us: 0,
        plan_id: None,
        cycle_start: None,
        metadata: new.metadata(),
        day: String::new(),
        created_at: tx.now(),
    }
}
