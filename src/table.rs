//! Slots with generations, for connections and sessions.                                                          [slab]
//!
//! A slot is named by index and generation, so a name outlives its slot harmlessly: the next tenant has another generation. The
//! address space is reserved once and untouched pages are not resident, so a large capacity costs nothing until it is used, no
//! value ever moves, and nothing doubles.
//!
//! Bytes per slot in use: the value and 4 for the generation, which stands in an array of its own, so that a vacant slot keeps it.
//! There is no tag: a value must have a niche (an enum field will do), which the compiler checks, so an aligned value of 64 bytes
//! occupies 64 in the slab and not 128. Vacant slots are chained through themselves.

use slab::Slab;

use crate::ids::{ConnectionId, SessionRef};
use crate::mutant::{self, Mutant};

/// Names one life of one slot.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Key {
    /// Counted from 0.
    pub index: u32,
    /// At most [`ConnectionId::GENERATION_MAX`].
    pub generation: u32,
}

/// At most `capacity` values of type `T`. See the module text.
#[derive(Debug)]
pub struct Table<T> {
    /// `None`: a retired slot, which stays occupied so that it is never used again.
    values: Slab<Option<T>>,
    /// Of the present tenant, or of the next one.
    generations: Vec<u32>,
    capacity: usize,
    retired_count: usize,
}

/// An entry of the slab as the package declares it; its own is private. A test compares the distance of two values.
#[expect(dead_code, reason = "only its size is of interest")]
enum Entry<T> {
    Vacant(usize),
    Occupied(T),
}

impl<T> Table<T> {
    /// Bytes of one slot: the value, or what the chain of vacant slots needs if that is more, and the generation.
    pub const SLOT_BYTES: usize = size_of::<Entry<Option<T>>>() + size_of::<u32>();

    /// An empty table. Reserves address space for `capacity` values, which is the most it will ever hold.
    ///
    /// # Panics
    /// If `capacity` does not fit an index of 32 bits, whose highest value is left to drivers.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        const {
            let slot = size_of::<Entry<Option<T>>>();
            assert!(slot == size_of::<T>() || slot == 2 * size_of::<usize>(), "the value has no niche; see the module text");
        }
        assert!(u32::try_from(capacity).is_ok());
        Self { values: Slab::with_capacity(capacity), generations: Vec::with_capacity(capacity), capacity, retired_count: 0 }
    }

    /// Puts `value` into a slot: the one that became vacant last, whose memory is the warmest, or one never used.
    ///
    /// # Errors
    /// The value, when the table is full.
    pub fn insert(&mut self, value: T) -> Result<Key, T> {
        if self.values.len() == self.capacity {
            return Err(value);
        }
        let index = self.values.insert(Some(value));
        if index == self.generations.len() {
            self.generations.push(0);
        }
        Ok(Key { index: u32::try_from(index).expect("below the capacity"), generation: self.generations[index] })
    }

    /// Takes the value out and ends the life of the slot. `None`: the key is of an earlier life.
    ///
    /// A slot at the last generation is not used again: a wrapped one would give old names a meaning.
    pub fn remove(&mut self, key: impl Into<Key>) -> Option<T> {
        let key = key.into();
        if !self.is_current(key) {
            return None;
        }
        let index = key.index as usize;
        let value = self.values.get_mut(index)?.take()?;
        if key.generation < ConnectionId::GENERATION_MAX {
            self.generations[index] += 1;
            self.values.remove(index);
        } else {
            self.retired_count += 1;
        }
        Some(value)
    }

    /// The value of a key; `None` if it is of an earlier life.
    #[must_use]
    pub fn get(&self, key: impl Into<Key>) -> Option<&T> {
        let key = key.into();
        if self.is_current(key) { self.values.get(key.index as usize)?.as_ref() } else { None }
    }

    /// As [`Table::get`], to change it.
    #[must_use]
    pub fn get_mut(&mut self, key: impl Into<Key>) -> Option<&mut T> {
        let key = key.into();
        if self.is_current(key) { self.values.get_mut(key.index as usize)?.as_mut() } else { None }
    }

    /// The value of a key that whoever calls has looked up: a slot is freed between two calls of its owner, never inside one.
    ///
    /// # Panics
    /// If the key is of an earlier life.
    #[must_use]
    pub fn known(&self, key: impl Into<Key>) -> &T {
        self.get(key).expect("looked up within this call")
    }

    /// As [`Table::known`], to change it.
    ///
    /// # Panics
    /// If the key is of an earlier life.
    #[must_use]
    pub fn known_mut(&mut self, key: impl Into<Key>) -> &mut T {
        self.get_mut(key).expect("looked up within this call")
    }

    /// The present tenant of a slot, if any, with its key. For scans that go on where they stopped.
    #[must_use]
    pub fn at(&self, index: u32) -> Option<(Key, &T)> {
        let value = self.values.get(index as usize)?.as_ref()?;
        Some((Key { index, generation: self.generations[index as usize] }, value))
    }

    /// Slots ever used: indices are below it. A scan ends here.
    #[must_use]
    pub fn slots_count(&self) -> u32 {
        u32::try_from(self.generations.len()).expect("at most the capacity")
    }

    /// Every value with its key, in order of index.
    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        (0..self.slots_count()).filter_map(|index| self.at(index))
    }

    /// Values held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.values.len() - self.retired_count
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The most it will hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    fn is_current(&self, key: Key) -> bool {
        let present = self.generations.get(key.index as usize);
        present == Some(&key.generation) || (mutant::on(Mutant::StaleGeneration) && present.is_some())
    }
}

