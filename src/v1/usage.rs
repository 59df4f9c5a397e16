//! What was used of which budget: effective allocations, alerts, recorded usage,
//! and what holds for the caller.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::answer::{Answer, Halt, Item, Items, Outcome, Refusals, or_404};
use super::budgets::{OfPlan, PLAN_NOT_FOUND, existing_scope, require};
use super::call::{Call, CopilotAdmin, Member};
use super::input::{Body, PageParams, Paging, Query};
use crate::clock::Timestamp;
use crate::context::{Domain, Tenant};
use crate::credits::{Credits, Factor, MAX_UNITS, Usd};
use crate::id::Id;
use crate::model::accounts::{Account, JsonText};
use crate::model::audit::{Action, Label};
use crate::model::budgets::{Division, EffectiveAllocation, Plan, Window, day_of};
use crate::model::directory::{Org, Placement, Team, User};
use crate::model::scope::{Scope, ScopeType};
use crate::model::text::Name;
use crate::model::usage::{CostSource, Dimensions, EntryKind, LedgerRow, RouteKind, Tokens, UsageEntry};
use crate::policy::budget::{BudgetRules, Link};
use crate::problem::Problem;
use crate::store::Tx;
use crate::store::audit::Entry;
use crate::store::ledger::Counter;
use crate::store::usage::CostFilter;

/// One scope's budget in its current window.
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
    cap: Option<Credits>,
    /// Credits of settled requests.
    used: Credits,
    /// Credits that requests under way hold.
    reserved: Credits,
    /// What is left of the cap; null: no limit.
    remaining: Option<Credits>,
    /// What the figures are counted in.
    window: Window,
}

/// Budgets of a plan's scopes, or of one subject's chain.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct EffectiveBudget {
    /// The plan; null: none is in force.
    #[schema(value_type = Option<String>)]
    plan_id: Option<Id<Plan>>,
    /// The account.
    #[schema(value_type = String)]
    account_id: Id<Account>,
    /// The account's credits for each month.
    monthly_credits: Credits,
    /// Credits that the account may spend beyond them.
    overflow_limit: Credits,
    /// Credits for each US dollar.
    credit_factor: Factor,
    /// How the plan divides the account's credits; absent in a subject's chain.
    #[serde(flatten)]
    sums: Option<Sums>,
    /// The scopes; of a subject's chain the most specific one first.
    items: Vec<ScopeBudget>,
}

/// How a plan divides the account's credits.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Sums {
    /// What the plan gives out, each credit counted once: a team's share of its
    /// org's is not added to it.
    distributed: Credits,
    /// The monthly credits without that; negative: over-committed.
    unallocated: Credits,
    /// Distributed credits for each monthly one; above 1: over-committed. Null
    /// without monthly credits.
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
    let mut tx = call.read().await?;
    let (zone, account) = tx.account_terms().await?;
    let plan = match &of.plan_id {
        Some(id) => Some(or_404(tx.plan(id).await?, PLAN_NOT_FOUND)?),
        None => tx.active_plan().await?,
    };
    let mut rules = BudgetRules { zone, account, plan, allocations: Vec::new() };
    if of.org_id.is_none() && of.team_id.is_none() && of.user_id.is_none() {
        return Ok(Answer::of(&whole_plan(&mut tx, rules).await?));
    }
    let place = placement(&mut tx, of.org_id.as_ref(), of.team_id.as_ref(), of.user_id.as_ref()).await?;
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
        over_commit_ratio: (monthly > Credits::ZERO).then(|| distributed.percent_of(monthly) / 100.0),
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
struct Counted(HashMap<Scope, (Credits, Credits)>);

impl Counted {
    fn new(counters: Vec<Counter>) -> Self {
        let by_scope = counters.into_iter().map(|c| (Scope::new(c.scope_type, c.scope_id), (c.used, c.leased)));
        Self(by_scope.collect())
    }

    fn used(&self, scope: &Scope) -> Credits {
        self.0.get(scope).map(|(used, _)| *used).unwrap_or_default()
    }

    fn budget(&self, allocation: &EffectiveAllocation, window: Window) -> ScopeBudget {
        let link = Link { scope: allocation.scope.clone(), cap: Some(allocation.cap()), window };
        self.show(&link, Some(allocation))
    }

