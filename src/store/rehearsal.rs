//! Rehearsals: a transaction that does everything and keeps nothing.
//!
//! What it would have changed is what it wrote into the audit, so a write that is
//! audited can be rehearsed without a line of its own. Whom it would have concerned
//! follows from the scopes that the changed rows are for.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::dialect::push_list;
use super::{Result, Tx, on};
use crate::context::{Domain, Tenant};
use crate::id::Id;
use crate::model::audit::AuditEvent;
use crate::model::budgets::Plan;
use crate::model::directory::User;
use crate::model::scope::ScopeType;

/// What a rehearsal found.
#[derive(Debug)]
pub struct Rehearsed {
    /// The events that would have been audited, in their order.
    pub events: Vec<AuditEvent>,
    /// How many users of the directory the changes concern.
    pub users: i64,
    /// The first of them by id.
    pub sample: Vec<Id<User>>,
}

/// Whom rows of one domain are for.
#[derive(Debug, Default)]
struct Reached {
    everybody: bool,
    orgs: BTreeSet<String>,
    teams: BTreeSet<String>,
    users: BTreeSet<String>,
    /// Plans whose pool changes.
    pools: BTreeSet<Id<Plan>>,
}

/// The columns that say whom a row is for; a row without them is for everybody.
#[derive(Debug, Default, Deserialize)]
struct Addressee {
    scope_type: Option<ScopeType>,
    scope_id: Option<String>,
    plan_id: Option<Id<Plan>>,
}

impl Reached {
    /// Whom the events of `domain` concern; none where it has none.
    fn by(events: &[AuditEvent], domain: Domain) -> Option<Self> {
        let other = Domain::ALL.into_iter().filter(|d| *d != domain);
        // Labels that are no domain, such as billing, stand for both.
        let elsewhere: Vec<&str> = other.map(Domain::as_str).collect();
        let own: Vec<_> = events.iter().filter(|event| !elsewhere.contains(&&*event.domain)).collect();
        let mut reached = Self::default();
        for event in &own {
            let row = if event.updated_values.get() == "{}" { &event.before_value } else { &event.updated_values };
            reached.add(addressee(row));
        }
        (!own.is_empty()).then_some(reached)
    }

    fn add(&mut self, to: Addressee) {
        match (to.scope_type, to.scope_id, to.plan_id) {
            (Some(ScopeType::Org), Some(id), _) => drop(self.orgs.insert(id)),
            (Some(ScopeType::Team), Some(id), _) => drop(self.teams.insert(id)),
            (Some(ScopeType::User), Some(id), _) => drop(self.users.insert(id)),
            (Some(ScopeType::Pool), _, Some(plan)) => drop(self.pools.insert(plan)),
            _ => self.everybody = true,
        }
    }
}

/// Users who draw on the pool of a plan: without a share of their own, and in no team
/// or in one that has none, nor has its org.
macro_rules! push_pool {
    ($q:expr, $plan:expr) => {{
        let own = r#"(SELECT 1 FROM "Alchemi_CopilotBudgetAllocationTable" a WHERE a.account_id = u.account_id AND a.plan_id = "#;
        $q.push(" OR (NOT EXISTS ").push(own).push_bind($plan);
        $q.push(" AND a.scope_type = 'user' AND a.scope_id = u.id) AND (");
        $q.push(
            r#"NOT EXISTS (SELECT 1 FROM "Alchemi_TeamMembershipTable" m
               WHERE m.account_id = u.account_id AND m.domain = u.domain AND m.user_id = u.id)
               OR EXISTS (SELECT 1 FROM "Alchemi_TeamMembershipTable" m JOIN "Alchemi_TeamTable" t
               ON t.account_id = m.account_id AND t.domain = m.domain AND t.id = m.team_id
               WHERE m.account_id = u.account_id AND m.domain = u.domain AND m.user_id = u.id AND NOT EXISTS "#,
        );
        $q.push(own).push_bind($plan);
        $q.push(" AND ((a.scope_type = 'team' AND a.scope_id = t.id) OR (a.scope_type = 'org' AND a.scope_id = t.org_id)))))");
        $q.push(")");
    }};
}

fn addressee(row: &RawValue) -> Addressee {
    serde_json::from_str(row.get()).unwrap_or_default()
}

impl<R> Tx<R> {
    /// From here on this is a rehearsal: whatever is written, [`Tx::commit`] takes it back.
    pub fn rehearse(&mut self) {
        self.rehearsal = true;
    }

    /// Whether this is a rehearsal.
    pub fn is_rehearsal(&self) -> bool {
        self.rehearsal
    }

    /// Ends a rehearsal with what was written within the account, and whom it concerns;
    /// `sample` (at least 1) of them by id. Keeps nothing.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn rehearsed(self, sample: u32) -> Result<Rehearsed> {
        let Self { inner, store, account, by, now, changes, audited, .. } = self;
        let reach = std::marker::PhantomData;
        let mut tx = Tx::<Tenant> { inner, store, account, by, now, changes, audited, rehearsal: true, reach };
        let found = tx.find_effect(sample).await?;
        tx.commit().await?;
        Ok(found)
    }
}

impl Tx<Tenant> {
    async fn find_effect(&mut self, sample: u32) -> Result<Rehearsed> {
        let last = self.chain_head().await?.map_or(0, |(seq, _)| seq);
        let first = last.saturating_sub(i64::from(self.audited));
        let events: Vec<_> = self.chain(first, self.audited).await?.into_iter().map(|r| r.event).collect();
        let (users, sample) = self.concerned(&events, sample).await?;
        Ok(Rehearsed { events, users, sample })
    }

    async fn concerned(&mut self, events: &[AuditEvent], sample: u32) -> Result<(i64, Vec<Id<User>>)> {
        let reached: Vec<_> =
            Domain::ALL.into_iter().filter_map(|domain| Some((domain, Reached::by(events, domain)?))).collect();
        let account = self.account.clone();
        let rows: Vec<(Id<User>, i64)> = on!(self, |c| {
            let mut q = sqlx::QueryBuilder::new(
                r#"SELECT u.id, CAST(COUNT(*) OVER () AS BIGINT) FROM "Alchemi_UserTable" u WHERE u.account_id = "#,
            );
            q.push_bind(&account).push(" AND (1 = 0");
            for (domain, reached) in &reached {
                q.push(" OR (u.domain = ").push_bind(domain);
                if !reached.everybody {
                    q.push(" AND (u.id IN (");
                    push_list!(q, &reached.users);
                    q.push(
                        r#") OR EXISTS (SELECT 1 FROM "Alchemi_TeamMembershipTable" m JOIN "Alchemi_TeamTable" t
                           ON t.account_id = m.account_id AND t.domain = m.domain AND t.id = m.team_id
                           WHERE m.account_id = u.account_id AND m.domain = u.domain AND m.user_id = u.id AND (t.id IN ("#,
                    );
                    push_list!(q, &reached.teams);
                    q.push(") OR t.org_id IN (");
                    push_list!(q, &reached.orgs);
                    q.push(")))");
                    for plan in &reached.pools {
                        push_pool!(q, plan);
                    }
                    q.push(")");
                }
                q.push(")");
            }
            q.push(") ORDER BY u.id LIMIT ").push_bind(i64::from(sample)).build_query_as().fetch_all(c).await
        })?;
        let total = rows.first().map_or(0, |(_, total)| *total);
        Ok((total, rows.into_iter().map(|(id, _)| id).collect()))
    }
}
