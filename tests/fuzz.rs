//! Bad input: a table of malformed requests and frames with the answer of each, and a seeded fuzzer of the same two doors and of what lies
//! behind them.
//!
//! `TIDEGATE_FUZZ_SECONDS` (default 2) is the time per target, `TIDEGATE_FUZZ_SEED` repeats a run. An input that breaks a promise
//! is saved and named; moved into `tests/fuzz/corpus/`, it is tried first by every later run.
//!
//! A campaign is counted in seconds of CPU, so that it may run beside other work. An hour for each target, two at a time, each telling
//! every five minutes how far it is. `tests/fuzz/README.md` keeps what came of it:
//!
//! ```sh
//! TIDEGATE_FUZZ_CPU_SECONDS=3600 cargo test --config profile.dev.opt-level=3 --test fuzz fuzz_ -- --nocapture --test-threads=2
//! ```

#[path = "fuzz/inner.rs"]
mod inner;
#[path = "support/malformed.rs"]
mod malformed;
#[path = "fuzz/mutator.rs"]
mod mutator;
#[path = "fuzz/others.rs"]
mod others;
#[path = "fuzz/targets.rs"]
mod targets;
#[path = "support/tokens.rs"]
mod tokens;
#[path = "support/websocket.rs"]
mod websocket;

use std::collections::HashSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use malformed::{Case, Expected, On};
use mutator::{INPUT_BYTES_MAX, Random, mutate};
use tidegate::conn::carry::HeadCarry;
use tidegate::conn::connection::{Kinds, ReceiveLimits};
use tidegate::limits::{MESSAGE_BYTES_MAX, STASH_BYTES};
use tidegate::wire::frame::Reserved;
use tidegate::wire::upgrade::{self, Endpoint, Origins, Policy, Refusal};
use tidegate::wire::violation::Violation;
use websocket::{Seen, receive};

/// Every case of the table gets its documented answer, at once and byte by byte.
#[test]
fn every_malformed_input_gets_its_documented_answer() {
    for case in malformed::cases() {
        for chunk in [usize::MAX, 1, 7, 4096] {
            assert_eq!(answer(&case, chunk).0, case.expected, "{} in chunks of {chunk}", case.name);
        }
    }
}

/// The table leaves out no rule that a client can break: only what a server does, and what depends on time, load or settings, as
/// compression does.
#[test]
fn the_table_breaks_every_rule() {
    let reached: HashSet<String> = malformed::cases().iter().filter_map(|case| answer(case, usize::MAX).1).collect();
    let elsewhere = [Refusal::HeadTimeout, Refusal::RateLimited, Refusal::Overloaded];
    for rule in Violation::ALL.into_iter().filter(|rule| !matches!(rule, Violation::Masked | Violation::DeflateInvalid)) {
        assert!(reached.contains(rule.name()), "no case for {}", rule.name());
    }
    for refusal in Refusal::ALL.into_iter().filter(|refusal| !elsewhere.contains(refusal)) {
        assert!(reached.contains(refusal.name()), "no case for {}", refusal.name());
    }
}

#[test]
fn fuzz_upgrade() {
    fuzz("upgrade", targets::upgrade, &targets::UPGRADE_WORDS, cases(|on| on == On::Connect));
}

#[test]
fn fuzz_proxy() {
    fuzz("proxy", targets::proxy, &targets::PROXY_WORDS, Vec::new());
}

#[test]
fn fuzz_frame_message() {
    fuzz("frame", targets::frame_message, &targets::FRAME_WORDS, cases(|on| on != On::Connect));
}

#[test]
fn fuzz_deflate() {
    fuzz("deflate", targets::deflate, &targets::DEFLATE_WORDS, vec![targets::deflate_seed()]);
}

#[test]
fn fuzz_binary_codec() {
    fuzz("binary", inner::binary, &inner::BINARY_WORDS, Vec::new());
}

#[test]
fn fuzz_json_codec() {
    fuzz("json", inner::json, &inner::JSON_WORDS, Vec::new());
}

