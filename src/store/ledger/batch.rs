//! How a batch of settlements is written: few statements, and each with a text of few sizes,
//! which the database prepares once. A text for each number of rows would cost more to read
//! than its rows to write.

use std::collections::{BTreeMap, HashMap, HashSet};
#[cfg(feature = "postgres")]
use std::fmt::Write;
use std::sync::OnceLock;

use super::{Delta, Gone, RollupSums, Settlement, count};
use crate::clock::Timestamp;
use crate::context::Domain;
use crate::credits::{Credits, Usd};
use crate::id::Id;
use crate::model::accounts::Account;
use crate::model::usage::{CounterKey, LedgerRow};
use crate::store::{Inner, Result, StoreError, Tx, on};

/// Most rows in one statement, as a power of two: with 34 columns each, well below the 32,766
/// parameters that SQLite takes.
const LARGEST: u32 = 8;

/// A statement over rows of `columns` values.
struct Rows {
    head: &'static str,
    columns: usize,
    tail: &'static str,
    #[cfg(feature = "postgres")]
    numbered: Texts,
    #[cfg(feature = "sqlite")]
    unnamed: Texts,
}

/// For 1, 2, 4, … rows, made when first needed.
type Texts = [OnceLock<&'static str>; LARGEST as usize + 1];

impl Rows {
    const fn new(head: &'static str, columns: usize, tail: &'static str) -> Self {
        Self {
            head,
            columns,
            tail,
            #[cfg(feature = "postgres")]
            numbered: [const { OnceLock::new() }; LARGEST as usize + 1],
            #[cfg(feature = "sqlite")]
            unnamed: [const { OnceLock::new() }; LARGEST as usize + 1],
        }
    }

    /// The text for a [piece](pieces) of so many rows.
    fn text(&self, rows: usize, places: Places) -> &'static str {
        let make = || -> &'static str { self.written(rows, places).leak() };
        let texts = match places {
            #[cfg(feature = "postgres")]
            Places::Numbered => &self.numbered,
            #[cfg(feature = "sqlite")]
            Places::Unnamed => &self.unnamed,
        };
        texts.get(rows.max(1).ilog2() as usize).map_or_else(make, |text| text.get_or_init(make))
    }

    fn written(&self, rows: usize, places: Places) -> String {
        let mut text = String::from(self.head);
        for place in 0..rows * self.columns {
            text.push_str(match (place, place % self.columns) {
                (0, _) => "(",
                (_, 0) => "), (",
                _ => ", ",
            });
            match places {
                // Writing into a String cannot fail.
                #[cfg(feature = "postgres")]
                Places::Numbered => _ = write!(text, "${}", place + 1),
                #[cfg(feature = "sqlite")]
                Places::Unnamed => text.push('?'),
            }
        }
        text.push(')');
        text.push_str(self.tail);
        text
    }
}

/// How a statement writes the places of its values.
#[derive(Debug, Clone, Copy)]
enum Places {
    /// `$1, $2`: what PostgreSQL takes.
    #[cfg(feature = "postgres")]
    Numbered,
    /// `?, ?`: SQLite goes through all names that a statement has, for each of them, when its values
    /// are bound, which takes longer than to write the rows.
    #[cfg(feature = "sqlite")]
    Unnamed,
}

/// The rows in pieces whose sizes are powers of two, the largest first.
fn pieces<T>(mut rows: &[T]) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let size = 1 << rows.len().checked_ilog2()?.min(LARGEST);
        let (piece, rest) = rows.split_at_checked(size)?;
        rows = rest;
        Some(piece)
    })
}

const LEDGER: &str = r#"INSERT INTO "Alchemi_UsageLedgerTable" (request_id, account_id, kind, entry, domain, org_id,
    team_id, user_id, subject, agent_id, model_name, connection_id, guardrail_code, input_tokens, output_tokens,
    cached_tokens, cache_creation_tokens, reasoning_tokens, audio_input_tokens, audio_output_tokens, raw_cost,
    credit_factor, credits_incurred, cost_source, marks, upstream_call_id, status, duration_us, plan_id, cycle_start,
    day, chain, metadata, created_at) VALUES "#;

