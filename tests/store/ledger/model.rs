//! What the ledger should do, without a database: caps, holds, leases and rows as plain numbers.

use std::collections::BTreeMap;

use alchemi::model::usage::CounterKey;
use alchemi::policy::budget::Link;

mod steps;
pub(super) use steps::Step;

/// Accounts, and users of each.
pub(super) const ACCOUNTS: usize = 2;
const USERS: usize = 2;
/// Gateways that take leases.
const HOLDERS: usize = 2;

/// When a model's clock begins.
pub(super) const START: u64 = 1_800_000_000;
/// Seconds after which a reservation is abandoned, and a gateway is given up.
pub(super) const ABANDONED_AFTER: u64 = 300;
pub(super) const GIVEN_UP_AFTER: u64 = 60;
/// Seconds for which a lost lease is remembered.
pub(super) const REMEMBERED: u64 = 86_400;
const DAY: u64 = 86_400;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counter {
    pub(super) used: i64,
    pub(super) leased: i64,
    /// The cap that the last hold kept, and what was used beyond holds since.
    bound: i64,
}

#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) id: String,
    pub(super) account: String,
    pub(super) counters: Vec<CounterKey>,
    pub(super) held: Vec<CounterKey>,
    pub(super) hold: i64,
    /// Which lease it was drawn from.
    pub(super) lease: Option<String>,
    expires_at: u64,
    settled: bool,
}

/// A lease's row in the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Row {
    Open,
    Charged,
    Released,
    Gone,
}

#[derive(Debug, Clone)]
pub(super) struct Lease {
    pub(super) id: String,
    pub(super) holder: String,
    pub(super) account: String,
    pub(super) links: Vec<Link>,
    /// Every counter of the chain, with those that have no cap.
    counters: Vec<CounterKey>,
    row: Row,
    amount: i64,
    updated_at: u64,
    /// What its gateway believes to be free.
    pub(super) free: i64,
    /// Its gateway takes no more of it.
    ended: bool,
}

/// The same as a step, with everything that it is about.
#[derive(Debug, Clone)]
pub(super) enum Action {
    Nothing,
    Reserve { request: Request, links: Vec<Link>, soft: bool },
    Take { lease: Lease, amount: i64 },
    Return { lease: Lease, amount: i64 },
    Close { lease: Lease },
    Settle { batch: Vec<(Request, i64)> },
    ChargeAbandoned,
    Sweep { charge: bool },
    Fence { holder: String },
    Renew { holder: String },
    Begin { holder: String },
    Forget,
    Record { id: String, account: String, links: Vec<Link>, amount: i64 },
    Pass { seconds: u64 },
    Remove { account: String, next: String },
}

/// What the store should answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    Nothing,
    Yes(bool),
    Taken(&'static str),
    /// Requests that were new; of them, those whose account is gone.
    Settled(usize, usize),
    /// Requests that were charged at what they held.
    Abandoned(Vec<String>),
    /// Leases that were ended, with what was charged.
    Swept(Vec<(String, i64)>),
}

#[derive(Debug, Clone, Default)]
pub(super) struct Model {
    pub(super) now: u64,
    generations: [u32; ACCOUNTS],
    /// Of each account, then of its users.
    caps: [[Option<i64>; 1 + USERS]; ACCOUNTS],
    counters: BTreeMap<(String, CounterKey), Counter>,
    requests: Vec<Request>,
    leases: Vec<Lease>,
    /// When each gateway that lives is given up, and whether it is fenced.
    holders: BTreeMap<String, (u64, bool)>,
    holder_generations: [u32; HOLDERS],
    /// Credits of each row; how often each key was settled cannot be more than once.
    rows: BTreeMap<String, i64>,
    /// Rows of idle credits that came back late, whose ids are the store's.
    returned: Vec<(String, i64)>,
    serial: u32,
}

