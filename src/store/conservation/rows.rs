//! What is compared, as the database adds it up.

use crate::credits::{Credits, Usd};
use crate::store::from_columns;
use crate::store::ledger::{Counter, RollupKey, RollupSums};

/// What the rows with one chain add to each of its counters.
pub(super) struct ChainSum {
    pub(super) chain: String,
    pub(super) ledger_rows: i64,
    pub(super) raw_cost: Usd,
    pub(super) credits: Credits,
}

pub(super) const CHAINS: &str = r#"SELECT chain, COUNT(*) AS ledger_rows, CAST(SUM(raw_cost) AS BIGINT) AS raw_cost,
    CAST(SUM(credits_incurred) AS BIGINT) AS credits
    FROM "Alchemi_UsageLedgerTable" WHERE account_id = $1 GROUP BY chain"#;

/// What one reservation or lease has of each of its counters.
pub(super) struct Held {
    pub(super) amount: Credits,
    pub(super) held: String,
}

pub(super) const RESERVATIONS: &str =
    r#"SELECT amount, detail AS held FROM "Alchemi_AllocationReservationTable" WHERE account_id = $1"#;

pub(super) const LEASES: &str = r#"SELECT amount, counters AS held FROM "Alchemi_AllocationLeaseTable"
    WHERE account_id = $1 AND state = 'open'"#;

/// A counter with what it may have used and leased.
pub(super) struct CounterRow {
    pub(super) counter: Counter,
    pub(super) cap: Credits,
}

impl<'r, R: sqlx::Row> sqlx::FromRow<'r, R> for CounterRow
where
    Counter: sqlx::FromRow<'r, R>,
    Cap: sqlx::FromRow<'r, R>,
{
    fn from_row(row: &'r R) -> sqlx::Result<Self> {
        Ok(Self { counter: Counter::from_row(row)?, cap: Cap::from_row(row)?.cap })
    }
}

struct Cap {
    cap: Credits,
}

pub(super) const COUNTERS: &str = r#"SELECT scope_type, scope_id, window_start, used, leased, cap
    FROM "Alchemi_AllocationCounterTable" WHERE account_id = $1"#;

from_columns! {
    ChainSum { chain, ledger_rows, raw_cost, credits }
    Held { amount, held }
    Cap { cap }
}

/// A roll-up that is not what the ledger's rows add up to.
pub(super) struct RolledUp {
    pub(super) key: RollupKey,
    pub(super) expected: RollupSums,
    pub(super) found: RollupSums,
}

impl<'r, R: sqlx::Row> sqlx::FromRow<'r, R> for RolledUp
where
    RollupKey: sqlx::FromRow<'r, R>,
    RollupSums: sqlx::FromRow<'r, R>,
    Found: sqlx::FromRow<'r, R>,
{
    fn from_row(row: &'r R) -> sqlx::Result<Self> {
        let Found { found_requests, found_input, found_output, found_cost, found_credits } = Found::from_row(row)?;
        let found = RollupSums {
            requests: found_requests,
            input_tokens: found_input,
            output_tokens: found_output,
            raw_cost: found_cost,
            credits_incurred: found_credits,
        };
        Ok(Self { key: RollupKey::from_row(row)?, expected: RollupSums::from_row(row)?, found })
    }
}

struct Found {
    found_requests: i64,
    found_input: i64,
    found_output: i64,
    found_cost: Usd,
    found_credits: Credits,
}

from_columns! { Found { found_requests, found_input, found_output, found_cost, found_credits } }

/// The ledger's rows on one side, the roll-ups on the other.
pub(super) const ROLLED_UP: &str = r#"SELECT account_id, domain, day, org_id, team_id, user_id, agent_id, model_name, connection_id,
    guardrail_code, CAST(SUM(rows_here) AS BIGINT) AS requests, CAST(SUM(input_here) AS BIGINT) AS input_tokens,
    CAST(SUM(output_here) AS BIGINT) AS output_tokens, CAST(SUM(cost_here) AS BIGINT) AS raw_cost,
    CAST(SUM(credits_here) AS BIGINT) AS credits_incurred, CAST(SUM(rows_there) AS BIGINT) AS found_requests,
    CAST(SUM(input_there) AS BIGINT) AS found_input, CAST(SUM(output_there) AS BIGINT) AS found_output,
    CAST(SUM(cost_there) AS BIGINT) AS found_cost, CAST(SUM(credits_there) AS BIGINT) AS found_credits
    FROM (SELECT account_id, domain, day, COALESCE(org_id, '') AS org_id, COALESCE(team_id, '') AS team_id,
      COALESCE(user_id, '') AS user_id, COALESCE(agent_id, '') AS agent_id, COALESCE(model_name, '') AS model_name,
      COALESCE(connection_id, '') AS connection_id, COALESCE(guardrail_code, '') AS guardrail_code,
      CASE WHEN entry = 'usage' THEN 1 ELSE 0 END AS rows_here, input_tokens AS input_here,
      output_tokens AS output_here, raw_cost AS cost_here, credits_incurred AS credits_here, 0 AS rows_there,
      0 AS input_there, 0 AS output_there, 0 AS cost_there, 0 AS credits_there
      FROM "Alchemi_UsageLedgerTable" WHERE account_id = $1
      UNION ALL SELECT account_id, domain, day, org_id, team_id, user_id, agent_id, model_name, connection_id,
      guardrail_code, 0, 0, 0, 0, 0, requests, input_tokens, output_tokens, raw_cost, credits_incurred
      FROM "Alchemi_UsageRollupTable" WHERE account_id = $1) AS sides
    GROUP BY account_id, domain, day, org_id, team_id, user_id, agent_id, model_name, connection_id, guardrail_code
    HAVING SUM(rows_here) <> SUM(rows_there) OR SUM(input_here) <> SUM(input_there)
    OR SUM(output_here) <> SUM(output_there) OR SUM(cost_here) <> SUM(cost_there)
    OR SUM(credits_here) <> SUM(credits_there)"#;