static INSERT: Rows = Rows::new(LEDGER, 34, " ON CONFLICT (request_id) DO NOTHING");
static INSERT_TELLING: Rows = Rows::new(LEDGER, 34, " ON CONFLICT (request_id) DO NOTHING RETURNING request_id");

/// `cap` brings what the counter is rid of, because `leased` may not be negative: where the
/// counter is new, it is rid of nothing and has no cap. Beyond all credits that there can be,
/// the cap stays as it is. What is reached follows where a hundredth is known and is not 0.
static COUNT: Rows = Rows::new(
    r#"INSERT INTO "Alchemi_AllocationCounterTable" AS c
       (account_id, scope_type, scope_id, window_start, used, leased, cap, updated_at) VALUES "#,
    8,
    r#" ON CONFLICT (account_id, scope_type, scope_id, window_start) DO UPDATE
       SET used = c.used + excluded.used, reached = CASE WHEN c.hundredth = 0 THEN c.reached
       ELSE (c.used + excluded.used) / c.hundredth END,
       leased = c.leased - excluded.leased,
       cap = CASE WHEN c.cap / 2 + excluded.cap / 2 > 4611686018427387900 THEN c.cap ELSE c.cap + excluded.cap END,
       updated_at = excluded.updated_at"#,
);

static ROLL_UP: Rows = Rows::new(
    r#"INSERT INTO "Alchemi_UsageRollupTable" AS r (account_id, domain, day, org_id, team_id, user_id, agent_id,
       model_name, connection_id, guardrail_code, requests, input_tokens, output_tokens, raw_cost, credits_incurred)
       VALUES "#,
    15,
    r#" ON CONFLICT (account_id, domain, day, org_id, team_id, user_id, agent_id, model_name, connection_id, guardrail_code)
       DO UPDATE SET requests = r.requests + excluded.requests,
       input_tokens = r.input_tokens + excluded.input_tokens,
       output_tokens = r.output_tokens + excluded.output_tokens,
       raw_cost = r.raw_cost + excluded.raw_cost,
       credits_incurred = r.credits_incurred + excluded.credits_incurred"#,
);

static ADD_UP: Rows = Rows::new(
    r#"INSERT INTO "Alchemi_UsageTotalTable" AS t (account_id, raw_cost, credits_incurred) VALUES "#,
    3,
    r#" ON CONFLICT (account_id) DO UPDATE SET raw_cost = t.raw_cost + excluded.raw_cost,
       credits_incurred = t.credits_incurred + excluded.credits_incurred"#,
);

