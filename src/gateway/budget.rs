//! The budget of memory: main adds up what every thread publishes, and says what is given up.

use std::sync::Arc;
use std::time::Instant;

use crate::limits::{
    LOADED_CONVERSATION_BYTES, PRESSURE_NEWCOMERS_MAX, PRESSURE_UNCOUNTED_PERCENT, RECENT_CMID_BYTES, STORE_WORKING_BYTES,
};
use crate::mailbox::Credit;
use crate::observe::counters::{ReactorBlock, StoreBlock};
use crate::observe::pressure::{Level, Pressure, relieved_bytes};

/// What is added up, and who is told.
pub(super) struct Budget {
    pub(super) pressure: Arc<Pressure>,
    pub(super) reactors: Vec<Arc<ReactorBlock>>,
    pub(super) store: Arc<StoreBlock>,
    /// Since when newcomers are refused.
    pub(super) short_since: Option<Instant>,
    /// Of bodies on their way to the store, and how much it was full.
    pub(super) credit: Credit,
    pub(super) credit_bytes: u64,
    /// What the process holds that nobody counts: the program, stacks, tables of fixed size, and what the store uses in passing.
    pub(super) fixed_bytes: u64,
    /// What the kernel says that the process holds.
    pub(super) resident_bytes: fn() -> u64,
}

impl Budget {
    /// Takes what is resident and not accounted for as what it always holds. To be called before clients come.
    pub(super) fn begin(&mut self) {
        self.fixed_bytes = (self.resident_bytes)().saturating_sub(self.counted_bytes()) + STORE_WORKING_BYTES;
        self.check();
    }

    /// Warns of a budget that leaves little to clients.
    pub(super) fn check(&self) {
        let (budget_bytes, fixed_bytes) = (self.pressure.budget_bytes(), self.fixed_bytes);
        if fixed_bytes > budget_bytes / 2 {
            tracing::warn!(fixed_bytes, budget_bytes, "the gateway alone takes more than half of limits.memory_bytes: raise it");
        }
    }

    /// Adds up, sets the level, and asks the cores for what is too much.
    pub(super) fn judge(&mut self, now: Instant) {
        // A core that has not paid yet still shows what it is about to give up.
        if self.pressure.is_owed() {
            return;
        }
        let budget_bytes = self.pressure.budget_bytes();
        let before = self.pressure.level();
        let used_bytes = used_bytes(before, self.fixed_bytes + self.counted_bytes(), budget_bytes, self.resident_bytes);
        let level = self.pressure.judge(used_bytes);
        self.short_since = self.short_since.filter(|_| level >= Level::Newcomers).or((level >= Level::Newcomers).then_some(now));
        let is_short_for_long = self.short_since.is_some_and(|since| now - since >= PRESSURE_NEWCOMERS_MAX);
        if level == Level::Readers || is_short_for_long {
            self.ask(used_bytes.saturating_sub(relieved_bytes(budget_bytes)));
        }
        if level == before {
            return;
        }
        let sheds = match level {
            Level::Calm => "nothing",
            Level::Signals => "signals and presence",
            Level::Newcomers => "signals, presence and newcomers",
            Level::Readers => "signals, presence, newcomers and the slowest readers",
        };
        if level > before {
            tracing::warn!(level = level as u8, used_bytes, budget_bytes, "memory is short; given up: {sheds}");
        } else {
            tracing::info!(level = level as u8, used_bytes, budget_bytes, "memory is less short; given up: {sheds}");
        }
    }

    /// Each core is asked for its part of what queues and windows hold.
    fn ask(&self, bytes: u64) {
        let kept = |block: &ReactorBlock| value(block, "queued_bytes") + value(block, "held_bytes");
        let all: u64 = self.reactors.iter().map(|block| kept(block)).sum();
        for (core, block) in self.reactors.iter().enumerate() {
            let part = u128::from(bytes) * u128::from(kept(block)) / u128::from(all.max(1));
            self.pressure.ask(core, u64::try_from(part).unwrap_or(u64::MAX));
        }
    }

    fn counted_bytes(&self) -> u64 {
        let reactors: u64 = self.reactors.iter().map(|block| value(block, "memory_bytes")).sum();
        let of = |name| self.store.value(name).expect("a gauge of the store");
        // Rows of tables take half as much again in memory.
        let engine = of("engine_cache_bytes") + of("engine_tables_bytes") / 2 * 3 + of("project_backlog_bytes");
        let state = of("recent_cmids_open") * RECENT_CMID_BYTES + of("conversations_loaded_open") * LOADED_CONVERSATION_BYTES;
        reactors + engine + state + self.credit_bytes - self.credit.left().min(self.credit_bytes)
    }
}

