//! What plans add up to, kept until something of their account changes: adding one up reads
//! all that it gives, and a page of it must not.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use moka::sync::Cache;
use serde::Serialize;

use crate::clock::Timestamp;
use crate::context::Tenant;
use crate::credits::Credits;
use crate::id::Id;
use crate::model::accounts::Account;
use crate::model::budgets::{AccountAllocation, Division, Plan};
use crate::store::changes::ChangeKind;
use crate::store::{Result, Store, Tx};

/// How a plan divides the account's credits.
#[derive(Debug, Clone, Copy, Serialize, utoipa::ToSchema)]
pub(in crate::v1) struct Sums {
    /// What the plan gives out, each credit counted once: a team's share of its
    /// org's is not added to it.
    #[schema(required = false)]
    distributed: Credits,
    /// The monthly credits without that; negative: more is given out than a month has, of which
    /// some may have been carried over.
    #[schema(required = false)]
    unallocated: Credits,
    /// Of the account, its orgs and teams, the most that is promised for each credit that
    /// there is; above 1: over-committed. Null where nothing limits.
    #[schema(required = false)]
    over_commit_ratio: Option<f64>,
}

impl Sums {
    /// Those of a plan; of none, nothing is given out.
    pub(super) fn of(division: &Division, account: Option<&AccountAllocation>) -> Self {
        let monthly = account.map(|a| a.monthly_credits).unwrap_or_default();
        let distributed = division.distributed();
        Self {
            distributed,
            unallocated: monthly.saturating_sub(distributed),
            over_commit_ratio: division.over_commit_ratio(account),
        }
    }
}

/// How many accounts' sums are kept, and for how long if no change is heard of.
const ACCOUNTS: u64 = 10_000;
const FOR: Duration = Duration::from_secs(60);

/// Sums of plans, by account.
#[derive(Debug, Clone)]
pub(in crate::v1) struct PlanSums(Cache<Id<Account>, AccountSums>);

/// Sums of one account's plans. A change of the account puts others in their place: what is
/// found by who was reading meanwhile is given to nobody else.
#[derive(Debug, Clone, Default)]
pub(in crate::v1) struct AccountSums(Arc<Mutex<HashMap<Id<Plan>, Kept>>>);

#[derive(Debug, Clone, Copy)]
struct Kept {
    sums: Sums,
    /// When an override or what was carried over lapses.
    until: Option<Timestamp>,
}

impl PlanSums {
    /// Sums out of `store`, whose changes are followed.
    pub(in crate::v1) fn new(store: &Store) -> Self {
        let kept = Cache::builder().max_capacity(ACCOUNTS).time_to_live(FOR).build();
        let watched = kept.clone();
        store.on_change(move |change| match change.kind {
            ChangeKind::Everything => watched.invalidate_all(),
            ChangeKind::Budget | ChangeKind::Directory => watched.invalidate(&change.account),
            _ => {}
        });
        Self(kept)
    }

    /// The account's, to be taken before the transaction begins that they are asked in.
    pub(super) fn of(&self, account: &Id<Account>) -> AccountSums {
        self.0.get_with_by_ref(account, AccountSums::default)
    }
}

impl AccountSums {
    /// The sums of a plan: those that are known, else added up.
    pub(super) async fn sums(
        &self,
        tx: &mut Tx<Tenant>,
        plan: &Id<Plan>,
        account: Option<&AccountAllocation>,
    ) -> Result<Sums> {
        let now = tx.now();
        let known = self.lock().get(plan).filter(|kept| kept.until.is_none_or(|until| now < until)).copied();
        if let Some(known) = known {
            return Ok(known.sums);
        }
        let division = tx.division(plan).await?;
        let sums = Sums::of(&division, account);
        let until = division.allocations.iter().filter_map(|a| a.until).min();
        self.lock().insert(plan.clone(), Kept { sums, until });
        Ok(sums)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Id<Plan>, Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