static DRAW: Rows = Rows::new(
    r#"UPDATE "Alchemi_AllocationLeaseTable" SET amount = amount - v.drawn, updated_at = v.at
       FROM (SELECT column1 AS lease, column2 AS drawn, column3 AS at FROM (VALUES "#,
    3,
    r#") AS w) AS v WHERE lease_id = v.lease AND state = 'open' AND amount >= v.drawn RETURNING lease_id"#,
);

/// Binds a settlement's ledger row to a query.
macro_rules! bind_row {
    ($query:ident, $settlement:ident, $chains:ident) => {{
        let (r, d) = (&$settlement.row, &$settlement.row.dimensions);
        let t = &r.tokens;
        $query
            .bind(&*r.request_id)
            .bind(&r.account_id)
            .bind(r.kind)
            .bind(r.entry)
            .bind(r.domain)
            .bind(d.org_id.as_deref())
            .bind(d.team_id.as_deref())
            .bind(d.user_id.as_deref())
            .bind(d.subject.as_deref())
            .bind(d.agent_id.as_deref())
            .bind(d.model_name.as_deref())
            .bind(d.connection_id.as_deref())
            .bind(d.guardrail_code.as_deref())
            .bind(count(t.input))
            .bind(count(t.output))
            .bind(count(t.cached))
            .bind(count(t.cache_creation))
            .bind(count(t.reasoning))
            .bind(count(t.audio_input))
            .bind(count(t.audio_output))
            .bind(r.raw_cost)
            .bind(r.credit_factor)
            .bind(r.credits)
            .bind(r.cost_source)
            .bind(&*r.marks)
            .bind(r.upstream_call_id.as_deref())
            .bind(i64::from(r.status))
            .bind(r.duration_us)
            .bind(r.plan_id.as_deref())
            .bind(r.cycle_start)
            .bind(&*r.day)
            .bind($chains.of(&$settlement.counters))
            .bind(&*r.metadata)
            .bind(r.created_at)
    }};
}

/// The texts of chains: many rows have the same.
#[derive(Default)]
struct Chains<'a>(HashMap<&'a [CounterKey], String, foldhash::fast::RandomState>);

impl<'a> Chains<'a> {
    fn of_all(batch: &'a [Settlement]) -> Self {
        let mut chains = Self::default();
        for settlement in batch {
            let text = || serde_json::to_string(&settlement.counters).unwrap_or_default();
            chains.0.entry(&settlement.counters).or_insert_with(text);
        }
        chains
    }

    fn of(&self, counters: &[CounterKey]) -> &str {
        self.0.get(counters).map_or("[]", String::as_str)
    }
}

impl<R> Tx<R> {
    fn places(&self) -> Places {
        match &self.inner {
            #[cfg(feature = "sqlite")]
            Inner::Sqlite(_) => Places::Unnamed,
            #[cfg(feature = "postgres")]
            Inner::Postgres(_) => Places::Numbered,
        }
    }

    /// Inserts ledger rows and gives those that were new.
    pub(in crate::store) async fn write_rows<'a>(&mut self, batch: &'a [Settlement]) -> Result<Vec<&'a Settlement>> {
        let mut written: HashSet<String> = HashSet::with_capacity(batch.len());
        let chains = Chains::of_all(batch);
        let places = self.places();
        for piece in pieces(batch) {
            let ids: Vec<String> = on!(self, |c| {
                let mut query = sqlx::query_scalar(INSERT_TELLING.text(piece.len(), places));
                for settlement in piece {
                    query = bind_row!(query, settlement, chains);
                }
                query.fetch_all(c).await
            })?;
            written.extend(ids);
        }
        // Removed, not looked up: one that a batch holds twice was written once.
        Ok(batch.iter().filter(|s| written.remove(&s.row.request_id)).collect())
    }

    /// Inserts ledger rows that are all new.
    pub(super) async fn write_new_rows(&mut self, batch: &[Settlement]) -> Result<()> {
        let chains = Chains::of_all(batch);
        let places = self.places();
        for piece in pieces(batch) {
            let written = on!(self, |c| {
                let mut query = sqlx::query(INSERT.text(piece.len(), places));
                for settlement in piece {
                    query = bind_row!(query, settlement, chains);
                }
                query.execute(c).await.map(|done| done.rows_affected())
            })?;
            if usize::try_from(written) != Ok(piece.len()) {
                return Err(StoreError::Unique("request_id".to_owned()));
            }
        }
        Ok(())
    }

    /// Adds settled rows to their counters, each touched once; leases that are `gone`
    /// hold nothing any more.
    pub(in crate::store) async fn add_to_counters(&mut self, fresh: &[&Settlement], gone: &Gone) -> Result<()> {
        // Many rows have the same chain, and hold the same of it: it is gone through once.
        let mut chains: HashMap<Chain<'_>, ChainSums, foldhash::fast::RandomState> = HashMap::default();
        for settlement in fresh {
            let lost = settlement.lease.as_ref().is_some_and(|lease| gone.leases.contains(&**lease));
            let covered = !lost || gone.covered.contains(&settlement.row.request_id);
            let held: &[CounterKey] = if covered { &settlement.held } else { &[] };
            let sums = chains.entry((&settlement.row.account_id, &settlement.counters, held, lost)).or_default();
            sums.add(settlement.row.credits, settlement.hold)?;
        }
        let mut counters: BTreeMap<(&Id<Account>, &CounterKey), Delta> = BTreeMap::new();
        for ((account, chain, held, lost), sums) in chains {
            for key in chain {
                let delta = counters.entry((account, key)).or_default();
                delta.used = delta.used.checked_add(sums.used).ok_or(StoreError::Overflow)?;
                let beyond = if held.contains(key) { sums.beyond_holds } else { sums.charged };
                delta.overshoot = delta.overshoot.saturating_add(beyond);
            }
            for key in held.iter().filter(|_| !lost && sums.held != Credits::ZERO) {
                let delta = counters.entry((account, key)).or_default();
                delta.leased = delta.leased.checked_add(sums.held).ok_or(StoreError::Overflow)?;
            }
        }
        self.count(&counters.into_iter().collect::<Vec<_>>()).await
    }

    /// Adds to counters, which are in the order of their locks.
    async fn count(&mut self, counters: &[((&Id<Account>, &CounterKey), Delta)]) -> Result<()> {
        let (now, places) = (self.now, self.places());
        for piece in pieces(counters) {
            on!(self, |c| {
                let mut query = sqlx::query(COUNT.text(piece.len(), places));
                for ((account, key), delta) in piece {
                    query = query
                        .bind(*account)
                        .bind(key.scope.scope_type)
                        .bind(&*key.scope.scope_id)
                        .bind(Timestamp::from_micros(key.window_start))
                        .bind(delta.used)
                        // Of a counter that is not there yet nothing is leased.
                        .bind(delta.leased)
                        .bind(delta.overshoot)
                        .bind(now);
                }
                query.execute(c).await.map(|done| done.rows_affected())
            })?;
        }
        Ok(())
    }

    /// Takes from open leases what was charged under them; gives those that were lost meanwhile.
    pub(in crate::store) async fn draw_from_leases(&mut self, draws: &[(&str, Credits)]) -> Result<HashSet<String>> {
        let (now, places) = (self.now, self.places());
        let mut gone: HashSet<String> = draws.iter().map(|(lease, _)| (*lease).to_owned()).collect();
        for piece in pieces(draws) {
            let drawn: Vec<String> = on!(self, |c| {
                let mut query = sqlx::query_scalar(DRAW.text(piece.len(), places));
                for (lease, amount) in piece {
                    query = query.bind(*lease).bind(*amount).bind(now);
                }
                query.fetch_all(c).await
            })?;
            drawn.iter().for_each(|lease| _ = gone.remove(lease));
        }
        Ok(gone)
    }

    /// Takes from what counters of an account have leased.
    pub(in crate::store) async fn free(
        &mut self,
        account: &Id<Account>,
        freed: &BTreeMap<CounterKey, Credits>,
    ) -> Result<()> {
        let some = freed.iter().filter(|(_, amount)| **amount != Credits::ZERO);
        let deltas: Vec<_> =
            some.map(|(key, amount)| ((account, key), Delta { leased: *amount, ..Delta::default() })).collect();
        self.count(&deltas).await
    }

    /// Adds settled rows to their roll-ups and to what their accounts have spent, each touched once.
    pub(in crate::store) async fn add_to_rollups(&mut self, fresh: &[&Settlement]) -> Result<()> {
        let mut sums: HashMap<Dimension<'_>, RollupSums, foldhash::fast::RandomState> = HashMap::default();
        for settlement in fresh {
            sums.entry(Dimension::of(&settlement.row)).or_default().add(&RollupSums::of(&settlement.row))?;
        }
        let mut totals: BTreeMap<&Id<Account>, (Usd, Credits)> = BTreeMap::new();
        for (key, sum) in &sums {
            let (cost, credits) = totals.entry(key.account).or_default();
            *cost = cost.checked_add(sum.raw_cost).ok_or(StoreError::Overflow)?;
            *credits = credits.checked_add(sum.credits_incurred).ok_or(StoreError::Overflow)?;
        }
        // In one order, so that two settlers do not wait for each other in a circle.
        let mut sums: Vec<_> = sums.into_iter().collect();
        sums.sort_unstable_by_key(|(key, _)| *key);
        let places = self.places();
        for piece in pieces(&sums) {
            on!(self, |c| {
                let mut query = sqlx::query(ROLL_UP.text(piece.len(), places));
                for (key, sum) in piece {
                    query = query.bind(key.account).bind(key.domain);
                    for text in key.texts {
                        query = query.bind(text);
                    }
                    query = query
                        .bind(sum.requests)
                        .bind(sum.input_tokens)
                        .bind(sum.output_tokens)
                        .bind(sum.raw_cost)
                        .bind(sum.credits_incurred);
                }
                query.execute(c).await.map(|done| done.rows_affected())
            })?;
        }
        self.add_to_totals(&totals.into_iter().collect::<Vec<_>>()).await
    }

    async fn add_to_totals(&mut self, totals: &[(&Id<Account>, (Usd, Credits))]) -> Result<()> {
        let places = self.places();
        for piece in pieces(totals) {
            on!(self, |c| {
                let mut query = sqlx::query(ADD_UP.text(piece.len(), places));
                for (account, (cost, credits)) in piece {
                    query = query.bind(*account).bind(*cost).bind(*credits);
                }
                query.execute(c).await.map(|done| done.rows_affected())
            })?;
        }
        Ok(())
    }
}

