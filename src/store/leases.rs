//! Leases: credits that a gateway has taken from the counters of a chain ahead of
//! the requests that will use them.
//!
//! A lease and its counters move together in one transaction, the lease's row
//! always first, so that refilling, settling, returning and losing cannot wait for
//! each other in a circle. What is open in a lease's row is `leased` in each of its
//! counters.
//!
//! Which holders live is found out by watching their rows ([`Holder`]): one machine's
//! clock is never compared with another's alone.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::audit::Entry;
use super::changes::{Change, ChangeKind};
use super::ledger::{Gone, Settlement};
use super::{Result, StoreError, Tx, from_columns, on, push_in, run};
use crate::clock::Timestamp;
use crate::context::{Domain, Platform, Tenant};
use crate::credits::{Credits, Factor, Usd};
use crate::id::Id;
use crate::model::accounts::{Account, JsonText};
use crate::model::audit::{Action, Label};
use crate::model::budgets::{day_of, zone_of};
use crate::model::scope::{Scope, ScopeType};
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

/// A process that takes leases, and is not fenced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its id.
    pub holder: String,
    /// Until when it has said that it lives, by its own clock: another value each time.
    pub expires_at: Timestamp,
}

from_columns! { Holder { holder, expires_at } }

/// A lease whose holder was fenced.
#[derive(Debug, Clone)]
pub struct Orphan {
    /// The lease.
    pub lease_id: String,
    /// The account.
    pub account_id: Id<Account>,
    /// Who had taken it.
    pub holder: String,
    /// The product domain.
    pub domain: Domain,
    /// Its counters: JSON.
    counters: String,
}

