//! How near the process is to its budget of memory: one level for all threads, and what each core is to give up.
//!
//! Main adds up what the threads publish and sets the level ([`Pressure::judge`]); a core looks at it once a turn. What a core owes stays
//! until it has been paid and the counters that show it are published, so that nothing is asked for twice.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::limits::{PRESSURE_NEWCOMERS_PERCENT, PRESSURE_READERS_PERCENT, PRESSURE_RELIEF_PERCENT, PRESSURE_SIGNALS_PERCENT};

/// What is given up. Each level gives up what those before it do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
#[repr(u8)]
pub enum Level {
    /// Nothing.
    #[default]
    Calm,
    /// What is said at most once: signals, presence, receipts.
    Signals,
    /// New connections.
    Newcomers,
    /// The slowest readers.
    Readers,
}

impl Level {
    const ALL: [Self; 4] = [Self::Calm, Self::Signals, Self::Newcomers, Self::Readers];

    /// Part of the budget in use from which it holds, percent.
    const fn percent(self) -> u64 {
        match self {
            Self::Calm => 0,
            Self::Signals => PRESSURE_SIGNALS_PERCENT,
            Self::Newcomers => PRESSURE_NEWCOMERS_PERCENT,
            Self::Readers => PRESSURE_READERS_PERCENT,
        }
    }

    /// The level that follows: up as soon as its part is in use, down only below it by [`PRESSURE_RELIEF_PERCENT`].
    #[must_use]
    pub fn next(self, used_bytes: u64, budget_bytes: u64) -> Self {
        let percent = used_bytes.saturating_mul(100) / budget_bytes.max(1);
        let reached = |margin: u64| *Self::ALL.iter().rfind(|level| percent + margin >= level.percent()).expect("0 is reached");
        reached(0).max(self.min(reached(PRESSURE_RELIEF_PERCENT)))
    }
}

/// Bytes in use at which no more readers are closed: newcomers have room again, those who come back among them.
#[must_use]
pub fn relieved_bytes(budget_bytes: u64) -> u64 {
    budget_bytes / 100 * (PRESSURE_NEWCOMERS_PERCENT - PRESSURE_RELIEF_PERCENT - 1)
}

/// Shared by main, which writes it, and all cores.
#[derive(Debug)]
pub struct Pressure {
    budget_bytes: AtomicU64,
    used_bytes: AtomicU64,
    level: AtomicU8,
    owed: Vec<Owed>,
}

/// On a line of its own, since its core looks at it in every turn.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Owed(AtomicU64);

impl Pressure {
    /// Nothing is in use.
    #[must_use]
    pub fn new(budget_bytes: u64, cores: usize) -> Self {
        let owed = (0..cores).map(|_| Owed::default()).collect();
        Self { budget_bytes: AtomicU64::new(budget_bytes), used_bytes: AtomicU64::new(0), level: AtomicU8::new(0), owed }
    }

    /// Bytes the process may hold.
    #[must_use]
    pub fn budget_bytes(&self) -> u64 {
        self.budget_bytes.load(Ordering::Relaxed)
    }

    /// Another budget from now on. Called by main alone.
    pub fn set_budget(&self, budget_bytes: u64) {
        self.budget_bytes.store(budget_bytes, Ordering::Relaxed);
    }

    /// Bytes it was last seen to hold.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    /// What is given up now.
    #[must_use]
    pub fn level(&self) -> Level {
        Level::ALL[usize::from(self.level.load(Ordering::Relaxed))]
    }

    /// Sets the level for so many bytes in use; returns it. Called by main alone.
    pub fn judge(&self, used_bytes: u64) -> Level {
        let level = self.level().next(used_bytes, self.budget_bytes());
        self.used_bytes.store(used_bytes, Ordering::Relaxed);
        self.level.store(level as u8, Ordering::Relaxed);
        level
    }

    /// Whether some core has not paid what it was last asked for: its counters may show it still.
    #[must_use]
    pub fn is_owed(&self) -> bool {
        self.owed.iter().any(|owed| owed.0.load(Ordering::Acquire) > 0)
    }

    /// Asks a core for so many bytes.
    pub fn ask(&self, core: usize, bytes: u64) {
        self.owed[core].0.store(bytes, Ordering::Relaxed);
    }

    /// What a core is asked for.
    #[must_use]
    pub fn owed(&self, core: usize) -> u64 {
        self.owed[core].0.load(Ordering::Relaxed)
    }

    /// A core has given up what it could, and published what it holds now.
    pub fn paid(&self, core: usize) {
        self.owed[core].0.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Levels come in order, at once, and go only with some room: a load that swings around a threshold does not switch at every swing.
    #[test]
    fn levels_come_at_once_and_go_with_room() {
        let pressure = Pressure::new(1_000, 1);
        let steps = [
            (799, Level::Calm),
            (800, Level::Signals),
            (760, Level::Signals),
            (740, Level::Calm),
            (900, Level::Newcomers),
            (850, Level::Newcomers),
            (849, Level::Signals),
            (2_000, Level::Readers),
            (910, Level::Readers),
            (909, Level::Newcomers),
            (0, Level::Calm),
        ];
        for (used, expected) in steps {
            assert_eq!((pressure.judge(used), pressure.level(), pressure.used_bytes()), (expected, expected, used));
        }
        assert_eq!((relieved_bytes(1_000), Level::Readers.next(840, 1_000)), (840, Level::Signals), "newcomers come in again");
        assert_eq!(Level::Calm.next(1, 0), Level::Readers, "no budget at all");
        pressure.judge(920);
        pressure.set_budget(2_000);
        assert_eq!((pressure.judge(920), pressure.budget_bytes()), (Level::Calm, 2_000), "it was raised");
    }

    /// What a core is asked for stays until it has paid.
    #[test]
    fn what_is_owed_is_asked_once() {
        let pressure = Pressure::new(1_000, 2);
        pressure.ask(1, 70);
        assert_eq!((pressure.owed(0), pressure.owed(1), pressure.is_owed()), (0, 70, true));
        pressure.paid(1);
        assert_eq!((pressure.owed(1), pressure.is_owed()), (0, false));
    }
}
