//! Leases: credits that a gateway has taken from the counters of a chain ahead of
//! the requests that will use them.
//!
//! A lease and its counters move together in one transaction, the lease's row
//! always first, so that refilling, settling, returning and losing cannot wait for
//! each other in a circle. What is open in a lease's row is `leased` in each of its
//! counters.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::changes::ChangeKind;
use super::ledger::{Delta, Settlement};
use super::{Result, StoreError, Tx, from_columns, on, run};
use crate::clock::Timestamp;
use crate::context::{Domain, Platform, Tenant};
use crate::credits::{Credits, Factor, Usd};
use crate::id::Id;
use crate::model::accounts::Account;
use crate::model::scope::ScopeType;
use crate::model::usage::{CostSource, CounterKey, Dimensions, EntryKind, LedgerRow, RouteKind, Tokens};
use crate::policy::budget::Link;

/// A slice of a chain's credits.
#[derive(Debug, Clone, Copy)]
pub struct Lease<'a> {
    /// Its id; of one holder, and never used again once it was lost.
    pub id: &'a str,
    /// The process that takes it.
    pub holder: &'a str,
    /// The product domain.
    pub domain: Domain,
    /// The capped links of the chain, in lock order.
    pub links: &'a [Link],
    /// How much is taken from each, or given back.
    pub amount: Credits,
}

/// Whether a lease was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It was.
    Yes,
    /// A counter lacks credits; the transaction must be dropped.
    Short,
    /// The holder was fenced, or the lease was lost; the transaction must be dropped.
    Fenced,
}

/// What becomes of the credits of a lease whose holder is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LostLease {
    /// They count as used: what the holder admitted may have cost that much.
    #[default]
    Charge,
    /// They are free again.
    Release,
}

/// A lease whose holder was fenced.
#[derive(Debug, Clone)]
pub struct Orphan {
    /// The lease.
    pub lease_id: String,
    /// The account.
    pub account_id: Id<Account>,
    /// The product domain.
    pub domain: Domain,
    /// Its counters: JSON.
    counters: String,
}

from_columns! { Orphan { lease_id, account_id, domain, counters } }

/// A lease that was lost, by what is needed to take a charge back.
struct Lost {
    account_id: Id<Account>,
    domain: Domain,
    counters: String,
}

from_columns! { Lost { account_id, domain, counters } }