from_columns! { Orphan { lease_id, account_id, holder, domain, counters } }

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
            let reversal = self.take_back(lease.id, lease.amount, id).await?;
            self.book_corrections(reversal.as_slice()).await?;
            return Ok(false);
        }
        let account = self.account.clone();
        self.free(&account, &lease.links.iter().map(|link| (link.counter(), lease.amount)).collect()).await?;
        Ok(true)
    }

    /// Ends leases that nothing draws on any more, and frees what their rows still have. Gives
    /// those that were not lost before: what the others were charged, is taken back by
    /// [`reverse_lost_lease`](Self::reverse_lost_lease).
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn close_leases(&mut self, leases: &[Lease<'_>]) -> Result<HashSet<String>> {
        let mut left: HashMap<String, Credits> = HashMap::new();
        for chunk in leases.chunks(500) {
            let ids: Vec<_> = chunk.iter().map(|lease| lease.id).collect();
            let ids = ids.as_slice();
            let rows: Vec<(String, Credits)> = on!(self, |c| {
                let mut q =
                    sqlx::QueryBuilder::new(r#"DELETE FROM "Alchemi_AllocationLeaseTable" WHERE state = 'open'"#);
                push_in!(q, "lease_id", ids);
                q.push(" RETURNING lease_id, amount").build_query_as().fetch_all(c).await
            })?;
            left.extend(rows);
        }
        let mut freed: BTreeMap<CounterKey, Credits> = BTreeMap::new();
        for lease in leases {
            let Some(amount) = left.get(lease.id) else { continue };
            for link in lease.links {
                let sum = freed.entry(link.counter()).or_default();
                *sum = sum.checked_add(*amount).ok_or(StoreError::Overflow)?;
            }
        }
        let account = self.account.clone();
        self.free(&account, &freed).await?;
        Ok(left.into_keys().collect())
    }

    /// Of a lease that was lost, and that nothing draws on any more, takes back what is left of
    /// its charge.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn reverse_lost_lease(&mut self, lease_id: &str) -> Result<()> {
        let charged: Option<Credits> = on!(self, |c| sqlx::query_scalar(
            r#"SELECT amount FROM "Alchemi_AllocationLeaseTable" WHERE lease_id = $1 AND state = 'charged'"#
        )
        .bind(lease_id)
        .fetch_optional(c)
        .await)?;
        let reversal = self.take_back(lease_id, charged.unwrap_or_default(), format!("{lease_id}:closed")).await?;
        self.book_corrections(reversal.as_slice()).await
    }

    /// Whether another process has leases on one of these scopes of the account.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn leased_elsewhere(&mut self, holder: &str, scopes: &[Scope]) -> Result<bool> {
        let account = self.account.clone();
        // As it stands in the text of a lease's counters, between their braces.
        let texts = scopes.iter().filter_map(|scope| serde_json::to_string(scope).ok());
        let texts: Vec<_> = texts.map(|text| text.trim_matches(['{', '}']).to_owned() + ",").collect();
        let other: Option<String> = on!(self, |c| {
            let mut q = sqlx::QueryBuilder::new(
                r#"SELECT lease_id FROM "Alchemi_AllocationLeaseTable" WHERE state = 'open' AND amount > 0 AND account_id = "#,
            );
            q.push_bind(&account).push(" AND holder <> ").push_bind(holder).push(" AND (1 = 0");
            for text in &texts {
                q.push(" OR REPLACE(counters, ").push_bind(text).push(", '') <> counters");
            }
            q.push(") LIMIT 1").build_query_scalar().fetch_optional(c).await
        })?;
        Ok(other.is_some())
    }

    /// Asks every process for what lies idle in its leases on these scopes of the account, once
    /// this is committed.
    pub fn recall_leases(&mut self, scopes: &[Scope]) {
        let account = self.account.clone();
        let asked = scopes
            .iter()
            .map(|scope| Change { scope: Some(scope.clone()), ..Change::of(account.clone(), ChangeKind::Leases) });
        self.changes.extend(asked);
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

    /// Holders that are not fenced.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn lease_holders(&mut self) -> Result<Vec<Holder>> {
        on!(self, |c| sqlx::query_as(r#"SELECT holder, expires_at FROM "Alchemi_LeaseHolderTable" WHERE fenced = 0"#)
            .fetch_all(c)
            .await)
    }

    /// Fences a holder, unless it has said since that it lives, or its time is not over by this
    /// process's clock either.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn fence_silent_lease_holder(&mut self, silent: &Holder) -> Result<()> {
        run!(
            self,
            r#"UPDATE "Alchemi_LeaseHolderTable" SET fenced = 1
               WHERE holder = $1 AND expires_at = $2 AND expires_at <= $3 AND fenced = 0"#,
            &silent.holder,
            silent.expires_at,
            self.now
        )?;
        Ok(())
    }

    /// Fences every holder but this one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn fence_other_lease_holders(&mut self, holder: &str) -> Result<()> {
        run!(self, r#"UPDATE "Alchemi_LeaseHolderTable" SET fenced = 1 WHERE holder <> $1 AND fenced = 0"#, holder)?;
        Ok(())
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
            r#"SELECT l.lease_id, l.account_id, l.holder, l.domain, l.counters FROM "Alchemi_AllocationLeaseTable" l
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
        if lost == LostLease::Release || left == Credits::ZERO {
            self.free(&orphan.account_id, &counters.into_iter().map(|key| (key, left)).collect()).await?;
            return Ok(Some(Credits::ZERO));
        }
        let id = format!("{}:lost", orphan.lease_id);
        let entry = (EntryKind::Adjustment, "lost_lease");
        let mut charge = self.correction(id, entry, &orphan.account_id, orphan.domain, counters, left).await?;
        // What it had leased is what it has used now.
        (charge.held, charge.hold) = (charge.counters.clone(), left);
        self.book_corrections(std::slice::from_ref(&charge)).await?;
        let entry = Entry {
            action: Action::Update,
            table: "Alchemi_AllocationLeaseTable",
            id: &orphan.lease_id,
            label: Label::Billing,
        };
        let before = serde_json::json!({"state": "open", "holder": orphan.holder, "amount": left});
        let after = serde_json::json!({"state": "charged", "amount": left, "ledger_row": charge.row.request_id});
        self.append(&orphan.account_id, entry, Some(&before), &after).await?;
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
        let mut reversals = Vec::new();
        for (lease_id, amount) in charged {
            reversals.extend(self.take_back(&lease_id, amount, format!("{lease_id}:replayed")).await?);
        }
        self.book_corrections(&reversals).await
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

    /// Draws what fresh rows were charged from the leases that they were admitted under. Gives
    /// those that were lost meanwhile, and what takes back their charge for these rows.
    pub(super) async fn draw_leases(&mut self, fresh: &[&Settlement]) -> Result<(Gone, Vec<Settlement>)> {
        let mut draws: BTreeMap<&str, Credits> = BTreeMap::new();
        for settlement in fresh {
            let Some(lease) = settlement.lease.as_ref().filter(|_| settlement.hold != Credits::ZERO) else { continue };
            let sum = draws.entry(lease).or_default();
            *sum = sum.checked_add(settlement.hold).ok_or(StoreError::Overflow)?;
        }
        let leases = self.draw_from_leases(&draws.into_iter().collect::<Vec<_>>()).await?;
        let mut gone = Gone { leases, covered: HashSet::new() };
        let mut reversals = Vec::new();
        let mut seen: HashMap<&str, u64> = HashMap::new();
        for settlement in fresh {
            let lost = settlement.lease.as_ref().filter(|lease| gone.leases.contains(&***lease));
            let Some(lease) = lost else { continue };
            *seen.entry(lease).or_default() += 1;
            let request_id = &settlement.row.request_id;
            if let Some(reversal) = self.take_back(lease, settlement.hold, format!("{request_id}:late")).await? {
                gone.covered.insert(request_id.clone());
                reversals.push(reversal);
            }
        }
        for (lease_id, count) in seen {
            tracing::warn!(lease_id, count, "requests settled after their lease was lost; the charge is adjusted");
        }
        Ok((gone, reversals))
    }
}

