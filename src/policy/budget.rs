//! Which caps a request must hold.

use std::sync::Arc;

use super::Denial;
use crate::clock::Timestamp;
use crate::context::Domain;
use crate::credits::Credits;
use crate::id::Id;
use crate::model::accounts::Account;
use crate::model::budgets::{AccountAllocation, Calendar, Cycle, EffectiveAllocation, Plan, Window};
use crate::model::directory::Placement;
use crate::model::scope::{Scope, ScopeType};
use crate::model::usage::CounterKey;

/// The scope id of the pool.
pub const POOL: &str = "pool";

/// What a subject's budget follows from.
#[derive(Debug, Clone)]
pub struct BudgetRules {
    /// The account's calendar.
    pub calendar: Calendar,
    /// The account's own allocation; none: uncapped.
    pub account: Option<AccountAllocation>,
    /// The active plan.
    pub plan: Option<Plan>,
    /// What scopes have in the plan.
    pub allocations: Vec<EffectiveAllocation>,
}

/// One scope that a request is counted under, with the cap that it must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The scope.
    pub scope: Scope,
    /// The most that may be used and held in the window; none: only counted.
    pub cap: Option<Credits>,
    /// The window that holds the moment of admission.
    pub window: Window,
}

/// The chain of a subject, good for as long as none of its windows ends and no cap
/// changes by itself.
#[derive(Debug, Clone)]
pub struct Chain {
    links: Arc<[Link]>,
    from: Timestamp,
    until: Option<Timestamp>,
}

impl Chain {
    /// The links in lock order, if they still hold at `now`.
    pub fn at(&self, now: Timestamp) -> Option<Arc<[Link]>> {
        self.holds_at(now).then(|| Arc::clone(&self.links))
    }

    /// Whether nothing that it follows from has changed by itself until `now`.
    pub fn holds_at(&self, now: Timestamp) -> bool {
        now >= self.from && self.until.is_none_or(|until| now < until)
    }
}

impl Link {
    /// The counter behind the link.
    pub fn counter(&self) -> CounterKey {
        CounterKey { scope: self.scope.clone(), window_start: self.window.start.as_micros() }
    }
}

/// A link with what its counter holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drawn<'a> {
    /// The link.
    pub link: &'a Link,
    /// Credits of settled requests.
    pub used: Credits,
    /// Credits that are held, by requests under way or by gateways ahead of them.
    pub reserved: Credits,
}

impl Drawn<'_> {
    /// What is left of the cap, below zero if more was drawn; none: there is no cap.
    pub fn remaining(&self) -> Option<Credits> {
        Some(self.link.cap?.saturating_sub(self.used).saturating_sub(self.reserved))
    }

    /// The same when nothing is held any more.
    fn with_all_back(&self) -> Self {
        Self { reserved: Credits::ZERO, ..*self }
    }

    /// Whether the counter would take `amount`.
    pub fn fits(&self, amount: Credits) -> bool {
        self.remaining().is_none_or(|left| amount <= left)
    }
}

