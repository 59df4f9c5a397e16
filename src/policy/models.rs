//! Model access: which models a subject may use.
//!
//! The most specific scope of user → team → org → account that has a grant for the
//! model decides. In that scope an exact name beats a wildcard, a longer wildcard a
//! shorter one, and deny beats allow. Where no scope says anything, the default
//! does. In the console domain the account's policy comes first: what it denies,
//! and what it does not list when it lists anything, no grant allows.

use std::collections::{HashMap, HashSet};

use serde::Serialize;

use crate::context::Domain;
use crate::model::accounts::ConsoleModelPolicy;
use crate::model::models::{AccessMode, ModelGrant};
use crate::model::scope::Scope;
use crate::model::text::ModelPattern;

/// The rules that hold for one subject, arranged for fast answers.
///
/// ```
/// use alchemi::context::Domain;
/// use alchemi::model::models::AccessMode;
/// use alchemi::policy::models::{ModelRules, Reason};
///
/// let rules = ModelRules::new(Domain::Copilot, &[], Vec::new(), None, AccessMode::Deny);
/// let verdict = rules.resolve("gpt-4o");
/// assert!(!verdict.allowed);
/// assert_eq!(verdict.reason, Reason::Default);
/// ```
#[derive(Debug, Clone)]
pub struct ModelRules {
    default: AccessMode,
    policy: Option<Bounds>,
    /// Most specific first.
    scopes: Vec<ScopeRules>,
}

/// What holds for one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelVerdict<'a> {
    /// Whether the model may be used.
    pub allowed: bool,
    /// The scope whose grant decided.
    pub resolved_from: Option<&'a Scope>,
    /// Grants of that scope that match the model; the first one decided.
    pub candidates: Vec<&'a ModelGrant>,
    /// What decided.
    pub reason: Reason,
}

/// What decides about a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// A grant.
    Grant,
    /// The account's console policy denies the model.
    PolicyDenies,
    /// The account's console policy lists models, and this is not one of them.
    OutsidePolicy,
    /// No grant of any scope matches.
    Default,
}

#[derive(Debug, Clone)]
struct ScopeRules {
    scope: Scope,
    exact: HashMap<String, Vec<ModelGrant>, foldhash::fast::RandomState>,
    /// In the order in which they decide.
    wildcards: Vec<ModelGrant>,
}

impl ModelRules {
    /// The rules of `domain` for a subject whose scopes, the most specific one first,
    /// are `chain`. Grants of other domains or scopes, and a policy outside of the
    /// console, have no effect.
    pub fn new(
        domain: Domain,
        chain: &[Scope],
        grants: Vec<ModelGrant>,
        policy: Option<ConsoleModelPolicy>,
        default: AccessMode,
    ) -> Self {
        let mut scopes: Vec<_> = chain.iter().cloned().map(ScopeRules::new).collect();
        for grant in grants.into_iter().filter(|g| g.domain == domain) {
            if let Some(rules) = scopes.iter_mut().find(|s| s.is_for(&grant)) {
                rules.add(grant);
            }
        }
        scopes.iter_mut().for_each(ScopeRules::sort);
        let policy = policy.filter(|_| domain == Domain::Console).map(|p| Bounds::new(&p));
        Self { default, policy, scopes }
    }