/// What an action does to the books.
impl Model {
    pub(super) fn perform(&mut self, action: &Action) -> Answer {
        match action {
            Action::Nothing => Answer::Nothing,
            Action::Reserve { request, links, soft } => {
                let admitted = self.hold(&request.account, links, request.hold, *soft);
                if admitted {
                    self.requests.push(request.clone());
                }
                Answer::Yes(admitted)
            }
            Action::Take { lease, amount } => self.take(lease, *amount),
            Action::Return { lease, amount } => Answer::Yes(self.give_back(&lease.id, *amount)),
            Action::Close { lease } => {
                self.give_back(&lease.id, lease.free);
                let n = self.lease(&lease.id);
                let left = self.leases[n].amount;
                if self.leases[n].row == Row::Open {
                    self.free(n, left);
                    self.leases[n].row = Row::Gone;
                } else if self.take_back(n, left) {
                    self.rows.insert(format!("{}:closed", lease.id), -left);
                }
                Answer::Nothing
            }
            Action::Settle { batch } => self.settle(batch),
            Action::ChargeAbandoned => {
                let mut abandoned = Vec::new();
                for n in self.open_requests() {
                    let request = &self.requests[n];
                    // Without an account there is no reservation; its client settles it yet.
                    if request.lease.is_none() && request.expires_at <= self.now && self.lives(&request.account) {
                        self.requests[n].settled = true;
                        abandoned.push(self.requests[n].clone());
                    }
                }
                let batch: Vec<_> = abandoned.iter().map(|request| (request.clone(), request.hold)).collect();
                self.settle(&batch);
                let mut ids: Vec<_> = abandoned.into_iter().map(|request| request.id).collect();
                ids.sort();
                Answer::Abandoned(ids)
            }
            Action::Sweep { charge } => self.sweep(*charge),
            Action::Fence { holder } => {
                self.holders.entry(holder.clone()).and_modify(|holder| holder.1 = true);
                Answer::Nothing
            }
            Action::Renew { holder } => {
                self.holders.insert(holder.clone(), (self.now + GIVEN_UP_AFTER, false));
                Answer::Yes(true)
            }
            Action::Begin { holder } => {
                self.holders.insert(holder.clone(), (self.now + GIVEN_UP_AFTER, false));
                Answer::Nothing
            }
            Action::Forget => {
                let now = self.now;
                for lease in &mut self.leases {
                    let lost = matches!(lease.row, Row::Charged | Row::Released);
                    if lost && lease.updated_at + REMEMBERED < now {
                        lease.row = Row::Gone;
                    }
                }
                let leases = &self.leases;
                let has_lease =
                    |holder: &str| leases.iter().any(|lease| lease.row != Row::Gone && lease.holder == holder);
                self.holders.retain(|holder, (_, fenced)| !*fenced || has_lease(holder));
                Answer::Nothing
            }
            Action::Record { id, account, links, amount } => Answer::Yes(self.record(id, account, links, *amount)),
            Action::Pass { seconds } => {
                self.now += seconds;
                Answer::Nothing
            }
            Action::Remove { account, .. } => {
                self.counters.retain(|(of, _), _| of != account);
                self.leases
                    .iter_mut()
                    .filter(|lease| lease.account == *account)
                    .for_each(|lease| lease.row = Row::Gone);
                Answer::Yes(true)
            }
        }
    }

    fn lives(&self, account: &str) -> bool {
        (0..ACCOUNTS).any(|n| self.account(n) == account)
    }

    fn lease(&self, id: &str) -> usize {
        self.leases.iter().position(|lease| lease.id == id).unwrap()
    }

    fn counter(&mut self, account: &str, key: &CounterKey) -> &mut Counter {
        self.counters.entry((account.to_owned(), key.clone())).or_default()
    }