impl Tx<Tenant> {
    /// Takes `lease.amount` more from each of the lease's counters, all or none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn take_lease(&mut self, lease: &Lease<'_>) -> Result<Taken> {
        let (account, now) = (self.account.clone(), self.now);
        let keys: Vec<_> = lease.links.iter().map(Link::counter).collect();
        let counters = serde_json::to_string(&keys).unwrap_or_default();
        let noted = run!(
            self,
            r#"INSERT INTO "Alchemi_AllocationLeaseTable" AS l
               (lease_id, account_id, holder, domain, counters, amount, state, created_at, updated_at)
               SELECT $1, $2, $3, $4, $5, $6, 'open', $7, $7
               WHERE EXISTS (SELECT 1 FROM "Alchemi_LeaseHolderTable" WHERE holder = $3 AND fenced = 0)
               ON CONFLICT (lease_id) DO UPDATE SET amount = l.amount + excluded.amount, updated_at = excluded.updated_at
               WHERE l.state = 'open'"#,
            lease.id,
            &account,
            lease.holder,
            lease.domain,
            &counters,
            lease.amount,
            now
        )?;
        if noted == 0 {
            return Ok(Taken::Fenced);
        }
        let held = self.hold_on_counters(lease.links, lease.amount, false).await?;
        Ok(if held { Taken::Yes } else { Taken::Short })
    }

    /// Gives `lease.amount` back to each of the lease's counters. `false`: the lease
    /// was lost before; what it was charged for this amount is taken back.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn return_lease(&mut self, lease: &Lease<'_>) -> Result<bool> {
        let shrunk = run!(
            self,
            r#"UPDATE "Alchemi_AllocationLeaseTable" SET amount = amount - $2, updated_at = $3
               WHERE lease_id = $1 AND state = 'open' AND amount >= $2"#,
            lease.id,
            lease.amount,
            self.now
        )?;
        if shrunk == 0 {
            let id = format!("{}:returned:{}", lease.id, self.new_id::<Settlement>());
            self.take_back(lease.id, lease.amount, id).await?;
            return Ok(false);
        }
        let account = self.account.clone();
        self.free(&account, &lease.links.iter().map(Link::counter).collect::<Vec<_>>(), lease.amount).await?;
        Ok(true)
    }

    /// Ends a lease that nothing draws on any more, and frees what its row still has.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn close_lease(&mut self, lease: &Lease<'_>) -> Result<()> {
        let left: Option<Credits> = on!(self, |c| sqlx::query_scalar(
            r#"DELETE FROM "Alchemi_AllocationLeaseTable" WHERE lease_id = $1 AND state = 'open' RETURNING amount"#
        )
        .bind(lease.id)
        .fetch_optional(c)
        .await)?;
        match left {
            Some(left) if left != Credits::ZERO => {
                let account = self.account.clone();
                self.free(&account, &lease.links.iter().map(Link::counter).collect::<Vec<_>>(), left).await
            }
            _ => Ok(()),
        }
    }

    /// Whether another process has leases of this account.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn leased_elsewhere(&mut self, holder: &str) -> Result<bool> {
        let account = self.account.clone();
        let other: Option<String> = on!(self, |c| sqlx::query_scalar(
            r#"SELECT lease_id FROM "Alchemi_AllocationLeaseTable"
               WHERE account_id = $1 AND holder <> $2 AND state = 'open' AND amount > 0 LIMIT 1"#
        )
        .bind(&account)
        .bind(holder)
        .fetch_optional(c)
        .await)?;
        Ok(other.is_some())
    }

    /// Asks every process for the account's idle credits, once this is committed.
    pub fn recall_leases(&mut self) {
        self.changed(ChangeKind::Leases);
    }
}

