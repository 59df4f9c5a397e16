//! Transactions: what they see, what they leave, and how a database says no.

use std::collections::BTreeSet;
use std::time::Duration;

use alchemi::clock::Timestamp;
use alchemi::context::Domain;
use alchemi::id::Id;
use alchemi::model::directory::{Org, Team};
use alchemi::store::accounts::AccountFilter;
use alchemi::store::page::{Cursor, Slice};
use alchemi::store::{Store, StoreError};
use proptest::test_runner::{Config, TestRunner};

use crate::{Place, account, insert, new_id, operator, places};

async fn names(store: &Store) -> Vec<String> {
    let page = store.read(&operator()).await.unwrap().accounts(&AccountFilter::default(), &Slice::first(1000)).await;
    page.unwrap().items.into_iter().map(|account| account.account_name).collect()
}

#[tokio::test]
async fn without_a_commit_nothing_is_written() {
    for place in places().await {
        let store = place.store().await;
        let mut tx = store.begin(&operator()).await.unwrap();
        tx.insert_account(&account("Acme", tx.now())).await.unwrap();
        drop(tx);
        assert!(names(&store).await.is_empty());
    }
}

#[tokio::test]
async fn a_reader_sees_one_moment_and_writes_nothing() {
    for place in places().await {
        let store = place.store().await;
        insert(&store, "Acme").await;
        let mut reading = store.read(&operator()).await.unwrap();
        let count = |page: Result<alchemi::store::page::Page<_>, StoreError>| page.unwrap().items.len();
        let (all, first) = (AccountFilter::default(), Slice::first(10));
        assert_eq!(count(reading.accounts(&all, &first).await), 1);
        insert(&store, "Other").await;
        assert_eq!(count(reading.accounts(&all, &first).await), 1, "still the same moment");
        assert!(reading.insert_account(&account("Third", Timestamp::from_secs(1))).await.is_err());
        drop(reading);
        assert_eq!(names(&store).await.len(), 2);
    }
}

/// SQLite has one writer; readers must not stand in its queue.
#[tokio::test]
async fn readers_do_not_wait_for_a_writer() {
    for place in places().await {
        place.store().await.close().await;
        let store = place.open_with(|config| config.acquire_timeout_ms = 3_000).await;
        let mut writing = store.begin(&operator()).await.unwrap();
        writing.insert_account(&account("Acme", Timestamp::from_secs(1))).await.unwrap();
        assert!(names(&store).await.is_empty());
        assert!(store.ping().await.is_ok(), "ready while somebody writes");
        if !place.is_postgres() {
            let second = store.begin(&operator()).await.map(drop);
            assert!(matches!(second, Err(StoreError::Unavailable(_))), "{second:?}");
        }
        writing.commit().await.unwrap();
        assert_eq!(names(&store).await, ["Acme"]);
    }
}

#[tokio::test]
async fn what_is_taken_and_what_is_missing_are_told_apart() {
    for place in places().await {
        let store = place.store().await;
        let owner = insert(&store, "Acme").await;
        let mut tx = store.begin(&operator()).await.unwrap();
        let taken = tx.insert_account(&account("Acme", tx.now())).await.unwrap_err();
        assert!(taken.is_unique("account_name") && !taken.is_unique("domain"), "{taken:?}");
        drop(tx);

        let granted = operator().over(owner.account_id.clone());
        let at = Timestamp::from_secs(1);
        let team = |org: Id<Org>| Team {
            id: new_id(at),
            account_id: owner.account_id.clone(),
            domain: Domain::Console,
            org_id: org,
            name: "Language".to_owned(),
            description: None,
            created_by: None,
            created_at: at,
            updated_at: at,
            version: 1,
        };
        let mut tx = store.begin(&granted).await.unwrap();
        let missing = tx.insert_team(&team(new_id(at))).await.unwrap_err();
        assert!(matches!(missing, StoreError::ForeignKey), "{missing:?}");
        drop(tx);

        // An org of another account is as missing as none: the key holds the account.
        let other = insert(&store, "Other").await;
        let org = Org {
            id: new_id(at),
            account_id: other.account_id.clone(),
            domain: Domain::Console,
            name: "Research".to_owned(),
            description: None,
            is_default_global: false,
            created_by: None,
            created_at: at,
            updated_at: at,
            version: 1,
        };
        let mut tx = store.begin(&operator().over(other.account_id)).await.unwrap();
        tx.insert_org(&org).await.unwrap();
        tx.commit().await.unwrap();
        let mut tx = store.begin(&granted).await.unwrap();
        let foreign = tx.insert_team(&team(org.id)).await.unwrap_err();
        assert!(matches!(foreign, StoreError::ForeignKey), "{foreign:?}");
    }
}

#[tokio::test]
async fn a_closed_store_is_unavailable() {
    for place in places().await {
        let store = place.store().await;
        store.close().await;
        let refused = store.begin(&operator()).await.map(drop);
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
        assert!(store.ping().await.is_err());
    }
}

/// Whatever the moments and the page's length: every row once, newest first, and the cursor survives its text.
#[test]
fn pages_hold_every_row_once() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    for place in runtime.block_on(places()) {
        let store = runtime.block_on(place.store());
        let rows = (proptest::collection::vec(0_i64..4, 0..24), 1_u32..8);
        let config = Config { cases: 24, failure_persistence: None, ..Config::default() };
        TestRunner::new(config)
            .run(&rows, |(moments, limit)| {
                runtime.block_on(check_pages(&place, &store, &moments, limit));
                Ok(())
            })
            .unwrap();
    }
}

async fn check_pages(place: &Place, store: &Store, moments: &[i64], limit: u32) {
    place.run(r#"DELETE FROM "Alchemi_AccountTable""#).await;
    let mut tx = store.begin(&operator()).await.unwrap();
    let mut wanted = BTreeSet::new();
    for (number, moment) in moments.iter().enumerate() {
        let row = account(&format!("account {number}"), Timestamp::from_secs(*moment));
        tx.insert_account(&row).await.unwrap();
        wanted.insert((row.created_at, row.account_id));
    }
    tx.commit().await.unwrap();
    let (mut found, mut slice) = (Vec::new(), Slice::first(limit));
    loop {
        let page = store.read(&operator()).await.unwrap().accounts(&AccountFilter::default(), &slice).await.unwrap();
        found.extend(page.items.into_iter().map(|account| (account.created_at, account.account_id)));
        match page.next {
            Some(next) => slice.after = Some(Cursor::decode(&next.encode()).unwrap()),
            None => break,
        }
    }
    assert_eq!(found, wanted.into_iter().rev().collect::<Vec<_>>());
}

/// One statement after the other on one connection: a writer that is given up lets the next one in.
#[tokio::test]
async fn a_writer_that_is_dropped_lets_the_next_one_in() {
    for place in places().await {
        let store = place.store().await;
        for number in 0..20 {
            let writing = async {
                let mut tx = store.begin(&operator()).await.unwrap();
                tx.insert_account(&account("Acme", tx.now())).await.unwrap();
                tokio::time::sleep(Duration::from_secs(60)).await;
            };
            let _ = tokio::time::timeout(Duration::from_millis(2 + number), writing).await;
        }
        insert(&store, "Acme").await;
        assert_eq!(names(&store).await, ["Acme"]);
    }
}
