//! The ledger: reservations that hold credits, rows that spend them, counters and
//! roll-ups that add the rows up.
//!
//! A counter's row is locked by every transaction that touches it, always in the
//! order of [`CounterKey`] and after every lease's, so that two requests with
//! overlapping chains cannot wait for each other in a circle.

use std::collections::HashSet;
use std::sync::Arc;

use super::{Result, Tx, from_columns, on, run};
use crate::clock::Timestamp;
use crate::context::{Platform, Tenant};
use crate::credits::{Credits, Usd};
use crate::id::Id;
use crate::model::accounts::Account;
use crate::model::scope::{Scope, ScopeType};
use crate::model::usage::{CostSource, CounterKey, EntryKind, LedgerRow, Tokens};
use crate::policy::budget::Link;

mod batch;
mod corrections;
mod rollups;

pub use corrections::Booked;
use rollups::count;
pub(super) use rollups::{RollupKey, RollupSums};

super::columns::stored_as_name!(crate::model::usage::EntryKind);

/// A counter as the database holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counter {
    /// The kind of scope.
    pub scope_type: ScopeType,
    /// The scope.
    pub scope_id: String,
    /// The window's first moment.
    pub window_start: Timestamp,
    /// Credits of settled requests.
    pub used: Credits,
    /// Credits that admitted requests hold.
    pub leased: Credits,
}

from_columns! { Counter { scope_type, scope_id, window_start, used, leased } }

impl Counter {
    /// Which counter it is.
    pub fn key(&self) -> CounterKey {
        let scope = Scope::new(self.scope_type, self.scope_id.clone());
        CounterKey { scope, window_start: self.window_start.as_micros() }
    }
}

/// A hold on every capped scope of a chain.
#[derive(Debug, Clone, Copy)]
pub struct Hold<'a> {
    /// The request's id.
    pub request_id: &'a str,
    /// The scopes, in lock order; those without a cap are left alone.
    pub links: &'a [Link],
    /// How much is held on each.
    pub amount: Credits,
    /// Whether a scope may go over its cap (`soft` enforcement).
    pub over_cap: bool,
    /// What a later process needs to settle it: JSON.
    pub detail: &'a str,
    /// When it counts as abandoned.
    pub expires_at: Timestamp,
}

/// A request that is over, with what it held.
#[derive(Debug, Clone)]
pub struct Settlement {
    /// The row to be written.
    pub row: LedgerRow,
    /// Counters that it is added to.
    pub counters: Vec<CounterKey>,
    /// Of those, the ones that hold its reservation.
    pub held: Vec<CounterKey>,
    /// How much of it each of them is rid of.
    pub hold: Credits,
    /// The lease that held it; none: it has a reservation of its own, or held nothing.
    pub lease: Option<Arc<str>>,
    /// Whether it may have a reservation's row.
    pub reserved: bool,
}

impl Settlement {
    /// Of a row that nothing was held for.
    pub(super) fn of(row: LedgerRow, counters: Vec<CounterKey>) -> Self {
        Self { row, counters, held: Vec::new(), hold: Credits::ZERO, lease: None, reserved: false }
    }
}

/// A reservation that nobody settled.
#[derive(Debug, Clone)]
pub struct Abandoned {
    /// The request's id.
    pub request_id: String,
    /// The account.
    pub account_id: Id<Account>,
    /// What it holds on each capped scope.
    pub amount: Credits,
    /// [`Hold::detail`].
    pub detail: String,
    /// When it was made.
    pub created_at: Timestamp,
}

from_columns! { Abandoned { request_id, account_id, amount, detail, created_at } }

/// What a batch adds to one counter.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Delta {
    pub(super) used: Credits,
    /// Taken from what is leased.
    pub(super) leased: Credits,
    /// Used without having been held.
    pub(super) overshoot: Credits,
}

/// Leases of a batch that were lost before it settled.
#[derive(Debug, Default)]
pub(super) struct Gone {
    pub(super) leases: HashSet<String>,
    /// Requests for which the charge of their lease makes room: as much of it is taken back.
    pub(super) covered: HashSet<String>,
}

/// What is kept where there is no cap: far from where sums of credits would not fit.
const LIMITLESS: Credits = Credits::from_nanos(i64::MAX / 2);