impl Tx<Platform> {
    /// Notes a process that will take leases.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn insert_lease_holder(&mut self, holder: &str, expires_at: Timestamp) -> Result<()> {
        run!(
            self,
            r#"INSERT INTO "Alchemi_LeaseHolderTable" (holder, started_at, expires_at) VALUES ($1, $2, $3)"#,
            holder,
            self.now,
            expires_at
        )?;
        Ok(())
    }

    /// Says that the process lives. `false`: it was fenced.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn renew_lease_holder(&mut self, holder: &str, expires_at: Timestamp) -> Result<bool> {
        let renewed = run!(
            self,
            r#"UPDATE "Alchemi_LeaseHolderTable" SET expires_at = $2 WHERE holder = $1 AND fenced = 0"#,
            holder,
            expires_at
        )?;
        Ok(renewed > 0)
    }

    /// Fences holders that were not renewed in time; with `all_but`, every other one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn fence_lease_holders(&mut self, all_but: Option<&str>) -> Result<u64> {
        match all_but {
            Some(holder) => {
                run!(
                    self,
                    r#"UPDATE "Alchemi_LeaseHolderTable" SET fenced = 1 WHERE holder <> $1 AND fenced = 0"#,
                    holder
                )
            }
            None => {
                run!(
                    self,
                    r#"UPDATE "Alchemi_LeaseHolderTable" SET fenced = 1 WHERE expires_at <= $1 AND fenced = 0"#,
                    self.now
                )
            }
        }
    }

    /// Fences one holder, at its own wish or because its journal was replayed.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn fence_lease_holder(&mut self, holder: &str) -> Result<()> {
        run!(self, r#"UPDATE "Alchemi_LeaseHolderTable" SET fenced = 1 WHERE holder = $1"#, holder)?;
        Ok(())
    }

    /// Open leases of fenced holders, of one of them or of all.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn orphaned_leases(&mut self, holder: Option<&str>, limit: u32) -> Result<Vec<Orphan>> {
        on!(self, |c| sqlx::query_as(
            r#"SELECT l.lease_id, l.account_id, l.domain, l.counters FROM "Alchemi_AllocationLeaseTable" l
               JOIN "Alchemi_LeaseHolderTable" h ON h.holder = l.holder
               WHERE l.state = 'open' AND h.fenced = 1 AND ($1 = '' OR h.holder = $1) ORDER BY l.lease_id LIMIT $2"#
        )
        .bind(holder.unwrap_or_default())
        .bind(i64::from(limit))
        .fetch_all(c)
        .await)
    }

    /// Ends an orphaned lease: its credits are free again, or count as used with a row
    /// in the ledger that says so. Gives how much was charged; `None`: somebody else
    /// was faster.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn end_orphan(&mut self, orphan: &Orphan, lost: LostLease) -> Result<Option<Credits>> {
        let state = match lost {
            LostLease::Charge => "charged",
            LostLease::Release => "released",
        };
        let left: Option<Credits> = on!(self, |c| sqlx::query_scalar(
            r#"UPDATE "Alchemi_AllocationLeaseTable" SET state = $2, updated_at = $3
               WHERE lease_id = $1 AND state = 'open' RETURNING amount"#
        )
        .bind(&orphan.lease_id)
        .bind(state)
        .bind(self.now)
        .fetch_optional(c)
        .await)?;
        let Some(left) = left else { return Ok(None) };
        let counters = counters(&orphan.counters)?;
        self.free(&orphan.account_id, &counters, left).await?;
        if lost == LostLease::Release || left == Credits::ZERO {
            return Ok(Some(Credits::ZERO));
        }
        let id = format!("{}:lost", orphan.lease_id);
        let entry = (EntryKind::Adjustment, "lost_lease");
        let row = correction(id, entry, &orphan.account_id, orphan.domain, &counters, left, self.now);
        self.add_row(row, counters).await?;
        Ok(Some(left))
    }

    /// Takes back what is left of the charge for a holder's lost leases: what it had used has
    /// settled since.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn reverse_lost_leases(&mut self, holder: &str) -> Result<()> {
        let charged: Vec<(String, Credits)> = on!(self, |c| sqlx::query_as(
            r#"SELECT lease_id, amount FROM "Alchemi_AllocationLeaseTable"
               WHERE holder = $1 AND state = 'charged' AND amount > 0 ORDER BY lease_id"#
        )
        .bind(holder)
        .fetch_all(c)
        .await)?;
        for (lease_id, amount) in charged {
            self.take_back(&lease_id, amount, format!("{lease_id}:replayed")).await?;
        }
        Ok(())
    }

    /// Forgets fenced holders without leases, and lost leases older than `before`:
    /// nobody settles that late.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn forget_lost_leases(&mut self, before: Timestamp) -> Result<()> {
        run!(self, r#"DELETE FROM "Alchemi_AllocationLeaseTable" WHERE state <> 'open' AND updated_at < $1"#, before)?;
        run!(
            self,
            r#"DELETE FROM "Alchemi_LeaseHolderTable" WHERE fenced = 1 AND NOT EXISTS
               (SELECT 1 FROM "Alchemi_AllocationLeaseTable" l WHERE l.holder = "Alchemi_LeaseHolderTable".holder)"#
        )?;
        Ok(())
    }

    /// Draws what fresh rows were charged from the leases that they were admitted
    /// under; gives those whose lease was lost meanwhile.
    pub(super) async fn draw_leases(&mut self, fresh: &[&Settlement]) -> Result<HashSet<String>> {
        let mut draws: BTreeMap<&str, Credits> = BTreeMap::new();
        for settlement in fresh {
            let Some(lease) = settlement.lease.as_ref().filter(|_| settlement.hold != Credits::ZERO) else { continue };
            let sum = draws.entry(lease).or_default();
            *sum = sum.checked_add(settlement.hold).ok_or(StoreError::Overflow)?;
        }
        self.draw_from_leases(&draws.into_iter().collect::<Vec<_>>()).await
    }

    /// Takes back what lost leases were charged for requests that have settled after all.
    pub(super) async fn take_back_late(&mut self, fresh: &[&Settlement], gone: &HashSet<String>) -> Result<()> {
        let mut seen: HashMap<&str, u64> = HashMap::new();
        for settlement in fresh {
            let Some(lease) = settlement.lease.as_ref().filter(|lease| gone.contains(&***lease)) else { continue };
            *seen.entry(lease).or_default() += 1;
            self.take_back(lease, settlement.hold, format!("{}:late", settlement.row.request_id)).await?;
        }
        for (lease_id, count) in seen {
            tracing::warn!(lease_id, count, "requests settled after their lease was lost; the charge is adjusted");
        }
        Ok(())
    }
}