    /// A link with what its cap comes from.
    fn link(&self, link: &Link, rules: &BudgetRules) -> ScopeBudget {
        let whole = rules.account.as_ref().filter(|_| link.scope.scope_type == ScopeType::Account);
        let whole = whole.map(|account| EffectiveAllocation {
            scope: link.scope.clone(),
            base: account.monthly_credits,
            effective: account.monthly_credits,
            overridden: false,
            overflow_cap: Some(account.overflow_limit),
        });
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
async fn placement(
    tx: &mut Tx<Tenant>,
    org: Option<&Id<Org>>,
    team: Option<&Id<Team>>,
    user: Option<&Id<User>>,
) -> Result<Placement, Halt> {
    let mut place = Placement { team: team.cloned(), org: org.cloned(), ..Placement::default() };
    if let Some(id) = org {
        existing_scope(tx, ScopeType::Org, id.as_str()).await?;
    }
    if let Some(id) = team {
        let team = or_404(tx.team(Domain::Copilot, id).await?, "copilot team not found")?;
        require(org.is_none_or(|org| *org == team.org_id), "/org_id", "is not the team's org")?;
        place.org = Some(team.org_id);
    }
    if let Some(id) = user {
        let user = or_404(tx.user(Domain::Copilot, id).await?, "copilot user not found")?;
        place.status = Some(user.status);
        place.user = Some(user.id);
        if team.is_none() && org.is_none() {
            stand_in_first_team(tx, Domain::Copilot, &mut place).await?;
        }
    }
    Ok(place)
}

/// Where the caller stands.
async fn own_place(tx: &mut Tx<Tenant>, call: &Call<Member>, domain: Domain) -> Result<Placement, Halt> {
    let actor = call.context.actor();
    let user = tx.user_by_identity(domain, Some(&actor.subject), actor.email.as_deref()).await?;
    let mut place = Placement { status: user.as_ref().map(|u| u.status), ..Placement::default() };
    place.user = user.map(|u| u.id);
    stand_in_first_team(tx, domain, &mut place).await?;
    Ok(place)
}

async fn stand_in_first_team(tx: &mut Tx<Tenant>, domain: Domain, place: &mut Placement) -> Result<(), Halt> {
    let Some(user) = &place.user else { return Ok(()) };
    if let Some(first) = tx.places_of(domain, user).await?.into_iter().next() {
        place.team = Some(first.team_id);
        place.org = Some(first.org_id);
    }
    Ok(())
}

/// What a scope has used of its share in the current window.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ScopeUsage {
    /// The kind of scope.
    scope_type: ScopeType,
    /// The scope.
    scope_id: String,
    /// What it has: the override that counts, else what was allocated.
    allocated_credits: Credits,
    /// Credits of settled requests.
    used: Credits,
    /// Used of allocated; 0 when nothing is allocated.
    #[schema(example = 81.5)]
    usage_percentage: f64,
    /// Credits that may be spent beyond.
    overflow_cap: Option<Credits>,
    /// Credits that were.
    overflow_used: Credits,
}

/// What a plan's scopes have used.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct UsageByScope {
    /// The plan; null: none is in force.
    #[schema(value_type = Option<String>)]
    plan_id: Option<Id<Plan>>,
    /// Its scopes.
    items: Vec<ScopeUsage>,
}

/// Show what a plan's scopes have used
///
/// In the plan's current window, of the plan in force unless `plan_id` is sent.
#[utoipa::path(get, path = "/v1/budgets/copilot/usage-by-scope", tag = "budgets", params(OfPlan),
    responses((status = 200, description = "Usage of each allocated scope", body = UsageByScope), Refusals))]
pub async fn get_usage_by_scope(call: Call<CopilotAdmin>, Query(of): Query<OfPlan>) -> Outcome {
    let mut tx = call.read().await?;
    let plan = match &of.plan_id {
        Some(id) => Some(or_404(tx.plan(id).await?, PLAN_NOT_FOUND)?),
        None => tx.active_plan().await?,
    };
    let items = match &plan {
        Some(plan) => scope_usage(&mut tx, plan).await?,
        None => Vec::new(),
    };
    Ok(Answer::of(&UsageByScope { plan_id: plan.map(|p| p.id), items }))
}

