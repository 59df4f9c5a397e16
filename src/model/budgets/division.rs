//! How a plan divides the account's credits: shares inside of shares, and what was
//! promised out of each.

use std::collections::{HashMap, HashSet};

use super::{AccountAllocation, EffectiveAllocation};
use crate::credits::Credits;
use crate::model::scope::{Scope, ScopeType};

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

    /// The most that is promised for each credit that there is, of the account by all that
    /// the plan gives out, and of each org and team; none where nothing limits.
    pub fn over_commit_ratio(&self, account: Option<&AccountAllocation>) -> Option<f64> {
        let whole = account.map(|a| (a.monthly_credits, self.distributed()));
        let parts = self.commitments(account).into_iter().map(|c| (c.limit, c.promised));
        let limited = parts.chain(whole).filter(|(limit, _)| *limit > Credits::ZERO);
        limited.map(|(limit, promised)| promised.percent_of(limit) / 100.0).max_by(f64::total_cmp)
    }

    /// The account's monthly credits against the orgs, each org against its teams,
    /// each team against its members, wherever both sides have an allocation.
    pub fn commitments(&self, account: Option<&AccountAllocation>) -> Vec<Commitment> {
        let effective: HashMap<&Scope, Credits> = self.allocations.iter().map(|a| (&a.scope, a.effective)).collect();
        let mut promised: HashMap<Scope, Credits> = HashMap::new();
        let mut promise = |of: &Scope, credits: Credits| {
            let sum = promised.entry(of.clone()).or_default();
            *sum = sum.saturating_add(credits);
        };
        let whole = account.map(|a| Scope::new(ScopeType::Account, a.account_id.as_str()));
        if let Some(whole) = &whole {
            let orgs = self.allocations.iter().filter(|a| a.scope.scope_type == ScopeType::Org);
            orgs.for_each(|org| promise(whole, org.effective));
        }
        for standing in &self.standings {
            let Some(credits) = effective.get(&standing.scope) else { continue };
            promise(standing.team.as_ref().unwrap_or(&standing.org), *credits);
        }
        let limit = |scope: &Scope| match account {
            Some(account) if scope.scope_type == ScopeType::Account => Some(account.monthly_credits),
            _ => effective.get(scope).copied(),
        };
        let commitments = promised.into_iter().filter_map(|(of, promised)| {
            let limit = limit(&of)?;
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
