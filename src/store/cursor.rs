//! Cursors on their way into the log: merged by max, written with the next group or after a second on their own.

use std::collections::HashMap;

use super::schema::{Conv, Device, User};
use crate::limits::CURSORS_PENDING_MAX;
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
            Some(pending) => pending.seq = pending.seq.max(seq),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The highest of each device and conversation, once, in order of appearance.
    #[test]
    fn cursors_merge_by_max() {
        let mut cursors = Cursors::default();
        for (device, seq) in [(1, 5), (2, 9), (1, 3), (1, 7)] {
            cursors.merge(User(1), Device(device), Conv([0; 16]), seq, || ["g:x".into(), "al".into(), "web".into()]);
        }
        assert_eq!(cursors.take().iter().map(|pending| pending.seq).collect::<Vec<_>>(), [7, 9]);
        assert!(cursors.is_empty());
        cursors.merge(User(1), Device(1), Conv([0; 16]), 1, || ["g:x".into(), "al".into(), "web".into()]);
        assert_eq!(cursors.take()[0].seq, 1);
    }
}
