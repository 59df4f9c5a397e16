//! What scopes have in force, what they have used of it, and what is left.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::sums::{AccountSums, Sums};
use super::{PLAN_NOT_FOUND, read_current, roll_over};
use crate::context::{Domain, Tenant};
use crate::credits::{Credits, Factor};
use crate::id::Id;
use crate::model::accounts::Account;
use crate::model::budgets::{AccountAllocation, Division, EffectiveAllocation, Plan, Window};
use crate::model::directory::Placement;
use crate::model::scope::{Scope, ScopeType};
use crate::policy::budget::{BudgetRules, Link};
use crate::store::Tx;
use crate::store::ledger::Counter;
use crate::store::page::Slice;
use crate::v1::answer::{Answer, Halt, Items, Outcome, Refusals, or_404};
use crate::v1::call::{Call, CopilotAdmin, Member};
use crate::v1::directory::{ChainQuery, Standpoint, StandpointHeaders, StandpointQuery};
use crate::v1::input::{PageParams, Paging, Query};

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
    /// A page of the plan's scopes, newest allocation first; or a subject's chain, the most
    /// specific scope first.
    items: Vec<ScopeBudget>,
    /// Where the next page starts: send it as `cursor`. `null` at the end.
    next_cursor: Option<String>,
}

/// Of which plan.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct OfThisPlan {
    /// The plan; the one in force unless said.
    #[param(value_type = Option<String>)]
    plan_id: Option<Id<Plan>>,
}

/// Show effective allocations
///
/// A page of what a plan gives, newest first; with `org_id`, `team_id` or `user_id` the whole
/// chain of that subject, by the same rules as a request of theirs: of a user in the team that
/// they joined first unless `team_id` is sent.
#[utoipa::path(get, path = "/v1/budgets/copilot/effective-allocation", tag = "budgets",
    params(OfThisPlan, ChainQuery, PageParams),
    responses((status = 200, description = "Allocations with what is used and left", body = EffectiveBudget), Refusals))]
pub async fn get_effective_allocation(
    call: Call<CopilotAdmin>,
    Query(of): Query<OfThisPlan>,
    Query(subject): Query<ChainQuery>,
    Paging(slice): Paging<1000>,
) -> Outcome {
    roll_over(&call).await?;
    let known = call.app.plan_sums.of(call.granted().account());
    let mut tx = call.read().await?;
    let (calendar, account) = tx.account_terms().await?;
    let plan = match &of.plan_id {
        Some(id) => Some(or_404(tx.plan(id).await?, PLAN_NOT_FOUND)?),
        None => tx.active_plan().await?,
    };
    let mut rules = BudgetRules { calendar, account, plan, allocations: Vec::new() };
    if !subject.is_named() {
        return Ok(Answer::of(&whole_plan(&mut tx, rules, &known, &slice).await?));
    }
    let place = subject.placement(&mut tx, Domain::Copilot).await?;
    if let Some(plan) = &rules.plan {
        rules.allocations = tx.effective_allocations(&plan.id, Some(&place)).await?;
    }
    Ok(Answer::of(&chain(&mut tx, &rules, Domain::Copilot, &place).await?))
}

/// A page of what the plan of `rules` gives, with what all of it adds up to.
async fn whole_plan(
    tx: &mut Tx<Tenant>,
    rules: BudgetRules,
    known: &AccountSums,
    slice: &Slice,
) -> Result<EffectiveBudget, Halt> {
    let Some(plan) = &rules.plan else {
        let nothing = Division { allocations: Vec::new(), standings: Vec::new() };
        let sums = Sums::of(&nothing, rules.account.as_ref());
        return Ok(effective(tx, &rules, Some(sums), Items { items: Vec::new(), next_cursor: None }));
    };
    let sums = known.sums(tx, &plan.id, rules.account.as_ref()).await?;
    let page = tx.effective_page(&plan.id, slice).await?;
    let window = plan.window(tx.now(), &rules.calendar);
    let counted = Counted::of(tx, &page.items, window).await?;
    let budgets = page.map(|allocation| counted.budget(&allocation, window));
    Ok(effective(tx, &rules, Some(sums), budgets.into()))
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
    Ok(effective(tx, rules, None, Items { items: budgets, next_cursor: None }))
}

fn effective(tx: &Tx<Tenant>, rules: &BudgetRules, sums: Option<Sums>, page: Items<ScopeBudget>) -> EffectiveBudget {
    let account = rules.account.as_ref();
    let Items { items, next_cursor } = page;
    EffectiveBudget {
        plan_id: rules.plan.as_ref().map(|p| p.id.clone()),
        account_id: tx.account().clone(),
        monthly_credits: account.map(|a| a.monthly_credits).unwrap_or_default(),
        overflow_limit: account.map(|a| a.overflow_limit).unwrap_or_default(),
        credit_factor: account.map_or(Factor::ONE, |a| a.credit_factor),
        sums,
        items,
        next_cursor,
    }
}

/// Counters by scope.
pub(in crate::v1) struct Counted(HashMap<Scope, (Credits, Credits)>);

impl Counted {
    /// Those behind some allocations of a plan, in one of its windows.
    pub(in crate::v1) async fn of(
        tx: &mut Tx<Tenant>,
        allocations: &[EffectiveAllocation],
        window: Window,
    ) -> Result<Self, Halt> {
        let links: Vec<Link> = allocations.iter().map(|allocation| link(allocation, window)).collect();
        Ok(Self::new(tx.counters(&links).await?))
    }

    fn new(counters: Vec<Counter>) -> Self {
        let by_scope = counters.into_iter().map(|c| (Scope::new(c.scope_type, c.scope_id), (c.used, c.leased)));
        Self(by_scope.collect())
    }

    pub(in crate::v1) fn budget(&self, allocation: &EffectiveAllocation, window: Window) -> ScopeBudget {
        self.show(&link(allocation, window), Some(allocation))
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

/// What an allocation adds to a request's chain.
fn link(allocation: &EffectiveAllocation, window: Window) -> Link {
    Link { scope: allocation.scope.clone(), cap: Some(allocation.cap()), window }
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
