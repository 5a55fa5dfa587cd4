//! What a core keeps beside its table of connections: arrays with a line for each slot.

use std::ops::{Index, IndexMut};

use crate::ids::ConnectionId;

/// One value for each slot that was ever in use. A line outlives its connection, until the next one in the slot begins it anew.
#[derive(Debug)]
pub(super) struct Lines<T>(Vec<T>);

impl<T: Default> Lines<T> {
    /// Reserves address space for `capacity` lines.
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    /// The line of a slot; `None`: it was never begun.
    pub(super) fn find(&self, id: ConnectionId) -> Option<&T> {
        self.0.get(id.index as usize)
    }

    /// See [`Lines::find`].
    pub(super) fn find_mut(&mut self, id: ConnectionId) -> Option<&mut T> {
        self.0.get_mut(id.index as usize)
    }

    /// Begins the line of a connection that was just accepted.
    pub(super) fn begin(&mut self, id: ConnectionId, line: T) {
        let slot = id.index as usize;
        if self.0.len() <= slot {
            self.0.resize_with(slot + 1, T::default);
        }
        self[id] = line;
    }
}

/// The line of a connection that was accepted.
#[expect(clippy::indexing_slicing, reason = "slots are the table's own, and their lines begin when they are taken")]
impl<T> Index<ConnectionId> for Lines<T> {
    type Output = T;

    fn index(&self, id: ConnectionId) -> &T {
        &self.0[id.index as usize]
    }
}

#[expect(clippy::indexing_slicing, reason = "see above")]
impl<T> IndexMut<ConnectionId> for Lines<T> {
    fn index_mut(&mut self, id: ConnectionId) -> &mut T {
        &mut self.0[id.index as usize]
    }
}
