//! What limits are that nobody set: worked out from the memory and the open files of the machine.
//!
//! ```text
//!  memory ─► limits.memory_bytes ─┬─► connections_max ◄── open files
//!                                 ├─► handshakes_max, accept_per_s ─► accept_burst
//!                                 ├─► queue_bytes_max
//!                                 └─► store.cache_bytes
//! ```
//!
//! What is set stays as it is, and is told where it does not fit.

use super::settings::{LimitSettings, Settings};
use crate::limits::{
    ACCEPTS_PER_SECOND_MAX, ACCEPTS_PER_SECOND_MIN, CACHE_BYTES_MAX, CONNECTION_BYTES, CONNECTION_TLS_BYTES, HANDSHAKE_BYTES,
    HANDSHAKES_MAX, HANDSHAKES_MIN, QUEUE_BYTES_MIN,
};

/// What there is to share out.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Memory in bytes, and what the kernel calls it.
    pub memory: (u64, &'static str),
    /// Threads that carry connections.
    pub reactors: u64,
    /// Those of them that newcomers come to at a time.
    pub taking: u64,
    /// Connections that the limit of open files lets all tables hold.
    pub connections_by_files: u64,
}

/// A limit that was worked out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Derived {
    /// Which.
    pub key: &'static str,
    /// What it is.
    pub value: u64,
    /// From what.
    pub from: String,
}

/// What an operator is shown.
#[derive(Clone, Debug)]
pub struct InForce {
    /// The settings as they were given.
    pub settings: Settings,
    /// Limits that were worked out because they were not set.
    pub derived: Vec<Derived>,
}

/// Gives every limit of `settings` that is not set a value. Returns those, and a sentence for each that is set and does not fit.
pub fn fill(settings: &mut Settings, machine: Machine) -> (Vec<Derived>, Vec<String>) {
    let has_tls = settings.tls.listen.is_some();
    let queue_least = u64::from(settings.limits.queue_bytes_hard) * machine.reactors;
    let limits = &mut settings.limits;
    let warnings = misfits(limits, machine, has_tls);
    let mut filled = Vec::new();
    let mut fill = |key, value: u64, from: String| {
        filled.push(Derived { key, value, from });
        value
    };
    let (memory, name) = machine.memory;
    let budget = match limits.memory_bytes {
        Some(set) => set,
        None => fill("limits.memory_bytes", memory / 2, format!("half of {}, {name}", mib(memory))),
    };
    limits.memory_bytes = Some(budget);
    if limits.connections_max == 0 {
        let (by_memory, each) = connections_by_memory(budget, has_tls);
        let from = if by_memory < machine.connections_by_files {
            format!(
                "half of limits.memory_bytes at {each} bytes each; the open files would do for {}",
                machine.connections_by_files
            )
        } else {
            format!("the limit of open files; limits.memory_bytes would do for {by_memory}")
        };
        let value = fill("limits.connections_max", by_memory.min(machine.connections_by_files), from);
        limits.connections_max = u32::try_from(value).unwrap_or(u32::MAX);
    }
    let by_memory = budget / HANDSHAKES_PART / HANDSHAKE_BYTES / machine.taking;
    let part = format!("1/{HANDSHAKES_PART} of limits.memory_bytes at {HANDSHAKE_BYTES} bytes each");
    if limits.handshakes_max.is_none() {
        let by_connections = u64::from(limits.connections_max) / CONNECTIONS_PER_HANDSHAKE;
        let value = by_memory.min(by_connections).clamp(HANDSHAKES_MIN.into(), HANDSHAKES_MAX.into());
        let from = format!(
            "{part} and reactor, and 1/{CONNECTIONS_PER_HANDSHAKE} of limits.connections_max; {HANDSHAKES_MIN} to {HANDSHAKES_MAX}"
        );
        limits.handshakes_max = u32::try_from(fill("limits.handshakes_max", value, from)).ok();
    }
    if limits.accept_per_s.is_none() {
        let each = (2 * by_memory).clamp(ACCEPTS_PER_SECOND_MIN.into(), ACCEPTS_PER_SECOND_MAX.into());
        let value = (each * machine.taking).min(RATE_MAX);
        let from = format!(
            "twice {part} and reactor, every second, {ACCEPTS_PER_SECOND_MIN} to {ACCEPTS_PER_SECOND_MAX}; for {} reactors",
            machine.taking
        );
        limits.accept_per_s = u32::try_from(fill("limits.accept_per_s", value, from)).ok();
    }
    if limits.accept_burst.is_none() {
        let per_second = limits.accept_per_s.filter(|&rate| rate > 0).unwrap_or(ACCEPTS_PER_SECOND_MAX);
        let value = u64::from(per_second) / ACCEPTS_PER_BURST;
        let from = format!("1/{ACCEPTS_PER_BURST} of limits.accept_per_s");
        limits.accept_burst = u32::try_from(fill("limits.accept_burst", value.clamp(1, RATE_MAX), from)).ok();
    }
    if limits.queue_bytes_max.is_none() {
        let least = queue_least.max(QUEUE_BYTES_MIN);
        let from = format!("1/{QUEUES_PART} of limits.memory_bytes, at least {}", mib(least));
        limits.queue_bytes_max = Some(fill("limits.queue_bytes_max", (budget / QUEUES_PART).max(least), from));
    }
    if settings.store.cache_bytes.is_none() {
        let from = format!("1/{CACHE_PART} of limits.memory_bytes, at most {}", mib(CACHE_BYTES_MAX));
        settings.store.cache_bytes = Some(fill("store.cache_bytes", (budget / CACHE_PART).min(CACHE_BYTES_MAX), from));
    }
    (filled, warnings)
}

