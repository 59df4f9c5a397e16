//! What decided, rule by rule.

use serde::Serialize;

use crate::id::Id;
use crate::model::models::ModelGrant;
use crate::model::scope::Scope;

/// The rules of a verdict, in the order in which they are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// The subject is a member of the team that they ask for.
    Team,
    /// The account is active.
    Account,
    /// The subject's user row is active.
    User,
    /// The token allows the product domain.
    Domain,
    /// The subject has the feature that the kind of request requires.
    Feature,
    /// A grant, or the default, lets the model be used.
    Model,
    /// The agent exists and is granted.
    Agent,
    /// The connection exists and is granted.
    Connection,
    /// The account has an allocation, where one is required.
    Allocation,
    /// The model has a price, where one is required.
    Price,
    /// A scope of the chain has credits enough.
    Credits,
}

/// What one rule said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The rule.
    pub rule: Rule,
    /// Whether it let the request through.
    pub passed: bool,
    /// What it was asked about: a feature, a model, an agent, a connection.
    pub about: Option<String>,
    /// The scope that decided.
    pub scope: Option<Scope>,
    /// The model grant that decided.
    pub grant: Option<Id<ModelGrant>>,
    /// The same in words.
    pub detail: String,
}

impl Step {
    /// A step about nothing in particular.
    pub fn of(rule: Rule, passed: bool, detail: impl Into<String>) -> Self {
        Self { rule, passed, about: None, scope: None, grant: None, detail: detail.into() }
    }
}

/// Watches a verdict come about. Whoever only wants the verdict watches with `()`, which
/// costs nothing: no step is even made.
pub(super) trait Witness {
    fn sees(&mut self, step: impl FnOnce() -> Step);
}

impl Witness for () {
    fn sees(&mut self, _: impl FnOnce() -> Step) {}
}

impl Witness for Vec<Step> {
    fn sees(&mut self, step: impl FnOnce() -> Step) {
        self.push(step());
    }
}
