//! Who looks at budgets, and writes down what has reached a threshold.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Alerts;
use crate::clock::Timestamp;
use crate::context::{Granted, Tenant};
use crate::credits::Credits;
use crate::id::Id;
use crate::model::accounts::Account;
use crate::model::alerts::{AlertDelivery, AlertEvent, AlertLevel, AlertWebhook, Message, ReachedThreshold, reached};
use crate::model::budgets::{AccountAllocation, Cycle, EffectiveAllocation, Window, just_before};
use crate::model::scope::Scope;
use crate::store::alerts::Watch;
use crate::store::{StoreError, Tx};

/// An account whose counters do not change is looked at this often: what it has may.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// How long after its moment a change may be committed.
const SLACK: Duration = Duration::from_secs(60);

/// For how long a window is looked at that has ended.
const AFTERWARDS: Duration = Duration::from_secs(24 * 3_600);

/// How many accounts are looked at in one go.
const MOST: u32 = 500;

/// A window with the moment in it whose allocations count.
#[derive(Debug, Clone, Copy)]
struct Looked {
    window: Window,
    at: Timestamp,
}

impl Alerts {
    /// Looks at budgets that may have changed.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot be found out which.
    pub async fn observe(&self) -> Result<(), StoreError> {
        let mut tx = self.store.read(&Granted::system()).await?;
        let slack = i64::try_from(SLACK.as_micros()).unwrap_or(i64::MAX);
        let watches = tx.due_watches(tx.now().minus(LOOK_EVERY), slack, MOST).await?;
        drop(tx);
        for watch in watches {
            match self.look(&watch).await {
                Ok(reached) => {
                    self.counts.reached.fetch_add(reached, Ordering::Relaxed);
                }
                // One account that cannot be looked at keeps nobody else's alerts back.
                Err(error) => tracing::warn!(
                    error = &error as &dyn std::error::Error, account = %watch.account_id,
                    "an account's budgets cannot be looked at for alerts; trying again"
                ),
            }
        }
        Ok(())
    }

    /// Looks at one account's budgets; gives how many thresholds are newly reached.
    async fn look(&self, watch: &Watch) -> Result<u64, StoreError> {
        self.store.roll_over(&watch.account_id).await?;
        let mut tx = self.store.begin(&Granted::system().over(watch.account_id.clone())).await?;
        let Some(webhook) = tx.alert_webhook().await? else { return Ok(0) };
        let (calendar, account) = tx.account_terms().await?;
        let plan = tx.active_plan().await?;
        let since = webhook.updated_at;
        let months =
            windows(tx.now(), since, |at| Cycle::Monthly.window(at, &calendar, Timestamp::from_micros(i64::MIN)));
        let planned = match &plan {
            Some(plan) => windows(tx.now(), since, |at| plan.window(at, &calendar)),
            None => Vec::new(),
        };
        let from = months.iter().chain(&planned).map(|looked| looked.window.start).min().unwrap_or(tx.now());
        if !tx.take_watch(watch, from).await? {
            return Ok(0);
        }
        let mut found = Vec::new();
        for looked in months {
            let whole = account.as_ref().map(AccountAllocation::whole);
            find(&mut tx, &webhook, looked, whole.into_iter().collect(), &mut found).await?;
        }
        if let Some(plan) = &plan {
            for looked in planned {
                let allocations = tx.allocations_at(&plan.id, None, looked.at).await?;
                find(&mut tx, &webhook, looked, allocations, &mut found).await?;
            }
        }
        let told = tx.told_alerts(from).await?;
        found.retain(|one| !told.contains(&(one.scope.clone(), one.window.start, one.threshold)));
        let written = tell(&mut tx, found).await?;
        tx.commit().await?;
        Ok(written)
    }
}

/// The window around `now`, and the one before it if it has ended lately and not before `since`.
fn windows(now: Timestamp, since: Timestamp, window: impl Fn(Timestamp) -> Window) -> Vec<Looked> {
    let present = window(now);
    let former = window(just_before(present.start));
    let lately = former.end == Some(present.start) && present.start > since && now < present.start.plus(AFTERWARDS);
    let former = lately.then(|| Looked { window: former, at: just_before(present.start) });
    std::iter::once(Looked { window: present, at: now }).chain(former).collect()
}

