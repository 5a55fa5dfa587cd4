//! When a RECEIPT may go out: at most one per conversation, user and second.
//!
//! The first change of a position is told at once; what follows within the second is told together at its end, so a receipt is late
//! by at most a second and never says anything but the positions of the moment it leaves. Nothing is kept for a position at rest.

use std::collections::{HashMap, VecDeque};

use crate::ids::SessionRef;
use crate::limits::{RECEIPT_EVERY_NS, RECEIPTS_OPEN_MAX};

/// Positions told within the last second.
#[derive(Debug, Default)]
pub struct Receipts {
    open: HashMap<Key, Open>,
    /// Every key of `open` once, in the order in which its second ends.
    ends: VecDeque<(u64, Key)>,
}

/// Whose position in which conversation, by keyed hashes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Key {
    /// Conversation.
    pub conv: [u8; 16],
    /// User.
    pub user: u64,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    /// What has not been told yet.
    change: Option<Change>,
    /// The positions are being read from the engine, and are told when they are there.
    waits: bool,
}

/// A change not told yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Change {
    /// The one device that caused all of it, and need not be told; `None` if there were several.
    pub by: Option<SessionRef>,
}

impl Receipts {
    /// A position moved. Returns whether it is to be told now; otherwise [`Receipts::due`] gives it out within the second. `None`: no
    /// room, it is dropped; the next change tells this position as well.
    pub fn note(&mut self, key: Key, by: SessionRef, now_ns: u64) -> Option<bool> {
        if let Some(open) = self.open.get_mut(&key) {
            let alone = open.change.is_none_or(|change| change.by == Some(by));
            open.change = Some(Change { by: alone.then_some(by) });
            return Some(false);
        }
        if self.open.len() >= RECEIPTS_OPEN_MAX {
            return None;
        }
        self.open.insert(key, Open { change: None, waits: false });
        self.ends.push_back((now_ns + RECEIPT_EVERY_NS, key));
        Some(true)
    }

    /// The positions must be read first: [`Receipts::answered`] gives the change back.
    pub fn wait(&mut self, key: Key, change: Change) {
        if let Some(open) = self.open.get_mut(&key) {
            *open = Open { change: Some(change), waits: true };
        }
    }

    /// The positions are there: what waited for them is to be told now.
    pub fn answered(&mut self, key: Key) -> Option<Change> {
        let open = self.open.get_mut(&key).filter(|open| open.waits)?;
        open.waits = false;
        open.change.take()
    }

    /// The next change whose time has come. It counts as told, and its next second begins.
    pub fn due(&mut self, now_ns: u64) -> Option<(Key, Change)> {
        while let Some(&(end_ns, key)) = self.ends.front()
            && end_ns <= now_ns
        {
            self.ends.pop_front();
            let open = self.open.get_mut(&key).expect("the queue names what is open");
            let change = open.change.take();
            // A read that takes a whole second is asked again rather than waited for.
            open.waits = false;
            match change {
                Some(change) => {
                    self.ends.push_back((now_ns + RECEIPT_EVERY_NS, key));
                    return Some((key, change));
                }
                None => drop(self.open.remove(&key)),
            }
        }
        None
    }

    /// When [`Receipts::due`] is to be asked again.
    #[must_use]
    pub fn next_ns(&self) -> Option<u64> {
        self.ends.front().map(|&(end_ns, _)| end_ns)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::ReactorId;

    fn session(index: u32) -> SessionRef {
        SessionRef { reactor: ReactorId(0), index, generation: 1 }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever happens when: two receipts of one position are a second apart, no change stays untold for longer than a second,
        /// the device left out caused every change since the last receipt, and at rest nothing is kept.
        #[test]
        fn at_most_one_a_second_and_none_lost(steps in prop::collection::vec((0..400_u64, 0..3_u64, 0..2_u32), 1..200)) {
            let mut receipts = Receipts::default();
            let mut told: HashMap<u64, u64> = HashMap::new();
            let mut untold: HashMap<u64, (u64, Vec<u32>)> = HashMap::new();
            let mut now_ns = 0;
            for (pause_ms, user, by) in steps {
                now_ns += pause_ms * 1_000_000;
                while let Some((key, change)) = receipts.due(now_ns) {
                    let (_, by) = untold.remove(&key.user).expect("only changes are told");
                    let one = by.iter().all(|other| *other == by[0]).then(|| session(by[0]));
                    prop_assert_eq!(change.by, one);
                    prop_assert!(told.insert(key.user, now_ns).is_none_or(|last| now_ns - last >= RECEIPT_EVERY_NS));
                }
                prop_assert!(untold.values().all(|(since, _)| now_ns - since < RECEIPT_EVERY_NS));
                if receipts.note(Key { conv: [0; 16], user }, session(by), now_ns) == Some(true) {
                    prop_assert!(!untold.contains_key(&user));
                    prop_assert!(told.insert(user, now_ns).is_none_or(|last| now_ns - last >= RECEIPT_EVERY_NS));
                } else {
                    untold.entry(user).or_insert((now_ns, Vec::new())).1.push(by);
                }
            }
            for _ in 0..2 {
                now_ns += RECEIPT_EVERY_NS;
                while receipts.due(now_ns).is_some() {}
            }
            prop_assert!(receipts.open.is_empty() && receipts.ends.is_empty());
        }
    }

    /// A change that waits for the engine is given back by the answer, once.
    #[test]
    fn a_change_waits_for_the_engine() {
        let (mut receipts, key) = (Receipts::default(), Key { conv: [1; 16], user: 2 });
        assert_eq!(receipts.note(key, session(1), 5), Some(true));
        receipts.wait(key, Change { by: Some(session(1)) });
        assert_eq!(receipts.note(key, session(2), 6), Some(false));
        assert_eq!(receipts.answered(key), Some(Change { by: None }));
        assert_eq!(receipts.answered(key), None);
        assert_eq!(receipts.due(5 + RECEIPT_EVERY_NS), None);
        assert!(receipts.open.is_empty());
    }
}
