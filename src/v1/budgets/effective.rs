//! What scopes have in force, what they have used of it, and what is left.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{PLAN_NOT_FOUND, read_current, require};
use crate::context::{Domain, Tenant};
use crate::credits::{Credits, Factor};
use crate::id::Id;
use crate::model::accounts::Account;
use crate::model::budgets::{AccountAllocation, Division, EffectiveAllocation, Plan, Window};
use crate::model::directory::{Org, Placement, Team, User};
use crate::model::scope::{Scope, ScopeType};
use crate::policy::budget::{BudgetRules, Link};
use crate::store::Tx;
use crate::store::ledger::Counter;
use crate::v1::answer::{Answer, Halt, Outcome, Refusals, or_404};
use crate::v1::call::{Call, CopilotAdmin, Member};
use crate::v1::directory::{Standpoint, StandpointHeaders, StandpointQuery, check_scope, not_found};
use crate::v1::input::Query;

/// One scope's budget in its current window, by the counters that requests are held to.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ScopeBudget {
    /// The kind of scope.
    scope_type: ScopeType,
    /// The scope.
    scope_id: String,
    /// What was allocated; null: nothing, the scope is only counted.
    base_allocated: Option<Credits>,
    /// The override that counts, else what was allocated.
    effective_allocated: Option<Credits>,
    /// Whether an override counts.
    override_applied: bool,
    /// Credits that may be spent beyond.
    overflow_cap: Option<Credits>,
    /// The most that may be used and held together; null: no limit.
    pub(in crate::v1) cap: Option<Credits>,
    /// Credits of settled requests.
    pub(in crate::v1) used: Credits,
    /// Credits that requests under way and gateways hold.
    pub(in crate::v1) reserved: Credits,
    /// What is left of the cap; null: no limit.
    pub(in crate::v1) remaining: Option<Credits>,
    /// What the figures are counted in.
    pub(in crate::v1) window: Window,
}

/// Budgets of a plan's scopes, or of one subject's chain.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct EffectiveBudget {
    /// The plan; null: none is in force.
    plan_id: Option<Id<Plan>>,
    /// The account.
    account_id: Id<Account>,
    /// The account's credits for each month.
    monthly_credits: Credits,
    /// Credits that the account may spend beyond them.
    overflow_limit: Credits,
    /// Credits for each US dollar.
    credit_factor: Factor,
    /// How the plan divides the account's credits; absent in a subject's chain.
    #[serde(flatten)]
    #[schema(value_type = Sums)]
    sums: Option<Sums>,
    /// The scopes; of a subject's chain the most specific one first.
    items: Vec<ScopeBudget>,
}

/// How a plan divides the account's credits.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Sums {
    /// What the plan gives out, each credit counted once: a team's share of its
    /// org's is not added to it.
    #[schema(required = false)]
    distributed: Credits,
    /// The monthly credits without that; negative: over-committed.
    #[schema(required = false)]
    unallocated: Credits,
    /// Of the account, its orgs and teams, the most that is promised for each credit that
    /// there is; above 1: over-committed. Null where nothing limits.
    #[schema(required = false)]
    over_commit_ratio: Option<f64>,
}

/// Whose budget.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct OfSubject {
    /// The plan; the one in force unless said.
    #[param(value_type = Option<String>)]
    plan_id: Option<Id<Plan>>,
    /// Only the chain of this org.
    #[param(value_type = Option<String>)]
    org_id: Option<Id<Org>>,
    /// Only the chain of this team.
    #[param(value_type = Option<String>)]
    team_id: Option<Id<Team>>,
    /// Only the chain of this user; in the team that they joined first unless `team_id` is sent.
    #[param(value_type = Option<String>)]
    user_id: Option<Id<User>>,
}

/// Show effective allocations
///
/// Of every scope of a plan; with `org_id`, `team_id` or `user_id` of that subject's
/// chain, by the same rules as a request of theirs.
#[utoipa::path(get, path = "/v1/budgets/copilot/effective-allocation", tag = "budgets", params(OfSubject),
    responses((status = 200, description = "Allocations with what is used and left", body = EffectiveBudget), Refusals))]
pub async fn get_effective_allocation(call: Call<CopilotAdmin>, Query(of): Query<OfSubject>) -> Outcome {
    let mut tx = read_current(&call).await?;
    let (zone, account) = tx.account_terms().await?;
    let plan = match &of.plan_id {
        Some(id) => Some(or_404(tx.plan(id).await?, PLAN_NOT_FOUND)?),
        None => tx.active_plan().await?,
    };
    let mut rules = BudgetRules { zone, account, plan, allocations: Vec::new() };
    if of.org_id.is_none() && of.team_id.is_none() && of.user_id.is_none() {
        return Ok(Answer::of(&whole_plan(&mut tx, rules).await?));
    }
    let place =
        placement(&mut tx, Domain::Copilot, of.org_id.as_ref(), of.team_id.as_ref(), of.user_id.as_ref()).await?;
    if let Some(plan) = &rules.plan {
        rules.allocations = tx.effective_allocations(&plan.id, Some(&place)).await?;
    }
    Ok(Answer::of(&chain(&mut tx, &rules, Domain::Copilot, &place).await?))
}

