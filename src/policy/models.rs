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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::Timestamp;
    use crate::id::Id;
    use crate::model::scope::ScopeType;

    fn grant(n: i64, pattern: &str, scope: &Scope, deny: bool, domain: Domain) -> ModelGrant {
        ModelGrant {
            id: Id::stored(&n.to_string()),
            account_id: Id::stored("acc"),
            domain,
            model_name: pattern.to_owned(),
            scope_type: scope.scope_type,
            scope_id: scope.scope_id.clone(),
            access_mode: if deny { AccessMode::Deny } else { AccessMode::Allow },
            created_by: None,
            created_at: Timestamp::from_micros(n),
            updated_at: Timestamp::from_micros(n),
            version: 1,
        }
    }

    fn fits(pattern: &str, model: &str) -> bool {
        pattern == model || pattern.strip_suffix('*').is_some_and(|start| model.starts_with(start))
    }

    /// The rule as it is written down, without any arrangement.
    fn oracle(
        domain: Domain,
        chain: &[Scope],
        grants: &[ModelGrant],
        policy: &ConsoleModelPolicy,
        default: AccessMode,
        model: &str,
    ) -> (bool, Option<Scope>) {
        let listed = |list: &[ModelPattern]| list.iter().any(|p| fits(p.as_str(), model));
        if domain == Domain::Console {
            let outside = !policy.allow_models.is_empty() && !listed(&policy.allow_models);
            if outside || listed(&policy.deny_models) {
                return (false, None);
            }
        }
        for scope in chain {
            let here: Vec<_> = grants
                .iter()
                .filter(|g| g.domain == domain && g.scope_type == scope.scope_type && g.scope_id == scope.scope_id)
                .filter(|g| fits(&g.model_name, model))
                .collect();
            let rank = |g: &ModelGrant| (g.model_name == model, g.model_name.len());
            if let Some(best) = here.iter().map(|g| rank(g)).max() {
                let denied = here.iter().any(|g| rank(g) == best && g.access_mode == AccessMode::Deny);
                return (!denied, Some(scope.clone()));
            }
        }
        (default == AccessMode::Allow, None)
    }

    fn chain() -> [Scope; 4] {
        [ScopeType::User, ScopeType::Team, ScopeType::Org, ScopeType::Account]
            .map(|kind| Scope::new(kind, kind.as_str()))
    }

    fn patterns() -> impl Strategy<Value = Vec<ModelPattern>> {
        proptest::collection::vec("[ab]{1,2}\\*?|\\*", 0..3)
            .prop_map(|texts| texts.iter().map(|t| t.parse().unwrap()).collect())
    }

    proptest! {
        #[test]
        fn the_rules_are_the_written_rule(
            drawn in proptest::collection::vec(("[ab]{1,3}\\*?|\\*", 0_usize..6, any::<bool>(), any::<bool>()), 0..12),
            allow_models in patterns(),
            deny_models in patterns(),
            skipped in 0_usize..4,
            console in any::<bool>(),
            allow_by_default in any::<bool>(),
            model in "[ab]{1,4}",
        ) {
            let domain = if console { Domain::Console } else { Domain::Copilot };
            let default = if allow_by_default { AccessMode::Allow } else { AccessMode::Deny };
            let policy = ConsoleModelPolicy { allow_models, deny_models };
            // A chain may lack a link; grants may be another team's, or the other domain's.
            let all = chain();
            let chain: Vec<_> = all.iter().enumerate().filter(|(n, _)| *n == 3 || *n != skipped).map(|(_, s)| s.clone()).collect();
            let elsewhere = Scope::new(ScopeType::Team, "another");
            let grants: Vec<_> = drawn.iter().zip(1..).map(|((pattern, scope, deny, other), n)| {
                let scope = all.get(*scope).unwrap_or(&elsewhere);
                let odd = if console { Domain::Copilot } else { Domain::Console };
                grant(n, pattern, scope, *deny, if *other && n % 3 == 0 { odd } else { domain })
            }).collect();
            let rules = ModelRules::new(domain, &chain, grants.clone(), Some(policy.clone()), default);
            let verdict = rules.resolve(&model);
            let expected = oracle(domain, &chain, &grants, &policy, default, &model);
            prop_assert_eq!((verdict.allowed, verdict.resolved_from.cloned()), expected);
            prop_assert!(verdict.candidates.iter().all(|g| fits(&g.model_name, &model)));
            prop_assert_eq!(verdict.candidates.is_empty(), verdict.reason != Reason::Grant);
            let suggested = rules.suggestions([model.as_str()].into_iter());
            prop_assert_eq!(suggested.len(), usize::from(verdict.allowed));
        }
    }
}
