//! This machine as a whole: what its kernel holds and how busy it is.

use std::collections::BTreeMap;
use std::fs;

use crate::subject::Process;

/// What the kernel says at a moment.
#[derive(Clone, Default, Debug)]
pub struct Kernel {
    /// Bytes of each slab cache, if this process may read them.
    pub caches: BTreeMap<String, u64>,
    /// Bytes of all slabs.
    pub slab_bytes: u64,
    /// Bytes that could be given to a new process.
    pub available_bytes: u64,
    /// CPU seconds in which some core was not idle, all cores together.
    pub busy_s: f64,
}

impl Kernel {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let memory = read("/proc/meminfo");
        let busy_ticks = busy_ticks(&read("/proc/stat"));
        Self {
            caches: caches(&read("/proc/slabinfo")),
            slab_bytes: kib(&memory, "Slab:").unwrap_or(0) * 1024,
            available_bytes: kib(&memory, "MemAvailable:").unwrap_or(0) * 1024,
            // `USER_HZ`, which Linux shows to user space as 100.
            busy_s: busy_ticks as f64 / 100.0,
        }
    }

    /// How much more each cache holds than `before`, divided by `count`, of those that matter.
    #[must_use]
    pub fn grown(&self, before: &Self, count: usize) -> BTreeMap<String, f64> {
        let grown = |(name, &bytes): (&String, &u64)| {
            let more = bytes.saturating_sub(before.caches.get(name).copied().unwrap_or(0)) as f64 / count.max(1) as f64;
            (more >= 1.0).then(|| (name.clone(), (more * 10.0).round() / 10.0))
        };
        self.caches.iter().filter_map(grown).collect()
    }
}

impl Process {
    /// Proportional bytes: its own pages, and its share of those it shares.
    #[must_use]
    pub fn proportional_bytes(self) -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.0)).ok()?;
        Some(kib(&text, "Pss:")? * 1024)
    }
}

fn kib(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.trim().parse().ok())
}

/// Bytes by cache out of `/proc/slabinfo`: slabs times pages of a slab.
fn caches(text: &str) -> BTreeMap<String, u64> {
    let parse = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let pages: u64 = words.get(5)?.parse().ok()?;
        let slabs: u64 = words.get(14)?.parse().ok()?;
        Some((words[0].to_owned(), slabs * pages * PAGE_BYTES))
    };
    text.lines().filter_map(parse).collect()
}

/// Ticks of the first line of `/proc/stat` that are neither idle nor waiting for a disk; guests are part of user.
fn busy_ticks(text: &str) -> u64 {
    let line = text.lines().next().unwrap_or_default();
    let ticks = line.split_ascii_whitespace().skip(1).take(8).map(|word| word.parse().unwrap_or(0));
    ticks.enumerate().filter(|(at, _)| ![3, 4].contains(at)).map(|(_, ticks): (usize, u64)| ticks).sum()
}

const PAGE_BYTES: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    /// A cache is as large as its slabs; heads and totals are no caches; growth is per connection, and trifles are left out.
    #[test]
    fn caches_are_read() {
        let text = "slabinfo - version: 2.1\n# name <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables\n\
                    TCP 104 117 2432 13 8 : tunables 0 0 0 : slabdata 9 9 0\nfilp 1 1 192 21 1 : tunables 0 0 0 : slabdata 1 1 0\n";
        let caches = caches(text);
        assert_eq!(
            caches.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect::<Vec<_>>(),
            [("TCP", 9 * 8 * 4096), ("filp", 4096)]
        );
        let now = Kernel { caches, ..Kernel::default() };
        assert_eq!(now.grown(&Kernel::default(), 10_000).into_iter().collect::<Vec<_>>(), [("TCP".to_owned(), 29.5)]);
    }

    /// Idle and waiting are not busy.
    #[test]
    fn busy_is_what_is_not_idle() {
        assert_eq!(busy_ticks("cpu  10 1 20 1000 500 0 3 4 0 0\ncpu0 1 1 1 1\n"), 38);
        let now = Kernel::now();
        assert!(now.slab_bytes > 0 && now.available_bytes > 0 && now.busy_s > 0.0);
        assert!(Process::own().proportional_bytes().is_some_and(|bytes| bytes > 0));
    }
}