/// Connections for which half of so much memory is enough, and what each is reckoned at.
fn connections_by_memory(budget: u64, has_tls: bool) -> (u64, u64) {
    let each = if has_tls { CONNECTION_TLS_BYTES } else { CONNECTION_BYTES };
    ((budget / 2 / each).max(1), each)
}

/// What was set and asks for more than there is.
fn misfits(limits: &LimitSettings, machine: Machine, has_tls: bool) -> Vec<String> {
    let (memory, name) = machine.memory;
    let budget = limits.memory_bytes.unwrap_or(memory / 2);
    let (connections, each) = connections_by_memory(budget, has_tls);
    let asked = u64::from(limits.connections_max);
    let handshakes = limits.handshakes_max.map_or(0, u64::from) * machine.taking * HANDSHAKE_BYTES;
    let queues = limits.queue_bytes_max.unwrap_or(0);
    let rows = [
        (budget > memory, format!("limits.memory_bytes is {}, and there are {} ({name}): lower it", mib(budget), mib(memory))),
        (
            asked > 2 * connections,
            format!(
                "limits.connections_max is {asked}; at {each} bytes each limits.memory_bytes, {}, is full before: lower it, or raise \
                 limits.memory_bytes to {}",
                mib(budget),
                mib(2 * asked * each)
            ),
        ),
        (
            handshakes > budget / 2,
            format!(
                "limits.handshakes_max lets handshakes take {} of limits.memory_bytes, {}: lower it",
                mib(handshakes),
                mib(budget)
            ),
        ),
        (queues > budget, format!("limits.queue_bytes_max is {}, more than limits.memory_bytes, {}", mib(queues), mib(budget))),
    ];
    rows.into_iter().filter_map(|(applies, text)| applies.then_some(text)).collect()
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1024 * 1024))
}

