//! The gateway in one thread, under a seed: the real shards, sessions, order, log and rows; a simulated network, disk and clock.
//!
//! See README.md beside this file: how to replay a seed, and how to run a campaign.

mod cores;
mod device;
mod disk;
mod ledger;
mod network;
mod plan;
mod random;
mod renewals;
mod rude;
mod socket;
mod store;
mod tokens;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use plan::Plan;
use world::{Failure, Report, World};

/// That of the product.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A microsecond in nanoseconds, the unit of the simulation.
pub const US: u64 = 1_000;
/// A millisecond.
pub const MS: u64 = 1_000 * US;
/// A second.
pub const SECOND: u64 = 1_000 * MS;
/// The wall clock at the beginning: a day in 2027, Unix seconds.
pub const BEGINS_S: u64 = 1_800_000_000;

fn run(plan: Plan) -> Result<Report, String> {
    let seed = plan.seed;
    let ran = catch_unwind(AssertUnwindSafe(|| World::new(plan).run()));
    match ran {
        Ok(Ok(report)) => Ok(report),
        Ok(Err(failure)) => Err(describe(&failure)),
        Err(panic) => {
            let text =
                panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Err(format!("seed {seed} panicked: {}\n{}", text.unwrap_or_default(), replay(seed)))
        }
    }
}

fn describe(failure: &Failure) -> String {
    let Failure { seed, at, finding, trace } = failure;
    let at = *at / MS;
    format!("seed {seed}, at {at} ms: {finding}\n{}\n{}", trace.join("\n"), replay(*seed))
}

fn replay(seed: u64) -> String {
    format!("replay: TIDEGATE_SIM_FIRST={seed} TIDEGATE_SIM_SEEDS=1 cargo test --test sim seeds -- --nocapture")
}

/// Seeds, and what they found.
const FOUND: &[(u64, &str)] = &[
    (1_462, "the store never saw a RELEASE that the core had refused, and held the conversation for ever"),
    (6_986, "a session that ended before its WELCOME came through counted as refused (the checker)"),
    (9_066, "a connection was still there 40 s after everyone had left, in an earlier world"),
    (10_944, "a PRESENCE that was dropped for want of room was never told again"),
    (13_440, "unread was asked for while a message was on its way (the checker)"),
    (14_863, "a refused AUTH was taken for another refusal of the same turn (the checker)"),
    (15_459, "unread was asked for while a message was on its way (the checker)"),
    (15_755, "one piece of the last page was on its way for seconds, in the calm as well (the simulation)"),
    (18_422, "a connection that was reset waited for a send that the silence of its link held (the simulation)"),
    (19_849, "a redelivery that trouble had made late counted as lost (the checker)"),
];

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// How long this thread has been on a core: a machine that is shared takes longer.
fn on_core_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux tells it");
    text.split(' ').next().and_then(|word| word.parse().ok()).expect("nanoseconds stand first")
}

/// A hundred clients on two cores, which speak every 5, 30 and 120 s. Prints the table of how much faster than the world each is.
#[test]
fn a_crowd_converges() {
    println!(
        "| each speaks every | messages | deliveries | simulated | time of the thread | times real time | us per delivery |"
    );
    println!("|--:|--:|--:|--:|--:|--:|--:|");
    for (every_s, acknowledged_min) in [(5, 1_000), (30, 150), (120, 30)] {
        let send_every_ns = every_s * SECOND;
        let plan = Plan { users: 25, devices_per_user: 4, groups: 6, send_every_ns, trouble_ns: 60 * SECOND, ..Plan::calm(7) };
        let begun = on_core_ns();
        let report = run(plan).unwrap();
        let took_ns = (on_core_ns() - begun).max(1);
        let Report { acknowledged_count: messages, delivered_count: deliveries, simulated_ns, .. } = report;
        println!(
            "| {every_s} s | {messages} | {deliveries} | {} s | {} ms | {} | {} |",
            simulated_ns / SECOND,
            took_ns / MS,
            simulated_ns / took_ns,
            took_ns / US / deliveries.max(1),
        );
        assert!(messages > acknowledged_min, "{report:?}");
    }
}

/// Nothing goes wrong: ten devices on two cores write to one another, and everyone has everything.
#[test]
fn a_calm_world_converges() {
    let report = run(Plan::calm(1)).unwrap();
    assert!(report.acknowledged_count > 100 && report.delivered_count > report.acknowledged_count, "{report:?}");
}

/// A parking of two places that never grows, and one device that writes more than its send window holds to one conversation: all of it
/// gets through, one message each time the device repeats what failed.
#[test]
fn a_burst_gets_through_a_parking_of_two() {
    let plan = Plan {
        users: 1,
        devices_per_user: 1,
        groups: 0,
        send_every_ns: 200 * MS,
        burst_ppm: 1_000_000,
        parked_max: 2,
        parked_calm_max: 2,
        converge_ns: 120 * SECOND,
        ..Plan::calm(3)
    };
    let report = run(plan).unwrap();
    assert!(report.acknowledged_count >= 64 && report.acknowledged_count == report.stored_count, "{report:?}");
}

/// The same seed gives the same run to the last byte on the wire; another seed does not.
#[test]
fn the_same_seed_gives_the_same_trace() {
    let mut hashes = std::collections::BTreeSet::new();
    for seed in 0..8 {
        let first = run(Plan::from_seed(seed)).unwrap();
        let second = run(Plan::from_seed(seed)).unwrap();
        assert_eq!(first, second, "seed {seed}");
        hashes.insert(first.hash);
    }
    assert_eq!(hashes.len(), 8);
}

