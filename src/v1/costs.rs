//! What was spent, out of sums that are kept when a request settles.

use serde::{Deserialize, Serialize};

use super::answer::{Answer, Halt, Outcome, Refusals};
use super::call::{Call, CopilotAdmin, Member};
use super::input::{Query, require};
use crate::clock::Timestamp;
use crate::context::{Domain, Tenant};
use crate::credits::{Credits, Usd};
use crate::id::Id;
use crate::model::directory::{Org, Team, User};
use crate::model::usage::CostDimension;
use crate::problem::Problem;
use crate::store::Tx;
use crate::store::page::Slice;
use crate::store::usage::{CostFilter, CostRow};

/// How many dimensions a caller may ask for.
const MAX_GROUPS: usize = 3;
/// What is broken down by when nothing is asked for.
const BY_DEFAULT: [CostDimension; 4] =
    [CostDimension::Llm, CostDimension::Agent, CostDimension::Connection, CostDimension::Guardrail];

/// Which days.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Days {
    /// The first day in the account's time zone: a date, or a moment of it.
    #[param(example = "2026-01-01")]
    from: Option<String>,
    /// The last day: a date, or the first moment that is too late.
    #[param(example = "2026-01-31")]
    to: Option<String>,
}

impl Days {
    /// Reads the days and writes them into `filter`.
    pub(super) async fn read(&self, tx: &mut Tx<Tenant>, filter: CostFilter) -> Result<CostFilter, Halt> {
        if self.from.is_none() && self.to.is_none() {
            return Ok(filter);
        }
        let (calendar, _) = tx.account_terms().await?;
        let day = |text: &Option<String>, name: &str, behind: i64| {
            let Some(text) = text else { return Ok(None) };
            if let Ok(date) = text.parse::<jiff::civil::Date>().map(|d| d.to_string()) {
                // jiff reads the date of a date and time, too.
                if date == *text {
                    return Ok(Some(date));
                }
            }
            let at: Timestamp = text.parse().map_err(|_| {
                Problem::invalid(name, "must be a date such as 2026-01-31, or a moment such as 2026-01-31T08:00:00Z")
            })?;
            Ok::<_, Problem>(Some(calendar.day_of(Timestamp::from_micros(at.as_micros().saturating_sub(behind)))))
        };
        let (from, to) = (day(&self.from, "from", 0)?, day(&self.to, "to", 1)?);
        // The last day of an empty span, between two equal moments, may be before its first.
        let backwards = from.as_ref().zip(to.as_ref()).is_some_and(|(from, to)| from > to) && self.from != self.to;
        require(!backwards, "to", "is before from")?;
        Ok(CostFilter { from, to, ..filter })
    }
}

/// Which part of a report.
#[derive(Debug, Clone, Copy, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Part {
    /// How many items at most.
    #[param(minimum = 1, maximum = 10000)]
    #[serde(default = "a_thousand")]
    limit: u32,
    /// Items to skip.
    #[serde(default)]
    offset: u64,
}

fn a_thousand() -> u32 {
    1_000
}

impl Part {
    /// 422 for a limit out of bounds.
    fn slice(self) -> Result<Slice, Problem> {
        require((1..=10_000).contains(&self.limit), "limit", "must be 1 to 10000")?;
        Ok(Slice { limit: self.limit, after: None, offset: self.offset })
    }

    /// Cuts the rows of [`Part::slice`] to the limit; gives the `offset` of the next part.
    fn cut(self, rows: &mut Vec<CostRow>) -> Option<u64> {
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let more = rows.len() > limit;
        rows.truncate(limit);
        more.then(|| self.offset.saturating_add(u64::from(self.limit)))
    }
}

/// What the copilot domain's costs are broken down by.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct By {
    /// `agent`, `llm`, `connection` or `guardrail`; `agent` unless said.
    #[param(example = "llm", pattern = "^(agent|llm|connection|guardrail)$")]
    by: Option<String>,
    /// In place of `by`, up to three of agent, llm, connection, guardrail, org, team, user
    /// and day, separated by commas.
    #[param(example = "team,day")]
    group_by: Option<String>,
}

/// Costs by one dimension, or with `group_by` by several.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum BudgetCosts {
    /// By one.
    By(CostsBy),
    /// By several.
    Grouped(GroupedCosts),
}