async fn scope_usage(tx: &mut Tx<Tenant>, plan: &Plan) -> Result<Vec<ScopeUsage>, Halt> {
    let (zone, _) = tx.account_terms().await?;
    let allocations = tx.effective_allocations(&plan.id, None).await?;
    let counted = Counted::new(tx.counters_from(plan.window(tx.now(), &zone).start).await?);
    Ok(allocations.into_iter().map(|a| ScopeUsage::of(counted.used(&a.scope), a)).collect())
}

impl ScopeUsage {
    fn of(used: Credits, allocation: EffectiveAllocation) -> Self {
        Self {
            scope_type: allocation.scope.scope_type,
            scope_id: allocation.scope.scope_id,
            allocated_credits: allocation.effective,
            used,
            usage_percentage: used.percent_of(allocation.effective),
            overflow_cap: allocation.overflow_cap,
            overflow_used: used.saturating_sub(allocation.effective).max(Credits::ZERO),
        }
    }
}

/// From where on a budget is worth telling.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Threshold {
    /// Per cent of what is allocated.
    #[param(minimum = 0, maximum = 1000)]
    #[serde(default = "eighty")]
    threshold: f64,
}

fn eighty() -> f64 {
    80.0
}

/// How near a budget is to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AlertLevel {
    /// Below 90 per cent.
    Warning,
    /// From 90 per cent on.
    Critical,
    /// From 100 per cent on.
    Exceeded,
}

impl AlertLevel {
    fn of(percentage: f64) -> Self {
        match percentage {
            p if p >= 100.0 => Self::Exceeded,
            p if p >= 90.0 => Self::Critical,
            _ => Self::Warning,
        }
    }
}

/// A budget that nears its end.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Alert {
    /// Whose: the name, a user's e-mail address, else the id.
    #[schema(example = "Research")]
    entity_name: String,
    /// Used of allocated in the current window.
    usage_percentage: f64,
    /// How near.
    alert_level: AlertLevel,
    /// Which budget.
    budget: AlertBudget,
}

/// Which budget an alert is about.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct AlertBudget {
    /// `ACCOUNT`, `ORG`, `TEAM`, `USER` or `POOL`.
    #[schema(example = "ORG")]
    entity_type: String,
    /// The scope.
    entity_id: String,
}

/// `{"items": […]}`
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Alerts {
    /// The nearest to its end first.
    items: Vec<Alert>,
}

/// Show budgets that near their end
///
/// The account's month and the scopes of the plan in force, each in its current window.
#[utoipa::path(get, path = "/v1/budgets/copilot/alerts", tag = "budgets", params(Threshold),
    responses((status = 200, description = "Budgets at or above the threshold", body = Alerts), Refusals))]
pub async fn list_budget_alerts(call: Call<CopilotAdmin>, Query(of): Query<Threshold>) -> Outcome {
    require((0.0..=1000.0).contains(&of.threshold), "threshold", "must be 0 to 1000")?;
    let mut tx = call.read().await?;
    let mut usages = Vec::from_iter(account_usage(&mut tx).await?);
    let mut names = HashMap::new();
    if let Some(plan) = tx.active_plan().await? {
        usages.extend(scope_usage(&mut tx, &plan).await?);
        names = tx.scope_names(&plan.id).await?;
    }
    if let Some(account) = tx.this_account().await? {
        names.insert(Scope::new(ScopeType::Account, account.account_id.as_str()), account.account_name);
    }
    usages.retain(|u| u.usage_percentage >= of.threshold);
    usages.sort_by(|a, b| b.usage_percentage.total_cmp(&a.usage_percentage));
    let alert = |usage: ScopeUsage| Alert {
        entity_name: names
            .remove(&Scope::new(usage.scope_type, usage.scope_id.as_str()))
            .unwrap_or_else(|| usage.scope_id.clone()),
        usage_percentage: usage.usage_percentage,
        alert_level: AlertLevel::of(usage.usage_percentage),
        budget: AlertBudget { entity_type: usage.scope_type.as_str().to_ascii_uppercase(), entity_id: usage.scope_id },
    };
    Ok(Answer::of(&Alerts { items: usages.into_iter().map(alert).collect() }))
}