impl<R> Tx<R> {
    /// Of what a lost lease was charged, takes `amount` back with a row in the ledger.
    async fn take_back(&mut self, lease_id: &str, amount: Credits, request_id: String) -> Result<()> {
        if amount == Credits::ZERO {
            return Ok(());
        }
        let lost: Option<Lost> = on!(self, |c| sqlx::query_as(
            r#"UPDATE "Alchemi_AllocationLeaseTable" SET amount = amount - $2, updated_at = $3
               WHERE lease_id = $1 AND state = 'charged' AND amount >= $2 RETURNING account_id, domain, counters"#
        )
        .bind(lease_id)
        .bind(amount)
        .bind(self.now)
        .fetch_optional(c)
        .await)?;
        let Some(lost) = lost else { return Ok(()) };
        let counters = counters(&lost.counters)?;
        let amount = Credits::ZERO.saturating_sub(amount);
        let entry = (EntryKind::Reversal, "lost_lease");
        let row = correction(request_id, entry, &lost.account_id, lost.domain, &counters, amount, self.now);
        self.add_row(row, counters).await
    }

    pub(super) async fn add_row(&mut self, row: LedgerRow, counters: Vec<CounterKey>) -> Result<()> {
        let correction =
            Settlement { row, counters, held: Vec::new(), hold: Credits::ZERO, lease: None, reserved: false };
        let fresh = self.write_rows(std::slice::from_ref(&correction)).await?;
        self.add_to_counters(&fresh, &HashSet::new()).await?;
        self.add_to_rollups(&fresh).await
    }

    /// Takes `amount` from what counters have leased.
    async fn free(&mut self, account: &Id<Account>, counters: &[CounterKey], amount: Credits) -> Result<()> {
        for key in counters {
            self.add_to_counter(account, key, Delta { leased: amount, ..Delta::default() }).await?;
        }
        Ok(())
    }
}

fn counters(text: &str) -> Result<Vec<CounterKey>> {
    serde_json::from_str(text)
        .map_err(|e| StoreError::Unreadable { table: "Alchemi_AllocationLeaseTable", reason: e.to_string() })
}