/// Costs by several dimensions.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct GroupedCosts {
    /// The dimensions.
    group_by: Vec<CostDimension>,
    /// The most expensive first.
    items: Vec<CostItem>,
    /// `offset` of the next page; null at the end.
    next_offset: Option<u64>,
}

/// Costs by one dimension.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct CostsBy {
    /// The dimension.
    by: CostDimension,
    /// The most expensive first.
    items: Vec<CostBy>,
    /// `offset` of the next page; null at the end.
    next_offset: Option<u64>,
}

/// What one agent, model, connection or guardrail cost.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct CostBy {
    /// Which; null: none.
    #[schema(example = "gpt-4o-mini")]
    key: Option<String>,
    /// In US dollars.
    raw_cost: Usd,
    /// In credits.
    credits: Credits,
}

/// Break the copilot domain's costs down
///
/// By one dimension, as `key`; with `group_by` by up to three, each under its own name.
#[utoipa::path(get, path = "/v1/budgets/copilot/cost-breakdown", tag = "budgets", params(By, Days, Part),
    responses((status = 200, description = "Costs, the largest first", body = BudgetCosts), Refusals))]
pub async fn get_budget_cost_breakdown(
    call: Call<CopilotAdmin>,
    Query(by): Query<By>,
    Query(days): Query<Days>,
    Query(part): Query<Part>,
) -> Outcome {
    let (one, dimensions) = by.read()?;
    let slice = part.slice()?;
    let mut tx = call.read().await?;
    let filter = days.read(&mut tx, CostFilter::of(Domain::Copilot)).await?;
    let mut rows = tx.costs(&filter, &dimensions, &slice).await?;
    let next_offset = part.cut(&mut rows);
    Ok(Answer::of(&match one {
        Some(by) => {
            let items = rows.iter().map(CostBy::from).collect();
            BudgetCosts::By(CostsBy { by, items, next_offset })
        }
        None => {
            let items = rows.iter().map(|row| CostItem::of(row, &dimensions)).collect();
            BudgetCosts::Grouped(GroupedCosts { group_by: dimensions, items, next_offset })
        }
    }))
}

impl By {
    /// The one dimension, unless there are several; and all of them.
    fn read(self) -> Result<(Option<CostDimension>, Vec<CostDimension>), Problem> {
        if let Some(names) = self.group_by {
            require(self.by.is_none(), "group_by", "stands in place of by")?;
            return Ok((None, dimensions(&names)?));
        }
        let by = self.by.as_deref().unwrap_or(CostDimension::Agent.as_str());
        let known = BY_DEFAULT.into_iter().find(|d| d.as_str() == by);
        let detail = "by must be one of: agent,llm,connection,guardrail";
        let by = known.ok_or_else(|| Problem::bad_request("invalid_breakdown", detail))?;
        Ok((Some(by), vec![by]))
    }
}

impl From<&CostRow> for CostBy {
    fn from(row: &CostRow) -> Self {
        Self { key: or_none(row.keys()[0]), raw_cost: row.raw_cost, credits: row.credits }
    }
}

fn or_none(key: &str) -> Option<String> {
    (!key.is_empty()).then(|| key.to_owned())
}

/// Whose costs.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Payer {
    /// The product domain.
    #[serde(default = "copilot")]
    #[param(required = false)]
    pub(super) domain: Domain,
    /// Only this org's.
    #[param(value_type = Option<String>)]
    org_id: Option<Id<Org>>,
    /// Only this team's.
    #[param(value_type = Option<String>)]
    team_id: Option<Id<Team>>,
    /// Only this user's.
    #[param(value_type = Option<String>)]
    user_id: Option<Id<User>>,
}

/// How they are broken down.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Breakdown {
    /// Up to three of agent, llm, connection, guardrail, org, team, user and day,
    /// separated by commas; the first four unless said.
    #[param(example = "llm,day")]
    group_by: Option<String>,
}

fn copilot() -> Domain {
    Domain::Copilot
}

/// The dimensions that a text names, each once.
fn dimensions(names: &str) -> Result<Vec<CostDimension>, Problem> {
    let wrong =
        || Problem::invalid("group_by", "must be up to three of agent,llm,connection,guardrail,org,team,user,day");
    let mut dimensions = Vec::new();
    for name in names.split(',').map(str::trim) {
        let dimension = CostDimension::ALL.into_iter().find(|d| d.as_str() == name).ok_or_else(wrong)?;
        if !dimensions.contains(&dimension) {
            dimensions.push(dimension);
        }
    }
    if dimensions.len() > MAX_GROUPS { Err(wrong()) } else { Ok(dimensions) }
}