#[test]
fn fuzz_token() {
    fuzz("token", inner::token, &inner::TOKEN_WORDS, inner::token_seeds());
}

#[test]
fn fuzz_configuration() {
    fuzz("configuration", inner::configuration, &inner::CONFIGURATION_WORDS, inner::configuration_seeds());
}

#[test]
fn fuzz_log_replay() {
    fuzz("log", inner::log_replay, &inner::LOG_WORDS, inner::log_seeds());
}

/// Cases of the table as inputs of the first two targets, with settings in front.
fn cases(is_meant: fn(On) -> bool) -> Vec<Vec<u8>> {
    let cases = malformed::cases().into_iter().filter(|case| is_meant(case.on));
    cases.map(|case| [&[0, 2, 10, 200][..], &case.bytes].concat()).collect()
}

/// What the pure parts answer, and the name of the rule behind it.
fn answer(case: &Case, chunk: usize) -> (Expected, Option<String>) {
    let kinds = match case.on {
        On::Connect => return answer_to_request(&case.bytes, chunk),
        On::Binary => Kinds::Binary,
        On::Json => Kinds::Text,
    };
    let limits = ReceiveLimits { message_bytes_max: MESSAGE_BYTES_MAX, kinds, reserved: Reserved::None };
    let seen = receive(&case.bytes, &[chunk], limits, STASH_BYTES.most);
    match seen.as_slice() {
        [] | [Seen::Pong(_)] => (Expected::Silence, None),
        [Seen::Broken(rule)] => (Expected::Close(rule.close_code()), Some(rule.name().to_owned())),
        other => panic!("{}: {other:?}", case.name),
    }
}

fn answer_to_request(bytes: &[u8], chunk: usize) -> (Expected, Option<String>) {
    let nobody = Origins::Listed { configured: &[], own: &[] };
    let policy = Policy { path: "/ws", endpoint: Endpoint::Gateway, origins: nobody, deflate: false };
    let mut carry = HeadCarry::default();
    for piece in bytes.chunks(chunk) {
        let judged = match carry.push(piece) {
            Ok(None) => continue,
            Ok(Some(head)) => upgrade::parse(head.bytes, &policy).map(|_| ()),
            Err(refusal) => Err(refusal),
        };
        return match judged {
            Ok(()) => (Expected::Status(101), None),
            Err(refusal) => (Expected::Status(refusal.status()), Some(refusal.name().to_owned())),
        };
    }
    (Expected::Silence, None)
}

/// Runs a target over its corpus, then over mutations until the time is up. Ends with one line of what came of it.
///
/// A finding ends the short form. A campaign goes on until it has [`FINDINGS_MAX`], and fails at its end.
fn fuzz(name: &str, target: fn(&[u8]) -> u64, words: &[&[u8]], seeds: Vec<Vec<u8>>) {
    let budget = Budget::of_run();
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").subsec_nanos();
    let seed: u64 = env("TIDEGATE_FUZZ_SEED").unwrap_or(u64::from(clock));
    let mut pool = corpus(name);
    let corpus_count = pool.len();
    assert!(corpus_count > 0, "the corpus of {name} is missing");
    pool.extend(seeds.into_iter().filter(|bytes| bytes.len() <= INPUT_BYTES_MAX));
    println!("fuzz {name}: seed {seed}, {corpus_count} corpus files and {} seeds", pool.len() - corpus_count);

    let findings_max = if budget.is_cpu { FINDINGS_MAX } else { 1 };
    let mut tally = Tally { name, inputs_count: 0, kinds: HashSet::new(), findings: Vec::new() };
    for input in &pool {
        tally.run(target, input);
    }
    let mut random = Random(seed);
    let mut told_s = 0;
    loop {
        let spent_s = budget.spent_s();
        if spent_s >= budget.seconds || tally.findings.len() >= findings_max {
            tally.tell("ended", spent_s, budget.is_cpu);
            break;
        }
        if spent_s >= told_s + TELL_EVERY_S {
            told_s = spent_s;
            tally.tell("so far", spent_s, budget.is_cpu);
        }
        for _ in 0..INPUTS_PER_LOOK {
            let input = mutate(&mut random, &pool, words);
            if tally.run(target, &input) && pool.len() < POOL_MAX {
                pool.push(input);
            }
        }
    }
    assert!(tally.findings.is_empty(), "{name}: {}", tally.findings.join("; "));
}