impl Tx<Tenant> {
    /// Holds `hold.amount` on every capped link, all or none, and notes the
    /// reservation. `false`: some scope would go over its cap; the transaction must
    /// then be dropped, not committed.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn reserve(&mut self, hold: &Hold<'_>) -> Result<bool> {
        if !self.hold_on_counters(hold.links, hold.amount, hold.over_cap).await? {
            return Ok(false);
        }
        run!(
            self,
            r#"INSERT INTO "Alchemi_AllocationReservationTable" (request_id, account_id, amount, detail, created_at, expires_at)
               VALUES ($1, $2, $3, $4, $5, $6)"#,
            hold.request_id,
            &self.account,
            hold.amount,
            hold.detail,
            self.now,
            hold.expires_at
        )?;
        Ok(true)
    }

    /// Adds `amount` to what every capped counter has leased, all or none: the one
    /// conditional statement that keeps caps.
    ///
    /// A counter's `cap` is what it may be found to have used and leased: the cap that the
    /// last hold kept, and what has been used beyond holds since.
    pub(super) async fn hold_on_counters(&mut self, links: &[Link], amount: Credits, over_cap: bool) -> Result<bool> {
        let (account, now) = (self.account.clone(), self.now);
        let capped: Vec<(&Link, Credits)> = links.iter().filter_map(|l| Some((l, l.cap?))).collect();
        if capped.is_empty() {
            return Ok(true);
        }
        let moved = on!(self, |c| {
            let mut q = sqlx::QueryBuilder::new(
                r#"INSERT INTO "Alchemi_AllocationCounterTable" AS c
                   (account_id, scope_type, scope_id, window_start, used, leased, cap, updated_at)
                   SELECT column1, column2, column3, column4, 0, column5, column6, column7 FROM ("#,
            );
            q.push_values(&capped, |mut row, (link, cap)| {
                let limit = if over_cap { LIMITLESS } else { (*cap).min(LIMITLESS) };
                row.push_bind(&account)
                    .push_bind(link.scope.scope_type)
                    .push_bind(&link.scope.scope_id)
                    .push_bind(link.window.start)
                    .push_bind(amount)
                    .push_bind(limit)
                    .push_bind(now);
            });
            q.push(
                // A counter that is there judges for itself: credits that were given back make room beyond the cap.
                r#") AS v WHERE column5 <= column6 OR EXISTS (SELECT 1 FROM "Alchemi_AllocationCounterTable" AS e
                   WHERE e.account_id = column1 AND e.scope_type = column2 AND e.scope_id = column3
                   AND e.window_start = column4)
                   ON CONFLICT (account_id, scope_type, scope_id, window_start) DO UPDATE
                   SET leased = c.leased + excluded.leased, cap = excluded.cap, updated_at = excluded.updated_at
                   WHERE excluded.leased <= excluded.cap - c.used - c.leased"#,
            );
            q.build().execute(c).await.map(|done| done.rows_affected())
        })?;
        Ok(usize::try_from(moved).unwrap_or_default() == capped.len())
    }

    /// Whether `subject` made the stored response with this id.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn owns_response(&mut self, subject: &str, response_id: &str) -> Result<bool> {
        let account = self.account.clone();
        let found: Option<String> = on!(self, |c| sqlx::query_scalar(
            r#"SELECT request_id FROM "Alchemi_UsageLedgerTable"
               WHERE account_id = $1 AND kind = 'responses' AND upstream_call_id = $2 AND subject = $3 LIMIT 1"#
        )
        .bind(&account)
        .bind(response_id)
        .bind(subject)
        .fetch_optional(c)
        .await)?;
        Ok(found.is_some())
    }

    /// Ends a reservation, if there is one, as if it had never been made; `links` are those
    /// that it was made with. Whether there was one.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn unreserve(&mut self, request_id: &str, links: &[Link]) -> Result<bool> {
        let account = self.account.clone();
        let held: Option<Credits> = on!(self, |c| sqlx::query_scalar(
            r#"DELETE FROM "Alchemi_AllocationReservationTable" WHERE request_id = $1 AND account_id = $2
               RETURNING amount"#
        )
        .bind(request_id)
        .bind(&account)
        .fetch_optional(c)
        .await)?;
        let Some(leased) = held else { return Ok(false) };
        let capped = links.iter().filter(|link| link.cap.is_some());
        self.free(&account, &capped.map(|link| (link.counter(), leased)).collect()).await?;
        Ok(true)
    }

    /// The counters behind `links`; those that were never touched are left out.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn counters(&mut self, links: &[Link]) -> Result<Vec<Counter>> {
        if links.is_empty() {
            return Ok(Vec::new());
        }
        let account = self.account.clone();
        on!(self, |c| {
            let mut q = sqlx::QueryBuilder::new("SELECT scope_type, scope_id, window_start, used, leased FROM (");
            q.push_values(links, |mut row, link| {
                row.push_bind(link.scope.scope_type).push_bind(&link.scope.scope_id).push_bind(link.window.start);
            });
            // In this order, so that SQLite looks each of them up: for an IN, it reads all of the account's.
            q.push(r#") AS v CROSS JOIN "Alchemi_AllocationCounterTable" WHERE account_id = "#).push_bind(&account);
            q.push(" AND scope_type = column1 AND scope_id = column2 AND window_start = column3");
            q.build_query_as().fetch_all(c).await
        })
    }

    /// Adds usage that was not reserved before, such as what the API records.
    /// `false`: a row with this request id exists, and nothing was changed.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn record(&mut self, row: &LedgerRow, links: &[Link]) -> Result<bool> {
        self.book(row, links.iter().map(Link::counter).collect()).await
    }

    /// As [`Tx::record`], on counters of whatever window: those of a row that is undone.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn book(&mut self, row: &LedgerRow, counters: Vec<CounterKey>) -> Result<bool> {
        let settlement = Settlement::of(row.clone(), counters);
        let fresh = self.write_rows(std::slice::from_ref(&settlement)).await?;
        if fresh.is_empty() {
            return Ok(false);
        }
        self.count_rows(&fresh, &Gone::default()).await?;
        Ok(true)
    }
}