impl Breakdown {
    fn dimensions(&self) -> Result<Vec<CostDimension>, Problem> {
        self.group_by.as_deref().map_or_else(|| Ok(BY_DEFAULT.to_vec()), dimensions)
    }
}

impl Payer {
    pub(super) fn filter(&self) -> CostFilter {
        CostFilter {
            org: self.org_id.as_ref().map(Id::to_string),
            team: self.team_id.as_ref().map(Id::to_string),
            user: self.user_id.as_ref().map(Id::to_string),
            ..CostFilter::of(self.domain)
        }
    }
}

/// Costs of one combination. Of the first eight fields, those that were grouped
/// by are there; null stands for none.
#[derive(Debug, Default, Serialize, utoipa::ToSchema)]
pub struct CostItem {
    /// The model.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "gpt-4o-mini")]
    model_name: Option<Option<String>>,
    /// The agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    agent_id: Option<Option<String>>,
    /// The connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    connection_id: Option<Option<String>>,
    /// The guardrail.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    guardrail_code: Option<Option<String>>,
    /// The org.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    org_id: Option<Option<String>>,
    /// The team.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    team_id: Option<Option<String>>,
    /// The user.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    user_id: Option<Option<String>>,
    /// The day of the account's time zone.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "2026-01-31")]
    day: Option<Option<String>>,
    #[serde(flatten)]
    totals: CostTotals,
}

/// What requests cost.
#[derive(Debug, Default, Serialize, utoipa::ToSchema)]
pub struct CostTotals {
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

impl From<&CostRow> for CostTotals {
    fn from(row: &CostRow) -> Self {
        Self {
            requests: row.requests,
            input_tokens: row.input_tokens,
            output_tokens: row.output_tokens,
            raw_cost: row.raw_cost,
            credits_incurred: row.credits,
        }
    }
}

impl CostItem {
    fn of(row: &CostRow, dimensions: &[CostDimension]) -> Self {
        let mut item = Self { totals: row.into(), ..Self::default() };
        for (dimension, key) in dimensions.iter().zip(row.keys()) {
            let field = match dimension {
                CostDimension::Llm => &mut item.model_name,
                CostDimension::Agent => &mut item.agent_id,
                CostDimension::Connection => &mut item.connection_id,
                CostDimension::Guardrail => &mut item.guardrail_code,
                CostDimension::Org => &mut item.org_id,
                CostDimension::Team => &mut item.team_id,
                CostDimension::User => &mut item.user_id,
                CostDimension::Day => &mut item.day,
            };
            *field = Some(or_none(key));
        }
        item
    }
}

/// Costs with their sum.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Costs {
    /// The product domain.
    domain: Domain,
    /// The first day; null: from the beginning.
    from: Option<String>,
    /// The last day; null: until now.
    to: Option<String>,
    /// The most expensive first.
    items: Vec<CostItem>,
    /// `offset` of the next page; null at the end.
    next_offset: Option<u64>,
    /// The sum of all items, on whatever page.
    totals: CostTotals,
}

/// Break costs down
///
/// Needs the admin rights of the domain that is asked for.
#[utoipa::path(get, path = "/v1/costs/breakdown", tag = "costs", params(Payer, Breakdown, Days, Part),
    responses((status = 200, description = "Costs, the largest first, and their sum", body = Costs), Refusals))]
pub async fn get_cost_breakdown(
    call: Call<Member>,
    Query(payer): Query<Payer>,
    Query(wanted): Query<Breakdown>,
    Query(days): Query<Days>,
    Query(part): Query<Part>,
) -> Outcome {
    let call = call.domain_admin(payer.domain)?;
    let slice = part.slice()?;
    let dimensions = wanted.dimensions()?;
    let mut tx = call.read().await?;
    let filter = days.read(&mut tx, payer.filter()).await?;
    let mut rows = tx.costs(&filter, &dimensions, &slice).await?;
    let next_offset = part.cut(&mut rows);
    let totals = CostTotals::from(&tx.cost_total(&filter).await?);
    let items = rows.iter().map(|row| CostItem::of(row, &dimensions)).collect();
    let CostFilter { domain, from, to, .. } = filter;
    Ok(Answer::of(&Costs { domain, from, to, items, next_offset, totals }))
}