    /// All or none; a cap is kept at the moment of every hold.
    fn hold(&mut self, account: &str, links: &[Link], amount: i64, soft: bool) -> bool {
        let capped: Vec<_> = links.iter().filter_map(|link| Some((link.counter(), link.cap?.nanos()))).collect();
        let limit = |cap: i64| if soft { i64::MAX / 2 } else { cap };
        let fits = capped.iter().all(|(key, cap)| {
            let counter = self.counters.get(&(account.to_owned(), key.clone())).copied().unwrap_or_default();
            amount <= limit(*cap).saturating_sub(counter.used).saturating_sub(counter.leased)
        });
        for (key, cap) in capped.into_iter().filter(|_| fits) {
            let counter = self.counter(account, &key);
            counter.leased += amount;
            counter.bound = limit(cap);
        }
        fits
    }

    fn take(&mut self, lease: &Lease, amount: i64) -> Answer {
        let known = self.leases.iter().position(|known| known.id == lease.id);
        let lost = known.is_some_and(|n| self.leases[n].row != Row::Open);
        if lost || self.holders.get(&lease.holder).is_none_or(|(_, fenced)| *fenced) {
            if let Some(n) = known {
                self.leases[n].ended = true;
            }
            return Answer::Taken("fenced");
        }
        if !self.hold(&lease.account, &lease.links, amount, false) {
            return Answer::Taken("short");
        }
        let n = known.unwrap_or_else(|| {
            self.leases.push(Lease { row: Row::Open, ..lease.clone() });
            self.leases.len() - 1
        });
        let lease = &mut self.leases[n];
        lease.amount += amount;
        lease.free += amount;
        lease.updated_at = self.now;
        Answer::Taken("yes")
    }

    /// Takes `amount` from what each counter of a lease has leased.
    fn free(&mut self, n: usize, amount: i64) {
        let lease = self.leases[n].clone();
        for link in &lease.links {
            self.counter(&lease.account, &link.counter()).leased -= amount;
        }
    }

    fn give_back(&mut self, id: &str, amount: i64) -> bool {
        let n = self.lease(id);
        if self.leases[n].row == Row::Open {
            self.leases[n].amount -= amount;
            self.leases[n].updated_at = self.now;
            self.free(n, amount);
            return true;
        }
        if self.take_back(n, amount) {
            self.returned.push((self.leases[n].id.clone(), -amount));
        }
        false
    }

    /// Of what a lost lease was charged.
    fn take_back(&mut self, n: usize, amount: i64) -> bool {
        let now = self.now;
        let lease = &mut self.leases[n];
        if amount == 0 || lease.row != Row::Charged || lease.amount < amount {
            return false;
        }
        lease.amount -= amount;
        lease.updated_at = now;
        let lease = lease.clone();
        for link in &lease.links {
            self.counter(&lease.account, &link.counter()).used -= amount;
        }
        true
    }

    fn settle(&mut self, batch: &[(Request, i64)]) -> Answer {
        let (mut fresh, mut orphans) = (Vec::new(), 0);
        for (request, cost) in batch {
            if self.rows.contains_key(&request.id) {
                continue;
            }
            self.rows.insert(request.id.clone(), *cost);
            if self.lives(&request.account) {
                fresh.push((request, *cost));
            } else {
                orphans += 1;
            }
        }
        // Facts that come late adjust the charge of the lease that was lost, which has made room for them.
        let mut covered = Vec::new();
        for (request, _) in &fresh {
            if let Some(id) = &request.lease
                && self.take_back(self.lease(id), request.hold)
            {
                self.rows.insert(format!("{}:late", request.id), -request.hold);
                covered.push(request.id.clone());
            }
        }
        for (request, cost) in &fresh {
            let drawn = request.lease.as_ref().filter(|_| request.hold != 0).map(|id| self.lease(id));
            let lost = drawn.filter(|n| self.leases[*n].row != Row::Open);
            if let Some(n) = drawn.filter(|_| lost.is_none()) {
                self.leases[n].amount -= request.hold;
                self.leases[n].updated_at = self.now;
            }
            for key in &request.counters {
                let held = if request.held.contains(key) { request.hold } else { 0 };
                let room = if lost.is_none() || covered.contains(&request.id) { held } else { 0 };
                let counter = self.counter(&request.account, key);
                counter.used += cost;
                counter.leased -= if lost.is_none() { held } else { 0 };
                counter.bound += (cost - room).max(0);
            }
        }
        Answer::Settled(fresh.len() + orphans, orphans)
    }

