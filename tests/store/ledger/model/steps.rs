//! What may happen to the ledger, and what each step is about.

use alchemi::clock::Timestamp;
use alchemi::credits::Credits;
use alchemi::model::budgets::Window;
use alchemi::model::scope::{Scope, ScopeType};
use alchemi::policy::budget::Link;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest_state_machine::ReferenceStateMachine;

use super::{ABANDONED_AFTER, ACCOUNTS, Action, DAY, HOLDERS, Lease, Model, Request, Row, START, USERS};

/// What may happen. Which request or lease is meant is an [`Index`] into those that there are; where there is none,
/// nothing happens, so that every sequence of steps can be had, and shortened.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Reserve {
        account: usize,
        user: usize,
        amount: i64,
        soft: bool,
    },
    Take {
        holder: usize,
        account: usize,
        user: usize,
        amount: i64,
    },
    Draw {
        lease: Index,
        amount: i64,
    },
    Return {
        lease: Index,
        amount: i64,
    },
    Close {
        lease: Index,
    },
    /// Each with what it cost; a request may be there twice.
    Settle {
        batch: Vec<(Index, i64)>,
    },
    /// Everything that is under way.
    SettleAll {
        cost: i64,
    },
    SettleAgain {
        request: Index,
        cost: i64,
    },
    ChargeAbandoned,
    /// Gateways that were not heard of are fenced, and what fenced ones had is ended.
    Sweep {
        charge: bool,
    },
    Fence {
        holder: usize,
    },
    /// A gateway says that it lives, or begins anew.
    Renew {
        holder: usize,
    },
    Forget,
    /// Usage from elsewhere, or a correction, with an idempotency key.
    Record {
        account: usize,
        user: usize,
        amount: i64,
        key: u8,
    },
    Cap {
        account: usize,
        level: usize,
        cap: Option<i64>,
    },
    Pass {
        seconds: u64,
    },
    Remove {
        account: usize,
    },
}

impl ReferenceStateMachine for Model {
    type State = Self;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Self> {
        let caps = proptest::array::uniform2(proptest::array::uniform3(prop_oneof![
            4 => (5_i64..40).prop_map(Some),
            1 => Just(None),
        ]));
        caps.prop_map(|caps| Self { caps, ..Self::default() }).boxed()
    }

    fn transitions(_: &Self) -> BoxedStrategy<Step> {
        let (account, user, holder) = (0..ACCOUNTS, 0..USERS, 0..HOLDERS);
        let index = any::<Index>;
        prop_oneof![
            6 => (account.clone(), user.clone(), 0_i64..12, prop::bool::weighted(0.1))
                .prop_map(|(account, user, amount, soft)| Step::Reserve { account, user, amount, soft }),
            6 => (holder.clone(), account.clone(), user.clone(), 1_i64..15)
                .prop_map(|(holder, account, user, amount)| Step::Take { holder, account, user, amount }),
            8 => (index(), 0_i64..6).prop_map(|(lease, amount)| Step::Draw { lease, amount }),
            2 => (index(), 1_i64..10).prop_map(|(lease, amount)| Step::Return { lease, amount }),
            2 => index().prop_map(|lease| Step::Close { lease }),
            9 => prop::collection::vec((index(), 0_i64..9), 1..5).prop_map(|batch| Step::Settle { batch }),
            1 => (0_i64..9).prop_map(|cost| Step::SettleAll { cost }),
            2 => (index(), 0_i64..9).prop_map(|(request, cost)| Step::SettleAgain { request, cost }),
            2 => Just(Step::ChargeAbandoned),
            2 => prop::bool::weighted(0.7).prop_map(|charge| Step::Sweep { charge }),
            1 => holder.clone().prop_map(|holder| Step::Fence { holder }),
            4 => holder.prop_map(|holder| Step::Renew { holder }),
            1 => Just(Step::Forget),
            2 => (account.clone(), user, -5_i64..10, 0_u8..6)
                .prop_map(|(account, user, amount, key)| Step::Record { account, user, amount, key }),
            2 => (account.clone(), 0..=USERS, prop::option::weighted(0.8, 0_i64..50))
                .prop_map(|(account, level, cap)| Step::Cap { account, level, cap }),
            3 => prop_oneof![4 => Just(10), 3 => Just(70), 2 => Just(400), 1 => Just(DAY), 1 => Just(40 * DAY)]
                .prop_map(|seconds| Step::Pass { seconds }),
            1 => account.prop_map(|account| Step::Remove { account }),
        ]
        .boxed()
    }