impl<R> Tx<R> {
    /// Adds written rows to counters and roll-ups.
    pub(super) async fn count_rows(&mut self, rows: &[&Settlement], gone: &Gone) -> Result<()> {
        self.add_to_counters(rows, gone).await?;
        self.add_to_rollups(rows).await
    }
}

impl Tx<Platform> {
    /// Settles a batch: ledger rows, counters, roll-ups and the end of each
    /// reservation. A request that was settled before is passed over. Gives how many
    /// were new.
    ///
    /// # Errors
    /// [`StoreError::ForeignKey`](super::StoreError::ForeignKey) when an account of the batch is gone.
    pub async fn settle(&mut self, batch: &[Settlement]) -> Result<usize> {
        let fresh = self.write_rows(batch).await?;
        self.draw(batch, fresh).await
    }

    /// The same, when each of them is settled for the first time, which is what nearly always
    /// is so, and cheaper to ask for.
    ///
    /// # Errors
    /// [`StoreError::Unique`](super::StoreError::Unique) when one was settled before; the transaction must then be
    /// dropped.
    pub async fn settle_first(&mut self, batch: &[Settlement]) -> Result<usize> {
        self.write_new_rows(batch).await?;
        self.draw(batch, batch.iter().collect()).await
    }

    async fn draw(&mut self, batch: &[Settlement], fresh: Vec<&Settlement>) -> Result<usize> {
        let (gone, mut corrections) = self.draw_leases(&fresh).await?;
        if fresh.len() < batch.len() {
            corrections.extend(self.adjustments(batch, &fresh).await?);
        }
        let mut booked = fresh.clone();
        booked.extend(self.write_rows(&corrections).await?);
        self.count_rows(&booked, &gone).await?;
        self.end_reservations(batch).await?;
        Ok(fresh.len())
    }

    /// Adjusts what was charged at its estimate, because nobody seemed to settle it, and has
    /// settled after all.
    async fn adjustments(&mut self, batch: &[Settlement], fresh: &[&Settlement]) -> Result<Vec<Settlement>> {
        let mut adjustments = Vec::new();
        let is_fresh = |settlement: &Settlement| fresh.iter().any(|one| std::ptr::eq(*one, settlement));
        let late = batch.iter().filter(|s| s.row.cost_source != CostSource::Unsettled && !is_fresh(s));
        for settlement in late {
            // What was reversed since is charged nothing any more.
            let charged: Option<(Usd, Credits)> = on!(self, |c| sqlx::query_as(
                r#"SELECT l.raw_cost + COALESCE(r.raw_cost, 0), l.credits_incurred + COALESCE(r.credits_incurred, 0)
                   FROM "Alchemi_UsageLedgerTable" l
                   LEFT JOIN "Alchemi_UsageLedgerTable" r ON r.request_id = l.request_id || ':reversed'
                   WHERE l.request_id = $1 AND l.cost_source = 'unsettled'"#
            )
            .bind(&settlement.row.request_id)
            .fetch_optional(c)
            .await)?;
            let Some((cost, credits)) = charged else { continue };
            let row = &settlement.row;
            let adjustment = LedgerRow {
                request_id: format!("{}:adjusted", row.request_id),
                entry: EntryKind::Adjustment,
                tokens: Tokens::default(),
                raw_cost: row.raw_cost.saturating_sub(cost),
                credits: row.credits.saturating_sub(credits),
                marks: "late".to_owned(),
                ..row.clone()
            };
            if adjustment.raw_cost != Usd::ZERO || adjustment.credits != Credits::ZERO {
                adjustments.push(Settlement::of(adjustment, settlement.counters.clone()));
            }
        }
        Ok(adjustments)
    }