impl From<ConnectionId> for Key {
    fn from(id: ConnectionId) -> Self {
        Self { index: id.index, generation: id.generation }
    }
}

impl From<Key> for ConnectionId {
    fn from(key: Key) -> Self {
        Self { index: key.index, generation: key.generation }
    }
}

impl From<SessionRef> for Key {
    /// The reactor is the caller's to compare.
    fn from(session: SessionRef) -> Self {
        Self { index: session.index, generation: session.generation }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    /// Stands for a connection entry: aligned, 64 bytes, with an enum field for a niche.
    #[repr(C, align(64))]
    struct Line {
        state: State,
        rest: [u32; 15],
    }

    #[derive(Clone, Copy, PartialEq, Debug)]
    #[repr(u8)]
    enum State {
        Open,
        Closing,
    }

    const _: () = assert!(size_of::<Line>() == 64 && Table::<Line>::SLOT_BYTES == 68);

    /// A name of an earlier life finds nothing, and removes nothing, when the slot has a new tenant.
    #[test]
    fn stale_key_finds_nothing() {
        let mut table = Table::with_capacity(4);
        let first = table.insert(State::Open).unwrap();
        assert_eq!(table.remove(first), Some(State::Open));
        let second = table.insert(State::Closing).unwrap();
        assert_eq!((second.index, second.generation), (first.index, 1));
        assert_eq!(table.get(first), None);
        assert_eq!(table.get_mut(first), None);
        assert_eq!(table.remove(first), None);
        assert_eq!(table.get(second), Some(&State::Closing));
        assert_eq!(table.get(Key { index: 3, generation: 0 }), None);
    }

    /// A full table gives the value back and takes one again after a removal.
    #[test]
    fn full_table_refuses() {
        let mut table = Table::with_capacity(2);
        let kept = table.insert(State::Open).unwrap();
        table.insert(State::Open).unwrap();
        assert_eq!(table.insert(State::Closing), Err(State::Closing));
        table.remove(kept);
        assert!(table.insert(State::Closing).is_ok());
        assert_eq!((table.len(), table.slots_count(), table.capacity()), (2, 2, 2));
    }

    /// A slot at its last generation is retired, not wrapped.
    #[test]
    fn slot_at_last_generation_is_retired() {
        let mut table = Table::with_capacity(2);
        let first = table.insert(State::Open).unwrap();
        table.remove(first);
        table.generations[0] = ConnectionId::GENERATION_MAX;
        let last = table.insert(State::Open).unwrap();
        assert_eq!((last.index, last.generation), (0, ConnectionId::GENERATION_MAX));
        assert_eq!(table.remove(last), Some(State::Open));
        assert_eq!(table.get(last), None);
        assert_eq!(table.insert(State::Open).unwrap().index, 1);
        assert!(table.insert(State::Open).is_err());
    }

    /// Values stay where they are and the size is that of the value: 64 bytes from one to the next.
    #[test]
    fn values_lie_side_by_side() {
        let mut table = Table::with_capacity(3);
        let keys = [0, 1, 2].map(|n| table.insert(Line { state: State::Open, rest: [n; 15] }).ok().unwrap());
        let place = |table: &Table<Line>, key| std::ptr::from_ref(table.get(key).unwrap()).addr();
        assert_eq!(place(&table, keys[1]) - place(&table, keys[0]), 64);
        assert_eq!(place(&table, keys[2]) - place(&table, keys[1]), 64);
        assert_eq!(table.get(keys[2]).unwrap().rest, [2; 15]);
        assert_eq!(table.get(keys[0]).unwrap().state, State::Open);
    }

    proptest! {
        /// Agrees with a map from every key ever given out, for any order of insertions and removals.
        #[test]
        fn agrees_with_a_map(operations in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..200)) {
            let mut table = Table::with_capacity(20);
            let mut model: HashMap<Key, bool> = HashMap::new();
            let mut given = Vec::new();
            for (insert, which) in operations {
                if insert {
                    match table.insert(true) {
                        Ok(key) => { prop_assert!(model.insert(key, true).is_none()); given.push(key); }
                        Err(_) => prop_assert_eq!(model.len(), 20),
                    }
                } else if !given.is_empty() {
                    let key = given[which.index(given.len())];
                    prop_assert_eq!(table.remove(key), model.remove(&key));
                }
                prop_assert_eq!(table.len(), model.len());
            }
            for key in given {
                prop_assert_eq!(table.get(key), model.get(&key));
            }
            let mut left: Vec<Key> = model.into_keys().collect();
            left.sort_by_key(|key| key.index);
            prop_assert_eq!(table.iter().map(|(key, _)| key).collect::<Vec<_>>(), left);
        }
    }
}
