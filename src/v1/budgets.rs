//! `/v1/budgets/…`: the account's allocation, plans, allocations, overrides and cycles.

use serde::Deserialize;

use super::answer::{Halt, or_404};
use super::directory::hold_scope;
use crate::context::{Domain, Tenant};
use crate::id::Id;
use crate::model::audit::{Action, Label};
use crate::model::budgets::{AccountAllocation, Commitment, OverCommit, Plan, newly_exceeded};
use crate::model::scope::{Scope, ScopeType};
use crate::policy::budget::POOL;
use crate::problem::Problem;
use crate::store::Tx;
use crate::store::audit::Entry;

pub mod account;
pub mod allocations;
pub mod cycles;
pub mod effective;
pub mod overrides;
pub mod plans;

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

/// 422 at `pointer` unless `holds`.
pub(super) fn require(holds: bool, pointer: &str, detail: &str) -> Result<(), Problem> {
    if holds { Ok(()) } else { Err(Problem::invalid(pointer, detail)) }
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
struct Dividing {
    plan: Plan,
    before: Option<Promised>,
}

struct Promised {
    account: Option<AccountAllocation>,
    commitments: Vec<Commitment>,
}

impl Dividing {
    async fn begin(tx: &mut Tx<Tenant>, plan: &Id<Plan>) -> Result<Self, Halt> {
        let plan = or_404(tx.locked_plan(plan).await?, PLAN_NOT_FOUND)?;
        let before = match plan.over_commit {
            OverCommit::Allow => None,
            OverCommit::Forbid => {
                let (_, account) = tx.account_terms().await?;
                let commitments = tx.division(&plan.id).await?.commitments(account.as_ref());
                Some(Promised { account, commitments })
            }
        };
        Ok(Self { plan, before })
    }

    /// Refuses what was written since, if more is promised now than there is.
    async fn check(&self, tx: &mut Tx<Tenant>) -> Result<(), Halt> {
        let Some(Promised { account, commitments: before }) = &self.before else { return Ok(()) };
        let after = tx.division(&self.plan.id).await?.commitments(account.as_ref());
        newly_exceeded(before, &after).map_or(Ok(()), |c| Err(over_committed(&c).into()))
    }
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