/// The account's month, if it is limited.
async fn account_usage(tx: &mut Tx<Tenant>) -> Result<Option<ScopeUsage>, Halt> {
    let (zone, account) = tx.account_terms().await?;
    let Some(account) = account else { return Ok(None) };
    let scope = Scope::new(ScopeType::Account, account.account_id.as_str());
    let rules = BudgetRules { zone, account: None, plan: None, allocations: Vec::new() };
    let window = rules.account_window(tx.now());
    let used = Counted::new(tx.counters_from(window.start).await?).used(&scope);
    let allocation = EffectiveAllocation {
        scope,
        base: account.monthly_credits,
        effective: account.monthly_credits,
        overridden: false,
        overflow_cap: Some(account.overflow_limit),
    };
    Ok(Some(ScopeUsage::of(used, allocation)))
}

/// Usage that did not pass through the gateway.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExternalUsage {
    /// What it cost in US dollars.
    raw_cost: Usd,
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    org_id: Option<Id<Org>>,
    /// Brings its org along.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    team_id: Option<Id<Team>>,
    /// Without a team and an org: in the team that they joined first.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    user_id: Option<Id<User>>,
    #[serde(default)]
    agent_id: Option<Name>,
    #[serde(default)]
    model_name: Option<Name>,
    #[serde(default)]
    connection_id: Option<Name>,
    #[serde(default)]
    guardrail_code: Option<Name>,
    /// The caller's notes.
    #[serde(default)]
    #[schema(value_type = Object)]
    metadata: serde_json::Map<String, serde_json::Value>,
}

/// Record usage that did not pass through the gateway
///
/// Its credits, at the factor that holds now, are drawn from the same counters as
/// a request's, even where that goes over a cap: it has happened. Send an
/// `Idempotency-Key`, so that a repeated call counts once.
#[utoipa::path(post, path = "/v1/budgets/copilot/usage/record", tag = "budgets", request_body = ExternalUsage,
    responses((status = 200, description = "The ledger's row", body = Item<UsageEntry>), Refusals))]
pub async fn record_usage(call: Call<CopilotAdmin>, Body(usage): Body<ExternalUsage>) -> Outcome {
    require(!usage.raw_cost.is_negative(), "/raw_cost", "cannot be negative")?;
    let mut tx = call.begin().await?;
    let place = placement(&mut tx, usage.org_id.as_ref(), usage.team_id.as_ref(), usage.user_id.as_ref()).await?;
    let rules = tx.budget_rules(Some(&place)).await?;
    let factor = rules.account.as_ref().map_or(Factor::ONE, |a| a.credit_factor);
    let credits = bookable(&mut tx, usage.raw_cost, factor).await?;
    let links = rules.chain(tx.account(), Domain::Copilot, &place, tx.now());
    let text = |name: Option<Name>| name.map(Name::into_string);
    let row = LedgerRow {
        request_id: tx.new_id::<LedgerRow>().to_string(),
        account_id: tx.account().clone(),
        kind: RouteKind::Chat,
        entry: EntryKind::Usage,
        domain: Domain::Copilot,
        dimensions: Dimensions {
            org_id: place.org.map(|id| id.to_string()),
            team_id: place.team.map(|id| id.to_string()),
            user_id: place.user.map(|id| id.to_string()),
            subject: None,
            agent_id: text(usage.agent_id),
            model_name: text(usage.model_name),
            connection_id: text(usage.connection_id),
            guardrail_code: text(usage.guardrail_code),
        },
        tokens: Tokens::default(),
        raw_cost: usage.raw_cost,
        credit_factor: factor,
        credits,
        cost_source: CostSource::Recorded,
        marks: String::new(),
        upstream_call_id: None,
        status: 0,
        duration_us: 0,
        plan_id: rules.plan.as_ref().map(|p| p.id.to_string()),
        cycle_start: rules.plan.as_ref().map(|p| p.window(tx.now(), &rules.zone).start.as_micros()),
        metadata: JsonText::of(&usage.metadata).get().to_owned(),
        day: day_of(tx.now(), &rules.zone),
        created_at: tx.now(),
    };
    tx.record(&row, &links).await?;
    let item = UsageEntry::from(row);
    let entry =
        Entry { action: Action::Create, table: "Alchemi_UsageLedgerTable", id: &item.id, label: Label::Copilot };
    tx.audit(entry, None::<&()>, &item).await?;
    call.done(tx, &Item { item: &item }).await
}