/// The account, the counters that a row is added to, those of them that have made room for it, and whether that was by
/// a lease which is lost.
type Chain<'a> = (&'a Id<Account>, &'a [CounterKey], &'a [CounterKey], bool);

/// What the rows of one chain add up to.
#[derive(Debug, Clone, Copy, Default)]
struct ChainSums {
    used: Credits,
    held: Credits,
    /// What each was charged beyond its hold.
    beyond_holds: Credits,
    /// What each was charged, corrections downwards left out.
    charged: Credits,
}

impl ChainSums {
    fn add(&mut self, credits: Credits, hold: Credits) -> Result<()> {
        self.used = self.used.checked_add(credits).ok_or(StoreError::Overflow)?;
        self.held = self.held.checked_add(hold).ok_or(StoreError::Overflow)?;
        self.beyond_holds = self.beyond_holds.saturating_add(credits.saturating_sub(hold).max(Credits::ZERO));
        self.charged = self.charged.saturating_add(credits.max(Credits::ZERO));
        Ok(())
    }
}

/// Which roll-up a row is added to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Dimension<'a> {
    account: &'a Id<Account>,
    domain: Domain,
    /// In the order of the columns; "" stands for none.
    texts: [&'a str; 8],
}

impl<'a> Dimension<'a> {
    fn of(row: &'a LedgerRow) -> Self {
        let d = &row.dimensions;
        let [org, team, user, agent, model, connection, guardrail] =
            [&d.org_id, &d.team_id, &d.user_id, &d.agent_id, &d.model_name, &d.connection_id, &d.guardrail_code]
                .map(|text| text.as_deref().unwrap_or_default());
        let texts = [&*row.day, org, team, user, agent, model, connection, guardrail];
        Self { account: &row.account_id, domain: row.domain, texts }
    }
}

#[cfg(all(test, feature = "sqlite", feature = "postgres"))]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_cut_into_pieces_of_few_sizes() {
        let rows: Vec<u32> = (0..605).collect();
        let sizes: Vec<_> = pieces(&rows).map(<[u32]>::len).collect();
        assert_eq!(sizes, [256, 256, 64, 16, 8, 4, 1]);
        assert_eq!(pieces(&rows).flatten().copied().collect::<Vec<_>>(), rows);
        assert_eq!(pieces::<u32>(&[]).count(), 0);
    }

    #[test]
    fn a_text_has_a_place_for_each_value() {
        let rows = Rows::new("INSERT INTO t VALUES ", 2, " RETURNING a");
        let numbered = |n| rows.text(n, Places::Numbered);
        assert_eq!(numbered(1), "INSERT INTO t VALUES ($1, $2) RETURNING a");
        assert_eq!(numbered(2), "INSERT INTO t VALUES ($1, $2), ($3, $4) RETURNING a");
        assert_eq!(rows.text(2, Places::Unnamed), "INSERT INTO t VALUES (?, ?), (?, ?) RETURNING a");
        assert!(std::ptr::eq(numbered(2), numbered(2)));
    }
}