    /// Says that reservations are not abandoned before `until`.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn renew_reservations(&mut self, ids: &[Arc<str>], until: Timestamp) -> Result<()> {
        for chunk in ids.chunks(500) {
            on!(self, |c| {
                let mut q = sqlx::QueryBuilder::new(r#"UPDATE "Alchemi_AllocationReservationTable" SET expires_at = "#);
                q.push_bind(until).push(" WHERE request_id IN (");
                let mut ids = q.separated(", ");
                for id in chunk {
                    ids.push_bind(&**id);
                }
                q.push(")").build().execute(c).await.map(|done| done.rows_affected())
            })?;
        }
        Ok(())
    }

    /// Settles requests whose account is gone, and its counters with it: the ledger
    /// and the roll-ups keep them. Gives how many were new.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn settle_orphans(&mut self, batch: &[Settlement]) -> Result<usize> {
        let fresh = self.write_rows(batch).await?;
        self.add_to_rollups(&fresh).await?;
        self.end_reservations(batch).await?;
        Ok(fresh.len())
    }

    /// Reservations that expired before `now`.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn abandoned(&mut self, limit: u32) -> Result<Vec<Abandoned>> {
        let now = self.now;
        on!(self, |c| sqlx::query_as(
            r#"SELECT request_id, account_id, amount, detail, created_at FROM "Alchemi_AllocationReservationTable"
               WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2"#
        )
        .bind(now)
        .bind(i64::from(limit))
        .fetch_all(c)
        .await)
    }

    async fn end_reservations(&mut self, batch: &[Settlement]) -> Result<()> {
        let own: Vec<_> = batch.iter().filter(|settlement| settlement.reserved).collect();
        for chunk in own.chunks(500) {
            on!(self, |c| {
                let mut q = sqlx::QueryBuilder::new(
                    r#"DELETE FROM "Alchemi_AllocationReservationTable" WHERE request_id IN ("#,
                );
                let mut ids = q.separated(", ");
                for settlement in chunk {
                    ids.push_bind(&settlement.row.request_id);
                }
                q.push(")").build().execute(c).await.map(|done| done.rows_affected())
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::context::Granted;
    use crate::model::budgets::Window;
    use crate::policy::budget::Link;
    use crate::store::{conservation, testing};

    use super::*;

    #[tokio::test]
    async fn credits_that_were_given_back_make_room_beyond_the_cap() {
        for fresh in testing::databases().await {
            let account = fresh.account("Acme").await;
            let given = testing::settlement(&account, "given back", -2);
            let counter = given.counters.first().unwrap().clone();
            let window = Window { start: Timestamp::from_micros(counter.window_start), end: None };
            let one = Some(Credits::from_nanos(1_000_000_000));
            let links = [Link { scope: counter.scope, cap: one, window }];
            let mut tx = fresh.store.begin(&Granted::system().over(account.clone())).await.unwrap();
            let two = Credits::from_nanos(2_000_000_000);
            assert!(!tx.hold_on_counters(&links, two, false).await.unwrap(), "nothing was given back yet");
            assert!(tx.book(&given.row, given.counters).await.unwrap());
            assert!(tx.hold_on_counters(&links, two, false).await.unwrap());
            assert!(!tx.hold_on_counters(&links, two, false).await.unwrap(), "one is left");
        }
    }

    #[tokio::test]
    async fn a_reservation_that_is_undone_holds_nothing() {
        for fresh in testing::databases().await {
            let account = fresh.account("Acme").await;
            fresh.reserve(&account, "kept", 2).await;
            fresh.reserve(&account, "undone", 3).await;
            let counter = testing::settlement(&account, "any", 0).counters.remove(0);
            let window = Window { start: Timestamp::from_micros(counter.window_start), end: None };
            let links = [Link { scope: counter.scope, cap: Some(Credits::MAX), window }];
            // Doing it twice does it once; so does what was never made.
            for (id, there) in [("undone", true), ("undone", false), ("never made", false)] {
                let mut tx = fresh.store.begin(&Granted::system().over(account.clone())).await.unwrap();
                assert_eq!(tx.unreserve(id, &links).await.unwrap(), there);
                let leased = tx.counters(&links).await.unwrap().remove(0).leased;
                assert_eq!(leased, Credits::from_nanos(2_000_000_000));
                tx.commit().await.unwrap();
            }
            let report = conservation::verify(&fresh.store).await.unwrap();
            assert_eq!((report.reservations, report.differences), (1, Vec::new()));
        }
    }
}