/// Handshakes may take one in so many bytes of the budget.
const HANDSHAKES_PART: u64 = 32;
/// One in so many connections may be in its handshake.
const CONNECTIONS_PER_HANDSHAKE: u64 = 4;
/// Newcomers of a second, at most.
const RATE_MAX: u64 = 1_000_000;
/// One in so many connections of a second may come at once: few, so that the rate is even when everybody comes back together, and more than
/// come between two turns of a reactor that has nothing else to do, which are 100 ms apart.
const ACCEPTS_PER_BURST: u64 = 5;
/// Queues and windows may take one in so many bytes of the budget, shared frames counted once per receiver.
const QUEUES_PART: u64 = 4;
/// Blocks read from disk may take one in so many bytes of the budget: nothing makes the cache smaller again.
const CACHE_PART: u64 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    fn filled(memory_mib: u64, files: u64, change: impl FnOnce(&mut Settings)) -> (LimitSettings, Vec<Derived>, Vec<String>) {
        let mut settings = Settings::default();
        change(&mut settings);
        let machine = Machine { memory: (memory_mib * MIB, "MemTotal"), reactors: 2, taking: 2, connections_by_files: files };
        let (derived, warnings) = fill(&mut settings, machine);
        (settings.limits, derived, warnings)
    }

    /// From a small container to a large server: each limit follows the scarcer of memory and open files, and stays within its bounds.
    #[test]
    fn limits_follow_the_machine() {
        // Memory in MiB, files; budget in MiB, connections, handshakes, accepts, burst, queues in MiB.
        for (memory, files, budget, expected) in [
            (128, 19_744, 64, (4_096, 64, 400, 80, 16)),
            (512, 19_744, 256, (16_384, 85, 400, 80, 64)),
            (4_096, 19_744, 2_048, (19_744, 682, 2_728, 545, 512)),
            (65_536, 1_048_320, 32_768, (1_048_320, 1_024, 4_000, 800, 8_192)),
            (65_536, 10_000_000, 32_768, (2_097_152, 1_024, 4_000, 800, 8_192)),
            (65_536, 300, 32_768, (300, 75, 4_000, 800, 8_192)),
        ] {
            let (limits, derived, warnings) = filled(memory, files, |_| {});
            let (connections, handshakes, accepts, burst, queues) = expected;
            assert_eq!(limits.memory_bytes, Some(budget * MIB));
            assert_eq!(limits.connections_max, connections, "{memory} {files}");
            assert_eq!((limits.handshakes_max, limits.accept_per_s), (Some(handshakes), Some(accepts)), "{memory} {files}");
            assert_eq!((limits.accept_burst, limits.queue_bytes_max), (Some(burst), Some(queues * MIB)), "{memory} {files}");
            assert_eq!((derived.len(), warnings.len()), (7, 0), "{derived:?} {warnings:?}");
        }
    }

    /// Each value says what it is from, and the scarcer of two is named.
    #[test]
    fn each_value_says_what_it_is_from() {
        let from = |files, key: &str| {
            let (_, derived, _) = filled(1_024, files, |_| {});
            derived.into_iter().find(|it| it.key == key).unwrap().from
        };
        assert_eq!(from(10, "limits.memory_bytes"), "half of 1024 MiB, MemTotal");
        assert_eq!(from(10, "limits.connections_max"), "the limit of open files; limits.memory_bytes would do for 32768");
        let by_memory = from(99_999, "limits.connections_max");
        assert!(by_memory.starts_with("half of limits.memory_bytes at 8192 bytes each; the open files would do for 99999"));
    }

    /// What is set stays; what follows from it follows the set value; TLS makes connections dearer.
    #[test]
    fn what_is_set_wins() {
        let (limits, derived, warnings) = filled(1_024, 99_999, |settings| {
            settings.limits.memory_bytes = Some(256 * MIB);
            settings.limits.handshakes_max = Some(7);
            settings.limits.accept_per_s = Some(0);
            settings.tls.listen = Some(([127, 0, 0, 1], 1).into());
        });
        assert_eq!((limits.memory_bytes, limits.handshakes_max, limits.accept_per_s), (Some(256 * MIB), Some(7), Some(0)));
        assert_eq!((limits.connections_max, limits.accept_burst, limits.queue_bytes_max), (10_922, Some(400), Some(64 * MIB)));
        assert_eq!((derived.len(), warnings.len()), (4, 0), "{derived:?} {warnings:?}");
    }

    /// Each limit that is set and does not fit is named with what to do, and kept.
    #[test]
    fn what_does_not_fit_is_told() {
        type Change = fn(&mut LimitSettings);
        let told: [(Change, &str); 4] = [
            (
                |limits| limits.memory_bytes = Some(2_048 * MIB),
                "limits.memory_bytes is 2048 MiB, and there are 1024 MiB (MemTotal): ",
            ),
            (|limits| limits.connections_max = 200_000, "limits.connections_max is 200000; at 8192 bytes each"),
            (|limits| limits.handshakes_max = Some(100_000), "limits.handshakes_max lets handshakes take"),
            (|limits| limits.queue_bytes_max = Some(1_024 * MIB), "limits.queue_bytes_max is 1024 MiB, more than"),
        ];
        for (change, expected) in told {
            let (_, _, warnings) = filled(1_024, 99_999, |settings| change(&mut settings.limits));
            assert_eq!(warnings.len(), 1, "{expected}: {warnings:?}");
            assert!(warnings[0].starts_with(expected), "{warnings:?}");
        }
    }
}