/// Every allocation of the plan of `rules`.
async fn whole_plan(tx: &mut Tx<Tenant>, rules: BudgetRules) -> Result<EffectiveBudget, Halt> {
    let (division, budgets) = match &rules.plan {
        Some(plan) => {
            let division = tx.division(&plan.id).await?;
            let window = plan.window(tx.now(), &rules.zone);
            let counted = Counted::new(tx.counters_from(window.start).await?);
            let budgets = division.allocations.iter().map(|a| counted.budget(a, window)).collect();
            (division, budgets)
        }
        None => (Division { allocations: Vec::new(), standings: Vec::new() }, Vec::new()),
    };
    let monthly = rules.account.as_ref().map(|a| a.monthly_credits).unwrap_or_default();
    let distributed = division.distributed();
    let sums = Sums {
        distributed,
        unallocated: monthly.saturating_sub(distributed),
        over_commit_ratio: division.over_commit_ratio(rules.account.as_ref()),
    };
    Ok(effective(tx, &rules, Some(sums), budgets))
}

/// What a request of `place` would be counted under.
async fn chain(
    tx: &mut Tx<Tenant>,
    rules: &BudgetRules,
    domain: Domain,
    place: &Placement,
) -> Result<EffectiveBudget, Halt> {
    let links = rules.chain(tx.account(), domain, place, tx.now());
    let counted = Counted::new(tx.counters(&links).await?);
    let budgets = links.iter().rev().map(|link| counted.link(link, rules)).collect();
    Ok(effective(tx, rules, None, budgets))
}

fn effective(tx: &Tx<Tenant>, rules: &BudgetRules, sums: Option<Sums>, items: Vec<ScopeBudget>) -> EffectiveBudget {
    let account = rules.account.as_ref();
    EffectiveBudget {
        plan_id: rules.plan.as_ref().map(|p| p.id.clone()),
        account_id: tx.account().clone(),
        monthly_credits: account.map(|a| a.monthly_credits).unwrap_or_default(),
        overflow_limit: account.map(|a| a.overflow_limit).unwrap_or_default(),
        credit_factor: account.map_or(Factor::ONE, |a| a.credit_factor),
        sums,
        items,
    }
}

/// Counters by scope.
pub(in crate::v1) struct Counted(HashMap<Scope, (Credits, Credits)>);

impl Counted {
    pub(in crate::v1) fn new(counters: Vec<Counter>) -> Self {
        let by_scope = counters.into_iter().map(|c| (Scope::new(c.scope_type, c.scope_id), (c.used, c.leased)));
        Self(by_scope.collect())
    }

    pub(in crate::v1) fn budget(&self, allocation: &EffectiveAllocation, window: Window) -> ScopeBudget {
        let link = Link { scope: allocation.scope.clone(), cap: Some(allocation.cap()), window };
        self.show(&link, Some(allocation))
    }

    /// A link with what its cap comes from.
    fn link(&self, link: &Link, rules: &BudgetRules) -> ScopeBudget {
        let whole = rules.account.as_ref().filter(|_| link.scope.scope_type == ScopeType::Account);
        let whole = whole.map(AccountAllocation::whole);
        let own = rules.allocations.iter().find(|a| a.scope == link.scope);
        self.show(link, whole.as_ref().or(own))
    }

    fn show(&self, link: &Link, allocation: Option<&EffectiveAllocation>) -> ScopeBudget {
        let (used, reserved) = self.0.get(&link.scope).copied().unwrap_or_default();
        let left = |cap: Credits| cap.saturating_sub(used).saturating_sub(reserved).max(Credits::ZERO);
        ScopeBudget {
            scope_type: link.scope.scope_type,
            scope_id: link.scope.scope_id.clone(),
            base_allocated: allocation.map(|a| a.base),
            effective_allocated: allocation.map(|a| a.effective),
            override_applied: allocation.is_some_and(|a| a.overridden),
            overflow_cap: allocation.and_then(|a| a.overflow_cap),
            cap: link.cap,
            used,
            reserved,
            remaining: link.cap.map(left),
            window: link.window,
        }
    }
}

/// Where a subject stands that is named by its parts, each of which must exist. A
/// team brings its org, a user without a team the team that they joined first.
pub(in crate::v1) async fn placement(
    tx: &mut Tx<Tenant>,
    domain: Domain,
    org: Option<&Id<Org>>,
    team: Option<&Id<Team>>,
    user: Option<&Id<User>>,
) -> Result<Placement, Halt> {
    let mut place = Placement { team: team.cloned(), org: org.cloned(), ..Placement::default() };
    if let Some(id) = org {
        check_scope(tx, domain, &Scope::new(ScopeType::Org, id.as_str())).await?;
    }
    if let Some(id) = team {
        let team = tx.team(domain, id).await?.ok_or_else(|| not_found(domain, ScopeType::Team))?;
        require(org.is_none_or(|org| *org == team.org_id), "/org_id", "is not the team's org")?;
        place.org = Some(team.org_id);
    }
    if let Some(id) = user {
        let user = tx.user(domain, id).await?.ok_or_else(|| not_found(domain, ScopeType::User))?;
        if team.is_none() && org.is_none() {
            let first = tx.first_team(domain, &user.id).await?;
            place.team = first.as_ref().map(|t| t.id.clone());
            place.org = first.map(|t| t.org_id);
        }
        place.status = Some(user.status);
        place.user = Some(user.id);
    }
    Ok(place)
}

/// Show the caller's own budget
///
/// Every scope that a request of theirs is counted under, the most specific one
/// first, with what is left of each.
#[utoipa::path(get, path = "/v1/me/allocation", tag = "self-service", params(StandpointQuery, StandpointHeaders),
    responses((status = 200, description = "The caller's chain", body = EffectiveBudget), Refusals))]
pub async fn get_own_allocation(call: Call<Member>, standpoint: Standpoint) -> Outcome {
    let mut tx = read_current(&call).await?;
    let place = standpoint.place(&mut tx, &call.context).await?;
    let rules = tx.budget_rules(Some(&place)).await?;
    Ok(Answer::of(&chain(&mut tx, &rules, standpoint.domain, &place).await?))
}
