//! What a budget is decided by, read in few statements.
//!
//! Which override counts, and until when credits that were rolled over do, is said
//! here and nowhere else: in [`EFFECTIVE`].

use std::collections::HashMap;

use jiff::tz::TimeZone;

use crate::clock::Timestamp;
use crate::context::{Domain, Tenant};
use crate::credits::{Credits, Factor};
use crate::id::Id;
use crate::model::accounts::{Account, JsonText};
use crate::model::budgets::{
    AccountAllocation, Calendar, Division, EffectiveAllocation, Enforcement, Plan, Standing, zone_of,
};
use crate::model::directory::{Placement, Team, User};
use crate::model::scope::{Scope, ScopeType};
use crate::policy::budget::BudgetRules;
use crate::store::page::{Page, Slice};
use crate::store::{Result, Tx, from_columns, on, run};

/// Allocations with the override that counts, the newest that has not expired, and when
/// the next one of a scope's expires.
pub(super) const EFFECTIVE: [&str; 4] = [
    r#"SELECT a.id, a.created_at, a.scope_type, a.scope_id, a.overflow_cap, a.rollover_until, a.rollover_credits,
       a.allocated_credits - CASE WHEN a.rollover_until <= "#,
    r#" THEN a.rollover_credits ELSE 0 END AS base,
       (SELECT MIN(o.expires_at) FROM "Alchemi_CopilotBudgetOverrideTable" o
        WHERE o.account_id = a.account_id AND o.plan_id = a.plan_id AND o.scope_type = a.scope_type
        AND o.scope_id = a.scope_id AND o.expires_at > "#,
    r#") AS next_expiry,
       (SELECT o.override_credits FROM "Alchemi_CopilotBudgetOverrideTable" o
        WHERE o.account_id = a.account_id AND o.plan_id = a.plan_id AND o.scope_type = a.scope_type
        AND o.scope_id = a.scope_id AND (o.expires_at IS NULL OR o.expires_at > "#,
    r#") ORDER BY o.created_at DESC, o.id DESC LIMIT 1) AS override_credits
       FROM "Alchemi_CopilotBudgetAllocationTable" a WHERE a.account_id = "#,
];

/// [`EFFECTIVE`] of one plan, at one moment.
macro_rules! push_effective {
    ($q:expr, $at:expr, $account:expr, $plan:expr) => {{
        let [until, next, unexpired, of] = $crate::store::budgets::rules::EFFECTIVE;
        $q.push(until).push_bind($at).push(next).push_bind($at).push(unexpired).push_bind($at).push(of);
        $q.push_bind($account).push(" AND a.plan_id = ").push_bind($plan);
    }};
}
pub(super) use push_effective;

struct EffectiveRow {
    id: String,
    created_at: Timestamp,
    scope_type: ScopeType,
    scope_id: String,
    base: Credits,
    overflow_cap: Option<Credits>,
    rollover_until: Option<Timestamp>,
    rollover_credits: Credits,
    override_credits: Option<Credits>,
    next_expiry: Option<Timestamp>,
}

/// An override that has not expired.
struct OverrideRow {
    scope_type: ScopeType,
    scope_id: String,
    override_credits: Credits,
    expires_at: Option<Timestamp>,
}

struct StandingRow {
    scope_type: ScopeType,
    scope_id: String,
    team_id: Option<String>,
    org_id: String,
}

/// The account's metadata beside its allocation, if it has one.
struct TermsRow {
    account_id: Id<Account>,
    metadata: JsonText,
    monthly_credits: Option<Credits>,
    overflow_limit: Option<Credits>,
    credit_factor: Option<Factor>,
    enforcement: Option<Enforcement>,
    effective_from: Option<Timestamp>,
    updated_by: Option<String>,
    created_at: Option<Timestamp>,
    updated_at: Option<Timestamp>,
    version: Option<i64>,
    former_zones: Option<JsonText>,
}

from_columns! {
    EffectiveRow {
        id, created_at, scope_type, scope_id, base, overflow_cap, rollover_until, rollover_credits, override_credits,
        next_expiry,
    }
    OverrideRow { scope_type, scope_id, override_credits, expires_at }
    StandingRow { scope_type, scope_id, team_id, org_id }
    TermsRow {
        account_id, metadata, monthly_credits, overflow_limit, credit_factor, enforcement, effective_from,
        updated_by, created_at, updated_at, version, former_zones,
    }
}

impl EffectiveRow {
    /// As it is in force `at` a moment.
    fn at(self, at: Timestamp) -> EffectiveAllocation {
        let row = self;
        let lapses = row.rollover_until.filter(|until| *until > at);
        let lapsed = row.rollover_until.is_some() && lapses.is_none();
        let mut allocation = EffectiveAllocation {
            until: lapses.into_iter().chain(row.next_expiry).min(),
            scope: Scope::new(row.scope_type, row.scope_id),
            base: row.base,
            effective: row.override_credits.unwrap_or(row.base),
            overridden: row.override_credits.is_some(),
            carried: if lapsed { Credits::ZERO } else { row.rollover_credits },
            least: Credits::ZERO,
            most: Credits::ZERO,
            overflow_cap: row.overflow_cap,
        };
        allocation.foresee(row.override_credits.map(|credits| (credits, None)));
        allocation
    }
}

impl From<StandingRow> for Standing {
    fn from(row: StandingRow) -> Self {
        Self {
            scope: Scope::new(row.scope_type, row.scope_id),
            team: row.team_id.map(|id| Scope::new(ScopeType::Team, id)),
            org: Scope::new(ScopeType::Org, row.org_id),
        }
    }
}

impl TermsRow {
    fn calendar(&self) -> Calendar {
        let calendar = Calendar::from(zone_of(&self.metadata));
        match &self.former_zones {
            Some(former) => calendar.with_former(former),
            None => calendar,
        }
    }

    fn allocation(self) -> Option<AccountAllocation> {
        Some(AccountAllocation {
            account_id: self.account_id,
            monthly_credits: self.monthly_credits?,
            overflow_limit: self.overflow_limit?,
            credit_factor: self.credit_factor?,
            enforcement: self.enforcement,
            effective_from: self.effective_from?,
            updated_by: self.updated_by,
            created_at: self.created_at?,
            updated_at: self.updated_at?,
            version: self.version?,
        })
    }
}

impl Tx<Tenant> {
    /// What budgets follow from: with a `place`, for a subject who stands there,
    /// else with every allocation of the active plan. At most three statements.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn budget_rules(&mut self, place: Option<&Placement>) -> Result<BudgetRules> {
        let (calendar, account) = self.account_terms().await?;
        let plan = self.active_plan().await?;
        let allocations = match &plan {
            Some(plan) => self.effective_allocations(&plan.id, place).await?,
            None => Vec::new(),
        };
        Ok(BudgetRules { calendar, account, plan, allocations })
    }

    /// The account's calendar and its allocation.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn account_terms(&mut self) -> Result<(Calendar, Option<AccountAllocation>)> {
        let account = self.account.clone();
        let terms: Option<TermsRow> = on!(self, |c| {
            sqlx::query_as(
                r#"SELECT a.account_id, a.metadata, l.monthly_credits, l.overflow_limit, l.credit_factor, e.enforcement,
               l.effective_from, l.updated_by, l.created_at, l.updated_at, l.version, z.former_zones
               FROM "Alchemi_AccountTable" a
               LEFT JOIN "Alchemi_AccountAllocationTable" l ON l.account_id = a.account_id
               LEFT JOIN "Alchemi_AccountEnforcementTable" e ON e.account_id = a.account_id
               LEFT JOIN "Alchemi_AccountCalendarTable" z ON z.account_id = a.account_id WHERE a.account_id = $1"#,
            )
            .bind(&account)
            .fetch_optional(c)
            .await
        })?;
        Ok(match terms {
            Some(terms) => (terms.calendar(), terms.allocation()),
            None => (Calendar::default(), None),
        })
    }

    /// Notes that the account's time zone is another one from now on; what was carried into the
    /// present window lasts as long as it does. `false`, and nothing noted: it was changed too often.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn change_zone(&mut self, zone: TimeZone) -> Result<bool> {
        let plan = match self.active_plan().await? {
            Some(plan) => self.locked_plan(&plan.id).await?,
            None => None,
        };
        let (before, _) = self.account_terms().await?;
        let Some(after) = before.clone().changed(zone, self.now) else { return Ok(false) };
        run!(
            self,
            r#"INSERT INTO "Alchemi_AccountCalendarTable" (account_id, former_zones) VALUES ($1, $2)
               ON CONFLICT (account_id) DO UPDATE SET former_zones = excluded.former_zones"#,
            &self.account,
            after.former()
        )?;
        if let Some(plan) = plan {
            run!(
                self,
                r#"UPDATE "Alchemi_CopilotBudgetAllocationTable" SET rollover_until = $3
                   WHERE account_id = $1 AND plan_id = $2 AND rollover_until = $4"#,
                &self.account,
                &plan.id,
                plan.window(self.now, &after).end,
                plan.window(self.now, &before).end
            )?;
        }
        Ok(true)
    }

    /// What `plan` gives now: to the scopes of `place` and the pool, or to everybody.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn effective_allocations(
        &mut self,
        plan: &Id<Plan>,
        place: Option<&Placement>,
    ) -> Result<Vec<EffectiveAllocation>> {
        self.allocations_at(plan, place, self.now).await
    }

    /// What overrides that expire leave behind them.
    async fn foresee(&mut self, plan: &Id<Plan>, at: Timestamp, allocations: &mut [EffectiveAllocation]) -> Result<()> {
        if !allocations.iter().any(|allocation| allocation.overridden) {
            return Ok(());
        }
        let account = self.account.clone();
        let rows: Vec<OverrideRow> = on!(self, |c| sqlx::query_as(
            r#"SELECT scope_type, scope_id, override_credits, expires_at FROM "Alchemi_CopilotBudgetOverrideTable"
               WHERE account_id = $1 AND plan_id = $2 AND (expires_at IS NULL OR expires_at > $3)
               ORDER BY created_at DESC, id DESC"#
        )
        .bind(&account)
        .bind(plan)
        .bind(at)
        .fetch_all(c)
        .await)?;
        let mut of: HashMap<Scope, Vec<(Credits, Option<Timestamp>)>> = HashMap::new();
        for row in rows {
            of.entry(Scope::new(row.scope_type, row.scope_id))
                .or_default()
                .push((row.override_credits, row.expires_at));
        }
        for allocation in allocations {
            if let Some(overrides) = of.remove(&allocation.scope) {
                allocation.foresee(overrides);
            }
        }
        Ok(())
    }

    /// The same with what counted `at` another moment, as far as rows tell it.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn allocations_at(
        &mut self,
        plan: &Id<Plan>,
        place: Option<&Placement>,
        at: Timestamp,
    ) -> Result<Vec<EffectiveAllocation>> {
        let account = self.account.clone();
        let scopes = place.map(|place| place.scopes(&account));
        let rows: Vec<EffectiveRow> = on!(self, |c| {
            let mut q = sqlx::QueryBuilder::new("");
            push_effective!(q, at, &account, plan);
            if let Some(scopes) = &scopes {
                q.push(" AND ((a.scope_type = 'pool' AND a.scope_id = 'pool')");
                for scope in scopes {
                    q.push(" OR (a.scope_type = ").push_bind(scope.scope_type);
                    q.push(" AND a.scope_id = ").push_bind(&scope.scope_id).push(")");
                }
                q.push(")");
            }
            q.push(" ORDER BY a.scope_type, a.scope_id").build_query_as().fetch_all(c).await
        })?;
        Ok(rows.into_iter().map(|row| row.at(at)).collect())
    }

    /// What `plan` gives now, newest first.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn effective_page(&mut self, plan: &Id<Plan>, slice: &Slice) -> Result<Page<EffectiveAllocation>> {
        let (account, now, (at, id)) = (self.account.clone(), self.now, slice.before());
        let rows: Vec<EffectiveRow> = on!(self, |c| {
            let mut q = sqlx::QueryBuilder::new("");
            push_effective!(q, now, &account, plan);
            q.push(" AND (a.created_at, a.id) < (").push_bind(at).push(", ").push_bind(&id);
            q.push(") ORDER BY a.created_at DESC, a.id DESC LIMIT ").push_bind(slice.fetch());
            q.push(" OFFSET ").push_bind(slice.skip()).build_query_as().fetch_all(c).await
        })?;
        Ok(slice.page(rows, |row| (row.created_at, row.id.as_str())).map(|row| row.at(now)))
    }

    /// What `plan` gives to everybody, and where those it gives to stand.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn division(&mut self, plan: &Id<Plan>) -> Result<Division> {
        self.division_at(plan, self.now).await
    }

    /// The same with what counted `at` another moment, as far as rows tell it.
    pub(super) async fn division_at(&mut self, plan: &Id<Plan>, at: Timestamp) -> Result<Division> {
        let mut allocations = self.allocations_at(plan, None, at).await?;
        self.foresee(plan, at, &mut allocations).await?;
        let account = self.account.clone();
        let rows: Vec<StandingRow> = on!(self, |c| {
            sqlx::query_as(
            r#"SELECT a.scope_type, a.scope_id, NULL AS team_id, t.org_id FROM "Alchemi_CopilotBudgetAllocationTable" a
               JOIN "Alchemi_TeamTable" t ON t.account_id = a.account_id AND t.domain = $3 AND t.id = a.scope_id
               WHERE a.account_id = $1 AND a.plan_id = $2 AND a.scope_type = 'team'
               UNION ALL
               SELECT a.scope_type, a.scope_id, m.team_id, t.org_id FROM "Alchemi_CopilotBudgetAllocationTable" a
               JOIN "Alchemi_TeamMembershipTable" m ON m.account_id = a.account_id AND m.domain = $3 AND m.user_id = a.scope_id
               JOIN "Alchemi_TeamTable" t ON t.account_id = m.account_id AND t.domain = m.domain AND t.id = m.team_id
               WHERE a.account_id = $1 AND a.plan_id = $2 AND a.scope_type = 'user'"#
        )
        .bind(&account)
        .bind(plan)
        .bind(Domain::Copilot)
        .fetch_all(c)
        .await
        })?;
        Ok(Division { allocations, standings: rows.into_iter().map(Standing::from).collect() })
    }

    /// The team that a user joined first: where a request of theirs is counted that
    /// names no other.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn first_team(&mut self, domain: Domain, user: &Id<User>) -> Result<Option<Team>> {
        let account = self.account.clone();
        on!(self, |c| {
            sqlx::query_as(
                r#"SELECT t.* FROM "Alchemi_TeamMembershipTable" m
               JOIN "Alchemi_TeamTable" t ON t.account_id = m.account_id AND t.domain = m.domain AND t.id = m.team_id
               WHERE m.account_id = $1 AND m.domain = $2 AND m.user_id = $3 ORDER BY m.created_at, m.team_id LIMIT 1"#,
            )
            .bind(&account)
            .bind(domain)
            .bind(user)
            .fetch_optional(c)
            .await
        })
    }
}