/// What came of a target until now.
struct Tally<'a> {
    name: &'a str,
    inputs_count: u64,
    kinds: HashSet<u64>,
    /// What was found, and where the input is saved.
    findings: Vec<String>,
}

impl Tally<'_> {
    /// Runs one input; `true` if something new happened. An input that panics or takes too long is saved. One that seems to take too long is
    /// run once more, and then only its time on the CPU counts: this program may have been stopped meanwhile.
    fn run(&mut self, target: fn(&[u8]) -> u64, input: &[u8]) -> bool {
        self.inputs_count += 1;
        let started = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| target(input)));
        let slow = started.elapsed() > INPUT_TIME_MAX && {
            let before = thread_cpu_ns();
            let _ = catch_unwind(AssertUnwindSafe(|| target(input)));
            Duration::from_nanos(thread_cpu_ns() - before) > INPUT_TIME_MAX
        };
        match outcome {
            Ok(kind) if !slow => self.kinds.insert(kind),
            _ => {
                let number = self.findings.len();
                let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{number}-{}.bin", self.name, input.len()));
                fs::write(&path, input).expect("the failing input is saved");
                let why = if slow { "took too long" } else { "broke a promise" };
                self.findings.push(format!("an input of {} bytes {why}; it is saved as {}", input.len(), path.display()));
                false
            }
        }
    }

    /// The line that `tests/fuzz/README.md` keeps for a campaign.
    fn tell(&self, when: &str, spent_s: u64, is_cpu: bool) {
        let unit = if is_cpu { "s of CPU" } else { "s" };
        let Self { name, inputs_count, kinds, findings } = self;
        println!(
            "fuzz {name}: {when}: {spent_s} {unit}, {inputs_count} inputs, {} behaviours, {} found",
            kinds.len(),
            findings.len()
        );
    }
}

/// How long a target is fuzzed.
struct Budget {
    seconds: u64,
    /// Seconds of CPU of this thread, not of the clock on the wall.
    is_cpu: bool,
    started: Instant,
    started_cpu_ns: u64,
}

impl Budget {
    fn of_run() -> Self {
        let cpu = env("TIDEGATE_FUZZ_CPU_SECONDS");
        Self {
            seconds: cpu.or_else(|| env("TIDEGATE_FUZZ_SECONDS")).unwrap_or(2),
            is_cpu: cpu.is_some(),
            started: Instant::now(),
            started_cpu_ns: thread_cpu_ns(),
        }
    }

    fn spent_s(&self) -> u64 {
        if self.is_cpu { (thread_cpu_ns() - self.started_cpu_ns) / 1_000_000_000 } else { self.started.elapsed().as_secs() }
    }
}

/// What this thread has used of a CPU, nanoseconds.
fn thread_cpu_ns() -> u64 {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").expect("schedstat of a thread");
    stat.split(' ').next().and_then(|spent| spent.parse().ok()).expect("nanoseconds on the CPU")
}

/// The files of a corpus, in the order of their names.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
    let mut paths: Vec<_> = fs::read_dir(&folder).expect("a corpus").map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).expect("a corpus file")).collect()
}

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")))
}

/// Inputs kept for changing further. Full: new kinds of outcome are still counted, not kept.
const POOL_MAX: usize = 4096;

/// Findings after which a campaign ends early.
const FINDINGS_MAX: usize = 8;

/// Inputs between two looks at the clock.
const INPUTS_PER_LOOK: usize = 256;

/// How often a campaign tells how far it is, in its own seconds.
const TELL_EVERY_S: u64 = 300;

/// Time one input may take: far above what the largest needs on a busy machine.
const INPUT_TIME_MAX: Duration = Duration::from_secs(5);