/// A budget that has reached a threshold.
struct Found {
    scope: Scope,
    window: Window,
    threshold: u16,
    used: Credits,
    allocated: Credits,
}

/// Adds what has reached a threshold in a window.
async fn find(
    tx: &mut Tx<Tenant>,
    webhook: &AlertWebhook,
    looked: Looked,
    allocations: Vec<EffectiveAllocation>,
    found: &mut Vec<Found>,
) -> Result<(), StoreError> {
    if allocations.is_empty() {
        return Ok(());
    }
    let counters = tx.counters_from(looked.window.start).await?;
    let used: HashMap<Scope, Credits> =
        counters.into_iter().map(|c| (Scope::new(c.scope_type, c.scope_id), c.used)).collect();
    for allocation in allocations {
        let Some(used) = used.get(&allocation.scope).copied() else { continue };
        let of = |threshold| Found {
            scope: allocation.scope.clone(),
            window: looked.window,
            threshold,
            used,
            allocated: allocation.effective,
        };
        found.extend(reached(&webhook.thresholds, used, allocation.effective).map(of));
    }
    Ok(())
}

/// Writes messages down; gives how many were new.
async fn tell(tx: &mut Tx<Tenant>, found: Vec<Found>) -> Result<u64, StoreError> {
    let account = tx.account().clone();
    let scopes: Vec<Scope> = found.iter().map(|one| one.scope.clone()).collect();
    let names = tx.scope_names(&scopes).await?;
    let mut written = 0;
    for one in found {
        let name = names.get(&one.scope).map_or(one.scope.scope_id.as_str(), String::as_str);
        let payload = one.payload(&account, name, tx.now());
        let delivery = AlertDelivery {
            event: AlertEvent::Alert,
            scope_type: Some(one.scope.scope_type),
            scope_id: Some(one.scope.scope_id.clone()),
            threshold: Some(i64::from(one.threshold)),
            window_start: Some(one.window.start),
            ..AlertDelivery::test(tx.new_id(), account.clone(), payload, tx.now())
        };
        written += u64::from(tx.insert_alert_delivery(&delivery, one.window.end).await?);
    }
    Ok(written)
}

impl Found {
    fn payload(&self, account: &Id<Account>, name: &str, now: Timestamp) -> String {
        let percentage = self.used.percent_of(self.allocated);
        let data = ReachedThreshold {
            account_id: account,
            entity_name: name,
            entity_type: self.scope.scope_type.as_str().to_ascii_uppercase(),
            entity_id: &self.scope.scope_id,
            threshold: self.threshold,
            alert_level: AlertLevel::of(f64::from(self.threshold)),
            usage_percentage: percentage,
            used: self.used,
            allocated_credits: self.allocated,
            window: self.window,
        };
        serde_json::to_string(&Message { kind: "budget.threshold_reached", timestamp: now, data }).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn a_window_that_has_ended_is_looked_at_for_a_day() {
        let at = |text: &str| -> Timestamp { text.parse().unwrap() };
        let month = |now| {
            Cycle::Monthly.window(now, &crate::model::budgets::Calendar::default(), Timestamp::from_micros(i64::MIN))
        };
        let starts = |now: &str, since: &str| -> Vec<String> {
            windows(at(now), at(since), month).iter().map(|looked| looked.window.start.to_string()).collect()
        };
        let (january, february) = ("2026-01-01T00:00:00Z".to_owned(), "2026-02-01T00:00:00Z".to_owned());
        assert_eq!(starts("2026-02-01T23:59:59Z", "2026-01-15T00:00:00Z"), [february.as_str(), january.as_str()]);
        assert_eq!(starts("2026-02-02T00:00:00Z", "2026-01-15T00:00:00Z"), [february.as_str()]);
        assert_eq!(
            starts("2026-02-01T12:00:00Z", "2026-02-01T00:00:00Z"),
            [february.as_str()],
            "nobody was to be told then"
        );
    }
}
