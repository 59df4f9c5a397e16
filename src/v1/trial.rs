//! Dry runs: a write with `dry_run=true` is checked and done as any other, its effect
//! is told, and nothing of it is kept.
//!
//! A route takes part with two words: [`Trial`] in its query, and
//! [`Call::begin_or_try`](super::call::Call::begin_or_try) in place of
//! [`Call::begin`](super::call::Call::begin). What it audits is what a dry run tells.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::id::Id;
use crate::model::audit::AuditEvent;
use crate::model::directory::User;
use crate::store::rehearsal::Rehearsed;

/// How many users a dry run names.
pub(super) const SAMPLE: u32 = 10;

/// How many changes it shows.
const SHOWN: usize = 100;

/// Whether to try only.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Trial {
    /// Check everything and say what would change for whom, but change nothing.
    #[serde(default)]
    pub(super) dry_run: bool,
}

/// What was done, or with `dry_run=true` what would be.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum Tried<T> {
    /// It was done.
    Done(T),
    /// It was tried.
    Trial(Box<Effect>),
}

/// What a write would do.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Effect {
    /// Always true.
    dry_run: bool,
    /// How many rows would be made, changed or removed.
    change_count: usize,
    /// The first 100 of them.
    changes: Vec<Changed>,
    /// How many users of the directory are in the scopes that the rows are for.
    users: i64,
    /// Some of them.
    sample: Vec<Id<User>>,
}

/// One row, as the audit would tell it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Changed {
    /// What would be done.
    #[schema(example = "upsert")]
    action: String,
    /// To what kind of row.
    #[schema(example = "Alchemi_ModelGrantTable")]
    resource_type: String,
    /// To which row; of a new one, not the id that it will have.
    resource_id: String,
    /// The row before; null: there is none.
    #[schema(value_type = Option<Object>)]
    before: Option<Box<RawValue>>,
    /// The row after; null: there is none.
    #[schema(value_type = Option<Object>)]
    after: Option<Box<RawValue>>,
}

impl From<Rehearsed> for Effect {
    fn from(rehearsed: Rehearsed) -> Self {
        let Rehearsed { events, users, sample } = rehearsed;
        let change_count = events.len();
        let changes = events.into_iter().take(SHOWN).map(Changed::from).collect();
        Self { dry_run: true, change_count, changes, users, sample }
    }
}

impl From<AuditEvent> for Changed {
    fn from(event: AuditEvent) -> Self {
        let row = |row: Box<RawValue>| (row.get() != "{}").then_some(row);
        Self {
            action: event.action,
            resource_type: event.resource_type,
            resource_id: event.resource_id,
            before: row(event.before_value),
            after: row(event.updated_values),
        }
    }
}
