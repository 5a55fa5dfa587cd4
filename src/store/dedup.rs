//! The cmids of late, in memory: a repeat that races its original is caught without reading the engine.
//!
//! Held is everything the projector has not written yet, everything of the last two groups, and as much more as the bound allows.
//! What is no longer here is in `dedup.N`, where a reader finds it for a SEND that carries RETRY.

use std::collections::VecDeque;
use std::collections::hash_map::{Entry, HashMap};

use super::schema::{Conv, User};
use crate::ids::{Cmid, Mid};
use crate::mutant::{self, Mutant};

/// A message stored under a cmid.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Known {
    /// Conversation.
    pub conv: Conv,
    /// Place in it.
    pub seq: u64,
    /// Message id.
    pub mid: Mid,
    /// Keyed hash of kind and payload.
    pub fingerprint: u64,
}

/// See the head of this file.
#[derive(Debug)]
pub struct Recent {
    known: HashMap<(Cmid, User), Known>,
    /// In order of storing, with the group of each.
    order: VecDeque<(Cmid, User, u64)>,
    count_max: usize,
}

impl Recent {
    /// Keeps up to `count_max` of those it would not need to keep.
    #[must_use]
    pub fn new(count_max: usize) -> Self {
        Self { known: HashMap::new(), order: VecDeque::new(), count_max }
    }

    /// The message `user` stored under `cmid`, if it is remembered.
    #[must_use]
    pub fn find(&self, cmid: Cmid, user: User) -> Option<&Known> {
        self.known.get(&(cmid, user))
    }

    /// Remembers a message of commit group `group`. A cmid used again after it was forgotten counts from now.
    pub fn insert(&mut self, cmid: Cmid, user: User, known: Known, group: u64) {
        if mutant::on(Mutant::DedupForgotten) {
            return;
        }
        match self.known.entry((cmid, user)) {
            Entry::Vacant(slot) => {
                slot.insert(known);
            }
            Entry::Occupied(mut slot) => {
                slot.insert(known);
                self.order.retain(|(other_cmid, other_user, _)| (*other_cmid, *other_user) != (cmid, user));
            }
        }
        self.order.push_back((cmid, user, group));
        debug_assert_eq!(self.known.len(), self.order.len());
    }

    /// Forgets the oldest above the bound, but nothing after group `projected` and nothing of the last two groups up to `current`.
    pub fn evict(&mut self, projected: u64, current: u64) {
        let kept_from = (projected + 1).min(current.saturating_sub(1));
        while self.order.len() > self.count_max {
            match self.order.front() {
                Some(&(cmid, user, group)) if group < kept_from => {
                    self.known.remove(&(cmid, user));
                    self.order.pop_front();
                }
                _ => break,
            }
        }
        self.trim();
    }

    /// Gives back what a projector that was behind has made of the tables, once it has caught up.
    fn trim(&mut self) {
        let needed = self.order.len().max(self.count_max).max(COUNT_KEPT_MIN);
        if self.order.capacity() > 4 * needed || self.known.capacity() > 4 * needed {
            self.order.shrink_to(2 * needed);
            self.known.shrink_to(2 * needed);
        }
    }

    /// How many are remembered.
    #[must_use]
    pub fn count(&self) -> usize {
        self.order.len()
    }
}

/// Tables for so many are never too large.
const COUNT_KEPT_MIN: usize = 1_024;

#[cfg(test)]
mod tests {
    use super::*;

    fn known(seq: u64) -> Known {
        Known { conv: Conv([0; 16]), seq, mid: Mid(seq), fingerprint: seq }
    }

    fn cmid(number: u8) -> Cmid {
        Cmid([number; 16])
    }

    /// One message per group, a bound of two: the bound gives way to what is not projected and to the last two groups.
    #[test]
    fn only_what_is_projected_and_older_than_two_groups_is_forgotten() {
        let mut recent = Recent::new(2);
        for group in 1..=10_u8 {
            recent.insert(cmid(group), User(1), known(u64::from(group)), u64::from(group));
        }
        recent.evict(0, 10);
        assert_eq!(recent.count(), 10);
        recent.evict(4, 10);
        assert_eq!(recent.count(), 6);
        assert!(recent.find(cmid(4), User(1)).is_none());
        assert_eq!(recent.find(cmid(5), User(1)), Some(&known(5)));
        recent.evict(10, 10);
        assert_eq!(recent.count(), 2);
        assert!(recent.find(cmid(9), User(1)).is_some());
        assert!(recent.find(cmid(9), User(2)).is_none());

        let mut none = Recent::new(0);
        none.insert(cmid(1), User(1), known(1), 9);
        none.insert(cmid(2), User(1), known(2), 10);
        none.evict(10, 10);
        assert_eq!(none.count(), 2);
        none.evict(10, 11);
        assert_eq!(none.count(), 1);
    }

    /// What a projector far behind made grow is given back when it has caught up, and what must be remembered still is.
    #[test]
    fn a_burst_leaves_no_large_tables() {
        let mut recent = Recent::new(10);
        for group in 1..=20_000_u64 {
            recent.insert(Cmid(u128::from(group).to_be_bytes()), User(1), known(group), group);
            recent.evict(0, group);
        }
        assert_eq!(recent.count(), 20_000);
        let large = (recent.order.capacity(), recent.known.capacity());
        assert!(large.0 >= 20_000 && large.1 >= 20_000);
        recent.evict(20_000, 20_001);
        assert_eq!(recent.count(), 10);
        let small = (recent.order.capacity(), recent.known.capacity());
        assert!(small.0 <= 4 * COUNT_KEPT_MIN && small.1 <= 4 * COUNT_KEPT_MIN, "{small:?}");
        assert_eq!(recent.find(Cmid(20_000_u128.to_be_bytes()), User(1)), Some(&known(20_000)));
    }

    /// Replay may meet a cmid again that had been forgotten when it was accepted a second time: the later one stands.
    #[test]
    fn a_cmid_stored_twice_is_the_later_one() {
        let mut recent = Recent::new(10);
        recent.insert(cmid(1), User(1), known(1), 1);
        recent.insert(cmid(1), User(1), known(2), 2);
        assert_eq!(recent.find(cmid(1), User(1)), Some(&known(2)));
        assert_eq!(recent.count(), 1);
    }
}
