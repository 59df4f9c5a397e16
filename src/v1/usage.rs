//! What was used: usage by scope, alerts, recorded usage, and the caller's own.

use serde::{Deserialize, Serialize};

use super::answer::{Answer, Halt, Item, Items, Outcome, Refusals, or_404};
use super::budgets::effective::{Counted, ScopeBudget};
use super::budgets::{OfPlan, PLAN_NOT_FOUND, read_current, roll_over};
use super::call::{Call, CopilotAdmin, Member};
use super::directory::{ChainQuery, Standpoint, StandpointHeaders, StandpointQuery};
use super::input::{Body, PageParams, Paging, Query, require};
use super::trial::{Trial, Tried};
use crate::clock::Timestamp;
use crate::context::{Domain, Tenant};
use crate::credits::{Credits, Factor, MAX_UNITS, Usd};
use crate::id::Id;
use crate::model::accounts::JsonText;
use crate::model::alerts::AlertLevel;
use crate::model::audit::{Action, Label};
use crate::model::budgets::{Cycle, EffectiveAllocation, Enforcement, Plan, Window};
use crate::model::directory::{Org, Placement, Team, User};
use crate::model::scope::{Scope, ScopeType};
use crate::model::text::Name;
use crate::model::usage::{CostSource, Dimensions, EntryKind, LedgerRow, RouteKind, Tokens, UsageEntry};
use crate::policy::budget::BudgetRules;
use crate::problem::Problem;
use crate::store::Tx;
use crate::store::audit::Entry;
use crate::store::budgets::shares::{UsedShare, Windows};
use crate::store::page::{Page, Slice};
use crate::store::usage::CostFilter;

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
    /// Credits that requests under way and gateways hold.
    reserved: Credits,
    /// The most that may be used and held together.
    cap: Option<Credits>,
    /// What is left of the cap.
    remaining: Option<Credits>,
    /// Used of allocated; 0 when nothing is allocated.
    #[schema(example = 81.5)]
    usage_percentage: f64,
    /// Credits that may be spent beyond.
    overflow_cap: Option<Credits>,
    /// Credits that were.
    overflow_used: Credits,
    /// What the figures are counted in.
    window: Window,
}

/// What a plan's scopes have used.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct UsageByScope {
    /// The plan; null: none is in force.
    plan_id: Option<Id<Plan>>,
    /// A page of its scopes, newest allocation first.
    items: Vec<ScopeUsage>,
    /// Where the next page starts: send it as `cursor`. `null` at the end.
    next_cursor: Option<String>,
}

/// Show what a plan's scopes have used
///
/// In the plan's current window, of the plan in force unless `plan_id` is sent.
#[utoipa::path(get, path = "/v1/budgets/copilot/usage-by-scope", tag = "budgets", params(OfPlan, PageParams),
    responses((status = 200, description = "Usage of a page of allocated scopes", body = UsageByScope), Refusals))]
pub async fn get_usage_by_scope(
    call: Call<CopilotAdmin>,
    Query(of): Query<OfPlan>,
    Paging(slice): Paging<1000>,
) -> Outcome {
    let mut tx = read_current(&call).await?;
    let plan = match &of.plan_id {
        Some(id) => Some(or_404(tx.plan(id).await?, PLAN_NOT_FOUND)?),
        None => tx.active_plan().await?,
    };
    let Items { items, next_cursor } = match &plan {
        Some(plan) => scope_usage(&mut tx, plan, &slice).await?.into(),
        None => Items { items: Vec::new(), next_cursor: None },
    };
    Ok(Answer::of(&UsageByScope { plan_id: plan.map(|p| p.id), items, next_cursor }))
}

async fn scope_usage(tx: &mut Tx<Tenant>, plan: &Plan, slice: &Slice) -> Result<Page<ScopeUsage>, Halt> {
    let (calendar, _) = tx.account_terms().await?;
    let page = tx.effective_page(&plan.id, slice).await?;
    let window = plan.window(tx.now(), &calendar);
    let counted = Counted::of(tx, &page.items, window).await?;
    Ok(page.map(|allocation| ScopeUsage::of(&counted.budget(&allocation, window), allocation)))
}