/// A row that no single request has caused. What the upstream was paid is not known.
fn correction(
    request_id: String,
    (entry, mark): (EntryKind, &str),
    account: &Id<Account>,
    domain: Domain,
    counters: &[CounterKey],
    credits: Credits,
    now: Timestamp,
) -> LedgerRow {
    let of = |kind| counters.iter().find(|key| key.scope.scope_type == kind).map(|key| key.scope.scope_id.clone());
    let dimensions = Dimensions {
        org_id: of(ScopeType::Org),
        team_id: of(ScopeType::Team),
        user_id: of(ScopeType::User),
        ..Dimensions::default()
    };
    LedgerRow {
        request_id,
        account_id: account.clone(),
        kind: RouteKind::Chat,
        entry,
        domain,
        dimensions,
        tokens: Tokens::default(),
        raw_cost: Usd::ZERO,
        credit_factor: Factor::ONE,
        credits,
        cost_source: CostSource::Unsettled,
        marks: mark.to_owned(),
        upstream_call_id: None,
        status: 0,
        duration_us: 0,
        plan_id: None,
        cycle_start: None,
        metadata: "{}".to_owned(),
        day: crate::model::budgets::day_of(now, &jiff::tz::TimeZone::UTC),
        created_at: now,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::context::Granted;
    use crate::model::budgets::Window;
    use crate::store::testing::{self, Fresh};
    use crate::store::{Store, conservation};

    const NANO: i64 = 1_000_000_000;

    fn links(account: &Id<Account>, cap: i64) -> Vec<Link> {
        let window = Window { start: Timestamp::from_micros(0), end: None };
        let scope = crate::model::scope::Scope::new(ScopeType::Account, account.as_str());
        vec![Link { scope, cap: Some(Credits::from_nanos(cap * NANO)), window }]
    }

    async fn take(fresh: &Fresh, account: &Id<Account>, (id, holder): (&str, &str), amount: i64) -> Taken {
        let links = links(account, 10);
        let amount = Credits::from_nanos(amount * NANO);
        let lease = Lease { id, holder, domain: Domain::Copilot, links: &links, amount };
        let mut tx = fresh.store.begin(&Granted::system().over(account.clone())).await.unwrap();
        let taken = tx.take_lease(&lease).await.unwrap();
        if taken == Taken::Yes {
            tx.commit().await.unwrap();
        }
        taken
    }

    /// What was used of the account and what is leased; the books balance.
    async fn counter(store: &Store, account: &Id<Account>) -> (i64, i64) {
        let report = conservation::verify(store).await.unwrap();
        assert_eq!(report.differences, []);
        let mut tx = store.read(&Granted::system().over(account.clone())).await.unwrap();
        let counter = tx.counters(&links(account, 10)).await.unwrap().remove(0);
        (counter.used.nanos() / NANO, counter.leased.nanos() / NANO)
    }

    async fn settle(store: &Store, account: &Id<Account>, id: &str, credits: i64, lease: &str) {
        let mut settlement = testing::settlement(account, id, credits);
        settlement.held = settlement.counters.clone();
        settlement.hold = Credits::from_nanos(credits * NANO);
        settlement.lease = Some(Arc::from(lease));
        let mut tx = store.begin(&Granted::system()).await.unwrap();
        tx.settle(&[settlement.clone(), settlement]).await.unwrap();
        tx.commit().await.unwrap();
    }

    async fn hold(fresh: &Fresh, holder: &str) {
        let mut tx = fresh.store.begin(&Granted::system()).await.unwrap();
        let expires_at = tx.now().plus(Duration::from_secs(60));
        tx.insert_lease_holder(holder, expires_at).await.unwrap();
        tx.commit().await.unwrap();
    }

    async fn lose(fresh: &Fresh, lost: LostLease) -> Vec<Option<Credits>> {
        let mut tx = fresh.store.begin(&Granted::system()).await.unwrap();
        tx.fence_lease_holders(None).await.unwrap();
        let orphans = tx.orphaned_leases(None, 10).await.unwrap();
        let mut charged = Vec::new();
        for orphan in &orphans {
            charged.push(tx.end_orphan(orphan, lost).await.unwrap());
            assert_eq!(tx.end_orphan(orphan, lost).await.unwrap(), None, "once");
        }
        tx.commit().await.unwrap();
        charged
    }

    #[tokio::test]
    async fn leases_never_take_more_than_the_cap_and_are_drawn_down_by_settlements() {
        for fresh in testing::databases().await {
            let account = fresh.account("Acme").await;
            assert_eq!(take(&fresh, &account, ("l", "nobody"), 1).await, Taken::Fenced, "no holder, no lease");
            hold(&fresh, "a").await;
            hold(&fresh, "b").await;
            assert_eq!(take(&fresh, &account, ("l", "a"), 6).await, Taken::Yes);
            assert_eq!(take(&fresh, &account, ("m", "b"), 5).await, Taken::Short);
            assert_eq!(take(&fresh, &account, ("m", "b"), 3).await, Taken::Yes);
            assert_eq!(take(&fresh, &account, ("l", "a"), 1).await, Taken::Yes);
            assert_eq!(counter(&fresh.store, &account).await, (0, 10));
            settle(&fresh.store, &account, "one", 2, "l").await;
            settle(&fresh.store, &account, "one", 2, "l").await;
            assert_eq!(counter(&fresh.store, &account).await, (2, 8));
            let links = links(&account, 10);
            let amount = Credits::from_nanos(4 * NANO);
            let lease = Lease { id: "l", holder: "a", domain: Domain::Copilot, links: &links, amount };
            let mut tx = fresh.store.begin(&Granted::system().over(account.clone())).await.unwrap();
            assert!(tx.leased_elsewhere("a").await.unwrap());
            assert!(tx.return_lease(&lease).await.unwrap());
            tx.close_lease(&lease).await.unwrap();
            tx.close_lease(&Lease { id: "m", holder: "b", ..lease }).await.unwrap();
            tx.commit().await.unwrap();
            assert_eq!(counter(&fresh.store, &account).await, (2, 0));
        }
    }

    #[tokio::test]
    async fn a_lost_lease_is_charged_and_what_settles_late_is_taken_back() {
        for fresh in testing::databases().await {
            let account = fresh.account("Acme").await;
            hold(&fresh, "zombie").await;
            assert_eq!(take(&fresh, &account, ("l", "zombie"), 7).await, Taken::Yes);
            settle(&fresh.store, &account, "one", 1, "l").await;
            assert_eq!(lose(&fresh, LostLease::Charge).await, [], "it lives");
            fresh.clock.advance(Duration::from_secs(60));
            assert_eq!(lose(&fresh, LostLease::Charge).await, [Some(Credits::from_nanos(6 * NANO))]);
            assert_eq!(counter(&fresh.store, &account).await, (7, 0));
            assert_eq!(take(&fresh, &account, ("l", "zombie"), 1).await, Taken::Fenced);
            let mut tx = fresh.store.begin(&Granted::system()).await.unwrap();
            let expires_at = tx.now().plus(Duration::from_secs(60));
            assert!(!tx.renew_lease_holder("zombie", expires_at).await.unwrap());
            drop(tx);
            // It had admitted a request, which settles now, twice; the rest was idle.
            settle(&fresh.store, &account, "two", 2, "l").await;
            settle(&fresh.store, &account, "two", 2, "l").await;
            assert_eq!(counter(&fresh.store, &account).await, (7, 0));
            let links = links(&account, 10);
            let amount = Credits::from_nanos(4 * NANO);
            let lease = Lease { id: "l", holder: "zombie", domain: Domain::Copilot, links: &links, amount };
            for _ in 0..2 {
                let mut tx = fresh.store.begin(&Granted::system().over(account.clone())).await.unwrap();
                assert!(!tx.return_lease(&lease).await.unwrap());
                tx.commit().await.unwrap();
            }
            assert_eq!(counter(&fresh.store, &account).await, (3, 0));
        }
    }

    #[tokio::test]
    async fn a_lost_lease_may_be_released() {
        for fresh in testing::databases().await {
            let account = fresh.account("Acme").await;
            hold(&fresh, "gone").await;
            assert_eq!(take(&fresh, &account, ("l", "gone"), 7).await, Taken::Yes);
            fresh.clock.advance(Duration::from_secs(60));
            assert_eq!(lose(&fresh, LostLease::Release).await, [Some(Credits::ZERO)]);
            assert_eq!(counter(&fresh.store, &account).await, (0, 0));
            settle(&fresh.store, &account, "late", 2, "l").await;
            assert_eq!(counter(&fresh.store, &account).await, (2, 0));
        }
    }
}
