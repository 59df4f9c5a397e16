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

/// Its last lease was on its way when it was fenced and, having none, forgotten.
#[tokio::test]
async fn a_lease_whose_holder_is_forgotten_is_an_orphan_too() {
    for fresh in testing::databases().await {
        let account = fresh.account("Acme").await;
        hold(&fresh, "a").await;
        assert_eq!(take(&fresh, &account, ("l", "a"), 6).await, Taken::Yes);
        fresh.spoil(r#"DELETE FROM "Alchemi_LeaseHolderTable""#).await;
        assert_eq!(lose(&fresh, LostLease::Release).await, [Some(Credits::ZERO)]);
        assert_eq!(counter(&fresh.store, &account).await, (0, 0));
    }
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