impl ScopeUsage {
    fn of(budget: &ScopeBudget, allocation: EffectiveAllocation) -> Self {
        let used = budget.used;
        Self {
            reserved: budget.reserved,
            cap: budget.cap,
            remaining: budget.remaining,
            window: budget.window,
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
    /// What the scope has: the override that counts, else what was allocated.
    allocated_credits: Credits,
    /// Credits of settled requests.
    used: Credits,
    /// Credits that requests under way and gateways hold.
    reserved: Credits,
    /// What is left of the most that may be used and held together.
    remaining: Option<Credits>,
    /// What the figures are counted in.
    window: Window,
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

/// `{"items": […], "next_cursor": …}`
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Alerts {
    /// The nearest to its end first, by whole per cent.
    items: Vec<Alert>,
    /// Where the next page starts: send it as `cursor`. `null` at the end.
    next_cursor: Option<String>,
}

/// Show budgets that near their end
///
/// The account's month and the scopes of the plan in force, each in its current window, the
/// nearest to its end first, by whole per cent. Usage goes on between two pages: what overtakes others meanwhile
/// may stand on neither.
#[utoipa::path(get, path = "/v1/budgets/copilot/alerts", tag = "budgets", params(Threshold, PageParams),
    responses((status = 200, description = "A page of budgets at or above the threshold", body = Alerts), Refusals))]
pub async fn list_budget_alerts(
    call: Call<CopilotAdmin>,
    Query(of): Query<Threshold>,
    Paging(slice): Paging<1000>,
) -> Outcome {
    require((0.0..=1000.0).contains(&of.threshold), "threshold", "must be 0 to 1000")?;
    let mut tx = read_current(&call).await?;
    let (calendar, _) = tx.account_terms().await?;
    let rules = BudgetRules { calendar, account: None, plan: tx.active_plan().await?, allocations: Vec::new() };
    let now = tx.now();
    let month = rules.account_window(now);
    let plan = rules.plan.as_ref().map(|plan| (&plan.id, plan.window(now, &rules.calendar)));
    let windows = Windows { month: month.start, plan: plan.map(|(id, window)| (id, window.start)) };
    if let Some((_, window)) = windows.plan.filter(|_| of.threshold > 0.0)
        && !tx.shares_are_ranked(window).await?
    {
        drop(tx);
        // Where it cannot be done, the list takes longer and is the same.
        if let Err(error) = call.app.store.rank_shares(call.granted().account()).await {
            tracing::warn!(%error, "budgets were not ranked: lists of the most used take longer");
        }
        tx = call.read().await?;
    }
    let page = tx.most_used(windows, of.threshold, &slice).await?;
    let scopes: Vec<Scope> = page.items.iter().map(UsedShare::scope).collect();
    let mut names = tx.scope_names(&scopes).await?;
    let page = page.map(|share| {
        let window = plan.map(|(_, window)| window).filter(|_| share.scope_type != ScopeType::Account);
        let name = names.remove(&share.scope());
        Alert::of(share, window.unwrap_or(month), name)
    });
    let Items { items, next_cursor } = page.into();
    Ok(Answer::of(&Alerts { items, next_cursor }))
}

impl Alert {
    fn of(share: UsedShare, window: Window, name: Option<String>) -> Self {
        let UsedShare { allocated, used, leased, percentage, .. } = share;
        let cap = allocated.saturating_add(share.overflow_cap.unwrap_or_default());
        Self {
            entity_name: name.unwrap_or_else(|| share.scope_id.clone()),
            usage_percentage: percentage,
            alert_level: AlertLevel::of(percentage),
            allocated_credits: allocated,
            used,
            reserved: leased,
            remaining: Some(cap.saturating_sub(used).saturating_sub(leased).max(Credits::ZERO)),
            window,
            budget: AlertBudget {
                entity_type: share.scope_type.as_str().to_ascii_uppercase(),
                entity_id: share.scope_id,
            },
        }
    }
}

/// Usage that did not pass through the gateway.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExternalUsage {
    /// What it cost in US dollars.
    raw_cost: Usd,
    #[serde(default)]
    org_id: Option<Id<Org>>,
    /// Brings its org along.
    #[serde(default)]
    team_id: Option<Id<Team>>,
    /// Without a team and an org: in the team that they joined first.
    #[serde(default)]
    user_id: Option<Id<User>>,
    /// What costs are broken down by; what happened elsewhere need not be known here, and this and
    /// the next three are taken as they are.
    #[serde(default)]
    agent_id: Option<Name>,
    /// The model, as costs are broken down by it.
    #[serde(default)]
    model_name: Option<Name>,
    /// The connection, likewise.
    #[serde(default)]
    connection_id: Option<Name>,
    /// The guardrail that acted, likewise.
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
#[utoipa::path(post, path = "/v1/budgets/copilot/usage/record", tag = "budgets", params(Trial), request_body = ExternalUsage,
    responses((status = 200, description = "The ledger's row", body = Tried<Item<UsageEntry>>), Refusals))]
