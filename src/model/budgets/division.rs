//! How a plan divides the account's credits: shares inside of shares, and what was
//! promised out of each.

use std::collections::{HashMap, HashSet};

use super::{AccountAllocation, EffectiveAllocation};
use crate::credits::Credits;
use crate::model::scope::Scope;

/// Where an allocated team or user of a plan stands in the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The team or user.
    pub scope: Scope,
    /// The team that the user is a member of; none for a team.
    pub team: Option<Scope>,
    /// The org of the team.
    pub org: Scope,
}

/// A limit and what was promised out of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commitment {
    /// Whose limit.
    pub of: Scope,
    /// The limit.
    pub limit: Credits,
    /// The sum of what it was divided into.
    pub promised: Credits,
}

impl Commitment {
    /// What was promised beyond the limit.
    pub fn excess(&self) -> Credits {
        self.promised.saturating_sub(self.limit).max(Credits::ZERO)
    }
}

/// A plan's allocations with their places in the directory.
#[derive(Debug, Clone)]
pub struct Division {
    /// What each scope has.
    pub allocations: Vec<EffectiveAllocation>,
    /// Where teams and users stand; a user of several teams has several places.
    pub standings: Vec<Standing>,
}

impl Division {
    /// The allocations that are not part of another one: those of orgs and the
    /// pool, and of teams and users above whom nothing is allocated.
    pub fn outermost(&self) -> impl Iterator<Item = &EffectiveAllocation> {
        let allocated: HashSet<&Scope> = self.allocations.iter().map(|a| &a.scope).collect();
        let inside: HashSet<&Scope> = self
            .standings
            .iter()
            .filter(|s| allocated.contains(&s.org) || s.team.as_ref().is_some_and(|team| allocated.contains(team)))
            .map(|s| &s.scope)
            .collect();
        self.allocations.iter().filter(move |a| !inside.contains(&a.scope))
    }

    /// What the plan gives out, each credit counted once.
    pub fn distributed(&self) -> Credits {
        self.outermost().fold(Credits::ZERO, |sum, a| sum.saturating_add(a.effective))
    }

    /// The same without what was carried over.
    pub fn fresh(&self) -> Credits {
        self.outermost().fold(Credits::ZERO, |sum, a| sum.saturating_add(a.fresh()))
    }

    /// The most that is promised for each credit that there is, of the account, its orgs and
    /// teams; none where nothing limits.
    pub fn over_commit_ratio(&self, account: Option<&AccountAllocation>) -> Option<f64> {
        let commitments = self.commitments(account).into_iter();
        let limited = commitments.filter(|c| c.limit > Credits::ZERO);
        limited.map(|c| c.promised.percent_of(c.limit) / 100.0).max_by(f64::total_cmp)
    }

    /// What is promised out of the account's monthly credits, and out of each allocated org and
    /// team. A share is promised by the nearest above it that has one: a member's by their team,
    /// else by the team's org, else by the account, by which the pool is too. One of several teams
    /// is promised their whole share by each that has one. What may be spent beyond a share, and
    /// what was carried over, is not in it.
    pub fn commitments(&self, account: Option<&AccountAllocation>) -> Vec<Commitment> {
        let effective: HashMap<&Scope, Credits> = self.allocations.iter().map(|a| (&a.scope, a.effective)).collect();
        let has_one = |scope: &&Scope| effective.contains_key(scope);
        let by_a_team: HashSet<(&Scope, &Scope)> = self
            .standings
            .iter()
            .filter(|s| s.team.as_ref().is_some_and(|team| has_one(&team)))
            .map(|s| (&s.scope, &s.org))
            .collect();
        let promises: HashSet<(&Scope, &Scope)> = self
            .standings
            .iter()
            .filter_map(|s| {
                let org = || Some(&s.org).filter(|org| has_one(org) && !by_a_team.contains(&(&s.scope, *org)));
                Some((s.team.as_ref().filter(has_one).or_else(org)?, &s.scope))
            })
            .collect();
        let mut promised: HashMap<&Scope, Credits> = HashMap::new();
        for (by, scope) in promises {
            let sum = promised.entry(by).or_default();
            *sum = sum.saturating_add(effective.get(scope).copied().unwrap_or_default());
        }
        let inside = promised.into_iter().map(|(by, promised)| {
            let limit = effective.get(by).copied().unwrap_or_default();
            Commitment { of: by.clone(), limit, promised }
        });
        let whole = account.filter(|_| !self.allocations.is_empty()).map(|account| Commitment {
            of: account.whole().scope,
            limit: account.monthly_credits,
            promised: self.fresh(),
        });
        let mut commitments: Vec<_> = inside.chain(whole).collect();
        commitments.sort_by(|a, b| a.of.cmp(&b.of));
        commitments
    }
}

/// The first limit that is exceeded by more than it was before.
///
/// What lowers an excess is let through, so that an over-committed plan can be mended.
pub fn newly_exceeded(before: &[Commitment], after: &[Commitment]) -> Option<Commitment> {
    let excess_before = |of: &Scope| before.iter().find(|c| c.of == *of).map_or(Credits::ZERO, Commitment::excess);
    after.iter().find(|c| c.excess() > excess_before(&c.of)).cloned()
}