    fn sweep(&mut self, charge: bool) -> Answer {
        let now = self.now;
        self.holders.values_mut().filter(|(until, _)| *until <= now).for_each(|(_, fenced)| *fenced = true);
        let mut ended = Vec::new();
        for n in 0..self.leases.len() {
            let lease = &mut self.leases[n];
            if lease.row != Row::Open || !self.holders.get(&lease.holder).is_some_and(|(_, fenced)| *fenced) {
                continue;
            }
            lease.row = if charge { Row::Charged } else { Row::Released };
            lease.updated_at = now;
            let lease = lease.clone();
            self.free(n, lease.amount);
            let charged = if charge { lease.amount } else { 0 };
            if charged > 0 {
                self.rows.insert(format!("{}:lost", lease.id), charged);
                for link in &lease.links {
                    let counter = self.counter(&lease.account, &link.counter());
                    counter.used += charged;
                }
            }
            ended.push((lease.id, charged));
        }
        ended.sort();
        Answer::Swept(ended)
    }

    fn record(&mut self, id: &str, account: &str, links: &[Link], amount: i64) -> bool {
        if self.rows.contains_key(id) {
            return false;
        }
        self.rows.insert(id.to_owned(), amount);
        for link in links {
            let counter = self.counter(account, &link.counter());
            counter.used += amount;
            counter.bound += amount.max(0);
        }
        true
    }
}

/// What there is to be compared.
impl Model {
    /// Every row that the database should have, as the test reads them.
    pub(super) fn rows(&self) -> Vec<String> {
        let mut rows = Vec::new();
        for ((account, key), counter) in &self.counters {
            let (kind, id) = (key.scope.scope_type.as_str(), &key.scope.scope_id);
            let Counter { used, leased, bound } = counter;
            let start = key.window_start;
            rows.push(format!("counter {account} {kind} {id} {start}: {used} {leased} of {bound}"));
        }
        rows.extend(self.rows.iter().map(|(id, credits)| format!("row {id}: {credits}")));
        rows.extend(self.returned.iter().map(|(lease, credits)| format!("row {lease}:returned: {credits}")));
        for n in self.open_requests() {
            let request = &self.requests[n];
            if request.lease.is_none() && self.lives(&request.account) {
                rows.push(format!("reservation {}: {}", request.id, request.hold));
            }
        }
        for lease in self.leases.iter().filter(|lease| lease.row == Row::Open) {
            rows.push(format!("lease {}: {}", lease.id, lease.amount));
        }
        rows.sort();
        rows
    }

    /// I1, I2 and I5 of the specification, on the model: what is wrong with it.
    pub(super) fn violations(&self) -> Vec<String> {
        let mut violations = Vec::new();
        for ((account, key), counter) in &self.counters {
            if counter.leased < 0 || counter.used + counter.leased > counter.bound {
                violations.push(format!("{account} {}: {counter:?}", key.scope));
            }
        }
        for lease in self.leases.iter().filter(|lease| lease.row == Row::Open) {
            let drawn =
                self.requests.iter().filter(|r| !r.settled && r.lease.as_ref() == Some(&lease.id)).map(|r| r.hold);
            // What a commit left in the row and nobody believes in is free when the lease ends.
            if lease.amount != lease.free + drawn.sum::<i64>() {
                violations.push(format!("{} is not what is free and what is drawn: {lease:?}", lease.id));
            }
        }
        violations
    }

    /// Steps after which nothing may be held any more.
    pub(super) fn ending(&self) -> Vec<Step> {
        let settled = Step::SettleAll { cost: 3 };
        vec![settled, Step::Pass { seconds: 1_000 }, Step::ChargeAbandoned, Step::Sweep { charge: true }]
    }
}