pub async fn record_usage(
    call: Call<CopilotAdmin>,
    Query(trial): Query<Trial>,
    Body(usage): Body<ExternalUsage>,
) -> Outcome {
    require(!usage.raw_cost.is_negative(), "/raw_cost", "cannot be negative")?;
    roll_over(&call).await?;
    let mut tx = call.begin_or_try(&trial).await?;
    let subject = ChainQuery { org_id: usage.org_id, team_id: usage.team_id, user_id: usage.user_id };
    let place = subject.placement(&mut tx, Domain::Copilot).await?;
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
        cycle_start: rules.plan.as_ref().map(|p| p.window(tx.now(), &rules.calendar).start.as_micros()),
        metadata: JsonText::of(&usage.metadata).get().to_owned(),
        day: rules.calendar.day_of(tx.now()),
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
        let credits = booked.credits_incurred.saturating_add(*credits);
        let cost = booked.raw_cost.saturating_add(cost);
        credits <= Credits::from_units(MAX_UNITS) && cost <= Usd::from_units(MAX_UNITS)
    });
    Ok(fits.ok_or_else(|| Problem::invalid("/raw_cost", "would take the account's books above 9000000000"))?)
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
    /// The days of the current window, whole: a plan that was made in the course of a day counts all
    /// of it here.
    window: Window,
    /// How many requests; corrections of the ledger are none.
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
#[utoipa::path(get, path = "/v1/me/usage", tag = "self-service", params(StandpointQuery, StandpointHeaders, PageParams),
    responses((status = 200, description = "Sums of the current window and a page of the ledger", body = OwnUsage),
        Refusals))]
pub async fn get_own_usage(call: Call<Member>, standpoint: Standpoint, Paging(slice): Paging<100>) -> Outcome {
    let mut tx = call.read().await?;
    let place = standpoint.place(&mut tx, &call.context).await?;
    let page = tx.usage_of(place.user.as_ref(), &call.context.actor().subject, &slice).await?;
    let totals = match &place.user {
        Some(user) => Some(own_totals(&mut tx, standpoint.domain, user).await?),
        None => None,
    };
    // Who is let through by way of trial is not told.
    let told = |mark: &&str| *mark != Enforcement::Shadow.mark();
    let page = page.map(|entry| {
        let marks = entry.marks.split(',').filter(told).collect::<Vec<_>>().join(",");
        UsageEntry { marks, ..entry }
    });
    let Items { items, next_cursor } = Items::from(page);
    Ok(Answer::of(&OwnUsage { totals, items, next_cursor }))
}

async fn own_totals(tx: &mut Tx<Tenant>, domain: Domain, user: &Id<User>) -> Result<UsageTotals, Halt> {
    let rules = tx.budget_rules(Some(&Placement::default())).await?;
    let now = tx.now();
    let window = match (&rules.plan, domain) {
        (Some(plan), Domain::Copilot) => plan.window(now, &rules.calendar),
        _ => rules.account_window(now),
    };
    let days = CostFilter {
        from: Some(rules.calendar.day_of(window.start)),
        user: Some(user.to_string()),
        ..CostFilter::of(domain)
    };
    let sum = tx.cost_total(&days).await?;
    let first_day = Cycle::Daily.window(window.start, &rules.calendar, Timestamp::from_micros(i64::MIN));
    Ok(UsageTotals {
        window: Window { start: first_day.start, ..window },
        requests: sum.requests,
        input_tokens: sum.input_tokens,
        output_tokens: sum.output_tokens,
        raw_cost: sum.raw_cost,
        credits_incurred: sum.credits,
    })
}
