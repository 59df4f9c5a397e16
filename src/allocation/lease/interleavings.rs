//! Every interleaving of what requests, settlements and the keeper do to a slice, as
//! far as the memory model of the language allows them (`loom`).
//!
//! In `cargo test` a thread is preempted at most [`PREEMPTIONS`] times, which finds
//! nearly everything there is and takes a moment. All of them:
//!
//! ```sh
//! LOOM_MAX_PREEMPTIONS=8 LOOM_MAX_BRANCHES=100000 cargo test --release --lib interleavings
//! ```

use loom::sync::Mutex;
use loom::thread;

use atomic::{Arc, AtomicI64, Ordering};
use balance::{Balance, is_unused};

/// The same text as in the gateway, over the model's atomics.
#[path = "balance.rs"]
#[expect(clippy::duplicate_mod, reason = "compiled against other atomics")]
mod balance;

mod atomic {
    pub(super) use loom::sync::Arc;
    pub(super) use loom::sync::atomic::{AtomicBool, AtomicI64, Ordering, fence};
}

const PREEMPTIONS: usize = 3;

fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(PREEMPTIONS);
    builder.check(model);
}

fn holding(amount: i64) -> Arc<Balance> {
    let balance = Balance::empty();
    assert!(balance.put(amount));
    Arc::new(balance)
}

#[test]
fn of_two_requests_one_has_the_last_credit() {
    explore(|| {
        let balance = holding(3);
        let requests = [(); 2].map(|()| {
            let balance = Arc::clone(&balance);
            thread::spawn(move || balance.take(2))
        });
        let taken = requests.map(|request| request.join().unwrap());
        assert!(taken[0] != taken[1], "{taken:?}");
        assert_eq!(balance.free(), 1);
    });
}

/// A request that puts back what it did not need, while the keeper gives back what is idle
/// and fills up.
#[test]
fn no_credit_appears_or_disappears() {
    explore(|| {
        let balance = holding(3);
        let request = thread::spawn({
            let balance = Arc::clone(&balance);
            move || {
                let taken = balance.take(2);
                assert!(!taken || balance.put(1));
                if taken { 1 } else { 0 }
            }
        });
        let refill = thread::spawn({
            let balance = Arc::clone(&balance);
            move || assert!(balance.put(4))
        });
        let given_back = balance.withdraw(2) + balance.withdraw(i64::MAX);
        let used = request.join().unwrap();
        refill.join().unwrap();
        assert_eq!(used + given_back + balance.free(), 7);
    });
}

#[test]
fn nothing_is_left_in_a_slice_that_has_ended() {
    explore(|| {
        let balance = holding(3);
        let drawn = Arc::new(AtomicI64::new(0));
        let request = thread::spawn({
            let (balance, drawn) = (Arc::clone(&balance), Arc::clone(&drawn));
            move || {
                if balance.take(2) {
                    // What is not put back, the lease is rid of when the request settles.
                    drawn.store(if balance.put(1) { 1 } else { 2 }, Ordering::Relaxed);
                }
            }
        });
        let refill = thread::spawn({
            let balance = Arc::clone(&balance);
            move || if balance.put(4) { 4 } else { 0 }
        });
        let mut rest = balance.close();
        rest += balance.close();
        assert!(balance.is_closed());
        request.join().unwrap();
        let filled = 3 + refill.join().unwrap();
        assert_eq!((balance.free(), balance.withdraw(i64::MAX), balance.take(1), balance.put(1)), (0, 0, false, false));
        assert_eq!(rest + drawn.load(Ordering::Relaxed), filled);
    });
}

/// Whoever does not find enough while a refill is under way is woken by its end or by another's.
#[test]
fn no_wish_for_a_refill_is_lost_and_none_is_sent_twice() {
    explore(|| {
        let balance = Arc::new(Balance::empty());
        let woken = Arc::new(AtomicI64::new(0));
        let refill = |balance: &Balance, woken: &AtomicI64| {
            assert!(balance.put(2));
            balance.filled();
            woken.fetch_add(1, Ordering::SeqCst);
        };
        assert!(balance.want());
        let keeper = thread::spawn({
            let (balance, woken) = (Arc::clone(&balance), Arc::clone(&woken));
            move || refill(&balance, &woken)
        });
        let requests = [(); 2].map(|()| {
            let (balance, woken) = (Arc::clone(&balance), Arc::clone(&woken));
            thread::spawn(move || {
                // As `Notify::notified`: before it is tried.
                let seen = woken.load(Ordering::SeqCst);
                assert!(!balance.take(3), "a refill brings less");
                (seen, balance.want())
            })
        });
        let asked = requests.map(|request| request.join().unwrap());
        keeper.join().unwrap();
        let errands = asked.iter().filter(|(_, sent)| *sent).count();
        assert!(errands <= 1, "{asked:?}");
        (0..errands).for_each(|_| refill(&balance, &woken));
        for (seen, _) in asked {
            assert!(woken.load(Ordering::SeqCst) > seen);
        }
    });
}

struct Slice {
    balance: Balance,
    lease_id: Arc<()>,
}

/// A request that finds the slice while the keeper ends it: the lease's row is deleted when nothing is drawn.
#[test]
fn a_lease_does_not_end_under_a_request() {
    explore(|| {
        let slice = Arc::new(Slice { balance: Balance::empty(), lease_id: Arc::new(()) });
        assert!(slice.balance.put(2));
        let shard = Arc::new(Mutex::new(Some(Arc::clone(&slice))));
        // What the lease's row is short of when it is deleted: drawn, and not settled.
        let drawn = Arc::new(AtomicI64::new(0));
        let requests = [(); 2].map(|()| {
            let (shard, drawn) = (Arc::clone(&shard), Arc::clone(&drawn));
            thread::spawn(move || {
                let found = shard.lock().unwrap().clone();
                let Some(found) = found else { return };
                if !found.balance.take(2) {
                    return;
                }
                drawn.fetch_add(2, Ordering::SeqCst);
                let back = found.balance.put(1);
                drawn.fetch_sub(i64::from(back), Ordering::SeqCst);
                let lease_id = Arc::clone(&found.lease_id);
                drop(found);
                // The settler.
                drawn.fetch_sub(if back { 1 } else { 2 }, Ordering::SeqCst);
                drop(lease_id);
            })
        });
        // The purse's and the keeper's own.
        let purse = Arc::clone(&slice);
        slice.balance.close();
        *shard.lock().unwrap() = None;
        if is_unused(&slice, &slice.lease_id) {
            assert_eq!(drawn.load(Ordering::SeqCst), 0, "it ends under a request");
        }
        for request in requests {
            request.join().unwrap();
        }
        assert!(is_unused(&slice, &slice.lease_id), "it can end once nobody draws");
        drop(purse);
    });
}