/// Seeds, each with its own faults. `TIDEGATE_SIM_FIRST` and `TIDEGATE_SIM_SEEDS` choose others.
#[test]
fn seeds() {
    let (first, count) = (number("TIDEGATE_SIM_FIRST", 0), number("TIDEGATE_SIM_SEEDS", 500));
    let failures = campaign(first, count);
    assert!(failures.is_empty(), "{} of {count} seeds failed\n{}", failures.len(), failures[0]);
}

/// Seeds that have found something stay good. They replay what they found for as long as nothing changes that draws from their streams;
/// the part that was wrong has a test of its own (README.md).
#[test]
fn seeds_that_found_something_stay_good() {
    for (seed, found) in FOUND {
        // As the world was when they were found, and as it is.
        let plan = Plan::from_seed(*seed);
        for plan in [Plan { renew_ppm: 0, token_life_s: 0, older_acks_ppm: 0, ..plan.clone() }, plan] {
            let result = run(plan);
            assert!(result.is_ok(), "once: {found}; now: {}", result.unwrap_err());
        }
    }
}

/// Runs seeds on every core of the machine; returns what failed, by seed.
fn campaign(first: u64, count: u64) -> Vec<String> {
    let begun = Instant::now();
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let results: Vec<(u64, Result<Report, String>)> = std::thread::scope(|scope| {
        let next = &next;
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(move || {
                    let mut results = Vec::new();
                    loop {
                        let place = next.fetch_add(1, Ordering::Relaxed);
                        if place >= count {
                            return results;
                        }
                        let seed = first + place;
                        let result = run(Plan::from_seed(seed));
                        if let Err(failure) = &result {
                            println!("{}", failure.lines().next().unwrap_or_default());
                        }
                        results.push((seed, result));
                    }
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("runs are caught")).collect()
    });
    let mut failures: Vec<(u64, String)> = Vec::new();
    let (mut simulated_ns, mut acknowledged, mut delivered, mut lives, mut slowest) = (0, 0, 0, 0, 0);
    for (seed, result) in results {
        match result {
            Ok(report) => {
                simulated_ns += report.simulated_ns;
                acknowledged += report.acknowledged_count;
                delivered += report.delivered_count;
                lives += u64::from(report.lives_count);
                slowest = slowest.max(report.converged_after_ns);
            }
            Err(failure) => failures.push((seed, failure)),
        }
    }
    let took = begun.elapsed();
    println!(
        "{count} seeds from {first}: {} failed; {} s simulated in {:.1} s on {threads} threads; {acknowledged} acknowledged, {delivered} \
         delivered, {lives} lives; slowest convergence {} ms",
        failures.len(),
        simulated_ns / SECOND,
        took.as_secs_f64(),
        slowest / MS
    );
    failures.sort();
    failures.into_iter().map(|(_, failure)| failure).collect()
}

/// Every planted mistake that the simulation can see is found within a thousand seeds. Prints a table of how many it took, and what was
/// found. `TIDEGATE_SIM_MUTANT` chooses one of them.
#[cfg(feature = "mutants")]
#[test]
fn planted_mistakes_are_found() {
    use std::sync::Mutex;
    use std::sync::atomic::AtomicUsize;

    use tidegate::mutant::{self, Mutant};

    let (first, seeds) = (number("TIDEGATE_SIM_FIRST", 0), number("TIDEGATE_SIM_SEEDS", 1_000));
    let chosen = std::env::var("TIDEGATE_SIM_MUTANT").ok();
    // Of these a test by name tells, which `tests/mutants/run` runs.
    let named: Vec<&str> = include_str!("../mutants/named").lines().filter_map(|line| line.split(' ').next()).collect();
    let planted: Vec<Mutant> = Mutant::ALL
        .iter()
        .copied()
        .filter(|mutant| {
            chosen.as_ref().map_or(!named.contains(&&*format!("{mutant:?}")), |chosen| format!("{mutant:?}") == *chosen)
        })
        .collect();
    assert!(!planted.is_empty(), "no such mistake: {chosen:?}");
    let next = AtomicUsize::new(0);
    let (missed, next, planted) = (Mutex::new(Vec::new()), &next, &planted);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::panic::set_hook(Box::new(|_| {}));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(&mistake) = planted.get(next.fetch_add(1, Ordering::Relaxed)) {
                    mutant::set(Some(mistake));
                    let found =
                        (first..first + seeds).find_map(|seed| run(Plan::from_seed(seed)).err().map(|finding| (seed, finding)));
                    let Some((seed, finding)) = found else {
                        println!("| {mistake:?} | not in {seeds} | |");
                        missed.lock().unwrap().push(mistake);
                        continue;
                    };
                    println!("| {mistake:?} | {} | {} |", seed + 1, finding.lines().next().unwrap_or_default());
                    mutant::set(None);
                    assert!(run(Plan::from_seed(seed)).is_ok(), "seed {seed} fails without any mistake");
                    if planted.len() == 1 {
                        println!("{finding}");
                    }
                }
            });
        }
    });
    let _ = std::panic::take_hook();
    let missed = missed.into_inner().unwrap();
    assert!(missed.is_empty(), "not found: {missed:?}");
}
