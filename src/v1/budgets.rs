//! `/v1/budgets/…`: the account's allocation, plans, allocations, overrides and cycles.

use serde::{Deserialize, Serialize};

use super::accounts::ACCOUNT_NOT_FOUND;
use super::answer::{Halt, or_404};
use super::call::{Call, Guard};
use super::directory::hold_scope;
use super::input::require;
use crate::context::{Domain, Tenant};
use crate::id::Id;
use crate::model::audit::{Action, Label};
use crate::model::budgets::{Commitment, OverCommit, Plan, PlanStatus, newly_exceeded};
use crate::model::directory::User;
use crate::model::scope::{Scope, ScopeType};
use crate::policy::budget::POOL;
use crate::problem::Problem;
use crate::store::Tx;
use crate::store::audit::Entry;

pub mod account;
pub mod alerts;
pub mod allocations;
pub mod cycles;
pub mod effective;
pub mod overrides;
pub mod plans;
pub(super) mod sums;

pub(super) const PLAN_NOT_FOUND: &str = "Budget plan not found";

/// The plan that a list or a report is about.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct OfPlan {
    /// Only this plan.
    #[param(value_type = Option<String>)]
    pub(super) plan_id: Option<Id<Plan>>,
}

fn entry<'a>(action: Action, table: &'static str, id: &'a str) -> Entry<'a> {
    Entry { action, table, id, label: Label::Copilot }
}

/// Who acts, for `created_by`.
fn acting(tx: &Tx<Tenant>) -> Option<String> {
    Some(tx.acting().actor.subject.to_string())
}

/// Carries over what windows have left that ended since somebody last looked.
pub(super) async fn roll_over<G: Guard<Reach = Tenant>>(call: &Call<G>) -> Result<(), Halt> {
    call.app.store.roll_over(call.granted().account()).await?;
    Ok(())
}

/// A transaction that reads budgets as they are in their present windows.
pub(super) async fn read_current<G: Guard<Reach = Tenant>>(call: &Call<G>) -> Result<Tx<Tenant>, Halt> {
    roll_over(call).await?;
    call.read().await
}

/// What was written, with how much more is promised than there is.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Divided<T> {
    #[serde(flatten)]
    written: T,
    /// Of the account, its orgs and teams, the most that is promised for each credit that
    /// there is; above 1: over-committed. Null where nothing limits.
    over_commit_ratio: Option<f64>,
}

/// A scope of the copilot tree, or the pool, that stays until the end of the transaction.
async fn held_scope(tx: &mut Tx<Tenant>, kind: ScopeType, id: &str) -> Result<Scope, Halt> {
    require(kind != ScopeType::Pool || id == POOL, "/scope_id", "must be pool: there is one pool in a plan")?;
    let scope = Scope::new(kind, id);
    hold_scope(tx, Domain::Copilot, &scope).await?;
    Ok(scope)
}

/// A plan that is being divided anew: its row is locked, and where it forbids
/// over-commitment, what was promised before is kept to compare with.
pub(super) struct Dividing {
    plan: Plan,
    before: Option<Vec<Commitment>>,
}

impl Dividing {
    async fn begin(tx: &mut Tx<Tenant>, plan: &Id<Plan>) -> Result<Self, Halt> {
        let plan = or_404(tx.locked_plan(plan).await?, PLAN_NOT_FOUND)?;
        Self::of(tx, plan).await
    }

    /// A held plan before a user is made a member of a team; none where they have no share, which
    /// is all that they could bring along.
    pub(super) async fn by_members(tx: &mut Tx<Tenant>, plan: &Plan, user: &Id<User>) -> Result<Option<Self>, Halt> {
        if plan.over_commit == OverCommit::Allow {
            return Ok(None);
        }
        let share = tx.allocation(&plan.id, &Scope::new(ScopeType::User, user.as_str())).await?;
        if share.is_some() { Self::of(tx, plan.clone()).await.map(Some) } else { Ok(None) }
    }

    async fn of(tx: &mut Tx<Tenant>, plan: Plan) -> Result<Self, Halt> {
        let before = match plan.over_commit {
            OverCommit::Allow => None,
            OverCommit::Forbid => {
                let (_, account) = tx.account_terms().await?;
                Some(tx.division(&plan.id).await?.commitments(account.as_ref()))
            }
        };
        Ok(Self { plan, before })
    }

    /// Refuses what was written since, if the plan forbids it and more is promised now than
    /// there is; else says how much is, beside what was `written`.
    pub(super) async fn check<T>(&self, tx: &mut Tx<Tenant>, written: T) -> Result<Divided<T>, Halt> {
        let (_, account) = tx.account_terms().await?;
        let division = tx.division(&self.plan.id).await?;
        if let Some(before) = &self.before {
            let after = division.commitments(account.as_ref());
            newly_exceeded(before, &after).map_or(Ok(()), |c| Err(over_committed(&c)))?;
        }
        Ok(Divided { written, over_commit_ratio: division.over_commit_ratio(account.as_ref()) })
    }
}

/// The plan in force, whose row is locked: nobody divides it, or changes who is in a team,
/// meanwhile. It comes before the scopes, in the order in which who divides a plan locks. None in
/// the console, which has no plans; and as long as there is no plan yet, when the account's row is
/// locked instead, which whoever makes the first one needs.
pub(super) async fn held_plan(tx: &mut Tx<Tenant>, domain: Domain) -> Result<Option<Plan>, Halt> {
    if domain == Domain::Console {
        return Ok(None);
    }
    let mut active = tx.active_plan().await?;
    if active.is_none() {
        or_404(tx.hold_account().await?, ACCOUNT_NOT_FOUND)?;
        active = tx.active_plan().await?;
    }
    let Some(plan) = active else { return Ok(None) };
    let held = tx.locked_plan(&plan.id).await?.filter(|plan| plan.status == PlanStatus::Active);
    Ok(Some(held.ok_or_else(|| Problem::conflict("already_exists", plans::OVERTAKEN))?))
}

/// Refuses a plan that forbids over-commitment and is over-committed.
async fn require_kept(tx: &mut Tx<Tenant>, plan: &Plan) -> Result<(), Halt> {
    if plan.over_commit == OverCommit::Forbid {
        let (_, account) = tx.account_terms().await?;
        let promised = tx.division(&plan.id).await?.commitments(account.as_ref());
        newly_exceeded(&[], &promised).map_or(Ok(()), |c| Err(over_committed(&c)))?;
    }
    Ok(())
}

/// 409: the allocations inside a scope would add up to more than its own.
fn over_committed(commitment: &Commitment) -> Problem {
    let Commitment { of, limit, promised } = commitment;
    let detail = format!(
        "The allocations inside {of} would add up to {promised} credits of {limit}: \
         lower them, or set the plan's over_commit to allow"
    );
    Problem::conflict("over_committed", detail)
        .with("scope_type", of.scope_type)
        .with("scope_id", &of.scope_id)
        .with("limit", limit)
        .with("promised", promised)
}