    /// Decides about one model.
    pub fn resolve(&self, model: &str) -> ModelVerdict<'_> {
        if let Some(reason) = self.policy.as_ref().and_then(|p| p.refusal(model)) {
            return ModelVerdict { allowed: false, resolved_from: None, candidates: Vec::new(), reason };
        }
        for rules in &self.scopes {
            let candidates = rules.matching(model);
            if let Some(deciding) = candidates.first() {
                let allowed = deciding.access_mode == AccessMode::Allow;
                return ModelVerdict { allowed, resolved_from: Some(&rules.scope), candidates, reason: Reason::Grant };
            }
        }
        let allowed = self.default == AccessMode::Allow;
        ModelVerdict { allowed, resolved_from: None, candidates: Vec::new(), reason: Reason::Default }
    }

    /// The scopes that are asked, in that order.
    pub fn chain(&self) -> impl Iterator<Item = &Scope> {
        self.scopes.iter().map(|s| &s.scope)
    }

    /// Every name that a grant of the chain is for, wildcards too; a name may come up
    /// more than once.
    pub fn named(&self) -> impl Iterator<Item = &str> {
        self.scopes
            .iter()
            .flat_map(|s| s.exact.keys().map(String::as_str).chain(s.wildcards.iter().map(|g| g.model_name.as_str())))
    }

    /// Those of `models` that may be used, in their order.
    pub fn suggestions<'a>(&self, models: impl Iterator<Item = &'a str>) -> Vec<String> {
        models.filter(|model| self.resolve(model).allowed).map(str::to_owned).collect()
    }
}

impl ScopeRules {
    fn new(scope: Scope) -> Self {
        Self { scope, exact: HashMap::default(), wildcards: Vec::new() }
    }

    fn is_for(&self, grant: &ModelGrant) -> bool {
        self.scope.scope_type == grant.scope_type && self.scope.scope_id == grant.scope_id
    }

    fn add(&mut self, grant: ModelGrant) {
        match prefix(&grant.model_name) {
            Some(_) => self.wildcards.push(grant),
            None => self.exact.entry(grant.model_name.clone()).or_default().push(grant),
        }
    }

    /// Brings grants into the order in which they decide: longest name first, then
    /// denials, then the newest.
    fn sort(&mut self) {
        for grants in self.exact.values_mut().chain([&mut self.wildcards]) {
            grants.sort_by(|a, b| {
                let key = |g: &ModelGrant| (g.model_name.len(), g.access_mode == AccessMode::Deny, g.created_at);
                key(b).cmp(&key(a))
            });
        }
    }

    fn matching(&self, model: &str) -> Vec<&ModelGrant> {
        let exact = self.exact.get(model).into_iter().flatten();
        let wildcards = self.wildcards.iter().filter(|g| prefix(&g.model_name).is_some_and(|p| model.starts_with(p)));
        exact.chain(wildcards).collect()
    }
}

/// The account's console policy, arranged for look-ups.
#[derive(Debug, Clone)]
struct Bounds {
    allow: NameSet,
    deny: NameSet,
}

impl Bounds {
    fn new(policy: &ConsoleModelPolicy) -> Self {
        Self { allow: NameSet::new(&policy.allow_models), deny: NameSet::new(&policy.deny_models) }
    }

    fn refusal(&self, model: &str) -> Option<Reason> {
        if self.deny.contains(model) {
            Some(Reason::PolicyDenies)
        } else if !self.allow.is_empty() && !self.allow.contains(model) {
            Some(Reason::OutsidePolicy)
        } else {
            None
        }
    }
}

#[derive(Debug, Clone)]
struct NameSet {
    exact: HashSet<String, foldhash::fast::RandomState>,
    prefixes: Vec<String>,
}

impl NameSet {
    fn new(patterns: &[ModelPattern]) -> Self {
        let (wild, exact): (Vec<_>, Vec<_>) = patterns.iter().partition(|p| prefix(p.as_str()).is_some());
        Self {
            exact: exact.into_iter().map(|p| p.as_str().to_owned()).collect(),
            prefixes: wild.into_iter().filter_map(|p| prefix(p.as_str())).map(str::to_owned).collect(),
        }
    }

    fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.prefixes.is_empty()
    }

    fn contains(&self, model: &str) -> bool {
        self.exact.contains(model) || self.prefixes.iter().any(|p| model.starts_with(p.as_str()))
    }
}

/// What a name must start with, of a pattern that ends in `*`.
fn prefix(pattern: &str) -> Option<&str> {
    pattern.strip_suffix('*')
}
