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
    /// team. A share is promised wherever it can be drawn: by the nearest above each place of its
    /// scope that has one, a member's team, else the team's org, else the account, by which the pool
    /// is too; by each but once. Where an override lasts for a time, the dearer of with and without it
    /// counts. What may be spent beyond a share, and what was carried over, is not in it.
    pub fn commitments(&self, account: Option<&AccountAllocation>) -> Vec<Commitment> {
        let shares: HashMap<&Scope, &EffectiveAllocation> = self.allocations.iter().map(|a| (&a.scope, a)).collect();
        let has_one = |scope: &&Scope| shares.contains_key(scope);
        let mut promises: HashSet<(Option<&Scope>, &Scope)> = self
            .standings
            .iter()
            .map(|s| (s.team.as_ref().filter(has_one).or(Some(&s.org).filter(has_one)), &s.scope))
            .collect();
        let standing: HashSet<&Scope> = self.standings.iter().map(|s| &s.scope).collect();
        promises.extend(shares.keys().filter(|scope| !standing.contains(*scope)).map(|scope| (None, *scope)));
        let mut promised: HashMap<Option<&Scope>, Credits> = HashMap::new();
        for (by, scope) in promises {
            let Some(share) = shares.get(scope) else { continue };
            let sum = promised.entry(by).or_default();
            *sum = sum.saturating_add(share.most);
        }
        let commitments = promised.into_iter().filter_map(|(by, promised)| {
            let (of, limit) = match by {
                Some(scope) => (scope.clone(), shares.get(scope)?.least),
                None => account.map(|account| (account.whole().scope, account.monthly_credits))?,
            };
            Some(Commitment { of, limit, promised })
        });
        let mut commitments: Vec<_> = commitments.collect();
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
