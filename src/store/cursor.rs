//! Cursors on their way into the log: merged by max, written with the next group or after a second on their own.
//!
//! A cursor of a conversation that is not in memory waits apart from all other work ([`Aside`]): anybody can name conversations that do
//! not exist, and what is read for them must not take the readers from those who wait for an answer.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::schema::{Conv, Device, User};
use crate::ids::SessionRef;
use crate::limits::{CURSOR_LOADS_MAX, CURSORS_ASIDE_MAX, CURSORS_PENDING_MAX};
use crate::mutant::{self, Mutant};
use crate::wire::message::Text;

/// A cursor that is not in the log yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pending {
    /// Everything up to here is held by the device.
    pub seq: u64,
    /// Conversation.
    pub conv: Text,
    /// Owner of the device.
    pub user: Text,
    /// Device.
    pub device: Text,
}

/// All cursors that are not in the log yet, in the order of their first appearance.
#[derive(Debug, Default)]
pub struct Cursors {
    index: HashMap<(User, Device, Conv), usize>,
    list: Vec<Pending>,
}

impl Cursors {
    /// Takes a cursor; `names` are made only for the first of its device and conversation.
    pub fn merge(&mut self, user: User, device: Device, conv: Conv, seq: u64, names: impl FnOnce() -> [Text; 3]) {
        let next = self.list.len();
        let at = *self.index.entry((user, device, conv)).or_insert(next);
        match self.list.get_mut(at) {
            Some(pending) => pending.seq = if mutant::on(Mutant::CursorNotMerged) { seq } else { pending.seq.max(seq) },
            None => {
                let [conv, user, device] = names();
                self.list.push(Pending { seq, conv, user, device });
            }
        }
    }

    /// Gives all away. The list may be brought back empty by [`Cursors::bring_back`], so that the next one need not be made.
    pub fn take(&mut self) -> Vec<Pending> {
        self.index.clear();
        std::mem::take(&mut self.list)
    }

    /// See [`Cursors::take`].
    ///
    /// # Panics
    /// If either list is not empty.
    pub fn bring_back(&mut self, list: Vec<Pending>) {
        assert!(self.list.is_empty() && list.is_empty());
        self.list = list;
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether they must be written before more are taken.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.list.len() >= CURSORS_PENDING_MAX
    }
}

/// A cursor of a conversation that is not in memory. The names are its own: its device may be gone when its turn comes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Waiting {
    /// The session that sent the ACK.
    pub session: SessionRef,
    /// The cursor.
    pub pending: Pending,
}

/// Cursors that wait for their conversation, in the order in which it was first named.
#[derive(Debug, Default)]
pub struct Aside {
    waiting: HashMap<Conv, Queue>,
    /// Conversations that nobody has been asked for.
    order: BTreeMap<u64, Conv>,
    /// Those that a reader loads.
    asked: HashSet<Conv>,
    next: u64,
    count: usize,
}

#[derive(Debug)]
struct Queue {
    turn: u64,
    cursors: BTreeMap<SessionRef, Waiting>,
}

impl Aside {
    /// Takes a cursor, merged by max with what waits. `false`: there is no room.
    pub fn push(&mut self, conv: Conv, waiting: impl FnOnce() -> Waiting, (session, seq): (SessionRef, u64)) -> bool {
        if let Some(known) = self.waiting.get_mut(&conv).and_then(|queue| queue.cursors.get_mut(&session)) {
            known.pending.seq = known.pending.seq.max(seq);
            return true;
        }
        if self.count >= CURSORS_ASIDE_MAX {
            return false;
        }
        let turn = self.next;
        let queue = self.waiting.entry(conv).or_insert_with(|| {
            self.next += 1;
            self.order.insert(turn, conv);
            Queue { turn, cursors: BTreeMap::new() }
        });
        queue.cursors.insert(session, waiting());
        self.count += 1;
        true
    }

    /// The conversation to be loaded next, if more may be under way.
    #[must_use]
    pub fn wanted(&self) -> Option<(Conv, Text)> {
        let (_, conv) = self.order.first_key_value().filter(|_| self.asked.len() < CURSOR_LOADS_MAX)?;
        let one = self.waiting[conv].cursors.values().next().expect("a queue is never empty");
        Some((*conv, one.pending.conv.clone()))
    }

    /// A reader loads it.
    pub fn asked(&mut self, conv: Conv) {
        if let Some(queue) = self.waiting.get(&conv) {
            self.order.remove(&queue.turn);
            self.asked.insert(conv);
        }
    }

    /// Its turn comes after all others'.
    pub fn again(&mut self, conv: Conv) {
        self.asked.remove(&conv);
        if let Some(queue) = self.waiting.get_mut(&conv) {
            self.order.remove(&queue.turn);
            queue.turn = self.next;
            self.order.insert(queue.turn, conv);
            self.next += 1;
        }
    }

    /// Takes all that wait for a conversation.
    pub fn take(&mut self, conv: Conv) -> impl Iterator<Item = Waiting> + use<> {
        self.asked.remove(&conv);
        let queue = self.waiting.remove(&conv);
        if let Some(queue) = &queue {
            self.order.remove(&queue.turn);
            self.count -= queue.cursors.len();
        }
        queue.into_iter().flat_map(|queue| queue.cursors.into_values())
    }

    /// How many wait.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The highest of each device and conversation, once, in order of appearance.
    #[test]
    fn cursors_merge_by_max() {
        let mut cursors = Cursors::default();
        for (device, seq) in [(1, 5), (2, 9), (1, 7), (1, 3)] {
            cursors.merge(User(1), Device(device), Conv([0; 16]), seq, || ["g:x".into(), "al".into(), "web".into()]);
        }
        assert_eq!(cursors.take().iter().map(|pending| pending.seq).collect::<Vec<_>>(), [7, 9]);
        assert!(cursors.is_empty());
        cursors.merge(User(1), Device(1), Conv([0; 16]), 1, || ["g:x".into(), "al".into(), "web".into()]);
        assert_eq!(cursors.take()[0].seq, 1);
    }
}