    fn apply(mut state: Self, step: &Step) -> Self {
        let action = state.resolve(step);
        state.perform(&action);
        state
    }
}

/// From a step to what it is about.
impl Model {
    pub(crate) fn account(&self, account: usize) -> String {
        format!("account-{account}-{}", self.generations[account])
    }

    fn holder(&self, holder: usize) -> String {
        format!("holder-{holder}-{}", self.holder_generations[holder])
    }

    fn links(&self, account: usize, user: usize) -> Vec<Link> {
        let link = |kind, id: String, cap: Option<i64>, length: u64| {
            let start = (START + self.now) / length * length;
            let window = Window { start: Timestamp::from_secs(i64::try_from(start).unwrap()), end: None };
            Link { scope: Scope::new(kind, id), cap: cap.map(Credits::from_nanos), window }
        };
        let caps = &self.caps[account];
        let mut links = vec![
            link(ScopeType::Account, self.account(account), caps[0], 30 * DAY),
            link(ScopeType::User, format!("user-{user}"), caps[1 + user], DAY),
        ];
        links.sort_by_key(Link::counter);
        links
    }

    fn next(&mut self, what: &str) -> String {
        self.serial += 1;
        format!("{what}-{}", self.serial)
    }

    pub(super) fn open_requests(&self) -> Vec<usize> {
        (0..self.requests.len()).filter(|n| !self.requests[*n].settled).collect()
    }

    /// What a step is about; a gateway does its own part of it at once, which no database sees.
    pub(crate) fn resolve(&mut self, step: &Step) -> Action {
        match step {
            Step::Reserve { account, user, amount, soft } => {
                let links = self.links(*account, *user);
                let request = self.request(self.account(*account), &links, *amount, None);
                Action::Reserve { request, links, soft: *soft }
            }
            Step::Take { holder, account, user, amount } => self.resolve_take(*holder, *account, *user, *amount),
            Step::Draw { lease, amount } => self.resolve_draw(*lease, *amount),
            Step::Return { lease, amount } => match self.pick(lease, |lease| lease.free > 0) {
                Some(n) => {
                    let amount = (*amount).min(self.leases[n].free);
                    self.leases[n].free -= amount;
                    Action::Return { lease: self.leases[n].clone(), amount }
                }
                None => Action::Nothing,
            },
            Step::Close { lease } => self.resolve_close(lease),
            Step::Settle { batch } => {
                let open = self.open_requests();
                let batch = batch.iter().filter(|_| !open.is_empty());
                let batch: Vec<_> = batch.map(|(index, cost)| (open[index.index(open.len())], *cost)).collect();
                self.resolve_settle(&batch)
            }
            Step::SettleAll { cost } => {
                let batch: Vec<_> = self.open_requests().into_iter().map(|n| (n, *cost)).collect();
                self.resolve_settle(&batch)
            }
            Step::SettleAgain { request, cost } => {
                let settled: Vec<_> = self.requests.iter().filter(|request| request.settled).collect();
                match settled.is_empty() {
                    true => Action::Nothing,
                    false => Action::Settle { batch: vec![(settled[request.index(settled.len())].clone(), *cost)] },
                }
            }
            Step::ChargeAbandoned => Action::ChargeAbandoned,
            Step::Sweep { charge } => Action::Sweep { charge: *charge },
            Step::Fence { holder } => Action::Fence { holder: self.holder(*holder) },
            Step::Renew { holder } => match self.holders.get(&self.holder(*holder)) {
                Some((_, false)) => Action::Renew { holder: self.holder(*holder) },
                _ => {
                    self.holder_generations[*holder] += 1;
                    Action::Begin { holder: self.holder(*holder) }
                }
            },
            Step::Forget => Action::Forget,
            Step::Record { account, user, amount, key } => Action::Record {
                id: format!("recorded-{key}"),
                account: self.account(*account),
                links: self.links(*account, *user),
                amount: *amount,
            },
            Step::Cap { account, level, cap } => {
                self.caps[*account][*level] = *cap;
                Action::Nothing
            }
            Step::Pass { seconds } => Action::Pass { seconds: *seconds },
            Step::Remove { account } => {
                let gone = self.account(*account);
                self.generations[*account] += 1;
                Action::Remove { account: gone, next: self.account(*account) }
            }
        }
    }