/// The refusal of a request that does not fit into its chain, by the scope with the least
/// left of those that lack credits whatever is given back, or if there is none of all; none of
/// a chain without caps.
pub fn shortage(chain: &[Drawn<'_>], requested: Credits) -> Option<Denial> {
    let spent: Vec<_> = chain.iter().filter(|drawn| !drawn.with_all_back().fits(requested)).collect();
    let is_held = spent.is_empty();
    let lacking = if is_held { chain.iter().collect() } else { spent };
    let left = lacking.into_iter().filter_map(|drawn| Some((drawn, drawn.remaining()?)));
    let (Drawn { link, reserved, .. }, remaining) = left.min_by_key(|(_, left)| *left)?;
    Some(Denial::AllocationExhausted {
        scope: link.scope.clone(),
        remaining: remaining.max(Credits::ZERO),
        requested,
        held: is_held.then_some(*reserved),
        resets_at: link.window.end,
    })
}

/// The scopes whose credits are held, by requests or ahead of them, so that they do not fit
/// `requested`: those with the least left, if none of the chain lacks any by now. None: more is
/// used of a scope than leaves room for it, whatever is given back.
pub fn scarce(chain: &[Drawn<'_>], requested: Credits) -> Option<Vec<Scope>> {
    if !chain.iter().all(|drawn| drawn.with_all_back().fits(requested)) {
        return None;
    }
    let left = chain.iter().filter_map(Drawn::remaining).min()?;
    let short = |drawn: &&Drawn<'_>| !drawn.fits(requested) || drawn.remaining() == Some(left);
    Some(chain.iter().filter(short).map(|drawn| drawn.link.scope.clone()).collect())
}

impl BudgetRules {
    /// [`chain`](Self::chain), to be kept until the first of its windows ends or a cap
    /// changes by itself.
    pub fn kept_chain(&self, account: &Id<Account>, domain: Domain, place: &Placement, now: Timestamp) -> Chain {
        let links = self.chain(account, domain, place, now);
        let ends = links.iter().filter_map(|link| link.window.end);
        let until = ends.chain(self.until(now)).min();
        Chain { links: links.into(), from: now, until }
    }

    /// When an override or what was carried over lapses next, or a window that has ended is
    /// looked at again.
    pub fn until(&self, now: Timestamp) -> Option<Timestamp> {
        let look_again = self.plan.as_ref().filter(|plan| plan.rolls_over()).and_then(|plan| plan.look_again_at);
        let lapses = self.allocations.iter().filter_map(|a| a.until);
        lapses.chain(look_again).filter(|at| *at > now).min()
    }

    /// Whether what a window has left is to be carried over before these rules are used.
    pub fn rollover_is_due(&self, now: Timestamp) -> bool {
        self.plan.as_ref().is_some_and(|plan| plan.rollover_is_due(now, &self.calendar))
    }

    /// The account's calendar month around `now`.
    pub fn account_window(&self, now: Timestamp) -> Window {
        Cycle::Monthly.window(now, &self.calendar, Timestamp::from_micros(i64::MIN))
    }

    /// The scopes that a request of `place` is counted under, in the order in
    /// which locks are taken.
    ///
    /// The account is always one of them. In the copilot domain the org, team and
    /// user of the active plan are too, capped where they have an allocation; a
    /// caller none of whose scopes has one draws on the pool, if there is one.
    pub fn chain(&self, account: &Id<Account>, domain: Domain, place: &Placement, now: Timestamp) -> Vec<Link> {
        let mut links = vec![Link {
            scope: Scope::new(ScopeType::Account, account.as_str()),
            cap: self.account.as_ref().map(AccountAllocation::cap),
            window: self.account_window(now),
        }];
        if let (Domain::Copilot, Some(plan)) = (domain, &self.plan) {
            self.add_plan(&mut links, plan, place, now);
        }
        links.sort_by(|a, b| a.scope.cmp(&b.scope));
        links
    }

    fn add_plan(&self, links: &mut Vec<Link>, plan: &Plan, place: &Placement, now: Timestamp) {
        let window = plan.window(now, &self.calendar);
        let own = [
            (ScopeType::Org, place.org.as_ref().map(Id::as_str)),
            (ScopeType::Team, place.team.as_ref().map(Id::as_str)),
            (ScopeType::User, place.user.as_ref().map(Id::as_str)),
        ];
        let mut has_own = false;
        for (kind, id) in own {
            let Some(id) = id else { continue };
            let scope = Scope::new(kind, id);
            let cap = self.cap_of(&scope);
            has_own |= cap.is_some();
            links.push(Link { scope, cap, window });
        }
        let pool = Scope::new(ScopeType::Pool, POOL);
        if let (false, Some(cap)) = (has_own, self.cap_of(&pool)) {
            links.push(Link { scope: pool, cap: Some(cap), window });
        }
    }

    fn cap_of(&self, scope: &Scope) -> Option<Credits> {
        self.allocations.iter().find(|a| a.scope == *scope).map(EffectiveAllocation::cap)
    }
}