/// What is in use: the account or, where that is more, what is resident, up to [`PRESSURE_UNCOUNTED_PERCENT`] of the budget beyond the
/// account. Asks what is resident only if memory could be short: it costs some 12 µs.
fn used_bytes(level: Level, accounted_bytes: u64, budget_bytes: u64, resident_bytes: impl FnOnce() -> u64) -> u64 {
    let most_bytes = accounted_bytes.saturating_add(budget_bytes / 100 * PRESSURE_UNCOUNTED_PERCENT);
    if level.next(most_bytes, budget_bytes) == Level::Calm {
        return accounted_bytes;
    }
    resident_bytes().clamp(accounted_bytes, most_bytes)
}

fn value(block: &ReactorBlock, name: &str) -> u64 {
    block.value(name).expect("a gauge of a reactor")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::observe::counters::{ReactorCounters, StoreCounters};

    fn budget(reactor: ReactorCounters, store: StoreCounters) -> Budget {
        let budget = Budget {
            pressure: Arc::new(Pressure::new(1_000, 1)),
            reactors: vec![Arc::default()],
            store: Arc::default(),
            short_since: None,
            credit: Credit::new(1),
            credit_bytes: 1,
            fixed_bytes: 0,
            resident_bytes: || 0,
        };
        budget.reactors[0].publish(&reactor);
        budget.store.publish(&store);
        budget
    }

    /// What is resident counts where the account is less, but not without end; with plenty of room nobody looks.
    #[test]
    fn what_nobody_accounts_for_counts_within_bounds() {
        let cases = [
            (600, 0, 600),
            (750, 0, 750),
            (750, 780, 780),
            (750, 2_000, 850),
            (950, 940, 950),
            (950, 1_000, 1_000),
            (950, 2_000, 1_050),
        ];
        for (accounted, resident, used) in cases {
            assert_eq!(
                used_bytes(Level::Calm, accounted, 1_000, || resident),
                used,
                "{accounted} accounted for, {resident} resident"
            );
        }
        used_bytes(Level::Calm, 699, 1_000, || unreachable!("there is plenty"));
        used_bytes(Level::Readers, 649, 1_000, || unreachable!("there is plenty"));
        assert_eq!(used_bytes(Level::Signals, 650, 1_000, || 2_000), 750, "a swing of the account changes no level");
    }

    /// The level follows what is resident where the account is less.
    #[test]
    fn what_is_resident_sets_the_level() {
        let reactor = ReactorCounters { memory_bytes: 780, ..ReactorCounters::default() };
        let mut budget = budget(reactor, StoreCounters::default());
        let cases: [(fn() -> u64, Level); 3] = [(|| 0, Level::Calm), (|| 870, Level::Signals), (|| 2_000, Level::Signals)];
        for (resident_bytes, level) in cases {
            budget.resident_bytes = resident_bytes;
            budget.judge(Instant::now());
            assert_eq!(budget.pressure.level(), level, "{}", budget.pressure.used_bytes());
        }
        assert_eq!(budget.pressure.used_bytes(), 880);
    }

    /// As long as memory is short but not at its end, newcomers are refused and readers left alone; but not for ever.
    #[test]
    fn newcomers_are_not_refused_for_ever() {
        let reactor = ReactorCounters { memory_bytes: 920, held_bytes: 600, ..ReactorCounters::default() };
        let mut budget = budget(reactor, StoreCounters::default());
        let begun = Instant::now();
        for seconds in [0, 1, 9] {
            budget.judge(begun + Duration::from_secs(seconds));
            assert_eq!((budget.pressure.level(), budget.pressure.is_owed()), (Level::Newcomers, false), "{seconds}");
        }
        budget.judge(begun + PRESSURE_NEWCOMERS_MAX);
        assert_eq!(budget.pressure.owed(0), 80, "until newcomers have room again");
        // It begins anew once there was room.
        budget.pressure.paid(0);
        for (memory_bytes, seconds) in [(840, 11), (920, 12), (920, 21)] {
            budget.reactors[0].publish(&ReactorCounters { memory_bytes, held_bytes: 600, ..ReactorCounters::default() });
            budget.judge(begun + Duration::from_secs(seconds));
            assert!(!budget.pressure.is_owed(), "{seconds}");
        }
    }
}