    fn request(&mut self, account: String, links: &[Link], hold: i64, lease: Option<String>) -> Request {
        Request {
            id: self.next("request"),
            account,
            counters: links.iter().map(Link::counter).collect(),
            held: links.iter().filter(|link| link.cap.is_some()).map(Link::counter).collect(),
            hold,
            lease,
            expires_at: self.now + ABANDONED_AFTER,
            settled: false,
        }
    }

    /// One of the leases that are as wanted.
    fn pick(&self, index: &Index, wanted: impl Fn(&Lease) -> bool) -> Option<usize> {
        let found: Vec<_> = (0..self.leases.len()).filter(|n| wanted(&self.leases[*n])).collect();
        (!found.is_empty()).then(|| found[index.index(found.len())])
    }

    fn resolve_take(&mut self, holder: usize, account: usize, user: usize, amount: i64) -> Action {
        let (holder, id) = (self.holder(holder), self.account(account));
        let links = self.links(account, user);
        let capped: Vec<_> = links.iter().filter(|link| link.cap.is_some()).cloned().collect();
        if capped.is_empty() {
            return Action::Nothing;
        }
        let same =
            |lease: &&Lease| !lease.ended && lease.holder == holder && lease.account == id && lease.links == capped;
        if let Some(lease) = self.leases.iter().find(same) {
            return Action::Take { lease: lease.clone(), amount };
        }
        let lease = Lease {
            id: self.next("lease"),
            holder,
            account: id,
            counters: links.iter().map(Link::counter).collect(),
            links: capped,
            row: Row::Gone,
            amount: 0,
            updated_at: self.now,
            free: 0,
            ended: false,
        };
        Action::Take { lease, amount }
    }

    fn resolve_draw(&mut self, lease: Index, amount: i64) -> Action {
        let Some(n) = self.pick(&lease, |lease| !lease.ended && lease.free >= amount) else { return Action::Nothing };
        self.leases[n].free -= amount;
        let lease = self.leases[n].clone();
        let mut request = self.request(lease.account, &lease.links, amount, Some(lease.id));
        request.counters = lease.counters;
        self.requests.push(request);
        Action::Nothing
    }

    fn resolve_close(&mut self, lease: &Index) -> Action {
        let drawn: Vec<_> = self.requests.iter().filter(|r| !r.settled).filter_map(|r| r.lease.as_ref()).collect();
        let is_unused = |lease: &Lease| !lease.ended && !drawn.contains(&&lease.id);
        let unused: Vec<_> = (0..self.leases.len()).filter(|n| is_unused(&self.leases[*n])).collect();
        if unused.is_empty() {
            return Action::Nothing;
        }
        let lease = &mut self.leases[unused[lease.index(unused.len())]];
        lease.ended = true;
        let closed = lease.clone();
        lease.free = 0;
        Action::Close { lease: closed }
    }

    fn resolve_settle(&mut self, batch: &[(usize, i64)]) -> Action {
        if batch.is_empty() {
            return Action::Nothing;
        }
        let mut settled = Vec::new();
        for (n, cost) in batch {
            let request = &mut self.requests[*n];
            let first = !std::mem::replace(&mut request.settled, true);
            let of = |lease: &&mut Lease| first && request.lease.as_ref() == Some(&lease.id);
            if let Some(lease) = self.leases.iter_mut().find(of)
                && *cost < request.hold
                && !lease.ended
            {
                lease.free += request.hold - cost;
                request.hold = *cost;
            }
            settled.push((request.clone(), *cost));
        }
        Action::Settle { batch: settled }
    }
}
