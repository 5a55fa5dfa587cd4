//! The budget of memory: main adds up what every thread publishes, and says what is given up.

use std::sync::Arc;

use crate::limits::{LOADED_CONVERSATION_BYTES, RECENT_CMID_BYTES, STORE_WORKING_BYTES};
use crate::mailbox::Credit;
use crate::observe::counters::{ReactorBlock, StoreBlock};
use crate::observe::metrics::resident_bytes;
use crate::observe::pressure::{Level, Pressure, relieved_bytes};

/// What is added up, and who is told.
pub(super) struct Budget {
    pub(super) pressure: Arc<Pressure>,
    pub(super) reactors: Vec<Arc<ReactorBlock>>,
    pub(super) store: Arc<StoreBlock>,
    /// Of bodies on their way to the store, and how much it was full.
    pub(super) credit: Credit,
    pub(super) credit_bytes: u64,
    /// What the process holds that nobody counts: the program, stacks, tables of fixed size, and what the store uses in passing.
    pub(super) fixed_bytes: u64,
}

impl Budget {
    /// Takes what is resident and not accounted for as what it always holds. To be called before clients come.
    pub(super) fn begin(&mut self) {
        self.fixed_bytes = resident_bytes().saturating_sub(self.counted_bytes()) + STORE_WORKING_BYTES;
        let (budget_bytes, fixed_bytes) = (self.pressure.budget_bytes(), self.fixed_bytes);
        if fixed_bytes > budget_bytes / 2 {
            tracing::warn!(fixed_bytes, budget_bytes, "the gateway alone takes more than half of limits.memory_bytes: raise it");
        }
    }

    /// Adds up, sets the level, and asks the cores for what is too much.
    pub(super) fn judge(&mut self) {
        // A core that has not paid yet still shows what it is about to give up.
        if self.pressure.is_owed() {
            return;
        }
        let (used_bytes, budget_bytes) = (self.fixed_bytes + self.counted_bytes(), self.pressure.budget_bytes());
        let before = self.pressure.level();
        let level = self.pressure.judge(used_bytes);
        if level == Level::Readers {
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

fn value(block: &ReactorBlock, name: &str) -> u64 {
    block.value(name).expect("a gauge of a reactor")
}