#[cfg(all(test, feature = "sqlite"))]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::clock::ManualClock;
    use crate::context::Granted;
    use crate::id::CountingIds;
    use crate::model::budgets::{Allocation, Cycle, OverCommit, PlanStatus, RolloverMode};
    use crate::store::{DatabaseConfig, Store, migrate};

    #[tokio::test]
    async fn rules_take_three_statements_and_rolled_over_credits_lapse() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("alchemi.db").display());
        let clock = Arc::new(ManualClock::at(Timestamp::from_secs(1_000_000)));
        let config = DatabaseConfig { url, ..DatabaseConfig::default() };
        let store = Store::open(&config, clock.clone(), Arc::new(CountingIds::default())).await.unwrap();
        migrate::apply(&store).await.unwrap();
        let mut tx = store.begin(&Granted::system()).await.unwrap();
        let account = Account::new(tx.new_id(), "Acme".to_owned(), None, tx.now());
        tx.insert_account(&account).await.unwrap();
        let mut tx = tx.within(account.account_id.clone());
        let now = tx.now();
        let plan = Plan {
            id: tx.new_id(),
            account_id: account.account_id.clone(),
            name: "2026".to_owned(),
            cycle: Cycle::Monthly,
            status: PlanStatus::Active,
            over_commit: OverCommit::Allow,
            rollover: RolloverMode::None,
            rollover_cap: None,
            rollover_windows: 1,
            rolled_to: None,
            look_again_at: None,
            created_by: None,
            created_at: now,
            updated_at: now,
            version: 1,
        };
        tx.insert_plan(&plan).await.unwrap();
        let share = |id, kind, scope: &str| Allocation {
            id,
            account_id: account.account_id.clone(),
            plan_id: plan.id.clone(),
            scope_type: kind,
            scope_id: scope.to_owned(),
            allocated_credits: Credits::from_units(15),
            overflow_cap: None,
            rollover_credits: Credits::from_units(10),
            rollover_until: Some(now.plus(Duration::from_secs(60))),
            source: "cycle_rollover".to_owned(),
            created_by: None,
            created_at: now,
            updated_at: now,
            version: 1,
        };
        let shares = [
            share(tx.new_id(), ScopeType::Pool, "pool"),
            share(tx.new_id(), ScopeType::User, "ada"),
            share(tx.new_id(), ScopeType::User, "eve"),
        ];
        tx.insert_allocations(&shares).await.unwrap();
        tx.commit().await.unwrap();

        let granted = Granted::system().over(account.account_id.clone());
        let ada = Placement { user: Some(Id::stored("ada")), ..Placement::default() };
        let mut tx = store.read(&granted).await.unwrap();
        let before = store.statements();
        let rules = tx.budget_rules(Some(&ada)).await.unwrap();
        assert!(store.statements() - before <= 3);
        let scopes: Vec<_> = rules.allocations.iter().map(|a| (&*a.scope.scope_id, a.effective)).collect();
        assert_eq!(scopes, [("pool", Credits::from_units(15)), ("ada", Credits::from_units(15))]);
        assert_eq!(rules.until(now), Some(now.plus(Duration::from_secs(60))), "they are to be read anew then");
        drop(tx);

        clock.advance(Duration::from_secs(60));
        let rules = store.read(&granted).await.unwrap().budget_rules(None).await.unwrap();
        let effective: Vec<_> = rules.allocations.iter().map(|a| a.effective).collect();
        assert_eq!(effective, [Credits::from_units(5); 3]);
    }
}
