//! An engine in memory that loses what it has not synced: for tests of everything that stands on rows.

use std::collections::{BTreeMap, VecDeque};

use super::engine::EngineError;
use super::record::{self, Position, Value};
use super::rows::{Row, Rows};
use super::schema::{Batch, Change, Keyspace, META_POSITION, META_STORE};

type Table = BTreeMap<Vec<u8>, Vec<u8>>;

/// The rows of every keyspace, as of now and as of the last checkpoint.
#[derive(Debug, Default)]
pub struct MemoryEngine {
    tables: [Table; Keyspace::ALL.len()],
    durable: [Table; Keyspace::ALL.len()],
    /// Batches since the last checkpoint, in order.
    unsynced: VecDeque<Batch>,
}

impl MemoryEngine {
    /// An engine with its identity, durable.
    #[must_use]
    pub fn new(store: &record::Store, position: &Position) -> Self {
        let mut engine = Self::default();
        let mut batch = Batch::default();
        batch.push(Keyspace::Meta, Change::Put, META_STORE, |out| store.encode(out));
        batch.push(Keyspace::Meta, Change::Put, META_POSITION, |out| position.encode(out));
        engine.write(batch);
        engine.checkpoint();
        engine
    }

    /// Writes the rows of one group; a crash may lose them until the next checkpoint.
    pub fn write(&mut self, mut batch: Batch) {
        batch.sort();
        apply(&mut self.tables, &batch);
        self.unsynced.push_back(batch);
    }

    /// Makes everything durable, and says up to which group.
    ///
    /// # Panics
    /// If the position is damaged.
    pub fn checkpoint(&mut self) -> Position {
        for batch in self.unsynced.drain(..) {
            apply(&mut self.durable, &batch);
        }
        self.position().expect("memory does not fail")
    }

    /// What a crash leaves: everything up to the last checkpoint, and the first `kept` batches after it.
    #[must_use]
    pub fn crash(self, kept: usize) -> Self {
        let mut tables = self.durable.clone();
        let unsynced: VecDeque<Batch> = self.unsynced.into_iter().take(kept).collect();
        unsynced.iter().for_each(|batch| apply(&mut tables, batch));
        Self { tables, durable: self.durable, unsynced }
    }

    /// Batches that a crash may lose.
    #[must_use]
    pub fn unsynced_count(&self) -> usize {
        self.unsynced.len()
    }

    /// All rows of a keyspace, in the order of their keys.
    pub fn rows(&self, keyspace: Keyspace) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.tables[keyspace.index()].iter().map(|(key, value)| (&key[..], &value[..]))
    }
}

impl<'e> Rows for &'e MemoryEngine {
    type Bytes = &'e [u8];

    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<&'e [u8]>, EngineError> {
        Ok(self.tables[keyspace.index()].get(key).map(|value| &value[..]))
    }

    fn prefix(&self, keyspace: Keyspace, prefix: &[u8]) -> impl Iterator<Item = Row<&'e [u8]>> {
        let rows = self.tables[keyspace.index()].range(prefix.to_vec()..);
        let prefix = prefix.to_vec();
        rows.take_while(move |(key, _)| key.starts_with(&prefix)).map(|(key, value)| Ok((&key[..], &value[..])))
    }

    fn range(&self, keyspace: Keyspace, first: &[u8], last: &[u8]) -> impl DoubleEndedIterator<Item = Row<&'e [u8]>> {
        let rows = self.tables[keyspace.index()].range(first.to_vec()..=last.to_vec());
        rows.map(|(key, value)| Ok((&key[..], &value[..])))
    }
}

impl MemoryEngine {
    fn position(&self) -> Result<Position, EngineError> {
        Rows::position(&self)
    }
}

fn apply(tables: &mut [Table], batch: &Batch) {
    for &keyspace in batch.clears() {
        tables[keyspace.index()].clear();
    }
    for row in batch.rows() {
        let table = &mut tables[row.keyspace.index()];
        let seq = |value: &[u8]| record::Cursor::decode(value).map_or(0, |cursor| cursor.seq);
        match row.change {
            Change::Delete => {
                table.remove(row.key);
            }
            Change::Max if table.get(row.key).is_some_and(|old| seq(old) >= seq(row.value)) => {}
            Change::Put | Change::Max => {
                table.insert(row.key.to_vec(), row.value.to_vec());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(group: u64, key: &[u8], seq: u64) -> Batch {
        let mut batch = Batch::default();
        batch.push(Keyspace::Cursor, Change::Max, key, |out| record::Cursor { seq }.encode(out));
        batch.push(Keyspace::Meta, Change::Put, META_POSITION, |out| {
            Position { group, changed: group, epoch: 1, epoch_changed: 0 }.encode(out)
        });
        batch
    }

    /// A crash keeps what a checkpoint has seen and a prefix of the rest, with the position that belongs to it.
    #[test]
    fn a_crash_keeps_a_prefix() {
        for kept in 0..=2 {
            let store = record::Store { shard: 0, shards: 1, dedup_s: 60, hash_key: [1; 16] };
            let mut engine = MemoryEngine::new(&store, &Position::default());
            engine.write(batch(1, b"a", 5));
            assert_eq!(engine.checkpoint().group, 1);
            engine.write(batch(2, b"b", 1));
            engine.write(batch(3, b"a", 4));
            assert_eq!(engine.unsynced_count(), 2);
            let engine = engine.crash(kept);
            assert_eq!(engine.position().unwrap().group, 1 + kept as u64);
            assert_eq!((&engine).get(Keyspace::Cursor, b"b").unwrap().is_some(), kept > 0);
            let highest = (&engine).get(Keyspace::Cursor, b"a").unwrap().unwrap();
            assert_eq!(record::Cursor::decode(highest).unwrap().seq, 5);
            assert_eq!(engine.rows(Keyspace::Cursor).count(), 1 + usize::from(kept > 0));
        }
    }
}
