//! Leases: credits that a gateway has taken from the counters of a chain ahead of
//! the requests that will use them.
//!
//! A lease and its counters move together in one transaction, the lease's row
//! always first, so that refilling, settling, returning and losing cannot wait for
//! each other in a circle. What is open in a lease's row is `leased` in each of its
//! counters.
//!
//! Who holds them, and whether they live, is what a [`Holder`]'s row says.

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

mod holders;
pub use holders::Holder;

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

/// A lease whose holder was fenced, or forgotten since.
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
        // As it stands in the text of a lease's counters, between their braces: the scope's members are the first of a
        // `CounterKey`, in the same order.
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
    /// Open leases of holders that are fenced or forgotten, of one of them or of all.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn orphaned_leases(&mut self, holder: Option<&str>, limit: u32) -> Result<Vec<Orphan>> {
        on!(self, |c| sqlx::query_as(
            r#"SELECT l.lease_id, l.account_id, l.holder, l.domain, l.counters FROM "Alchemi_AllocationLeaseTable" l
               LEFT JOIN "Alchemi_LeaseHolderTable" h ON h.holder = l.holder
               WHERE l.state = 'open' AND (h.fenced = 1 OR h.holder IS NULL) AND ($1 = '' OR l.holder = $1)
               ORDER BY l.lease_id LIMIT $2"#
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
mod tests;
