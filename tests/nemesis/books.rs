//! The ledger against the truth.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use alchemi::clock::SystemClock;
use alchemi::id::RandomIds;
use alchemi::store::conservation::{self, Report};
use alchemi::store::{DatabaseConfig, Store};
use http::Method;
use sqlx::Row as _;
use sqlx::postgres::PgPool;
use tokio::task::JoinHandle;

use crate::load::{Seen, question};
use crate::process::{self, alchemi};
use crate::upstream::{Asked, LEAST_HELD, MOST_HELD};
use crate::world::{ABANDON_AFTER, World};

/// How long the gateways may take to put everything into the ledger, and to give up one that is gone.
const PATIENCE: Duration = Duration::from_secs(60);

/// Ahead of everything that a gateway promised to charge by some time, wherever its clock stood.
const HOURS_LATER: i64 = 3 * 3600;

/// A row of the ledger.
#[derive(Debug)]
pub(crate) struct Entry {
    account: String,
    pub(crate) credits: i64,
    marks: String,
    source: String,
}

/// What requests that arrived during one episode became.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Tally {
    /// Requests that reached the upstream.
    pub(crate) asked: usize,
    /// Charged at exactly what the upstream earned.
    pub(crate) exact: usize,
    /// Charged and marked: cut, counted for want of a report, or at the estimate.
    pub(crate) marked: usize,
    /// Without a row: only with the data folder of a gateway, and then its leases were charged.
    pub(crate) lost: usize,
    /// That reached the upstream twice.
    pub(crate) double: usize,
}

/// Watches, while the load runs, that no account's counter is over its cap by more than what answers have cost beyond
/// their estimates.
#[derive(Debug)]
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    watching: JoinHandle<(Vec<String>, i64)>,
}

