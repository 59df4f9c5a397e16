//! Roll-ups: what the rows of one day and one set of dimensions add up to.

use std::fmt;

use crate::context::Domain;
use crate::credits::{Credits, Usd};
use crate::id::Id;
use crate::model::accounts::Account;
use crate::model::usage::{EntryKind, LedgerRow};
use crate::store::{Result, StoreError, from_columns};

/// Which roll-up; "" stands for none.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::store) struct RollupKey {
    pub(super) account_id: Id<Account>,
    pub(super) domain: Domain,
    pub(super) day: String,
    pub(super) org_id: String,
    pub(super) team_id: String,
    pub(super) user_id: String,
    pub(super) agent_id: String,
    pub(super) model_name: String,
    pub(super) connection_id: String,
    pub(super) guardrail_code: String,
}

from_columns! { RollupKey {
    account_id, domain, day, org_id, team_id, user_id, agent_id, model_name, connection_id, guardrail_code,
} }

impl fmt::Display for RollupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.domain.as_str(), self.day)?;
        for (name, value) in [
            ("org", &self.org_id),
            ("team", &self.team_id),
            ("user", &self.user_id),
            ("agent", &self.agent_id),
            ("model", &self.model_name),
            ("connection", &self.connection_id),
            ("guardrail", &self.guardrail_code),
        ] {
            if !value.is_empty() {
                write!(f, ", {name} {value}")?;
            }
        }
        Ok(())
    }
}

/// What a roll-up adds up.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct RollupSums {
    pub(in crate::store) requests: i64,
    pub(in crate::store) input_tokens: i64,
    pub(in crate::store) output_tokens: i64,
    pub(in crate::store) raw_cost: Usd,
    pub(in crate::store) credits_incurred: Credits,
}

from_columns! { RollupSums { requests, input_tokens, output_tokens, raw_cost, credits_incurred } }

pub(super) fn count(tokens: u64) -> i64 {
    i64::try_from(tokens).unwrap_or(i64::MAX)
}

impl RollupSums {
    pub(super) fn of(row: &LedgerRow) -> Self {
        Self {
            requests: i64::from(row.entry == EntryKind::Usage),
            input_tokens: count(row.tokens.input),
            output_tokens: count(row.tokens.output),
            raw_cost: row.raw_cost,
            credits_incurred: row.credits,
        }
    }

    pub(super) fn add(&mut self, other: &Self) -> Result<()> {
        self.requests += other.requests;
        self.input_tokens = self.input_tokens.saturating_add(other.input_tokens);
        self.output_tokens = self.output_tokens.saturating_add(other.output_tokens);
        self.raw_cost = self.raw_cost.checked_add(other.raw_cost).ok_or(StoreError::Overflow)?;
        self.credits_incurred =
            self.credits_incurred.checked_add(other.credits_incurred).ok_or(StoreError::Overflow)?;
        Ok(())
    }
}

impl fmt::Display for RollupSums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requests, input_tokens, output_tokens, raw_cost, credits_incurred } = self;
        write!(
            f,
            "{requests} requests, {input_tokens} + {output_tokens} tokens, {raw_cost} USD, {credits_incurred} credits"
        )
    }
}
