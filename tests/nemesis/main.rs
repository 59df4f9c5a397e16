//! Three gateways, everything that can befall them, and books that agree with the upstream afterwards.
//!
//! Each run follows from a seed: which faults, upon whom, for how long, and what clients do meanwhile. How the
//! processes interleave is the machine's. `ALCHEMI_NEMESIS_RUNS` says how many runs there are (10, which bring every
//! fault but a long freeze), `ALCHEMI_NEMESIS_SEED` where they begin; alone, it repeats that one. `-- --nocapture` shows the figures.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says what it measured"
)]
#![cfg(all(feature = "server", feature = "postgres", unix))]

#[path = "../common/mod.rs"]
mod common;

mod books;
mod cluster;
mod faults;
mod load;
mod process;
mod seed;
mod table;
mod upstream;
mod wire;
mod world;

use std::time::Duration;

use books::Watch;
use faults::{Fault, plan};
use load::Load;
use seed::Dice;
use table::{Episode, Table};
use world::World;

/// The longest that service may be away after a fault is over; where others use the machine too, it is not judged to
/// the second.
fn recovery() -> Duration {
    Duration::from_secs(if std::env::var_os("CI").is_some() { 30 } else { 5 })
}

const RUNS: u64 = 10;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var_os(variable)?;
    let number = text.to_str().and_then(|text| text.parse().ok());
    Some(number.unwrap_or_else(|| panic!("{variable} is not a number: {text:?}")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_books_agree_with_the_upstream_whatever_happens() {
    let first = number("ALCHEMI_NEMESIS_SEED");
    let runs = number("ALCHEMI_NEMESIS_RUNS").unwrap_or(if first.is_some() { 1 } else { RUNS });
    let first = first.unwrap_or(0);
    let mut table = Table::default();
    let mut failures = Vec::new();
    for seed in first..first + runs {
        eprintln!("nemesis: seed {seed}: {:?}", plan(seed));
        // A panic in here comes after the line above.
        let Some((episodes, violations)) = run(seed).await else { return };
        table.add(&episodes);
        violations.iter().for_each(|violation| eprintln!("nemesis: seed {seed}: {violation}"));
        if !violations.is_empty() {
            failures.push(seed);
        }
    }
    println!("{table}");
    assert!(failures.is_empty(), "seeds {failures:?} fail; ALCHEMI_NEMESIS_SEED repeats one");
}

/// None where there is no PostgreSQL.
async fn run(seed: u64) -> Option<(Vec<Episode>, Vec<String>)> {
    let dice = Dice::new(seed);
    let mut world = World::build(&dice).await?;
    let urls: Vec<_> = world.gateways.iter().map(|gateway| gateway.url.clone()).collect();
    let people: Vec<_> = world.accounts.iter().map(|account| account.person.clone()).collect();
    let watch = Watch::start(&world);
    let load = Load::start(&urls, &people, &dice);
    let mut episodes = vec![Episode::default()];
    tokio::time::sleep(dice.millis(300..700)).await;
    for faults in plan(seed) {
        world.ready().await;
        world.top_up().await;
        let possible: Vec<_> = faults.into_iter().filter(|fault| is_possible(*fault, &world)).collect();
        if !possible.is_empty() {
            episodes.push(episode(&mut world, episodes.len(), possible, &dice).await);
            // What comes after it is told from what came before.
            world.upstream.enter(episodes.len());
            episodes.push(Episode::default());
        }
        tokio::time::sleep(dice.millis(100..500)).await;
    }
    let seen = load.stop().await;
    let (mut violations, over) = watch.stop().await;
    violations.truncate(3);
    for episode in episodes.iter().filter(|episode| episode.recovery > recovery()) {
        violations.push(format!("{} took {:?} to recover from", episode.title(), episode.recovery));
    }
    violations.extend(world.settle().await);
    violations.extend(world.last_credit().await);
    violations.extend(world.stop_all().await);
    violations.extend(world.verify());
    let (log, ledger) = (world.upstream.log(), world.ledger().await);
    let wipes = |episode: &Episode| episode.faults.contains(&Fault::Wipe);
    let wiped = episodes.iter().rposition(wipes);
    let (tallies, wrong) = books::compare(&log, &ledger, &seen, wiped);
    violations.extend(wrong);
    for (episode, tally) in tallies {
        episodes[episode].tally = tally;
    }
    // A gateway that was killed has started again on its journal: what its leases had left is free. Where a clock was
    // wrong or the database was away, a living one may have been given up for lost.
    let kept = books::lost_leases(ledger.values());
    let given_up =
        |fault: &Fault| matches!(fault, Fault::Wipe | Fault::ClockJump | Fault::DatabaseStop | Fault::Database(_));
    if kept != 0 && !plan(seed).iter().flatten().any(given_up) {
        violations.push(format!("{kept} nano-credits of lost leases stay charged"));
    }
    if let Some(times) = seen.failed.get(&500) {
        let logs: Vec<_> = world.gateways.iter().map(|gateway| gateway.complaints()).collect();
        violations.push(format!("{times} times 500: {}", logs.concat()));
    }
    if seen.answered.is_empty() {
        violations.push("nobody was answered".to_owned());
    }
    let unsent = ledger.iter().filter(|(id, entry)| !log.contains_key(*id) && entry.credits > 0).count();
    eprintln!(
        "nemesis: seed {seed}: {} answered, {} exhausted, {} broken, {} left, failed {:?}, {unsent} charged unsent, {kept} of lost leases, \
         {over} over a cap",
        seen.answered.len(),
        seen.exhausted,
        seen.broken,
        seen.left,
        seen.failed
    );
    Some((episodes, violations))
}

fn is_possible(fault: Fault, world: &World) -> bool {
    match fault.impossible(world) {
        None => true,
        Some(reason) => {
            assert!(std::env::var_os("CI").is_none(), "{fault}: {reason}");
            eprintln!("nemesis: {fault} is left out: {reason}");
            false
        }
    }
}

async fn episode(world: &mut World, number: usize, faults: Vec<Fault>, dice: &Dice) -> Episode {
    world.upstream.enter(number);
    let injuries: Vec<_> = faults.iter().map(|fault| world.strike(*fault, dice)).collect();
    let shortest = faults.iter().map(|fault| fault.lasts()).max().unwrap_or_default();
    tokio::time::sleep(dice.millis(300..1_500).max(shortest)).await;
    for injury in injuries {
        world.heal(injury);
    }
    let recovery = world.recovery().await;
    Episode { faults, recovery, ..Episode::default() }
}
