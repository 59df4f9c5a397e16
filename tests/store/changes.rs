//! The change feed: told at the commit, to everybody, and never before.

use std::time::Duration;

use alchemi::store::changes::{Change, ChangeKind};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::TryRecvError;

use crate::{Place, account, insert, operator, places};

/// How long a change may take on its way.
const PATIENCE: Duration = Duration::from_secs(30);

async fn next(changes: &mut Receiver<Change>) -> Change {
    tokio::time::timeout(PATIENCE, changes.recv()).await.expect("a change").unwrap()
}

#[tokio::test]
async fn a_commit_is_told_and_a_rollback_is_not() {
    for place in places().await {
        let store = place.store().await;
        let mut changes = store.changes();
        let mut tx = store.begin(&operator()).await.unwrap();
        tx.insert_account(&account("Never", tx.now())).await.unwrap();
        assert_eq!(changes.try_recv(), Err(TryRecvError::Empty), "not before the commit");
        drop(tx);
        let made = insert(&store, "Acme").await;
        assert_eq!(next(&mut changes).await, Change::of(made.account_id, ChangeKind::Account));
    }
}

#[tokio::test]
async fn who_is_told_finds_the_change() {
    for place in places().await {
        let store = place.store().await;
        let mut changes = store.changes();
        let writer = store.clone();
        let writing = tokio::spawn(async move { insert(&writer, "Acme").await });
        let told = next(&mut changes).await;
        let granted = operator().over(told.account);
        let found = store.read(&granted).await.unwrap().this_account().await.unwrap();
        assert_eq!(found.expect("the account").account_name, "Acme");
        writing.await.unwrap();
    }
}

/// `NOTIFY` carries it to the other processes.
#[tokio::test]
async fn another_process_is_told() {
    let Some(place) = places().await.into_iter().find(Place::is_postgres) else { return };
    let (here, there) = (place.store().await, place.open().await);
    let mut changes = there.changes();
    let made = insert(&here, "Acme").await;
    let change = Change::of(made.account_id, ChangeKind::Account);
    assert_eq!(next(&mut changes).await, change);
}

/// What passed while the connection was broken is unknown, and the feed says so.
#[tokio::test]
async fn a_broken_connection_is_told_as_everything() {
    let Some(place) = places().await.into_iter().find(Place::is_postgres) else { return };
    let (here, there) = (place.store().await, place.open().await);
    let mut changes = there.changes();
    let listeners = "SELECT pg_terminate_backend(pid)::TEXT FROM pg_stat_activity
        WHERE datname = current_database() AND query LIKE 'LISTEN%' AND pid <> pg_backend_pid()";
    assert_eq!(place.texts(listeners).await.len(), 2, "both listen");
    assert_eq!(next(&mut changes).await, Change::everything());
    let made = insert(&here, "Acme").await;
    let found = tokio::time::timeout(PATIENCE, async {
        loop {
            if changes.recv().await.unwrap().account == made.account_id {
                return;
            }
        }
    });
    found.await.expect("the feed goes on");
}