impl Watch {
    pub(crate) fn start(world: &World) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let caps: HashMap<_, _> = world.accounts.iter().map(|a| (a.id.clone(), Arc::clone(&a.cap))).collect();
        let (pool, stopped) = (world.cluster.pool.clone(), Arc::clone(&stop));
        let upstream = Arc::clone(&world.upstream.shared);
        let watching = tokio::spawn(async move {
            let (mut violations, mut most, mut looks) = (Vec::new(), 0, 0);
            while !stopped.load(Ordering::Relaxed) {
                // The server may be down.
                let found = taken(&pool).await.unwrap_or_default();
                looks += u32::from(!found.is_empty());
                for (account, taken) in found {
                    let (cap, excess) = (caps[&account].load(Ordering::SeqCst), upstream.excess(&account));
                    most = most.max(taken - cap);
                    if taken > cap + excess {
                        violations.push(format!(
                            "overspent: account {account} has {taken} used and held of {cap}, with {excess} above estimates"
                        ));
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            if looks == 0 {
                violations.push("nothing was ever seen of the counters".to_owned());
            }
            (violations, most)
        });
        Self { stop, watching }
    }

    /// What was wrong, and how far an account was over its cap.
    pub(crate) async fn stop(self) -> (Vec<String>, i64) {
        self.stop.store(true, Ordering::Relaxed);
        self.watching.await.unwrap()
    }
}

/// What is used and held of each window of each account.
async fn taken(pool: &PgPool) -> sqlx::Result<Vec<(String, i64)>> {
    let sql = r#"SELECT account_id, used + leased AS taken FROM "Alchemi_AllocationCounterTable"
                 WHERE scope_type = 'account'"#;
    sqlx::query(sql).fetch_all(pool).await?.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

impl World {
    /// Stops every gateway as an operator would, starts them again on their data folders, and waits until nothing is held.
    pub(crate) async fn settle(&mut self) -> Vec<String> {
        let mut violations = self.stop_all().await;
        if process::faketime().is_none() {
            tokio::time::sleep(ABANDON_AFTER + Duration::from_secs(1)).await;
        }
        for gateway in &mut self.gateways {
            gateway.set_clock(HOURS_LATER);
            gateway.start();
        }
        self.ready().await;
        let until = Instant::now() + PATIENCE;
        loop {
            let report = self.report().await;
            if report.reservations == 0 && report.leases == 0 && report.differences.is_empty() {
                return violations;
            }
            if Instant::now() > until {
                violations.push(format!("the books are not closed: {report:?}"));
                return violations;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// SIGTERM to every gateway.
    pub(crate) async fn stop_all(&mut self) -> Vec<String> {
        let mut violations = Vec::new();
        for gateway in &mut self.gateways {
            match gateway.stop(PATIENCE).await {
                Some(status) if status.success() => {}
                other => violations.push(format!("a gateway stopped with {other:?}: {}", gateway.last_words())),
            }
        }
        violations
    }

    async fn report(&self) -> Report {
        let config = DatabaseConfig { url: self.cluster.url.clone(), ..DatabaseConfig::default() };
        let store = Store::open(&config, Arc::new(SystemClock), Arc::new(RandomIds)).await.unwrap();
        let report = conservation::verify(&store).await.unwrap();
        store.close().await;
        report
    }

    /// `alchemi ledger verify`.
    pub(crate) fn verify(&self) -> Vec<String> {
        let done = alchemi(&["ledger", "verify"], &self.gateways[0].config()).output().unwrap();
        let text = || String::from_utf8_lossy(&[done.stdout.clone(), done.stderr.clone()].concat()).into_owned();
        if done.status.success() { Vec::new() } else { vec![format!("`alchemi ledger verify`: {}", text())] }
    }

    /// Spends what is left of the scarce account: neither more nor, but for what one request needs, less.
    pub(crate) async fn last_credit(&self) -> Vec<String> {
        let scarce = &self.accounts[1];
        let person = scarce.person.at(&self.gateways[0].url);
        let mut refused = false;
        for _ in 0..200 {
            let request = person.request(Method::POST, "/v1/chat/completions").json(&question(false));
            let status = person.try_send(request).await.map(|reply| reply.status.as_u16());
            if matches!(status, Ok(402)) && !std::mem::replace(&mut refused, true) {
                // What the one before held and did not need is about to be given back.
                tokio::time::sleep(Duration::from_secs(2)).await;
            } else if matches!(status, Ok(402)) {
                let (cap, taken) = (scarce.cap.load(Ordering::SeqCst), taken(&self.cluster.pool).await.unwrap());
                let taken = taken.into_iter().filter(|(id, _)| *id == scarce.id).map(|(_, taken)| taken);
                let left = cap - taken.max().unwrap_or_default();
                let fits = (-self.upstream.shared.excess(&scarce.id)..MOST_HELD).contains(&left);
                return if fits { Vec::new() } else { vec![format!("refused with {left} nano-credits left of {cap}")] };
            } else if matches!(status, Ok(200)) {
                refused = false;
            } else {
                return vec![format!("neither admitted nor exhausted: {status:?}")];
            }
        }
        vec!["the scarce account does not run out".to_owned()]
    }

    pub(crate) async fn ledger(&self) -> HashMap<String, Entry> {
        let sql =
            r#"SELECT account_id, request_id, credits_incurred, marks, cost_source FROM "Alchemi_UsageLedgerTable""#;
        let rows = sqlx::query(sql).fetch_all(&self.cluster.pool).await.unwrap();
        let entry = |row: &sqlx::postgres::PgRow| Entry {
            account: row.get("account_id"),
            credits: row.get("credits_incurred"),
            marks: row.get("marks"),
            source: row.get("cost_source"),
        };
        rows.iter().map(|row| (row.get("request_id"), entry(row))).collect()
    }
}

/// Compares what the upstream earned, what clients were told and what the ledger says; `wiped` is the last episode in which a
/// data folder was lost.
pub(crate) fn compare(
    log: &HashMap<String, Asked>,
    ledger: &HashMap<String, Entry>,
    seen: &Seen,
    wiped: Option<usize>,
) -> (BTreeMap<usize, Tally>, Vec<String>) {
    let (mut tallies, mut violations) = (BTreeMap::<usize, Tally>::new(), Vec::new());
    let mut lost = HashMap::<&str, i64>::new();
    for (id, asked) in log {
        let tally = tallies.entry(asked.during).or_default();
        tally.asked += 1;
        if asked.times > 1 {
            tally.double += 1;
            violations.push(format!("request {id} reached the upstream {} times", asked.times));
        }
        let Some(entry) = ledger.get(id) else {
            tally.lost += 1;
            // Not what came when the last folder was gone already.
            if wiped.is_some_and(|last| asked.during <= last) {
                *lost.entry(&asked.account).or_default() += asked.cost.min(LEAST_HELD);
            } else {
                violations.push(format!("lost: request {id} earned {} and has no row", asked.cost));
            }
            continue;
        };
        // Charged at its estimate by somebody who thought that it was lost, and adjusted when it was not.
        let adjusted = ledger.get(&format!("{id}:adjusted")).map(|late| Entry {
            account: late.account.clone(),
            credits: entry.credits + late.credits,
            marks: late.marks.clone(),
            source: late.source.clone(),
        });
        match verdict(asked, adjusted.as_ref().unwrap_or(entry)) {
            Verdict::Exact => tally.exact += 1,
            Verdict::Marked => tally.marked += 1,
            Verdict::Wrong => violations.push(format!("request {id}: {asked:?} is charged as {entry:?}")),
        }
    }
    for (id, entry) in ledger {
        if !log.contains_key(id) && entry.credits != 0 && entry.marks.is_empty() {
            violations.push(format!("request {id} was never sent and is charged: {entry:?}"));
        }
    }
    for (account, lost) in lost {
        let charged = lost_leases(ledger.values().filter(|entry| entry.account == account));
        if charged < lost {
            violations.push(format!("account {account} is charged {charged} for leases with which {lost} was lost"));
        }
    }
    for id in &seen.answered {
        if !(log.contains_key(id) && (wiped.is_some() || ledger.contains_key(id))) {
            violations.push(format!("request {id} was answered, and is not in the ledger and the upstream's log"));
        }
    }
    (tallies, violations)
}

/// What is charged for leases that were lost, and not taken back.
pub(crate) fn lost_leases<'a>(entries: impl Iterator<Item = &'a Entry>) -> i64 {
    entries.filter(|entry| entry.marks == "lost_lease").map(|entry| entry.credits).sum()
}

enum Verdict {
    Exact,
    Marked,
    Wrong,
}

fn verdict(asked: &Asked, entry: &Entry) -> Verdict {
    let marks: Vec<_> = entry.marks.split(',').collect();
    let within = (1..=asked.cost.max(MOST_HELD)).contains(&entry.credits);
    // What an answer cost beyond what could be held for it, only the answer tells.
    let held = asked.cost.min(LEAST_HELD);
    match &*entry.source {
        _ if marks.contains(&"not_forwarded") => Verdict::Wrong,
        // Charged at the hold, because nobody could tell the cost: not less than was earned.
        "unsettled" if within && entry.credits >= held => Verdict::Marked,
        "estimated" if within => Verdict::Marked,
        "header" | "body" | "priced" if entry.credits == asked.cost => Verdict::Exact,
        // The upstream went on for a moment after the answer was cut.
        "header" | "body" | "priced" if marks.contains(&"cut") && within => Verdict::Marked,
        _ => Verdict::Wrong,
    }
}
