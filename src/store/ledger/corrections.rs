//! Corrections: rows of their own, because a row of the ledger never changes.

use crate::context::{Domain, Tenant};
use crate::credits::{Credits, Factor, Usd};
use crate::model::usage::{CounterKey, Dimensions, EntryKind, RouteKind};
use crate::store::{Result, StoreError, Tx, find, from_columns, on, run};

/// A row of the ledger, as far as it can be undone.
#[derive(Debug, Clone)]
pub struct Booked {
    /// The row's id.
    pub request_id: String,
    /// What kind of request it was.
    pub kind: RouteKind,
    /// Usage, or a correction.
    pub entry: EntryKind,
    /// Whom and what it is counted for.
    pub dimensions: Dimensions,
    /// What the upstream charged.
    pub raw_cost: Usd,
    /// Credits for each dollar.
    pub credit_factor: Factor,
    /// What the account paid.
    pub credits: Credits,
    /// The plan that was in force.
    pub plan_id: Option<String>,
    /// The plan's window, in microseconds.
    pub cycle_start: Option<i64>,
    /// The day that it counts for.
    pub day: String,
    /// Counters that it was added to.
    pub counters: Vec<CounterKey>,
}

struct BookedRow {
    request_id: String,
    kind: RouteKind,
    entry: EntryKind,
    org_id: Option<String>,
    team_id: Option<String>,
    user_id: Option<String>,
    subject: Option<String>,
    agent_id: Option<String>,
    model_name: Option<String>,
    connection_id: Option<String>,
    guardrail_code: Option<String>,
    raw_cost: Usd,
    credit_factor: Factor,
    credits_incurred: Credits,
    plan_id: Option<String>,
    cycle_start: Option<i64>,
    day: String,
    chain: String,
}

from_columns! {
    BookedRow {
        request_id, kind, entry, org_id, team_id, user_id, subject, agent_id, model_name, connection_id, guardrail_code,
        raw_cost, credit_factor, credits_incurred, plan_id, cycle_start, day, chain,
    }
}

impl TryFrom<BookedRow> for Booked {
    type Error = StoreError;

    fn try_from(row: BookedRow) -> Result<Self> {
        let unreadable = |error: serde_json::Error| {
            let reason = format!("chain of {}: {error}", row.request_id);
            StoreError::Unreadable { table: "Alchemi_UsageLedgerTable", reason }
        };
        let counters = serde_json::from_str(&row.chain).map_err(unreadable)?;
        Ok(Self {
            request_id: row.request_id,
            kind: row.kind,
            entry: row.entry,
            dimensions: Dimensions {
                org_id: row.org_id,
                team_id: row.team_id,
                user_id: row.user_id,
                subject: row.subject,
                agent_id: row.agent_id,
                model_name: row.model_name,
                connection_id: row.connection_id,
                guardrail_code: row.guardrail_code,
            },
            raw_cost: row.raw_cost,
            credit_factor: row.credit_factor,
            credits: row.credits_incurred,
            plan_id: row.plan_id,
            cycle_start: row.cycle_start,
            day: row.day,
            counters,
        })
    }
}

impl Tx<Tenant> {
    /// The row of `domain` with this id.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn booked_row(&mut self, domain: Domain, id: &str) -> Result<Option<Booked>> {
        let row: Option<BookedRow> = find!(self, "Alchemi_UsageLedgerTable", domain = domain, request_id = id)?;
        row.map(Booked::try_from).transpose()
    }

    /// Of what a lost lease was charged, what its late requests have not taken back; from now on
    /// they take nothing back. `None`: the lease is forgotten.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn end_lost_charge(&mut self, lease_id: &str) -> Result<Option<Credits>> {
        let account = self.account.clone();
        let left: Option<Credits> = on!(self, |c| sqlx::query_scalar(
            r#"SELECT amount FROM "Alchemi_AllocationLeaseTable"
               WHERE lease_id = $1 AND account_id = $2 AND state = 'charged'"#
        )
        .bind(lease_id)
        .bind(&account)
        .fetch_optional(c)
        .await)?;
        let Some(left) = left else { return Ok(None) };
        let taken = run!(
            self,
            r#"UPDATE "Alchemi_AllocationLeaseTable" SET amount = 0, updated_at = $3
               WHERE lease_id = $1 AND state = 'charged' AND amount = $2"#,
            lease_id,
            left,
            self.now
        )?;
        // A late request came in between.
        if taken == 0 { Err(StoreError::Unavailable("the lease is being settled".to_owned())) } else { Ok(Some(left)) }
    }
}