/// What `cost` is in credits, if the account's books can hold it beside what they hold.
async fn bookable(tx: &mut Tx<Tenant>, cost: Usd, factor: Factor) -> Result<Credits, Halt> {
    let booked = tx.booked().await?;
    let fits = factor.credits(cost).filter(|credits| {
        let credits = booked.credits.saturating_add(*credits);
        let cost = booked.raw_cost.saturating_add(cost);
        credits <= Credits::from_units(MAX_UNITS) && cost <= Usd::from_units(MAX_UNITS)
    });
    Ok(fits.ok_or_else(|| Problem::invalid("/raw_cost", "would take the account's books above 9000000000"))?)
}

/// Of which product domain.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct OfDomain {
    /// The product domain; the only one that the token allows, else copilot.
    domain: Option<Domain>,
}

impl OfDomain {
    fn of(&self, call: &Call<Member>) -> Result<Domain, Problem> {
        let domain = self.domain.or_else(|| call.context.product_domains().only()).unwrap_or(Domain::Copilot);
        call.context.check_domain(domain)?;
        Ok(domain)
    }
}

/// Show the caller's own budget
///
/// Every scope that a request of theirs is counted under, the most specific one
/// first, with what is left of each.
#[utoipa::path(get, path = "/v1/me/allocation", tag = "self-service", params(OfDomain),
    responses((status = 200, description = "The caller's chain", body = EffectiveBudget), Refusals))]
pub async fn get_own_allocation(call: Call<Member>, Query(of): Query<OfDomain>) -> Outcome {
    let domain = of.of(&call)?;
    let mut tx = call.read().await?;
    let place = own_place(&mut tx, &call, domain).await?;
    let rules = tx.budget_rules(Some(&place)).await?;
    Ok(Answer::of(&chain(&mut tx, &rules, domain, &place).await?))
}

/// The caller's own usage.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct OwnUsage {
    /// Sums of the current window; null for one whom the directory does not know.
    totals: Option<UsageTotals>,
    /// A page of the ledger, newest first.
    items: Vec<UsageEntry>,
    /// Where the next page starts: send it as `cursor`. `null` at the end.
    next_cursor: Option<String>,
}

/// Sums of the days of a window.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct UsageTotals {
    /// The window.
    window: Window,
    /// How many requests.
    requests: i64,
    /// Their input tokens.
    input_tokens: i64,
    /// Their output tokens.
    output_tokens: i64,
    /// What they cost in US dollars.
    raw_cost: Usd,
    /// What the account paid.
    credits_incurred: Credits,
}

/// Show the caller's own usage
#[utoipa::path(get, path = "/v1/me/usage", tag = "self-service", params(OfDomain, PageParams),
    responses((status = 200, description = "Sums of the current window and a page of the ledger", body = OwnUsage),
        Refusals))]
pub async fn get_own_usage(call: Call<Member>, Query(of): Query<OfDomain>, Paging(slice): Paging<100>) -> Outcome {
    let domain = of.of(&call)?;
    let mut tx = call.read().await?;
    let place = own_place(&mut tx, &call, domain).await?;
    let page = tx.usage_of(place.user.as_ref(), &call.context.actor().subject, &slice).await?;
    let totals = match &place.user {
        Some(user) => Some(own_totals(&mut tx, domain, user).await?),
        None => None,
    };
    let Items { items, next_cursor } = Items::from(page);
    Ok(Answer::of(&OwnUsage { totals, items, next_cursor }))
}

async fn own_totals(tx: &mut Tx<Tenant>, domain: Domain, user: &Id<User>) -> Result<UsageTotals, Halt> {
    let rules = tx.budget_rules(Some(&Placement::default())).await?;
    let now: Timestamp = tx.now();
    let window = match (&rules.plan, domain) {
        (Some(plan), Domain::Copilot) => plan.window(now, &rules.zone),
        _ => rules.account_window(now),
    };
    let days = CostFilter {
        from: Some(day_of(window.start, &rules.zone)),
        user: Some(user.to_string()),
        ..CostFilter::of(domain)
    };
    let sum = tx.cost_total(&days).await?;
    Ok(UsageTotals {
        window,
        requests: sum.requests,
        input_tokens: sum.input_tokens,
        output_tokens: sum.output_tokens,
        raw_cost: sum.raw_cost,
        credits_incurred: sum.credits,
    })
}
