//! What the threads of a process used of the cores, and how long they waited for one that was busy.
//!
//! `/proc/PID/task/TID/schedstat` has three numbers: nanoseconds on a core, nanoseconds of waiting for one while runnable, and how often
//! the thread was put on a core (Linux, Documentation/scheduler/sched-stats.rst).

use std::fs;
use std::path::Path;

/// What threads have used and waited for since they began.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct Times {
    /// Seconds on a core.
    pub cpu_s: f64,
    /// Seconds of being runnable while others ran.
    pub wait_s: f64,
    /// How often a wait for a core ended.
    pub slices: f64,
}

impl Times {
    /// Since `before`.
    pub fn since(self, before: Self) -> Self {
        Self { cpu_s: self.cpu_s - before.cpu_s, wait_s: self.wait_s - before.wait_s, slices: self.slices - before.slices }
    }

    /// Microseconds of waiting each time before it was put on a core.
    pub fn wait_us_mean(self) -> f64 {
        self.wait_s * 1e6 / self.slices.max(1.0)
    }

    fn add(&mut self, more: Self) {
        self.cpu_s += more.cpu_s;
        self.wait_s += more.wait_s;
        self.slices += more.slices;
    }

    /// Three numbers; `None` for anything else.
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split_ascii_whitespace().map(|word| word.parse::<u64>().ok());
        let (cpu, wait, slices) = (numbers.next()??, numbers.next()??, numbers.next()??);
        Some(Self { cpu_s: cpu as f64 / 1e9, wait_s: wait as f64 / 1e9, slices: slices as f64 })
    }

    fn read(path: &Path) -> Option<Self> {
        Self::parse(&fs::read_to_string(path).ok()?)
    }
}

/// Of each kind of thread of a process: names without their numbers, in order.
#[derive(Clone, Default, Debug)]
pub struct Kinds(pub Vec<(String, Times)>);

impl Kinds {
    /// Of the threads that live now. One that ends meanwhile is left out.
    ///
    /// # Errors
    /// The process is gone.
    pub fn of(pid: u32) -> Result<Self, String> {
        let path = format!("/proc/{pid}/task");
        let tasks = fs::read_dir(&path).map_err(|error| format!("{path}: {error}"))?;
        let mut kinds: Vec<(String, Times)> = Vec::new();
        for task in tasks.flatten().map(|task| task.path()) {
            let Ok(name) = fs::read_to_string(task.join("comm")) else { continue };
            let Some(times) = Times::read(&task.join("schedstat")) else { continue };
            let kind = name.trim_end().trim_end_matches(|c: char| c.is_ascii_digit() || c == '-' || c == ' ');
            match kinds.iter_mut().find(|(known, _)| known == kind) {
                Some((_, sum)) => sum.add(times),
                None => kinds.push((kind.to_owned(), times)),
            }
        }
        kinds.sort_by(|(left, _), (right, _)| left.cmp(right));
        Ok(Self(kinds))
    }

    /// All together.
    pub fn total(&self) -> Times {
        let mut total = Times::default();
        self.0.iter().for_each(|&(_, times)| total.add(times));
        total
    }

    /// Of each kind since `before`, without those that only waited for work.
    pub fn since(&self, before: &Self) -> Self {
        let earlier =
            |name: &str| before.0.iter().find(|(known, _)| known == name).map_or_else(Times::default, |&(_, times)| times);
        let since = self.0.iter().map(|(name, times)| (name.clone(), times.since(earlier(name))));
        Self(since.filter(|(_, times)| times.cpu_s > 0.0).collect())
    }
}

/// Of the calling thread.
///
/// # Errors
/// The kernel keeps no such statistics.
pub fn own() -> Result<Times, String> {
    let path = "/proc/thread-self/schedstat";
    Times::read(Path::new(path)).ok_or_else(|| format!("{path} cannot be read: a kernel with CONFIG_SCHED_INFO, please"))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Barrier};

    use super::*;

    /// Nanoseconds become seconds, threads of one kind are added up, and what happened before is not counted.
    #[test]
    fn times_are_of_what_was_added() {
        let times = Times::parse("2000000000 500000000 10\n").unwrap();
        assert_eq!(times, Times { cpu_s: 2.0, wait_s: 0.5, slices: 10.0 });
        assert_eq!(Times::parse("1 2\n"), None);
        assert!((times.wait_us_mean() - 50_000.0).abs() < 1e-6);
        let before = Kinds(vec![("store".to_owned(), times)]);
        let later = Times { cpu_s: 3.0, wait_s: 0.75, slices: 11.0 };
        let after =
            Kinds(vec![("reactor".to_owned(), times), ("store".to_owned(), later), ("zeros".to_owned(), Times::default())]);
        let since = after.since(&before);
        assert_eq!(since.0.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["reactor", "store"]);
        assert_eq!(since.total(), Times { cpu_s: 3.0, wait_s: 0.75, slices: 11.0 });
    }

    /// Threads whose names differ by a number alone are one kind.
    #[test]
    fn names_lose_their_numbers() {
        let barrier = Arc::new(Barrier::new(3));
        let spawn = |number: usize| {
            let barrier = barrier.clone();
            // Between the two it has its name, which a thread gives itself, and lives.
            let wait = move || (0..2).for_each(|_| _ = barrier.wait());
            std::thread::Builder::new().name(format!("counted-{number}")).spawn(wait).unwrap()
        };
        let threads: Vec<_> = (0..2).map(spawn).collect();
        barrier.wait();
        let kinds = Kinds::of(std::process::id()).unwrap();
        assert_eq!(kinds.0.iter().filter(|(name, _)| name.starts_with("counted")).count(), 1);
        barrier.wait();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}