impl<R> Tx<R> {
    /// Of what a lost lease was charged, takes `amount` off; gives the row that has to say so
    /// in the ledger, or none where it was not charged as much.
    async fn take_back(&mut self, lease_id: &str, amount: Credits, request_id: String) -> Result<Option<Settlement>> {
        if amount == Credits::ZERO {
            return Ok(None);
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
        let Some(Lost { account_id, domain, counters: text }) = lost else { return Ok(None) };
        let amount = Credits::ZERO.saturating_sub(amount);
        let entry = (EntryKind::Reversal, "lost_lease");
        self.correction(request_id, entry, &account_id, domain, counters(&text)?, amount).await.map(Some)
    }

    async fn book_corrections(&mut self, corrections: &[Settlement]) -> Result<()> {
        let fresh = self.write_rows(corrections).await?;
        self.count_rows(&fresh, &Gone::default()).await
    }

    /// A row that no single request has caused, dated as the account dates. What the upstream
    /// was paid is not known.
    async fn correction(
        &mut self,
        request_id: String,
        (entry, mark): (EntryKind, &str),
        account: &Id<Account>,
        domain: Domain,
        counters: Vec<CounterKey>,
        credits: Credits,
    ) -> Result<Settlement> {
        let metadata: Option<JsonText> =
            on!(self, |c| sqlx::query_scalar(r#"SELECT metadata FROM "Alchemi_AccountTable" WHERE account_id = $1"#)
                .bind(account)
                .fetch_optional(c)
                .await)?;
        let zone = metadata.as_ref().map_or(jiff::tz::TimeZone::UTC, zone_of);
        let of = |kind| counters.iter().find(|key| key.scope.scope_type == kind).map(|key| key.scope.scope_id.clone());
        let dimensions = Dimensions {
            org_id: of(ScopeType::Org),
            team_id: of(ScopeType::Team),
            user_id: of(ScopeType::User),
            ..Dimensions::default()
        };
        let row = LedgerRow {
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
            day: day_of(self.now, &zone),
            created_at: self.now,
        };
        Ok(Settlement::of(row, counters))
    }
}

fn counters(text: &str) -> Result<Vec<CounterKey>> {
    serde_json::from_str(text)
        .map_err(|e| StoreError::Unreadable { table: "Alchemi_AllocationLeaseTable", reason: e.to_string() })
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
        for holder in tx.lease_holders().await.unwrap() {
            tx.fence_silent_lease_holder(&holder).await.unwrap();
        }
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
            let scopes = [links[0].scope.clone()];
            assert!(tx.leased_elsewhere("a", &scopes).await.unwrap());
            let other = Scope::new(ScopeType::Account, &account.as_str()[1..]);
            assert!(!tx.leased_elsewhere("a", &[other]).await.unwrap(), "not on that scope");
            assert!(tx.return_lease(&lease).await.unwrap());
            let both = [lease, Lease { id: "m", holder: "b", ..lease }];
            assert_eq!(tx.close_leases(&both).await.unwrap().len(), 2);
            assert_eq!(tx.close_leases(&both).await.unwrap().len(), 0, "once");
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
